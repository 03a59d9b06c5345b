"""Solvers: orders of convergence against exact solutions, grids, refusals."""

import math

import pytest
import torch
from fields import Affine, Growing, OneDraw, Oscillating

from genflow.process import SDE
from genflow.solver import Adaptive, Euler, Heun, RungeKutta, StochasticHeun

MATRIX = [[-1.0, 3.0], [-2.0, 0.5]]
X0 = torch.tensor([[1.0, -0.5], [0.2, 2.0], [0.0, 1.0]], dtype=torch.float64)
ODE_SOLVERS = [Euler(), Heun(), RungeKutta(), StochasticHeun(), Adaptive()]
ORDERS = [(Euler, 1), (Heun, 2), (StochasticHeun, 2), (RungeKutta, 4)]
THETA = 1.0


def ode():
    return SDE(Affine(MATRIX))


def flow(t=1.0):
    return X0 @ torch.linalg.matrix_exp(t * torch.tensor(MATRIX, dtype=torch.float64)).T


@torch.no_grad()
def run(solver, process, x=X0, **options):
    return solver.solve(process, x, **options)


def orders(errors):
    """Observed orders between runs with doubled numbers of steps."""
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


@pytest.mark.parametrize("make, order", ORDERS)
def test_order_on_a_linear_ode(make, order):
    errors = [float((run(make(n), ode()).x - flow()).abs().max()) for n in (100, 200, 400)]
    assert orders(errors) == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("make, order", ORDERS)
def test_order_with_a_drift_that_depends_on_time(make, order):
    # a stage at the wrong time would cost an order
    truth = X0 * math.exp(math.sin(5) / 5)
    errors = [float((run(make(n), SDE(Oscillating())).x - truth).abs().max()) for n in (80, 160, 320)]
    assert orders(errors) == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize(
    "method, tolerance",
    [
        ("dopri5", 1e-7),
        ("dopri8", 2e-5),  # torchdiffeq interpolates the end state with a rule of lower order
        ("bosh3", 1e-5),
        ("fehlberg2", 5e-5),
        ("adaptive_heun", 5e-5),
    ],
)
def test_adaptive_approaches_the_flow(method, tolerance):
    step = 1e-8 if method != "adaptive_heun" else 1e-7
    error = (run(Adaptive(step, step, method), ode()).x - flow()).abs().max()
    rough = (run(Adaptive(1e-3, 1e-3, method), ode()).x - flow()).abs().max()
    assert error < tolerance and 10 * error < rough


def moments_of_solver(solver, process, n):
    """Mean and variance at t = 1 from X(0) = 1 in one dimension, for a drift linear in x, no sampling.

    A step is then x -> a x + sum_j c_j xi_j: the factors are read off the solver's own ``step``.
    """
    mean, variance = 1.0, 0.0
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def step(x, k, draw=None):
        return float(solver.step(OneDraw(process, draw), k / n, (k + 1) / n, x))

    for k in range(n):
        a = step(one, k)  # the drift vanishes at zero
        mean, variance = a * mean, a**2 * variance + sum(step(zero, k, j) ** 2 for j in range(3))
    return mean, variance


@torch.no_grad()
def weak_orders(solver, process, mean, variance):
    found = [moments_of_solver(solver, process, n) for n in (40, 80, 160)]
    return (
        orders([abs(m - mean) for m, _ in found]),
        orders([abs(v - variance) for _, v in found]),
    )


@pytest.mark.parametrize("solver, order", [(Euler(), 1), (StochasticHeun(), 2)])
def test_weak_order_on_an_ornstein_uhlenbeck_process(solver, order):
    process = SDE(Affine([[-THETA]]), sigma=0.8)
    truth = 0.8**2 / (2 * THETA) * (1 - math.exp(-2 * THETA))
    found = weak_orders(solver, process, math.exp(-THETA), truth)
    for observed in found:
        assert observed == pytest.approx([order, order], abs=0.15)


def test_weak_order_with_noise_that_depends_on_time():
    # noise of both ends; a shift by half a step, to the right end, costs an order
    truth = (1 + math.exp(-2)) / 2
    _, both = weak_orders(StochasticHeun(), Growing(), math.exp(-1), truth)
    assert both == pytest.approx([2, 2], abs=0.15)

    class RightPoint(Growing):
        def diffusion(self, t, x, dw):
            return super().diffusion(t + self.half, x, dw)

    errors = []
    for n in (40, 80, 160):
        process = RightPoint()
        process.half = 0.5 / n
        errors.append(abs(moments_of_solver(StochasticHeun(), process, n)[1] - truth))
    assert max(orders(errors)) < 1.3


@pytest.mark.parametrize("solver", [Euler(50), StochasticHeun(50)])
def test_samples_of_an_sde_have_the_moments_of_the_recursion(solver, generator):
    process, n = SDE(Affine([[-THETA]]), sigma=0.8), 20_000
    with torch.no_grad():
        mean, variance = moments_of_solver(solver, process, solver.steps)
    x = run(solver, process, torch.ones(n, 1, dtype=torch.float64), generator=generator).x
    # 4 standard errors of a mean and of a variance
    assert abs(x.mean() - mean) < 4 * (variance / n) ** 0.5
    assert abs(x.var() - variance) < 4 * variance * (2 / n) ** 0.5


@pytest.mark.parametrize(
    "solver", [Euler(4_000), Heun(200), RungeKutta(40), StochasticHeun(200), Adaptive(1e-7, 1e-7)]
)
def test_reverse_undoes_forward(solver):
    process = ode()
    forward = run(solver, process).x
    back = run(solver, process, forward, times=solver.grid(process, None, reverse=True)).x
    assert (back - X0).abs().max() < 5e-3
    assert (forward - X0).abs().max() > 0.5


@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("times", [None, [0.0, 0.1, 0.6, 1.0]])
def test_trajectory_ends_in_the_final_state(solver, times):
    with_path = run(solver, ode(), times=times, trajectory=True)
    count = solver.steps + 1 if times is None else 4
    assert with_path.trajectory.shape == (count, *X0.shape) and with_path.times.shape == (count,)
    assert torch.equal(with_path.trajectory[0], X0)
    assert torch.equal(with_path.trajectory[-1], with_path.x)
    without = run(solver, ode(), times=times)
    assert without.trajectory is None
    torch.testing.assert_close(without.x, with_path.x, rtol=1e-3, atol=1e-3)


def test_trajectory_of_an_adaptive_solver_lies_on_the_flow():
    path = run(Adaptive(1e-8, 1e-8, steps=5), ode(), trajectory=True)
    for t, state in zip(path.times.tolist(), path.trajectory):
        torch.testing.assert_close(state, flow(t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make, calls", [(Euler, 1), (Heun, 2), (StochasticHeun, 2), (RungeKutta, 4)])
def test_evaluations_are_counted(make, calls):
    assert run(make(7), ode()).nfe == 7 * calls
    assert run(make(7), ode(), times=[0.0, 0.5, 1.0]).nfe == 2 * calls


def test_an_adaptive_solver_counts_its_own_evaluations():
    calls = [run(Adaptive(r, r), ode()).nfe for r in (1e-3, 1e-9)]
    assert 6 < calls[0] < calls[1]


def test_an_own_grid_is_walked_step_by_step():
    times, matrix = [0.1, 0.3, 0.9], torch.tensor(MATRIX, dtype=torch.float64)
    x = X0
    for h in (0.2, 0.6):
        x = x + h * x @ matrix.T
    torch.testing.assert_close(run(Euler(), ode(), times=times).x, x)
    torch.testing.assert_close(run(Euler(), ode(), times=torch.tensor(times)).x, x)


def test_a_process_keeps_its_own_clock():
    class Later(SDE):
        span = (2.0, 5.0)

    grid = Euler(3).grid(Later(Affine(MATRIX)), None)
    assert grid.tolist() == [2.0, 3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match=r"outside the process's span \[2, 5\]"):
        Euler(3).grid(Later(Affine(MATRIX)), [0.0, 1.0])


@pytest.mark.parametrize("solver", [Euler(20), StochasticHeun(20)])
def test_the_generator_rules_the_noise(solver):
    process = SDE(Affine(MATRIX), sigma=0.5)
    x = [run(solver, process, generator=torch.Generator().manual_seed(s)).x for s in (1, 1, 2)]
    assert torch.equal(x[0], x[1]) and not torch.allclose(x[0], x[2])


@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=lambda s: type(s).__name__)
def test_conditions_reach_the_drift(solver):
    cond = torch.tensor([0.0, 1.0, 0.0])
    changed = (run(solver, ode(), cond=cond).x - run(solver, ode()).x).abs().max(1).values > 1e-3
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "times, words",
    [
        ([0.5], "at least two finite numbers"),
        ([], "at least two finite numbers"),
        ([[0.0, 1.0]], "at least two finite numbers"),
        ([0.0, float("nan")], "at least two finite numbers"),
        ([0.0, 0.5, 0.5], "rise or fall strictly"),
        ([0.0, 0.8, 0.5], "rise or fall strictly"),
        ([0.0, 1.5], "outside the process's span"),
        ([-0.5, 1.0], "outside the process's span"),
    ],
)
def test_bad_grids_are_refused(solver, times, words):
    with pytest.raises(ValueError, match=words):
        run(solver, ode(), times=times)


@pytest.mark.parametrize("solver", [Euler(), StochasticHeun()], ids=lambda s: type(s).__name__)
def test_an_sde_does_not_run_backwards(solver):
    process = SDE(Affine(MATRIX), sigma=0.1)
    with pytest.raises(ValueError, match="cannot run backwards"):
        run(solver, process, times=[1.0, 0.0])
    with pytest.raises(ValueError, match="cannot run backwards"):
        solver.grid(process, None, reverse=True)


@pytest.mark.parametrize(
    "solver, stand_in",
    [
        (Euler(5), Euler(5)), (StochasticHeun(5), StochasticHeun(5)), (Heun(5), StochasticHeun(5)),
        (RungeKutta(5), StochasticHeun(5)), (Adaptive(steps=5), StochasticHeun(5)),
    ],
)  # fmt: skip
def test_every_solver_knows_one_for_noise(solver, stand_in):
    assert solver.for_noise() == stand_in


@pytest.mark.parametrize("solver", [Heun(), RungeKutta(), Adaptive()], ids=lambda s: type(s).__name__)
def test_ode_solvers_refuse_noise(solver):
    with pytest.raises(ValueError, match="is for ODEs; this process has noise"):
        run(solver, SDE(Affine(MATRIX), sigma=0.1))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Euler(0), "steps must be a whole number"),
        (lambda: Heun(1.5), "steps must be a whole number"),
        (lambda: RungeKutta(0), "steps must be a whole number"),
        (lambda: StochasticHeun(-1), "steps must be a whole number"),
        (lambda: Adaptive(rtol=0.0), "rtol must be positive"),
        (lambda: Adaptive(method="rk4"), "method must be one of dopri5"),
        (lambda: SDE(Affine(MATRIX), sigma=-1.0), "sigma must be zero or positive"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Scheduled(Growing):
    """A process whose attributes are its owner's business."""

    schedule = "cosine"


@pytest.mark.parametrize("solver", [Euler(4), StochasticHeun(4)])
def test_a_process_may_have_a_schedule(solver):
    x = torch.ones(3, 2, dtype=torch.float64)
    runs = [
        solver.solve(p, x, generator=torch.Generator().manual_seed(0)) for p in (Scheduled(), Growing())
    ]
    assert torch.equal(runs[0].x, runs[1].x)
