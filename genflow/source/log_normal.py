"""Log-normal laws: the prior of multiplicative diffusion, and mixtures to test it on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.interpolant.geometric import GeometricBrownian
from genflow.source.base import Source
from genflow.source.mixture import GaussianMixture
from genflow.source.toys import Labelled
from genflow.tensors import as_shape, check_positive, expand, sum_event


class LogNormal(Source):
    r"""What a geometric Brownian motion has made of the data at its end, as a log-normal law of the
    right moments: :math:`\log x_0 \sim N(m + M, V + v)`, with mean ``m`` and variance ``v`` of each
    coordinate of log-data.

    The motion never forgets its start, so that a prior of variance V alone would be off by up to
    :math:`tr\,Cov(\log x_1)/2V` nats; with the moments matched the rest is what log-data differ from a
    Gaussian, blurred by V. A model's ``prepare`` measures them; they are saved with it.

    Args:
        dim: event shape, ``2`` or ``[1, 28, 28]``.
        interpolant: the motion.
    """

    latent = True

    def __init__(self, dim: int | Sequence[int], interpolant: GeometricBrownian) -> None:
        super().__init__()
        if not isinstance(interpolant, GeometricBrownian):
            raise TypeError(
                f"LogNormal(interpolant={interpolant!r}): interpolant must be a GeometricBrownian"
            )
        self.dim, self.interpolant = dim, interpolant
        self.shape = as_shape(dim)
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("var", torch.zeros(self.shape))

    @torch.no_grad()
    def match(self, x1: Tensor) -> LogNormal:
        """Measure mean and variance of log-data ``(n, *d)``, in place.

        Raises:
            ValueError: for data that are not positive, or of another event shape.
        """
        check_positive("LogNormal: the data", x1, wait=True)
        if x1.shape[1:] != self.shape:
            raise ValueError(
                f"LogNormal(dim={self.dim}) got data of event shape {tuple(x1.shape[1:])}; set dim to "
                f"{list(x1.shape[1:])}"
            )
        y = x1.double().log()
        self.mean.copy_(y.mean(0))
        self.var.copy_(y.var(0, correction=0))
        return self

    def _moments(self) -> tuple[Tensor, Tensor]:
        law = self.interpolant.law(torch.zeros((), dtype=torch.float64))
        return self.mean + float(law.mean), (self.var + float(law.variance)).sqrt()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        mean, std = self._moments()
        return torch.exp(mean + std * self._normal((n, *self.shape), generator))

    def log_prob(self, x: Tensor) -> Tensor:
        mean, std = self._moments()
        y = x.log()
        constant = std.log() + 0.5 * math.log(2 * math.pi)
        return sum_event(-0.5 * ((y - mean) / std) ** 2 - constant - y)


class LogNormalMixture(Labelled):
    """Exponentials of a Gaussian mixture: a law of positive numbers whose every noised version is
    known.

    Args:
        means, covariances, weights: of the logarithms, as in :class:`GaussianMixture`.
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        covariances: float | Sequence[float] | Sequence[Sequence[Sequence[float]]] = 1.0,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self._logs = GaussianMixture(means, covariances, weights)
        self.means, self.covariances = self._logs.means, self._logs.covariances
        self.weights, self.shape = self._logs.weights, self._logs.shape
        shares, centres, spreads = self._logs.components()
        self._modes = shares, centres, *torch.linalg.eigh(spreads)  # float64, wherever the module goes

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        y, which = self._logs.sample_labelled(n, generator)
        return y.exp(), which

    def log_prob(self, x: Tensor) -> Tensor:
        y = x.log()
        return self._logs.log_prob(y) - sum_event(y)

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function of each coordinate by itself, ``(n, d)`` in float64."""
        shares, means, covariances = (v.to(x.device) for v in self._logs.components())
        std = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        y = x.double().clamp_min(0).log().unsqueeze(1)
        return (shares[:, None] * torch.special.ndtr((y - means) / std)).sum(1)

    def hyvarinen(self, t: Tensor, x: Tensor, interpolant: GeometricBrownian) -> Tensor:
        r"""Exact Hyvarinen score of the law of ``interpolant`` at times ``t (B,)``, at ``x (B, d)``."""
        law = interpolant.law(t.double())
        shares, centres, values, axes = (v.to(x.device) for v in self._modes)
        apart = x.double().log().unsqueeze(1) - centres - expand(law.mean, centres[None])
        inside = torch.einsum("kij,bki->bkj", axes, apart)
        spread = values + expand(law.variance, values[None])
        logs = -0.5 * (inside.square() / spread + spread.log()).sum(-1) + shares.log()
        pull = torch.einsum("kij,bkj->bki", axes, inside / spread)
        return (-1 - (logs.softmax(1).unsqueeze(-1) * pull).sum(1)).to(x)
