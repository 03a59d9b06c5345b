"""The uniform law on a box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.source.base import Source


class Box(Source):
    """Uniform on a box.

    Args:
        low: its lower corner, a number for each coordinate.
        high: its upper corner, above ``low`` in each.

    Raises:
        ValueError: for corners of different lengths, or in the wrong order.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.low, self.high = list(map(float, low)), list(map(float, high))
        ordered = all(a < b and math.isfinite(b - a) for a, b in zip(self.low, self.high))
        if not self.low or len(self.low) != len(self.high) or not ordered:
            raise ValueError(
                f"Box(low={low!r}, high={high!r}): give two corners of equal length, finite, with low "
                "below high in every coordinate"
            )
        self.shape = (len(self.low),)

    def _corner(self, corner: Sequence[float]) -> Tensor:
        return torch.tensor(corner, dtype=self._like.dtype, device=self._like.device)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        width = self._corner([b - a for a, b in zip(self.low, self.high)])
        return self._uniform(n, len(self.low), generator) * width + self._corner(self.low)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self._corner(self.low)) & (x <= self._corner(self.high))).all(1)
        volume = math.fsum(math.log(b - a) for a, b in zip(self.low, self.high))
        return torch.full_like(x[:, 0], -volume).masked_fill(~inside, -math.inf)
