"""The fit of a light bridge: warm start, fixed point, polish."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genflow.checks import between, count, non_negative, one_of, positive
from genflow.process.light.fixed_point import Look, iterate
from genflow.process.light.history import Choice, Entry, History
from genflow.process.light.polish import adam, lbfgs
from genflow.process.light.rows import Rows, gather
from genflow.process.light.start import warm_start
from genflow.process.light.state import Sides, State
from genflow.source import Source

if TYPE_CHECKING:
    from genflow.process.light.bridge import LightBridge

CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Numbers of components that ``"auto"`` tries, in this order."""
FLOOR = 1e-8
"""Least variance of a component within the bridge, relative to that of the data."""
SMALL, WARM = 0.05, 0.25
"""An epsilon below the first part of the data's variance is annealed, from the second part on."""
WARMING = 4
"""Fixed-point iterations at each epsilon of an annealing."""
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
    """One fit: its data, its clock and its trace."""

    def __init__(
        self,
        bridge: LightBridge,
        x0: Tensor | Source,
        x1: Tensor | Source,
        settings: Settings,
        generator: torch.Generator | None,
        progress: bool = False,
        callback: Callable[[LightBridge, int], None] | None = None,
    ) -> None:
        self.bridge, self.settings, self.generator = bridge, settings, generator
        self.progress, self.callback = progress, callback
        self.history = History()
        self._spent, self._since = 0.0, time.process_time()
        options = bridge.shape, bridge.location.device, settings.pilot, settings.held_out, generator
        self.start, self.stop = gather("x0", x0, *options), gather("x1", x1, *options)
        self._check_spread()
        self.sides = self._sides(bridge.epsilon)

    def run(self) -> History:
        """Fit the bridge in place."""
        if self.bridge.components == "auto":
            self._choose()
        self._check_components(self.bridge.components)
        self._fit(self.bridge, self.history)
        self.bridge.anchor_flat(self.start.pilot)
        return self.history

    def _sides(self, epsilon: float) -> Sides:
        bridge, x1 = self.bridge, self.stop.pilot
        floor = FLOOR * float(x1.var(0).mean()) / epsilon
        return Sides(self.start.pilot, x1, epsilon, bridge.covariance, bridge.rank, floor)

    def _check_spread(self) -> None:
        spread = self.stop.pilot.std(0)
        still = spread <= 1e-12 * self.stop.pilot.abs().amax(0).clamp_min(1e-300)
        alone = self.bridge.covariance in ("diagonal", "full")
        if bool(still.all()) or (alone and bool(still.any())):
            names = ", ".join(map(str, still.nonzero()[:5, 0].tolist()))
            raise ValueError(
                f"LightBridge.fit: coordinate {names} of x1 is constant, which no component of positive width "
                "can follow: leave it out, add a little noise, or take covariance='isotropic'"
            )

    def _check_components(self, components: int) -> None:
        if components > len(self.stop.pilot):
            raise ValueError(
                f"LightBridge.fit: {components} components need at least as many rows of x1, but there are "
                f"{len(self.stop.pilot)}; take fewer components"
            )

    def _fit(self, bridge: LightBridge, history: History) -> None:
        """All stages on one bridge of a fixed number of components."""
        work = copy.deepcopy(bridge).double()
        bar = self._bar(bridge.components)
        look = self._looker(work, bridge, history, bar)
        state = self._begin(work)
        work.assign(*state)
        look("warm start", 0, 1.0)
        state = self._annealed(state, look)
        state, converged = iterate(
            state, self.sides, self.settings.iterations, self.settings.tolerance,
            lambda seen, step: look("fixed point", None, step, seen.state, seen.objective),
        )  # fmt: skip
        work.assign(*state)
        history.converged = converged
        if self.settings.polish is not None:
            self._polish(work, history, look)
        bridge.assign(*work.numbers())
        bar.close()
        self._judge(history)

    def _begin(self, work: LightBridge) -> State:
        if not self.settings.restart:
            return State(*work.numbers())
        return warm_start(self.sides, work.components, self.generator)

    def _annealed(self, state: State, look: Callable[..., None]) -> State:
        """A few iterations at each of a falling sequence of epsilons, halved from ``anneal``. The weights of
        the potential are kept in units of epsilon, which is what they tend to."""
        first, last = self._first(), self.bridge.epsilon
        if first <= last:
            return state
        halvings = math.ceil(math.log2(first / last))
        # the warm start is that of the first epsilon
        sides = self._sides(last * 2**halvings)
        state = warm_start(sides, self.bridge.components, self.generator)
        for k in range(halvings, 0, -1):
            sides = self._sides(last * 2**k)
            state, _ = iterate(state, sides, WARMING, self.settings.tolerance, lambda *_: None)
            state = state._replace(log_weight=2 * (state.log_weight - state.log_weight.max()))
            look("annealing", halvings - k + 1, 1.0, state)
        return state

    def _first(self) -> float:
        """The epsilon that the fixed point begins with."""
        if self.settings.anneal != "auto":
            return self.settings.anneal or 0.0
        spread = float(self.stop.pilot.var(0).mean())
        return WARM * spread if self.bridge.epsilon < SMALL * spread else 0.0

    def _polish(self, work: LightBridge, history: History, look: Callable[..., None]) -> None:
        options, start = self.settings, work.numbers()
        best, least = start, self._judged(history[-1])
        patience, every = 0, max(1, options.steps // LOOKS)

        def tell(k: int) -> bool:
            nonlocal best, least, patience
            if k % every and k != options.steps:
                return False
            rate = options.rate * (1 + math.cos(math.pi * k / options.steps)) / 2
            look(options.polish, k, rate if options.polish == "adam" else 1.0)
            value, patience = self._judged(history[-1]), patience + 1
            if value < least:
                best, least, patience = work.numbers(), value, 0
            # the first half of the decay is too noisy to tell
            late = 2 * k > options.steps and self.stop.law is None and self.stop.held_out is not None
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

    def _looker(
        self, work: LightBridge, bridge: LightBridge, history: History, bar: object
    ) -> Callable[..., None]:
        def look(
            stage: str,
            iteration: int | None,
            step: float,
            state: State | None = None,
            objective: float | None = None,
        ) -> None:
            self._pause()
            if state is not None:
                work.assign(*state)
            if iteration is None:
                iteration = 1 + sum(entry.stage == stage for entry in history)
            if objective is None:
                objective = float(work.objective_of(self.sides.x0, self.sides.x1))
            held = None
            if self.start.held_out is not None or self.stop.held_out is not None:
                held = float(work.objective_of(self.start.watched, self.stop.watched))
            history.entries.append(Entry(stage, iteration, objective, held, step, self._spent))
            bar.set_description(stage)
            bar.set_postfix_str(f"objective {objective:.5g}", refresh=False)
            bar.update(max(0, (len(history) - 1) - bar.n) if bar.total else 0)
            if self.callback is not None:
                bridge.assign(*work.numbers())
                self.callback(bridge, len(history) - 1)
            self._resume()

        return look

    def _pause(self) -> None:
        self._spent += time.process_time() - self._since

    def _resume(self) -> None:
        self._since = time.process_time()

    def _bar(self, components: int) -> object:
        from tqdm.auto import tqdm

        polish = 0 if self.settings.polish is None else LOOKS
        total = self.settings.iterations + polish
        return tqdm(total=total, desc="fitting", unit="look", disable=not self.progress, leave=False)

    def _judge(self, history: History) -> None:
        if not all(math.isfinite(entry.objective) for entry in history.entries[-1:]):
            raise FloatingPointError(
                f"LightBridge.fit: the objective is not finite; it ran {history.trace()}: check the scale of the "
                "data against epsilon, or take a smaller rate"
            )
        if not history.converged:
            warnings.warn(
                f"LightBridge.fit had not converged after {len(history) - 1} looks: the objective ran "
                f"{history.trace()}; give it more iterations or steps",
                RuntimeWarning,
                stacklevel=5,
            )

    def _choose(self) -> None:
        """The number of components by held-out objective: more are tried until they no longer help."""
        bridge, settings = self.bridge, self.settings
        trial = Settings(**{**settings.__dict__, "held_out": 0.0, "steps": max(1, settings.steps // 2)})
        inner, outer = self._split()
        for components in CANDIDATES:
            if components > len(inner.stop.pilot) // 5:
                break
            tried = copy.deepcopy(bridge)
            tried.components = components
            tried._resize(components)
            one = copy.copy(self)
            one.bridge, one.settings, one.callback = tried, trial, None
            one.start, one.stop, one.history = inner.start, inner.stop, History()
            one.sides = one._sides(bridge.epsilon)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                one._fit(tried, one.history)
            self.history.choices.append(_score(tried, one.history, *outer))
            if _worse(self.history.choices):
                break
        best = min(self.history.choices, key=lambda choice: choice.held_out)
        bridge.components = best.components
        bridge._resize(best.components)

    def _split(self) -> tuple[Fit, tuple[Tensor, Tensor]]:
        """A fifth of the rows are held out, unless some are already."""
        inner = copy.copy(self)
        if self.start.held_out is not None and self.stop.held_out is not None:
            return inner, (self.start.held_out, self.stop.held_out)
        parts = []
        for side in (self.start, self.stop):
            order = torch.randperm(len(side.pilot), generator=self.generator)
            held = order[: max(1, len(order) // 5)]
            parts.append((Rows(side.pilot[order[len(held) :]], side.law), side.pilot[held]))
        inner.start, inner.stop = parts[0][0], parts[1][0]
        return inner, (parts[0][1], parts[1][1])


def _score(bridge: LightBridge, history: History, x0: Tensor, x1: Tensor) -> Choice:
    with torch.no_grad():
        c, v = bridge.potential.log_normaliser(x0), bridge.potential.log_potential(x1)
    error = float((c.var() / len(c) + v.var() / len(v)).sqrt())
    return Choice(bridge.components, history[-1].objective, float(c.mean() - v.mean()), error)


def _worse(choices: Sequence[Choice]) -> bool:
    """Whether the last two numbers of components were both worse than the best."""
    best = min(choice.held_out for choice in choices)
    return len(choices) > 2 and all(choice.held_out > best for choice in choices[-2:])
