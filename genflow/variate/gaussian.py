"""The distance of the projected Gaussians, its mean from many directions that cost no sorting."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genflow.checks import count
from genflow.directions import Orthogonal, rotation
from genflow.directions.quasi import spiral
from genflow.variate.base import FITTED, Variate, squares
from genflow.variate.moments import Moments
from genflow.variate.quadratic import lower_bound

WORK = 2**28
"""Products that the further directions may take."""
HELD = 2**22
"""Numbers that they may hold."""


@dataclass(frozen=True)
class TwoLevel(Variate):
    r"""The 2-Wasserstein distance of the projected Gaussians with the sets' means and covariances,
    :math:`C = (\theta'm)^2 + (s_x - s_y)^2` with :math:`s^2 = \theta'S\theta`, to the power ``p / 2``.

    Its mean has no closed form; it is estimated from many further directions, which touch only means
    and covariances (two-level Monte Carlo; Giles 2015). :math:`C` lies below :math:`W_2^2` on every
    direction for *any* two laws (Gelbrich 1990), and :math:`C^{p/2}` below :math:`W_p^p` for
    ``p >= 2``: with coefficient 1 the estimate is unbiased and never negative. For ``p < 2``, where it
    is no bound, :math:`|\theta'm|^p` stands in, as in :class:`Lower`.

    The further directions are one fixed set (grid, spiral, orthogonal frames) under a random rotation.

    Args:
        coefficient: see :class:`Variate`.
        inner: further directions; ``None`` for up to 100 for each projection, the fewer the smaller the
            sets are beside ``d * d``, which is what a further direction costs.
    """

    coefficient: float | str = 1.0
    inner: int | None = None

    def __post_init__(self) -> None:
        self._check(*FITTED)
        if self.inner is not None:
            count(self, inner=self.inner)

    def features(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if p < 2:
            return lower_bound(directions, moments.step, p)[..., None]
        d = moments.step.shape[1]
        inner = self.inner or inner_size(len(directions), moments)
        further = _further(inner, d, generator, directions)
        known = moments.step, moments.cov_x, moments.cov_y
        return _Gaussian.apply(torch.cat([directions, further]), *known, len(directions), p)[..., None]

    def count(self, projections: int, dim: int) -> int:
        return 1

    def bound(self, p: float) -> bool:
        return True


def inner_size(projections: int, moments: Moments) -> int:
    """How many further directions are taken where none are asked for."""
    batch, d = moments.step.shape
    # variance by time is least near the root of the ratio of costs, a sort of the points over d * d
    each = min(100.0, max(10.0, 150 * math.sqrt(moments.size) / d))
    most = min(WORK // (d * d), HELD // d) // batch
    return max(projections, min(round(each * projections), most))


class _Gaussian(torch.autograd.Function):
    """Powers of the distance of projected Gaussians on the first of many directions, minus their mean
    over all others; with a gradient by hand, for few points cost their number of calls.
    """

    @staticmethod
    def forward(
        ctx: Any, directions: Tensor, step: Tensor, cov_x: Tensor, cov_y: Tensor, own: int, p: float
    ) -> Tensor:
        """Directions ``(L + M, d)`` and moments of ``B`` pairs to ``(B, L)``."""
        spread = squares(directions, torch.stack([cov_x, cov_y], 1)).clamp_min(0).sqrt()
        gap = spread[:, 0] - spread[:, 1]
        along = step @ directions.mT
        square = along * along + gap * gap
        ctx.save_for_backward(directions, spread, gap, along, square)
        ctx.own, ctx.p = own, p
        values = square if p == 2 else square ** (p / 2)
        return values[:, :own] - values[:, own:].mean(1, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        directions, spread, gap, along, square = ctx.saved_tensors
        inner = len(directions) - ctx.own
        share = grad.sum(1, True) / -inner
        grad = torch.cat([grad, share.expand(-1, inner)], 1)
        if ctx.p != 2:
            grad = grad * square ** (ctx.p / 2 - 1) * (ctx.p / 2)
        by_gap = (grad * gap)[:, None]
        # a spread of zero has derivative zero, not infinity
        by_form = torch.where(spread > 0, by_gap / spread, 0.0)
        by_cov = (directions.mT * by_form[..., None, :]) @ directions
        by_step = 2 * (grad * along) @ directions
        return None, by_step, by_cov[:, 0], by_cov[:, 1].neg(), None, None


def _further(projections: int, dim: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    if projections <= dim:  # a part of a frame costs less than a rotation
        return Orthogonal().sample(projections, dim, generator, like)
    return _design(projections, dim, like.dtype, like.device) @ rotation(dim, generator, like)


@functools.lru_cache(maxsize=8)
def _design(projections: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A set of directions that is the same at every call, ``(M, d)``."""
    if dim == 2:
        angle = torch.arange(projections, dtype=torch.float64) * (math.pi / projections)
        found = torch.stack([angle.cos(), angle.sin()], 1)
    elif dim == 3:
        found = spiral(projections)
    else:
        like = torch.empty(0, dtype=torch.float64)
        found = Orthogonal().sample(projections, dim, torch.Generator().manual_seed(0), like)
    return found.to(device, dtype)
