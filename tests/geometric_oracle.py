"""Log-normal mixtures under geometric Brownian motion, from the formulas alone: an oracle in float64
that shares no code with the library. Its clock is ``s``, data at 0 and noise at 1; integrals are
quadratures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from genflow.interpolant import (
    ConstantVolatility,
    GeometricBrownian,
    GeometricVolatility,
    Volatility,
)
from genflow.process import ReversedGeometric

NODES, SHARES = np.polynomial.legendre.leggauss(40)


class Clock(NamedTuple):
    """``dX = mu(s) X ds + sigma(s) X dW`` (Ito)."""

    squared: Callable[[float], float]
    mu: Callable[[float], float]

    def between(self, a: float, b: float) -> tuple[float, float]:
        """Mean and variance that ``log X`` gains from ``a`` to ``b``."""
        points = (a + b) / 2 + (b - a) / 2 * NODES
        squared, mu = (np.array([f(p) for p in points]) for f in self)
        return (
            float((b - a) / 2 * SHARES @ (mu - squared / 2)),
            float((b - a) / 2 * SHARES @ squared),
        )

    @cache  # noqa: B019
    def gained(self, s: float) -> tuple[float, float]:
        return self.between(0.0, float(s))


@dataclass(frozen=True)
class Wave:
    """A drift of the user's own, ``mu(s) = a cos(3 s)``."""

    a: float = 0.8

    def rate(self, s):
        return self.a * torch.cos(3 * s)

    def integral(self, s):
        return self.a * torch.sin(3 * s) / 3


@dataclass(frozen=True)
class Growing(Volatility):
    """A volatility of the user's own, ``sigma(s)^2 = 1 + 3 s``."""

    def squared(self, s):
        return 1 + 3 * s

    def variance(self, s):
        return s + 1.5 * s * s


SQUARED = {
    "constant": (ConstantVolatility(1.5), lambda s: 2.25),
    "geometric": (
        GeometricVolatility(0.05, 3.0),
        lambda s: 2 * math.log(60.0) * (0.05 * 60.0**s) ** 2,
    ),
    "own": (Growing(), lambda s: 1 + 3 * s),
    "slow": (ConstantVolatility(1.2), lambda s: 1.44),
}
DRIFTS = {
    "median": ("median", lambda squared: lambda s: squared(s) / 2),
    "martingale": ("martingale", lambda squared: lambda s: 0.0),
    "number": (0.7, lambda squared: lambda s: 0.7),
    "object": (Wave(), lambda squared: lambda s: 0.8 * math.cos(3 * s)),
}

MOTIONS = [
    ("constant", "median"), ("geometric", "martingale"), ("own", "number"), ("constant", "object"),
    ("geometric", "median"), ("own", "martingale"),
]  # fmt: skip


def motion(volatility: str = "constant", drift: str = "median") -> tuple[GeometricBrownian, Clock]:
    """The library's interpolant, and the same motion here."""
    part, squared = SQUARED[volatility]
    given, rate = DRIFTS[drift]
    return GeometricBrownian(part, given), Clock(squared, rate(squared))


class Mixture(NamedTuple):
    """``exp`` of a mixture of Gaussians with diagonal covariances; rows ``(n, d)``."""

    means: list
    stds: list
    weights: list

    def logs(self, gained: tuple[float, float] = (0.0, 0.0)):
        """The law of the logarithm after a gain of mean and variance, a distribution of torch's."""
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in self)
        covs = torch.diag_embed(stds.square() + gained[1])
        parts = MultivariateNormal(means + gained[0], covs)
        return MixtureSameFamily(Categorical(weights / weights.sum()), parts)

    def log_density(self, x: Tensor, gained: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        return self.logs(gained).log_prob(x.log()) - x.log().sum(-1)

    def parts(self, x: Tensor, gained: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities ``(n, K)``, deviations of logarithms ``(n, K, d)``, variances ``(K, d)``."""
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in self)
        variance = stds.square() + gained[1]
        gap = x.log()[:, None] - means - gained[0]
        logs = weights.log() - 0.5 * (gap.square() / variance + variance.log()).sum(-1)
        return torch.softmax(logs, 1), gap, variance

    def hyvarinen(self, x: Tensor, gained: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """``x grad log p``: minus one and the mean pull of the components."""
        shares, gap, variance = self.parts(x, gained)
        return -1 - torch.einsum("nk,nkd->nd", shares, gap / variance)

    def log_denoised(self, x: Tensor, gained: tuple[float, float]) -> Tensor:
        """``E[log X_0 | X_s = x]`` by regression in each component, without Tweedie's formula."""
        means, stds, _ = (torch.tensor(v, dtype=torch.float64) for v in self)
        shares, gap, variance = self.parts(x, gained)
        return torch.einsum("nk,nkd->nd", shares, means + stds.square() / variance * gap)

    def cdf(self, x: Tensor, k: int = 0, gained: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Distribution function of coordinate ``k``."""
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in self)
        law = Normal(means[:, k] + gained[0], (stds[:, k] ** 2 + gained[1]).sqrt())
        return law.cdf(x.log()[:, None]) @ (weights / weights.sum())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logarithm, by coordinates."""
        law = self.logs()
        return law.mean, law.variance

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in self)
        which = torch.multinomial(weights, n, True, generator=generator)
        z = torch.randn(n, means.shape[1], generator=generator, dtype=torch.float64)
        return torch.exp(means[which] + stds[which] * z)

    def prior(self, n: int, gained: tuple[float, float], generator: torch.Generator) -> Tensor:
        """Draws of the exact law after the gain."""
        z = torch.randn(n, len(self.means[0]), generator=generator, dtype=torch.float64)
        return self.sample(n, generator) * torch.exp(gained[0] + gained[1] ** 0.5 * z)


LINE = Mixture([[-0.8], [0.8]], [[0.3], [0.2]], [0.35, 0.65])
PLANE = Mixture(
    [[-1.0, 0.8], [0.9, -0.5], [0.6, 1.2]], [[0.3, 0.4], [0.4, 0.25], [0.2, 0.3]], [0.5, 0.3, 0.2]
)
SINGLE = Mixture([[0.4]], [[0.55]], [1.0])


class ExactField(nn.Module):
    """The exact Hyvarinen score as a network on raw inputs; ``change`` makes a mistake of it.

    All rows share one time, as they do in a solver, or not; each time is looked up by itself.
    """

    def __init__(self, law: Mixture, clock: Clock, change=None) -> None:
        super().__init__()
        self.law, self.clock, self.change = law, clock, change or (lambda s, x, h: h)
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        times = (1 - t.double()).reshape(-1).expand(len(x))
        flat, out = x.double().flatten(1), []
        if bool((times == times[0]).all()):
            s = float(times[0])
            out = self.change(s, flat, self.law.hyvarinen(flat, self.clock.gained(s)))
        else:
            rows = [
                self.law.hyvarinen(flat[i : i + 1], self.clock.gained(s)) for i, s in enumerate(times)
            ]
            out = self.change(times[:, None], flat, torch.cat(rows))
        return out.reshape(x.shape).to(x)


def ks(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """Largest distance of an empirical distribution function from the exact one; what is not positive
    counts as below everything."""
    x = torch.where(x > 0, x, 1e-300).double().sort().values
    exact, n = cdf(x), len(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - exact, exact - steps[:-1]).max())


def ks_each(x: Tensor, law: Mixture) -> float:
    """The largest over coordinates."""
    return max(ks(x[:, k], lambda v, k=k: law.cdf(v, k)) for k in range(x.shape[1]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, want, atol=tolerance, rtol=tolerance)


def exactly(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def reverse(law, name=("constant", "median"), kind=ReversedGeometric, change=None, **options):
    """The process of the exact score, or of a ``change`` of it."""
    path, clock = motion(*name)
    options = {"predicts": "hyvarinen", "inputs": "raw", "skip": False, "closest": 1e-6} | options
    return kind(ExactField(law, clock, change), path, **options).double()
