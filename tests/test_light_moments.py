"""Where the fit of a light bridge begins: clusters, moments and what they say of one Gaussian."""

import pytest
import torch
from light_fits import (
    FAMILIES,
    by_definition,
    double,
    draw,
    matrices,
    of_seed,
    positive,
    quick,
    rotation,
    sides,
    two_moons,
)
from sklearn.cluster import KMeans

from genflow.oracle import entropic
from genflow.process import LightBridge
from genflow.process.light.start import clusters, warm_start
from genflow.process.light.state import match_moments, moments, shares
from genflow.source import Components

FAMILIES = pytest.mark.parametrize("family", FAMILIES)

# Clusters


def blobs(gap=6.0):
    corners = torch.eye(8, dtype=double)
    return (gap * (corners + corners.roll(2, 1))[:, :5] + draw(60, 8, 5)).flatten(0, 1)


def inertia(x, centres, member):
    return float((x - centres[member]).square().sum())


def test_clusters_are_those_of_a_peer_library():
    x = blobs()
    known = KMeans(8, n_init=10, random_state=0).fit(x.numpy()).inertia_
    found = [inertia(x, *clusters(x, 8, of_seed(k), sweeps=50)) for k in range(10)]
    assert min(found) == pytest.approx(known, rel=1e-9)
    spread, unspread = (
        sum(KMeans(8, init=init, n_init=1, random_state=k).fit(x.numpy()).inertia_ for k in range(10))
        for init in ("k-means++", "random")
    )
    assert sum(found) < 1.15 * spread
    assert sum(found) < 0.95 * unspread  # the start is not of just any rows


def test_clusters_begin_in_distant_places():
    x = blobs(gap=1e5)
    for seed in range(5):
        centres, member = clusters(x, 8, of_seed(seed), sweeps=0)
        assert torch.equal(member.bincount(), torch.full((8,), 60))
        assert (centres[:, None] == x).all(2).any(1).all()  # rows of the table
    first = [clusters(x, 1, of_seed(k), sweeps=0)[0] for k in range(6)]
    assert len(torch.stack(first).unique(dim=0)) > 3


def test_the_next_place_is_drawn_by_squared_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=double)
    found = torch.stack([clusters(x, 2, of_seed(k), sweeps=0)[0][:, 0] for k in range(1200)])
    for begin, odds in ((0.0, {1.0: 1, 3.0: 9}), (1.0, {0.0: 1, 3.0: 4}), (3.0, {0.0: 9, 1.0: 4})):
        second = found[found[:, 0] == begin, 1]
        for place, odd in odds.items():
            share = odd / sum(odds.values())
            error = (share * (1 - share) / len(second)) ** 0.5
            assert abs((second == place).double().mean().item() - share) < 4 * error


def test_clusters_come_to_rest():
    x = blobs(2.0)
    centres, member = clusters(x, 8, of_seed(0), sweeps=60)
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
    size = member.bincount(minlength=4).to(double)
    assert state.log_weight.logsumexp(0).abs() < 1e-12
    carried = by_definition(state, given)[0].mean(0)
    torch.testing.assert_close(carried, (size + 1) / (size + 1).sum(), rtol=1e-3, atol=0)
    assert by_definition(state, given)[2] < by_definition(state._replace(log_weight=0 * size), given)[2]
    # each is the bridge from the whole start to a cluster, whose variance is drawn to that of all
    own = torch.stack([given.x1[member == k].T.cov(correction=0) for k in range(4)])
    share = size / size.sum()
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
    few, same, more = (
        warm_start(rows, 5, of_seed(0), **most)
        for rows, most in ((given, {"most": 50}), (some, {}), (given, {}))
    )
    assert all(torch.equal(a, b) for a, b in zip(few, same))
    assert not torch.equal(few.location, more.location)


# Moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
@FAMILIES
def test_moments_are_weighted_covariances(family, offset):
    x, weights = draw(200, 3) + offset, draw(200, 4, seed=1).softmax(1)
    mass, mean, spread = moments(x, weights, sides(x, x, family=family))
    slack = 1e-6 if offset else 1e-10
    torch.testing.assert_close(mass, weights.mean(0))
    for k in range(4):
        want = x.T.cov(correction=0, aweights=weights[:, k])
        torch.testing.assert_close(mean[k], (weights[:, k, None] * x).sum(0) / weights[:, k].sum())
        if family == "isotropic":
            torch.testing.assert_close(spread[k, 0], want.trace() / 3, rtol=0, atol=slack)
        else:
            want = want if family in ("full", "low_rank") else want.diagonal()
            torch.testing.assert_close(spread[k], want, rtol=0, atol=slack)


@FAMILIES
def test_moments_of_what_carries_nothing_are_finite(family):
    weights = torch.tensor([[1.0, 0.0]] * 5, dtype=double)
    found = moments(draw(5, 3), weights, sides(None, None, family=family))
    assert all(bool(v.isfinite().all()) for v in found)


def test_variances_are_not_negative():
    x, weights = torch.full((50, 2), 0.1, dtype=double), draw(50, 9).softmax(1)
    for family in ("diagonal", "isotropic"):
        spread = moments(x + 1e-9 * draw(50, 2, seed=1), weights, sides(None, None, family=family))[2]
        assert (spread >= 0).all()


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
    turned = match_moments(mean1, stop, mean0, start, given)[1]
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
    wide = (v.expand(4, 3) for v in (mean0, round0, mean1, round1))
    every = match_moments(*wide, sides(None, None, epsilon))
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
    quick(made, x0, x1, polish=polish, steps=20)
    one = torch.ones(1, dtype=double)
    laws = (Components(one, m[None], c[None]) for m, c in ((mean0, cov0), (mean1, cov1)))
    cross = entropic(*laws, epsilon**0.5).cross[0]
    gain = torch.linalg.solve(cov0, cross).T  # E[x1 | x0] is linear in x0
    places = draw(4, dim, seed=7)
    mean, covariance = (v.detach() for v in made.conditional_moments(places))
    torch.testing.assert_close(mean, mean1 + (places - mean0) @ gain.T, rtol=1e-7, atol=1e-7)
    left = cov1 - gain @ cross
    torch.testing.assert_close(covariance, left.expand(4, dim, dim), rtol=1e-7, atol=1e-7)
