"""StochasticInterpolant: the laws it carries, under every epsilon in both directions."""

import math

import pytest
import torch
from exact import (
    DATA,
    MIRRORS,
    ONE_SIDED,
    START,
    TWO_SIDED,
    Known,
    ends,
    gaussian_model,
    mixture_model,
    moments,
    seeded,
)
from fields import OneDraw
from gaussians import Pair, pair
from torch import nn

from genflow.interpolant import (
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    SinSquared,
    Trigonometric,
)
from genflow.oracle import Exact, independent
from genflow.process import StochasticInterpolant
from genflow.solver import Euler, Heun, StochasticHeun

NAMES = ["velocity", "noise"]
N = 10_000
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])


def ramp(t):
    return 0.2 + t


def run(model, reverse, n=N, **options):
    start = DATA if reverse else START
    return model.sample(x0=start.sample(n, seeded(3)), reverse=reverse, generator=seeded(4), **options)


def moment_error(x, law):
    mean, cov = moments(law)
    return float((x.T @ x / len(x) - cov - mean[:, None] * mean).abs().max())


def sliced(x, law):
    """Sliced 2-Wasserstein distance to fresh draws, by sorting along 100 directions."""
    angles = torch.linspace(0, math.pi, 101, dtype=torch.float64)[:-1]
    along = torch.stack([angles.cos(), angles.sin()])
    y = law.sample(len(x), seeded(5))
    return float(((x @ along).sort(0).values - (y @ along).sort(0).values).square().mean().sqrt())


def fits(x, reverse):
    """Second moments within .22 and sliced distance within .13; without any error .06 and .06."""
    law = START if reverse else DATA
    return moment_error(x, law) < 0.22 and sliced(x, law) < 0.13


@directions
def test_the_ode_carries_one_mixture_to_the_other(reverse):
    assert fits(run(mixture_model(), reverse), reverse)


@directions
@pytest.mark.parametrize("epsilon", [0.2, 1.0, "gamma", "gamma_squared", ramp])
def test_every_epsilon_carries_one_mixture_to_the_other(epsilon, reverse):
    n = N // 2 if reverse else N  # the start is one of narrow modes, and needs fewer
    assert fits(run(mixture_model(), reverse, n, epsilon=epsilon, solver=Euler(150)), reverse)


@pytest.mark.parametrize("path", [Trigonometric(Quadratic()), EncoderDecoder(SinSquared())], ids=str)
def test_other_paths_carry_mixtures_too(path):
    for reverse in (False, True):
        x = run(
            mixture_model(path), reverse, n=5000, epsilon="gamma_squared", solver=StochasticHeun(40)
        )
        assert fits(x, reverse)


class LittleNoise(StochasticInterpolant):
    """The mistake to catch: noise of variance epsilon instead of twice that."""

    def diffusion(self, t, x, dw, **ahead):
        return super().diffusion(t, x, dw / 2**0.5, **ahead)


class RateAsVelocity(nn.Module):
    """The mistake to catch: the part without noise in place of the whole velocity."""

    outputs = NAMES

    def __init__(self, exact):
        super().__init__()
        self.exact = exact

    def forward(self, t, x, cond=None):
        return {"velocity": self.exact.rate(t, x), "noise": self.exact.noise(t, x)}


@directions
def test_mistakes_are_seen(reverse):
    options, wide = {"epsilon": 1.0, "solver": Euler(150), "n": 3000}, BrownianBridge(3.0)
    law = START if reverse else DATA
    assert moment_error(run(mixture_model(noise=-1), reverse, **options), law) > 50
    assert not fits(run(mixture_model(kind=LittleNoise), reverse, **options), reverse)
    model, options = mixture_model(wide), {"solver": Heun(25), "n": 3000}
    assert fits(run(model, reverse, **options), reverse)
    model.process.fields = RateAsVelocity(Exact(independent(START, DATA), wide))
    assert not fits(run(model, reverse, **options), reverse)


@pytest.mark.parametrize("path", [*TWO_SIDED, *ONE_SIDED, *MIRRORS], ids=str)
def test_every_path_and_width_in_both_directions(path):
    """4.5 standard errors of means and covariances, and .03 for the 60 steps."""
    law, n = pair(), 3000
    model, laws = gaussian_model(law, path), ends(law, path)
    for epsilon, reverse in ((0.5, False), ("gamma", True)):
        x0 = laws[reverse].sample(n, seeded(3))
        x = model.sample(x0=x0, epsilon=epsilon, reverse=reverse, generator=seeded(4))
        mean, cov = moments(laws[not reverse])
        spread = cov.diagonal()
        error = ((spread[:, None] * spread + cov**2) / n).sqrt()
        assert ((x.mean(0) - mean).abs() < 4.5 * (spread / n).sqrt() + 0.03).all()
        assert ((x.T.cov() - cov).abs() < 4.5 * error + 0.03).all()


def covariance_error(solver, process, reverse):
    """Largest error of the variances after a run, without sampling: a step of an affine field is
    affine, and its numbers are read off the step itself."""
    law = process.fields.laws[0]
    start, stop = (law.cov1, law.cov0) if reverse else (law.cov0, law.cov1)
    spread = start.diagonal()
    zero, one = torch.zeros(2, 1, 2, dtype=torch.float64) + torch.tensor([0.0, 1.0])[:, None, None]

    def step(s, t, x, draw=None):
        return solver.step(OneDraw(process, draw, reverse), s, t, x)[0]

    grid = solver.grid(process, None, reverse).tolist()
    for s, t in zip(grid, grid[1:]):
        spread = step(s, t, one) ** 2 * spread + sum(step(s, t, zero, j) ** 2 for j in range(3))
    return float((spread - stop.diagonal()).abs().max())


@directions
@pytest.mark.parametrize(
    "path, epsilon",
    [
        (BrownianBridge(), "gamma"), (BrownianBridge(), "gamma_squared"),
        (Linear(gamma=Quadratic()), "gamma"), (Linear(gamma=Quadratic()), 0.5),
        (BrownianBridge(), 0.5),
    ],
    ids=str,
)  # fmt: skip
def test_stochastic_heun_beats_euler_at_equal_steps(path, epsilon, reverse):
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    law = Pair(zero, eye * torch.tensor([1.0, 0.5]), zero, eye * torch.tensor([0.5, 2.0]), 0 * eye)
    process = StochasticInterpolant(Known(law, path), path, epsilon)
    found = []
    for steps in (25, 50):
        solvers = Euler(steps), StochasticHeun(steps)
        errors = [covariance_error(solver, process, reverse) for solver in solvers]
        assert errors[1] < errors[0] / 2
        found.append(errors[1])
    assert found[1] < 1e-3 and found[0] > 2.6 * found[1]  # order two; at order one the factor is 2


@pytest.mark.parametrize("path", [BrownianBridge(0.7), Trigonometric(SinSquared())], ids=str)
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_drifts_are_velocity_and_epsilon_times_score(path, t):
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    times = torch.full((6,), t, dtype=torch.float64)
    width = float(path.coefficients(times[:1]).gamma)
    amounts = {0.3: 0.3, "gamma": width, "gamma_squared": width**2, ramp: 0.2 + t}
    exact = Known(pair(), path, ["velocity", "score"])(times, x)
    for names in (NAMES, ["velocity", "score"], ["rate", "noise"], ["rate", "score"]):
        process = StochasticInterpolant(Known(pair(), path, names), path)
        for epsilon, value in amounts.items():
            noisy = process.with_epsilon(epsilon)
            for name, sign in (("drift", 1), ("backward_drift", -1)):
                want = exact["velocity"] + sign * value * exact["score"]
                torch.testing.assert_close(getattr(noisy, name)(times, x), want)
            dw = torch.ones_like(x)
            torch.testing.assert_close(noisy.diffusion(times, x, dw), (2 * value) ** 0.5 * dw)
        torch.testing.assert_close(process.score(times, x), exact["score"])


@pytest.mark.parametrize("epsilon", [1.0, "gamma", "gamma_squared", ramp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_at_both_ends(epsilon, dtype):
    x = torch.randn(4, 2, generator=seeded(), dtype=dtype)
    for path in (BrownianBridge(), Linear(gamma=SinSquared()), OneSided(), Mirror(Quadratic())):
        process = StochasticInterpolant(Known(pair(), path), path).with_epsilon(epsilon)
        for end in (0.0, 1.0):
            t = torch.full((4,), end, dtype=dtype)
            for found in (process.drift(t, x), process.backward_drift(t, x), process.score(t, x)):
                assert found.isfinite().all() and found.dtype == dtype
            assert process.diffusion(t, x, x).abs().max() < 10


def test_a_constant_epsilon_falls_with_the_width():
    process = StochasticInterpolant(Known(pair(), BrownianBridge()), BrownianBridge(), 2.0)
    t = torch.tensor([0.0, 0.25 * 0.1**2, 0.5, 1.0], dtype=torch.float64)
    one = torch.ones(4, 1, dtype=torch.float64)
    applied = process.diffusion(t, one, one).flatten() ** 2 / 2
    # the largest width is a half, a tenth of it 0.05
    torch.testing.assert_close(applied, 2.0 * (t * (1 - t) / 0.05**2).clamp_max(1))
    assert applied[0] == applied[3] == 0 and applied[2] == 2
