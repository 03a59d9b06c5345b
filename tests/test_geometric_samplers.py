"""Samplers of multiplicative diffusion: what they recover, their orders, and static dynamics."""

import math
import warnings

import pytest
import torch
from geometric_oracle import (
    DRIFTS,
    LINE,
    PLANE,
    Mixture,
    ks,
    ks_each,
    motion,
    reverse,
    seeded,
)

import genflow
from genflow.interpolant import GeometricBrownian
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, GeometricLangevin, MirrorLangevin, ReversedGeometric
from genflow.solver import (
    Adaptive,
    AmbientEuler,
    DaleLangevin,
    Euler,
    Exact,
    Heun,
    RungeKutta,
    StochasticHeun,
)
from genflow.source import LogNormal, LogNormalMixture
from genflow.tensors import expand

INCREMENTS = ("left", "exact", "ancestral")
REST = Mixture([[-0.3], [0.5]], [[0.5], [0.6]], [0.5, 0.5])
REST_LAW = LogNormalMixture(REST.means, [s**2 for (s,) in REST.stds], REST.weights).double()


class Off(ReversedGeometric):
    """A mistake to catch: ``off`` times ``sigma^2`` too much in the drift, of logarithms or states."""

    off = 0.0

    def log_drift(self, t, y, cond=None, at=None):
        squared = self.interpolant.law(expand(t, y)).squared
        return super().log_drift(t, y, cond, at) + self.off * squared


def recover(solver, law=LINE, name=("constant", "median"), n=5000, epsilon=None, off=None, **options):
    """Samples from exact noise."""
    process = reverse(law, name, **options)
    if off is not None:
        process.off = off
    if epsilon is not None:
        process = process.with_epsilon(epsilon)
    start = law.prior(n, motion(*name)[1].gained(1.0), seeded(1))
    return solver.solve(process, start, generator=seeded(2))


def quietly(solver, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return recover(solver, *args, **options)


# Recovery

STEPS = 200
SOLVERS = {
    "left": (DaleLangevin(STEPS), None, 0.05),
    "exact": (DaleLangevin(STEPS, "exact"), None, 0.05),
    "ancestral": (DaleLangevin(STEPS, "ancestral"), None, 0.05),
    "ambient": (AmbientEuler(STEPS), None, 0.06),
    "euler": (Euler(STEPS), None, 0.05),
    "stochastic heun": (StochasticHeun(STEPS // 2), None, 0.05),
    "flow": (Heun(50), 0.0, 0.03),
    "adaptive flow": (Adaptive(rtol=1e-4), 0.0, 0.03),
    "ddim": (DaleLangevin(STEPS, "ancestral"), 0.0, 0.05),
    "flow, exact increments": (DaleLangevin(STEPS, "exact"), 0.0, 0.05),
}


CASES = [*((name, LINE) for name in SOLVERS), *((name, PLANE) for name in ("left", "ambient", "flow"))]


@pytest.mark.parametrize("solver, law", CASES)
def test_recovery(solver, law):
    # tolerances: .05, ambient .06, flow .03; floor for 5000 samples .012
    part, epsilon, tolerance = SOLVERS[solver]
    found = quietly(part, law, epsilon=epsilon)
    assert ks_each(found.x, law) < tolerance


@pytest.mark.parametrize("drift", DRIFTS)
def test_recovery_does_not_depend_on_the_drift(drift):
    assert ks_each(recover(DaleLangevin(STEPS), LINE, ("own", drift)).x, LINE) < 0.05
    assert ks_each(recover(Heun(50), LINE, ("own", drift), epsilon=0.0).x, LINE) < 0.03


@pytest.mark.parametrize("increments", INCREMENTS)
def test_recovery_on_a_geometric_schedule(increments):
    found = recover(DaleLangevin(STEPS, increments), LINE, ("geometric", "median"))
    assert ks_each(found.x, LINE) < 0.05


@pytest.mark.parametrize("epsilon", [0.3, 2.0, "gamma", "gamma_squared", lambda t: 1.5 * (1 - t)])
def test_any_epsilon_keeps_the_law(epsilon):
    for solver in (Euler(STEPS), StochasticHeun(STEPS // 2)):
        assert ks_each(recover(solver, LINE, epsilon=epsilon).x, LINE) < 0.05


class Uncompensated(ReversedGeometric):
    """Noise without the score that makes up for it."""

    def log_drift(self, t, y, cond=None, at=None):
        law = self.interpolant.law(expand(t, y))
        return law.squared / 2 - law.mu + law.squared / 2 * self.log_score(t, y, cond)


@pytest.mark.parametrize("off, least", [(0.5, 0.17), (-1.0, 0.4)])
def test_other_exponents_do_not_recover(off, least):
    # 2 and 1/2 for 3/2, against a tolerance of .05
    assert ks_each(recover(DaleLangevin(STEPS), kind=Off, off=off, n=2000).x, LINE) > least
    assert ks_each(recover(Heun(50), kind=Off, off=off, epsilon=0.0, n=2000).x, LINE) > least


@pytest.mark.parametrize("off, least", [(-0.5, 0.2), (-1.0, 0.4), (-2.0, 0.7)])
def test_other_ambient_coefficients_do_not_recover(off, least):
    # 3/2, 1 and 0 for 2, against a tolerance of .06
    assert ks_each(quietly(AmbientEuler(STEPS), kind=Off, off=off, n=2000).x, LINE) > least


@pytest.mark.parametrize("increments", INCREMENTS)
def test_other_scores_do_not_recover(increments):
    # without the -1, and Stein's, against a tolerance of .05
    for change in (lambda s, x, h: h + 1, lambda s, x, h: h / x):
        assert ks_each(recover(DaleLangevin(100, increments), change=change, n=2000).x, LINE) > 0.3


def test_noise_needs_its_score():
    found = recover(Euler(STEPS), kind=Uncompensated, epsilon=1.0, n=2000)
    assert ks_each(found.x, LINE) > 0.1


def test_a_model_from_data_to_samples():
    # the matched prior in place of the exact law
    path, _ = motion("constant", "median")
    process = reverse(PLANE)
    model = Generator(LogNormal(2, path), process, DaleLangevin(STEPS)).double()
    data = PLANE.sample(5000, seeded())
    model.prepare(data, data)
    assert ks_each(model.sample(5000, generator=seeded(1)), PLANE) < 0.05
    again = model.sample(50, generator=seeded(3), batch_size=20)
    assert again.shape == (50, 2)
    assert torch.equal(model.sample(9, generator=seeded(3)), model.sample(9, generator=seeded(3)))
    for solver in (Heun(40), RungeKutta(20)):
        assert ks_each(model.sample(4000, generator=seeded(1), solver=solver, epsilon=0), PLANE) < 0.05


def test_there_and_back():
    path, clock = motion("constant", "number")
    process = reverse(PLANE, ("constant", "number"))
    model = Generator(LogNormal(2, path), process, DaleLangevin(100)).double()
    data = PLANE.sample(4000, seeded())
    noise = model.sample(x0=data, reverse=True, epsilon=0.0, solver=Heun(100))
    back = model.sample(x0=noise, epsilon=0.0, solver=Heun(100))
    torch.testing.assert_close(back.log(), data.log(), atol=0.05, rtol=0)
    gained = clock.gained(1.0)
    calls = process.field.calls
    for solver in (
        DaleLangevin(50),
        Euler(50),
        DaleLangevin(50, "exact"),
        DaleLangevin(50, "ancestral"),
    ):
        made = model.sample(x0=data, reverse=True, generator=seeded(4), solver=solver)
        for k in range(2):
            assert ks(made[:, k], lambda v, k=k: PLANE.cdf(v, k, gained)) < 0.03
    assert process.field.calls == calls  # the way to noise needs no field
    noisy = model.sample(x0=data, reverse=True, epsilon=0.5, solver=Euler(100), generator=seeded(5))
    assert max(ks(noisy[:, k], lambda v, k=k: PLANE.cdf(v, k, gained)) for k in range(2)) < 0.03


# Signs


@pytest.mark.parametrize("increments", INCREMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positive_at_six_steps(increments, dtype):
    # 0 of 2000 lost in every step; the ambient one ends with some 940, and loses more on the way
    name = ("geometric", "median")
    start = LINE.prior(2000, motion(*name)[1].gained(1.0), seeded(1)).to(dtype)
    process = reverse(LINE, name)
    found = DaleLangevin(6, increments).solve(process, start, generator=seeded(), trajectory=True)
    assert bool((found.trajectory > 0).all()) and bool(found.trajectory.isfinite().all())
    assert found.x.dtype == dtype and found.nfe == 6 and found.nonpositive is None
    solver = AmbientEuler(6)
    with pytest.warns(UserWarning, match="AmbientEuler took 0.[5-7].*dale_langevin"):
        ambient = solver.solve(process, start, generator=seeded(), trajectory=True)
    lost = (ambient.trajectory[1:] <= 0).any(0).double().mean()
    assert ambient.nonpositive == pytest.approx(float(lost)) and 0.5 < ambient.nonpositive < 0.8
    assert 800 < int((ambient.x <= 0).sum()) < 1100
    assert bool(ambient.x.isfinite().all())


def test_the_fraction_lost_is_that_of_all_batches():
    path, _ = motion("geometric", "median")
    model = Generator(LogNormal(1, path), reverse(LINE, ("geometric", "median")), AmbientEuler(50))
    model = model.double()
    data = LINE.sample(500, seeded())
    model.prepare(data, data)
    with pytest.warns(UserWarning, match="AmbientEuler took"):
        whole = model.solve(1000, generator=seeded())
    assert 0.1 < whole.nonpositive < 0.7
    with pytest.warns(UserWarning, match="AmbientEuler took"):
        parts = model.solve(1000, generator=seeded(), batch_size=300)
    assert parts.nonpositive == pytest.approx(whole.nonpositive, abs=0.08)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = recover(AmbientEuler(800), LINE, n=500)
    assert fine.nonpositive == 0.0


# Which solver runs what


def test_euler_is_the_exponential_update():
    start = PLANE.sample(30, seeded())
    process = reverse(PLANE)
    for epsilon in (None, 0.0):
        own = process if epsilon is None else process.with_epsilon(epsilon)
        x = DaleLangevin(7).solve(own, start, generator=seeded(1)).x
        assert torch.equal(x, Euler(7).solve(own, start, generator=seeded(1)).x)
    # one step of the states themselves
    step = DaleLangevin().step(process, 0.2, 0.3, start, seeded(1))
    want = start.log() + 0.1 * process.chart().process.drift(start.new_full((30,), 0.2), start.log())
    z = 0.1**0.5 * torch.randn(30, 2, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(step, torch.exp(want + 1.5 * z))


@pytest.mark.parametrize("solver", [DaleLangevin(4), AmbientEuler(200), Euler(4), StochasticHeun(4)])
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types(solver, shape, dtype):
    torch.manual_seed(0)
    path = GeometricBrownian()
    process = ReversedGeometric(MLP(list(shape), 8, 1), path)
    model = Generator(LogNormal(list(shape), path), process, solver).to(dtype)
    data = torch.rand(50, *shape, generator=seeded()) + 0.5
    model.prepare(data, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = model.sample(6, generator=seeded(), trajectory=True)
        again = model.sample(6, generator=seeded(), trajectory=True)
    assert x.shape == (solver.steps + 1, 6, *shape) and x.dtype == dtype and torch.equal(x, again)
    assert bool(x.isfinite().all())
    assert isinstance(solver, AmbientEuler) or bool((x > 0).all())


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda p, x: DaleLangevin(0), "steps"),
        (lambda p, x: AmbientEuler(0), "steps"),
        (lambda p, x: DaleLangevin(increments="right"), "increments"),
        (lambda p, x: DaleLangevin(4).solve(SDE(MLP(1), sigma=1.0), x), "positive numbers"),
        (lambda p, x: AmbientEuler(4).solve(SDE(MLP(1), sigma=1.0), x), "positive numbers"),
        (lambda p, x: DaleLangevin(4, "exact").solve(p.with_epsilon(0.3), x), "left"),
        (lambda p, x: DaleLangevin(4, "ancestral").solve(GeometricLangevin(REST_LAW), x), "left"),
        (lambda p, x: DaleLangevin(4).solve(p, -x), "positive"),
        (lambda p, x: Heun(4).solve(p, x), "ODE"),
        (lambda p, x: Exact(4).solve(p, x), "transitions"),
        (lambda p, x: GeometricLangevin(3), "density"),
        (lambda p, x: GeometricLangevin(REST_LAW, time=0.0), "time"),
        (lambda p, x: DaleLangevin().solve(GeometricLangevin(REST_LAW), x, [1.0, 0.5]),
         "backwards"),
    ],
)  # fmt: skip
def test_refusals(act, words):
    with pytest.raises((TypeError, ValueError), match=words):
        act(reverse(LINE), torch.ones(3, 1, dtype=torch.float64))


# Static dynamics


def over_x(law):
    """``p(x) / x``, normalised: another mixture."""
    means = [[m - s**2] for (m,), (s,) in zip(law.means, law.stds)]
    shares = [w * math.exp(-m + s**2 / 2) for w, (m,), (s,) in zip(law.weights, law.means, law.stds)]
    return Mixture(means, law.stds, shares)


class WithoutOne(GeometricLangevin):
    def log_drift(self, t, y, cond=None):
        return super().log_drift(t, y, cond) - 1


class Isotropic(MirrorLangevin):
    """The plain gradient with the noise of the other."""

    def log_width(self, t, y):
        return y.new_full((1,) * y.ndim, 2.0).sqrt()


def at_rest(kind, steps=300, time=6.0, density=None, n=4000, solver=DaleLangevin):
    process = kind(REST_LAW if density is None else density, time=time)
    start = torch.ones(n, 1, dtype=torch.float64)
    return solver(steps).solve(process, start, generator=seeded()).x


def test_static_langevin():
    # tolerance .05; without the +1 it is a quarter off, at p(x)/x
    assert ks_each(at_rest(GeometricLangevin), REST) < 0.05
    wrong = at_rest(WithoutOne)
    assert ks_each(wrong, REST) > 0.245 and ks_each(wrong, over_x(REST)) < 0.05

    def log_density(x):  # not normalised, of the user's own
        return 3 + REST.log_density(x)

    assert ks_each(at_rest(GeometricLangevin, density=log_density), REST) < 0.05
    assert ks_each(at_rest(GeometricLangevin, density=log_density, solver=Euler), REST) < 0.05


def test_mirror_langevin():
    assert ks_each(at_rest(MirrorLangevin, 600), REST) < 0.05
    wrong = at_rest(Isotropic, 600)
    assert ks_each(wrong, REST) > 0.1


def test_static_dynamics_in_a_model():
    path, _ = motion()
    law = LogNormalMixture(PLANE.means, [0.3, 0.2, 0.4], PLANE.weights)
    process = GeometricLangevin(law, time=0.5)
    model = Generator(LogNormal(2, path), process, DaleLangevin(20))
    data = torch.rand(40, 2) + 0.5
    model.prepare(data, data)
    x = model.sample(7, generator=seeded())
    assert x.shape == (7, 2) and bool((x > 0).all())
    assert genflow.spec(model)["process"]["time"] == 0.5
    assert bool((AmbientEuler(200).solve(process, data.double(), generator=seeded()).x > 0).all())
    with pytest.raises(NotImplementedError):
        model.log_prob(data)
