"""Weights over time and times of a measured density."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import integrate, stats

from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    Constant,
    Linear,
    Quadratic,
    SinSquared,
    Zero,
)
from genflow.loss import Matching, importance_density
from genflow.target import Noise, Score, Velocity
from genflow.time import Importance, LogitNormal, Stratified, Uniform, Weighted

N = 40_000
DENSITY = [0.5, 3.0, 1.0, 0.2]


def rows(n=N, dtype=torch.float64):
    return torch.zeros(n, 2, dtype=dtype)


def assert_mean(values, true, errors=4.0):
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) - true) < errors * error + 1e-9


@pytest.mark.parametrize(
    "margin, power", [(0.0, 2.0), (0.0, 0.5), (0.1, -1.0), (0.001, -2.0), (0.0, 0)]
)
@pytest.mark.parametrize("gamma", [Brownian(0.3), Quadratic(), SinSquared(), Constant(0.2)], ids=str)
def test_a_weight_is_the_power_of_mean_one(gamma, margin, power, generator):
    t, weight = Weighted(Stratified(margin), gamma, power)(rows(500), generator)

    def width(s):
        return float(gamma(torch.tensor(s, dtype=torch.float64)).gamma) ** power

    mean, _ = integrate.quad(width, margin, 1 - margin, limit=400, points=[2 * margin, 1 - 2 * margin])
    true = gamma(t).gamma ** power / (mean / (1 - 2 * margin))
    torch.testing.assert_close(weight, true, rtol=2e-5, atol=1e-12)


def test_the_weight_of_the_law_stays(generator):
    law = LogitNormal(0.3, 1.8, reweight=True, margin=0.01)
    state = generator.get_state()
    t, weight = Weighted(law, Brownian(), 1.0)(rows(), generator)
    generator.set_state(state)
    plain, own = law(rows(), generator)
    assert torch.equal(t, plain) and not law.even and not Weighted(Uniform(), Brownian()).even
    torch.testing.assert_close(
        weight / own, weight[0] / own[0] * ((t * (1 - t)) / (t * (1 - t))[0]).sqrt()
    )
    assert_mean(weight, 1.0)


@pytest.mark.parametrize("gamma", [Brownian(0.7), Quadratic()], ids=str)
def test_a_weighted_score_loss_is_the_noise_loss(gamma, generator):
    """(s + z / gamma)^2 gamma^2 = (gamma s + z)^2, up to the constant that makes the mean one."""
    x0, x1 = torch.randn(2, 300, 3, generator=generator, dtype=torch.float64)
    path, law = Linear(gamma=gamma), Uniform(0.05)

    def score(t, x):
        return torch.sin(3 * x) - t[:, None] * x

    def noise(t, x):
        return -path.coefficients(t).gamma[:, None] * score(t, x)

    def value(learner, target, time):
        draw = torch.Generator().manual_seed(3)
        return float(Matching(path, time=time, target=target)(learner, x0, x1, generator=draw))

    mean, _ = integrate.quad(lambda s: float(gamma(torch.tensor(s).double()).gamma) ** 2, 0.05, 0.95)
    true = value(noise, Noise(), law)
    assert value(score, Score(), Weighted(law, gamma, 2.0)) * mean / 0.9 == pytest.approx(
        true, rel=1e-6
    )
    for power in (1.0, -2.0):
        other = value(score, Score(), Weighted(law, gamma, power)) * mean / 0.9
        assert other != pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Weighted(Uniform(), Zero(), 2.0), "width of zero gives no weights"),
        (lambda: Weighted(Uniform(), Brownian(), -1.0), r"give the law a margin, such as Uniform\("),
        (lambda: Weighted(LogitNormal(), Quadratic(), -0.5), "vanishes at the ends"),
        (lambda: Weighted(Uniform(), Brownian(), math.nan), "power must be a finite number"),
        (lambda: Weighted(Uniform(), Brownian(), "2"), "power must be a finite number"),
        (lambda: Weighted(Uniform(), Brownian(), math.inf), "power must be a finite number"),
        (lambda: Importance([]), "one finite number a cell"),
        (lambda: Importance([0.0, 0.0], reweight=False), "not all zero"),
        (lambda: Importance([1.0, -1.0]), "none negative"),
        (lambda: Importance([1.0, math.nan]), "one finite number a cell"),
        (lambda: Importance([1.0, 0.0]), "with reweight every cell needs a positive density"),
        (lambda: Importance([1.0], margin=0.5), r"margin must lie in \[0, 0.5\)"),
    ],
)
def test_impossible_laws_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_other_parts_are_refused():
    with pytest.raises(TypeError, match="law must be a Time"):
        Weighted(0.5, Brownian())
    with pytest.raises(TypeError, match="gamma must be a width"):
        Weighted(Uniform(), 2.0)
    assert Weighted(Uniform(), Constant(0.2), -1.0).margin == 0  # which vanishes nowhere


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("stratified", [False, True])
def test_times_follow_the_density(stratified, margin, generator):
    t, weight = Importance(DENSITY, True, stratified, margin)(rows(), generator)
    share = [v / sum(DENSITY) for v in DENSITY]
    law = stats.rv_histogram((share, [0, 0.25, 0.5, 0.75, 1]), density=False)
    u = ((t - margin) / (1 - 2 * margin)).clamp(0, 1)
    assert stats.kstest(u.numpy(), law.cdf).statistic * N**0.5 < 1.95
    cell = (u * 4).long().clamp_max(3)
    torch.testing.assert_close(weight, 1 / (4 * torch.tensor(share, dtype=t.dtype)[cell]))
    counts = torch.bincount(cell, minlength=4)
    wanted = N * torch.tensor(share)
    deviation = (counts - wanted).abs()
    assert (deviation <= (1 if stratified else 4 * (wanted * (1 - wanted / N)).sqrt())).all()


@pytest.mark.parametrize("law", [
    Importance(DENSITY), Importance(DENSITY, stratified=True), Importance([2.0]),
    Importance(DENSITY, margin=0.1),
], ids=str)  # fmt: skip
def test_reweighted_draws_estimate_the_uniform_integral(law, generator):
    low, high = law.margin, 1 - law.margin
    true = ((high**3 - low**3) / 3) / (high - low)
    t, weight = law(rows(), generator)
    assert_mean(weight * t**2, true)
    assert_mean(weight, 1.0)
    if len(law.density) > 1:
        assert abs(float((t**2).mean()) - true) > 0.02  # without weights it is another law's mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_zeros_and_even_draws(dtype, generator):
    t, weight = Importance([0.0, 1.0, 0.0, 2.0, 0.0], reweight=False)(rows(5000, dtype), generator)
    assert t.dtype == weight.dtype == dtype and torch.equal(weight, torch.ones_like(t))
    assert set((t * 5).floor().long().tolist()) <= {1, 3}
    t, weight = Importance([1e-12, 1.0] * 50)(rows(5000, dtype), generator)
    assert t.isfinite().all() and weight.isfinite().all() and 0 <= t.min() and t.max() <= 1
    draws = [Importance(DENSITY)(rows(9), torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def still(t, x):
    return torch.zeros_like(x)


def score_loss(**options):
    """With still ends and a learner of zero, the loss at t is |z|^2 / gamma^2, a mean over 2."""
    return Matching(BrownianBridge(), target=Score(), time=Uniform(0.02), **options)


def test_the_measured_density_is_the_root_of_the_second_moment(generator):
    x = rows(4000)
    found = importance_density(score_loss(), still, x, x, cells=8, draws=20, generator=generator)
    edges = torch.linspace(0.02, 0.98, 9).tolist()
    moments = [integrate.quad(lambda s: (s * (1 - s)) ** -2, a, b)[0] for a, b in zip(edges, edges[1:])]
    true = torch.tensor(moments).sqrt()
    true = true / true.mean()
    true = true.clamp_min(0.1) / true.clamp_min(0.1).mean()
    torch.testing.assert_close(torch.tensor(found), true, rtol=0.03, atol=0.0)
    assert sum(found) == pytest.approx(8)


def test_the_measured_density_lowers_the_variance(generator):
    x, loss = rows(64), score_loss()
    density = importance_density(loss, still, x, x, cells=20, draws=200, generator=generator)
    other = replace(loss, time=Importance(density, margin=0.02))
    wrong = replace(loss, time=Importance([1 / d for d in density], margin=0.02))
    values = {
        name: torch.stack([part(still, x, x, generator=generator) for _ in range(400)])
        for name, part in (("plain", loss), ("measured", other), ("inverse", wrong))
    }
    true, _ = integrate.quad(lambda s: 1 / (s * (1 - s)) / 0.96, 0.02, 0.98)
    for value in (values["plain"], values["measured"]):
        assert_mean(value, true)
    assert values["measured"].var() < 0.5 * values["plain"].var() < 0.5 * values["inverse"].var()


def test_the_weight_of_a_weighted_law_is_part_of_the_loss(generator):
    x = rows(2000)
    loss = replace(score_loss(), time=Weighted(LogitNormal(margin=0.02), Brownian(), 2.0))
    found = importance_density(loss, still, x, x, cells=8, draws=20, generator=generator)
    torch.testing.assert_close(torch.tensor(found), torch.ones(8), rtol=0.05, atol=0.0)


def test_several_fields_conditions_and_refusals(generator):
    x = rows(200)
    loss = Matching(BrownianBridge(), time=Uniform(0.1), target={"a": Velocity(), "b": Noise()})

    def learner(t, x, cond):
        return {"a": cond[:, None] * x, "b": x}

    cond = torch.arange(200.0)
    found = importance_density(loss, learner, x, x, cond=cond, cells=5, generator=generator)
    assert len(found) == 5 and min(found) > 0
    with pytest.raises(ValueError, match="cells were never drawn; give larger batches"):
        importance_density(score_loss(), still, x[:5], x[:5], cells=100, draws=1, generator=generator)
    with pytest.raises(ValueError, match="the loss is not finite"):
        importance_density(loss, learner, x, x, cond=cond * math.inf, cells=5, generator=generator)
    with pytest.raises(ValueError, match="cells must be a whole number"):
        importance_density(score_loss(), still, x, x, cells=0)
