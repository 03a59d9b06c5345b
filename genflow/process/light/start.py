"""Where the fit of a light bridge begins: clusters of the data, and weights that meet the start."""

from __future__ import annotations

import torch
from torch import Tensor

from genflow.process.light.state import Sides, State, match_moments, moments, over, shares
from genflow.tensors import draw_device

SWEEPS = 60
"""Most sweeps of the weights."""


def clusters(
    x: Tensor, count: int, generator: torch.Generator | None = None, sweeps: int = 10
) -> tuple[Tensor, Tensor]:
    """Centres ``(K, D)`` and memberships ``(N,)`` by k-means from well-spread rows (k-means++, Arthur &
    Vassilvitskii 2007). A cluster that loses its rows keeps its centre."""
    where = draw_device(generator, x.device)
    draws = torch.rand(count, generator=generator, dtype=x.dtype, device=where).to(x.device)
    rows = [int(draws[0] * len(x))]
    near = (x - x[rows[0]]).square().sum(1)
    for u in draws[1:]:
        below = near.cumsum(0)
        rows.append(int(torch.searchsorted(below, u * below[-1]).clamp_max(len(x) - 1)))
        near = torch.minimum(near, (x - x[rows[-1]]).square().sum(1))
    centres = x[rows]
    for _ in range(sweeps):
        member = _nearest(x, centres)
        size = torch.bincount(member, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, member, x)
        centres = torch.where(size > 0, sums / size.clamp_min(1), centres)
    return centres, _nearest(x, centres)


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * x @ centres.mT).argmin(1)


def warm_start(
    sides: Sides, components: int, generator: torch.Generator | None = None, most: int = 20_000
) -> State:
    """The bridge of each cluster from the whole start, with weights such that each component carries
    its cluster's share of it.

    Args:
        sides: data, family and ``epsilon``.
        components: how many.
        generator: for the first centres.
        most: rows that are clustered.
    """
    x1 = sides.x1[:most]
    centres, member = clusters(x1, components, generator)
    belongs = torch.nn.functional.one_hot(member, components).to(x1)
    mass, mean, spread = moments(x1, belongs, sides)
    mean = torch.where(mass[:, None] > 0, mean, centres)
    pooled = (over(mass, spread) * spread).sum(0)
    share = mass * len(x1)
    # small clusters know little of their width: they borrow that of all
    own = over(share, spread)
    spread = (own * spread + 2 * pooled) / (own + 2)
    everything = torch.ones(len(sides.x0), 1).to(x1)
    _, start, width = moments(sides.x0, everything, sides)
    location, scale = match_moments(start, width, mean, spread, sides)
    share = (share + 1) / (share + 1).sum()
    return _meet(State(share.log(), location, scale), share, sides)


def _meet(state: State, share: Tensor, sides: Sides) -> State:
    """Weights with which component ``k`` carries ``share[k]`` of the start: iterative proportional
    fitting of the weights alone."""
    potential = state.potential(sides)
    fixed = potential.logits(sides.x0.new_zeros(()), sides.x0) - potential.log_weight
    log_weight = state.log_weight
    for _ in range(SWEEPS):
        found = shares(log_weight + fixed)
        log_weight = log_weight + share.log() - found.clamp_min(1e-300).log()
        if float((found / share - 1).abs().max()) < 1e-3:
            break
    return state._replace(log_weight=log_weight - log_weight.logsumexp(0))
