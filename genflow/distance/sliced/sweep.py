"""All projections of two point sets: their costs, and the gradient of any weighted sum of them.

The gradient is made on the way forward, chunk of directions by chunk, so that nothing of the size of
all projections is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.distance.sliced.line import transport
from genflow.distance.sliced.sorting import BLOCK

BUDGET = 2**25
"""Bytes of the projections held at a time where no chunk is given."""


class Swept(NamedTuple):
    """What a sweep found.

    Attributes:
        costs: of each direction, ``(B, L)`` in float64.
        x, y: gradients of the weighted sums in the points ``(B, n, d)``, where asked for.
    """

    costs: Tensor
    x: Tensor | None
    y: Tensor | None


@dataclass(frozen=True)
class Sets:
    """Two batches of point sets.

    Attributes:
        x, y: ``(B, n, d)`` and ``(B, m, d)``, without graph.
        a, b: weights ``(B, n)`` and ``(B, m)`` that sum to one, both or neither.
        p: order of the distance.
        chunk: directions at a time, or ``None`` to bound their memory.
    """

    x: Tensor
    y: Tensor
    a: Tensor | None
    b: Tensor | None
    p: float
    chunk: int | None

    def sweep(
        self,
        directions: Tensor,
        share: Tensor | None = None,
        need_x: bool = False,
        need_y: bool = False,
    ) -> Swept:
        """Costs of directions ``(L, d)``, and gradients of ``(share * costs).sum(1)``.

        Args:
            directions: ``(L, d)``.
            share: weights of the sum, ``(B, L)``.
            need_x, need_y: which gradients are asked for.
        """
        batch, chunk = len(self.x), self._chunk()
        costs = []
        found_x = _Gradient(self.x) if need_x else None
        found_y = _Gradient(self.y) if need_y else None
        for start in range(0, len(directions), chunk):
            part = directions[start : start + chunk]
            weight = None if share is None else share[:, start : start + chunk].reshape(-1)
            x, y = _project(self.x, part), _project(self.y, part)
            costs.append(self._costs(x, y, weight, need_x, need_y).view(batch, -1))
            if need_x:
                found_x.add(x, part)
            if need_y:
                found_y.add(y, part)
            del x, y  # before the next are made
        return Swept(
            costs[0] if len(costs) == 1 else torch.cat(costs, 1),
            found_x.total() if need_x else None,
            found_y.total() if need_y else None,
        )

    def slopes(self, directions: Tensor) -> Tensor:
        """Derivatives of the costs in their directions ``(L, d)``, of a batch of one."""
        found = []
        for part in directions.split(self._chunk()):
            x, y = _project(self.x, part), _project(self.y, part)
            self._costs(x, y, x.new_ones(len(part)), True, True)
            found.append(x @ self.x[0] + y @ self.y[0])
            del x, y
        return torch.cat(found)

    def _chunk(self) -> int:
        """Directions at a time."""
        points = self.x.shape[1] + self.y.shape[1]
        return self.chunk or max(1, BUDGET // (len(self.x) * points * self.x.element_size()))

    def _costs(self, x: Tensor, y: Tensor, weight: Tensor | None, need_x: bool, need_y: bool) -> Tensor:
        """Costs of rows ``(R, n)`` and ``(R, m)``; weighted slopes take the place of the points."""
        rows, most = len(x), max(x.shape[1], y.shape[1])
        # on the CPU a few rows at a time: they stay in the caches from the sort to the slopes; several
        # threads need more at a time to be worth their start
        threads = torch.get_num_threads()
        together = BLOCK if threads == 1 else 4 * threads * BLOCK
        step = max(1, together // most) if x.device.type == "cpu" else rows
        costs = []
        for k in range(0, rows, step):
            part = slice(k, k + step)
            a, b = self._weights(k, min(k + step, rows), rows)
            moved = transport(x[part], y[part], self.p, a, b, need_x, need_y)
            costs.append(moved.cost)
            for points, slope in ((x, moved.x), (y, moved.y)):
                if slope is not None:
                    torch.mul(slope, weight[part, None], out=points[part])
        return costs[0] if len(costs) == 1 else torch.cat(costs)

    def _weights(self, start: int, stop: int, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the points of some of the rows, which are as many for each pair of sets."""
        if self.a is None:
            return None, None
        own = torch.arange(start, stop, device=self.x.device) // (rows // len(self.x))
        return self.a[own], self.b[own]


def _project(x: Tensor, directions: Tensor) -> Tensor:
    """Projected sets as contiguous rows, ``(B, n, d), (L, d) -> (B * L, n)``."""
    if len(x) == 1:
        return directions @ x[0].mT
    return torch.matmul(directions, x.mT).flatten(0, 1)


class _Gradient:
    """Sum over directions of slopes times direction, ``(B, n, d)``."""

    def __init__(self, like: Tensor) -> None:
        batch, n, d = like.shape
        # products are fastest with the long side last; in many dimensions it makes no difference
        self.turned = d <= 16
        self.sum = like.new_zeros((batch, d, n) if self.turned else (batch, n, d))

    def add(self, slopes: Tensor, directions: Tensor) -> None:
        slopes = slopes.view(len(self.sum), -1, slopes.shape[1])
        if self.turned:
            left, right = directions.T.expand(len(slopes), -1, -1), slopes
        else:
            left, right = slopes.mT, directions.expand(len(slopes), -1, -1)
        if len(slopes) == 1:
            self.sum[0].addmm_(left[0], right[0])
        else:
            self.sum.baddbmm_(left, right)

    def total(self) -> Tensor:
        return self.sum.mT.contiguous() if self.turned else self.sum
