"""Linearised references against matrix exponentials, quadrature, and integrators of scipy."""

import math

import numpy as np
import pytest
import torch
from mm_pairs import Season, between, normal, pair_logs, predators, rows, slopes, triple, van_loan
from scipy.integrate import quad, solve_ivp
from torch import distributions as D

from genflow.process.multimarginal import interval as interval_module
from genflow.process.multimarginal.interval import log_densities, transitions
from genflow.process.multimarginal.linear_noise import LinearNoise, cholesky, log_density
from genflow.process.reference import Brownian, LotkaVolterra, OrnsteinUhlenbeck, Repressilator

double = torch.float64
MATRIX = [[-0.6, 1.4, 0.0], [-0.9, 0.2, 0.5], [0.3, -0.4, -1.1]]
SHIFT = [0.5, -1.0, 0.2]


def even(start, stop, steps):
    return torch.linspace(start, stop, steps + 1, dtype=double)


def along(reference, x, times):
    with torch.no_grad():
        return LinearNoise.along(reference, x, times)


def product(step):
    """Of all steps, the last on the left."""
    found = torch.eye(step.shape[-1], dtype=double)
    for a in step:
        found = a @ found
    return found


def errors(reference, x, time, want, steps):
    """Of transition, mean and covariance at the end."""
    lines = along(reference, x, even(0.5, 0.5 + time, steps))
    mean, gained = lines.end()
    found = product(lines.step), mean, gained
    return [float((f - w).abs().max()) for f, w in zip(found, want)]


# Affine drifts


def test_affine_drifts_are_exact_to_fourth_order():
    reference, x = OrnsteinUhlenbeck(3, MATRIX, SHIFT), normal(4, 3)
    phi, mean, spread = van_loan(MATRIX, SHIFT, 1.5)
    want = phi, x @ phi.mT + mean, spread
    coarse, fine, finest = (errors(reference, x, 1.5, want, steps) for steps in (8, 16, 64))
    for kind in range(3):
        assert 12 < coarse[kind] / fine[kind] < 24  # 2^4 where steps are halved
        assert finest[kind] < 1e-7
    wrong = van_loan(np.transpose(MATRIX), SHIFT, 1.5)
    assert (wrong[2] - spread).abs().max() > 0.01  # nor would J' do in place of J


def season(start, stop):
    """Transition, mean from 0 and covariance of ``x' = cos(t) x + 1`` by quadrature."""

    def onward(u, power=1):
        return math.exp(power * (math.sin(stop) - math.sin(u)))

    mean, spread = (quad(onward, start, stop, args=(power,))[0] for power in (1, 2))
    return onward(start), mean, spread


def test_the_clock_is_read_inside_steps():
    x = rows([-0.7], [1.3])
    phi, mean, spread = season(0.5, 2.5)
    want = rows([phi]), phi * x + mean, rows([spread])
    coarse, fine = (errors(Season(), x, 2.0, want, steps) for steps in (8, 16))
    for kind in range(3):
        assert 11 < coarse[kind] / fine[kind] < 25 and fine[kind] < 2e-4
    late = season(0.6, 2.6)
    assert abs(late[0] - phi) > 0.02 and abs(late[2] - spread) > 0.02  # a shifted clock shows


def test_every_start_may_have_its_own_grid():
    x = normal(3, 1)
    grids = torch.stack([even(0.0, 1.0, 20), even(0.5, 2.5, 20), even(1.0, 1.3, 20).pow(2)], 1)
    mean, gained = along(Season(), x, grids).end()
    for k, (start, stop) in enumerate([(0.0, 1.0), (0.5, 2.5), (1.0, 1.69)]):
        phi, offset, spread = season(start, stop)
        assert float(mean[k]) == pytest.approx(phi * float(x[k]) + offset, rel=1e-5)
        assert float(gained[k]) == pytest.approx(spread, rel=1e-5)
        own = along(Season(), x[k : k + 1], grids[:, k])
        torch.testing.assert_close(mean[k : k + 1], own.mean[-1], rtol=1e-13, atol=0)


def test_no_drift_is_exact_in_one_step():
    lines = along(Brownian(2), normal(3, 2), rows(0.0, 0.7))
    mean, gained = lines.end()
    assert torch.equal(mean, normal(3, 2))
    torch.testing.assert_close(gained, 0.7 * torch.eye(2, dtype=double).expand(3, 2, 2))


# What remains


@pytest.mark.parametrize("reference", [predators(), triple()], ids=["predators", "tilted"])
def test_what_remains_is_products_and_sums_of_steps(reference):
    lines = along(reference, normal(3, 2).abs() + 0.5, even(0.0, 1.2, 9))
    phi, gained = lines.remaining()
    step, noise = lines.step.numpy(), lines.noise.numpy()
    assert phi.shape == gained.shape == (10, 3, 2, 2)
    for n in range(3):
        for k in range(10):
            ahead = [np.eye(2)]  # from the ends of steps 9, 8, ..., k + 1
            for a in step[:k:-1, n]:
                ahead.append(ahead[-1] @ a)
            total = sum(p @ q @ p.T for p, q in zip(ahead, noise[::-1, n][: 9 - k]))
            whole = ahead[-1] @ step[k, n] if k < 9 else np.eye(2)
            np.testing.assert_allclose(phi[k, n], whole, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(gained[k, n], total, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gained[0], lines.end()[1], rtol=1e-12, atol=0)


def test_what_remains_of_an_affine_drift_is_its_exponential():
    lines = along(OrnsteinUhlenbeck(3, MATRIX, SHIFT), normal(2, 3), even(0.0, 1.5, 60))
    phi, gained = lines.remaining()
    for k in (0, 20, 59):
        want = van_loan(MATRIX, SHIFT, 1.5 - k / 40)
        torch.testing.assert_close(phi[k], want[0].expand(2, 3, 3), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gained[k], want[2].expand(2, 3, 3), rtol=1e-6, atol=1e-7)


def test_long_contraction_neither_overflows_nor_vanishes():
    matrix, shift, span = [[-20.0, 1.0], [0.0, -20.0]], [40.0, 0.0], (0.0, 20.0)
    reference, x = OrnsteinUhlenbeck(2, matrix, shift), normal(3, 2)
    lines = along(reference, x, even(*span, 800))
    phi, gained = lines.remaining()
    assert bool(torch.isfinite(phi).all()) and bool(torch.isfinite(gained).all())
    mean, spread = van_loan(matrix, shift, 5.0)[1:]
    torch.testing.assert_close(gained[0], spread.expand(3, 2, 2), rtol=0.01, atol=1e-3)
    torch.testing.assert_close(lines.end()[1], gained[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lines.mean[-1], mean.expand(3, 2), rtol=1e-9, atol=1e-9)
    # from the start on, as in the textbooks, an inverse of e^{-400} is squared
    assert not torch.isfinite(textbook(reference, x, 800, span)[1]).any()


def test_long_expansion_does_not_overflow():
    reference, x = OrnsteinUhlenbeck(2, [[20.0, 0.0], [0.0, -20.0]], [1.0, 1.0]), normal(3, 2)
    y = normal(4, 2, seed=1)
    logs = pair_logs(between(reference, 0.3, x, y, (0.0, 10.0)), 1000)
    # one coordinate at a time: the first spreads to e^{200}, before which y is nothing
    grown, spread = math.exp(200), 0.3 * math.exp(200) / math.sqrt(40)
    first = D.Normal((x[:, :1] + 1 / 20) * grown, spread).log_prob(torch.zeros(3, 1, dtype=double))
    second = D.Normal(1 / 20, 0.3 / math.sqrt(40)).log_prob(y[:, 1])
    torch.testing.assert_close(logs, first + second, rtol=1e-3, atol=0.01)


# Nonlinear drifts


def flow(function, start, stop):
    """The end of an ordinary differential equation, by scipy."""

    def run(x):
        ends = [
            solve_ivp(lambda t, z: function(t, z), (start, stop), row, rtol=1e-11, atol=1e-11).y[:, -1]
            for row in x.numpy()
        ]
        return torch.tensor(np.array(ends))

    return run


def hunt(t, z):
    return [z[0] - 0.4 * z[0] * z[1], 0.1 * z[0] * z[1] - 0.4 * z[1]]


class Flat(LotkaVolterra):
    """Wrong on purpose: what a ``detach`` makes of the Jacobian."""

    def jacobian(self, t, x, values=None):
        return torch.zeros(*x.shape, 2, dtype=x.dtype)


def test_means_and_transitions_are_the_flow_and_its_derivative():
    x = rows([5.0, 4.0], [2.0, 3.0])
    run = flow(hunt, 0.0, 2.0)
    want = slopes(run, x, 1e-4)
    lines = along(predators(), x, even(0.0, 2.0, 100))
    torch.testing.assert_close(lines.mean[-1], run(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(product(lines.step), want, rtol=1e-5, atol=1e-5)
    wrong = along(Flat(1.0, 0.4, 0.4, 0.1), x, even(0.0, 2.0, 100))
    torch.testing.assert_close(wrong.mean, lines.mean)  # in silence
    assert (product(wrong.step) - want).abs().max() > 0.3
    assert (wrong.end()[1] - lines.end()[1]).abs().max() > 0.3


def test_noise_is_what_small_noise_does():
    # covariance of end states over sigma^2, by simulation with a small sigma
    x, sigma, n, steps = rows([5.0, 4.0]), 1e-3, 20_000, 200
    draw, state, h = torch.Generator().manual_seed(3), x.expand(n, 2).clone(), 1 / 200
    reference = predators()
    with torch.no_grad():
        for _ in range(steps):
            dw = sigma * h**0.5 * torch.randn(n, 2, generator=draw, dtype=double)
            first = reference(0.0, state)
            state = state + h / 2 * (first + reference(0.0, state + h * first + dw)) + dw
    gained = along(reference, x, even(0.0, 1.0, 40)).end()[1][0]
    away = (state - state.mean(0)) / sigma
    products = (away[:, :, None] * away[:, None]).flatten(1)
    error = products.std(0) / n**0.5
    assert ((products.mean(0) - gained.flatten()).abs() < 4.5 * error).all()
    wrong = along(Flat(1.0, 0.4, 0.4, 0.1), x, even(0.0, 1.0, 40)).end()[1][0]
    assert ((products.mean(0) - wrong.flatten()).abs() > 20 * error).any()


# Densities


def textbook(reference, x, steps, span, wrong=False):
    r"""Mean and :math:`\Psi G\Psi^\top`, with :math:`G = \int\Psi^{-1}\Psi^{-\top}`, by another rule
    (Heun's, many steps); wrong: with :math:`\Psi` in place of its inverse."""
    h, m = (span[1] - span[0]) / steps, x.clone()
    eye = torch.eye(x.shape[1], dtype=double).expand(len(x), -1, -1)
    psi, g = eye, torch.zeros_like(eye)

    def rates(m, psi):
        back = psi if wrong else torch.linalg.inv(psi)
        return reference(0.0, m), reference.jacobian(0.0, m) @ psi, back @ back.mT

    with torch.no_grad():
        for _ in range(steps):
            one = rates(m, psi)
            two = rates(m + h * one[0], psi + h * one[1])
            m, psi, g = (v + h / 2 * (a + b) for v, a, b in zip((m, psi, g), one, two))
    return m, psi @ g @ psi.mT


def laws(mean, covariance, y):
    """By torch's own law, ``(n, m)``."""
    return D.MultivariateNormal(mean[:, None], covariance[:, None]).log_prob(y)


@pytest.mark.parametrize("sigma", [0.1, 2.5])
def test_densities_carry_sigma_squared_and_the_inverse_of_the_transition(sigma):
    reference, x, span = predators(), rows([5.0, 4.0], [2.0, 3.0]), (0.0, 1.0)
    mean, covariance = textbook(reference, x, 400, span)
    y = mean + sigma * normal(2, 2)
    found = pair_logs(between(reference, sigma, x, y, span), 60)
    torch.testing.assert_close(found, laws(mean, sigma**2 * covariance, y), rtol=1e-3, atol=1e-3)
    turned = textbook(reference, x, 400, span, wrong=True)[1]
    for wrong in (covariance, sigma * covariance, sigma**2 * turned):
        assert (laws(mean, wrong, y) - found).abs().max() > 0.05


def test_densities_of_an_affine_drift_are_exact():
    reference, x, y = OrnsteinUhlenbeck(3, MATRIX, SHIFT), normal(6, 3), normal(4, 3, seed=1)
    phi, mean, spread = van_loan(MATRIX, SHIFT, 1.5)
    found = pair_logs(between(reference, 0.7, x, y, (2.0, 3.5)), 60)
    want = laws(x @ phi.mT + mean, (0.49 * spread).expand(6, 3, 3), y)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_density_is_that_of_torch_in_blocks_of_any_size(d):
    mean, y = 3 * normal(9, d), 3 * normal(5, d, seed=1)
    root = normal(9, d, d, seed=2)
    covariance = root @ root.mT + 0.1 * torch.eye(d, dtype=double)
    want = laws(mean, covariance, y)
    for chunk in (1 << 24, 3 * 5 * d, 5 * d, 1):
        torch.testing.assert_close(log_density(mean, covariance, y, chunk), want)


def test_a_matrix_that_is_no_covariance_is_refused():
    good = torch.eye(2, dtype=double).expand(3, 2, 2).clone()
    torch.testing.assert_close(cholesky(4 * good), 2 * good)
    good[1, 0, 0] = -1e-9
    with pytest.raises(FloatingPointError, match="not positive definite: .*; use more steps") as caught:
        log_density(normal(3, 2), good, normal(2, 2))
    assert "\n" not in str(caught.value)


def test_runaway_paths_are_named_by_family_state_and_time():
    reference = LotkaVolterra(1.0, 0.4, 0.4, 300.0)
    with pytest.raises(FloatingPointError, match=r"LotkaVolterra leads from the state \(.*\) at time"):
        along(reference, rows([5.0, 4.0]), even(2.0, 4.0, 30))
    x = rows([5.0, 4.0], [math.inf, 1.0])
    with pytest.raises(FloatingPointError, match=r"\(inf, 1\) at time 2 to .* take more steps"):
        along(predators(), x, even(2.0, 4.0, 30))


@pytest.mark.parametrize(
    "reference, x",
    [
        (predators(), [[5.0, 4.0], [2.0, 3.0]]),
        (Repressilator([5.0, 6.0, 4.0], 2.0, 1.0, 0.8), [[1.0, 2.0, 0.5], [2.0, 1.0, 3.0]]),
        (OrnsteinUhlenbeck(3, MATRIX, SHIFT), [[1.0, 2.0, 0.5], [2.0, 1.0, 3.0]]),
    ],
    ids=["predators", "genes", "affine"],
)
def test_gradients_of_densities_are_differences(reference, x):
    x = rows(*x)
    interval = between(reference, 0.8, x, x.flip(0) + 0.5, (0.0, 0.8))
    weight = normal(2, 2)

    def value():
        return (next(log_densities([interval], 12)) * weight).sum()

    parameters = list(reference.parameters())
    found = torch.autograd.grad(value(), parameters)
    for p, slope in zip(parameters, found):
        for k in range(p.numel()):
            ends = []
            for h in (1e-5, -2e-5):  # there, and back past where it was
                with torch.no_grad():
                    p.view(-1)[k] += h
                    ends.append(value())
            with torch.no_grad():
                p.view(-1)[k] += 1e-5
            want = float(ends[0] - ends[1]) / 2e-5
            assert float(slope.view(-1)[k]) == pytest.approx(want, rel=1e-5, abs=1e-6)


def course():
    """Three intervals of unequal sizes and lengths; the drift has a clock, so that mixing them up
    shows."""
    xs = [normal(n, 1, seed=n) for n in (7, 4, 6, 5)]
    spans = [(0.0, 0.5), (0.5, 2.0), (2.0, 2.3)]
    return [between(Season(), 0.4, *pair, span) for *pair, span in zip(xs[:-1], xs[1:], spans)]


def test_intervals_are_followed_together_as_alone(monkeypatch):
    steps, intervals = 10, course()
    want = [pair_logs(v, steps) for v in intervals]
    for v, logs in zip(intervals, want):
        phi, offset, spread = season(*v.span)
        mean = phi * v.x0 + offset
        law = D.Normal(mean, 0.4 * math.sqrt(spread)).log_prob(v.x1[:, 0])
        torch.testing.assert_close(logs, law, rtol=1e-3, atol=1e-2)
    for size in (1 << 23, 1, steps * 3, steps * 7):  # together, and in blocks of 1, 3 and 7 rows
        monkeypatch.setattr(interval_module, "BLOCK", size)
        with torch.no_grad():
            found = list(log_densities(intervals, steps))
            places = [[part[2] for part in parts] for parts in transitions(intervals, steps)]
        for logs, expected in zip(found, want, strict=True):
            torch.testing.assert_close(logs, expected, rtol=1e-12, atol=1e-12)
        starts = [[s.start for s in own] for own in places]
        assert starts[0] == list(range(0, 7, min(7, max(1, size // steps))))


def test_blocks_of_starts_change_nothing(monkeypatch):
    interval = between(predators(), 0.1, normal(7, 2) / 10 + 4, normal(5, 2) / 10 + 3)
    whole = pair_logs(interval, 10)
    for size in (1, 10 * 4 * 3, 10 * 4 * 7):  # blocks of 1, 3 and 7
        monkeypatch.setattr(interval_module, "BLOCK", size)
        torch.testing.assert_close(pair_logs(interval, 10), whole, rtol=1e-12, atol=1e-12)
    assert [s.start for s in interval.blocks(10)] == [0]
    monkeypatch.setattr(interval_module, "BLOCK", 120)
    assert [s.start for s in interval.blocks(10)] == [0, 3, 6]
