r"""What a fit moves about, and the moments that it moves by.

With responsibilities :math:`\rho_k(x_1)` of the potential and weights :math:`w_k(x_0)` of the plan, a
stationary point of the objective has :math:`\mathbb E\rho_k = \mathbb Ew_k`, and each component carries
the mean and the variance of its share of the start to those of its share of the data:

.. math:: r_k = m^y_k - S_km^x_k,\qquad S_kV^x_kS_k + \varepsilon S_k = V^y_k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.process.light.covariance import Axes, Rotated
from genflow.process.light.potential import Potential
from genflow.tensors import symmetric_root

TINY = 1e-300
"""Keeps logarithms of shares that underflow finite."""


@dataclass(frozen=True, eq=False)
class Sides:
    """Rows of both sides ``(N, D)`` in float64, and what kind of bridge joins them.

    Attributes:
        x0, x1: rows of source and data, centred.
        epsilon: entropic coefficient.
        family: of the covariances.
        rank: of ``low_rank``.
        floor: least eigenvalue of any ``S``.
    """

    x0: Tensor
    x1: Tensor
    epsilon: float
    family: str
    rank: int | None
    floor: float


class State(NamedTuple):
    r""":math:`\log\alpha\ (K,)`, :math:`r\ (K, D)`, and :math:`S`, ``(K, D)``, ``(K, 1)`` or
    ``(K, D, D)``."""

    log_weight: Tensor
    location: Tensor
    scale: Tensor

    def potential(self, sides: Sides, epsilon: float | None = None) -> Potential:
        """The potential of these numbers, at another ``epsilon`` if one is given."""
        if self.scale.ndim == 2:
            spectrum = Axes(self.scale, self.location.shape[1])
        else:
            values, vectors = torch.linalg.eigh(self.scale)
            spectrum = Rotated(values.clamp_min(sides.floor), vectors, False)
        return Potential(epsilon or sides.epsilon, self.log_weight, self.location, spectrum)


def shares(logits: Tensor) -> Tensor:
    """Mean softmax of ``(B, K)``."""
    return logits.softmax(-1).mean(0)


def moments(x: Tensor, weights: Tensor, sides: Sides) -> tuple[Tensor, Tensor, Tensor]:
    """Mass ``(K,)``, mean ``(K, D)`` and variances of rows ``x (N, D)`` under ``weights (N, K)``:
    ``(K, D)``, their mean ``(K, 1)`` for isotropic, or matrices ``(K, D, D)``."""
    mass = weights.mean(0)
    part = weights / (len(x) * mass.clamp_min(TINY))
    mean = part.mT @ x
    if sides.family in ("full", "low_rank"):
        # a column at a time: (N, K, D) would not fit
        spread = torch.stack([(x * p[:, None]).mT @ x for p in part.unbind(1)])
        return mass, mean, spread - mean[:, :, None] * mean[:, None, :]
    spread = (part.mT @ x.square() - mean.square()).clamp_min(0)
    return mass, mean, spread.mean(-1, keepdim=True) if sides.family == "isotropic" else spread


def match_moments(
    mean0: Tensor, spread0: Tensor, mean1: Tensor, spread1: Tensor, sides: Sides
) -> tuple[Tensor, Tensor]:
    """Locations and scales of the bridges between components of these moments; no inverse is taken, so
    that a side without spread is no obstacle."""
    epsilon = sides.epsilon
    if spread1.ndim == 2:
        root = (epsilon**2 + 4 * spread0 * spread1).sqrt()
        scale = (2 * spread1 / (epsilon + root)).clamp_min(sides.floor)
        return mean1 - scale * mean0, scale
    half = symmetric_root(spread1)
    inner = half @ spread0 @ half
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    under = 1 / (epsilon / 2 + (epsilon**2 / 4 + values.clamp_min(0)).sqrt())
    turned = half @ vectors
    scale = (turned * under.unsqueeze(-2)) @ turned.mT
    scale = project(scale, sides)
    return mean1 - times(scale, mean0), scale


def project(scale: Tensor, sides: Sides) -> Tensor:
    """Matrices ``(K, D, D)`` made symmetric, above the floor, and of the family."""
    values, vectors = torch.linalg.eigh((scale + scale.mT) / 2)
    if sides.family == "low_rank":
        rest = values[..., : -sides.rank]
        alike = rest.mean(-1, keepdim=True).expand_as(rest)
        values = torch.cat([alike, values[..., -sides.rank :]], -1)
    return (vectors * values.clamp_min(sides.floor).unsqueeze(-2)) @ vectors.mT


def times(scale: Tensor, x: Tensor) -> Tensor:
    """``S_k x_k`` of scales as a state has them and ``x (K, D)``."""
    return scale * x if scale.ndim == 2 else (scale @ x[..., None])[..., 0]


def moved(state: State, by0: Tensor, by1: Tensor, epsilon: float) -> State:
    """The state of the same plan where the start has moved by ``by0 (D,)`` and the data by ``by1``."""
    carried = times(state.scale, by0.expand_as(state.location))
    weight = (by0 * (carried - 2 * (state.location + by1))).sum(1) / (2 * epsilon)
    return State(state.log_weight + weight, state.location + by1 - carried, state.scale)


def over(values: Tensor, like: Tensor) -> Tensor:
    """One value a component ``(K,)`` such that it broadcasts over ``like (K, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
