"""Scores of learnt plans against a known one."""

import math

import pytest
import torch
from torch import distributions as D
from torch import nn

from genflow.distance import BuresWasserstein
from genflow.oracle import EntropicPair
from genflow.process import LightBridge

double = torch.float64


def perturbed(pair, size, seed=0):
    """A bridge near the truth."""
    draw, bridge = torch.Generator().manual_seed(seed), pair.bridge()

    def noise(like):
        return size * torch.randn(like.shape, generator=draw, dtype=double)

    with torch.no_grad():
        weight, where = bridge.log_weight.clone(), bridge.location.clone()
        scale = bridge.covariances().diagonal(dim1=1, dim2=2).clone()
        return bridge.assign(weight + noise(weight), where + noise(where), scale * noise(scale).exp())


def test_wrong_bridges_do_not_pass_for_the_truth():
    pair = EntropicPair(4, 0.1)
    truth = pair.bridge()
    with torch.no_grad():
        scale = truth.covariances().diagonal(dim1=1, dim2=2)
        given = truth.log_weight.clone(), truth.location.clone()
        forgot = pair.bridge().assign(*given, pair.epsilon * scale)  # covariances, not over epsilon
        raw = pair.bridge().assign(given[0], pair.potential.means, scale)  # centres of the potential
    for wrong in (forgot, raw):
        assert pair.kl(wrong, 2000).value > 1 and pair.conditional_bw(wrong, 100) > 0.1
    wide = EntropicPair(4, 1.0)

    def within(x0):  # without the spread between the components
        mean, _ = wide.plan_moments(x0)
        return mean, (0.0625 / 1.0625 * torch.eye(4, dtype=double)).expand(len(x0), 4, 4)

    assert wide.conditional_bw(wide.plan_moments, 100) < 1e-8 < 1 < wide.conditional_bw(within, 100)


# KL


def test_kl_of_gaussian_plans_is_that_of_torch():
    # one component: plans are Gaussian, and their divergence is known at every point
    pair = EntropicPair([3], 0.6, 2, 1, radius=1.0, variance=0.3, anisotropy=3.0)
    scale = torch.tensor([[0.5, 0.3, 0.2]], dtype=double)
    where = torch.tensor([[0.4, -0.2, 0.3]], dtype=double)
    bridge = LightBridge(3, 1, 0.6).double().assign(torch.zeros(1, dtype=double), where, scale)
    x0 = pair.x0.double().sample(50_000, pair.stream("other"))
    truth = D.MultivariateNormal(*pair.plan_moments(x0))
    mine = D.MultivariateNormal(where + scale * x0, (0.6 * scale).diag_embed())
    rows = D.kl_divergence(truth, mine)
    value, error = pair.kl(bridge)
    spread = math.hypot(error, float(rows.std()) / len(rows) ** 0.5)
    assert abs(value - float(rows.mean())) < 4.5 * spread < 0.1 * value


@pytest.mark.parametrize("size", [0.01, 0.1, 0.5])
def test_kl_agrees_with_plain_averages_and_its_own_error(size):
    pair = EntropicPair(8, 1.0)
    bridge = perturbed(pair, size)
    runs = [pair.kl(bridge, 1000, torch.Generator().manual_seed(k)) for k in range(40)]
    values = torch.tensor([run.value for run in runs])
    stated = sum(run.error for run in runs) / len(runs)
    assert 0.7 < float(values.std()) / stated < 1.4
    x0, x1 = pair.sample(100_000, pair.stream("other"), double)
    with torch.no_grad():
        own = bridge.log_normaliser(x0) - bridge.log_potential(x1)
    rows = own - pair.log_normaliser(x0) + pair.log_potential(x1)
    error = float(rows.std()) / len(rows) ** 0.5
    together = math.hypot(error, float(values.std()) / 40**0.5)
    assert abs(float(values.mean()) - float(rows.mean())) < 4.5 * together
    gain = error * (len(rows) / 1000) ** 0.5 / float(values.std())
    assert gain > {0.01: 8, 0.1: 0.9, 0.5: 0.6}[size]  # and no bias where it is far


def test_kl_takes_the_same_draws_for_every_learner():
    pair = EntropicPair(2, 1.0)
    bridge = perturbed(pair, 0.1)
    assert pair.kl(bridge) == pair.kl(bridge) != pair.kl(bridge, generator=pair.stream("other"))
    shifted = perturbed(pair, 0.1)
    with torch.no_grad():
        shifted.log_weight += 3.0  # the scale of a potential means nothing
    assert pair.kl(shifted).value == pytest.approx(pair.kl(bridge).value, rel=1e-9)


# Distances of moments


def test_conditional_bw_of_known_errors():
    pair = EntropicPair([2, 2], 1.0)
    variance = float(pair.target_moments[1].trace())

    def shifted(x0):
        mean, covariance = pair.plan_moments(x0)
        return mean + 0.3, covariance

    def wider(x0):
        mean, covariance = pair.plan_moments(x0)
        return mean, 1.5**2 * covariance

    assert pair.conditional_bw(shifted) == pytest.approx(100 * 4 * 0.3**2 / variance, rel=1e-9)
    traces = pair.plan_moments(pair.test_points().double())[1].diagonal(dim1=1, dim2=2).sum(1)
    want = 100 * 0.5**2 * float(traces.mean()) / variance
    assert pair.conditional_bw(wider) == pytest.approx(want, rel=1e-9)


def test_a_constant_guess_costs_a_hundred():
    pair = EntropicPair(3, 1.0)
    mean = pair.target_moments[0]
    got = pair.conditional_bw(lambda x0: (mean.expand(len(x0), 3), torch.zeros(len(x0), 3, 3)), 4000)
    assert got == pytest.approx(100, abs=4)


def test_conditional_bw_against_matrix_roots(generator):
    linalg = pytest.importorskip("scipy.linalg")
    pair = EntropicPair(3, 1.0)
    roots = torch.randn(6, 3, 3, generator=generator, dtype=double)
    roots[0, :, 0] = 0  # a singular covariance
    mine = roots @ roots.mT
    mean, true = pair.plan_moments(pair.test_points(6).double())
    far = 0.0
    for a, b in zip(mine, true):
        half = linalg.sqrtm(b.numpy())
        cross = linalg.sqrtm(half @ a.numpy() @ half).trace().real
        far += (float(a.trace() + b.trace()) / 2 - cross) / 6
    want = 200 * far / float(pair.target_moments[1].trace())
    assert pair.conditional_bw(lambda x0: (mean, mine), 6) == pytest.approx(want, rel=1e-6)


# (dimension, epsilon): the distance of the independent plan, and the floor of 1000 samples a point;
# figures of another implementation of the same construction, with directions of its own
KNOWN = {
    (2, 0.1): (164.9, 0.019), (16, 0.1): (149.5, 0.056), (64, 0.1): (127.3, 0.333),
    (128, 0.1): (110.1, 0.910), (2, 1.0): (84.4, 0.084), (16, 1.0): (68.9, 0.169),
    (64, 1.0): (67.9, 0.455), (2, 10.0): (3.86, 0.124), (16, 10.0): (1.97, 0.166),
    (64, 10.0): (2.53, 0.233),
}  # fmt: skip


@pytest.mark.parametrize(("dim", "epsilon"), KNOWN)
def test_independent_plan_and_floor(dim, epsilon):
    pair, (independent, floor) = EntropicPair(dim, epsilon), KNOWN[dim, epsilon]
    mean, covariance = pair.target_moments

    def ignorant(x0):
        return mean.expand(len(x0), dim), covariance.expand(len(x0), dim, dim)

    slack = 0.3 if dim == 2 else 0.17  # two dimensions have few directions
    assert pair.conditional_bw(ignorant, 200) == pytest.approx(independent, rel=slack)
    assert pair.floor({2: 500, 16: 60, 64: 25, 128: 12}[dim]) == pytest.approx(floor, rel=0.25)


def test_sampled_protocol_adds_the_floor(generator):
    pair = EntropicPair(4, 1.0)
    variance = float(pair.target_moments[1].trace())
    floor = pair.floor(100, 500)
    exact = pair.conditional_bw_sampled(lambda x0: pair.sample_plan(x0, generator), 100, 500)
    assert exact == pytest.approx(floor, rel=0.25) and floor == pair.floor(100, 500)

    def shifted(x0):
        assert x0.dtype == torch.float32
        return pair.sample_plan(x0, generator) + 0.5

    got = pair.conditional_bw_sampled(shifted, 100, 500)
    assert got == pytest.approx(floor + 100 * 4 * 0.5**2 / variance, rel=0.05)


def test_bw_of_samples(generator):
    pair = EntropicPair(3, 1.0)
    draws = pair.x1.double().sample(40_000, generator)
    assert 0 <= pair.bw(draws[:20_000]) < 0.1
    wrong = 1.2 * draws[:20_000] + 0.4
    square = BuresWasserstein(root=False)(wrong, draws[20_000:])
    want = 100 * float(square) / float(draws[20_000:].var(0).sum())
    assert pair.bw(wrong) == pytest.approx(want, rel=0.05) and want > 1


# Bad input


def test_bad_calls_are_refused():
    pair = EntropicPair(2, 1.0)
    x, covs = torch.zeros(4, 2), torch.eye(2).expand(5, 2, 2)
    for call, message in (
        (lambda: pair.kl(LightBridge(2, 3, 0.5)), "epsilon=0.5"),
        (lambda: pair.kl(pair, n=1), "whole number"),
        (lambda: pair.conditional_bw(lambda x0: (x0, x0), 5), "shapes"),
        (lambda: pair.conditional_bw(lambda x0: (x0 * math.nan, covs), 5), "NaN"),
        (lambda: pair.conditional_bw_sampled(lambda x0: x0[:3], 5, 5), "must be equal"),
        (lambda: pair.conditional_bw_sampled(lambda x0: x0, 5, 1), "whole number"),
        (lambda: pair.bw(x[:1]), "at least two"),
        (lambda: pair.bw(x / 0), "NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="no log_potential"):
        pair.kl(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="no conditional_moments"):
        pair.conditional_bw(nn.Linear(2, 2))


def test_divergence_of_a_plan_that_is_too_wide_is_not_understated():
    # the ratio of such a plan to the truth has heavy tails, which a sample mean misses
    pair = EntropicPair(3, 1.0, anisotropy=4.0)
    weight, location, scale = pair.bridge().numbers()
    wide = pair.bridge().assign(weight, location, scale + 0.3 * torch.eye(3)).requires_grad_(False)
    x0, x1 = pair.sample(100_000, torch.Generator().manual_seed(1), torch.float64)
    own = wide.log_normaliser(x0) - wide.log_potential(x1)
    plain = own - pair.log_normaliser(x0) + pair.log_potential(x1)
    error = float(plain.std()) / len(plain) ** 0.5
    found = pair.kl(wide)
    assert abs(found.value - float(plain.mean())) < 4 * (error**2 + found.error**2) ** 0.5
    assert found.error < 0.02
