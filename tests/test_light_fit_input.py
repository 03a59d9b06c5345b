"""What the fit of a light bridge tells, what odd data it takes, and what it refuses."""

import math
import time

import pytest
import torch
from light_fits import FAMILIES, double, light, numbers, of_seed, ordered, quick, rolls, same, tables

from genflow.oracle import EntropicPair
from genflow.process import LightBridge
from genflow.source import Gaussian, Moons

FAMILIES = pytest.mark.parametrize("family", FAMILIES)

# What is told


def test_callbacks_see_the_bridge_of_each_look():
    x0, x1 = tables()
    seen, bridge = [], light().double()

    def look(b, k):
        assert b is bridge
        seen.append((k, b.objective(x0, x1).item()))

    quick(bridge, x0, x1, callback=look)
    assert [k for k, _ in seen] == list(range(len(bridge.history)))
    assert [v for _, v in seen] == pytest.approx(bridge.history.objective, rel=1e-9)


def test_the_clock_leaves_looks_out():
    def slow(*_):
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass

    before = time.process_time()
    history = quick(light(), *tables(), callback=slow).history
    spent = time.process_time() - before
    assert 0 < history.seconds[-1] < spent - 0.03 * len(history) + 0.02
    assert len(history) > 20


def test_the_bar_is_shown_on_demand(capsys):
    quick(light(), *tables())
    assert capsys.readouterr().err == ""
    quick(light(), *tables(), progress=True, callback=lambda *_: time.sleep(0.01))
    shown = capsys.readouterr().err
    assert "look" in shown and "objective" in shown


def test_a_history_is_read_like_a_list():
    bridge = light()
    assert bridge.history is None
    assert quick(bridge, *tables()) is bridge
    history = bridge.history
    assert [*history] == history.entries and history[-1] is history.entries[-1]
    assert history.objective == [e.objective for e in history]
    assert history.trace() == ", ".join(f"{v:.6g}" for v in history.objective[-8:])
    assert history.trace(2).count(",") == 1 and history.choices == []


def test_a_fit_that_was_cut_short_says_so():
    x0, x1 = rolls(300)
    bridges = [light(10, 0.3) for _ in range(3)]
    with pytest.warns(RuntimeWarning, match="not converged after 3 looks: the objective ran") as told:
        bridges[0].fit(x0, x1, iterations=3, polish=None, generator=of_seed(0))
    assert bridges[0].history.trace() in str(told[0].message)
    assert told[0].filename == __file__ and not bridges[0].history.converged
    with pytest.warns(RuntimeWarning, match="more iterations or steps") as told:
        bridges[1].fit(x0, x1, steps=3, rate=1e-4, iterations=0, generator=of_seed(0))
    assert told[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="more iterations or steps"):  # on batches it is seen too
        bridges[2].fit(*rolls(2000), steps=3, rate=1e-4, iterations=0, generator=of_seed(0))


def test_what_begins_at_the_optimum_has_converged():
    x0, x1 = tables()
    assert light(1).fit(x0, x1, polish=None, generator=of_seed(0)).history.converged


def test_a_fit_that_was_not_says_nothing():
    x0, x1 = tables(400)
    bridge = light(3).fit(x0, x1, generator=of_seed(0))
    assert bridge.history.converged
    bridge.fit(x0, x1, generator=of_seed(0), restart=False)  # from where nothing is left to gain
    assert bridge.history.converged


def test_numbers_that_run_away_are_given_up():
    x0, x1 = tables()
    bridge = light().double()
    with pytest.warns(RuntimeWarning, match="not converged .* nan, .* smaller rate"):
        bridge.fit(x0, x1, rate=1e300, generator=of_seed(0))
    assert [e.stage for e in bridge.history].count("adam") == 1
    best = min(v for v in bridge.history.objective if math.isfinite(v))
    assert bridge.objective(x0, x1).item() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("polish", [None, "adam"])
def test_numbers_that_are_too_large_raise(polish):
    x0, x1 = (1e200 * v for v in tables(dtype=double))
    bridge = light()
    with pytest.raises(FloatingPointError, match="not finite; .* scale of the data against epsilon"):
        bridge.fit(x0, x1, polish=polish, anneal=None, steps=10)


# Odd data


@FAMILIES
def test_few_points_many_times(family):
    points = torch.tensor([[5.0, 5.0], [6.0, 5.0], [5.0, 6.0]])
    x0, x1 = tables(90)[0], points.repeat(30, 1)
    bridge = quick(light(8, family=family), x0, x1, polish=None)
    assert bridge.objective(x0, x1).isfinite()
    ends = bridge.sample_at(x0, 1.0, of_seed(0))
    assert torch.cdist(ends, points).min(1).values.max() < 0.05
    share = torch.cdist(ends, points).argmin(1).bincount(minlength=3) / 90
    assert (share - 1 / 3).abs().max() < 0.2


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_least_width_is_relative_to_the_data(epsilon):
    x0, x1 = tables(90)[0], torch.tensor([[5.0, 5.0], [6.0, 5.0], [5.0, 6.0]]).repeat(30, 1)
    bridge = quick(light(3, epsilon).double(), x0, x1, polish=None)
    least = 1e-8 * x1.double().var(0).mean()
    torch.testing.assert_close(epsilon * bridge.numbers()[2], least.expand(3, 2), rtol=1e-3, atol=0)
    quick(bridge, x0, x1, steps=100)
    assert epsilon * bridge.numbers()[2].min() > 0.999 * least


@FAMILIES
def test_as_many_components_as_rows(family):
    x0, x1 = tables(12)
    bridge = quick(light(12, family=family), x0, x1, polish=None)
    assert bridge.objective(x0, x1).isfinite()


def test_sources_without_width():
    # all start in one point: the plan is the data, each coordinate by itself
    x1 = Moons().sample(2000, of_seed(0))
    bridge = quick(light(20, 0.3), torch.ones(50, 2), x1)
    mean, covariance = bridge.conditional_moments(torch.ones(1, 2))
    assert (mean[0] - x1.mean(0)).abs().max() < 0.15
    assert (covariance[0] / x1.T.cov() - 1).abs().max() < 0.15


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_where_zero_is_makes_no_difference(offset):
    pair = EntropicPair(2, 0.5)
    x0, x1 = pair.sample(1000, of_seed(0), double)
    y0, y1 = pair.sample(1000, of_seed(1), double)
    known, found = pair.log_plan(y0, y1), []
    for far in (0.0, offset):
        bridge = quick(light(8).double(), x0 + far, x1 + far, polish=None)
        found.append((known - bridge.plan(y0 + far).log_prob(y1 + far)).mean().item())
    assert found[1] == pytest.approx(found[0], abs=0.02)


@pytest.mark.parametrize("family", ["isotropic", "low_rank"])
def test_a_constant_coordinate_is_no_obstacle_to_round_components(family):
    x0, x1 = tables()
    x1 = torch.cat([x1[:, :1], torch.full((300, 1), 0.1)], 1)
    assert quick(light(family=family), x0, x1, polish=None).objective(x0, x1).isfinite()


# Preparing


def test_preparing_is_a_short_fit_that_draws_nothing():
    x0, x1 = tables()
    bridge, state = light(), torch.get_rng_state()
    bridge.prepare(x0, torch.full((3, 2), math.nan), x1)  # of several marginals the outer ones
    assert torch.equal(state, torch.get_rng_state())
    assert same(bridge, light().prepare(x0, x1))
    assert torch.equal(ordered(bridge.anchors), ordered(x0))
    assert {e.stage for e in bridge.history} == {"warm start", "fixed point"}
    assert sum(e.stage == "fixed point" for e in bridge.history) <= 10
    assert all(p.requires_grad for p in quick(bridge, x0, x1).prepare(x0, x1).parameters())


# What it refuses

GOOD = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
HOLED = GOOD.clone()
HOLED[7, 1], HOLED[9, 0] = math.nan, math.inf
FLAT = torch.cat([GOOD[:, :1], torch.full((20, 1), 0.1)], 1)


@pytest.mark.parametrize(
    ("x0", "x1", "options", "kind", "said"),
    [
        (HOLED, GOOD, {}, ValueError, "x0 holds a value that is not finite .* first in row 7"),
        (GOOD, HOLED, {}, ValueError, "x1 holds a value that is not finite .* first in row 7"),
        (GOOD, GOOD[:3], {}, ValueError, "5 components need .* rows of x1, but there are 3"),
        (GOOD, GOOD[:5], {"held_out": 0.4}, ValueError, "5 components need .* but there are 3"),
        (GOOD[:, :1], GOOD, {}, ValueError, r"x0 has shape \(20, 1\), expected \(N, 2\)"),
        (GOOD, torch.randn(20, 3), {}, ValueError, r"x1 has shape \(20, 3\), expected \(N, 2\)"),
        (GOOD, GOOD[:, 0], {}, ValueError, r"x1 has shape \(20,\)"),
        (Gaussian(3), GOOD, {}, ValueError, r"x0 has shape .*3\), expected \(N, 2\)"),
        (GOOD[:1], GOOD, {}, ValueError, r"x0 has shape \(1, 2\).* N >= 2"),
        (GOOD, GOOD[:0], {}, ValueError, r"x1 has shape \(0, 2\)"),
        (GOOD, FLAT, {}, ValueError, "coordinate 1 of x1 is constant.*isotropic"),
        (GOOD, torch.ones(20, 2), {}, ValueError, "coordinate 0, 1 of x1 is constant"),
        (GOOD.long(), GOOD, {}, TypeError, "x0 must be a floating-point tensor .* torch.int64"),
        (GOOD, GOOD.tolist(), {}, TypeError, "x1 must be a floating-point tensor .* got list"),
        (GOOD, GOOD, {"iterations": -1}, ValueError, "iterations must be a whole number >= 0"),
        (GOOD, GOOD, {"iterations": 2.5}, ValueError, "iterations"),
        (GOOD, GOOD, {"steps": 0}, ValueError, "steps must be a whole number >= 1"),
        (GOOD, GOOD, {"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1"),
        (GOOD, GOOD, {"pilot": 1}, ValueError, "pilot must be a whole number >= 2"),
        (GOOD, GOOD, {"rate": 0.0}, ValueError, "rate must be positive"),
        (GOOD, GOOD, {"rate": math.nan}, ValueError, "rate must be a finite number"),
        (GOOD, GOOD, {"tolerance": -1e-3}, ValueError, "tolerance must be zero or positive"),
        (GOOD, GOOD, {"polish": "sgd"}, ValueError, "polish must be one of 'adam', 'lbfgs', None"),
        (GOOD, GOOD, {"anneal": -1.0}, ValueError, "anneal must be positive"),
        (GOOD, GOOD, {"anneal": "slowly"}, ValueError, "anneal"),
        (GOOD, GOOD, {"held_out": 1.0}, ValueError, "held_out must lie strictly between 0 and 1"),
        (GOOD, GOOD, {"held_out": -0.1}, ValueError, "held_out must lie strictly between 0 and 1"),
    ],
)
def test_bad_input_is_refused(x0, x1, options, kind, said):
    bridge = light()
    before = numbers(bridge)
    with pytest.raises(kind, match=said) as refused:
        bridge.fit(x0, x1, **options)
    assert str(refused.value).startswith("LightBridge.fit") and "\n" not in str(refused.value)
    assert all(torch.equal(a, b) for a, b in zip(before, bridge.numbers())) and bridge.history is None


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, "small"])
def test_bad_epsilons_are_refused(epsilon):
    with pytest.raises(ValueError, match=r"LightBridge\(epsilon=.*\): epsilon must be"):
        LightBridge(2, 3, epsilon)


def test_too_many_rows_held_out_are_refused():
    with pytest.raises(ValueError, match="held_out"):
        LightBridge(2, 1, 1.0).fit(GOOD[:5], GOOD[:5], held_out=0.9)
