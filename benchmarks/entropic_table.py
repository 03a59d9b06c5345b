"""Every solver of the entropic benchmark in one table: light bridges, networks, the published ones.

Light bridges are scored in closed form; all of them, and the networks, by drawing from the plan as
published, beside the floor of that protocol: what the true plan gets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.entropic_fit import OURS, PUBLISHED, Setting, pair_of, rate_of, trace_of
from benchmarks.light_record import Stream, Watch, bridge_of, run_published
from benchmarks.light_rivals import MATCHING_BATCH, SAFE
from genflow.coupling import Coupling, Independent, Sinkhorn
from genflow.coupling.sinkhorn import bridge_epsilon
from genflow.interpolant import BrownianBridge
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, LightBridge
from genflow.seeds import stream
from genflow.solver import Euler
from genflow.target import Drift
from genflow.time import Uniform

WIDTH, DEPTH, NETWORK_RATE, NETWORK_BATCH = 256, 3, 1e-3, 256
TIMES = (1 - torch.linspace(1, 0, 61, dtype=torch.float64) ** 2).tolist()
"""Of Euler with a network, closer and closer: the noise of the last step stays in the samples."""
LIGHT_RATE, WARM = 1e-2, 10_000
"""Of LightSB-M on our bridge: Adam's rate at the start, and points for the warm start."""


@dataclass(frozen=True)
class Budget:
    """Steps of every training, and how many points scores are drawn from.

    Attributes:
        light, light_matching: of the published LightSB and LightSB-M.
        matching: of LightSB-M on our bridge.
        network: of both networks.
        starts, draws: points of the source in the drawn score, and draws from each one's plan.
        samples: of the target's law.
    """

    light: int = 10_000
    light_matching: int = 1000
    matching: int = 300
    network: int = 2000
    starts: int = 25
    draws: int = 1000
    samples: int = 10_000

    def told(self) -> str:
        return (
            f"LightBridge.fit with its defaults; LightSB-M on LightBridge {self.matching:,} Adam steps "
            f"of {MATCHING_BATCH} with cosine decay from its warm start; networks: MLP {WIDTH} x "
            f"{DEPTH}, {self.network:,} Adam steps of {NETWORK_BATCH} with cosine decay, "
            f"{len(TIMES) - 1} Euler steps; published LightSB {self.light:,} steps of 128, "
            f"published LightSB-M {self.light_matching:,} of {MATCHING_BATCH}"
        )


QUICK = Budget(1000, 200, 300, 300, starts=50, draws=200, samples=5000)


@dataclass(frozen=True)
class Solved:
    """A trained solver: CPU seconds, a map ``x0 (n, d) -> x1 (n, d)``, and its bridge if it is one."""

    seconds: float
    sample: Callable[[Tensor], Tensor]
    bridge: LightBridge | None = None


@dataclass(frozen=True)
class Case:
    """One pair, one budget."""

    dim: int
    epsilon: float
    seed: int
    components: int
    budget: Budget
    out: Path

    @property
    def pair(self):
        return pair_of(self.dim, self.epsilon, self.seed)

    @property
    def sigma(self) -> float:
        return math.sqrt(self.epsilon)

    def stream(self, name: str) -> torch.Generator:
        return stream("entropic", name, self.dim, self.seed)


def of_bridge(seconds: float, bridge: LightBridge, case: Case) -> Solved:
    draws = case.stream("plan")
    return Solved(seconds, lambda x0: bridge.plan(x0).sample(generator=draws), bridge)


def by_trace(case: Case, solver: str) -> Solved:
    """As the comparison of ``fit`` runs it, or has kept it."""
    setting = Setting(case.out, case.budget.light, case.components, points=0)
    trace = trace_of(setting, solver, case.dim, case.epsilon, case.seed)
    return of_bridge(trace.seconds[-1], bridge_of(trace.states[-1], case.epsilon), case)


def by_published_matching(case: Case) -> Solved:
    sizes = case.dim, case.components, case.epsilon, case.seed, case.budget.light_matching
    trace = run_published(case.pair.x0, case.pair.x1, *sizes, rate_of(case.epsilon), 0.1, matching=True)
    return of_bridge(trace.seconds[-1], bridge_of(trace.states[-1], case.epsilon), case)


def regress(
    learner: nn.Module, loss: Matching, case: Case, steps: int, batch: int, rate: float, warm: int = 0
) -> float:
    """Train by matching, after a warm start where ``warm`` points are asked for; its CPU seconds."""
    watch, draw = Watch(), case.stream("data")
    x0, x1 = Stream(case.pair.x0, watch), Stream(case.pair.x1, watch)
    if warm:
        learner.prepare(x0.sample(warm, draw), x1.sample(warm, draw))
    optimizer = torch.optim.Adam(learner.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        ends = x0.sample(batch, draw), x1.sample(batch, draw)
        optimizer.zero_grad()
        loss(learner, *ends, generator=draw).backward()
        optimizer.step()
        schedule.step()
    return watch.seconds()


def bridge_matching(case: Case, coupling: Coupling) -> Matching:
    """Brownian bridges, the drift as target, times kept off the ends as published."""
    return Matching(BrownianBridge(case.sigma), coupling, Uniform(SAFE), Drift(case.sigma))


def by_light_matching(case: Case) -> Solved:
    bridge = LightBridge(case.dim, case.components, case.epsilon)
    loss = bridge_matching(case, Independent())
    steps, batch = case.budget.matching, MATCHING_BATCH
    seconds = regress(bridge, loss, case, steps, batch, LIGHT_RATE, WARM)
    return of_bridge(seconds, bridge.double().requires_grad_(False), case)


def by_network(case: Case, entropic: bool) -> Solved:
    torch.manual_seed(case.seed)
    process = SDE(MLP(case.dim, WIDTH, DEPTH), case.sigma)
    coupling = Sinkhorn(bridge_epsilon(case.sigma)) if entropic else Independent()
    loss, steps = bridge_matching(case, coupling), case.budget.network
    seconds = regress(process, loss, case, steps, NETWORK_BATCH, NETWORK_RATE)
    model = Generator(case.pair.x0, process, Euler()).eval()
    draws = case.stream("paths")

    def sample(x0: Tensor) -> Tensor:
        found = model.sample(x0=x0.float(), times=TIMES, generator=draws, batch_size=20_000)
        return found.to(x0)

    return Solved(seconds, sample)


SOLVERS: dict[str, Callable[[Case], Solved]] = {
    "LightBridge.fit": partial(by_trace, solver=OURS),
    "LightSB-M on LightBridge": by_light_matching,
    "published LightSB": partial(by_trace, solver=PUBLISHED),
    "published LightSB-M": by_published_matching,
    "SB-CFM, network": partial(by_network, entropic=True),
    "bridge matching, network *": partial(by_network, entropic=False),
}
NOTE = (
    "\\* Independent pairs and one pass of matching: not the Schrödinger bridge, whatever the budget."
)
HEAD = ["KL, nats", "cBW %", "cBW % drawn", "BW % drawn", "CPU s"]


def measure(solved: Solved, case: Case) -> dict[str, float | None]:
    """Exact scores where the plan has closed forms, drawn ones for all."""
    pair, budget = case.pair, case.budget
    exact = {"kl": None, "kl_error": None, "cbw": None}
    if solved.bridge is not None:
        kl = pair.kl(solved.bridge)
        cbw = pair.conditional_bw(solved.bridge)
        exact = {"kl": kl.value, "kl_error": kl.error, "cbw": cbw}
    cbw = pair.conditional_bw_sampled(solved.sample, n=budget.starts, m=budget.draws)
    ends = solved.sample(pair.x0.sample(budget.samples, case.stream("starts")))
    return exact | {
        "cbw_drawn": cbw, "bw": pair.bw(ends), "seconds": solved.seconds
    }  # fmt: skip


def floors(case: Case) -> dict[str, float | None]:
    """What the true plan gets where scores are drawn."""
    pair, budget = case.pair, case.budget
    cbw = pair.floor(n=budget.starts, m=budget.draws)
    bw = pair.bw(pair.x1.sample(budget.samples, case.stream("floor")))
    return {"kl": 0.0, "kl_error": None, "cbw": 0.0, "cbw_drawn": cbw, "bw": bw}


def table_all(
    cells: list[tuple[int, float, int]],
    components: int,
    budget: Budget,
    out: Path,
    again: tuple[str, ...],
    stored: bool,
) -> None:
    """Run or take up every cell and solver, and print one table for each cell."""
    print(f"K = {components}; {budget.told()}. CPU seconds of one thread, drawing data left out.")
    print(f"Drawn scores: {budget.starts} x {budget.draws} draws, and {budget.samples:,} samples.")
    for key in cells:
        case = Case(*key, components, budget, out)
        rows: dict[str, list[str]] = {}
        for name, solve in {"true plan (the floor)": None, **SOLVERS}.items():
            found = _kept(case, name, solve, out, stored, name.startswith(again))
            if found is not None:
                rows[name] = _row(found)
        if rows:
            _print(case, rows)
    print(f"\n{NOTE}")


def _kept(
    case: Case, name: str, solve: Callable | None, out: Path, stored: bool, again: bool
) -> dict | None:
    slug = "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-").strip("-")
    label = f"table-{slug}-D{case.dim}-eps{case.epsilon:g}-seed{case.seed}-K{case.components}"
    file = out / f"{label}.json"
    told = asdict(case.budget)
    if file.exists() and not again:
        kept = json.loads(file.read_text())
        if kept.pop("budget") == told:
            return kept
    if stored:
        return None
    found = floors(case) if solve is None else measure(solve(case), case)
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found | {"budget": told}))
    return found


def _row(found: dict[str, float | None]) -> list[str]:
    def told(name: str) -> str:
        return "-" if found.get(name) is None else f"{found[name]:.2g}"

    kl = told("kl")
    if found.get("kl_error") is not None:
        kl += f" ± {found['kl_error']:.1g}"
    return [kl, told("cbw"), told("cbw_drawn"), told("bw"), told("seconds")]


def _print(case: Case, rows: dict[str, list[str]]) -> None:
    from benchmarks.sliced_speed import markdown

    markdown(f"D = {case.dim}, epsilon = {case.epsilon:g}, pair {case.seed}", HEAD, rows)
