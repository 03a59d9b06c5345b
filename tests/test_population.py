"""Marginal likelihoods of populations and what follows from them, against closed forms."""

import math
import warnings

import pytest
import torch
from populations import TIMES, TRUTH, Push, double, lotka_volterra, pushed
from pyro import poutine
from torch import distributions as plain

from genflow.population import PopulationModel, mode, simulate
from genflow.population.mode import Flat
from genflow.population.posterior import Draws
from genflow.process.reference import Brownian, LotkaVolterra, Repressilator
from genflow.process.reference.law import HierarchicalRates, ParameterLaw
from genflow.source import Box

# Likelihood


def test_the_pyro_model_is_this_density(generator):
    xs = pushed(generator)
    model = PopulationModel(Push(0.3), 0.8, (0.0, 2.0), xs, start="gaussian")
    values = {
        "push": torch.tensor(0.4, dtype=double),
        "start_mean": torch.tensor([0.1], dtype=double),
        "start_scale": torch.tensor([1.3], dtype=double),
    }
    trace = poutine.trace(poutine.condition(model, values)).get_trace()
    sd = xs[0].var(0, correction=0).sqrt()
    prior = plain.Normal(0.3, 10.0).log_prob(values["push"])
    prior = prior + plain.Normal(xs[0].mean(0), 10 * sd).log_prob(values["start_mean"])
    prior = prior + plain.LogNormal(sd.log(), 1.0).log_prob(values["start_scale"])
    fit = plain.Normal(0.1, 1.3).log_prob(xs[0]).sum()
    fit = fit + plain.Normal(0.1 + 0.4 * 2, math.sqrt(1.3**2 + 0.64 * 2)).log_prob(xs[1]).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(float(prior + fit), rel=1e-7)
    without = plain.Normal(0.1 + 0.4 * 2, 1.3).log_prob(xs[1]).sum()  # sigma forgotten
    assert abs(float(without - fit)) > 1
    # the same as Flat sees it, with the Jacobians of unconstrained coordinates
    flat = Flat(model)
    z = torch.stack([values["push"], *values["start_mean"], *values["start_scale"].log()])
    assert float(flat.potential(z)[0]) == pytest.approx(-float(prior + fit) - math.log(1.3), rel=1e-7)


def test_an_unknown_start_has_scales_and_correlations(generator):
    model = PopulationModel(TRUTH, 0.1, TIMES, lotka_volterra(0), start="gaussian")
    scale = torch.tensor([0.5, 2.0], dtype=double)
    root = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=double)
    with poutine.condition(data={"start_scale": scale, "start_root": root}):
        _, covariance = model.initial()
    want = torch.tensor([[0.25, 0.6], [0.6, 4.0]], dtype=double)
    torch.testing.assert_close(covariance, want)
    fixed = PopulationModel(TRUTH, 0.1, TIMES, lotka_volterra(0), start="fixed")
    trace = poutine.trace(fixed).get_trace()
    assert set(trace.stochastic_nodes) == {"alpha", "beta", "gamma", "delta"}
    assert set(trace.observation_nodes) == {f"snapshot_{k}" for k in range(5)}


def test_weights_count_as_the_particles_that_they_stand_for(generator):
    xs = pushed(generator)
    keep = [torch.cat([torch.ones(30), torch.zeros(len(x) - 30)]) for x in xs]
    some = PopulationModel(Push(), 0.8, (0.0, 2.0), [x[:30] for x in xs])
    weighted = PopulationModel(Push(), 0.8, (0.0, 2.0), xs, weights=[5 * w for w in keep])
    for name in ("sizes", "means", "covariances"):
        torch.testing.assert_close(getattr(some, name), getattr(weighted, name))
    uneven = PopulationModel(Push(), 0.8, (0.0, 2.0), xs, weights=[torch.linspace(0, 1, 40), None])
    assert 25 < float(uneven.sizes[0]) < 35 and float(uneven.sizes[1]) == 60


def test_moments_of_no_law_have_no_likelihood(generator):
    model = PopulationModel(Push(), 0.8, (0.0, 2.0), pushed(generator), steps=1)
    bad = torch.tensor([[[1.0]], [[-1.0]]], dtype=double)
    assert model.log_likelihood(model.means, bad).tolist() == [-math.inf] * 2


# Posteriors


def exact(model, sigma, span, spread=10.0):
    """Mean and covariance of push and start, a linear Gaussian problem with known covariances."""
    before = float(model.covariances[0])
    after = before + sigma**2 * span
    design = torch.tensor([[0.0, 1.0], [span, 1.0]], dtype=double)
    weight = (model.sizes / torch.tensor([before, after], dtype=double)).diag()
    priors = torch.tensor([1 / spread**2, 1 / (100 * before)], dtype=double)
    precision = design.mT @ weight @ design + priors.diag()
    pull = design.mT @ weight @ model.means[:, 0]
    pull[1] += priors[1] * model.means[0, 0]
    covariance = precision.inverse()
    return covariance @ pull, covariance


@pytest.mark.parametrize("method", ["laplace", "svi", "nuts"])
def test_a_linear_gaussian_posterior_is_exact(method, generator):
    """Only the mean of the second snapshot depends on the unknowns, so that all is Gaussian."""
    model = PopulationModel(Push(), 0.8, (0.0, 2.0), pushed(generator), steps=1)
    mean, covariance = exact(model, 0.8, 2.0)
    options = {"laplace": {}, "svi": {"steps": 150, "lr": 0.05}, "nuts": {"draws": 120, "warmup": 30}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pyro.infer's own
        found = model.posterior(method, generator=generator, **options[method])
    draws = torch.stack([found.samples["push"], found.samples["start_mean"][:, 0]], 1)
    error = covariance.diagonal().sqrt()
    effective = found.diagnostics.get("effective", len(draws))
    noise = 4 / math.sqrt(effective) + (0.1 if method == "svi" else 0)
    assert float(((draws.mean(0) - mean) / error).abs().max()) < noise
    ratio = draws.std(0) / error
    assert float((ratio - 1).abs().max()) < noise
    low, high = found.intervals(0.9)["push"]
    assert (high - low) / (2 * 1.645 * float(error[0])) == pytest.approx(1, abs=noise)
    if method == "nuts":
        assert found.diagnostics["divergences"] == 0 and found.diagnostics["r_hat"] < 1.05


def test_draws_follow_the_generator_alone(generator):
    model = PopulationModel(Push(), 0.8, (0.0, 2.0), pushed(generator), steps=1)
    before = torch.get_rng_state()
    first, second = (
        model.posterior("svi", steps=3, draws=5, generator=torch.Generator().manual_seed(k)).samples
        for k in (1, 1)
    )
    assert torch.equal(first["push"], second["push"])
    assert torch.equal(before, torch.get_rng_state())


def test_the_width_is_that_of_independent_batches(generator):
    """Both snapshots spread, and no particle is seen twice: (s0^2 + s1^2) / (n span^2)."""
    sigma, span, n = 0.3, 2.0, 50
    start = torch.randn(5000, 1, generator=generator, dtype=double)
    xs = simulate(Push(0.5), sigma, (0.0, span), [n, n], start, 0.5, generator)
    found = PopulationModel(Push(), sigma, (0.0, span), xs, steps=1).posterior(
        draws=4000, generator=generator
    )
    s0 = xs[0].var(correction=0)
    honest = float(((2 * s0 + sigma**2 * span) / n).sqrt() / span)
    claimed = sigma / math.sqrt(n * span)  # of exp(-n J), J the objective of a bridge
    width = float(found.samples["push"].std())
    assert width == pytest.approx(honest, rel=0.05)
    assert claimed < honest / 2
    # and coverage over many data sets, of both
    many = torch.randn(2, 2000, n, generator=generator, dtype=double)
    x, y = many[0], 0.5 * span + math.sqrt(1 + sigma**2 * span) * many[1]
    error = (y.mean(1) - x.mean(1)) / span - 0.5
    held = [float((error.abs() < 1.645 * v).double().mean()) for v in (honest, claimed)]
    assert held[0] == pytest.approx(0.9, abs=0.04) and held[1] < 0.5


def test_lotka_volterra_from_afar(generator):
    begin = LotkaVolterra(0.3, 0.3, 0.3, 0.3)
    model = PopulationModel(begin, 0.1, TIMES, lotka_volterra(0), start="gaussian")
    found = model.posterior(draws=300, generator=generator)
    for name, value in (("alpha", 1.0), ("beta", 0.4), ("gamma", 0.4), ("delta", 0.1)):
        assert found.mean[name] == pytest.approx(value, rel=0.1)
        low, high = found.intervals(0.999)[name]
        assert low < value < high and high - low < 0.3 * value
    flat, z = Flat(model), found.mode.z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(flat.potential(z)[0], z)
    assert float((found.mode.root.mT @ slope).norm()) < 1e-2  # in widths of the posterior
    pushed = (flat.potential(z + found.mode.root[:, 0])[0] - found.mode.potential).item()
    assert pushed == pytest.approx(0.5, abs=0.2)  # one width away costs half a nat


def test_a_law_of_parameters_is_inferred(generator):
    rates = HierarchicalRates(beta=8.0, n=3.0, k=1.0, gamma=1.0, width=0.5)
    truth = Repressilator([12.0, 10.0, 8.0], 3.0, 1.0, 1.0)
    start = Box([1.0, 1.0, 2.0], [1.1, 1.1, 2.1])
    times = (0.0, 1.0, 2.0)
    xs = simulate(truth, 0.1, times, [40] * 3, start, 0.01, generator)
    model = PopulationModel(ParameterLaw(Repressilator(), rates), 0.1, times, xs, steps=4)
    found = model.posterior(draws=50, generator=generator)
    assert found.names == ("beta", "n", "k", "gamma")
    assert set(found.samples) == {*found.names, "beta_mean", "gamma_mean", "start_mean"}
    assert found.samples["beta"].shape == (50, 3)
    low, high = (torch.tensor(v) for v in found.intervals(0.99)["beta"])
    assert bool((low < torch.tensor([12.0, 10.0, 8.0])).all() and (low < high).all())
    assert set(found.intervals(names=["beta_mean"])) == {"beta_mean"}


def test_frozen_parameters_are_known(generator):
    xs = lotka_volterra(0)
    begin = LotkaVolterra(0.8, 0.4, 0.4, 0.1)
    begin.raw["beta"].requires_grad_(False)
    begin.raw["delta"].requires_grad_(False)
    model = PopulationModel(begin, 0.1, TIMES, xs)
    trace = poutine.trace(model).get_trace()
    assert set(trace.stochastic_nodes) == {"alpha", "gamma", "start_mean"}
    assert float(model.parameters()["beta"]) == pytest.approx(0.4)
    found = model.posterior(draws=300, generator=generator)
    assert found.names == ("alpha", "gamma") == tuple(found.intervals()) == tuple(found.mean)
    assert found.mean == pytest.approx({"alpha": 1.0, "gamma": 0.4}, rel=0.05)
    with pytest.raises(ValueError, match="beta is no free parameter .* allowed are alpha, gamma"):
        PopulationModel(begin, 0.1, TIMES, xs, priors={"beta": plain.LogNormal(0.0, 1.0)})
    with pytest.raises(ValueError, match="all parameters of LotkaVolterra are frozen"):
        PopulationModel(begin.requires_grad_(False), 0.1, TIMES, xs)


def test_frozen_sites_of_a_law_are_known():
    family = ParameterLaw(Repressilator(), HierarchicalRates(beta=8.0, n=3.0, width=0.5))
    family.raw["beta_mean"].requires_grad_(False)
    family.raw["n"].requires_grad_(False)
    xs = [torch.randn(9, 3, dtype=double, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    model = PopulationModel(family, 0.1, (0.0, 1.0), xs, start="fixed")
    flat = Flat(model)
    assert set(flat.shapes) == {"gamma_mean", "k", "beta", "gamma"}
    values, _, sites, energy = flat.unknowns(flat.start)
    assert float(values["n"]) == pytest.approx(3.0) and "n" not in sites
    assert model.names == ("beta", "k", "gamma") and torch.isfinite(energy)
    # genes stay around the frozen mean: the density of beta given it
    moved = flat.unknowns(
        flat.start
        + torch.cat(
            [v.reshape(-1) * 0 + 0.3 * (name == "beta") for name, v in flat.split(flat.start).items()]
        )
    )[3]
    about = plain.Normal(math.log(8.0), 0.3)
    want = -3 * (
        about.log_prob(torch.tensor(math.log(8.0) + 0.3)) - about.log_prob(torch.tensor(math.log(8.0)))
    )
    assert float(moved - energy) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))])  # fmt: skip
def test_unknown_correlations_begin_where_the_data_lie(monkeypatch, device):
    class Anywhere:
        def __init__(self, value):
            self.value = value

        def to(self, device):
            places.append(torch.device(device).type)
            return self.value.to(device)

    places, centre = [], mode.centre
    monkeypatch.setattr(mode, "centre", lambda fn: Anywhere(centre(fn)))
    xs = [x.to(device) for x in lotka_volterra(0)]
    flat = Flat(PopulationModel(TRUTH, 0.1, TIMES, xs, start="gaussian"))
    assert set(places) == {device} == {flat.start.device.type}
    assert "start_root" in flat.shapes


def test_simultaneous_intervals_hold_all_at_once(generator):
    draws = torch.randn(4, 20_000, generator=generator, dtype=double)
    found = Draws({str(k): row for k, row in enumerate(draws)}, ("0", "1", "2", "3"))
    each = plain.Normal(0.0, 1.0).icdf(torch.tensor(0.5 + 0.9**0.25 / 2)).item()
    for low, high in found.intervals(0.9, simultaneous=True).values():
        assert (low, high) == (pytest.approx(-each, abs=0.1), pytest.approx(each, abs=0.1))
    for low, high in found.intervals(0.9).values():
        assert (low, high) == (pytest.approx(-1.645, abs=0.06), pytest.approx(1.645, abs=0.06))
    with pytest.raises(ValueError, match="level must lie strictly between"):
        found.intervals(90)
    with pytest.raises(ValueError, match="names must be one of"):
        found.intervals(names=["beta"])


# Bad input

ONES = torch.eye(3, 2, dtype=double)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": (0.0, 0.0)}, "times must rise"),
        ({"times": (0.0,)}, "one for each of the 2 snapshots"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"dt": -0.1}, "dt must be positive"),
        ({"snapshots": [ONES, ONES[:, :1]]}, "event shape"),
        ({"snapshots": [ONES[:2], ONES]}, "first snapshot has 2 particles.*not positive definite"),
        ({"snapshots": [ONES, ONES / 0]}, "snapshot 1 .* must be finite"),
        ({"snapshots": [ONES @ torch.ones(2, 3, dtype=double)] * 2}, r"snapshot 0 has shape \(3, 3\)"),
        ({"reference": Brownian(2)}, "Brownian has no named parameters"),
        ({"closure": "cubic"}, "closure must be one of"),
        ({"start": "known"}, "start must be one of"),
        ({"priors": {"push": plain.Normal(0.0, 1.0)}}, "push is no free parameter of LotkaVolterra"),
        ({"weights": [None]}, "1 weights for 2 snapshots"),
        ({"weights": [None, -torch.ones(3)]}, "weights of snapshot 1 must be 3 numbers >= 0"),
    ],
)
def test_bad_input_gets_one_sentence(options, message):
    given = {"reference": TRUTH, "sigma": 0.1, "times": (0.0, 1.0), "snapshots": [ONES, ONES]}
    with pytest.raises(ValueError, match=message):
        PopulationModel(**{**given, **options})


def test_other_methods_and_hopeless_starts_are_refused(generator):
    model = PopulationModel(Push(), 0.8, (0.0, 2.0), pushed(generator), steps=1)
    with pytest.raises(ValueError, match="method must be one of"):
        model.posterior("mcmc")
    wild = PopulationModel(LotkaVolterra(40.0, 9.0, 9.0, 30.0), 0.1, TIMES, lotka_volterra(0))
    with pytest.raises(RuntimeError, match="not finite where the reference stands"):
        wild.posterior()


@pytest.mark.slow
def test_intervals_cover():
    """Of ten fresh sets, 90 % intervals hold each rate in at least seven (odds below: 1.3 %)."""
    held = torch.zeros(4)
    for seed in range(100, 110):
        model = PopulationModel(LotkaVolterra(0.3, 0.3, 0.3, 0.3), 0.1, TIMES, lotka_volterra(seed))
        found = model.posterior(draws=500, generator=torch.Generator().manual_seed(0)).intervals(0.9)
        truth = zip(found.values(), (1.0, 0.4, 0.4, 0.1))
        held += torch.tensor([float(low < value < high) for (low, high), value in truth])
    assert float(held.min()) >= 7
