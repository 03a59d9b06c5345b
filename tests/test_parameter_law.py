"""Laws of parameters: any Pyro model decides what a family's rates are, against laws by hand."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as plain

import genflow
from genflow import specs
from genflow.process.reference import Brownian, LotkaVolterra, OrnsteinUhlenbeck, Repressilator
from genflow.process.reference.law import HierarchicalRates, ParameterLaw

double = torch.float64


def hierarchical(**rates):
    return ParameterLaw(Repressilator(), HierarchicalRates(**rates))


def shaken(law, generator, size=0.3):
    with torch.no_grad():
        for raw in law.raw.values():
            raw += size * torch.randn(raw.shape, generator=generator, dtype=double)
    return law


def shift_law():
    return {"shift": pyro.sample("push", dist.Normal(torch.zeros(2, dtype=double), 0.5).to_event(1))}


@dataclasses.dataclass(frozen=True)
class Wide:
    """Supports of all kinds, one that depends on another site, and a plate."""

    def __call__(self):
        top = pyro.sample("top", dist.HalfCauchy(torch.tensor(2.0, dtype=double)))
        below = pyro.sample("below", dist.Uniform(torch.zeros_like(top), top))
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((3,), 2.0, dtype=double)))
        with pyro.plate("gene", 3):
            beta = pyro.sample("beta", dist.Gamma(torch.tensor(3.0, dtype=double), top))
        return {"beta": beta * shares, "gamma": below}


def test_it_starts_at_medians():
    law = hierarchical(beta=10.0, n=3.0, k=1.5, gamma=0.7)
    numbers = law.numbers()
    assert numbers["beta"] == pytest.approx([10.0] * 3)
    assert numbers["gamma"] == pytest.approx([0.7] * 3)
    assert [numbers[name] for name in ("n", "k")] == pytest.approx([3.0, 1.5])
    wide = ParameterLaw(Repressilator(), Wide())
    sites = {name: value.detach() for name, value in wide.sites().items()}
    assert float(sites["top"]) == pytest.approx(2.0)  # tan(pi/4) times its scale
    assert float(sites["below"]) == pytest.approx(1.0)
    assert sites["shares"].tolist() == pytest.approx([1 / 3] * 3)  # no median: the mean
    assert sites["beta"].tolist() == pytest.approx([1.5] * 3)


def test_nothing_is_drawn(generator):
    before = torch.get_rng_state()
    law = hierarchical()
    first, second = law.values(), law.values()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in law.names)


def test_the_log_prior_is_that_of_the_law_by_hand(generator):
    law = shaken(hierarchical(beta=10.0, n=3.0, gamma=0.5, width=0.8, spread=0.2), generator)
    sites = {name: v.detach() for name, v in law.sites().items()}
    want = jacobian = 0.0
    for name, median in (("beta_mean", 10.0), ("gamma_mean", 0.5), ("n", 3.0), ("k", 1.0)):
        want += plain.LogNormal(math.log(median), 0.8).log_prob(sites[name])
        jacobian += sites[name].log()
    for name in ("beta", "gamma"):
        around = sites[f"{name}_mean"].log()
        want += plain.LogNormal(around, 0.2).log_prob(sites[name]).sum()
        jacobian += sites[name].log().sum()
    assert float(law.log_prior().detach()) == pytest.approx(float(want), rel=1e-6)
    assert abs(float(jacobian)) > 0.1  # with which it would be the density of the logarithms


def test_gradients_reach_every_site(generator):
    law = shaken(hierarchical(beta=3.0, n=2.0), generator)
    raw = [v.detach().clone().requires_grad_() for v in law.raw.values()]
    x = torch.rand(4, 3, generator=generator, dtype=double) + 0.5

    def called(*numbers):
        state = dict(zip((f"raw.{name}" for name in law.raw), numbers))
        return torch.func.functional_call(law, state, (0.0, x))

    assert torch.autograd.gradcheck(called, raw)
    found = torch.autograd.grad(law.log_prior() + law(0.0, x).sum(), list(law.raw.values()))
    assert all(bool(torch.isfinite(g).all()) and bool((g != 0).all()) for g in found[1:])


def test_the_law_decides_and_the_rest_stays_free():
    def law():
        return {"alpha": pyro.sample("rate", dist.LogNormal(torch.zeros((), dtype=double), 1.0))}

    family = ParameterLaw(LotkaVolterra(0.3, 0.2, 0.1, 0.5), law)
    assert family.names == ("alpha", "beta", "gamma", "delta") and family.dim == 2
    assert family.numbers() == pytest.approx({"alpha": 1.0, "beta": 0.2, "gamma": 0.1, "delta": 0.5})
    family.assign(rate=2.5, beta=0.7)
    assert family.numbers() == pytest.approx({"alpha": 2.5, "beta": 0.7, "gamma": 0.1, "delta": 0.5})
    moved = {name for name, p in family.named_parameters() if p.requires_grad}
    assert moved == {"raw.rate", "reference.raw.beta", "reference.raw.gamma", "reference.raw.delta"}
    assert family.features(0.0, torch.ones(2, 2, dtype=double)) is None
    with pytest.raises(ValueError, match="alone decides alpha.*assign any of rate, beta"):
        family.assign(alpha=1.0)
    with pytest.raises(ValueError, match="'nu' is no site"):
        family.assign(nu=1.0)
    with pytest.raises(ValueError, match="rate=-1.0 must have shape .* support"):
        family.assign(rate=-1.0)


def test_it_is_the_family_with_these_values(generator):
    law = shaken(hierarchical(beta=5.0, n=2.0, gamma=1.0), generator)
    numbers = {name: v.detach().tolist() for name, v in law.values().items()}
    known = Repressilator(**numbers)
    x = torch.rand(6, 3, generator=generator, dtype=double) * 3
    torch.testing.assert_close(law(0.0, x), known(0.0, x))
    torch.testing.assert_close(law.jacobian(0.0, x), known.jacobian(0.0, x))
    assert len(set(numbers["beta"])) == 3  # a rate for each gene


def test_supports_that_depend_on_other_sites_move_with_them():
    law = ParameterLaw(Repressilator(), Wide())
    law.assign(top=0.5)
    assert float(law.sites()["below"].detach()) == pytest.approx(0.25)
    law.assign(below=0.4)
    assert law.numbers()["gamma"] == pytest.approx(0.4)
    assert bool(torch.isfinite(law.log_prior()))
    with pytest.raises(ValueError, match="support"):
        law.assign(below=0.6)


def test_the_mode_is_that_of_ridge_regression(generator):
    """Pushes under a Gaussian law: the mode has a closed form."""
    family = ParameterLaw(OrnsteinUhlenbeck(2), shift_law)
    y = torch.randn(7, 2, generator=generator, dtype=double) + 1
    x = torch.zeros(7, 2, dtype=double)

    def slope(push, prior):
        family.assign(push=push)
        fit = (y - family(0.0, x)).square().sum() / 2
        return torch.autograd.grad(fit - prior * family.log_prior(), family.raw["push"])[0].abs().max()

    assert float(slope(y.sum(0) / (7 + 1 / 0.5**2), prior=1)) < 1e-12
    assert float(slope(y.mean(0), prior=0)) < 1e-12
    assert float(slope(y.mean(0), prior=1)) > 0.1


def test_it_describes_itself_and_keeps_its_numbers(generator):
    law = shaken(hierarchical(genes=3, beta=2.0), generator)
    again = specs.build(genflow.spec(law))
    assert genflow.spec(again) == genflow.spec(law)
    again.load_state_dict(law.state_dict())
    assert again.numbers() == law.numbers()


def returns(value):
    return lambda: value


def sampled(law, make=lambda value: {"alpha": value}):
    return lambda: make(pyro.sample("s", law))


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (
            sampled(dist.Normal(0.0, 1.0), lambda v: {"rate": v.exp()}),
            r"LotkaVolterra \(alpha, .*got rate",
        ),
        (sampled(dist.Normal(0.0, 1.0), lambda v: v), "must return a dict .* got Tensor"),
        (
            sampled(dist.LogNormal(torch.zeros(3), 1.0).to_event(1)),
            r"cannot use values of shapes .*\(3,\)",
        ),
        (sampled(dist.Poisson(1.0)), "discrete site, 's'"),
        (sampled(dist.Normal(-1.0, 1.0)), "must keep alpha positive"),
        (returns({"alpha": torch.ones(())}), "no pyro.sample site"),
        (
            lambda: {"alpha": pyro.sample("a.b", dist.LogNormal(0.0, 1.0))},
            "site cannot be called 'a.b'",
        ),
    ],
)
def test_laws_that_do_not_fit_are_refused(law, message):
    with pytest.raises(ValueError, match=message):
        ParameterLaw(LotkaVolterra(), law)


def test_a_family_without_parameters_has_no_law():
    with pytest.raises(ValueError, match=r"parameters of Brownian \(none\)"):
        ParameterLaw(Brownian(2), sampled(dist.LogNormal(0.0, 1.0)))


@pytest.mark.parametrize("bad", [{"genes": 0}, {"beta": -1.0}, {"spread": 0.0}, {"width": math.nan}])
def test_rates_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"HierarchicalRates.*{next(iter(bad))}"):
        HierarchicalRates(**bad)


def test_observed_sites_count():
    def law():
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        pyro.sample("assay", dist.Normal(rate, 0.1), obs=torch.tensor(1.2, dtype=double))
        return {"alpha": rate}

    family = ParameterLaw(LotkaVolterra(), law)
    assert set(family.sites()) == {"rate"}
    want = plain.LogNormal(0.0, 1.0).log_prob(torch.tensor(1.0)) + plain.Normal(1.0, 0.1).log_prob(
        torch.tensor(1.2)
    )
    assert float(family.log_prior().detach()) == pytest.approx(float(want), rel=1e-5)
