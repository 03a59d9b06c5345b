"""Multi-marginal bridges: plans and direct minimisation beside the published loop, and what they cost.

    GENFLOW_DATA=... python -m benchmarks.multimarginal known         # three published courses
    python -m benchmarks.multimarginal fresh                          # Lotka-Volterra, simulated anew
    python -m benchmarks.multimarginal particles                      # 50 to 5,000 in a snapshot
    python -m benchmarks.multimarginal dimensions                     # 2 to 50 coordinates
    python -m benchmarks.multimarginal_cells cite                     # single cells, one time left out
    python -m benchmarks.multimarginal_coverage                       # do intervals cover the truth?

``known`` needs ``snapshots/{LV,repres,GoMvortex}.npz`` below ``GENFLOW_DATA`` and puts beside its rows
what ``benchmarks.multimarginal_published`` left in ``--out``: the published loop, made again here with
exact Gaussian processes. W1 is that of exact optimal transport between one trajectory from each
training row and the rows held out, at each held-out time; the floor is as many fresh draws of the true
model. CPU seconds are those of the fit alone.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.sliced_speed import markdown
from genflow.data import SimulatedSnapshots
from genflow.loss import Direct, LeastSquares, ReferenceRefinement, StaticBridge
from genflow.loss.rounds import heldout_w1
from genflow.process import (
    Brownian,
    LotkaVolterra,
    MultiMarginalBridge,
    OrnsteinUhlenbeck,
    Reference,
    Repressilator,
    Vortex,
)
from genflow.seeds import stream
from genflow.source import Box

WORDS = {"LV": "Lotka-Volterra", "repres": "repressilator", "GoMvortex": "vortex"}
FAMILIES: dict[str, Callable[[], Reference]] = {
    "LV": LotkaVolterra, "repres": Repressilator, "GoMvortex": Vortex,
}  # fmt: skip
TRUTH = {
    "LV": {"alpha": 1.0, "beta": 0.4, "gamma": 0.4, "delta": 0.1},
    "repres": {"beta": 10.0, "n": 3.0, "k": 1.0, "gamma": 1.0},
}
LIMITS = {
    "LV": (0.06, 0.08, 0.12, 0.27),
    "repres": (0.12, 0.20, 0.25, 0.25, 0.35),
    "GoMvortex": (0.17, 0.07, 0.08, 0.09),
}
CLOSE = {"LV": 0.05, "repres": 0.2}
"""How near the parameters must come."""
SHARE = {"LV": (25, 1 / 10), "repres": (50, 1 / 3)}
"""Particles of the published loop, and the most of its CPU time."""
ROUNDS = 4


@dataclass(frozen=True)
class Course:
    """Snapshots by time, those that train and those held out."""

    train: dict[float, Tensor]
    heldout: dict[float, Tensor]
    sigma: float


def stored(name: str) -> Course:
    if "GENFLOW_DATA" not in os.environ:
        raise SystemExit("set GENFLOW_DATA to the folder that holds snapshots/LV.npz and the others")
    with np.load(Path(os.environ["GENFLOW_DATA"]) / "snapshots" / f"{name}.npz") as file:
        rows = {
            t: torch.from_numpy(file[f"x{k}"]).double() for k, t in enumerate(file["times"].tolist())
        }
        train, held = (list(np.array(list(rows))[file[key]]) for key in ("train", "heldout"))
        sigma = float(file["sigma"])
    return Course({t: rows[t] for t in train}, {t: rows[t] for t in held}, sigma)


def simulated(seed: int) -> Course:
    times = [float(t) for t in range(9)]
    held = times[1::2]
    data = SimulatedSnapshots(
        LotkaVolterra(**TRUTH["LV"]), Box([5.0, 4.0], [5.1, 4.1]), times, heldout=held, seed=seed
    )
    rows = {t: torch.from_numpy(np.array(data.series.arrays[k])).double() for k, t in enumerate(times)}
    return Course({t: rows[t] for t in times[::2]}, {t: rows[t] for t in held}, data.sigma)


@dataclass(frozen=True)
class Row:
    """What a fit reached."""

    w1: list[float]
    parameters: dict[str, object]
    seconds: float
    objective: float


def fit(course: Course, reference: Reference, rounds: int, seed: int = 0) -> Row:
    """Three rounds of least squares, then the objective itself; without a round the vanilla bridge."""
    bridge = MultiMarginalBridge(reference, course.sigma, times=list(course.train))
    loss = ReferenceRefinement(StaticBridge(), Direct()) if rounds else StaticBridge()
    begin = time.process_time()
    draw = stream("multimarginal", seed)
    loss.fit(bridge, *course.train.values(), iterations=max(1, rounds), generator=draw, progress=False)
    seconds = time.process_time() - begin
    w1 = list(heldout_w1(bridge, course.heldout).values())
    return Row(w1, reference.numbers(), seconds, bridge.history[-1]["objective"])


def floor(name: str, course: Course, seed: int = 0) -> list[float] | None:
    """As many fresh draws of the true model as there are trajectories."""
    from genflow.distance import Wasserstein

    if name not in TRUTH:
        return None
    starts = Box([5.0, 4.0], [5.1, 4.1]) if name == "LV" else Box([1.0, 1.0, 2.0], [1.1, 1.1, 2.1])
    truth = FAMILIES[name]().assign(**TRUTH[name])
    n = sum(map(len, course.train.values()))
    times = sorted([*course.train, *course.heldout])
    dt, clip = (0.02, None) if name == "LV" else (0.01, 0.0)
    data = SimulatedSnapshots(truth, starts, times, n=n, dt=dt, clip=clip, seed=1000 + seed)
    distance = Wasserstein(p=1)
    drawn = {t: torch.from_numpy(np.array(data.series.arrays[k])).double() for k, t in enumerate(times)}
    return [float(distance(drawn[t], rows)) for t, rows in course.heldout.items()]


def numbers(values: dict[str, object]) -> str:
    return ", ".join(
        f"{k} {v:.3g}" for k, v in values.items() if isinstance(v, float)
    )  # fmt: skip


def cells(
    w1: list[float], parameters: str, seconds: float | None, objective: float | None
) -> list[str]:
    said = [f"{v:.3f}" for v in w1]
    cost = "" if seconds is None else f"{seconds:.3g}"
    return [*said, parameters, "" if objective is None else f"{objective:.2f}", cost]


def warm_up() -> None:
    """What is loaded at first use is no part of a fit."""
    course = simulated(99)
    few = Course({t: x[:5] for t, x in course.train.items()}, course.heldout, course.sigma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(few, LotkaVolterra(**TRUTH["LV"]), 1)


def known(names: list[str], seeds: int, out: Path) -> None:
    warm_up()
    for name in names:
        course = stored(name)
        heads = [f"t = {t:g}" for t in course.heldout]
        rows: dict[str, list[str]] = {}
        vanilla = fit(course, Brownian(FAMILIES[name]().dim), 0)
        rows["vanilla bridge, exact"] = cells(vanilla.w1, "", vanilla.seconds, vanilla.objective)
        ours = [fit(course, FAMILIES[name](), ROUNDS, seed) for seed in range(seeds)]
        for seed, row in enumerate(ours):
            rows[f"genflow, seed {seed}"] = cells(
                row.w1, numbers(row.parameters), row.seconds, row.objective
            )
        rivals = {}
        for file in sorted(out.glob(f"published_{name}_*.json")):
            said = json.loads(file.read_text())
            last = said["rows"][-1]
            word = f"published loop, {said['particles']} particles, {last['outer']} rounds"
            rows[word] = cells(last["w1"], numbers(last["parameters"]), last["cpu_seconds"], None)
            rivals[said["particles"]] = last
        base = floor(name, course)
        if base is not None:
            rows["*floor*"] = cells(base, numbers(TRUTH[name]), None, None)
        markdown(f"{WORDS[name]}: held-out W1", [*heads, "parameters", "J", "CPU s"], rows)
        judge(name, ours, rivals)


def judge(name: str, ours: list[Row], rivals: dict[int, dict]) -> None:
    """Each limit, met or not, for the worst seed."""
    worst = [max(column) for column in zip(*(row.w1 for row in ours))]
    met = all(v <= limit for v, limit in zip(worst, LIMITS[name]))
    print(
        f"\nW1 at most {LIMITS[name]}: {'met' if met else 'NOT MET'} by {[round(v, 3) for v in worst]}"
    )
    if name in CLOSE:
        off = max(
            abs(row.parameters[k] / v - 1) for row in ours for k, v in TRUTH[name].items()
        )  # fmt: skip
        said = "met" if off <= CLOSE[name] else "NOT MET"
        print(f"parameters within {CLOSE[name]:.0%}: {said} (at most {off:.1%} off)")
    particles, share = SHARE.get(name, (0, 0))
    if particles in rivals:
        ratio = max(row.seconds for row in ours) / rivals[particles]["cpu_seconds"]
        rounds = rivals[particles]["outer"]
        print(
            f"CPU time at most {share:.2g} of the published loop's ({particles} particles, {rounds} "
            f"rounds): {'met' if ratio <= share else 'NOT MET'} ({ratio:.3g}: 1 in {1 / ratio:.0f})"
        )


def fresh(seeds: int) -> None:
    warm_up()
    rows, off, found = {}, 0.0, []
    for seed in range(seeds):
        course = simulated(seed)
        row = fit(course, LotkaVolterra(), ROUNDS, seed)
        true = fit(course, LotkaVolterra(**TRUTH["LV"]), 0, seed)
        said = cells(row.w1, numbers(row.parameters), row.seconds, row.objective)
        rows[f"genflow, data {seed}"] = said
        said = cells(true.w1, numbers(TRUTH["LV"]), None, true.objective)
        rows[f"*bridge at the truth, data {seed}*"] = said
        off = max(off, *(abs(row.parameters[k] / v - 1) for k, v in TRUTH["LV"].items()))
        found.append((row.w1, true.w1))
    heads = [f"t = {t:g}" for t in course.heldout]
    markdown("Lotka-Volterra, simulated anew: held-out W1", [*heads, "parameters", "J", "CPU s"], rows)
    print()
    for word, scores in zip(("genflow", "the bridge at the truth"), zip(*found)):
        met = sum(all(v <= limit for v, limit in zip(w1, LIMITS["LV"])) for w1 in scores)
        mean = [round(sum(column) / seeds, 3) for column in zip(*scores)]
        print(f"W1 at most {LIMITS['LV']}: {met} of {seeds} data sets by {word}, mean {mean}")
    print(f"parameters within 5%: {'met' if off <= 0.05 else 'NOT MET'} (at most {off:.1%} off)")


def rotation(dim: int) -> OrnsteinUhlenbeck:
    """A damped rotation in every pair of coordinates, slowly mixed."""
    matrix = -0.3 * torch.eye(dim, dtype=torch.float64)
    turn = torch.triu(torch.ones(dim, dim, dtype=torch.float64), 1) * dim**-0.5
    return OrnsteinUhlenbeck(dim, (matrix + turn - turn.mT).tolist(), [0.0] * dim)


def cost(particles: int, dim: int, queue: multiprocessing.Queue) -> None:
    """Seconds of one outer iteration of least squares after the first, and the memory of the
    process."""
    torch.set_num_threads(1)
    draw = stream("multimarginal", "cost", particles, dim)
    data = SimulatedSnapshots(
        rotation(dim), Box([1.0] * dim, [2.0] * dim), [0.0, 1.0, 2.0], n=particles, sigma=0.5, seed=1
    )
    xs = [torch.from_numpy(np.array(x)).double() for x in data.series.arrays]
    bridge = MultiMarginalBridge(OrnsteinUhlenbeck(dim), 0.5, times=[0.0, 1.0, 2.0], steps=20)
    loss = ReferenceRefinement(StaticBridge(tolerance=1e-5), LeastSquares())
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    loss.fit(bridge, *xs, iterations=1, generator=draw, progress=False)
    begin = time.process_time()
    loss.fit(bridge, *xs, iterations=1, generator=draw, progress=False)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put((seconds, peak - idle))


def costs(cases: list[tuple[int, int]], what: str) -> None:
    """Each case in a process of its own, whose memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    rows, points = {}, []
    for particles, dim in cases:
        queue = spawn.Queue()
        child = spawn.Process(target=cost, args=(particles, dim, queue))
        child.start()
        seconds, memory = queue.get()
        child.join()
        size = particles if what == "particles" else dim
        points.append((size, seconds))
        power = ""
        if len(points) > 1:
            (a, s), (b, t) = points[-2:]
            power = f"{math.log(t / s) / math.log(b / a):.2f}"
        rows[f"{size}"] = [f"{seconds:.3g}", power, f"{memory:.2f}"]
    heads = ["CPU s an outer iteration", "power of the growth", "memory, GiB"]
    fixed = "2 coordinates" if what == "particles" else "500 particles"
    markdown(f"Cost by {what}, {fixed}, three snapshots, 20 steps an interval", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["known", "fresh", "particles", "dimensions"])
    parser.add_argument("--courses", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument("--seeds", type=int, default=3, help="of fits, or data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/multimarginal"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "known":
        known(options.courses, options.seeds, options.out)
    elif options.what == "fresh":
        fresh(options.seeds)
    elif options.what == "particles":
        costs([(n, 2) for n in (50, 200, 1000, 2000, 5000)], "particles")
    else:
        costs([(500, d) for d in (2, 5, 10, 20, 50)], "dimensions")


if __name__ == "__main__":
    main()
