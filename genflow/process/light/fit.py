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
from genflow.process.light.polish import adam, lbfgs
from genflow.process.light.rows import Rows
from genflow.process.light.start import warm_start
from genflow.process.light.state import Sides, State

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

    Args:
        bridge: what is fitted, in place.
        start, stop: rows of both sides.
        settings: how.
        generator: where all draws come from.
        progress: show a progress bar.
        callback: called with the bridge and the number of the look after each look.
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
    ) -> None:
        self.bridge, self.settings, self.generator = bridge, settings, generator
        self.start, self.stop = start, stop
        self.progress, self.callback = progress, callback
        self.history, self.sides = History(), self._sides(bridge.epsilon)
        self._spent, self._since = 0.0, time.process_time()

    def run(self) -> History:
        """Fit, and say whether it had converged.

        Raises:
            FloatingPointError: if the objective is not finite.
        """
        history, options = self.history, self.settings
        self._work = copy.deepcopy(self.bridge).double().requires_grad_(True)
        self._bar = self._progress_bar()
        state = self._begin()
        self._look("warm start", 0, state)
        state, history.converged = iterate(
            self._annealed(state), self.sides, options.iterations, options.tolerance,
            lambda seen, step: self._look("fixed point", None, seen.state, step, seen.objective),
        )  # fmt: skip
        self._work.assign(*state)
        if options.polish is not None:
            self._polish(self._work, history)
        self.bridge.assign(*self._work.numbers())
        self._bar.close()
        self._judge(history)
        return history

    def _sides(self, epsilon: float, rows: int | None = None) -> Sides:
        bridge, x1 = self.bridge, self.stop.pilot
        floor = FLOOR * float(x1.var(0).mean()) / epsilon
        sides = self.start.pilot[:rows], x1[:rows]
        return Sides(*sides, epsilon, bridge.covariance, bridge.rank, floor)

    def _begin(self) -> State:
        if not self.settings.restart:
            return State(*self._work.numbers())
        return warm_start(self.sides, self.bridge.components, self.generator)

    def _annealed(self, state: State) -> State:
        """A few iterations at each of a falling sequence of epsilons, halved from ``anneal``, on some
        of the rows. The weights are kept in units of epsilon, which is what they tend to."""
        first, last = self._first(), self.bridge.epsilon
        if first <= last or not self.settings.restart:
            return state
        halvings = math.ceil(math.log2(first / last))
        rows = max(WARM_ROWS, WARM_EACH * self.bridge.components)
        # the warm start is that of the first epsilon
        sides = self._sides(last * 2**halvings, rows)
        state = warm_start(sides, self.bridge.components, self.generator)
        for k in range(halvings, 0, -1):
            sides = self._sides(last * 2**k, rows)
            state, _ = iterate(state, sides, WARMING, self.settings.tolerance, lambda *_: None)
            state = state._replace(log_weight=2 * (state.log_weight - state.log_weight.max()))
            self._look("annealing", halvings - k + 1, state)
        return state

    def _first(self) -> float:
        """The epsilon that the fixed point begins with."""
        if self.settings.anneal != "auto":
            return self.settings.anneal or 0.0
        spread = float(self.stop.pilot.var(0).mean())
        return WARM * spread if self.bridge.epsilon < SMALL * spread else 0.0

    def _polish(self, work: LightBridge, history: History) -> None:
        options, start = self.settings, work.numbers()
        best, least = start, self._judged(history[-1])
        patience, every = 0, max(1, options.steps // LOOKS)

        def tell(k: int) -> bool:
            nonlocal best, least, patience
            if k % every and k != options.steps:
                return False
            rate = options.rate * (1 + math.cos(math.pi * k / options.steps)) / 2
            self._look(options.polish, k, step=rate if options.polish == "adam" else 1.0)
            value, patience = self._judged(history[-1]), patience + 1
            if value < least:
                best, least, patience = work.numbers(), value, 0
            # the first half of the decay is too noisy to tell
            late = 2 * k > options.steps and history[-1].held_out is not None
            history.stopped = late and patience >= PATIENCE
            return history.stopped

        if options.polish == "adam":
            size = options.batch_size
            spread = float(self.stop.pilot.var(0).mean().sqrt())
            adam(work, lambda: self._draw(size), options.steps, options.rate, spread, tell)
        else:
            lbfgs(work, (self.start.pilot, self.stop.pilot), options.steps, tell)
        work.assign(*best)
        values = [self._judged(entry) for entry in history]
        fell, all_fell = values[-3] - values[-1], values[0] - values[-1]
        history.converged = history.stopped or fell <= max(0.02 * all_fell, options.tolerance)

    @staticmethod
    def _judged(entry: Entry) -> float:
        return entry.objective if entry.held_out is None else entry.held_out

    def _draw(self, size: int) -> tuple[Tensor, Tensor]:
        self._pause()  # a law's own draws are not the fit's time
        rows = self.start.draw(size, self.generator), self.stop.draw(size, self.generator)
        self._resume()
        return rows

    def _look(
        self,
        stage: str,
        iteration: int | None,
        state: State | None = None,
        step: float = 1.0,
        objective: float | None = None,
    ) -> None:
        """Note where the fit stands; not on its clock."""
        self._pause()
        work, history = self._work, self.history
        if state is not None:
            work.assign(*state)
        if iteration is None:
            iteration = 1 + sum(entry.stage == stage for entry in history)
        tables = self.start.law is None and self.stop.law is None
        if objective is None or not tables:
            objective = float(work.objective_of(self.start.known, self.stop.known))
        held = None
        if tables and self.stop.held_out is not None:
            held = float(work.objective_of(self.start.held_out, self.stop.held_out))
        history.entries.append(Entry(stage, iteration, objective, held, step, self._spent))
        self._bar.set_description(stage, refresh=False)
        self._bar.set_postfix_str(f"objective {objective:.5g}", refresh=False)
        self._bar.update()
        if self.callback is not None:
            self.bridge.assign(*work.numbers())
            self.callback(self.bridge, len(history) - 1)
        self._resume()

    def _pause(self) -> None:
        self._spent += time.process_time() - self._since

    def _resume(self) -> None:
        self._since = time.process_time()

    def _progress_bar(self) -> Any:
        from tqdm.auto import tqdm

        return tqdm(desc="fitting", unit="look", disable=not self.progress, leave=False)

    def _judge(self, history: History) -> None:
        if not all(math.isfinite(entry.objective) for entry in history.entries[-1:]):
            raise FloatingPointError(
                f"LightBridge.fit: the objective is not finite; it ran {history.trace()}: check the "
                "scale of the data against epsilon, or take a smaller rate"
            )
        if not history.converged:
            warnings.warn(
                f"LightBridge.fit had not converged after {len(history) - 1} looks: the objective ran "
                f"{history.trace()}; give it more iterations or steps",
                RuntimeWarning,
                stacklevel=5,  # the line that called fit
            )
