"""Control variates: stated means, closed forms, bounds; moments and their gradients."""

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from spheres import draw, known, nodes, pair, repeated, score

from genflow.directions import Isotropic, Orthogonal
from genflow.variate import (
    Harmonics,
    Lower,
    Moments,
    Quadratic,
    Several,
    TwoLevel,
    Upper,
    add_gradient,
    moments,
)

EVERY = [
    Lower(), Upper(), Quadratic(), TwoLevel(), Harmonics(2), Harmonics(),
    Several([Lower(), TwoLevel(), Harmonics(2)]),
]  # fmt: skip
every = pytest.mark.parametrize("variate", EVERY, ids=str)


def forms(theta, m):
    """``theta'm`` and the two projected variances, by einsum in numpy."""
    theta, step, *covs = (z.numpy() for z in (theta, m.step[0], m.cov_x[0], m.cov_y[0]))
    return theta @ step, *(np.einsum("li,ij,lj->l", theta, cov, theta) for cov in covs)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@every
def test_features_average_to_zero_over_the_sphere(variate, p, d):
    theta, weight = nodes(d)
    if variate == Harmonics():
        variate = Harmonics(8)  # its degree would follow the number of nodes
    m = known(*pair(d=d))
    found = variate.features(theta, m, p, draw(0))[0]
    assert found.shape == (len(theta), variate.count(len(theta), d))
    size = (weight @ found**2).sqrt()
    # |.|^p has a kink, where quadrature errs; the inner mean of the two-level variate is a draw
    assert float(((weight @ found) / size).abs().max()) < (2e-4 if d == 2 else 2e-3)
    assert float(((weight @ (found + 0.02 * size)) / size).abs().max()) > 0.01


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("variate", [Lower(), Upper(), Quadratic(), Harmonics(2)], ids=str)
def test_features_average_to_zero_in_many_dimensions(variate, p):
    m = known(*pair(d=8))
    theta = Isotropic().sample(40_000, 8, draw(1), m.step)
    assert score(variate.features(theta, m, p)[0]) < 4


@pytest.mark.parametrize("p", [2.0, 3.0])
@pytest.mark.parametrize("d", [3, 8])
def test_two_level_mean_is_unbiased(p, d):
    """The mean that was taken off, against independent directions put through numpy."""
    m, generator = known(*pair(d=d)), draw(3)

    def gaussian(theta):
        step, x, y = forms(theta, m)
        return torch.from_numpy((step**2 + (x**0.5 - y**0.5) ** 2) ** (p / 2))

    one = Isotropic().sample(1, d, generator, m.step)
    found = [TwoLevel(inner=20).features(one, m, p, generator) for _ in range(400)]
    inner = gaussian(one) - torch.cat(found).flatten()
    truth = gaussian(Isotropic().sample(100_000, d, generator, m.step))
    error = (inner.var() / len(inner) + truth.var() / len(truth)).sqrt()
    assert abs(inner.mean() - truth.mean()) < 4 * error
    assert abs(inner.mean() - truth.mean() * (1 + 1 / d)) > 8 * error  # as a trace over d would show


@pytest.mark.parametrize("d", [2, 3, 10, 64])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_mean_of_the_lower_bound(p, d):
    """The square of a coordinate of a direction follows a beta law."""
    law = stats.beta(0.5, (d - 1) / 2)

    def density(s):  # u = sin^2 takes the singular ends of the law away
        return math.sin(s) ** p * law.pdf(math.sin(s) ** 2) * math.sin(2 * s)

    share, _ = integrate.quad(density, 0, math.pi / 2)
    step = torch.randn(1, d, generator=draw(d), dtype=torch.float64)
    theta = Isotropic().sample(3, d, draw(0), step)
    found = (theta @ step[0]).abs() ** p - Lower().features(theta, Moments(step), p)[0, :, 0]
    expected = torch.full((3,), share * float(step.norm()) ** p, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
    if p == 2:
        assert share == pytest.approx(1 / d)


@pytest.mark.parametrize("d", [3, 9])
def test_variance_of_a_quadratic_form(d):
    m = known(*pair(d=d))
    matrix = m.step[0, :, None] * m.step[0] + m.cov_x[0] + m.cov_y[0]
    truth = 2 * (d * (matrix @ matrix).trace() - matrix.trace() ** 2) / (d**2 * (d + 2))
    theta = Isotropic().sample(40_000, d, draw(2), matrix)
    squares = Upper().features(theta, m, 2.0)[0, :, 0] ** 2
    assert abs(squares.mean() - truth) < 4 * squares.std() / len(squares) ** 0.5
    assert abs(squares.mean() - truth * (d + 2) / d) > 8 * squares.std() / len(squares) ** 0.5


@every
def test_quadratic_variates_vanish_on_a_frame(variate):
    m = known(*pair(d=3))
    theta = Orthogonal().sample(3, 3, draw(0), m.step)
    mean = variate.features(theta, m, 2.0, draw(1))[0].mean(0)
    if isinstance(variate, (Lower, Upper, Quadratic)) or variate == Harmonics(2):
        assert float(mean.abs().max()) < 1e-14
    elif isinstance(variate, TwoLevel):
        assert float(mean.abs().max()) > 1e-6


@pytest.mark.parametrize("p", [2.0, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_square_is_upper_bound_less_twice_the_covariance_of_quantiles(weighted, p):
    x, y = pair(12, 9, 4)
    a, b = (torch.randint(0, 4, (len(z),), generator=draw(5)) if weighted else torch.ones(len(z)).long()
            for z in (x, y))  # fmt: skip
    m, theta = known(x, y, a.numpy(), b.numpy()), Isotropic().sample(30, 4, draw(6), x)
    quantiles = [np.sort((z @ theta.T).numpy(), 0) for z in repeated(x, y, a, b)]
    square = ((quantiles[0] - quantiles[1]) ** 2).mean(0)
    kappa = np.mean(quantiles[0] * quantiles[1], 0) - quantiles[0].mean(0) * quantiles[1].mean(0)
    mean = float((m.step**2).sum() + m.cov_x[0].trace() + m.cov_y[0].trace()) / 4
    upper = Upper().features(theta, m, p)[0, :, 0].numpy() + mean
    np.testing.assert_allclose(square, upper - 2 * kappa, rtol=1e-10)
    assert (kappa >= 0).all()


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(2, 5), st.integers(0, 10**6),
    st.sampled_from([1.0, 1.5, 2.0, 2.5, 4.0]),
)  # fmt: skip
def test_bounds_on_every_direction(n, m, d, seed, p):
    x, y = pair(n, m, d, seed)
    a, b = (torch.ones(k, dtype=torch.long) for k in (n, m))
    theta = Isotropic().sample(20, d, draw(seed), x)
    u, v = (np.sort((z @ theta.T).numpy(), 0) for z in repeated(x, y, a, b))
    cost = (abs(u - v) ** p).mean(0)
    slack = 1e-10 * (1 + cost)
    mom = known(x, y)
    for variate in (Lower(), TwoLevel()):
        assert variate.bound(p) and not Upper().bound(p)
        step, s, t = forms(theta, mom)
        if isinstance(variate, TwoLevel) and p >= 2:
            spread = np.sqrt(s.clip(0)) - np.sqrt(t.clip(0))
            raw = (step**2 + spread**2) ** (p / 2)
            assert (raw >= abs(step) ** p - slack).all()
        else:
            raw = abs(step) ** p
        gap = raw - variate.features(theta, mom, p, draw(0))[0, :, 0].numpy()
        assert np.ptp(gap) <= 1e-9 * (1 + raw.max())  # the same up to the mean
        assert (raw <= cost + slack).all()
        if p == 2:
            assert (cost <= step**2 + s + t + slack).all()


def test_gaussian_distance_is_no_bound_below_two():
    """Why another variate stands in: nearly one point and far ones cost less than their Gaussians."""
    x = torch.zeros(100, 2, dtype=torch.float64)
    y = x.clone()
    y[0], y[1] = 10.0, -10.0
    theta = Isotropic().sample(5, 2, draw(0), x)
    step, s, t = forms(theta, known(x, y))
    gelbrich = step**2 + (s**0.5 - t**0.5) ** 2
    cost = np.abs((y @ theta.T).numpy()).mean(0)
    assert (gelbrich**0.5 > 2 * cost).all()
    gap = TwoLevel().features(theta, known(x, y), 1.0)[0, :, 0]
    torch.testing.assert_close(gap, Lower().features(theta, known(x, y), 1.0)[0, :, 0])


@pytest.mark.parametrize("rows", [1, 7, 2**18])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_agree_with_numpy(monkeypatch, weighted, rows):
    for name in ("FEW", "MANY"):
        monkeypatch.setattr(importlib.import_module("genflow.variate.moments"), name, rows)
    x = torch.randn(2, 23, 4, generator=draw(0), dtype=torch.float64) ** 2
    w = torch.rand(2, 23, generator=draw(1), dtype=torch.float64) if weighted else None
    w = w if w is None else w / w.sum(1, keepdim=True)
    mean, cov = moments(x, w, True)
    for k in range(2):
        own = None if w is None else w[k].numpy()
        np.testing.assert_allclose(mean[k], np.average(x[k].numpy(), 0, own), rtol=1e-12)
        np.testing.assert_allclose(cov[k], np.cov(x[k].numpy().T, aweights=own, ddof=0), rtol=1e-12)
        assert abs(cov[k] - np.cov(x[k].numpy().T, aweights=own)).max() > 1e-3  # the sample covariance
    assert moments(x, w)[1] is None


def test_moments_far_from_the_origin_in_single_precision():
    x = torch.randn(1, 5000, 3, generator=draw(0))
    far, cov = moments(x + 3000.0, covariance=True)
    np.testing.assert_allclose(
        cov[0], np.cov((x + 3000.0)[0].double().numpy().T, ddof=0), rtol=1e-4, atol=1e-5
    )
    assert float((far - 3000.0 - x.mean(1)).abs().max()) < 3e-4


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_through_moments_agrees_with_autograd(monkeypatch, weighted):
    for name in ("FEW", "MANY"):
        monkeypatch.setattr(importlib.import_module("genflow.variate.moments"), name, 10)
    x = torch.randn(2, 11, 3, generator=draw(0), dtype=torch.float64, requires_grad=True)
    w = torch.rand(2, 11, generator=draw(1), dtype=torch.float64) if weighted else None
    w = w if w is None else w / w.sum(1, keepdim=True)
    share = torch.full((2, 11), 1 / 11, dtype=torch.float64) if w is None else w
    by_mean, by_cov = (
        torch.randn(2, 3, *e, generator=draw(2), dtype=torch.float64) for e in ((), (3,))
    )
    mean = torch.einsum("bn,bnd->bd", share, x)
    cov = torch.einsum("bn,bni,bnj->bij", share, x, x) - mean[:, :, None] * mean[:, None]
    truth = torch.autograd.grad((by_mean * mean).sum() + (by_cov * cov).sum(), x)[0]
    found = torch.ones_like(truth)
    add_gradient(found, x.detach(), w, mean.detach(), by_mean, by_cov)
    torch.testing.assert_close(found - 1, truth)
    add_gradient(found, x.detach(), w, mean.detach(), None, None)
    torch.testing.assert_close(found - 1, truth)


@pytest.mark.parametrize("part", [Lower, Upper, TwoLevel])
@pytest.mark.parametrize("bad", ["ols", math.nan, math.inf, True, None], ids=str)
def test_coefficients_that_are_none(part, bad):
    with pytest.raises(ValueError, match=f"{part.__name__}.*coefficient must be"):
        part(coefficient=bad)


@pytest.mark.parametrize("bad", [1.0, "clamped", "published"], ids=str)
def test_several_functions_take_regressions_alone(bad):
    for make in (Quadratic, lambda coefficient: Several([Lower()], coefficient)):
        with pytest.raises(ValueError, match="'regression', 'leave_one_out'"):
            make(coefficient=bad)
    with pytest.raises(ValueError, match="at least one variate"):
        Several([])
