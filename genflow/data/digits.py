"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 that need no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genflow.checks import between
from genflow.data.base import Data, Table, split_rows
from genflow.source import Source


@dataclass(frozen=True)
class Digits(Data):
    """Digits in [-1, 1] of shape ``(1, 8, 8)``.

    Args:
        x0: the source side.
        labels: give the digit as condition.
        holdout: fraction for validation and for test, each.
    """

    x0: Source
    labels: bool = False
    holdout: float = 0.15

    def __post_init__(self) -> None:
        between(self, 0, 0.5, holdout=self.holdout)

    def marginals(self, split: str) -> tuple[Source | Table, ...]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
        cond = torch.from_numpy(labels).long() if self.labels else None
        return self.x0, Table(x, split_rows(len(x), split, self.holdout), cond)
