"""The one DataModule: ready batches of any data."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from genflow.checks import count
from genflow.data import Batch, Batches, Data, Passes, Table, draw_rows
from genflow.data.base import FromLast, Marginal
from genflow.interpolant import GeometricBrownian
from genflow.interpolant.base import same_path
from genflow.loss import Loss, Projection
from genflow.model import Model
from genflow.source import Empirical, LogNormal
from genflow.specs import spec
from genflow.training.module import Training

PILOT = 20_000
"""Rows of each marginal from which model and loss choose what depends on data."""


class DataModule(L.LightningDataModule):
    """Batches of the marginals of ``data``, reproducible and resumable at any step.

    Without ``steps_per_epoch`` training is one endless stream, measured in ``trainer.max_steps``.

    Args:
        data: the marginals.
        batch_size: rows of each marginal a step, on each device; ``None``: all rows of every table, for
            losses that fit whole snapshots.
        steps_per_epoch: length of a pass, for runs measured in ``trainer.max_epochs``.
        val_batches: batches of the validation loss.
        seed: of every stream of draws.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int | None = 256,
        steps_per_epoch: int | None = None,
        val_batches: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        count(self, val_batches=val_batches)
        for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
            if value is not None:
                count(self, **{name: value})
        self.data, self.batch_size, self.steps_per_epoch = data, batch_size, steps_per_epoch
        self.val_batches, self.seed = val_batches, seed

    def setup(self, stage: str) -> None:
        """Check the sizes, then let the training prepare on a pilot and rehearse one batch.

        Runs before callbacks are set up, so that EMA copies a prepared model.
        """
        if stage != "fit":
            return
        training = self.trainer.lightning_module
        if str(self.trainer.precision).startswith("64"):
            training.double()  # Lightning does so later, when parts have already kept rounded data
        if isinstance(training, Training):
            check_whole(self.data, training.loss, self.batch_size)
        first = self._stream("train").batch(0)
        if self.steps_per_epoch is None and (self.trainer.max_epochs or 0) > 0:
            raise ValueError(
                f"trainer.max_epochs={self.trainer.max_epochs} needs passes: give the DataModule "
                "steps_per_epoch, or measure the run in trainer.max_steps"
            )
        if isinstance(training, Training):
            start = self.data.marginals("train")[0]
            check_start(start, training.model)
            check_prior(training.model, training.loss)
            check_pairs(start, training.loss)
            self._tell(training)
            # a part that fits whole snapshots gets them as they are; any other a pilot of rows
            pilot = first if self.batch_size is None else self.rows("train", PILOT)
            pilot = pilot.to(training.model.device)
            if self.batch_size is None:
                _weigh_start(training.model, start, pilot)
            training.prepare(*pilot.xs, cond=pilot.cond)
            training.rehearse(first.to(training.model.device))
            if pilot.cond is not None and not pilot.cond.is_floating_point():
                training.rehearse(extreme_rows(pilot))  # a batch may miss the largest label

    def _tell(self, training: Training) -> None:
        """Tell the parts that want to know it when the training snapshots were seen, and how much their
        particles count."""
        series = getattr(self.data, "series", None)
        if series is None:
            return
        times = [series.times[k] for k in series.train]
        tables = self.data.marginals("train")
        masses = [torch.ones(len(t)) if t.weight is None else t.weight[t.rows] for t in tables]
        weights = None if all(t.weight is None for t in tables) else [m.double() for m in masses]
        process = getattr(training.model, "process", None)
        stated = getattr(process, "times", None)
        if stated is not None and list(stated) != times:
            raise ValueError(
                f"the process has times={list(stated)} but the training snapshots were seen at "
                f"{times}; leave process.times null, which takes those of the data"
            )
        inner = [getattr(training.loss, name, None) for name in ("interpolant", "coupling")]
        for part in (process, training.loss, *inner):
            if hasattr(part, "observe"):
                part.observe(times, weights)

    def rows(self, split: str, n: int) -> Batch:
        """Up to ``n`` rows of each marginal of a split, the same ones at every call."""
        return draw_rows(self.data.marginals(split), n, self.seed, split)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Lightning's own walks any collection, which costs as much as a layer of a small network
        if isinstance(batch, Batch):
            return batch.to(device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> Batches:
        training = self.trainer.lightning_module
        return self._stream("train", getattr(training, "batches_seen", 0))

    def val_dataloader(self) -> Batches:
        return self._evaluation("val")

    def test_dataloader(self) -> Batches:
        return self._evaluation("test")

    def _stream(self, split: str, start: int = 0) -> Batches:
        place = self._place()
        kind = Batches if self.steps_per_epoch is None else Passes
        return kind(
            self.data.marginals(split), self.batch_size, self.seed, self.steps_per_epoch, start, **place
        )

    def _evaluation(self, split: str) -> Batches:
        marginals = self.data.marginals(split)
        rows = [len(m) // self._place()["world"] for m in marginals if hasattr(m, "__len__")]
        size = max(1, min([self.batch_size or max(rows), *rows]))
        seed = (self.seed, split)
        return Passes(marginals, size, seed, self.val_batches, fixed=True, **self._place())

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}


def extreme_rows(batch: Batch) -> Batch:
    """Rows that hold the smallest and the largest of each label."""
    labels = batch.cond.reshape(len(batch.cond), -1)
    rows = torch.cat([labels.argmin(0), labels.argmax(0)])
    n = min(len(rows), *(len(x) for x in batch.xs))
    rows = rows[:n]
    starts = (x[:n] for x in batch.xs[:-1])
    return Batch((*starts, batch.xs[-1][rows]), batch.cond[rows])


def check_start(start: Marginal, model: Model) -> None:
    """Refuse data whose source side is not where the model will start.

    Raises:
        ValueError: if the two differ; an ``Empirical`` source takes its points from the data.
    """
    source = getattr(model, "source", None)
    if source is None or isinstance(source, Empirical):
        return
    if isinstance(start, (Table, FromLast)):
        made = "a file" if isinstance(start, Table) else "made from x1"
        raise ValueError(
            f"x0 of the data is {made} but the model starts from {type(source).__name__}: set "
            "source=empirical, which takes its points from the data"
        )
    if spec(start) != spec(source):
        raise ValueError(
            f"x0 of the data is {spec(start)} but the model starts from {spec(source)}; they must be "
            "the same source"
        )


def check_prior(model: Model, loss: Loss) -> None:
    """Refuse a start that is not where the noise of a geometric Brownian motion ends.

    Raises:
        ValueError: for another source than a ``LogNormal`` of the same motion.
    """
    path, source = getattr(loss, "interpolant", None), getattr(model, "source", None)
    if source is None or not isinstance(path, GeometricBrownian):
        return
    if not (isinstance(source, LogNormal) and same_path(source.interpolant, path)):
        raise ValueError(
            f"the model starts from {type(source).__name__}, but the noise of {path} ends in a law of "
            "the data's own moments: set source=log_normal, of the same interpolant"
        )


def check_whole(data: Data, loss: Loss, batch_size: int | None) -> None:
    """Refuse batches of a loss that solves for whole snapshots: each would begin its work anew.

    Raises:
        ValueError: for a ``Projection`` with a ``batch_size``, or with laws in place of tables.
    """
    if not isinstance(loss, Projection):
        return
    name = type(loss).__name__
    laws = [k for k, m in enumerate(data.marginals("train")) if not isinstance(m, Table)]
    if laws:
        raise ValueError(
            f"{name} needs whole snapshots, but x{laws[0]} of the data is a law to draw from: use "
            "data=snapshots or data=simulated_snapshots"
        )
    if batch_size is not None:
        raise ValueError(
            f"{name} needs whole snapshots, not batch_size={batch_size}: use batch_size=null"
        )


def _weigh_start(model: Model, start: Table, whole: Batch) -> None:
    """Give an empirical source the rows of a whole snapshot with their weights; those of a pilot need
    none, since they are drawn by them."""
    source = getattr(model, "source", None)
    if isinstance(source, Empirical) and start.weight is not None:
        source.prepare(whole.xs[0], start.weight[start.rows])


def check_pairs(start: Marginal, loss: Loss) -> None:
    """Refuse a coupling that would part rows which belong together.

    Raises:
        ValueError: for starts that are made from the data, with other than independent pairs.
    """
    coupling = getattr(loss, "coupling", None)
    if isinstance(start, FromLast) and not getattr(coupling, "independent", True):
        raise ValueError(
            f"x0 of the data is made from x1, row by row, and {type(coupling).__name__} would pair the "
            "rows anew: use coupling=independent, which keeps them together"
        )


def needs_rows(callback: L.Callback, trainer: L.Trainer) -> None:
    """Refuse to train with loaders alone where a callback evaluates on held-out rows."""
    if not isinstance(trainer.datamodule, DataModule):
        raise ValueError(
            f"{type(callback).__name__} evaluates on the held-out rows of a genflow DataModule: pass "
            "trainer.fit(training, datamodule=DataModule(data)), or leave the callback out"
        )
