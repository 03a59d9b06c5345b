"""Pictures of a run: source, data, samples and trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from genflow import plot
from genflow.checks import count
from genflow.seeds import stream
from genflow.training.datamodule import needs_rows
from genflow.training.module import Training


class Figures(L.Callback):
    """Draws the flow after training (``samples.png``) and, if asked, at validations.

    Args:
        folder: where pictures go; those of validations into ``figures/`` below it.
        n: points drawn.
        paths: trajectories drawn.
        at_validation: also draw at every validation, to watch a run.
    """

    def __init__(
        self, folder: str = ".", n: int = 2000, paths: int = 150, at_validation: bool = False
    ) -> None:
        count(self, n=n, paths=paths)
        self.folder, self.n, self.paths, self.at_validation = folder, n, paths, at_validation

    def on_validation_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        if self.at_validation and not trainer.sanity_checking and trainer.is_global_zero:
            step = pl_module.batches_seen
            self._write(trainer, pl_module, Path("figures") / f"step_{step:07d}.png", f"step {step}")

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        needs_rows(self, trainer)

    # after on_train_end, where the checkpoint is written: a figure that fails must not lose it
    def on_fit_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        if trainer.is_global_zero:
            self._write(trainer, pl_module, Path("samples.png"), "")

    def _write(self, trainer: L.Trainer, pl_module: Training, name: Path, title: str) -> None:
        figure = self.draw(trainer, pl_module, title)
        path = Path(self.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        for logger in trainer.loggers:
            log_figure(logger, figure, path, pl_module.batches_seen)

    def draw(self, trainer: L.Trainer, pl_module: Training, title: str) -> Any:
        batch = trainer.datamodule.rows("test", self.n)
        model, device = pl_module.model, pl_module.device
        training = model.training
        model.eval()
        draw = stream(pl_module.seed, "figure", device=device)
        cond = None if batch.cond is None else batch.cond.to(device)
        x0 = batch.xs[0][: self.n].to(device)
        n = min(len(x0), self.n if cond is None else len(cond))
        cond = None if cond is None else cond[:n]
        samples = model.sample(x0=x0[:n], cond=cond, generator=draw)
        few = min(self.paths, n)
        path = model.sample(
            x0=x0[:few],
            cond=None if cond is None else cond[:few],
            generator=draw,
            trajectory=True,
        )
        model.train(training)
        return plot.flow(x0, batch.xs[-1], samples, path, title)


def log_figure(logger: Any, figure: Any, path: Path, step: int) -> None:
    """Hand a figure to the loggers that show pictures; others keep none."""
    if hasattr(logger, "log_image"):  # Weights & Biases and its kin
        logger.log_image(path.stem, [str(path)], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_figure"):  # TensorBoard
        logger.experiment.add_figure(path.stem, figure, step, close=False)
