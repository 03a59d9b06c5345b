"""Light Schrödinger bridges beside the published algorithm and networks, on plans that are known.

    python -m benchmarks.entropic fit                           # hours; takes up where it was cut off
    python -m benchmarks.entropic fit --dims 2 --epsilons 1 --seeds 0 --steps 1000
    python -m benchmarks.entropic fit --table --figure docs/figures/entropic.png
    python -m benchmarks.entropic table --quick
    python -m benchmarks.entropic cite --path FOLDER
    python -m benchmarks.entropic speed

One thread, CPU times. Every training is kept below ``--out`` and not made again unless ``--again``
names its solver; ``--table`` prints what is there, and beside each figure the limit that it is held to.
The published algorithm is in ``benchmarks/light_rivals.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

DIMS, EPSILONS, SEEDS = (2, 16, 64, 128), (0.1, 1.0, 10.0), (0, 1, 2)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="exact divergence over CPU time, fit and published")
    fit.add_argument("--steps", type=int, default=10_000, help="of the published training")
    fit.add_argument("--points", type=int, default=20_000, help="pairs behind a divergence")
    fit.add_argument(
        "--solvers", nargs="+", choices=("ours", "published"), default=("published", "ours")
    )
    fit.add_argument("--figure", help="where the figure goes")
    table = commands.add_parser("table", help="every solver on every pair")
    table.add_argument("--quick", action="store_true", help="a small budget for all")
    for command, seeds in ((fit, SEEDS), (table, SEEDS[:1])):
        command.add_argument("--dims", type=int, nargs="+", default=DIMS)
        command.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
        command.add_argument("--seeds", type=int, nargs="+", default=seeds, help="of the pairs")
        command.add_argument("--components", type=int, default=50)
        command.add_argument("--table", action="store_true", help="train nothing, print what is kept")
    cite = commands.add_parser("cite", help="a single-cell time course")
    cite.add_argument("--path", help="folder of the days; below GENFLOW_DATA if not given")
    cite.add_argument("--splits", type=int, default=5)
    cite.add_argument("--components", type=int, nargs="+", default=[10, 50])
    cite.add_argument("--steps", type=int, default=10_000, help="of the published training")
    for command in (fit, table, cite):
        command.add_argument("--out", type=Path, default=Path("runs/entropic"), help="what is kept")
        command.add_argument(
            "--again", nargs="+", default=[], metavar="SOLVER", help="beginnings of names; train anew"
        )
    speed = commands.add_parser("speed", help="drift, plan sampling and training steps")
    speed.add_argument("--rounds", type=int, default=15)
    speed.add_argument("--points", type=int, nargs="+", default=[1024, 8192], help="points at once")
    return top


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    if options.command == "speed":
        from benchmarks.light_speed import FULL, SIZES, speed_all

        speed_all(options.rounds, SIZES, FULL, options.points)
        return
    if options.command == "cite":
        from benchmarks.light_cite import cite_all

        sizes = options.splits, options.components, options.steps
        cite_all(options.path, *sizes, options.out, tuple(options.again))
        return
    cells = [(d, e, s) for d in options.dims for e in options.epsilons for s in options.seeds]
    if options.command == "fit":
        from benchmarks.entropic_fit import Setting, fit_all

        setting = Setting(options.out, options.steps, options.components, options.points)
        again = tuple(options.again)
        fit_all(setting, cells, options.solvers, again, options.table, options.figure)
    else:
        from benchmarks.entropic_table import QUICK, Budget, table_all

        budget = QUICK if options.quick else Budget()
        again = tuple(options.again)
        table_all(cells, options.components, budget, options.out, again, options.table)


if __name__ == "__main__":
    main()
