"""Small tensor helpers that every part shares: broadcasting over event dimensions, draws, checks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape ``t (B,)`` to ``(B, 1, ..., 1)`` so that it broadcasts over the event of ``x``."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def batch_time(t: Tensor | float, x: Tensor) -> Tensor:
    """Time as a ``(B,)`` tensor of the dtype and device of ``x``; numbers and 0-d tensors repeat."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.ndim == 0:
        return t.expand(x.shape[0])
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)} but x has {x.shape[0]} rows: pass t of shape "
            f"({x.shape[0]},) or a number"
        )
    return t


def path_time(t: Tensor | float, x: Tensor) -> Tensor:
    """:func:`batch_time` of a path, whose clock runs from 0 to 1.

    Raises:
        ValueError: for times outside (looked at on the CPU alone: elsewhere it would wait).
    """
    t = batch_time(t, x)
    if t.device.type == "cpu" and len(t) and not torch.compiler.is_compiling():
        least, most = torch.aminmax(t)
        try:
            inside = 0 <= least.item() <= most.item() <= 1  # not where one is NaN
        except RuntimeError:  # under vmap no number can be read
            return t
        if not inside:
            raise ValueError(
                f"t runs from {float(least):g} to {float(most):g}; times of a path must lie in [0, 1]"
            )
    return t


def mean_event(x: Tensor) -> Tensor:
    """Mean over event dimensions: ``(B, *d) -> (B,)``."""
    return x.flatten(1).mean(1)


def sum_event(x: Tensor) -> Tensor:
    """Sum over event dimensions: ``(B, *d) -> (B,)``."""
    return x.flatten(1).sum(1)


def as_shape(dim: int | Sequence[int]) -> tuple[int, ...]:
    """An event shape from ``2`` or ``[1, 8, 8]``.

    Raises:
        ValueError: unless all sizes are positive whole numbers.
    """
    shape = tuple(dim) if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"dim={dim!r}: dim must be a positive whole number or a list of them")
    return shape


def symmetric_root(matrix: Tensor) -> Tensor:
    """Symmetric square roots of positive semidefinite matrices ``(..., d, d)``."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def draw_device(generator: torch.Generator | None, device: torch.device) -> torch.device:
    """Where to draw: a generator only draws on its own device, wherever the result is needed."""
    return device if generator is None else generator.device


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal of the shape, dtype and device of ``x``; the generator may live elsewhere."""
    device = draw_device(generator, x.device)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def rand_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on [0, 1) of the shape, dtype and device of ``x``; the generator may live elsewhere."""
    device = draw_device(generator, x.device)
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def rand_rows(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on [0, 1), one number a row of ``x``, in its dtype and on its device."""
    device = draw_device(generator, x.device)
    u = torch.rand(x.shape[0], generator=generator, dtype=x.dtype, device=device)
    return u.to(x.device)


def randperm(n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A random permutation of ``0..n-1`` on ``device``."""
    where = draw_device(generator, device)
    return torch.randperm(n, generator=generator, device=where).to(device)


def check_marginals(where: str, *xs: Tensor) -> None:
    """Refuse batches that no coupling can take: one clear sentence naming the marginal.

    Raises:
        TypeError: if a marginal is no floating-point tensor, or their dtypes differ.
        ValueError: if one is empty, has no event dimension, or the event shapes differ.
    """
    if len(xs) < 2:
        raise ValueError(f"{where} needs at least two marginals (x0, x1), got {len(xs)}")
    for k, x in enumerate(xs):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{where}: x{k} must be a floating-point tensor, got {kind}")
        if x.ndim < 2:
            raise ValueError(
                f"{where}: x{k} has shape {tuple(x.shape)}, expected (B, *dims) with at least one "
                f"event dimension; use x{k}[:, None] for numbers"
            )
        if x.shape[0] == 0:
            raise ValueError(f"{where}: x{k} is empty, at least one row is needed")
        if x.shape[1:] != xs[0].shape[1:]:
            raise ValueError(
                f"{where}: x{k} has event shape {tuple(x.shape[1:])} but x0 has "
                f"{tuple(xs[0].shape[1:])}; they must be equal"
            )
        if x.dtype != xs[0].dtype:
            raise TypeError(f"{where}: x{k} is {x.dtype} but x0 is {xs[0].dtype}; cast one of them")


def check_positive(where: str, x: Tensor, wait: bool = False, remedy: str | None = None) -> None:
    """Refuse numbers that are not positive and finite, and name the transform that would fit.

    Args:
        where: who refuses.
        x: ``(n, *d)``.
        wait: look at them on other devices than the CPU too.
        remedy: what to do, in place of the transform.

    Raises:
        ValueError: with the column and what it holds.
    """
    if (x.device.type != "cpu" and not wait) or not x.numel() or torch.compiler.is_compiling():
        return
    try:
        least, whole = map(float, torch.aminmax(x.detach()))
    except RuntimeError:  # under vmap no number can be read
        return
    if 0 < least and whole < math.inf:  # not where one is NaN
        return
    flat = x.detach().flatten(1)
    if not bool(flat.isfinite().all()):
        column = int((~flat.isfinite()).any(0).int().argmax())
        raise ValueError(f"{where} must be positive, but column {column} holds NaN or infinity")
    column = int(flat.amin(0).argmin())
    low, high = (float(v) for v in torch.aminmax(flat[:, column]))
    what = "takes both signs" if low < 0 < high else "holds zeros" if low == 0 else "is not positive"
    fit = "transform.form=floor" if least == 0 else "transform.form=one_plus"
    whole = whole if whole > least else least + 1
    remedy = remedy or (
        f"use transform=positive {fit} transform.low={least:.4g} transform.high={whole:.4g}, which "
        "maps that range into the positive numbers"
    )
    raise ValueError(
        f"{where} must be positive, but column {column} {what} ({low:.4g} to {high:.4g}): {remedy}"
    )
