"""Means and covariances of point sets, and what a gradient in them does to the points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

FEW, MANY = 2**16, 2**18
"""Elements of the points that are summed, and centred, at a time: no copy of all of them is made."""


class Moments(NamedTuple):
    """Of two batches of point sets.

    Attributes:
        step: mean of ``x`` minus mean of ``y``, ``(B, d)``.
        cov_x, cov_y: covariances with divisor ``n``, ``(B, d, d)``, where they are needed.
        size: points of a set, which tells what a projection costs.
    """

    step: Tensor
    cov_x: Tensor | None = None
    cov_y: Tensor | None = None
    size: int = 1000


def moments(
    x: Tensor, weights: Tensor | None = None, covariance: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Mean ``(B, d)`` and covariance ``(B, d, d)`` of sets ``(B, n, d)``.

    Args:
        x: the sets.
        weights: of the points, ``(B, n)``, summing to one.
        covariance: whether it is wanted.
    """
    batch, n, d = x.shape
    total = x.new_zeros(batch, d, dtype=torch.float64)
    for rows in _blocks(x, FEW):
        part = x[:, rows].double()
        total += (
            part.sum(1)
            if weights is None
            else torch.einsum("bn,bnd->bd", weights[:, rows].double(), part)
        )
    mean = (total / n if weights is None else total).to(x.dtype)
    if not covariance:
        return mean, None
    found = x.new_zeros(batch, d, d)
    for rows in _blocks(x, MANY):
        part = x[:, rows] - mean[:, None]
        heavy = part / n if weights is None else part * weights[:, rows, None]
        found.baddbmm_(heavy.mT, part)
    return mean, found


def add_gradient(
    found: Tensor,
    x: Tensor,
    weights: Tensor | None,
    mean: Tensor,
    by_mean: Tensor | None,
    by_cov: Tensor | None,
) -> None:
    """Add to the gradient of points what comes through their mean and covariance, in place.

    Args:
        found: gradient in the points ``(B, n, d)``, changed.
        x, weights: as for :func:`moments`.
        mean: of the points, ``(B, d)``.
        by_mean, by_cov: gradients in mean ``(B, d)`` and covariance ``(B, d, d)``.
    """
    both = None if by_cov is None else by_cov + by_cov.mT
    for rows in _blocks(x, MANY):
        share = 1 / x.shape[1] if weights is None else weights[:, rows, None]
        if by_mean is not None:
            found[:, rows] += by_mean[:, None] * share
        if both is not None:
            found[:, rows] += torch.matmul(x[:, rows] - mean[:, None], both) * share


def _blocks(x: Tensor, elements: int) -> Iterator[slice]:
    batch, n, d = x.shape
    step = max(1, elements // (batch * d))
    return (slice(k, k + step) for k in range(0, n, step))
