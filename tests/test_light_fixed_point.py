"""The parts of a light bridge's fit: clusters, moments, the fixed-point iteration, the written gradient."""

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import distributions as D

from genflow.oracle import entropic
from genflow.process import LightBridge
from genflow.process.light.fixed_point import Look, iterate, revive, update
from genflow.process.light.polish import lbfgs, slope
from genflow.process.light.start import clusters, warm_start
from genflow.process.light.state import Sides, State, match_moments, moments, shares
from genflow.source import Components, Moons, SwissRoll

double = torch.float64
FAMILIES = pytest.mark.parametrize("family", ["diagonal", "isotropic", "full", "low_rank"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=double)


def rotation(dim, seed=0):
    return torch.linalg.qr(draw(dim, dim, seed=seed))[0]


def positive(count, dim, seed=0):
    """Covariances of axes of their own."""
    root = draw(count, dim, dim, seed=seed)
    return root @ root.mT + 0.1 * torch.eye(dim, dtype=double)


def sides(x0, x1, epsilon=0.5, family="diagonal", rank=None, floor=1e-10):
    rank = 1 if family == "low_rank" and rank is None else rank
    return Sides(x0, x1, epsilon, family, rank, floor)


def matrices(scale, dim):
    """Scales of any family as ``(K, D, D)``."""
    return scale if scale.ndim == 3 else torch.diag_embed(scale.expand(-1, dim))


def by_definition(state, given, epsilon=None):
    """The plan's weights, the potential's responsibilities and the objective, from the definitions of v and
    c by torch's own normal density."""
    epsilon = epsilon or given.epsilon
    scale, dim = matrices(state.scale, given.x0.shape[1]), given.x0.shape[1]
    normal = D.MultivariateNormal(state.location, epsilon * scale)
    stop = state.log_weight + normal.log_prob(given.x1[:, None])
    square = torch.einsum("bd,kde,be->bk", given.x0, scale, given.x0) / 2 + given.x0 @ state.location.mT
    start = state.log_weight + square / epsilon
    assert scale.shape[1:] == (dim, dim)
    objective = start.logsumexp(1).mean() - stop.logsumexp(1).mean()
    return start.softmax(1), stop.softmax(1), float(objective)


def bridge_of(state, given):
    dim = given.x0.shape[1]
    made = LightBridge(dim, len(state.location), given.epsilon, given.family, given.rank).double()
    return made.assign(*state)


def two_moons(rows=400, **options):
    return sides(draw(rows, 2), Moons().sample(rows, torch.Generator().manual_seed(1)).double(), **options)


def of_seed(k):
    return torch.Generator().manual_seed(k)


# Clusters


def blobs(gap=6.0):
    centres = gap * torch.eye(8, dtype=double)[:, :5] + gap * torch.eye(8, dtype=double).roll(2, 1)[:, :5]
    return (centres + draw(60, 8, 5)).flatten(0, 1)


def inertia(x, centres, member):
    return float((x - centres[member]).square().sum())


def test_clusters_are_those_of_a_peer_library():
    x = blobs()
    known = KMeans(8, n_init=10, random_state=0).fit(x.numpy()).inertia_
    found = [inertia(x, *clusters(x, 8, of_seed(k), sweeps=50)) for k in range(10)]
    assert min(found) == pytest.approx(known, rel=1e-9)
    peer = [KMeans(8, n_init=1, random_state=k).fit(x.numpy()).inertia_ for k in range(10)]
    assert sum(found) < 1.15 * sum(peer)
    unspread = [KMeans(8, init="random", n_init=1, random_state=k).fit(x.numpy()).inertia_ for k in range(10)]
    assert sum(found) < 0.95 * sum(unspread)  # the start is not of just any rows


def test_clusters_begin_in_distant_places():
    x = blobs(gap=1e5)
    for seed in range(5):
        centres, member = clusters(x, 8, of_seed(seed), sweeps=0)
        assert torch.equal(member.bincount(), torch.full((8,), 60))
        assert torch.cdist(centres, x).min(1).values.max() == 0  # rows of the table
    first = [clusters(x, 1, of_seed(k), sweeps=0)[0] for k in range(6)]
    assert len(torch.stack(first).unique(dim=0)) > 3


def test_clusters_come_to_rest():
    x = blobs(2.0)
    centres, member = clusters(x, 8, of_seed(0), sweeps=200)
    assert torch.equal(member, torch.cdist(x, centres).argmin(1))
    torch.testing.assert_close(centres, torch.stack([x[member == k].mean(0) for k in range(8)]))
    assert inertia(x, centres, member) < inertia(x, *clusters(x, 8, of_seed(0), sweeps=1))


def test_clusters_of_few_points_many_times():
    points = draw(3, 2)
    centres, member = clusters(points.repeat(20, 1), 5, of_seed(0))
    assert torch.cdist(centres, points).min(1).values.max() < 1e-12
    assert len(member.unique()) == 3


# The warm start


@FAMILIES
def test_the_warm_start_carries_each_clusters_share(family):
    given = sides(draw(700, 3, seed=2) + 0.5, draw(300, 3) * torch.tensor([3.0, 1, 0.5]), 0.7, family)
    state = warm_start(given, 4, of_seed(3))
    member = clusters(given.x1, 4, of_seed(3))[1]
    size = member.bincount(minlength=4)
    carried = by_definition(state, given)[0].mean(0)
    torch.testing.assert_close(carried, (size + 1) / (size + 1).sum(), rtol=1e-3, atol=0)
    assert by_definition(state, given)[2] < by_definition(state._replace(log_weight=torch.zeros(4)), given)[2]
    # each is the bridge from the whole start to a cluster, whose variance is drawn to that of all
    own = torch.stack([given.x1[member == k].T.cov(correction=0) for k in range(4)])
    share = (size / size.sum()).to(double)
    pooled = (share[:, None, None] * own).sum(0)
    want = (size[:, None, None] * own + 2 * pooled) / (size[:, None, None] + 2)
    start, scale = given.x0.T.cov(correction=0), matrices(state.scale, 3)
    residue = scale @ start @ scale + given.epsilon * scale - want
    if family == "low_rank":  # of the family, which no matrix of full rank is
        values = torch.linalg.eigvalsh(scale)
        torch.testing.assert_close(values[:, 0], values[:, 1])
    elif family == "full":
        assert residue.abs().max() < 1e-10
    elif family == "isotropic":
        c = scale[:, 0, 0]
        square = c.square() * start.trace() + 3 * given.epsilon * c
        torch.testing.assert_close(square, want.diagonal(dim1=1, dim2=2).sum(1))
    else:
        s, v = state.scale, start.diagonal()
        torch.testing.assert_close(s.square() * v + given.epsilon * s, want.diagonal(dim1=1, dim2=2))
    mean = torch.stack([given.x1[member == k].mean(0) for k in range(4)])
    torch.testing.assert_close(state.location + (scale @ given.x0.mean(0)), mean)


def test_the_warm_start_looks_at_so_many_rows():
    given = two_moons()
    some = sides(given.x0, given.x1[:50])
    for a, b in zip(warm_start(given, 5, of_seed(0), most=50), warm_start(some, 5, of_seed(0))):
        assert torch.equal(a, b)
    assert not torch.equal(warm_start(given, 5, of_seed(0)).location, warm_start(some, 5, of_seed(0)).location)


# Moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
@FAMILIES
def test_moments_are_weighted_covariances(family, offset):
    x, weights = draw(200, 3) + offset, draw(200, 4, seed=1).softmax(1)
    mass, mean, spread = moments(x, weights, sides(x, x, family=family))
    torch.testing.assert_close(mass, weights.mean(0))
    for k in range(4):
        want = x.T.cov(correction=0, aweights=weights[:, k])
        torch.testing.assert_close(mean[k], (weights[:, k, None] * x).sum(0) / weights[:, k].sum())
        if family == "isotropic":
            torch.testing.assert_close(spread[k, 0], want.trace() / 3, rtol=1e-6, atol=0)
        else:
            want = want if family in ("full", "low_rank") else want.diagonal()
            torch.testing.assert_close(spread[k], want, rtol=0, atol=1e-12 if not offset else 1e-6)


@FAMILIES
def test_moments_of_what_carries_nothing_are_finite(family):
    weights = torch.tensor([[1.0, 0.0]] * 5, dtype=double)
    assert all(bool(v.isfinite().all()) for v in moments(draw(5, 3), weights, sides(None, None, family=family)))


def test_shares_are_means_of_softmaxes():
    logits = 5 * draw(7, 3)
    want = (logits.exp() / logits.exp().sum(1, keepdim=True)).sum(0) / 7
    torch.testing.assert_close(shares(logits), want)


def equation(scale, start, stop, epsilon):
    """How far S V S + epsilon S is from the variance that it should make."""
    return float((scale @ start @ scale + epsilon * scale - stop).abs().max())


@pytest.mark.parametrize("epsilon", [0.002, 1.0, 30.0])
def test_scales_solve_their_equation(epsilon):
    start, stop = positive(4, 3), positive(4, 3, seed=1)
    mean0, mean1 = draw(4, 3, seed=2), draw(4, 3, seed=3)
    given = sides(None, None, epsilon, "full")
    location, scale = match_moments(mean0, start, mean1, stop, given)
    assert equation(scale, start, stop, epsilon) < 1e-10
    assert torch.linalg.eigvalsh(scale).min() > 0
    torch.testing.assert_close(location + torch.einsum("kde,ke->kd", scale, mean0), mean1)
    # a map without the noise, and the sides exchanged, are other ones
    plain, turned = given, match_moments(mean1, stop, mean0, start, given)[1]
    half = torch.linalg.cholesky(start)
    inner = torch.linalg.eigh(half.mT @ stop @ half)
    root = (inner.eigenvectors * inner.eigenvalues.sqrt().unsqueeze(-2)) @ inner.eigenvectors.mT
    plain = torch.linalg.solve(half.mT, root) @ torch.linalg.inv(half)
    assert equation(plain, start, stop, 0.0) < 1e-8 < 1e-3 < equation(plain, start, stop, epsilon)
    assert equation(turned, start, stop, epsilon) > 0.1

    wide, narrow = start.diagonal(dim1=1, dim2=2), stop.diagonal(dim1=1, dim2=2)
    axes = match_moments(mean0, wide, mean1, narrow, sides(None, None, epsilon))
    torch.testing.assert_close(axes[1].square() * wide + epsilon * axes[1], narrow)
    torch.testing.assert_close(axes[0] + axes[1] * mean0, mean1)
    whole = match_moments(mean0, wide.diag_embed(), mean1, narrow.diag_embed(), given)
    torch.testing.assert_close(whole[0], axes[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole[1], axes[1].diag_embed(), rtol=1e-9, atol=1e-9)
    assert ((narrow / wide) ** 0.5 - axes[1]).abs().max() > 1e-3

    round0, round1 = wide.mean(1, keepdim=True), narrow.mean(1, keepdim=True)
    alike = match_moments(mean0, round0, mean1, round1, sides(None, None, epsilon, "isotropic"))
    every = match_moments(mean0, round0.expand(4, 3), mean1, round1.expand(4, 3), sides(None, None, epsilon))
    torch.testing.assert_close(alike[1].expand(4, 3), every[1])
    torch.testing.assert_close(alike[0], every[0])


@FAMILIES
def test_sides_without_spread_are_no_obstacle(family):
    matrix = family in ("full", "low_rank")
    wide = positive(1, 3) if matrix else torch.tensor([[0.5, 1.0, 2.0]], dtype=double)
    wide = wide.mean(1, keepdim=True) if family == "isotropic" else wide
    given, mean = sides(None, None, 0.5, family, floor=1e-6, rank=2), draw(1, 3)
    _, scale = match_moments(mean, 0 * wide, mean, wide, given)
    if family != "low_rank":
        torch.testing.assert_close(scale, wide / 0.5)
    location, scale = match_moments(mean, wide, mean, 0 * wide, given)
    floor = 1e-6 * torch.eye(3, dtype=double) if matrix else torch.full_like(wide, 1e-6)
    torch.testing.assert_close(scale, floor[None] if matrix else floor)
    torch.testing.assert_close(location, mean, rtol=1e-5, atol=1e-5)


def test_low_rank_scales_keep_the_widest_axes():
    start = torch.eye(5, dtype=double)[None]
    stop = positive(1, 5)
    full = match_moments(draw(1, 5), start, draw(1, 5), stop, sides(None, None, 1.0, "full"))[1]
    for rank in (1, 2, 4):
        given = sides(None, None, 1.0, "low_rank", rank)
        scale = match_moments(draw(1, 5), start, draw(1, 5), stop, given)[1]
        known, found = torch.linalg.eigh(full), torch.linalg.eigvalsh(scale)
        torch.testing.assert_close(found[0, -rank:], known.eigenvalues[0, -rank:])
        rest = known.eigenvalues[0, :-rank].mean()
        torch.testing.assert_close(found[0, :-rank], rest.expand(5 - rank))
        top = known.eigenvectors[..., -rank:]
        torch.testing.assert_close(scale @ top, top * known.eigenvalues[:, None, -rank:])


# One Gaussian pair


def exactly(mean, covariance, rows=300, seed=0):
    """Rows of exactly these moments."""
    x = draw(rows, len(mean), seed=seed)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov(correction=0)), x.T, upper=False).T
    return mean + x @ torch.linalg.cholesky(covariance).T


@pytest.mark.parametrize("polish", [None, "adam"])
@FAMILIES
def test_one_component_is_the_gaussian_bridge(family, polish):
    epsilon, dim = 0.6, 3
    mean0, mean1 = draw(dim, seed=1), 2 * draw(dim, seed=2)
    cov0, cov1 = (positive(1, dim, seed=k)[0] for k in (3, 4))
    if family == "diagonal":
        cov0, cov1 = (v.diagonal().diag() for v in (cov0, cov1))
    if family == "isotropic":
        cov0, cov1 = 0.7 * torch.eye(dim, dtype=double), 2.5 * torch.eye(dim, dtype=double)
    if family == "low_rank":  # the bridge of these has a covariance of the family
        along = rotation(dim)[:, :1]
        cov0, cov1 = torch.eye(dim, dtype=double), torch.eye(dim, dtype=double) + 3 * along @ along.T
    x0, x1 = exactly(mean0, cov0, seed=5), exactly(mean1, cov1, seed=6)
    made = LightBridge(dim, 1, epsilon, family, 1 if family == "low_rank" else None).double()
    made.fit(x0, x1, polish=polish, steps=20, generator=of_seed(0))
    known = entropic(
        *(Components(torch.ones(1, dtype=double), m[None], c[None]) for m, c in ((mean0, cov0), (mean1, cov1))),
        epsilon**0.5,
    )
    cross = known.cross[0]
    gain = torch.linalg.solve(cov0, cross).T  # E[x1 | x0] is linear in x0
    places = draw(4, dim, seed=7)
    mean, covariance = (v.detach() for v in made.conditional_moments(places))
    torch.testing.assert_close(mean, mean1 + (places - mean0) @ gain.T, rtol=1e-7, atol=1e-7)
    left = cov1 - gain @ cross
    torch.testing.assert_close(covariance, left.expand(4, dim, dim), rtol=1e-7, atol=1e-7)


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


@FAMILIES
def test_an_update_carries_moments_to_moments(family):
    given = two_moons(epsilon=0.3, family=family)
    state = warm_start(given, 4, of_seed(0))
    look = Look(state, given)
    fresh = update(look, given)
    w, rho, _ = by_definition(state, given)
    torch.testing.assert_close(fresh.log_weight - state.log_weight, (rho.mean(0) / w.mean(0)).log())
    for k in range(4):
        mean0, mean1 = (torch.einsum("n,nd->d", p[:, k] / p[:, k].sum(), x) for p, x in ((w, given.x0), (rho, given.x1)))
        scale = matrices(fresh.scale, 2)[k]
        torch.testing.assert_close(fresh.location[k] + scale @ mean0, mean1)
        cov0, cov1 = (x.T.cov(correction=0, aweights=p[:, k]) for p, x in ((w, given.x0), (rho, given.x1)))
        residue = scale @ cov0 @ scale + given.epsilon * scale - cov1
        if family == "isotropic":
            assert abs(residue.trace()) < 1e-10
        elif family != "low_rank":
            assert (residue if family == "full" else residue.diagonal()).abs().max() < 1e-10


def collect(state, given, iterations, tolerance=0.0):
    seen = []
    state, converged = iterate(state, given, iterations, tolerance, lambda look, step: seen.append((look, step)))
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
            bare.append(Look(update(bare[-1], given), given))
        assert any(b.objective > a.objective + 1 for a, b in zip(bare, bare[1:]))
        assert min(step for _, step in seen) < 1


@pytest.mark.parametrize("family", ["diagonal", "isotropic", "full"])
def test_it_rests_where_the_gradient_vanishes(family):
    centres = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -4.0]], dtype=double)
    given = sides(draw(150, 2), (centres + draw(50, 3, 2, seed=1)).flatten(0, 1), 0.5, family)
    begin = warm_start(given, 3, of_seed(0))
    state, converged, _ = collect(begin, given, 200)

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


def test_a_part_of_the_way():
    a = State(draw(3), draw(3, 2), draw(3, 2).exp())
    b = State(draw(3, seed=1), draw(3, 2, seed=1), draw(3, 2, seed=1).exp())
    for x, y, z in zip(a.towards(b, 0.0), a.towards(b, 1.0), a.towards(b, 0.25)):
        assert x.shape == y.shape == z.shape
    for step, end in ((0.0, a), (1.0, b)):
        for x, y in zip(a.towards(b, step), end):
            torch.testing.assert_close(x, y)
    part = a.towards(b, 0.25)
    torch.testing.assert_close(part.location, 0.75 * a.location + 0.25 * b.location)
    torch.testing.assert_close(part.scale, a.scale**0.75 * b.scale**0.25)
    full = [s._replace(scale=positive(3, 2, seed=k)) for k, s in enumerate((a, b))]
    mixed = full[0].towards(full[1], 0.25).scale
    torch.testing.assert_close(mixed, 0.75 * full[0].scale + 0.25 * full[1].scale)


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
    torch.testing.assert_close(new.log_weight[2].exp() + new.log_weight[twin].exp(), state.log_weight[twin].exp())
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


def test_a_component_of_few_rows_is_not_split():
    given = sides(draw(3, 2), draw(3, 2, seed=1))
    state = far_off(given, "diagonal")
    new = revive(Look(state, given), given)
    assert all(torch.equal(a, b) for a, b in zip(new, state))


@FAMILIES
def test_what_a_side_has_forgotten_stays(family):
    given = two_moons(family=family)
    state = far_off(given, family)
    fresh = update(Look(state, given), given)
    for a, b in zip(fresh, state):
        assert torch.equal(a[2], b[2])
        assert not torch.equal(a[:2], b[:2])


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


@FAMILIES
def test_lbfgs_ends_where_the_gradient_vanishes(family):
    given = two_moons(200, family=family)
    made = bridge_of(warm_start(given, 3, of_seed(0)), given)
    seen, before = [], made.objective(given.x0, given.x1).item()
    with torch.no_grad():
        lbfgs(made, (given.x0, given.x1), 150, lambda k: seen.append(k) or k == 100)
        after = slope(made, given.x0, given.x1)
    assert seen == list(range(1, 101)), "it ends when told"
    assert after < before - 0.01
    steep = torch.cat([p.grad.flatten() for p in made.parametrised()]).abs().max()
    assert steep < 1e-3
