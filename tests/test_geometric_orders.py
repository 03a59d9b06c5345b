"""Orders of the samplers of multiplicative diffusion, on the exact score of one log-normal law."""

import math
import warnings

import pytest
import torch
from geometric_oracle import SINGLE, motion, reverse, seeded

from genflow.solver import Adaptive, AmbientEuler, DaleLangevin, Euler, Heun, RungeKutta, StochasticHeun

INCREMENTS = ("left", "exact", "ancestral")


def unit_noise(monkeypatch, rows):
    """Let the k-th standard normal of a run be ``rows[k]``, whatever draws it."""
    left = iter(rows)

    def normal(mean, std, size, **options):
        return std * next(left).expand(size)

    monkeypatch.setattr(torch, "normal", normal)
    monkeypatch.setattr(
        "genflow.solver.geometric.randn_like", lambda y, g=None: next(left).expand_as(y)
    )


def affine(monkeypatch, solver, name, epsilon=None, draws=1):
    """What a run on a log-normal law does to logarithms: ``Y = a y + b`` plus noise of this variance.

    The map is affine, so that one run with unit noise in one step a row shows it without a random draw.
    """
    process = reverse(SINGLE, name, closest=1e-9)
    process = process if epsilon is None else process.with_epsilon(epsilon)
    count = solver.steps * draws
    unit = torch.eye(count, dtype=torch.float64)[:, :, None]
    rest = torch.zeros(count, 2, 1, dtype=torch.float64)
    with monkeypatch.context() as patch:
        unit_noise(patch, torch.cat([rest, unit], 1))
        start = torch.ones(count + 2, 1, dtype=torch.float64)
        start[1] = math.e
        y = solver.solve(process, start, generator=seeded()).x.log()
    return float(y[1] - y[0]), float(y[0]), float((y[2:] - y[0]).square().sum())


def recursion(name, steps, kind, flow=False):
    """The same by hand: slope, shift and variance of the update from its formula; of the ODE's."""
    clock, slope, shift, spread = motion(*name)[1], 1.0, 0.0, 0.0
    (m,), (std,) = SINGLE.means[0], SINGLE.stds[0]
    for k in range(steps):
        a, b = 1 - k / steps, 1 - (k + 1) / steps
        mean, variance = clock.gained(a)
        dm, dv = clock.between(b, a)
        pull = -1 / (std**2 + variance)
        if kind == "left":
            rate, squared = (clock.mu(a) - clock.squared(a) / 2) / steps, clock.squared(a) / steps
            added = squared
        else:
            rate, squared = dm, dv
            added = dv if kind == "exact" else dv * clock.gained(b)[1] / variance
        if flow:
            pinned = variance - (variance * clock.gained(b)[1]) ** 0.5
            squared, added = pinned if kind == "ancestral" else squared / 2, 0.0
        own = 1 + squared * pull
        move = -rate - squared * pull * (m + mean)
        slope, shift, spread = own * slope, own * shift + move, own**2 * spread + added
    return slope, shift, spread


@pytest.mark.parametrize("increments", INCREMENTS)
@pytest.mark.parametrize(
    "name", [("constant", "median"), ("geometric", "martingale"), ("own", "object")]
)
def test_the_updates_are_those_of_the_formulas(increments, name, monkeypatch):
    for steps in (8, 16):
        found = affine(monkeypatch, DaleLangevin(steps, increments), name)
        assert found == pytest.approx(recursion(name, steps, increments), rel=1e-8)
        flow = affine(monkeypatch, DaleLangevin(steps, increments), name, epsilon=0.0)
        assert flow == pytest.approx(recursion(name, steps, increments, flow=True), rel=1e-6)
        for kind in INCREMENTS:
            alike = {kind, increments} <= {"left", "exact"} and name[0] == "constant"
            if kind != increments and not alike:
                assert found != pytest.approx(recursion(name, steps, kind), rel=1e-2)


@pytest.mark.parametrize("steps", [8, 16])
def test_the_variance_of_draws(steps):
    # tolerance .009 against the exact recursion
    clock = motion("slow")[1]
    slope, _, spread = recursion(("slow", "median"), steps, "left")
    want = slope**2 * (0.55**2 + clock.gained(1.0)[1]) + spread
    start = SINGLE.prior(100_000, clock.gained(1.0), seeded(1))
    process = reverse(SINGLE, ("slow", "median"))
    y = DaleLangevin(steps).solve(process, start, generator=seeded(2)).x.log()
    assert abs(float(y.var()) - want) < 0.009
    assert abs(float(y.var()) - 0.55**2) > 0.03  # it is the bias that is seen


def orders(errors):
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


def variance_errors(monkeypatch, make, grid, name=("slow", "median"), epsilon=None, draws=1):
    found, own = [], SINGLE.stds[0][0] ** 2
    total = own + motion(*name)[1].gained(1.0)[1]
    for steps in grid:
        slope, _, spread = affine(monkeypatch, make(steps), name, epsilon, draws)
        found.append(abs(slope**2 * total + spread - own))
    return found


def test_weak_orders_of_the_exponential_update(monkeypatch):
    # bias of the variance as computed elsewhere, to its digits
    grid = (8, 16, 32, 64, 128, 256)
    for increments in ("left", "exact"):
        found = variance_errors(monkeypatch, lambda n, k=increments: DaleLangevin(n, k), grid)
        assert found == pytest.approx([0.104, 0.048, 0.023, 0.0112, 0.0055, 0.0027], rel=0.02)
        assert all(1.0 < order < 1.13 for order in orders(found))
    # ancestral steps take the data for points: on data with spread their bias is of order log(n) / n
    ancestral = variance_errors(monkeypatch, lambda n: DaleLangevin(n, "ancestral"), grid)
    assert all(0.4 < order < 1 for order in orders(ancestral)[:-1])
    assert orders(ancestral) == sorted(orders(ancestral))


def test_weak_order_of_stochastic_heun(monkeypatch):
    found = variance_errors(monkeypatch, StochasticHeun, (16, 32, 64, 128), draws=2)
    assert all(1.8 < order < 2.3 for order in orders(found))


def test_the_order_of_the_flow():
    # 1.4e-2, 3.4e-3, 8.3e-4, 2.0e-4 for Heun: order two, against Euler's one, Runge-Kutta's four
    clock, own = motion("slow")[1], SINGLE.stds[0][0] ** 2
    scale = (own / (own + clock.gained(1.0)[1])) ** 0.5
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    want = 0.4 + (y - 0.4) * scale
    process = reverse(SINGLE, ("slow", "median"), closest=1e-9).with_epsilon(0.0)

    def errors(make, grid):
        return [float((make(n).solve(process, y.exp()).x.log() - want).abs().max()) for n in grid]

    for make, grid, order in (
        (Euler, (32, 64, 128), 1), (DaleLangevin, (32, 64, 128), 1), (Heun, (8, 16, 32, 64), 2),
        (RungeKutta, (8, 16, 32), 4),
    ):  # fmt: skip
        found = orders(errors(make, grid))
        assert all(order - 0.4 < o < order + 0.6 for o in found), (make, found)
    pinned = orders(errors(lambda n: DaleLangevin(n, "ancestral"), (32, 64, 128, 256)))
    assert all(0.7 < order < 1 for order in pinned) and pinned == sorted(pinned)
    assert errors(lambda n: Adaptive(rtol=1e-8, atol=1e-8), (1,))[0] < 1e-5


def driven(monkeypatch, make, steps, fine, start):
    """A run whose Brownian increments are those of the finest grid, summed."""
    process = reverse(SINGLE, ("slow", "median"), closest=1e-9)
    rows = fine.unflatten(0, (steps, -1)).sum(1) * (steps / len(fine)) ** 0.5
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unit_noise(patch, rows)
        return make(steps).solve(process, start, generator=seeded()).x


def reference(fine, start):
    """Logarithms by Euler-Maruyama on the finest grid, by hand."""
    clock, y, n = motion("slow")[1], start.log(), len(fine)
    (m,), (std,), h = SINGLE.means[0], SINGLE.stds[0], 1 / len(fine)
    for k in range(n):
        variance = clock.gained(1 - k * h)[1]
        y = y - 1.44 * (y - m) / (std**2 + variance) * h + 1.2 * h**0.5 * fine[k]
    return y


def test_strong_orders(monkeypatch):
    # one for the exponential update, one half for the ambient one; mean of |difference of logarithms|
    n = 2000
    fine = torch.randn(2048, n, 1, generator=seeded(), dtype=torch.float64)
    start = SINGLE.prior(n, motion("slow")[1].gained(1.0), seeded(1))
    best, grid = reference(fine, start), (16, 32, 64, 128, 256)

    def errors(make):
        found = []
        for steps in grid:
            x = driven(monkeypatch, make, steps, fine, start)
            kept = (x > 0)[:, 0]
            found.append(float((x[kept].log() - best[kept]).abs().mean()))
            assert float(kept.double().mean()) > 0.95
        return found

    dale, ambient = errors(DaleLangevin), errors(AmbientEuler)
    assert all(0.85 < order < 1.3 for order in orders(dale))
    assert dale == pytest.approx([0.044, 0.022, 0.011, 0.0053, 0.0026], rel=0.25)
    assert 0.4 < orders(ambient)[-1] < 0.75
    assert all(a > 2 * d for a, d in zip(ambient, dale))


def test_the_weak_order_of_the_ambient_update(monkeypatch):
    # bias of the mean logarithm -.081, -.030, -.014: order one; that of the exponential update is none
    n = 20_000
    fine = torch.randn(256, n, 1, generator=seeded(), dtype=torch.float64)
    start = SINGLE.prior(n, motion("slow")[1].gained(1.0), seeded(1))
    best, found = reference(fine, start), []
    for steps in (32, 64, 128):
        x = driven(monkeypatch, AmbientEuler, steps, fine, start)
        kept = (x > 0)[:, 0]
        found.append(float((x[kept].log() - best[kept]).mean()))
    assert found == pytest.approx([-0.030, -0.0142, -0.0068], abs=0.004)
    assert 0.8 < math.log2(found[0] / found[2]) / 2 < 1.4
