"""Saving a run so that nothing is lost when it is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from genflow.checks import count


class Checkpoint(LightningCheckpoint):
    """Writes ``last.ckpt`` every so many batches and ``model.ckpt`` at the end.

    Each file is written beside its place and moved into it, so that a run killed while saving
    keeps the file before. Counts batches, not optimizer steps: losses that fit their own learner
    make none, and Lightning's ``ModelCheckpoint`` then never saves.

    Args:
        folder: where the files go.
        every: batches between two saves of ``last.ckpt``.
    """

    def __init__(self, folder: str = ".", every: int = 500) -> None:
        super().__init__()
        count(self, every=every)
        self.folder, self.every = folder, every
        self._last_saved, self._finished = 0, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_saved, self._finished = pl_module.batches_seen, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # gradients that are still being accumulated are in no checkpoint: save between steps
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and pl_module.batches_seen - self._last_saved >= self.every:
            self._last_saved = pl_module.batches_seen
            self._save(trainer, "last.ckpt")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, "model.ckpt")
        self._finished = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._finished:  # a finished run that was resumed makes no further step
            self.on_train_end(trainer, pl_module)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        partial = Path(self.folder) / f"{name}.partial"
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            os.replace(partial, partial.with_suffix(""))
