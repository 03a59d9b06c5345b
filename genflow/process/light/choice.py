"""How many components: by the objective on rows that were held out."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genflow.process.light.fit import Fit, Settings
from genflow.process.light.history import Choice, History
from genflow.process.light.rows import Rows, check_spread, gather
from genflow.source import Source

if TYPE_CHECKING:
    from genflow.process.light.bridge import LightBridge

CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Numbers of components that ``"auto"`` tries, in this order."""
EACH, ENOUGH = 5, 10
"""Rows that a component must have on average to be tried, and rows of a table for more than one."""


def fit(
    bridge: LightBridge,
    x0: Tensor | Source,
    x1: Tensor | Source,
    settings: Settings,
    generator: torch.Generator | None,
    progress: bool = False,
    callback: Callable[[LightBridge, int], None] | None = None,
) -> History:
    """Fit a bridge in place, with as many components as it has, or as held-out rows ask for."""
    begun = time.process_time()
    options = bridge.shape, bridge.location.device, settings.pilot, settings.held_out, generator
    start, stop = gather("x0", x0, *options), gather("x1", x1, *options)
    check_spread(stop, bridge.covariance)
    choices: list[Choice] = []
    if bridge.components == "auto":
        if not settings.restart:
            raise ValueError(
                "LightBridge.fit: restart=False needs a bridge of a known number of components"
            )
        if all(side.table is None or len(side.table) >= ENOUGH for side in (start, stop)):
            choices = choose(bridge, start, stop, settings, generator)
        bridge.resize(chosen(choices) if choices else 1)
    if bridge.components > len(stop.pilot):
        raise ValueError(
            f"LightBridge.fit: {bridge.components} components need at least as many rows of x1, but "
            f"there are {len(stop.pilot)}; take fewer components"
        )
    history = Fit(bridge, start, stop, settings, generator, progress, callback, begun).run()
    history.choices = choices
    bridge.anchor_flat(start.pilot + start.centre)
    return history


def choose(
    bridge: LightBridge,
    start: Rows,
    stop: Rows,
    settings: Settings,
    generator: torch.Generator | None,
) -> list[Choice]:
    """Short fits of growing numbers of components, until more of them no longer help."""
    trial = replace(settings, steps=max(1, settings.steps // 2))
    (start, held0), (stop, held1) = (_part(side) for side in (start, stop))
    found: list[tuple[int, float, Tensor, Tensor]] = []
    choices: list[Choice] = []
    for components in CANDIDATES:
        if found and components * EACH > len(stop.pilot):
            break
        tried = copy.deepcopy(bridge)
        tried.resize(components)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # short fits need not converge
            history = Fit(tried, start, stop, trial, generator).run()
        p = tried.potential
        values = p.log_normaliser(held0), p.log_potential(held1)
        found.append((components, history[-1].objective, *values))
        choices = _compare(found)
        least = min(choice.held_out for choice in choices)
        if len(choices) > 2 and all(choice.held_out > least for choice in choices[-2:]):
            break
    return choices


def chosen(choices: list[Choice]) -> int:
    """The fewest components within one standard error of the best (the one-standard-error rule of
    Breiman et al. 1984)."""
    least = min(choice.held_out for choice in choices)
    return next(c.components for c in choices if c.held_out - least <= c.error)


def _compare(found: list[tuple[int, float, Tensor, Tensor]]) -> list[Choice]:
    """With standard errors of the differences to the best: rows are the same for all, so that these are
    much better known than the values."""
    held = [float(c.mean() - v.mean()) for _, _, c, v in found]
    best = found[held.index(min(held))]
    choices = []
    for (components, objective, c, v), value in zip(found, held):
        apart0, apart1 = c - best[2], v - best[3]
        error = float((apart0.var() / len(c) + apart1.var() / len(v)).sqrt())
        choices.append(Choice(components, objective, value, error))
    return choices


def _part(side: Rows) -> tuple[Rows, Tensor]:
    """The side with rows to judge by apart, in the user's coordinates: of a table those that are held
    out already or a fifth, of a law half of the fresh ones."""
    if side.law is not None:
        half = len(side.held_out) // 2
        return replace(side, held_out=side.held_out[:half]), side.held_out[half:] + side.centre
    if side.held_out is not None:
        return replace(side, held_out=None), side.held_out + side.centre
    held = max(1, min(len(side.table) // 5, len(side.table) - 2))
    rest = side.table[held:]
    kept = replace(side, table=rest, pilot=rest[: len(side.pilot)])
    return kept, side.table[:held] + side.centre
