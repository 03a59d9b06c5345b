"""Do 90 % intervals hold the truth? Freshly simulated Lotka-Volterra snapshots, many times over.

    python -m benchmarks.multimarginal_coverage --sets 20

Each set has five training snapshots of 50 particles, every snapshot an independent batch. Intervals
come from the marginal likelihood of the population; results are kept in a folder, set by set, and are
not made again. With the step of the simulator the moments are those of its recursion; without, those of
the continuous process, whose difference is a bias that users cannot know of.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sliced_speed import markdown
from genflow.population import PopulationModel, simulate
from genflow.process.reference import LotkaVolterra
from genflow.seeds import stream
from genflow.source import Box

TRUTH = {"alpha": 1.0, "beta": 0.4, "gamma": 0.4, "delta": 0.1}
TIMES, PARTICLES, SIGMA, DT = (0.0, 2.0, 4.0, 6.0, 8.0), 50, 0.1, 0.02
START = Box([5.0, 4.0], [5.1, 4.1])
BEGIN = 0.3
"""Where all four rates stand before the fit."""
LEVEL = 0.9
LEAST, MOST = 16, 20
"""Of 20 sets, how many a parameter's interval should cover."""
KINDS: dict[str, dict[str, Any]] = {
    "continuous": {},
    "step of the simulator": {"dt": DT},
    "linear closure": {"closure": "linear"},
}


def one(seed: int, options: dict[str, Any], method: str = "laplace") -> dict[str, Any]:
    """Intervals of one simulated set."""
    draws = stream("coverage", seed)
    truth = LotkaVolterra(**TRUTH)
    snapshots = simulate(truth, SIGMA, TIMES, [PARTICLES] * len(TIMES), START, DT, draws)
    begun = time.process_time()
    begin = LotkaVolterra(*[BEGIN] * len(TRUTH))
    model = PopulationModel(begin, SIGMA, TIMES, snapshots, **options)
    found = model.posterior(method, generator=draws)
    seconds = time.process_time() - begun
    return {
        "mean": found.mean,
        "single": found.intervals(LEVEL),
        "together": found.intervals(LEVEL, simultaneous=True),
        "seconds": seconds,
    }


def kept(path: Path, seed: int, options: dict[str, Any], method: str) -> dict[str, Any]:
    """The result of a set, from its file if there is one."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one(seed, options, method)))
    return json.loads(path.read_text())


def covered(intervals: dict[str, list[float]]) -> dict[str, bool]:
    return {name: intervals[name][0] <= value <= intervals[name][1] for name, value in TRUTH.items()}


def row(results: list[dict[str, Any]]) -> tuple[dict[str, int], list[str]]:
    """How many intervals hold each parameter, and the cells of the table."""
    counts = {name: sum(covered(r["single"])[name] for r in results) for name in TRUTH}
    jointly = sum(all(covered(r["together"]).values()) for r in results)
    widths = [
        100 * sum(r["single"][name][1] - r["single"][name][0] for r in results) / len(results) / value
        for name, value in TRUTH.items()
    ]
    seconds = sum(r["seconds"] for r in results) / len(results)
    cells = [f"{n} ({width:.0f} %)" for n, width in zip(counts.values(), widths)]
    return counts, [*cells, str(jointly), f"{seconds:.1f}"]


def coverage_all(sets: int, kinds: list[str], method: str, out: Path) -> None:
    rows, verdicts = {}, []
    for kind in kinds:
        folder = out / f"{method}-{kind.replace(' ', '-')}"
        results = [kept(folder / f"{k}.json", k, KINDS[kind], method) for k in range(sets)]
        counts, rows[kind] = row(results)
        fine = all(LEAST * sets <= 20 * n <= MOST * sets for n in counts.values())
        verdicts.append(f"- {kind}: {'reached' if fine else 'MISSED'}, {LEAST} to {MOST} of 20 each")
    title = f"{LEVEL:.0%} intervals that hold the truth, of {sets} sets (mean width); {method}"
    markdown(title, [*TRUTH, "all four (simultaneous)", "CPU s a set"], rows)
    print("\n" + "\n".join(verdicts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS)[:2])
    parser.add_argument("--method", choices=("laplace", "svi", "nuts"), default="laplace")
    parser.add_argument("--out", type=Path, default=Path("runs/multimarginal/coverage"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    coverage_all(options.sets, options.kinds, options.method, options.out)


if __name__ == "__main__":
    main()
