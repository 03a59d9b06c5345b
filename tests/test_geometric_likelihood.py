"""Likelihoods of multiplicative diffusion, and their parts: Jacobians, the prior, the data map."""

import math

import pytest
import torch
from geometric_oracle import (
    DRIFTS,
    LINE,
    PLANE,
    close,
    exactly,
    motion,
    reverse,
    seeded,
)
from torch import nn

from genflow.interpolant import ConstantVolatility, GeometricBrownian
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import Chart, ReversedGeometric
from genflow.solver import Heun, RungeKutta
from genflow.source import LogNormal, LogNormalMixture
from genflow.transform import Positive


def at_noise(law, clock):
    """The exact law at the start as a source."""
    mean, variance = clock.gained(1.0)
    means = (exactly(law.means) + mean).tolist()
    covs = torch.diag_embed(exactly(law.stds) ** 2 + variance).tolist()
    return LogNormalMixture(means, covs, law.weights).double()


class Unturned(ReversedGeometric):
    """A mistake to catch: no Jacobian of the logarithm."""

    def chart(self):
        chart = super().chart()
        return Chart(chart.process, chart.into, chart.back, lambda x: x.new_zeros(len(x)))


def likelihoods(law, name, kind=ReversedGeometric, **options):
    clock = motion(*name)[1]
    model = Generator(at_noise(law, clock), reverse(law, name, kind, **options), Heun(50))
    x = law.sample(20, seeded())
    return model, x, law.log_density(x)


@pytest.mark.parametrize("law, drift", [*((LINE, drift) for drift in DRIFTS), (PLANE, "median")])
def test_likelihood_of_the_exact_field(law, drift):
    # tolerance 1e-3; without the Jacobian of the logarithm it is .9 off
    model, x, want = likelihoods(law, ("constant", drift))
    error = [float((model.log_prob(x, steps=n) - want).abs().max()) for n in (40, 80)]
    assert error[1] < 1e-3 and error[1] < error[0] / 6
    wrong, _, _ = likelihoods(law, ("constant", drift), Unturned)
    assert float((wrong.log_prob(x) - want).abs().max()) > 0.9


def test_likelihood_by_default():
    # 40 steps of Runge-Kutta
    model, x, want = likelihoods(LINE, ("slow", "median"))
    assert float((model.log_prob(x) - want).abs().max()) < 1e-3


@pytest.mark.parametrize("volatility", ["geometric", "own"])
def test_likelihood_of_other_volatilities(volatility):
    model, x, want = likelihoods(LINE, (volatility, "median"))
    assert float((model.log_prob(x, steps=100) - want).abs().max()) < 1e-3


def test_likelihood_along_the_way_and_by_probes():
    model, x, want = likelihoods(PLANE, ("constant", "median"))
    made, found = model.sample_with_log_prob(50, generator=seeded(), solver=RungeKutta(60))
    close(found, PLANE.log_density(made), 2e-3)
    close(model.log_prob(made, steps=60), found, 1e-3)
    rows = x[:3].repeat_interleave(400, 0)
    draws = model.log_prob(rows, divergence="hutchinson", generator=seeded(), steps=20).reshape(3, 400)
    error = draws.std(1) / 400**0.5
    assert bool(((draws.mean(1) - model.log_prob(x[:3], steps=20)).abs() < 4.5 * error + 1e-6).all())


@pytest.mark.parametrize("epsilon", [0.5, "gamma"])
def test_likelihood_by_noisy_paths(epsilon):
    model, x, want = likelihoods(LINE, ("constant", "martingale"))
    draws = model.log_prob(
        x[:4].repeat_interleave(300, 0), epsilon=epsilon, steps=100, generator=seeded()
    )
    draws = draws.reshape(4, 300)
    error = draws.std(1) / 300**0.5
    assert bool(((draws.mean(1) - want[:4]).abs() < 4.5 * error + 0.02).all())


@pytest.mark.parametrize("form", ["one_plus", "floor", "identity"])
def test_likelihood_in_data_units(form):
    # the data are what the transform takes to the oracle's law
    model, z, want = likelihoods(PLANE, ("constant", "median"))
    transform = Positive(form, low=-1.0, high=3.0).double()
    slope = {"one_plus": 0.25, "floor": 0.95 / 4, "identity": 1.0}[form]
    start = {"one_plus": 1.0, "floor": 0.05, "identity": 0.0}[form]
    x = (z - start) / slope - (1.0 if form != "identity" else 0.0)
    path = motion()[0]
    prior = LogNormal(2, path).double()
    inside = Generator(prior, model.process, Heun(50))
    outside = Generator(prior, model.process, Heun(50), transform)
    prior.match(PLANE.sample(4000, seeded()))
    close(outside.log_prob(x), inside.log_prob(z) + 2 * math.log(slope), 1e-6)


def test_the_density_integrates_to_one():
    # of a network of random weights, by quadrature; without the Jacobian it does not
    torch.manual_seed(1)
    path = GeometricBrownian(ConstantVolatility(1.0))
    totals = []
    for kind in (ReversedGeometric, Unturned):
        process = kind(MLP(1, 16, 2, "Tanh"), path, 1).double()
        for p in process.field.parameters():
            nn.init.normal_(p, std=0.5, generator=seeded(3))
        process.mean.fill_(0.3), process.var.fill_(0.5)
        source = LogNormal(1, path).double()
        source.mean.fill_(0.3), source.var.fill_(0.5)
        model = Generator(source, process, Heun(50))
        y = torch.linspace(-8, 8, 801, dtype=torch.float64)
        density = model.log_prob(y.exp()[:, None], steps=150).exp() * y.exp()
        totals.append(float(torch.trapezoid(density, y)))
    assert totals[0] == pytest.approx(1, abs=1e-3)
    assert abs(totals[1] - 1) > 0.1


# The prior


def kl(law, clock, mean, variance):
    """Of the law at the noise end to a log-normal one in one dimension, by quadrature."""
    y = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    logs = law.logs(clock.gained(1.0)).log_prob(y[:, None])
    prior = torch.distributions.Normal(*exactly([mean, variance**0.5])).log_prob(y)
    return float(torch.trapezoid(logs.exp() * (logs - prior), y))


@pytest.mark.parametrize(
    "volatility, known",
    [(0.5, (1.28, 0.71, 0.063)), (1.0, (0.32, 0.077, 0.0040)), (2.0, (0.080, 0.0059, 0.00011))],
)
def test_the_matched_prior_is_nearer(volatility, known):
    # bound, unmatched, matched: as computed elsewhere, to their digits
    _, clock = motion("constant", "number")
    clock = clock._replace(squared=lambda s: volatility**2)
    path = GeometricBrownian(ConstantVolatility(volatility), 0.7)
    prior = LogNormal(1, path).double()
    prior.match(LINE.sample(400_000, seeded()))
    gained = clock.gained(1.0)
    m, v = (float(moment) for moment in LINE.moments())
    unmatched = kl(LINE, clock, m + gained[0], gained[1])
    matched = kl(LINE, clock, float(prior.mean) + gained[0], float(prior.var) + gained[1])
    assert (v / (2 * gained[1]), unmatched, matched) == pytest.approx(known, rel=0.05)
    # and the source is that law
    x = prior.sample(40_000, seeded(1)).log()
    size = float(prior.var) + gained[1]
    assert abs(float(x.mean()) - float(prior.mean) - gained[0]) < 4.5 * (size / 40_000) ** 0.5
    assert abs(float(x.var()) - size) < 4.5 * size * (2 / 40_000) ** 0.5
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)
    want = torch.distributions.LogNormal(prior.mean + gained[0], (prior.var + gained[1]).sqrt())
    want = want.log_prob(y.exp())
    close(prior.log_prob(y.exp()[:, None]), want)


# The data map


@pytest.mark.parametrize("form", ["one_plus", "floor", "identity"])
def test_the_data_map(form):
    transform = Positive(form, floor=0.1, low=-1.0, high=2.0).double()
    x = 3 * torch.rand(4, 3, generator=seeded(), dtype=torch.float64) - 0.9
    x = x if form != "identity" else x + 1
    z = transform(x)
    close(transform.inverse(z), x)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v).sum(0), x)
    want = torch.stack([jacobian[:, b].det().abs().log() for b in range(4)])
    close(transform.log_abs_det(x), want)
    images = torch.rand(2, 1, 8, 8)
    assert transform.log_abs_det(images).shape == (2,)
    ends = transform(torch.tensor([[-1.0, 2.0]], dtype=torch.float64))[0].tolist()
    assert ends == pytest.approx({"one_plus": [1, 2], "floor": [0.1, 1], "identity": [-1, 2]}[form])
    assert transform.prepare(x) is transform


@pytest.mark.parametrize(
    "form, data, words",
    [
        ("identity", [[0.5, 0.0]], "column 1 .*floor"),
        ("identity", [[-0.5, 0.1]], "column 0 .*one_plus"),
        ("one_plus", [[-1.2, 0.5]], "low=-1.2"),
        ("floor", [[-0.2, 0.5]], "low=-0.2"),
    ],
)
def test_data_maps_that_do_not_reach(form, data, words):
    with pytest.raises(ValueError, match=f"Positive.*{words}"):
        Positive(form).prepare(torch.tensor(data))


@pytest.mark.parametrize(
    "options",
    [
        {"form": "log"},
        {"floor": 0.0},
        {"floor": 1.0},
        {"low": 1.0},
        {"high": math.inf},
        {"low": math.nan},
    ],
)
def test_positive_refuses(options):
    with pytest.raises(ValueError, match="Positive"):
        Positive(**options)
