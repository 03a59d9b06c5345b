"""What sliced distances refuse, each in one sentence."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from genflow.checks import count
from genflow.directions import Directions
from genflow.distance.sliced.sweep import Sets


class NotFinite(FloatingPointError, ValueError):
    """Points or distances that are not finite, whether given so or grown so in training."""


def check_options(owner: Any) -> None:
    """Refuse what no sliced distance can take.

    Raises:
        ValueError: in one sentence.
    """
    p = owner.p
    if isinstance(p, bool) or not isinstance(p, Real) or not 1 <= p < math.inf:
        raise ValueError(f"{type(owner).__name__}(p={p!r}): p must be at least 1 and finite")
    if not isinstance(owner.directions, Directions):
        raise ValueError(
            f"{type(owner).__name__}(directions={owner.directions!r}): directions must be Directions, "
            "such as Isotropic()"
        )
    count(owner, projections=owner.projections)
    if owner.chunk is not None:
        count(owner, chunk=owner.chunk)


def check_sets(name: str, x: Any, y: Any) -> None:
    """Refuse what is no pair of point sets.

    Raises:
        TypeError: unless both are floating-point tensors of one dtype.
        ValueError: for sets that are empty, or of other dimensions.
    """
    for label, z in (("x", x), ("y", y)):
        if not isinstance(z, Tensor) or not z.is_floating_point():
            got = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"{name}: {label} must be a floating-point tensor, got {got}")
        if z.ndim < 2:
            raise ValueError(
                f"{name}: {label} has shape {tuple(z.shape)}, expected (..., n, d); use "
                f"{label}[:, None] for numbers"
            )
        if z.numel() == 0:
            raise ValueError(f"{name}: {label} of shape {tuple(z.shape)} is empty")
    if x.dtype != y.dtype or x.device != y.device:
        raise TypeError(
            f"{name}: x is {x.dtype} on {x.device}, y is {y.dtype} on {y.device}; cast or move one of "
            "them"
        )
    if x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; the last dimension and all "
            "but the last two must be equal"
        )


def check_weights(
    name: str, label: str, weights: Tensor | None, x: Tensor, dtype: torch.dtype
) -> Tensor:
    """Weights of points as ``(B, n)`` that sum to one.

    Raises:
        ValueError: for negative or infinite ones, other shapes, or a sum of zero.
    """
    shape = x.shape[:-1]
    if weights is None:
        return x.new_full((math.prod(shape[:-1]), shape[-1]), 1 / shape[-1], dtype=dtype)
    weights = torch.as_tensor(weights, device=x.device).detach().double()
    if weights.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"{name}: {label} has shape {tuple(weights.shape)}, expected {tuple(shape[-1:])} or "
            f"{tuple(shape)}, one a point"
        )
    fine = (weights >= 0) & weights.isfinite()
    most = weights.amax(-1, keepdim=True)
    if not bool(fine.all() & (most > 0).all()):
        raise ValueError(
            f"{name}: {label} must be zero or positive, finite, and sum to a positive number"
        )
    weights = weights / most
    weights = weights / weights.sum(-1, keepdim=True)
    return weights.expand(shape).reshape(-1, shape[-1]).to(dtype)


def check_finite(name: str, sets: Sets, total: Tensor) -> None:
    """Tell which points are to blame where the sum of all costs is not finite.

    Raises:
        NotFinite: in one sentence.
    """
    if math.isfinite(total.item()):
        return
    bad = [label for label, z in (("x", sets.x), ("y", sets.y)) if not bool(z.isfinite().all())]
    if bad:
        raise NotFinite(f"{name}: {' and '.join(bad)} holds numbers that are not finite")
    raise NotFinite(f"{name}: projected distances overflow {sets.x.dtype}; scale the points down")
