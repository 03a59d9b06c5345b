r"""Widths :math:`\gamma(t)` of a stochastic interpolant (Albergo, Boffi & Vanden-Eijnden 2023).

Each gives :math:`(\gamma, \dot\gamma, \gamma\dot\gamma)` in closed form. The product is a closed
form of its own because :math:`\dot\gamma` may diverge at the ends where the product does not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.checks import name_of, non_negative, positive


class Width(NamedTuple):
    """``gamma``, its rate, and the closed form of their product; each of the shape of ``t``."""

    gamma: Tensor
    dgamma: Tensor
    gamma_dgamma: Tensor


class Gamma(ABC):
    """A width :math:`\\gamma(t)`; ``zero`` says that it vanishes everywhere (no noise is drawn)."""

    zero: bool = False

    @abstractmethod
    def __call__(self, t: Tensor) -> Width:
        """Width, rate and product at times ``t`` in [0, 1], finite at both ends."""


def check_gamma(owner: object, gamma: Gamma) -> None:
    """Refuse what is no width.

    Raises:
        TypeError: with what is allowed.
    """
    if not isinstance(gamma, Gamma):
        raise TypeError(
            f"{name_of(owner)}(gamma={gamma!r}): gamma must be a width, such as Brownian() or Zero()"
        )


@dataclass(frozen=True)
class Zero(Gamma):
    """No width: :math:`\\gamma = 0`, a deterministic path between the endpoints."""

    zero = True

    def __call__(self, t: Tensor) -> Width:
        nothing = torch.zeros_like(t)
        return Width(nothing, nothing, nothing)


@dataclass(frozen=True)
class Constant(Gamma):
    r""":math:`\gamma = \sigma`: the marginals become :math:`\rho_i * N(0, \sigma^2)`.

    Args:
        sigma: the width, zero or positive.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        non_negative(self, sigma=self.sigma)

    def __call__(self, t: Tensor) -> Width:
        nothing = torch.zeros_like(t)
        return Width(torch.full_like(t, self.sigma), nothing, nothing)


@dataclass(frozen=True)
class Brownian(Gamma):
    r""":math:`\gamma = \sqrt{a\,t(1-t)}`, :math:`\gamma\dot\gamma = a(1-2t)/2`.

    The rate diverges at both ends; there the value at distance ``finfo.eps`` from the end is
    given, so that it stays finite. Draw times with a margin when learning the velocity.

    Args:
        a: variance per unit time of the bridge, positive.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        positive(self, a=self.a)

    def __call__(self, t: Tensor) -> Width:
        variance = self.a * t * (1 - t)
        product = self.a * (1 - 2 * t) / 2
        floor = self.a * torch.finfo(t.dtype).eps
        return Width(variance.sqrt(), product / variance.clamp_min(floor).sqrt(), product)


@dataclass(frozen=True)
class Quadratic(Gamma):
    r""":math:`\gamma = t(1-t)`, smooth at both ends."""

    def __call__(self, t: Tensor) -> Width:
        gamma, rate = t * (1 - t), 1 - 2 * t
        return Width(gamma, rate, gamma * rate)


@dataclass(frozen=True)
class SinSquared(Gamma):
    r""":math:`\gamma = \sin^2 \pi t`, smooth at both ends, 1 in the middle."""

    def __call__(self, t: Tensor) -> Width:
        gamma, rate = torch.sin(math.pi * t) ** 2, math.pi * torch.sin(2 * math.pi * t)
        return Width(gamma, rate, gamma * rate)


@dataclass(frozen=True)
class SigmaDifference(Gamma):
    r"""Difference of sigmoids :math:`\varsigma(f(t-\frac12)+1)-\varsigma(f(t-\frac12)-1)`, shifted
    to vanish at both ends.

    Args:
        f: steepness, positive.
    """

    f: float = 10.0

    def __post_init__(self) -> None:
        positive(self, f=self.f)

    def __call__(self, t: Tensor) -> Width:
        middle = self.f * (t - 0.5)
        plus, minus = torch.sigmoid(middle + 1), torch.sigmoid(middle - 1)
        end = torch.as_tensor(-self.f / 2, dtype=t.dtype, device=t.device)
        gamma = plus - minus - torch.sigmoid(end + 1) + torch.sigmoid(end - 1)
        gamma = gamma.clamp_min(0)  # rounding may leave -1e-8 at the ends
        rate = self.f * (plus * (1 - plus) - minus * (1 - minus))
        return Width(gamma, rate, gamma * rate)
