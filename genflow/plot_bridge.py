"""Figures of bridges through snapshots, their drifts and parameters. matplotlib loads on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.plot import COLOURS, _plane, blank
from genflow.plot_parameters import _panels, posterior, traces

__all__ = ["drift_field", "posterior", "snapshots", "traces"]

MOST_PATHS = 60
"""Drawn one by one; ribbons count all."""
MOST_ROWS = 500
"""Rows drawn of each snapshot."""
MOST_COORDINATES = 3
"""Drawn over time."""
RIBBONS = (0.9, 0.5)
"""Shares of the trajectories that are filled."""
GRID = 25
"""Points a side at which a drift is looked at."""
HUES, PALE = "viridis", 0.1
"""Colours of times and speeds, and how much of their pale end is left out for times."""
FORECAST = "#fdf3e1"


def snapshots(
    times: Sequence[float] | Tensor,
    paths: Tensor,
    seen: Mapping[float, Tensor],
    heldout: Mapping[float, Tensor] | None = None,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Any:
    """Snapshots among trajectories: in the plane, and coordinate by coordinate over time.

    A snapshot has the colour of its time; held-out ones are hollow. Ribbons hold half and nine tenths
    of the trajectories at each time. What lies past the last seen snapshot is a forecast, and shaded.

    Args:
        times: of the trajectories, rising, ``(S+1,)``.
        paths: ``(S+1, N, *d)``, as from ``bridge.trajectories(times)``, in the units of the snapshots.
        seen: rows ``(n, *d)`` of the snapshots that were fitted, by their times.
        heldout: rows of those that were not.
        title: above the figure.
        names: of the coordinates.

    Returns:
        A matplotlib figure. Events of more than two numbers are drawn in the two main directions of the
        seen rows, and the first three coordinates over time.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    times, paths = torch.as_tensor(times).cpu().double(), paths.detach().cpu().float().flatten(2)
    clouds = [(t, _rows(x), True) for t, x in seen.items()]
    clouds += [(t, _rows(x), False) for t, x in (heldout or {}).items()]
    stop, d = max(seen), paths.shape[-1]
    shown, wide = min(d, MOST_COORDINATES), d > 1
    names = [f"coordinate {k + 1}" for k in range(d)] if names is None else list(names)
    first, last = min(float(times[0]), *seen), max(float(times[-1]), stop)
    hues = ScalarMappable(Normalize(first, last + PALE * (last - first)), HUES)
    figure = blank(11 if wide else 7.5, max(4.3, 2.1 * shown))
    grid = figure.add_gridspec(shown, 1 + wide, width_ratios=(1, 1.25) if wide else None)
    over = [figure.add_subplot(grid[k, -1]) for k in range(shown)]
    if wide:
        plane = figure.add_subplot(grid[:, 0])
        _in_the_plane(plane, times, paths, clouds, stop, hues, names)
    for k, axis in enumerate(over):
        _over_time(axis, times, paths[..., k], [(t, x[:, k], s) for t, x, s in clouds], stop, hues)
        axis.set(ylabel=names[k], xlim=(first - 0.03 * (last - first), last + 0.03 * (last - first)))
        axis.tick_params(labelbottom=k == shown - 1)
    over[-1].set_xlabel("time")
    _legend(figure, bool(heldout), bool(times[-1] > stop))
    if title:
        figure.suptitle(title)
    return figure


def drift_field(
    drift: Callable[[float, Tensor], Tensor],
    rows: Tensor,
    truth: Callable[[float, Tensor], Tensor] | None = None,
    t: float = 0.0,
    title: str = "",
    names: Sequence[str] = ("coordinate 1", "coordinate 2"),
) -> Any:
    """A drift where the data are, as stream lines whose colour is the speed; beside the truth where one
    is known, with how far they are apart.

    Args:
        drift: ``f(t, x)`` with ``x (B, d)``, ``d >= 2``: a reference, or ``bridge.drift``.
        rows: states ``(n, d)`` that span the region and are drawn into it. Of more than two coordinates
            the first two vary, the others stay at their means.
        truth: the same of the drift that made the data.
        t: when to look.
        title: above the figure.
        names: of the coordinates.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: for states of one number.
    """
    from matplotlib.colors import Normalize

    rows = _rows(rows)
    if rows.shape[1] == 1:
        raise ValueError("plot_bridge.drift_field: states of one number have no plane")
    low, high = rows[:, :2].quantile(0.005, 0), rows[:, :2].quantile(0.995, 0)
    pad = 0.08 * (high - low).clamp_min(1e-6)
    sides = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low - pad, high + pad)]
    x, y = torch.meshgrid(*sides, indexing="xy")
    states = rows.double().mean(0).expand(x.numel(), -1).clone()
    states[:, 0], states[:, 1] = x.flatten(), y.flatten()
    fields = [_field(f, t, states, x.shape) for f in (drift, truth) if f is not None]
    figure, axes = _panels(len(fields) + (truth is not None), (4.4, 3.9), title)
    fastest = max(float(f.norm(dim=-1).max()) for f in fields)
    for axis, field, name in zip(axes, fields, ("drift", "truth")):
        speed = field.norm(dim=-1)
        lines = axis.streamplot(
            *(s.numpy() for s in sides), field[..., 0].numpy(), field[..., 1].numpy(),
            color=speed.numpy(), cmap=HUES, norm=Normalize(0, fastest), density=1.1, linewidth=1,
            arrowsize=0.9,
        )  # fmt: skip
        axis.set_title(name)
    figure.colorbar(lines.lines, ax=list(axes[: len(fields)]), label="speed", shrink=0.85)
    if truth is not None:
        scale = float(_field(truth, t, rows.double(), rows.shape[:1]).square().sum(-1).mean().sqrt())
        apart = 100 * (fields[0] - fields[1]).norm(dim=-1) / scale
        picture = axes[2].pcolormesh(
            *(s.numpy() for s in sides), apart.numpy(), cmap="magma_r", vmin=0, shading="gouraud"
        )
        axes[2].set_title("how far apart")
        figure.colorbar(picture, ax=axes[2], label="% of the speed (RMS over the points)", shrink=0.85)
    for axis in axes:
        axis.scatter(
            *rows[: 2 * MOST_ROWS, :2].T, s=3, linewidths=0, color="0.35", alpha=0.5, zorder=0.5
        )
        axis.set(xlim=(sides[0][0], sides[0][-1]), ylim=(sides[1][0], sides[1][-1]))
        axis.set(xlabel=names[0], ylabel=names[1])
    if truth is not None:
        axes[2].collections[-1].set(zorder=3, color="white", alpha=0.4)
    return figure


def _in_the_plane(
    axis: Any,
    times: Tensor,
    paths: Tensor,
    clouds: Sequence[tuple[float, Tensor, bool]],
    stop: float,
    hues: Any,
    names: Sequence[str],
) -> None:
    project, label = _plane(torch.cat([x for _, x, fitted in clouds if fitted]))
    few = torch.linspace(0, paths.shape[1] - 1, min(MOST_PATHS, paths.shape[1])).long()
    lines = torch.stack([project(x) for x in paths[:, few]])
    known = int((times <= stop).sum())
    axis.plot(*lines[:known].unbind(-1), lw=0.5, alpha=0.45, color=COLOURS["path"], zorder=1)
    if known < len(times):
        late = lines[max(known - 1, 0) :].unbind(-1)
        axis.plot(*late, lw=0.5, alpha=0.7, color="#e0a84f", zorder=1)
    for t, x, fitted in clouds:
        _dots(axis, project(x), hues.to_rgba(t), fitted, 16)
    axis.set(xlabel=names[0], ylabel=names[1])
    if label:
        axis.set(xlabel="main direction 1", ylabel="main direction 2")


def _over_time(
    axis: Any,
    times: Tensor,
    paths: Tensor,
    clouds: Sequence[tuple[float, Tensor, bool]],
    stop: float,
    hues: Any,
) -> None:
    for share in RIBBONS:
        tails = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=paths.dtype)
        axis.fill_between(times, *paths.quantile(tails, 1), color=COLOURS["path"], alpha=0.4, lw=0)
    axis.plot(times, paths.median(1).values, color="0.35", lw=1)
    if times[-1] > stop:
        axis.axvspan(stop, float(times[-1]), color=FORECAST, zorder=0, lw=0)
    draw, width = torch.Generator().manual_seed(0), 0.008 * float(times[-1] - times[0])
    for t, x, fitted in clouds:  # side by side, to be told apart
        beside = t + width * torch.randn(len(x), generator=draw).clamp(-2, 2)
        _dots(axis, torch.stack([beside, x], 1), hues.to_rgba(t), fitted, 12)
    axis.grid(alpha=0.3)


def _dots(axis: Any, points: Tensor, hue: Any, fitted: bool, size: float) -> None:
    style = dict(c=[hue], linewidths=0.25, edgecolors="white")
    if not fitted:
        style = dict(facecolors="none", linewidths=0.8, edgecolors=[hue])
    axis.scatter(*points[:MOST_ROWS].T, s=size, zorder=3, **style)


def _legend(figure: Any, heldout: bool, ahead: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dot = dict(marker="o", ls="", ms=4, color="0.3")
    marks = [Patch(color=COLOURS["path"], alpha=0.6, label="half and nine tenths of the trajectories")]
    marks += [Line2D([], [], label="fitted (colour: time)", **dot)]
    if heldout:
        marks += [Line2D([], [], mfc="none", label="held out", **dot)]
    if ahead:
        marks += [Patch(color=FORECAST, label="forecast")]
    figure.legend(handles=marks, ncols=4, loc="outside lower center", frameon=False)


def _field(f: Callable[[float, Tensor], Tensor], t: float, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The first two coordinates of a field, ``(*shape, 2)``."""
    place = next((p.device for p in getattr(f, "parameters", list)()), x.device)
    with torch.no_grad():
        return f(t, x.to(place))[:, :2].detach().cpu().double().reshape(*shape, 2)


def _rows(x: Tensor) -> Tensor:
    return x.detach().cpu().float().flatten(1)
