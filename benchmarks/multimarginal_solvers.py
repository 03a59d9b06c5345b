"""Solvers of population dynamics from snapshots, each a function of the same course."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling import Chained, ExactOT, Sinkhorn
from genflow.coupling.sinkhorn import bridge_epsilon
from genflow.interpolant import Chain
from genflow.loss import (
    IPF,
    Gradient,
    LeastSquares,
    Matching,
    ReferenceRefinement,
    StaticBridge,
    Update,
)
from genflow.model import Generator
from genflow.network import MLP, GaussianProcess
from genflow.process import (
    SDE,
    Brownian,
    GradientField,
    MultiMarginalBridge,
    OrnsteinUhlenbeck,
    Reference,
)
from genflow.seeds import stream, stream_seed
from genflow.solver import Heun, StochasticHeun
from genflow.source import Empirical
from genflow.target import Drift, Velocity
from genflow.time import Stratified

PARTICLES = 50
"""Rows of each snapshot that the published loop gets: its cost is cubic in rows times steps."""
DT, OUTER, INNER = 0.02, 10, 10
"""Of the published loop."""
ROUNDS = 3
"""Of refinement with the static solver."""
STEPS, BATCH, RATE = 2000, 128, 2e-3
"""Of flows; a batch is no larger than the smallest snapshot."""


@dataclass(frozen=True)
class Course:
    """What a solver sees, and what it is scored on.

    Attributes:
        xs: training snapshots ``(n_k, d)`` in float64, scaled.
        times: of them, from 0 to 1.
        held: the time held out.
        rows: its cells, scaled.
        floor: as many other cells of that time, or ``None``.
        scale: what the file was divided by.
        sigma: diffusion coefficient of everything that has one.
    """

    xs: tuple[Tensor, ...]
    times: tuple[float, ...]
    held: float
    rows: Tensor
    floor: Tensor | None
    scale: float
    sigma: float


Solver = Callable[[Course, int, int], tuple[Callable[[], Tensor], float]]
"""``(course, points, seed)`` to a draw of states at the held-out time and CPU seconds of training."""


def even_rows(xs: Sequence[Tensor], points: int, draw: torch.Generator) -> list[Tensor]:
    """``points`` rows in all, shared by the snapshots; rows repeat only where there are too few."""
    found = []
    for k, x in enumerate(xs):
        n = points // len(xs) + (k < points % len(xs))
        rows = torch.cat([torch.randperm(len(x), generator=draw) for _ in range(-(-n // len(x)))])[:n]
        found.append(x[rows])
    return found


def static(reference: Callable[[int], Reference], rounds: int, update: Update | None = None) -> Solver:
    """Plans and guided bridges; with ``rounds`` of refinement of the reference."""

    def solve(what: Course, points: int, seed: int) -> tuple[Callable[[], Tensor], float]:
        torch.manual_seed(stream_seed("cells", "network", seed) % 2**32)
        draw = stream("cells", "static", seed)
        bridge = MultiMarginalBridge(reference(what.rows.shape[1]), what.sigma, what.times, steps=20)
        loss = StaticBridge() if rounds == 0 else ReferenceRefinement(StaticBridge(), update)
        begin = time.process_time()
        loss.fit(bridge, *what.xs, iterations=max(1, rounds), generator=draw, progress=False)
        seconds = time.process_time() - begin
        return lambda: bridge.trajectories([what.held], points, draw)[0], seconds

    return solve


def published(what: Course, points: int, seed: int) -> tuple[Callable[[], Tensor], float]:
    """Iterative proportional fitting with exact Gaussian processes inside the published alternation,
    on ``PARTICLES`` rows of each snapshot; its drifts then carry rows of all snapshots."""
    torch.manual_seed(stream_seed("cells", "network", seed) % 2**32)
    draw = stream("cells", "ipf", seed)
    dim = what.rows.shape[1]
    bridge = MultiMarginalBridge(
        GradientField(dim), what.sigma, what.times, steps=20, regressor=GaussianProcess(dim)
    )
    loss = ReferenceRefinement(IPF(INNER, DT), Gradient(20, 0.05))
    few = [x[:PARTICLES] for x in what.xs]
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where it does not connect, the table tells
        loss.fit(bridge, *few, iterations=OUTER, generator=draw, progress=False)
    seconds = time.process_time() - begin

    def states() -> Tensor:
        starts = zip(what.times, even_rows(what.xs, points, draw))
        return torch.cat([bridge.transition(s, what.held, x, draw) for s, x in starts])

    return states, seconds


def flow(kind: str, noisy: bool) -> Solver:
    """Flow matching along chains of exactly coupled rows; with noise, [SF]2M on every interval."""

    def solve(what: Course, points: int, seed: int) -> tuple[Callable[[], Tensor], float]:
        torch.manual_seed(stream_seed("cells", "network", seed) % 2**32)
        draw = stream("cells", "flow", seed)
        dim, xs = what.rows.shape[1], [x.float() for x in what.xs]
        sigma = what.sigma if noisy else 0.0
        coupling = ExactOT()
        if noisy:
            coupling = Sinkhorn(bridge_epsilon(sigma), tolerance=0.01)
        loss = Matching(
            Chain(what.times, kind, sigma), Chained(coupling, what.times, noisy), Stratified(),
            Drift(sigma) if noisy else Velocity(),
        )  # fmt: skip
        net, begin = MLP(dim), time.process_time()
        fit(loss, net, xs, draw)
        seconds = time.process_time() - begin
        solver = StochasticHeun(50) if noisy else Heun(50)
        model = Generator(Empirical(xs[0]), SDE(net, sigma), solver).eval()
        grid = torch.linspace(0, what.held, 51, dtype=torch.float64)

        def states() -> Tensor:
            starts = even_rows(xs[:1], points, draw)[0]
            return model.sample(x0=starts, times=grid, generator=draw).double()

        return states, seconds

    return solve


def fit(loss: Matching, net: torch.nn.Module, xs: Sequence[Tensor], draw: torch.Generator) -> None:
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    size = min(BATCH, *map(len, xs))
    for _ in range(STEPS):
        batch = [x[torch.randperm(len(x), generator=draw)[:size]] for x in xs]
        optimizer.zero_grad()
        loss(net, *batch, generator=draw).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def straight(what: Course, points: int, seed: int) -> tuple[Callable[[], Tensor], float]:
    """No learning at all: cells of the two neighbours, coupled exactly, on straight lines."""
    draw, begin = stream("cells", "straight", seed), time.process_time()
    plan = Chained()(*what.xs, generator=draw)
    states = Chain(what.times).sample(what.held, *plan.gather(*what.xs)).x
    return lambda: even_rows([states], points, draw)[0], time.process_time() - begin


SOLVERS: dict[str, Solver] = {
    "vanilla bridge (static, Brownian)": static(Brownian, 0),
    "IPF, gradient field (published loop)": published,
    "static, gradient field": static(GradientField, ROUNDS, Gradient(40, 0.01)),
    "multi-marginal flow matching, linear": flow("linear", False),
    "multi-marginal flow matching, spline": flow("spline", False),
    "[SF]2M on every interval": flow("linear", True),
    "exact pairs on straight lines": straight,
    "static, Ornstein-Uhlenbeck": static(OrnsteinUhlenbeck, ROUNDS, LeastSquares()),
}
