"""Adaptive ODE solvers, from torchdiffeq."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.process import Process
from genflow.solver.base import Field, Solution, Solver
from genflow.solver.steppers import ForODEs

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@dataclass(frozen=True)
class Adaptive(ForODEs, Solver):
    """An adaptive Runge-Kutta method of torchdiffeq, for ODEs.

    Args:
        rtol, atol: tolerances a step; float32 states do not reach much below 1e-6.
        method: ``dopri5``, ``dopri8``, ``bosh3``, ``fehlberg2`` or ``adaptive_heun``.
        steps: points at which a trajectory is kept; the steps taken are the method's own.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    method: str = "dopri5"
    steps: int = 100

    def __post_init__(self) -> None:
        positive(self, rtol=self.rtol, atol=self.atol)
        count(self, steps=self.steps)
        if self.method not in METHODS:
            raise ValueError(
                f"Adaptive(method={self.method!r}): method must be one of {', '.join(METHODS)}"
            )

    def _run(
        self,
        process: Process,
        x: Tensor,
        grid: Tensor,
        cond: Tensor | None,
        generator: torch.Generator | None,
        trajectory: bool,
        progress: bool,
    ) -> Solution:
        from torchdiffeq import odeint

        field = Field(process, cond)
        points = grid if trajectory else grid[[0, -1]]
        # torchdiffeq steps in the dtype of the times: float64 keeps small steps apart; and it
        # interpolates the last state, at an order below the method's, unless a step must end there
        points = points.to(x.device)
        path = odeint(
            field.drift, x, points, rtol=self.rtol, atol=self.atol, method=self.method,
            options={"step_t": points[-1:]},
        )  # fmt: skip
        return Solution(path[-1], grid, field.calls, path if trajectory else None)
