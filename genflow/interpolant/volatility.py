r"""How strongly a geometric Brownian motion is shaken, :math:`\sigma(s)`, as its clock ``s`` runs from
data at 0 to noise at 1; and the integral that its law needs, both in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import positive


class Volatility(ABC):
    r""":math:`\sigma(s)` with its integral; one of your own gives these two methods."""

    @abstractmethod
    def squared(self, s: Tensor) -> Tensor:
        r""":math:`\sigma(s)^2`, of the shape of ``s``."""

    @abstractmethod
    def variance(self, s: Tensor) -> Tensor:
        r""":math:`V(s) = \int_0^s \sigma(r)^2 dr`: zero at 0, rising, finite at 1."""


@dataclass(frozen=True)
class ConstantVolatility(Volatility):
    r"""The same :math:`\sigma` throughout, :math:`V(s) = \sigma^2 s`: for toys and single scales.

    Args:
        sigma: positive.
    """

    sigma: float = 1.5

    def __post_init__(self) -> None:
        positive(self, sigma=self.sigma)

    def squared(self, s: Tensor) -> Tensor:
        return torch.full_like(s, self.sigma**2)

    def variance(self, s: Tensor) -> Tensor:
        return self.sigma**2 * s


@dataclass(frozen=True)
class GeometricVolatility(Volatility):
    r"""Every scale of noise gets the same share of the time,
    :math:`V(s) = \sigma_{min}^2 [(\sigma_{max}/\sigma_{min})^{2s} - 1]` (the variance-exploding
    schedule of Song et al. 2021, here of log-data).

    Args:
        sigma_min: about the smallest scale of log-data that matters.
        sigma_max: about five standard deviations of log-data or more, above ``sigma_min``.
    """

    sigma_min: float = 0.02
    sigma_max: float = 2.5

    def __post_init__(self) -> None:
        positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"GeometricVolatility(sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}): "
                "sigma_max must be above sigma_min"
            )

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def squared(self, s: Tensor) -> Tensor:
        return self._rate * self.sigma_min**2 * torch.exp(self._rate * s)

    def variance(self, s: Tensor) -> Tensor:
        return self.sigma_min**2 * torch.expm1(self._rate * s)


def check_volatility(owner: object, volatility: Volatility) -> None:
    """Refuse what is no volatility, or whose integral is not finite, does not start at zero, falls, or
    is that of something else.

    Raises:
        TypeError, ValueError: one sentence.
    """
    name = type(owner).__name__
    if not isinstance(volatility, Volatility):
        raise TypeError(f"{name}(volatility={volatility!r}): volatility must be a Volatility")
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    variance, squared = volatility.variance(grid), volatility.squared(grid)
    where = f"{name}(volatility={volatility!r})"
    if not bool(variance.isfinite().all() & squared.isfinite().all()):
        raise ValueError(
            f"{where}: the integral of sigma^2 over [0, 1] must be finite, but variance(s) or "
            f"squared(s) is not"
        )
    if abs(float(variance[0])) > 1e-9 * float(variance[-1]) or not bool((variance.diff() > 0).all()):
        raise ValueError(f"{where}: variance(s) must rise from 0 at s = 0")
    middle = (grid[1:] + grid[:-1]) / 2
    found, step = variance.diff() / grid.diff(), volatility.squared(middle)
    if bool(((found - step).abs() > 0.05 * step + 1e-9).any()):
        raise ValueError(f"{where}: variance(s) must be the integral of squared(s)")
