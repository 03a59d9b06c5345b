"""Variates with a mean in closed form: the bounds of Nguyen & Ho, quadratic forms, several at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.variate.base import FITTED, Pull, Variate, squares, trace
from genflow.variate.moments import Moments


def lower_bound(directions: Tensor, step: Tensor, p: float) -> tuple[Tensor, Pull]:
    r""":math:`|\theta' m|^p` of steps between means ``(B, d)``, minus its mean, as one feature.

    The mean is :math:`\Gamma(d/2)\Gamma((p+1)/2) / (\sqrt\pi\,\Gamma((d+p)/2))\;|m|^p`.
    """
    d = step.shape[-1]
    logarithm = math.lgamma(d / 2) + math.lgamma((p + 1) / 2) - math.lgamma((d + p) / 2)
    share = math.exp(logarithm - math.lgamma(0.5))
    along = step @ directions.mT
    size = along.abs()
    length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)

    def pull(grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad[..., 0]
        turned = (grad * size ** (p - 1) * along.sign()) @ directions
        # the gradient of the length is zero where the means agree
        unit = torch.where(length > 0, step / length, 0.0)
        straight = share * grad.sum(1, True) * length ** (p - 1) * unit
        return p * (turned - straight), None, None

    return (size**p - share * length**p)[..., None], pull


@dataclass(frozen=True)
class Lower(Variate):
    r"""The distance of the projected means, :math:`|\theta'(m_x - m_y)|^p`.

    A lower bound on every direction, so that with coefficient 1 the estimate is never negative; exact
    for translates. With the published coefficient this is LCV-SW (Nguyen & Ho 2023), which keeps the
    square for every ``p``.

    Args:
        coefficient: see :class:`Variate`.
    """

    coefficient: float | str = 1.0
    order = 1

    def __post_init__(self) -> None:
        self._check(*FITTED)

    def linearised(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Pull]:
        p = 2.0 if self.coefficient == "published" else p
        return lower_bound(directions, moments.step, p)

    def count(self, projections: int, dim: int) -> int:
        return 1

    def bound(self, p: float) -> bool:
        return True


@dataclass(frozen=True)
class Upper(Variate):
    r"""An upper bound of :math:`W_2^2`: :math:`(\theta'm)^2 + \theta'S_x\theta + \theta'S_y\theta`.

    A variate, not a better one: with coefficient 1 it mostly adds variance. With the published
    coefficient, the default, this is UCV-SW (Nguyen & Ho 2023).

    Args:
        coefficient: see :class:`Variate`.
    """

    coefficient: float | str = "published"

    def __post_init__(self) -> None:
        self._check(*FITTED)

    def features(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return _forms(directions, moments).sum(-1, keepdim=True)

    def count(self, projections: int, dim: int) -> int:
        return 1


@dataclass(frozen=True)
class Quadratic(Variate):
    r"""The quadratic forms :math:`(\theta'm)^2`, :math:`\theta'S_x\theta`, :math:`\theta'S_y\theta`.

    Exact wherever the distance is in their span: for ``x`` scaled about its mean and moved.

    Args:
        coefficient: ``"regression"`` or ``"leave_one_out"``, see :class:`Variate`.
    """

    coefficient: str = "regression"

    def __post_init__(self) -> None:
        self._check("regression", "leave_one_out", number=False)

    def features(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return _forms(directions, moments)

    def count(self, projections: int, dim: int) -> int:
        return 3


def _forms(directions: Tensor, moments: Moments) -> Tensor:
    """The three forms minus their means, ``(B, L, 3)``."""
    d, step = directions.shape[1], moments.step
    along = torch.matmul(step, directions.mT) ** 2 - (step**2).sum(-1, True) / d
    covs = (moments.cov_x, moments.cov_y)
    spread = [squares(directions, cov) - trace(cov)[:, None] / d for cov in covs]
    return torch.stack([along, *spread], -1)


@dataclass(frozen=True)
class Several(Variate):
    """Variates that are regressed on together.

    Args:
        variates: whose functions are taken; their own coefficients play no part.
        coefficient: ``"regression"`` or ``"leave_one_out"``, see :class:`Variate`.
    """

    variates: Sequence[Variate]
    coefficient: str = "regression"

    def __post_init__(self) -> None:
        known = isinstance(self.variates, Sequence) and len(self.variates) > 0
        if not known or not all(isinstance(v, Variate) for v in self.variates):
            raise ValueError(
                f"Several(variates={self.variates!r}): give a list of at least one variate"
            )
        self._check("regression", "leave_one_out", number=False)

    @property
    def order(self) -> int:
        return max(variate.order for variate in self.variates)

    def features(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        found = [v.features(directions, moments, p, generator) for v in self.variates]
        return torch.cat(found, -1)

    def count(self, projections: int, dim: int) -> int:
        return sum(variate.count(projections, dim) for variate in self.variates)
