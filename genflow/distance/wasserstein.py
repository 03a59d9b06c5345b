"""Exact Wasserstein distances between samples, by POT's network simplex."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling.cost import pair_cost
from genflow.coupling.exact import exact_plan
from genflow.distance.base import Distance, flat_pair, safe_root, shares


@dataclass(frozen=True)
class Wasserstein(Distance):
    r""":math:`W_p` between the empirical laws, Euclidean ground distance; :math:`O(n^3)` time.

    The finite-sample floor is large: compare with the distance of two samples of one law.

    Args:
        p: order, at least 1.
        root: give :math:`W_p` (default) rather than :math:`W_p^p`.
    """

    p: float = 2.0
    root: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.p < math.inf:
            raise ValueError(f"Wasserstein(p={self.p}): p must be at least 1 and finite")

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
    ) -> Tensor:
        """Distance of ``x (n, *d)`` and ``y (m, *d)``; weights ``(n,)`` and ``(m,)`` say how much each
        row counts, ``None`` all alike."""
        x, y = flat_pair(self, x, y)
        masses = shares(self, x, weights_x, "weights_x"), shares(self, y, weights_y, "weights_y")
        with torch.no_grad():
            cost = pair_cost("sqeuclidean", x, y)
            plan = exact_plan(cost if self.p == 2 else cost ** (self.p / 2), *masses)
            rows, columns = plan.nonzero(as_tuple=True)
            mass = plan[rows, columns].to(x.dtype)
        step = x[rows] - y[columns]
        if self.p == 2:
            moved = (step**2).sum(1)
        else:  # vector_norm has gradient zero, not NaN, where two points coincide
            moved = torch.linalg.vector_norm(step, dim=1) ** self.p
        value = (mass * moved).sum()
        return safe_root(value, self.p) if self.root else value
