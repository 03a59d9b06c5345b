"""Points given by the user, drawn with replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.source.base import Source
from genflow.tensors import draw_device


class Empirical(Source):
    """The empirical law of given points; the points are saved with the model.

    Args:
        points: ``(N, *d)``, or only their shape (filled by ``load``), or ``None`` (filled by
            :meth:`prepare` from the training data's source side, of which a run hands over up to
            20,000 rows).
        weight: how much each point counts ``(N,)``, numbers >= 0 of which not all are 0; or only their
            shape (filled by ``load``); ``None`` counts all alike.

    Raises:
        ValueError: for points or weights of other shapes, or weights that are none.
    """

    def __init__(
        self,
        points: Tensor | Sequence[int] | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if points is not None and not isinstance(points, Tensor):
            whole = all(isinstance(size, int) for size in points)
            points = torch.full(tuple(points), math.nan) if whole else torch.tensor(points)
        if points is not None and (points.ndim < 2 or len(points) == 0):
            raise ValueError(
                f"Empirical: points have shape {tuple(points.shape)}, expected (N, *d) with N >= 1"
            )
        if isinstance(weight, Sequence) and list(map(type, weight)) == [int]:
            weight = torch.full(tuple(weight), math.nan, dtype=torch.float64)
        elif weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.float64)
            _check_weight(weight, points)
        self.register_buffer("points", points)
        self.register_buffer("weight", weight)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Event shape, once there are points."""
        return None if self.points is None else tuple(self.points.shape[1:])

    def prepare(self, x0: Tensor, weight: Tensor | None = None) -> Empirical:
        """Keep ``x0 (N, *d)`` as the points, with their weights ``(N,)`` if told; given ones stay.

        Raises:
            ValueError: for weights that are not one non-negative number a point.
        """
        if self.points is None:
            if weight is not None:
                _check_weight(weight, x0)
                self.weight = weight.detach().clone().to(self._like.device, torch.float64)
            self.points = x0.detach().clone().to(self._like)
        return self

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        if self.points is None:
            raise ValueError("Empirical has no points yet: call source.prepare(x0) or give points")
        where = draw_device(generator, self.points.device)
        if self.weight is None:
            rows = torch.randint(len(self.points), (n,), generator=generator, device=where)
            return self.points[rows.to(self.points.device)]
        law = self.weight.double().cumsum(0)
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=where).to(law.device)
        last = int(self.weight.nonzero().max())  # rounding must not go past it
        return self.points[torch.searchsorted(law, u * law[-1], right=True).clamp_max(last)]


def _check_weight(weight: Tensor, points: Tensor | None) -> None:
    n = None if points is None else len(points)
    good = weight.shape == (n,) and bool((weight.isfinite() & (weight >= 0)).all())
    if not good or not bool(weight.sum() > 0):
        raise ValueError(
            f"Empirical: weight has shape {tuple(weight.shape)}; it must be {n or 'as many'} finite "
            "numbers >= 0 that are not all 0, one for each point"
        )
