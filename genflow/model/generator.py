"""A process run from a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from genflow.interpolant import GeometricBrownian
from genflow.interpolant.base import same_path
from genflow.model.base import evaluating
from genflow.model.likelihood import Likelihood
from genflow.model.rows import align, around, batches, check_event
from genflow.model.tilt import Tilt
from genflow.process import Epsilon, Process
from genflow.solver import Solution, Solver
from genflow.source import Source
from genflow.transform import Transform


class Generator(Likelihood):
    """Draws the source and runs the process with the solver.

    Users speak data units; the transform is applied inside. A latent source (``Gaussian``) is noise
    in the model's own space and is never transformed; any other source is data.

    Args:
        source: law of the start.
        process: what carries it to the data.
        solver: how, unless ``sample`` is told otherwise.
        transform: data units to model space; ``None`` leaves data as they are.
        tilt: starts from the tilted source of a weighted coupling instead of the source itself;
            ``None`` for any other training. Starts passed as ``x0=`` are taken as they are.
    """

    def __init__(
        self,
        source: Source,
        process: Process,
        solver: Solver,
        transform: Transform | None = None,
        tilt: Tilt | None = None,
    ) -> None:
        super().__init__()
        ends = [getattr(p, "interpolant", None) for p in (source, process)]
        if all(isinstance(path, GeometricBrownian) for path in ends) and not same_path(*ends):
            raise ValueError(
                f"Generator: the source is where {ends[0]} ends, but the process reverses {ends[1]}; "
                "give both the same interpolant"
            )
        self.source, self.process = source, process
        self.solver, self.transform, self.tilt = solver, transform, tilt

    @property
    def learner(self) -> nn.Module:
        return self.process

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Generator:
        super().prepare(*xs, cond=cond)
        inside = self.encode(*xs)
        if hasattr(self.source, "match"):  # a prior of the data's own moments
            self.source.match(inside[-1])
        self.process.prepare(*inside)
        if self.tilt is not None:
            self.tilt.prepare(*inside, cond=cond)
        return self

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        x0: Tensor | None = None,
        cond: Tensor | None = None,
        steps: int | None = None,
        times: Tensor | Sequence[float] | None = None,
        epsilon: Epsilon | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        trajectory: bool = False,
        reverse: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw samples in data units.

        Args:
            n: how many; defaults to the length of ``x0`` or ``cond``.
            x0: where to start ``(n, *d)``, instead of drawing the source; with ``reverse`` the
                data to start from.
            cond: conditions, one a row.
            steps: number of solver steps (of kept points, for ``Adaptive``).
            times: a grid of times instead of ``steps``.
            epsilon: how much noise, for processes that leave it open (stochastic interpolants): a
                number, ``"gamma"``, ``"gamma_squared"`` or a function of times ``(B,)``; 0 is the ODE.
                A model whose solver is for ODEs takes ``StochasticHeun`` with as many steps.
            solver: another solver than the model's own.
            generator: where all draws come from.
            trajectory: return the states on the whole grid, all of them in data units.
            reverse: run from data back to the source; without ``trajectory`` the result is in
                the source's units, which differ where the source is latent and data are transformed.
            batch_size: how many samples are run at a time; all at once if absent.
            progress: show a progress bar.

        Returns:
            ``(n, *d)``, or ``(S+1, n, *d)`` with ``trajectory``. With ``reverse``, draws of the
            source in its own units.

        Raises:
            ValueError: if sizes do not fit, or an option does not apply to the process.
        """
        solution = self.solve(
            n, x0=x0, cond=cond, steps=steps, times=times, epsilon=epsilon, solver=solver,
            generator=generator, trajectory=trajectory, reverse=reverse, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        return solution.trajectory if trajectory else solution.x

    @torch.no_grad()
    def solve(
        self,
        n: int | None = None,
        *,
        x0: Tensor | None = None,
        cond: Tensor | None = None,
        steps: int | None = None,
        times: Tensor | Sequence[float] | None = None,
        epsilon: Epsilon | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        trajectory: bool = False,
        reverse: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Solution:
        """Like :meth:`sample`, with the grid and the number of function evaluations.

        Returns:
            A ``Solution`` in data units; ``nfe`` is that of the costliest batch.
        """
        process = self._process(epsilon)
        solver = self._solver(solver, steps, times, process)
        grid = solver.grid(process, times, reverse)
        if reverse != bool(grid[0] > grid[-1]):
            raise ValueError("times must fall with reverse=True, and rise without")
        n, cond = align("sample", cond, self.device, n=n, x0=x0)
        if reverse and x0 is None:
            raise ValueError("reverse=True starts from data: pass them as x0=")
        start = self._start(n, x0, cond, generator, reverse)
        options = epsilon, generator, trajectory, batch_size, progress
        return self._join(self._run(solver, start, grid, cond, *options), reverse)

    def _run(
        self,
        solver: Solver,
        start: Tensor,
        grid: Tensor,
        cond: Tensor | None,
        epsilon: Epsilon | None,
        generator: torch.Generator | None,
        trajectory: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[Solution]:
        """Solutions of the rows that run together, in the model's space."""
        process = self._process(epsilon, around(grid))
        bar = progress and batch_size is None
        with evaluating(self):
            return [
                solver.solve(
                    process, start[rows], grid, None if cond is None else cond[rows], generator,
                    trajectory, bar,
                )
                for rows in batches(len(start), batch_size, progress)
            ]  # fmt: skip

    @torch.no_grad()
    def trajectories(
        self,
        times: Tensor | Sequence[float] | None = None,
        n: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Whole paths through all snapshots of a multi-marginal bridge, in data units.

        Args:
            times: rising, in the process's span or past it (forecasts); its own grid by default.
            n: how many; by default one from every row of every snapshot.
            generator: where the draws come from.

        Returns:
            ``(S+1, n, *d)``.

        Raises:
            ValueError: for a process between two marginals alone.
        """
        if not hasattr(self.process, "trajectories"):
            raise ValueError(
                f"trajectories run through snapshots, which {_name(self.process)} has none of: use "
                "sample(..., trajectory=True)"
            )
        with evaluating(self):
            path = self.process.trajectories(times, n, generator)
        path = path.unflatten(2, self.source.shape)
        if self.transform is None:
            return path
        return self.transform.inverse(path.flatten(0, 1)).unflatten(0, path.shape[:2])

    @torch.no_grad()
    def edit(
        self,
        x: Tensor,
        t: float,
        *,
        cond: Tensor | None = None,
        steps: int | None = None,
        epsilon: Epsilon | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Go back from data to time ``t`` and forward again: variations of ``x``, the freer the smaller
        ``t`` (Meng et al. 2022, "SDEdit").

        The way back adds noise as the interpolant does, with fresh draws of the source.

        Args:
            x: data ``(n, *d)``; with ``cond`` they become samples of another condition.
            t: where to turn round, in [0, 1); 0 forgets ``x``.
            cond, steps, epsilon, solver, generator, batch_size: as in :meth:`sample`, for the way
                forward.

        Raises:
            ValueError: if ``t`` lies outside, or the process has no interpolant.
        """
        interpolant = getattr(self.process, "interpolant", None)
        if interpolant is None:
            raise ValueError(
                f"edit needs the interpolant of the training, which {_name(self.process)} does not "
                "keep; use a StochasticInterpolant"
            )
        if not isinstance(t, Real) or not 0 <= t < 1:
            raise ValueError(f"edit(t={t!r}): t must lie in [0, 1)")
        solver = self._solver(solver, steps, None, self._process(epsilon))
        check_event("x", x, self.source)
        _, cond = align("edit", cond, self.device, x=x)
        x1 = x.to(device=self.device, dtype=self.dtype)
        x1 = x1 if self.transform is None else self.transform(x1)
        x0 = self.start(len(x1), cond, generator)
        turned = interpolant.sample(t, x0, x1, generator=generator).x
        times = torch.linspace(t, 1, solver.steps + 1, dtype=torch.float64)
        options = epsilon, generator, False, batch_size
        return self._join(self._run(solver, turned, times, cond, *options), False).x

    def _process(self, epsilon: Epsilon | None, times: Tensor | None = None) -> Process:
        if epsilon is None:
            return self.process
        if not hasattr(self.process, "with_epsilon"):
            raise ValueError(
                f"epsilon chooses the noise of a stochastic interpolant; {_name(self.process)} "
                "has its own: leave epsilon out"
            )
        return self.process.with_epsilon(epsilon, times)

    def _solver(
        self,
        solver: Solver | None,
        steps: int | None,
        times: Tensor | Sequence[float] | None,
        process: Process,
    ) -> Solver:
        if solver is None:
            solver = self.solver.for_noise() if process.stochastic else self.solver
        if not isinstance(solver, Solver):
            raise ValueError(
                f"solver must be a solver such as Euler(), Heun() or Adaptive(), got {solver!r}"
            )
        if steps is None:
            return solver
        if times is not None:
            raise ValueError("give steps or times, not both")
        return dataclasses.replace(solver, steps=steps)

    def start(
        self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """``n`` starts in the model's own space: of the source, or of its tilt where there is one."""
        return self._start(n, None, cond, generator, False)

    def _start(
        self,
        n: int,
        x0: Tensor | None,
        cond: Tensor | None,
        generator: torch.Generator | None,
        reverse: bool,
    ) -> Tensor:
        if x0 is not None:
            return self._given(x0, data=reverse)
        if self.tilt is None:
            return self._drawn(n, generator)
        return self.tilt.start(lambda k: self._drawn(k, generator), n, cond, generator)

    def _join(self, parts: list[Solution], reverse: bool) -> Solution:
        x = torch.cat([part.x for part in parts])
        path, lost = None, parts[0].nonpositive
        if lost is not None:
            lost = sum(part.nonpositive * len(part.x) for part in parts) / len(x)
        if parts[0].trajectory is not None:
            path = torch.cat([part.trajectory for part in parts], 1)
        if self.transform is not None:
            if not (reverse and self.source.latent):
                x = self.transform.inverse(x)
            if path is not None:
                path = self.transform.inverse(path.flatten(0, 1)).unflatten(0, path.shape[:2])
        return Solution(x, parts[0].times, max(part.nfe for part in parts), path, lost)


def _name(part: object) -> str:
    return type(part).__name__
