"""Descent on the objective, by its gradient in closed form where the axes are shared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genflow.process.light.bridge import LightBridge

BATCHES, REST, SMALL = 8, 20.0, 1e-3
"""Batches by which a descent is judged, what it may be above noise, and a gradient that is none."""
Draw = Callable[[], tuple[Tensor, Tensor]]
"""Fresh rows of both sides, ``(B, D)`` each, float64."""
MOMENTUM, MEMORY = 0.9, 0.99
"""Of Adam's first and second moments; the second is short, as small components get rows in bursts."""


def slope(bridge: LightBridge, x0: Tensor, x1: Tensor) -> float:
    """The objective on rows of both sides; leaves its gradient in ``.grad`` of the parameters.

    For covariances along the axes it is written out, which is half the time of going backwards through
    the objective.
    """
    parts = bridge.parametrised()
    if bridge.covariance not in ("diagonal", "isotropic"):
        for p in parts:
            p.grad = None
        with torch.enable_grad():
            value = bridge.objective_of(x0, x1)
        value.backward()
        return float(value.detach())
    r, wide = bridge.location.double(), 1 / (2 * bridge.epsilon)
    scale = bridge.scales.log_values.double().exp()
    s = scale.expand_as(r)
    weight, narrow = bridge.log_weight.double(), 1 / s
    own = weight - (s.log().sum(1) + (wide * 2) * (r * r * narrow).sum(1)) / 2
    c, mass0, first0, second0 = _share(x0, weight, s * wide, r * (2 * wide))
    v, mass1, first1, second1 = _share(x1, own, -wide * narrow, (2 * wide) * r * narrow)
    pull = mass1[:, None] * r
    by_location = (2 * wide) * (first0 - (first1 - pull) * narrow)
    square = second1 - 2 * r * first1 + pull * r
    by_scale = wide * (s * second0 - square * narrow) + mass1[:, None] / 2
    if scale.shape[1] == 1:
        by_scale = by_scale.sum(1, keepdim=True)
    for p, grad in zip(parts, (mass0 - mass1, by_location, by_scale)):
        p.grad = grad.to(p)
    return float(c - v) + x1.shape[1] * math.log(math.pi / wide) / 2


def _share(x: Tensor, own: Tensor, square: Tensor, linear: Tensor) -> tuple[Tensor, ...]:
    """Mean log-sum-exp of ``own_k + square_k x^2 + linear_k x``, and the mass, first and second moments
    of the shares of the components in rows ``x (B, D)``."""
    both = torch.cat([x * x, x], 1)
    share = torch.addmm(own, both, torch.cat([square, linear], 1).mT)
    most = share.amax(1, keepdim=True)
    share = share.sub_(most).exp_()
    total = share.sum(1, keepdim=True)
    value = (most + total.log()).mean()
    share = share.div_(total * len(x))
    moments = share.mT @ both
    return value, share.sum(0), moments[:, x.shape[1] :], moments[:, : x.shape[1]]


def adam(
    bridge: LightBridge,
    draw: Draw,
    steps: int,
    rate: float,
    spread: Tensor,
    floor: float,
    tell: Callable[[int], bool],
) -> None:
    """Adam with cosine decay to zero, in place.

    Args:
        bridge: in float64.
        draw: gives the rows of a step.
        steps: how many.
        rate: first step, in units of which all are about one: logarithms, and ``spread`` for locations.
        spread: standard deviations of the data ``(D,)``.
        floor: least logarithm of an eigenvalue.
        tell: called after each step; ``True`` ends the descent.
    """
    # written out: the first optimizer of torch's own costs a second of imports, as much as the fit
    moved = [
        (p, spread if p is bridge.location else None, torch.zeros_like(p), torch.zeros_like(p))
        for p in bridge.parametrised()
    ]
    for k in range(steps):
        slope(bridge, *draw())
        step = rate * (1 + math.cos(math.pi * k / steps)) / 2
        first, second = 1 - MOMENTUM ** (k + 1), 1 - MEMORY ** (k + 1)
        for p, unit, mean, square in moved:
            mean.lerp_(p.grad, 1 - MOMENTUM)
            square.mul_(MEMORY).addcmul_(p.grad, p.grad, value=1 - MEMORY)
            way = mean if unit is None else mean * unit
            p.addcdiv_(way, (square / second).sqrt_().add_(1e-12), value=-step / first)
        bridge.scales.log_values.clamp_(min=floor)
        if tell(k + 1):
            break


def lbfgs(
    bridge: LightBridge, rows: tuple[Tensor, Tensor], steps: int, tell: Callable[[int], bool]
) -> int:
    """L-BFGS with a strong Wolfe search on fixed rows, in place, until nothing moves any more; how many
    steps it took."""
    optimizer = torch.optim.LBFGS(
        bridge.parametrised(), max_iter=1, max_eval=25, history_size=20,
        line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def value() -> Tensor:
        with torch.no_grad():
            return torch.tensor(slope(bridge, *rows), dtype=torch.float64)

    last = math.inf
    for k in range(1, steps + 1):
        now = float(optimizer.step(value))
        if tell(k) or last - now <= 1e-12 * abs(now):
            return k
        last = now
    return steps


def resting(bridge: LightBridge, draw: Draw) -> bool:
    """Whether the gradient is lost in the noise of batches: the mean of its squares over parameters, in
    units of their standard errors, is below ``REST`` (of noise alone it is about one)."""
    grads = []
    for _ in range(BATCHES):
        x0, x1 = draw()
        slope(bridge, x0, x1)
        grads.append(torch.cat([p.grad.flatten() for p in bridge.parametrised()]))
    found = torch.stack(grads)
    error = found.var(0) / BATCHES
    moves = error > 0
    if not bool(moves.any()):  # every batch was the whole table
        return float(found[0].abs().max()) < REST * SMALL
    return float((found.mean(0).square() / error)[moves].mean()) < REST
