"""Networks: ``forward(t, x, cond=None) -> (B, *d)``, or a dict of fields."""

from genflow.network.fitted import Fitted
from genflow.network.gaussian_process import GaussianProcess
from genflow.network.guided import Guided, guidance
from genflow.network.heads import Heads
from genflow.network.mlp import MLP
from genflow.network.time import TimeFeatures

__all__ = ["MLP", "Fitted", "GaussianProcess", "Guided", "Heads", "TimeFeatures", "guidance"]
