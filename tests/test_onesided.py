"""One-sided and mirror paths: laws, conversions inside the process, the mirror's identity, refusals."""

import pytest
import torch
from exact import DATA, MIRRORS, ONE_SIDED, Known, Turned, gaussian_model, score, seeded, truth
from gaussians import draw, fields, pair

from genflow.coupling import ExactOT, Gibbs, Sinkhorn
from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Mirror,
    OneSided,
    Trigonometric,
    VariancePreserving,
    Zero,
)
from genflow.loss import Matching
from genflow.oracle import Exact, independent
from genflow.process import StochasticInterpolant
from genflow.solver import Euler, Heun, RungeKutta
from genflow.source import Gaussian
from genflow.target import Noise, Score, Velocity

every_one_sided = pytest.mark.parametrize("path", ONE_SIDED, ids=str)
every_mirror = pytest.mark.parametrize("path", MIRRORS, ids=str)
every_time = pytest.mark.parametrize("t", [0.01, 0.5, 0.99])


def points(n=40, seed=3):
    return 2 * torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)


@every_one_sided
def test_the_path_is_that_between_noise_and_data(path):
    x0, x1 = torch.randn(2, 6, 3, generator=seeded())
    t = torch.rand(6, generator=seeded())
    plain, sample = path.path.sample(t, x0, x1), path.sample(t, x0, x1)
    torch.testing.assert_close(sample.x, plain.x)
    torch.testing.assert_close(sample.velocity, plain.velocity)
    assert torch.equal(sample.noise, x0) and sample.stochastic
    width = path.path.coefficients(t).alpha[:, None]
    torch.testing.assert_close(sample.score, -x0 / width)


@every_one_sided
def test_the_ends_are_noise_and_data(path):
    x0, x1 = torch.randn(2, 6, 3, generator=seeded())
    torch.testing.assert_close(path.sample(0.0, x0, x1).x, x0)
    torch.testing.assert_close(path.sample(1.0, x0, x1).x, x1)


def test_given_noise_stands_in_for_the_start():
    x0, x1, z = torch.randn(3, 6, 2, generator=seeded())
    for path in (OneSided(), Mirror()):
        found = path.sample(0.3, x0, x1, noise=z)
        assert torch.equal(found.noise, z)
    torch.testing.assert_close(OneSided().sample(0.3, x0, x1, noise=z).x, 0.7 * z + 0.3 * x1)


@every_mirror
def test_a_mirror_ignores_the_start(path):
    x0, x1, z = torch.randn(3, 6, 2, generator=seeded())
    t = torch.tensor(0.3)
    sample = path.sample(0.3, x0, x1, noise=z)
    torch.testing.assert_close(sample.x, x1 + path.gamma(t).gamma * z)
    assert torch.equal(sample.x, path.sample(0.3, 5 + x0, x1, noise=z).x)
    assert torch.equal(sample.xs[0], x1) and not sample.rate.any()
    for end in (0.0, 1.0):
        torch.testing.assert_close(path.sample(end, x0, x1, noise=z).x, x1, atol=1e-6, rtol=0)


def process(path, *names, law=None):
    return StochasticInterpolant(Known(pair() if law is None else law, path, names), path)


@every_time
@every_one_sided
def test_velocity_and_noise_determine_each_other(path, t):
    x = points()
    times = torch.full((len(x),), t, dtype=torch.float64)
    found = fields(pair(), path.coefficients(times[:1]))
    want = {name: x @ slope.T + offset for name, (slope, offset) in found.items()}
    from_velocity, from_noise = process(path, "velocity"), process(path, "noise")
    torch.testing.assert_close(from_velocity.noise(times, x), want["noise"], atol=1e-9, rtol=0)
    torch.testing.assert_close(from_noise.velocity(times, x), want["velocity"], atol=1e-9, rtol=0)
    torch.testing.assert_close(from_velocity.score(times, x), want["score"], atol=1e-7, rtol=0)


@every_time
@every_one_sided
def test_the_score_of_a_mixture_follows_from_its_velocity(path, t):
    """Against the density of torch, which knows nothing of paths."""
    x = points()
    times = torch.full((len(x),), t, dtype=torch.float64)
    c = path.path.coefficients(times[:1])
    law = truth(DATA, blur=float(c.alpha), scale=float(c.beta))
    exact = Exact(independent(Gaussian(2), DATA), path)

    class Velocity(torch.nn.Module):
        outputs = ["velocity"]

        def forward(self, t, x, cond=None):
            return {"velocity": exact.velocity(t, x)}

    noise = StochasticInterpolant(Velocity(), path).noise(times, x)
    torch.testing.assert_close(noise, -c.alpha * score(law, x), atol=1e-9, rtol=0)


def test_the_conversion_can_fail():
    # the rule of another schedule is wrong by far
    x, path = points(), OneSided(Trigonometric())
    times = torch.full((len(x),), 0.5, dtype=torch.float64)
    wrong = StochasticInterpolant(Known(pair(), path, ["velocity"]), OneSided()).noise(times, x)
    assert (wrong - process(path, "velocity").noise(times, x)).abs().max() > 0.1


@every_time
@pytest.mark.parametrize("epsilon", [0.5, "gamma"])
@every_one_sided
def test_every_head_alone_gives_the_same_drifts(path, epsilon, t):
    x = points()
    times = torch.full((len(x),), t, dtype=torch.float64)
    whole = process(path, "velocity", "noise").with_epsilon(epsilon)
    for names in (["velocity"], ["noise"], ["denoised"], ["score"], ["rate", "score"]):
        single = process(path, *names).with_epsilon(epsilon)
        for name in ("drift", "backward_drift", "velocity", "score"):
            found, want = (getattr(p, name)(times, x) for p in (single, whole))
            torch.testing.assert_close(found, want, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@every_mirror
def test_every_head_of_a_mirror_gives_the_same_drift(path, t):
    x = points()
    times = torch.full((len(x),), t, dtype=torch.float64)
    whole = process(path, "velocity", "noise").with_epsilon(0.5)
    for names in (["noise"], ["denoised"], ["score"]):
        drift = process(path, *names).with_epsilon(0.5).drift(times, x)
        torch.testing.assert_close(drift, whole.drift(times, x), atol=1e-9, rtol=0)


def test_the_velocity_of_a_mirror_tells_no_noise():
    # its factor, the rate of the width, vanishes in the middle
    with pytest.raises(ValueError, match="only .'velocity'."):
        process(Mirror(), "velocity").with_epsilon(0.5)


def half_way(path, x, sign=1):
    """Second moments where the flow of a mixture's mirror stands at t = 1/2, against the truth."""
    exact = Turned(Exact(independent(DATA, DATA), path), velocity=sign)
    at = Heun().solve(StochasticInterpolant(exact, path), x, torch.linspace(0, 0.5, 26)).x
    width = float(path.gamma(torch.tensor(0.5)).gamma)
    want = x.T @ x / len(x) + width**2 * torch.eye(2, dtype=torch.float64)
    return float((at.T @ at / len(x) - want).abs().max())


@every_mirror
def test_the_flow_of_a_mirror_is_the_identity(path):
    x = DATA.sample(500, seeded())
    exact = Exact(independent(DATA, DATA), path)
    for times in ([0.0, 1.0], [1.0, 0.0]):
        grid = torch.linspace(*times, 41)
        assert (
            RungeKutta().solve(StochasticInterpolant(exact, path), x, grid).x - x
        ).abs().max() < 2e-3


def test_half_way_a_mirror_is_as_wide_as_its_noise():
    # the identity holds with either sign of the velocity, the width half-way does not
    x, path = DATA.sample(10_000, seeded()), Mirror()
    assert half_way(path, x) < 0.15
    path = Mirror(Brownian(4.0))
    assert half_way(path, x) < 0.15
    assert half_way(path, x, sign=-1) > 1.24


def test_noise_makes_new_samples_of_a_mirror():
    x = draw(pair(), 4000, seeded())[1]
    model = gaussian_model(pair(), Mirror())
    still = model.sample(x0=x, epsilon=0.0)
    moved = model.sample(x0=x, epsilon=2.0, generator=seeded())
    assert (still - x).abs().max() < 2e-3
    correlation = torch.corrcoef(torch.cat([x, moved], 1).T)[0, 2]
    assert abs(correlation) < 0.9 and (moved - x).abs().mean() > 0.2
    assert (moved.T.cov() - pair().cov1).abs().max() < 0.1


@pytest.mark.parametrize(
    "path",
    [BrownianBridge(), EncoderDecoder(), Linear(sigma=0.1), VariancePreserving(), OneSided(), "x"],
)
def test_a_path_with_a_width_of_its_own_is_refused(path):
    with pytest.raises(ValueError, match="its noise is x0 itself"):
        OneSided(path)


def test_a_mirror_needs_a_width():
    with pytest.raises(ValueError, match="without width the path stands still"):
        Mirror(Zero())


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(0.5), Gibbs(1.0)], ids=str)
@pytest.mark.parametrize("path", [OneSided(), Mirror()], ids=str)
def test_couplings_that_pair_are_refused(path, coupling):
    with pytest.raises(ValueError, match="right for independent pairs alone"):
        Matching(path, coupling)
    for target in (Velocity(), Noise(), Score()):
        Matching(path, target=target)


def test_starts_that_are_no_standard_normal_are_refused(generator):
    z = torch.randn(2000, 2, generator=generator)
    x1 = 3 + 2 * torch.randn(2000, 2, generator=generator)
    assert OneSided().prepare(z, x1) == OneSided()
    Matching(OneSided()).prepare(z, x1)
    for wrong in (z + 0.5, 1.5 * z, z * torch.tensor([1.0, 0.5])):
        with pytest.raises(ValueError, match="needs a standard normal x0"):
            OneSided().prepare(wrong, x1)
    for paired in (3 + 2 * z, z + 0.3 * torch.randn(2000, 2, generator=generator)):
        with pytest.raises(ValueError, match="independent of x1"):
            Matching(OneSided()).prepare(z, paired)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
def test_honest_starts_pass(shape):
    # 6 standard errors: no false alarm in 100 runs, with many coordinates or few rows
    for seed in range(100):
        z, x1 = torch.randn(2, 150, *shape, generator=seeded(seed))
        OneSided().prepare(z, x1)


def test_euler_reaches_the_data_of_a_one_sided_path():
    law, n = pair(), 4000
    model = gaussian_model(law, OneSided())
    x = model.sample(n, solver=Euler(200), epsilon="gamma", generator=seeded())
    error = (law.cov1.diagonal() / n).sqrt()
    assert ((x.mean(0) - law.mean1).abs() < 4 * error + 0.02).all()


def test_a_mirror_starts_from_the_data(generator):
    x0, x1 = DATA.sample(3000, generator), DATA.sample(2000, generator)
    black = torch.nn.functional.pad  # pixels that are always black, as at the rim of digits
    assert Mirror().prepare(x0, x1) == Mirror().prepare(black(x0, (1, 1)), black(x1, (1, 1)))
    for wrong in (x0 + 0.5, 1.3 * x0, torch.randn(3000, 2, generator=generator)):
        with pytest.raises(ValueError, match="Mirror starts from data"):
            Matching(Mirror(), target=Noise()).prepare(wrong, x1)
    with pytest.raises(ValueError, match="Mirror starts from data"):
        Mirror().prepare(black(x0, (1, 1)), black(x1, (1, 1), value=1.0))


def test_honest_mirrors_pass():
    for seed in range(100):  # rare pixels: one row in a hundred
        rare = torch.rand(2, 300, 64, generator=seeded(seed)) < 0.01
        Mirror().prepare(*(v * torch.randn(300, 64, generator=seeded(seed)) for v in rare))
