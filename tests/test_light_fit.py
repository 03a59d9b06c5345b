"""The fit of a light bridge: what it reaches, what it goes by, and its stages."""

import math

import pytest
import torch
from light_fits import FAMILIES, double, light, numbers, of_seed, ordered, quick, rolls, same, tables

from genflow.oracle import EntropicPair
from genflow.process import LightBridge
from genflow.process.light import fit
from genflow.process.light.rows import gather
from genflow.source import Empirical, Gaussian, Moons, Source

FAMILIES = pytest.mark.parametrize("family", FAMILIES)

# What it reaches


@pytest.mark.parametrize(
    ("dim", "epsilon", "bound", "error"),
    [(2, 0.1, 0.015, 0.3), (2, 1.0, 0.005, 0.05), (2, 10.0, 0.01, 0.05)]
    + [(16, 0.1, 0.04, 0.5), (16, 10.0, 0.03, 0.05)],
)
def test_known_pairs_are_found(dim, epsilon, bound, error):
    pair, looks = EntropicPair(dim, epsilon), []
    bridge = LightBridge(dim, 10, epsilon)
    options = {"steps": 200, "batch_size": 256, "pilot": 4000}
    quick(bridge, pair.x0, pair.x1, callback=lambda b, _: looks.append(numbers(b)), **options)
    end = pair.kl(bridge, 4000).value
    assert pair.conditional_bw(bridge, 300) < error
    last = [entry.stage for entry in bridge.history].index("adam") - 1
    warm, fixed = (pair.kl(bridge.assign(*looks[k]), 4000).value for k in (0, last))
    assert end < bound < fixed < warm


def rows_of(bridge, x0, x1):
    with torch.no_grad():
        return bridge.log_normaliser(x0), bridge.log_potential(x1)


def test_no_bridge_beats_the_truth_on_its_own_law():
    pair = EntropicPair(3, 1.0, anisotropy=4.0)
    x0, x1 = pair.sample(20_000, of_seed(1), double)
    truth = pair.bridge()
    known = rows_of(truth, x0, x1)
    given, draw = truth.numbers(), of_seed(2)
    fitted = quick(LightBridge(3, 8, 1.0), *pair.sample(3000, of_seed(3)))
    others = [(fitted, 0.0)]
    for k in range(3):
        for size in (0.03, 0.3):
            moved = [v.clone() for v in given]
            noise = size * torch.randn(given[k].shape, generator=draw, dtype=double)
            moved[k] = moved[k] + noise if k < 2 else moved[k] + size * torch.eye(3, dtype=double)
            others.append((pair.bridge().assign(*moved), size))
    for other, size in others:
        c, v = (a - b for a, b in zip(rows_of(other, x0, x1), known))
        apart, error = float(c.mean() - v.mean()), float((c - v).std() / len(c) ** 0.5)
        assert apart > -4 * error
        assert size < 0.1 or apart > 10 * error
    assert pair.kl(truth).value == pytest.approx(0, abs=1e-12)
    assert pair.conditional_bw(truth, 100) == pytest.approx(0, abs=1e-9)


ROTATED = EntropicPair(3, 0.5, 1, 3, radius=3.0, variance=0.5, std=1.0, anisotropy=8.0)


@pytest.mark.parametrize(("family", "rank"), [("full", None), ("low_rank", 2), ("low_rank", 1)])
def test_a_rotated_pair_is_recovered(family, rank):
    bridge = LightBridge(3, 3, 0.5, family, rank)
    quick(bridge, ROTATED.x0, ROTATED.x1, pilot=5000, polish=None)
    truth = ROTATED.bridge()
    order = torch.cdist(truth.location, bridge.location.double()).argmin(1)
    apart = (bridge.covariances()[order] - truth.covariances()).abs().max()
    divergence = ROTATED.kl(bridge, 4000).value
    if rank == 1:  # not of this family: what is missing is seen
        assert divergence > 0.05 and apart > 0.08
    else:
        assert divergence < 0.02 and apart < 0.04
        assert (bridge.location[order] - truth.location).abs().max() < 0.2


@pytest.mark.parametrize("family", ["diagonal", "isotropic"])
def test_a_rotated_pair_is_out_of_reach_along_the_axes(family):
    bridge = quick(LightBridge(3, 3, 0.5, family), ROTATED.x0, ROTATED.x1, pilot=5000)
    assert ROTATED.kl(bridge, 4000).value > 0.1


@FAMILIES
def test_a_round_pair_is_of_every_family(family):
    pair = EntropicPair(4, 1.0)
    bridge = quick(light(6, 1.0, family, 4), pair.x0, pair.x1, pilot=4000)
    assert pair.kl(bridge, 4000).value < 0.02


def test_new_points_map_without_refitting():
    pair = EntropicPair(2, 0.5)
    bridge = quick(LightBridge(2, 8, 0.5), *pair.sample(4000, of_seed(0)), steps=200)
    before = numbers(bridge)
    x0 = torch.tensor([[1.7, -1.5], [-0.2, 1.9], [0.31, 0.27]])  # at the rim, and between the rows
    assert torch.cdist(x0, bridge.anchors).min() > 0
    mean, covariance = pair.plan_moments(x0.double())
    plan = bridge.plan(x0)
    assert (plan.mean - mean).norm(dim=1).max() < 0.15 * mean.norm(dim=1).min()
    assert (bridge.drift(0.3, x0) - pair.drift(0.3, x0)).norm(dim=1).max() < 0.6
    ends = bridge.sample_at(x0.repeat(4000, 1), 1.0, of_seed(1)).reshape(4000, 3, 2)
    error = (plan.variance / 4000).sqrt()
    assert ((ends.mean(0) - plan.mean).abs() / error).max() < 4.5
    assert all(torch.equal(a, b) for a, b in zip(before, bridge.numbers()))
    assert bridge.drift(0.5, torch.full((1, 2), 1e3)).isfinite().all()


# What it goes by


def test_tables_and_laws():
    pair = EntropicPair(2, 1.0)
    x0, x1 = pair.sample(3000, of_seed(5))
    for start in (x0, pair.x0):
        for stop in (x1, pair.x1):
            bridge = quick(LightBridge(2, 10, 1.0), start, stop, pilot=3000)
            assert pair.kl(bridge, 3000).value < 0.02
            assert bridge.anchors.shape == (3000, 2)
            assert (start is not x0) or torch.equal(ordered(bridge.anchors), ordered(x0))
            if start is not x0 and stop is not x1:  # what is told is of rows that no step has seen
                fresh = pair.sample(20_000, of_seed(6))
                told = bridge.history.objective[-1]
                assert told == pytest.approx(bridge.objective(*fresh).item(), abs=0.2)


def test_an_empirical_source_is_a_law():
    x0, x1 = tables()
    bridge = quick(light(), Empirical(x0), Empirical(x1), pilot=200)
    assert bridge.objective(x0, x1).item() < quick(light(1), x0, x1).objective(x0, x1).item()


class Counting(Source):
    """Standard normals; counts how many were asked for."""

    def __init__(self):
        super().__init__()
        self.shape, self.drawn = (2,), []

    def sample(self, n, generator=None):
        self.drawn.append(n)
        return self._normal((n, 2), generator)


def test_a_law_gives_fresh_rows_to_every_step():
    start, stop = Counting(), Counting()
    quick(light(2), start, stop, pilot=500, batch_size=64)
    assert start.drawn == stop.drawn
    assert start.drawn[0] > 500 and len(start.drawn) > 40 and set(start.drawn[1:]) == {64}


@pytest.mark.parametrize("rows", [100, 40])
def test_a_table_is_drawn_from_or_taken_whole(rows, monkeypatch):
    seen = []

    def adam(work, draw, steps, *rest):
        seen.extend(draw() for _ in range(30))
        rest[-1](steps)

    monkeypatch.setattr(fit, "adam", adam)
    x0, x1 = tables(rows)
    quick(light(), x0, x1, batch_size=50)
    assert all(len(a) == len(b) == min(50, rows) for a, b in seen)
    for side, x in ((0, x0.double()), (1, x1.double())):
        found = torch.cat([pair[side] for pair in seen]).unique(dim=0)
        found = ordered(found - found.mean(0))  # where they are centred is not told
        torch.testing.assert_close(found, ordered(x - x.mean(0)), rtol=0, atol=1e-9)
        order = torch.stack([pair[side] for pair in seen])
        assert len(order.unique(dim=0)) == (30 if rows > 50 else 1)


def test_the_order_of_a_table_does_not_matter():
    x0, x1 = (ordered(x) for x in tables(2000))
    bridge = quick(light(), x0, x1, pilot=200, polish=None)
    assert len(bridge.anchors) == 200
    assert (bridge.anchors.mean(0).abs() < 4 / 200**0.5).all()
    ends = bridge.plan(x0).mean.mean(0)
    assert ((ends - x1.mean(0)).abs() < 5 * x1.std(0) / 200**0.5).all()


def test_sides_of_unequal_length():
    x0, x1 = tables()
    bridge = quick(light(), x0[:120], x1)
    found = bridge.objective(x0[:120], x1).item()
    assert found == pytest.approx(min(bridge.history.objective), abs=1e-4)


def test_units_do_not_matter():
    x0, x1 = tables(200, double)
    near = quick(light(4, 0.1).double(), x0, x1)
    far = quick(light(4, 0.1 * 50**2).double(), 50 * x0, 50 * x1)
    torch.testing.assert_close(far.location, 50 * near.location, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(far.covariances(), near.covariances(), rtol=1e-6, atol=1e-9)


def test_event_shapes_are_those_of_flat_rows():
    pair = EntropicPair([1, 4, 4], 1.0)
    x0, x1 = pair.sample(1000, of_seed(0))
    image = quick(LightBridge([1, 4, 4], 6, 1.0), x0, x1)
    flat = quick(LightBridge(16, 6, 1.0), x0.flatten(1), x1.flatten(1))
    assert same(image, flat)
    assert pair.kl(image, 2000).value < 0.2
    assert image.plan(x0[:3]).mean.shape == (3, 1, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_numbers_keep_their_dtype_and_tables_may_have_any(dtype):
    x0, x1 = tables()
    bridges = [quick(light().to(dtype), x0.to(kind), x1.to(kind)) for kind in (torch.float32, double)]
    assert same(*bridges)
    for p in bridges[0].parameters():
        assert p.dtype == dtype and p.grad is None
    assert bridges[0].anchors.dtype == dtype
    mixed = quick(light().to(dtype), x0, x1.double())
    assert same(mixed, bridges[0])


def test_what_was_fitted_is_frozen():
    bridge = quick(light(), *tables())
    assert not any(p.requires_grad for p in bridge.parameters())
    assert not bridge.drift(0.5, torch.ones(1, 2)).requires_grad
    quick(bridge, *tables(), steps=5)


def test_draws_are_of_the_generator():
    x0, x1 = tables()
    one, state = light(), torch.get_rng_state()
    quick(one, x0, x1, held_out=0.2)
    assert torch.equal(state, torch.get_rng_state())
    assert same(one, quick(light(), x0, x1, held_out=0.2))
    assert not same(one, quick(light(), x0, x1, held_out=0.2, generator=of_seed(1)))
    laws = [light(), light()]
    state = torch.get_rng_state()
    for bridge in laws:
        quick(bridge, Gaussian(2), Moons(), pilot=300)
    assert torch.equal(state, torch.get_rng_state()) and same(*laws)
    ends = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        ends.append(quick(light(), x0, x1, generator=None))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


# Stages


def test_stages_and_their_steps():
    x0, x1 = tables()
    bridge = quick(light(), x0, x1, steps=60)
    stages = [entry.stage for entry in bridge.history]
    fixed = stages.count("fixed point")
    assert stages == ["warm start"] + fixed * ["fixed point"] + 20 * ["adam"] and fixed > 1
    assert [e.iteration for e in bridge.history] == [0, *range(1, fixed + 1), *range(3, 61, 3)]
    rates = [0.02 * (1 + math.cos(math.pi * k / 60)) / 2 for k in range(3, 61, 3)]
    assert [e.step for e in bridge.history][-20:] == pytest.approx(rates, abs=1e-12)
    values = bridge.history.objective[: fixed + 1]
    assert all(b < a for a, b in zip(values, values[1:]))
    clock = bridge.history.seconds
    assert clock[0] > 0 and all(b >= a for a, b in zip(clock, clock[1:]))
    assert [e.stage for e in quick(light(), x0, x1, polish=None).history] == stages[: fixed + 1]
    short = quick(light(), x0, x1, steps=7).history
    assert [e.iteration for e in short][-7:] == list(range(1, 8))


@FAMILIES
def test_polish_lowers_the_objective_and_keeps_the_best(family):
    x0, x1 = tables()
    ends = {}
    for polish in (None, "adam"):
        bridge = quick(light(family=family).double(), x0, x1, polish=polish, steps=60)
        ends[polish] = bridge.objective(x0, x1).item()
        assert ends[polish] == pytest.approx(min(bridge.history.objective), rel=1e-12)
    assert ends["adam"] < ends[None] - 0.005
    # a rate that is far too large ruins it: what was best is given back
    wild = quick(light(family=family).double(), x0, x1, rate=3.0, steps=10)
    assert wild.history.objective[-2] > ends[None] and wild.history[-1].stage == "best"
    assert wild.history.objective[-1] == pytest.approx(ends[None], rel=1e-12)
    assert wild.objective(x0, x1).item() == pytest.approx(min(wild.history.objective), rel=1e-12)


@FAMILIES
def test_lbfgs_goes_to_the_end(family):
    x0, x1 = tables(200)
    bridge = quick(light(3, family=family).double(), x0, x1, polish="lbfgs", steps=60)
    bridge.requires_grad_().objective(x0, x1).backward()
    assert max(p.grad.abs().max() for p in bridge.parameters()) < 1e-3
    assert {e.stage for e in bridge.history} == {"warm start", "fixed point", "lbfgs"}
    assert bridge.history.converged
    assert {e.step for e in bridge.history if e.stage == "lbfgs"} == {1.0}


def test_one_step_of_polish():
    quick(light(1), *tables(), steps=1)


def test_small_epsilons_are_annealed():
    x0, x1 = rolls()
    ends = {}
    for anneal in (None, "auto", 0.1):
        bridge = quick(light(20, 0.002).double(), x0, x1, anneal=anneal)
        ends[anneal] = bridge.objective(x0, x1).item()
        count = [e.stage for e in bridge.history].count("annealing")
        first = 0.25 * x1.var(0).mean().item() if anneal == "auto" else anneal
        assert count == (0 if anneal is None else math.ceil(math.log2(first / 0.002)))
    assert ends["auto"] < ends[None] - 5 and ends[0.1] < ends[None] - 5
    wide = quick(light(epsilon=1.0), x0, x1, iterations=5)
    assert all(e.stage != "annealing" for e in wide.history)


def test_annealing_leads_to_where_the_fixed_point_begins():
    # each halving ends nearer: its numbers, with weights in units of epsilon, suit the next epsilon
    x0, x1 = rolls()
    bridge = quick(light(20, 0.01).double(), x0, x1, polish=None)
    values = [e.objective for e in bridge.history if e.stage == "annealing"]
    assert all(b < a for a, b in zip(values[1:], values[2:]))
    assert values[-1] - bridge.history[-1].objective < 0.15 * (bridge.history[0].objective - values[-1])


def test_restart():
    for x0, x1, epsilon in ((*tables(), 0.5), (*rolls(), 0.002)):
        bridge = quick(light(8, epsilon).double(), x0, x1)
        fresh, end = numbers(bridge), bridge.objective(x0, x1).item()
        quick(bridge, x0, x1, restart=False)
        assert bridge.history[0].stage == "start"
        assert bridge.history[0].objective == pytest.approx(end, rel=1e-9)
        assert bridge.objective(x0, x1).item() < end + 1e-9
        assert all(e.stage != "annealing" for e in bridge.history)
        quick(bridge, x0, x1)
        assert all(torch.equal(a, b) for a, b in zip(fresh, bridge.numbers()))


def test_overfitting_is_held_back_by_rows_held_out():
    y0, y1 = tables(5000, seed=900)
    ends = {0.0: [], 0.3: []}
    for seed in range(2):
        x0, x1 = tables(150, seed=seed)
        for share, found in ends.items():
            bridge = quick(light(50, 0.2), x0, x1, held_out=share, steps=400)
            found.append(bridge.objective(y0, y1).item())
            assert len(bridge.anchors) == 150 - round(150 * share)
    assert sum(ends[0.3]) < sum(ends[0.0]) - 1


def test_what_is_told_of_held_out_rows():
    x0, x1 = tables(100)
    bridge = quick(light().double(), x0, x1, held_out=0.3)
    draw = of_seed(0)
    sides = [gather("x", x, (2,), x.device, 10_000, 0.3, draw) for x in (x0, x1)]
    held = bridge.history.held_out
    begin = [e.stage for e in bridge.history].index("adam") - 1
    best = min(range(begin, len(held)), key=held.__getitem__)
    for part, told in (("held_out", held), ("pilot", bridge.history.objective)):
        rows = (getattr(side, part) + side.centre for side in sides)
        assert bridge.objective(*rows).item() == pytest.approx(told[best], rel=1e-9)


def test_what_is_best_on_held_out_rows_is_kept():
    stopped = []
    for seed in range(4):
        x0, x1 = tables(150, seed=seed)
        looks = []
        bridge = light(30, 0.2).double()
        keep = lambda b, _, to=looks: to.append(numbers(b))  # noqa: E731
        quick(bridge, x0, x1, held_out=0.3, steps=200, callback=keep)
        history, held = bridge.history, bridge.history.held_out
        begin = [e.stage for e in history].index("adam") - 1  # what the polish began with counts
        best = min(range(begin, len(held)), key=held.__getitem__)
        assert all(torch.equal(a, b) for a, b in zip(looks[best], bridge.numbers()))
        stopped.append(history.stopped)
        if history.stopped:
            last = [entry for entry in history if entry.stage == "adam"][-1]
            assert 100 < last.iteration < 200 and history.converged
            late = [entry.held_out for entry in history if entry.stage == "adam"][-4:]
            assert min(late) > min(held)
    assert any(stopped)
    plain = quick(light(30, 0.2), *tables(150), steps=200).history
    assert not plain.stopped and plain.held_out == len(plain) * [None]
    assert max(entry.iteration for entry in plain if entry.stage == "adam") == 200


def test_of_fresh_rows_the_last_look_counts_not_the_luckiest():
    pair = EntropicPair(2, 1.0)
    apart = 0
    for seed in range(4):
        looks = []
        bridge = LightBridge(2, 10, 1.0).double()
        keep = lambda b, _, to=looks: to.append(numbers(b))  # noqa: E731
        bridge.fit(
            pair.x0, pair.x1, steps=100, rate=0.005, pilot=2000, generator=of_seed(seed), callback=keep
        )
        values, stages = bridge.history.objective, [entry.stage for entry in bridge.history]
        if stages[-1] == "best":  # nothing was gained: what the polish began with
            continue
        apart += min(values[stages.index("adam") :]) < values[-1]
        assert all(torch.equal(a, b) for a, b in zip(looks[-1], bridge.numbers()))
    assert apart
