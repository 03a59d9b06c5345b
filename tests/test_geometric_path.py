"""Geometric Brownian motion as a path: its law, its targets, the three losses of its score."""

import math

import pytest
import torch
from geometric_oracle import DRIFTS, LINE, MOTIONS, PLANE, Growing, Wave, close, motion, seeded

import genflow
from genflow.interpolant import (
    ConstantVolatility,
    GeometricBrownian,
    GeometricVolatility,
    Linear,
    Volatility,
)
from genflow.loss import ExplicitScoreMatching, ImplicitScoreMatching, Matching
from genflow.source import LogNormalMixture
from genflow.specs import build
from genflow.target import Drift, Hyvarinen, Noise, Rate, Score, Velocity
from genflow.time import Uniform

every_motion = pytest.mark.parametrize("name", MOTIONS, ids="-".join)


def grid(n=11):
    return torch.linspace(0, 1, n, dtype=torch.float64)


def z_score(values):
    """Of a mean that should be zero, the largest over columns."""
    values = values.reshape(len(values), -1)
    return float((values.mean(0) / (values.std(0) / len(values) ** 0.5)).abs().max())


# The law


@every_motion
def test_the_law_is_the_integral_of_its_rates(name):
    path, clock = motion(*name)
    t = grid()
    law = path.law(t)
    want = torch.tensor([clock.gained(1 - v) for v in t.tolist()], dtype=torch.float64)
    close(torch.stack([law.mean, law.variance], 1), want)
    rates = torch.tensor([[clock.mu(1 - v), clock.squared(1 - v)] for v in t.tolist()]).double()
    close(torch.stack([law.mu, law.squared], 1), rates, 1e-6)
    assert float(law.variance[-1]) == 0 and float(law.mean[-1]) == 0
    assert path.law(t.reshape(1, 11, 1)).mean.shape == (1, 11, 1)
    assert path.law(t.float()).variance.dtype == torch.float32


@every_motion
def test_moments_of_draws(name):
    # log-moments and the mean against the lognormal's, in standard errors
    path, clock = motion(*name)
    n, s, start = 40_000, 0.5, 1.7
    x1 = torch.full((n, 1), start, dtype=torch.float64)
    x = path.sample(1 - s, x1, x1, generator=seeded()).x
    mean, variance = clock.gained(s)
    logs = x.log() - math.log(start)
    assert z_score(logs - mean) < 4
    assert z_score((logs - mean) ** 2 - variance) < 4
    assert z_score(x - start * math.exp(mean + variance / 2)) < 4.5
    # Ito's correction forgotten, or of the other sign
    assert z_score(logs - mean - variance / 2) > 30
    assert z_score(logs - mean + variance / 2) > 30


def forward_em(clock, x, s, steps, generator, coefficient=0.0):
    """Ambient Euler-Maruyama of the motion; ``coefficient`` adds to the drift what should not be."""
    h = s / steps
    for k in range(steps):
        mu, squared = clock.mu((k + 0.5) * h), clock.squared((k + 0.5) * h)
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x * (1 + (mu + coefficient * squared) * h + (squared * h) ** 0.5 * xi)
    return x


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_motion_simulated_has_this_law(drift):
    # tolerances of the log-mean and log-variance .02 and .06; a Stratonovich reading is 2.25 / 4 off
    path, clock = motion("constant", drift)
    law = path.law(torch.tensor(0.5, dtype=torch.float64))
    start = torch.ones(40_000, 1, dtype=torch.float64)
    logs = forward_em(clock, start, 0.5, 300, seeded()).log()
    assert abs(float(logs.mean() - law.mean)) < 0.02
    assert abs(float(logs.var() - law.variance)) < 0.06
    wrong = forward_em(clock, start, 0.5, 300, seeded(), coefficient=0.5).log()
    assert abs(float(wrong.mean() - law.mean)) > 0.5


# One draw


@every_motion
@pytest.mark.parametrize("shape", [(), (2,), (1, 8, 8)], ids=str)
def test_a_draw_of_any_shape(name, shape):
    path, clock = motion(*name)
    x1 = torch.rand(5, *shape, generator=seeded(), dtype=torch.float64) + 0.1
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    s = path.sample(t, 7 * x1, x1, generator=seeded(1))
    assert bool((s.x > 0).all()) and s.x.shape == x1.shape
    gained = torch.tensor([clock.gained(1 - v) for v in t.tolist()], dtype=torch.float64)
    mean, variance = (v.reshape(5, *(1,) * len(shape)) for v in gained.T)
    close(s.x, x1 * torch.exp(mean + variance.sqrt() * s.noise))
    close(s.gamma.expand_as(x1), variance.sqrt().expand_as(x1))
    assert torch.equal(s.x[-1], x1[-1])
    inside = slice(0, 4)
    close(s.hyvarinen[inside], (-1 - s.noise / variance.sqrt())[inside])
    close(s.score[inside], (s.hyvarinen / s.x)[inside])
    for field in (s.x, s.hyvarinen, s.score, s.velocity, s.rate):
        assert bool(field.isfinite().all()) and field.dtype == torch.float64
    again = path.sample(t, 7 * x1, x1, generator=seeded(1))
    assert torch.equal(again.x, s.x)
    close(path.sample(t, x1, x1, noise=s.noise).x, s.x, 0)  # x0 plays no part
    assert path.sample(t.float(), x1.float(), x1.float()).x.dtype == torch.float32


@every_motion
def test_rates_are_derivatives_along_the_path(name):
    path, _ = motion(*name)
    x1 = torch.rand(6, 2, generator=seeded(), dtype=torch.float64) + 0.2
    z = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    t, h = torch.linspace(0.1, 0.9, 6, dtype=torch.float64), 1e-5

    def at(t, z):
        return path.sample(t, x1, x1, noise=z)

    here = at(t, z)
    close(here.velocity, (at(t + h, z).x - at(t - h, z).x) / (2 * h), 1e-6)
    still = at(t, 0 * z)
    close(still.rate, (at(t + h, 0 * z).x - at(t - h, 0 * z).x) / (2 * h), 1e-6)
    close(here.dgamma, (at(t + h, z).gamma - at(t - h, z).gamma) / (2 * h), 1e-6)
    close(here.gamma_dgamma, here.gamma * here.dgamma)
    turned = here.reflected
    close(turned.x, at(t, -z).x)
    close(turned.hyvarinen + here.hyvarinen, torch.full_like(z, -2.0))


def test_the_conditional_scores_are_gradients():
    path, clock = motion("geometric", "object")
    x1 = torch.rand(40, 2, generator=seeded(), dtype=torch.float64) + 0.2
    s = path.sample(0.4, x1, x1, generator=seeded(1))
    mean, variance = clock.gained(0.6)
    x = s.x.clone().requires_grad_()
    law = torch.distributions.LogNormal(x1.log() + mean, variance**0.5)
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    close(s.score, gradient)
    close(s.hyvarinen, s.x * gradient)


# Denoising score matching


def residuals(target, s, weights=True):
    """``(h - T) g(x)`` for several ``g``: of mean zero if ``h`` is the regression of ``T`` on ``x``."""
    path, clock = motion("constant", "martingale")
    x1 = LINE.sample(100_000, seeded(3))
    sample = path.sample(1 - s, x1, x1, generator=seeded(4))
    h = LINE.hyvarinen(sample.x, clock.gained(s))
    y = sample.x.log()
    g = torch.cat([torch.ones_like(y), y, y.sin(), torch.exp(-(y**2)), y**2], 1)
    return (h - target(sample)) * g


@pytest.mark.parametrize("s", [0.2, 0.6, 0.95])
def test_the_denoising_target_is_unbiased(s):
    # tolerance 4.5 standard errors; the wrong targets are at least 7 away
    assert z_score(residuals(Hyvarinen(), s)) < 4.5
    variance = motion("constant", "martingale")[1].gained(s)[1]
    assert z_score(residuals(lambda d: -1 - Noise()(d) / variance**0.5, s)) < 4.5
    assert z_score(residuals(lambda d: d.x * Score()(d), s)) < 4.5
    assert z_score(residuals(lambda d: -d.noise / variance**0.5, s)) > 16  # without the -1
    assert z_score(residuals(Score(), s)) > 7  # the score of x, Stein's
    assert z_score(residuals(lambda d: -1 + d.noise / variance**0.5, s)) > 16


def tilt(theta):
    """A learner of the wrong Hyvarinen score ``h + theta g``, and of the wrong noise."""
    path, clock = motion("constant", "median")

    def learner(t, x):
        s = float(1 - t[0])
        h = LINE.hyvarinen(x, clock.gained(s))
        return h + theta * torch.sin(x.log())

    return learner


class At(Uniform):
    """One time for all rows, so that exact fields are cheap."""

    def __call__(self, x, generator=None):
        return x.new_full(x.shape[:1], 0.4), x.new_ones(len(x))


def test_matching_is_multiplicative_denoising_score_matching():
    # the loss has its least value, up to noise, where the learner is exact
    path, clock = motion("constant", "median")
    root = clock.gained(0.6)[1] ** 0.5
    x1 = LINE.sample(50_000, seeded(3))
    plain = Matching(path, time=At(), target=Hyvarinen())
    weighted = Matching(path, time=At(), target=Noise())
    losses, noises = [], []
    for theta in (-0.4, 0.0, 0.4):
        wrong = tilt(theta)
        losses.append(float(plain(wrong, x1, x1, generator=seeded(5))))
        as_noise = lambda t, x, wrong=wrong: -(1 + wrong(t, x)) * root  # noqa: E731
        noises.append(float(weighted(as_noise, x1, x1, generator=seeded(5))))
    vertex = (losses[0] - losses[2]) / (2 * (losses[0] + losses[2] - 2 * losses[1])) * 0.4
    assert abs(vertex) < 0.02
    # the noise's loss is the same one with weight V
    close(torch.tensor(noises), torch.tensor(losses) * root**2, 1e-5)


@pytest.mark.parametrize("target", [Velocity(), Noise(), Score(), Hyvarinen()])
def test_targets_of_the_path(target):
    loss = Matching(GeometricBrownian(), time=Uniform(margin=1e-3), target=target)
    x1 = torch.rand(7, 1, 8, 8) + 0.1
    value = loss(lambda t, x: x.log(), x1, x1, generator=seeded())
    assert value.ndim == 0 and bool(value.isfinite())
    assert torch.equal(value, loss(lambda t, x: x.log(), 3 * x1, x1, generator=seeded()))


@pytest.mark.parametrize("target", [Drift(1.0), Rate()])
def test_targets_of_added_noise_are_refused(target):
    with pytest.raises(ValueError, match="Hyvarinen"):
        Matching(GeometricBrownian(), target=target)


def test_the_hyvarinen_target_needs_multiplicative_noise():
    with pytest.raises(ValueError, match="Hyvarinen"):
        Matching(Linear(sigma=0.1), target=Hyvarinen())


# The three losses

LAW = LogNormalMixture([[-0.8], [0.8]], [0.3**2, 0.2**2], [0.35, 0.65]).double()
WRONG = {
    "nothing": lambda t, x: 0 * x,
    "line": lambda t, x: -0.7 - 0.8 * x.log(),
    "wave": lambda t, x: torch.sin(2 * x.log()) - 1,
    "bump": lambda t, x: t.reshape(-1, 1) * torch.exp(-(x.log() ** 2)),
}


def chunks(loss, learner):
    """The loss on ten batches, the draws of which are the same for every loss and learner."""
    batches = [LINE.sample(4000, seeded(50 + k)) for k in range(10)]
    return torch.stack(
        [loss(learner, x, x, generator=seeded(k)).detach() for k, x in enumerate(batches)]
    )


def constants(loss, other):
    """``loss - other`` for the four learners, ``(10, 4)``."""
    return torch.stack([chunks(loss, w) - chunks(other, w) for w in WRONG.values()], 1)


def unlike(found):
    """How far the constants of four learners are from equal, in standard errors."""
    return z_score(found[:, 1:] - found[:, :1])


@pytest.mark.parametrize("weighted", [True, False])
def test_the_losses_differ_by_constants(weighted):
    # tolerance 4.5 standard errors
    path, clock = motion("constant", "martingale")
    options = {"interpolant": path, "time": Uniform(margin=0.1), "weighted": weighted}
    explicit = ExplicitScoreMatching(law=LAW, **options)
    implicit = ImplicitScoreMatching(**options)
    found = constants(implicit, explicit)
    assert unlike(found) < 4.5
    # the constant is minus half the mean square of the exact score
    size = chunks(explicit, WRONG["nothing"])
    assert z_score(found[:, 1:] + size[:, None]) < 4.5

    def denoising(target):
        def loss(learner, x0, x1, generator):
            t, _ = options["time"](x1, generator)
            sample = path.sample(t, x0, x1, generator=generator)
            rows = (learner(t, sample.x) - target(sample)).square().mean(1) / 2
            return (rows * path.law(t).variance if weighted else rows).mean()

        return loss

    assert unlike(constants(denoising(Hyvarinen()), explicit)) < 4.5
    assert unlike(constants(denoising(lambda s: 1 + Hyvarinen()(s)), explicit)) > 20  # without the -1
    assert unlike(constants(denoising(Score()), explicit)) > 5.5  # Stein's

    def half(learner, x0, x1, generator):  # the implicit loss without + h
        t, _ = options["time"](x1, generator)
        x = path.sample(t, x0, x1, generator=generator).x
        rows = learner(t, x).mean(1)
        return (rows * path.law(t).variance if weighted else rows).mean()

    def without(learner, x0, x1, generator):
        found = implicit(learner, x0, x1, generator=generator)
        return found - half(learner, x0, x1, generator.manual_seed(generator.initial_seed()))

    assert unlike(constants(without, explicit)) > 20


def test_the_weighted_noise_loss_is_twice_the_weighted_denoising_loss():
    path, _ = motion("geometric", "median")
    x1 = LINE.sample(500, seeded())
    wrong = WRONG["line"]
    noise = lambda t, x: -(1 + wrong(t, x)) * path.law(t).variance.sqrt()[:, None]  # noqa: E731
    found = Matching(path, time=Uniform(margin=1e-3), target=Noise())(noise, x1, x1, generator=seeded())
    t, _ = Uniform(margin=1e-3)(x1, draw := seeded())
    sample = path.sample(t, x1, x1, generator=draw)
    want = (path.law(t).variance[:, None] * (wrong(t, sample.x) - sample.hyvarinen) ** 2).mean()
    close(found, want)


@pytest.mark.parametrize("shape", [(3,), (1, 8, 8)], ids=str)
def test_probes_estimate_the_implicit_loss(shape):
    x1 = torch.rand(6, *shape, generator=seeded(), dtype=torch.float64) + 0.5
    torch.manual_seed(0)
    net = torch.nn.Linear(x1[0].numel(), x1[0].numel()).double()
    learner = lambda t, x: net(x.log().flatten(1)).tanh().reshape(x.shape)  # noqa: E731
    path = GeometricBrownian(ConstantVolatility(1.0))
    exact = ImplicitScoreMatching(path, time=At())(learner, x1, x1, generator=seeded(1))
    exact.backward()
    assert float(net.weight.grad.abs().max()) > 0
    # by hand, from the whole Jacobian in x
    x = path.sample(0.4, x1, x1, generator=seeded(1)).x
    h = learner(None, x)
    jacobian = torch.autograd.functional.jacobian(lambda v: learner(None, v).sum(0).flatten(), x)
    slope = torch.stack([jacobian[:, b].flatten(1).diagonal() for b in range(6)]).reshape(x.shape)
    want = 0.6 * (h**2 / 2 + h + x * slope).mean()
    close(exact.detach(), want.detach())
    estimates = torch.stack(
        [
            ImplicitScoreMatching(path, time=At(), probes=100)(learner, x1, x1, generator=seeded(1))
            for _ in range(2)
        ]
    )
    assert torch.equal(*estimates)
    assert abs(float((estimates[0] - exact).detach())) < 0.05


@pytest.mark.parametrize(
    "act",
    [
        lambda: ExplicitScoreMatching(), lambda: ExplicitScoreMatching(law=torch.nn.Identity()),
        lambda: ImplicitScoreMatching(probes=0), lambda: ImplicitScoreMatching(Linear()),
        lambda: ExplicitScoreMatching(law=LAW, time=None),
    ],
)  # fmt: skip
def test_losses_refuse(act):
    with pytest.raises((TypeError, ValueError), match="ScoreMatching"):
        act()


# Bad input and round trips


@pytest.mark.parametrize(
    "column, hint",
    [([1.0, 0.0, 0.5], "floor"), ([-1.0, 0.5, 1.0], "one_plus"), ([-3.0, -2.0, -1.0], "one_plus")],
)
def test_data_that_are_not_positive(column, hint):
    x = torch.ones(3, 2)
    x[:, 1] = torch.tensor(column)
    path = GeometricBrownian()
    for act in (lambda: path.sample(0.5, x, x), lambda: path.prepare(x, x)):
        with pytest.raises(ValueError, match=f"column 1 .*transform=positive.*{hint}"):
            act()
    good = torch.ones(3, 2)
    assert path.prepare(good, good) is path
    assert path.sample(0.5, x, good).x.shape == (3, 2)  # the source may be anything


class Endless(Volatility):
    """``sigma^2 = 1 / (1 - s)^2``: no finite integral."""

    def squared(self, s):
        return 1 / (1 - s) ** 2

    def variance(self, s):
        return s / (1 - s)


class Falling(Volatility):
    def squared(self, s):
        return 1 - 2 * s

    def variance(self, s):
        return s - s**2


class Offset(Volatility):
    def squared(self, s):
        return torch.ones_like(s)

    def variance(self, s):
        return 0.1 + s


class Unlike(Volatility):
    def squared(self, s):
        return torch.ones_like(s)

    def variance(self, s):
        return 2 * s


@pytest.mark.parametrize(
    "part, words",
    [(Endless(), "finite"), (Falling(), "rise"), (Offset(), "from 0"), (Unlike(), "integral")],
)
def test_volatilities_that_are_none(part, words):
    with pytest.raises(ValueError, match=f"GeometricBrownian.*volatility.*{words}"):
        GeometricBrownian(part)


@pytest.mark.parametrize(
    "act",
    [
        lambda: ConstantVolatility(0.0), lambda: ConstantVolatility(math.nan),
        lambda: GeometricVolatility(0.0, 1.0), lambda: GeometricVolatility(1.0, 1.0),
        lambda: GeometricVolatility(2.0, 1.0), lambda: GeometricBrownian(1.5),
        lambda: GeometricBrownian(drift="mean"), lambda: GeometricBrownian(drift=[1.0]),
        lambda: GeometricBrownian(drift=math.nan), lambda: GeometricBrownian(drift=math.inf),
        lambda: GeometricBrownian(drift=True),
    ],
)  # fmt: skip
def test_other_bad_arguments(act):
    with pytest.raises((ValueError, TypeError), match="sigma|volatility|drift"):
        act()


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_times_outside(t):
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        GeometricBrownian().sample(t, x, x)


def test_one_marginal_or_unequal_shapes():
    x = torch.ones(3, 2)
    for given in ((x,), (x, x, x), (x, x[:2])):
        with pytest.raises(ValueError, match="GeometricBrownian"):
            GeometricBrownian().sample(0.5, *given)


@pytest.mark.parametrize("volatility", [ConstantVolatility(0.7), GeometricVolatility(), Growing()])
@pytest.mark.parametrize("drift", ["median", "martingale", 0.3, Wave(0.2)])
def test_round_trips(volatility, drift):
    path = GeometricBrownian(volatility, drift)
    assert build(genflow.spec(path), trust=["geometric_oracle."]) == path
    assert hash(path) == hash(GeometricBrownian(volatility, drift))


def test_an_affine_path_of_two_sources_is_no_such_path():
    assert GeometricBrownian().independent and not GeometricBrownian().additive
    assert Linear().additive


def test_the_marginal_is_that_of_the_mixture():
    # two coordinates, through the oracle's distribution function
    from geometric_oracle import ks

    path, clock = motion("own", "number")
    x1 = PLANE.sample(10_000, seeded())
    x = path.sample(0.3, x1, x1, generator=seeded(1)).x
    gained = clock.gained(0.7)
    for k in range(2):
        assert ks(x[:, k], lambda v, k=k: PLANE.cdf(v, k, gained)) < 0.02
        assert ks(x[:, k], lambda v, k=k: PLANE.cdf(v, k, (0.0, gained[1]))) > 0.05
