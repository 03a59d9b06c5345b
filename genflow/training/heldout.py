"""How well a model predicts snapshots that it has not seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genflow.distance import EnergyDistance, Wasserstein
from genflow.seeds import stream
from genflow.training.module import Training


def heldout_distances(training: Training, data: Any, n: int) -> dict[str, list[float]]:
    """Distances of states from held-out snapshots at their times, in data units.

    Paths start at rows of the first training snapshot, whose clock is laid over the process's span.

    Args:
        training: whose model runs.
        data: a ``DataModule``; without a ``series`` in its data there is nothing to say.
        n: the most rows on each side.

    Returns:
        ``heldout_times``, ``heldout_energy`` (half the energy distance) and ``heldout_w1`` (exact, with
        Euclidean cost), one number for each snapshot inside the training's span; or nothing.
    """
    series, model = getattr(getattr(data, "data", None), "series", None), training.model
    if series is None or not hasattr(model, "process") or not series.inside():
        return {}
    first, last = model.process.span
    held = torch.tensor([series.clock(series.times[k]) for k in series.inside()], dtype=torch.float64)
    held = first + (last - first) * held
    solver = model.solver.for_noise() if model.process.stochastic else model.solver
    steps = solver.grid(model.process, None)
    between = (steps[:, None] - held).abs().amin(1) > 1e-9 * (last - first)
    grid = torch.cat([steps[between], held]).sort().values
    draw = stream(training.seed, "heldout", device=training.device)
    start = _some(series.rows(series.train[0]), n).to(training.device)
    path = model.sample(x0=start, times=grid, solver=solver, generator=draw, trajectory=True)
    numbers: dict[str, list[float]] = {"heldout_times": [], "heldout_energy": [], "heldout_w1": []}
    for k, states in zip(series.inside(), path[torch.isin(grid, held)]):
        rows = _some(series.rows(k), n).to(states)
        numbers["heldout_times"].append(series.times[k])
        numbers["heldout_energy"].append(float(EnergyDistance()(states, rows)) / 2)
        numbers["heldout_w1"].append(float(Wasserstein(p=1)(states, rows)))
    return numbers


def _some(x: Tensor, n: int) -> Tensor:
    """Up to ``n`` rows, the same ones at every call."""
    return x[torch.randperm(len(x), generator=stream("heldout", len(x)))[:n]]
