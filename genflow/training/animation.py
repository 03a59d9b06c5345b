"""A cloud on its way, as an animation and as a row of stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from genflow import plot_flow
from genflow.checks import count, positive
from genflow.data import Photographs
from genflow.data.photographs import even_out
from genflow.model import Generator, Particles
from genflow.seeds import stream
from genflow.training.datamodule import needs_rows
from genflow.training.figures import log_figure
from genflow.training.module import Training


class Animation(L.Callback):
    """Draws ``flow.gif`` and ``flow.png`` after training: :class:`~genflow.model.Particles` as they
    moved in training, or the samples of a :class:`~genflow.model.Generator` on their way.

    Where the data are :class:`~genflow.data.Photographs`, the picture of ``x0`` is shown as its colours
    move, on twice as many rows and columns as are moved and without their grain
    (:func:`~genflow.data.photographs.even_out`).

    Args:
        folder: where the files go.
        frames: pictures of the animation, at least 2; at most twice as many clouds are kept meanwhile.
        stages: pictures in ``flow.png``.
        seconds: length of the animation, without the time that the last picture stays.
    """

    def __init__(
        self, folder: str = ".", frames: int = 40, stages: int = 6, seconds: float = 5.0
    ) -> None:
        super().__init__()
        count(self, 2, frames=frames, stages=stages)
        positive(self, seconds=seconds)
        self.folder, self.frames, self.stages, self.seconds = folder, frames, stages, seconds
        self._steps: list[int] = []
        self._clouds: list[Tensor] = []
        self._every = 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "clouds": self._clouds, "every": self._every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._every = list(state_dict["steps"]), state_dict["every"]
        self._clouds = [cloud.cpu() for cloud in state_dict["clouds"]]

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        if stage == "fit":
            needs_rows(self, trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        if pl_module.batches_seen == 0:
            self._steps, self._clouds, self._every = [], [], 1
            self._record(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.batches_seen % self._every == 0:
            self._record(pl_module)

    def _record(self, training: Training) -> None:
        if not isinstance(training.model, Particles):
            return
        self._steps.append(training.batches_seen)
        self._clouds.append(training.model.points.detach().cpu().clone())
        if len(self._steps) > 2 * self.frames:  # the run is longer than was known: keep every second
            self._every *= 2
            kept = [k for k, step in enumerate(self._steps) if step % self._every == 0]
            self._steps = [self._steps[k] for k in kept]
            self._clouds = [self._clouds[k] for k in kept]

    # after on_train_end, where the checkpoint is written: a picture that fails must not lose it
    def on_fit_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        if not trainer.is_global_zero:
            return
        names, clouds = self._path(trainer, pl_module)
        if len(clouds) < 2:
            return
        data = trainer.datamodule.data
        draw = self._pictures if isinstance(data, Photographs) and self._clouds else self._points
        figure = draw(trainer, pl_module.model, names, clouds)
        path = Path(self.folder) / "flow.png"
        figure.savefig(path, dpi=110)
        for logger in trainer.loggers:
            log_figure(logger, figure, path, pl_module.batches_seen)

    def _path(self, trainer: L.Trainer, training: Training) -> tuple[list[str], Sequence[Tensor]]:
        """Clouds ``(n, *d)`` in order, with a title each."""
        model = training.model
        if isinstance(model, Particles):
            steps, clouds = list(self._steps), list(self._clouds)
            if steps and steps[-1] < training.batches_seen:
                steps.append(training.batches_seen)
                clouds.append(model.points.detach().cpu().clone())
            return [f"step {step}" for step in steps], clouds
        if not isinstance(model, Generator):
            return [], []
        n = min(2000, plot_flow.MOST)
        cond = trainer.datamodule.rows("test", n).to(training.device).cond
        draw = stream(training.seed, "figure", device=training.device)
        n = n if cond is None else len(cond)
        solution = model.solve(n, cond=cond, generator=draw, trajectory=True)
        return [f"t = {float(t):.2f}" for t in solution.times], solution.trajectory

    def _points(
        self, trainer: L.Trainer, model: Any, names: list[str], clouds: Sequence[Tensor]
    ) -> Any:
        target = trainer.datamodule.rows("test", plot_flow.MOST).xs[-1]
        rows = _spaced(clouds, self.frames)
        moving = torch.stack([clouds[k] for k in rows])
        file = Path(self.folder) / "flow.gif"
        plot_flow.animate_clouds(file, moving, target, [names[k] for k in rows], self.seconds)
        rows = _spaced(clouds, self.stages)
        still = torch.stack([clouds[k] for k in rows])
        return plot_flow.cloud_stages(still, target, [names[k] for k in rows])

    def _pictures(
        self, trainer: L.Trainer, model: Particles, names: list[str], clouds: Sequence[Tensor]
    ) -> Any:
        data = trainer.datamodule.data
        stride = max(1, data.stride // 2)
        before = data.image(data.first, stride)
        pixels = before.flatten(0, 1)
        nearest = model.nearest(pixels)

        def picture(k: int) -> Tensor:
            after = model.move(pixels, clouds[k], nearest).cpu().reshape(before.shape)
            return even_out(before, after).clamp(0, 1)

        moving, still = _spaced(clouds, self.frames), _spaced(clouds, self.stages - 1)
        made = {k: picture(k) for k in {*moving, *still}}
        file = Path(self.folder) / "flow.gif"
        titles = [names[k] for k in moving]
        plot_flow.animate_pictures(file, [made[k] for k in moving], titles, self.seconds)
        stages = [*(made[k] for k in still), data.image(data.second, stride)]
        return plot_flow.picture_stages(stages, [*(names[k] for k in still), "palette"])


def _spaced(clouds: Sequence[Tensor], k: int) -> list[int]:
    """At most ``k`` numbers of clouds, both ends among them: evenly spaced, half in number and half in
    the way that the points went, since a flow may rest for most of its steps."""
    n = len(clouds)
    way = torch.stack([(b - a).flatten(1).norm(dim=1).mean() for a, b in zip(clouds, clouds[1:])])
    way = torch.cat([torch.zeros(1), way.cpu().float().cumsum(0)])
    place = torch.arange(n) / (n - 1) + way / way[-1].clamp_min(1e-12)
    goals = torch.linspace(0, float(place[-1]), k)
    return sorted({0, n - 1, *(place[:, None] - goals).abs().argmin(0).tolist()})
