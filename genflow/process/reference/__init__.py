"""References: families of drifts that bridges refine."""

from genflow.process.reference.base import Reference
from genflow.process.reference.law import HierarchicalRates, ParameterLaw
from genflow.process.reference.learned import GradientField, Learned
from genflow.process.reference.linear import Brownian, OrnsteinUhlenbeck
from genflow.process.reference.lotka_volterra import LotkaVolterra
from genflow.process.reference.repressilator import Repressilator
from genflow.process.reference.vortex import Vortex

__all__ = [
    "Brownian", "GradientField", "HierarchicalRates", "Learned", "LotkaVolterra", "OrnsteinUhlenbeck",
    "ParameterLaw", "Reference", "Repressilator", "Vortex",
]  # fmt: skip
