"""What others do: sliced Wasserstein of two point sets, given the directions.

Each takes ``x (n, d)``, ``y (n, d)`` and ``directions (L, d)`` and returns a scalar, differentiable by
autograd. They are vectorised torch code, written from the formulas, or POT itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def isotropic(projections: int, dim: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Independent uniform directions, ``(L, d)``, as every rival draws them."""
    rows = torch.randn(
        projections, dim, generator=generator, dtype=like.dtype, device=like.device
    )  # fmt: skip
    return rows / rows.norm(dim=1, keepdim=True)


def projected(x: Tensor, y: Tensor, directions: Tensor, p: float = 2.0) -> Tensor:
    r""":math:`W_p^p` of the projected sets, ``(L,)``: sorted against sorted."""
    a, b = ((directions @ z.T).sort(dim=1).values for z in (x, y))
    return ((a - b).abs() ** p).mean(1)


def naive(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    r"""The plain vectorised form of :math:`SW_2^2`: two products, two sorts, the mean square."""
    a, b = ((directions @ z.T).sort(dim=1).values for z in (x, y))
    return ((a - b) ** 2).mean()


def pot(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    r"""POT's torch backend; it returns the root :math:`SW_2`."""
    import ot

    return ot.sliced_wasserstein_distance(x, y, projections=directions.T)


def lower(x: Tensor, y: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance of the projected means ``(L,)``, and its mean over the sphere."""
    shift = x.mean(0) - y.mean(0)
    return (directions @ shift) ** 2, (shift**2).sum() / x.shape[1]


def upper(x: Tensor, y: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The lower variate plus both projected variances ``(L,)``, and its mean over the sphere."""
    value, mean = lower(x, y, directions)
    for z in (x, y):
        centred = z - z.mean(0)
        value = value + ((directions @ centred.T) ** 2).mean(1)
        mean = mean + (centred**2).sum(1).mean() / z.shape[1]
    return value, mean


VARIATES = {"lower": lower, "upper": upper}


def corrected(values: Tensor, off: Tensor) -> Tensor:
    """The published estimate from values and variates less their known mean, over the last axis."""
    gap = values - values.mean(-1, keepdim=True)
    coefficient = (gap * off).mean(-1) / (off**2).mean(-1)
    return values.mean(-1) - coefficient * off.mean(-1)


def published(
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    variate: str | None = "lower",
    p: float = 2.0,
    root: bool = True,
) -> Tensor:
    r"""LCV-SW or UCV-SW as their authors compute it (Nguyen & Ho 2023), or their plain SW.

    The coefficient divides the sample covariance by the second moment of the variate about its
    *known* mean, which exceeds the sample variance; autograd goes through the coefficient, and the
    root is taken of the corrected mean.

    Args:
        variate: ``"lower"``, ``"upper"``, or ``None`` for plain Monte Carlo.
        p: order of the distance; the variates stay quadratic.
        root: give the ``p``-th root, as published.
    """
    values = projected(x, y, directions, p)
    if variate is None:
        estimate = values.mean()
    else:
        control, mean = VARIATES[variate](x, y, directions)
        estimate = corrected(values, control - mean)
    return estimate ** (1 / p) if root else estimate
