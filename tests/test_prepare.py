"""What ``Gibbs.prepare`` chooses from data: temperature, kept, stored and resumed."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from gaussians import draw, pair

from genflow.coupling import Gibbs, Side, effective_sample_size
from genflow.coupling.weights import epsilon_by_deviation
from genflow.specs import build, fill, spec

N = 50_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def squares(x, y):
    return ((x - y) ** 2).flatten(1).sum(1)


def test_the_rule_by_deviation_in_many_dimensions(generator):
    # |x - y|^2 of standard normals in d = 64 has variance 8 d; epsilon within 2 %
    x0, x1 = torch.randn(2, N, 64, generator=generator)
    coupling = Gibbs(ess=0.5, rule="std").prepare(x0, x1)
    assert coupling.epsilon == pytest.approx((8 * 64 / math.log(2)) ** 0.5, rel=0.02)
    size = effective_sample_size(coupling(x0, x1).weight)
    assert 0.5 < size < 0.65  # costs are not quite normal: the exact size is .59
    kappa = 1 / coupling.epsilon
    assert size == pytest.approx(((1 + 8 * kappa) / (1 + 4 * kappa) ** 2) ** 32, rel=0.03)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_the_rule_by_deviation_is_its_formula(target, generator):
    cost = torch.rand(1_000, generator=generator, dtype=torch.float64) ** 2
    true = np.std(cost.numpy(), ddof=1) / math.sqrt(math.log(1 / target))
    assert epsilon_by_deviation(cost, target) == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("correction", ["gaussian", "sinkhorn"])
@pytest.mark.parametrize("target", [0.3, 0.7])
def test_epsilon_makes_corrected_weights_as_even_as_asked(correction, target):
    # within .04 on data of their own
    x0, x1 = draw(pair(), 20_000, seeded(10))
    coupling = Gibbs(ess=target, correction=correction).prepare(x0, x1 + 1.5)
    x0, x1 = draw(pair(), 800, seeded(11))
    sides = Side(x0), Side(x1 + 1.5)
    size = effective_sample_size(coupling.log_weights(*sides).exp().flatten())
    assert abs(size - target) < 0.04
    # the offset is nothing to corrected weights, and uneven raw ones at the same temperature
    raw = Gibbs(coupling.epsilon).log_weights(*sides).exp()
    assert effective_sample_size(raw.flatten()) < target - 0.1


KINDS = [
    {"correction": "gaussian"},
    {"correction": "gaussian", "normaliser": "pilot", "ess": 0.4},
    {"correction": "gaussian", "normaliser": "pilot", "conditions": "within", "covariance": "diagonal"},
    {"normaliser": "pilot", "epsilon": 2.0},
    {"normaliser": "pilot", "conditions": "within", "rule": "std"},
    {"correction": "sinkhorn", "normaliser": "pilot"},
]


def labelled(n=600, seed=12):
    x0, x1 = draw(pair(), n, seeded(seed))
    return x0, x1, (x1[:, 0] > 1).long()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_prepare_keeps_what_it_chose(options):
    x0, x1, cond = labelled()
    coupling = Gibbs(**options)
    assert coupling.needs_data and coupling.prepare(x0, x1, cond=cond) is coupling
    chosen = json.dumps(spec(coupling))
    assert not coupling.needs_data and json.loads(chosen)["epsilon"] > 0
    coupling.prepare(9 * x0, 9 * x1 + 1, cond=cond)
    assert json.dumps(spec(coupling)) == chosen
    again = Gibbs(**options).prepare(x0, x1, cond=cond)
    assert json.dumps(spec(again)) == chosen  # no hidden draws


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_prepared_coupling_is_stored_and_resumed(options):
    x0, x1, cond = labelled()
    coupling = Gibbs(**options).prepare(x0, x1, cond=cond)
    want = coupling(x0, x1, cond=cond).weight
    stored = json.loads(json.dumps(spec(coupling)))
    assert spec(build(stored)) == stored == spec(coupling)
    torch.testing.assert_close(build(stored)(x0, x1, cond=cond).weight, want, rtol=0, atol=0)

    resumed = Gibbs(**options)
    fill(resumed, spec(resumed), stored)
    assert spec(resumed) == stored and not resumed.needs_data
    torch.testing.assert_close(resumed(x0, x1, cond=cond).weight, want, rtol=0, atol=0)

    stated = Gibbs(**{**options, "epsilon": 11.0})  # what the user states wins
    fill(stated, spec(stated), stored)
    assert stated.epsilon == 11.0
    # moments are good for any temperature, a normaliser is not
    pilot = options.get("normaliser") == "pilot"
    assert stated.fitted == (None if pilot and coupling.fitted else coupling.fitted)
    assert stated.needs_data is (pilot and coupling.fitted is not None)


@pytest.mark.parametrize(
    "options, change",
    [
        ({"normaliser": "pilot", "epsilon": 2.0}, {"epsilon": 1.0}),
        ({"normaliser": "pilot"}, {"correction": "gaussian"}),
        ({"correction": "gaussian"}, {"conditions": "within"}),
        ({"correction": "gaussian"}, {"normaliser": "pilot"}),
        ({"correction": "gaussian"}, {"covariance": "diagonal"}),
    ],
    ids=str,
)
def test_numbers_fitted_for_something_else_are_not_used(options, change):
    x0, x1, cond = labelled()
    coupling = dataclasses.replace(Gibbs(**options).prepare(x0, x1, cond=cond), **change)
    assert coupling.needs_data
    with pytest.raises(ValueError, match="call coupling.prepare"):
        coupling(x0, x1, cond=cond)
    want = Gibbs(**{**options, **change, "epsilon": coupling.epsilon}).prepare(x0, x1, cond=cond)
    found = coupling.prepare(x0, x1, cond=cond)
    torch.testing.assert_close(found(x0, x1, cond=cond).weight, want(x0, x1, cond=cond).weight)


def test_a_resumed_run_with_other_settings_chooses_anew():
    x0, x1, cond = labelled()
    stored = spec(Gibbs(ess=0.3).prepare(x0, x1))
    resumed = Gibbs(ess=0.7)
    before = spec(resumed)
    fill(resumed.prepare(x0, x1), before, stored)
    assert resumed == Gibbs(ess=0.7).prepare(x0, x1) and resumed.epsilon > stored["epsilon"]


def test_new_moments_make_new_potentials():
    # tensors of the lists are kept between calls; they must not outlive the lists
    x0, x1 = draw(pair(), 100, seeded(13))
    coupling = Gibbs(2.0, correction="gaussian").prepare(x0, x1)
    before = coupling(x0, x1).weight
    stored = spec(Gibbs(2.0, correction="gaussian").prepare(2 * x0, x1))
    object.__setattr__(coupling, "fitted", stored["fitted"])
    torch.testing.assert_close(coupling(x0, x1).weight, build(stored)(x0, x1).weight)
    assert not coupling(x0, x1).weight.allclose(before)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Gibbs(1.0, cost="euclidean", correction="gaussian"), "those of cost='sqeuclidean'"),
        (lambda: Gibbs(1.0, cost=squares, correction="gaussian"), "or correction='sinkhorn'"),
        (lambda: Gibbs(1.0, conditions=2.0, correction="gaussian"), "know positions alone"),
        (lambda: Gibbs(1.0, correction="exact"), "correction must be one of 'none', 'gaussian'"),
        (lambda: Gibbs(1.0, rule="mean"), "rule must be one of 'ess', 'std'"),
        (lambda: Gibbs(1.0, covariance="low"), "covariance must be one of 'auto', 'full'"),
        (lambda: Gibbs(1.0, normaliser="ema"), "normaliser must be one of 'batch', 'pilot'"),
        (lambda: Gibbs(ess=0.3)(*labelled()[:2]), "chooses epsilon from data: call coupling.prepare"),
        (
            lambda: Gibbs(1.0, correction="gaussian")(*labelled()[:2]),
            "chooses potentials or normaliser",
        ),
        (lambda: Gibbs(1.0, normaliser="pilot")(*labelled()[:2]), "chooses potentials or normaliser"),
        (
            lambda: Gibbs(rule="std").prepare(torch.full((9, 2), math.nan), torch.ones(9, 2)),
            "costs of the pilot are not finite",
        ),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
