"""Sliced-Wasserstein estimators beside their rivals: how fast, how large, how noisy, and in a flow.

One process, one thread; the rivals are POT's torch backend, the plain vectorised torch form, and the
published control-variate estimators (Nguyen & Ho 2023) coefficient for coefficient.

    python -m benchmarks.sliced time
    python -m benchmarks.sliced memory
    python -m benchmarks.sliced variance --figure docs/figures/sliced.png
    python -m benchmarks.sliced flow --figure docs/figures/sliced_flow.png

Every command prints Markdown tables, and beside each figure the limit that it is held to.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.sliced_speed import DIMS, SIZES


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("time", help="CPU and wall time, L = 100")
    speed.add_argument("--rounds", type=int, help="turns of each; by size if not given")
    memory = commands.add_parser("memory", help="peak extra memory, a process for each figure")
    memory.add_argument("--chunk", type=int, default=10, help="projections at once, where asked")
    for command in (speed, memory):
        command.add_argument("--sizes", type=int, nargs="+", default=SIZES)
        command.add_argument("--dims", type=int, nargs="+", default=DIMS)
    noise = commands.add_parser("variance", help="value and gradient, over plain Monte Carlo")
    noise.add_argument("--reps", type=int, default=500)
    noise.add_argument("--projections", type=int, nargs="+", default=[10, 50, 100])
    noise.add_argument(
        "--sets", nargs="+", help="beginnings of names; the three with limits if not given, '' for all"
    )
    noise.add_argument("--figure", help="where the figure goes")
    flow = commands.add_parser("flow", help="gradient flow of one shape to another")
    flow.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    flow.add_argument("--steps", type=int, default=6200)
    flow.add_argument(
        "--shift",
        type=float,
        default=20 * 3**0.5,
        help="distance of the means; as published, 20 in each of three coordinates",
    )
    flow.add_argument("--figure", help="where the figure goes")
    return top


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    if options.command == "time":
        from benchmarks.sliced_speed import time_all

        time_all(options.sizes, options.dims, options.rounds)
    elif options.command == "memory":
        from benchmarks.sliced_speed import memory_all

        memory_all(options.sizes, options.dims, options.chunk)
    elif options.command == "variance":
        from benchmarks.sliced_noise import noise_all

        noise_all(options.reps, options.projections, options.sets, options.figure)
    else:
        from benchmarks.sliced_flow import flow_all

        flow_all(options.seeds, options.steps, options.shift, options.figure)


if __name__ == "__main__":
    main()
