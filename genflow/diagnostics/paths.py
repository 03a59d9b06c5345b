"""How much energy a model's paths have, and how straight they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.process import Process
from genflow.solver import Euler, Field, Heun


@dataclass(frozen=True)
class PathReport:
    r"""Energy and straightness of a process's paths.

    Attributes:
        energy: :math:`PE = E\int_0^1 |u(t, X_t)|^2 dt`, summed over event dimensions.
        straightness: :math:`E\int_0^1 |u(t, X_t) - (X_1 - X_0)|^2 dt`, zero for straight lines at
            constant speed (Liu et al. 2023, "rectified flow"); ``None`` for a noisy process.
    """

    energy: float
    straightness: float | None


@torch.no_grad()
def path_report(
    process: Process,
    x0: Tensor,
    cond: Tensor | None = None,
    steps: int = 100,
    generator: torch.Generator | None = None,
) -> PathReport:
    """Run the process from ``x0 (n, *d)``, in its own space, and integrate along the paths.

    Args:
        process: what to run; its drift is :math:`u`.
        x0: starts, in the process's space.
        cond: conditions, one a row.
        steps: of Heun (of Euler-Maruyama for a noisy process); the integral is a trapezoid sum.
        generator: where noise is drawn from.
    """
    solver = Euler(steps) if process.stochastic else Heun(steps)
    solution = solver.solve(process, x0, cond=cond, generator=generator, trajectory=True)
    field = Field(process, cond)
    path, times = solution.trajectory, solution.times.tolist()
    displacement = (path[-1] - path[0]).flatten(1)
    speeds = [field.drift(t, x).flatten(1) for t, x in zip(times, path)]
    energy = [float((u.double() ** 2).sum(1).mean()) for u in speeds]
    bend = [float(((u - displacement).double() ** 2).sum(1).mean()) for u in speeds]
    grid = solution.times
    total = float(torch.trapezoid(torch.tensor(energy, dtype=grid.dtype), grid))
    curved = float(torch.trapezoid(torch.tensor(bend, dtype=grid.dtype), grid))
    return PathReport(total, None if process.stochastic else curved)


def path_energy(
    process: Process,
    x0: Tensor,
    cond: Tensor | None = None,
    steps: int = 100,
    generator: torch.Generator | None = None,
) -> float:
    """The path energy of :func:`path_report`."""
    return path_report(process, x0, cond, steps, generator).energy


def energy_excess(energy: float, w2: float) -> float:
    r"""Signed normalised path energy, :math:`(PE - W_2^2) / W_2^2`.

    A transport between the given marginals cannot have less energy than :math:`W_2^2`, so a value
    below zero proves that the model misses a marginal. Its absolute value, the published NPE,
    hides that: read it with its sign, beside the :math:`W_2` of the samples.
    """
    return (energy - w2**2) / w2**2
