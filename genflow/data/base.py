"""What data are: one marginal per point in time, each a table of rows or a law to draw from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genflow.source import Source

SPLITS = ("train", "val", "test")


class Batch(NamedTuple):
    """One batch per marginal, and the conditions of the last marginal's rows.

    A loader of the user's own may yield plain tuples ``(x0, x1)`` instead.
    """

    xs: tuple[Tensor, ...]
    cond: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        cond = None if self.cond is None else self.cond.to(device)
        return Batch(tuple(x.to(device) for x in self.xs), cond)


@dataclass(frozen=True)
class Table:
    """Rows that lie in memory or in a memory-mapped file.

    Attributes:
        x: ``(N, *d)``, a tensor or an array (memory-mapped, so that only read rows are loaded).
        rows: which rows belong to this split, ``(n,)``.
        cond: conditions ``(N, ...)``, if any.
        dtype: of the batches.
        weight: how much each row of ``x`` counts ``(N,)``, if not all alike; rows are then drawn in
            proportion to it, with replacement.
    """

    x: Tensor | np.ndarray
    rows: Tensor
    cond: Tensor | np.ndarray | None = None
    dtype: torch.dtype = torch.float32
    weight: Tensor | None = None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` numbers of rows within the split, drawn in proportion to their weights."""
        if "_law" not in self.__dict__:  # made once: a draw costs a search, however long the table
            object.__setattr__(self, "_law", self.weight[self.rows].double().cumsum(0))
        u = torch.rand(n, generator=generator, dtype=torch.float64) * self._law[-1]
        return torch.searchsorted(self._law, u, right=True).clamp_max(len(self) - 1)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape."""
        return tuple(self.x.shape[1:])

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows ``index`` (numbers within the split) with their conditions."""
        rows = self.rows[index]
        cond = None if self.cond is None else _take(self.cond, rows)
        return _take(self.x, rows).to(self.dtype), cond


@dataclass(frozen=True)
class WithLabels:
    """A law that yields its classes as conditions.

    Attributes:
        source: a source with ``sample_labelled``.
    """

    source: Source


@dataclass(frozen=True)
class FromLast:
    """Rows made from those of the last marginal: row ``i`` from row ``i``.

    Attributes:
        make: ``(x, generator) -> x0`` of the shape of ``x (B, *d)``.
    """

    make: Callable[[Tensor, torch.Generator | None], Tensor]


Marginal = Source | WithLabels | Table | FromLast


def draw_from(
    marginal: Source | WithLabels | FromLast,
    n: int,
    generator: torch.Generator,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Draws of a law, with their conditions where it yields them, or rows made from ``last``."""
    if isinstance(marginal, FromLast):
        return marginal.make(last, generator), None
    if isinstance(marginal, WithLabels):
        return marginal.source.sample_labelled(n, generator)
    return marginal.sample(n, generator), None


def _take(values: Tensor | np.ndarray, rows: Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values[rows]
    # a file is read in order; the batch gets its random order back, else coupled marginals that
    # are both sorted would no longer be independent
    order = rows.argsort()
    block = np.ascontiguousarray(values[rows[order].numpy()])
    block = torch.from_numpy(block.astype(block.dtype.newbyteorder("="), copy=False))
    return block[order.argsort()]


class Data(ABC):
    """The marginals of a problem."""

    @abstractmethod
    def marginals(self, split: str) -> tuple[Marginal, ...]:
        """The marginals of ``"train"``, ``"val"`` or ``"test"``, in order of time."""


def split_rows(n: int, split: str, holdout: float) -> Tensor:
    """Rows of a split: a fixed random permutation, ``holdout`` of it for val and for test each."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    held = round(n * holdout)
    parts: dict[str, Any] = {"test": order[:held], "val": order[held : 2 * held]}
    return parts.get(split, order[2 * held :]).sort().values
