"""Ready batches: batch ``k`` of a run is a function of ``(seed, rank, k)`` alone.

Rows are picked by tensor indexing (collating single rows costs two to three times a small step),
and because nothing depends on how far an iterator got, a killed run resumes at any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genflow.data.base import Batch, Table, WithLabels, draw_from
from genflow.seeds import stream, stream_seed
from genflow.source import Source


class Batches:
    """An endless stream of batches; :class:`Passes` are the finite ones.

    Args:
        marginals: tables or laws.
        batch_size: rows of each marginal.
        seed: names the stream.
        length: batches a pass, for :class:`Passes`.
        start: the first batch's number, where a run resumes.
        fixed: yield the same batches in every pass (validation).
        rank, world: which of how many streams this is.

    Raises:
        ValueError: if a table has fewer rows than a batch.
    """

    def __init__(
        self,
        marginals: Sequence[Source | WithLabels | Table],
        batch_size: int,
        seed: int = 0,
        length: int | None = None,
        start: int = 0,
        fixed: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        for k, marginal in enumerate(marginals):
            if isinstance(marginal, Table) and batch_size * world > len(marginal):
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
        xs, cond = [], None
        for m, marginal in enumerate(self.marginals):
            if isinstance(marginal, Table):
                x, cond = marginal.take(self._rows(m, k * self.world + self.rank, k))
            else:
                draw = self._draw.manual_seed(stream_seed(self.seed, "data", m, k, self.rank))
                x, cond = draw_from(marginal, self.batch_size, draw)
            xs.append(x)
        return Batch(tuple(xs), cond)

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


def draw_rows(marginals: Sequence[Source | WithLabels | Table], n: int, *name: int | str) -> Batch:
    """Up to ``n`` rows of each marginal, the same ones for the same stream name."""
    xs, cond = [], None
    for m, marginal in enumerate(marginals):
        draw = stream("rows", m, *name)
        if isinstance(marginal, Table):
            if marginal.weight is None:
                rows = torch.randperm(len(marginal), generator=draw)[:n]
            else:
                rows = marginal.draw(min(n, len(marginal)), draw)
            x, cond = marginal.take(rows)
        else:
            x, cond = draw_from(marginal, n, draw)
        xs.append(x)
    return Batch(tuple(xs), cond)
