"""What a bridge asks of its data and of its reference before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.process.reference import Reference
from genflow.tensors import check_marginals

PROBES = 8
"""States at which a Jacobian is compared with differences."""


def check_times(times: Sequence[float]) -> list[float]:
    """Times as plain numbers.

    Raises:
        ValueError: for fewer than two, or such that do not rise.
    """
    numbers = [float(t) for t in times]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"MultiMarginalBridge(times={numbers}): give at least two finite times, one for each "
            f"snapshot"
        )
    for before, after in zip(numbers[:-1], numbers[1:]):
        if not before < after:
            raise ValueError(
                f"MultiMarginalBridge(times={numbers}): times must rise from snapshot to snapshot, but "
                f"{after:g} follows {before:g}"
            )
    return numbers


def check_snapshots(
    bridge: Any, xs: Sequence[Tensor], weights: Sequence[Tensor | None] | None
) -> list[Tensor]:
    """Snapshots as rows ``(N_k, d)``.

    Raises:
        ValueError: where numbers of snapshots, rows, coordinates or weights do not fit.
    """
    check_marginals("MultiMarginalBridge", *xs)
    if bridge.times is None:
        raise ValueError(
            f"MultiMarginalBridge has {len(xs)} snapshots but no times: give times=[...], one for "
            f"each, or data that know theirs"
        )
    if len(bridge.times) != len(xs):
        raise ValueError(
            f"MultiMarginalBridge has {len(bridge.times)} times but {len(xs)} snapshots; give one "
            f"time for each"
        )
    flat = [x.flatten(1) for x in xs]
    if flat[0].shape[1] != bridge.reference.dim:
        raise ValueError(
            f"MultiMarginalBridge: the snapshots have {flat[0].shape[1]} coordinates but "
            f"{type(bridge.reference).__name__} has {bridge.reference.dim}; set dim of the reference, "
            f"or take a family that fits"
        )
    for time, x in zip(bridge.times, flat):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"MultiMarginalBridge: the snapshot at time {time:g} holds values that are not finite"
            )
    if weights is not None and len(weights) != len(xs):
        raise ValueError(
            f"MultiMarginalBridge: {len(weights)} weights for {len(xs)} snapshots; give one entry "
            f"each, None for even ones"
        )
    for time, x, weight in zip(bridge.times, flat, weights or ()):
        if weight is None:
            continue
        if weight.shape != (len(x),):
            raise ValueError(
                f"MultiMarginalBridge: the weights of the snapshot at time {time:g} must be {len(x)} "
                f"numbers, one a row, got {tuple(weight.shape)}"
            )
    return flat


def check_weights(weights: Sequence[Any] | None) -> list[Tensor | None] | None:
    """Weights as tensors.

    Raises:
        ValueError: for such that are not positive finite numbers.
    """
    if weights is None:
        return None
    found = [None if w is None else torch.as_tensor(w, dtype=torch.float64) for w in weights]
    for k, weight in enumerate(found):
        if weight is not None and not bool((torch.isfinite(weight) & (weight > 0)).all()):
            raise ValueError(
                f"MultiMarginalBridge: the weights of snapshot {k} must be positive finite numbers, "
                f"one a row; drop rows of weight 0"
            )
    return found


def check_reference(reference: Reference, times: Sequence[float], xs: Sequence[Tensor]) -> None:
    """Run the family on some rows of each snapshot.

    Raises:
        ValueError: for a wrong shape, or a Jacobian that differences of the drift contradict.
        FloatingPointError: for values that are not finite, naming the state.
    """
    name = type(reference).__name__
    for time, rows in zip(times, xs):
        x = rows.double()
        drift = reference(time, x)
        if not isinstance(drift, Tensor) or drift.shape != x.shape:
            got = tuple(drift.shape) if isinstance(drift, Tensor) else type(drift).__name__
            raise ValueError(f"{name} gives a drift of shape {got} for states {tuple(x.shape)}")
        bad = (~torch.isfinite(drift.detach()).all(1)).nonzero()[:, 0]
        if len(bad):
            state = ", ".join(f"{v:.4g}" for v in x[bad[0]].tolist())
            raise FloatingPointError(
                f"{name} gives a drift that is not finite at the state ({state}) of the snapshot at "
                f"time {time:g}"
            )
        _check_jacobian(reference, time, x[:PROBES])


@torch.no_grad()
def _check_jacobian(reference: Reference, time: float, x: Tensor) -> None:
    """A ``detach`` inside a drift gives a zero Jacobian in silence, and bridges that look fine."""
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    way = way * x.abs().amax(0).clamp_min(1e-6)  # coordinates may differ in scale
    h = 1e-5
    slope = (reference(time, x + h * way) - reference(time, x - h * way)) / (2 * h)
    size = reference(time, x).norm(dim=1)
    found = (reference.jacobian(time, x) @ way[..., None])[..., 0]
    # rows beside a kink of the family disagree; that most do not is asked
    wrong = (found - slope).norm(dim=1) > 1e-3 * (slope.norm(dim=1) + 1e-3 * size)
    if float(wrong.double().mean()) > 0.5:
        raise ValueError(
            f"{type(reference).__name__}: the Jacobian of its drift disagrees with differences of the "
            f"drift at time {time:g}; a detach() or torch.no_grad() inside the drift does this"
        )
