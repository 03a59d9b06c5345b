"""What a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import chain

import torch
from torch import Tensor, nn


class Model(nn.Module, ABC):
    """Something to sample from. ``learner`` is the part that a loss fits."""

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """What :class:`~genflow.training.Training` hands to the loss."""

    @abstractmethod
    def encode(self, *xs: Tensor) -> tuple[Tensor, ...]:
        """Marginals from data units into the space in which the learner works."""

    @abstractmethod
    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Model:
        """Fit what depends on data (normalisation, empirical sources), in place."""

    @property
    def device(self) -> torch.device:
        return self._anchor().device

    @property
    def dtype(self) -> torch.dtype:
        return self._anchor().dtype

    def _anchor(self) -> Tensor:
        for tensor in chain(self.parameters(), self.buffers()):  # lazily: asked at every step
            if tensor.is_floating_point():
                return tensor
        return torch.zeros(())
