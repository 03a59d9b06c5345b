"""The reverse of geometric Brownian motion: its laws, its parametrisations, its likelihood."""

import pytest
import torch
from geometric_oracle import (
    DRIFTS,
    MOTIONS,
    PLANE,
    SINGLE,
    ExactField,
    Mixture,
    close,
    exactly,
    motion,
    reverse,
    seeded,
)
from torch import nn

import genflow
from genflow.interpolant import ConstantVolatility, GeometricBrownian, Linear
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import ReversedGeometric
from genflow.solver import DaleLangevin
from genflow.source import LogNormal, LogNormalMixture
from genflow.specs import build
from genflow.target import Hyvarinen, Noise
from genflow.transform import Positive

EPSILONS = [None, 0.0, 0.4, "gamma", "gamma_squared", lambda t: 0.3 + t**2]
every_motion = pytest.mark.parametrize("name", MOTIONS, ids="-".join)


def as_source(law):
    covs = torch.diag_embed(exactly(law.stds) ** 2).tolist()
    return LogNormalMixture(law.means, covs, law.weights).double()


# Scores


@every_motion
def test_the_hyvarinen_score_is_a_gradient(name):
    # the oracle's against automatic differentiation of its density, the library's against the oracle's
    path, clock = motion(*name)
    x = PLANE.sample(50, seeded())
    for s in (0.0, 0.3, 1.0):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(PLANE.log_density(leaf, clock.gained(s)).sum(), leaf)
        close(PLANE.hyvarinen(x, clock.gained(s)), x * grad)
        times = torch.full((50,), 1 - s, dtype=torch.float64)
        close(as_source(PLANE).hyvarinen(times, x, path), x * grad)


def test_a_mixture_with_correlations():
    covs = [[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]]]
    law = LogNormalMixture([[0.0, 1.0], [1.0, -0.5]], covs, [1, 2]).double()
    x = law.sample(200_000, seeded())
    shares = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    means, spreads = exactly(law.means), exactly(covs)
    parts = torch.distributions.MultivariateNormal(
        means, spreads + 0.7 * torch.eye(2, dtype=torch.float64)
    )
    blurred = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), parts)
    y = x[:50].log().requires_grad_()
    (grad,) = torch.autograd.grad(blurred.log_prob(y).sum(), y)
    path = GeometricBrownian(ConstantVolatility(1.0), "median")
    times = torch.full((50,), 0.3, dtype=torch.float64)
    close(law.hyvarinen(times, x[:50], path), grad - 1)
    logs = x.log()
    want = shares @ means
    assert float((logs.mean(0) - want).abs().max()) < 5 * float(logs.std(0).max()) / 200_000**0.5
    parts = torch.distributions.MultivariateNormal(means, spreads)
    sharp = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), parts)
    close(law.log_prob(x[:50]), sharp.log_prob(logs[:50]) - logs[:50].sum(1))
    found = law.cdf(x[:20])
    empirical = (x[None] <= x[:20, None]).double().mean(1)
    assert float((found - empirical).abs().max()) < 5 * 0.5 / 200_000**0.5
    _, labels = law.sample_labelled(9000, seeded())
    assert abs(float((labels == 1).double().mean()) - 2 / 3) < 0.02
    assert build(genflow.spec(law)).means == law.means


def standardised(field, kind):
    """The exact field as one of standardised logarithms, of each kind of output; told its process."""

    class Inside(nn.Module):
        of = ()

        def forward(self, t, n, cond=None):
            (p,) = self.of
            law = p.interpolant.law(t)
            mean, variance = law.mean.reshape(-1, 1), law.variance.reshape(-1, 1)
            total = variance + p.var
            x = torch.exp(n * total.sqrt() + p.mean + mean)
            h = field(t, x)
            noise = -(1 + h) * variance.sqrt()
            if kind == "skip":
                return (noise - (variance / total).sqrt() * n) * (total / p.var).sqrt()
            return noise if kind == "noise" else h

    return Inside()


@every_motion
@pytest.mark.parametrize("dim", [None, 2])
def test_parametrisations_agree(name, dim):
    path, clock = motion(*name)
    exact = ExactField(PLANE, clock)
    x1 = PLANE.sample(500, seeded())
    x = 2 * PLANE.sample(40, seeded(1))
    t = torch.full((40,), 0.35, dtype=torch.float64)
    want = PLANE.hyvarinen(x, clock.gained(0.65))
    width = clock.gained(0.65)[1] ** 0.5
    for predicts in ("noise", "hyvarinen"):
        for kind in ("noise", "hyvarinen", "skip"):
            if kind != "skip" and kind != predicts:
                continue
            field = standardised(exact, kind)
            process = ReversedGeometric(
                field, path, dim, predicts=predicts, skip=kind == "skip"
            ).double()
            assert process.prepare(x1, x1) is process
            field.of = (process,)
            y = x1.log()
            moments = (y.mean(0), y.var(0, correction=0)) if dim else (y.mean(), y.var(correction=0))
            close(process.mean, moments[0])
            close(process.var, moments[1])
            close(process.hyvarinen(t, x), want)
            close(process.score(t, x), want / x)
            close(process.noise(t, x), -(1 + want) * width)
            close(process(t, x), -(1 + want) * width if predicts == "noise" else want)
            close(process.known(t, x)["hyvarinen"], want)
    raw = ReversedGeometric(exact, path, dim, "hyvarinen", "raw", False).double()
    close(raw.hyvarinen(t, x), want)


class Nothing(nn.Module):
    def forward(self, t, x, cond=None):
        return torch.zeros_like(x)


@every_motion
def test_a_field_of_nothing_is_a_log_normal_law(name):
    path, clock = motion(*name)
    process = ReversedGeometric(Nothing(), path, 1).double()
    process.mean.fill_(0.4), process.var.fill_(0.55**2)
    x = SINGLE.sample(50, seeded())
    for s in (0.01, 0.5, 1.0):
        t = torch.full((50,), 1 - s, dtype=torch.float64)
        close(process.hyvarinen(t, x), SINGLE.hyvarinen(x, clock.gained(s)), 1e-8)
    bare = ReversedGeometric(Nothing(), path, 1, skip=False).double()
    assert float((bare.hyvarinen(t, x) + 1).abs().max()) == 0


@every_motion
def test_tweedie(name):
    # against the regression in each component, which is another formula; and in a Monte Carlo mean
    path, clock = motion(*name)
    process = reverse(PLANE, name)
    x = PLANE.sample(50, seeded())
    for s in (0.1, 0.6):
        t = torch.full((50,), 1 - s, dtype=torch.float64)
        want = PLANE.log_denoised(x, clock.gained(s))
        close(process.denoised(t, x).log(), want)
        wrong = x.log() - clock.gained(s)[0] + clock.gained(s)[1] * process.hyvarinen(t, x)
        assert float((wrong - want).abs().max()) > 1e-3  # without the +1


# Fokker-Planck

OFFSETS = {1: ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)),
           2: ((-2, -1 / 12), (-1, 4 / 3), (0, -2.5), (1, 4 / 3), (2, -1 / 12))}  # fmt: skip


def difference(f, order, h):
    """A derivative at zero of a function of one number, to fourth order."""
    return sum(c * f(k * h) for k, c in OFFSETS[order]) / h**order


def residual(process, law, clock, t, x, backward=False, log=False, extra=0.0):
    """``d_t p + div(b p) -+ 1/2 sum d_ii (g^2 p)`` relative to ``p``, the largest over ``x (n, d)``.

    ``b`` and ``g`` are the code's own, ``p`` the oracle's; with ``log`` for the logarithms. ``extra``
    times ``sigma^2`` is added to the drift, relative to ``x`` where that is ambient.
    """
    moving = process.chart().process if log else process
    own = moving.backward_drift if backward else moving.drift

    def density(t, x):
        gained = clock.gained(1 - t)
        return (law.logs(gained).log_prob(x) if log else law.log_density(x, gained)).exp()

    def shifted(k, v):
        out = x.clone()
        out[:, k] = out[:, k] + v * (1 if log else x[:, k])
        return out

    times = torch.full((len(x),), t, dtype=torch.float64)
    change = extra * clock.squared(1 - t)
    total, h = difference(lambda v: density(t + v, x), 1, 1e-4), 2e-3
    for k in range(x.shape[1]):
        scale = 1.0 if log else x[:, k]

        def flux(v, k=k):
            z = shifted(k, v)
            return (own(times, z)[:, k] + change * (1.0 if log else z[:, k])) * density(t, z)

        def spread(v, k=k):
            z = shifted(k, v)
            width = moving.diffusion(times, z, torch.ones_like(z)).expand_as(z)
            return width[:, k].square() / 2 * density(t, z)

        total = total + difference(flux, 1, h) / scale
        sign = -1 if backward else 1
        total = total - sign * difference(spread, 2, h) / scale**2
    return float((total / density(t, x)).abs().max())


POINTS = torch.cartesian_prod(*[torch.tensor([0.2, 0.6, 1.5, 3.5], dtype=torch.float64)] * 2)


@pytest.mark.parametrize("name", list(zip(["constant", "geometric", "own", "constant"], DRIFTS)))
@pytest.mark.parametrize("epsilon", EPSILONS, ids=lambda v: "function" if callable(v) else str(v))
def test_fokker_planck(name, epsilon):
    # tolerance 1e-5; every wrong coefficient is off by a number of order one
    clock = motion(*name)[1]
    process = reverse(PLANE, name)
    if epsilon is not None:
        process = process.with_epsilon(epsilon)
    for t in (0.1, 0.6):
        for backward in (False, True):
            assert residual(process, PLANE, clock, t, POINTS, backward) < 1e-5
            assert residual(process, PLANE, clock, t, POINTS.log(), backward, log=True) < 1e-5


@pytest.mark.parametrize("epsilon", [None, 0.0])
@pytest.mark.parametrize("extra", [-2.0, -1.0, -0.5, 0.5])
def test_fokker_planck_of_other_coefficients(epsilon, extra):
    # ambient coefficients 0, 1 and 3/2 for 2, exponents 1/2, 1 and 2 for 3/2: not below 0.5
    clock = motion()[1]
    process = reverse(PLANE)
    process = process if epsilon is None else process.with_epsilon(epsilon)
    assert residual(process, PLANE, clock, 0.6, POINTS, extra=extra) > 0.5
    assert residual(process, PLANE, clock, 0.6, POINTS.log(), log=True, extra=extra) > 0.5


@pytest.mark.parametrize("change", [lambda s, x, h: h + 1, lambda s, x, h: h / x, lambda s, x, h: -h])
def test_fokker_planck_of_wrong_scores(change):
    # without the -1, Stein's, the wrong sign
    process, clock = reverse(PLANE, change=change), motion()[1]
    assert residual(process, PLANE, clock, 0.6, POINTS) > 0.5
    assert residual(process.with_epsilon(0.0), PLANE, clock, 0.6, POINTS) > 0.5


def test_drifts_by_their_formulas():
    path, clock = motion("own", "object")
    process = reverse(PLANE, ("own", "object"))
    x, s = PLANE.sample(20, seeded()), 0.3
    t = torch.full((20,), 1 - s, dtype=torch.float64)
    h, mu, squared = PLANE.hyvarinen(x, clock.gained(s)), clock.mu(s), clock.squared(s)
    close(process.drift(t, x), x * (-mu + 2 * squared + squared * h))
    close(process.chart().process.drift(t, x.log()), -mu + 1.5 * squared + squared * h)
    close(process.backward_drift(t, x), x * -mu)
    dw = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    close(process.diffusion(t, x, dw), squared**0.5 * x * dw)
    flow = process.with_epsilon(0.0)
    assert not flow.stochastic and process.stochastic and flow.field is process.field
    close(flow.drift(t, x), -x * (mu - squared - squared * h / 2))
    assert float(flow.diffusion(t, x, dw).abs().max()) == 0
    # what has lost its sign is asked by its size
    close(process.drift(t, -x), -process.drift(t, x))


# In a model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
def test_prepare_matches_the_prior(shape, dtype):
    path = GeometricBrownian()
    process = ReversedGeometric(MLP(list(shape), 8, 1), path)
    model = Generator(LogNormal(list(shape), path), process, DaleLangevin(5), Positive("floor"))
    model = model.to(dtype)
    data = torch.rand(300, *shape, generator=seeded())
    model.prepare(data, data)
    logs = (0.05 + 0.95 * data.double()).log()
    close(model.source.mean.double(), logs.mean(0), 1e-5)
    close(model.source.var.double(), logs.var(0, correction=0), 1e-5)
    close(process.mean.double(), logs.mean(), 1e-5)
    x = model.sample(7, generator=seeded())
    assert x.shape == (7, *shape) and x.dtype == dtype and bool(x.isfinite().all())
    assert torch.equal(x, model.sample(7, generator=seeded()))
    assert model.log_prob(data[:2].to(dtype), steps=2, divergence="hutchinson").shape == (2,)
    loss = Matching(path, target=Noise())
    loss.check(process)
    inside = model.encode(data, data)
    loss(process, *inside, generator=seeded()).backward()
    assert all(p.grad is not None for p in process.parameters())


def test_round_trips(tmp_path):
    path = GeometricBrownian(ConstantVolatility(0.7), 0.1)
    for options in (
        {},
        {"predicts": "hyvarinen", "epsilon": "gamma"},
        {"inputs": "raw", "skip": False},
    ):
        process = ReversedGeometric(MLP(2, 8, 1), path, 2, **options)
        model = Generator(LogNormal(2, path), process, DaleLangevin(6, "left"), Positive("identity"))
        x = torch.rand(50, 2) + 0.5
        model.prepare(x, x)
        genflow.save(model, tmp_path / "model.ckpt")
        again = genflow.load(tmp_path / "model.ckpt")
        assert genflow.spec(again) == genflow.spec(model)
        assert torch.equal(again.sample(5, generator=seeded()), model.sample(5, generator=seeded()))
        assert torch.equal(again.source.var, model.source.var)
        assert torch.equal(again.process.var, model.process.var)


# Bad input


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda p: ReversedGeometric(Nothing(), Linear()), "interpolant must be a GeometricBrownian"),
        (lambda p: ReversedGeometric(Nothing(), p, predicts="score"), "predicts"),
        (lambda p: ReversedGeometric(Nothing(), p, inputs="x"), "inputs"),
        (lambda p: ReversedGeometric(Nothing(), p, inputs="raw"), "skip"),
        (lambda p: ReversedGeometric(Nothing(), p, epsilon=-1.0), "epsilon"),
        (lambda p: ReversedGeometric(Nothing(), p, epsilon=lambda t: t), "epsilon"),
        (lambda p: ReversedGeometric(Nothing(), p).with_epsilon(-1.0), "epsilon"),
        (lambda p: ReversedGeometric(Nothing(), p, closest=0.0), "closest"),
        (lambda p: ReversedGeometric(Nothing(), p, 3).prepare(*[torch.ones(4, 2)] * 2), "dim"),
        (lambda p: ReversedGeometric(Nothing(), p).prepare(*[torch.zeros(4, 2)] * 2), "positive"),
        (lambda p: LogNormal(2, Linear()), "interpolant"),
        (lambda p: LogNormal(2, p).match(torch.ones(4, 3)), "dim"),
        (lambda p: LogNormal(2, p).match(-torch.ones(4, 2)), "positive"),
        (lambda p: LogNormalMixture([[0.0]], -1.0), "covariances"),
        (lambda p: Matching(p, target=Noise()).check(
            ReversedGeometric(Nothing(), GeometricBrownian(ConstantVolatility(9.0)))), "interpolant"),
        (lambda p: Matching(p, target=Hyvarinen()).check(ReversedGeometric(Nothing(), p)), "predicts"),
        (lambda p: Matching(p, target=Noise()).check(
            ReversedGeometric(Nothing(), p, predicts="hyvarinen")), "predicts"),
    ],
)  # fmt: skip
def test_refusals(act, words):
    with pytest.raises((TypeError, ValueError), match=words):
        act(GeometricBrownian())


def test_data_that_are_not_positive_name_the_transform():
    path = GeometricBrownian()
    model = Generator(LogNormal(2, path), ReversedGeometric(Nothing(), path), DaleLangevin(5))
    data = torch.tensor([[1.0, -0.5], [2.0, 0.7]])
    with pytest.raises(ValueError, match="column 1 takes both signs .*transform=positive"):
        model.prepare(data, data)
    with pytest.raises(ValueError, match="positive"):
        model.log_prob(data)
    with pytest.raises(ValueError, match="positive"):
        model.sample(x0=data)
    assert isinstance(PLANE, Mixture)
