"""Exact transitions, for processes that can draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.process import Process
from genflow.solver.base import Field, Stepper


@dataclass(frozen=True)
class Exact(Stepper):
    """Draws of a process's own transition law: no error of discretisation, however few the steps.

    For processes with a ``transition(s, t, x, generator)``, such as ``LightBridge``; ``nfe`` counts the
    transitions. On a falling grid the same method is called with ``t < s``.

    Args:
        steps: number of equal steps where no grid is given; more only show more of the paths.

    Raises:
        ValueError: when run, for a process without transitions, or with conditions.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def grid(
        self, process: Process, times: Tensor | Sequence[float] | None, reverse: bool = False
    ) -> Tensor:
        if not hasattr(process, "transition"):
            raise ValueError(
                f"Exact draws the process's own transitions, which {type(process).__name__} does not "
                "know; use StochasticHeun(), Euler() or, without noise, Heun()"
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
        field = Field.of(process)
        if field.cond is not None:
            raise ValueError("Exact: transitions know no conditions; leave cond out")
        field.calls += 1
        return field.process.transition(s, t, x, generator)
