"""What a user may do to a bridge without being told a wrong answer."""

import copy

import pytest
import torch
from torch import nn

import genflow
from genflow.loss import (
    IPF,
    Direct,
    Gradient,
    LeastSquares,
    ReferenceRefinement,
    StaticBridge,
)
from genflow.loss.updates import Target, solve_linear
from genflow.model import Generator
from genflow.network import MLP, GaussianProcess
from genflow.process import (
    SDE,
    Brownian,
    LotkaVolterra,
    MultiMarginalBridge,
    OrnsteinUhlenbeck,
    Repressilator,
    Vortex,
)
from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.law import forecast
from genflow.process.multimarginal.linear_noise import log_density
from genflow.process.multimarginal.plan import NotConverged
from genflow.solver import Euler, Exact
from genflow.source import Empirical

TIMES = [0.0, 1.0, 2.0]


def rows(n=12, dim=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=draw, dtype=torch.float64)
    return [1.5 + 0.2 * x + 0.3 * k for k in range(3)]


def solved(reference=None, loss=None, xs=None, **options):
    bridge = MultiMarginalBridge(
        reference or Vortex(0.5, divergence=0.1), 0.4, TIMES, steps=12, **options
    )
    (loss or StaticBridge()).fit(bridge, *(xs or rows()), generator=seeded(), progress=False)
    return bridge


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_inference_mode_changes_nothing():
    bridge, x = solved(), rows()[0]
    known = bridge.drift(0.3, x), bridge.plan(0), bridge.transition(0.0, 0.5, x, seeded())
    with torch.inference_mode():
        found = bridge.drift(0.3, x), bridge.plan(0), bridge.transition(0.0, 0.5, x, seeded())
    for a, b in zip(known, found):
        torch.testing.assert_close(a.detach(), b.clone(), rtol=1e-12, atol=1e-12)


def test_rows_with_times_of_their_own_are_those_of_one_time():
    bridge, x = solved(), torch.cat(rows())
    t = torch.linspace(0, 2, len(x), dtype=torch.float64)
    for ask in (bridge.drift, bridge.backward_drift):
        single = torch.cat([ask(float(s), row[None]) for s, row in zip(t, x)])
        # one grid of all steps instead of a part of it: a difference of discretisation
        torch.testing.assert_close(ask(t, x), single, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        ValueError, match="nothing is known before the first snapshot, at 0, got time -1"
    ):
        bridge.drift(t - 1, x)
    for s, u in ((-0.5, 0.0), (0.0, -0.5)):
        with pytest.raises(ValueError, match="nothing is known before the first snapshot"):
            bridge.transition(s, u, x)


def test_nothing_in_nothing_out():
    bridge, none = solved(), torch.zeros(0, 2)
    assert bridge.drift(0.5, none).shape == bridge.transition(0.0, 1.0, none).shape == (0, 2)
    for n in (0, 2.5):
        with pytest.raises(ValueError, match="n must be a whole number >= 1"):
            bridge.trajectories(n=n)


def test_transitions_of_a_corrected_bridge_still_meet_the_rows():
    """The law by states knows no corrections: it must use the potentials of the plan without."""
    draw = seeded(3)
    x0 = torch.rand(20, 2, generator=draw, dtype=torch.float64) + 0.5
    xs = [x0, x0.roll(1, 1) * 1.5 + 0.4, x0 + 0.3]
    reference = Repressilator(4.0, 3.0, 1.0, 1.0, genes=2)
    bridge = solved(reference, StaticBridge(correct=4), xs)
    assert float((bridge.plan(0).sum(0) - 1 / 20).abs().sum()) < 1e-5  # those of the corrected plan
    many = bridge.transition(0.0, 1.0, x0.repeat(400, 1), seeded())
    found = torch.cdist(many, xs[1]).argmin(1).bincount(minlength=20) / len(many)
    assert float((found - 1 / 20).abs().sum()) / 2 < 0.03
    kept = bridge.kept
    kept.left, kept.right = kept.left_corrected, kept.right_corrected
    many = bridge.transition(0.0, 1.0, x0.repeat(400, 1), seeded())
    wrong = torch.cdist(many, xs[1]).argmin(1).bincount(minlength=20) / len(many)
    assert float((wrong - 1 / 20).abs().sum()) / 2 > 0.05


def test_direct_lowers_the_objective_that_is_told_of_a_corrected_bridge():
    from genflow.loss.direct import Profiled

    bridge = solved(Repressilator(4.0, 3.0, 1.0, 1.0, genes=2), StaticBridge(correct=3))
    value, _ = Profiled(bridge, 12)(list(bridge.reference.parameters()))
    assert abs(value - bridge.history[-1]["objective"]) < 1e-3
    bridge.kept.correction = None
    plain, _ = Profiled(bridge, 12)(list(bridge.reference.parameters()))
    assert abs(plain - bridge.history[-1]["objective"]) > 1e-2


def test_likelihood_ratios_need_the_mean_of_each_pair():
    bridge = solved(Repressilator(4.0, 3.0, 1.0, 1.0, genes=2))
    with pytest.raises(
        ValueError, match="needs the mean likelihood ratio of each pair: use projection"
    ):
        LeastSquares(weighted=True).step(bridge)
    bridge = solved(Repressilator(2.0, 2.0, 1.5, 0.3, genes=2), StaticBridge(correct=32))
    ratios = [
        float(paths.log_weight.exp().mean()) for paths in bridge.bridges(4000, generator=seeded())
    ]
    assert max(abs(r - 1) for r in ratios) < 0.1
    LeastSquares(weighted=True).step(bridge, seeded())


def test_learned_drifts_know_no_plans():
    loss = IPF(1)
    bridge = solved(Brownian(2), loss, rows(4), regressor=GaussianProcess(2))
    for ask in (lambda: bridge.plan(0), bridge.bridges, bridge.effective_sample_size):
        with pytest.raises(RuntimeError, match="learned drifts .IPF., which know no plans"):
            ask()
    assert bridge.trajectories([1.0]).shape == (1, 12, 2)


def test_paths_of_learned_drifts_start_at_rows_by_their_masses():
    xs, weights = rows(4), [torch.tensor([5.0, 1.0, 1.0, 1.0]), None, None]
    bridge = MultiMarginalBridge(Brownian(2), 0.4, TIMES, steps=12, regressor=GaussianProcess(2))
    IPF(1).fit(bridge, *xs, weights=weights, progress=False, generator=seeded())
    starts = bridge.trajectories([0.0], n=24, generator=seeded())[0, :8]  # those of the first snapshot
    found = torch.cdist(starts, xs[0]).argmin(1).bincount(minlength=4)
    assert torch.equal(found, torch.tensor([5, 1, 1, 1]))
    assert bridge.trajectories([0.5], n=2).shape == (1, 2, 2)


def test_weights_stay_until_others_are_stated():
    xs, weights = rows(), [None, torch.linspace(1, 4, 12), None]
    loss = ReferenceRefinement(StaticBridge(), LeastSquares())
    bridge = MultiMarginalBridge(OrnsteinUhlenbeck(2), 0.4, steps=12)
    loss.fit(bridge, *xs, times=TIMES, weights=weights, progress=False, generator=seeded())
    loss.fit(bridge, *xs, times=TIMES, progress=False, generator=seeded(1))
    assert bridge.iterations == 2
    torch.testing.assert_close(bridge.plan(0).sum(0), weights[1].double() / weights[1].sum())
    with pytest.raises(ValueError, match="must be positive finite numbers"):
        loss.fit(bridge, *xs, weights=[None, [0.0] * 12, None], progress=False)
    with pytest.raises(ValueError, match="must be 12 numbers, one a row, got \\(3,\\)"):
        loss.fit(bridge, *xs, weights=[None, [1.0] * 3, None], progress=False)
    loss.fit(bridge, *xs, progress=False, generator=seeded(2))  # goes on without them
    two = MultiMarginalBridge(Brownian(2), 0.4)
    StaticBridge().fit(two, *xs[:2], weights=[None, [1.0] * 12], progress=False)
    with pytest.raises(ValueError, match="3 snapshots but no times: give times"):
        StaticBridge().fit(MultiMarginalBridge(Brownian(2), 0.4), *xs, progress=False)


@pytest.mark.parametrize(
    "update", [LeastSquares(), Gradient(3), Direct(0, 2)], ids=lambda u: type(u).__name__
)
def test_frozen_parameters_stay(update):
    reference = LotkaVolterra(0.5, 0.4, 0.3, 0.2)
    reference.raw["beta"].requires_grad_(False)
    bridge = solved(reference, ReferenceRefinement(StaticBridge(), update))
    found = bridge.reference.numbers()
    assert found["beta"] == pytest.approx(0.4, abs=1e-12) and found["alpha"] != pytest.approx(
        0.5, abs=1e-6
    )


def test_a_frozen_matrix_leaves_the_shift_free():
    reference = OrnsteinUhlenbeck(2, [[0.1, 0.0], [0.0, -0.2]])
    reference.raw["matrix"].requires_grad_(False)
    bridge = solved(reference, ReferenceRefinement(StaticBridge(), LeastSquares()))
    found = bridge.reference.numbers()
    assert found["matrix"] == [[0.1, 0.0], [0.0, -0.2]] and min(map(abs, found["shift"])) > 0.01


def test_a_state_of_other_times_is_refused_and_an_open_clock_takes_them():
    bridge = solved()
    other = MultiMarginalBridge(Vortex(0.5, divergence=0.1), 0.4, [0.0, 1.0, 9.0], steps=12)
    with pytest.raises(ValueError, match="but the state is of a bridge of the times"):
        other.load_state_dict(bridge.state_dict())
    fresh = MultiMarginalBridge(Vortex(0.5, divergence=0.1), 0.4, steps=12)
    fresh.load_state_dict(bridge.state_dict())
    assert fresh.times == TIMES and fresh.span == (0.0, 2.0)
    x = rows()[0]
    assert torch.equal(fresh.drift(0.4, x), bridge.drift(0.4, x))


class Broken(StaticBridge):
    """Fails at its second call."""

    calls = 0

    def project(self, bridge, generator=None):
        type(self).calls += 1
        if self.calls > 1:
            raise NotConverged("the plan of a bridge ...")
        return super().project(bridge, generator)


def test_an_iteration_that_fails_leaves_what_was_solved():
    bridge = MultiMarginalBridge(LotkaVolterra(0.2, 0.2, 0.2, 0.2), 0.4, TIMES, steps=12)
    with pytest.raises(NotConverged):
        ReferenceRefinement(Broken(), Gradient(5)).fit(bridge, *rows(), progress=False)
    assert bridge.reference.numbers()["alpha"] == pytest.approx(0.2)
    assert float((bridge.plan(0).sum(1) - 1 / 12).abs().max()) < 1e-6


def test_a_reference_that_was_moved_by_hand_is_told():
    bridge = solved(LotkaVolterra(0.5, 0.4, 0.3, 0.2))
    twin = copy.deepcopy(bridge)
    bridge.reference.assign(alpha=2.0)
    with pytest.raises(RuntimeError, match="the reference has changed since its bridges were solved"):
        bridge.trajectories()
    twin.trajectories()
    StaticBridge().fit(bridge, *rows(), progress=False)
    assert float((bridge.plan(0).sum(1) - 1 / 12).abs().max()) < 1e-6
    assert "alpha=2" in repr(bridge.reference)


def test_everything_stays_in_double_precision():
    bridge, x = solved(), rows()[0]
    known = bridge.drift(0.3, x)
    whole = nn.ModuleList([bridge]).float()[0]
    assert whole.kept.points.dtype == torch.float64
    torch.testing.assert_close(whole.drift(0.3, x), known, rtol=0, atol=0)


def test_families_of_coordinates_of_unlike_scale_are_taken():
    scale = torch.tensor([1e4, 0.02, 0.02], dtype=torch.float64)
    xs = [
        (1 + 0.1 * torch.rand(8, 3, generator=seeded(k), dtype=torch.float64)) * scale for k in range(2)
    ]
    MultiMarginalBridge(Repressilator(1.0, 2.0, 0.02, 0.1), 1.0, [0.0, 1.0]).prepare(*xs)


def test_a_network_or_a_class_is_no_family():
    for wrong in (nn.Linear(2, 2), Brownian):
        with pytest.raises(TypeError, match="reference must be a family such as LotkaVolterra"):
            MultiMarginalBridge(wrong, 0.1, TIMES)


@pytest.mark.parametrize("update", [LeastSquares(), Direct(0, 2)], ids=lambda u: type(u).__name__)
def test_updates_run_where_gradients_are_off(update):
    with torch.no_grad():
        bridge = solved(Repressilator(4.0, 3.0, 1.0, 1.0, genes=2), ReferenceRefinement(update=update))
    assert bridge.iterations == 1


def test_memory_of_drifts_does_not_grow_with_the_states():
    """Graphs are not kept unless asked for, and states are taken in blocks."""
    bridge = solved()
    assert not bridge.drift(0.5, rows()[0]).requires_grad
    x = rows()[0].requires_grad_()
    (slope,) = torch.autograd.grad(bridge.drift(0.5, x).sum(), x)
    h = 1e-5
    difference = (bridge.drift(0.5, x + h) - bridge.drift(0.5, x - h)).sum() / (2 * h)
    torch.testing.assert_close(slope.sum(), difference.detach(), rtol=1e-4, atol=1e-4)
    assert bridge._together() == 2048
    assert MultiMarginalBridge(Brownian(100), 1.0, TIMES).prepare(*rows(5, 100))._together() < 20


def test_a_file_keeps_the_precision_of_every_part(tmp_path):
    """A source of rows in single precision beside a bridge in double."""
    bridge, x = solved(LotkaVolterra(0.5, 0.4, 0.3, 0.2)), rows()[0]
    genflow.save(Generator(Empirical(x.float()), bridge, Exact()), tmp_path / "bridge.ckpt")
    found = genflow.load(tmp_path / "bridge.ckpt")
    assert found.source.points.dtype == torch.float32
    assert found.process.reference.raw["alpha"].dtype == torch.float64
    assert torch.equal(found.process.drift(0.3, x), bridge.drift(0.3, x))
    flow = Generator(Empirical(x.float()), SDE(MLP(2, 8).double()), Euler(2))
    genflow.save(flow, tmp_path / "flow.ckpt")
    found = genflow.load(tmp_path / "flow.ckpt")
    known = {name: v.dtype for name, v in flow.state_dict().items()}
    assert {name: v.dtype for name, v in found.state_dict().items()} == known


def test_what_is_frozen_is_taken_off_the_target():
    """With beta and delta known, alpha and gamma are ratios of sums."""
    draw = seeded(5)
    x = torch.rand(300, 2, generator=draw, dtype=torch.float64) + 1
    truth = LotkaVolterra(1.0, 0.4, 0.7, 0.2)
    y = truth(0.0, x).detach() + 0.1 * torch.randn(300, 2, generator=draw, dtype=torch.float64)
    reference = LotkaVolterra(0.3, 0.4, 0.3, 0.2)
    for name in ("beta", "delta"):
        reference.raw[name].requires_grad_(False)
    solve_linear(reference, Target(torch.zeros(300), x, y, torch.ones(300, dtype=torch.float64)))
    met, found = x.prod(1), reference.numbers()
    alpha = ((y[:, 0] + 0.4 * met) * x[:, 0]).sum() / x[:, 0].square().sum()
    gamma = ((0.2 * met - y[:, 1]) * x[:, 1]).sum() / x[:, 1].square().sum()
    assert found["alpha"] == pytest.approx(float(alpha)) and found["gamma"] == pytest.approx(
        float(gamma)
    )
    assert (found["beta"], found["delta"]) == (pytest.approx(0.4), pytest.approx(0.2))


def test_a_forecast_takes_steps_of_second_order():
    """In one step of Heun's method the noise is carried on by the drift."""
    rate, sigma, n = -2.0, 0.5, 40_000
    reference = OrnsteinUhlenbeck(1, [[rate]])
    one = torch.ones(1, dtype=torch.float64)
    interval = Interval(reference, sigma, one[:, None], one[:, None], one, one, (0.0, 1.0))
    x = forecast(interval, 1.0, 1.5, torch.ones(n, 1, dtype=torch.float64), 1, seeded())
    h = 0.25  # two steps, the least
    factor, push = 1 + h * rate + (h * rate) ** 2 / 2, 1 + h * rate / 2
    variance = sigma**2 * h * push**2 * (1 + factor**2)
    assert abs(float(x.mean()) - factor**2) < 4 * (variance / n) ** 0.5
    assert abs(float(x.var()) / variance - 1) < 4 * (2 / n) ** 0.5


def test_densities_far_from_zero_in_units_of_their_spread_keep_their_digits():
    draw = seeded(2)
    mean = 1e3 * torch.rand(4, 2, generator=draw, dtype=torch.float64)
    y = mean + 1e-5 * torch.randn(4, 2, generator=draw, dtype=torch.float64)
    covariance = 1e-10 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    found = log_density(mean, covariance, y).diagonal()
    known = torch.distributions.Normal(mean, 1e-5).log_prob(y).sum(1)
    torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-9)
