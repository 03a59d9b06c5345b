"""Interpolants: closed-form rates, boundary values, velocities, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    Constant,
    EncoderDecoder,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Trigonometric,
    VariancePreserving,
    Zero,
)

VANISHING = [
    Zero(), Brownian(), Brownian(0.3), Quadratic(), SinSquared(), SigmaDifference(),
    SigmaDifference(4.0),
]  # fmt: skip
BELOW_ONE = [g for g in VANISHING if not isinstance(g, SinSquared)]
POSITIVE = [g for g in VANISHING if not g.zero]
PATHS = [
    Linear(sigma=0.3), BrownianBridge(0.7), *map(lambda g: Linear(gamma=g), VANISHING),
    *map(Trigonometric, VANISHING), *map(VariancePreserving, BELOW_ONE),
    *map(EncoderDecoder, POSITIVE),
]  # fmt: skip
SINGLE = [
    OneSided(), OneSided(Trigonometric()), OneSided(VariancePreserving(Zero())),
    *map(Mirror, POSITIVE),
]  # fmt: skip
"""Paths of one endpoint and noise."""
every_path = pytest.mark.parametrize("path", PATHS, ids=str)
every_rate = pytest.mark.parametrize("path", [*PATHS, *SINGLE], ids=str)
every_width = pytest.mark.parametrize("gamma", [*VANISHING, Constant(0.2)], ids=str)
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
shapes = pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)


def derivative(value, t):
    """Autograd derivative of each row; zero where ``value`` does not depend on ``t``."""
    if not value.requires_grad:
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t, retain_graph=True)[0]


def inner_times():
    return torch.linspace(0.003, 0.997, 400, dtype=torch.float64, requires_grad=True)


def assert_close(found, true, tolerance=1e-12):
    scale = 1 + true.abs().max()
    assert (found - true).abs().max() <= tolerance * scale


@every_rate
def test_rates_are_the_derivatives(path):
    t = inner_times()
    c = path.coefficients(t)
    for value, rate in ((c.alpha, c.dalpha), (c.beta, c.dbeta), (c.gamma, c.dgamma)):
        assert_close(rate.detach(), derivative(value, t))


@every_rate
def test_product_of_width_and_rate(path):
    t = inner_times()
    c = path.coefficients(t)
    assert_close(c.gamma_dgamma.detach(), derivative(c.gamma**2 / 2, t))
    assert_close(c.gamma_dgamma.detach(), (c.gamma * c.dgamma).detach())


@precisions
@every_rate
def test_finite_at_both_ends(path, dtype):
    for value in path.coefficients(torch.tensor([0.0, 1.0], dtype=dtype)):
        assert value.dtype == dtype and value.shape == (2,)
        assert value.isfinite().all()


@precisions
@every_path
def test_boundary_values(path, dtype):
    c = path.coefficients(torch.tensor([0.0, 1.0], dtype=dtype))
    width = getattr(path, "sigma", 0.0) if isinstance(path, Linear) else 0.0
    one, nothing = torch.tensor([1.0, 0.0], dtype=dtype), torch.zeros(2, dtype=dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    assert_close(c.alpha, one, tolerance)
    assert_close(c.beta, one.flip(0), tolerance)
    assert_close(c.gamma, nothing + width, tolerance)
    assert (c.gamma >= 0).all()


def test_brownian_product_has_its_limits_at_the_ends():
    # the runtime product gamma * dgamma would be 0 there
    product = Brownian(0.6)(torch.tensor([0.0, 1.0])).gamma_dgamma
    assert torch.equal(product, torch.tensor([0.3, -0.3]))


@every_width
def test_widths_are_positive_inside(gamma):
    width = gamma(torch.linspace(0.01, 0.99, 99)).gamma
    assert (width == 0).all() if gamma.zero else (width > 0).all()


@precisions
@every_rate
def test_samples_are_finite_at_both_ends(path, dtype, generator):
    x0, x1 = torch.randn(2, 4, 3, generator=generator, dtype=dtype)
    sample = path.sample(torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype), x0, x1, generator=generator)
    for value in (sample.x, sample.rate, sample.velocity):
        assert value.dtype == dtype and value.shape == x0.shape and value.isfinite().all()


@shapes
@every_rate
@given(t=st.floats(0.02, 0.98))
def test_velocity_is_the_derivative_of_the_path(path, shape, t):
    generator = torch.Generator().manual_seed(1)
    x0, x1, z = torch.randn(3, 3, *shape, generator=generator, dtype=torch.float64)
    h = 1e-6
    ahead, behind = (path.sample(t + s * h, x0, x1, noise=z).x for s in (1, -1))
    difference = (ahead - behind) / (2 * h)
    # 1e-4: the second derivative of encoding-decoding jumps in the middle, h * 10 of it remains
    torch.testing.assert_close(path.sample(t, x0, x1, noise=z).velocity, difference, rtol=0, atol=1e-4)


def test_the_derivative_test_can_fail(generator):
    # minus gamma' is the mistake to catch
    x0, x1, z = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)
    path, h = BrownianBridge(), 1e-6
    difference = (path.sample(0.3 + h, x0, x1, noise=z).x - path.sample(0.3 - h, x0, x1, noise=z).x) / (
        2 * h
    )
    sample = path.sample(0.3, x0, x1, noise=z)
    assert (sample.rate - sample.dgamma * z - difference).abs().max() > 0.1


@shapes
@every_path
def test_location_is_the_affine_combination(path, shape, generator):
    x0, x1 = torch.randn(2, 5, *shape, generator=generator, dtype=torch.float64)
    t = torch.rand(5, generator=generator, dtype=torch.float64)
    sample = path.sample(t, x0, x1, generator=generator)
    c = [v.reshape(5, *[1] * len(shape)) for v in path.coefficients(t)]
    torch.testing.assert_close(sample.x, c[0] * x0 + c[1] * x1 + c[2] * sample.noise)
    assert sample.xs[0] is x0 and sample.xs[1] is x1
    assert sample.noise.shape == x0.shape and bool(sample.noise.any()) == path.stochastic


def test_one_number_is_a_time_for_every_row(generator):
    x0, x1 = torch.randn(2, 5, 2, generator=generator)
    number, rows = Linear().sample(0.25, x0, x1), Linear().sample(torch.full((5,), 0.25), x0, x1)
    assert torch.equal(number.x, rows.x) and torch.equal(number.t, rows.t)


def test_the_generator_rules_the_noise():
    x = torch.zeros(6, 2)
    draws = [
        BrownianBridge().sample(0.5, x, x, generator=torch.Generator().manual_seed(s)).x
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("gamma", BELOW_ONE, ids=str)
def test_variance_preserving_keeps_unit_variance(gamma, generator):
    path = VariancePreserving(gamma)
    c = path.coefficients(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert_close(c.alpha**2 + c.beta**2 + c.gamma**2, torch.ones(101, dtype=torch.float64), 1e-14)
    n = 40_000
    x0, x1 = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    variance = path.sample(0.4, x0, x1, generator=generator).x.var()
    assert abs(variance - 1) < 4 * math.sqrt(2 / n)  # 4 standard errors


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: VariancePreserving(SinSquared()), "gamma reaches 1"),
        (lambda: VariancePreserving(Brownian(4.0)), "gamma reaches 1"),
        (lambda: EncoderDecoder(Zero()), "positive there"),
        (lambda: Linear(sigma=0.1, gamma=Brownian()), "not both"),
        (lambda: Linear(sigma=-0.1), "sigma must be zero or positive"),
        (lambda: Linear(sigma=float("nan")), "finite"),
        (lambda: BrownianBridge(0.0), "sigma must be positive"),
        (lambda: Brownian(-1.0), "a must be positive"),
        (lambda: SigmaDifference(0.0), "f must be positive"),
        (lambda: Constant(-1.0), "sigma must be zero or positive"),
    ],
)
def test_impossible_paths_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "t, xs, words",
    [
        (0.5, (torch.zeros(3, 2), torch.zeros(4, 2)), "coupled row by row"),
        (0.5, (torch.zeros(3, 2), torch.zeros(3, 3)), "coupled row by row"),
        (0.5, (torch.zeros(3, 2),) * 3, "two marginals"),
        (torch.rand(4), (torch.zeros(3, 2),) * 2, "3 rows"),
        (torch.rand(3, 1), (torch.zeros(3, 2),) * 2, r"shape \(3,\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(t, xs, words):
    with pytest.raises(ValueError, match=words):
        Linear().sample(t, *xs)


def test_score_is_minus_noise_over_width(generator):
    x0, x1 = torch.randn(2, 5, 2, generator=generator)
    sample = BrownianBridge(2.0).sample(0.3, x0, x1, generator=generator)
    torch.testing.assert_close(sample.score, -sample.noise / (2 * math.sqrt(0.21)))


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_score_of_a_bridge_is_finite_at_its_ends(t, generator):
    x0, x1 = torch.randn(2, 5, 2, generator=generator)
    assert BrownianBridge().sample(t, x0, x1, generator=generator).score.isfinite().all()


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), VariancePreserving(Zero())], ids=str)
def test_score_of_a_path_without_width_is_refused(path):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="zero width has no score"):
        path.sample(0.5, x, x).score  # noqa: B018


@pytest.mark.parametrize("kind", [Linear, Trigonometric, VariancePreserving, EncoderDecoder, Mirror])
@pytest.mark.parametrize("gamma", ["brownian", None, 0.5, torch.sin])
def test_widths_are_widths(kind, gamma):
    with pytest.raises(TypeError, match=rf"{kind.__name__}\(gamma=.*: gamma must be a width, such as"):
        kind(gamma=gamma)
