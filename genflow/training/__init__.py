"""Training: the one LightningModule, the one DataModule, callbacks and the command line."""

from genflow.training.animation import Animation
from genflow.training.checkpoint import Checkpoint
from genflow.training.datamodule import DataModule
from genflow.training.ema import EMA
from genflow.training.figures import Figures
from genflow.training.heldout import HeldOut
from genflow.training.image_quality import ImageQuality
from genflow.training.module import Training
from genflow.training.progress import Progress
from genflow.training.report import Report

__all__ = [
    "EMA", "Animation", "Checkpoint", "DataModule", "Figures", "HeldOut", "ImageQuality",
    "Progress", "Report", "Training",
]  # fmt: skip
