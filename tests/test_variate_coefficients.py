"""Coefficients of control variates and their gradients, against each written by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spheres import draw, pair, project

from genflow.directions import Isotropic
from genflow.distance import SlicedWasserstein
from genflow.variate import (
    Harmonics,
    Lower,
    Quadratic,
    TwoLevel,
    Upper,
    residuals,
    weights_of,
)


def numbers(projections=12, functions=3, seed=0, batch=2):
    """Costs and features with nothing but a linear trend in common."""
    features = torch.randn(batch, projections, functions, generator=draw(seed), dtype=torch.float64)
    noise = torch.randn(batch, projections, generator=draw(seed + 1), dtype=torch.float64)
    slope = torch.arange(1.0, functions + 1, dtype=torch.float64) / 4
    return 3 + features @ slope + noise**2, features + 0.2


def least_squares(costs, features):
    """Intercept and slopes of each row by numpy."""
    found = []
    for cost, row in zip(costs.numpy(), features.numpy()):
        table = np.concatenate([np.ones((len(row), 1)), row], 1)
        found.append(np.linalg.lstsq(table, cost, rcond=None)[0])
    found = torch.from_numpy(np.array(found))
    return found[:, 0], found[:, 1:]


def published(costs, features):
    """Nguyen & Ho's estimate of one row, a line for each symbol."""
    off = features - features.mean()  # the sample covariance has a centred variate in it too
    covariance = ((costs - costs.mean()) * off).mean()
    variance = (off**2).mean()
    delta = features.mean()
    return costs.mean() - covariance * delta / (variance + delta**2)


@pytest.mark.parametrize("functions, variate", [(1, Lower("regression")), (3, Quadratic())], ids=str)
def test_regression_is_the_intercept_of_least_squares(functions, variate):
    costs, features = numbers(functions=functions)
    found = residuals(costs, features, variate)
    intercept, slope = least_squares(costs, features)
    torch.testing.assert_close(found.mean(1), intercept)
    torch.testing.assert_close(found, costs - (features * slope[:, None]).sum(-1))
    torch.testing.assert_close((weights_of(features) * costs).sum(1), intercept)
    # about the known mean in place of the sample's it is another estimate
    through = (costs - costs.mean(1, True)) @ features[..., :1] / (features[..., :1] ** 2).sum(1, True)
    assert (
        functions > 1
        or float((costs.mean() - through.mean() * features.mean() - intercept).abs().max()) > 1e-4
    )


def test_regression_on_functions_that_say_the_same():
    """Collinear, constant and tiny ones do no harm: the estimate is that of the rest."""
    costs, features = numbers(functions=2)
    intercept, _ = least_squares(costs, features)
    for more in (2 * features[..., :1], torch.zeros(2, 12, 1).double(), features.sum(-1, keepdim=True)):
        wide = torch.cat([features, more], -1)
        torch.testing.assert_close(residuals(costs, wide, Quadratic()).mean(1), intercept)
    tiny = features * torch.tensor([1.0, 1e-9])
    torch.testing.assert_close(residuals(costs, tiny, Quadratic()).mean(1), intercept)


@pytest.mark.parametrize("factor, bound", [(0.5, None), (5.0, 1.0), (-1.0, 0.0)])
def test_clamped_slope(factor, bound):
    _, features = numbers(functions=1)
    costs = factor * features[..., 0] + 0.1 * numbers(functions=1, seed=3)[0]
    slope = least_squares(costs, features)[1] if bound is None else bound
    expected = costs - slope * features[..., 0]
    torch.testing.assert_close(residuals(costs, features, Lower("clamped")), expected)


@pytest.mark.parametrize(
    "functions, variate", [(1, Lower("leave_one_out")), (3, Quadratic("leave_one_out"))], ids=str
)
def test_leave_one_out_against_a_loop(functions, variate):
    costs, features = numbers(functions=functions)
    found = residuals(costs, features, variate)
    for k in range(costs.shape[1]):
        rest = [j for j in range(costs.shape[1]) if j != k]
        _, slope = least_squares(costs[:, rest], features[:, rest])
        torch.testing.assert_close(found[:, k], costs[:, k] - (slope * features[:, k]).sum(-1))
    assert float((found.mean(1) - least_squares(costs, features)[0]).abs().min()) > 1e-3


@pytest.mark.parametrize("coefficient", [1.0, -0.3, 0, 2])
def test_a_number_is_the_coefficient(coefficient):
    costs, features = numbers(functions=1)
    found = residuals(costs, features, Lower(coefficient))
    torch.testing.assert_close(found, costs - coefficient * features[..., 0])


@given(st.integers(2, 30), st.integers(0, 10**6), st.floats(-5, 5), st.floats(1e-6, 1e6))
def test_published_coefficient(projections, seed, shift, scale):
    costs, features = numbers(projections, 1, seed, batch=1)
    features = scale * (features + shift)
    found = residuals(costs, features, Lower("published")).mean()
    torch.testing.assert_close(found, published(costs[0], features[0, :, 0]))
    deviation = costs.std(unbiased=False)
    assert float((found - costs.mean()).abs()) <= float(deviation) / 2 * (1 + 1e-9)


def test_published_coefficient_is_no_regression():
    costs, features = numbers(5, 1, seed=4)
    found = residuals(costs, features + 1, Lower("published")).mean(1)
    assert float((found - least_squares(costs, features + 1)[0]).abs().min()) > 0.05
    steep = residuals(costs, features + 1, Lower("regression")).mean(1) - costs.mean(1)
    assert float((steep.abs() / costs.std(1)).max()) > 0.5  # regression keeps no such bound


@pytest.mark.parametrize("projections", [2, 10, 100])
def test_published_residual_on_translates(projections):
    x, _ = pair()
    y = x + torch.tensor([1.0, -2.0, 0.5])
    step = (x - y).mean(0)
    theta = Isotropic().sample(projections, 3, draw(1), x)
    control = ((theta @ step) ** 2).numpy()
    delta, variance = control.mean() - float(step @ step) / 3, control.var()
    sw = SlicedWasserstein(projections, directions=Isotropic(), variate=Lower("published"))
    error = float(sw(x, y, generator=draw(1))) - float(step @ step) / 3
    assert error == pytest.approx(delta**3 / (variance + delta**2), rel=1e-8)
    assert abs(error) > 1e-9  # a regression would leave nothing


@pytest.mark.parametrize("p", [2.0, 3.0])
@pytest.mark.parametrize("part", [Lower, Upper])
def test_published_estimates_and_gradients_against_autograd(part, p):
    """Value and gradient of the formula, through the coefficient too; the square is kept for p = 3."""
    x, y = (z.requires_grad_() for z in pair(d=4))
    theta = Isotropic().sample(9, 4, draw(2), x)
    control, mean = (theta @ (x.mean(0) - y.mean(0))) ** 2, ((x.mean(0) - y.mean(0)) ** 2).sum() / 4
    if part is Upper:
        for z in (x, y):
            control = control + (theta @ z.mT).var(1, unbiased=False)
            mean = mean + z.var(0, unbiased=False).sum() / 4
    costs = project(x, y, theta, p)
    truth = published(costs, control - mean)
    sw = SlicedWasserstein(9, p, Isotropic(), part("published"))
    value = sw(x, y, generator=draw(2))
    torch.testing.assert_close(value, truth)
    expected = torch.autograd.grad(truth, (x, y), retain_graph=True)
    for found, right in zip(torch.autograd.grad(value, (x, y)), expected):
        torch.testing.assert_close(found, right)
    slope = ((costs - costs.mean()) * (control - mean)).mean() / ((control - mean) ** 2).mean()
    held = costs.mean() - slope.detach() * (control - mean).mean()
    wrong = torch.autograd.grad(held, x)[0]
    assert float((wrong - expected[0]).abs().max()) > 1e-3 * float(wrong.abs().max())


@pytest.mark.parametrize("kind", [0.7, "regression", "clamped", "leave_one_out"])
def test_fitted_slopes_are_held_in_gradients(kind):
    costs, features = (z.requires_grad_() for z in numbers(functions=1, batch=1))
    found = residuals(costs, features, Lower(kind)).mean(1).sum()
    by_cost, by_feature = torch.autograd.grad(found, (costs, features))
    torch.testing.assert_close(by_cost, torch.full_like(costs, 1 / 12))
    left = residuals(costs.detach(), features.detach(), Lower(kind))
    torch.testing.assert_close(
        by_feature, -((costs - left) / features[..., 0] / 12).detach()[..., None]
    )


SMOOTH = [
    Lower(),
    Lower(0.4),
    Upper(1.0),
    TwoLevel(),
    TwoLevel(inner=7),
    Harmonics(2),
    Harmonics(4),
    Lower("published"),
]


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("variate", SMOOTH, ids=str)
def test_gradients_against_finite_differences(variate, p):
    x, y = pair(7, 9)
    a = torch.arange(1.0, 8)
    sw = SlicedWasserstein(40, p, Isotropic(), variate)
    leaf = x.clone().requires_grad_()
    sw(leaf, y, a, generator=draw(1)).backward()
    way = torch.randn(7, 3, generator=draw(2), dtype=torch.float64)
    up, down = (sw(x + h * way, y, a, generator=draw(1)) for h in (1e-6, -1e-6))
    assert float((leaf.grad * way).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-5, abs=1e-8)
