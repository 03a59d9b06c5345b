r"""The affine interpolants :math:`x_t = \alpha(t) x_0 + \beta(t) x_1 + \gamma(t) z`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genflow.checks import non_negative, positive
from genflow.interpolant.base import Affine, Coefficients, PathSample
from genflow.interpolant.gamma import Brownian, Constant, Gamma, Zero, check_gamma
from genflow.tensors import expand, path_time


@dataclass(frozen=True)
class Linear(Affine):
    r"""Straight lines, :math:`\alpha = 1-t,\ \beta = t`.

    Without width this is rectified flow and plain CFM (Liu et al. 2023; Lipman et al. 2023;
    Albergo & Vanden-Eijnden 2023), with ``sigma`` the I-CFM of Tong et al. (2024).

    Args:
        sigma: constant extra width; the marginals at both ends are then blurred by it.
        gamma: a width that vanishes at both ends, such as ``Brownian()``. Give one of the two.
    """

    sigma: float = 0.0
    gamma: Gamma = field(default_factory=Zero)

    def __post_init__(self) -> None:
        non_negative(self, sigma=self.sigma)
        check_gamma(self, self.gamma)
        if self.sigma > 0 and not self.gamma.zero:
            raise ValueError(
                f"Linear(sigma={self.sigma}, gamma={self.gamma}): give a constant width (sigma) "
                "or a width that vanishes at the ends (gamma), not both"
            )

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0 or not self.gamma.zero

    def coefficients(self, t: Tensor) -> Coefficients:
        width = (Constant(self.sigma) if self.sigma > 0 else self.gamma)(t)
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, width.gamma, -one, one, width.dgamma, width.gamma_dgamma)

    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        if self.stochastic:
            return super().sample(t, *xs, noise=noise, generator=generator)
        # the commonest path of all: two kernels instead of nine
        x0, x1 = self._ends(xs)
        t = path_time(t, x1)
        rate, nothing = x1 - x0, x1.new_zeros(())
        wide = expand(t, x1)
        x, width = torch.addcmul(x0, wide, rate), nothing.expand_as(wide)
        return PathSample(t, x, (x0, x1), rate, nothing.expand_as(x1), width, width, width, False)


@dataclass(frozen=True)
class BrownianBridge(Affine):
    r"""The Brownian bridge: straight lines with :math:`\gamma = \sigma\sqrt{t(1-t)}`.

    The path of Schrödinger-bridge CFM and [SF]2M (Tong et al. 2024) and of bridge matching.

    Args:
        sigma: diffusion coefficient of the reference :math:`dX = \sigma dW`, positive.
    """

    sigma: float = 1.0
    stochastic = True

    def __post_init__(self) -> None:
        positive(self, sigma=self.sigma)

    def coefficients(self, t: Tensor) -> Coefficients:
        return Linear(gamma=Brownian(self.sigma**2)).coefficients(t)


@dataclass(frozen=True)
class Trigonometric(Affine):
    r""":math:`\alpha = \cos\frac{\pi t}2,\ \beta = \sin\frac{\pi t}2` (VP-CFM where ``gamma`` is zero).

    Args:
        gamma: a width that vanishes at both ends.
    """

    gamma: Gamma = field(default_factory=Zero)

    def __post_init__(self) -> None:
        check_gamma(self, self.gamma)

    @property
    def stochastic(self) -> bool:
        return not self.gamma.zero

    def coefficients(self, t: Tensor) -> Coefficients:
        cos, sin = _quarter_turn(t)
        gamma, dgamma, gamma_dgamma = self.gamma(t)
        turn = math.pi / 2
        return Coefficients(cos, sin, gamma, -turn * sin, turn * cos, dgamma, gamma_dgamma)


@dataclass(frozen=True)
class VariancePreserving(Affine):
    r"""The unit-variance trigonometric path:
    :math:`(\alpha,\beta) = \sqrt{1-\gamma^2}\,(\cos\frac{\pi t}2, \sin\frac{\pi t}2)`.

    :math:`\alpha^2+\beta^2+\gamma^2 = 1`, so independent endpoints of unit variance keep it.

    Args:
        gamma: a width below 1 everywhere; a width that reaches 1 would erase both endpoints.
    """

    gamma: Gamma = field(default_factory=Brownian)

    def __post_init__(self) -> None:
        check_gamma(self, self.gamma)
        grid = torch.linspace(0, 1, 201, dtype=torch.float64)
        if self.gamma(grid).gamma.max() > 1 - 1e-6:
            raise ValueError(
                f"VariancePreserving(gamma={self.gamma}): gamma reaches 1, where sqrt(1 - gamma^2) "
                "has a kink and the endpoints vanish; use a width below 1, such as Brownian(a) "
                "with a < 4"
            )

    @property
    def stochastic(self) -> bool:
        return not self.gamma.zero

    def coefficients(self, t: Tensor) -> Coefficients:
        width = self.gamma(t)
        radius = (1 - width.gamma**2).sqrt()
        dradius = -width.gamma_dgamma / radius
        cos, sin = _quarter_turn(t)
        turn = math.pi / 2 * radius
        return Coefficients(
            radius * cos, radius * sin, width.gamma,
            dradius * cos - turn * sin, dradius * sin + turn * cos,
            width.dgamma, width.gamma_dgamma,
        )  # fmt: skip


@dataclass(frozen=True)
class EncoderDecoder(Affine):
    r"""Encoding-decoding: :math:`\alpha = \cos^2(\pi t)` until :math:`t = \frac12`, then
    :math:`\beta = \cos^2(\pi t)`; the middle is pure noise.

    Args:
        gamma: a width that does not vanish at :math:`t = \frac12`.
    """

    gamma: Gamma = field(default_factory=Brownian)
    stochastic = True

    def __post_init__(self) -> None:
        check_gamma(self, self.gamma)
        if self.gamma(torch.tensor([0.5], dtype=torch.float64)).gamma <= 0:
            raise ValueError(
                f"EncoderDecoder(gamma={self.gamma}): both endpoints vanish at t = 1/2, so gamma "
                "must be positive there; use gamma=Brownian(), Quadratic() or SinSquared()"
            )

    def coefficients(self, t: Tensor) -> Coefficients:
        width, first = self.gamma(t), t < 0.5
        value, rate = torch.cos(math.pi * t) ** 2, -math.pi * torch.sin(2 * math.pi * t)
        nothing = torch.zeros_like(t)
        return Coefficients(
            torch.where(first, value, nothing), torch.where(first, nothing, value), width.gamma,
            torch.where(first, rate, nothing), torch.where(first, nothing, rate),
            width.dgamma, width.gamma_dgamma,
        )  # fmt: skip


def _quarter_turn(t: Tensor) -> tuple[Tensor, Tensor]:
    """``cos(pi t / 2), sin(pi t / 2)``, exact at both ends (cos(pi/2) rounds to -4e-8)."""
    cos = torch.where(t == 1, torch.zeros_like(t), torch.cos(math.pi / 2 * t))
    return cos, torch.sin(math.pi / 2 * t)
