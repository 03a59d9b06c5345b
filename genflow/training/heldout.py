"""How well a model predicts snapshots that it has not seen."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from genflow.checks import count
from genflow.data import Series
from genflow.distance import EnergyDistance, Wasserstein
from genflow.seeds import stream
from genflow.training.module import Training


def heldout_distances(training: Training, data: Any, n: int) -> dict[str, list[float]]:
    """Distances of states from held-out snapshots at their times, in data units.

    Paths start at rows of the first training snapshot, whose clock is laid over the process's span. A
    process with ``trajectories`` is scored by these (:func:`trajectory_distances`). Particle weights of
    the series count, those of a start for all of its path.

    Args:
        training: whose model runs.
        data: a ``DataModule``; without a ``series`` in its data there is nothing to say.
        n: the most rows on each side.

    Returns:
        ``heldout_times``, ``heldout_energy`` (half the energy distance) and ``heldout_w1`` (exact, with
        Euclidean cost), one number for each snapshot inside the training's span; or nothing. Of
        trajectories ``heldout_w2`` in place of the energy distance.
    """
    series, model = getattr(getattr(data, "data", None), "series", None), training.model
    if series is None or not hasattr(model, "process") or not series.inside():
        return {}
    if hasattr(model.process, "trajectories"):
        return trajectory_distances(training, series)
    first, last = model.process.span
    held = torch.tensor([series.clock(series.times[k]) for k in series.inside()], dtype=torch.float64)
    held = first + (last - first) * held
    solver = model.solver.for_noise() if model.process.stochastic else model.solver
    steps = solver.grid(model.process, None)
    between = (steps[:, None] - held).abs().amin(1) > 1e-9 * (last - first)
    grid = torch.cat([steps[between], held]).sort().values
    draw = stream(training.seed, "heldout", device=training.device)
    start, before = _some(series, series.train[0], n)
    start = start.to(training.device)
    path = model.sample(x0=start, times=grid, solver=solver, generator=draw, trajectory=True)
    numbers: dict[str, list[float]] = {"heldout_times": [], "heldout_energy": [], "heldout_w1": []}
    for k, states in zip(series.inside(), path[torch.isin(grid, held)]):
        rows, mass = _some(series, k, n)
        numbers["heldout_times"].append(series.times[k])
        given = _double(states), _double(rows), before, mass
        numbers["heldout_energy"].append(float(EnergyDistance()(*given)) / 2)
        numbers["heldout_w1"].append(float(Wasserstein(p=1)(*given)))
    return numbers


@torch.no_grad()
def trajectory_distances(training: Training, series: Series) -> dict[str, list[float]]:
    """Exact distances, in data units, between all points of a process's own ``trajectories`` at the
    time of each held-out snapshot and all its rows, by their weights.

    Returns:
        ``heldout_times``, ``heldout_w1`` (Euclidean cost) and ``heldout_w2``, the root of the mean
        squared cost, which the literature on these problems often calls "EMD".
    """
    model, inside = training.model, series.inside()
    times = [series.times[k] for k in inside]
    draw = stream(training.seed, "heldout", device=training.device)
    points = model.process.trajectories(times=times, generator=draw)
    numbers: dict[str, list[float]] = {"heldout_times": times, "heldout_w1": [], "heldout_w2": []}
    for k, states in zip(inside, points):
        states = states if model.transform is None else model.transform.inverse(states)
        rows = torch.from_numpy(np.array(series.arrays[k], dtype=np.float64)).to(states)
        for p in (1, 2):
            distance = Wasserstein(p=p)(_double(states), _double(rows), None, series.mass(k))
            numbers[f"heldout_w{p}"].append(float(distance))
    return numbers


class HeldOut(L.Callback):
    """Scores the trajectories of a process on held-out snapshots while it is fitted.

    Logs the mean over the snapshots as ``heldout_w1``, which the progress bar shows. Runs whose process
    has no ``trajectories``, or whose data no held-out snapshots, are left alone.

    Args:
        every: steps between two scores; each draws all trajectories and solves one transport problem a
            snapshot.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        count(self, every=every)
        self.every, self.cpu_seconds = every, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cpu_seconds = state_dict["cpu_seconds"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        series = getattr(getattr(trainer.datamodule, "data", None), "series", None)
        process = getattr(pl_module.model, "process", None)
        if series is None or not series.inside() or not hasattr(process, "trajectories"):
            return
        if pl_module.batches_seen % self.every == 0:
            before = time.process_time()
            found = trajectory_distances(pl_module, series)["heldout_w1"]
            self.cpu_seconds += time.process_time() - before  # which is no training
            pl_module.log("heldout_w1", sum(found) / len(found), prog_bar=True)


def _double(x: Tensor) -> Tensor:
    """Rows ``(n, d)`` in float64 on the CPU, where exact transport is solved."""
    return x.detach().flatten(1).double().cpu()


def _some(series: Series, k: int, n: int) -> tuple[Tensor, Tensor | None]:
    """Up to ``n`` rows of snapshot number ``k``, the same ones at every call, with their weights."""
    x, mass = series.rows(series.times[k]), series.mass(k)
    kept = torch.randperm(len(x), generator=stream("heldout", len(x)))
    kept = kept[:n] if mass is None else kept[mass[kept] > 0][:n]  # not rows of none
    return x[kept], None if mass is None else mass[kept]
