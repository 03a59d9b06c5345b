"""A progress bar that counts the whole run."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar, over ``max_steps`` where the data are an endless stream.

    Args:
        refresh_rate: steps between two redraws; every step costs as much as a small network. Runs whose
            loss fits its own learner, a few long steps, are redrawn at each.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not pl_module.automatic_optimization and self.is_enabled:
            self._refresh_rate = 1
        super().on_train_start(trainer, pl_module)

    @property
    def total_train_batches(self) -> int | float:
        # Lightning subtracts the steps done before a resume, yet counts them in the position
        return self.trainer.max_steps if self._endless else super().total_train_batches

    @property
    def _endless(self) -> bool:
        return math.isinf(self.trainer.num_training_batches) and self.trainer.max_steps > 0

    def on_train_epoch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        super().on_train_epoch_start(trainer, *arguments)
        if self._endless:
            self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
