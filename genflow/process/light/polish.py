"""Descent on the objective, by its gradient in closed form where the axes are shared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genflow.process.light.bridge import LightBridge

Draw = Callable[[], tuple[Tensor, Tensor]]
"""Fresh rows of both sides, ``(B, D)`` each, float64."""
MOMENTUM, MEMORY = 0.9, 0.99
"""Of Adam's first and second moments; the second is short: shares of small components come in bursts."""


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
    potential, epsilon = bridge.potential, bridge.epsilon
    zero, one = x0.new_zeros(()), x0.new_ones(())
    start, stop = potential.logits(zero, x0), potential.logits(one, x1)
    c, v = start.logsumexp(-1, keepdim=True), stop.logsumexp(-1, keepdim=True)
    w, rho = (start - c).exp_().mT / len(x0), (stop - v).exp_().mT / len(x1)
    r, scale = potential.location, potential.spectrum.values
    mass = rho.sum(1)
    weighted, pull = rho @ x1, mass[:, None] * r
    square = rho @ x1.square() - 2 * r * weighted + pull * r
    by_weight = w.sum(1) - mass
    by_location = (w @ x0 - (weighted - pull) / scale) / epsilon
    by_scale = (scale * (w @ x0.square()) - square / scale) / (2 * epsilon) + mass[:, None] / 2
    if scale.shape[1] == 1:
        by_scale = by_scale.sum(1, keepdim=True)
    for p, grad in zip(parts, (by_weight, by_location, by_scale)):
        p.grad = grad.to(p)
    shift = x0.square().sum(-1).mean() + x1.square().sum(-1).mean()
    norm = x1.shape[1] * math.log(2 * math.pi * epsilon) / 2
    return float(c.mean() - v.mean() + shift / (2 * epsilon) + norm)


def adam(
    bridge: LightBridge,
    draw: Draw,
    steps: int,
    rate: float,
    spread: float,
    tell: Callable[[int], bool],
) -> None:
    """Adam with cosine decay to zero, in place.

    Args:
        bridge: in float64.
        draw: gives the rows of a step.
        steps: how many.
        rate: first step, in units of which all are about one: logarithms, and ``spread`` for locations.
        spread: standard deviation of the data.
        tell: called after each step; ``True`` ends the descent.
    """
    # written out: the first optimizer of torch's own costs a second of imports, as much as the fit
    moved = [
        (p, spread if p is bridge.location else 1.0, torch.zeros_like(p), torch.zeros_like(p))
        for p in bridge.parametrised()
    ]
    for k in range(steps):
        slope(bridge, *draw())
        step = rate * (1 + math.cos(math.pi * k / steps)) / 2
        first, second = 1 - MOMENTUM ** (k + 1), 1 - MEMORY ** (k + 1)
        for p, unit, mean, square in moved:
            mean.lerp_(p.grad, 1 - MOMENTUM)
            square.mul_(MEMORY).addcmul_(p.grad, p.grad, value=1 - MEMORY)
            p.addcdiv_(mean, (square / second).sqrt_().add_(1e-12), value=-step * unit / first)
        if tell(k + 1):
            break


def lbfgs(
    bridge: LightBridge, rows: tuple[Tensor, Tensor], steps: int, tell: Callable[[int], bool]
) -> None:
    """L-BFGS with a strong Wolfe search on fixed rows, in place; for tables that fit memory."""
    optimizer = torch.optim.LBFGS(
        bridge.parametrised(), max_iter=1, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    for k in range(steps):
        optimizer.step(lambda: torch.tensor(slope(bridge, *rows), dtype=torch.float64))
        if tell(k + 1):
            break
