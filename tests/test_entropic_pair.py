"""Pairs with a known entropic plan: the plan, its drift, its bridge."""

import math

import pytest
import torch
from torch import distributions as D

from genflow import spec
from genflow.oracle import EntropicPair
from genflow.specs import build

ROUND = EntropicPair(2, 0.5, radius=1.5)
LONG = EntropicPair(2, 0.4, 3, 3, radius=1.2, variance=0.2, std=0.8, anisotropy=9.0)
PAIRS = pytest.mark.parametrize("pair", [ROUND, LONG], ids=["round", "long"])
double = torch.float64


def smoothed(pair, added=0.0):
    """The potential with a variance added, by torch's own distributions."""
    weights, means, covs = pair.potential
    normal = D.MultivariateNormal(means, covs + added * torch.eye(pair.size, dtype=double))
    return D.MixtureSameFamily(D.Categorical(weights), normal)


def grid(half=6.0, count=401):
    line = torch.linspace(-half, half, count, dtype=double)
    return torch.cartesian_prod(line, line), (2 * half / (count - 1)) ** 2


def z_scores(x, y):
    """Differences of the first two moments of samples, in standard errors."""
    f, g = (torch.cat([v, (v.unsqueeze(2) * v.unsqueeze(1)).flatten(1)], 1) for v in (x, y))
    return (f.mean(0) - g.mean(0)).abs() / (f.var(0) / len(f) + g.var(0) / len(g)).sqrt()


# The plan


@PAIRS
def test_the_plan_is_its_definition_summed_over_a_grid(pair):
    y, cell = grid()
    for x in ([0.0, 0.0], [0.7, -0.4], [-1.3, 0.9]):
        x0 = torch.tensor([x], dtype=double)
        logs = smoothed(pair).log_prob(y) - (y - x0).square().sum(1) / (2 * pair.epsilon)
        total = logs.logsumexp(0) + math.log(cell)
        torch.testing.assert_close(pair.log_plan(x0.expand_as(y), y), logs - total, rtol=0, atol=1e-9)
        share = logs.softmax(0)
        want = share @ y
        spread = (share.unsqueeze(1) * (y - want)).mT @ (y - want)
        mean, covariance = pair.plan_moments(x0)
        torch.testing.assert_close(mean[0], want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(covariance[0], spread, rtol=1e-9, atol=1e-9)


@PAIRS
def test_the_plan_is_entropic(pair, generator):
    # of exp(<x, y> / epsilon) times a function of each side nothing but the product is left
    x, y = pair.sample(200, generator, double)
    far, off = x.flip(0), y.roll(7, 0)
    cross = (
        pair.log_plan(x, y) + pair.log_plan(far, off) - pair.log_plan(x, off) - pair.log_plan(far, y)
    )
    want = ((x - far) * (y - off)).sum(1) / pair.epsilon
    torch.testing.assert_close(cross, want, rtol=1e-9, atol=1e-9)
    assert (cross - want / 2).abs().max() > 1  # a cost |x - y|^2 without the half


@PAIRS
def test_draws_of_the_plan_have_its_moments(pair, generator):
    x0 = torch.tensor([[0.5, -0.8]], dtype=double)
    x1 = pair.sample_plan(x0.expand(50_000, 2), generator)
    mean, covariance = (v[0] for v in pair.plan_moments(x0))
    count = len(x1)
    assert ((x1.mean(0) - mean).abs() / (covariance.diagonal() / count).sqrt()).max() < 4.5
    products = ((x1 - mean).unsqueeze(2) * (x1 - mean).unsqueeze(1)).flatten(1)
    error = products.std(0) / count**0.5
    assert ((products.mean(0) - covariance.flatten()).abs() / error).max() < 4.5
    surprise = -pair.log_plan(x0.expand(count, 2), x1)  # its mean is the entropy
    y, cell = grid()
    logs = pair.log_plan(x0.expand_as(y), y)
    entropy = -float((logs.exp() * logs).sum() * cell)
    assert abs(float(surprise.mean()) - entropy) < 4.5 * float(surprise.std()) / count**0.5


def test_the_target_is_what_the_plan_makes_of_the_source(generator):
    # one dimension: its distribution function by sums over a grid
    pair = EntropicPair(1, 0.5, 1, 3, radius=1.0, variance=0.05)
    line = torch.linspace(-4, 4, 801, dtype=double)
    x, y = torch.cartesian_prod(line, line).split(1, 1)
    start = D.Normal(0.0, 0.5).log_prob(x[:, 0])
    density = (start + pair.log_plan(x, y)).exp().reshape(801, 801).sum(0) * 0.01**2
    mean, covariance = pair.target_moments
    found = float(density @ line)
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    assert float(mean) == pytest.approx(found, abs=0.01)
    assert float(covariance) == pytest.approx(float(density @ (line - found) ** 2), rel=0.01)
    n = 40_000
    draws = pair.x1.double().sample(n, generator)[:, 0].sort().values
    below = torch.searchsorted(draws, line + 0.005) / n  # cells end half a step after their point
    assert (below - density.cumsum(0)).abs().max() < 1.95 / n**0.5  # Kolmogorov, one in a thousand
    assert (draws - 0.02).mean() - found < -3 * float(draws.std()) / n**0.5


@PAIRS
def test_target_moments_are_those_of_its_draws(pair, generator):
    x1 = pair.x1.double().sample(60_000, generator)
    mean, covariance = pair.target_moments
    wish = (
        mean
        + torch.randn(60_000, 2, generator=generator, dtype=double)
        @ torch.linalg.cholesky(covariance).mT
    )
    assert z_scores(x1, wish).max() < 4.5


# The drift


@PAIRS
def test_drift_is_the_gradient_of_the_smoothed_potential(pair, generator):
    x = pair.sample(50, generator, double)[1]
    for t in (0.0, 0.3, 0.9, 1.0):
        place = x.clone().requires_grad_()
        logs = smoothed(pair, pair.epsilon * (1 - t)).log_prob(place)
        want = pair.epsilon * torch.autograd.grad(logs.sum(), place)[0]
        torch.testing.assert_close(pair.drift(t, x), want, rtol=1e-9, atol=1e-9)
    times = torch.linspace(0, 1, 50, dtype=double)
    rows = [pair.drift(float(t), v[None])[0] for t, v in zip(times, x)]
    torch.testing.assert_close(pair.drift(times, x), torch.stack(rows), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x + pair.drift(0.0, x), pair.plan_moments(x)[0])  # its mean move


def test_the_energy_of_the_drift_is_the_divergence_of_the_plan(generator):
    # KL(bridge | Wiener) by Girsanov's theorem and by the plan; about 47 for this pair
    pair = EntropicPair(16, 0.1)
    x0, x1 = pair.sample(40_000, generator, double)
    free = D.Normal(x0, pair.epsilon**0.5).log_prob(x1).sum(1)
    static = pair.log_plan(x0, x1) - free
    t = torch.rand(len(x0), 1, generator=generator, dtype=double)
    z = torch.randn(x0.shape, generator=generator, dtype=double)
    x = (1 - t) * x0 + t * x1 + (pair.epsilon * t * (1 - t)).sqrt() * z
    energy = pair.drift(t[:, 0], x).square().sum(1) / (2 * pair.epsilon)
    gap = energy - static
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / len(gap) ** 0.5
    assert float(static.mean()) == pytest.approx(47, abs=2)
    gap = 1.05 * energy - static
    assert abs(float(gap.mean())) > 4.5 * float(gap.std()) / len(gap) ** 0.5


# The truth as a light bridge


@pytest.mark.parametrize(
    "pair", [ROUND, LONG, EntropicPair(16, 10.0), EntropicPair([1, 2, 3], 0.1, anisotropy=4.0)], ids=str
)
def test_the_true_bridge_is_the_pair(pair, generator):
    bridge = pair.bridge()
    x0, x1 = pair.sample(64, generator, double)
    with torch.no_grad():
        for name, x in (("log_potential", x1), ("log_normaliser", x0)):
            torch.testing.assert_close(getattr(bridge, name)(x), getattr(pair, name)(x))
        torch.testing.assert_close(bridge.plan(x0).log_prob(x1), pair.log_plan(x0, x1))
        for t in (0.0, 0.4, 0.999, 1.0):
            torch.testing.assert_close(bridge.drift(t, x1), pair.drift(t, x1), rtol=1e-8, atol=1e-8)
    value, error = pair.kl(bridge, 2000)
    assert abs(value) < 1e-10 and error < 1e-10
    assert abs(pair.conditional_bw(bridge, 100)) < 1e-8


# Seeds, shapes, precision


def test_a_seed_is_a_pair():
    first, again, other = (EntropicPair(5, 1.0, seed).potential for seed in (0, 0, 1))
    assert torch.equal(first.means, again.means) and not torch.allclose(first.means, other.means)
    torch.testing.assert_close(EntropicPair(5, 10.0).potential.means, first.means)
    torch.testing.assert_close(first.means.norm(dim=1), torch.full((5,), 5.0, dtype=double))
    eye = torch.eye(5, dtype=double)
    torch.testing.assert_close(first.covariances, 0.0625 * eye.expand(5, 5, 5))
    torch.testing.assert_close(EntropicPair(5, 10.0).potential.covariances[0], 0.01 * eye)
    values = torch.linalg.eigvalsh(EntropicPair(3, 1.0, variance=0.2, anisotropy=9.0).potential[2])
    want = torch.tensor([0.2 / 3, 0.2, 0.6], dtype=double)
    torch.testing.assert_close(values, want.expand(5, 3))
    points = EntropicPair(5, 1.0).test_points(7)
    assert torch.equal(points, EntropicPair(5, 0.1).test_points(7))


def test_sources_follow_generator_and_precision():
    pair = EntropicPair([1, 2, 3], 1.0)
    for source in (pair.x0, pair.x1):
        draws = [source.sample(6, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert draws[0].shape == (6, 1, 2, 3) and draws[0].dtype == torch.float32
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
        assert source.double().sample(3).dtype == double and source.sample(0).shape == (0, 1, 2, 3)
    assert pair.x0.std == 0.5 and pair.x0.latent and not pair.x1.latent
    assert spec(build(spec(pair.x1))) == spec(pair.x1) and build(spec(pair)) == pair


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_answers_have_the_precision_of_the_question(dtype, generator):
    flat, tall = EntropicPair(6, 0.002), EntropicPair([1, 2, 3], 0.002)
    x0, x1 = tall.sample(9, generator, dtype)
    assert x0.dtype == x1.dtype == dtype and tall.log_plan(x0, x1).dtype == dtype
    mean, covariance = tall.plan_moments(x0)
    assert mean.shape == (9, 6) and covariance.shape == (9, 6, 6) and mean.dtype == dtype
    assert torch.equal(mean, flat.plan_moments(x0.flatten(1))[0])
    for t in (0, 0.5, 1):
        drift = tall.drift(t, x1)
        assert drift.shape == x1.shape and drift.dtype == dtype and bool(drift.isfinite().all())
        torch.testing.assert_close(drift.flatten(1), flat.drift(t, x1.flatten(1)))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"seed": -1}, "seed"),
        ({"components": 0}, "components"),
        ({"radius": -1.0}, "radius"),
        ({"variance": 0.0}, "variance"),
        ({"std": 0.0}, "std"),
        ({"anisotropy": 0.5}, "anisotropy"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EntropicPair(**({"dim": 2, "epsilon": 1.0} | arguments))


def test_bad_points_are_refused():
    pair, x = EntropicPair(2, 1.0), torch.zeros(4, 2)
    for call, message in (
        (lambda: pair.drift(1.5, x), "must lie in"),
        (lambda: pair.drift(0.5, x[:, :1]), r"expected \(B, 2\)"),
        (lambda: pair.plan_moments(x.long()), "floating point"),
        (lambda: pair.log_plan(x, x[:3]), "they are pairs"),
        (lambda: pair.test_points(0), "whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
