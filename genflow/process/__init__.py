"""Processes: a drift and an applied diffusion."""

from genflow.process.base import Process
from genflow.process.density import divergence
from genflow.process.interpolant import StochasticInterpolant
from genflow.process.learned import LearnedBridge
from genflow.process.light import LightBridge
from genflow.process.multimarginal import MultiMarginalBridge
from genflow.process.noise import Epsilon
from genflow.process.reference import (
    Brownian,
    GradientField,
    HierarchicalRates,
    Learned,
    LotkaVolterra,
    OrnsteinUhlenbeck,
    ParameterLaw,
    Reference,
    Repressilator,
    Vortex,
)
from genflow.process.sde import SDE

__all__ = [
    "SDE", "Brownian", "Epsilon", "GradientField", "HierarchicalRates", "Learned", "LearnedBridge",
    "LightBridge", "LotkaVolterra", "MultiMarginalBridge", "OrnsteinUhlenbeck", "ParameterLaw",
    "Process", "Reference", "Repressilator", "StochasticInterpolant", "Vortex", "divergence",
]  # fmt: skip
