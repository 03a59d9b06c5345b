"""Costs between points, by row and by pair. Pairwise costs are float64: exact plans need it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.tensors import sum_event

Cost = str | Callable[[Tensor, Tensor], Tensor]
"""``"sqeuclidean"``, ``"euclidean"``, or a function ``(x (B, *d), y (B, *d)) -> (B,)``."""

NUMBERS = 1 << 24
"""Numbers that a cost function is given at a time."""
NAMES = ("sqeuclidean", "euclidean")


def check_cost(owner: object, cost: Cost) -> None:
    """Refuse a cost that is neither a known name nor a function."""
    if not callable(cost) and cost not in NAMES:
        raise ValueError(
            f"{type(owner).__name__}(cost={cost!r}): cost must be one of {', '.join(NAMES)} or a "
            "function (x (B, *d), y (B, *d)) -> (B,)"
        )


def row_cost(cost: Cost, x: Tensor, y: Tensor) -> Tensor:
    """Cost of row ``i`` of ``x`` with row ``i`` of ``y``: ``(B,)``."""
    if callable(cost):
        with torch.no_grad():  # the function may hold parameters
            return _checked(cost(x, y), len(x))
    gap = x - y
    square = sum_event(gap.mul_(gap)) if not gap.requires_grad else sum_event(gap * gap)
    return square if cost == "sqeuclidean" else square.sqrt()


def pair_cost(cost: Cost, x: Tensor, y: Tensor) -> Tensor:
    """Cost of every row of ``x (n, *d)`` with every row of ``y (m, *d)``: ``(n, m)`` in float64."""
    if callable(cost):
        size = max(1, NUMBERS // max(1, y.numel()))
        return _finite(torch.cat([_function_cost(cost, part, y) for part in x.split(size)]))
    x, y = x.flatten(1).double(), y.flatten(1).double()
    centre = x.mean(0)  # keeps the products small where both clouds lie far from the origin
    x, y = x - centre, y - centre
    square = torch.addmm((y * y).sum(1), x, y.mT, alpha=-2).add_((x * x).sum(1, keepdim=True))
    square = _finite(square).clamp_min_(0)
    return square if cost == "sqeuclidean" else square.sqrt()


def _function_cost(cost: Cost, x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.repeat_interleave(len(y), 0), y.repeat(len(x), *[1] * (y.ndim - 1))
    return _checked(cost(rows, columns), len(rows)).double().reshape(len(x), len(y))


def _checked(values: Tensor, n: int) -> Tensor:
    if values.shape != (n,):
        raise ValueError(
            f"the cost function returned shape {tuple(values.shape)} for {n} rows, expected ({n},)"
        )
    return values


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the cost between the samples is not finite: they hold NaN or huge values")
    return values
