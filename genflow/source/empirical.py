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
    """

    def __init__(self, points: Tensor | Sequence[int] | None = None) -> None:
        super().__init__()
        if points is not None and not isinstance(points, Tensor):
            whole = all(isinstance(size, int) for size in points)
            points = torch.full(tuple(points), math.nan) if whole else torch.tensor(points)
        if points is not None and (points.ndim < 2 or len(points) == 0):
            raise ValueError(
                f"Empirical: points have shape {tuple(points.shape)}, expected (N, *d) with N >= 1"
            )
        self.register_buffer("points", points)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Event shape, once there are points."""
        return None if self.points is None else tuple(self.points.shape[1:])

    def prepare(self, x0: Tensor) -> Empirical:
        """Keep ``x0`` as the points, if none were given."""
        if self.points is None:
            self.points = x0.detach().clone().to(self._like)
        return self

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        if self.points is None:
            raise ValueError("Empirical has no points yet: call source.prepare(x0) or give points")
        where = draw_device(generator, self.points.device)
        rows = torch.randint(len(self.points), (n,), generator=generator, device=where)
        return self.points[rows.to(self.points.device)]
