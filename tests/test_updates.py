"""Least-squares updates of references, and corrected plans, against scipy and exact laws."""

import math

import numpy as np
import pytest
import torch
from mm_bridges import GENES, PREY, genes, lotka_volterra, population, predators, repressilator, seeded
from scipy.optimize import least_squares, nnls
from torch import nn

from genflow.loss import Direct, LeastSquares, ReferenceRefinement, StaticBridge
from genflow.loss.updates import (
    Target,
    derivatives,
    jacobian,
    levenberg_marquardt,
    raw_parameters,
    regression,
    solve_linear,
)
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.plan import solve_plan
from genflow.process.reference import (
    Brownian,
    GradientField,
    LotkaVolterra,
    OrnsteinUhlenbeck,
    Reference,
    Repressilator,
)


def bridged(reference, xs, times, sigma, steps=20, **options) -> MultiMarginalBridge:
    bridge = MultiMarginalBridge(reference, sigma, times, steps)
    StaticBridge(**options)(bridge, *xs, generator=seeded(9))
    return bridge


def plain(target: Target) -> list[np.ndarray]:
    return [v.numpy() for v in (target.t, target.x, target.y, target.weight)]


@pytest.fixture(scope="module")
def prey() -> MultiMarginalBridge:
    times = [0.0, 2.0, 4.0]
    return bridged(LotkaVolterra(**PREY), predators(times, 20), times, 0.1)


def test_the_regression_is_that_of_the_bridges_drift(prey):
    """Its rows are states of bridges, its values the drift towards their own ends."""
    target = regression(prey, 64, generator=seeded())
    t, x, y, weight = plain(target)
    assert x.shape == y.shape == (2 * 20 * 64, 2) and math.isclose(weight.sum(), 4.0, rel_tol=1e-9)
    assert t.min() == 0 and 3.8 < t.max() < 4
    # the mean of the drifts over the snapshot that the paths leave is that of the solved bridge
    start = t == 2.0
    own = prey.kept.rows("points", 1)
    with torch.no_grad():
        drift = prey.drift(2.0, own).numpy()
    error = y[start].std(0) / 8
    assert (np.abs(y[start].mean(0) - drift.mean(0)) < 4.5 * error).all()
    again = regression(prey, 64, generator=seeded())
    assert torch.equal(target.y, again.y)
    assert not torch.equal(target.y, regression(prey, 64, generator=seeded(1)).y)


def test_positive_rates_are_those_of_nnls(prey):
    target = regression(prey, 128, generator=seeded(3))
    t, x, y, weight = plain(target)
    columns = [lotka_volterra(t, x, **dict.fromkeys(PREY, 0) | {name: 1.0}) for name in PREY]
    matrix = np.stack(columns, -1) * np.sqrt(weight)[:, None, None]
    known, _ = nnls(matrix.reshape(-1, 4), (y * np.sqrt(weight)[:, None]).ravel())
    reference = LotkaVolterra()
    solve_linear(reference, target)
    assert np.allclose(list(reference.numbers().values()), known, rtol=1e-6)
    bare, _ = nnls(np.stack(columns, -1).reshape(-1, 4), (y * t[:, None]).ravel())
    assert not np.allclose(bare, known, rtol=1e-2)
    # a rate that data want negative stays just above zero
    bent = Target(target.t, target.x, target.y - 3 * target.x[:, :1], target.weight)
    matrix_y = (bent.y.numpy() * np.sqrt(weight)[:, None]).ravel()
    known, _ = nnls(matrix.reshape(-1, 4), matrix_y)
    solve_linear(reference, bent)
    found = np.array(list(reference.numbers().values()))
    assert known.min() == 0 and (found[known == 0] <= 1e-5).all() and (found > 0).all()
    assert np.allclose(found[known > 0], known[known > 0], rtol=1e-6)


def test_the_step_is_that_regression(prey):
    twin = MultiMarginalBridge(LotkaVolterra(**PREY), 0.1, prey.times, 20)
    twin.load_state_dict(prey.state_dict())
    reference = LotkaVolterra()
    solve_linear(reference, regression(prey, 40, generator=seeded(5)))
    LeastSquares(paths=40).step(twin, seeded(5))
    assert twin.reference.numbers() == reference.numbers()


def test_a_full_matrix_is_that_of_lstsq(generator):
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    y, weight = torch.randn(200, 2, generator=generator).double() + x, torch.rand(200).double() + 0.1
    reference = OrnsteinUhlenbeck(2)
    solve_linear(reference, Target(torch.zeros(200), x, y, weight))
    root = weight.sqrt().numpy()[:, None]
    rows = np.hstack([x.numpy(), np.ones((200, 1))])
    known = np.linalg.lstsq(rows * root, y.numpy() * root, rcond=None)[0]
    assert np.allclose(reference.numbers()["matrix"], known[:2].T)
    assert np.allclose(reference.numbers()["shift"], known[2])


def test_snapshots_of_a_relaxing_whirl_show_its_matrix():
    matrix, shift = np.array([[-0.4, 1.2], [-1.0, -0.2]]), np.array([0.3, 0.1])
    times, spread = [0, 0.6, 1.2, 1.8, 2.4], ([2.0, 1.0], [3.5, 1.8])
    xs = population(lambda t, x: x @ matrix.T + shift, *spread, times, 120, 0.3, dt=0.01)
    bridge = MultiMarginalBridge(OrnsteinUhlenbeck(2), 0.3, times, steps=12)
    loss = ReferenceRefinement(StaticBridge(tolerance=1e-4), LeastSquares(paths=120))
    loss.fit(bridge, *xs, iterations=6, generator=seeded(), progress=False)
    found = {k: np.array(v) for k, v in bridge.reference.numbers().items()}
    assert np.abs(found["matrix"] - matrix).max() < 0.2
    seen = torch.cat(xs).numpy()
    known = seen @ matrix.T + shift
    missed = seen @ found["matrix"].T + found["shift"] - known
    assert np.square(missed).mean() < 0.06**2 * np.square(known).mean()


def test_nonlinear_rates_are_those_of_scipy():
    times = [0.0, 1.5, 3.0]
    bridge = bridged(Repressilator(**GENES), genes(times, 15), times, 0.1, 15)
    target = regression(bridge, 15, generator=seeded())
    t, x, y, weight = plain(target)

    def residual(theta):
        away = repressilator(t, x, *np.exp(theta)) - y
        return (away * np.sqrt(weight)[:, None]).ravel()

    start = np.log([8.0, 2.5, 1.2, 0.8])
    known = np.exp(least_squares(residual, start, xtol=1e-12, ftol=1e-12, gtol=1e-12).x)
    reference = Repressilator(*np.exp(start).tolist())
    parameters = list(reference.parameters())

    def ours():
        away = reference(target.t, target.x) - target.y
        return (away * target.weight.sqrt()[:, None]).flatten()

    levenberg_marquardt(parameters, ours, reference.log_prior, 60)
    assert np.allclose(list(reference.numbers().values()), known, rtol=1e-3)
    before = float(ours().detach().square().sum())
    assert before <= np.square(residual(np.log(known))).sum() * (1 + 1e-6)


class Prior(Repressilator):
    """With a Gaussian law of the logarithms."""

    def log_prior(self):
        return -sum((v - 0.5).square().sum() for v in self.raw.values()) * 50 / 2


def test_a_prior_weighs_as_one_snapshots_particles():
    """The posterior mode of scipy, with as many particles as a snapshot has."""
    times = [0.0, 1.5]
    bridge = bridged(Prior(**GENES), genes(times, 15), times, 0.1, 15)
    target = regression(bridge, 15, generator=seeded())
    t, x, y, weight = plain(target)

    def residual(theta):
        away = repressilator(t, x, *np.exp(theta)) - y
        data = away * np.sqrt(15 * weight / (2 * 0.1**2))[:, None]
        return np.concatenate([data.ravel(), (theta - 0.5) * math.sqrt(25)])

    known = np.exp(least_squares(residual, np.log(list(GENES.values())), xtol=1e-12, ftol=1e-12).x)
    LeastSquares(paths=15, steps=60).step(bridge, seeded())
    found = list(bridge.reference.numbers().values())
    assert np.allclose(found, known, rtol=2e-3)
    assert not np.allclose(found, list(GENES.values()), rtol=2e-2)


@pytest.mark.parametrize("family", ["prey", "genes"])
def test_the_truth_stays_put(family):
    times = [0.0, 2.0, 4.0, 6.0, 8.0] if family == "prey" else [0.0, 1.5, 3.0, 4.5]
    known = PREY if family == "prey" else GENES
    xs = predators(times, 120) if family == "prey" else genes(times)
    reference = (LotkaVolterra if family == "prey" else Repressilator)(**known)
    bridge = MultiMarginalBridge(reference, 0.1, times, 20)
    loss = ReferenceRefinement(StaticBridge(), LeastSquares(paths=100))
    loss.fit(bridge, *xs, iterations=3, generator=seeded(), progress=False)
    for name, value in bridge.reference.numbers().items():
        assert abs(value / known[name] - 1) < 0.06, (name, value)


def test_nothing_to_move(prey):
    still = bridged(Brownian(2), predators([0.0, 0.5], 8), [0.0, 0.5], 0.5)
    for update in (LeastSquares(), Direct(), Direct(warmup=0)):
        update.step(still, seeded())
    assert still.reference.numbers() == {}


def test_derivatives_are_those_of_autograd():
    x = torch.randn(7, 2, generator=seeded(), dtype=torch.float64)

    def residual(a, b):
        return (torch.tanh(x @ a) + b[0] * b[1]).flatten()

    a = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    known = torch.autograd.functional.jacobian(residual, (a, b))
    known = torch.cat([known[0].flatten(1), known[1], torch.zeros(21, 2)], 1)
    assert torch.allclose(jacobian(residual(a, b), [a, b, unused]), known)

    def scalar(flat):
        return residual(flat[:6].view(2, 3), flat[6:8]).square().sum().log() + flat[6] * 3

    flat = torch.cat([a.flatten(), b]).detach()
    value = residual(a, b).square().sum().log() + b[0] * 3
    gradient, hessian = derivatives(value, [a, b, unused])
    assert torch.allclose(gradient[:8], torch.autograd.functional.jacobian(scalar, flat))
    assert torch.allclose(hessian[:8, :8], torch.autograd.functional.hessian(scalar, flat))
    assert (gradient[8:] == 0).all() and (hessian[8:] == 0).all() and (hessian[:, 8:] == 0).all()
    gradient, hessian = derivatives(3 * b[0] + 0 * a.sum(), [a, b])  # linear: no curvature
    assert torch.equal(gradient[6:], torch.tensor([3.0, 0.0]).double()) and (hessian == 0).all()


@pytest.mark.parametrize("update", [LeastSquares(), Direct(warmup=0)])
def test_networks_are_sent_to_gradient(update):
    bridge = bridged(GradientField(2, width=32), predators([0.0, 0.5], 8), [0.0, 0.5], 0.5)
    with pytest.raises(ValueError, match=r"GradientField has 1184 \(more than 200\): use update=Grad"):
        update.step(bridge, seeded())
    small = GradientField(2, width=8, depth=1)
    assert len(raw_parameters(small, "x")) == 3


@pytest.mark.parametrize("wrong", [dict(paths=0), dict(steps=0), dict(paths=1.5)])
def test_options_are_counts(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        LeastSquares(**wrong)


class Pushed(Reference):
    """``sigma^2 tanh(x)``: its transitions are Brownian ones times ``cosh(y) / cosh(x)``."""

    def __init__(self, sigma: float = 1.0, strength: float = 1.0) -> None:
        super().__init__(1, strength=strength)
        self.sigma, self.strength = sigma, strength

    def field(self, t, x, values):
        return values["strength"] * self.sigma**2 * torch.tanh(x)


def exact(x0, x1, sigma, length):
    variance = sigma**2 * length
    logs = -(torch.cdist(x0, x1) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
    tilt = x1.cosh().log().T - x0.cosh().log()
    return logs + tilt - variance / 2


def test_likelihood_ratios_correct_the_plan():
    """Under ``tanh`` the exact plan is known; the linearised one is not it."""
    g, sigma, length = seeded(2), 1.2, 1.2
    x0 = torch.randn(14, 1, generator=g, dtype=torch.float64)
    x1 = 2 * torch.randn(11, 1, generator=g, dtype=torch.float64)
    mu, nu = torch.full((14,), 1 / 14, dtype=x0.dtype), torch.full((11,), 1 / 11, dtype=x0.dtype)
    known = solve_plan(exact(x0, x1, sigma, length), mu, nu, tolerance=1e-10)
    away, gap = [], []
    for correct in (0, 150):
        bridge = bridged(Pushed(sigma), [x0, x1], [0, length], sigma, 25, correct=correct)
        plan = bridge.plan(0).detach()
        away.append(float((plan - known.log_plan.exp()).abs().sum()) / 2)
        gap.append(abs(bridge.history[0]["objective"] - float(known.objective)))
        assert torch.allclose(plan.sum(0), nu, atol=1e-9)
        assert torch.allclose(plan.sum(1), mu, atol=2e-6)
    assert away[0] > 0.05 and away[1] < away[0] / 3, away
    assert gap[0] > 0.03 and gap[1] < gap[0] / 3, gap


def test_weighted_bridges_have_the_true_law():
    """Bridges of the ``tanh`` drift are Brownian ones; guided paths without their weights are not."""
    sigma, length = 1.0, 3.0
    ends = torch.zeros(1, 1).double(), torch.full((1, 1), 1.5).double()
    bridge = bridged(Pushed(sigma), ends, [0, length], sigma, 120)
    means = {}
    for weighted in (True, False):
        target = regression(bridge, 6000, weighted, seeded())
        middle = target.t == length / 2
        share = target.weight[middle] / target.weight[middle].sum()
        mean = float((share * target.x[middle, 0]).sum())
        spread = float((share * (target.x[middle, 0] - 0.75).square()).sum())
        error = math.sqrt(0.75 * float(share.square().sum()))
        means[weighted] = abs(mean - 0.75) / error, abs(spread - 0.75) / (0.75 * 2**0.5 * error)
    assert max(means[True]) < 5, means
    assert max(means[False]) > 8, means


def test_the_effective_sample_size_tells_how_even_ratios_are():
    """One where the drift is affine; of a pair, Kish's fraction of its weights, which fall as the
    interval grows; of several intervals, each its own."""
    affine = bridged(
        OrnsteinUhlenbeck(1, [[-1.0]]),
        [torch.randn(9, 1, dtype=torch.float64, generator=seeded(k)) for k in range(3)],
        [0, 1, 3],
        0.5,
    )
    assert np.allclose(affine.effective_sample_size(50, seeded()), [1, 1])
    ends = torch.zeros(1, 1).double(), torch.full((1, 1), 1.5).double()
    found = []
    for length in (0.5, 3.0):
        bridge = bridged(Pushed(), ends, [0, length], 1.0, 60)
        (size,) = bridge.effective_sample_size(2000, seeded())
        (paths,) = bridge.bridges(2000, generator=seeded())
        weight = paths.log_weight.exp().numpy()
        assert math.isclose(size, weight.mean() ** 2 / np.square(weight).mean(), rel_tol=1e-9)
        found.append(size)
    assert 1 > found[0] > 0.9 > found[1] > 0.02, found


def test_networks_take_the_same_regression(generator):
    """A family without named parameters, small enough for least squares."""

    class Line(Reference):
        def __init__(self):
            super().__init__(2)
            self.map = nn.Linear(2, 2).double()

        def field(self, t, x, values):
            return self.map(x)

    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[0.5, -1.0], [2.0, 0.1]]).double() + 0.3
    reference = Line()

    def residual():
        return (reference(0.0, x) - y).flatten()

    levenberg_marquardt(list(reference.parameters()), residual, reference.log_prior, 50)
    assert residual().detach().square().sum() < 1e-8
