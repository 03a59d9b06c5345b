"""Noise of sliced-Wasserstein estimators over plain Monte Carlo, in value and in gradient."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.sliced_rivals import isotropic, pot, published
from benchmarks.sliced_sets import JUDGED, SETS, Reference, reference
from benchmarks.sliced_speed import markdown, verdict

PLAIN, DEFAULT = "plain Monte Carlo", "default (even directions, two-level)"
VALUE, GRADIENT, PRODUCT = 0.03, 0.08, 1 / 20
DRAWN = {  # of the figure
    PLAIN: "#444444",
    "published LCV": "#4c72b0",
    "published UCV": "#8da7d0",
    "iid, lower, 1.0": "#55a868",
    "iid, quadratic, regression": "#8172b3",
    "orthogonal": "#937860",
    "even directions": "#ccb974",
    "iid, two-level": "#dd8452",
    DEFAULT: "#c44e52",
}
Estimator = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def rival(variate: str, projections: int) -> Estimator:
    def estimate(x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        return published(x, y, isotropic(projections, x.shape[1], draw, x), variate, root=False)

    return estimate


def estimators(projections: int) -> dict[str, Callable[[], Estimator]]:
    """Name to maker; a maker, or the first call of what it makes, raises where a part does not fit."""
    from genflow.directions import Auto, Isotropic, Orthogonal, Sobol
    from genflow.distance import SlicedWasserstein
    from genflow.variate import Harmonics, Lower, Quadratic, Several, TwoLevel, Upper

    def ours(directions: object, variate: Callable[[], object]) -> Callable[[], Estimator]:
        def make() -> Estimator:
            distance = SlicedWasserstein(projections, directions=directions, variate=variate())
            return lambda x, y, draw: distance(x, y, generator=draw)

        return make

    made = {
        PLAIN: ours(Isotropic(), lambda: None),
        "published LCV": lambda: rival("lower", projections),
        "published UCV": lambda: rival("upper", projections),
    }
    for name, part in (("lower", Lower), ("upper", Upper)):
        for how in (1.0, "regression", "clamped", "leave_one_out"):
            made[f"iid, {name}, {how}".replace("_", " ")] = ours(
                Isotropic(), lambda part=part, how=how: part(coefficient=how)
            )
    made |= {
        "iid, quadratic, regression": ours(Isotropic(), Quadratic),
        "iid, harmonics, regression": ours(Isotropic(), Harmonics),
        "iid, lower and two-level, regression": ours(
            Isotropic(), lambda: Several([Lower(), TwoLevel()])
        ),
        "iid, two-level": ours(Isotropic(), TwoLevel),
        "orthogonal": ours(Orthogonal(), lambda: None),
        "orthogonal, quadratic, regression": ours(Orthogonal(), Quadratic),
        "orthogonal, two-level": ours(Orthogonal(), TwoLevel),
        "Sobol": ours(Sobol(), lambda: None),
        "even directions": ours(Auto(), lambda: None),
        DEFAULT: lambda: _default(projections),
    }
    return made


def _default(projections: int) -> Estimator:
    from genflow.distance import SlicedWasserstein

    distance = SlicedWasserstein(projections)
    return lambda x, y, draw: distance(x, y, generator=draw)


@dataclass(frozen=True)
class Noise:
    """Mean squared errors of value and gradient, bias and its z-score, least value, CPU seconds."""

    value: float
    gradient: float
    bias: float
    z: float
    least: float
    seconds: float


def measure(estimate: Estimator, x: Tensor, y: Tensor, true: Reference, reps: int) -> Noise:
    """Errors against the reference, less the reference's own; the clock covers the gradient too."""
    draw = torch.Generator().manual_seed(1)
    estimate(x, y, draw)  # a first call may raise, and fills caches
    x = x.clone().requires_grad_()
    values, squares, seconds = [], [], 0.0
    for _ in range(reps):
        start = time.process_time()
        value = estimate(x, y, draw)
        (gradient,) = torch.autograd.grad(value, x)
        seconds += time.process_time() - start
        values.append(value.item())
        squares.append(((gradient - true.gradient) ** 2).sum().item())
    found = torch.tensor(values, dtype=torch.float64)
    bias = found.mean().item() - true.value
    return Noise(
        value=((found - true.value) ** 2).mean().item() - true.value_error,
        gradient=sum(squares) / reps - true.gradient_error,
        bias=bias / true.value,
        z=bias / (found.var().item() / reps + true.value_error) ** 0.5,
        least=found.min().item() / true.value,
        seconds=seconds / reps,
    )


def pot_seconds(x: Tensor, y: Tensor, projections: int, calls: int = 10) -> float:
    """CPU seconds of POT's forward and backward, the least of a few."""
    draw, best = torch.Generator().manual_seed(0), float("inf")
    x = x.clone().requires_grad_()
    for _ in range(calls):
        start = time.process_time()
        value = pot(x, y, isotropic(projections, x.shape[1], draw, x)) ** 2
        torch.autograd.grad(value, x)
        best = min(best, time.process_time() - start)
    return best


def noise_of(name: str, reps: int, counts: list[int]) -> dict[tuple[str, int], Noise | str]:
    """Every estimator on one set: its noise, or why there is none; prints the table and the limits."""
    x, y = SETS[name]()
    true = reference(x, y)
    found: dict[tuple[str, int], Noise | str] = {}
    for count in counts:
        for label, make in estimators(count).items():
            try:
                found[label, count] = measure(make(), x, y, true, reps)
            except (ValueError, NotImplementedError) as error:
                found[label, count] = str(error)
    table(name, true, found, counts)
    judge(name, {count: pot_seconds(x, y, count) for count in counts}, found, counts)
    return found


def table(name: str, true: Reference, found: dict, counts: list[int]) -> None:
    heads = [f"{what} L={c}" for what in ("value", "gradient") for c in counts]
    first = counts[0]
    heads += [f"{what} L={first}" for what in ("bias %", "z", "least / SW²", "CPU ms")]
    rows = {}
    for label in dict.fromkeys(key for key, _ in found):
        cells = []
        for what in ("value", "gradient"):
            for count in counts:
                noise, plain = found[label, count], found[PLAIN, count]
                ratio = "—" if isinstance(noise, str) else getattr(noise, what) / getattr(plain, what)
                cells.append(ratio if isinstance(ratio, str) else f"{ratio:.2g}")
        noise = found[label, first]
        if isinstance(noise, str):
            cells += ["—"] * 4
        else:
            cells += [
                f"{100 * noise.bias:+.2f}", f"{noise.z:+.1f}",
                f"{noise.least:.2f}", f"{1e3 * noise.seconds:.2g}",
            ]  # fmt: skip
        rows[label] = cells
    rms = ", ".join(f"{100 * found[PLAIN, c].value ** 0.5 / true.value:.3g}% (L={c})" for c in counts)
    title = (
        f"{name}: SW² = {true.value:.5g} ± {true.value_error**0.5:.1g}; plain Monte Carlo errs by {rms}"
    )
    markdown(f"{title}; mean squared error over plain Monte Carlo's", heads, rows)
    missing = {f"{key}, L={count}: {n}" for (key, count), n in found.items() if isinstance(n, str)}
    print("".join(f"\n- {line}" for line in sorted(missing)))


def judge(name: str, pot_time: dict[int, float], found: dict, counts: list[int]) -> None:
    """The default's limits."""
    for count in counts:
        ours, plain = found[DEFAULT, count], found[PLAIN, count]
        product = ours.value * ours.seconds / (plain.value * pot_time[count])
        parts = [verdict("variance x time over POT's", product, PRODUCT, False)]
        if name in JUDGED:
            parts += [
                verdict("value", ours.value / plain.value, VALUE, False),
                verdict("gradient", ours.gradient / plain.gradient, GRADIENT, False),
                verdict("|z| of the bias", abs(ours.z), 4, False),
                verdict("least value", ours.least, 0, True),
            ]
        print(f"- {name}, L={count}, default: {'; '.join(parts)}", flush=True)


def noise_all(reps: int, counts: list[int], sets: list[str] | None, figure: str | None) -> None:
    names = [n for n in SETS if (n in JUDGED if sets is None else n.startswith(tuple(sets)))]
    if not names:
        raise SystemExit(f"no set begins with {sets}; there are {list(SETS)}")
    print(f"{reps} repetitions; the three judged sets are {', '.join(JUDGED)}")
    found = {name: noise_of(name, reps, counts) for name in names}
    if figure:
        draw_noise(found, counts, figure)


def draw_noise(found: dict[str, dict], counts: list[int], path: str) -> None:
    """Ratio to plain Monte Carlo against projections: value above, gradient below, a column a set."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(max(7, 1 + 2.7 * len(found)), 6), layout="constrained")
    axes = picture.subplots(2, len(found), sharex=True, squeeze=False, sharey="row")
    for column, (name, noises) in enumerate(found.items()):
        for axis, what, limit in zip(axes[:, column], ("value", "gradient"), (VALUE, GRADIENT)):
            for label, colour in DRAWN.items():
                kept = [c for c in counts if not isinstance(noises[label, c], str)]
                ratio = [
                    getattr(noises[label, c], what) / getattr(noises[PLAIN, c], what) for c in kept
                ]
                axis.loglog(kept, ratio, marker="o", ms=3, color=colour, label=label)
            if name in JUDGED:
                axis.axhline(limit, color="#999999", ls=":", lw=1)
            axis.set_xticks(counts, [str(c) for c in counts])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, column].set_title(name, fontsize=10)
        axes[1, column].set_xlabel("projections")
    for row, word in enumerate(("value", "gradient")):
        axes[row, 0].set_ylabel(f"{word}: squared error / plain MC", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    picture.savefig(path, dpi=110)
    print(f"\n{path}")
