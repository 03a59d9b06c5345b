"""Transport that may leave mass behind: unbalanced and partial plans, by POT."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import between, non_negative, positive
from genflow.coupling.cost import Cost
from genflow.coupling.exact import MAX_ITERATIONS, by_pot, exact_plan
from genflow.coupling.transport import Transport

ITERATIONS = 1000
"""Of majorisation-minimisation: within half a per mille of the optimal mass on batches of 256."""
LARGEST = 500.0
"""Cost over epsilon up to which scaling iterations stay within the range of float64."""

GAP = 0.05
"""Relative duality gap from which a plan is called unconverged."""
TINY, LOST = 1e-300, 1e-100
"""What stands for a mass of zero in a logarithm; masses below the second have none to speak of."""


@dataclass(frozen=True)
class UnbalancedOT(Transport):
    r"""Pairs of the unbalanced plan :math:`\min_P \langle c, P\rangle + \epsilon KL(P|ab) +
    \rho\,(KL(P1|a) + KL(P^\top 1|b))` between the batches (Chizat et al. 2018).

    Points that are dear to move lose mass instead; pairs carry the mass of their row as weight, so
    that an outlier is hardly learnt from. The model then maps the relaxed source to the relaxed data.

    Args:
        penalty: price :math:`\rho` of a nat of missing mass, in units of the cost; as it grows the
            plan tends to the balanced one.
        epsilon: temperature of the named cost; translation-invariant Sinkhorn updates (Séjourné et
            al. 2022) take milliseconds a batch. At 0, or far below the costs, majorisation-minimisation
            (Chapel et al. 2021) takes a hundred times as long and is slow to converge where the penalty
            is far above the costs; a warning says so.
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function of rows.
        conditions: as in :class:`ExactOT`.
    """

    penalty: float = 10.0
    epsilon: float = 1.0
    cost: Cost = "sqeuclidean"
    conditions: str | float = "ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, penalty=self.penalty)
        non_negative(self, epsilon=self.epsilon)

    def transport(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        from ot import unbalanced

        if self.epsilon * LARGEST < float(cost.max()):
            plan = by_pot(
                unbalanced.mm_unbalanced, cost, a, b, reg_m=self.penalty, reg=self.epsilon, div="kl",
                numItermax=ITERATIONS,
            )  # fmt: skip
        else:
            plan = by_pot(
                unbalanced.sinkhorn_unbalanced_translation_invariant, cost, a, b, reg=self.epsilon,
                reg_m=self.penalty, reg_type="kl", numItermax=5 * ITERATIONS,
            )  # fmt: skip
        if not float(plan.sum()) > TINY:
            raise ValueError(
                f"UnbalancedOT(penalty={self.penalty}): all mass was left behind, since every pair "
                "costs far more than the penalty; raise penalty"
            )
        if not self._gap(plan, cost, a, b) <= GAP:
            warnings.warn(
                # no number that changes from batch to batch: Python shows equal texts once
                f"UnbalancedOT(penalty={self.penalty}, epsilon={self.epsilon}): POT's updates have not "
                "converged; raise epsilon, lower penalty, or use ExactOT()",
                RuntimeWarning,
                stacklevel=5,
            )
        return plan

    def _gap(self, plan: Tensor, cost: Tensor, a: Tensor, b: Tensor) -> float:
        r"""Duality gap relative to the optimum's bound, with the potentials
        :math:`f = -\rho\log(P1/a)` and :math:`g = -\rho\log(P^\top 1/b)` of the plan."""
        rho, epsilon = self.penalty, self.epsilon
        mass0, mass1 = plan.sum(1).clamp_min(TINY), plan.sum(0).clamp_min(TINY)
        f, g = -rho * (mass0 / a).log(), -rho * (mass1 / b).log()
        product = a[:, None] * b
        primal = (plan * cost).sum() + rho * (_divergence(mass0, a) + _divergence(mass1, b))
        # the logarithm of a mass that underflowed says nothing; no potential exceeds what the others
        # leave of the cost
        g = torch.where(mass1 > LOST, g, (cost - f[:, None])[mass0 > LOST].amin(0))
        tight = torch.minimum(f, (cost - g).amin(1))
        f = torch.where(mass0 > LOST, f, tight)
        duals = []
        for u in (f, tight) if epsilon > 0 else (tight,):
            value = -rho * (a @ torch.expm1(-u / rho) + b @ torch.expm1(-g / rho))
            if epsilon > 0:
                excess = (u[:, None] + g - cost) / epsilon
                value = value - epsilon * (product * torch.expm1(excess)).sum()
            duals.append(float(value))
        if epsilon > 0:
            primal = primal + epsilon * _divergence(plan.clamp_min(TINY), product)
        best = max(duals)
        return (float(primal) - best) / max(abs(best), TINY)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log() - p + q).sum()


@dataclass(frozen=True)
class PartialOT(Transport):
    """Pairs of the cheapest plan that moves a fraction of the mass (Chapel, Alaya & Gasso 2020).

    The dearest points of both batches are left out: their pairs have weight zero.

    Args:
        mass: fraction moved, in (0, 1).
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function of rows.
        conditions: as in :class:`ExactOT`; with ``"within"`` the fraction holds in each class.
    """

    mass: float = 0.9
    cost: Cost = "sqeuclidean"
    conditions: str | float = "ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 1, mass=self.mass)

    def transport(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        from ot import partial

        if cost.numel() == 1:  # one pair has nothing to leave out
            return exact_plan(cost, a, b) * self.mass
        return by_pot(partial.partial_wasserstein, cost, a, b, m=self.mass, numItermax=MAX_ITERATIONS)
