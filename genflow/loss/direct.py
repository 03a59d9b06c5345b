"""The objective itself, lowered in the parameters of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.loss.updates import LeastSquares, Update, jacobian, raw_parameters
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.linear_noise import LinearNoise
from genflow.process.multimarginal.plan import NotConverged, solve_plan

TOLERANCE = 1e-6
"""Relative gain of a step, promised or made, below which steps end."""
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
        warmup: least-squares updates before the first.
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
            Descent(Profiled(bridge, self.grid), parameters).run(self.steps)


class Profiled:
    """The objective as a function of the parameters, with the plans' potentials from call to call."""

    def __init__(self, bridge: MultiMarginalBridge, grid: int) -> None:
        self.bridge, self.grid = bridge, grid
        self.particles = float(bridge.kept.counts.double().mean())
        known = int(bridge.kept.solved) == 1
        self.right = [
            bridge.kept.rows("right", k + 1).clone() if known else None
            for k in range(len(bridge.times) - 1)
        ]

    def __call__(self, parameters: list[Tensor], gradient: bool = True) -> tuple[float, Tensor | None]:
        """The objective (less the prior over the number of particles), and its gradient."""
        total, surrogate = 0.0, 0.0
        with torch.set_grad_enabled(gradient):
            for k, interval in enumerate(self.bridge.intervals()):
                logs = interval.log_density(self.grid)
                plan = solve_plan(logs.detach(), interval.mu, interval.nu, self.right[k])
                self.right[k] = plan.right
                total = total + float(plan.objective)
                if gradient:
                    surrogate = surrogate - (plan.log_plan.exp() * logs).sum()
            prior = self.bridge.reference.log_prior() / self.particles
        total = total - float(prior)
        if not gradient:
            return total, None
        if prior.requires_grad:
            surrogate = surrogate - prior
        found = torch.autograd.grad(surrogate, parameters, materialize_grads=True)
        return total, torch.cat([g.flatten() for g in found])

    def curvature(self, parameters: list[Tensor]) -> Tensor:
        """Gauss-Newton's, with the plans held: an upper bound of the Hessian, to start from."""
        with torch.no_grad():
            plans = [(i, self.bridge.plan(k)) for k, i in enumerate(self.bridge.intervals())]
        total = 0.0
        for interval, plan in plans:
            mean, covariance = transitions(interval, self.grid)
            precision = torch.linalg.inv(covariance.detach())
            root = torch.linalg.cholesky(precision).mT * plan.sum(1)[:, None, None].sqrt()
            r = (root @ mean[..., None]).flatten()
            slope = jacobian(r, parameters)
            total = total + slope.mT @ slope
        return total


def transitions(interval: Interval, grid: int) -> tuple[Tensor, Tensor]:
    """Means and covariances of the linearised reference from all starts."""
    lines = LinearNoise.along(interval.reference, interval.x0, interval.grid(grid))
    mean, gained = lines.end()
    return mean, interval.sigma**2 * gained


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
