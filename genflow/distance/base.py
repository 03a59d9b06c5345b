"""What a distance is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from genflow.tensors import check_marginals


class Distance(ABC):
    """A number for two samples, differentiable in both."""

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of ``x (n, *d)`` and ``y (m, *d)``, a scalar; events are flattened.

        Raises:
            TypeError, ValueError: for empty samples, other dtypes or other event shapes.
        """


def flat_pair(owner: object, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples checked and flattened to ``(n, d)``."""
    check_marginals(type(owner).__name__, x, y)
    return x.flatten(1), y.flatten(1)


def safe_root(value: Tensor, p: float) -> Tensor:
    """``value ** (1/p)`` with gradient zero, not NaN, where the value is zero."""
    above = value > 0
    return torch.where(above, torch.where(above, value, 1.0) ** (1 / p), 0.0)
