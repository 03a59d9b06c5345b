r"""Optimal transport on the line, many rows at once: sort, and pair what lies at the same quantile.

:math:`W_p^p = \int_0^1 |Q_x(u) - Q_y(u)|^p du`, exactly, with quantile functions that are steps: pairs
of sorted points for samples of one size, a merged grid of levels for others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.distance.sliced.sorting import merge_rows, order_rows, sort_rows


class Grid(NamedTuple):
    """Levels on which both quantile functions are constant.

    Attributes:
        x, y: which sorted point each level takes, ``(K,)``, or ``(R, K)`` with weights.
        width: of the levels, of the same shape.
    """

    x: Tensor
    y: Tensor
    width: Tensor


class Moved(NamedTuple):
    """What rows cost.

    Attributes:
        cost: ``(R,)``.
        x, y: derivatives of the cost in the points, ``(R, n)`` and ``(R, m)``, where asked for.
    """

    cost: Tensor
    x: Tensor | None
    y: Tensor | None


def uniform_grid(n: int, m: int, like: Tensor) -> Grid:
    """Levels of two samples without weights, from whole numbers: no rounding."""
    least = math.lcm(n, m)
    # point i of x ends at level (i + 1) / n, a whole number of parts of 1 / lcm
    ends_x = torch.arange(1, n + 1, device=like.device) * (least // n)
    ends_y = torch.arange(1, m + 1, device=like.device) * (least // m)
    ends = torch.cat([ends_x, ends_y]).unique()
    width = torch.diff(ends, prepend=ends.new_zeros(1)).double() / least
    return Grid(torch.searchsorted(ends_x, ends), torch.searchsorted(ends_y, ends), width.to(like))


def weighted_grid(a: Tensor, b: Tensor) -> Grid:
    """Levels of rows of weights ``(R, n)`` and ``(R, m)``, each in the order of its points."""
    n, m = a.shape[1], b.shape[1]
    levels = []
    for weight in (a, b):
        level = weight.double().cumsum(1)
        levels.append(level / level[:, -1:])
    joint = torch.cat(levels, 1)
    order = merge_rows(joint)
    level = joint.gather(1, order)
    width = torch.diff(level, dim=1, prepend=level.new_zeros(len(level), 1))
    own = (order < n).long()
    # points of x that end before a level are done with; ends that coincide have no width
    x = (own.cumsum(1) - own).clamp_max(n - 1)
    y = (torch.arange(n + m, device=a.device) - (own.cumsum(1) - own)).clamp_max(m - 1)
    return Grid(x, y, width.to(a.dtype))


def transport(
    x: Tensor,
    y: Tensor,
    p: float,
    a: Tensor | None = None,
    b: Tensor | None = None,
    need_x: bool = False,
    need_y: bool = False,
) -> Moved:
    """:math:`W_p^p` of rows of points and its derivatives; ``x`` and ``y`` may be overwritten.

    Args:
        x, y: points ``(R, n)`` and ``(R, m)``.
        p: at least 1.
        a, b: weights of the points, ``(R, n)`` and ``(R, m)``, both or neither.
        need_x, need_y: whether derivatives are asked for.
    """
    if a is None and x.shape == y.shape:
        return _paired(x, y, p, need_x, need_y)
    return _merged(x, y, p, a, b, need_x, need_y)


def _paired(x: Tensor, y: Tensor, p: float, need_x: bool, need_y: bool) -> Moved:
    n = x.shape[1]
    if need_x and need_y:
        to_x, to_y = order_rows(x), order_rows(y)
        step = x.gather(1, to_x) - y.gather(1, to_y)
        cost, slope = _power(step, p)
        slope /= n
        return Moved(cost / n, x.scatter_(1, to_x, slope), y.scatter_(1, to_y, slope.neg_()))
    if not need_x and not need_y:
        return Moved(_power(sort_rows(x).sub_(sort_rows(y)), p, slope=False)[0] / n, None, None)
    if need_y:
        found = _paired(y, x, p, True, False)
        return Moved(found.cost, None, found.x)
    # the only permutation is that of x: each point meets its partner where it lies
    partner = torch.empty_like(x).scatter_(1, order_rows(x), sort_rows(y))
    cost, slope = _power(x.sub_(partner), p)
    return Moved(cost / n, slope.div_(n), None)


def _merged(
    x: Tensor, y: Tensor, p: float, a: Tensor | None, b: Tensor | None, need_x: bool, need_y: bool
) -> Moved:
    rows, n, m = len(x), x.shape[1], y.shape[1]
    if a is None:
        grid = uniform_grid(n, m, x)
        grid = Grid(grid.x.expand(rows, -1), grid.y.expand(rows, -1), grid.width)
        if not need_x and not need_y:
            step = sort_rows(x).gather(1, grid.x).sub_(sort_rows(y).gather(1, grid.y))
            return Moved(_power(step, p, grid.width, slope=False)[0], None, None)
    to_x, to_y = order_rows(x), order_rows(y)
    if a is not None:
        grid = weighted_grid(a.gather(1, to_x), b.gather(1, to_y))
    at_x, at_y = to_x.gather(1, grid.x), to_y.gather(1, grid.y)
    cost, slope = _power(x.gather(1, at_x) - y.gather(1, at_y), p, grid.width, need_x or need_y)
    found_x = torch.zeros_like(x).scatter_add_(1, at_x, slope) if need_x else None
    found_y = torch.zeros_like(y).scatter_add_(1, at_y, slope.neg_()) if need_y else None
    return Moved(cost, found_x, found_y)


def _power(
    step: Tensor, p: float, width: Tensor | None = None, slope: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Sum over a row of ``width * |step|^p``, as float64, and its derivative in each step."""
    if p == 2:
        each = step * step
    elif p == 1:
        each = step.abs()
    else:
        each = step.abs() ** p
    cost = (each if width is None else each * width).sum(1).double()
    if not slope:
        return cost, None
    if p == 2:
        found = step.mul_(2)
    elif p == 1:
        found = step.sign_()
    else:  # no power of a negative number, and p - 1 > 0 at zero
        found = step.abs() ** (p - 1) * step.sign() * p
    return cost, found if width is None else found.mul_(width)
