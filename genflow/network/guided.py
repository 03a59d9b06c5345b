"""Classifier-free guidance: one network learns with and without its condition."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genflow.checks import between, non_negative
from genflow.network.condition import Conditional
from genflow.network.heads import Heads
from genflow.tensors import batch_time, expand

Fields = Tensor | dict[str, Tensor]


class Guided(nn.Module):
    r"""A conditional network that forgets some conditions while it learns, and exaggerates them after.

    In training mode each row's condition is replaced by the ``empty`` one with probability ``dropout``,
    so that the same weights learn the unconditional field :math:`f_\emptyset` too. In eval mode the
    field is :math:`f_\emptyset + s\,(f_c - f_\emptyset)` (Ho & Salimans 2022, "Classifier-free
    diffusion guidance"; for velocities Zheng et al. 2023, "Guided flows for generative modeling and
    decision making"), both terms from one batch of twice the rows. At ``scale`` 1 it is the plain
    conditional network and costs one batch, at 0 the unconditional one, as for ``cond=None``; above 1
    samples are more typical of their condition and less diverse, and far above it they leave the data.

    Change ``scale`` whenever you like: ``model.process.network.scale = 3.0``, or for a while
    ``with guidance(model, 3.0): ...``. Leave it at 1 for training: validation runs in eval mode.

    Which rows are dropped comes from torch's global generator, as in ``nn.Dropout``; a training run
    saves its state.

    Args:
        network: ``f(t, x, cond)``, returning a tensor or a dict of fields.
        empty: the condition that stands for none. For labels a class that the data do not have, so give
            the network one more: ``Guided(MLP(2, classes=11), empty=10)`` for ten digits (a list for
            several labels). For condition vectors a list of numbers, or ``None`` for zeros.
        dropout: probability of forgetting a row's condition, in training mode.
        scale: how far to go from the unconditional field towards, and beyond, the conditional one.

    Raises:
        ValueError: for numbers out of range, an ``empty`` that is no condition of the network, and in
            ``forward`` for conditions that do not fit it, or none at all in training mode.
    """

    def __init__(
        self,
        network: nn.Module,
        empty: int | Sequence[float] | None = None,
        dropout: float = 0.1,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        between(self, -math.inf, math.inf, scale=scale)
        non_negative(self, dropout=dropout)
        if dropout >= 1:
            raise ValueError(f"Guided(dropout={dropout!r}): dropout must lie below 1")
        self.network, self.empty, self.dropout, self.scale = network, empty, dropout, scale
        for part in self._parts():
            if isinstance(part, Conditional) and not _fits(part, empty):
                raise ValueError(f"Guided(empty={empty!r}): {_wanted(part)}")
        self.register_buffer("_empty", None if empty is None else torch.tensor(empty), persistent=False)
        self._takes_only = "only" in inspect.signature(network.forward).parameters

    def _parts(self) -> Collection[nn.Module]:
        """The networks that take the condition."""
        return self.network.heads.values() if isinstance(self.network, Heads) else [self.network]

    @property
    def outputs(self) -> list[str] | None:
        """Names of the fields of the wrapped network, if it says so."""
        return getattr(self.network, "outputs", None)

    def forward(
        self,
        t: Tensor | float,
        x: Tensor,
        cond: Tensor | None = None,
        only: Collection[str] | None = None,
    ) -> Fields:
        """The guided field at times ``t (B,)`` and states ``x (B, *d)``.

        Args:
            t, x: as the wrapped network takes them.
            cond: conditions, one a row; ``None`` for the unconditional field.
            only: names of the fields to evaluate, for networks that return a dict.
        """
        if cond is None:
            if self.training:  # a run whose data give no labels would learn no condition, unnoticed
                raise ValueError(
                    "Guided learns with conditions: pass cond (data.labels=true), or train the network "
                    "alone; call eval() before sampling without any"
                )
            return self._fields(t, x, self._no_condition(x), only)
        if self.training:
            return self._fields(t, x, self._dropped(cond), only)
        if self.scale == 1:
            return self._fields(t, x, cond, only)
        empty = self._empty_like(cond)
        if self.scale == 0:
            return self._fields(t, x, empty, only)
        twice = torch.cat([batch_time(t, x)] * 2), torch.cat([x, x]), torch.cat([empty, cond])
        both = self._fields(*twice, only)
        if isinstance(both, dict):
            return {name: self._push(field) for name, field in both.items()}
        return self._push(both)

    def _push(self, both: Tensor) -> Tensor:
        without, given = both.chunk(2)
        return torch.lerp(without, given, self.scale)

    def _fields(
        self, t: Tensor | float, x: Tensor, cond: Tensor, only: Collection[str] | None
    ) -> Fields:
        if only is None or self._takes_only:
            return self.network(t, x, cond, **({} if only is None else {"only": only}))
        found = self.network(t, x, cond)
        return {k: v for k, v in found.items() if k in only} if isinstance(found, dict) else found

    def _dropped(self, cond: Tensor) -> Tensor:
        if self.dropout == 0:
            return cond
        forgotten = torch.rand(len(cond), device=cond.device) < self.dropout
        return torch.where(expand(forgotten, cond), self._empty_like(cond), cond)

    def _empty_like(self, cond: Tensor) -> Tensor:
        if self._empty is None:
            if not cond.is_floating_point():
                raise ValueError(
                    f"Guided(empty=None) takes condition vectors, got {cond.dtype}: labels need "
                    "a label of their own for none, as in Guided(MLP(2, classes=11), empty=10)"
                )
            return torch.zeros_like(cond)
        if self._empty.shape != cond.shape[1:]:
            raise ValueError(
                f"Guided(empty={self.empty!r}): empty has shape {tuple(self._empty.shape)} but a row "
                f"of cond {tuple(cond.shape[1:])}; they must be equal"
            )
        return self._empty.to(cond).expand_as(cond)

    def _no_condition(self, x: Tensor) -> Tensor:
        """The empty condition for every row."""
        if self._empty is not None:
            return self._empty.expand(len(x), *self._empty.shape)
        sizes = (getattr(part, "cond_dim", None) for part in self._parts())
        size = next((size for size in sizes if size is not None), None)
        if size is None:
            raise ValueError(
                "Guided(empty=None): without cond the size of the empty condition is not known; give "
                "it as a list of numbers, empty=[0.0, ...]"
            )
        return x.new_zeros(len(x), size)


def _fits(network: Conditional, empty: int | Sequence[float] | None) -> bool:
    """Whether ``empty`` is a condition of the network."""
    several = isinstance(empty, Sequence)
    if network.classes is None:
        return network.cond_dim is not None and (
            empty is None or (several and len(empty) == network.cond_dim)
        )
    labels = empty if several else [empty]
    same = several == isinstance(network.classes, Sequence) and len(labels) == len(network.sizes)
    return same and all(type(k) is int and 0 <= k < size for k, size in zip(labels, network.sizes))


def _wanted(network: Conditional) -> str:
    if network.classes is not None:
        return (
            f"empty must be a class of the network, which has classes={network.classes}; give it one "
            "class more than the data have, as in Guided(MLP(2, classes=11), empty=10)"
        )
    if network.cond_dim is not None:
        return f"empty must be None or {network.cond_dim} numbers, like the conditions of the network"
    return "the network has no condition; give it classes= or cond_dim="


@contextmanager
def guidance(module: nn.Module, scale: float) -> Iterator[None]:
    """Set the scale of every :class:`Guided` inside a module, and put it back afterwards.

    >>> with guidance(model, 3.0):  # doctest: +SKIP
    ...     x = model.sample(cond=labels)

    Args:
        module: a model, a process or a network.
        scale: see :class:`Guided`.

    Raises:
        ValueError: if there is no ``Guided`` inside, or the scale is not finite.
    """
    found = [part for part in module.modules() if isinstance(part, Guided)]
    if not found:
        raise ValueError(
            f"guidance: there is no Guided network inside this {type(module).__name__}; train one with "
            "Guided(network, empty=...)"
        )
    between(found[0], -math.inf, math.inf, scale=scale)
    before = [part.scale for part in found]
    try:
        for part in found:
            part.scale = scale
        yield
    finally:
        for part, old in zip(found, before):
            part.scale = old
