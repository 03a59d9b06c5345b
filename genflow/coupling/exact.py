"""Exact optimal transport between batches (OT-CFM: Tong et al. 2024; Pooladian et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genflow.coupling.cost import Cost
from genflow.coupling.transport import Transport

MAX_ITERATIONS = 10_000_000
"""Of POT's network simplex; its own default of 100,000 stops early from about 2,000 points."""


def by_pot(solve: object, cost: Tensor, a: Tensor, b: Tensor, **options: object) -> Tensor:
    """A plan by one of POT's solvers, ``solve(a, b, cost, **options)`` on NumPy arrays."""
    import numpy as np

    arrays = (np.ascontiguousarray(v.detach().cpu().numpy(), dtype=np.float64) for v in (a, b, cost))
    return torch.from_numpy(np.asarray(solve(*arrays, **options))).to(cost.device)


def exact_plan(cost: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """The exact plan ``(n, m)`` for a cost matrix, in float64 by POT; masses are even unless given."""
    import ot

    n, m = cost.shape
    a = torch.full((n,), 1 / n, dtype=torch.float64) if a is None else a
    b = torch.full((m,), 1 / m, dtype=torch.float64) if b is None else b
    return by_pot(ot.emd, cost, a, b, numItermax=MAX_ITERATIONS)


@dataclass(frozen=True)
class ExactOT(Transport):
    """Pairs of the exact optimal transport plan between the batches.

    For equal sizes the plan is a permutation and every point is kept; for unequal ones every point
    of the larger batch is kept and draws its partner from the plan.

    Args:
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function of rows.
        conditions: ``"ignore"``; ``"within"`` to pair inside each class alone; or a number, the price
            of a unit of distance between conditions. See :class:`Transport`.
    """

    cost: Cost = "sqeuclidean"
    conditions: str | float = "ignore"
    balanced: ClassVar[bool] = True

    def transport(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return exact_plan(cost, a, b)

    def pairs(
        self, plan: Tensor, even: bool, by_right: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        if even and plan.shape[0] == plan.shape[1]:  # a vertex of the Birkhoff polytope: a permutation
            return torch.arange(len(plan), device=plan.device), plan.argmax(1)
        return super().pairs(plan, even, by_right, generator)
