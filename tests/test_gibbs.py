"""Gibbs weights against the Gaussian closed forms, and their epsilon."""

import math

import pytest
import torch
from gaussians import Pair, distance, draw, ess, fields, least_squares, log_z, pair, tilted
from hypothesis import given
from hypothesis import strategies as st

from genflow.coupling import Gibbs, effective_sample_size
from genflow.coupling.weights import epsilon_for, softmax_weight
from genflow.interpolant import Linear

EPSILON = 3.0
N = 200_000


def gibbs_weight(cost, epsilon):
    return softmax_weight(-cost / epsilon)


def squares(x, y):
    return ((x - y) ** 2).flatten(1).sum(1)


def half_squares(x, y):
    return squares(x, y) / 2


def sample(seed=0):
    return draw(pair(), N, torch.Generator().manual_seed(seed))


def weighted_moments(x0, x1, weight):
    z = torch.cat([x0, x1], 1)
    w = (weight / weight.sum())[:, None]
    mean = (w * z).sum(0)
    return mean, (w * (z - mean)).T @ (z - mean)


def true_moments(law: Pair):
    top = torch.cat([law.cov0, law.cross], 1)
    return torch.cat([law.mean0, law.mean1]), torch.cat([top, torch.cat([law.cross.T, law.cov1], 1)])


@pytest.mark.parametrize("cost, kappa", [("sqeuclidean", 1 / EPSILON), (half_squares, 0.5 / EPSILON)])
def test_weighted_moments(cost, kappa):
    # means .02, covariances .03
    x0, x1 = sample()
    mean, cov = true_moments(tilted(pair(), kappa))
    weight = Gibbs(EPSILON, cost=cost)(x0, x1).weight
    found = weighted_moments(x0, x1, weight)
    assert (found[0] - mean).abs().max() < 0.02 and (found[1] - cov).abs().max() < 0.03
    # wrong temperatures (c/2 instead of c, 2c instead of c) and no weights at all
    for wrong in (weight.sqrt(), weight**2, torch.ones_like(weight)):
        found = weighted_moments(x0, x1, wrong)
        assert (found[0] - mean).abs().max() > 0.06 and (found[1] - cov).abs().max() > 0.06


def test_effective_sample_size_and_normaliser():
    # effective sample size 3 %, log Z .02
    x0, x1 = sample()
    weight, cost = Gibbs(EPSILON)(x0, x1).weight, squares(x0, x1)
    truth = ess(pair(), 1 / EPSILON)
    assert effective_sample_size(weight) == pytest.approx(truth, rel=0.03)
    assert ess(pair(), 0.5 / EPSILON) > 1.1 * truth  # c/2 instead of c is seen
    found = -cost / EPSILON - weight.log()  # log of the mean of exp(-c / epsilon), on every row
    assert found.max() - found.min() < 1e-9
    assert abs(found[0] - log_z(pair(), 1 / EPSILON)) < 0.02
    assert abs(found[0] - log_z(pair(), 0.5 / EPSILON)) > 0.06


def test_weighted_regression_finds_the_tilted_velocity():
    # tolerance .03
    t = torch.tensor([0.4], dtype=torch.float64)
    path = Linear()
    true = fields(tilted(pair(), 1 / EPSILON), path.coefficients(t))["velocity"]
    x0, x1 = sample()
    weight = Gibbs(EPSILON)(x0, x1).weight
    drawn = path.sample(0.4, x0, x1)
    assert distance(least_squares(drawn.x, drawn.velocity, weight), true) < 0.03
    for wrong in (None, weight**2, weight.sqrt()):
        assert distance(least_squares(drawn.x, drawn.velocity, wrong), true) > 0.05


@given(
    costs=st.lists(st.floats(0, 100), min_size=1, max_size=50),
    epsilon=st.floats(0.2, 1e8),
)
def test_weights_are_positive_of_mean_one(costs, epsilon):
    weight = gibbs_weight(torch.tensor(costs, dtype=torch.float64), epsilon)
    assert (weight > 0).all() and abs(weight.mean() - 1) < 1e-9


@given(shift=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3))
def test_weights_ignore_shifts_and_a_common_scale(shift, scale):
    cost = torch.linspace(0, 12, 40, dtype=torch.float64) ** 1.3
    weight = gibbs_weight(cost, EPSILON)
    torch.testing.assert_close(gibbs_weight(cost + shift, EPSILON), weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        gibbs_weight(scale * cost, scale * EPSILON), weight, rtol=1e-9, atol=1e-9
    )


def test_a_cost_function_may_be_shifted_and_scaled(generator):
    x0, x1 = draw(pair(), 200, generator)
    weight = Gibbs(EPSILON)(x0, x1).weight
    moved = Gibbs(7 * EPSILON, cost=lambda x, y: 7 * squares(x, y) + 50)(x0, x1).weight
    torch.testing.assert_close(moved, weight, rtol=1e-9, atol=1e-9)
    half = Gibbs(EPSILON / 2, cost=half_squares)(x0, x1).weight
    torch.testing.assert_close(half, weight, rtol=1e-9, atol=1e-9)


def test_a_large_temperature_weights_evenly(generator):
    x0, x1 = draw(pair(), 200, generator)
    assert (Gibbs(1e12)(x0, x1).weight - 1).abs().max() < 1e-9
    assert (Gibbs(1e2)(x0, x1).weight - 1).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_costs_do_not_underflow(dtype, generator):
    # the naive exponential of a cost of 1e8 is zero everywhere
    x0, x1 = torch.randn(2, 64, 2, generator=generator, dtype=dtype)
    x1 = x1 + 1e4
    weight = Gibbs(EPSILON)(x0, x1).weight
    assert weight.isfinite().all() and weight.mean() == pytest.approx(1.0)
    assert torch.exp(-squares(x0, x1) / EPSILON).sum() == 0


@pytest.mark.parametrize("target", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_epsilon_reaches_the_effective_sample_size(target, generator):
    cost = squares(*draw(pair(), 5_000, generator))
    epsilon = epsilon_for(cost, target)
    assert effective_sample_size(gibbs_weight(cost, epsilon)) == pytest.approx(target, abs=1e-3)
    scaled = epsilon_for(1e6 * cost, target)
    assert scaled == pytest.approx(1e6 * epsilon, rel=1e-6)


def test_effective_sample_size_grows_with_epsilon(generator):
    cost = squares(*draw(pair(), 5_000, generator))
    sizes = [effective_sample_size(gibbs_weight(cost, 2.0**k)) for k in range(-8, 12)]
    assert all(low < high for low, high in zip(sizes, sizes[1:]))
    found = [epsilon_for(cost, s) for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert found == sorted(found)


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 16.0])
def test_epsilon_agrees_with_the_gaussian_closed_form(epsilon):
    target = ess(pair(), 1 / epsilon)
    assert epsilon_for(squares(*sample()), target) == pytest.approx(epsilon, rel=0.03)


def test_prepare_chooses_epsilon_from_data(generator):
    x0, x1 = draw(pair(), 3_000, generator)
    coupling = Gibbs(ess=0.4)
    assert coupling.prepare(x0, x1[:2_000]) is coupling
    assert ess(pair(), 1 / coupling.epsilon) == pytest.approx(0.4, abs=0.03)
    first = coupling.epsilon
    coupling.prepare(10 * x0, 10 * x1)  # a value that is there wins
    assert coupling.epsilon == first
    assert Gibbs(ess=0.4).prepare(x0, x1[:2_000]).epsilon == first  # no hidden draws


def test_prepare_keeps_a_given_epsilon(generator):
    assert Gibbs(epsilon=1.5).prepare(*draw(pair(), 50, generator)).epsilon == 1.5


def test_prepare_keeps_pairs_apart_from_the_order_of_rows(generator):
    # rows i of x0 and x1 are equal here: a pilot of aligned rows would see cost zero alone
    x = torch.randn(500, 2, generator=generator)
    assert Gibbs().prepare(x, x).epsilon > 0.1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Gibbs(epsilon=0.0), "epsilon must be positive"),
        (lambda: Gibbs(epsilon=-1.0), "epsilon must be positive"),
        (lambda: Gibbs(epsilon=math.nan), "epsilon must be a finite number"),
        (lambda: Gibbs(epsilon=math.inf), "epsilon must be a finite number"),
        (lambda: Gibbs(epsilon="1"), "epsilon must be a finite number"),
        (lambda: Gibbs(ess=0.0), "strictly between 0 and 1"),
        (lambda: Gibbs(ess=1.0), "strictly between 0 and 1"),
        (lambda: Gibbs(1.0, cost="cosine"), "cost must be one of"),
        (lambda: Gibbs()(torch.zeros(3, 2), torch.ones(3, 2)), "call coupling.prepare"),
        (lambda: Gibbs().prepare(torch.zeros(3, 2), torch.ones(3, 2)), "all costs .* are equal"),
        (lambda: Gibbs().prepare(torch.zeros(0, 2), torch.ones(3, 2)), "x0 is empty"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
