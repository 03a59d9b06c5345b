"""The published light Schrödinger bridges (LightSB and LightSB-M), written from their formulas.

They cost what theirs cost: the loss broadcasts points, components and coordinates against each other
through ``torch.distributions``; the drift is a gradient by autograd in the form that divides by
``1 - t``; a plan is sampled in small blocks, every component for every point. All of it is float32 and
trained by Adam at a constant rate, from as many points of the target as there are components
(Korotin, Gushchin & Burnaev 2024; Gushchin et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

RATES = {0.1: 1e-3, 1.0: 3e-3, 10.0: 6e-2}
"""The published rates of the mixture benchmark, by epsilon."""
BATCH, STEPS = 128, 10_000
MATCHING_BATCH, MATCHING_RATE, SAFE = 512, 1e-3, 1e-2
"""Of LightSB-M; its times keep ``SAFE`` off the end."""

Draw = Callable[[int], tuple[Tensor, Tensor]]
"""``n`` points of the source and ``n`` of the target, independent of each other."""


class PublishedLightSB(nn.Module):
    r"""The potential :math:`v(y) = \sum_k \alpha_k N(y|r_k, \varepsilon S_k)`, diagonal.

    Args:
        dim, components, epsilon: sizes and the entropic coefficient.
        scale: every :math:`S_k` at the start.
        sampling_batch_size: points whose plan is sampled at once; 1 as published.
    """

    keeps_graph = False

    def __init__(
        self,
        dim: int,
        components: int,
        epsilon: float,
        scale: float = 1.0,
        sampling_batch_size: int = 1,
    ) -> None:
        super().__init__()
        self.dim, self.components, self.epsilon = dim, components, float(epsilon)
        self.sampling_batch_size = sampling_batch_size
        uniform = torch.full((components,), -math.log(components))
        self.log_alpha_raw = nn.Parameter(self.epsilon * uniform)
        self.r = nn.Parameter(torch.randn(components, dim))
        self.log_s = nn.Parameter(torch.full((components, dim), math.log(scale)))

    @property
    def log_alpha(self) -> Tensor:
        """``(K,)``; stored times epsilon, so that Adam's step on it is the rate over epsilon."""
        return self.log_alpha_raw / self.epsilon

    @torch.no_grad()
    def start_at(self, y: Tensor) -> PublishedLightSB:
        """The centres at points of the target ``(K, D)``."""
        self.r.copy_(y)
        return self

    def log_potential(self, y: Tensor) -> Tensor:
        """``log v (B,)``."""
        spread = (self.epsilon * self.log_s.exp()).sqrt()
        law = MixtureSameFamily(
            Categorical(logits=self.log_alpha), Independent(Normal(self.r, spread), 1)
        )
        return law.log_prob(y) + self.log_alpha.logsumexp(0)

    def log_normaliser(self, x: Tensor) -> Tensor:
        """``log c (B,)``."""
        return self._exponents(x).logsumexp(1)

    def _exponents(self, x: Tensor) -> Tensor:
        wide = x[:, None, :]
        square = (wide * self.log_s.exp() * wide).sum(-1)
        return (square + 2 * (wide * self.r).sum(-1)) / (2 * self.epsilon) + self.log_alpha

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The divergence from the true plan up to a constant: mean ``log c`` less mean ``log v``."""
        return self.log_normaliser(x).mean() - self.log_potential(y).mean()

    @torch.no_grad()
    def sample(self, x: Tensor) -> Tensor:
        """A draw of the plan for every row, block by block."""
        return torch.cat([self._plan(block).sample() for block in x.split(self.sampling_batch_size)])

    def _plan(self, x: Tensor) -> MixtureSameFamily:
        s = self.log_s.exp()
        spread = (self.epsilon * s).sqrt().expand(len(x), -1, -1)
        parts = Independent(Normal(self.r + s * x[:, None, :], spread), 1)
        return MixtureSameFamily(Categorical(logits=self._exponents(x)), parts)

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """Drift at ``t (B,)``, below one, and ``x (B, D)``, by autograd."""
        x = x.clone().requires_grad_()
        left, s = 1 - t[:, None], self.log_s.exp()
        with torch.enable_grad():
            precision = (t[:, None] / (self.epsilon * left))[..., None] + 1 / (self.epsilon * s)
            pull = (x / (self.epsilon * left))[:, None, :] + self.r / (self.epsilon * s)
            fixed = self.log_alpha - 0.5 * self.log_s.sum(-1)
            fixed = fixed - 0.5 * (self.r**2 / s).sum(-1) / self.epsilon
            exponents = fixed - 0.5 * precision.log().sum(-1) + 0.5 * (pull**2 / precision).sum(-1)
            total = exponents.logsumexp(1).sum()
            (slope,) = torch.autograd.grad(total, x, create_graph=self.keeps_graph)
        return self.epsilon * slope - x / left

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of ``log alpha (K,)``, ``r (K, D)`` and the diagonals of ``S (K, D)``."""
        parts = self.log_alpha, self.r, self.log_s.exp()
        return tuple(part.detach().clone() for part in parts)


class PublishedLightSBM(PublishedLightSB):
    """Bridge matching with the drift of the potential; ``log alpha`` is stored as it is.

    Args:
        dim, components, epsilon, sampling_batch_size: as in :class:`PublishedLightSB`.
        scale: every :math:`S_k` at the start; 0.1 in the published mixture experiment.
    """

    keeps_graph = True

    def __init__(
        self,
        dim: int,
        components: int,
        epsilon: float,
        scale: float = 0.1,
        sampling_batch_size: int = 1,
    ) -> None:
        super().__init__(dim, components, epsilon, scale, sampling_batch_size)
        with torch.no_grad():
            self.log_alpha_raw /= self.epsilon

    @property
    def log_alpha(self) -> Tensor:
        return self.log_alpha_raw

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean square of the drift less that of Brownian bridges between independent pairs."""
        t = (1 - SAFE) * torch.rand(len(x), dtype=x.dtype, device=x.device)
        wide = t[:, None]
        noise = (self.epsilon * wide * (1 - wide)).sqrt() * torch.randn_like(x)
        state = (1 - wide) * x + wide * y + noise
        return nn.functional.mse_loss(self.drift(t, state), (y - state) / (1 - wide))


class PublishedFullLightSB(PublishedLightSB):
    """Full covariances ``U diag(s) U^T``, ``U`` orthogonal through the matrix exponential.

    Only what a training step needs: the loss. Arguments as in :class:`PublishedLightSB`.
    """

    def __init__(self, dim: int, components: int, epsilon: float, scale: float = 1.0) -> None:
        super().__init__(dim, components, epsilon, scale)
        self.rotation = nn.Module()
        self.rotation.weight = nn.Parameter(torch.eye(dim).repeat(components, 1, 1))
        nn.utils.parametrizations.orthogonal(self.rotation, "weight", "matrix_exp")

    def covariances(self) -> Tensor:
        """``S (K, D, D)``."""
        turn = self.rotation.weight
        return turn * self.log_s.exp()[:, None, :] @ turn.mT

    def log_potential(self, y: Tensor) -> Tensor:
        parts = MultivariateNormal(self.r, covariance_matrix=self.epsilon * self.covariances())
        law = MixtureSameFamily(Categorical(logits=self.log_alpha), parts)
        return law.log_prob(y) + self.log_alpha.logsumexp(0)

    def _exponents(self, x: Tensor) -> Tensor:
        square = torch.einsum("bi,kij,bj->bk", x, self.covariances(), x)
        linear = (x[:, None, :] * self.r).sum(-1)
        return (square + 2 * linear) / (2 * self.epsilon) + self.log_alpha


def train(
    model: PublishedLightSB,
    draw: Draw,
    rate: float,
    steps: int = STEPS,
    batch: int = BATCH,
    after: Callable[[int], None] | None = None,
) -> PublishedLightSB:
    """Adam at a constant rate on minibatches; ``after(step)`` is called after every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(1, steps + 1):
        x, y = draw(batch)
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
        if after is not None:
            after(step)
    return model
