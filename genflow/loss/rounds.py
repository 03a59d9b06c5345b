"""Outer iterations by hand, with a bar that shows how they fare."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from genflow.distance import Wasserstein
from genflow.process import MultiMarginalBridge
from genflow.seeds import stream


@torch.no_grad()
def heldout_w1(bridge: MultiMarginalBridge, heldout: Mapping[float, Tensor]) -> dict[float, float]:
    """Exact W1 between all trajectories and the rows of held-out snapshots, by their times.

    Args:
        bridge: solved.
        heldout: rows ``(N, *d)`` by times inside the bridge's span or past it.
    """
    times = sorted(heldout)
    paths = bridge.trajectories(times, generator=stream("heldout", device=bridge.kept.points.device))
    distance = Wasserstein(p=1)
    return {
        time: float(distance(states, heldout[time].flatten(1).to(states)))
        for time, states in zip(times, paths)
    }


def rounds(
    bridge: MultiMarginalBridge,
    advance: Callable[[], float],
    iterations: int,
    heldout: Mapping[float, Tensor] | None,
    progress: bool,
) -> None:
    """Call ``advance`` ``iterations`` times."""
    from tqdm.auto import tqdm

    bar = tqdm(range(iterations), desc="bridges", unit="round", disable=not progress)
    for _ in bar:
        shown = {"objective": f"{advance():.4g}"}
        if heldout and progress:
            distances = heldout_w1(bridge, heldout)
            shown["heldout_w1"] = f"{sum(distances.values()) / len(distances):.3g}"
        bar.set_postfix(shown)
