"""Networks: ``forward(t, x, cond=None) -> (B, *d)``."""

from genflow.network.mlp import MLP
from genflow.network.time import TimeFeatures

__all__ = ["MLP", "TimeFeatures"]
