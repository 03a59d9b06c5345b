"""Estimates with control variates: where exact, unbiased or consistent; noise of their gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spheres import draw, known, nodes, pair, project, score

from genflow.directions import Isotropic, Orthogonal
from genflow.distance import SlicedWasserstein
from genflow.variate import Harmonics, Lower, Quadratic, Several, TwoLevel, Upper, residuals


def scaled(factor, step, d=4):
    """A set, itself scaled about its mean and moved, and their squared distance."""
    x, _ = pair(30, 30, d)
    centre = x.mean(0)
    y = centre + factor * (x - centre) + step * torch.linspace(1, 2, d)
    truth = ((centre - y.mean(0)) ** 2).sum() + (1 - factor) ** 2 * x.var(0, unbiased=False).sum()
    return x, y, float(truth) / d


def error(variate, x, y, truth, projections=14, **weights):
    sw = SlicedWasserstein(projections, directions=Isotropic(), variate=variate)
    return abs(float(sw(x, y, generator=draw(5), **weights)) - truth) / truth


@pytest.mark.parametrize(
    "variate, factor, step, exact",
    [
        (Quadratic(), 1.7, 1.0, True), (Quadratic("leave_one_out"), 1.7, 1.0, True),
        (Harmonics(2), 0.4, 1.0, True),
        (Several([Lower(), Upper()]), 1.7, 1.0, True), (Lower(), 1.0, 1.0, True),
        (Lower("regression"), 1.0, 1.0, True), (Lower("clamped"), 1.0, 1.0, True),
        (Lower("leave_one_out"), 1.0, 1.0, True), (Upper("regression"), 1.7, 0.0, True),
        (Lower(), 1.7, 1.0, False), (Lower("regression"), 1.7, 1.0, False),
        (Upper("regression"), 1.7, 1.0, False), (Upper(1.0), 1.0, 1.0, False),
        (Lower("published"), 1.0, 1.0, False), (None, 1.0, 1.0, False),
    ],
    ids=str,
)  # fmt: skip
def test_where_estimates_are_exact(variate, factor, step, exact):
    found = error(variate, *scaled(factor, step))
    assert found < 1e-12 if exact else found > 1e-4


def test_exactness_with_weights():
    x, _, _ = scaled(1.0, 0.0)
    w = torch.rand(30, generator=draw(7), dtype=torch.float64) + 0.1
    y, share = 0.5 * x + 1, w / w.sum()
    centre = share @ x
    spread = (share[:, None] * (x - centre) ** 2).sum()
    truth = float(((centre - share @ y) ** 2).sum() + spread / 4) / 4
    assert error(Quadratic(), x, y, truth, weights_x=w, weights_y=5 * w) < 1e-12
    assert error(Quadratic(), x, y, truth) > 1e-3


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_lower_bound_is_exact_for_translates_of_any_order(p):
    x, _, _ = scaled(1.0, 0.0)
    step = torch.tensor([1.0, -2.0, 0.3, 0.0], dtype=torch.float64)
    share = math.gamma(2) * math.gamma((p + 1) / 2) / math.gamma((4 + p) / 2) / math.sqrt(math.pi)
    for variate in (Lower(), Lower("regression"), TwoLevel(inner=10**4)):
        sw = SlicedWasserstein(12, p, Isotropic(), variate)
        found = float(sw(x, x + step, generator=draw(0)))
        # the mean of the two-level variate has an error of its own, from many directions
        rel = 0.01 if isinstance(variate, TwoLevel) and p > 2 else 1e-10
        assert found == pytest.approx(share * float(step.norm()) ** p, rel=rel)
    published = SlicedWasserstein(12, p, Isotropic(), Lower("published"))
    assert float(published(x, x + step, generator=draw(0))) != pytest.approx(found, rel=1e-4)


class Problem:
    """Two sets in three dimensions and their distance, by a product rule on the sphere."""

    def __init__(self):
        self.x, self.y = pair(12, 12)
        theta, weight = nodes(3, 400)
        self.truth = float(project(self.x, self.y, theta) @ weight)
        self.known = {}

    def errors(self, variate, projections, repeats):
        """Of estimates from independent directions, all at once."""
        key = projections, repeats
        if key not in self.known:
            theta = Isotropic().sample(repeats * projections, 3, draw(projections), self.x)
            self.known[key] = theta, project(self.x, self.y, theta).view(key[::-1])
        theta, costs = self.known[key]
        if variate is not None:
            features = variate.features(theta, known(self.x, self.y), 2.0).view(*costs.shape, -1)
            costs = residuals(costs, features, variate)
        return costs.mean(1) - self.truth


@pytest.fixture(scope="module")
def problem():
    return Problem()


UNBIASED = [
    None, Lower(), Lower(0.3), Upper(1.0), Lower("leave_one_out"), Upper("leave_one_out"),
    Quadratic("leave_one_out"), Several([Lower(), Harmonics(2)], "leave_one_out"),
    Several([Harmonics(2)], "leave_one_out"),
]  # fmt: skip
BIASED = [Upper("regression"), Upper("published"), Lower("published"), Quadratic()]
CONSISTENT = [
    *BIASED, Harmonics(2), Several([Lower(), Upper()]), Lower("regression"), Lower("clamped"),
    Upper("clamped"),
]  # fmt: skip


@pytest.mark.parametrize("variate", UNBIASED, ids=str)
def test_unbiased_estimates(problem, variate):
    errors = problem.errors(variate, 12, 10_000)
    assert abs(score(errors)) < 4
    if variate == Lower():  # a mean that lacks its 1 / d would show
        step = (problem.x - problem.y).mean(0)
        assert abs(score(errors + float(step @ step) * (1 - 1 / 3))) > 50


@pytest.mark.parametrize("variate", BIASED, ids=str)
def test_bias_of_fitted_estimates(problem, variate):
    few, more = problem.errors(variate, 6, 20_000), problem.errors(variate, 40, 5000)
    assert abs(score(few)) > 6
    assert abs(more.mean()) < 0.4 * abs(few.mean())


@pytest.mark.parametrize("variate", CONSISTENT, ids=str)
def test_fitted_estimates_are_consistent(problem, variate):
    more, most = problem.errors(variate, 40, 5000), problem.errors(variate, 3000, 20)
    assert abs(more.mean()) < 0.2 * more.std()  # the bias falls faster than the noise
    assert float(most.square().mean().sqrt()) < 0.015 * problem.truth


@pytest.mark.parametrize("variate", [*UNBIASED[1:], *CONSISTENT], ids=str)
def test_the_distance_is_the_mean_of_what_is_left(problem, variate):
    sw = SlicedWasserstein(12, directions=Isotropic(), variate=variate)
    found = float(sw(problem.x, problem.y, generator=draw(12))) - problem.truth
    assert found == pytest.approx(float(problem.errors(variate, 12, 1)), abs=1e-9)


@pytest.mark.parametrize("directions", [Isotropic(), Orthogonal()], ids=str)
@pytest.mark.parametrize("inner, part", [(None, 0.12), (5, 0.6)])
def test_two_level_is_unbiased(problem, inner, part, directions):
    sw, generator = SlicedWasserstein(7, directions=directions, variate=TwoLevel(inner=inner)), draw(0)
    found = [sw(problem.x, problem.y, generator=generator) for _ in range(400)]
    errors = torch.stack(found) - problem.truth
    assert abs(score(errors)) < 4
    assert errors.var() < part * problem.errors(None, 7, 5000).var()


@given(
    st.integers(2, 15), st.integers(2, 15), st.integers(2, 6), st.integers(0, 10**6),
    st.sampled_from([1.0, 1.5, 2.0, 3.0]),
)  # fmt: skip
def test_bounds_with_coefficient_one_are_never_negative(n, m, d, seed, p):
    x, y = pair(n, m, d, seed, step=1e-4 * (seed % 3))
    x, y = x.float(), (x if seed % 5 == 0 and n == m else y).float()
    for variate in (Lower(), TwoLevel(), TwoLevel(inner=1)):
        sw = SlicedWasserstein(3, p, Isotropic(), variate)
        assert float(sw(x, y, generator=draw(seed))) >= 0


def torus(n=500, step=(0.0, 0.0, 0.0)):
    """Points of a sphere, and of a torus around it."""
    x = torch.nn.functional.normalize(torch.randn(n, 3, generator=draw(0), dtype=torch.float64), dim=1)
    a, b = (2 * math.pi * torch.rand(2, n, generator=draw(1), dtype=torch.float64)).unbind()
    ring = 1 + 0.4 * b.cos()
    y = torch.stack([ring * a.cos(), ring * a.sin(), 0.4 * b.sin()], 1)
    # means that agree but for a trace
    return x - x.mean(0), y - y.mean(0) + 0.003 + torch.tensor(step)


def gradients(variate, x, y, repeats=40, projections=10):
    leaf, generator = x.clone().requires_grad_(), draw(4)
    sw = SlicedWasserstein(projections, directions=Isotropic(), variate=variate)
    found = []
    for _ in range(repeats):
        found.append(torch.autograd.grad(sw(leaf, y, generator=generator), leaf)[0])
    return torch.stack(found)


def noise(variate, x, y):
    """Mean square error of gradients, next to plain Monte Carlo's."""
    leaf = x.clone().requires_grad_()
    sw = SlicedWasserstein(6000, directions=Orthogonal(), variate=None)
    truth = torch.autograd.grad(sw(leaf, y, generator=draw(9)), leaf)[0]
    return float(
        (gradients(variate, x, y) - truth).square().sum()
        / (gradients(None, x, y) - truth).square().sum()
    )


def test_variance_of_gradients_where_means_agree():
    """A fitted lower bound has a coefficient of one over the square of the step: gradients blow up."""
    x, y = torus()
    assert noise(TwoLevel(), x, y) < 0.15
    assert noise(Lower("regression"), x, y) > 2.5
    assert noise(Lower("published"), x, y) > 2.5
    for safe in (Lower(), Lower("clamped")):
        assert 0.9 < noise(safe, x, y) < 1.1


def test_variance_of_gradients_where_means_differ():
    x, y = torus(step=(1.0, 0.5, 0.0))
    two, lower, clamped, upper = (
        noise(v, x, y) for v in (TwoLevel(), Lower(), Lower("clamped"), Upper())
    )
    assert two < 0.02 and two < lower / 5
    assert lower < 0.15 and clamped < 0.15
    assert lower < upper < 1


@pytest.mark.parametrize(
    "variate", [Quadratic("leave_one_out"), Several([Lower(), Upper()], "leave_one_out")]
)
def test_functions_of_very_different_size_are_regressed_on_alike(variate):
    draw = torch.Generator().manual_seed(0)
    x = 300 * torch.randn(50, 3, generator=draw, dtype=torch.float64)
    step = torch.tensor([0.1, 0.05, 0.0], dtype=torch.float64)
    value = SlicedWasserstein(20, directions=Isotropic(), variate=variate)(x, x + step, generator=draw)
    torch.testing.assert_close(value, step @ step / 3, rtol=1e-6, atol=0)
