"""Euler, Heun, Runge-Kutta and stochastic Heun."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.process import Process
from genflow.solver.base import Field, Solver, Stepper


@dataclass(frozen=True)
class Euler(Stepper):
    """Euler for ODEs, Euler-Maruyama where the process has noise (weak order 1).

    Args:
        steps: number of equal steps where no grid is given.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        process = Field.of(process)
        moved = torch.add(x, process.drift(s, x), alpha=t - s)
        return moved + process.noise((s + t) / 2, x, t - s, generator) if process.stochastic else moved


class ForODEs:
    """What a solver for ODEs alone says to noise: it refuses, and names who can stand in."""

    def for_noise(self) -> Solver:
        return StochasticHeun(self.steps)

    def grid(self, process: Process, times=None, reverse: bool = False) -> Tensor:
        if process.stochastic:
            raise ValueError(
                f"{type(self).__name__} is for ODEs; this process has noise: use StochasticHeun() or "
                "Euler()"
            )
        return super().grid(process, times, reverse)


@dataclass(frozen=True)
class Heun(ForODEs, Stepper):
    """Heun's second-order method for ODEs, two evaluations a step.

    Args:
        steps: number of equal steps where no grid is given.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        process = Field.of(process)
        first = process.drift(s, x)
        second = process.drift(t, torch.add(x, first, alpha=t - s))
        return torch.add(x, first + second, alpha=(t - s) / 2)


@dataclass(frozen=True)
class RungeKutta(ForODEs, Stepper):
    """The classical Runge-Kutta method of order four for ODEs, four evaluations a step.

    Args:
        steps: number of equal steps where no grid is given.
    """

    steps: int = 40

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        process, h, middle = Field.of(process), t - s, (s + t) / 2
        first = process.drift(s, x)
        second = process.drift(middle, torch.add(x, first, alpha=h / 2))
        third = process.drift(middle, torch.add(x, second, alpha=h / 2))
        fourth = process.drift(t, torch.add(x, third, alpha=h))
        return torch.add(x, first + 2 * (second + third) + fourth, alpha=h / 6)


@dataclass(frozen=True)
class StochasticHeun(Stepper):
    r"""Stochastic Heun of weak order 2 for additive noise:
    :math:`X' = X + \frac h2 [f(t,X) + f(t+h, X + hf + \xi)] + \xi`.

    The variance of the noise :math:`\xi` is the mean of those at both ends of the step, where the drift
    is looked at too: noise that is compensated by a score must fade where that does.

    Args:
        steps: number of equal steps where no grid is given.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        process = Field.of(process)
        moved, half = x, (t - s) / 2
        if process.stochastic:
            ends = process.noise(s, x, half, generator), process.noise(t, x, half, generator)
            moved = x + ends[0] + ends[1]
        first = process.drift(s, x)
        second = process.drift(t, torch.add(moved, first, alpha=t - s))
        return torch.add(moved, first + second, alpha=half)
