"""A small convolutional classifier, trained on the data at hand, that judges images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from genflow.checkpoint import load, save
from genflow.checks import count
from genflow.tensors import as_shape

VERSION = 1
"""Counts up when network or training change, so that what older versions kept is not used."""
LEAST = 200
"""Steps of a training at least, for small data."""


class Classifier(nn.Module):
    """Three convolutions and two linear layers: ``x (B, c, h, w) -> logits (B, classes)``.

    Args:
        shape: of an image, ``(c, h, w)``.
        classes: how many.
        width: channels of the first convolution; the others have two and four times as many.
        num_features: width of the layer before the last, which :meth:`features` returns.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 10, width: int = 32, num_features: int = 64
    ) -> None:
        super().__init__()
        count(self, classes=classes, width=width, num_features=num_features)
        shape = as_shape(shape)
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(
                f"Classifier(shape={list(shape)}): shape must be (channels, height, width) of at least "
                "4 x 4 pixels"
            )
        self.shape, self.classes, self.width, self.num_features = shape, classes, width, num_features
        stride = 2 if min(shape[1:]) >= 16 else 1  # small digits need all of their pixels

        def block(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
            return [conv, nn.BatchNorm2d(after), nn.ReLU()]

        self.body = nn.Sequential(
            *block(shape[0], width, 5, stride), *block(width, 2 * width, 3), nn.MaxPool2d(2),
            *block(2 * width, 4 * width, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        )  # fmt: skip
        sides = [math.ceil(side / stride) // 2 // 2 for side in shape[1:]]
        self.project = nn.Linear(4 * width * math.prod(sides), num_features)
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(num_features, classes))

    def features(self, x: Tensor) -> Tensor:
        """``(B, num_features)``, before the last rectifier; of mean variance 1 over the training images
        once :func:`fit_classifier` is done."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"Classifier: images have shape {tuple(x.shape[1:])}, expected {self.shape}"
            )
        return self.project(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @torch.no_grad()
    def judge(self, x: Tensor, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
        """Features ``(N, num_features)`` and the likeliest classes ``(N,)`` of any number of images, in
        batches, on the CPU. Whatever mode the classifier is in, it is used in eval mode."""
        was, here = self.training, next(self.parameters())
        self.eval()
        found = [self.features(part.to(here)) for part in x.split(batch_size)]
        labels = [self.head(part).argmax(1).cpu() for part in found]
        self.train(was)
        return torch.cat([part.cpu() for part in found]), torch.cat(labels)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Fraction of images ``(N, c, h, w)`` that it puts into their classes ``(N,)``."""
        return float((self.judge(x)[1] == labels.cpu()).double().mean())


def fit_classifier(
    x: Tensor,
    labels: Tensor,
    classes: int | None = None,
    epochs: int = 6,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Classifier:
    """Train a classifier: the same one for the same seed, data and machine.

    Args:
        x: images ``(N, c, h, w)``.
        labels: whole numbers ``(N,)`` from 0.
        classes: how many; ``None``: one more than the largest label.
        epochs: passes over the data; small data get more, so that there are at least 200 steps.
        seed: of the first weights, the order and the dropout.
        device: where it is trained and stays.
        progress: show a progress bar.

    Returns:
        The classifier in eval mode.

    Raises:
        ValueError: if images and labels differ in number, or labels are no whole numbers of at least
            two classes.
    """
    from tqdm.auto import tqdm

    count("fit_classifier", epochs=epochs)
    _check(x, labels)
    device = torch.device(device)
    batch = min(128, len(x))
    passes = max(epochs, math.ceil(LEAST * batch / len(x)))
    steps = passes * (len(x) // batch)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):  # dropout and first weights draw from torch's own
        torch.manual_seed(seed)
        model = Classifier(x.shape[1:], classes or int(labels.max()) + 1).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-3, total_steps=steps, pct_start=0.2
        )
        rows = (torch.randperm(len(x)).split(batch) for _ in range(passes))
        rows = (part for some in rows for part in some if len(part) == batch)
        for part in tqdm(rows, "classifier", steps, unit="step", disable=not progress):
            with torch.autocast(device.type, torch.bfloat16, enabled=_fast_bfloat16(device)):
                logits = model(x[part].to(device, torch.float32))
            loss = cross_entropy(logits.float(), labels[part].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        _unit_features(model, x[torch.randperm(len(x))[:5000]])
    return model.eval()


@torch.no_grad()
def _unit_features(model: Classifier, x: Tensor) -> None:
    """Bring features to a mean variance of 1, which distances in them need and training leaves open;
    since the rectifier is homogeneous, the last layer undoes it and classes stay the same."""
    scale = float(model.judge(x.float())[0].var(0).mean().sqrt())
    for parameter in model.project.parameters():
        parameter /= scale
    model.head[-1].weight *= scale


def _check(x: Tensor, labels: Tensor) -> None:
    if labels.ndim != 1 or labels.is_floating_point() or len(labels.unique()) < 2 or labels.min() < 0:
        raise ValueError(
            "a classifier needs one label an image, whole numbers >= 0 of at least two classes, got "
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype}"
        )
    if len(x) != len(labels):
        raise ValueError(f"there are {len(x)} images but {len(labels)} labels")


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether half the digits double the speed; elsewhere they would cost it."""
    if device.type == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict)()  # which older versions lack
        return bool(known.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cached_classifier(
    data: Any,
    folder: str | os.PathLike | None = None,
    epochs: int = 6,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Classifier:
    """The classifier of a data set: trained on its training split once, then read from a file.

    Args:
        data: a :class:`~genflow.data.Data` whose last marginal is a table of images with labels.
        folder: where the file lies; ``None``: ``$XDG_CACHE_HOME/genflow`` or ``~/.cache/genflow``. Its
            name depends on the data, the way of training and the seed, so that no other one is taken.
        epochs, seed, device, progress: as for :func:`fit_classifier`.

    Raises:
        ValueError: if the data yield no images with labels.
    """
    x, labels = labelled(data, "train")
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((VERSION, epochs, seed, *x.shape)).encode())
    for part in (x, labels):
        digest.update(part.contiguous().numpy())
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genflow"
    path = Path(folder) / f"classifier_{digest.hexdigest()}.pt"
    if path.is_file():
        return load(path, device=device)
    if progress:
        print(f"training a classifier on {len(x)} images, to be kept as {path} ...", flush=True)
    model = fit_classifier(x, labels, None, epochs, seed, device, progress)
    save(model, path)
    return model


def labelled(data: Any, split: str) -> tuple[Tensor, Tensor]:
    """All images ``(N, c, h, w)`` of a split of :class:`~genflow.data.Data` with their labels ``(N,)``.

    Raises:
        ValueError: if the last marginal is no table of images with one whole number each.
    """
    table = data.marginals(split)[-1]
    fits = hasattr(table, "take") and len(table.shape) == 3
    x, labels = table.take(torch.arange(len(table))) if fits else (None, None)
    if not one_label(labels):
        raise ValueError(
            f"{type(data).__name__} yields no images with one label each, from which a classifier "
            "learns: set data.labels=true, or give a classifier"
        )
    return x, labels


def one_label(cond: Tensor | None) -> bool:
    """Whether conditions are labels, one a row."""
    return cond is not None and cond.ndim == 1 and not cond.is_floating_point()
