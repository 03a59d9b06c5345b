"""Couplings: which rows of the marginals form a path, and with which weight."""

from genflow.coupling.base import Coupling, Plan, effective_sample_size
from genflow.coupling.chained import Chained
from genflow.coupling.cost import Cost
from genflow.coupling.exact import ExactOT
from genflow.coupling.gibbs import Gibbs
from genflow.coupling.independent import Independent
from genflow.coupling.relaxed import PartialOT, UnbalancedOT
from genflow.coupling.sides import Side
from genflow.coupling.sinkhorn import Sinkhorn
from genflow.coupling.transport import Transport

__all__ = [
    "Chained", "Cost", "Coupling", "ExactOT", "Gibbs", "Independent", "PartialOT", "Plan", "Side",
    "Sinkhorn", "Transport", "UnbalancedOT", "effective_sample_size",
]  # fmt: skip
