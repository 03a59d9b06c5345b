"""Processes: a drift and an applied diffusion."""

from genflow.process.base import Process
from genflow.process.density import divergence
from genflow.process.interpolant import StochasticInterpolant
from genflow.process.learned import LearnedBridge
from genflow.process.light import LightBridge
from genflow.process.noise import Epsilon
from genflow.process.sde import SDE

__all__ = [
    "SDE", "Epsilon", "LearnedBridge", "LightBridge", "Process", "StochasticInterpolant", "divergence",
]  # fmt: skip
