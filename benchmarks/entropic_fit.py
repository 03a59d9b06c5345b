"""Light bridges by ``fit`` beside the published training: exact divergence over CPU time.

Every training is run once and its states kept (``.pt``); scores are kept beside them (``.json``), so
that a run can be cut off, go on, and have cells and solvers done apart.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.light_record import Trace, bridge_of, run_ours, run_published
from benchmarks.light_rivals import RATES
from benchmarks.sliced_speed import markdown, verdict

OURS, PUBLISHED = "ours", "published"
COLOURS = {PUBLISHED: "#444444", OURS: "#c44e52"}
TIMES, TIMES_SMOOTH, SMOOTH = 10, 20, 10.0
"""How many times less CPU is asked for, and from which epsilon on the larger factor."""
UP_TO = 64
"""Dimensions up to which it is asked for."""
Score = dict[str, float | list[float]]


@dataclass(frozen=True)
class Setting:
    """What all cells of a run share.

    Attributes:
        out: folder of states and scores.
        steps, components: of the published training, of both bridges.
        points: fresh pairs of the true plan that a divergence is estimated from, the same for all.
    """

    out: Path
    steps: int
    components: int
    points: int

    def file(self, solver: str, dim: int, epsilon: float, seed: int) -> Path:
        """Where the states of a training go."""
        length = f"-{self.steps}" if solver == PUBLISHED else ""
        name = f"fit-{solver}-D{dim}-eps{epsilon:g}-seed{seed}-K{self.components}{length}.pt"
        return self.out / name


@cache
def pair_of(dim: int, epsilon: float, seed: int):
    from genflow.oracle import EntropicPair

    return EntropicPair(dim, epsilon, seed)


def trace_of(
    setting: Setting, solver: str, dim: int, epsilon: float, seed: int, again: bool = False
) -> Trace:
    """The kept training, or a new one."""
    file = setting.file(solver, dim, epsilon, seed)
    if file.exists() and not again:
        return Trace.load(file)
    pair = pair_of(dim, epsilon, seed)
    laws = pair.x0, pair.x1, dim, setting.components, epsilon, seed
    if solver == OURS:
        trace = run_ours(*laws)
    else:
        trace = run_published(*laws, setting.steps, rate_of(epsilon))
    trace.save(file)
    file.with_suffix(".json").unlink(missing_ok=True)
    return trace


def rate_of(epsilon: float) -> float:
    """The published rate of the nearest epsilon that has one."""
    return RATES[min(RATES, key=lambda known: abs(known - epsilon) / known)]


def score_of(
    setting: Setting, solver: str, dim: int, epsilon: float, seed: int, again: bool = False
) -> Score:
    """Divergences over CPU seconds, and at the end the noise-free conditional BW2-UVP."""
    file = setting.file(solver, dim, epsilon, seed).with_suffix(".json")
    trace = trace_of(setting, solver, dim, epsilon, seed, again)
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["points"] == setting.points:
            return kept
    bridges = [bridge_of(state, epsilon) for state in trace.states]
    pair = pair_of(dim, epsilon, seed)
    found = [pair.kl(bridge, n=setting.points) for bridge in bridges]
    score: Score = {
        "solver": solver, "dim": dim, "epsilon": epsilon, "seed": seed, "steps": setting.steps,
        "components": setting.components, "points": setting.points,
        "seconds": trace.seconds, "kl": [one.value for one in found], "kl_error": found[-1].error,
        "cbw": pair.conditional_bw(bridges[-1]),
        "drawing": trace.drawing, "drawn": trace.points,
    }  # fmt: skip
    file.write_text(json.dumps(score))
    return score


@dataclass(frozen=True)
class Cell:
    """Both solvers on one pair.

    Attributes:
        reached: CPU seconds at which ours first was at most at the published final divergence.
        times: how many times less that is; zero where it never was.
        lost: whether the bridge that ``fit`` returns is above it all the same.
    """

    dim: int
    epsilon: float
    seed: int
    ours: Score
    published: Score

    @property
    def reached(self) -> float | None:
        goal = self.published["kl"][-1]
        pairs = zip(self.ours["seconds"], self.ours["kl"])
        return next((seconds for seconds, kl in pairs if kl <= goal), None)

    @property
    def times(self) -> float:
        return self.published["seconds"][-1] / self.reached if self.reached else 0.0

    @property
    def lost(self) -> bool:
        return self.ours["kl"][-1] > self.published["kl"][-1]

    def row(self) -> list[str]:
        ends = [
            f"{solver['kl'][-1]:.2g} ± {solver['kl_error']:.1g}"
            for solver in (self.published, self.ours)
        ]
        biases = [f"{solver['cbw']:.2g}" for solver in (self.published, self.ours)]
        spent = [f"{solver['seconds'][-1]:.3g}" for solver in (self.published, self.ours)]
        reached = f"{self.reached:.3g}{', lost again' * self.lost}" if self.reached else "never"
        return [*ends, *biases, *spent, reached, f"{self.times:.3g}"]


HEAD = [
    "KL, published", "KL, fit", "cBW, published", "cBW, fit", "CPU s, published", "CPU s, fit",
    "CPU s of fit to published KL", "times less",
]  # fmt: skip


def fit_all(
    setting: Setting,
    cells: list[tuple[int, float, int]],
    solvers: list[str],
    again: tuple[str, ...],
    table: bool,
    figure: str | None,
) -> None:
    """Run or take up the cells, print each as it is done, then the table and the limits."""
    found: list[Cell] = []
    for key in cells:
        if not table:
            for solver in solvers:
                score = score_of(setting, solver, *key, again=solver.startswith(again))
                print(_line(score), flush=True)
        files = [setting.file(solver, *key).with_suffix(".json") for solver in (OURS, PUBLISHED)]
        if all(file.exists() for file in files):
            found.append(Cell(*key, *(json.loads(file.read_text()) for file in files)))
    if not found:
        print(f"no cell of these has both solvers done in {setting.out}")
        return
    show(found, setting)
    if figure:
        draw(found, figure)


def _line(score: Score) -> str:
    return (
        f"{score['solver']:<9} D={score['dim']} eps={score['epsilon']:g} seed={score['seed']}: KL "
        f"{score['kl'][-1]:.3g} ± {score['kl_error']:.1g}, cBW {score['cbw']:.3g}, CPU "
        f"{score['seconds'][-1]:.3g} s + {score['drawing']:.3g} s drawing {score['drawn']:.3g} points"
    )


def show(found: list[Cell], setting: Setting) -> None:
    print(
        f"\nK = {setting.components}; published: {setting.steps:,} Adam steps of 128 fresh pairs; CPU "
        "seconds of one thread without drawing data, for both; exact KL from "
        f"{setting.points:,} fresh pairs, the same for both; conditional BW2-UVP (cBW, percent) "
        "without Monte-Carlo noise"
    )
    rows = {f"D={c.dim} eps={c.epsilon:g} seed {c.seed}": c.row() for c in found}
    markdown("every pair", HEAD, rows)
    groups: dict[tuple[int, float], list[Cell]] = {}
    for cell in found:
        groups.setdefault((cell.dim, cell.epsilon), []).append(cell)
    print("\nseeds together: the least factor, and mean conditional BW2-UVP\n")
    better = 0
    for (dim, epsilon), members in groups.items():
        least = min(cell.times for cell in members)
        asked = TIMES_SMOOTH if epsilon >= SMOOTH else TIMES
        word = verdict("times less CPU", least, asked, True)
        word = word if dim <= UP_TO else f"times less CPU {least:.3g}"
        ours, theirs = (
            statistics.fmean(getattr(cell, name)["cbw"] for cell in members)
            for name in (OURS, PUBLISHED)
        )
        better += ours <= theirs
        lost = sum(cell.lost for cell in members)
        word += f" BUT {lost} of them end above the published KL" * (lost > 0)
        print(
            f"- D={dim} eps={epsilon:g}, {len(members)} seeds: {word}; cBW {ours:.3g} of {theirs:.3g}"
        )
    print(f"\n- cBW at most the published: in {better} of {len(groups)} cells (10 of 12 are asked for)")


def draw(found: list[Cell], path: str) -> None:
    """Divergence over CPU seconds, a panel for each dimension and epsilon, a line for each seed."""
    from matplotlib.figure import Figure

    dims = sorted({cell.dim for cell in found})
    epsilons = sorted({cell.epsilon for cell in found})
    picture = Figure(figsize=(1 + 2.6 * len(dims), 1 + 2.1 * len(epsilons)), layout="constrained")
    axes = picture.subplots(len(epsilons), len(dims), squeeze=False, sharex=True, sharey="row")
    for cell in found:
        axis = axes[epsilons.index(cell.epsilon), dims.index(cell.dim)]
        for name, colour in COLOURS.items():
            score = getattr(cell, name)
            label = "LightBridge.fit" if name == OURS else "published, Adam"
            kl = [max(value, 1e-6) for value in score["kl"]]
            axis.loglog(score["seconds"], kl, color=colour, lw=1.1, label=label, alpha=0.8)
        axis.axhline(cell.published["kl"][-1], color="#999999", ls=":", lw=0.8)
    for row, epsilon in zip(axes, epsilons):
        row[0].set_ylabel(f"$\\varepsilon$ = {epsilon:g}\nexact KL, nats", fontsize=9)
        for axis in row:
            axis.grid(alpha=0.3)
            axis.tick_params(labelsize=8)
    for column, dim in enumerate(dims):
        axes[0, column].set_title(f"D = {dim}", fontsize=10)
        axes[-1, column].set_xlabel("CPU seconds", fontsize=9)
    pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
    labels = {label: line for lines, names in pairs for line, label in zip(lines, names)}
    picture.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=2, fontsize=8)
    picture.savefig(path, dpi=110)
    print(f"\n{path}")
