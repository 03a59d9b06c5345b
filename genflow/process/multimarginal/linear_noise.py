r"""A reference linearised about its own paths: Gaussian transitions and bridges.

About the path :math:`\dot m = f(t, m)` from each start, deviations follow
:math:`d\delta = J(t, m)\,\delta\,dt + \sigma\,dW`. Over a step of a grid they are multiplied by
:math:`A_l` and gain a covariance :math:`\sigma^2Q_l`. Everything is built of these by products and
sums: no fundamental matrix is inverted, so that contraction does no harm, nor growth that doubles hold.
Exact for affine drifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.process.reference import Reference
from genflow.process.reference.base import Values

LOG_TWO_PI = math.log(2 * math.pi)
KEPT = 1e6
"""The largest square, in variances, whose expansion is exact to a billionth."""


@dataclass(frozen=True)
class LinearNoise:
    r"""Transitions from ``N`` starts along a grid of ``S`` steps.

    Attributes:
        times: ``(S+1, N)``.
        mean: the paths :math:`m`, ``(S+1, N, d)``.
        step: :math:`A_l`, ``(S, N, d, d)``.
        noise: :math:`Q_l`, ``(S, N, d, d)``.
    """

    times: Tensor
    mean: Tensor
    step: Tensor
    noise: Tensor

    @classmethod
    def along(cls, reference: Reference, x: Tensor, times: Tensor) -> LinearNoise:
        """From starts ``x (N, d)`` along ``times (S+1,)`` or ``(S+1, N)``, by the classical Runge-Kutta
        method.

        Raises:
            FloatingPointError: where the family gives a value that is not finite, naming the state.
        """
        times = times.to(x)
        times = times[:, None].expand(-1, len(x)) if times.ndim == 1 else times
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        values = reference.values()  # once: a law of parameters is a program
        means, steps, noises = [x], [], []
        for s, t in zip(times[:-1], times[1:]):
            state = _runge_kutta(reference, values, s, (t - s)[:, None, None], means[-1], eye)
            _check(state[0], s, means[-1], reference)
            for kept, value in zip((means, steps, noises), state):
                kept.append(value)
        return cls(times, torch.stack(means), torch.stack(steps), torch.stack(noises))

    def remaining(self) -> tuple[Tensor, Tensor]:
        r"""From every point of the grid to its end: :math:`\Phi_l` and :math:`P_l`, the covariance
        gained over :math:`\sigma^2`; each ``(S+1, N, d, d)``."""
        end = torch.eye(self.mean.shape[2], dtype=self.mean.dtype, device=self.mean.device)
        phi, gained = [end.expand_as(self.step[0])], [torch.zeros_like(self.step[0])]
        for step, noise in zip(self.step.flip(0), self.noise.flip(0)):
            gained.append(gained[-1] + phi[-1] @ noise @ phi[-1].mT)
            phi.append(phi[-1] @ step)
        return torch.stack(phi).flip(0), torch.stack(gained).flip(0)

    def end(self) -> tuple[Tensor, Tensor]:
        r"""Mean ``(N, d)`` at the end of the grid, and covariance over :math:`\sigma^2`."""
        gained = self.noise[0]
        for step, noise in zip(self.step[1:], self.noise[1:]):
            gained = step @ gained @ step.mT + noise
        return self.mean[-1], gained


def _runge_kutta(
    reference: Reference, values: Values, t: Tensor, h: Tensor, x: Tensor, eye: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, transition and noise of one step of lengths ``h (N, 1, 1)``."""
    flat, length = h[:, :, 0], h[:, 0, 0]
    means, steps, noises = [], [], []
    for part in (0.0, 0.5, 0.5, 1.0):
        at, a, q = x, eye, None
        if part:
            at, a = x + part * flat * means[-1], eye + part * h * steps[-1]
            q = part * h * noises[-1]
        time = t + part * length
        jacobian = reference.jacobian(time, at, values)
        means.append(reference.field(time, at, values))
        steps.append(jacobian @ a)
        if q is None:
            noises.append(eye)
        else:
            spread = jacobian @ q
            noises.append(spread + spread.mT + eye)

    def mixed(k: list[Tensor], length: Tensor) -> Tensor:
        return length / 6 * (k[0] + 2 * k[1] + 2 * k[2] + k[3])

    return x + mixed(means, flat), eye + mixed(steps, h), mixed(noises, h)


def _check(reached: Tensor, t: Tensor, x: Tensor, reference: Reference) -> None:
    fine = torch.isfinite(reached.detach()).all(1)
    if bool(fine.all()):
        return
    k = int((~fine).nonzero()[0])
    state = ", ".join(f"{v:.4g}" for v in x[k].tolist())
    raise FloatingPointError(
        f"{type(reference).__name__} leads from the state ({state}) at time {float(t[k]):g} to a value "
        "that is not finite: start its parameters nearer to what the data show, take more steps, or "
        "standardise the data"
    )


def log_density(mean: Tensor, covariance: Tensor, y: Tensor, chunk: int = 1 << 24) -> Tensor:
    """Gaussian log-densities of all ``y (m, d)`` for each of ``mean (n, d)``, ``covariance (n, d, d)``,
    as ``(n, m)``.

    One product of matrices, of the quadratic forms' coefficients with monomials of ``y``, where it
    keeps its digits; else differences are whitened, in blocks of about ``chunk`` numbers.

    Raises:
        FloatingPointError: for a covariance that is not positive definite.
    """
    d = y.shape[1]
    root = cholesky(covariance)
    constant = -root.diagonal(dim1=-2, dim2=-1).log().sum(1) - d * LOG_TWO_PI / 2
    centre = y.detach().mean(0)
    y, mean = y - centre, mean - centre
    precision = torch.cholesky_inverse(root)
    largest = max(float(v.detach().abs().max()) for v in (y, mean))
    if largest**2 * float(precision.detach().abs().max()) * d**2 < KEPT:
        return _forms(precision, mean, constant, y)
    block = max(1, chunk // (len(y) * d))
    parts = []
    for rows in range(0, len(mean), block):
        here = slice(rows, rows + block)
        away = y - mean[here, None]
        white = torch.linalg.solve_triangular(root[here], away.mT, upper=False)
        parts.append(constant[here, None] - white.square().sum(1) / 2)
    return torch.cat(parts)


def _forms(precision: Tensor, mean: Tensor, constant: Tensor, y: Tensor) -> Tensor:
    """``constant - (y - mean)' precision (y - mean) / 2`` for all pairs."""
    i, j = torch.triu_indices(y.shape[1], y.shape[1], device=y.device)
    twice = (i != j).to(y) + 1
    pull = (precision @ mean[..., None])[..., 0]
    constant = constant - (pull * mean).sum(1) / 2
    ours = [precision[:, i, j] * (-twice / 2), pull, constant[:, None]]
    theirs = [y[:, i] * y[:, j], y, torch.ones_like(y[:, :1])]
    return torch.cat(ours, 1) @ torch.cat(theirs, 1).mT


def cholesky(covariance: Tensor) -> Tensor:
    """Lower factors of ``(..., d, d)``.

    Raises:
        FloatingPointError: for a matrix that is not positive definite.
    """
    root, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        raise FloatingPointError(
            "the reference's covariance over an interval is not positive definite: its parameters have "
            "run away, or too few steps are taken; use more steps, or start nearer to what the data "
            "show"
        )
    return root
