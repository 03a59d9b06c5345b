"""Log-densities: exact on mixtures, in data units, differentiable; refusals."""

import math

import pytest
import torch
from exact import (
    DATA,
    ONE_SIDED,
    START,
    Known,
    estimate,
    gaussian_model,
    mixture_model,
    mlp_model,
    same,
    score,
    seeded,
    truth,
)
from fields import Affine, Still
from gaussians import pair, tilted

import genflow.process.density
from genflow.coupling import Gibbs
from genflow.interpolant import (
    BrownianBridge,
    EncoderDecoder,
    Linear,
    OneSided,
    Quadratic,
    SinSquared,
    Trigonometric,
)
from genflow.model import Generator, Tilt
from genflow.network import MLP
from genflow.oracle import Exact, independent
from genflow.process import SDE, StochasticInterpolant, divergence
from genflow.solver import Adaptive, Euler, Heun, RungeKutta
from genflow.source import Empirical, Gaussian, Moons
from genflow.transform import Standardise

PATHS = [
    BrownianBridge(), Linear(gamma=Quadratic()), Trigonometric(SinSquared()), EncoderDecoder(),
    *ONE_SIDED,
]  # fmt: skip


def points(n=40):
    return DATA.sample(n, seeded(3))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_densities_of_mixtures_are_exact(path):
    x = points()
    same(mixture_model(path).log_prob(x), truth(DATA).log_prob(x))


def test_a_divergence_of_the_wrong_sign_is_seen(monkeypatch):
    def wrong(*args):
        value, change = divergence(*args)
        return value, -change

    monkeypatch.setattr(genflow.process.density, "divergence", wrong)
    x = points()
    assert (mixture_model().log_prob(x) - truth(DATA).log_prob(x)).abs().max() > 3


@pytest.mark.parametrize("solver", [Heun(80), Euler(400), Adaptive(1e-7, 1e-7)])
def test_every_solver_of_odes_will_do(solver):
    x = points(10)
    same(mixture_model().log_prob(x, solver=solver), truth(DATA).log_prob(x), 0.05)


def test_steps_are_those_of_the_solver():
    x, want = points(10), truth(DATA).log_prob(points(10))
    errors = [
        float((mixture_model().log_prob(x, steps=steps) - want).abs().max()) for steps in (5, 10, 20)
    ]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]  # Runge-Kutta: order four
    assert torch.equal(
        mixture_model().log_prob(x, steps=7), mixture_model().log_prob(x, solver=RungeKutta(7))
    )


def test_any_plain_ode_has_a_density():
    """A linear flow: x1 = exp(A) x0 is Gaussian, its covariance known."""
    matrix = torch.tensor([[-1.0, 3.0], [-2.0, 0.5]], dtype=torch.float64)
    model = Generator(Gaussian(2), SDE(Affine(matrix)), Euler(10)).double()
    flow, x = torch.linalg.matrix_exp(matrix), points()
    law = torch.distributions.MultivariateNormal(torch.zeros(2).double(), flow @ flow.T)
    same(model.log_prob(x), law.log_prob(x), 1e-5)


@pytest.mark.parametrize("transform", [False, True])
def test_samples_know_their_density(transform):
    model = standardised(START)[0] if transform else mixture_model()
    x, found = model.sample_with_log_prob(30, generator=seeded())
    same(x, model.sample(30, solver=RungeKutta(), generator=seeded()), 1e-12)
    same(found, model.log_prob(x), 5e-3)
    same(found, truth(DATA).log_prob(x), 1e-3)


def test_samples_know_their_density_by_estimates_too():
    model, x0 = mlp_model((17,)), torch.randn(1, 17, generator=seeded()).double()
    x, exact = model.sample_with_log_prob(x0=x0, steps=5, divergence="exact")
    rows, found = model.sample_with_log_prob(x0=x0.repeat(500, 1), steps=5, generator=seeded())
    same(rows, x.expand_as(rows), 1e-12)
    assert abs(found.mean() - exact) < 4 * found.std() / 500**0.5
    assert found.std() > 1e-3


@pytest.mark.parametrize("path", [BrownianBridge(), OneSided()], ids=str)
def test_the_gradient_is_the_score_of_the_data(path):
    x = points(8).requires_grad_()
    found = mixture_model(path).log_prob(x, differentiable=True)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    same(gradient, score(truth(DATA), x), 5e-3)


@pytest.mark.parametrize(
    "options", [{}, {"divergence": "hutchinson"}, {"epsilon": 0.5, "paths": 2}], ids=str
)
def test_gradients_reach_the_parameters(options):
    """Against differences of one weight in each layer."""
    model, x = mlp_model(), points(5)

    def value(**more):
        return model.log_prob(x, steps=4, generator=seeded(), **options, **more).sum()

    names, weights = zip(*((n, p) for n, p in model.named_parameters() if "weight" in n))
    gradients = torch.autograd.grad(value(differentiable=True), weights)
    for weight, gradient in zip(weights, gradients):
        assert gradient.abs().sum() > 0, names
        spot, h = divmod(int(gradient.abs().argmax()), weight.shape[1]), 1e-5
        with torch.no_grad():
            ahead, behind = [], []
            for sign, values in ((1, ahead), (-2, behind), (1, [])):
                weight[spot] += sign * h
                values.append(float(value()))
        difference = (ahead[0] - behind[0]) / (2 * h)
        assert difference == pytest.approx(float(gradient[spot]), rel=1e-5, abs=1e-8)


def test_samples_are_differentiable_in_their_start():
    model, x0 = mixture_model(), START.sample(4, seeded()).requires_grad_()
    x, found = model.sample_with_log_prob(x0=x0, differentiable=True)
    (gradient,) = torch.autograd.grad(found.sum() + x.sum(), x0)
    assert gradient.isfinite().all() and gradient.abs().min() > 0


def test_without_being_asked_no_graph_is_kept():
    model, x = mlp_model(), points(3).requires_grad_()
    assert not model.log_prob(x, steps=3).requires_grad
    assert not any(v.requires_grad for v in model.sample_with_log_prob(3, steps=3))
    with torch.no_grad():  # the divergence needs gradients of its own
        assert model.log_prob(x, steps=3).isfinite().all()


def standardised(source):
    """A model in the space of a Standardise, and the law of data in their own units."""
    transform = Standardise(2).double().prepare(5 + 1.5 * DATA.sample(500, seeded()))
    shift, scale = transform.mean, transform.std
    units = {"shift1": shift, "scale1": scale}
    if not source.latent:
        units |= {"shift0": shift, "scale0": scale}
    law = independent(source, DATA).standardised(**units)
    path = OneSided() if source.latent else Linear(gamma=Quadratic())
    process = StochasticInterpolant(Exact(law, path), path)
    return Generator(source, process, Heun(40), transform).double(), scale


@pytest.mark.parametrize("source", [START, Gaussian(2).double()], ids=["data", "noise"])
def test_densities_are_in_data_units(source):
    """The exact fields of standardised mixtures; the density is that of the data as they are."""
    model, scale = standardised(source)
    x = points()
    assert scale.log().sum().abs() > 1  # forgetting the determinant would show
    same(model.log_prob(x), truth(DATA).log_prob(x))
    found, error = estimate(model, x[:3], "gamma", 300)
    assert ((found - truth(DATA).log_prob(x[:3])).abs() < 4 * error + 0.02).all()


def test_a_flow_that_stands_still_leaves_the_change_of_variables():
    transform = Standardise(2).double().prepare(4 + 3 * points(100))
    x = points()
    z = (x - transform.mean) / transform.std
    noise = Generator(Gaussian(2), SDE(Still()), Euler(2), transform).double()
    want = -0.5 * z.square().sum(1) - math.log(2 * math.pi) - transform.std.log().sum()
    torch.testing.assert_close(noise.log_prob(x), want)
    data = Generator(START, SDE(Still()), Euler(2), transform).double()
    torch.testing.assert_close(data.log_prob(x), truth(START).log_prob(x))


def test_conditions_choose_the_law():
    laws = [pair(), tilted(pair(), 0.5)]  # of which only the marginals count
    laws[1] = laws[1]._replace(mean0=laws[0].mean0, cov0=laws[0].cov0, cross=0 * laws[0].cross)
    model = gaussian_model(laws[0], BrownianBridge())
    model.process.fields = Known(laws, BrownianBridge())
    x, cond = points(10), torch.arange(10) % 2
    want = torch.stack([
        torch.distributions.MultivariateNormal(law.mean1, law.cov1).log_prob(x) for law in laws
    ])[cond, torch.arange(10)]  # fmt: skip
    for options in ({}, {"batch_size": 3}):
        same(model.log_prob(x, cond, **options), want)
    rows = x.repeat_interleave(300, 0), cond.repeat_interleave(300)
    draws = model.log_prob(*rows, epsilon="gamma", generator=seeded(), steps=50).reshape(10, 300)
    assert ((draws.mean(1) - want).abs() < 4 * draws.std(1) / 300**0.5 + 0.02).all()
    paths = model.log_prob(x, cond, epsilon="gamma", paths=300, generator=seeded(), steps=50)
    torch.testing.assert_close(paths, draws.mean(1))
    y, logs = model.sample_with_log_prob(cond=cond, generator=seeded())
    same(logs, model.log_prob(y, cond), 1e-3)


def test_batches_do_not_matter():
    model, x = mixture_model(), points(10)
    whole = model.log_prob(x, steps=10)
    for size in (1, 3, 10, 99):
        torch.testing.assert_close(model.log_prob(x, steps=10, batch_size=size), whole)


def test_the_generator_rules_the_estimates():
    model, x = mixture_model(), points(5)
    for options in ({"divergence": "hutchinson"}, {"epsilon": 0.5}):
        draws = [model.log_prob(x, steps=5, generator=seeded(s), **options) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])


def test_the_default_is_the_ode_whatever_the_sampling():
    model = gaussian_model(pair(), BrownianBridge(), epsilon="gamma")
    law = torch.distributions.MultivariateNormal(pair().mean1, pair().cov1)
    same(model.log_prob(points()), law.log_prob(points()), 1e-6)
    x, found = model.sample_with_log_prob(5)
    same(found, law.log_prob(x), 1e-6)


def test_a_divergence_is_the_trace_of_the_jacobian():
    torch.manual_seed(0)
    network, x = MLP([1, 2, 2], 16).double(), torch.randn(3, 1, 2, 2, generator=seeded()).double()
    value, found = divergence(lambda x: network(0.3, x), x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: network(0.3, row[None])[0].flatten()))(x)
    torch.testing.assert_close(found, jacobian.flatten(2).diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(value, network(0.3, x).detach())
    _, constant = divergence(torch.zeros_like, x)
    assert not constant.any() and not value.requires_grad


@pytest.mark.parametrize(
    "options, words",
    [
        ({"divergence": "trace"}, "must be one of 'auto', 'exact', 'hutchinson'"),
        ({"probes": 0}, "probes must be a whole number >= 1"),
        ({"paths": 2.5, "epsilon": 1.0}, "paths must be a whole number >= 1"),
        ({"paths": 3}, "give an epsilon above zero"),
        ({"paths": 3, "epsilon": 0.0}, "give an epsilon above zero"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"epsilon": -0.5}, "must be a finite number >= 0"),
        ({"epsilon": float("nan")}, "must be a finite number >= 0"),
        ({"epsilon": "beta"}, "must be a finite number >= 0"),
        ({"epsilon": lambda t: 0.5 - t}, "epsilon must be finite and >= 0 at every time"),
        ({"epsilon": 0.5, "solver": RungeKutta()}, "is for ODEs"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        mixture_model().log_prob(points(3), **options)


@pytest.mark.parametrize("shape", [(3, 3), (3,), (3, 1, 2), (3, 2, 1)], ids=str)
def test_other_event_shapes_are_refused(shape):
    for ask in (mixture_model().log_prob, lambda x: mixture_model().sample_with_log_prob(x0=x)):
        with pytest.raises(ValueError, match=r"event shape .*but the model was made for \(2,\)"):
            ask(torch.zeros(shape))


@pytest.mark.parametrize(
    "source", [Moons(), Empirical(torch.zeros(5, 2))], ids=lambda s: type(s).__name__
)
def test_sources_without_density_are_refused(source):
    model = Generator(source, SDE(MLP(2, 8)), Euler(3))
    for ask in (lambda: model.log_prob(torch.zeros(3, 2)), lambda: model.sample_with_log_prob(3)):
        with pytest.raises(NotImplementedError, match=f"{type(source).__name__} has no density"):
            ask()


def test_processes_without_density_are_refused():
    x = torch.zeros(3, 2)
    noisy = Generator(Gaussian(2), SDE(MLP(2, 8), 0.3), Euler(3))
    for ask in (lambda: noisy.log_prob(x), lambda: noisy.sample_with_log_prob(3)):
        with pytest.raises(NotImplementedError, match="has noise but knows no score"):
            ask()
    with pytest.raises(ValueError, match="epsilon needs a score, which SDE does not know"):
        Generator(Gaussian(2), SDE(MLP(2, 8)), Euler(3)).log_prob(x, epsilon=0.5)
    tilt = Generator(Gaussian(2), SDE(MLP(2, 8)), Euler(3), tilt=Tilt(Gibbs(2.0), [7, 2]))
    with pytest.raises(NotImplementedError, match="tilted source"):
        tilt.log_prob(x)
    velocity = mlp_model(outputs=["velocity"])
    with pytest.raises(ValueError, match="need a field that knows the score"):
        velocity.log_prob(x, epsilon=0.5)
