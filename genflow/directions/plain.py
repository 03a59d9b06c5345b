"""Independent directions, orthogonal blocks, and directions of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.directions.base import Directions, draw_normal, normalised


@dataclass(frozen=True)
class Isotropic(Directions):
    """Independent, uniform on the sphere: plain Monte Carlo."""

    independent = True

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        return normalised(draw_normal((projections, dim), generator, like))


@dataclass(frozen=True)
class Orthogonal(Directions):
    """Blocks of ``d`` orthogonal directions, each block a uniform rotation of the axes.

    Over a full block every quadratic form has its exact mean, so that variates made of quadratic forms
    change nothing where ``d`` divides ``projections``. Unbiased; the variance is not always below that
    of independent directions (Rowland et al. 2019).
    """

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        full, rest = divmod(projections, dim)
        found = []
        if full:
            found.append(_frames(draw_normal((full, dim, dim), generator, like)).reshape(-1, dim))
        if rest:
            found.append(_frames(draw_normal((dim, rest), generator, like)))
        return torch.cat(found)

    def balanced(self, projections: int, dim: int) -> bool:
        return projections % dim == 0


def _frames(normal: Tensor) -> Tensor:
    """Orthonormal rows ``(..., k, d)`` from normal numbers ``(..., d, k)``, uniformly distributed."""
    q, r = torch.linalg.qr(normal)
    # without the signs the law depends on how QR picks them
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs.unsqueeze(-2)).mT


def rotation(dim: int, generator: torch.Generator | None = None, like: Tensor | None = None) -> Tensor:
    """A uniform orthogonal matrix ``(d, d)``, reflections included (Haar measure; Mezzadri 2007)."""
    like = torch.empty(0) if like is None else like
    return _frames(draw_normal((dim, dim), generator, like))


@dataclass(frozen=True)
class Fixed(Directions):
    """Directions of the user's own, the same at every call.

    Args:
        vectors: ``(L, d)``, numbers or a tensor; rows are scaled to length one.

    Raises:
        ValueError: if they are no table of finite numbers, or a row is zero.
    """

    random = False
    vectors: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        try:
            found = torch.as_tensor(self.vectors, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Fixed(vectors=...): vectors must be a table of numbers: {error}"
            ) from None
        if found.ndim != 2 or found.numel() == 0 or not bool(found.isfinite().all()):
            raise ValueError(
                f"Fixed(vectors=...): vectors of shape {tuple(found.shape)} must be a table (L, d) of "
                "finite numbers"
            )
        if not bool((found != 0).any(1).all()):
            raise ValueError("Fixed(vectors=...): a row is zero and points nowhere")
        object.__setattr__(self, "vectors", found.tolist())

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        found = torch.tensor(self.vectors, dtype=torch.float64)
        if found.shape != (projections, dim):
            raise ValueError(
                f"Fixed: {found.shape[0]} vectors in {found.shape[1]} dimensions, asked for "
                f"{projections} in {dim}; set projections={found.shape[0]} and give vectors as long as "
                "the points"
            )
        return normalised(found / found.abs().amax(1, True)).to(like)  # of any size
