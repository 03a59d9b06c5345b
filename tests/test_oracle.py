"""Exact fields: against autograd, the continuity equation, quadrature and regression."""

import math

import gaussians
import pytest
import torch
from laws import LEFT, RIGHT, coupled, moment_scores
from torch import distributions as D

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
from genflow.oracle import Exact, Joint, gaussian, independent
from genflow.process import SDE
from genflow.solver import Heun
from genflow.source import Gaussian

GAMMAS = [Brownian(0.8), Quadratic(), SinSquared(), SigmaDifference(8.0)]
PATHS = [
    Linear(), Linear(sigma=0.3), Trigonometric(), VariancePreserving(Zero()), BrownianBridge(0.7),
    *map(lambda g: Linear(gamma=g), [*GAMMAS, Constant(0.2)]), *map(Trigonometric, GAMMAS),
    *map(VariancePreserving, [Brownian(0.8), Quadratic(), SigmaDifference(4.0)]),
    *map(EncoderDecoder, GAMMAS), *map(Mirror, GAMMAS),
    OneSided(), OneSided(Trigonometric()), OneSided(VariancePreserving(Zero())),
]  # fmt: skip
every_path = pytest.mark.parametrize("path", PATHS, ids=str)
FIELDS = ("velocity", "rate", "noise", "score", "denoised", "start")


def law_for(path):
    return independent(LEFT, RIGHT) if path.independent else coupled()


def reflected(law):
    """The law with ``Cov(x0, x1)`` read the wrong way round."""
    return Joint(law.weights, law.mean0, law.mean1, law.cov0, law.cov1, law.cross.mT)


def divergence(f, x):
    x = x.clone().requires_grad_()
    value = f(x)
    grads = [torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])]
    return sum(g[:, i] for i, g in enumerate(grads)).detach()


def residual(exact, t, x, velocity, h=1e-5):
    """Of the continuity equation, in log form; the score by autograd."""
    x = x.clone().requires_grad_()
    score = torch.autograd.grad(exact.log_prob(t, x).sum(), x)[0]
    x = x.detach()
    rate = (exact.log_prob(t + h, x) - exact.log_prob(t - h, x)) / (2 * h)
    terms = rate + divergence(velocity, x) + (velocity(x) * score).sum(1)
    return terms.abs().max()


@every_path
def test_score_and_velocity_fit_the_density(path, generator):
    exact = Exact(law_for(path), path)
    for t in (0.07, 0.36, 0.8):
        x = exact.sample(t, 40, generator).requires_grad_()
        score = torch.autograd.grad(exact.log_prob(t, x).sum(), x)[0]
        torch.testing.assert_close(exact.score(t, x), score, rtol=1e-9, atol=1e-9)
        x = x.detach()
        assert residual(exact, t, x, lambda v, t=t: exact.velocity(t, v)) < 1e-5
        c = path.coefficients(torch.tensor([t]))
        if abs(float(c.gamma_dgamma)) > 0.01:  # neither forgotten nor turned round
            rate = lambda v, t=t: exact.rate(t, v)  # noqa: E731
            assert residual(exact, t, x, rate) > 1e-3
            turned = lambda v, t=t: 2 * exact.rate(t, v) - exact.velocity(t, v)  # noqa: E731
            assert residual(exact, t, x, turned) > 1e-3


@every_path
def test_conditional_means_add_up(path, generator):
    exact = Exact(law_for(path), path)
    for t in (0.0, 0.2, 0.7, 1.0):
        x = exact.sample(t, 50, generator)
        found = exact.fields(t, x, [*FIELDS, "drift"], sigma=0.6)
        assert all(v.isfinite().all() for v in found.values())
        c = [float(v) for v in path.coefficients(torch.tensor([t], dtype=torch.float64))]
        alpha, beta, gamma, dalpha, dbeta, dgamma, _ = c
        whole = alpha * found["start"] + beta * found["denoised"] + gamma * found["noise"]
        torch.testing.assert_close(whole, x)
        moved = dalpha * found["start"] + dbeta * found["denoised"]
        torch.testing.assert_close(moved, found["rate"])
        torch.testing.assert_close(found["noise"], -gamma * found["score"])
        torch.testing.assert_close(found["drift"], found["velocity"] + 0.18 * found["score"])
        if 0 < t < 1:
            torch.testing.assert_close(found["velocity"], moved + dgamma * found["noise"])
        single = {n: getattr(exact, n)(t, x) for n in FIELDS}
        assert all(torch.equal(v, found[n]) for n, v in single.items())
        assert torch.equal(exact.drift(t, x, 0.6), found["drift"])


@pytest.mark.parametrize("path", [p for p in PATHS if p.stochastic and not p.independent], ids=str)
def test_fields_are_integrals_over_the_endpoints(path):
    # one dimension: sums over a grid of (x0, x1), exact for smooth integrands; shares no code
    law = coupled(1, 2)
    x0, x1 = torch.linspace(-16, 16, 641, dtype=torch.float64).expand(2, -1)
    pairs = torch.cartesian_prod(x0, x1)
    normal = D.MultivariateNormal(law.mean, law.cov)
    density = D.MixtureSameFamily(D.Categorical(law.weights), normal).log_prob(pairs)
    exact, wrong = Exact(law, path), 0.0
    for t in (0.3, 0.6):
        c = [float(v) for v in path.coefficients(torch.tensor([t], dtype=torch.float64))]
        alpha, beta, gamma, dalpha, dbeta, dgamma, _ = c
        if gamma < 0.1:
            continue
        rate = pairs @ torch.tensor([dalpha, dbeta], dtype=torch.float64)
        for x in (-1.2, 0.4):
            z = (x - pairs @ torch.tensor([alpha, beta], dtype=torch.float64)) / gamma
            logs = density - z**2 / 2
            share = logs.softmax(0)
            want = {
                "velocity": rate + dgamma * z, "rate": rate, "noise": z, "score": -z / gamma,
                "start": pairs[:, 0], "denoised": pairs[:, 1],
            }  # fmt: skip
            found = exact.fields(t, torch.tensor([[x]], dtype=torch.float64), FIELDS)
            for name, values in want.items():
                assert float(found[name]) == pytest.approx(float(share @ values), abs=1e-8), name
            step = 32 / 640
            total = torch.logsumexp(logs, 0) + math.log(step**2 / gamma / math.sqrt(2 * math.pi))
            log_prob = exact.log_prob(t, torch.tensor([[x]], dtype=torch.float64))
            assert float(log_prob) == pytest.approx(float(total), abs=1e-8)
            wrong = max(wrong, abs(float(share @ (rate - dgamma * z)) - float(found["velocity"])))
    assert wrong > 0.01 or "sigma" in str(path) or "Constant" in str(path)


TIMES = (0.02, 0.25, 0.5, 0.9)


@pytest.mark.parametrize(
    "path", [Linear(gamma=Brownian()), Trigonometric(), BrownianBridge(0.5)], ids=str
)
def test_gaussian_pairs_by_least_squares(path, generator):
    pair = gaussians.pair(correlated=True)
    exact = Exact(gaussian(*pair), path)
    wrong = Exact(gaussian(*pair[:4], pair.cross.T), path)
    x0, x1 = gaussians.draw(pair, 200_000, generator)
    probe = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()

    def affine(values):
        return (values[1:] - values[0]).T, values[0]

    for t in TIMES:
        sample = path.sample(t, x0, x1, generator=generator)
        targets = {"velocity": sample.velocity, "rate": sample.rate, "start": x0, "denoised": x1}
        if path.stochastic:
            targets["noise"] = sample.noise
        c = path.coefficients(torch.tensor([t], dtype=torch.float64))
        closed = gaussians.fields(pair, c, 0.4)
        found = {k: affine(v) for k, v in exact.fields(t, probe, [*targets, "score"]).items()}
        for name in targets.keys() & closed.keys():
            assert gaussians.distance(found[name], closed[name]) < 1e-10
        assert gaussians.distance(affine(exact.drift(t, probe, 0.4)), closed["drift"]) < 1e-10
        assert gaussians.distance(found["score"], closed["score"]) < 1e-10
        for name, target in targets.items():
            assert gaussians.distance(found[name], gaussians.least_squares(sample.x, target)) < 0.06
        fit = gaussians.least_squares(sample.x, sample.velocity)
        assert gaussians.distance(affine(wrong.velocity(t, probe)), fit) > 0.1


def z_score(error, x):
    """Largest ``|mean| / standard error`` of ``error`` times functions of ``x``."""
    tests = torch.cat([torch.ones_like(x[:, :1]), x, torch.tanh(x), torch.sin(2 * x), x[:, :1] * x], 1)
    products = (error[:, :, None] * tests[:, None]).flatten(1)
    return float((products.mean(0) / products.std(0)).abs().max() * len(x) ** 0.5)


@pytest.mark.parametrize("path", PATHS[3:12:2] + PATHS[12::3] + PATHS[-3:-1], ids=str)
def test_fields_are_regressions(path, generator):
    law, n, t = law_for(path), 100_000, 0.27
    exact = Exact(law, path)
    if isinstance(path, OneSided):
        x1 = law.sample(n, generator)[1]
        x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    else:
        x0, x1 = law.sample(n, generator)
    s = path.sample(t, x0, x1, generator=generator)
    targets = {"velocity": s.velocity, "rate": s.rate, "denoised": s.xs[1], "start": s.xs[0]}
    if path.stochastic:
        targets |= {"noise": s.noise, "score": -s.noise / s.gamma}
    found = exact.fields(t, s.x, targets)
    for name, target in targets.items():
        assert (found[name] - target).abs().max() < 1e-9 or z_score(found[name] - target, s.x) < 4.5
    if path.stochastic:
        assert z_score(-found["noise"] - s.noise, s.x) > 50
        if float(s.gamma_dgamma[0].abs()) > 0.15:
            assert z_score(found["rate"] - s.velocity, s.x) > 8
    if not path.independent and not isinstance(path, EncoderDecoder):
        swapped = Exact(reflected(law), path).velocity(t, s.x)
        assert z_score(swapped - s.velocity, s.x) > 15


def test_a_local_regression_finds_the_same_fields(generator):
    # local straight lines through draws near a point: no closed form, no Gaussian
    path, t, law = Linear(gamma=Brownian()), 0.4, coupled()
    exact, reach = Exact(law, path), 0.25
    x0, x1 = law.sample(1_500_000, generator)
    s = path.sample(t, x0, x1, generator=generator)
    for point in exact.sample(t, 3, generator):
        near = s.x - point
        rows = near.norm(dim=1) < reach
        design = torch.cat([torch.ones(int(rows.sum()), 1).double(), near[rows]], 1)
        assert len(design) > 1500
        for name, target in {"velocity": s.velocity, "noise": s.noise, "denoised": x1}.items():
            fit = torch.linalg.lstsq(design, target[rows])
            spread = (target[rows] - design @ fit.solution).std(0) / len(design) ** 0.5
            found = exact.fields(t, point[None], [name])[name][0]
            assert ((found - fit.solution[0]).abs() < 4.5 * spread + 0.1 * reach**2).all(), name
            assert ((-found - fit.solution[0]).abs() > 4.5 * spread).any()


def test_equal_and_different_times_agree(generator):
    exact = Exact(coupled(), Linear(gamma=Brownian()))
    t = torch.tensor([0.0, 0.1, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    together = exact.fields(t, x, FIELDS)
    for k in range(6):
        alone = exact.fields(float(t[k]), x[k : k + 1], FIELDS)
        for name in FIELDS:
            torch.testing.assert_close(together[name][k], alone[name][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact.log_prob(t, x)[3], exact.log_prob(t[3], x[3:4])[0])
    assert exact.velocity(0.5, x[:0]).shape == (0, 2)
    assert exact.velocity(t[:0], x[:0]).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_path
def test_tails_and_ends_are_finite(path, dtype):
    exact = Exact(law_for(path), path)
    x = torch.tensor([[1e4, 1e4], [-1e4, 3.0], [0.0, 0.0]], dtype=dtype)
    for t in (0.0, 1e-6, 0.5, 1.0, torch.tensor([0.0, 0.3, 1.0])):
        found = exact.fields(t, x, [*FIELDS, "drift"], sigma=1.0)
        assert all(v.isfinite().all() and v.dtype == dtype for v in found.values())
        log_prob = exact.log_prob(t, x)
        assert log_prob.isfinite().all() and log_prob.dtype == dtype


def test_images_are_flattened_inside(generator):
    law = independent(Gaussian([1, 4, 4]), Gaussian([1, 4, 4], mean=2.0, std=0.5))
    exact = Exact(law, Linear(gamma=Brownian()), [1, 4, 4])
    x = exact.sample(0.4, 5, generator)
    assert x.shape == (5, 1, 4, 4)
    velocity = exact.velocity(torch.full((5,), 0.4), x)
    flat = Exact(law, Linear(gamma=Brownian())).velocity(0.4, x.flatten(1))
    # isotropic: coordinate by coordinate it is a problem in one dimension
    alone = Exact(independent(Gaussian(1), Gaussian(1, 2.0, 0.5)), Linear(gamma=Brownian()))
    one = alone.velocity(0.4, x.reshape(-1, 1)).reshape(x.shape)
    torch.testing.assert_close(velocity, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flat.reshape(x.shape), one)
    both = exact(torch.rand(5), x.float())
    assert both.keys() == {"velocity", "noise"} and both["noise"].shape == x.shape
    assert both["noise"].dtype == torch.float32 and exact.log_prob(0.4, x).shape == (5,)
    assert exact(0.3, x, only=["noise"]).keys() == {"noise"}


@pytest.mark.parametrize("path", [PATHS[0], PATHS[6], Mirror(), OneSided(), EncoderDecoder()], ids=str)
def test_draws_are_those_of_the_path_and_of_the_density(path, generator):
    exact, n, t = Exact(law_for(path), path), 40_000, 0.3
    x = exact.sample(t, n, generator)
    x0, x1 = exact.law.sample(n, generator)
    x0 = torch.randn_like(x0) if isinstance(path, OneSided) else x0
    assert moment_scores(x, path.sample(t, x0, x1, generator=generator).x) < 4.5
    assert moment_scores(x, path.sample(0.1, x0, x1, generator=generator).x) > 4.5
    # the mean of 1/density over a box is its volume over the box's probability
    box = ((x - x.mean(0)).abs() < x.std(0)).all(1)
    inverse = torch.where(box, torch.exp(-exact.log_prob(t, x)), 0.0)
    volume = 4 * float(x.std(0).prod())
    assert abs(float(inverse.mean()) - volume) < 4.5 * float(inverse.std()) / n**0.5


def test_the_flow_carries_the_laws(generator):
    exact = Exact(independent(LEFT, RIGHT), Linear(gamma=Brownian()))

    class Flow(torch.nn.Module):
        def forward(self, t, x, cond=None):
            return exact.velocity(t, x)

    x = exact.sample(0.0, 4_000, generator)
    carried = Heun(60).solve(SDE(Flow()), x).x
    assert moment_scores(carried, exact.sample(1.0, 40_000, generator)) < 4.5
