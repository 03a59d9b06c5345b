r"""Interpolants whose noise stands where the other endpoint would: one-sided and mirror paths.

Both read :math:`x_t = \beta x_1 + \gamma z`. Only one endpoint enters, so that each of velocity, score,
noise and denoised data determines the others; with pairs that are not independent this would be wrong,
and they are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genflow.interpolant.affine import Linear
from genflow.interpolant.base import Affine, Coefficients, PathSample
from genflow.interpolant.gamma import Brownian, Gamma, check_gamma
from genflow.tensors import sum_event

SPREAD = 6.0
"""Standard errors by which moments of a standard normal source may be off."""


@dataclass(frozen=True)
class OneSided(Affine):
    r"""A path from standard normal noise: ``x0`` *is* the noise, :math:`x_t = \alpha x_0 + \beta x_1`
    (Albergo, Boffi & Vanden-Eijnden 2023; with ``Linear()`` rectified flow from noise, with
    ``Trigonometric()`` a variance-preserving diffusion).

    The coefficient :math:`\alpha` of ``path`` is the width of the noise: ``coefficients`` give it as
    ``gamma``, beside ``alpha = 0``. The velocity's network is therefore a score's too, and can be
    sampled with any ``epsilon``.

    Args:
        path: gives :math:`\alpha, \beta`; a path of zero width.

    Raises:
        ValueError: for a path with a width of its own; from ``prepare``, for an ``x0`` that is not
            standard normal or depends on ``x1``.
    """

    path: Affine = field(default_factory=Linear)
    stochastic = True
    independent = True

    def __post_init__(self) -> None:
        if not isinstance(self.path, Affine) or self.path.stochastic or self.path.independent:
            raise ValueError(
                f"OneSided(path={self.path}): its noise is x0 itself, so path must be an affine one of "
                "zero width, such as Linear() or Trigonometric()"
            )

    def coefficients(self, t: Tensor) -> Coefficients:
        c = self.path.coefficients(t)
        zero = torch.zeros_like(t)
        return Coefficients(zero, c.beta, c.alpha, zero, c.dbeta, c.dalpha, c.alpha * c.dalpha)

    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """As for any interpolant; ``noise`` stands in for ``x0``, the noise if it is absent."""
        x0, x1 = self._ends(xs)
        x0 = x0 if noise is None else noise
        return super().sample(t, x0, x1, noise=x0)

    @torch.no_grad()
    def prepare(self, *xs: Tensor, cond: object = None) -> OneSided:
        """Refuse a source whose samples are not standard normal, or are paired with the data."""
        z = xs[0].flatten(1).double()
        n = len(z)
        # coordinates are judged together: their number must not raise false alarms
        mean, spread = float(z.mean(0).abs().max()), float((z.var(0) - 1).abs().max())
        room = SPREAD * (2 / n) ** 0.5 + 0.01
        if n >= 100 and (mean > room or spread > 1.5 * room):
            raise ValueError(
                f"OneSided needs a standard normal x0; its mean is off by {mean:.2g} and its variance "
                f"by {spread:.2g}: use source=gaussian, or an interpolant with a gamma"
            )
        y = xs[-1].flatten(1).double()
        if n >= 100 and len(y) == n:
            along = sum_event((z - z.mean(0)) * (y - y.mean(0)))
            if abs(float(along.mean())) > SPREAD * float(along.std()) / n**0.5 + 1e-12:
                raise ValueError(
                    "OneSided needs an x0 that is independent of x1, but their rows are correlated; "
                    "use an interpolant with a gamma for paired data"
                )
        return self


@dataclass(frozen=True)
class Mirror(Affine):
    r"""Data to itself through noise: :math:`x_t = x_1 + \gamma(t) z`, so that both ends are the data
    (Albergo, Boffi & Vanden-Eijnden 2023).

    ``x0`` is ignored by training. The ODE of a symmetric width is the identity; sampled with an
    ``epsilon`` above zero, starts from the data become new samples of it.

    Args:
        gamma: the width; it must not be zero throughout.

    Raises:
        ValueError: for a width of zero; from ``prepare``, for an ``x0`` of another law than the data.
    """

    gamma: Gamma = field(default_factory=Brownian)
    stochastic = True
    independent = True

    def __post_init__(self) -> None:
        check_gamma(self, self.gamma)
        if self.gamma.zero:
            raise ValueError(
                f"Mirror(gamma={self.gamma}): without width the path stands still; use Brownian(), "
                "Quadratic() or SinSquared()"
            )

    def coefficients(self, t: Tensor) -> Coefficients:
        width = self.gamma(t)
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return Coefficients(zero, one, width.gamma, zero, zero, width.dgamma, width.gamma_dgamma)

    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """As for any interpolant; ``x0`` is ignored, both ends are ``x1``."""
        x1 = self._ends(xs)[1]
        return super().sample(t, x1, x1, noise=noise, generator=generator)

    @torch.no_grad()
    def prepare(self, *xs: Tensor, cond: object = None) -> Mirror:
        """Refuse a source whose samples are not those of the data, by their moments."""
        x0, x1 = (x.flatten(1).double() for x in (xs[0], xs[-1]))
        n, centre = min(len(x0), len(x1)), torch.cat([x0, x1]).mean(0)
        first, second = (_apart((x0 - centre) ** k, (x1 - centre) ** k) for k in (1, 2))
        if n >= 100 and max(first, second) > SPREAD * (2 / n) ** 0.5 + 0.05:
            raise ValueError(
                f"Mirror starts from data, but the means of x0 and x1 differ by {first:.2g} standard "
                f"deviations and those of their squares by {second:.2g}; let the source be the law of "
                "the data"
            )
        return self


def _apart(x0: Tensor, x1: Tensor) -> float:
    """Largest difference of means, in standard deviations of both together."""
    scale = torch.cat([x0, x1]).std(0).clamp_min(1e-12)  # pixels that are always black differ by none
    return float(((x0.mean(0) - x1.mean(0)).abs() / scale).max())
