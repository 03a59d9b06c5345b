"""A value that is kept until the numbers change from which it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """Holds copies of the numbers: fused optimizers and swapped averages change parameters without
    raising their version."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._value: T | None = None

    def get(self, numbers: Sequence[Tensor], make: Callable[[], T]) -> T:
        """The value of ``make()``, called again where ``numbers`` are not those of the last call."""
        if len(numbers) != len(self._copies) or not all(map(_same, numbers, self._copies)):
            self._copies = [v.detach().clone() for v in numbers]
            self._value = make()
        return self._value


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
