"""Paths through many snapshots: splines and widths in closed form, marginals that are the data."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from genflow.coupling import Chained, Independent
from genflow.interpolant import BrownianBridge, Chain
from genflow.loss import Matching
from genflow.network import MLP
from genflow.process import SDE
from genflow.specs import build, fill, spec
from genflow.target import Drift

TIMES = [2.0, 3.0, 3.5, 7.0]
KNOTS = np.array([0.0, 0.2, 0.3, 1.0])
SIGMA = 0.7
INSIDE = torch.tensor([0.07, 0.19, 0.22, 0.28, 0.31, 0.55, 0.93], dtype=torch.float64)
kinds = pytest.mark.parametrize("kind", ["linear", "spline"])
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
shapes = pytest.mark.parametrize("shape", [(2,), (1, 3, 3)], ids=str)


def ends(rows, shape=(2,), count=4, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randn(count, rows, *shape, generator=draw, dtype=dtype))


def reference(kind, xs, order):
    """The curve of each row by SciPy, or its derivative, at a time each; ``(B, *d)``."""
    values = torch.stack(xs).numpy()

    def at(times):
        rows = []
        for b, t in enumerate(times.tolist()):
            if kind == "spline":
                rows.append(CubicSpline(KNOTS, values[:, b], bc_type="natural")(t, order))
            else:
                k = np.searchsorted(KNOTS, t, side="right") - 1
                slope = (values[k + 1, b] - values[k, b]) / (KNOTS[k + 1] - KNOTS[k])
                rows.append(slope if order else values[k, b] + slope * (t - KNOTS[k]))
        return torch.from_numpy(np.array(rows))

    return at


@shapes
@kinds
def test_the_curve_and_its_rate_are_those_of_scipy(kind, shape):
    xs = ends(len(INSIDE), shape)
    sample = Chain(TIMES, kind).sample(INSIDE, *xs)
    torch.testing.assert_close(sample.x, reference(kind, xs, 0)(INSIDE), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sample.rate, reference(kind, xs, 1)(INSIDE), rtol=1e-12, atol=1e-12)
    assert torch.equal(sample.velocity, sample.rate)


def test_a_spline_with_another_end_condition_or_clock_is_another_curve():
    xs = ends(len(INSIDE))
    ours = Chain(TIMES, "spline").sample(INSIDE, *xs).x
    values = torch.stack(xs).numpy()
    for knots, kind in ((KNOTS, "not-a-knot"), (np.linspace(0, 1, 4), "natural")):
        other = [
            CubicSpline(knots, values[:, b], bc_type=kind)(t) for b, t in enumerate(INSIDE.tolist())
        ]
        assert (ours - torch.from_numpy(np.array(other))).abs().max() > 0.01


def test_a_spline_has_no_kink_where_the_pieces_meet():
    xs, near = ends(1), 1e-9
    for kind, jumps in (("spline", False), ("linear", True)):
        before, after = (Chain(TIMES, kind).sample(0.3 + s * near, *xs).rate for s in (-1, 1))
        assert ((before - after).abs().max() > 0.1) == jumps


@precisions
@kinds
@pytest.mark.parametrize("times", [TIMES, None, [0.0, 0.1, 0.7, 1.9]], ids=str)
def test_the_marginals_at_the_snapshots_are_the_data(times, kind, dtype, generator):
    path, xs = Chain(times, kind, SIGMA), ends(5, dtype=dtype)
    for k, t in enumerate(path.knots(4)):
        sample = path.sample(t, *xs, generator=generator)
        assert torch.equal(sample.x, xs[k]) and not sample.gamma.any()
        for value in (sample.rate, sample.velocity, sample.score, Drift(SIGMA)(sample)):
            assert value.dtype == dtype and value.isfinite().all()


@kinds
def test_velocity_is_the_derivative_of_the_path(kind):
    xs, h = ends(len(INSIDE)), 1e-6
    z = torch.randn(xs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = Chain(TIMES, kind, SIGMA)
    ahead, behind = (path.sample(INSIDE + s * h, *xs, noise=z).x for s in (1, -1))
    sample = path.sample(INSIDE, *xs, noise=z)
    difference = (ahead - behind) / (2 * h)
    torch.testing.assert_close(sample.velocity, difference, rtol=1e-6, atol=1e-6)
    assert (sample.rate - sample.dgamma * z - difference).abs().max() > 0.1  # the wrong sign


def test_the_width_is_that_of_a_bridge_on_each_interval():
    x = torch.zeros(len(INSIDE), 2, dtype=torch.float64)
    sample = Chain(TIMES, sigma=SIGMA).sample(INSIDE, x, x, x, x)
    t = INSIDE.clone().requires_grad_()
    k = np.searchsorted(KNOTS, INSIDE.numpy(), side="right") - 1
    left, right = torch.from_numpy(KNOTS[k]), torch.from_numpy(KNOTS[k + 1])
    variance = SIGMA**2 * (t - left) * (right - t) / (right - left)
    torch.testing.assert_close(sample.gamma[:, 0] ** 2, variance.detach())
    half = torch.autograd.grad(variance.sum() / 2, t)[0]
    torch.testing.assert_close(sample.gamma_dgamma[:, 0], half)
    torch.testing.assert_close((sample.gamma * sample.dgamma)[:, 0], half)


@kinds
def test_between_two_snapshots_it_is_a_brownian_bridge(kind):
    t = torch.tensor([0.0, 0.1, 0.6, 1.0])
    xs = ends(4, count=2, dtype=torch.float32)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    ours = Chain([3.0, 9.0], kind, SIGMA).sample(t, *xs, noise=z)
    bridge = BrownianBridge(SIGMA).sample(t, *xs, noise=z)
    for name in ("x", "rate", "noise", "gamma", "dgamma", "gamma_dgamma", "score"):
        torch.testing.assert_close(getattr(ours, name), getattr(bridge, name))
    torch.testing.assert_close(Drift(SIGMA)(ours), Drift(SIGMA)(bridge))


def test_the_drift_of_straight_pieces_heads_for_the_next_snapshot(generator):
    t = torch.cat([INSIDE, torch.tensor([0.0, 0.2, 0.3], dtype=torch.float64)])
    xs = ends(len(t))
    sample = Chain(TIMES, sigma=SIGMA).sample(t, *xs, generator=generator)
    k = torch.from_numpy(np.searchsorted(KNOTS, t.numpy(), side="right"))
    following = torch.stack(xs)[k, torch.arange(len(t))]
    left = torch.from_numpy(KNOTS)[k] - t
    torch.testing.assert_close(Drift(SIGMA)(sample), (following - sample.x) / left[:, None])


@kinds
def test_the_drift_carries_the_marginals(kind, generator):
    # d/dt of mean and variance, by differences, is what a diffusion with this drift makes
    n, h = 200_000, 1e-4
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    xs = x0, 2 + 1.5 * x0, 1 - 0.3 * x0, 0.2 * x0
    path = Chain(TIMES, kind, SIGMA)
    for t in (0.1, 0.26, 0.7):
        ahead, behind, sample = (path.sample(t + s * h, *xs, noise=z) for s in (1, -1, 0))
        centred = sample.x - sample.x.mean()
        drift = Drift(SIGMA)(sample)
        slope = (ahead.x.var() - behind.x.var()) / (2 * h)
        spread = SIGMA**2 * (sample.noise * centred / sample.gamma).std() / n**0.5
        assert (2 * (drift * centred).mean() + SIGMA**2 - slope).abs() < 4 * spread
        assert (
            2 * (sample.velocity * centred).mean() + SIGMA**2 - slope
        ).abs() > 20 * spread  # the noise forgotten
        mean = (ahead.x - behind.x).mean() / (2 * h)
        assert (drift.mean() - mean).abs() < 4 * (drift - sample.velocity).std() / n**0.5 + 1e-6


def test_sigma_is_per_square_root_of_the_time_of_the_path():
    # noise s per square root of a user's time: in the middle of an interval of length h its variance
    # is s^2 h / 4
    s, x = 0.3, torch.zeros(1, 1, dtype=torch.float64)
    path = Chain(TIMES, sigma=s * (TIMES[-1] - TIMES[0]) ** 0.5)
    middle = path.sample((5.25 - 2) / 5, x, x, x, x).gamma
    assert float(middle) ** 2 == pytest.approx(s**2 * 3.5 / 4)


def test_times_come_from_the_user_the_data_or_are_equal():
    assert Chain().knots(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    told = Chain(kind="spline").observe([0, 12, 24, 72], weights=None)
    assert told.times == [0.0, 12.0, 24.0, 72.0] and told.knots(4) == (0.0, 1 / 6, 1 / 3, 1.0)
    assert told.observe([1, 2, 3]).times == [1.0, 2.0, 3.0]  # of a second series
    stated = Chain([0, 1, 4]).observe([10, 20, 50])  # the same in another unit
    assert stated.times == [0.0, 1.0, 4.0]
    with pytest.raises(ValueError, match=r"not spaced as the snapshots, .* at \[0.0, 1.0, 2.0\]"):
        stated.observe([0, 1, 2])
    assert Chain([0, 1, 4]) == Chain((0.0, 1.0, 4.0)) != Chain()


def test_observed_times_are_described_and_put_back():
    before = spec(Chain(sigma=0.2))
    told = spec(Chain(sigma=0.2).observe([2, 3, 7]))
    assert build(told) == Chain([2.0, 3.0, 7.0], sigma=0.2)
    path = Chain(sigma=0.2)
    fill(path, before, told)
    assert path == build(told)
    assert path.observe([0, 1, 2]).times == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Chain([1.0]), "at least two finite numbers"),
        (lambda: Chain([0.0, math.nan]), "at least two finite numbers"),
        (lambda: Chain([0.0, 2.0, 2.0]), "2 follows 2"),
        (lambda: Chain(kind="cubic"), "kind must be one of 'linear', 'spline'"),
        (lambda: Chain(sigma=-1.0), "sigma must be zero or positive"),
        (lambda: Chain([0, 1]).observe([0, 1, 2]), "2 times but the data have 3 snapshots"),
        (lambda: Chain().observe([0, 2, 1]), "1 follows 2"),
        (lambda: Chain().sample(0.5, torch.zeros(2, 2)), "at least two but got 1"),
        (lambda: Chain([0, 1, 2]).sample(0.5, *[torch.zeros(2, 2)] * 2), "3, one for each time, but"),
        (
            lambda: Chain().sample(0.5, torch.zeros(2, 2), torch.zeros(3, 2)),
            "x1 .3, 2. must be coupled",
        ),
        (lambda: Chain().sample(1.5, *[torch.zeros(2, 2)] * 3), "must lie in"),
        (lambda: Matching(Chain(), Chained(), target=Drift(0.5)), "not defined on"),
    ],
)
def test_what_is_no_path_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_sde_learns_its_drift_along_a_chain_alone():
    loss = Matching(Chain(sigma=0.5), Chained(Independent()), target=Drift(0.5))
    loss.check(SDE(MLP(2, 8), 0.5))
    with pytest.raises(ValueError, match="sampled by its drift"):
        loss.check(SDE(MLP(2, 8)))
