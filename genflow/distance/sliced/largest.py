"""The max-sliced Wasserstein distance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.directions import Auto, Directions, normalised
from genflow.distance.sliced.base import Sliced, Slices, apply, even, full_precision
from genflow.distance.sliced.checks import check_finite, check_options
from genflow.distance.sliced.sweep import Sets


@dataclass(frozen=True)
class MaxSliced(Sliced):
    r""":math:`\max_\theta W_p^p(\theta'x, \theta'y)` (Deshpande et al. 2019), by ascent on the sphere.

    The best of ``projections`` directions and of the line through both means, and those next to it,
    climb together. The answer is a distance along a direction that was found, thus never above the
    maximum; the gradient in the points holds that direction fixed, which is exact where
    the maximum is smooth (two projected points that tie there make a kink).

    Args:
        projections: directions to choose the starts from.
        p: order, at least 1.
        starts: how many of them climb.
        steps: of the ascent; 0 takes the best of the directions as it is.
        rate: length of the first step, as an angle; a step that does not climb is halved.
        directions: how they are drawn.
        root: give the distance rather than its ``p``-th power.
        chunk: directions handled at a time; ``None`` bounds their memory to some 32 MB.

    Raises:
        ValueError: for arguments out of range.
    """

    projections: int = 100
    p: float = 2.0
    starts: int = 5
    steps: int = 30
    rate: float = 0.5
    directions: Directions = field(default_factory=Auto)
    root: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_options(self)
        count(self, starts=self.starts)
        count(self, 0, steps=self.steps)
        positive(self, rate=self.rate)

    def _value(self, x: Tensor, y: Tensor, sets: Sets, generator: torch.Generator | None) -> Tensor:
        values = []
        for k in range(len(x)):  # each pair has its own direction
            own = _one(sets, k)
            best = self._climb(own, generator)[None]
            slices = Slices(best, lambda costs, _: costs[:, 0], even(best, 1))
            values.append(apply(x[k, None], y[k, None], own, slices, type(self).__name__))
        return torch.cat(values)

    @torch.no_grad()
    def direction(
        self,
        x: Tensor,
        y: Tensor,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The direction that was found, ``(..., d)``; arguments as for a call."""
        *_, sets = self._sets(x, y, weights_x, weights_y)
        with full_precision(sets.x):
            found = [self._climb(_one(sets, k), generator) for k in range(len(sets.x))]
        return torch.stack(found).reshape(*x.shape[:-2], x.shape[-1]).to(x.dtype)

    def _climb(self, sets: Sets, generator: torch.Generator | None) -> Tensor:
        dim = sets.x.shape[-1]
        if dim == 1:
            return sets.x.new_ones(1)
        drawn = self.directions.sample(self.projections, dim, generator, sets.x)
        means = [
            z[0].mean(0) if w is None else w[0] @ z[0] for z, w in ((sets.x, sets.a), (sets.y, sets.b))
        ]
        between = means[0] - means[1]
        if bool(between.any()):
            drawn = torch.cat([normalised(between)[None], drawn])
        costs = sets.sweep(drawn).costs[0]
        check_finite(type(self).__name__, sets, costs.sum())
        best = costs.topk(min(self.starts, len(costs)))
        here, height = drawn[best.indices], best.values
        rate = torch.full_like(height, self.rate).to(here)
        for _ in range(self.steps):
            slope = sets.slopes(here)
            slope = slope - (slope * here).sum(1, True) * here  # along the sphere
            there = normalised(here + rate[:, None] * normalised(slope))
            found = sets.sweep(there).costs[0]
            climbs = found > height
            here = torch.where(climbs[:, None], there, here)
            height = torch.where(climbs, found, height)
            rate = torch.where(climbs, rate, rate / 2)
        return here[height.argmax()]


def _one(sets: Sets, k: int) -> Sets:
    a, b = (None if w is None else w[k : k + 1] for w in (sets.a, sets.b))
    return replace(sets, x=sets.x[k : k + 1], y=sets.y[k : k + 1], a=a, b=b)
