"""Pictures and animations of points on their way. matplotlib loads on first use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.plot import _plane, blank

MOST = 4000
"""Points drawn."""
GREY = (0.72, 0.74, 0.77)
TURN, TILT = math.radians(12), math.radians(15)
"""Of the eye, around the third axis and above the plane of the other two."""

Draw = Callable[[Any], Any]
"""Fills one matplotlib axis."""


def cloud_stages(clouds: Tensor, target: Tensor, titles: Sequence[str]) -> Any:
    """Stages of a cloud on its way, side by side, each over the target in grey.

    Args:
        clouds: ``(K, n, *d)``; planes are drawn as they are, space as seen from a little above, other
            events by the two main directions of start and target. Points keep the colour that they
            start with.
        target: where they go, ``(m, *d)``.
        titles: one a stage.

    Returns:
        A matplotlib figure.
    """
    scene = _Scene(clouds, target)
    return _stages(
        [lambda axis, k=k: scene.draw(axis, k) for k in range(len(clouds))], titles, scene.wide
    )


def picture_stages(pictures: Sequence[Tensor], titles: Sequence[str]) -> Any:
    """Pictures ``(h, w, 3)`` in [0, 1] side by side, as a matplotlib figure."""
    wide = pictures[0].shape[1] / pictures[0].shape[0]
    return _stages([lambda axis, p=p: _show(axis, p) for p in pictures], titles, wide)


def animate_clouds(
    path: str | Path, clouds: Tensor, target: Tensor, titles: Sequence[str], seconds: float = 5.0
) -> None:
    """Writes the clouds ``(K, n, *d)`` one after the other over the target as an animated GIF."""
    scene = _Scene(clouds, target)
    frames = [lambda axis, k=k: scene.draw(axis, k) for k in range(len(clouds))]
    _animate(path, frames, titles, scene.wide, seconds)


def animate_pictures(
    path: str | Path, pictures: Sequence[Tensor], titles: Sequence[str], seconds: float = 5.0
) -> None:
    """Writes pictures ``(h, w, 3)`` in [0, 1] one after the other as an animated GIF."""
    frames = [lambda axis, p=p: _show(axis, p) for p in pictures]
    _animate(path, frames, titles, pictures[0].shape[1] / pictures[0].shape[0], seconds)


class _Scene:
    """Clouds as flat points with colours, in one window."""

    def __init__(self, clouds: Tensor, target: Tensor) -> None:
        clouds, target = (v.detach().cpu().float() for v in (clouds[:, :MOST], target[:MOST]))
        look = _eye if tuple(target.shape[1:]) == (3,) else _main(torch.cat([clouds[0], target]))
        self.clouds, (self.target, _) = [look(v) for v in clouds], look(target)
        self.hues = _hues(self.clouds[0][0])
        seen = torch.cat([self.target, *(points for points, _ in self.clouds)])
        low, high = seen.quantile(0.002, 0), seen.quantile(0.998, 0)
        pad = 0.06 * float((high - low).max().clamp_min(1e-6))
        self.low, self.high = low - pad, high + pad
        size = (self.high - self.low).tolist()
        self.wide = min(max(size[0] / size[1], 1 / 3), 3.5)

    def draw(self, axis: Any, k: int) -> None:
        points, depth = self.clouds[k]
        # what is far behind pales; what is near is drawn last
        far = ((depth - depth.min()) / (depth.max() - depth.min()).clamp_min(1e-6))[:, None]
        colours, order = self.hues * (1 - 0.6 * far) + 0.6 * far, depth.argsort(descending=True)
        axis.scatter(*self.target.T, s=2, linewidths=0, color=[GREY])
        axis.scatter(*points[order].T, s=4, linewidths=0, c=colours[order].numpy())
        axis.set(xlim=(self.low[0], self.high[0]), ylim=(self.low[1], self.high[1]), aspect="equal")
        axis.set_axis_off()


def _eye(x: Tensor) -> tuple[Tensor, Tensor]:
    """Points in space as seen from a little above: flat points, and how far behind they are."""
    right = x.new_tensor([math.cos(TURN), math.sin(TURN), 0.0])
    away = x.new_tensor([-math.sin(TURN), math.cos(TURN), 0.0])
    up = x.new_tensor([0.0, 0.0, 1.0])
    height, depth = x @ up, x @ away
    flat = torch.stack([x @ right, math.cos(TILT) * height + math.sin(TILT) * depth], 1)
    return flat, math.cos(TILT) * depth - math.sin(TILT) * height


def _main(x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    project = _plane(x)[0]
    return lambda v: (project(v), torch.zeros(len(v)))


def _hues(points: Tensor) -> Tensor:
    """Colours around the middle of the start, so that one sees which part goes where: ``(n, 3)``."""
    import matplotlib

    x, y = (points - points.mean(0)).T
    angle = torch.atan2(y, x) / (2 * math.pi) + 0.5
    return torch.as_tensor(matplotlib.colormaps["hsv"](angle.numpy())[:, :3]).float() * 0.85


def _show(axis: Any, picture: Tensor) -> None:
    axis.imshow(picture.numpy(), interpolation="nearest")
    axis.set_axis_off()


def _stages(draws: Sequence[Draw], titles: Sequence[str], wide: float) -> Any:
    columns = len(draws) if wide < 1.2 else math.ceil(len(draws) / 2) if wide < 2 else 2
    rows = math.ceil(len(draws) / columns)
    width = 12 / columns
    figure = blank(12, rows * (width / wide + 0.35))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, draw, title in zip(axes, draws, titles):
        draw(axis)
        axis.set_title(title, fontsize=10)
    for axis in axes[len(draws) :]:
        axis.set_axis_off()
    return figure


def _animate(
    path: str | Path, draws: Sequence[Draw], titles: Sequence[str], wide: float, seconds: float
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    width = 5.0 if wide > 1 else 5.0 * wide
    figure = Figure(figsize=(width, width / wide + 0.3), dpi=80)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1 - 0.3 / (width / wide + 0.3)))
    frames = []
    for draw, title in zip(draws, titles):
        axis.clear()
        draw(axis)
        axis.set_title(title, fontsize=10, pad=4)
        canvas.draw()
        frames.append(_dithered(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [max(20, round(1000 * seconds / len(frames)))] * (len(frames) - 1) + [1500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def _dithered(frame: Any) -> Any:
    """A frame in 256 colours, white among them. matplotlib's own writer does not dither, and a sky then
    falls into bands."""
    from PIL import Image

    palette = frame.quantize(255)
    colours = (palette.getpalette() + 765 * [0])[:765] + 3 * [255]  # few colours: a short palette
    palette.putpalette(colours)
    index = np.array(frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    index[(np.asarray(frame) == 255).all(-1)] = 255  # Pillow takes the palette for a little coarser
    found = Image.fromarray(index)
    found.putpalette(colours)
    return found
