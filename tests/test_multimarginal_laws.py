"""Solved multi-marginal bridges against linear-Gaussian closed forms and POT's plans."""

from functools import lru_cache

import numpy as np
import ot
import pytest
import torch
from mm_bridges import LinearLaw, check_moments, lattice, seeded

from genflow.loss import StaticBridge
from genflow.model import Generator
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal import interval as interval_module
from genflow.process.multimarginal import law as law_module
from genflow.process.reference import Brownian, OrnsteinUhlenbeck
from genflow.solver import Euler, Exact
from genflow.source import Empirical

TIMES, SIGMA = [0.5, 1.2, 2.1], 0.8
TURN = [[-0.6, 1.1], [-0.9, 0.2]]
LINE = dict(means=[0.3, -0.4, 0.9], covs=[0.36, 0.6, 0.25])
PLANE = dict(
    means=[[0.3, -0.2], [0.9, 0.1], [-0.2, 0.6]],
    covs=[[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]], [[0.4, 0.0], [0.0, 0.3]]],
)
CASES = {
    "brownian": (lambda: Brownian(1), LinearLaw(0.0, 0.0, SIGMA, TIMES, **LINE), 41),
    "relaxing": (
        lambda: OrnsteinUhlenbeck(1, [[-1.3]], [0.7]),
        LinearLaw(-1.3, 0.7, SIGMA, TIMES, **LINE),
        41,
    ),
    "turning": (
        lambda: OrnsteinUhlenbeck(2, TURN, [0.3, -0.1]),
        LinearLaw(TURN, [0.3, -0.1], SIGMA, TIMES, **PLANE),
        19,
    ),
}


def solve(name: str, steps: int = 20) -> MultiMarginalBridge:
    reference, law, n = CASES[name]
    xs, weights = zip(*(lattice(m, c, n) for m, c in zip(law.means, law.covs)))
    bridge = MultiMarginalBridge(reference(), SIGMA, TIMES, steps).observe(TIMES, weights)
    StaticBridge(tolerance=1e-10)(bridge, *xs)
    return bridge


@lru_cache
def solved(name: str) -> tuple[MultiMarginalBridge, LinearLaw]:
    return solve(name), CASES[name][1]


def states(law: LinearLaw, t: float, n: int = 7) -> np.ndarray:
    mean, cov = law.marginal(t)
    z = np.random.default_rng(1).standard_normal((n, law.dim))
    return mean + z @ np.linalg.cholesky(cov).T


@torch.no_grad()
def asked(field, t: float, x: np.ndarray) -> np.ndarray:
    return field(t, torch.from_numpy(x)).numpy()


def among(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Which of ``rows`` each state is, bit for bit."""
    same = (x[:, None] == rows).all(2)
    assert same.any(1).all()
    return same.double().argmax(1)


every = pytest.mark.parametrize("name", list(CASES))


@every
def test_the_oracle_is_a_schrodinger_bridge(name):
    """Its plan differs from the reference by functions of one end, and its marginals are the data's."""
    law = CASES[name][1]
    for k, (s, t) in enumerate(zip(TIMES[:-1], TIMES[1:])):
        mean, cov = law.inside(k, s, t)
        d = law.dim
        assert np.allclose(mean, np.concatenate(law.means[k : k + 2]))
        assert np.allclose(cov[:d, :d], law.covs[k]) and np.allclose(cov[d:, d:], law.covs[k + 1])
        phi, _, gain = law.flow(t - s)
        assert np.allclose(np.linalg.inv(cov)[:d, d:], -phi.T @ np.linalg.inv(gain))
        middle = (s + t) / 2  # drift and diffusion move the marginal as they should
        h = 1e-5
        (m0, c0), (m1, c1) = law.marginal(middle - h), law.marginal(middle + h)
        mean, cov = law.marginal(middle)
        slope = np.stack([law.drift(middle, mean + e) - law.drift(middle, mean) for e in np.eye(d)], 1)
        assert np.allclose((m1 - m0) / (2 * h), law.drift(middle, mean), atol=1e-6)
        moved = slope @ cov + cov @ slope.T + SIGMA**2 * np.eye(d)
        assert np.allclose((c1 - c0) / (2 * h), moved, atol=1e-6)


@every
@pytest.mark.parametrize("t", [0.5, 0.75, 1.0, 1.2, 1.7])
def test_drift(name, t):
    bridge, law = solved(name)
    x = states(law, t)
    found = asked(bridge.drift, t, x)
    assert np.abs(found - law.drift(t, x)).max() < 1e-4


@every
@pytest.mark.parametrize("t", [0.8, 1.0, 1.6, 2.1])
def test_backward_drift_differs_by_the_score(name, t):
    bridge, law = solved(name)
    x = states(law, t)
    score = SIGMA**2 * law.score(t, x)
    found = asked(bridge.backward_drift, t, x)
    if t < 2.1:  # inside an interval both are known
        assert np.abs(found - law.drift(t, x) + score).max() < 1e-4
        both = asked(bridge.drift, t, x) - found
        assert np.abs(both - score).max() < 1e-4
        assert np.abs(both - score / SIGMA**2).max() > 0.1  # without sigma^2
    else:  # at the last snapshot: the limit from the left
        near = law.drift(t - 1e-7, x) - SIGMA**2 * law.score(t - 1e-7, x)
        assert np.abs(found - near).max() < 1e-3


@every
def test_times_by_row(name):
    bridge, law = solved(name)
    t = torch.tensor([0.75, 1.7, 0.75, 1.0])
    x = torch.from_numpy(states(law, 1.0, 4))
    for field in (bridge.drift, bridge.backward_drift):
        rows = torch.cat([field(float(s), row[None]) for s, row in zip(t, x)])
        assert torch.allclose(field(t, x), rows, atol=1e-12)


WAYS = [(0.5, 0.8), (0.7, 1.0), (0.8, 1.2), (0.7, 1.9), (1.0, 0.7), (1.2, 0.6), (1.9, 0.7), (2.1, 1.0)]


@every
@pytest.mark.parametrize(("s", "t"), WAYS)
def test_transition(name, s, t):
    """Inside an interval, on to a snapshot, and through one; both ways."""
    bridge, law = solved(name)
    x = states(law, s, 1)
    slope, level, left = law.ahead(s, t)
    found = bridge.transition(s, t, torch.from_numpy(x).repeat(2000, 1), seeded())
    check_moments(found, x[0] @ slope.T + level, left)
    if t in TIMES:
        rows = bridge.kept.rows("points", TIMES.index(t))
        among(found, rows)


@every
def test_trajectories_have_the_joint_law_of_all_times(name):
    bridge, law = solved(name)
    times = [0.5, 0.61, 1.0, 1.2, 1.33, 2.0, 2.1]
    path = bridge.trajectories(times, n=4000, generator=seeded())
    assert path.shape == (7, 4000, law.dim)
    check_moments(path.movedim(0, 1).flatten(1), *law.joint(times))


@every
def test_forecasts_follow_the_reference(name):
    bridge, law = solved(name)
    x = states(law, 2.1, 1)
    for s, t in ((2.1, 2.9), (1.8, 2.6), (2.3, 2.6)):
        slope, level, left = law.ahead(s, t)
        found = bridge.transition(s, t, torch.from_numpy(x).repeat(2000, 1), seeded())
        check_moments(found, x[0] @ slope.T + level, left)
    path = bridge.trajectories([1.7, 2.5, 3.0], n=4000, generator=seeded())
    check_moments(path.movedim(0, 1).flatten(1), *law.joint([1.7, 2.5, 3.0]))
    late = torch.from_numpy(x)
    assert torch.equal(bridge.drift(2.5, late), bridge.reference(2.5, late))


@pytest.mark.parametrize("name", ["relaxing"])
def test_its_drifts_carry_each_snapshot_to_the_next(name):
    """Euler steps along the drift, from the model, forward and back."""
    law = CASES[name][1]
    bridge = solve(name, steps=8)
    model = Generator(Empirical((1, 1)), bridge, Euler())
    for a, b in ((0, 1), (1, 0)):
        z = torch.randn(2000, 1, generator=seeded(3), dtype=torch.float64)
        x = float(law.means[a][0]) + z * float(law.covs[a][0, 0]) ** 0.5
        grid = torch.linspace(TIMES[a], TIMES[b], 41, dtype=torch.float64)
        ends = model.sample(x0=x, times=grid, reverse=b < a, generator=seeded())
        check_moments(ends, law.means[b], law.covs[b], slack=0.02)
        exact = model.sample(x0=x, times=grid[[0, 20, 40]], solver=Exact(), reverse=b < a,
                             trajectory=True, generator=seeded())  # fmt: skip
        check_moments(exact[1], *law.marginal(float(grid[20])), slack=0.005)


def test_wrong_variants_are_caught(monkeypatch):
    """A pair covariance without sigma^2, and a drift that forgets the reference."""
    bridge, law = solved("relaxing")
    x = states(law, 1.0)
    known = law.drift(1.0, x)
    pull = asked(bridge.drift, 1.0, x) - asked(bridge.reference, 1.0, x)
    assert np.abs(pull - known).max() > 0.1
    still = asked(solved("brownian")[0].drift, 1.0, x)
    assert np.abs(still - known).max() > 0.01
    right = interval_module.log_density
    for module in (interval_module, law_module):
        monkeypatch.setattr(module, "log_density", lambda m, c, y: right(m, c / SIGMA**2, y))
    wrong = asked(solve("relaxing").drift, 1.0, x)
    assert np.abs(wrong - known).max() > 0.02


def scattered(n: int, m: int, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = seeded(4)
    x0 = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x0, 1.5 + 0.7 * torch.randn(m, d, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 45)])
def test_two_scattered_snapshots_against_the_plan_of_pot(n, m):
    """Without a reference it is entropic transport, whose potentials give both drifts as sums of
    kernels."""
    x0, x1 = scattered(n, m)
    length, sigma = 1.6, 0.9
    bridge = MultiMarginalBridge(Brownian(2), sigma, [1.0, 1.0 + length])
    objective = StaticBridge(tolerance=1e-10)(bridge, x0, x1)
    cost = ((x0[:, None] - x1) ** 2).sum(2).numpy() / 2
    mu, nu, epsilon = np.full(n, 1 / n), np.full(m, 1 / m), sigma**2 * length
    plan, log = ot.sinkhorn(mu, nu, cost, epsilon, "sinkhorn_log", 20_000, 1e-13, log=True)
    assert np.abs(bridge.plan(0).numpy() - plan).max() < 1e-9
    density = np.exp(-cost / epsilon) / (2 * np.pi * epsilon)
    divergence = (plan * np.log(plan / (mu[:, None] * density))).sum()
    assert abs(float(objective) - divergence) < 1e-8
    x, t = scattered(9, 1)[0], 1.7
    ahead = torch.from_numpy(log["log_v"]) - torch.cdist(x, x1) ** 2 / (2 * sigma**2 * (2.6 - t))
    drift = (ahead.softmax(1) @ x1 - x) / (2.6 - t)
    assert torch.allclose(bridge.drift(t, x), drift, atol=1e-7)
    behind = torch.from_numpy(log["log_u"]) - torch.cdist(x, x0) ** 2 / (2 * sigma**2 * (t - 1.0))
    drift = (x - behind.softmax(1) @ x0) / (t - 1.0)
    assert torch.allclose(bridge.backward_drift(t, x), drift, atol=1e-7)


def test_rows_are_met_as_often_as_they_weigh():
    x0, x1 = scattered(12, 20)
    weights = [None, 0.5 + torch.rand(20, generator=seeded(5))]
    bridge = MultiMarginalBridge(OrnsteinUhlenbeck(2, TURN), 0.9, [0.0, 1.3]).observe([0, 1.3], weights)
    StaticBridge()(bridge, x0, x1)
    path = bridge.trajectories([0.0, 0.6, 1.3], n=6000, generator=seeded())
    for k, x in enumerate((x0, x1)):
        counts = among(path[-k], x).bincount(minlength=len(x)).double()
        mass = torch.ones(len(x)) if weights[k] is None else weights[k]
        share = mass.double() / mass.sum()
        assert ((counts / 6000 - share).abs() < 4.5 * (share / 6000).sqrt()).all()
    pairs = among(path[0], x0) * 20 + among(path[2], x1)
    plan = bridge.plan(0).flatten()
    counts = pairs.bincount(minlength=240) / 6000
    assert ((counts - plan).abs() < 5 * (plan / 6000).sqrt() + 1e-3).all()
