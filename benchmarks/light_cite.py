"""A single-cell time course: light bridges from an early to a late day, scored in between and held out.

The data are four ``.npy`` tables of 50 principal components, one a day. Every split trains on four
fifths of both end days; the plan's objective is scored on the rest, the middle day by the energy
distance of the bridge at its time.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.light_record import Trace, bridge_of, run_ours, run_published
from benchmarks.sliced_speed import markdown, verdict
from genflow.distance import EnergyDistance
from genflow.seeds import stream
from genflow.source import Empirical

FILE = "full_cite_pcas_50_day_{day}.npy"
FOLDER = "cite_pca50"
COURSES = ((2, 3, 4), (3, 4, 7))
"""Start, day between, end."""
EPSILON, RATE, SCALE = 0.1, 1e-2, 0.1
HELD, POINTS = 0.2, 4000
LIMITS = {10: 5, 50: 10}
"""CPU seconds of a fit, by the number of components."""


@dataclass(frozen=True)
class Split:
    """Rows of both end days in units of the mean standard deviation of the training rows.

    Attributes:
        train, held: start and end, ``(n, 50)`` each.
        starts, middle: rows of the start and of the middle day, all of them.
        clock: where the middle day lies between the ends, in (0, 1).
        scale: what the data were divided by.
    """

    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    starts: Tensor
    middle: Tensor
    clock: float
    scale: float


def find(path: str | None) -> Path | None:
    """The folder of the days, given or below ``GENFLOW_DATA``; ``None`` where there is none."""
    places = [Path(path)] if path else []
    if os.environ.get("GENFLOW_DATA"):
        places += [Path(os.environ["GENFLOW_DATA"]) / FOLDER, Path(os.environ["GENFLOW_DATA"])]
    days = {day for course in COURSES for day in course}
    for place in places:
        if all((place / FILE.format(day=day)).is_file() for day in days):
            return place
    looked = " or ".join(f"'{place}'" for place in places) or "no folder (neither is set)"
    print(
        f"skipped: the days {sorted(days)} as '{FILE}' were looked for in {looked}; give their folder "
        "as --path, or set GENFLOW_DATA"
    )
    return None


def split_of(folder: Path, course: tuple[int, int, int], k: int) -> Split:
    start, between, end = course
    rows = {day: torch.from_numpy(np.load(folder / FILE.format(day=day))).double() for day in course}
    draw, parts = stream("cite", "split", *course, k), {}
    for day in (start, end):
        order = torch.randperm(len(rows[day]), generator=draw)
        held, train = order.tensor_split([round(HELD * len(order))])
        parts[day] = rows[day][train], rows[day][held]
    scale = float(torch.cat([parts[start][0], parts[end][0]]).std(0).mean())
    train, held = zip(*(tuple(part / scale for part in parts[day]) for day in (start, end)))
    clock = (between - start) / (end - start)
    return Split(train, held, rows[start] / scale, rows[between] / scale, clock, scale)


def train(split: Split, components: int, steps: int | None, seed: int) -> Trace:
    """Our fit, or the published training where there are ``steps``."""
    ends = [x.float() for x in split.train]
    dim = ends[0].shape[1]
    if steps is None:
        return run_ours(*ends, dim, components, EPSILON, seed)
    ends = [Empirical(x) for x in ends]
    return run_published(*ends, dim, components, EPSILON, seed, steps, RATE, SCALE)


def score(split: Split, trace: Trace, seed: int) -> dict[str, float]:
    """Plan losses in float64 and the half energy distance at the middle day, in units of the file."""
    bridge = bridge_of(trace.states[-1], EPSILON)
    draw = stream("cite", "score", seed)
    rows = [x[torch.randperm(len(x), generator=draw)[:POINTS]] for x in (split.starts, split.middle)]
    with torch.no_grad():
        found = bridge.sample_at(rows[0], split.clock, generator=draw)
        energy = split.scale * float(EnergyDistance()(found, rows[1])) / 2
        losses = {
            name: float(bridge.objective(*ends))
            for name, ends in (("train", split.train), ("held", split.held))
        }
    return {**losses, "energy": energy, "seconds": trace.seconds[-1]}


Scores = dict[str, list[dict[str, float]]]


def cite_all(
    path: str | None, splits: int, components: list[int], steps: int, out: Path, again: tuple[str, ...]
) -> None:
    folder = find(path)
    if folder is None:
        return
    print(
        f"{splits} random 80/20 splits, mean ± standard error; epsilon {EPSILON} in units of the mean "
        f"standard deviation; published: {steps:,} Adam steps of 128 at {RATE:g}; energy: half the "
        f"energy distance at the middle day, {POINTS} points each, in units of the file; CPU seconds "
        "of one thread"
    )
    rows: dict[str, list[str]] = {}
    verdicts: list[str] = []
    for course in COURSES:
        for k in components:
            found = _cell(folder, course, k, splits, steps, out, again)
            for name, scores in found.items():
                rows[f"{course[0]} to {course[2]}, K={k}, {name}"] = _row(scores)
            verdicts.append(f"- days {course[0]} to {course[2]}, K={k}: {_judge(found, k)}")
    head = ["plan loss, training rows", "plan loss, held out", "energy, middle day", "CPU s"]
    markdown("single-cell time course, 50 dimensions", head, rows)
    print("\n" + "\n".join(verdicts))


def _cell(
    folder: Path,
    course: tuple[int, int, int],
    components: int,
    splits: int,
    steps: int,
    out: Path,
    again: tuple[str, ...],
) -> Scores:
    """Scores of every split by both solvers; those that are kept are not made again."""
    found: Scores = {"LightBridge.fit": [], "published": []}
    out.mkdir(parents=True, exist_ok=True)
    for k in range(splits):
        split = split_of(folder, course, k)
        for name, length in (("LightBridge.fit", None), ("published", steps)):
            label = f"cite-{name}-{course[0]}-{course[2]}-K{components}-split{k}"
            file = out / f"{label}{'' if length is None else f'-{length}'}.json"
            if not file.exists() or name.startswith(again):
                file.write_text(json.dumps(score(split, train(split, components, length, k), k)))
            found[name].append(json.loads(file.read_text()))
            told = ", ".join(f"{key} {value:.5g}" for key, value in found[name][-1].items())
            print(f"{label}: {told}", flush=True)
    return found


def _mean(scores: list[dict[str, float]], name: str) -> tuple[float, float]:
    values = [one[name] for one in scores]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def _row(scores: list[dict[str, float]]) -> list[str]:
    return [
        "{:.2f} ± {:.2f}".format(*_mean(scores, name))
        for name in ("train", "held", "energy", "seconds")
    ]


def _judge(found: Scores, components: int) -> str:
    ours, theirs = found["LightBridge.fit"], found["published"]
    gap, error = _mean([{"gap": a["held"] - b["held"]} for a, b in zip(ours, theirs)], "gap")
    most = max(one["seconds"] for one in ours)
    seconds = verdict("most CPU seconds", most, LIMITS.get(components, math.inf), False)
    further, spread = _mean([{"gap": a["energy"] - b["energy"]} for a, b in zip(ours, theirs)], "gap")
    near = "met" if further <= 2 * spread else "NOT MET"
    near = "one split has none" if math.isnan(spread) else near
    return (
        f"held-out loss {gap:+.2f} ± {error:.2f} of the published (below: "
        f"{'met' if gap < 0 else 'NOT MET'}); {seconds}; energy {further:+.3f} ± {spread:.3f} (within "
        f"two standard errors: {near})"
    )
