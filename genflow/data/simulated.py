"""Endless data: every batch is drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genflow.data.base import Data, WithLabels
from genflow.source import Source


@dataclass(frozen=True)
class Simulated(Data):
    """Two laws to draw from.

    Args:
        x0: the source side.
        x1: the data side.
        labels: give the class of each draw as condition, for laws that have classes.

    Raises:
        ValueError: if labels are asked of a law that has none.
    """

    x0: Source
    x1: Source
    labels: bool = False

    def __post_init__(self) -> None:
        if self.labels:
            self.x1.sample_labelled(1, torch.Generator().manual_seed(0))  # raises where there are none

    def marginals(self, split: str) -> tuple[Source | WithLabels, ...]:
        return self.x0, WithLabels(self.x1) if self.labels else self.x1
