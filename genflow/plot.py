"""Figures of flows: source, data, samples and how they got there. matplotlib loads on first use."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor

COLOURS = {"source": "#4c72b0", "data": "#444444", "samples": "#c44e52", "path": "#9aa5b1"}
MOST_POINTS = 2000
MOST_PATHS = 150
DECADES = 2.5
"""Positive points that span more are drawn on logarithmic axes."""


def curve(steps: list[int], losses: list[float], evaluations: dict[str, list[tuple]]) -> Any:
    """Training loss over steps, and each evaluation in a panel of its own.

    Args:
        steps, losses: of the training loss.
        evaluations: name to ``(step, value)`` pairs.

    Returns:
        A matplotlib figure.
    """
    figure, axes = _figure(1 + len(evaluations), 3.0, "")
    axes[0].plot(steps, losses, lw=0.8, color=COLOURS["source"])
    axes[0].set_title("training loss of single batches")
    for axis, (name, pairs) in zip(axes[1:], evaluations.items()):
        axis.plot(*zip(*pairs), marker="o", ms=3, color=COLOURS["samples"])
        axis.set_title(name)
        axis.set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return figure


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether events look like images: ``(1 or 3, h, w)``."""
    return len(shape) == 3 and shape[0] in (1, 3)


def flow(
    source: Tensor,
    data: Tensor,
    samples: Tensor,
    trajectory: Tensor | None = None,
    title: str = "",
    labels: tuple[Tensor, Tensor] | None = None,
) -> Any:
    """Source, data, samples and trajectories side by side.

    Args:
        source, data, samples: ``(n, *d)``; planes are drawn as points, images as mosaics, other
            events by the two leading principal directions of the data. Points of a plane that are all
            positive and span decades have logarithmic axes, with windows of their own for data and
            samples.
        trajectory: ``(S+1, n, *d)`` from source to samples.
        title: above the figure.
        labels: classes of data and of samples (those of the source and of the trajectories are the
            samples'); points are coloured by them, images sorted.

    Returns:
        A matplotlib figure.
    """
    source, data, samples = (v.detach().cpu().float() for v in (source, data, samples))
    trajectory = None if trajectory is None else trajectory.detach().cpu().float()
    labels = None if labels is None else tuple(v.detach().cpu() for v in labels)
    draw = _images if is_image(tuple(data.shape[1:])) else _points
    return draw(source, data, samples, trajectory, title, labels)


def tilt(
    x0: Tensor,
    x1: Tensor,
    mass0: Tensor,
    mass1: Tensor,
    samples: Tensor | None = None,
    title: str = "",
) -> Any:
    """What a coupling's weights do to both laws: each side as given and as tilted, and samples.

    The tilted laws are shown by as many rows, drawn in proportion to their masses.

    Args:
        x0, x1: rows of both sides, ``(n, *d)``.
        mass0, mass1: how much each row counts, ``(n,)``, as in a ``TiltReport``.
        samples: what the model makes, ``(n, *d)``.
        title: above the figure.

    Returns:
        A matplotlib figure.
    """
    draw = torch.Generator().manual_seed(0)
    x0, x1 = (v.detach().cpu().float() for v in (x0, x1))
    rows = [
        torch.multinomial(m.detach().cpu().double(), len(m), replacement=True, generator=draw)
        for m in (mass0, mass1)
    ]
    named = [
        ("source", x0, "source"), ("tilted source", x0[rows[0]], "source"),
        ("data", x1, "data"), ("tilted data", x1[rows[1]], "data"),
    ]  # fmt: skip
    if samples is not None:
        named.append(("samples", samples.detach().cpu().float(), "samples"))
    if is_image(tuple(x1.shape[1:])):
        figure, axes = _figure(len(named), 3.9, title)
        low, high = float(x1.min()), float(x1.max())
        for axis, (name, images, _) in zip(axes, named):
            _show(axis, mosaic(images[:64], low, high), name)
        return figure
    project, label = _plane(x1)
    figure, axes = _figure(len(named), 3.9, title)
    flat = [(f"{name}{label}", project(points), COLOURS[hue]) for name, points, hue in named]
    _frame(axes, [points for _, points, _ in flat])
    for axis, (name, points, colour) in zip(axes, flat):
        _scatter(axis, points, colour)
        axis.set_title(name)
    return figure


def field_error(
    times: list[float],
    rms: dict[str, list[float]],
    relative: dict[str, list[float]],
    title: str = "",
) -> Any:
    """Errors of fields over time: absolute on the left, relative on the right.

    Args:
        times: where they were measured.
        rms: by field, root mean square errors per dimension.
        relative: by field, relative errors; infinite ones are left out.
        title: above the figure.

    Returns:
        A matplotlib figure.
    """
    figure, axes = _figure(2, 3.2, title)
    panels = (("error per dimension (RMS)", rms), ("relative error", relative))
    for axis, (name, values) in zip(axes, panels):
        for k, (field, errors) in enumerate(values.items()):
            shown = [v if math.isfinite(v) else math.nan for v in errors]
            axis.plot(times, shown, marker="o", ms=3, lw=1.2, color=f"C{k}", label=field)
        axis.set(title=name, xlabel="t", xlim=(0, 1))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].axhline(1, ls=":", lw=1, color=COLOURS["data"])  # the error of answering zero
    axes[0].legend(frameon=False)
    return figure


def blank(width: float, height: float) -> Any:
    """An empty figure of so many inches that notebooks know how to show."""
    from matplotlib.figure import Figure as Plain

    # not pyplot: it keeps every figure alive and may want a display; but then a notebook does not
    # know how to show a figure, so it is told
    class Figure(Plain):
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, dpi=80)
            return picture.getvalue()

    return Figure(figsize=(width, height), layout="constrained")


def _figure(panels: int, height: float, title: str) -> tuple[Any, Any]:
    figure = blank(3.4 * panels, height)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if title:
        figure.suptitle(title)
    return figure, axes


def _points(
    source: Tensor,
    data: Tensor,
    samples: Tensor,
    trajectory: Tensor | None,
    title: str,
    labels: tuple[Tensor, Tensor] | None,
) -> Any:
    project, label = _plane(data)
    named = {"source": project(source), "data": project(data), "samples": project(samples)}
    figure, axes = _figure(3 if trajectory is None else 4, 3.9, title)
    if data[0].numel() == 2 and _spans_decades(list(named.values())):
        _frame_logs(axes[[0, *range(3, len(axes))]], list(named.values()))
        _frame_logs(axes[1:3], [named["data"], named["samples"]])
    else:
        _frame(axes, list(named.values()))
    hues = dict(COLOURS)
    if labels is not None:
        hues |= {"data": _hues(labels[0]), "samples": _hues(labels[1]), "source": _hues(labels[1])}
    for axis, (name, points) in zip(axes, named.items()):
        _scatter(axis, points, hues[name])
        axis.set_title(f"{name}{label}")
    if trajectory is not None:
        paths = project(trajectory[:, :MOST_PATHS].flatten(0, 1)).unflatten(
            0, trajectory[:, :MOST_PATHS].shape[:2]
        )
        axes[3].plot(paths[..., 0], paths[..., 1], lw=0.6, alpha=0.6, color=COLOURS["path"])
        few = paths.shape[1]
        ends = [hues[n] if isinstance(hues[n], str) else hues[n][:few] for n in ("source", "samples")]
        axes[3].scatter(*paths[0].T, s=6, linewidths=0, color=ends[0], zorder=3)
        axes[3].scatter(*paths[-1].T, s=6, linewidths=0, color=ends[1], zorder=3)
        axes[3].set_title(f"trajectories{label}")
    return figure


def _hues(labels: Tensor) -> list[str]:
    """One colour a class, those of matplotlib's cycle."""
    return [f"C{int(label) % 10}" for label in labels[:MOST_POINTS]]


def _scatter(axis: Any, points: Tensor, colour: str | list[str]) -> None:
    axis.scatter(*points[:MOST_POINTS].T, s=4, alpha=0.5, linewidths=0, color=colour)


def _frame(axes: Any, clouds: list[Tensor]) -> None:
    """One window for all panels, around nearly all points."""
    everything = torch.cat([v[:MOST_POINTS] for v in clouds])
    low, high = everything.quantile(0.001, 0), everything.quantile(0.999, 0)
    pad = 0.08 * (high - low).clamp_min(1e-6)
    for axis in axes:
        axis.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))
        axis.set_aspect("equal")


def _spans_decades(clouds: list[Tensor]) -> bool:
    everything = torch.cat([v[:MOST_POINTS] for v in clouds])
    if not bool((everything > 0).all()):
        return False
    low, high = everything.log10().quantile(0.001, 0), everything.log10().quantile(0.999, 0)
    return bool((high - low > DECADES).all())


def _frame_logs(axes: Any, clouds: list[Tensor]) -> None:
    """As :func:`_frame`, a square window on logarithmic axes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    logs = torch.cat([v[:MOST_POINTS] for v in clouds]).clamp_min(torch.finfo(torch.float32).tiny)
    low, high = logs.log10().quantile(0.001, 0), logs.log10().quantile(0.999, 0)
    half = 0.55 * float((high - low).max())
    (left, right), (bottom, top) = (
        (10 ** (centre - half), 10 ** (centre + half)) for centre in ((low + high) / 2).tolist()
    )
    for axis in axes:
        axis.set(xscale="log", yscale="log", box_aspect=1)
        axis.set(xlim=(left, right), ylim=(bottom, top))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1.0,) if half > 1 else (1.0, 2.0, 5.0)))
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter(NullFormatter())


def _plane(data: Tensor) -> tuple[Any, str]:
    """A map to the plane and what to call it."""
    flat = data.flatten(1)
    if flat.shape[1] == 1:
        return lambda x: torch.cat([x.flatten(1), torch.zeros(len(x), 1)], 1), ""
    if flat.shape[1] == 2:
        return lambda x: x.flatten(1), ""
    mean = flat.mean(0)
    directions = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:2].T
    if directions.shape[1] == 1:  # a single point spans no plane
        directions = torch.cat([directions, torch.zeros_like(directions)], 1)
    return lambda x: (x.flatten(1) - mean) @ directions, " (2 main directions)"


def _images(
    source: Tensor,
    data: Tensor,
    samples: Tensor,
    trajectory: Tensor | None,
    title: str,
    labels: tuple[Tensor, Tensor] | None,
) -> Any:
    figure, axes = _figure(3 if trajectory is None else 4, 3.9, title)
    low, high = float(data.min()), float(data.max())
    if labels is not None:  # a sorted mosaic shows at a glance whether each is of its class
        orders = [v[:64].argsort(stable=True) for v in labels]
        data, samples, source = data[orders[0]], samples[orders[1]], source[orders[1]]
    for axis, (name, images) in zip(axes, (("source", source), ("data", data), ("samples", samples))):
        _show(axis, mosaic(images[:64], low, high), name)
    if trajectory is not None:
        rows = torch.linspace(0, len(trajectory) - 1, 8).round().long()
        strip = trajectory[rows, :8].transpose(0, 1).flatten(0, 1)
        _show(axes[3], mosaic(strip, low, high), "trajectories (time to the right)")
    return figure


def _show(axis: Any, picture: Tensor, name: str) -> None:
    axis.imshow(picture.squeeze(-1), cmap="gray", vmin=0, vmax=1)
    axis.set_title(name)
    axis.set_axis_off()


def mosaic(images: Tensor, low: float, high: float) -> Tensor:
    """Images ``(n, c, h, w)`` on a square grid with gaps: ``(H, W, c)`` in [0, 1]."""
    n, c, h, w = images.shape
    side = math.ceil(math.sqrt(n))
    blank = images.new_full((side * side - n, c, h, w), high)
    tiles = ((torch.cat([images, blank]) - low) / (high - low or 1)).clamp(0, 1)
    tiles = torch.nn.functional.pad(tiles, (0, 1, 0, 1), value=1.0)
    grid = tiles.reshape(side, side, c, h + 1, w + 1).permute(0, 3, 1, 4, 2)
    return grid.reshape(side * (h + 1), side * (w + 1), c)[:-1, :-1]
