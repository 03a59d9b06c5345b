r"""How a reference follows the bridges that were solved for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.process import MultiMarginalBridge
from genflow.process.reference import Reference

MOST = 200
"""Parameters up to which matrices over them are formed."""


class Update(ABC):
    """A move of the reference's parameters, in place."""

    @abstractmethod
    def step(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> None:
        """Move them once; the bridge is solved for the reference as it was."""


@dataclass(frozen=True)
class Target:
    r"""A weighted regression: drifts of the bridges, :math:`f + u`, at states of their paths.

    Attributes:
        t: ``(M,)``.
        x: ``(M, d)``.
        y: ``(M, d)``.
        weight: ``(M,)``: lengths of steps, times the masses of paths.
    """

    t: Tensor
    x: Tensor
    y: Tensor
    weight: Tensor


@torch.no_grad()
def regression(
    bridge: MultiMarginalBridge,
    paths: int,
    weighted: bool = False,
    generator: torch.Generator | None = None,
) -> Target:
    r"""The least-squares problem behind :math:`\min_\theta KL(Q\,\|\,P_\theta)`, of a solved
    bridge.

    Solved by plans, its drift is known along sampled bridges; solved by learned drifts, increments of
    trajectories stand for it.
    """
    if bridge.kept.by_drifts:
        grid = bridge.grid().to(bridge.kept.points)
        path = bridge.trajectories(generator=generator)
        h = grid.diff()[:, None]
        t = grid[:-1, None].expand(-1, path.shape[1])
        y = path.diff(dim=0) / h[..., None]
        weight = (h / path.shape[1]).expand_as(t)
        return Target(t.flatten(), path[:-1].flatten(0, 1), y.flatten(0, 1), weight.flatten())
    parts: list[list[Tensor]] = [[], [], [], []]
    for found in bridge.bridges(paths, generator=generator):
        t, x = found.times[:-1], found.x[:-1]
        mass = torch.full_like(found.log_weight, 1 / len(found.log_weight))
        if weighted:
            mass = found.log_weight.softmax(0)
        weight = found.times.diff(dim=0) * mass
        drift = bridge.reference(t.flatten(), x.flatten(0, 1)).view_as(x)
        for part, value in zip(parts, (t, x, drift + found.control, weight)):
            part.append(value.flatten(0, 1))
    return Target(*(torch.cat(part) for part in parts))


def raw_parameters(reference: Reference, where: str) -> list[Tensor]:
    """Parameters that are moved.

    Raises:
        ValueError: for so many that matrices over them would not do.
    """
    found = [p for p in reference.parameters() if p.requires_grad]
    if sum(p.numel() for p in found) > MOST:
        raise ValueError(
            f"{where} forms matrices over all parameters, and {type(reference).__name__} has "
            f"{sum(p.numel() for p in found)} (more than {MOST}): use update=Gradient(...)"
        )
    return found


@dataclass(frozen=True)
class LeastSquares(Update):
    r"""The exact :math:`\min_\theta KL(Q\,\|\,P_\theta)`, a regression on the drift of the bridges.

    In closed form where the family is linear in its parameters, with those that are positive kept so;
    else by damped Gauss-Newton steps in what the family keeps (logarithms of positive parameters). A
    law of the parameters enters as the prior of as many particles as a snapshot has.

    Args:
        paths: bridges sampled in each interval.
        steps: most Gauss-Newton steps.
        weighted: weigh bridges by their likelihood ratios, where the drift is not affine; needs the
            mean ratios of all pairs, which ``StaticBridge(correct=...)`` keeps.
    """

    paths: int = 256
    steps: int = 10
    weighted: bool = False

    def __post_init__(self) -> None:
        count(self, paths=self.paths, steps=self.steps)

    def step(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> None:
        if self.weighted and bridge.kept.correction is None:
            raise ValueError(
                "LeastSquares(weighted=True) needs the mean likelihood ratio of each pair: use "
                "projection=StaticBridge(correct=4), or weighted=False"
            )
        target = regression(bridge, self.paths, self.weighted, generator)
        reference = bridge.reference
        if not any(p.requires_grad for p in reference.parameters()):
            return
        if reference.solve(target.x, target.y, target.weight):
            return
        if reference.features(target.t[:1], target.x[:1]) is not None:
            solve_linear(reference, target)
            return
        parameters = raw_parameters(reference, "LeastSquares")
        particles = bridge.kept.counts.double().mean() / (2 * bridge.sigma**2)

        def residual() -> Tensor:
            away = reference(target.t, target.x) - target.y
            return (away * (particles * target.weight)[:, None].sqrt()).flatten()

        with torch.enable_grad():
            levenberg_marquardt(parameters, residual, reference.log_prior, self.steps)


@torch.no_grad()
def solve_linear(reference: Reference, target: Target) -> None:
    """Weighted least squares on the features of what is not frozen; positive parameters stay above a
    millionth of the largest."""
    import numpy as np
    from scipy.optimize import lsq_linear

    values = reference.values()
    free = {k: v for k, v in values.items() if reference.raw[k].requires_grad}
    features = reference.features(target.t, target.x) * target.weight.sqrt()[:, None, None]
    columns = dict(zip(values, features.flatten(0, 1).split([v.numel() for v in values.values()], 1)))
    goal = (target.y * target.weight.sqrt()[:, None]).flatten()
    for name in values.keys() - free.keys():
        goal = goal - columns[name] @ values[name].flatten()
    q, r = torch.linalg.qr(torch.cat([columns[name] for name in free], 1))
    right = (q.mT @ goal).cpu().numpy()
    low = np.concatenate(
        [np.full(v.numel(), 0.0 if k in reference.positive else -np.inf) for k, v in free.items()]
    )
    if np.isfinite(low).any():
        found = torch.from_numpy(lsq_linear(r.cpu().numpy(), right, (low, np.inf)).x)
    else:
        right = torch.from_numpy(right)[:, None]
        found = torch.linalg.lstsq(r.cpu(), right, driver="gelsd").solution[:, 0]
    least = 1e-6 * float(found.abs().max().clamp_min(1e-6))
    parts = found.split([v.numel() for v in free.values()])
    for (name, old), new in zip(free.items(), parts):
        new = new.clamp_min(least) if name in reference.positive else new
        reference.assign(**{name: new.view_as(old)})


def levenberg_marquardt(parameters: list[Tensor], residual, log_prior, steps: int) -> None:
    r"""Lower :math:`|r|^2 - \log p` in place by damped Gauss-Newton steps.

    The Jacobian is read off by differentiating the gradient in its direction, which asks nothing of a
    module but that it can be differentiated.
    """
    sizes = [p.numel() for p in parameters]

    def move(step: Tensor) -> None:
        with torch.no_grad():
            for p, change in zip(parameters, step.split(sizes)):
                p.add_(change.view_as(p))

    def value() -> float:
        with torch.no_grad():
            return float(residual().square().sum() - log_prior())

    damping, here = 1e-3, value()
    for _ in range(steps):
        r = residual()
        slope = jacobian(r, parameters)
        gradient = 2 * slope.mT @ r.detach()
        curvature = 2 * slope.mT @ slope
        prior = log_prior()
        if prior.requires_grad:
            down, bend = derivatives(prior, parameters)
            gradient, curvature = gradient - down, curvature - bend
        for _ in range(12):
            scale = curvature.diagonal().abs().clamp_min(1e-8)
            matrix = curvature + damping * torch.diag(scale)
            step = torch.linalg.lstsq(matrix, -gradient[:, None]).solution[:, 0]
            step = step * min(1.0, 1.0 / float(step.abs().max().clamp_min(1e-12)))
            move(step)
            there = value()
            if there <= here:
                damping = max(damping / 10, 1e-9)
                break
            move(-step)
            damping = damping * 10
        else:
            return
        done = here - there <= 1e-9 * (1 + abs(here))
        here = there
        if done:
            return


def jacobian(r: Tensor, parameters: list[Tensor]) -> Tensor:
    """``dr/dtheta``, ``(len(r), p)``."""
    probe = torch.zeros_like(r, requires_grad=True)
    along = (r * probe).sum()
    gradients = torch.autograd.grad(along, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in gradients])
    columns = []
    for entry in flat:
        (column,) = torch.autograd.grad(entry, probe, retain_graph=True, materialize_grads=True)
        columns.append(column)
    return torch.stack(columns, 1)


def derivatives(value: Tensor, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradient ``(p,)`` and Hessian ``(p, p)`` of a scalar."""
    options = {"retain_graph": True, "materialize_grads": True}
    gradients = torch.autograd.grad(value, parameters, create_graph=True, **options)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = []
    for entry in flat:
        row = torch.autograd.grad(entry, parameters, **options) if entry.requires_grad else parameters
        rows.append(torch.cat([v.flatten() for v in row]) * float(entry.requires_grad))
    return flat.detach(), torch.stack(rows).detach()
