"""The objective itself, lowered in the parameters of the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.loss.updates import LeastSquares, Update, jacobian, raw_parameters
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.interval import BLOCK, Interval, log_densities, transitions
from genflow.process.multimarginal.linear_noise import log_density
from genflow.process.multimarginal.plan import NotConverged, solve_plan

TOLERANCE = 1e-6
"""Relative gain of a step, promised or made, below which steps end."""
GRAPH = 8
"""How much more a graph holds than the numbers of a step."""
LONGEST = 0.5
"""The most that any parameter may move in a step, in what the family keeps (logarithms of rates)."""


@dataclass(frozen=True)
class Direct(Update):
    r"""Lowers :math:`J(\theta) = \sum_k\min_\pi KL(\pi\,\|\,\mu_k\otimes\tilde p_\theta)` itself.

    It has the optimum of the alternating projections, without their crawl along flat valleys. The
    gradient is that of the transitions' log-density under the plans (envelope theorem); steps are those
    of the BFGS method, guarded: none moves a parameter by more than a half, and none that raises the
    objective is taken.

    Args:
        warmup: least-squares updates before the first, counted by the bridge's iterations.
        steps: BFGS steps in an outer iteration.
        grid: Runge-Kutta steps of an interval.
    """

    warmup: int = 3
    steps: int = 10
    grid: int = 20

    def __post_init__(self) -> None:
        count(self, 0, warmup=self.warmup)
        count(self, steps=self.steps, grid=self.grid)

    def step(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> None:
        if bridge.iterations < self.warmup:
            LeastSquares().step(bridge, generator)
            return
        parameters = raw_parameters(bridge.reference, "Direct")
        if parameters:
            with torch.enable_grad():
                Descent(Profiled(bridge, self.grid), parameters).run(self.steps)


def gradient_of(value: Tensor, parameters: list[Tensor]) -> Tensor:
    """Flat gradient; zeros for a value that depends on none of them."""
    if not value.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters)).to(parameters[0])
    found = torch.autograd.grad(value, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def together(intervals: Sequence[Interval], steps: int) -> bool:
    """Whether a graph over all starts fits into memory."""
    size = intervals[0].x0.shape[1] ** 2 * sum(len(v.x0) for v in intervals)
    return GRAPH * steps * size <= BLOCK


class Profiled:
    """The objective as a function of the parameters, with the plans' potentials from call to call."""

    def __init__(self, bridge: MultiMarginalBridge, grid: int) -> None:
        self.bridge, self.grid = bridge, grid
        self.particles = float(bridge.kept.counts.double().mean())
        known, kind = bridge.kept.by_plans, "" if bridge.kept.correction is None else "_corrected"
        self.right = [
            bridge.kept.rows(f"right{kind}", k + 1).clone() if known else None
            for k in range(len(bridge.times) - 1)
        ]

    def __call__(self, parameters: list[Tensor], gradient: bool = True) -> tuple[float, Tensor | None]:
        """The objective (less the prior over the number of particles), and its gradient."""
        intervals, total, plans = self.bridge.intervals(), 0.0, []
        whole = gradient and together(intervals, self.grid)  # else followed twice, in blocks
        with torch.set_grad_enabled(whole):
            logs = list(log_densities(intervals, self.grid)) if whole else None
        with torch.no_grad():
            corrections = self.bridge.kept.correction is not None and self.bridge.kept.corrections()
            for k, found in enumerate(logs or log_densities(intervals, self.grid)):
                found = found + corrections[k] if corrections else found
                plan = solve_plan(found, intervals[k].mu, intervals[k].nu, self.right[k])
                self.right[k] = plan.right
                total = total + float(plan.objective)
                if gradient:
                    plans.append(plan.log_plan.exp())
        with torch.enable_grad():
            prior = self.bridge.reference.log_prior() / self.particles
        total = total - float(prior.detach())
        if not gradient:
            return total, None
        down = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        down = down.to(parameters[0])
        parts = zip(plans, logs) if whole else self._blocks(intervals, plans)
        surrogates = ((plan * found).sum() for plan, found in parts)
        if whole:  # one pass back
            surrogates = [torch.stack(list(surrogates)).sum()]
        for value in surrogates:
            down = down - gradient_of(value, parameters)
        return total, down - gradient_of(prior, parameters)

    def _blocks(
        self, intervals: Sequence[Interval], plans: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the plans with their log-densities, each block with a graph of its own."""
        for interval, plan in zip(intervals, plans):
            for rows in interval.blocks(GRAPH * self.grid):
                with torch.enable_grad():
                    found = log_density(*interval.end(rows, self.grid), interval.x1)
                yield plan[rows], found

    def curvature(self, parameters: list[Tensor]) -> Tensor:
        """Gauss-Newton's, with the plans held: an upper bound of the Hessian, to start from."""
        total, intervals = 0.0, self.bridge.intervals()
        for k, parts in enumerate(transitions(intervals, self.grid)):
            share = intervals[k].mu
            for mean, spread, rows in parts:
                precision = torch.linalg.inv(spread.detach())
                root = torch.linalg.cholesky(precision).mT * share[rows, None, None].sqrt()
                slope = jacobian((root @ mean[..., None]).flatten(), parameters)
                total = total + slope.mT @ slope
        return total


class Descent:
    """Guarded BFGS steps on parameters that lie in several tensors.

    Args:
        objective: ``(parameters, gradient) -> (value, gradient)``, with a ``curvature`` to start from.
        parameters: moved in place.
    """

    def __init__(self, objective: Profiled, parameters: list[Tensor]) -> None:
        self.objective, self.parameters = objective, parameters
        self.sizes = [p.numel() for p in parameters]

    @torch.no_grad()
    def _move(self, step: Tensor) -> None:
        for p, change in zip(self.parameters, step.split(self.sizes)):
            p.add_(change.view_as(p))

    def run(self, steps: int) -> None:
        value, gradient = self.objective(self.parameters)
        bend = self.objective.curvature(self.parameters)
        floor = 1e-6 * bend.diagonal().max().clamp_min(1e-12)
        inverse = torch.linalg.inv(bend + floor * torch.eye(len(bend)).to(bend))
        for _ in range(steps):
            step = -inverse @ gradient
            if -float(gradient @ step) <= TOLERANCE * (1 + abs(value)):
                return
            step = step * min(1.0, LONGEST / float(step.abs().max().clamp_min(1e-12)))
            taken = self._search(value, gradient, step)
            if taken is None:
                return
            step, new_value, new_gradient = taken
            inverse = bfgs(inverse, step, new_gradient - gradient)
            done = value - new_value <= TOLERANCE * (1 + abs(value))
            value, gradient = new_value, new_gradient
            if done:
                return

    def _search(
        self, value: float, gradient: Tensor, step: Tensor
    ) -> tuple[Tensor, float, Tensor] | None:
        """The first of halved steps that lowers the objective enough; ``None``, and no move, for
        none."""
        slope = float(gradient @ step)
        for _ in range(10):
            self._move(step)
            try:
                found, down = self.objective(self.parameters)
            except (FloatingPointError, NotConverged):  # parameters under which nothing can be computed
                found = float("inf")
            if found <= value + 1e-4 * slope:
                return step, found, down
            self._move(-step)
            step, slope = step / 2, slope / 2
        return None


def bfgs(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The inverse Hessian after a step with that change of the gradient; as it was where the curvature
    along it is not positive."""
    along = float(step @ change)
    if along <= 1e-12 * float(step.norm() * change.norm()):
        return inverse
    left = torch.eye(len(step)).to(inverse) - torch.outer(step, change) / along
    return left @ inverse @ left.mT + torch.outer(step, step) / along
