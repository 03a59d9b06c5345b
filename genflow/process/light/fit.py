"""The fit of a light bridge: warm start, fixed point, polish."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genflow.checks import between, count, non_negative, one_of, positive
from genflow.process.light.fixed_point import iterate
from genflow.process.light.history import Entry, History
from genflow.process.light.polish import adam, lbfgs, resting
from genflow.process.light.rows import Rows
from genflow.process.light.start import warm_start
from genflow.process.light.state import Sides, State, moved

if TYPE_CHECKING:
    from genflow.process.light.bridge import LightBridge

FLOOR = 1e-8
"""Least variance of a component within the bridge, relative to that of the data."""
SMALL, WARM = 0.05, 0.25
"""An epsilon below the first part of the data's variance is annealed, from the second part on."""
WARMING, WARM_ROWS, WARM_EACH = 4, 2000, 20
"""Fixed-point iterations at each epsilon of an annealing, the rows that they see, and at least so many
for each component."""
LOOKS = 20
"""Looks at the full objective that a polish takes."""
PATIENCE = 4
"""Looks without a new best on held-out rows that end a polish."""


@dataclass(frozen=True)
class Settings:
    """How to fit; what the arguments mean is said at :meth:`LightBridge.fit`."""

    iterations: int = 20
    polish: str | None = "adam"
    steps: int = 1000
    batch_size: int = 512
    rate: float = 0.02
    anneal: float | str | None = "auto"
    held_out: float = 0.0
    tolerance: float = 1e-2
    pilot: int = 10_000
    restart: bool = True

    def __post_init__(self) -> None:
        name = "LightBridge.fit"
        count(name, 0, iterations=self.iterations)
        count(name, steps=self.steps, batch_size=self.batch_size)
        count(name, 2, pilot=self.pilot)
        positive(name, rate=self.rate)
        non_negative(name, tolerance=self.tolerance)
        one_of(name, ("adam", "lbfgs", None), polish=self.polish)
        if self.anneal not in ("auto", None):
            positive(name, anneal=self.anneal)
        if self.held_out:
            between(name, 0, 1, held_out=self.held_out)


class Fit:
    """One fit of a fixed number of components: its data, its clock and its trace.

    Everything inside is in the coordinates of centred rows; the bridge that is fitted is in those of
    the user.

    Args:
        bridge: what is fitted, in place.
        start, stop: rows of both sides.
        settings: how.
        generator: where all draws come from.
        progress: show a progress bar.
        callback: called with the bridge and the number of the look after each look.
        begun: when the clock began, by ``time.process_time()``.
    """

    def __init__(
        self,
        bridge: LightBridge,
        start: Rows,
        stop: Rows,
        settings: Settings,
        generator: torch.Generator | None,
        progress: bool = False,
        callback: Callable[[LightBridge, int], None] | None = None,
        begun: float | None = None,
    ) -> None:
        self.bridge, self.settings, self.generator = bridge, settings, generator
        self.start, self.stop = start, stop
        self.progress, self.callback = progress, callback
        self.history, self.sides = History(), self._sides(bridge.epsilon)
        self._spent, self._since = 0.0, time.process_time() if begun is None else begun

    def run(self) -> History:
        """Fit, and say whether it had converged.

        Raises:
            FloatingPointError: if the objective is not finite.
        """
        history, options = self.history, self.settings
        self._work = copy.deepcopy(self.bridge).double().requires_grad_(True)
        self._bar = self._progress_bar()
        state = self._begin()
        self._look("warm start" if options.restart else "start", 0, state)
        state, history.converged = iterate(
            self._annealed(state), self.sides, options.iterations, options.tolerance,
            lambda seen, step: self._look("fixed point", None, seen.state, step),
        )  # fmt: skip
        self._work.assign(*state)
        if options.polish is not None:
            self._polish(self._work, history)
        self._hand_over()
        if self._bar is not None:
            self._bar.close()
        self._judge(history)
        return history

    def _hand_over(self) -> None:
        """Bring what has been found into the coordinates of the user."""
        state = State(*self._work.numbers())
        state = moved(state, self.start.centre, self.stop.centre, self.bridge.epsilon)
        self.bridge.assign(*state)

    def _sides(self, epsilon: float, rows: int | None = None) -> Sides:
        bridge, x1 = self.bridge, self.stop.pilot
        floor = FLOOR * float(x1.var(0).mean()) / epsilon
        sides = self.start.pilot[:rows], x1[:rows]
        return Sides(*sides, epsilon, bridge.covariance, bridge.rank, floor)

    def _begin(self) -> State:
        """Numbers to begin with, in centred coordinates."""
        if self.settings.restart:
            sides = self._warm_sides(self._halvings())
            return warm_start(sides, self.bridge.components, self.generator)
        own = State(*self._work.numbers())
        return moved(own, -self.start.centre, -self.stop.centre, self.bridge.epsilon)

    def _annealed(self, state: State) -> State:
        """A few iterations at each of a falling sequence of epsilons, halved from ``anneal``, on some
        of the rows. The weights are kept in units of epsilon, which is what they tend to."""
        halvings = self._halvings()
        for k in range(halvings, 0, -1):
            sides = self._warm_sides(k)
            state, _ = iterate(state, sides, WARMING, self.settings.tolerance, lambda *_: None)
            state = state._replace(log_weight=2 * (state.log_weight - state.log_weight.max()))
            self._look("annealing", halvings - k + 1, state)
        return state

    def _warm_sides(self, halvings: int) -> Sides:
        """Some of the rows at a larger epsilon, or all at the bridge's own."""
        if halvings == 0:
            return self.sides
        rows = max(WARM_ROWS, WARM_EACH * self.bridge.components)
        return self._sides(self.bridge.epsilon * 2**halvings, rows)

    def _halvings(self) -> int:
        """How often the epsilon of the warm start is halved until it is the bridge's."""
        first, last = self._first(), self.bridge.epsilon
        anneals = self.settings.restart and last < first < math.inf
        return math.ceil(math.log2(first / last)) if anneals else 0

    def _first(self) -> float:
        """The epsilon that the fixed point begins with."""
        if self.settings.anneal != "auto":
            return self.settings.anneal or 0.0
        spread = float(self.stop.pilot.var(0).mean())
        return WARM * spread if self.bridge.epsilon < SMALL * spread else 0.0

    def _polish(self, work: LightBridge, history: History) -> None:
        options = self.settings
        best, least = work.numbers(), self._judged(history[-1])
        patience, every = 0, max(1, options.steps // LOOKS)
        fresh = self.start.law is not None or self.stop.law is not None

        def look(k: int, last: bool) -> bool:
            nonlocal best, least, patience
            rate = options.rate * (1 + math.cos(math.pi * k / options.steps)) / 2
            self._look(options.polish, k, step=rate if options.polish == "adam" else 1.0)
            value, patience = self._judged(history[-1]), patience + 1
            if not math.isfinite(value):
                return True
            # of fresh rows the least look would be the luckiest: there the last counts, or none
            if value < least and (last or not fresh):
                best, least, patience = work.numbers(), value, 0
            # the first half of the decay is too noisy to tell
            late = 2 * k > options.steps and history[-1].held_out is not None
            history.stopped = late and patience >= PATIENCE
            return history.stopped

        def tell(k: int) -> bool:
            last = k == options.steps
            return look(k, last) if last or k % every == 0 else False

        if options.polish == "adam":
            floor, spread = math.log(self.sides.floor), self._spread()
            draw = lambda: self._draw(options.batch_size)  # noqa: E731
            adam(work, draw, options.steps, options.rate, spread, floor, tell)
        else:
            taken = lbfgs(work, (self.start.pilot, self.stop.pilot), options.steps, tell)
            if taken < options.steps:
                look(taken, last=True)
        work.assign(*best)
        if self._judged(history[-1]) > least or not math.isfinite(self._judged(history[-1])):
            self._look("best", None)  # the last entry is that of the bridge that is given back
        history.converged = history.stopped or resting(work, lambda: self._draw(options.batch_size))

    def _spread(self) -> Tensor:
        """Deviations of the data by coordinate, in which locations move; none is next to nothing."""
        variance = self.stop.pilot.var(0)
        return (variance + 1e-4 * variance.mean()).sqrt()

    @staticmethod
    def _judged(entry: Entry) -> float:
        return entry.objective if entry.held_out is None else entry.held_out

    def _draw(self, size: int) -> tuple[Tensor, Tensor]:
        found = []
        for side in (self.start, self.stop):
            if side.law is not None:  # its own draws are not the fit's time
                self._pause()
            found.append(side.draw(size, self.generator))
            if side.law is not None:
                self._resume()
        return tuple(found)

    def _look(
        self, stage: str, iteration: int | None, state: State | None = None, step: float = 1.0
    ) -> None:
        """Note where the fit stands; not on its clock."""
        self._pause()
        work, history = self._work, self.history
        if state is not None:
            work.assign(*state)
        if iteration is None:
            iteration = 1 + sum(entry.stage == stage for entry in history)
        objective = self._objective(self.start.known, self.stop.known)
        held = None
        if any(side.law is None and side.held_out is not None for side in (self.start, self.stop)):
            held = self._objective(self.start.judged, self.stop.judged)
        history.entries.append(Entry(stage, iteration, objective, held, step, self._spent))
        if self._bar is not None:
            self._bar.set_description(stage, refresh=False)
            self._bar.set_postfix_str(f"objective {objective:.5g}", refresh=False)
            self._bar.update()
        if self.callback is not None:
            self._hand_over()
            self.callback(self.bridge, len(history) - 1)
        self._resume()

    def _objective(self, x0: Tensor, x1: Tensor) -> float:
        """The objective on centred rows, as it is in the coordinates of the user."""
        a, b = self.start.centre, self.stop.centre
        shift = (x0.mean(0) + a) @ b + a @ x1.mean(0)
        return float(self._work.objective_of(x0, x1) + shift / self.bridge.epsilon)

    def _pause(self) -> None:
        self._spent += time.process_time() - self._since

    def _resume(self) -> None:
        self._since = time.process_time()

    def _progress_bar(self) -> Any | None:
        if not self.progress:
            return None
        from tqdm.auto import tqdm

        return tqdm(desc="fitting", unit="look", leave=False)

    def _judge(self, history: History) -> None:
        if not all(bool(v.isfinite().all()) for v in self.bridge.numbers()):
            raise FloatingPointError(
                f"LightBridge.fit: the objective is not finite; it ran {history.trace()}: check the "
                "scale of the data against epsilon"
            )
        if not history.converged:
            warnings.warn(
                f"LightBridge.fit had not converged after {len(history) - 1} looks: the objective ran "
                f"{history.trace()}; give it more iterations or steps, or a smaller rate",
                RuntimeWarning,
                stacklevel=5,  # the line that called fit
            )
