"""Solvers: how a process is run through time."""

from genflow.solver.adaptive import Adaptive
from genflow.solver.base import Field, Solution, Solver, Stepper
from genflow.solver.steppers import Euler, Heun, StochasticHeun

__all__ = [
    "Adaptive", "Euler", "Field", "Heun", "Solution", "Solver", "Stepper", "StochasticHeun",
]  # fmt: skip
