"""Exact laws of light bridges: the plan and transitions."""

import pytest
import torch
from laws import moment_scores
from lights import (
    FAMILIES,
    double,
    energy_score,
    grid,
    law_at,
    light,
    log_c,
    log_transition,
    log_v,
    states,
)  # fmt: skip
from torch import distributions as D

from genflow.process import LightBridge
from genflow.process.light import Transition, law

every_family = pytest.mark.parametrize("family", FAMILIES)
SPANS = [(0.0, 1.0), (0.0, 0.4), (0.3, 0.8), (0.6, 1.0)]


def close(found, want, tolerance=1e-9):
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


def draws(law, n, seed=0):
    return law.sample((n,), torch.Generator().manual_seed(seed))


# The plan


@every_family
def test_the_plan_is_the_potential_tilted_and_normalised(family):
    made, numbers = light(family)
    x0, x1 = states(3, 30), states(3, 30, 9)
    plan = made.plan(x0)
    want = (x0 * x1).sum(1) / numbers.epsilon + log_v(numbers, x1) - log_c(numbers, x0)
    close(plan.log_prob(x1), want)
    close(plan.mixture().log_prob(x1), want)
    close(law_at(numbers, 1.0, x0).log_prob(x1), want)
    close(made.log_prob_at(1.0, x1, x0), want)


@every_family
def test_the_plan_integrates_to_one_and_has_its_moments(family):
    made, _ = light(family, dim=2)
    line, cell = grid(10.0, 281)
    places = torch.cartesian_prod(line[:, 0], line[:, 0])
    for x in ([0.0, 0.0], [1.0, -0.7]):
        plan = made.plan(torch.tensor([x], dtype=double))
        with torch.no_grad():
            density = plan.log_prob(places[:, None])[:, 0].exp() * cell**2
        assert float(density.sum()) == pytest.approx(1, abs=1e-7)
        mean = density @ places
        spread = (density[:, None] * (places - mean)).mT @ (places - mean)
        close(plan.mean[0], mean, 1e-7)
        close(plan.covariance_matrix[0], spread, 1e-7)
        close(plan.variance[0], spread.diagonal(), 1e-7)


@every_family
def test_moments_are_those_of_the_mixture(family):
    made, numbers = light(family, dim=(1, 2, 2))
    x0 = states((1, 2, 2), 20)
    mean, covariance = made.conditional_moments(x0)
    by_hand = law_at(numbers, 1.0, x0.flatten(1))
    close(mean, by_hand.mean)
    close(covariance.diagonal(dim1=1, dim2=2), by_hand.variance)
    share = by_hand.mixture_distribution.probs
    means, within = (
        by_hand.component_distribution.mean,
        by_hand.component_distribution.covariance_matrix,
    )
    apart = means - by_hand.mean[:, None]
    inside = torch.einsum("bk,bkde->bde", share, within)
    close(covariance, inside + torch.einsum("bk,bkd,bke->bde", share, apart, apart))
    assert (covariance - inside).abs().max() > 0.1  # without the spread between components
    plan = made.plan(x0)
    assert plan.mean.shape == plan.variance.shape == x0.shape
    close(plan.mean.flatten(1), mean, 0)
    close(plan.variance.flatten(1), by_hand.variance)
    close(x0 + made.drift(0.0, x0), plan.mean)  # the mean move is the drift at the start


@every_family
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.3, 0.8)], ids=str)
def test_draws_have_the_law_of_torch_s_own_mixture(family, span):
    made, _ = light(family)
    x0 = states(3, 1).expand(2, 3)
    found = made.transition_law(*span, x0)
    torch.manual_seed(0)
    with torch.no_grad():
        want = found.mixture().sample((10_000,))
    got = draws(found, 10_000)
    for row in (0, 1):
        assert moment_scores(got[:, row], want[:, row]) < 4.5
    assert energy_score(got[:700, 0], want[:700, 0]) < 4
    shifted = got[:700, 0] + 0.3 * want[:, 0].std(0)
    assert energy_score(shifted, want[:700, 0]) > 4


@every_family
def test_rows_and_repeats_do_not_mix(family):
    # rows far apart, each with its own time: a row's draws must be those of the row alone
    made, _ = light(family)
    x0 = torch.tensor([[-2.0, 0.5, 1.0], [2.0, -1.0, 0.0], [0.0, 2.0, -2.0]], dtype=double)
    s, t = (torch.tensor(v, dtype=double) for v in ([0.0, 0.3, 0.8], [1.0, 0.9, 0.85]))
    joint = draws(made.transition_law(s, t, x0), 8000)
    assert joint.shape == (8000, 3, 3)
    for row in range(3):
        alone = draws(made.transition_law(float(s[row]), float(t[row]), x0[row : row + 1]), 8000, 1)
        assert moment_scores(joint[:, row], alone[:, 0]) < 4.5
    assert moment_scores(joint[:, 0], joint[:, 1]) > 10


def test_draws_of_one_dimension_follow_the_distribution_function():
    made, _ = light("diagonal", dim=1, epsilon=0.3)
    line, cell = grid(8.0, 4001)
    for s, t in SPANS:
        found = made.transition_law(s, t, torch.tensor([[0.3]], dtype=double))
        with torch.no_grad():
            below = found.log_prob(line[:, None])[:, 0].exp().cumsum(0) * cell
        n = 40_000
        got = draws(found, n)[:, 0, 0].sort().values
        gap = torch.searchsorted(got, line[:, 0] + cell / 2) / n - below
        assert gap.abs().max() < 1.95 / n**0.5  # Kolmogorov, one in a thousand
        gap = torch.searchsorted(got + 0.1 * got.std(), line[:, 0] + cell / 2) / n - below
        assert gap.abs().max() > 1.95 / n**0.5


# Transitions


@every_family
@pytest.mark.parametrize("span", SPANS, ids=str)
def test_transitions_are_brownian_motion_tilted_by_the_potential(family, span):
    made, numbers = light(family)
    x, y = states(3, 30), states(3, 30, 9)
    s, t = span
    want = log_transition(numbers, s, t, x, y)
    found = made.transition_law(s, t, x)
    close(found.log_prob(y), want)
    close(found.mixture().log_prob(y), want)
    close(found.mean, found.mixture().mean)
    close(found.variance, found.mixture().variance)
    if s == 0:
        close(made.log_prob_at(t, y, x), want)
        close(law_at(numbers, t, x).log_prob(y), want)


@every_family
def test_times_of_transitions_may_differ_by_row(family):
    made, _ = light(family)
    x, y = states(3, 6), states(3, 6, 9)
    s = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 0.0], dtype=double)
    t = torch.tensor([1.0, 0.2, 0.8, 1.0, 0.95, 0.01], dtype=double)
    for first, last in ((s, t), (0.0, t), (s, 1.0), (s[:1].expand(6), t)):
        found = made.transition_law(first, last, x)
        rows = [
            made.transition_law(
                *(v if isinstance(v, float) else float(v[k]) for v in (first, last)), x[k : k + 1]
            )
            for k in range(6)
        ]
        for ask in (
            lambda m, k: m.log_prob(y[k]),
            lambda m, k: m.mean,
            lambda m, k: m.covariance_matrix,
            lambda m, k: m.logits,
            lambda m, k: m.mixture().mean,
        ):
            want = torch.cat([ask(m, slice(k, k + 1)) for k, m in enumerate(rows)])
            close(ask(found, slice(0, 6)), want, 1e-11)


@pytest.mark.parametrize("between", [0.2, 0.5, 0.9])
def test_two_steps_are_one_by_integration(between):
    made, _ = light("diagonal", dim=1, epsilon=0.3)
    line, cell = grid(8.0, 1201)
    x = torch.tensor([[0.4]], dtype=double)
    with torch.no_grad():
        first = made.transition_law(0.1, between, x).log_prob(line[:, None])[:, 0].exp() * cell
        second = made.transition_law(between, 1.0, line).log_prob(line[:, None]).exp()  # (to, from)
        once = made.transition_law(0.1, 1.0, x).log_prob(line[:, None])[:, 0].exp()
        close(second @ first, once, 1e-7)
        wrong = made.transition_law(between, 1.0, line).log_prob(line[:, None] + 0.05).exp()
    assert ((wrong @ first) - once).abs().max() > 1e-3


# How it is drawn


@every_family
def test_draws_follow_the_generator(family):
    made, _ = light(family)
    plan = made.plan(states(3, 5))
    state = torch.get_rng_state()
    same = [plan.sample((4,), torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    for ask in (
        lambda g: made.transition(0.2, 0.7, states(3, 5), g),
        lambda g: made.sample_at(states(3, 5), 0.7, g),
        lambda g: made.sample_path(states(3, 5), [0.0, 0.5, 1.0], g),
    ):
        twice = [ask(torch.Generator().manual_seed(3)) for _ in range(2)]
        assert torch.equal(*twice) and not twice[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    plan.sample()
    assert not torch.equal(torch.get_rng_state(), state)


@every_family
@pytest.mark.parametrize("dim", [3, (1, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, double], ids=str)
def test_shapes_and_precision(family, dim, dtype):
    made, _ = light(family, dim)
    x0, shape = states(dim, 5).to(dtype), made.shape
    plan = made.plan(x0)
    assert isinstance(plan, Transition) and isinstance(plan, D.Distribution)
    assert plan.batch_shape == (5,) and plan.event_shape == shape and not plan.has_rsample
    assert plan.sample().shape == (5, *shape) and plan.sample((2, 4)).shape == (2, 4, 5, *shape)
    assert plan.sample((0,)).shape == (0, 5, *shape)
    for value in (plan.sample((2, 4)), x0[None], x0):
        assert plan.log_prob(value).shape == value.shape[: value.ndim - len(shape)]
    d = x0[0].numel()
    assert (
        plan.covariance_matrix.shape == (5, d, d) and plan.mean.shape == plan.variance.shape == x0.shape
    )
    answers = plan.sample(), plan.mean, plan.variance, plan.covariance_matrix, plan.log_prob(x0)
    assert {v.dtype for v in (*answers, made.sample_path(x0, [0.5, 1.0]))} == {dtype}
    assert plan.mixture().mean.dtype == double and plan.logits.shape == (5, 4)
    close(plan.log_prob(x0[None].expand(3, *x0.shape)), plan.log_prob(x0).expand(3, 5), 1e-6)
    assert bool(plan.support.check(x0).all())


@every_family
def test_chunks_do_not_change_answers(family, monkeypatch):
    made, _ = light(family)
    x, y = states(3, 23), states(3, 23, 9)
    t = torch.linspace(0.1, 1, 23, dtype=double)

    def answers():
        found = made.transition_law(0.0, t, x)
        return (
            found.log_prob(y),
            found.log_prob(torch.stack([y, x])),
            found.covariance_matrix,
            found.mean,
        )

    with torch.no_grad():
        want = answers()
        monkeypatch.setattr(law, "CHUNK", 5)  # less than one row needs
        assert len(list(made.plan(x)._chunks())) > 5
        for a, b in zip(answers(), want):
            close(a, b, 1e-12)
        n = 6000
        got = draws(made.transition_law(0.0, t, x[:1].expand(23, 3)), n)
    for row in (0, 11, 22):
        alone = draws(made.transition_law(0.0, float(t[row]), x[:1]), n, 1)
        assert moment_scores(got[:, row], alone[:, 0]) < 4.5


@every_family
def test_densities_can_be_trained_through(family):
    made, _ = light(family, count=3)
    x0, x1 = states(3, 9).requires_grad_(), states(3, 9, 9).requires_grad_()
    plan = made.plan(x0)
    (plan.log_prob(x1).sum() + plan.mean.sum() + plan.covariance_matrix.sum()).backward()
    grown = [p.grad for p in (*made.parameters(), x0, x1)]
    assert all(g is not None and bool(g.isfinite().all()) and bool((g != 0).any()) for g in grown)


def test_pyro_takes_the_mixture():
    pyro = pytest.importorskip("pyro")
    made = LightBridge(2, 3, 0.5)
    with torch.no_grad():
        mixture = made.plan(torch.zeros(4, 2)).mixture()
    shaped = pyro.distributions.MixtureSameFamily(
        mixture.mixture_distribution, mixture.component_distribution
    )
    assert shaped.batch_shape == (4,) and shaped.sample().shape == (4, 2)
