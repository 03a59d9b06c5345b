"""Antithetic pairs: the variance they save, the minimiser they keep, the value they are."""

from dataclasses import dataclass, replace

import pytest
import torch
from exact import ONE_SIDED, seeded
from gaussians import distance, draw, fields, least_squares, pair
from torch import nn

from genflow.coupling import Gibbs
from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    Linear,
    OneSided,
    PathSample,
    Quadratic,
    SinSquared,
    Trigonometric,
)
from genflow.loss import Matching
from genflow.network import MLP
from genflow.target import Denoised, Drift, Noise, Rate, Score, Velocity
from genflow.time import LogitNormal, Time

BOTH = {"velocity": Velocity(), "noise": Noise()}


@dataclass(frozen=True)
class At(Time):
    """One time for every row."""

    t: float = 0.5

    def __call__(self, x, generator=None):
        return torch.full((len(x),), self.t, dtype=x.dtype), torch.ones(len(x), dtype=x.dtype)


class Rows(nn.Module):
    """An affine field with numbers of its own for each row, so that their gradients are per sample."""

    def __init__(self, n):
        super().__init__()
        slope = torch.tensor([[0.4, -0.3], [0.2, 0.5]], dtype=torch.float64)
        self.slope = nn.Parameter(slope.repeat(n, 1, 1))
        self.offset = nn.Parameter(torch.zeros(n, 2, dtype=torch.float64))

    def forward(self, t, x, cond=None):
        return torch.einsum("nij,nj->ni", self.slope, x) + self.offset


def variance(loss, n=20_000):
    """Total variance of the per-sample gradient."""
    learner = Rows(n)
    value = loss(learner, *draw(pair(), n, seeded()), generator=seeded(2))
    gradients = torch.autograd.grad(n * value, [learner.slope, learner.offset])
    return float(sum(g.flatten(1).var(0).sum() for g in gradients))


def ratio(path, t, target):
    plain = Matching(path, time=At(t), target=target)
    return variance(replace(plain, antithetic=True)) / variance(plain)


def same_noise(sample):
    """The mistake to catch: the place is turned round, the noise in the target is not."""
    return replace(sample, x=sample.x - 2 * sample.gamma * sample.noise)


near_the_ends = pytest.mark.parametrize("t", [1e-3, 1 - 1e-3])
widths = pytest.mark.parametrize("gamma", [Brownian(), Quadratic(), SinSquared()], ids=str)


@near_the_ends
def test_the_gradient_of_the_velocity_stays_bounded(t, monkeypatch):
    assert ratio(BrownianBridge(), t, Velocity()) < 0.1
    assert ratio(Trigonometric(Brownian(0.5)), t, Velocity()) < 0.1
    monkeypatch.setattr(PathSample, "reflected", property(same_noise))
    assert 0.8 < ratio(BrownianBridge(), t, Velocity()) < 1.2


@near_the_ends
@widths
def test_the_gradient_of_the_score_stays_bounded(gamma, t, monkeypatch):
    path = Linear(gamma=gamma)
    assert ratio(path, t, Score()) < 0.05
    monkeypatch.setattr(PathSample, "reflected", property(same_noise))
    assert 0.8 < ratio(path, t, Score()) < 1.2


@pytest.mark.parametrize("name", ["velocity", "noise", "score", "drift", "denoised", "rate"])
@pytest.mark.parametrize("path", [BrownianBridge(0.8), Trigonometric(Quadratic())], ids=str)
def test_the_minimiser_stays(path, name):
    """Least squares over both halves of each pair, against the closed form: .06, as for single ones."""
    target = {
        "velocity": Velocity(), "noise": Noise(), "score": Score(), "drift": Drift(0.5),
        "denoised": Denoised(), "rate": Rate(),
    }[name]  # fmt: skip
    law, t = pair(correlated=True), 0.3
    drawn = Matching(path, time=At(t), target=target).draw(
        *draw(law, 100_000, seeded()), generator=seeded(2)
    )
    halves = drawn.sample, drawn.sample.reflected
    found = least_squares(
        torch.cat([half.x for half in halves]), torch.cat([target(half) for half in halves])
    )
    c = path.coefficients(torch.tensor([t], dtype=torch.float64))
    true = fields(law, c, sigma=0.5)[name]
    tolerance = 0.12 if name == "score" else 0.06
    assert distance(found, true) < tolerance
    wrong = torch.cat([drawn.sample.x, same_noise(drawn.sample).x]), torch.cat([drawn.target] * 2)
    if name in ("noise", "score"):
        assert distance(least_squares(*wrong), true) > 2 * tolerance


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_value_is_the_mean_of_two_plain_losses(weighted, shape):
    path = Trigonometric(SinSquared())
    parts = {"coupling": Gibbs(50.0), "time": LogitNormal(reweight=True)} if weighted else {}
    loss = Matching(path, target=Velocity(), antithetic=True, **parts)
    torch.manual_seed(0)
    learner = MLP(list(shape), 8).double()
    x0, x1 = torch.randn(2, 16, *shape, generator=seeded(), dtype=torch.float64)
    drawn = loss.draw(x0, x1, generator=seeded(3))
    assert drawn.even != weighted
    t, z, (y0, y1) = drawn.sample.t, drawn.sample.noise, drawn.sample.xs
    c = [v.reshape(-1, *[1] * len(shape)) for v in path.coefficients(t)]
    mean = 0.0
    for sign in (1, -1):
        x = c[0] * y0 + c[1] * y1 + sign * c[2] * z
        target = c[3] * y0 + c[4] * y1 + sign * c[5] * z
        error = (learner(t, x) - target).square().flatten(1).mean(1)
        mean = mean + (drawn.weight * error).mean() / 2
    torch.testing.assert_close(loss(learner, x0, x1, generator=seeded(3)), mean)
    plain = replace(loss, antithetic=False)(learner, x0, x1, generator=seeded(3))
    assert abs(plain - mean) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_fields_share_the_pair(dtype):
    torch.manual_seed(0)
    path, learner = BrownianBridge(), MLP(2, 8, outputs=["velocity", "noise"]).to(dtype)
    x0, x1 = torch.randn(2, 32, 2, generator=seeded(), dtype=dtype)
    whole = Matching(path, target=BOTH, antithetic=True)(learner, x0, x1, generator=seeded(3))
    parts = [
        Matching(path, target=target, antithetic=True)(
            lambda t, x, name=name: learner(t, x)[name], x0, x1, generator=seeded(3)
        )
        for name, target in BOTH.items()
    ]
    assert whole.dtype == dtype
    torch.testing.assert_close(whole, sum(parts))


def test_the_generator_rules_the_value():
    learner, xs = MLP(2, 8), torch.randn(2, 16, 2, generator=seeded())
    loss = Matching(BrownianBridge(), antithetic=True)
    values = [loss(learner, *xs, generator=seeded(s)) for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_conditions_reach_both_halves():
    seen = []

    def learner(t, x, cond):
        seen.append(cond)
        return 0 * x

    xs, cond = torch.randn(2, 16, 2, generator=seeded()), torch.arange(16)
    Matching(BrownianBridge(), antithetic=True)(learner, *xs, cond=cond, generator=seeded())
    assert len(seen) == 2 and torch.equal(seen[0], cond) and torch.equal(seen[1], cond)


@pytest.mark.parametrize("path", [BrownianBridge(), *ONE_SIDED], ids=str)
def test_a_pair_has_the_same_middle(path):
    x0, x1 = torch.randn(2, 8, 3, generator=seeded())
    sample = path.sample(torch.rand(8, generator=seeded()), x0, x1, generator=seeded())
    turned = sample.reflected
    torch.testing.assert_close(turned.noise, -sample.noise)
    torch.testing.assert_close((sample.x + turned.x) / 2, sample.x - sample.gamma * sample.noise)
    torch.testing.assert_close((sample.velocity + turned.velocity) / 2, sample.rate)
    torch.testing.assert_close(turned.reflected.x, sample.x)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
def test_paths_without_noise_are_refused(path):
    with pytest.raises(ValueError, match="has no noise to turn round"):
        Matching(path, antithetic=True)
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="no antithetic draw"):
        path.sample(0.5, x, x).reflected  # noqa: B018
    Matching(OneSided(), antithetic=True)
