"""Gaussian mixtures as numbers: what every law that is one can say of itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.tensors import draw_device


class Components(NamedTuple):
    """A mixture of Gaussians in ``d`` dimensions; float64 on the CPU.

    Attributes:
        weights: ``(K,)``, of sum one.
        means: ``(K, d)``.
        covariances: ``(K, d, d)``, positive definite where a density is asked for.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density ``(n, *d) -> (n,)``, computed in float64 and returned in the dtype of ``x``."""
        weights, means, covariances = (v.to(x.device) for v in self)
        rows = x.flatten(1).double().mT
        logs, _ = log_normal(rows, means, torch.linalg.cholesky(covariances))
        return torch.logsumexp(logs + weights.log()[:, None], 0).to(x)


def log_normal(x: Tensor, means: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities of Gaussians at columns, and the columns whitened.

    Args:
        x: ``(..., d, n)``.
        means: ``(..., K, d)``.
        factors: lower Cholesky factors of the covariances, ``(..., K, d, d)``.

    Returns:
        ``(..., K, n)``, and ``(..., K, d, n)``: the factors' inverses times ``x - mean``.
    """
    centred = x.unsqueeze(-3) - means.unsqueeze(-1)
    white = torch.linalg.solve_triangular(factors, centred, upper=False)
    volume = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = volume + 0.5 * math.log(2 * math.pi) * x.shape[-2]
    return -0.5 * white.square().sum(-2) - constant.unsqueeze(-1), white


def draw_components(
    weights: Tensor, means: Tensor, factors: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws of a mixture ``(n, d)``, and the component of each, ``(n,)``.

    Args:
        weights, means: ``(K,)`` and ``(K, d)``.
        factors: any roots ``F`` of the covariances, ``F F^T``, ``(K, d, d)``.
        n: how many.
        generator: where the draws come from.
    """
    where = draw_device(generator, means.device)
    which = torch.multinomial(weights.to(where), n, replacement=True, generator=generator)
    z = torch.randn(n, means.shape[1], generator=generator, dtype=means.dtype, device=where)
    which, x = which.to(means.device), z.to(means.device)
    for k in range(len(means)):  # not one product of (n, d, d): images have large d
        rows = which == k
        x[rows] = x[rows] @ factors[k].mT + means[k]
    return x, which
