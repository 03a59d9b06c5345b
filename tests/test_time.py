"""Times: their laws, margins, and the unbiasedness of reweighted draws."""

import math

import pytest
import torch
from scipy import stats

from genflow.time import Beta, LogitNormal, Stratified, Uniform

N = 50_000
LAWS = [Uniform, Stratified, LogitNormal, Beta]
REWEIGHTED = [
    LogitNormal(std=2.0, reweight=True), LogitNormal(0.4, 1.8, reweight=True),
    LogitNormal(std=2.0, reweight=True, margin=0.1), Beta(1.5, 1.2, reweight=True),
    Beta(0.8, 1.3, reweight=True), Beta(1.5, 1.2, reweight=True, margin=0.05),
]  # fmt: skip
laws = pytest.mark.parametrize("law", LAWS)


def rows(n=N, dtype=torch.float64):
    return torch.zeros(n, 1, 2, dtype=dtype)


def assert_law(t, cdf):
    """Kolmogorov-Smirnov: ``sqrt(n) D`` exceeds 1.95 with probability 0.001."""
    assert stats.kstest(t.double().numpy(), cdf).statistic * len(t) ** 0.5 < 1.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.0, 0.01, 0.3])
@laws
def test_times_stay_inside_their_margin(law, margin, dtype, generator):
    t, weight = law(margin=margin)(rows(4_000, dtype), generator)
    assert t.shape == weight.shape == (4_000,) and t.dtype == weight.dtype == dtype
    assert t.min() >= margin - 1e-7 and t.max() <= 1 - margin + 1e-7
    assert t.min() < margin + 0.1 and t.max() > 0.9 - margin
    assert torch.equal(weight, torch.ones_like(weight))


@laws
def test_the_generator_rules_the_draw(law):
    draws = [law()(rows(50), torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("law", [Uniform, Stratified])
def test_uniform_laws(law, margin, generator):
    t, _ = law(margin)(rows(), generator)
    assert_law(t, stats.uniform(margin, 1 - 2 * margin).cdf)
    assert stats.kstest(t.numpy() ** 1.05, "uniform").pvalue < 1e-3  # a nearby law is told apart


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_stratified_draws_one_time_in_each_cell(margin, generator):
    t, _ = Stratified(margin)(rows(1_000), generator)
    cells = ((t - margin) / (1 - 2 * margin) * 1_000).floor().long()
    assert torch.equal(cells.sort().values, torch.arange(1_000))
    # less variance a batch: the mean of a stratified batch has deviation 1 / (sqrt(12) n^1.5)
    deviation = (1 - 2 * margin) / math.sqrt(12) / 1_000**1.5
    assert abs(t.mean() - 0.5) < 4 * deviation


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.7, 0.5)])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_the_logit_of_logit_normal_is_normal(mean, std, margin, generator):
    t, _ = LogitNormal(mean, std, margin=margin)(rows(), generator)
    logit = torch.logit((t - margin) / (1 - 2 * margin))
    assert_law(logit, stats.norm(mean, std).cdf)
    # 4 standard errors of a mean and of a standard deviation
    assert abs(logit.mean() - mean) < 4 * std / N**0.5
    assert abs(logit.std() - std) < 4 * std / (2 * N) ** 0.5


@pytest.mark.parametrize("a, b", [(2.0, 2.0), (0.5, 1.5), (5.0, 1.0)])
def test_beta_law(a, b, generator):
    t, _ = Beta(a, b, margin=0.1)(rows(), generator)
    assert_law((t - 0.1) / 0.8, stats.beta(a, b).cdf)


@pytest.mark.parametrize("law", REWEIGHTED, ids=str)
def test_reweighted_draws_estimate_the_uniform_integral(law, generator):
    def square(t):
        return t**2 + torch.cos(3 * t)

    def integral(t):
        return t**3 / 3 + math.sin(3 * t) / 3

    low, high = law.margin, 1 - law.margin
    truth = (integral(high) - integral(low)) / (high - low)
    t, weight = law(rows(4 * N), generator)
    for terms, value in ((weight, 1.0), (weight * square(t), truth)):
        error = float(terms.std()) / len(terms) ** 0.5
        assert abs(float(terms.mean()) - value) < 4 * error
    plain = square(t)  # without weights the mean is that of another law
    assert abs(float(plain.mean()) - truth) > 6 * float(plain.std()) / len(plain) ** 0.5


def test_reweighting_the_default_logit_normal_clips_only_the_ends(generator):
    # its density falls below 1e-4 on the outer 0.6 % of either side, which the clip gives up
    t, weight = LogitNormal(reweight=True)(rows(4 * N), generator)
    error = float(weight.std()) / len(weight) ** 0.5
    assert abs(float(weight.mean()) - 1) < 4 * error + 0.012
    assert weight.max() <= 1e4


@pytest.mark.parametrize("law", REWEIGHTED, ids=str)
def test_weights_are_finite_in_float32(law, generator):
    t, weight = law(rows(N, torch.float32), generator)
    assert t.isfinite().all() and weight.isfinite().all() and (weight >= 0).all()


@pytest.mark.parametrize("margin", [-0.1, 0.5, 0.7, float("nan")])
@laws
def test_a_margin_outside_half_the_interval_is_refused(law, margin):
    with pytest.raises(ValueError, match=r"margin must lie in \[0, 0.5\)"):
        law(margin=margin)


@pytest.mark.parametrize(
    "make", [lambda: LogitNormal(std=0.0), lambda: Beta(a=0.0), lambda: Beta(b=-1.0)]
)
def test_bad_shapes_are_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()
