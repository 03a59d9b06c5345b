"""Euler, Heun and stochastic Heun."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.process import Process
from genflow.solver.base import Field, Stepper


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
        moved = x + (t - s) * process.drift(s, x)
        return moved + process.noise(s, t, x, generator) if process.stochastic else moved


@dataclass(frozen=True)
class Heun(Stepper):
    """Heun's second-order method for ODEs, two evaluations a step.

    Args:
        steps: number of equal steps where no grid is given.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def grid(self, process: Process, times=None, reverse: bool = False) -> Tensor:
        if process.stochastic:
            raise ValueError(
                "Heun is for ODEs; this process has noise: use StochasticHeun() or Euler()"
            )
        return super().grid(process, times, reverse)

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
        second = process.drift(t, x + (t - s) * first)
        return x + (t - s) / 2 * (first + second)


@dataclass(frozen=True)
class StochasticHeun(Stepper):
    r"""Stochastic Heun of weak order 2 for additive noise:
    :math:`X' = X + \frac h2 [f(t,X) + f(t+h, X + hf + \xi)] + \xi`.

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
        noise = process.noise(s, t, x, generator)
        first = process.drift(s, x)
        second = process.drift(t, x + (t - s) * first + noise)
        return x + (t - s) / 2 * (first + second) + noise
