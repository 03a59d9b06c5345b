"""What a distance is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from genflow.tensors import check_marginals


class Distance(ABC):
    """A number for two samples, differentiable in both."""

    random: bool = False
    """Whether the value hangs on draws, and a call takes ``generator=``."""

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of ``x (n, *d)`` and ``y (m, *d)``, a scalar; events are flattened.

        Raises:
            TypeError, ValueError: for empty samples, other dtypes or other event shapes.
        """


def measure(
    distance: Distance, x: Tensor, y: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The distance of samples of events ``x (n, *d)`` and ``y (m, *d)``, a scalar; whatever it draws is
    drawn from ``generator``."""
    given = {"generator": generator} if getattr(distance, "random", False) else {}
    return distance(x.flatten(1), y.flatten(1), **given)


def flat_pair(owner: object, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples checked and flattened to ``(n, d)``."""
    check_marginals(type(owner).__name__, x, y)
    return x.flatten(1), y.flatten(1)


def shares(owner: object, x: Tensor, weight: Tensor | None, name: str) -> Tensor | None:
    """Weights ``(n,)`` of rows ``x (n, d)`` as shares of one, in float64.

    Raises:
        ValueError: for other than one finite number >= 0 a row, not all of them 0.
    """
    if weight is None:
        return None
    weight = torch.as_tensor(weight, dtype=torch.float64, device=x.device)
    fits = weight.shape == x.shape[:1] and bool((weight.isfinite() & (weight >= 0)).all())
    if not fits or not bool(weight.sum() > 0):
        raise ValueError(
            f"{type(owner).__name__}: {name} must be {len(x)} finite numbers >= 0, one a row and not "
            f"all 0, got shape {tuple(weight.shape)}"
        )
    return weight / weight.sum()


def safe_root(value: Tensor, p: float) -> Tensor:
    """``value ** (1/p)`` with gradient zero, not NaN, where the value is zero."""
    above = value > 0
    return torch.where(above, torch.where(above, value, 1.0) ** (1 / p), 0.0)
