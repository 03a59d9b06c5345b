"""What a source is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genflow.source.components import Components
from genflow.tensors import draw_device, randn_like


class Source(nn.Module, ABC):
    """A law to sample from.

    ``latent`` says whose units it speaks: noise (``True``) lives in the model's own space, any
    other source is data, and a model's transform applies to it as to the data.
    """

    latent: bool = False
    shape: tuple[int, ...] | None = None
    """Event shape, where it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(n, *d)`` in the dtype and on the device of the module."""

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw ``(n, *d)`` and the class of each draw ``(n,)``, for laws that have classes.

        Raises:
            ValueError: if the law has none.
        """
        raise ValueError(
            f"{type(self).__name__} has no classes; EightGaussians and GaussianMixture (modes), Moons, "
            "Circles and Spiral (which of the two) have"
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density ``(n, *d) -> (n,)``, where the law has one.

        Raises:
            NotImplementedError: if it has none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no density; use a Gaussian source for likelihoods"
        )

    def components(self) -> Components:
        """The law as a mixture of Gaussians over the flattened event, where it is one.

        Raises:
            NotImplementedError: if it is none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is no mixture of Gaussians; Gaussian, EightGaussians and "
            "GaussianMixture are"
        )

    def prepare(self, x0: Tensor) -> Source:
        """Take what depends on data from samples of the source; most sources need nothing."""
        return self

    def _uniform(self, n: int, k: int, generator: torch.Generator | None) -> Tensor:
        device = draw_device(generator, self._like.device)
        u = torch.rand(n, k, generator=generator, dtype=self._like.dtype, device=device)
        return u.to(self._like.device)

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return randn_like(self._like.expand(shape), generator)
