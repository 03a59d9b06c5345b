"""What couplings by a transport plan share: costs, conditions, masses, pairs drawn from the plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from genflow.coupling.base import Coupling, Plan, sample_plan
from genflow.coupling.cost import Cost, check_cost, pair_cost
from genflow.coupling.sides import (
    Conditions,
    Pairs,
    Side,
    check_strength,
    condition_cost,
    couple_within,
    need_conditions,
    pair_rows,
    two_sides,
)


class Transport(Coupling):
    """Pairs of a transport plan between the batches.

    Every row of the larger batch is kept and draws its partner from the plan.

    How ``conditions`` are heeded:

    - ``"ignore"``: a plan between whole batches. It ties the source to the condition, and a sampler
      that draws the source freely then meets pairs that were never learnt (Cheng & Schwing 2025).
    - ``"within"``: a plan inside each class alone.
    - a number: the price of a unit of distance between conditions (number of labels that differ,
      squared Euclidean distance of vectors), added to the cost.

    Where the source has no conditions of its own (the usual case), each row of ``x0`` first takes that
    of a row of ``x1`` at random: the law of ``x0`` is then the same given every class with
    ``"within"``, and nearly so where the price is far above the cost. Where both sides have conditions,
    a class has as many pairs as it has rows on its larger side.
    """

    cost: Cost
    conditions: str | float
    balanced: ClassVar[bool] = False
    """Whether the plan has the given masses on both sides."""

    def __post_init__(self) -> None:
        check_cost(self, self.cost)
        check_strength(self, self.conditions)

    @abstractmethod
    def transport(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The plan ``(n, m)`` for a cost matrix between masses ``a (n,)`` and ``b (m,)`` that sum to
        one; all in float64."""

    @torch.no_grad()
    def plan(self, x0: Tensor, x1: Tensor, weights: Sequence[Tensor | None] | None = None) -> Tensor:
        """The plan ``(n, m)`` between the batches, in float64; conditions are not looked at.

        Args:
            x0, x1: the batches, of equal or unequal sizes.
            weights: how much each row counts, ``(B,)`` or ``None`` for each side.
        """
        left, right = two_sides(self, (x0, x1), None, weights)
        return self._plan(pair_cost(self.cost, x0, x1), left.share(), right.share())

    def _plan(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The plan, sought between the rows that have mass."""
        kept, taken = a > 0, b > 0
        if bool(kept.all()) and bool(taken.all()):
            return self.transport(cost, a, b)
        plan = torch.zeros_like(cost)
        part = self.transport(cost[kept][:, taken], a[kept], b[taken])
        plan[kept.nonzero(), taken.nonzero().mT] = part
        return plan

    @torch.no_grad()
    def __call__(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        left, right = two_sides(self, xs, cond, weights)
        fewer = len(left.x) < len(right.x)
        if self.conditions == "ignore":
            i, j, weight = self._couple(left, right, fewer, generator)
            return Plan((i, j), weight, even=self.balanced and weights is None)
        need_conditions(self, self.conditions, left, right)
        rows = None
        if left.cond is None:
            rows = pair_rows(*xs, generator=generator)
            right = right.take(rows[1])
            borrowed = left.take(rows[0])
            left = Side(borrowed.x, borrowed.mass, right.cond)

        def couple(a: Side, b: Side) -> Pairs:
            by_right = fewer if rows is not None else len(a.x) < len(b.x)
            return self._couple(a, b, by_right, generator)

        within = self.conditions == "within"
        i, j, weight = couple_within(self, left, right, couple) if within else couple(left, right)
        return Plan((i, j) if rows is None else (rows[0][i], rows[1][j]), weight)

    def _couple(
        self, left: Side, right: Side, by_right: bool, generator: torch.Generator | None
    ) -> Pairs:
        """Pairs of a plan; ``by_right`` keeps each row of the right side once, else of the left."""
        cost = pair_cost(self.cost, left.x, right.x)
        if not isinstance(self.conditions, str):
            cost = cost + self.conditions * condition_cost(left.cond, right.cond)
        plan = self._plan(cost, left.share(), right.share())
        even = left.mass is None and right.mass is None
        i, j = self.pairs(plan, even, by_right, generator)
        if self.balanced and even:
            return i, j, left.x.new_ones(len(i))
        mass = plan.sum(0)[j] if by_right else plan.sum(1)[i]
        return i, j, (mass * (len(i) / mass.sum())).to(left.x)

    def pairs(
        self, plan: Tensor, even: bool, by_right: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Pairs of rows drawn from a plan, one for each row of a side; ``even`` where all rows count
        alike."""
        if not by_right:
            return sample_plan(plan, generator)
        j, i = sample_plan(plan.mT, generator)
        return i, j
