"""The multi-marginal bridge as an object: weights, shapes, state, checkpoints and refusals."""

import math

import pytest
import torch
from mm_bridges import seeded
from torch import nn

import genflow
from genflow.loss import ReferenceRefinement, StaticBridge
from genflow.loss.ipf import IPF
from genflow.model import Generator
from genflow.process import MultiMarginalBridge
from genflow.process.reference import Brownian, Learned, LotkaVolterra, OrnsteinUhlenbeck, Reference
from genflow.solver import Euler, Exact
from genflow.source import Empirical
from genflow.specs import build, spec

TIMES, SIGMA = [0.0, 0.7, 2.2], 0.7
TURN = [[-0.5, 0.8], [-0.8, -0.1]]


def rows(sizes=(9, 14, 6), d=2, seed=0) -> list[torch.Tensor]:
    g = seeded(seed)
    return [k + torch.randn(n, d, generator=g, dtype=torch.float64) for k, n in enumerate(sizes)]


def bridged(xs, weights=None, times=TIMES, reference=None, **options) -> MultiMarginalBridge:
    reference = OrnsteinUhlenbeck(2, TURN, [0.4, 0.0]) if reference is None else reference
    bridge = MultiMarginalBridge(reference, SIGMA, times, steps=20)
    bridge.observe(times, weights)
    StaticBridge(tolerance=1e-10, **options)(bridge, *xs)
    return bridge


@torch.no_grad()
def fields(bridge, x) -> torch.Tensor:
    return torch.stack(
        [f(t, x) for f in (bridge.drift, bridge.backward_drift) for t in (0.3, 0.9, 1.9)]
    )


def test_rows_twice_are_rows_of_twice_the_weight():
    xs = rows()
    twice = [torch.cat([x, x[: k + 2]]) for k, x in enumerate(xs)]
    weights = [1.0 + (torch.arange(len(x)) < k + 2).double() for k, x in enumerate(xs)]
    plain, weighted = bridged(twice), bridged(xs, weights)
    x = rows((5,), seed=3)[0]
    assert torch.allclose(fields(plain, x), fields(weighted, x), atol=1e-7)
    assert (fields(bridged(xs), x) - fields(weighted, x)).abs().max() > 1e-2  # forgotten weights
    for k in range(2):
        plan = plain.plan(k)
        plan = torch.cat([plan[: len(xs[k])], plan[len(xs[k]) :]])
        folded = plan[: len(xs[k])].clone()
        folded[: k + 2] += plan[len(xs[k]) :]
        joined = folded[:, : len(xs[k + 1])].clone()
        joined[:, : k + 3] += folded[:, len(xs[k + 1]) :]
        assert torch.allclose(joined, weighted.plan(k), atol=1e-8)
    # between atoms and a density, a divergence also counts the entropy of the atoms
    entropy = 0.0
    for k in (1, 2):
        for bridge, sign in ((plain, 1), (weighted, -1)):
            masses = bridge.kept.rows("masses", k)
            entropy += sign * float((masses * masses.log()).sum())
    gap = plain.history[0]["objective"] - weighted.history[0]["objective"]
    assert abs(gap - entropy) < 1e-6


def test_one_path_from_every_row_of_every_snapshot(generator):
    xs = rows()
    bridge = bridged(xs)
    path = bridge.trajectories(generator=generator)
    assert path.shape == (41, 29, 2) and len(bridge.grid()) == 41
    for k, own in enumerate(path.split([9, 14, 6], 1)):
        assert torch.equal(own[20 * k], xs[k])  # in their order
    for k, x in enumerate(xs):  # and all paths pass through rows of all
        assert (path[20 * k][:, None] == x).all(2).any(1).all()
    assert bridge.trajectories(n=5, generator=generator).shape == (41, 5, 2)
    some = bridge.trajectories([0.1, 0.7, 2.2, 3.0], n=11, generator=generator)
    assert some.shape == (4, 11, 2) and some.isfinite().all()
    late = bridge.trajectories([2.5, 3.0], n=4, generator=generator)
    assert late.shape == (2, 4, 2) and late.isfinite().all()
    assert (bridge.drift(1.0, path[10]) != 0).any() and bridge.stochastic and bridge.reversible


def test_asking_for_more_times_does_not_move_the_law(generator):
    """States between the points of the grid are Gaussian bridges between them."""
    bridge = bridged(rows((4, 4, 4)))
    near = bridge.grid()[7] + 1e-9
    path = bridge.trajectories(sorted([*bridge.grid().tolist(), float(near)]), 50, generator)
    assert path.shape == (42, 50, 2) and path.isfinite().all()
    assert (path[8] - path[7]).abs().max() < 1e-3


def test_events_of_any_shape(generator):
    xs = rows(d=4)
    reference = OrnsteinUhlenbeck(4, (-torch.eye(4)).tolist())
    flat = bridged(xs, reference=reference)
    shaped = bridged([x.view(-1, 1, 2, 2) for x in xs], reference=reference)
    x = rows((5,), d=4, seed=3)[0]
    found = fields(shaped, x.view(-1, 1, 2, 2))
    assert found.shape == (6, 5, 1, 2, 2) and torch.equal(found.flatten(2), fields(flat, x))
    ends = shaped.transition(0.2, 1.5, x.view(-1, 1, 2, 2), seeded())
    assert torch.equal(ends.flatten(1), flat.transition(0.2, 1.5, x, seeded()))
    model = Generator(Empirical(xs[0].view(-1, 1, 2, 2)), shaped, Exact())
    assert model.trajectories(generator=generator).shape == (41, 29, 1, 2, 2)
    assert model.sample(7, generator=generator).shape == (7, 1, 2, 2)


def test_single_precision(generator):
    xs = rows()
    single, double = bridged([x.float() for x in xs]), bridged([x.float().double() for x in xs])
    x = rows((5,), seed=3)[0].float()
    assert fields(single, x).dtype == torch.float32
    assert torch.equal(fields(single, x), fields(double, x))  # computed alike inside
    ends = single.transition(0.0, 1.0, x, generator)
    assert ends.dtype == torch.float32 and ends.isfinite().all()


def test_draws_repeat_with_their_generator():
    bridge = bridged(rows())
    x = rows((5,), seed=3)[0]
    asks = [
        lambda g: bridge.trajectories(generator=g),
        lambda g: bridge.trajectories([0.5, 4.0], n=7, generator=g),
        lambda g: bridge.transition(0.1, 2.0, x, g),
        lambda g: bridge.transition(2.0, 0.1, x, g),
        lambda g: bridge.bridges(12, generator=g)[1].x,
        lambda g: StaticBridge(correct=4)(MultiMarginalBridge(LotkaVolterra(1.0, 0.4, 0.4, 0.1), SIGMA),
                                          *rows((4, 5)), generator=g),
    ]  # fmt: skip
    for ask in asks:
        torch.manual_seed(0)
        first, other = ask(seeded(1)), ask(seeded(2))
        torch.manual_seed(1)  # no draw comes from elsewhere
        assert torch.equal(first, ask(seeded(1)))
        assert not torch.equal(first, other)


def test_a_solution_is_kept_for_the_same_rows():
    xs = rows()
    bridge = bridged(xs)
    x = rows((5,), seed=3)[0]
    known = fields(bridge, x)
    bridge.prepare(*xs)
    assert torch.equal(fields(bridge, x), known) and bridge.iterations == 1
    StaticBridge()(bridge, *xs)
    assert bridge.iterations == 2
    bridge.prepare(*rows(seed=1))
    assert bridge.iterations == 0 and bridge.history == []
    with pytest.raises(RuntimeError, match="not solved yet"):
        bridge.drift(0.3, x)


@pytest.mark.parametrize("changed", ["weights", "times", "sizes"])
def test_a_solution_is_forgotten_with_the_question(changed):
    """Other weights, another clock, or the same rows cut at other places."""
    xs = rows()
    bridge, x = bridged(xs), rows((5,), seed=3)[0]
    weights = [torch.linspace(1, 9, len(v)) for v in xs] if changed == "weights" else None
    times = [0.0, 1.5, 2.2] if changed == "times" else TIMES
    cut = xs if changed != "sizes" else list(torch.cat(xs).split([10, 10, 9]))
    bridge.observe(times, weights).prepare(*cut)
    with pytest.raises(RuntimeError, match="not solved yet"):
        bridge.drift(0.3, x)
    StaticBridge(tolerance=1e-10)(bridge, *cut)
    assert torch.allclose(fields(bridge, x), fields(bridged(cut, weights, times), x), atol=1e-8)


def test_a_warm_start_finds_the_same_plan():
    xs = rows()
    bridge = bridged(xs)
    bridge.reference.assign(matrix=[[0.3, 0.0], [0.5, -1.0]])
    again = StaticBridge(tolerance=1e-10)(bridge, *xs)
    fresh = bridged(xs, reference=OrnsteinUhlenbeck(2, [[0.3, 0.0], [0.5, -1.0]], [0.4, 0.0]))
    assert abs(float(again) - fresh.history[0]["objective"]) < 1e-7
    x = rows((5,), seed=3)[0]
    assert torch.allclose(fields(bridge, x), fields(fresh, x), atol=1e-7)


@pytest.mark.parametrize("correct", [0, 8])
def test_saved_and_loaded(tmp_path, correct):
    """Clock, snapshots, solution, parameters and trace survive; nothing else is needed."""
    xs = rows()
    bridge = MultiMarginalBridge(LotkaVolterra(), SIGMA, steps=15)
    loss = ReferenceRefinement(StaticBridge(correct))
    shares = [None, torch.linspace(1, 2, 14), None]
    loss.fit(bridge, *xs, times=TIMES, weights=shares, iterations=2, generator=seeded(), progress=False)
    model = Generator(Empirical(xs[0]), bridge, Exact())
    genflow.save(model, tmp_path / "bridge.ckpt")
    found = genflow.load(tmp_path / "bridge.ckpt")
    assert spec(found) == spec(model) and found.process.times == TIMES
    assert repr(found.process.history) == repr(bridge.history) and found.process.iterations == 2
    assert found.process.reference.numbers() == bridge.reference.numbers()
    x = rows((6,), seed=3)[0]
    times = torch.tensor([0.0, 0.4, 0.7, 1.9, 2.2], dtype=torch.float64)
    for option in (dict(times=times), dict(times=times.flip(0), reverse=True),
                   dict(times=times, solver=Euler()),
                   dict(times=times.flip(0), solver=Euler(), reverse=True)):  # fmt: skip
        runs = [m.sample(x0=x, trajectory=True, generator=seeded(), **option) for m in (model, found)]
        assert runs[0].shape == (5, 6, 2) and torch.equal(*runs)
    paths = [m.trajectories([0.3, 1.0, 2.9], generator=seeded()) for m in (model, found)]
    assert torch.equal(*paths)
    for m in (model, found):  # and goes on from there
        loss(m.process, *xs, generator=seeded(7))
    assert found.process.iterations == 3
    assert repr(found.process.history) == repr(bridge.history)


def test_times_in_single_precision_are_those_of_the_snapshots():
    """0.7 and 2.2 are not: rounded, one lies before its snapshot and the other past the last."""
    xs = rows()
    bridge = bridged(xs)
    times = torch.tensor(TIMES)
    path = bridge.trajectories(times, n=8, generator=seeded())
    model = Generator(Empirical(xs[0]), bridge, Exact())
    ahead = model.sample(x0=xs[0], times=times, trajectory=True, generator=seeded())
    behind = model.sample(x0=xs[2], times=times.flip(0), reverse=True, trajectory=True)
    for k in (1, 2):
        for states in (path[k], ahead[k], behind[2 - k]):
            assert ((states[:, None] - xs[k]).abs().amax(2).amin(1) < 1e-5).all()


def test_a_state_goes_into_another_bridge_of_the_same_spec():
    xs = rows()
    bridge = bridged(xs)
    twin = build(spec(bridge))
    assert spec(twin) == spec(bridge)
    twin.load_state_dict(bridge.state_dict())
    x = rows((5,), seed=3)[0]
    assert torch.equal(fields(twin, x), fields(bridge, x))
    assert torch.equal(twin.transition(0.1, 2.9, x, seeded()), bridge.transition(0.1, 2.9, x, seeded()))
    empty = MultiMarginalBridge(OrnsteinUhlenbeck(2), SIGMA, TIMES)
    twin.load_state_dict(empty.state_dict())  # one that has seen nothing forgets
    assert twin.iterations == 0
    with pytest.raises(RuntimeError, match="not solved yet"):
        twin.trajectories()


def test_two_snapshots_need_no_times():
    xs = rows((4, 5))
    bridge = MultiMarginalBridge(Brownian(2), SIGMA)
    StaticBridge()(bridge, *xs)
    assert bridge.span == (0.0, 1.0) and bridge.times == [0.0, 1.0]


def test_nothing_is_known_before_it_is_solved():
    bridge = MultiMarginalBridge(Brownian(2), SIGMA, TIMES)
    x = rows()[0]
    asks = [
        lambda: bridge.drift(0.3, x), lambda: bridge.backward_drift(0.3, x),
        lambda: bridge.transition(0.0, 1.0, x), bridge.trajectories, bridge.bridges,
    ]  # fmt: skip
    for seen in (False, True):
        if seen:
            bridge.prepare(*rows())
        for ask in asks:
            with pytest.raises(RuntimeError, match="not solved yet: call fit of ReferenceRefinement"):
                ask()
    with pytest.raises(RuntimeError, match="seen no snapshots yet: call prepare"):
        MultiMarginalBridge(Brownian(2), SIGMA, TIMES).intervals()


def test_a_forecast_is_not_read_backwards():
    bridge = bridged(rows())
    x = rows((5,), seed=3)[0]
    model = Generator(Empirical(rows()[0]), bridge, Exact())
    asks = [
        lambda: bridge.transition(2.5, 1.0, x),
        lambda: bridge.backward_drift(2.5, x),
        lambda: model.sample(x0=x, times=[2.5, 1.0], reverse=True),
        lambda: model.sample(x0=x, times=[2.5, 1.0], reverse=True, solver=Euler()),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match="past the last snapshot at 2.2|outside|span"):
            ask()


class Odd(Reference):
    """A family that does what no family may."""

    def __init__(self, fault: str) -> None:
        super().__init__(2)
        self.fault = fault

    def field(self, t, x, values):
        if self.fault == "shape":
            return x[:, :1]
        if self.fault == "nan":
            return torch.where(x[:, :1] > 2, math.nan, x)
        return torch.tanh(x.detach())


def ask(bridge=None, xs=None, times=TIMES, weights=None):
    bridge = MultiMarginalBridge(Brownian(2), SIGMA) if bridge is None else bridge
    if times is not None:
        bridge.observe(times, weights)
    return bridge.prepare(*(rows() if xs is None else xs))


def spoilt(k: int) -> list[torch.Tensor]:
    xs = rows()
    xs[k][3, 1] = math.nan
    return xs


one, few = torch.ones(9), [torch.ones(9), None, torch.ones(5)]
REFUSED = {
    "sigma 0": (lambda: MultiMarginalBridge(Brownian(2), 0.0), "sigma.*positive"),
    "sigma below 0": (lambda: MultiMarginalBridge(Brownian(2), -0.1), "sigma.*positive"),
    "sigma nan": (lambda: MultiMarginalBridge(Brownian(2), math.nan), "sigma"),
    "steps": (lambda: MultiMarginalBridge(Brownian(2), 1.0, steps=1), "steps.*2"),
    "one time": (lambda: MultiMarginalBridge(Brownian(2), 1.0, [0.0]), "at least two finite times"),
    "falling": (lambda: MultiMarginalBridge(Brownian(2), 1.0, [0, 2, 1]), "must rise.*1 follows 2"),
    "equal times": (lambda: ask(times=[0, 1, 1]), "must rise.*1 follows 1"),
    "nan time": (lambda: ask(times=[0, math.nan, 1]), "finite times"),
    "no times": (lambda: ask(times=None), "3 snapshots but no times"),
    "times": (lambda: ask(times=[0, 1, 2, 3]), "4 times but 3 snapshots"),
    "one snapshot": (lambda: ask(xs=rows()[:1], times=[0, 1]), "at least two marginals"),
    "dim": (lambda: ask(xs=rows(d=3)), "3 coordinates but Brownian has 2"),
    "dims": (lambda: ask(xs=[*rows()[:2], rows(d=3)[2]]), "x2 has event shape"),
    "nan": (lambda: ask(xs=spoilt(1)), "snapshot at time 0.7 holds values that are not finite"),
    "empty": (lambda: ask(xs=[*rows()[:2], torch.zeros(0, 2).double()]), "x2 is empty"),
    "weights": (lambda: ask(weights=[one]), "1 weights for 3 snapshots"),
    "few": (
        lambda: ask(weights=few),
        "weights of the snapshot at time 2.2 must be 6 numbers, one a row",
    ),
    "zero": (
        lambda: ask(weights=[0 * one, None, None]),
        "weights of snapshot 0 must be positive finite numbers",
    ),
    "shape": (lambda: ask(MultiMarginalBridge(Odd("shape"), 1.0)), r"shape \(9, 1\) for states \(9, 2"),
    "detach": (lambda: ask(MultiMarginalBridge(Odd("detach"), 1.0)), "Jacobian.*detach"),
    "relu": (
        lambda: ask(MultiMarginalBridge(Learned(Stepped(), 2), 1.0)),
        "without second derivative|Jacobian",
    ),
    "past": (lambda: bridged(rows()).trajectories([-0.1, 1.0]), "must rise and start at 0"),
    "unsorted": (lambda: bridged(rows()).trajectories([1.0, 0.5]), "must rise"),
    "learner": (lambda: StaticBridge()(nn.Linear(2, 2), *rows()), "MultiMarginalBridge, not a Linear"),
    "cond": (
        lambda: StaticBridge()(MultiMarginalBridge(Brownian(2), 1.0, TIMES), *rows(), cond=one),
        "no conditions",
    ),
    "correct": (lambda: StaticBridge(correct=-1), "correct"),
    "tolerance": (lambda: StaticBridge(tolerance=0.0), "tolerance.*positive"),
    "no regressor": (
        lambda: IPF()(MultiMarginalBridge(Brownian(2), 1.0, TIMES), *rows()),
        "regressor",
    ),
}


class Stepped(nn.Module):
    """What autograd cannot see."""

    def forward(self, t, x):
        return torch.tanh(x.detach()) + 0 * x


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_in_one_sentence(name):
    refuse, sentence = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        refuse()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_drift_that_is_not_finite_is_named_with_its_state():
    with pytest.raises(FloatingPointError, match=r"Odd gives a drift.*state \(.*\) of the snapshot at"):
        ask(MultiMarginalBridge(Odd("nan"), 1.0))


def test_a_plan_that_did_not_converge_is_refused():
    from genflow.process.multimarginal.plan import NotConverged

    bridge = MultiMarginalBridge(Brownian(2), 0.02, TIMES)
    with pytest.raises(NotConverged, match="raise iterations or tolerance of StaticBridge"):
        StaticBridge(iterations=2)(bridge, *rows())
    assert bridge.iterations == 0
