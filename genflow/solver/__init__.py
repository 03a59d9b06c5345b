"""Solvers: how a process is run through time."""

from genflow.solver.adaptive import Adaptive
from genflow.solver.base import Field, Solution, Solver, Stepper
from genflow.solver.exact import Exact
from genflow.solver.geometric import AmbientEuler, DaleLangevin
from genflow.solver.steppers import Euler, Heun, RungeKutta, StochasticHeun

__all__ = [
    "Adaptive", "AmbientEuler", "DaleLangevin", "Euler", "Exact", "Field", "Heun", "RungeKutta",
    "Solution", "Solver", "Stepper", "StochasticHeun",
]  # fmt: skip
