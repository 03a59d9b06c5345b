"""What a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from genflow.model.rows import check_event
from genflow.source import Source
from genflow.transform import Transform


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

    most: int | None = None
    """The most samples that one call can ask for; ``None``: any number."""
    nfe: int | None = None
    """Evaluations of the learner that a sample takes, where it is the same for all."""

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


class Sourced(Model):
    """A model that starts from a source. Users speak data units; the transform is applied inside."""

    source: Source
    transform: Transform | None

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Sourced:
        self.source.prepare(xs[0])
        if self.transform is not None:
            self.transform.prepare(torch.cat(xs[1:] if self.source.latent else xs))
        return self

    def encode(self, *xs: Tensor) -> tuple[Tensor, ...]:
        dtype = self.dtype
        xs = tuple(x.to(dtype) for x in xs)
        if self.transform is None:
            return xs
        start = xs[0] if self.source.latent else self.transform(xs[0])
        return (start, *(self.transform(x) for x in xs[1:]))

    def _given(self, x0: Tensor, data: bool = False) -> Tensor:
        """Starts of the user in the model's space; ``data`` are such even if the source is latent."""
        check_event("x0", x0, self.source)
        return self._inside(x0, data)

    def _drawn(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``n`` draws of the source in the model's space."""
        return self._inside(self.source.sample(n, generator))

    def _inside(self, x: Tensor, data: bool = False) -> Tensor:
        x = x.to(device=self.device, dtype=self.dtype)
        if self.transform is None or (self.source.latent and not data):
            return x
        return self.transform(x)
