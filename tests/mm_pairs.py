"""Pairs of snapshots and references whose transitions and bridges are known in closed form."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import distributions as D

from genflow.process.multimarginal.interval import Interval, log_densities
from genflow.process.reference import LotkaVolterra, Reference, Repressilator

double = torch.float64


def rows(*values):
    return torch.tensor(values, dtype=double)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=double)


def between(reference, sigma, x0, x1, span=(0.0, 1.0), mu=None, nu=None):
    """An interval, with even masses by default."""
    mu = torch.full((len(x0),), 1 / len(x0), dtype=double) if mu is None else mu
    nu = torch.full((len(x1),), 1 / len(x1), dtype=double) if nu is None else nu
    return Interval(reference, sigma, x0, x1, mu, nu, span)


@torch.no_grad()
def pair_logs(interval, steps):
    """Log-densities of one interval's pairs, ``(n, m)``."""
    (found,) = log_densities([interval], steps)
    return found


def slopes(function, x, h=1e-5):
    """Central differences ``[b, i, j] = d f_i / d x_j`` of ``f (B, d) -> (B, k)``."""
    columns = []
    for j in range(x.shape[1]):
        way = torch.zeros_like(x)
        way[:, j] = h
        columns.append((function(x + way) - function(x - way)) / (2 * h))
    return torch.stack(columns, 2)


def z_scores(x, mean, covariance, weight=None):
    """Of the first two moments of draws ``x (N, d)``, weighted or not, in standard errors."""
    share = torch.full((len(x),), 1 / len(x)).to(x) if weight is None else weight / weight.sum()
    away = x - mean
    products = (away[:, :, None] * away[:, None]).flatten(1) - covariance.flatten()
    found = torch.cat([away, products], 1)
    error = (share[:, None] ** 2 * found.square()).sum(0).sqrt()
    return (share @ found).abs() / error


# Affine drifts


def van_loan(matrix, shift, time):
    """Transition, mean of the start 0, and covariance over sigma^2 of ``dX = (AX + b)dt + sigma dW``,
    from exponentials of block matrices (Van Loan 1978)."""
    a, b = np.asarray(matrix, float), np.asarray(shift, float)
    d = len(a)
    pair = expm(time * np.block([[-a, np.eye(d)], [np.zeros((d, d)), a.T]]))
    whole = expm(time * np.block([[a, b[:, None]], [np.zeros((1, d + 1))]]))
    found = whole[:d, :d], whole[:d, d], pair[d:, d:].T @ pair[:d, d:]
    return tuple(torch.from_numpy(np.ascontiguousarray(v)) for v in found)


def gaussian_bridge(matrix, shift, sigma, x, y, start, stop):
    """Mean and covariance at ``start`` of an affine drift's bridge from ``x`` at 0 to ``y`` at
    ``stop``: the joint law of both states, conditioned."""
    phi, mean, spread = van_loan(matrix, shift, start)
    onward, offset, gained = van_loan(matrix, shift, stop - start)
    here = phi @ x + mean
    cross = sigma**2 * spread @ onward.mT
    end = sigma**2 * (onward @ spread @ onward.mT + gained)
    gain = cross @ torch.linalg.inv(end)
    return here + gain @ (y - onward @ here - offset), sigma**2 * spread - gain @ cross.mT


class Season(Reference):
    """``x' = cos(t) x + 1`` in one dimension: affine, with a clock."""

    def __init__(self):
        super().__init__(1)

    def field(self, t, x, values):
        return torch.as_tensor(t, dtype=x.dtype).cos().reshape(-1, 1) * x + 1


# A nonlinear drift with known transitions


class Tilted(Reference):
    r""":math:`f = \sigma^2\nabla\log h`, :math:`h = \sum_i e^{v_i\cdot x}` with vectors of one length:
    Brownian motion tilted by a martingale, whose bridges are Brownian; in one dimension it is
    :math:`\lambda\sigma^2\tanh\lambda x`. In the plane all of it may turn, which gives a drift with a
    clock and without a potential."""

    def __init__(self, sigma, *vectors, turn=0.0):
        super().__init__(len(vectors[0]))
        self.sigma, self.vectors, self.turn = sigma, rows(*vectors), turn
        lengths = self.vectors.norm(dim=1)
        assert torch.allclose(lengths, lengths[:1])

    def turned(self, x, t, way=1):
        """By the angle of time ``t``, there or back."""
        if not self.turn:
            return x
        angle = torch.as_tensor(t, dtype=double) * self.turn * way
        c, s = angle.cos(), angle.sin()
        return torch.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)

    def field(self, t, x, values):
        still = self.turned(x, t, -1)
        pull = self.sigma**2 * (still @ self.vectors.mT).softmax(1) @ self.vectors
        if not self.turn:
            return pull
        round_ = self.turn * torch.stack([-x[:, 1], x[:, 0]], 1)
        return round_ + self.turned(pull, t)

    def log_density(self, x, y, span):
        """Exact ``log p(y_j|x_i)``, ``(n, m)``."""
        x, y, time = self.turned(x, span[0], -1), self.turned(y, span[1], -1), span[1] - span[0]
        free = D.Normal(x[:, None], self.sigma * time**0.5).log_prob(y).sum(2)
        tilt = [(v @ self.vectors.mT).logsumexp(1) for v in (y, x)]
        drop = float(self.vectors[0].square().sum()) * self.sigma**2 * time / 2
        return free + tilt[0] - tilt[1][:, None] - drop

    def bridge(self, x, y, span, t):
        """Exact mean and covariance at ``t`` from ``x (d)`` to ``y (d)``."""
        start, stop = span
        share = (t - start) / (stop - start)
        mean = (1 - share) * self.turned(x, start, -1) + share * self.turned(y, stop, -1)
        spread = self.sigma**2 * (t - start) * (stop - t) / (stop - start)
        return self.turned(mean, t), spread * torch.eye(self.dim, dtype=double)


def tanh(sigma=1.0, rate=1.0):
    return Tilted(sigma, [rate], [-rate])


def triple(sigma=1.0, rate=1.5, turn=0.0):
    """In the plane, to three sides."""
    turns = [0.3 + 2 * math.pi * k / 3 for k in range(3)]
    return Tilted(sigma, *([rate * math.cos(a), rate * math.sin(a)] for a in turns), turn=turn)


# The published simulations


def predators():
    return LotkaVolterra(1.0, 0.4, 0.4, 0.1)


def genes():
    return Repressilator(10.0, 3.0, 1.0, 1.0)


PUBLISHED = {
    "LV": (predators, [5.0, 4.0], 0.02, [0.0, 2.0, 4.0, 6.0, 8.0], None),
    "repres": (genes, [1.0, 1.0, 2.0], 0.01, [0.0, 1.5, 3.0, 4.5, 6.0, 7.5], 0.0),
}
"""Family, least corner of a box of side 0.1, step, times of training, and where snapshots are
clipped; sigma is 0.1."""


def simulated(name, seed=0):
    """Training snapshots of 50 particles, each simulated from time 0 on its own, and their times."""
    family, corner, dt, times, least = PUBLISHED[name]
    reference, draw, d = family(), seeded(seed), len(corner)
    low = torch.tensor(corner)

    def box():
        return torch.rand(50, d, generator=draw) * 0.1 + low

    box()
    found = []
    for time in times[1:]:
        start = box()
        steps = round(time / dt)
        noise = torch.randn(50, steps, d, generator=draw) * math.sqrt(dt)
        x = start.double()
        with torch.no_grad():
            for k in range(steps):
                x = x + dt * reference(0.0, x) + 0.1 * noise[:, k].double()
        found.append(x if least is None else x.clamp_min(least))
    return [start.double(), *found], times


def stored(name):
    """The same from the published arrays, where they are at hand."""
    folder = os.environ.get("GENFLOW_DATA")
    path = Path(folder or ".") / "snapshots" / f"{name}.npz"
    if folder is None or not path.is_file():
        pytest.skip(
            f"needs the published arrays: let GENFLOW_DATA name a folder with snapshots/{name}.npz"
        )
    with np.load(path) as file:
        train = file["train"].tolist()
        xs = [torch.from_numpy(np.asarray(file[f"x{k}"], float)) for k in train]
        return xs, [float(file["times"][k]) for k in train]
