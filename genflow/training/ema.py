"""Averaged weights that are right in validation, test, resume and load."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


def _tensors(module: nn.Module) -> list[Tensor]:
    return [p.detach() for p in module.parameters()]


class EMA(WeightAveraging):
    """An exponential moving average of the weights, on Lightning's ``WeightAveraging``.

    The average is in the model throughout validation and after training, and is what a checkpoint's
    ``state_dict`` holds; the raw weights go along and training resumes from them. Lightning's own
    class loads raw weights into a test of the same Trainer, averages integer buffers, and loses
    the raw weights in a checkpoint written after training.

    Args:
        decay: of the average, in (0, 1), reached as ``(1 + n) / (10 + n)`` grows over the updates
            ``n``; ``None`` switches it off.
    """

    def __init__(self, decay: float | None = 0.999) -> None:
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"EMA(decay={decay}): decay must lie in (0, 1), or be null for none")
        super().__init__(use_buffers=False)
        self.decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
        self._swapped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.decay is not None and stage == "fit":
            super().setup(trainer, pl_module, stage)
            self._pairs, self._swapped, self._latest_update_step = None, False, 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._show(pl_module, average=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._show(pl_module, average=False)

    # Lightning swaps around the validation *epoch*, and back before the module's own epoch end
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(pl_module, average=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(pl_module, average=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(pl_module, average=True)  # a finished run that is resumed does not train

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # AveragedModel.update_parameters walks the module tree at every step, half the time of a
        # small step; the same average on lists made once
        if self._average_model is None or trainer.global_step <= self._latest_update_step:
            return
        if not self._pairs:
            self._average_model.to(pl_module.dtype)  # "64-true" converts after the copy was made
            self._pairs = _tensors(self._average_model.module), _tensors(pl_module)
        count = self._average_model.n_averaged
        seen = int(count)
        # the first average is the weights themselves; then the window grows with the run, so that
        # a short run does not show its beginning
        weight = 1.0 if seen == 0 else 1 - min(self.decay, (1 + seen) / (10 + seen))
        with torch.no_grad():
            torch._foreach_lerp_(*self._pairs, weight)
        count += 1
        self._latest_update_step = trainer.global_step

    def _show(self, pl_module: L.LightningModule, average: bool) -> None:
        """Have the average (or the raw weights) in the model; the other set waits in the copy."""
        if self._average_model is not None and self._swapped != average:
            if int(self._average_model.n_averaged) > 0:
                self._copy_buffers(pl_module)
                self._swap_models(pl_module)
            self._swapped = average

    def _copy_buffers(self, pl_module: L.LightningModule) -> None:
        """Buffers are not averaged: both sets of weights share the module's."""
        for average, current in zip(self._average_model.module.buffers(), pl_module.buffers()):
            average.copy_(current)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is None or int(self._average_model.n_averaged) == 0:
            return
        self._copy_buffers(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            average, raw = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, raw

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif "current_model_state" in checkpoint:  # averaging was switched off: go on from raw
            pl_module.load_state_dict(checkpoint["current_model_state"])
