"""Pictures of a run: source, data, samples and trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from genflow import plot, plot_bridge
from genflow.checks import count
from genflow.model import Model
from genflow.seeds import stream
from genflow.solver import Exact
from genflow.training.datamodule import needs_rows
from genflow.training.module import Training
from genflow.transform import Identity

PATH_STEPS = 100
"""Points at which exact paths are drawn."""


class Figures(L.Callback):
    """Draws the flow (``samples.png``) and the losses (``loss.png``) after training, and the flow at
    validations if asked; for weighted couplings also what they do to the data (``tilt.png``), and
    where the laws are known mixtures the true error of the learned fields (``field_error.png``). Of a
    bridge through snapshots it draws these among its trajectories, and the traces of its parameters
    (``parameters.png``).

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
        self.losses: list[tuple[int, float]] = []
        self.evaluations: dict[str, list[tuple[int, float]]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "evaluations": self.evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.evaluations = state_dict["losses"], state_dict["evaluations"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = pl_module.batches_seen
        if (step - 1) % trainer.log_every_n_steps == 0:
            self.losses.append((step, pl_module.last_loss))

    def on_validation_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/"):
                pairs = self.evaluations.setdefault(name, [])
                pairs.append((pl_module.batches_seen, float(value)))
        if self.at_validation and not trainer.sanity_checking and trainer.is_global_zero:
            step = pl_module.batches_seen
            name = Path("figures") / f"step_{step:07d}.png"
            self._write(trainer, pl_module, name, self.draw(trainer, pl_module, f"step {step}"))

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        if stage == "fit":
            needs_rows(self, trainer)

    # after on_train_end, where the checkpoint is written: a figure that fails must not lose it
    def on_fit_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        if trainer.is_global_zero:
            self._write(trainer, pl_module, Path("samples.png"), self.draw(trainer, pl_module, ""))
            if self.losses:
                curves = plot.curve(*map(list, zip(*self.losses)), self.evaluations)
                self._write(trainer, pl_module, Path("loss.png"), curves)
            data = getattr(trainer.datamodule, "data", None)
            error = None if data is None else pl_module.field_error(data)
            if error is not None:
                self._write(trainer, pl_module, Path("field_error.png"), error.figure())
            process = getattr(pl_module.model, "process", None)
            if getattr(process, "history", None) and hasattr(process, "trajectories"):
                made = getattr(data, "reference", None)  # which says the truth where it made the data
                plain = isinstance(pl_module.model.transform, Identity | None)
                alike = plain and type(made) is type(process.reference)
                drawn = plot_bridge.traces(process, made.numbers() if alike else None)
                self._write(trainer, pl_module, Path("parameters.png"), drawn)
            bent = self.draw_tilt(trainer, pl_module)
            if bent is not None:
                self._write(trainer, pl_module, Path("tilt.png"), bent)

    def draw_tilt(self, trainer: L.Trainer, pl_module: Training) -> Any:
        """Both laws as given and as coupled, in the model's space; ``None`` where they are equal."""
        batch = trainer.datamodule.rows("train", self.n).to(pl_module.device)
        model, draw = pl_module.model, stream(pl_module.seed, "tilt", device=pl_module.device)
        try:
            report = pl_module.tilt_on(batch)
        except (ArithmeticError, IndexError, RuntimeError, ValueError):  # the report says why
            return None
        if report is None or report.worst == 0:
            return None
        training = model.training
        model.eval()
        samples = model.sample(len(batch.xs[-1]), cond=batch.cond, generator=draw)
        samples = model.encode(batch.xs[0], samples)[1]
        model.train(training)
        title = f"KL(tilted | given): {report.kl_tilt_x0:.2g} nats at x0, {report.kl_tilt_x1:.2g} at x1"
        return plot.tilt(report.x0, report.x1, report.mass0, report.mass1, samples, title)

    def _write(self, trainer: L.Trainer, pl_module: Training, name: Path, figure: Any) -> None:
        path = Path(self.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        for logger in trainer.loggers:
            log_figure(logger, figure, path, pl_module.batches_seen)

    def draw(self, trainer: L.Trainer, pl_module: Training, title: str) -> Any:
        model = pl_module.model
        if hasattr(getattr(model, "process", None), "trajectories"):  # known as a whole
            return self._bridge(trainer, pl_module, title)
        batch = trainer.datamodule.rows("test", self.n).to(pl_module.device)
        training = model.training
        model.eval()
        generator = stream(pl_module.seed, "figure", device=pl_module.device)
        n = min(len(x) for x in batch.xs)
        x0, cond = batch.xs[0][:n], None if batch.cond is None else batch.cond[:n]
        if hasattr(getattr(model, "source", None), "match"):  # fitted to the data, unlike the batch's
            x0 = model.source.sample(n, generator)
        samples, path = self._samples(model, x0, cond, generator)
        model.train(training)
        latent = getattr(model, "transform", None) is not None and model.source.latent
        start = model.transform.inverse(x0.to(model.dtype)) if latent else x0
        image = plot.is_image(tuple(start.shape[1:]))
        if path is None and hasattr(model, "source") and not image:  # one step: from here to there
            few = slice(min(self.paths, n))
            path = torch.stack([start[few].to(samples), samples[few]])
        labels = batch.cond
        if labels is None or labels.ndim > 1 or labels.is_floating_point():
            return plot.flow(start, batch.xs[-1], samples, path, title)
        return plot.flow(start, batch.xs[-1], samples, path, title, (labels, labels[:n]))

    def _samples(
        self, model: Model, x0: Tensor, cond: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Samples from the given starts, where the model takes them, and the paths of a process."""
        n = len(x0)
        if not hasattr(model, "process"):
            starts = {"x0": x0} if hasattr(model, "source") else {"n": min(n, model.most or n)}
            return model.sample(**starts, cond=cond, generator=generator), None
        # a model that starts elsewhere than at the source draws its own starts
        tilted = getattr(model, "tilt", None) is not None
        starts = {"n": n} if tilted else {"x0": x0}
        samples = model.sample(**starts, cond=cond, generator=generator)
        few = min(self.paths, n)
        cond = None if cond is None else cond[:few]
        starts = {"n": few} if tilted else {"x0": x0[:few]}
        if isinstance(model.solver, Exact):  # paths, not only their ends
            starts["steps"] = max(model.solver.steps, PATH_STEPS)
        return samples, model.sample(**starts, cond=cond, generator=generator, trajectory=True)

    def _bridge(self, trainer: L.Trainer, pl_module: Training, title: str) -> Any:
        """Snapshots among trajectories, in data units."""
        model, process = pl_module.model, pl_module.model.process
        series, heldout = getattr(trainer.datamodule.data, "series", None), {}
        if series is None:
            seen = dict(zip(process.times, trainer.datamodule.rows("train", self.n).xs))
        else:
            clouds = {t: series.rows(t)[: self.n] for t in series.times}
            seen = {series.times[k]: clouds[series.times[k]] for k in series.train}
            heldout = {t: clouds[t] for t in (series.times[k] for k in series.heldout) if t > min(seen)}
        ends = process.span[0], max([process.span[1], *heldout])
        times = torch.linspace(*ends, PATH_STEPS + 1, dtype=torch.float64)
        draw = stream(pl_module.seed, "figure", device=pl_module.device)
        paths = process.trajectories(times=times, generator=draw)
        if model.transform is not None:
            paths = model.transform.inverse(paths.flatten(0, 1)).unflatten(0, paths.shape[:2])
        return plot_bridge.snapshots(times, paths, seen, heldout, title)


def log_figure(logger: Any, figure: Any, path: Path, step: int) -> None:
    """Hand a figure to the loggers that show pictures; others keep none."""
    if hasattr(logger, "log_image"):  # Weights & Biases and its kin
        logger.log_image(path.stem, [str(path)], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_figure"):  # TensorBoard
        logger.experiment.add_figure(path.stem, figure, step, close=False)
