"""What tests of the fit of light bridges share: rows, states, and their definitions."""

import warnings

import torch
from torch import distributions as D

from genflow.process import LightBridge
from genflow.process.light.state import Sides
from genflow.source import Gaussian, Moons, SwissRoll

double = torch.float64
FAMILIES = ["diagonal", "isotropic", "full", "low_rank"]


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
    """The plan's weights, the potential's responsibilities and the objective, from the definitions of
    v and c by torch's own normal density."""
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
    x1 = Moons().sample(rows, of_seed(1)).double()
    return sides(draw(rows, 2), x1, **options)


def of_seed(k):
    return torch.Generator().manual_seed(k)


def tables(rows=300, dtype=torch.float32, seed=0):
    x0 = Gaussian(2).sample(rows, of_seed(seed))
    return x0.to(dtype), Moons().sample(rows, of_seed(seed + 100)).to(dtype)


def rolls(rows=400):
    return Gaussian(2).sample(rows, of_seed(0)), SwissRoll().sample(rows, of_seed(1))


def light(components=5, epsilon=0.5, family="diagonal", dim=2):
    return LightBridge(dim, components, epsilon, family, 1 if family == "low_rank" else None)


def quick(bridge, x0, x1, **options):
    """A fit that is too short to have converged, as it would say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return bridge.fit(x0, x1, **{"steps": 40, "generator": of_seed(0), **options})


def ordered(x):
    """Rows of a table in an order of their own."""
    return x[x[:, 0].argsort()]


def numbers(bridge):
    return [v.clone() for v in bridge.numbers()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.numbers(), b.numbers()))
