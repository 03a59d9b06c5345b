"""One trained stochastic interpolant, sampled with many amounts of noise in both directions.

Two Gaussian mixtures, 4,000 points: energy distance and exact W2 to fresh draws of the true law, beside
the floor, the same between two sets of fresh draws. ``python -m benchmarks.stochasticity``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean, stdev

import torch

from genflow.training.cli import conf_dir

PAGE = """# One model, any amount of noise

`python -m benchmarks.stochasticity --steps {steps} --rounds {rounds} --table docs/stochasticity.md`
trains `experiment=interpolant_gmm` (eight Gaussians to a mixture of three, linear path, Brownian width,
one MLP of width {width} with two outputs) and writes this page. {solver_steps} steps, {points} points,
mean over {rounds} rounds ± standard error of the difference to the floor, which is the distance between
two sets of draws of the true law; the ODE by Heun, noise by stochastic Heun. A star: within two
standard errors of the floor plus ten per cent.
"""
ERRORS = """The true error of the learned fields (`genflow.oracle`) over 25 times from 0.01 to 0.99:

![error of the fields over time](figures/field_error.png)

| what | value |
|---|---|"""
AMOUNTS = (0.0, 0.1, 1.0, "gamma", "gamma_squared")


def parts(steps: int, width: int, folder: Path) -> tuple:
    """Training, data and trainer of the experiment ``interpolant_gmm``, without its report."""
    from hydra import compose, initialize_config_dir

    from genflow.training.cli import build

    overrides = [
        "experiment=interpolant_gmm", f"steps={steps}", f"network.width={width}", "batch_size=512",
        "optimizer.lr=0.002", f"folder={folder}", "callbacks.report=null", "callbacks.figures=null",
        "metrics=none", "logger=none",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return build(compose("train", overrides))


def measure(model, laws, n: int, rounds: int, steps: int) -> dict:
    """Distances of every amount of noise and direction, and their floors."""
    from genflow.distance import EnergyDistance, Wasserstein

    distances = {"energy": EnergyDistance(), "w2": Wasserstein()}
    found: dict = {}
    for k in range(rounds):
        draw = torch.Generator().manual_seed(100 + k)
        for side, law in enumerate(laws):
            true, other = law.sample(n, draw), law.sample(n, draw)
            for name, distance in distances.items():
                found.setdefault(("floor", side, name), []).append(float(distance(other, true)))
            for amount in AMOUNTS:
                start = laws[1 - side].sample(n, draw)
                x = model.sample(
                    x0=start, epsilon=amount, steps=steps, reverse=side == 0, generator=draw
                )
                for name, distance in distances.items():
                    found.setdefault((amount, side, name), []).append(float(distance(x, true)))
            print(f"round {k + 1}, {'backward' if side == 0 else 'forward'} done", flush=True)
    return found


def table(found: dict) -> list[str]:
    """One line for each amount and direction; a star where a distance is within its limit."""
    lines = [
        "| epsilon | direction | energy distance | floor | W2 | floor |",
        "|---|---|---|---|---|---|",
    ]
    for side, word in ((1, "forward"), (0, "backward")):
        for amount in AMOUNTS:
            cells = []
            for name in ("energy", "w2"):
                values, floor = found[amount, side, name], found["floor", side, name]
                error = stdev([a - b for a, b in zip(values, floor)]) / len(values) ** 0.5
                inside = mean(values) <= 1.1 * mean(floor) + 2 * error
                cells += [
                    f"{mean(values):.4f} ± {error:.4f}{' *' if inside else ''}", f"{mean(floor):.4f}"
                ]  # fmt: skip
            label = "0 (ODE)" if amount == 0 else str(amount)
            lines.append(f"| {label} | {word} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of the training")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--points", type=int, default=4000)
    parser.add_argument("--solver-steps", type=int, default=200)
    parser.add_argument("--load", help="a model.ckpt instead of a training")
    parser.add_argument("--table", help="a Markdown file to write the page to")
    parser.add_argument("--figure", default="docs/figures/field_error.png")
    options = parser.parse_args()
    torch.set_num_threads(1)

    import genflow
    from genflow.oracle import Exact, independent

    folder = Path("runs/stochasticity")
    training, data, trainer = parts(options.steps, options.width, folder)
    if options.load is None:
        start = time.perf_counter()
        trainer.fit(training, datamodule=data)
        print(f"trained in {time.perf_counter() - start:.0f} s")
    model = genflow.load(options.load or folder / "model.ckpt")
    laws = data.data.marginals("test")
    error = Exact(independent(*laws), model.process.interpolant).field_error(model)
    numbers = [f"| {k} | {v:.4f} |" for k, v in error.numbers().items()]
    print("\n".join(numbers))
    error.figure().savefig(options.figure, dpi=110)
    lines = table(measure(model, laws, options.points, options.rounds, options.solver_steps))
    print("\n".join(lines))
    if options.table:
        page = [PAGE.format(**vars(options)), *lines, "", ERRORS, *numbers]
        Path(options.table).write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
