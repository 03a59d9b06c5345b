"""Bridges by static plans: no drift is learned, and nothing is simulated to find the plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.loss.projection import Projection
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.interval import log_densities
from genflow.process.multimarginal.plan import BridgePlan, solve_plan
from genflow.process.multimarginal.state import PLANS


@dataclass(frozen=True)
class StaticBridge(Projection):
    r"""Solves each interval by the plan nearest to the reference's transitions,
    :math:`\min_\pi KL(\pi\,\|\,\mu_k\otimes\tilde p)`, with :math:`\tilde p` the reference linearised
    about its own paths; exact for affine drifts, and entropic optimal transport for none.

    Quadratic in the rows of a snapshot; starts are followed in blocks, so that memory is that of one
    matrix of pairs.

    Args:
        correct: guided bridges a pair whose likelihood ratios correct its transition density for what
            the linearisation leaves out; 0 for none. Each costs a path for every pair of rows.
        tolerance: total variation of a plan's marginals at which to stop.
        iterations: most updates of the potentials of a plan.

    Raises:
        NotConverged: where the updates do not suffice, with the remedy.
    """

    correct: int = 0
    tolerance: float = 1e-6
    iterations: int = 20_000

    def __post_init__(self) -> None:
        count(self, 0, correct=self.correct)
        count(self, iterations=self.iterations)
        positive(self, tolerance=self.tolerance)

    @torch.no_grad()
    def project(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> Tensor:
        """Solve all intervals; the objective is the sum of their divergences."""
        kept, intervals = bridge.kept, bridge.intervals()
        plans: dict[str, list[BridgePlan]] = {"": []}
        corrections = []
        for k, logs in enumerate(log_densities(intervals, bridge.steps)):
            plans[""].append(self._plan(bridge, k, logs, ""))
            if self.correct:
                corrections.append(intervals[k].correction(bridge.steps, self.correct, generator))
                corrected = self._plan(bridge, k, logs + corrections[-1], "_corrected")
                plans.setdefault("_corrected", []).append(corrected)
        # all are there: nothing is written of what fails half-way
        kept.correction = torch.cat([c.flatten() for c in corrections]) if corrections else None
        kept.left_corrected = kept.right_corrected = None
        for kind, found in plans.items():
            for side in ("left", "right"):
                setattr(kept, side + kind, torch.zeros_like(kept.masses))
            for k, plan in enumerate(found):
                kept.rows(f"left{kind}", k).copy_(plan.left)
                kept.rows(f"right{kind}", k + 1).copy_(plan.right)
        bridge.settle(PLANS)
        return torch.stack([plan.objective for plan in list(plans.values())[-1]]).sum()

    def _plan(self, bridge: MultiMarginalBridge, k: int, logs: Tensor, kind: str) -> BridgePlan:
        """The plan of an interval, from the one before where there is one."""
        kept, interval = bridge.kept, bridge.intervals()[k]
        known = kept.by_plans and getattr(kept, f"right{kind}") is not None
        start = kept.rows(f"right{kind}", k + 1) if known else None
        return solve_plan(logs, interval.mu, interval.nu, start, self.tolerance, self.iterations)
