"""The distance of the projected Gaussians, its mean from many directions that cost no sorting."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.directions import Orthogonal, rotation
from genflow.directions.quasi import spiral
from genflow.variate.base import FITTED, HELD, Pull, Variate, outer, squares
from genflow.variate.moments import Moments
from genflow.variate.quadratic import lower_bound

WORK = 2**28
"""Products that the further directions may take."""


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

    def linearised(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Pull]:
        if p < 2:
            return lower_bound(directions, moments.step, p)
        inner = self.inner or inner_size(len(directions), moments)
        further = _further(inner, moments.step.shape[1], generator, directions)
        return _gaussian(torch.cat([directions, further]), moments, len(directions), p)

    def count(self, projections: int, dim: int) -> int:
        return 1

    def bound(self, p: float) -> bool:
        return True


def inner_size(projections: int, moments: Moments) -> int:
    """How many further directions are taken where none are asked for."""
    batch, d = moments.step.shape
    # variance by time is least near the root of the ratio of costs, a sort of the points over d * d
    each = min(100.0, max(10.0, 60 * math.sqrt(moments.size) / d))
    most = min(WORK // (batch * d * d), HELD // d)
    return max(projections, min(round(each * projections), most))


def _gaussian(directions: Tensor, moments: Moments, own: int, p: float) -> tuple[Tensor, Pull]:
    """Powers of the distance of projected Gaussians on the first ``own`` of many directions, minus
    their mean over all others, as one feature.
    """
    spread = squares(directions, torch.stack([moments.cov_x, moments.cov_y], 1)).clamp_min(0).sqrt()
    gap = spread[:, 0] - spread[:, 1]
    along = moments.step @ directions.mT
    square = along * along + gap * gap
    values = square if p == 2 else square ** (p / 2)

    def pull(grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad[..., 0]
        others = len(directions) - own
        grad = torch.cat([grad, (grad.sum(1, True) / -others).expand(-1, others)], 1)
        if p != 2:
            grad = grad * square ** (p / 2 - 1) * (p / 2)
        by_gap = (grad * gap)[:, None]
        # a spread of zero has derivative zero, not infinity
        by_form = torch.where(spread > 0, by_gap / spread, 0.0)
        by_cov = outer(directions, by_form)
        return 2 * (grad * along) @ directions, by_cov[:, 0], by_cov[:, 1].neg()

    return (values[:, :own] - values[:, own:].mean(1, True))[..., None], pull


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
