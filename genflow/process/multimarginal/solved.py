"""What a solved bridge can be asked for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.law import Ahead, Behind, forecast
from genflow.process.multimarginal.state import Kept
from genflow.process.reference import Reference
from genflow.tensors import randn_like

NEAREST = 1e-3
"""Part of an interval below which a snapshot is not approached where a drift is asked for."""
ROWS = 1 << 11
"""The most states that are looked at together."""
NUMBERS = 1 << 23
"""Numbers of one array over states and rows of a snapshot."""


class Solved:
    """Drift, transitions and trajectories of a bridge that a loss has solved."""

    reference: Reference
    sigma: float
    steps: int
    times: list[float] | None
    span: tuple[float, float]
    kept: Kept
    forwards: nn.ModuleList
    backwards: nn.ModuleList

    def intervals(self) -> list[Interval]:
        raise NotImplementedError

    @property
    def reach(self) -> tuple[float, float]:
        """Times that a solver may visit: forecasts run past the last snapshot."""
        return self.span[0], float("inf")

    def drift(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Drift :math:`f + \sigma^2\nabla\log h` at ``t``, a number or ``(B,)``, and states ``x (B,
        *d)``; past the last snapshot, that of the reference."""
        return self._by_time(t, x, self._drift, True)

    def backward_drift(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Drift of the law run from stop to start, :math:`f - \sigma^2\nabla\log\hat h`."""
        return self._by_time(t, x, self._backward, False)

    @torch.no_grad()
    def transition(
        self, s: float, t: float, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """States at ``t`` from states ``x (B, *d)`` at ``s``, forward, backward, or on past the last
        snapshot.

        Exact for affine references solved by plans; else by guided bridges, or by Euler steps where
        drifts were learned.
        """
        self._check_solved()
        s, t = self._known(float(s)), self._known(float(t))
        flat = x.flatten(1).double()
        if len(flat) == 0:
            return x
        ways = [self._walk(s, t, rows, generator) for rows in flat.split(self._together())]
        return torch.cat(ways).to(x.dtype).view_as(x)

    def _walk(self, s: float, t: float, x: Tensor, generator: torch.Generator | None) -> Tensor:
        intervals = self.intervals()
        while s < t and s < self.times[-1]:
            k = max(bisect_right(self.times, s) - 1, 0)
            stop = min(t, self.times[k + 1])
            if self.kept.by_drifts:
                x = self._euler(k, s, stop, x, generator)
            else:
                right = self.kept.rows("right", k + 1)
                x = Ahead(intervals[k], right, s, x, self.steps).at(stop, generator)
            s = stop
        if s < t:
            return forecast(intervals[-1], s, t, x, self.steps, generator)
        while t < s:
            k = bisect_left(self.times, s) - 1
            if k == len(intervals):
                raise self._unknown(s)
            stop = max(t, self.times[k])
            if self.kept.by_drifts:
                x = self._euler(k, s, stop, x, generator)
            else:
                left = self.kept.rows("left", k)
                x = Behind(intervals[k], left, s, x, self.steps).at(stop, generator)
            s = stop
        return x

    def _euler(
        self, k: int, s: float, t: float, x: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Steps of a learned drift inside interval ``k``."""
        length = self.times[k + 1] - self.times[k]
        n = max(1, round(self.steps * abs(t - s) / length))
        grid = torch.linspace(s, t, n + 1, dtype=torch.float64).tolist()
        field = self.drift if t > s else self.backward_drift
        for a, b in zip(grid[:-1], grid[1:]):
            x = x + (b - a) * field(a, x) + self.sigma * abs(b - a) ** 0.5 * randn_like(x, generator)
        return x

    def _snapped(self, t: float) -> float:
        """The time of a snapshot where ``t`` is one but for rounding (in float32)."""
        near = min(self.times, key=lambda known: abs(known - t))
        return near if abs(near - t) <= 1e-6 * (self.span[1] - self.span[0]) else t

    def _known(self, t: float) -> float:
        """:meth:`_snapped`, of a time that is not before the first snapshot."""
        t = self._snapped(t)
        if t < self.span[0]:
            raise ValueError(
                f"MultiMarginalBridge: nothing is known before the first snapshot, at "
                f"{self.span[0]:g}, got time {t:g}"
            )
        return t

    def _unknown(self, t: float) -> ValueError:
        return ValueError(
            f"MultiMarginalBridge: nothing is known backwards from time {t:g}, past the last snapshot "
            f"at {self.times[-1]:g}"
        )

    def _together(self) -> int:
        """How many states are looked at together."""
        dim = self.reference.dim
        each = max(int(self.kept.counts.max()) * dim, self.steps * dim**2)
        return min(ROWS, max(1, NUMBERS // each))

    def _by_time(
        self, t: Tensor | float, x: Tensor, ask: Callable[[float | Tensor, Tensor], Tensor], rows: bool
    ) -> Tensor:
        """``ask(t, states)`` for states at one time; for those at several times of an interval
        together if ``rows``. Graphs are kept where ``x`` wants its gradient."""
        self._check_solved()
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        flat = x.flatten(1).double()
        answers = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            for here, time in self._groups(t.expand(len(flat)) if t.ndim == 0 else t, rows):
                for part in here.split(self._together()):
                    at = time if isinstance(time, float) else t[part].clamp(*time)
                    answers.append((part, ask(at, flat[part])))
        if not answers:
            return x.clone()
        back = torch.cat([part for part, _ in answers]).argsort()
        return torch.cat([found for _, found in answers])[back].to(x.dtype).view_as(x)

    def _groups(self, t: Tensor, rows: bool) -> Iterator[tuple[Tensor, float | tuple[float, float]]]:
        """Numbers of the states at each time; or those inside an interval, with its ends less what is
        not approached."""
        distinct = t.unique().tolist()
        if not rows or len(distinct) < 2:
            for time in distinct:
                yield (t == time).nonzero()[:, 0], self._known(time)
            return
        self._known(distinct[0])
        for start, stop in zip(self.times[:-1], self.times[1:]):
            here = ((t >= start) & (t < stop)).nonzero()[:, 0]
            if len(here):
                yield here, (start, stop - NEAREST * (stop - start))
        for time in [time for time in distinct if time >= self.times[-1]]:
            yield (t == time).nonzero()[:, 0], self._known(time)

    def _drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        first = float(t.min()) if isinstance(t, Tensor) else t
        if first > self.times[-1]:
            return self.reference(t, x)
        k = min(bisect_right(self.times, first) - 1, len(self.times) - 2)
        if self.kept.by_drifts:
            clock = t if isinstance(t, Tensor) else x.new_full(x.shape[:1], t)
            return self.forwards[k](clock, x)
        if not isinstance(t, Tensor):
            start, stop = self.times[k : k + 2]
            t = min(t, stop - NEAREST * (stop - start))
        ahead = Ahead(self.intervals()[k], self.kept.rows("right", k + 1), t, x, self.steps)
        return self.reference(t, x) + ahead.control()

    def _backward(self, t: float, x: Tensor) -> Tensor:
        if t > self.times[-1]:
            raise self._unknown(t)
        k = max(bisect_left(self.times, t) - 1, 0)
        start, stop = self.times[k : k + 2]
        if self.kept.by_drifts:  # its clock runs on while time runs back
            return -self.backwards[k](x.new_full(x.shape[:1], start + stop - t), x)
        t = max(t, start + NEAREST * (stop - start))
        behind = Behind(self.intervals()[k], self.kept.rows("left", k), t, x, self.steps)
        return self.reference(t, x) - self.sigma**2 * behind.score()

    def _check_solved(self) -> None:
        if not (self.kept.by_plans or self.kept.by_drifts):
            raise RuntimeError(
                "MultiMarginalBridge is not solved yet: call fit of ReferenceRefinement, StaticBridge "
                "or IPF, or run one iteration of such a loss"
            )
