"""What a solved bridge can be asked for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.law import Ahead, Behind, forecast
from genflow.process.multimarginal.state import Kept
from genflow.process.reference import Reference
from genflow.tensors import randn_like

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
        return self._by_time(t, x, self._drift)

    def backward_drift(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Drift of the law run from stop to start, :math:`f - \sigma^2\nabla\log\hat h`."""
        return self._by_time(t, x, self._backward)

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
        s, t = self._snapped(float(s)), self._snapped(float(t))
        flat = x.flatten(1).double()
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

    def _unknown(self, t: float) -> ValueError:
        return ValueError(
            f"MultiMarginalBridge: nothing is known backwards from time {t:g}, past the last snapshot "
            f"at {self.times[-1]:g}"
        )

    def _together(self) -> int:
        """How many states are looked at together."""
        each = int(self.kept.counts.max()) * self.reference.dim
        return min(ROWS, max(1, NUMBERS // each))

    def _by_time(self, t: Tensor | float, x: Tensor, ask: Callable[[float, Tensor], Tensor]) -> Tensor:
        """``ask(t, rows)`` for the rows of each distinct time."""
        self._check_solved()
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        flat = x.flatten(1).double()
        if t.ndim == 0:
            time = self._snapped(float(t))
            answers = torch.cat([ask(time, rows) for rows in flat.split(self._together())])
            return answers.to(x.dtype).view_as(x)
        answers = torch.empty_like(flat)
        for time in t.unique().tolist():
            here = (t == time).nonzero()[:, 0]
            for rows in here.split(self._together()):
                answers[rows] = ask(self._snapped(time), flat[rows])
        return answers.to(x.dtype).view_as(x)

    def _drift(self, t: float, x: Tensor) -> Tensor:
        if t >= self.times[-1] and not t == self.times[-1]:
            return self.reference(t, x)
        k = min(max(bisect_right(self.times, t) - 1, 0), len(self.times) - 2)
        if self.kept.by_drifts:
            return self.forwards[k](x.new_full(x.shape[:1], t), x)
        right = self.kept.rows("right", k + 1)
        ahead = Ahead(self.intervals()[k], right, t, x, self.steps)
        return self.reference(t, x) + ahead.control()

    def _backward(self, t: float, x: Tensor) -> Tensor:
        if t > self.times[-1]:
            raise self._unknown(t)
        k = min(max(bisect_left(self.times, t) - 1, 0), len(self.times) - 2)
        if self.kept.by_drifts:  # its clock runs on while time runs back
            clock = self.times[k] + self.times[k + 1] - t
            return -self.backwards[k](x.new_full(x.shape[:1], clock), x)
        left = self.kept.rows("left", k)
        behind = Behind(self.intervals()[k], left, t, x, self.steps)
        return self.reference(t, x) - self.sigma**2 * behind.score()

    def _check_solved(self) -> None:
        if not (self.kept.by_plans or self.kept.by_drifts):
            raise RuntimeError(
                "MultiMarginalBridge is not solved yet: call fit of ReferenceRefinement, StaticBridge "
                "or IPF, or run one iteration of such a loss"
            )
