"""Ready batches: batch ``k`` of a run is a function of ``(seed, rank, k)`` alone.

Rows are picked by tensor indexing (collating single rows costs two to three times a small step),
and because nothing depends on how far an iterator got, a killed run resumes at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import Batch, Marginal, Table, draw_from
from genflow.seeds import stream, stream_seed


class Batches:
    """An endless stream of batches; :class:`Passes` are the finite ones.

    Args:
        marginals: tables, laws, or rows made from the last of them.
        batch_size: rows of each marginal; ``None``: all rows of every table, in their order and in the
            precision of their file.
        seed: names the stream.
        length: batches a pass, for :class:`Passes`.
        start: the first batch's number, where a run resumes.
        fixed: yield the same batches in every pass (validation).
        rank, world: which of how many streams this is.

    Raises:
        ValueError: if a table has fewer rows than a batch, or all rows are asked of a law.
    """

    def __init__(
        self,
        marginals: Sequence[Marginal],
        batch_size: int | None,
        seed: int = 0,
        length: int | None = None,
        start: int = 0,
        fixed: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        for k, marginal in enumerate(marginals):
            if batch_size is None and not isinstance(marginal, Table):
                raise ValueError(
                    f"batch_size=None takes all rows of each marginal, but x{k} is a law to draw from; "
                    "give a batch_size"
                )
            if batch_size is None or not isinstance(marginal, Table):
                continue
            if batch_size * world > len(marginal):
                each = f" on each of {world} devices" if world > 1 else ""
                raise ValueError(
                    f"batch_size={batch_size}{each} is larger than the {len(marginal)} rows of "
                    f"x{k}; use batch_size <= {len(marginal) // world}"
                )
        self.marginals, self.batch_size, self.seed = tuple(marginals), batch_size, seed
        self.length, self.position, self.fixed = length, start, fixed
        self.rank, self.world = rank, world
        self._orders: dict[tuple[int, int], Tensor] = {}
        self._draw = torch.Generator()
        self._all: Batch | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self.fixed:
            yield from map(self.batch, range(self.length))
            return
        while True:
            self.position += 1
            yield self.batch(self.position - 1)
            if self.length is not None and self.position % self.length == 0:
                return

    def batch(self, k: int) -> Batch:
        """Batch number ``k`` of this rank's stream."""
        if self.batch_size is None:
            return self._whole()

        def rows(m: int, last: Tensor | None) -> tuple[Tensor, Tensor | None]:
            marginal = self.marginals[m]
            if isinstance(marginal, Table):
                return marginal.take(self._rows(m, k * self.world + self.rank, k))
            draw = self._draw.manual_seed(stream_seed(self.seed, "data", m, k, self.rank))
            return draw_from(marginal, self.batch_size, draw, last)

        return _batch(len(self.marginals), rows)

    def _whole(self) -> Batch:
        if self._all is None:
            self._all = all_rows(self.marginals)
        return self._all

    def _rows(self, m: int, k: int, mine: int) -> Tensor:
        """Rows of global batch ``k``, ``mine`` of this rank: passes over a table are laid end to end,
        none is dropped; rows of unequal weight are drawn by it."""
        if self.marginals[m].weight is not None:
            draw = self._draw.manual_seed(stream_seed(self.seed, "data", m, mine, self.rank))
            return self.marginals[m].draw(self.batch_size, draw)
        n = len(self.marginals[m])
        start = k * self.batch_size
        first, offset = divmod(start, n)
        order = self._order(m, first)
        rows = order[offset : offset + self.batch_size]
        if len(rows) < self.batch_size:
            rest = self._order(m, first + 1)[: self.batch_size - len(rows)]
            rows = torch.cat([rows, rest])
        return rows

    def _order(self, m: int, epoch: int) -> Tensor:
        if (m, epoch) not in self._orders:
            self._orders = {key: v for key, v in self._orders.items() if key[1] >= epoch - 1}
            n = len(self.marginals[m])
            draw = stream(self.seed, "order", m, epoch)
            self._orders[m, epoch] = torch.randperm(n, generator=draw)
        return self._orders[m, epoch]


class Passes(Batches):
    """A stream that ends after ``length`` batches and goes on in the next pass.

    A class of its own because whatever has ``__len__`` counts as finite to Lightning.
    """

    def __len__(self) -> int:
        return self.length


def draw_rows(marginals: Sequence[Marginal], n: int, *name: int | str) -> Batch:
    """Up to ``n`` rows of each marginal, the same ones for the same stream name."""

    def rows(m: int, last: Tensor | None) -> tuple[Tensor, Tensor | None]:
        marginal, draw = marginals[m], stream("rows", m, *name)
        if not isinstance(marginal, Table):
            return draw_from(marginal, n, draw, last)
        if marginal.weight is None:
            return marginal.take(torch.randperm(len(marginal), generator=draw)[:n])
        return marginal.take(marginal.draw(min(n, len(marginal)), draw))

    return _batch(len(marginals), rows)


def all_rows(tables: Sequence[Table]) -> Batch:
    """All rows of each table, in order; float64 where the table holds it."""

    def rows(m: int, last: Tensor | None) -> tuple[Tensor, Tensor | None]:
        table = tables[m]
        if table.x.dtype in (torch.float64, np.dtype("float64")):
            table = replace(table, dtype=torch.float64)
        return table.take(torch.arange(len(table)))

    return _batch(len(tables), rows)


def _batch(count: int, rows: Callable[[int, Tensor | None], tuple[Tensor, Tensor | None]]) -> Batch:
    """The last marginal first: others may be made from it. Conditions are its own."""
    last, cond = rows(count - 1, None)
    return Batch((*(rows(m, last)[0] for m in range(count - 1)), last), cond)
