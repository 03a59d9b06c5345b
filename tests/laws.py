"""Mixtures, coupled and not, and a comparison of draws: what the tests of oracles share."""

import torch

from genflow.oracle import Joint
from genflow.source import GaussianMixture

LEFT = GaussianMixture([[1.0, -1.0], [-1.5, 0.5]], [[[1.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 0.2]]])
RIGHT = GaussianMixture([[2.0, 0.0], [-1.0, 2.0], [0.0, -2.0]], [0.3, 0.5, 0.2], [1, 2, 3])


def coupled(dim=2, count=3, seed=0):
    """A mixture of pairs with nothing symmetric about it."""
    draw = torch.Generator().manual_seed(seed)
    mean = 1.5 * torch.randn(2, count, dim, generator=draw, dtype=torch.float64)
    root = torch.randn(count, 2 * dim, 2 * dim, generator=draw, dtype=torch.float64) / (2 * dim) ** 0.5
    cov = root @ root.mT + torch.eye(2 * dim, dtype=torch.float64)
    weights = torch.arange(1.0, count + 1)
    return Joint(weights, *mean, cov[:, :dim, :dim], cov[:, dim:, dim:], cov[:, :dim, dim:])


def moment_scores(x, y):
    f, g = (torch.cat([v, v**2, v[:, :1] * v[:, 1:], v**3], 1) for v in (x, y))
    return float(((f.mean(0) - g.mean(0)) / (f.var(0) / len(f) + g.var(0) / len(g)).sqrt()).abs().max())
