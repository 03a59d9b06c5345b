"""What a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: object) -> Iterator[None]:
    """Dropout and the like switched off inside a module, and on again; other objects are left alone."""
    training = [m for m in module.modules() if m.training] if isinstance(module, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


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
