"""Drifts by iterative proportional fitting in a bridge, and the published update of its reference."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from genflow.loss import IPF, Gradient, Projection, ReferenceRefinement, StaticBridge
from genflow.loss.ipf import divergence, even
from genflow.network import MLP, Fitted, GaussianProcess
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.ipf import HalfBridges, simulate
from genflow.process.reference import Brownian, Learned, LotkaVolterra, OrnsteinUhlenbeck
from genflow.specs import build, spec

TIMES, SIGMA = [0.0, 0.6, 1.2], 0.4
TRUTH = dict(alpha=1.0, beta=0.4, gamma=0.4, delta=0.1)


class AffineByStep(nn.Module):
    """Least squares on (1, x) at every time: what bridges between Gaussians need, no more."""

    def fit(self, t, x, y):
        self.times, which = t.unique(return_inverse=True)
        rows = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
        parts = [torch.linalg.lstsq(rows[which == k], y[which == k]) for k in range(len(self.times))]
        self.weights = torch.stack([part.solution for part in parts])

    def forward(self, t, x):
        weights = self.weights[(self.times - torch.as_tensor(t).flatten()[0]).abs().argmin()]
        return weights[0] + x @ weights[1:]


def snapshots(n=12, seed=0):
    """Independent batches of predators and prey."""
    generator, found = torch.Generator().manual_seed(seed), []
    for time in TIMES:
        x = torch.tensor([5.0, 4.0]) + torch.rand(n, 2, generator=generator, dtype=torch.float64) / 5
        grid = torch.linspace(0, time, round(time / 0.02) + 1, dtype=torch.float64)
        found.append(simulate(LotkaVolterra(**TRUTH), x, grid, SIGMA, generator)[-1].detach())
    return found


def bridged(reference=None, regressor=None):
    regressor = GaussianProcess(2) if regressor is None else regressor
    reference = LotkaVolterra() if reference is None else reference
    return MultiMarginalBridge(reference, SIGMA, TIMES, steps=15, regressor=regressor)


@pytest.fixture(scope="module")
def solved():
    bridge, xs = bridged(), snapshots()
    objective = IPF(dt=0.04)(bridge, *xs, generator=torch.Generator().manual_seed(1))
    return bridge, xs, objective


def test_paths_go_through_every_row_and_follow_the_course(solved, generator):
    bridge, xs, objective = solved
    paths = bridge.trajectories(generator=generator)
    assert paths.shape == (31, 36, 2) and bridge.iterations == 1
    assert objective.ndim == 0 and bridge.history[0]["objective"] == float(objective) > 0
    for k, rows in enumerate(paths.split(12, 1)):
        assert torch.equal(rows[15 * k], xs[k])
    for k, x in enumerate(xs):
        others = torch.cat([part for j, part in enumerate(paths[15 * k].split(12)) if j != k])
        assert (others.mean(0) - x.mean(0)).norm() < 0.25
    middle = bridge.trajectories([0.3], generator=generator)[0]
    assert (middle.mean(0) - (xs[0].mean(0) + xs[1].mean(0)) / 2).norm() < 0.4


def test_both_drifts_carry_particles_between_snapshots(solved, generator):
    bridge, xs, _ = solved
    ahead = bridge.transition(0.0, 0.6, xs[0], generator)
    behind = bridge.transition(0.6, 0.0, xs[1], generator)
    assert (ahead.mean(0) - xs[1].mean(0)).norm() < 0.2 < (xs[0].mean(0) - xs[1].mean(0)).norm()
    assert (behind.mean(0) - xs[0].mean(0)).norm() < 0.2


def test_a_solved_bridge_travels_in_a_state_dict(solved):
    bridge, _, _ = solved
    fresh = build(spec(bridge))
    fresh.load_state_dict(bridge.state_dict())
    draws = [b.trajectories(generator=torch.Generator().manual_seed(2)) for b in (bridge, fresh)]
    assert torch.equal(*draws)


def test_the_regressor_is_scaled_as_published(solved):
    bridge, _, _ = solved
    assert len(bridge.forwards) == len(bridge.backwards) == 2
    for part in (*bridge.forwards, *bridge.backwards):
        assert (part.variance, part.noise) == pytest.approx((25, 4))
        assert len(part.inputs) == 12 * 15
    assert bridge.regressor.noise is None and len(bridge.regressor.inputs) == 0


def test_a_brownian_bridge_of_gaussians(generator):
    """Mean and variance half-way, in closed form: with e = sigma^2 Delta and the covariance c of the
    entropic plan, (s0^2 + s1^2 + 2 c) / 4 + e / 4."""
    n, sigma = 3000, 0.8
    x0 = 0.6 * torch.randn(n, 1, generator=generator)
    x1 = 1.5 + 0.4 * torch.randn(n, 1, generator=generator)
    bridge = MultiMarginalBridge(Brownian(1), sigma, [0.0, 1.0], steps=50, regressor=AffineByStep())
    IPF(2, dt=None)(bridge, x0, x1, generator=generator)
    s0, s1, e = 0.36, 0.16, sigma**2
    cov = math.sqrt(s0 * s1 + e**2 / 4) - e / 2
    middle = simulate(bridge.forwards[0], x0.double(), bridge.grid(), sigma, generator)[25]
    at = 0.5
    mean = 1.5 * at
    var = (1 - at) ** 2 * s0 + at**2 * s1 + 2 * at * (1 - at) * cov + at * (1 - at) * e
    assert middle.mean().item() == pytest.approx(mean, abs=0.05)
    assert middle.var().item() == pytest.approx(var, rel=0.1)
    assert var > 1.25 * (var - at * (1 - at) * e)  # a plan without bridges would be far off


def test_the_objective_is_the_divergence_of_the_drifts():
    """Constant drifts: |b - f|^2 T / 2 sigma^2."""

    class Constant(nn.Module):
        def forward(self, t, x):
            return torch.full_like(x, 2.0)

    bridge = bridged(OrnsteinUhlenbeck(2, shift=[0.5, -1.0]))
    bridge.prepare(*snapshots())
    grid = torch.linspace(0, 0.6, 7, dtype=torch.float64)
    path = torch.zeros(7, 5, 2, dtype=torch.float64)
    found = divergence(bridge.intervals()[0], HalfBridges(Constant(), None, grid, path))
    assert found.item() == pytest.approx((1.5**2 + 3.0**2) * 0.6 / 0.32)


def test_networks_serve_as_regressors():
    torch.manual_seed(0)
    bridge = bridged(regressor=Fitted(MLP(2, width=16, depth=1), steps=20, lr=0.02))
    with pytest.warns(RuntimeWarning, match="has not converged"):  # twenty steps are few
        IPF(2, dt=0.1)(bridge, *snapshots())
    assert bridge.trajectories().isfinite().all()


def test_rows_of_more_weight_are_drawn_more_often(generator):
    xs = snapshots(40)
    weights = torch.where(xs[0][:, 0] > 5.1, 50.0, 1.0)
    bridge = bridged().observe(TIMES, [weights, None, None])
    IPF(1, dt=0.2)(bridge, *xs, generator=generator)
    at_start = bridge.backwards[0].inputs  # of forward paths, reversed; their ends are at the start
    assert (at_start[at_start[:, 2] == 0].shape[0], len(at_start)) == (40, 120)
    masses = weights.double() / weights.double().sum()
    assert (even(xs[0], masses, generator)[:, 0] > 5.1).double().mean() > 0.85
    assert even(xs[1], torch.full((40,), 1 / 40), generator) is xs[1]


# --------------------------------------------------------------- refusals


def test_a_bridge_that_does_not_connect_warns_with_the_remedy(generator):
    x0 = 0.1 * torch.randn(8, 2, generator=generator)
    bridge = MultiMarginalBridge(Brownian(2), 0.1, [0, 2], regressor=GaussianProcess(2))
    with pytest.warns(
        RuntimeWarning, match=r"between t=0 and t=2 has not converged after 2 iterations"
    ):
        IPF(2, dt=0.1)(bridge, x0, x0 + 3, generator=generator)


def test_paths_that_are_not_finite_are_an_error_and_leave_the_bridge_as_it_was(generator):
    bridge = bridged()
    bridge.prepare(*snapshots())
    bridge.reference.assign(alpha=1e250)
    with pytest.raises(ValueError, match="paths of the reference are not finite; take a smaller dt"):
        IPF(2, dt=0.1).project(bridge, generator)
    assert int(bridge.kept.solved) == 0 and len(bridge.forwards[0].inputs) == 0


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match="IPF needs a regressor with fit"):
        IPF()(MultiMarginalBridge(LotkaVolterra(), 0.1, TIMES), *snapshots())
    with pytest.raises(ValueError, match="use process=multi_marginal_bridge"):
        IPF()(MLP(2), *snapshots())
    for wrong in (lambda: IPF(0), lambda: IPF(dt=-1.0), lambda: Gradient(0), lambda: Gradient(lr=0.0)):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    assert isinstance(IPF(), Projection) and spec(IPF(3, None)) == {
        "_target_": spec(IPF())["_target_"], "iterations": 3, "dt": None
    }  # fmt: skip


# ---------------------------------------------------- the update as published


def by_hand(bridge, steps, lr, generator, shift=0):
    """Twenty steps of Adam, written out, on (alpha, beta, gamma, delta) in logarithms."""
    if int(bridge.kept.solved) == 1:  # drifts of bridges, of known points; else forward differences
        found = bridge.bridges(256, generator=generator)
        x, y = (torch.cat([f.x[k : len(f.x) - 1 + k] for f in found], 1) for k in (0, 1))
        with torch.no_grad():
            drifts = [bridge.reference(0.0, f.x[:-1].flatten(0, 1)) for f in found]
        speed = torch.cat([d.view_as(f.control) + f.control for d, f in zip(drifts, found)], 1)
    else:
        grid = bridge.grid()
        path = bridge.trajectories(grid, generator=generator)
        x, y = path[:-1], path[1:]
        speed = (y - x) / grid.diff()[:, None, None]
    x = (x, y)[shift]
    log = torch.stack([p.detach() for p in bridge.reference.raw.values()])
    m, v = torch.zeros(4).double(), torch.zeros(4).double()
    for k in range(1, steps + 1):
        a, b, c, d = log.exp()
        prey, pred = x.unbind(-1)
        ex = a * prey - b * prey * pred - speed[..., 0]
        ey = d * prey * pred - c * pred - speed[..., 1]
        slope = [ex * a * prey, -ex * b * prey * pred, -ey * c * pred, ey * d * prey * pred]
        g = torch.stack([s.mean() for s in slope])  # 2 / (2 numbers a row)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        log = log - lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    return log.exp()


@pytest.mark.parametrize("projection", [StaticBridge(), IPF(2, dt=0.06)], ids=["static", "ipf"])
def test_gradient_steps_are_those_of_a_new_adam(projection):
    bridge, xs = bridged(LotkaVolterra(0.5, 0.3, 0.2, 0.05)), snapshots()
    bridge.prepare(*xs)
    for seed in (3, 4):  # a second call starts with a new Adam too
        projection.project(bridge, torch.Generator().manual_seed(1))
        expected, wrong = (
            by_hand(bridge, 20, 0.05, torch.Generator().manual_seed(seed), shift) for shift in (0, 1)
        )
        Gradient().step(bridge, torch.Generator().manual_seed(seed))
        found = torch.stack(list(bridge.reference.values().values())).detach()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        assert (found - wrong).abs().max() > 1e-4  # increments at their right ends


def test_the_loop_of_the_paper_approaches_the_truth():
    bridge, xs = bridged(LotkaVolterra(0.3, 0.3, 0.3, 0.3)), snapshots(10)
    loss = ReferenceRefinement(IPF(3, dt=0.06), Gradient(20, 0.05))
    loss.fit(bridge, *xs, iterations=3, generator=torch.Generator().manual_seed(0), progress=False)
    assert bridge.iterations == 3
    drift, true = (r(0.0, torch.cat(xs)).detach() for r in (bridge.reference, LotkaVolterra(**TRUTH)))
    start = LotkaVolterra(0.3, 0.3, 0.3, 0.3)(0.0, torch.cat(xs)).detach()
    assert (drift - true).norm() < 0.35 * (start - true).norm()


def test_gradient_steps_move_networks_and_leave_no_parameters_alone(generator):
    torch.manual_seed(0)
    bridge = bridged(Learned(MLP(2, width=16, depth=1).double(), 2))
    bridge.prepare(*snapshots())
    StaticBridge().project(bridge)

    paths = bridge.trajectories(generator=torch.Generator().manual_seed(0))
    speed = (paths.diff(dim=0) / 0.04).flatten(0, 1)
    left = paths[:-1].flatten(0, 1)

    def error():
        with torch.no_grad():
            return (bridge.reference(0.3, left) - speed).square().mean().item()

    before = error()
    Gradient(60, 0.03).step(bridge, generator)
    noise = SIGMA**2 / 0.04
    assert error() - noise < 0.7 * (before - noise)
    still = bridged(Brownian(2))
    still.prepare(*snapshots())
    StaticBridge().project(still)
    Gradient().step(still, generator)


def test_a_law_of_the_parameters_pulls(generator):
    class Held(LotkaVolterra):
        def log_prior(self):
            return -1e9 * sum((v - 0.3).square() for v in self.values().values())

    moved = []
    for family in (LotkaVolterra, Held):
        bridge = bridged(family(0.31, 0.31, 0.31, 0.31))
        bridge.prepare(*snapshots())
        StaticBridge().project(bridge)
        Gradient(60, 0.03).step(bridge, torch.Generator().manual_seed(0))
        moved.append(max(abs(v - 0.3) for v in bridge.reference.numbers().values()))
    assert moved[1] < 0.01 < moved[0]


def test_an_update_that_is_not_finite_is_undone(generator):
    bridge = bridged(LotkaVolterra(0.5, 0.3, 0.2, 0.05))
    bridge.prepare(*snapshots())
    StaticBridge().project(bridge)
    found = bridge.bridges(4, generator=generator)
    bridge.bridges = lambda *a, **k: [replace(f, control=f.control * math.inf) for f in found]
    with pytest.raises(ValueError, match="the error of the drift is not finite; use a smaller lr"):
        Gradient().step(bridge, generator)
    assert bridge.reference.numbers()["alpha"] == pytest.approx(0.5)
