"""Static plans against POT's Sinkhorn, Gaussian bridges, and what makes a plan the plan."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mm_pairs import PUBLISHED, between, normal, pair_logs, rows, simulated, stored, van_loan
from torch import distributions as D

from genflow.loss import StaticBridge
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.plan import NotConverged, solve_plan
from genflow.process.reference import Brownian, LotkaVolterra, OrnsteinUhlenbeck

double = torch.float64


def masses(n, seed=0, power=1.0):
    found = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=double) + 0.05
    return found**power / (found**power).sum()


def divergence(plan, mu, logs):
    r""":math:`KL(\pi\,\|\,\mu\otimes\tilde p)`, by its definition."""
    return float((torch.xlogy(plan, plan) - plan * (mu.log()[:, None] + logs)).sum())


def assert_is_the_plan(found, logs, mu, nu, tolerance=1e-6):
    """Its marginals are the data's and ``log(plan / density)`` is a sum of two potentials: by strict
    convexity there is but one such plan."""
    plan = found.log_plan.exp()
    assert 0.5 * float((plan.sum(1) - mu).abs().sum()) <= 1.001 * tolerance
    assert 0.5 * float((plan.sum(0) - nu).abs().sum()) <= 1.001 * tolerance
    away = found.log_plan - logs
    scale = 1 + float(logs.abs().max())
    assert float((away - away[:1] - away[:, :1] + away[0, 0]).abs().max()) < 1e-12 * scale
    torch.testing.assert_close(away, found.left[:, None] + found.right, rtol=1e-12, atol=1e-12 * scale)
    assert found.error <= tolerance
    want = divergence(plan, mu, logs)
    assert float(found.objective) == pytest.approx(want, rel=1e-6, abs=2 * tolerance * scale)


# Without a drift: entropic optimal transport


def sinkhorn(x, y, mu, nu, epsilon, **options):
    cost = (x[:, None] - y).square().sum(2).numpy() / 2
    options = {"numItermax": 20_000, "stopThr": 1e-10, "warn": False} | options
    found = ot.sinkhorn(mu.numpy(), nu.numpy(), cost, epsilon, method="sinkhorn_log", **options)
    return torch.from_numpy(found)


@pytest.mark.parametrize(
    "n, m, d, sigma, span",
    [(12, 17, 2, 0.8, (0.0, 1.0)), (20, 9, 3, 0.5, (1.0, 3.5)), (1, 6, 1, 1, (0, 1))],
)
def test_without_drift_it_is_entropic_transport_as_pot_solves_it(n, m, d, sigma, span):
    x, y, mu, nu = normal(n, d), 1.5 * normal(m, d, seed=1) + 0.7, masses(n), masses(m, 1)
    logs = pair_logs(between(Brownian(d), sigma, x, y, span, mu, nu), 2)
    found = solve_plan(logs, mu, nu, tolerance=1e-10)
    length = span[1] - span[0]
    want = sinkhorn(x, y, mu, nu, sigma**2 * length)
    torch.testing.assert_close(found.log_plan.exp(), want, rtol=1e-6, atol=1e-9)
    assert_is_the_plan(found, logs, mu, nu, 1e-10)
    assert float(found.objective) == pytest.approx(divergence(want, mu, logs), rel=1e-6)
    if n > 1:
        for epsilon in (2 * sigma**2 * length, sigma * length, sigma**2 / length):
            if epsilon != pytest.approx(sigma**2 * length):
                assert (sinkhorn(x, y, mu, nu, epsilon) - want).abs().max() > 1e-3


def test_any_other_plan_with_these_marginals_is_farther_off():
    mu, nu, logs = masses(9), masses(7, 1), 2 * normal(9, 7)
    found = solve_plan(logs, mu, nu, tolerance=1e-10)
    plan, best = found.log_plan.exp(), float(found.objective)
    assert divergence(plan, mu, logs) == pytest.approx(best, abs=1e-8)
    others = [mu[:, None] * nu, solve_plan(logs / 2, mu, nu, tolerance=1e-10).log_plan.exp()]
    draw = np.random.default_rng(0)
    for _ in range(20):  # a corner to and fro keeps the marginals
        (i, k), (j, m) = (draw.choice(size, 2, replace=False) for size in plan.shape)
        moved, step = plan.clone(), 0.3 * float(min(plan[i, m], plan[k, j]))
        moved[i, j] += step
        moved[k, m] += step
        moved[i, m] -= step
        moved[k, j] -= step
        others.append(moved)
    for other in others:
        torch.testing.assert_close(other.sum(1), mu, rtol=0, atol=1e-9)
        assert divergence(other, mu, logs) > best + 1e-9


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(0.1, 30), st.floats(0, 6)
)
def test_any_masses_and_densities(n, m, seed, size, power):
    # powers of up to six: masses over seven orders of magnitude
    mu, nu, logs = masses(n, seed, power), masses(m, seed + 1, power), size * normal(n, m, seed=seed)
    found = solve_plan(logs, mu, nu)
    assert_is_the_plan(found, logs, mu, nu)
    # what depends on one side alone moves the potentials, not the plan
    left, right = 5 * normal(n, seed=seed + 2), 5 * normal(m, seed=seed + 3)
    moved = solve_plan(logs + left[:, None] + right, mu, nu)
    plan, again = found.log_plan.exp(), moved.log_plan.exp()
    assert float((plan - again).abs().sum()) < 1e-3  # as the tolerance and the conditioning allow
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    turned = solve_plan(logs[order], mu[order], nu).log_plan.exp()
    assert float((plan[order] - turned).abs().sum()) < 1e-3


def test_equal_rows_count_as_their_masses():
    x, y = normal(6, 2), normal(5, 2, seed=1) + 1
    twice = torch.cat([x, x[:2], x[:1]])
    mu = rows(3.0, 2, 1, 1, 1, 1) / 9
    nu = masses(5)
    one = solve_plan(pair_logs(between(Brownian(2), 0.6, x, y), 2), mu, nu, tolerance=1e-9)
    even = torch.full((9,), 1 / 9, dtype=double)
    two = solve_plan(pair_logs(between(Brownian(2), 0.6, twice, y), 2), even, nu, tolerance=1e-9)
    plan, whole = one.log_plan.exp(), two.log_plan.exp()
    torch.testing.assert_close(whole[0] + whole[6] + whole[8], plan[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(whole[3], plan[3], rtol=1e-6, atol=1e-9)
    assert float(one.objective) == pytest.approx(float(two.objective), abs=1e-7)


@pytest.mark.parametrize("far", [3.0, 10.0, 40.0, 200.0])
@pytest.mark.parametrize("n, m", [(30, 30), (25, 40)])
def test_clouds_many_sigma_apart_are_joined(n, m, far):
    sigma = 0.1  # clouds of a spread of three sigma, at a distance of far sigma
    x, y = 0.3 * normal(n, 2), 0.3 * normal(m, 2, seed=1) + far * sigma
    mu, nu = masses(n), masses(m, 1)
    logs = pair_logs(between(Brownian(2), sigma, x, y, (0.0, 1.0)), 2)
    found = solve_plan(logs, mu, nu)
    assert_is_the_plan(found, logs, mu, nu)
    # a common shift is taken up by potentials: the plan is that of clouds in one place
    near = solve_plan(pair_logs(between(Brownian(2), sigma, x, y - far * sigma), 2), mu, nu)
    assert float((found.log_plan.exp() - near.log_plan.exp()).abs().sum()) < 1e-4


@pytest.mark.parametrize("spread", [20.0, 60.0])
def test_clouds_as_wide_as_many_sigma_are_joined(spread):
    # nearly a permutation; plain updates would take millions
    x, y = spread * normal(40, 2), spread * normal(40, 2, seed=1)
    mu = nu = torch.full((40,), 1 / 40, dtype=double)
    logs = pair_logs(between(Brownian(2), 1.0, x, y), 2)
    found = solve_plan(logs, mu, nu)
    assert_is_the_plan(found, logs, mu, nu)
    exact = ot.emd2(mu.numpy(), nu.numpy(), (x[:, None] - y).square().sum(2).numpy() / 2)
    cost = float((found.log_plan.exp() * (x[:, None] - y).square().sum(2) / 2).sum())
    assert exact - 1e-4 * spread**2 <= cost <= exact + 40  # entropy moves it by a few epsilon


@pytest.mark.parametrize("n, m, spread", [(30, 30, 30.0), (50, 60, 30.0), (30, 30, 100.0)])
def test_wide_clouds_of_unequal_masses_are_joined(n, m, spread):
    # the plan is nearly a tree: its parts hang together by all but nothing
    seed = 1 if (n, spread) != (30, 30.0) else 0
    mu, nu = masses(n, seed), masses(m, seed + 50)
    x, y = spread * normal(n, 2, seed=seed), spread * normal(m, 2, seed=seed + 20)
    logs = pair_logs(between(Brownian(2), 1.0, x, y), 2)
    assert_is_the_plan(solve_plan(logs, mu, nu, iterations=2000), logs, mu, nu)


def test_more_points_than_newton_takes():
    x, y = 0.2 * normal(900, 2), 0.2 * normal(700, 2, seed=1) + 3
    mu, nu = masses(900), masses(700, 1)
    logs = pair_logs(between(Brownian(2), 0.3, x, y), 2)
    assert_is_the_plan(solve_plan(logs, mu, nu), logs, mu, nu)


def test_a_warm_start_gives_the_same_answer():
    mu, nu, logs = masses(15), masses(12, 1), 4 * normal(15, 12)
    cold = solve_plan(logs, mu, nu, tolerance=1e-10)
    for start in (cold.right, cold.right + 7.0, 3 * normal(12, seed=5), torch.zeros(12, dtype=double)):
        warm = solve_plan(logs, mu, nu, start, tolerance=1e-10)
        torch.testing.assert_close(warm.log_plan.exp(), cold.log_plan.exp(), rtol=1e-6, atol=1e-10)
        assert float(warm.objective) == pytest.approx(float(cold.objective), abs=1e-8)
    # and one update of it is enough
    assert solve_plan(logs, mu, nu, cold.right, 1e-9, iterations=1).error <= 1e-9


def test_what_does_not_converge_says_so():
    mu, nu, logs = masses(15), masses(12, 1), 30 * normal(15, 12)
    with pytest.raises(NotConverged, match=r"marginal error of .* after \d+ updates.* 1e-12") as caught:
        solve_plan(logs, mu, nu, tolerance=1e-12, iterations=1)
    sentence = str(caught.value)
    assert "\n" not in sentence and "raise iterations or tolerance of StaticBridge" in sentence
    assert issubclass(NotConverged, RuntimeError)
    logs[3, 4] = math.nan
    with pytest.raises(NotConverged, match="nan"):  # at once, not after all updates
        solve_plan(logs, mu, nu)


# Gaussian bridges


def weights_of(line, mean, spread):
    found = D.Normal(mean, spread).log_prob(line).exp()
    return found / found.sum()


@pytest.mark.parametrize("rate, shift", [(0.0, 0.0), (-1.2, 0.8), (0.9, -0.5)])
def test_gaussian_bridges_in_one_dimension(rate, shift):
    r"""With precision :math:`-\phi/v` between the ends, whatever the marginals: the covariance solves
    :math:`cv = \phi(s_0^2s_1^2 - c^2)`."""
    sigma, time, step = 0.7, 1.5, 0.08
    (m0, s0), (m1, s1) = (0.4, 0.8), (-0.3, 0.6)
    x = torch.arange(m0 - 7 * s0, m0 + 7 * s0, step, dtype=double)
    y = torch.arange(m1 - 7 * s1, m1 + 7 * s1, step, dtype=double)
    mu, nu = weights_of(x, m0, s0), weights_of(y, m1, s1)
    reference = OrnsteinUhlenbeck(1, [[rate]], [shift])
    logs = pair_logs(between(reference, sigma, x[:, None], y[:, None], (0.0, time)), 40)
    found = solve_plan(logs, mu, nu, tolerance=1e-9)
    plan = found.log_plan.exp()

    phi, offset, gained = (float(v.flatten()) for v in van_loan([[rate]], [shift], time))
    v = sigma**2 * gained
    c = (math.sqrt(v**2 + 4 * phi**2 * s0**2 * s1**2) - v) / (2 * phi)
    assert c * v == pytest.approx(phi * (s0**2 * s1**2 - c**2))
    assert float((x - m0) @ plan @ (y - m1)) == pytest.approx(c, abs=2e-6)
    joint = D.MultivariateNormal(rows(m0, m1), rows([s0**2, c], [c, s1**2]))
    points = torch.cartesian_prod(x, y)
    want = (joint.log_prob(points).exp() * step**2).view_as(plan)
    torch.testing.assert_close(plan, want, rtol=0, atol=1e-7)

    free = D.MultivariateNormal(
        rows(m0, phi * m0 + offset),
        rows([s0**2, phi * s0**2], [phi * s0**2, phi**2 * s0**2 + v]),
    )
    # a grid has masses, the law a density: they are a cell apart
    objective = float(D.kl_divergence(joint, free)) + math.log(step)
    assert float(found.objective) == pytest.approx(objective, abs=2e-5)
    wrong = (math.sqrt(v**2 / sigma**4 + 4 * phi**2 * s0**2 * s1**2) - v / sigma**2) / (2 * phi)
    assert abs(wrong - c) > 0.05  # sigma^2 forgotten


def test_a_gaussian_bridge_in_the_plane():
    matrix, shift, sigma, time = [[-0.5, 1.1], [-0.8, 0.2]], [0.6, -0.3], 0.9, 1.2
    line = torch.arange(-3.6, 3.61, 0.4, dtype=double)
    z = torch.cartesian_prod(line, line)
    root0, root1 = rows([0.8, 0.0], [0.3, 0.6]), rows([0.5, 0.0], [-0.4, 0.7])
    x, y = z @ root0.mT, z @ root1.mT + 1
    mu = nu = D.Normal(0.0, 1.0).log_prob(z).sum(1).softmax(0)
    logs = pair_logs(between(OrnsteinUhlenbeck(2, matrix, shift), sigma, x, y, (0.0, time)), 30)
    plan = solve_plan(logs, mu, nu, tolerance=1e-8).log_plan.exp()
    away = torch.cat([x - mu @ x, y - nu @ y], 1), plan
    cross = away[0][:, :2].mT @ plan @ away[0][:, 2:]
    sides = [(away[0][:, s].mT * mu) @ away[0][:, s] for s in (slice(0, 2), slice(2, 4))]
    covariance = torch.cat([torch.cat([sides[0], cross], 1), torch.cat([cross.mT, sides[1]], 1)])
    phi, _, gained = van_loan(matrix, shift, time)
    precision = torch.linalg.inv(covariance)[:2, 2:]
    want = -phi.mT @ torch.linalg.inv(sigma**2 * gained)
    torch.testing.assert_close(precision, want, rtol=0, atol=2e-3)
    assert (precision - want.mT).abs().max() > 0.1


# The objective at the truth


RATES = {"LV": [1.0, 0.4, 0.4, 0.1], "repres": [10.0, 3.0, 1.0, 1.0]}


def fields(name):
    """Drift and Jacobian of one family in plain numpy, for many states."""
    if name == "LV":
        alpha, beta, gamma, delta = RATES[name]

        def drift(x):
            met = x[:, 0] * x[:, 1]
            return np.stack([alpha * x[:, 0] - beta * met, delta * met - gamma * x[:, 1]], 1)

        def slope(x):
            rows = [
                [alpha - beta * x[:, 1], -beta * x[:, 0]],
                [delta * x[:, 1], delta * x[:, 0] - gamma],
            ]
            return np.moveaxis(np.array(rows), 2, 0)

        return drift, slope

    def drift(x):
        return 10 / (1 + np.maximum(np.roll(x, 1, 1), 0) ** 3) - x

    def slope(x):
        found = -np.eye(3) * np.ones((len(x), 1, 1))
        for i in range(3):
            before = np.maximum(x[:, i - 1], 0)
            found[:, i, i - 1] += -30 * before**2 / (1 + before**3) ** 2
        return found

    return drift, slope


def textbook_objective(name, xs, times, steps=16, forget=False):
    r"""The published form: :math:`\Psi G\Psi^\top` with an inverse, and POT's plan; without the
    constant :math:`2\pi`. ``forget``: a covariance without sigma^2."""
    drift, slope = fields(name)
    total, scale = 0.0, 1.0 if forget else 0.01

    def rates(m, psi, g):
        back = np.linalg.inv(psi)
        return drift(m), slope(m) @ psi, back @ back.swapaxes(1, 2)

    for x, y, length in zip(xs[:-1], xs[1:], np.diff(times)):
        h, d = length / steps, x.shape[1]
        state = (x.numpy(), np.eye(d) * np.ones((len(x), 1, 1)), np.zeros((len(x), d, d)))
        for _ in range(steps):
            one = rates(*state)
            two = rates(*(v + h / 2 * k for v, k in zip(state, one)))
            three = rates(*(v + h / 2 * k for v, k in zip(state, two)))
            four = rates(*(v + h * k for v, k in zip(state, three)))
            slopes = (a + 2 * b + 2 * c + e for a, b, c, e in zip(one, two, three, four))
            state = tuple(v + h / 6 * k for v, k in zip(state, slopes))
        mean, psi, g = state
        covariance = scale * psi @ g @ psi.swapaxes(1, 2)
        away = y.numpy() - mean[:, None]
        far = np.einsum("nmi,nij,nmj->nm", away, np.linalg.inv(covariance), away)
        logs = -far / 2 - np.linalg.slogdet(covariance)[1][:, None] / 2
        even = [np.full(len(v), 1 / len(v)) for v in (x, y)]
        plan = ot.sinkhorn(
            *even, -logs, 1.0, method="sinkhorn_log", numItermax=5000, stopThr=1e-4, warn=False
        )
        total += (plan * (np.log(np.maximum(plan, 1e-300)) - np.log(even[0])[:, None] - logs)).sum()
    return total


def objective(reference, xs, times, steps=16):
    """Ours, without the constant."""
    bridge = MultiMarginalBridge(reference, 0.1, times=times, steps=steps)
    return without_constant(float(StaticBridge()(bridge, *xs)), xs)


def without_constant(total, xs):
    return total - (len(xs) - 1) * xs[0].shape[1] * math.log(2 * math.pi) / 2


def flat_objective(xs, times):
    """By hand, with a Jacobian of zeros, which a bridge refuses."""

    class Flat(LotkaVolterra):
        def jacobian(self, t, x, values=None):
            return torch.zeros(*x.shape, 2, dtype=x.dtype)

    reference, total = Flat(*RATES["LV"]), 0.0
    with pytest.raises(ValueError, match="Flat: the Jacobian of its drift disagrees"):
        objective(reference, xs, times)
    for x, y, span in zip(xs[:-1], xs[1:], zip(times[:-1], times[1:])):
        interval = between(reference, 0.1, x, y, span)
        total += float(solve_plan(pair_logs(interval, 16), interval.mu, interval.nu).objective)
    return without_constant(total, xs)


@pytest.mark.parametrize("where", ["simulated", "stored"])
@pytest.mark.parametrize("name, figure", [("LV", -23.04), ("repres", -33.12)])
def test_the_objective_at_the_truth(name, figure, where):
    xs, times = {"simulated": simulated, "stored": stored}[where](name)
    found = objective(PUBLISHED[name][0](), xs, times)
    assert found == pytest.approx(figure, abs=0.05)
    assert found == pytest.approx(textbook_objective(name, xs, times), abs=0.02)


def test_the_objective_of_other_snapshots_and_of_wrong_references():
    xs, times = simulated("LV", seed=3)
    found = objective(LotkaVolterra(*RATES["LV"]), xs, times)
    assert found == pytest.approx(textbook_objective("LV", xs, times), abs=0.01)
    assert abs(textbook_objective("LV", xs, times, forget=True) - found) > 1
    for k in range(4):  # the truth is near its optimum
        rates = list(RATES["LV"])
        rates[k] *= 1.1
        assert objective(LotkaVolterra(*rates), xs, times) > found + 0.5
    assert objective(Brownian(2), xs, times) > found + 100  # it misses the data by many sigma
    assert abs(flat_objective(xs, times) - found) > 1
