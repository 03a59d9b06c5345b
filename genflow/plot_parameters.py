"""Figures of parameters: on their way, and how surely they are known. matplotlib loads on first use."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch

from genflow.plot import COLOURS, blank
from genflow.process import MultiMarginalBridge

MOST_NAMES = 12
"""Parameters up to which each has a name in a legend."""
GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "kappa", "lambda", "mu", "rho", "sigma")

Numbers = Mapping[str, Any]
"""Parameters by name: numbers, or nested lists of them."""


def traces(bridge: MultiMarginalBridge, truth: Numbers | None = None, title: str = "") -> Any:
    """The objective and the parameters over the outer iterations.

    Args:
        bridge: whose reference was refined.
        truth: parameters that made the data, where they are known; dashed.
        title: above the figure.

    Returns:
        A matplotlib figure; of one panel where the reference has no named parameters.

    Raises:
        ValueError: before the first iteration.
    """
    if not bridge.history:
        raise ValueError("plot_bridge.traces: the bridge has made no iteration yet; fit it first")
    labels = list(flat(bridge.reference.numbers()))
    values = torch.tensor([entry["parameters"] for entry in bridge.history], dtype=torch.float64)
    known = flat(truth or {})
    steps = range(1, len(values) + 1)
    figure, axes = _panels(2 if labels else 1, (4.8, 3.3), title)
    objective = [entry["objective"] for entry in bridge.history]
    style = dict(marker="o", ms=3.5, lw=1.3)
    axes[0].plot(steps, objective, color=COLOURS["samples"], **style)
    axes[0].set(title="objective, nats")
    if labels:
        for k, label in enumerate(labels):
            axes[1].plot(steps, values[:, k], color=f"C{k % 10}", label=label, **style)
            if label in known:
                axes[1].axhline(known[label], ls="--", lw=1, color=f"C{k % 10}")
        everything = torch.cat([values.flatten(), torch.tensor(list(known.values())).double()])
        if bool((everything > 0).all()) and everything.max() > 4 * everything.min():
            axes[1].set_yscale("log")
        axes[1].set_title("parameters" + (" (dashed: the truth)" if known else ""))
        if len(labels) <= MOST_NAMES:
            axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in axes:
        axis.set_xlabel("outer iteration")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def posterior(draws: Any, truth: Numbers | None = None, level: float = 0.9, title: str = "") -> Any:
    """What is known of each parameter: its mean, an interval of half the probability and a wide one.

    Args:
        draws: a ``genflow.population.Posterior`` or ``Bootstrap``, or several by name, one below the
            other.
        truth: parameters that made the data, where they are known: a dashed line.
        level: probability of the wide interval.
        title: above the figure.

    Returns:
        A matplotlib figure with a panel for each parameter.
    """
    several = draws if isinstance(draws, Mapping) else {"": draws}
    rows = []
    for found in several.values():
        wide, half = found.intervals(level), found.intervals(0.5)
        ends = [{n: v[side] for n, v in part.items()} for part in (wide, half) for side in (0, 1)]
        rows.append([flat(found.mean), *map(flat, ends)])
    labels, known = list(rows[0][0]), flat(truth or {})
    columns = min(4, len(labels))
    lines = -(-len(labels) // columns)
    figure = blank(3.0 * columns, (1.15 + 0.28 * len(several)) * lines + 0.3 * bool(title))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for place, (label, axis) in enumerate(zip(labels, axes)):
        for k, (mean, low, high, left, right) in enumerate(rows):
            line = dict(color=f"C{k % 10}", solid_capstyle="round")
            axis.plot([low[label], high[label]], [k, k], lw=1.5, **line)
            axis.plot([left[label], right[label]], [k, k], lw=5, alpha=0.6, **line)
            axis.plot(mean[label], k, "o", ms=6, mfc="white", mec=f"C{k % 10}", mew=1.5)
        if label in known:
            axis.axvline(known[label], ls="--", lw=1, color=COLOURS["data"])
        names = list(several) if place % columns == 0 else [""] * len(several)
        axis.set_yticks(range(len(several)), names)
        axis.set(ylim=(len(several) - 0.5, -0.5), title=label)
        axis.margins(x=0.12)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes[len(labels) :]:
        axis.set_axis_off()
    if title:
        figure.suptitle(title)
    return figure


def flat(numbers: Numbers) -> dict[str, float]:
    """Parameters as single numbers, in order: ``beta`` of three genes becomes three."""
    found = {}
    for name, value in numbers.items():
        value = torch.as_tensor(value, dtype=torch.float64)
        label = f"$\\{name}$" if name in GREEK else name
        for place in product(*map(range, value.shape)):
            at = ", ".join(str(k + 1) for k in place)
            found[f"{label}[{at}]" if at else label] = float(value[place])
    return found


def _panels(count: int, size: tuple[float, float], title: str) -> tuple[Any, Any]:
    figure = blank(count * size[0], size[1])
    axes = figure.subplots(1, count, squeeze=False)[0]
    if title:
        figure.suptitle(title)
    return figure, axes
