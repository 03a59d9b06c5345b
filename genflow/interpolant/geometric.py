r"""Multiplicative noise: geometric Brownian motion from data to noise, read from noise to data.

On its own clock :math:`s = 1 - t` the motion is :math:`dX = \mu X ds + \sigma X \odot dW` (Ito), so
that :math:`\log X_s | X_0 \sim N(\log X_0 + M(s), V(s))` with :math:`M = \int \mu - \sigma^2/2` and
:math:`V = \int \sigma^2` (multiplicative denoising score matching: Shetty et al. 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.checks import between, one_of
from genflow.interpolant.base import Interpolant, PathSample, width_floor
from genflow.interpolant.volatility import GeometricVolatility, Volatility, check_volatility
from genflow.tensors import check_positive, expand, path_time, randn_like

DRIFTS = ("median", "martingale")
WIDEST = 6
"""Standard deviations of noise that must stay within what a dtype holds."""


class Law(NamedTuple):
    """What the motion is at some times: the mean and variance that log-data have gained, and the rates
    ``mu`` and ``squared`` (of sigma) there; each of the shape of the times."""

    mean: Tensor
    variance: Tensor
    mu: Tensor
    squared: Tensor


class GeometricSample(PathSample):
    """A draw of positive numbers; ``gamma`` is the width of their logarithms. Rates are formed when
    asked for: learning the noise needs none."""

    def __init__(
        self,
        t: Tensor,
        x: Tensor,
        xs: tuple[Tensor, ...],
        noise: Tensor,
        gamma: Tensor,
        interpolant: GeometricBrownian,
    ) -> None:
        given = {"t": t, "x": x, "xs": xs, "noise": noise, "gamma": gamma, "interpolant": interpolant}
        self.__dict__.update(given)

    @property
    def _law(self) -> Law:
        return self.interpolant.law(expand(self.t, self.x))

    @property
    def rate(self) -> Tensor:
        law = self._law
        return self.x * (law.squared / 2 - law.mu)

    @property
    def gamma_dgamma(self) -> Tensor:
        return -self._law.squared / 2

    @property
    def dgamma(self) -> Tensor:
        return self.gamma_dgamma / width_floor(self.gamma)

    @property
    def velocity(self) -> Tensor:
        return self.rate + self.dgamma * self.noise * self.x

    @property
    def hyvarinen(self) -> Tensor:
        r"""Conditional Hyvarinen score :math:`x \odot \nabla_x \log p(x|x_1) = -1 - z/\sqrt V`."""
        return -1 - self.noise / width_floor(self.gamma)

    @property
    def score(self) -> Tensor:
        return self.hyvarinen / self.x

    @property
    def reflected(self) -> GeometricSample:
        x = self.x * torch.exp(-2 * self.gamma * self.noise)
        return GeometricSample(self.t, x, self.xs, -self.noise, self.gamma, self.interpolant)


@dataclass(frozen=True)
class GeometricBrownian(Interpolant):
    r"""Data times log-normal noise, :math:`x_t = x_1 \odot e^{M + \sqrt V z}` at :math:`s = 1 - t`.

    ``x0`` is ignored: the noise is drawn here. Data must be positive; ``genflow.transform.Positive``
    makes them so. ``Matching(GeometricBrownian(), target=Noise())`` is multiplicative denoising score
    matching with weight V, ``target=Hyvarinen()`` the same without weight.

    Args:
        volatility: :math:`\sigma(s)`.
        drift: ``"median"`` (:math:`\mu = \sigma^2/2`, which keeps medians), ``"martingale"``
            (:math:`\mu = 0`, which keeps means), a number for a constant :math:`\mu`, or an object with
            ``rate(s)`` and ``integral(s)``. It only shifts logarithms.

    Raises:
        TypeError, ValueError: for a volatility or a drift that is none, an infinite integral of
            :math:`\sigma^2`, and in ``sample`` and ``prepare`` for data that are not positive.
    """

    volatility: Volatility = field(default_factory=GeometricVolatility)
    drift: object = "median"
    stochastic = True
    independent = True
    additive = False

    def __post_init__(self) -> None:
        check_volatility(self, self.volatility)
        if isinstance(self.drift, str):
            one_of(self, DRIFTS, drift=self.drift)
        elif isinstance(self.drift, Real):
            between(self, -math.inf, math.inf, drift=self.drift)
        elif not (hasattr(self.drift, "rate") and hasattr(self.drift, "integral")):
            raise TypeError(
                f"GeometricBrownian(drift={self.drift!r}): drift must be 'median', 'martingale', a "
                f"number or an object with rate(s) and integral(s)"
            )

    def law(self, t: Tensor) -> Law:
        """The law of log-data at times ``t`` of any shape, noise at 0 and data at 1."""
        s, squared = 1 - t, self.volatility.squared(1 - t)
        if self.drift == "median":
            mu = squared / 2
        elif self.drift == "martingale":
            mu = torch.zeros_like(s)
        else:
            number = isinstance(self.drift, Real)
            mu = torch.full_like(s, self.drift) if number else self.drift.rate(s)
        mean, variance = self.gained(t)
        return Law(mean + torch.zeros_like(s), variance, mu, squared)

    def gained(self, t: Tensor) -> tuple[Tensor | float, Tensor]:
        """Mean and variance of :meth:`law` alone."""
        s = 1 - t
        variance = self.volatility.variance(s)
        if self.drift == "median":
            return 0.0, variance
        if self.drift == "martingale":
            return -variance / 2, variance
        gain = self.drift * s if isinstance(self.drift, Real) else self.drift.integral(s)
        return gain - variance / 2, variance

    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GeometricSample:
        if len(xs) != 2 or xs[0].shape != xs[1].shape:
            shapes = [tuple(x.shape) for x in xs]
            raise ValueError(
                f"GeometricBrownian takes x0 (which it ignores) and x1 of one shape, got {shapes}"
            )
        x1 = xs[1]
        check_positive("GeometricBrownian: x1", x1)
        t = path_time(t, x1)
        mean, variance = self.gained(expand(t, x1))
        noise = randn_like(x1, generator) if noise is None else noise
        gamma = variance.clamp_min(0).sqrt()
        x = x1 * torch.exp(gamma * noise + mean)
        return GeometricSample(t, x, (x1, x1), noise, gamma, self)

    def prepare(self, *xs: Tensor, cond: object = None) -> GeometricBrownian:
        """Refuse data that are not positive, and noise that takes them past what their dtype holds."""
        check_positive("GeometricBrownian: x1", xs[-1], wait=True)
        law = self.law(torch.zeros((), dtype=torch.float64))
        width, limits = WIDEST * float(law.variance) ** 0.5, torch.finfo(xs[-1].dtype)
        low, high = (float(v.double().log() + law.mean) for v in torch.aminmax(xs[-1]))
        if low - width < math.log(limits.tiny) or high + width > math.log(limits.max):
            raise ValueError(
                f"{self}: the noise takes logarithms of data from {low - width:.3g} to "
                f"{high + width:.3g}, but {str(xs[-1].dtype)[6:]} holds {math.log(limits.tiny):.3g} to "
                f"{math.log(limits.max):.3g}: lower volatility.sigma_max, to about five standard "
                "deviations of log-data, or compute in float64"
            )
        return self
