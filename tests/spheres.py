"""Sets, projections by sorting, moments, and quadrature on the sphere, for tests of variates."""

import math

import numpy as np
import torch

from genflow.variate import Moments


def draw(seed):
    return torch.Generator().manual_seed(seed)


def pair(n=20, m=20, d=3, seed=0, step=0.5):
    """Two skewed clouds with nothing in common."""
    x = torch.randn(n, d, generator=draw(seed), dtype=torch.float64)
    y = torch.randn(m, d, generator=draw(seed + 1), dtype=torch.float64)
    skewed = 1.6 * y * torch.linspace(0.5, 1.5, d) + 0.3 * (y**2 - 1)
    return x, skewed + step * torch.linspace(-2, 1, d)


def project(x, y, theta, p=2.0):
    """Projected distances of sets of one size ``(L,)``, sorted against sorted, by autograd."""
    u, v = ((theta @ z.mT).sort(1).values for z in (x, y))
    return ((u - v).abs() ** p).mean(1)


def repeated(x, y, a=None, b=None):
    """Sets of one size without weights that weigh as whole numbers do."""
    x, y = (z if w is None else z.repeat_interleave(w, 0) for z, w in ((x, a), (y, b)))
    least = math.lcm(len(x), len(y))
    return x.repeat_interleave(least // len(x), 0), y.repeat_interleave(least // len(y), 0)


def known(x, y, a=None, b=None):
    """Moments by numpy, as a batch of one; ``a``, ``b`` are weights."""
    means = [np.average(z.numpy(), 0, w) for z, w in ((x, a), (y, b))]
    covs = [np.cov(z.numpy().T, aweights=w, ddof=0) for z, w in ((x, a), (y, b))]
    step, *covs = (torch.from_numpy(np.atleast_1d(v))[None] for v in (means[0] - means[1], *covs))
    return Moments(step, *covs)


def nodes(d, count=400):
    """Directions and weights that integrate over the circle or the sphere."""
    if d == 2:
        angle = (np.arange(20 * count) + 0.5) * (np.pi / (20 * count))
        theta, weight = np.stack([np.cos(angle), np.sin(angle)], 1), np.full(len(angle), 0.05 / count)
    else:
        z, weight = np.polynomial.legendre.leggauss(count // 4)
        angle = np.arange(count // 2) * (4 * np.pi / count)
        z, angle = (v.ravel() for v in np.meshgrid(z, angle, indexing="ij"))
        radius = np.sqrt(1 - z**2)
        theta = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)
        weight = np.repeat(weight, count // 2) / count
    return torch.from_numpy(theta), torch.from_numpy(weight)


def score(values):
    """Mean over standard error of draws along the first dimension, the largest in size."""
    return float((values.mean(0) / (values.std(0) / len(values) ** 0.5)).abs().max())
