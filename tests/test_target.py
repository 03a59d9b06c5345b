"""Targets: closed forms, limits at the ends, and the field each regression finds."""

import pytest
import torch
from gaussians import distance, draw, fields, least_squares, pair

from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Trigonometric,
    VariancePreserving,
    Zero,
)
from genflow.loss import Matching
from genflow.target import Denoised, Drift, Noise, Rate, Score, Velocity

SIGMA = 0.8
TARGETS = {
    "velocity": Velocity(),
    "rate": Rate(),
    "noise": Noise(),
    "score": Score(),
    "drift": Drift(SIGMA),
    "denoised": Denoised(),
}
CLOSED = {
    "velocity": lambda s: s.rate + s.dgamma * s.noise,
    "rate": lambda s: s.rate,
    "noise": lambda s: s.noise,
    "score": lambda s: -s.noise / s.gamma,
    "drift": lambda s: s.rate + s.dgamma * s.noise - SIGMA**2 / 2 * s.noise / s.gamma,
    "denoised": lambda s: s.xs[1],
}
WRONG = {  # each differs by one sign or one term
    "velocity": lambda s: s.rate - s.dgamma * s.noise,
    "rate": lambda s: s.rate + s.dgamma * s.noise,
    "noise": lambda s: -s.noise,
    "score": lambda s: s.noise / s.gamma,
    "drift": lambda s: s.velocity + SIGMA**2 / 2 * s.noise / s.gamma,
    "denoised": lambda s: s.xs[0],
}
WIDE = [
    Linear(gamma=Quadratic()), Linear(gamma=SinSquared()), Trigonometric(Brownian(0.5)),
    VariancePreserving(SigmaDifference()), BrownianBridge(0.7), EncoderDecoder(),
]  # fmt: skip
names = pytest.mark.parametrize("name", TARGETS)
wide = pytest.mark.parametrize("path", WIDE, ids=str)


def endpoints(generator, shape=(64, 2)):
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@names
@wide
def test_closed_forms(path, name, generator):
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    sample = path.sample(t, *endpoints(generator, (64, 1, 2, 2)), generator=generator)
    torch.testing.assert_close(TARGETS[name](sample), CLOSED[name](sample), rtol=1e-12, atol=1e-12)


@wide
def test_drift_is_velocity_plus_half_sigma_squared_score(path, generator):
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    sample = path.sample(t, *endpoints(generator), generator=generator)
    expected = sample.velocity + SIGMA**2 / 2 * sample.score
    torch.testing.assert_close(Drift(SIGMA)(sample), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(Drift(0.0)(sample), sample.velocity)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_drift_on_its_own_bridge_points_to_the_data(sigma, generator):
    t = torch.linspace(0, 0.999, 64, dtype=torch.float64)
    sample = BrownianBridge(sigma).sample(t, *endpoints(generator), generator=generator)
    expected = (sample.xs[1] - sample.x) / (1 - t)[:, None]
    torch.testing.assert_close(Drift(sigma)(sample), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drift_on_its_own_bridge_at_the_start(dtype, generator):
    # velocity + sigma^2/2 score would be inf - inf here
    x0, x1 = torch.randn(2, 8, 2, generator=generator, dtype=dtype)
    sample = BrownianBridge(0.7).sample(0.0, x0, x1, generator=generator)
    torch.testing.assert_close(Drift(0.7)(sample), x1 - x0)


@names
@wide
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_are_finite_at_the_ends(path, name, dtype, generator):
    x0, x1 = torch.randn(2, 8, 2, generator=generator, dtype=dtype)
    for t in (0.0, 1.0):
        target = TARGETS[name](path.sample(t, x0, x1, generator=generator))
        assert target.dtype == dtype and target.shape == x0.shape and target.isfinite().all()


@names
@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(
    "path", [Linear(gamma=Brownian()), Trigonometric(SinSquared()), BrownianBridge(0.8)], ids=str
)
def test_regression_finds_the_closed_form_field(path, name, correlated, generator):
    # n = 2e5, tolerance .06 (.12 for the score, whose target is the noisiest)
    law, t = pair(correlated), torch.tensor([0.3], dtype=torch.float64)
    true = fields(law, path.coefficients(t), SIGMA)[name]
    tolerance = 0.12 if name == "score" else 0.06
    sample = path.sample(0.3, *draw(law, 200_000, generator), generator=generator)
    assert distance(least_squares(sample.x, TARGETS[name](sample)), true) < tolerance
    assert distance(least_squares(sample.x, WRONG[name](sample)), true) > 2 * tolerance


@pytest.mark.parametrize("target", [Score(), Noise(), Drift(1.0)], ids=str)
@pytest.mark.parametrize("path", [Linear(), Trigonometric(), VariancePreserving(Zero())], ids=str)
def test_noise_targets_refuse_a_path_without_width(target, path):
    with pytest.raises(ValueError, match="is not defined on"):
        Matching(path, target=target)
    with pytest.raises(ValueError, match="is not defined on"):
        Matching(path, target={"velocity": Velocity(), "other": target})


@pytest.mark.parametrize("target", [Velocity(), Rate(), Denoised(), Drift(0.0)], ids=str)
def test_other_targets_need_no_width(target):
    assert Matching(Linear(), target=target).target == target


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf"), "1", True])
def test_drift_refuses_a_bad_sigma(sigma):
    with pytest.raises(ValueError, match="Drift"):
        Drift(sigma)
