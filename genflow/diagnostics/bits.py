"""Bits per dimension: log-likelihoods that compare across image sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.tensors import as_shape, rand_like


def bits_per_dim(log_prob: Tensor, dim: int | Sequence[int], step: float = 1.0) -> Tensor:
    r""":math:`-(\log p / d + \log h) / \log 2`, the bits of a value of the grid of width :math:`h`.

    Args:
        log_prob: log-densities ``(n,)`` in nats, of data that were dequantised (:func:`dequantise`) if
            they lie on a grid.
        dim: the event shape, ``2`` or ``[1, 8, 8]``.
        step: width of the grid in the units of the density; 1 for data without a grid.

    Returns:
        ``(n,)``.

    Raises:
        ValueError: for a step that is not positive.
    """
    _check(step)
    return -(log_prob / math.prod(as_shape(dim)) + math.log(step)) / math.log(2)


def dequantise(x: Tensor, step: float, generator: torch.Generator | None = None) -> Tensor:
    """Data on a grid of width ``step`` spread evenly over their cells, ``x + step u`` with uniform
    ``u`` (Theis, van den Oord & Bethge 2016); its bits per dimension bound those of ``x``.

    Raises:
        ValueError: for a step that is not positive.
    """
    _check(step)
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x + step * rand_like(x, generator)


def _check(step: float) -> None:
    if not 0 < step < math.inf:
        raise ValueError(f"step={step!r}: the width of the grid must be a positive number")
