"""The published loop of iterative reference refinement, on the arrays of its paper.

Ten times: ten iterations of proportional fitting with exact Gaussian-process drifts in each interval,
trajectories stitched through all drifts, then twenty steps of a new Adam on the drift family (Shen,
Berlinghieri & Broderick 2024, "Multi-marginal Schrödinger bridges with iterative reference
refinement"). Every number of the original is kept; the Gaussian processes are solved with weights
that are cached, which makes this several times cheaper than the original and changes nothing.

    python -m benchmarks.multimarginal_published LV 25 --seed 0 --out runs/multimarginal

Held-out snapshots are found by their *time*; scores are exact optimal transport between all
trajectories and the rows held out. CPU seconds are of the training alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genflow.network.gaussian_process import GaussianProcess
from genflow.process.multimarginal.ipf import ipf, stitched

OUTER, INNER = 10, 10
STEPS, RATE = 20, 0.05
START = 1e-5


class Family(nn.Module):
    """A drift family as published: raw numbers, whose absolute values are meant where ``positive``."""

    def __init__(self, start: dict[str, float], field: Callable[..., Tensor], positive: bool) -> None:
        super().__init__()
        self.numbers = nn.ParameterDict(
            {
                name: nn.Parameter(torch.tensor(value, dtype=torch.float64))
                for name, value in start.items()
            }
        )
        self.field, self.positive = field, positive

    def values(self) -> dict[str, Tensor]:
        return {name: v.abs() if self.positive else v for name, v in self.numbers.items()}

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        return self.field(x, **self.values())


def lotka_volterra(x: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    both = x.prod(-1)
    return torch.stack([alpha * x[..., 0] - beta * both, delta * both - gamma * x[..., 1]], -1)


def repressilator(x: Tensor, beta: Tensor, n: Tensor, k: Tensor, gamma: Tensor) -> Tensor:
    x = x.clamp_min(0) + 1e-8
    return beta / (1 + (x.roll(1, -1) / k) ** n) - gamma * x


def vortex(x: Tensor, strength: Tensor, stretch: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """One elliptic vortex, its curl only."""
    across, along = (x[..., 1] - y0) * (-stretch).exp(), x0 - x[..., 0]
    return strength * torch.stack([across, along], -1)


def family(name: str) -> Family:
    """The family of a data set, where the published notebooks start it."""
    if name == "LV":
        start = dict.fromkeys(("alpha", "beta", "gamma", "delta"), START)
        return Family(start, lotka_volterra, positive=True)
    if name == "repres":
        return Family({"beta": START, "n": 1.0, "k": 1.0, "gamma": START}, repressilator, positive=True)
    start = dict.fromkeys(("strength", "stretch", "x0", "y0"), 0.0)
    return Family(start, vortex, positive=False)


@dataclass(frozen=True)
class Course:
    """Snapshots in float64, those that train and those held out, each with its time."""

    train: list[Tensor]
    times: list[float]
    heldout: dict[float, np.ndarray]
    sigma: float
    dt: float


def course(name: str, particles: int | None) -> Course:
    """The arrays of ``$GENFLOW_DATA/snapshots``; the first ``particles`` rows of each marginal."""
    if "GENFLOW_DATA" not in os.environ:
        raise SystemExit("set GENFLOW_DATA to the folder that holds snapshots/LV.npz and the others")
    with np.load(Path(os.environ["GENFLOW_DATA"]) / "snapshots" / f"{name}.npz") as file:
        times = file["times"].tolist()
        rows = {k: file[f"x{k}"] for k in range(len(times))}
        train, heldout = file["train"].tolist(), file["heldout"].tolist()
        sigma, dt = float(file["sigma"]), float(file["dt"])
    return Course(
        [torch.from_numpy(rows[k][:particles]) for k in train],
        [times[k] for k in train],
        {times[k]: rows[k] for k in heldout},
        sigma,
        dt,
    )


def exact(x: np.ndarray, y: np.ndarray, p: int) -> float:
    """The p-Wasserstein distance of two clouds."""
    import ot

    cost = np.linalg.norm(x[:, None] - y[None], axis=-1) ** p
    return float(ot.emd2([], [], cost, numItermax=10**7) ** (1 / p))


def scores(times: Tensor, paths: Tensor, heldout: dict[float, np.ndarray]) -> dict[str, list[float]]:
    """W1 and W2 at each held-out time, which lies on the grid."""
    at = [int((times - t).abs().argmin()) for t in heldout]
    assert torch.allclose(times[at], torch.tensor(list(heldout), dtype=times.dtype))
    clouds = [(paths[k].numpy(), rows) for k, rows in zip(at, heldout.values())]
    return {f"w{p}": [exact(x, y, p) for x, y in clouds] for p in (1, 2)}


def refit(model: Family, times: Tensor, paths: Tensor) -> float:
    """The partial update: a new Adam, full batch, forward differences at the left ends of the steps."""
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    dt = times.diff()[:, None, None]
    left, speed = paths[:-1].flatten(0, 1), (paths.diff(dim=0) / dt).flatten(0, 1)
    for _ in range(STEPS):
        adam.zero_grad()
        loss = nn.functional.mse_loss(model(0.0, left), speed)
        loss.backward()
        adam.step()
    return loss.item()


def published(name: str, particles: int | None, seed: int, path: Path) -> None:
    """One run, written to ``path`` after every outer iteration."""
    data, model = course(name, particles), family(name)
    noise = data.sigma**2 / data.dt
    template = GaussianProcess(data.train[0].shape[1], variance=1 / data.dt, noise=noise)
    generator = torch.Generator().manual_seed(seed)
    record = {"data": name, "particles": len(data.train[0]), "seed": seed, "heldout": [*data.heldout]}
    record["rows"], cpu, wall = [], 0.0, time.time()
    for outer in range(1, OUTER + 1):
        begun = time.process_time()
        halves = []
        for x0, x1, *span in zip(data.train, data.train[1:], data.times, data.times[1:]):
            halves.append(ipf(x0, x1, span, model, template, data.sigma, data.dt, INNER, generator))
        forwards, backwards, grids, _ = zip(*halves)
        times = torch.cat([grids[0][:1], *(grid[1:] for grid in grids)])
        paths = stitched(data.train, grids, forwards, backwards, data.sigma, generator)
        mse = refit(model, times, paths)
        cpu += time.process_time() - begun
        numbers = {key: value.item() for key, value in model.values().items()}
        row = {"outer": outer, "cpu_seconds": cpu, "wall_seconds": time.time() - wall, "mse": mse}
        record["rows"].append(row | scores(times, paths, data.heldout) | {"parameters": numbers})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1))
        w1 = " ".join(f"{value:.3f}" for value in record["rows"][-1]["w1"])
        found = " ".join(f"{value:.3f}" for value in numbers.values())
        print(f"{name} {particles} outer {outer}: W1 {w1}; parameters {found}; {cpu:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("LV", "repres", "GoMvortex"))
    parser.add_argument("particles", type=int, nargs="?", help="rows of each marginal; all if absent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/multimarginal"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    file = f"published_{asked.data}_{asked.particles or 'all'}_{asked.seed}.json"
    published(asked.data, asked.particles, asked.seed, asked.out / file)
