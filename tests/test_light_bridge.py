"""Light bridges: potential, drift, and the numbers that they are made of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lights import (
    FAMILIES, double, law_at, light, log_c, log_phi, log_v, published_drift, scales, shaped, states,
)  # fmt: skip

import genflow
from genflow.interpolant import BrownianBridge
from genflow.oracle import Exact, entropic
from genflow.process import LightBridge
from genflow.process.light import law, potential
from genflow.source import Gaussian, GaussianMixture
from genflow.specs import build

TIMES = [0.0, 0.2, 0.5, 0.99, 1.0]
every_family = pytest.mark.parametrize("family", FAMILIES)


def close(found, want, tolerance=1e-9):
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


# The potential


@every_family
def test_potential_and_normaliser_are_their_definitions(family):
    made, numbers = light(family)
    x = states(3, 40)
    close(made.log_potential(x), log_v(numbers, x))
    close(made.log_normaliser(x), log_c(numbers, x))
    close(made.objective(x[:15], x), log_c(numbers, x[:15]).mean() - log_v(numbers, x).mean())
    assert made.log_potential(x.float()).dtype == double


@every_family
def test_the_potential_between_is_the_published_integral(family):
    made, numbers = light(family)
    x = states(3, 40)
    for t in (0.0, 0.3, 0.8):
        gap = made.potential.log_value(torch.tensor(t, dtype=double), x) - log_phi(numbers, t, x)
        close(gap, gap[:1].expand(40))  # a constant, which time does not move
        close(gap[0], made.potential.log_value(torch.zeros((), dtype=double), x[:1])[0]
              - log_phi(numbers, 0.0, x[:1])[0])  # fmt: skip


# The drift


@every_family
@pytest.mark.parametrize("dim", [1, 3, (1, 4, 4)], ids=str)
def test_drift_is_the_gradient_of_the_published_form(family, dim):
    if (family, dim) == ("low_rank", 1):
        dim = 2
    made, numbers = light(family, dim)
    x = states(dim, 30)
    for t in (0.0, 0.2, 0.5, 0.99):
        want = published_drift(numbers, t, x.flatten(1)).reshape(x.shape)
        close(made.drift(t, x), want)
        with torch.no_grad():
            close(made.drift(t, x), want)
    place = x.flatten(1).requires_grad_()
    last = log_v(numbers, place) + place.square().sum(1) / (2 * numbers.epsilon)
    want = numbers.epsilon * torch.autograd.grad(last.sum(), place)[0]
    close(made.drift(1, x), want.reshape(x.shape))


@every_family
def test_drift_is_epsilon_times_the_gradient_of_the_potential(family):
    made, _ = light(family)
    for t in TIMES:
        x = states(3, 20).requires_grad_()
        value = made.potential.log_value(torch.tensor(t, dtype=double), x)
        close(made.drift(t, x), made.epsilon * torch.autograd.grad(value.sum(), x)[0])
        assert (made.drift(t, x) - torch.autograd.grad(
            made.potential.log_value(torch.tensor(t, dtype=double), x).sum(), x)[0]).abs().max() > 0.1  # fmt: skip


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, double], ids=str)
@pytest.mark.parametrize("dim", [3, (1, 4, 4)], ids=str)
def test_times_may_be_one_or_one_a_row(family, dtype, dim):
    made, _ = light(family, dim)
    x, near = states(dim, 12).to(dtype), 1e-11 if dtype == double else 3e-5
    times = torch.linspace(0, 1, 12, dtype=dtype)
    for way in (torch.no_grad(), torch.enable_grad()):
        with way:
            rows = torch.cat([made.drift(float(t), v[None]) for t, v in zip(times, x)])
            found = made.drift(times, x)
            assert found.dtype == dtype and found.shape == x.shape
            close(found, rows, near)
            close(made(times, x), found, 0)
            one = torch.tensor(0.4, dtype=dtype)
            for t in (one, one.expand(12), one.repeat(12)):
                close(made.drift(t, x), made.drift(0.4, x), near)
            assert (made.drift(times.flip(0), x) - found).abs().max() > 0.1


@every_family
def test_the_way_of_computing_does_not_change_the_answer(family, monkeypatch):
    made, _ = light(family, count=7)
    x, times = states(3, 50), torch.linspace(0, 1, 50, dtype=double)
    with torch.no_grad():
        want = [made.drift(0.6, x), made.drift(times, x), made.log_potential(x)]
        assert made.potential.quick(torch.tensor(0.6)) == (family in ("diagonal", "isotropic"))
    close(made.drift(0.6, x), want[0])
    close(made.drift(times, x), want[1])
    monkeypatch.setattr(potential, "BLOCK", 40)
    monkeypatch.setattr(potential, "CHUNK", 100)
    with torch.no_grad():
        found = [made.drift(0.6, x), made.drift(times, x), made.log_potential(x)]
        assert len(made.potential._chunks(times, x)) > 5
    for a, b in zip(found, want):
        close(a, b, 1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 0.002])
@every_family
def test_float32_is_as_good_as_double_to_the_end(family, epsilon):
    made, numbers = light(family, count=6, epsilon=epsilon, least=1e-3)
    made.log_weight.data.zero_()
    single = LightBridge(3, 6, epsilon, family, made.rank)
    single.load_state_dict(made.state_dict())
    made.load_state_dict(single.state_dict())  # the same numbers
    numbers = numbers._replace(
        log_weight=made.log_weight.data, location=made.location.data, matrices=made.covariances()
    )
    draw = torch.Generator().manual_seed(1)
    x0 = torch.randn(400, 3, generator=draw)
    worst = []
    for t in (0.0, 0.5, 0.99, 0.9999, 1.0):
        x = single.sample_at(x0, t, draw)
        want = made.drift(t, x.double()).detach()
        scale = want.abs().mean()
        assert bool(want.isfinite().all())
        general = single.drift(t, x).detach()
        assert (general - want).abs().max() < 2e-6 * scale
        with torch.no_grad():
            worst.append(float((single.drift(t, x) - want).abs().max() / scale))
        if t > 0.99:  # the published form loses all digits
            bad = published_drift(numbers, t, x) - want
            assert not bool((bad.abs() < 1e-4 * scale).all())
    assert max(worst) < 1e-5, worst


@every_family
@pytest.mark.parametrize("dim", [2, (1, 4, 4)], ids=str)
def test_everything_is_finite_at_both_ends(family, dim):
    made, _ = light(family, dim, epsilon=0.002, least=1e-3, spread=3.0)
    made = made.float()
    x = states(dim, 30, scale=3.0).float()
    for t in (0.0, 1.0, torch.linspace(0, 1, 30)):
        for way in (torch.no_grad(), torch.enable_grad()):
            with way:
                assert bool(made.drift(t, x).isfinite().all())
    plan = made.plan(x)
    for answer in (plan.mean, plan.covariance_matrix, plan.sample(), plan.log_prob(x)):
        assert bool(answer.isfinite().all()) and answer.dtype == torch.float32
    made.objective(x, x).backward()
    assert all(bool(p.grad.isfinite().all()) for p in made.parameters())


# One component: Gaussians


def test_one_component_is_the_bridge_of_gaussians():
    epsilon = 0.7
    mean0, mean1 = [0.4, -0.3], [1.2, 0.5]
    cov0, cov1 = [[1.0, 0.3], [0.3, 0.6]], [[0.5, -0.2], [-0.2, 1.2]]
    ends = GaussianMixture([mean0], [cov0]), GaussianMixture([mean1], [cov1])
    joint = entropic(*ends, epsilon**0.5)
    m0, m1, c0, c1, cross = (v[0] for v in (joint.mean0, joint.mean1, joint.cov0, joint.cov1, joint.cross))
    slope = torch.linalg.solve(c0, cross).mT
    within = c1 - slope @ cross
    made = LightBridge(2, 1, epsilon, "full").double()
    made.assign(torch.zeros(1), (m1 - slope @ m0)[None], slope[None])
    x0 = states(2, 9)
    mean, covariance = made.conditional_moments(x0)
    close(mean, m1 + (x0 - m0) @ slope.mT)
    close(covariance, within.expand(9, 2, 2))
    exact = Exact(joint, BrownianBridge(epsilon**0.5))
    for t in (0.1, 0.5, 0.9):
        time = torch.full((9,), t, dtype=double)
        close(made.drift(t, x0), exact.drift(time, x0, epsilon**0.5), 1e-8)
    other = entropic(*ends, (2 * epsilon) ** 0.5)  # the temperature of a cost without the half
    wrong = torch.linalg.solve(other.cov0[0], other.cross[0]).mT
    assert (wrong - slope).abs().max() > 0.1


# Numbers that change


def fused(made):
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1, fused=True)
    made.objective(states(3, 9), states(3, 9, 8)).backward()
    optimizer.step()


def descent(made):
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made.objective(states(3, 9), states(3, 9, 8)).backward()
    optimizer.step()


def copied(made):
    for p in made.parameters():
        p.data.copy_(p.data + 0.1)


def swapped(made):
    for p in made.parameters():
        p.data = p.data + 0.1


@every_family
@pytest.mark.parametrize("change", [fused, descent, copied, swapped])
def test_answers_follow_the_numbers(family, change):
    made, _ = light(family)
    made.anchor(states(3, 20))
    x = states(3, 5)
    x1 = states(3, 5, 9)

    def answers(of):
        with torch.no_grad():
            return [
                of.drift(0.5, x), of.log_potential(x), of.plan(x).log_prob(x1), of.log_density(0.5, x),
                of.backward_drift(0.5, x), of.covariances(),
            ]  # fmt: skip

    before = answers(made)
    change(made)
    after = answers(made)
    fresh = LightBridge(3, 4, made.epsilon, family, made.rank).double()
    fresh.load_state_dict(made.state_dict())
    for old, new, want in zip(before, after, answers(fresh)):
        assert (old - new).abs().max() > 1e-4
        close(new, want, 1e-13)


@every_family
def test_anchors_that_change_are_seen(family):
    made, _ = light(family)
    x = states(3, 5)
    with torch.no_grad():
        first = made.anchor(states(3, 20)).log_density(0.5, x)
        second = made.anchor(states(3, 20, 9)).log_density(0.5, x)
        assert (first - second).abs().max() > 1e-3
        close(made.anchor(states(3, 20)).log_density(0.5, x), first, 1e-13)


# Gradients


def call(made, names, values, what):
    return torch.func.functional_call(made, dict(zip(names, values)), what)


class Asked(torch.nn.Module):
    """A method of a bridge as the forward of a module."""

    def __init__(self, made, method):
        super().__init__()
        self.made, self.method = made, method

    def forward(self, *arguments):
        return getattr(self.made, self.method)(*arguments)


@every_family
@pytest.mark.parametrize("method", ["drift", "log_potential", "log_normaliser", "log_prob_at"])
def test_gradients_of_states_and_parameters(family, method):
    made, _ = light(family, dim=3, count=2)
    asked = Asked(made, method)
    names, values = zip(*((k, v.detach().clone()) for k, v in asked.named_parameters()))
    x, t = states(3, 2), torch.tensor([0.3, 1.0], dtype=double)
    if method == "drift":
        arguments = (t, x)
    else:
        arguments = (t, x, states(3, 2, 9)) if method == "log_prob_at" else (x,)

    def value(*tensors):
        places = iter(tensors[len(names) :])
        given = tuple(t if a is t else next(places) for a in arguments)
        return call(asked, names, tensors[: len(names)], given)

    inputs = [*values, *(a for a in arguments if a is not t)]
    assert torch.autograd.gradcheck(value, [v.requires_grad_() for v in inputs])


@every_family
def test_the_drift_has_a_second_derivative(family):
    made, _ = light(family, dim=3, count=2)
    made.requires_grad_(False)
    x = states(3, 2).requires_grad_()
    for t in (0.0, 0.6, 1.0, torch.tensor([0.2, 0.9], dtype=double)):
        assert torch.autograd.gradgradcheck(lambda v, t=t: made.drift(t, v), x)
    # of one row: symmetric, as the drift is a gradient
    jacobian = torch.func.jacrev(lambda v: made.drift(0.6, v[None])[0])(x[0].detach())
    close(jacobian, jacobian.mT)


# What a bridge is given, and what it gives back


@every_family
def test_numbers_come_back_as_they_went_in(family):
    made, numbers = light(family, 4)
    close(made.covariances(), numbers.matrices, 1e-12)
    other = LightBridge(4, 4, made.epsilon, family, made.rank).double()
    given = made.numbers()
    assert other.assign(*given) is other
    for a, b in zip(other.numbers(), given):
        close(a, b, 1e-12)
    x = states(4, 6)
    close(other.drift(0.4, x), made.drift(0.4, x))
    given[1].zero_()  # copies
    assert made.location.abs().min() > 0
    close(made.log_weight.detach(), numbers.log_weight, 0)
    close(made.location.detach(), numbers.location, 0)


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 5]), st.integers(1, 3))
def test_any_matrix_comes_back_from_full_covariances(seed, dim, count):
    matrices = scales("full", count, dim, 1e-3, 10.0, seed)
    made = LightBridge(dim, count, 1.0, "full").double()
    made.assign(torch.zeros(count), torch.zeros(count, dim), matrices)
    close(made.covariances(), matrices, 1e-11)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_is_the_nearest_of_its_kind(rank):
    matrices = scales("full", 3, 5, 0.1, 4.0, 0)
    made = LightBridge(5, 3, 1.0, "low_rank", rank).double()
    found = made.assign(torch.zeros(3), torch.zeros(3, 5), matrices).covariances()
    values, vectors = torch.linalg.eigh(matrices)
    values[:, : 5 - rank] = values[:, : 5 - rank].mean(1, keepdim=True)
    close(found, vectors @ torch.diag_embed(values) @ vectors.mT, 1e-11)
    close(made.assign(torch.zeros(3), torch.zeros(3, 5), found).covariances(), found, 1e-11)
    assert made.covariances_.log_values.shape == (3, rank + 1)


@every_family
def test_spec_save_and_load(family, tmp_path):
    made, _ = light(family, (1, 4, 4))
    assert genflow.spec(build(genflow.spec(made))) == genflow.spec(made)
    made.anchor(states((1, 4, 4), 11))
    single = made.float()
    genflow.save(single, tmp_path / "bridge.ckpt")
    loaded = genflow.load(tmp_path / "bridge.ckpt")
    assert genflow.spec(loaded) == genflow.spec(single) and loaded.anchors.shape == (11, 16)
    x = states((1, 4, 4), 5).float()
    for method, arguments in (("drift", (0.3, x)), ("score", (0.3, x)), ("log_density", (0.3, x))):
        assert torch.equal(getattr(loaded, method)(*arguments), getattr(single, method)(*arguments))
    draws = [m.transition(1, 0, x, torch.Generator().manual_seed(0)) for m in (single, loaded)]
    assert torch.equal(*draws)


@every_family
def test_precision(family):
    made = LightBridge(3, 4, 1, family, 2 if family == "low_rank" else None)
    assert {p.dtype for p in made.parameters()} == {torch.float32} and made.epsilon == 1.0
    x, want = states(3, 5), made.drift(0.3, states(3, 5))
    for way in (made.double, lambda: made.to(torch.float64)):
        changed = way()
        assert {p.dtype for p in changed.parameters()} == {double}
        close(changed.drift(0.3, x), want, 1e-12)  # forms were computed in double all along
    assert made.sigma == 1.0 and made.stochastic and made.span == (0.0, 1.0)
    assert made.anchor(x.float()).anchors.dtype == double
    close(made.diffusion(torch.tensor(0.3), x, x), x)
    assert LightBridge(3, 4, 0.25).diffusion(0.3, x, x).equal(x / 2)


@every_family
def test_event_shapes_are_flat_inside(family):
    tall, _ = light(family, (1, 4, 4))
    flat, _ = light(family, 16)
    x = states((1, 4, 4), 6)
    for t in (0.3, torch.linspace(0, 1, 6)):
        close(tall.drift(t, x).flatten(1), flat.drift(t, x.flatten(1)), 1e-12)
    close(tall.log_potential(x), flat.log_potential(x.flatten(1)), 1e-12)
    close(law_at(light(family, 16)[1], 0.5, x.flatten(1)).log_prob(x.flatten(1)),
          tall.log_prob_at(0.5, x, x))  # fmt: skip


def test_a_fresh_bridge_has_components_that_differ():
    torch.manual_seed(0)
    made = LightBridge(3, 5, 1.0)
    assert torch.pdist(made.location.detach()).min() > 0.1
    close(made.log_weight.detach().exp().sum(), torch.tensor(1.0), 1e-6)
    close(made.covariances(), torch.eye(3, dtype=double).expand(5, 3, 3), 0)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be a finite number"),
        ({"components": 0}, "components must be a whole number"),
        ({"components": 2.5}, "components must be a whole number"),
        ({"components": "many"}, "components must be a whole number"),
        ({"dim": 0}, "dim must be a positive whole number"),
        ({"dim": [2, 0]}, "dim must be a positive whole number"),
        ({"covariance": "round"}, "covariance must be one of 'diagonal', 'full', 'isotropic', 'low_rank'"),
        ({"rank": 2}, "rank belongs to 'low_rank' alone"),
        ({"covariance": "low_rank"}, "rank must be a whole number from 1 to 2"),
        ({"covariance": "low_rank", "rank": 3}, "rank must be a whole number from 1 to 2"),
        ({"covariance": "low_rank", "rank": 0}, "rank must be a whole number from 1 to 2"),
        ({"covariance": "low_rank", "rank": True}, "rank must be a whole number from 1 to 2"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LightBridge(**({"dim": 3, "components": 4, "epsilon": 1.0} | arguments))


x = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda b: b.drift(0.5, torch.zeros(4, 3)), r"x must be \(B, 2\), got \(4, 3\)"),
        (lambda b: b.drift(0.5, torch.zeros(2)), r"x must be \(B, 2\), got \(2,\)"),
        (lambda b: b.drift(0.5, [0.0, 0.0]), r"x must be \(B, 2\), got list"),
        (lambda b: b.log_potential(torch.zeros(4, 3)), r"x1 must be \(B, 2\)"),
        (lambda b: b.log_normaliser(torch.zeros(4, 3)), r"x0 must be \(B, 2\)"),
        (lambda b: b.objective(x, torch.zeros(4, 3)), r"x1 must be \(B, 2\)"),
        (lambda b: b.plan(torch.zeros(4, 1, 2)), r"x must be \(B, 2\)"),
        (lambda b: b.anchor(torch.zeros(4, 3)), r"x0 must be \(B, 2\)"),
        (lambda b: b.drift(1.5, x), r"must lie in \[0, 1\]"),
        (lambda b: b.drift(-0.1, x), r"must lie in \[0, 1\]"),
        (lambda b: b.drift(math.nan, x), r"must lie in \[0, 1\]"),
        (lambda b: b.drift(torch.tensor([0.0, 0.5, 1.0, 1.5]), x), r"must lie in \[0, 1\]"),
        (lambda b: b.transition(0.5, 1.5, x), r"must lie in \[0, 1\]"),
        (lambda b: b.sample_at(x, -0.5), r"must lie in \[0, 1\]"),
        (lambda b: b.log_prob_at(1.5, x, x), r"must lie in \[0, 1\]"),
        (lambda b: b.log_prob_at(0.0, x, x), "needs s < t"),
        (lambda b: b.transition_law(0.5, 0.5, x), "needs s < t"),
        (lambda b: b.transition_law(0.5, 0.2, x), "needs s < t"),
        (lambda b: b.transition_law(torch.tensor([0.0, 0.5, 0.0, 0.0]), 0.5, x), "needs s < t"),
        (lambda b: b.drift(0.5, x, x), "knows no conditions"),
        (lambda b: b(0.5, x, cond=x), "knows no conditions"),
        (lambda b: b.backward_drift(0.5, x, x), "knows no conditions"),
        (lambda b: b.sample_path(x, [0.5, 0.2]), "rise strictly"),
        (lambda b: b.sample_path(x, [0.0, 0.0, 1.0]), "rise strictly"),
        (lambda b: b.sample_path(x, [0.0, 1.5]), r"within \[0, 1\]"),
        (lambda b: b.sample_path(x, [-0.5, 1.0]), r"within \[0, 1\]"),
        (lambda b: b.sample_path(x, 0.5), "rise strictly"),
        (
            lambda b: b.assign(torch.zeros(3), torch.zeros(2, 2), torch.ones(2, 2)),
            r"location has shape \(2, 2\), expected \(3, 2\)",
        ),
    ],
)
def test_bad_questions_are_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(LightBridge(2, 3, 1.0))
