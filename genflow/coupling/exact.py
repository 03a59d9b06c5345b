"""Exact optimal transport between batches (OT-CFM: Tong et al. 2024; Pooladian et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling.base import Coupling, Plan, sample_plan, two_marginals
from genflow.coupling.cost import Cost, check_cost, pair_cost
from genflow.tensors import check_marginals

MAX_ITERATIONS = 10_000_000
"""Of POT's network simplex; its own default of 100,000 stops early from about 2,000 points."""


def exact_plan(cost: Tensor) -> Tensor:
    """The exact plan ``(n, m)`` between uniform marginals for a cost matrix, in float64 by POT."""
    import numpy as np
    import ot

    n, m = cost.shape
    matrix = np.ascontiguousarray(cost.detach().cpu().numpy(), dtype=np.float64)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    plan = ot.emd(a, b, matrix, numItermax=MAX_ITERATIONS)
    return torch.from_numpy(plan).to(cost.device)


@dataclass(frozen=True)
class ExactOT(Coupling):
    """Pairs of the exact optimal transport plan between the batches.

    For equal sizes the plan is a permutation and every point is kept; for unequal ones every point
    of the larger batch is kept and draws its partner from the plan.

    Args:
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function of rows.
    """

    cost: Cost = "sqeuclidean"

    def __post_init__(self) -> None:
        check_cost(self, self.cost)

    @torch.no_grad()
    def __call__(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        check_marginals("ExactOT", *xs)
        two_marginals(self, xs)
        cost = pair_cost(self.cost, *xs)
        plan = exact_plan(cost)
        if plan.shape[0] == plan.shape[1]:  # a vertex of the Birkhoff polytope: a permutation
            indices = torch.arange(len(plan), device=plan.device), plan.argmax(1)
        else:
            indices = sample_plan(plan, generator)
        return Plan(indices, xs[0].new_ones(len(indices[0])))
