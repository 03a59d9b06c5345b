"""Whole paths through all snapshots of a solved bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genflow.checks import count
from genflow.process.multimarginal.bridges import Paths
from genflow.process.multimarginal.interval import Interval, log_densities
from genflow.process.multimarginal.ipf import stitched
from genflow.process.multimarginal.law import draw, forecast
from genflow.process.multimarginal.solved import Solved
from genflow.tensors import rand_rows


class Trajectories(Solved):
    """Trajectories, and what they are made of: plans, and bridges between the points that they pair."""

    @torch.no_grad()
    def trajectories(
        self,
        times: Sequence[float] | Tensor | None = None,
        n: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Whole paths through all snapshots.

        Solved by plans, they pass through rows of every snapshot, chained by the plans; solved by
        learned drifts, they start at rows of all snapshots and are simulated both ways from there.

        Args:
            times: rising, inside the span or past it (forecasts); by default the grid of all intervals.
            n: how many; by default one from every row of every snapshot.
            generator: where the draws come from.

        Returns:
            ``(S+1, n, d)``.
        """
        self._check_solved()
        if n is not None:
            count("MultiMarginalBridge.trajectories", n=n)
        times = self.grid() if times is None else torch.as_tensor(times, dtype=torch.float64).cpu()
        times = torch.tensor(list(map(self._snapped, times.flatten().tolist())), dtype=torch.float64)
        if not len(times) or not bool((times.diff() > 0).all()) or float(times[0]) < self.span[0]:
            raise ValueError(
                f"MultiMarginalBridge.trajectories: times must rise and start at {self.span[0]:g} or "
                f"later"
            )
        inside = times[times <= self.span[1]]
        follow = self._stitched if self.kept.by_drifts else self._chain
        path, x = follow(inside, n, generator)
        late = times[times > self.span[1]].tolist()
        s, interval, states = self.span[1], self.intervals()[-1], [path]
        for t in late:
            x = forecast(interval, s, t, x, self.steps, generator)
            states.append(x[None])
            s = t
        return torch.cat(states)

    def _stitched(
        self, times: Tensor, n: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """States at ``times`` and at the last snapshot of paths by learned drifts."""
        intervals, grids, places = self.intervals(), [], []
        for interval in intervals:
            start, stop = interval.span
            grids.append(interval.grid(self.steps, times[(times > start) & (times < stop)]))
            places.append(grids[-1] if not places else grids[-1][1:])
        xs = [
            self.kept.rows("points", k)[self._starts(k, n, generator)] for k in range(len(self.times))
        ]
        path = stitched(xs, grids, self.forwards, self.backwards, self.sigma, generator)
        slack = 1e-9 * (self.span[1] - self.span[0])
        return path[torch.searchsorted(torch.cat(places), times - slack)], path[-1]

    def grid(self) -> Tensor:
        """``steps`` equal steps in each interval."""
        parts = [torch.linspace(a, b, self.steps + 1, dtype=torch.float64)[:-1]
                 for a, b in zip(self.times[:-1], self.times[1:])]  # fmt: skip
        return torch.cat([*parts, torch.tensor(self.times[-1:], dtype=torch.float64)])

    def _chain(
        self, times: Tensor, n: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """States at ``times``, and at the last snapshot."""
        intervals = self.intervals()
        rows = self._chained(intervals, n, generator)
        states = [torch.empty(0)] * len(times)
        for k, interval in enumerate(intervals):
            start, stop = interval.span
            inside = ((times >= start) & (times <= stop)).nonzero()[:, 0]
            if len(inside) == 0:
                continue
            wanted = times[inside]
            path = interval.paths(rows[k], rows[k + 1], self.steps, True, wanted, generator)
            found = torch.searchsorted(
                path.times[:, 0].cpu().contiguous(), wanted - 1e-9 * (stop - start)
            )
            for place, row in zip(inside.tolist(), found.tolist()):
                states[place] = path.x[row]
        last = intervals[-1].x1[rows[-1]]
        kept = torch.stack(states) if states else last.new_zeros(0, *last.shape)
        return kept, last

    def _chained(
        self, intervals: list[Interval], n: int | None, generator: torch.Generator | None
    ) -> list[Tensor]:
        """A row of each snapshot for every path: each starts at some row of some snapshot, and is
        carried both ways by the plans."""
        plans = [self.plan(k) for k in range(len(intervals))]
        parts: list[list[Tensor]] = []
        for start in range(len(self.times)):
            rows = {start: self._starts(start, n, generator)}
            for k in range(start, len(intervals)):
                rows[k + 1] = draw(plans[k][rows[k]], generator)
            for k in range(start - 1, -1, -1):
                rows[k] = draw(plans[k].mT[rows[k + 1]], generator)
            parts.append([rows[k] for k in sorted(rows)])
        return [torch.cat(column) for column in zip(*parts)]

    def _starts(self, k: int, n: int | None, generator: torch.Generator | None) -> Tensor:
        """Rows of snapshot ``k`` where paths start: all, or its share of ``n`` by systematic draws, as
        even as the masses are."""
        masses, snapshots = self.kept.rows("masses", k), len(self.times)
        if n is None and bool((masses == masses[0]).all()):
            return torch.arange(len(masses), device=masses.device)
        share = len(masses) if n is None else n // snapshots + (k < n % snapshots)
        shift = rand_rows(masses[:1], generator)
        points = (torch.arange(share, device=masses.device) + shift) / max(share, 1)
        return torch.searchsorted(masses.cumsum(0), points).clamp_max(len(masses) - 1)

    def _check_plans(self) -> None:
        self._check_solved()
        if not self.kept.by_plans:
            raise RuntimeError(
                "MultiMarginalBridge: its bridges are learned drifts (IPF), which know no plans; "
                "solve it by StaticBridge"
            )

    @torch.no_grad()
    def plan(self, k: int) -> Tensor:
        """The plan of interval ``k``, ``(N_k, N_{k+1})``, whose rows sum to one times their masses."""
        self._check_plans()
        kind = "" if self.kept.correction is None else "_corrected"
        left, right = self.kept.rows(f"left{kind}", k), self.kept.rows(f"right{kind}", k + 1)
        (logs,) = log_densities(self.intervals()[k : k + 1], self.steps)
        logs = logs.add_(left[:, None]).add_(right)
        if self.kept.correction is not None:
            logs = logs.add_(self.kept.corrections()[k])
        return logs.exp_()

    @torch.no_grad()
    def bridges(
        self, n: int | None = None, guided: bool = True, generator: torch.Generator | None = None
    ) -> list[Paths]:
        """``n`` bridges through each interval between points that its plan pairs; as many as its larger
        snapshot has rows by default."""
        self._check_plans()
        found = []
        for k, interval in enumerate(self.intervals()):
            size = n or max(len(interval.x0), len(interval.x1))
            law = self.plan(k).flatten().cumsum(0)
            shift = rand_rows(law[:1], generator)
            points = (torch.arange(size, device=law.device) + shift) / size * law[-1]
            pair = torch.searchsorted(law, points, right=True).clamp_max(len(law) - 1)
            m = len(interval.x1)
            paths = interval.paths(pair // m, pair % m, self.steps, guided, None, generator)
            if self.kept.correction is not None:  # their mean over each pair is in the plan
                mean = self.kept.corrections()[k].flatten()[pair]
                paths = replace(paths, log_weight=paths.log_weight - mean)
            found.append(paths)
        return found

    def effective_sample_size(
        self, n: int | None = None, generator: torch.Generator | None = None
    ) -> list[float]:
        """How well guided bridges between the plan's pairs stand for the true ones in each interval.

        Kish's fraction of ``n`` paths by their likelihood ratios, 1 for affine references; small values
        say that the linearisation is poor there: see ``correct`` of ``StaticBridge``.
        """
        weights = [paths.log_weight.softmax(0) for paths in self.bridges(n, generator=generator)]
        return [float(1 / (len(w) * w.square().sum())) for w in weights]
