"""Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.checks import positive
from genflow.source.base import Source
from genflow.source.components import Components
from genflow.tensors import as_shape, sum_event


class Gaussian(Source):
    """Isotropic Gaussian noise in the model's own space.

    Args:
        dim: event shape, ``2`` or ``[1, 8, 8]``.
        mean: of every coordinate.
        std: of every coordinate, positive.
    """

    latent = True

    def __init__(self, dim: int | Sequence[int], mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        positive(self, std=std)
        self.dim, self.mean, self.std = dim, mean, std
        self.shape = as_shape(dim)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.std * self._normal((n, *self.shape), generator)

    def log_prob(self, x: Tensor) -> Tensor:
        constant = math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return sum_event(-0.5 * ((x - self.mean) / self.std) ** 2 - constant)

    def components(self) -> Components:
        size = math.prod(self.shape)
        one = torch.ones(1, dtype=torch.float64)
        covariance = self.std**2 * torch.eye(size, dtype=torch.float64)
        return Components(one, torch.full((1, size), self.mean, dtype=torch.float64), covariance[None])
