"""Solvers and the one loop that all step-by-step solvers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genflow.process import Process
from genflow.tensors import draw_device


@dataclass(frozen=True)
class Solution:
    """What a solver returns.

    Attributes:
        x: final states ``(n, *d)``.
        times: the grid ``(S+1,)``, float64.
        nfe: number of drift evaluations.
        trajectory: states on the grid ``(S+1, n, *d)``, if asked for.
        nonpositive: of ``AmbientEuler``, the share of coordinates that some step took to zero or below.
    """

    x: Tensor
    times: Tensor
    nfe: int
    trajectory: Tensor | None = None
    nonpositive: float | None = None


class Field:
    """A process bound to its condition and direction, with a count of drift evaluations.

    This is what ``step`` sees; times are numbers here.
    """

    def __init__(self, process: Process, cond: Tensor | None = None, backward: bool = False) -> None:
        self.process, self.cond, self.calls, self.backward = process, cond, 0, backward
        self.lost: Tensor | None = None
        self.stochastic = process.stochastic
        self._drift = process.backward_drift if backward else process.drift
        self._ahead: dict[float, dict[str, object]] = {}

    @classmethod
    def of(cls, process: Process | Field) -> Field:
        """The field itself, or a bare process bound to no condition."""
        return process if isinstance(process, Field) else cls(process)

    def look_ahead(self, times: Sequence[float], x: Tensor) -> None:
        """Let the process compute what depends on the time alone for all ``times`` at once."""
        rows = self.process.look_ahead(torch.tensor(times, dtype=x.dtype, device=x.device))
        if rows is not None:
            self._ahead = {t: {"at": row} for t, row in zip(times, rows)}

    def at(self, t: float) -> object | None:
        """What the process has computed ahead for this time, if it has."""
        return self._ahead.get(t, {}).get("at")

    def drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self._drift(self._rows(t, x), x, self.cond, **self._ahead.get(t, {}))

    def noise(
        self,
        t: float,
        x: Tensor,
        length: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The diffusion at ``t`` applied to a Brownian increment over ``length``; zeros for an ODE."""
        if not self.stochastic:
            return torch.zeros_like(x)
        device = draw_device(generator, x.device)
        # scaled as it is drawn: a product with a number costs more than the draw
        scale = abs(length) ** 0.5
        dw = torch.normal(0.0, scale, x.shape, generator=generator, dtype=x.dtype, device=device)
        dw = dw.to(x.device)
        return self.process.diffusion(self._rows(t, x), x, dw, **self._ahead.get(t, {}))

    @staticmethod
    def _rows(t: float | Tensor, x: Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return t.to(x).expand(len(x))
        return x.new_full(x.shape[:1], t)


class Solver(ABC):
    """Runs a process along a grid of times."""

    steps: int
    charts: bool = True
    """Whether it steps a process in the coordinates that this has for solvers."""

    def for_noise(self) -> Solver:
        """The solver that stands in where a process has noise: itself, where it can take some."""
        return self

    def solve(
        self,
        process: Process,
        x: Tensor,
        times: Tensor | Sequence[float] | None = None,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        trajectory: bool = False,
        progress: bool = False,
    ) -> Solution:
        """Run ``process`` from states ``x (n, *d)`` along ``times``.

        Args:
            process: what to run.
            x: states at ``times[0]``.
            times: a monotone grid inside the process's reach, usually its span; evenly spaced
                ``steps`` if absent. A falling grid runs the process backwards: an ODE, or noise whose
                score is known.
            cond: conditions, one a row.
            generator: where the noise is drawn from.
            trajectory: keep the states on the whole grid.
            progress: show a progress bar.
        """
        grid = self.grid(process, times)
        chart = process.chart() if self.charts else None
        if chart is None:
            return self._run(process, x, grid, cond, generator, trajectory, progress)
        found = self._run(chart.process, chart.into(x), grid, cond, generator, trajectory, progress)
        path = None if found.trajectory is None else chart.back(found.trajectory)
        return replace(found, x=chart.back(found.x), trajectory=path)

    @abstractmethod
    def _run(
        self,
        process: Process,
        x: Tensor,
        grid: Tensor,
        cond: Tensor | None,
        generator: torch.Generator | None,
        trajectory: bool,
        progress: bool,
    ) -> Solution:
        """:meth:`solve` on a checked grid, in the coordinates of ``process``."""

    def grid(
        self, process: Process, times: Tensor | Sequence[float] | None, reverse: bool = False
    ) -> Tensor:
        """The checked grid of times, float64 on the CPU.

        Raises:
            ValueError: if it is no monotone grid inside the span, or runs a noisy process backwards.
        """
        start, stop = process.span
        if times is None:
            grid = torch.linspace(start, stop, self.steps + 1, dtype=torch.float64)
            grid = grid.flip(0) if reverse else grid
        else:
            grid = torch.as_tensor(times, dtype=torch.float64).cpu()
        if grid.ndim != 1 or len(grid) < 2 or not bool(torch.isfinite(grid).all()):
            raise ValueError("times must be a list of at least two finite numbers")
        gaps = grid.diff()
        if not (bool((gaps > 0).all()) or bool((gaps < 0).all())):
            raise ValueError("times must rise or fall strictly")
        least, most = process.reach
        if grid.min() < least - 1e-9 or grid.max() > most + 1e-9:
            raise ValueError(
                f"times run from {grid[0]:g} to {grid[-1]:g}, outside the process's span "
                f"[{least:g}, {most:g}]"
            )
        if grid[0] > grid[-1] and not process.reversible:
            raise ValueError(
                f"{type(process).__name__} has noise and knows no score, so it cannot run "
                "backwards; use an ODE (sigma=0)"
            )
        return grid


class Stepper(Solver):
    """A solver that is one step, repeated."""

    @abstractmethod
    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """States at ``t`` from states ``x`` at ``s``; ``t < s`` runs backwards."""

    def _run(
        self,
        process: Process,
        x: Tensor,
        grid: Tensor,
        cond: Tensor | None,
        generator: torch.Generator | None,
        trajectory: bool,
        progress: bool,
    ) -> Solution:
        points = grid.tolist()
        field = Field(process, cond, backward=points[0] > points[-1])
        pairs = list(zip(points[:-1], points[1:]))
        field.look_ahead([*points, *((s + t) / 2 for s, t in pairs)], x)
        if progress:
            from tqdm.auto import tqdm

            pairs = tqdm(pairs, desc="sampling", unit="step")
        states = [x]
        for s, t in pairs:
            x = self.step(field, s, t, x, generator)
            if trajectory:
                states.append(x)
        lost = None if field.lost is None else float(field.lost.double().mean())
        return Solution(x, grid, field.calls, torch.stack(states) if trajectory else None, lost)
