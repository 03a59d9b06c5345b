"""The fixed-point iteration of a light bridge, and the gradient of its polish."""

import math

import pytest
import torch
from light_fits import (
    FAMILIES,
    bridge_of,
    by_definition,
    double,
    draw,
    matrices,
    of_seed,
    positive,
    sides,
    two_moons,
)

from genflow.process import LightBridge
from genflow.process.light import polish
from genflow.process.light.fixed_point import Look, Step, iterate, revive
from genflow.process.light.polish import lbfgs, slope
from genflow.process.light.start import warm_start
from genflow.process.light.state import State
from genflow.source import SwissRoll

FAMILIES = pytest.mark.parametrize("family", FAMILIES)

# The iteration


@FAMILIES
def test_a_look_is_the_definition(family):
    given = two_moons(epsilon=0.3, family=family)
    state = warm_start(given, 4, of_seed(0))
    state = state._replace(log_weight=state.log_weight + draw(4), location=state.location + draw(4, 2))
    for epsilon in (None, 0.9):
        look = Look(state, given, epsilon)
        start, stop, objective = by_definition(state, given, epsilon)
        torch.testing.assert_close(look.start, start)
        torch.testing.assert_close(look.stop, stop)
        assert look.objective == pytest.approx(objective, rel=1e-10)
    found = bridge_of(state, given).objective(given.x0, given.x1).item()
    assert found == pytest.approx(by_definition(state, given)[2], rel=1e-10)


def frames(state, centre, epsilon):
    """Weights and places of the components as seen from a centre each, and their matrices."""
    scale = matrices(state.scale, centre.shape[1])
    along = torch.einsum("kde,ke->kd", scale, centre)
    lift = (centre * (along + 2 * state.location)).sum(1) / (2 * epsilon)
    return state.log_weight + lift, state.location + along, scale


@FAMILIES
def test_a_step_carries_moments_to_moments(family):
    given = two_moons(epsilon=0.3, family=family)
    state = warm_start(given, 4, of_seed(0))
    step = Step(Look(state, given), given)
    w, rho, _ = by_definition(state, given)
    centre, aim = ((p / p.sum(0)).mT @ x for p, x in ((w, given.x0), (rho, given.x1)))
    fresh = step.part(1.0)
    before, after = (frames(v, centre, given.epsilon) for v in (state, fresh))
    torch.testing.assert_close(after[0] - before[0], (rho.mean(0) / w.mean(0)).log())
    torch.testing.assert_close(after[1], aim)
    for k in range(4):
        halves, scale = ((w[:, k], given.x0), (rho[:, k], given.x1)), after[2][k]
        cov0, cov1 = (x.T.cov(correction=0, aweights=p) for p, x in halves)
        residue = scale @ cov0 @ scale + given.epsilon * scale - cov1
        if family == "isotropic":
            assert abs(residue.trace()) < 1e-10
        elif family != "low_rank":
            assert (residue if family == "full" else residue.diagonal()).abs().max() < 1e-10
    # on the way weights and places are mixed as each component's own share of the start sees them
    for a, b in zip(step.part(0.0), state):
        torch.testing.assert_close(a, b)
    part = frames(step.part(0.25), centre, given.epsilon)
    torch.testing.assert_close(part[0], 0.75 * before[0] + 0.25 * after[0])
    torch.testing.assert_close(part[1], 0.75 * before[1] + 0.25 * after[1])
    if family in ("diagonal", "isotropic"):
        here, there = (v.diagonal(dim1=1, dim2=2) for v in (before[2], after[2]))
        found = part[2].diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(found, here**0.75 * there**0.25)
    elif family == "full":
        torch.testing.assert_close(part[2], 0.75 * before[2] + 0.25 * after[2])


def collect(state, given, iterations, tolerance=0.0):
    seen = []
    tell = lambda look, step: seen.append((look, step))  # noqa: E731
    state, converged = iterate(state, given, iterations, tolerance, tell)
    return state, converged, seen


@FAMILIES
def test_the_objective_never_rises(family):
    rows = SwissRoll().sample(300, of_seed(0)).double()
    given = sides(draw(300, 2), rows, 0.02, family)
    state = warm_start(given, 12, of_seed(0))
    before = by_definition(state, given)[2]
    end, _, seen = collect(state, given, 25)
    values = [before, *(look.objective for look, _ in seen)]
    assert all(b < a for a, b in zip(values, values[1:]))
    assert values[-1] < before - 1
    assert by_definition(end, given)[2] == pytest.approx(values[-1], rel=1e-10)
    assert {step for _, step in seen} <= {2.0**-k for k in range(10)}
    if family == "diagonal":  # the bare iteration does rise
        bare = [Look(state, given)]
        for _ in range(25):
            bare.append(Look(Step(bare[-1], given).part(1.0), given))
        assert any(b.objective > a.objective + 1 for a, b in zip(bare, bare[1:]))
        assert min(step for _, step in seen) < 0.1
    if family == "full":  # small steps are not for ever
        assert any(b[1] > a[1] for a, b in zip(seen, seen[1:]))


@pytest.mark.parametrize("family", ["diagonal", "isotropic", "full"])
def test_it_rests_where_the_gradient_vanishes(family):
    centres = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -4.0]], dtype=double)
    given = sides(draw(150, 2), (centres + draw(50, 3, 2, seed=1)).flatten(0, 1), 0.5, family)
    begin = warm_start(given, 3, of_seed(0))
    state, converged, _ = collect(begin, given, 300, tolerance=1e-11)

    def gradient(numbers):
        made = bridge_of(numbers, given)
        made.objective(given.x0, given.x1).backward()
        return torch.cat([p.grad.flatten() for p in made.parameters()]).abs().max().item()

    assert converged
    assert gradient(state) < 1e-5 < 1e-2 < gradient(begin)


def test_where_it_ends():
    given = two_moons()
    state = warm_start(given, 3, of_seed(0))
    end, converged, seen = collect(state, given, 3)
    assert (len(seen), converged) == (3, False)
    end, converged, seen = collect(state, given, 500, tolerance=0.05)
    falls = [a[0].objective - b[0].objective for a, b in zip(seen, seen[1:])]
    assert converged and falls[-1] < 0.05 and all(fall >= 0.05 for fall in falls[:-1])
    nowhere, converged, seen = collect(state, given, 0)
    assert nowhere is state and not converged and not seen


def test_a_small_gain_of_a_small_step_is_no_rest():
    given = sides(draw(300, 2), SwissRoll().sample(300, of_seed(0)).double(), 0.02, "full")
    state, found = warm_start(given, 12, of_seed(0)), set()
    for _ in range(8):
        state, converged, ((_, step),) = collect(state, given, 1, tolerance=1e9)
        assert converged == (step >= 0.25)
        found.add(converged)
    assert len(found) == 2


def far_off(given, family):
    """Three components, of which the last holds no row."""
    scale = torch.tensor([[0.5, 1.5], [0.3, 0.2], [0.4, 0.4]], dtype=double)
    scale = scale.mean(1, keepdim=True) if family == "isotropic" else scale
    scale = scale.diag_embed() if family in ("full", "low_rank") else scale
    location = torch.tensor([[0.0, 0.5], [2.0, 0.0], [300.0, 300.0]], dtype=double)
    return State(torch.tensor([0.0, -1.0, -600.0], dtype=double), location, scale)


@FAMILIES
def test_the_dead_become_halves_of_the_living(family):
    given = two_moons(family=family)
    state = far_off(given, family)
    kept = [v.clone() for v in state]
    mass = by_definition(state, given)[1].sum(0)
    assert mass[2] < 1 < 4 < mass.sort().values[1]
    twin = int(mass.argmax())
    new = revive(Look(state, given), given)
    assert all(torch.equal(a, b) for a, b in zip(state, kept))  # the old state is left alone
    halves = new.log_weight[[2, twin]].exp()
    torch.testing.assert_close(halves.sum(), state.log_weight[twin].exp())
    assert torch.equal(new.log_weight[2], new.log_weight[twin])
    assert torch.equal(new.scale[2], state.scale[twin]) and torch.equal(new.scale[:2], state.scale[:2])
    torch.testing.assert_close((new.location[2] + new.location[twin]) / 2, state.location[twin])
    apart = new.location[2] - new.location[twin]
    values, vectors = torch.linalg.eigh(matrices(state.scale, 2)[twin])
    assert apart.norm().item() == pytest.approx(float(given.epsilon * values[-1]) ** 0.5)
    if family != "isotropic":
        assert abs(apart @ vectors[:, -1]) == pytest.approx(apart.norm().item())
    assert torch.equal(new.location[1 - twin], state.location[1 - twin])
    assert revive(Look(new, given), given) is None
    # the iteration does it: every component ends with rows, at a lower objective than two have
    end, _, _ = collect(state, given, 20)
    assert by_definition(end, given)[1].sum(0).min() > 1
    two, _, _ = collect(State(*(v[:2] for v in state)), given, 20)
    assert by_definition(end, given)[2] < by_definition(two, given)[2] - 0.01


def test_halves_that_are_worse_than_the_whole_are_not_taken():
    # one Gaussian needs no second component, however dead that is
    given = sides(draw(400, 2), draw(400, 2, seed=1), 1.0)
    one = warm_start(given, 1, of_seed(0))
    two = State(*(torch.cat([v, v]) for v in one))
    two = two._replace(location=two.location + torch.tensor([[0.0], [300.0]]))
    two = two._replace(log_weight=torch.tensor([0.0, -100_000.0], dtype=double))
    halves = revive(Look(two, given), given)
    assert by_definition(halves, given)[2] > by_definition(two, given)[2]
    end, _, _ = collect(two, given, 5)
    assert torch.equal(end.location[1], two.location[1])
    assert by_definition(end, given)[2] <= by_definition(two, given)[2]


def test_a_component_of_few_rows_is_not_split():
    given = sides(draw(3, 2), draw(3, 2, seed=1))
    state = far_off(given, "diagonal")
    new = revive(Look(state, given), given)
    assert all(torch.equal(a, b) for a, b in zip(new, state))


@FAMILIES
def test_what_a_side_has_forgotten_stays(family):
    given = two_moons(family=family)
    state = far_off(given, family)
    fresh = Step(Look(state, given), given).part(1.0)
    for a, b in zip(fresh, state):
        torch.testing.assert_close(a[2], b[2])
        assert (a[:2] - b[:2]).abs().max() > 1e-3


def test_what_the_start_alone_has_forgotten_stays():
    given = sides(draw(50, 2), torch.cat([draw(50, 2, seed=1), draw(50, 2, seed=2) + 100]))
    location = torch.tensor([[0.0, 0.0], [100.0, 100.0]], dtype=double)
    state = State(torch.tensor([0.0, -5000.0], dtype=double), location, torch.ones(2, 2, dtype=double))
    look = Look(state, given)
    assert look.start[:, 1].sum() == 0 and look.stop[:, 1].sum() == pytest.approx(50)
    for a, b in zip(Step(look, given).part(1.0), state):
        torch.testing.assert_close(a[1], b[1])
        assert (a[0] - b[0]).abs().max() > 1e-3


@FAMILIES
def test_collapsed_components_rest_on_the_floor(family):
    # five points, each many times: all that a component could wish for is to have no width
    given = sides(draw(80, 2), draw(5, 2, seed=1).repeat(20, 1), 0.1, family, floor=1e-5)
    end, _, seen = collect(warm_start(given, 5, of_seed(0)), given, 40)
    values = torch.linalg.eigvalsh(matrices(end.scale, 2))
    assert values.min() >= 1e-5 * (1 - 1e-9) and values.min() < 1e-4
    assert all(math.isfinite(look.objective) for look, _ in seen)


# The written gradient


@pytest.mark.parametrize(("dim", "components"), [(1, 1), (3, 4)])
@FAMILIES
def test_the_written_gradient_is_autograds(family, dim, components):
    if family == "low_rank" and dim == 1:
        pytest.skip("one dimension has no lower rank")
    x0, x1 = draw(40, dim) + 0.3, 2 * draw(70, dim, seed=1) - 1
    made = LightBridge(dim, components, 0.4, family, 1 if family == "low_rank" else None).double()
    scale = positive(components, dim, seed=2)
    scale = {"diagonal": scale.diagonal(dim1=1, dim2=2), "isotropic": scale[:, 0, 0]}.get(family, scale)
    made.assign(draw(components), draw(components, dim, seed=3), scale)
    value = made.objective(x0, x1)
    known = torch.autograd.grad(value, made.parametrised())
    with torch.no_grad():
        for _ in range(2):  # nothing adds up
            assert slope(made, x0, x1) == pytest.approx(value.item(), rel=1e-12)
    for p, grad in zip(made.parametrised(), known):
        torch.testing.assert_close(p.grad, grad, rtol=1e-9, atol=1e-10)
        assert p.grad.shape == p.shape and not p.grad.requires_grad


def test_adam_goes_as_far_as_its_schedule(monkeypatch):
    # where all gradients are alike each step is the rate, in units of the spread for locations
    def constant(made, x0, x1):
        for p in made.parametrised():
            p.grad = torch.full_like(p, 3.0)

    monkeypatch.setattr(polish, "slope", constant)
    made, spread = LightBridge(2, 3, 1.0).double(), torch.tensor([2.0, 50.0], dtype=double)
    before = [p.detach().clone() for p in made.parametrised()]
    with torch.no_grad():
        polish.adam(made, lambda: (None, None), 40, 0.1, spread, -1.5, lambda k: False)
    far = sum(0.1 * (1 + math.cos(math.pi * k / 40)) / 2 for k in range(40))
    for p, old, unit in zip(made.parametrised(), before, (1.0, spread, 1.0)):
        want = old - far * unit
        want = want.clamp_min(-1.5) if p is made.scales.log_values else want  # no narrower than that
        torch.testing.assert_close(p.detach(), want)
    assert far > 1.5


@FAMILIES
def test_lbfgs_ends_where_the_gradient_vanishes(family):
    given = two_moons(200, family=family)
    made = bridge_of(warm_start(given, 3, of_seed(0)), given)
    seen, before = [], made.objective(given.x0, given.x1).item()
    with torch.no_grad():
        taken = lbfgs(made, (given.x0, given.x1), 4, lambda k: seen.append(k) or k == 3)
        assert seen == [1, 2, 3] and taken == 3, "it ends when told"
        taken = lbfgs(made, (given.x0, given.x1), 500, lambda k: False)
        after = slope(made, given.x0, given.x1)
    assert taken < 500, "it ends where nothing moves"
    assert after < before - 0.01
    steep = torch.cat([p.grad.flatten() for p in made.parametrised()]).abs().max()
    assert steep < 1e-3
