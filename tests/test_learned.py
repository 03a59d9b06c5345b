"""The learned interpolant: closed forms, the game's value and gradients, the Gaussian bridge."""

import math

import pytest
import torch
from torch import nn

import genflow
from genflow.coupling import ExactOT, Independent
from genflow.interpolant import BrownianBridge, LearnedAffine, Linear, OneSided, verify
from genflow.loss import BridgeMatching, Matching
from genflow.loss.bridge import _Turned, _value
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, LearnedBridge
from genflow.solver import Euler
from genflow.source import Gaussian
from genflow.target import Drift as Target
from genflow.time import Uniform

M0, V0, M1, V1, SIGMA = -0.5, 1.3, 1.2, 0.4, 0.8
"""Means and variances of two normal laws on the line, and the reference's diffusion."""
EPSILON = SIGMA**2 / 2
CROSS = (math.sqrt(4 * V0 * V1 + SIGMA**4) - SIGMA**2) / 2
"""Covariance of the ends under their Schrödinger bridge."""


def learned(order=3, a=1.0, std=0.4, seed=0):
    path = LearnedAffine(order, a).double()
    nn.init.normal_(path.terms, std=std, generator=torch.Generator().manual_seed(seed))
    return path


def nodes(n=60):
    """Gauss-Legendre points and weights on [0, 1], by the eigenvalues of Jacobi's matrix."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    s, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (s + 1) / 2, vectors[0] ** 2


def law(path, t):
    """Mean and variance of the path on the line with independent pairs, and their rates."""
    c = path.coefficients(t)
    mean, rate = c.alpha * M0 + c.beta * M1, c.dalpha * M0 + c.dbeta * M1
    variance = c.alpha**2 * V0 + c.beta**2 * V1 + c.gamma**2
    return mean, variance, rate, c.alpha * c.dalpha * V0 + c.beta * c.dbeta * V1 + c.gamma_dgamma


def energy(path, epsilon=EPSILON, sign=1.0):
    """``int E |b_F|^2 dt``, whose minimiser is the bridge: the drift of the path is affine."""
    t, weights = nodes()
    c = path.coefficients(t)
    _, variance, rate, half = law(path, t)
    half = half + (sign - 1) * c.gamma_dgamma
    return (weights * (rate**2 + (half - epsilon) ** 2 / variance)).sum()


def bridge(t):
    mean = (1 - t) * M0 + t * M1
    return mean, (1 - t) ** 2 * V0 + t**2 * V1 + t * (1 - t) * (2 * CROSS + SIGMA**2)


def distance_to_bridge(path):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    with torch.no_grad():
        return max(float((f - b).abs().max()) for f, b in zip(law(path, t), bridge(t)))


def optimised(objective):
    path = learned()
    optimizer = torch.optim.LBFGS(
        path.parameters(), max_iter=150, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = objective(path)
        value.backward()
        return value

    optimizer.step(closure)
    return path


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_rates_are_closed_forms(order):
    errors = verify(learned(order, 0.7))
    assert max(errors.values()) < 1e-12
    assert learned(order).terms.shape == (3, order)


def test_it_starts_as_the_linear_path_with_a_brownian_width():
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    found, true = LearnedAffine(4, 0.49).coefficients(t), BrownianBridge(0.7).coefficients(t)
    for name, one, other in zip(found._fields, found, true):
        torch.testing.assert_close(one.detach(), other, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_both_ends(dtype):
    path = LearnedAffine(4)
    t = torch.tensor([0.0, 1.0, 0.5], dtype=dtype)
    for value in path.coefficients(t):
        assert value.dtype == dtype and value.isfinite().all()
        path.terms.grad = None
        value.sum().backward(retain_graph=True)
        assert path.terms.grad.isfinite().all()


@pytest.mark.parametrize("make", [lambda: LearnedAffine(0), lambda: LearnedAffine(a=0.0)])
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="LearnedAffine"):
        make()


def test_least_energy_is_the_bridge():
    path = optimised(energy)
    assert distance_to_bridge(learned()) > 0.1
    assert distance_to_bridge(path) < 1e-4


@pytest.mark.parametrize("wrong", [
    lambda path: energy(path, epsilon=0.0), lambda path: energy(path, epsilon=SIGMA**2),
    lambda path: energy(path, sign=-1.0),
], ids=["no noise", "epsilon is sigma squared", "sign of the width's rate"])  # fmt: skip
def test_another_energy_has_another_path(wrong):
    assert distance_to_bridge(optimised(wrong)) > 1e-2


class Drift(nn.Module):
    """The exact drift of a path on the line, held as it is; ``factor`` makes it wrong."""

    def __init__(self, path, factor=1.0):
        super().__init__()
        self.path, self.factor = [path], factor  # in a list: no part of this module

    def forward(self, t, x, cond=None):
        # held, but for the place where it is evaluated
        mean, variance, rate, half = (v.detach()[:, None] for v in law(self.path[0], t))
        return self.factor * (rate + (half - EPSILON) / variance * (x - mean))


def batch(n, generator):
    z = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    return M0 + V0**0.5 * z[0], M1 + V1**0.5 * z[1]


def draws(loss, process, generator, n=4000, times=40):
    """Values and gradients of the loss over many batches."""
    values, slopes = [], []
    for _ in range(times):
        process.interpolant.terms.grad = None
        value = loss(process, *batch(n, generator), generator=generator)
        value.backward()
        values.append(value.detach())
        slopes.append(process.interpolant.terms.grad.flatten().clone())
    return torch.stack(values), torch.stack(slopes)


def z_scores(values, true):
    return (values.mean(0) - true).abs() / (values.std(0) / len(values) ** 0.5)


FULL = Uniform(1e-6)


def test_the_value_is_minus_half_the_energy(generator):
    path = learned()
    true = -energy(path).detach() / 2
    for factor, right in ((1.0, True), (0.8, False), (1.2, False)):
        process = LearnedBridge(Drift(path, factor), path, SIGMA)
        values, _ = draws(BridgeMatching(time=FULL), process, generator)
        assert (z_scores(values, true) < 4) == right
        assert right or values.mean() > true  # the exact drift is the minimum


def test_the_interpolant_ascends_by_the_gradient_of_the_minimum(generator):
    """By the envelope theorem it is the drift's that is held while the path moves."""
    path = learned()
    (true,) = torch.autograd.grad(energy(path) / 2, path.terms)
    process = LearnedBridge(Drift(path), path, SIGMA)
    _, slopes = draws(BridgeMatching(time=FULL), process, generator)
    # a step against the gradient that an optimiser sees lowers the energy
    assert z_scores(slopes, true.flatten()).max() < 4.5
    assert z_scores(slopes, -true.flatten()).max() > 20


class Squared(BridgeMatching):
    """With half the squared target, as a regression has it."""

    def __call__(self, learner, *xs, generator=None):
        rules = Matching(_Turned(learner.interpolant), time=Uniform(0.01), target=Target(SIGMA))
        return rules(learner, *xs, generator=generator) / 2


class Held(Drift):
    """The place is held too, as if the path did not move it."""

    def forward(self, t, x, cond=None):
        return super().forward(t, x.detach())


@pytest.mark.parametrize("loss, drift", [(Squared(), Drift), (BridgeMatching(time=FULL), Held)])
def test_other_objectives_would_mislead_the_interpolant(loss, drift, generator):
    path = learned()
    (true,) = torch.autograd.grad(energy(path) / 2, path.terms)
    _, slopes = draws(loss, LearnedBridge(drift(path), path, SIGMA), generator)
    assert z_scores(slopes, true.flatten()).max() > 10


def test_the_drift_descends(generator):
    path = learned(std=0.0)
    process = LearnedBridge(nn.Linear(1, 1).double(), path, SIGMA)
    process.network.forward = lambda t, x: x * process.network.weight + process.network.bias
    with torch.no_grad():
        process.network.weight.fill_(3.0)
    loss = BridgeMatching(time=FULL)(process, *batch(20_000, generator), generator=generator)
    loss.backward()
    with torch.no_grad():
        process.network.weight -= 0.1 * process.network.weight.grad
    again = BridgeMatching(time=FULL)(process, *batch(20_000, generator), generator=generator)
    assert again < loss


class AtTheEnd(Uniform):
    """All times at the margin."""

    def __call__(self, x, generator=None):
        t = torch.full((len(x),), self.margin, dtype=x.dtype)
        return t, torch.ones_like(t)


def test_both_signs_of_the_noise_bound_the_variance_at_the_ends(generator):
    path = LearnedAffine(1, 3.0).double().requires_grad_(False)  # Matching would bend it
    process = LearnedBridge(Drift(path), path, SIGMA)

    def one_sign(end):
        rules = Matching(path, time=AtTheEnd(end), target=Target(SIGMA))
        draw = rules.draw(*batch(50, generator), generator=generator)
        return _value(process, draw.sample, rules.target, draw)

    def both(end):
        loss = BridgeMatching(time=AtTheEnd(end))
        return loss(process, *batch(50, generator), generator=generator)

    def spread(value, end):
        return torch.stack([value(end).detach() for _ in range(100)]).std()

    assert spread(both, 1e-6) < 2 * spread(both, 1e-2)
    assert spread(one_sign, 1e-6) > 20 * spread(one_sign, 1e-2)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_conditions_and_weights(shape, dtype, generator):
    process = LearnedBridge(MLP(shape, 8, classes=3), LearnedAffine(), SIGMA).to(dtype)
    x0, x1 = torch.randn(2, 6, *shape, generator=generator, dtype=dtype)
    loss, cond = BridgeMatching(ExactOT()), torch.tensor([0, 1, 2, 0, 1, 2])
    states = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    values = [loss(process, x0, x1, cond=cond, generator=s) for s in states]
    assert values[0].shape == () and values[0].dtype == dtype
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    values[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in process.parameters())
    weights = (None, torch.rand(6, generator=generator, dtype=dtype))
    assert BridgeMatching()(process, x0, x1, cond=cond, weights=weights).isfinite()


def test_what_does_not_fit_is_refused(generator):
    x = torch.zeros(4, 1)
    for learner in (MLP(1, 8), SDE(MLP(1, 8), 1.0)):
        with pytest.raises(ValueError, match=r"use LearnedBridge\(network"):
            BridgeMatching()(learner, x, x)
        with pytest.raises(ValueError, match="does not own"):
            BridgeMatching().check(learner)
    BridgeMatching().check(LearnedBridge(MLP(1, 8), LearnedAffine()))
    for path in (Linear(), "linear"):
        with pytest.raises(ValueError, match="affine interpolant of positive width"):
            LearnedBridge(MLP(1, 8), path)
    with pytest.raises(ValueError, match="sigma must be positive"):
        LearnedBridge(MLP(1, 8), LearnedAffine(), 0.0)
    with pytest.raises(ValueError, match="independent pairs alone"):
        BridgeMatching(ExactOT())(LearnedBridge(MLP(1, 8), OneSided()), x, x)
    with pytest.raises(TypeError, match="coupling must be a Coupling"):
        BridgeMatching(coupling=3)
    with pytest.raises(TypeError, match="time must be a Time"):
        BridgeMatching(Independent(), 0.5)


def test_a_fixed_interpolant_learns_its_drift_alone(generator):
    process = LearnedBridge(MLP(1, 8), BrownianBridge(SIGMA), SIGMA)
    x = torch.randn(2, 6, 1, generator=generator)
    BridgeMatching()(process, *x, generator=generator).backward()
    assert all(p.grad is not None for p in process.network.parameters())


def test_the_learned_schedule_travels_in_the_checkpoint(tmp_path, generator):
    process = LearnedBridge(MLP(1, 8), LearnedAffine(4, 0.7), SIGMA)
    nn.init.normal_(process.interpolant.terms, generator=generator)
    model = Generator(Gaussian(1), process, Euler(5))
    genflow.save(model, tmp_path / "bridge.ckpt")
    again = genflow.load(tmp_path / "bridge.ckpt")
    assert torch.equal(again.process.interpolant.terms, process.interpolant.terms)
    drawn = [m.sample(9, generator=torch.Generator().manual_seed(0)) for m in (model, again)]
    assert torch.equal(*drawn)


def test_training_moves_the_variance_to_the_bridge(generator):
    torch.manual_seed(0)
    process = LearnedBridge(MLP(1, 16, 2), LearnedAffine(2, SIGMA**2), SIGMA)
    optimizer = torch.optim.Adam(
        [{"params": process.network.parameters(), "lr": 1e-2},
         {"params": process.interpolant.parameters(), "lr": 5e-3}]
    )  # fmt: skip
    loss, middle = BridgeMatching(), torch.tensor([0.5])
    before = float(law(process.interpolant, middle)[1].detach())
    for _ in range(600):
        x0, x1 = (x.float() for x in batch(200, generator))
        optimizer.zero_grad()
        loss(process, x0, x1, generator=generator).backward()
        optimizer.step()
    after, true = float(law(process.interpolant, middle)[1].detach()), float(bridge(middle)[1])
    assert abs(after - true) < 0.3 * abs(before - true)
    # and the ordinary solvers carry the source to the data
    model = Generator(Gaussian(1), process, Euler(50))
    x = model.sample(x0=batch(4000, generator)[0], generator=generator)
    assert abs(float(x.mean()) - M1) < 0.1 and abs(float(x.var()) - V1) < 0.1
