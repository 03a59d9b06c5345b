"""What a stochastic interpolant forms its drifts from: numbers of the time, and fields by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.interpolant import Affine, Coefficients
from genflow.tensors import expand

CLOSE = 0.01
"""Fraction of the largest width (and of the data) below which nothing is divided by it."""
MARGIN = 1e-3
"""A velocity that must be formed from other fields is taken this far from both ends."""


class Moment(NamedTuple):
    r"""What depends on the time alone, each ``(B,)``: coefficients, :math:`\sqrt{2\epsilon}`,
    :math:`\epsilon/\gamma` and the width that is divided by; for one ``row`` of times ``(G,)`` if that
    is given."""

    c: Coefficients
    noise: Tensor
    ratio: Tensor
    width: Tensor
    row: int | None = None

    def over(self, value: Tensor, x: Tensor) -> Tensor:
        """One of the values, such that it broadcasts over ``x``."""
        return expand(value, x) if self.row is None else value[self.row]


def noise_of(found: Mapping[str, Tensor], at: Moment, x: Tensor) -> Tensor:
    """The noise from whatever tells it, ``(B, *d)``; velocity and denoised data do on paths of one
    endpoint."""
    if "noise" in found:
        return found["noise"]
    c = at.c
    if "score" in found:
        return -at.over(c.gamma, x) * found["score"]
    if "denoised" in found:
        return (x - at.over(c.beta, x) * found["denoised"]) / at.over(at.width, x)
    turn = at.over(c.gamma * c.dbeta - c.dgamma * c.beta, x)
    return (at.over(c.dbeta, x) * x - at.over(c.beta, x) * found["velocity"]) / turn


def velocity_of(found: Mapping[str, Tensor], at: Moment, x: Tensor) -> Tensor:
    """The velocity from ``rate`` and the noise; on paths of one endpoint from denoised data or from the
    noise alone. Not at the very ends: there ``dgamma`` may diverge, and noise tells nothing of data."""
    c, noise = at.c, noise_of(found, at, x)
    turned = at.over(c.dgamma, x) * noise
    if "rate" in found:
        return found["rate"] + turned
    if "denoised" in found:
        return at.over(c.dbeta, x) * found["denoised"] + turned
    clean = (x - at.over(c.gamma, x) * noise) / at.over(c.beta, x)
    return at.over(c.dbeta, x) * clean + turned


def formed_within(interpolant: Affine, names: Collection[str]) -> tuple[float, float]:
    """From when to when :func:`velocity_of` can form a velocity of these fields."""
    t = torch.linspace(MARGIN, 1 - MARGIN, 999, dtype=torch.float64)
    c = interpolant.coefficients(t)
    fit = torch.ones_like(t, dtype=torch.bool)
    if "rate" not in names:
        fit = c.gamma >= CLOSE * c.gamma.max() if "denoised" in names else c.beta >= CLOSE
    return float(t[fit][0]), float(t[fit][-1])


def equal(t: Tensor, other: Tensor) -> bool:
    """Whether times are the same; no is always a safe answer."""
    if torch.compiler.is_compiling():
        return False
    try:
        return torch.equal(t, other)
    except RuntimeError:  # under vmap no number can be read
        return False


def check_ends(interpolant: Affine) -> None:
    """Refuse a path whose width blurs the law at an end.

    Raises:
        ValueError: with what is allowed.
    """
    ends = interpolant.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64)).gamma
    blurred = ends[1:] if interpolant.independent else ends  # one-sided: the noise is the start
    if float(blurred.detach().abs().max()) > 1e-6:
        raise ValueError(
            f"StochasticInterpolant(interpolant={interpolant}): its width does not vanish at the ends, "
            "which blurs the laws there; use a gamma such as Brownian(), or an SDE"
        )
