"""Figures of light bridges: their fit, their paths, their plans. matplotlib loads on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.plot import COLOURS, MOST_POINTS, _frame, _plane, blank
from genflow.plot_flow import GREY, _hues
from genflow.process import LightBridge
from genflow.process.light.choice import chosen
from genflow.process.light.history import History

STAGES = {
    "warm start": "#444444", "annealing": "#8172b3", "fixed point": "#4c72b0", "adam": "#dd8452",
    "lbfgs": "#dd8452", "start": "#444444", "best": "black",
}  # fmt: skip
MOST_PATHS = 40
STEPS = 60
"""Of a drawn path."""
MASSES = (0.9, 0.5)
"""Of the regions of highest density that are filled."""
GRID = 120
"""Points a side that a density is drawn by."""


def trace(history: History, title: str = "") -> Any:
    """The objective over CPU seconds by stages, and what came last from near. Each curve is drawn less
    its last value: rows that are held out have another level.

    Args:
        history: of a :class:`~genflow.process.LightBridge` that has been fitted.
        title: above the figure.

    Returns:
        A matplotlib figure.
    """
    entries = list(history)
    last = [entry.stage for entry in entries if entry.stage != "best"][-1]
    first = next(k for k, entry in enumerate(entries) if entry.stage == last)
    near = slice(max(0, first - 1), None)
    seconds, curves = history.seconds, [[v - history.objective[-1] for v in history.objective]]
    if entries[-1].held_out is not None:
        curves.append([v - history.held_out[-1] for v in history.held_out])
    figure, axes = _panels(2 if first else 1, (4.6, 3.2), title)
    for axis in axes:
        axis.plot(seconds, curves[0], color="0.7", lw=1, zorder=1)
        for stage in dict.fromkeys(entry.stage for entry in entries):
            mine = [(s, v) for entry, s, v in zip(entries, seconds, curves[0]) if entry.stage == stage]
            axis.scatter(*zip(*mine), s=18, color=STAGES[stage], label=stage, zorder=3)
        for held in curves[1:]:
            axis.plot(seconds, held, ls="--", color=COLOURS["samples"], label="held out")
        axis.set_xlabel("CPU seconds")
        axis.grid(alpha=0.3)
    axes[0].set(title="the fit", ylabel="objective above its last, nats")
    axes[0].legend(frameon=False)
    if first:
        values = [v for curve in curves for v in curve[near]]
        limits = dict(xlim=_padded(seconds[near]), ylim=_padded(values))
        axes[1].set(title=f"from near: {last}", **limits)
    return figure


def choice(history: History, title: str = "") -> Any:
    """The held-out objective over the number of components, the chosen one marked, and those around it
    from near. Bars are standard errors of the difference to the best.

    Args:
        history: of a :class:`~genflow.process.LightBridge` fitted with ``components="auto"``.
        title: above the figure.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: where nothing was chosen.
    """
    tried = list(history.choices)
    if not tried:
        raise ValueError(
            "plot_light.choice: the history holds no choices; fit LightBridge(dim, 'auto', epsilon)"
        )
    found = chosen(tried)
    middle = [c.components for c in tried].index(found)
    near = tried[max(0, middle - 2) : middle + 3]
    figure, axes = _panels(2, (4.6, 3.2), title)
    for axis, shown in zip(axes, (tried, near)):
        components = [c.components for c in shown]
        held, errors = [c.held_out for c in shown], [c.error for c in shown]
        style = dict(marker="o", ms=4, lw=1.2, capsize=3, color=COLOURS["samples"])
        axis.errorbar(components, held, errors, label="held out", **style)
        axis.axvline(found, ls=":", color=COLOURS["data"])
        axis.set_xscale("log")
        axis.set_xticks(components, [str(c) for c in components])
        axis.minorticks_off()
        axis.set_xlabel("components")
        axis.grid(alpha=0.3)
    components, training = [c.components for c in tried], [c.objective for c in tried]
    axes[0].plot(components, training, marker="o", ms=3, lw=1, color="0.6", label="training rows")
    axes[0].set(title="all that were tried", ylabel="objective, nats")
    axes[0].legend(frameon=False)
    axes[1].set_title(f"from near: {found} chosen")
    return figure


def paths(
    bridge: LightBridge,
    x0: Tensor,
    x1: Tensor,
    generator: torch.Generator | None = None,
    title: str = "",
) -> Any:
    """Source, exact paths and their ends; a path has the colour of the place where it starts.

    Args:
        bridge: what moves them.
        x0: starts, ``(n, *d)``; planes are drawn as they are, other events by the two main directions
            of the data.
        x1: data, ``(m, *d)``, in grey.
        generator: for the paths.
        title: above the figure.

    Returns:
        A matplotlib figure.
    """
    project, label = _plane(_plain(x1))
    trajectory, target = _projected(bridge, x0, project, generator), project(_plain(x1))
    hues = _hues(trajectory[0])
    figure, axes = _panels(3, (3.6, 3.9), title)
    _frame(axes, [trajectory[0], trajectory[-1], target])
    _dots(axes[0], trajectory[0], hues)
    _dots(axes[1], target, [GREY])
    _lines(axes[1], trajectory, hues)
    _dots(axes[2], target, [GREY])
    _dots(axes[2], trajectory[-1], hues)
    for axis, name in zip(axes, ("source", "paths", "ends, over the data")):
        axis.set_title(f"{name}{label}")
    return figure


def epsilons(
    bridges: Sequence[LightBridge], x0: Tensor, x1: Tensor, seed: int = 0, columns: int = 4
) -> Any:
    """Bridges between the same laws at several temperatures, a panel each: paths of the same starts
    under the same noise.

    Args:
        bridges: one a panel.
        x0, x1: starts and data, ``(n, *d)`` and ``(m, *d)``.
        seed: of the noise.
        columns: most panels in a row.

    Returns:
        A matplotlib figure.
    """
    project, label = _plane(_plain(x1))
    target = project(_plain(x1))
    columns = min(columns, len(bridges))
    rows = -(-len(bridges) // columns)
    figure = blank(3.2 * columns, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    _frame(axes, [project(_plain(x0)), target])
    for axis, bridge in zip(axes, bridges):
        draw = torch.Generator(x0.device).manual_seed(seed)
        trajectory = _projected(bridge, x0, project, draw)
        hues = _hues(trajectory[0])
        _dots(axis, target, [GREY])
        _lines(axis, trajectory, hues)
        axis.set_title(f"$\\varepsilon$ = {bridge.epsilon:g}{label}")
    for axis in axes[len(bridges) :]:
        axis.set_axis_off()
    return figure


def plan(bridge: LightBridge, x0: Tensor, x1: Tensor, least: float = 0.02, title: str = "") -> Any:
    """Where a few starts go: the plan of each in a panel of its own, over the data.

    The regions that hold half and nine tenths of its mass are filled; ellipses are its components at
    one standard deviation, drawn the darker the more they weigh. The star is the start.

    Args:
        bridge: whose plan it is.
        x0: starts, ``(n, *d)``, of two numbers or more; of events with more than two the plan is
            projected to the two main directions of the data.
        x1: data, ``(m, *d)``, in grey.
        least: components that weigh less have no ellipse.
        title: above the figure.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: for events of one number, which have no ellipses.
    """
    project, label = _plane(_plain(x1))
    d = x1[0].numel()
    if d == 1:
        raise ValueError("plot_light.plan: events of one number have no plane; draw exp(plan.log_prob)")
    frame = (project(torch.eye(d)) - project(torch.zeros(1, d))).double()
    with torch.no_grad():
        laws = bridge.plan(x0).mixture()
    weights = laws.mixture_distribution.probs.cpu()
    places = _plain(laws.component_distribution.mean.flatten(0, 1))
    means = project(places).double().unflatten(0, weights.shape)
    covariances = frame.mT @ laws.component_distribution.covariance_matrix.cpu() @ frame
    starts, target = project(_plain(x0)), project(_plain(x1))
    figure, axes = _panels(len(x0), (3.2, 3.6), title)
    _frame(axes, [target, starts.repeat(len(target), 1)])  # many, so that no start counts as an outlier
    for k, axis in enumerate(axes):
        colour = f"C{k % 10}"
        _dots(axis, target, [GREY])
        _fill(axis, weights[k], means[k], covariances[k], colour)
        _ellipses(axis, weights[k], means[k], covariances[k], least, colour)
        axis.plot(*starts[k], marker="*", ms=14, mfc=colour, mec="white", zorder=5)
        place = f"({starts[k, 0]:.3g}, {starts[k, 1]:.3g})"
        axis.set_title(f"plan of {place}{label}")
    return figure


def _fill(axis: Any, weight: Tensor, mean: Tensor, covariance: Tensor, colour: str) -> None:
    """Fills regions of highest density of a mixture in the plane of an axis."""
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    sides = [torch.linspace(*limits, GRID) for limits in (axis.get_xlim(), axis.get_ylim())]
    x, y = torch.meshgrid(*sides, indexing="xy")
    law = MixtureSameFamily(Categorical(weight), MultivariateNormal(mean, covariance))
    density = law.log_prob(torch.stack([x, y], -1).double()).exp()
    held = density.flatten().sort(descending=True).values
    below = held.cumsum(0) / held.sum()
    levels = [float(held[(below < mass).sum().clamp_max(len(held) - 1)]) for mass in MASSES]
    top = 1.01 * float(held[0])
    for level, alpha in zip(levels, (0.25, 0.35)):
        axis.contourf(x, y, density, [min(level, 0.99 * top), top], colors=[colour], alpha=alpha)


def _ellipses(
    axis: Any, weight: Tensor, mean: Tensor, covariance: Tensor, least: float, colour: str
) -> None:
    angle = torch.linspace(0, 2 * torch.pi, 80, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    for w, m, root in zip(weight, mean, torch.linalg.cholesky(covariance)):
        if w >= least:
            axis.plot(*(m[:, None] + root @ circle), lw=1.1, color=colour, alpha=float(0.25 + 0.75 * w))


def _projected(
    bridge: LightBridge,
    x0: Tensor,
    project: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
) -> Tensor:
    """Exact paths in the plane, ``(STEPS + 1, n, 2)``."""
    trajectory = bridge.sample_path(x0[:MOST_POINTS], torch.linspace(0, 1, STEPS + 1), generator)
    flat = project(_plain(trajectory.flatten(0, 1)))
    return flat.unflatten(0, trajectory.shape[:2])


def _plain(x: Tensor) -> Tensor:
    return x.detach().cpu().float()


def _dots(axis: Any, points: Tensor, colours: Any) -> None:
    axis.scatter(*points[:MOST_POINTS].T, s=5, linewidths=0, c=colours[:MOST_POINTS])


def _lines(axis: Any, trajectory: Tensor, hues: Tensor) -> None:
    few = trajectory[:, :MOST_PATHS]
    for k, hue in enumerate(hues[: few.shape[1]].tolist()):
        axis.plot(*few[:, k].T, lw=0.7, alpha=0.6, color=hue)
    hues = hues[: few.shape[1]]
    axis.scatter(*few[0].T, s=7, linewidths=0.7, facecolors="none", edgecolors=hues.numpy(), zorder=3)
    axis.scatter(*few[-1].T, s=16, linewidths=0.5, edgecolors="white", c=hues.numpy(), zorder=4)


def _panels(count: int, size: tuple[float, float], title: str) -> tuple[Any, Any]:
    figure = blank(count * size[0], size[1])
    axes = figure.subplots(1, count, squeeze=False)[0]
    if title:
        figure.suptitle(title)
    return figure, axes


def _padded(values: list[float]) -> tuple[float, float]:
    pad = 0.06 * (max(values) - min(values)) or 1e-6
    return min(values) - pad, max(values) + pad
