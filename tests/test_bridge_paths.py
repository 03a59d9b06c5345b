"""Paths between given points against Gaussian bridges, and drifts whose transitions are known."""

import math

import numpy as np
import pytest
import torch
from mm_pairs import (
    Tilted,
    between,
    gaussian_bridge,
    normal,
    pair_logs,
    predators,
    rows,
    seeded,
    tanh,
    triple,
    van_loan,
    z_scores,
)
from torch import distributions as D

from genflow.process.multimarginal import bridges as bridges_module
from genflow.process.multimarginal import interval as interval_module
from genflow.process.multimarginal.bridges import Guide
from genflow.process.multimarginal.linear_noise import LinearNoise
from genflow.process.reference import Brownian, OrnsteinUhlenbeck, Reference

double = torch.float64
MATRIX, SHIFT, SIGMA = [[-0.6, 1.4], [-0.9, 0.3]], [0.5, -1.0], 0.7
LIMIT = 4.5  # standard errors


def linear():
    return OrnsteinUhlenbeck(2, MATRIX, SHIFT)


def same(n):
    return torch.zeros(n, dtype=torch.long)


def repeated(interval, n, steps, seed=0, **options):
    """``n`` bridges between the first rows."""
    return interval.paths(same(n), same(n), steps, generator=seeded(seed), **options)


# Affine drifts: Gaussian bridges


@pytest.mark.parametrize("guided", [True, False])
def test_bridges_of_an_affine_drift_have_their_law(guided):
    x, y, n = rows([0.4, -0.8]), rows([1.0, 0.6]), 10_000
    interval = between(linear(), SIGMA, x, y, (2.0, 3.5))
    wanted = rows(2.25, 3.1)
    paths = repeated(interval, n, 20, guided=guided, times=wanted)
    laws = []
    for t in wanted.tolist():
        at = int((paths.times[:, 0] - t).abs().argmin())
        assert float(paths.times[at, 0]) == t
        law = gaussian_bridge(MATRIX, SHIFT, SIGMA, x[0], y[0], t - 2, 1.5)
        assert z_scores(paths.x[at], *law).max() < LIMIT
        laws.append((at, *law))
        for matrix, sigma in ((np.transpose(MATRIX), SIGMA), (MATRIX, SIGMA**0.5), (MATRIX, SIGMA**2)):
            wrong = gaussian_bridge(matrix, SHIFT, sigma, x[0], y[0], t - 2, 1.5)
            assert z_scores(paths.x[at], *wrong).max() > 2 * LIMIT
    # between both times: given the first, the second is that of a bridge from there
    (early, m0, c0), (late, m1, c1) = laws
    to_late = wanted[1] - wanted[0]
    inner = [gaussian_bridge(MATRIX, SHIFT, SIGMA, v, y[0], float(to_late), 3.5 - 2.25)[0]
             for v in (m0, m0 + rows(1.0, 0.0), m0 + rows(0.0, 1.0))]  # fmt: skip
    slope = torch.stack([inner[1] - inner[0], inner[2] - inner[0]], 1)
    joint = torch.cat([torch.cat([c0, c0 @ slope.mT], 1), torch.cat([slope @ c0, c1], 1)])
    both = torch.cat([paths.x[early], paths.x[late]], 1)
    assert z_scores(both, torch.cat([m0, m1]), joint).max() < LIMIT
    joint[:2, 2:], joint[2:, :2] = 0, 0
    assert z_scores(both, torch.cat([m0, m1]), joint).max() > 2 * LIMIT


def test_brownian_bridges_are_exact_on_any_grid():
    sigma, span, n = 1.3, (1.0, 4.0), 10_000
    interval = between(Brownian(1), sigma, rows([0.5]), rows([-2.0]), span)
    for steps, times in ((2, None), (3, rows(1.01, 1.02, 3.9)), (40, None)):
        paths = repeated(interval, n, steps, times=times)
        for k in range(1, len(paths.x) - 1):
            t = float(paths.times[k, 0])
            variance = sigma**2 * (t - 1) * (4 - t) / 3
            mean = 0.5 - 2.5 * (t - 1) / 3
            z = z_scores(paths.x[k], rows(mean), rows([variance]))
            assert z.max() < LIMIT
        assert z_scores(paths.x[1], rows(mean), rows([variance / sigma])).max() > 2 * LIMIT
        assert not paths.log_weight.any()


def assert_steep_bridges(rate, stop):
    x, y, n = rows([1.0]), rows([0.4]), 4000
    interval = between(OrnsteinUhlenbeck(1, [[rate]], [0.0]), 0.5, x, y, (0.0, stop))
    times = rows(0.02, stop / 2, stop - 0.03)
    paths = repeated(interval, n, round(80 * stop), times=times)
    assert bool(torch.isfinite(paths.x).all()) and bool(torch.isfinite(paths.control).all())
    for t in times.tolist():
        at = int((paths.times[:, 0] - t).abs().argmin())
        left, right, whole = (math.sinh(20 * v) for v in (stop - t, t, stop))
        mean = (left * x[0] + right * y[0]) / whole
        variance = 0.25 * left / whole * right / 20
        assert z_scores(paths.x[at], mean, rows([variance])).max() < LIMIT


@pytest.mark.parametrize("rate, stop", [(-20.0, 1.0), (20.0, 1.0), (-20.0, 3.0)])
def test_steep_drifts_do_no_harm(rate, stop):
    assert_steep_bridges(rate, stop)  # of either sign they have the same bridges


@pytest.mark.parametrize("stop", [2.0, 3.0])
def test_growth_beyond_the_digits_of_doubles_is_right_or_refused(stop):
    # e^{40} and e^{60}: far from the free path, nothing is left of a state's deviation from it
    try:
        assert_steep_bridges(20.0, stop)
    except FloatingPointError as refused:
        assert "\n" not in str(refused)


def test_mixed_growth_and_decay_in_the_plane():
    matrix = rows([6.0, 3.0], [0.0, -9.0])
    x, y = rows([0.3, -0.2]), rows([0.5, 0.1])
    interval = between(OrnsteinUhlenbeck(2, matrix.tolist(), [0.1, 0.2]), 0.4, x, y, (0.0, 1.5))
    paths = repeated(interval, 4000, 120)
    for k in (12, 60, 112):
        law = gaussian_bridge(matrix, [0.1, 0.2], 0.4, x[0], y[0], k / 80, 1.5)
        assert z_scores(paths.x[k], *law).max() < LIMIT


def test_weights_of_an_affine_drift_are_one():
    interval = between(linear(), SIGMA, normal(3, 2), normal(3, 2, seed=1), (0.0, 1.5))
    index = torch.arange(3)
    paths = interval.paths(index, index, 20, generator=seeded())
    assert paths.log_weight.abs().max() < 1e-12
    assert interval.correction(20, 2, seeded()).abs().max() < 1e-6


def test_corrections_are_in_double_precision():
    interval = between(Brownian(2), SIGMA, normal(3, 2), normal(3, 2, seed=1), (0.0, 1.5))
    for paths in (1, 2, 10):
        assert interval.correction(20, paths, seeded()).abs().max() < 1e-12


def test_the_control_pulls_to_the_end():
    r""":math:`\sigma^2\nabla\log\tilde p(y|x)` at every state, from the closed form."""
    interval = between(linear(), SIGMA, normal(4, 2), normal(4, 2, seed=1), (0.0, 1.5))
    index = torch.arange(4)
    paths = interval.paths(index, index.flip(0), 60, generator=seeded())
    assert paths.control.shape == (60, 4, 2)
    for k in (0, 20, 45, 59):
        x = paths.x[k].clone().requires_grad_()
        phi, mean, gained = van_loan(MATRIX, SHIFT, 1.5 - k / 40)
        law = D.MultivariateNormal(x @ phi.mT + mean, SIGMA**2 * gained)
        (score,) = torch.autograd.grad(law.log_prob(interval.x1.flip(0)).sum(), x)
        want = SIGMA**2 * score
        torch.testing.assert_close(paths.control[k], want, rtol=1e-4, atol=1e-4)
        assert (paths.control[k] - want / SIGMA).abs().max() > 0.1


# What all paths do


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("make", [linear, triple, lambda: triple(turn=2.0), predators])
def test_paths_begin_and_end_where_they_should(make, guided):
    x, y = normal(5, 2).abs() + 1, normal(7, 2, seed=1).abs() + 1
    interval = between(make(), SIGMA, x, y, (0.5, 1.2))
    source, target = torch.tensor([4, 0, 0, 3, 4, 1]), torch.tensor([6, 1, 0, 0, 5, 6])
    paths = interval.paths(source, target, 9, guided, generator=seeded())
    assert paths.x.shape == (10, 6, 2) and paths.control.shape == (9, 6, 2)
    assert paths.times.shape == (10, 6) and paths.log_weight.shape == (6,)
    assert torch.equal(paths.x[0], x[source]) and torch.equal(paths.x[-1], y[target])
    assert {v.dtype for v in vars(paths).values()} == {double}
    assert not any(v.requires_grad for v in vars(paths).values())
    torch.testing.assert_close(paths.times[:, 2], torch.linspace(0.5, 1.2, 10, dtype=double))
    bent = guided and make is not linear
    assert bent == (float(paths.log_weight.abs().max()) > 1e-9)


def test_paths_follow_their_generator():
    interval = between(triple(), 1.0, normal(3, 2), normal(3, 2, seed=1))
    index = torch.arange(3)
    one, two, other = (interval.paths(index, index, 8, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one.x, two.x) and torch.equal(one.log_weight, two.log_weight)
    assert not torch.equal(one.x[1:-1], other.x[1:-1])
    first, second = (interval.correction(8, 3, seeded(4)) for _ in range(2))
    assert torch.equal(first, second)


def test_until_stops_on_the_way():
    reference, x, y = triple(turn=1.0), normal(3, 2), normal(5, 2, seed=1)
    with torch.no_grad():
        lines = LinearNoise.along(reference, x, torch.linspace(0, 1, 13, dtype=double))
    guide, index = Guide(reference, lines, 1.0), torch.tensor([0, 2, 2, 1, 0])
    whole = guide.paths(index, y, generator=seeded(3))
    for until in (1, 5, 12):
        part = guide.paths(index, y, generator=seeded(3), until=until)
        assert torch.equal(part.x, whole.x[: until + 1])
        assert torch.equal(part.control, whole.control[:until])
        assert torch.equal(part.times, whole.times[: until + 1])


def test_grids_hold_the_times_that_are_wanted():
    interval = between(Brownian(1), 1.0, normal(2, 1), normal(2, 1), (1.0, 3.0))
    even = interval.grid(8)
    torch.testing.assert_close(even, torch.linspace(1, 3, 9, dtype=double), rtol=0, atol=0)
    assert torch.equal(interval.grid(8, torch.empty(0, dtype=double)), even)
    times = rows(1.0, 1.1, 1.75, 2.0 + 1e-9, 2.9, 3.0)  # two on the even grid, one all but
    grid = interval.grid(8, times)
    assert grid.dtype == double and len(grid) == 9 + 2
    assert all(t in grid.tolist() for t in times.tolist())
    assert float(grid.diff().min()) > 1e-3
    assert float(grid[0]) == 1 and float(grid[-1]) == 3


# Blocks


def crossing():
    source, target = torch.arange(7).repeat_interleave(5), torch.arange(5).repeat(7)
    order = torch.randperm(35, generator=seeded(1))
    interval = between(triple(turn=1.0), 1.0, normal(7, 2), normal(5, 2, seed=1))
    return interval, source[order], target[order]


@pytest.mark.parametrize("rows_each", [2, 3])
def test_paths_in_blocks_are_those_of_one(monkeypatch, rows_each):
    interval, source, target = crossing()
    # what the noise leaves: in blocks it is drawn in another order
    monkeypatch.setattr(bridges_module, "randn_like", lambda x, generator: torch.zeros_like(x))
    whole = interval.paths(source, target, 10, times=rows(0.33))
    pairs = interval.correction(10, 2)
    monkeypatch.setattr(interval_module, "BLOCK", rows_each * 11 * 4)
    for chosen in (slice(None), slice(0, 9), slice(4, 5)):  # some blocks have no path
        paths = interval.paths(source[chosen], target[chosen], 10, times=rows(0.33))
        for name in ("times", "x", "control"):
            torch.testing.assert_close(getattr(paths, name), getattr(whole, name)[:, chosen])
        torch.testing.assert_close(paths.log_weight, whole.log_weight[chosen])
    torch.testing.assert_close(interval.correction(10, 2), pairs)
    assert pairs.shape == (7, 5)
    # entry by entry the pair of its row and column
    k = 11
    torch.testing.assert_close(pairs[source[k], target[k]], alone(interval, source[k], target[k]))


def alone(interval, i, j):
    return interval.paths(i[None], j[None], 10).log_weight[0]


def test_paths_in_blocks_have_the_law_of_one(monkeypatch):
    interval = between(tanh(), 1.0, rows([-0.5], [0.7]), rows([0.3]), (0.0, 1.0))
    monkeypatch.setattr(interval_module, "BLOCK", 40)
    n = 4000
    source = torch.arange(2).repeat(n)
    paths = interval.paths(source, same(2 * n), 40, generator=seeded())
    for k in range(2):
        own = source == k
        law = interval.reference.bridge(interval.x0[k], interval.x1[0], (0, 1), 0.5)
        assert z_scores(paths.x[20, own], *law, paths.log_weight[own].exp()).max() < LIMIT
    # blocks do not share their noise
    gap = torch.corrcoef(torch.stack([paths.x[20, source == k, 0] for k in range(2)]))[0, 1]
    assert abs(float(gap)) < LIMIT / n**0.5


# Nonlinear drifts


PAIRS = {
    "tanh": (tanh(0.8), rows([-1.2], [0.3]), rows([1.0], [-0.9], [0.2]), (0.0, 2.0)),
    "triple": (triple(0.8), rows([0.2, 0.1], [-0.5, 0.4]), rows([0.9, -0.5], [-0.6, -0.8]), (0.0, 1.2)),
}  # fmt: skip
PAIRS["turning"] = triple(0.8, turn=1.5), *PAIRS["triple"][1:3], (0.4, 1.6)
NONLINEAR = pytest.mark.parametrize("name", PAIRS)


def test_the_exact_law_is_one():
    """Of the oracle itself: its density is a density, and it solves Kolmogorov's equation."""
    reference, x, span = triple(0.8, turn=1.5), rows([0.2, 0.1]), (0.4, 1.6)
    line = torch.linspace(-7, 7, 141, dtype=double)
    y = torch.cartesian_prod(line, line)
    density = reference.log_density(x, y, span)[0].exp()
    assert float(density.sum() * 0.1**2) == pytest.approx(1, abs=1e-9)
    mean = density @ y * 0.1**2
    draw, z, steps = seeded(2), x.expand(20_000, 2).clone(), 60
    h = 1.2 / steps
    for k in range(steps):
        dw = 0.8 * h**0.5 * torch.randn(z.shape, generator=draw, dtype=double)
        first = reference(0.4 + k * h, z)
        z = z + h / 2 * (first + reference(0.4 + (k + 1) * h, z + h * first + dw)) + dw
    away = y - mean
    covariance = (density[:, None] * away).mT @ away * 0.1**2
    assert z_scores(z, mean, covariance).max() < LIMIT


def mean_weights(interval, steps, paths, repeats):
    """Means over pairs' likelihood ratios ``(n, m)`` and their standard errors."""
    found = torch.stack([interval.correction(steps, paths, seeded(s)).exp() for s in range(repeats)])
    return found.mean(0), found.std(0) / repeats**0.5


@NONLINEAR
def test_the_mean_weight_is_the_ratio_of_densities(name):
    reference, x, y, span = PAIRS[name]
    interval = between(reference, 0.8, x, y, span)
    want = (reference.log_density(x, y, span) - pair_logs(interval, 100)).exp()
    mean, error = mean_weights(interval, 40, 150, 8)
    # of first order in the step, as Euler's scheme is: about 0.01 here
    assert ((mean - want).abs() < 3.5 * error + 0.015).all()
    assert ((1 - want).abs() > 7 * error + 0.03).any()  # no correction at all
    assert ((1 / mean - want).abs() > 7 * error + 0.03).any()  # upside down


class DoubleWell(Reference):
    def __init__(self):
        super().__init__(1)

    def field(self, t, x, values):
        return x - x**3


def test_the_mean_weight_in_a_double_well_against_a_grid():
    """Its transitions by Chapman and Kolmogorov: a power of the matrix of short ones."""
    sigma, time, steps = 0.7, 0.8, 256
    line = torch.linspace(-3, 3, 601, dtype=double)[:, None]
    h = time / steps
    short = D.Normal(line + h * (line - line**3), sigma * h**0.5).log_prob(line[:, 0]).exp() * 0.01
    whole = torch.linalg.matrix_power(short, steps) / 0.01
    x, y = line[[250, 320]], line[[280, 340]]  # (-0.5, 0.2) and (-0.2, 0.4)
    want = whole[[250, 320]][:, [280, 340]].log()
    interval = between(DoubleWell(), sigma, x, y, (0.0, time))
    linearised = pair_logs(interval, 60)
    mean, error = mean_weights(interval, 40, 200, 8)
    found = linearised + mean.log()
    # of 1280 steps instead of 40, an eighth of what is allowed here beside the noise is left
    allowed = 3.5 * error / mean + 0.015 + 0.08 * (want - linearised).abs()
    assert ((found - want).abs() < allowed).all()
    assert ((linearised - want).abs() > 5 * allowed).any()


@NONLINEAR
def test_weighted_guided_paths_have_the_law_of_the_bridge(name):
    reference, x, y, span = PAIRS[name]
    interval = between(reference, 0.8, x[:1], y[:1], span)
    guided, free = (repeated(interval, 3000, 48, guided=g) for g in (True, False))
    weight = guided.log_weight.exp()
    assert 0.05 < float(weight.sum() ** 2 / weight.square().sum() / len(weight)) < 0.999
    for k in (12, 24, 36):
        law = reference.bridge(x[0], y[0], span, float(guided.times[k, 0]))
        assert z_scores(guided.x[k], *law, weight).max() < LIMIT
    # neither do without the weights
    assert z_scores(guided.x[24], *reference.bridge(x[0], y[0], span, sum(span) / 2)).max() > LIMIT
    assert not torch.equal(guided.x, free.x) and not free.log_weight.any()


@NONLINEAR
def test_weights_are_those_of_girsanov(name):
    """From the states and controls alone."""
    reference, x, y, span = PAIRS[name]
    interval = between(reference, 0.8, x[:1], y[:1], span)
    paths = repeated(interval, 6, 25)
    h = (span[1] - span[0]) / 25
    with torch.no_grad():
        mean = LinearNoise.along(reference, x[:1], interval.grid(25)).mean
    total = torch.zeros(6, dtype=double)
    for k in range(25):
        t, m = float(paths.times[k, 0]), mean[k, 0]
        slope = torch.autograd.functional.jacobian(lambda z, t=t: reference(t, z[None])[0], m)
        affine = reference(t, m[None]) + (paths.x[k] - m) @ slope.mT
        total += h / 0.64 * ((reference(t, paths.x[k]) - affine) * paths.control[k]).sum(1)
    torch.testing.assert_close(paths.log_weight, total, rtol=1e-9, atol=1e-11)


def test_free_paths_are_bridges_of_the_linearised_drift():
    reference, x, y, span = PAIRS["turning"]
    interval = between(reference, 0.8, x[:1], y[:1], span)
    paths = repeated(interval, 10_000, 24, guided=False)
    with torch.no_grad():
        lines = LinearNoise.along(reference, x[:1], interval.grid(24))
    # the joint law of the states at steps 10 and 24, conditioned
    mean, spread = lines.mean[10, 0], torch.zeros(2, 2, dtype=double)
    for a, q in zip(lines.step[:10, 0], lines.noise[:10, 0]):
        spread = a @ spread @ a.mT + 0.64 * q
    phi, end = torch.eye(2, dtype=double), spread
    for a, q in zip(lines.step[10:, 0], lines.noise[10:, 0]):
        phi, end = a @ phi, a @ end @ a.mT + 0.64 * q
    gain = spread @ phi.mT @ torch.linalg.inv(end)
    law = mean + gain @ (y[0] - lines.mean[-1, 0]), spread - gain @ phi @ spread
    assert z_scores(paths.x[10], *law).max() < LIMIT
    assert z_scores(paths.x[10], law[0], law[1] / 0.8).max() > 2 * LIMIT


def test_tanh_bridges_of_other_rates_are_brownian():
    # a check of the second moments where the drift is nearly a jump
    reference = Tilted(0.8, [2.0], [-2.0])
    interval = between(reference, 0.8, rows([-0.4]), rows([0.5]), (0.0, 0.5))
    paths = repeated(interval, 4000, 80)
    law = reference.bridge(rows(-0.4), rows(0.5), (0.0, 0.5), 0.25)
    assert z_scores(paths.x[40], *law, paths.log_weight.exp()).max() < LIMIT
