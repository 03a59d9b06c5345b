"""Solvers: how a process is run through time."""

from genflow.solver.adaptive import Adaptive
from genflow.solver.base import Field, Solution, Solver, Stepper
from genflow.solver.steppers import Euler, Heun, RungeKutta, StochasticHeun

__all__ = [
    "Adaptive", "Euler", "Field", "Heun", "RungeKutta", "Solution", "Solver", "Stepper",
    "StochasticHeun",
]  # fmt: skip
