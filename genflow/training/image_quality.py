"""The numbers and the picture that tell how good generated images are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from genflow import plot_images
from genflow.checkpoint import load
from genflow.checks import count
from genflow.data import Data, Table
from genflow.diagnostics import Classifier, cached_classifier, image_quality
from genflow.diagnostics.classifier import labelled, one_label
from genflow.model import Model
from genflow.seeds import stream
from genflow.training.datamodule import needs_rows
from genflow.training.figures import log_figure
from genflow.training.module import Training
from genflow.training.report import Report
from genflow.training.table import table


class ImageQuality(L.Callback):
    """Judges the images of the averaged model after training, by a classifier of real images.

    Adds the numbers of :func:`~genflow.diagnostics.image_quality` to ``metrics.json``; its
    ``class_accuracy`` takes the place of the report's. Draws ``quality.png``: samples beside their
    nearest training images, and by class. :meth:`score` does so for any model.

    Conditional samples are asked for in equal shares of all labels; where conditions are no single
    labels, for those of the test images.

    Args:
        folder: where both files go.
        n: samples, at most as many as there are test images. Between draws of 2,000 Fréchet distances
            near their floor vary by a third, or by a tenth where classes are in equal shares.
        batch_size: samples that are drawn at a time; ``None``: all at once.
        classifier: path of a saved :class:`~genflow.diagnostics.Classifier`; ``None`` trains one on the
            training images, a matter of seconds for digits and of minutes for 60,000 images of 28 x 28.
        cache: folder where such a classifier is kept for later runs; ``None``:
            ``$XDG_CACHE_HOME/genflow`` or ``~/.cache/genflow``.
        rows: of the picture.
        neighbours: nearest training images shown of each sample.

    Raises:
        ValueError: before training, if the data are no images with labels to learn from and no
            classifier is given, or if the callback stands before ``Report``, which writes its file
            anew.
    """

    def __init__(
        self,
        folder: str = ".",
        n: int = 2000,
        batch_size: int | None = 500,
        classifier: str | None = None,
        cache: str | None = None,
        rows: int = 10,
        neighbours: int = 5,
    ) -> None:
        count(self, 10, n=n)
        count(self, rows=rows, neighbours=neighbours)
        if batch_size is not None:
            count(self, batch_size=batch_size)
        self.folder, self.n, self.batch_size = folder, n, batch_size
        self.classifier, self.cache, self.rows, self.neighbours = classifier, cache, rows, neighbours
        self.metrics: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        if stage != "fit":
            return
        needs_rows(self, trainer)
        after = trainer.callbacks[trainer.callbacks.index(self) :]
        if any(isinstance(callback, Report) for callback in after):
            raise ValueError(
                "ImageQuality adds to the file that Report writes: list it after Report in callbacks"
            )
        if self.classifier is not None:  # now, not when the training is over
            self._judge(trainer.datamodule.data, torch.device("cpu"))
        else:
            labelled(_with_labels(trainer.datamodule.data), "test")

    # after on_train_end, where the checkpoint is written: a failure here must not lose it
    def on_fit_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        if not trainer.is_global_zero:
            return
        figure = self.score(pl_module.model, trainer.datamodule.data, pl_module.seed)
        for callback in trainer.callbacks:
            if isinstance(callback, Report):
                callback.metrics |= self.metrics
        for logger in trainer.loggers:
            log_figure(logger, figure, Path(self.folder) / "quality.png", pl_module.batches_seen)

    def score(self, model: Model, data: Data, seed: int = 0) -> Any:
        """Judge a model, such as a loaded one, and write ``metrics.json`` and ``quality.png``.

        Args:
            model: what is judged.
            data: what it was trained on.
            seed: of the draws.

        Returns:
            The matplotlib figure; the numbers are in ``self.metrics``.
        """
        judge = self._judge(data, model.device)
        print(f"\njudging {self.n} images by a classifier of real ones ...", flush=True)
        test, train = (_with_labels(data).marginals(split)[-1] for split in ("test", "train"))
        n = min(self.n, len(test), model.most or self.n)
        rows = torch.randperm(len(test), generator=stream(seed, "quality", "rows"))
        (real, labels), (seen, known) = test.take(rows), train.take(torch.arange(len(train)))
        cond = data.marginals("test")[-1].take(rows[:n])[1]
        asked = None
        if one_label(cond):
            kinds = cond.unique()
            asked = cond = kinds[torch.arange(n) % len(kinds)]
        samples = self._samples(model, n, cond, seed)
        labels, known = (v if one_label(v) else None for v in (labels, known))
        truth = asked, labels, known
        report = image_quality(judge, samples, real, seen, *truth, self.neighbours, seed)
        self.metrics = report.numbers | {"quality_samples": n}
        self._write(self.metrics)
        distance, index = report.neighbours
        title = _title(self.metrics)
        figure = plot_images.quality(samples, seen[index], distance, asked, self.rows, title)
        figure.savefig(Path(self.folder) / "quality.png", dpi=110)
        print("\n" + table(self.metrics))
        return figure

    def _judge(self, data: Data, device: torch.device) -> Classifier:
        if self.classifier is None:
            return cached_classifier(_with_labels(data), self.cache, device=device)
        judge = load(self.classifier, device=device)
        if not isinstance(judge, Classifier):
            raise ValueError(
                f"ImageQuality: '{self.classifier}' holds a {type(judge).__name__}, expected a "
                "genflow.diagnostics.Classifier"
            )
        shape = data.marginals("test")[-1].shape
        if judge.shape != tuple(shape):
            raise ValueError(
                f"ImageQuality: the classifier in '{self.classifier}' judges images of shape "
                f"{judge.shape}, but the data have shape {tuple(shape)}"
            )
        return judge

    def _samples(self, model: Model, n: int, cond: Tensor | None, seed: int) -> Tensor:
        training = model.training
        model.eval()
        draw = stream(seed, "quality", device=model.device)
        x = model.sample(n, cond=cond, generator=draw, batch_size=self.batch_size, progress=True)
        model.train(training)
        return x.cpu()

    def _write(self, numbers: dict[str, Any]) -> None:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "metrics.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(known | numbers, indent=2, allow_nan=False) + "\n")


def _with_labels(data: Data) -> Data:
    """The same data with their labels, from which a classifier learns though the model does not."""
    held = getattr(data, "labels", None) is False and isinstance(data.marginals("test")[-1], Table)
    return replace(data, labels=True) if held else data


def _title(numbers: dict[str, Any]) -> str:
    """What samples get and, in brackets, what real images get."""
    frechet, floor = numbers["frechet_classifier"], numbers["frechet_classifier_floor"]
    said = []
    if "class_accuracy" in numbers:
        real = f" (real {numbers['class_accuracy_real']:.1%})" * ("class_accuracy_real" in numbers)
        said.append(f"of the class asked for {numbers['class_accuracy']:.1%}{real}")
    near = f"mean distance to training images {numbers['nearest']:.3g}"
    said.append(f"{near} (real {numbers['nearest_test']:.3g})")
    first = f"Fréchet distance in our classifier's features {frechet:.3g} (real {floor:.3g})"
    return f"{first}\n{', '.join(said)}"
