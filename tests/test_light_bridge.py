"""Light bridges: potential, drift, and the numbers that they are made of."""

import pytest
import torch
from lights import (
    FAMILIES,
    double,
    light,
    log_c,
    log_phi,
    log_v,
    published_drift,
    states,
)  # fmt: skip

from genflow.interpolant import BrownianBridge
from genflow.oracle import Exact, entropic
from genflow.process import LightBridge
from genflow.process.light import potential
from genflow.source import GaussianMixture

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
        slope = torch.autograd.grad(value.sum(), x)[0]
        close(made.drift(t, x), made.epsilon * slope)
        assert (made.drift(t, x) - slope).abs().max() > 0.1


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
        assert made.potential.quick(torch.tensor(0.6), x) == (family in ("diagonal", "isotropic"))
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
@pytest.mark.parametrize(
    "family",
    FAMILIES,
)
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
    m0, m1, c0, c1, cross = (
        v[0] for v in (joint.mean0, joint.mean1, joint.cov0, joint.cov1, joint.cross)
    )
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
