"""Figures of generated images: each beside its nearest training images, and class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genflow.plot import blank


def quality(
    samples: Tensor,
    neighbours: Tensor,
    distances: Tensor,
    labels: Tensor | None = None,
    rows: int = 10,
    title: str = "",
) -> Any:
    """Samples beside their nearest training images, so that memorising is seen, and a sheet of samples.

    The pairs on the left run from the sample that is closest to the training images, at the top, to the
    farthest; numbers are distances in pixels. The sheet has a row for each class if there are labels.

    Args:
        samples: ``(n, c, h, w)`` with 1 or 3 channels.
        neighbours: training images ``(n, k, c, h, w)``, the nearest first.
        distances: of these, ``(n, k)``.
        labels: the classes of the samples, ``(n,)``, if known.
        rows: how many rows there are; with labels no fewer than classes on the sheet.
        title: above the figure.

    Returns:
        A matplotlib figure.
    """
    samples, neighbours, distances = (
        v.detach().cpu().float() for v in (samples, neighbours, distances)
    )
    low, high = float(neighbours.min()), float(neighbours.max())
    sheet = _sheet(samples, labels, rows)
    order = distances[:, 0].argsort()
    shown = order[torch.linspace(0, len(order) - 1, min(rows, len(order))).round().long()]
    k = neighbours.shape[1]
    columns = len(sheet[0])
    figure = blank(0.62 * (1 + k + columns) + 0.9, 0.66 * max(len(shown), len(sheet)) + 1.0)
    left, right = figure.subplots(1, 2, width_ratios=[1 + k, columns])
    figure.get_layout_engine().set(wspace=0.04)
    pairs = [torch.cat([samples[i, None], neighbours[i]]) for i in shown]
    _show(left, grid(pairs, low, high), "samples | nearest training images")
    height, width = samples.shape[2] + 1, samples.shape[3] + 1
    left.axvline(width - 1, color="#c44e52", lw=2)
    for row, i in enumerate(shown):
        middle = row * height + samples.shape[2] / 2
        left.text(-2, middle, f"{float(distances[i, 0]):.1f}", ha="right", va="center", fontsize=7)
    _show(right, grid(sheet, low, high), "samples" if labels is None else "samples by class")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _sheet(samples: Tensor, labels: Tensor | None, rows: int) -> list[Tensor]:
    """Rows of images: one a class, or as many as asked for; all of equal length."""
    if labels is None:
        side = max(1, min(rows, len(samples)))
        columns = max(1, min(rows, len(samples) // side))
        return list(samples[: side * columns].split(columns))
    labels = labels.detach().cpu()
    found = [samples[labels == label][:rows] for label in labels.unique()]
    columns = min(map(len, found))
    return [row[:columns] for row in found]


def grid(rows: list[Tensor], low: float, high: float) -> Tensor:
    """Rows of equally many images ``(m, c, h, w)`` as one picture ``(H, W, c)`` in [0, 1]."""
    tiles = ((torch.stack(rows) - low) / (high - low or 1)).clamp(0, 1)
    r, m, c, h, w = tiles.shape
    tiles = torch.nn.functional.pad(tiles, (0, 1, 0, 1), value=1.0)
    picture = tiles.permute(0, 3, 1, 4, 2).reshape(r * (h + 1), m * (w + 1), c)
    return picture[:-1, :-1]


def _show(axis: Any, picture: Tensor, name: str) -> None:
    axis.imshow(picture.squeeze(-1), cmap="gray", vmin=0, vmax=1)
    axis.set_title(name, fontsize=9)
    axis.set_axis_off()
