"""Weights over time, and times drawn where the loss varies most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.checks import between
from genflow.tensors import rand_rows
from genflow.time.laws import Time, _check_margin, _inside

NODES = 16384
"""Of the mean of a weight; the midpoint rule in an angle, which crowds at both ends."""


@dataclass(frozen=True)
class Weighted(Time):
    r"""Another law's times, with the loss weighted by :math:`\lambda(t) \propto \gamma(t)^{power}`.

    ``power=2`` turns a loss on the score, :math:`-z/\gamma`, into that on the noise. The weight has
    mean one over the times ``[margin, 1 - margin]`` of the law.

    Args:
        law: of the times; its own weights are kept as factors.
        gamma: the width that the weight is a power of, usually the interpolant's.
        power: any number; with one below zero the weight grows towards the ends, and the law needs a
            margin there.

    Raises:
        ValueError: for a width of zero, or a negative power where the width vanishes.
    """

    law: Time
    gamma: Callable[[Tensor], Any]
    power: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.law, Time):
            raise TypeError(f"Weighted(law={self.law!r}): law must be a Time, such as Uniform()")
        if not callable(self.gamma) or not hasattr(self.gamma, "zero"):
            raise TypeError(
                f"Weighted(gamma={self.gamma!r}): gamma must be a width, such as Brownian()"
            )
        between(self, -math.inf, math.inf, power=self.power)
        if self.gamma.zero:
            raise ValueError(
                f"Weighted(gamma={self.gamma}): a width of zero gives no weights; use that of a path "
                "which has one"
            )
        ends = torch.tensor([self.margin, 1 - self.margin], dtype=torch.float64)
        if self.power < 0 and bool((self.gamma(ends).gamma <= 0).any()):
            raise ValueError(
                f"Weighted(power={self.power}): {self.gamma} vanishes at the ends, where a negative "
                "power diverges; give the law a margin, such as Uniform(margin=0.001)"
            )
        object.__setattr__(self, "_mean", self._average())

    @property
    def margin(self) -> float:
        """Distance that the law keeps from both ends."""
        return getattr(self.law, "margin", 0.0)

    def _average(self) -> float:
        angle = math.pi * (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
        t = _inside((1 - torch.cos(angle)) / 2, self.margin)
        return float((self.gamma(t).gamma ** self.power * torch.sin(angle)).mean() * math.pi / 2)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        t, weight = self.law(x, generator)
        return t, weight * (self.gamma(t).gamma ** self.power / self._mean)


@dataclass(frozen=True)
class Importance(Time):
    """Times of a density that is constant on equal cells of ``[margin, 1 - margin]``.

    ``genflow.loss.importance_density`` measures a loss and proposes the density.

    Args:
        density: one positive number a cell, in any unit; zeros are allowed without ``reweight``.
        reweight: weight by the inverse density, so that only the variance changes.
        stratified: one draw in each of ``B`` equally probable parts.
        margin: distance kept from both ends.

    Raises:
        ValueError: for an empty density, one that is not finite, negative or zero throughout, or zero
            in a cell that ``reweight`` cannot do without.
    """

    density: Sequence[float]
    reweight: bool = True
    stratified: bool = False
    margin: float = 0.0

    def __post_init__(self) -> None:
        _check_margin(self, self.margin)
        object.__setattr__(self, "density", [float(value) for value in self.density])
        least = min(self.density, default=-1.0)
        if not all(map(math.isfinite, self.density)) or least < 0 or not sum(self.density) > 0:
            raise ValueError(
                f"Importance(density={self.density}): give one finite number a cell, none negative and "
                "not all zero"
            )
        if self.reweight and least == 0:
            raise ValueError(
                f"Importance(density={self.density}): with reweight every cell needs a positive "
                "density, since times that are never drawn cannot be made up for; use reweight=False "
                "to leave them out"
            )

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u = rand_rows(x, generator)
        if self.stratified:
            u = (torch.arange(len(u), dtype=u.dtype, device=u.device) + u) / len(u)
        density = torch.tensor(self.density, dtype=torch.float64)
        share = (density / density.sum()).to(u)
        edges = share.cumsum(0)
        cell = torch.searchsorted(edges, u, right=True).clamp_max(len(share) - 1)
        within = ((u - edges[cell] + share[cell]) / share[cell]).clamp(0, 1)
        t = _inside((cell + within) / len(share), self.margin)
        return t, 1 / (len(share) * share[cell]) if self.reweight else torch.ones_like(t)
