"""Networks: ``forward(t, x, cond=None) -> (B, *d)``, or a dict of fields."""

from genflow.network.adapter import Adapter
from genflow.network.fitted import Fitted
from genflow.network.gaussian_process import GaussianProcess
from genflow.network.guided import Guided, guidance
from genflow.network.heads import Heads
from genflow.network.mlp import MLP
from genflow.network.time import TimeFeatures
from genflow.network.unet import UNet

__all__ = [
    "MLP",
    "Adapter",
    "Fitted",
    "GaussianProcess",
    "Guided",
    "Heads",
    "TimeFeatures",
    "UNet",
    "guidance",
]
