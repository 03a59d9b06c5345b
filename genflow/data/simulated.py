"""Endless data: every batch is drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

from genflow.data.base import Data
from genflow.source import Source


@dataclass(frozen=True)
class Simulated(Data):
    """Two laws to draw from.

    Args:
        x0: the source side.
        x1: the data side.
    """

    x0: Source
    x1: Source

    def marginals(self, split: str) -> tuple[Source, ...]:
        return self.x0, self.x1
