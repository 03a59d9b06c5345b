"""Moments of a population against matrix exponentials, a library's solver, and simulation."""

import math

import pytest
import torch
from populations import START, TIMES, TRUTH, double
from scipy.integrate import solve_ivp

from genflow.population import population_moments, simulate
from genflow.process.reference import Brownian, OrnsteinUhlenbeck

MEAN = torch.tensor([5.05, 4.05], dtype=double)
COVARIANCE = 0.01 / 12 * torch.eye(2, dtype=double)


def moments(reference=TRUTH, mean=MEAN, covariance=COVARIANCE, sigma=0.1, times=TIMES, **options):
    with torch.no_grad():
        return population_moments(
            reference, reference.values(), mean, covariance, sigma, times, **options
        )


def affine(generator):
    matrix = torch.tensor([[-0.5, 1.0], [-1.0, -0.2]], dtype=double)
    shift = torch.tensor([0.3, -0.4], dtype=double)
    root = torch.randn(2, 2, generator=generator, dtype=double)
    return matrix, shift, torch.tensor([1.0, 2.0], dtype=double), root @ root.mT


@pytest.mark.parametrize("closure", ["cubature", "linear"])
def test_affine_moments_are_matrix_exponentials(closure, generator):
    """Van Loan's block exponential for the covariance, an augmented state for the mean."""
    matrix, shift, mean, covariance = affine(generator)
    reference = OrnsteinUhlenbeck(2, matrix.tolist(), shift.tolist())
    found = moments(reference, mean, covariance, 0.7, (0.0, 0.3, 1.0, 2.5), closure=closure, steps=40)
    for k, t in enumerate((0.0, 0.3, 1.0, 2.5)):
        whole = torch.zeros(3, 3, dtype=double)
        whole[:2, :2], whole[:2, 2] = matrix, shift
        pushed = torch.linalg.matrix_exp(whole * t)
        blocks = torch.cat([torch.cat([-matrix, 0.49 * torch.eye(2)], 1), torch.zeros(2, 4)])
        blocks[2:, 2:] = matrix.mT
        e = torch.linalg.matrix_exp(blocks * t)
        noise = e[2:, 2:].mT @ e[:2, 2:]
        want = pushed[:2, :2] @ covariance @ pushed[:2, :2].mT + noise
        torch.testing.assert_close(
            found[0][k], pushed[:2, :2] @ mean + pushed[:2, 2], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(found[1][k], want, atol=1e-6, rtol=0)
        if k:  # noise is seen
            assert float((found[1][k] - want + noise).abs().max()) > 0.1


def by_hand(times, sigma=0.1):
    """Gaussian moment equations of Lotka-Volterra, written out, by a library's solver."""
    alpha, beta, gamma, delta = 1.0, 0.4, 0.4, 0.1

    def rate(t, y):
        a, b, aa, ab, bb = y
        met, with_a, with_b = a * b + ab, a * ab + b * aa, a * bb + b * ab
        return [
            alpha * a - beta * met,
            delta * met - gamma * b,
            2 * (alpha * aa - beta * with_a) + sigma**2,
            (alpha - gamma) * ab - beta * with_b + delta * with_a,
            2 * (delta * with_b - gamma * bb) + sigma**2,
        ]

    start = [5.05, 4.05, 0.01 / 12, 0.0, 0.01 / 12]
    found = solve_ivp(rate, (0, times[-1]), start, t_eval=times, rtol=1e-10, atol=1e-12).y
    found = torch.tensor(found).mT
    return found[:, :2], found[:, [2, 3, 3, 4]].unflatten(1, (2, 2))


def test_cubature_is_exact_for_quadratic_drifts():
    means, covariances = by_hand(TIMES)
    found = moments(steps=64)
    torch.testing.assert_close(found[0], means, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], covariances, atol=1e-6, rtol=0)
    few = moments(steps=8)  # the default: far below a standard error of 50 particles
    assert float(((few[0] - means).abs() / covariances.diagonal(dim1=1, dim2=2).sqrt()).max()) < 1e-3
    linear = moments(steps=64, closure="linear")
    assert float((linear[0] - means).abs().max()) > 0.02  # the mean of a curved drift is another
    short = TIMES[:3]  # small steps of a simulator come near
    fine, plain_fine = (moments(times=short, dt=2e-3, closure=c) for c in ("cubature", "linear"))
    torch.testing.assert_close(fine[0], means[:3], atol=5e-3, rtol=0)
    torch.testing.assert_close(plain_fine[0], linear[0][:3], atol=5e-3, rtol=0)
    torch.testing.assert_close(plain_fine[1], linear[1][:3], atol=5e-4, rtol=0)


def test_with_the_step_of_a_simulator_they_are_those_of_its_recursion(generator):
    n = 20_000
    x = simulate(TRUTH, 0.1, (0.0, 2.0), [n, n], START, 0.02, generator)[1]
    error = x.std(0) / math.sqrt(n)
    own, continuous = (moments(times=(0.0, 2.0), dt=dt) for dt in (0.02, None))
    assert float(((x.mean(0) - own[0][1]) / error).abs().max()) < 3.5
    assert float(((x.mean(0) - continuous[0][1]) / error).abs().max()) > 10
    torch.testing.assert_close(own[1][1], x.mT.cov(), atol=6e-4, rtol=0)


def test_a_start_in_a_point_spreads():
    found = moments(Brownian(3), torch.zeros(3, dtype=double), 1e-12 * torch.eye(3), 0.5, (0.0, 2.0))
    torch.testing.assert_close(found[1][1], 0.5 * torch.eye(3, dtype=double))


@pytest.mark.parametrize("closure", ["cubature", "linear"])
@pytest.mark.parametrize("dt", [None, 0.1])
def test_moments_have_gradients(closure, dt):
    def called(alpha, mean):
        values = {**{k: v.detach() for k, v in TRUTH.values().items()}, "alpha": alpha}
        return population_moments(TRUTH, values, mean, COVARIANCE, 0.1, (0.0, 0.5), 2, closure, dt)

    alpha = torch.tensor(0.9, dtype=double, requires_grad=True)
    assert torch.autograd.gradcheck(called, (alpha, MEAN.clone().requires_grad_()))
