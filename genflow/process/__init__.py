"""Processes: a drift and an applied diffusion."""

from genflow.process.base import Chart, Process
from genflow.process.density import divergence
from genflow.process.geometric import ReversedGeometric
from genflow.process.interpolant import StochasticInterpolant
from genflow.process.langevin import GeometricLangevin, MirrorLangevin
from genflow.process.learned import LearnedBridge
from genflow.process.light import LightBridge
from genflow.process.multimarginal import MultiMarginalBridge
from genflow.process.noise import Epsilon
from genflow.process.positive import PositiveProcess
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
    "SDE", "Brownian", "Chart", "Epsilon", "GeometricLangevin", "GradientField", "HierarchicalRates",
    "Learned", "LearnedBridge", "LightBridge", "LotkaVolterra", "MirrorLangevin", "MultiMarginalBridge",
    "OrnsteinUhlenbeck", "ParameterLaw", "PositiveProcess", "Process", "Reference", "Repressilator",
    "ReversedGeometric", "StochasticInterpolant", "Vortex", "divergence",
]  # fmt: skip
