"""Single-cell time courses with one time left out: bridges and flows beside each other.

Each interior time is held out in turn, every solver sees the others. It is scored by exact W1
(Euclidean cost, in units of the file) between ``--points`` states of its paths at that time and as many
cells held out; exact distances shrink with the number of points, so that it is the same for all. Each
seed draws other cells where there are more than ``--cells``; it is the same for every solver. The floor
is the distance of other cells of the same time, where there are any.

    GENFLOW_DATA=... python -m benchmarks.multimarginal_cells cite --components 5
    python -m benchmarks.multimarginal_cells hsmm --path hsmm.npz
    python -m benchmarks.multimarginal_cells hsmm --path hsmm.npz --table   # what is there, again

CITE is the folder ``cite_pca50`` of ``GENFLOW_DATA`` (or ``--path``), days 2, 3, 4 and 7;
``benchmarks.hsmm`` makes the other file. Solvers work on coordinates divided by one number, the root
mean variance of what they are trained on, and on a clock from 0 to 1; ``--sigma`` is in those units.
Results are kept in ``--out``, one file a run, and not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.multimarginal_solvers import PARTICLES, SOLVERS, Course
from benchmarks.sliced_speed import markdown
from genflow.distance import Wasserstein
from genflow.seeds import stream

DAYS = 2, 3, 4, 7
FLOOR = "floor: other cells of that time"


def snapshots(name: str, path: str | None, components: int) -> tuple[list[Tensor], list[float]]:
    """All snapshots ``(n_k, components)`` and their times."""
    if name == "hsmm":
        if path is None:
            raise SystemExit("hsmm needs --path, the .npz file that benchmarks.hsmm makes")
        file = np.load(path)
        arrays, times = [file[f"x{k}"] for k in range(len(file["times"]))], file["times"].tolist()
    else:
        folder = Path(path or Path(os.environ.get("GENFLOW_DATA", ".")) / "cite_pca50")
        files = [folder / f"full_cite_pcas_50_day_{day}.npy" for day in DAYS]
        if missing := [str(f) for f in files if not f.is_file()]:
            raise SystemExit(f"there is no '{missing[0]}': set GENFLOW_DATA, or --path to the folder")
        arrays, times = list(map(np.load, files)), list(map(float, DAYS))
    return [torch.from_numpy(a[:, :components].astype(np.float64)) for a in arrays], times


def course(
    xs: Sequence[Tensor], times: Sequence[float], held: int, cells: int, sigma: float, seed: int
) -> Course:
    """The course without snapshot ``held``; a seed draws the cells."""
    draw = stream("cells", seed)
    order = [torch.randperm(len(x), generator=draw) for x in xs]
    some = [x[rows[:cells]] for x, rows in zip(xs, order)]
    spare = xs[held][order[held][cells : 2 * cells]]
    kept = [k for k in range(len(xs)) if k != held]
    scale = float(torch.cat([some[k] for k in kept]).var(0).mean().sqrt())
    first, last = times[0], times[-1]
    clock = [(t - first) / (last - first) for t in times]
    return Course(
        tuple(some[k] / scale for k in kept), tuple(clock[k] for k in kept), clock[held],
        some[held] / scale, spare / scale if len(spare) == len(some[held]) else None, scale, sigma,
    )  # fmt: skip


def score(what: Course, name: str, points: int, seed: int) -> dict[str, float] | None:
    """W1 in units of the file and CPU seconds; nothing where there is no floor."""
    seconds = 0.0
    if name == FLOOR:
        if what.floor is None:
            return None
        found = what.floor[:points]
    else:
        states, seconds = SOLVERS[name](what, points, seed)
        found = states()
    w1 = float(Wasserstein(p=1)(found.double(), what.rows[:points])) * what.scale
    return {"w1": w1, "cpu_seconds": seconds}


def run(options: argparse.Namespace) -> dict[tuple[str, float], list[dict[str, float]]]:
    """Scores of every solver at every time held out; those that are kept are not made again."""
    xs, times = snapshots(options.course, options.path, options.components)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for held in range(1, len(times) - 1):
            what = course(xs, times, held, options.cells, options.sigma, seed)
            points = min(options.points, len(what.rows))
            for number, name in enumerate([*SOLVERS, FLOOR]):
                size = f"d{xs[0].shape[1]}-n{options.cells}-p{points}-sigma{options.sigma:g}"
                word = f"{options.course}-{size}-held{times[held]:g}-{number}-seed{seed}"
                file = out / f"{word}.json"
                if not file.exists():
                    if options.table or (options.only and number not in options.only):
                        continue
                    result = {"solver": name, "score": score(what, name, points, seed)}
                    file.with_suffix(".part").write_text(json.dumps(result))
                    file.with_suffix(".part").rename(file)
                    print(f"{word}: {name}: {result['score']}", flush=True)
                kept = json.loads(file.read_text())["score"]
                if kept is not None:
                    found.setdefault((name, times[held]), []).append(kept)
    return found


def mean(values: Sequence[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def table(found: dict[tuple[str, float], list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Mean ± standard error over seeds; the best of each column bold, and who it is."""
    times, seeds = sorted({held for _, held in found}), max(map(len, found.values()))
    names = [name for name in SOLVERS if any((name, t) in found for t in times)]
    rows: dict[str, list[str]] = {name: [] for name in [*names, FLOOR]}
    said = []
    for held in times:
        scores = {n: mean([s["w1"] for s in found[n, held]]) for n in rows if (n, held) in found}
        best = min((n for n in names if n in scores), key=lambda n: scores[n][0])
        for name in rows:
            text = "{:.3f} ± {:.3f}".format(*scores[name]) if name in scores else "-"
            runs = len(found.get((name, held), []))
            text += f" ({runs} seeds)" if 0 < runs < seeds else ""
            rows[name].append(f"**{text}**" if name == best else text)
        close = [
            n for n in names
            if n != best and n in scores and scores[n][0] - scores[best][0]
            <= 2 * math.hypot(scores[n][1], scores[best][1])
        ]  # fmt: skip
        also = f"; within two standard errors of it: {', '.join(close)}" if close else ""
        said.append(f"- held out {held:g}: {best} wins{also}")
    for name in rows:
        seconds = [s["cpu_seconds"] for t in times for s in found.get((name, t), [])]
        rows[name].append(f"{statistics.fmean(seconds):.2g}" if seconds and name != FLOOR else "-")
    head = [f"W1, {t:g} held out" for t in times] + ["CPU s"]
    markdown(
        f"{options.course}: {seeds} seeds, mean ± standard error; at most {options.cells} cells a "
        f"time, {PARTICLES} of them for IPF; sigma {options.sigma:g}",
        head,
        rows,
    )
    print("\n" + "\n".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("course", choices=["cite", "hsmm"])
    parser.add_argument("--path", help="folder of the days of CITE, or the .npz file of HSMM")
    parser.add_argument("--components", type=int, default=5)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of solvers, in their order")
    parser.add_argument("--out", default="runs/multimarginal_cells")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options)
    if found:
        table(found, options)


if __name__ == "__main__":
    main()
