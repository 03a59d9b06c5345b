"""A gradient flow of one shape to another under sliced-Wasserstein estimators and their rivals.

The protocol of Nguyen & Ho (2023): particles descend n times the root of the estimate, 10 projections,
steps of 0.01, between 2,048-point shapes far apart; exact squared Wasserstein-2 on the way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.sliced_rivals import isotropic, published
from benchmarks.sliced_speed import markdown, verdict

PROJECTIONS, FEW, RATE, EVERY, BLOCK = 10, 4, 0.01, 2, 200
BELOW = 0.2
PLAIN, LOWER, OURS = "plain SW", "published LCV", "genflow, default"
CHEAP = f"genflow, lower bound, L = {FEW}"
COLOURS = {
    PLAIN: "#444444", LOWER: "#4c72b0", "published UCV": "#8da7d0", OURS: "#c44e52", CHEAP: "#dd8452",
}  # fmt: skip
Step = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def losses() -> dict[str, Step]:
    """Roots of estimates, the directions drawn anew at every call."""
    from genflow.distance import SlicedWasserstein
    from genflow.variate import Lower

    def rival(variate: str | None) -> Step:
        return lambda x, y, draw: published(x, y, isotropic(PROJECTIONS, 3, draw, x), variate)

    ours = SlicedWasserstein(PROJECTIONS, root=True)
    cheap = SlicedWasserstein(FEW, variate=Lower(), root=True)
    return {
        PLAIN: rival(None),
        LOWER: rival("lower"),
        "published UCV": rival("upper"),
        OURS: lambda x, y, draw: ours(x, y, generator=draw),
        CHEAP: lambda x, y, draw: cheap(x, y, generator=draw),
    }


def exact(x: Tensor, y: Tensor) -> float:
    """Squared Wasserstein-2 of two sets of equal size."""
    import ot

    cost = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    return float(ot.emd2([], [], cost.numpy(), numItermax=10_000_000))


class Flow:
    """The particles of one loss: where they were every few steps, and the CPU seconds they took."""

    def __init__(self, loss: Step, x: Tensor, y: Tensor, seed: int) -> None:
        self.loss, self.y = loss, y
        self.x = x.clone().requires_grad_()
        self.draw = torch.Generator().manual_seed(seed)
        self.seconds, self.steps = 0.0, 0
        self.places = [x.clone()]
        self.known: dict[int, float] = {}

    def run(self, steps: int) -> None:
        for _ in range(steps // EVERY):
            start = time.process_time()
            for _ in range(EVERY):
                value = len(self.x) * self.loss(self.x, self.y, self.draw)
                (gradient,) = torch.autograd.grad(value, self.x)
                with torch.no_grad():
                    self.x -= RATE * gradient
            self.seconds += time.process_time() - start
            self.places.append(self.x.detach().clone())
            self.steps += EVERY

    def at(self, step: int) -> float:
        if step not in self.known:
            self.known[step] = exact(self.places[step // EVERY], self.y)
        return self.known[step]

    def first_below(self, limit: float) -> int:
        """The first kept step below the limit, by bisection (the flow falls until it has arrived)."""
        low, high = 0, self.steps // EVERY
        if self.at(high * EVERY) >= limit:
            raise SystemExit(
                f"still at {self.at(high * EVERY):.3g} after {self.steps} steps: give more"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(middle * EVERY) < limit else (middle, high)
        return high * EVERY


def race(seed: int, steps: int, shift: float) -> dict[str, Flow]:
    """All flows of one seed, a block of steps of each in turn, so that they share disturbances."""
    from genflow.data import Shapes

    x, y = (z.float() for z in Shapes(shift=shift).clouds())
    flows = {name: Flow(loss, x, y, seed) for name, loss in losses().items()}
    for _ in range(steps // BLOCK):
        for flow in flows.values():
            flow.run(BLOCK)
    clock = ", ".join(f"{name} {flow.seconds:.3g} s" for name, flow in flows.items())
    print(f"seed {seed}: {steps} steps, CPU time {clock}", flush=True)
    return flows


def flow_all(seeds: list[int], steps: int, shift: float, figure: str | None) -> None:
    print(f"L = {PROJECTIONS}, steps of {RATE}, loss n SW_2; means {shift:g} apart; seeds {seeds}")
    races = [race(seed, steps, shift) for seed in seeds]
    crossings = [flows[PLAIN].first_below(BELOW) for flows in races]
    marks = sorted(
        {crossings[0] * k // 4 // EVERY * EVERY for k in (1, 2, 3)} | {races[0][PLAIN].steps}
    )
    rows = {}
    for name in races[0]:
        cells = ["/".join(f"{flows[name].at(mark):.3g}" for flows in races) for mark in marks]
        cells.append("/".join(f"{flows[name].at(c):.3g}" for flows, c in zip(races, crossings)))
        seconds = statistics.mean(flows[name].seconds for flows in races)
        rows[name] = [*cells, f"{seconds:.1f}"]
    heads = [f"step {mark}" for mark in marks]
    heads += [f"step {'/'.join(map(str, crossings))}", "CPU s"]
    markdown(f"exact W₂², and plain SW first below {BELOW}", heads, rows)
    print()
    for seed, flows, crossing in zip(seeds, races, crossings):
        for name in (OURS, CHEAP):
            ours = flows[name]
            parts = [
                verdict("over plain SW", ours.at(crossing) / flows[PLAIN].at(crossing), 0.4, False),
                verdict(
                    "over published LCV", ours.at(crossing) / flows[LOWER].at(crossing), 0.6, False
                ),
            ]
            for rival in (PLAIN, LOWER, "published UCV"):
                share = ours.seconds / flows[rival].seconds
                parts.append(verdict(f"CPU time over {rival}", share, 0.25, False))
            print(f"- seed {seed}, step {crossing}, {name}: {'; '.join(parts)}", flush=True)
    if figure:
        draw_flow(races[0], crossings[0], figure)


def draw_flow(flows: dict[str, Flow], crossing: int, path: str) -> None:
    """Exact distance of the first seed over the last stretch of steps, and over CPU time."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.8), layout="constrained")
    by_step, by_time = picture.subplots(1, 2, sharey=True)
    last = flows[PLAIN].steps
    marks = [m for m in range(crossing - 400, crossing + 101, 100) if 0 <= m <= last]
    for name, flow in flows.items():
        values = [flow.at(m) for m in marks]
        by_step.semilogy(marks, values, color=COLOURS[name], lw=1.2, label=name)
        by_time.semilogy([flow.seconds * m / last for m in marks], values, color=COLOURS[name], lw=1.2)
    by_step.axhline(BELOW, color="#999999", ls=":", lw=1)
    by_step.set(xlabel="step", ylabel="exact squared Wasserstein-2")
    by_time.set(xlabel="CPU seconds, one thread")
    by_step.legend(fontsize=8)
    for axis in (by_step, by_time):
        axis.grid(alpha=0.3, which="both")
    picture.savefig(path, dpi=110)
    print(f"\n{path}")
