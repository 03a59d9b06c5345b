r"""Iterative proportional fitting between snapshots with regressed drifts, as Vargas et al. 2021,
"Solving Schrödinger bridges via maximum likelihood", have it, and the stitched trajectories that Shen,
Berlinghieri & Broderick 2024, "Multi-marginal Schrödinger bridges with iterative reference refinement",
draw from its drifts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genflow.tensors import randn_like

Drift = Callable[[Tensor, Tensor], Tensor]
"""Any ``f(t, x)`` of times ``(B,)`` or a number, and states ``(B, d)``."""


class HalfBridges(NamedTuple):
    """What :func:`ipf` returns.

    Attributes:
        forward: drift from the first snapshot to the second, on the clock.
        backward: drift of the reversed path, on the pseudo-clock ``start + elapsed time``.
        times: ``(S + 1,)``.
        path: the last forward paths ``(S + 1, n0, d)``; they end near the second snapshot, or the
            iterations did not converge.
    """

    forward: Any
    backward: Any
    times: Tensor
    path: Tensor


def clock(start: float, stop: float, dt: float) -> Tensor:
    """Times ``(S + 1,)`` in float64 of ``ceil((stop - start) / dt)`` equal steps."""
    steps = max(1, math.ceil((stop - start) / dt * (1 - 1e-12)))  # 1.5 / 0.01 is 150 steps, not 151
    return torch.linspace(start, stop, steps + 1, dtype=torch.float64)


def simulate(
    drift: Drift,
    x: Tensor,
    times: Tensor,
    sigma: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Euler-Maruyama paths ``(S + 1, n, d)`` from ``x (n, d)`` over ``times (S + 1,)``."""
    path = [x]
    for t, dt in zip(times.tolist(), times.diff().tolist()):
        noise = sigma * math.sqrt(dt) * randn_like(x, generator)
        path.append(path[-1] + drift(t, path[-1]) * dt + noise)
    return torch.stack(path)


def regress(regressor: Any, times: Tensor, path: Tensor) -> Any:
    """A copy of ``regressor``, fitted to the increments of ``path (S + 1, n, d)`` over ``times``
    at the left ends of its steps."""
    left = path[:-1]
    speed = path.diff(dim=0) / times.diff()[:, None, None].to(path)
    t = times[:-1].to(path).repeat_interleave(path.shape[1])
    fitted = copy.deepcopy(regressor)
    fitted.fit(t, left.flatten(0, 1), speed.flatten(0, 1))
    return fitted


@torch.no_grad()
def ipf(
    x0: Tensor,
    x1: Tensor,
    span: tuple[float, float],
    reference: Drift,
    regressor: Any,
    sigma: float,
    dt: float = 0.02,
    iterations: int = 10,
    generator: torch.Generator | None = None,
) -> HalfBridges:
    """Drifts of the bridge between two snapshots: one half bridge is simulated, the other regressed.

    Paths of the reference from ``x0``, reversed, give the first backward drift; each iteration then
    fits the forward drift to reversed backward paths from ``x1``, and the backward drift to reversed
    forward paths from ``x0``. A reversed path keeps a clock that runs forward, so that its increments
    sit at the *right* ends of the steps that were simulated. The reference enters through the first
    simulation alone.

    Args:
        x0, x1: snapshots ``(n0, d)`` and ``(n1, d)``; computed in float64.
        span: their two times.
        reference: drift ``f(t, x)`` of the reference.
        regressor: template with ``fit(t, x, y)`` and ``(t, x) -> y``, such as
            ``GaussianProcess(d, variance=1 / dt, noise=sigma**2 / dt)``; copies of it are fitted.
        sigma: diffusion coefficient.
        dt: step; the span is cut into ``ceil(span / dt)`` equal ones.
        iterations: each fits both drifts once.
        generator: where all draws come from.

    Raises:
        ValueError: where paths stop being finite.
    """
    x0, x1 = x0.double(), x1.double()
    times = clock(*span, dt)

    def run(drift: Drift, x: Tensor, what: str) -> Tensor:
        path = simulate(drift, x, times, sigma, generator)
        if not path.isfinite().all():
            raise ValueError(
                f"ipf between t={span[0]:g} and t={span[1]:g}: {what} are not finite; take a smaller "
                "dt, or a reference that stays finite from the first snapshot on"
            )
        return path

    path = run(reference, x0, "paths of the reference")
    backward = regress(regressor, times, path.flip(0))
    forward = None
    for k in range(iterations):
        path = run(backward, x1, f"backward paths of iteration {k + 1}")
        forward = regress(regressor, times, path.flip(0))
        path = run(forward, x0, f"forward paths of iteration {k + 1}")
        backward = regress(regressor, times, path.flip(0))
    return HalfBridges(forward, backward, times, path)


@torch.no_grad()
def stitched(
    xs: Sequence[Tensor],
    grids: Sequence[Tensor],
    forwards: Sequence[Drift],
    backwards: Sequence[Drift],
    sigma: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Paths through every row of every snapshot, by forward and by backward drifts to both ends.

    Args:
        xs: ``K + 1`` snapshots ``(n_k, d)``.
        grids: times ``(S_k + 1,)`` of each of the ``K`` intervals, both ends included, as :func:`clock`
            makes them; they need not be even.
        forwards, backwards: ``K`` drifts each, as :func:`ipf` leaves them.
        sigma: diffusion coefficient.
        generator: where the noise is drawn from.

    Returns:
        ``(sum S_k + 1, sum n_k, d)``, rows in the order of the snapshots, in float64.
    """
    at = [0, *accumulate(len(grid) - 1 for grid in grids)]
    first = [0, *accumulate(len(x) for x in xs)]
    paths = xs[0].new_empty(at[-1] + 1, first[-1], *xs[0].shape[1:], dtype=torch.float64)
    for k, x in enumerate(xs):
        paths[at[k], first[k] : first[k + 1]] = x.double()
    for k, grid in enumerate(grids):  # all rows that have set out so far
        part = paths[at[k] : at[k + 1] + 1, : first[k + 1]]
        part.copy_(simulate(forwards[k], part[0].clone(), grid, sigma, generator))
    for k, grid in reversed(list(enumerate(grids))):
        part = paths[at[k] : at[k + 1] + 1, first[k + 1] :]
        elapsed = grid[0] + grid[-1] - grid.flip(0)
        part.copy_(simulate(backwards[k], part[-1].clone(), elapsed, sigma, generator).flip(0))
    return paths
