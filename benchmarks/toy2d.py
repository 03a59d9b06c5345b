"""Flow matching in the plane: plain, exact OT, weighted, and torchcfm, by the same protocol.

Three pairs of laws, five seeds; the 64 x 3 SELU network of torchcfm's tutorials, batch 256, 2,500 steps
of Adam from 5e-3 with cosine decay (at a constant 1e-3, distances are larger for every method and vary
by a fifth from seed to seed). Reported are the exact 2-Wasserstein distance to 4,000 fresh points of
the data, with an adaptive solver and with five Euler steps, the signed path-energy excess, and the
seconds of training on one thread. Run it with

    python -m benchmarks.toy2d --table docs/toy2d.md --figure docs/figures/toy2d.png

It takes about forty minutes. Networks, batches and evaluation are the same objects for all methods;
only the pairs and their weights differ. ``--seeds 1 --pairs "N -> moons"`` is a quick look.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
from tqdm import tqdm

from benchmarks.matching import Net
from genflow import plot
from genflow.coupling import Coupling, ExactOT, Gibbs, Independent
from genflow.coupling.cost import row_cost
from genflow.diagnostics import energy_excess, path_energy, tilt_report
from genflow.distance import Wasserstein
from genflow.loss import Matching
from genflow.model import Generator
from genflow.process import SDE
from genflow.solver import Adaptive, Euler
from genflow.source import EightGaussians, Gaussian, Moons, Source

STEPS, BATCH, POINTS, RATE = 2500, 256, 4000, 5e-3
PAIRS: dict[str, tuple[Source, Source]] = {
    "N -> 8 Gaussians": (Gaussian(2), EightGaussians()),
    "8 Gaussians -> moons": (EightGaussians(), Moons(noise=0.2)),
    "N -> moons": (Gaussian(2), Moons(noise=0.2)),
}
COLUMNS = ("w2", "w2_euler5", "excess", "seconds")
HEAD = """# Flow matching in the plane, side by side

`python -m benchmarks.toy2d --table docs/toy2d.md --figure docs/figures/toy2d.png` writes this page:
five seeds, mean ± standard error, 4,000 points, exact OT. The floor is the distance between two samples
of the data. A path-energy excess below zero proves a missed marginal. `epsilon = 0.5 mean cost` and
`ess 0.5` are uncorrected Gibbs weights, `wcfm_gaussian` is `Gibbs(correction="gaussian")`; their tilt
is in the last column, in nats. The moons have noise 0.2, as in torchcfm's tutorials.

![distances to the data](figures/toy2d.png)
"""
Step = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def by_genflow(coupling: Coupling) -> Step:
    loss = Matching(coupling=coupling)
    return lambda net, x0, x1, draw: loss(net, x0, x1, generator=draw)


def by_torchcfm() -> Step:
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def step(net: nn.Module, x0: Tensor, x1: Tensor, draw: torch.Generator) -> Tensor:
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        return ((net(t, xt) - ut) ** 2).mean()

    return step


def methods(x0: Tensor, x1: Tensor) -> dict[str, tuple[Step, Coupling | None]]:
    """Every method, with its coupling where that is ours."""
    mean = float(row_cost("sqeuclidean", x0, x1).mean())
    ours = {
        "cfm": Independent(),
        "otcfm": ExactOT(),
        "wcfm, epsilon = 0.5 mean cost": Gibbs(epsilon=0.5 * mean),
        "wcfm, ess 0.5": Gibbs().prepare(x0, x1),
        "wcfm_gaussian, ess 0.5": Gibbs(correction="gaussian").prepare(x0, x1),
        "wcfm_gaussian, ess 0.4": Gibbs(ess=0.4, correction="gaussian").prepare(x0, x1),
    }
    found: dict[str, tuple[Step, Coupling | None]] = {
        name: (by_genflow(coupling), coupling) for name, coupling in ours.items()
    }
    return found | {"torchcfm OT-CFM": (by_torchcfm(), None)}


def train(step: Step, source: Source, data: Source, seed: int) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    net, draw = Net(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    start = time.perf_counter()
    for _ in range(STEPS):
        x0, x1 = source.sample(BATCH, draw), data.sample(BATCH, draw)
        optimizer.zero_grad()
        step(net, x0, x1, draw).backward()
        optimizer.step()
        schedule.step()
    return net, time.perf_counter() - start


def seconds(rounds: int) -> None:
    """Training time of the weighted methods over plain matching, in turns, without evaluation."""
    source, data = PAIRS["8 Gaussians -> moons"]
    draw = torch.Generator().manual_seed(77)
    tried = methods(source.sample(20_000, draw), data.sample(20_000, draw))
    names = [name for name in tried if name == "cfm" or name.startswith("wcfm")]
    times: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(rounds):
        for name in names:
            times[name].append(train(tried[name][0], source, data, seed)[1])
    plain = statistics.median(times["cfm"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<32} {median:6.2f} s   {median / plain:.2f} of cfm's")


def evaluate(net: nn.Module, source: Source, data: Source, seed: int) -> dict[str, float]:
    draw, distance = torch.Generator().manual_seed(10_000 + seed), Wasserstein()
    x0, x1 = source.sample(POINTS, draw), data.sample(POINTS, draw)
    model = Generator(source, SDE(net), Adaptive()).eval()
    return {
        "w2": float(distance(model.sample(x0=x0), x1)),
        "w2_euler5": float(distance(model.sample(x0=x0, solver=Euler(5)), x1)),
        "energy": path_energy(model.process, x0, steps=50),
        "seed": seed,
    }


def references(source: Source, data: Source, seeds: int) -> dict[str, float]:
    """The squared distance of the pair, and the distance of two samples of the data."""
    distance, draw = Wasserstein(), torch.Generator().manual_seed(99)
    pairs, floors = [], []
    for _ in range(seeds):
        a, b = data.sample(POINTS, draw), data.sample(POINTS, draw)
        pairs.append(float(distance(source.sample(POINTS, draw), a)))
        floors.append(float(distance(a, b)))
    return {"pair": statistics.mean(pairs), "floor": statistics.mean(floors)}


def run(pairs: list[str], seeds: int) -> dict[str, dict]:
    results: dict[str, dict] = {}
    bar = tqdm(total=len(pairs) * seeds * 7, unit="run")
    for pair in pairs:
        source, data = PAIRS[pair]
        draw = torch.Generator().manual_seed(77)
        x0, x1 = source.sample(20_000, draw), data.sample(20_000, draw)
        tried = methods(x0, x1)
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in tried}
        known = references(source, data, seeds)
        for seed in range(seeds):  # methods in turns, so that a slow spell meets all of them
            for name, (step, _) in tried.items():
                net, seconds = train(step, source, data, seed)
                found = evaluate(net, source, data, seed) | {"seconds": seconds}
                found["excess"] = energy_excess(found["energy"], known["pair"])
                rows[name].append(found)
                bar.set_postfix_str(f"{pair}, {name}: w2 {found['w2']:.3f}")
                bar.update()
        tilts = {n: tilt_report(c, x0, x1) for n, (_, c) in tried.items() if isinstance(c, Gibbs)}
        results[pair] = known | {
            "rows": rows,
            "tilt": {n: (r.ess, r.kl_tilt_x0, r.kl_tilt_x1) for n, r in tilts.items()},
        }
    bar.close()
    return results


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def cell(values: list[float], name: str) -> str:
    mean, error = spread(values)
    if name == "seconds":
        return f"{statistics.median(values):.1f}"
    sign = "+" if name == "excess" else ""
    return f"{mean:{sign}.3f} ± {error:.3f}"


def markdown(results: dict[str, dict]) -> str:
    """The table of the documentation."""
    lines = []
    for pair, found in results.items():
        lines += [
            f"\n**{pair}** (floor {found['floor']:.3f}, squared distance of the pair "
            f"{found['pair'] ** 2:.2f})\n",
            "| method | W2, adaptive | W2, 5 Euler steps | path-energy excess | seconds | ess | "
            "KL tilt x0, x1 |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, rows in found["rows"].items():
            cells = [cell([row[c] for row in rows], c) for c in COLUMNS]
            tilt = found["tilt"].get(name)
            cells += ["", ""] if tilt is None else [f"{tilt[0]:.2f}", f"{tilt[1]:.3f}, {tilt[2]:.3f}"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def claims(results: dict[str, dict]) -> str:
    """What is asked of the Gaussian correction, with the numbers."""

    def mean(pair: str, name: str, column: str) -> tuple[float, float]:
        return spread([row[column] for row in results[pair]["rows"][name]])

    lines, corrected = [], "wcfm_gaussian, ess 0.4"
    if "N -> moons" in results:
        (a, ea), (b, eb) = (mean("N -> moons", n, "w2") for n in (corrected, "cfm"))
        gap = (a - b) / math.hypot(ea, eb) if ea or eb else math.nan
        (c, _), (d, _) = (mean("N -> moons", n, "w2_euler5") for n in (corrected, "cfm"))
        lines.append(f"N -> moons: w2 {a:.3f} against {b:.3f} of cfm ({gap:+.1f} standard errors)")
        lines.append(f"N -> moons: w2 with 5 Euler steps {c:.3f}, {c / d:.2f} of cfm's {d:.3f}")
    if "8 Gaussians -> moons" in results:
        pair = "8 Gaussians -> moons"
        for column in ("w2", "w2_euler5"):
            (a, _), (b, _) = (mean(pair, n, column) for n in (corrected, "otcfm"))
            lines.append(f"{pair}: {column} {a:.3f}, {a / b:.2f} of otcfm's {b:.3f}")
        rows = results[pair]["rows"]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(rows[corrected], rows["cfm"])]
        lines.append(f"{pair}: {statistics.median(ratios):.2f} of cfm's training time")
    return "\n".join(lines)


def figure(results: dict[str, dict], path: str) -> None:
    """Distances with the adaptive solver and with five Euler steps, one panel a pair."""
    picture, axes = plot._figure(len(results), 3.6, "")
    for axis, (pair, found) in zip(axes, results.items()):
        names = list(found["rows"])
        for k, (column, colour) in enumerate((("w2", "source"), ("w2_euler5", "samples"))):
            values = [spread([row[column] for row in found["rows"][n]]) for n in names]
            places = [y + 0.18 * (2 * k - 1) for y in range(len(names))]
            axis.barh(
                places, [v for v, _ in values], 0.34, xerr=[e for _, e in values],
                color=plot.COLOURS[colour], label=("adaptive", "5 Euler steps")[k],
            )  # fmt: skip
        axis.axvline(found["floor"], color="#444444", ls=":", lw=1, label="floor")
        axis.set_title(pair)
        axis.set_xlabel("W2 to the data")
        axis.invert_yaxis()
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names), fontsize=7)
    axes[-1].legend(fontsize=7)
    picture.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--table", default=None, help="where the table goes, as Markdown")
    parser.add_argument("--figure", default=None)
    parser.add_argument("--numbers", default=None, help="where all numbers go, as JSON")
    parser.add_argument("--seconds", type=int, help="only time the training, that many rounds")
    parser.add_argument("--load", nargs="*", help="tell and draw the numbers of earlier runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seconds:
        return seconds(options.seconds)
    if options.load:
        results = {p: v for f in options.load for p, v in json.loads(Path(f).read_text()).items()}
    else:
        results = run(options.pairs, options.seeds)
    table = markdown(results)
    print(table)
    print(claims(results))
    if options.table:
        Path(options.table).write_text(HEAD + table + "\n```\n" + claims(results) + "\n```\n")
    if options.numbers:
        Path(options.numbers).write_text(json.dumps(results))
    if options.figure:
        figure(results, options.figure)


if __name__ == "__main__":
    main()
