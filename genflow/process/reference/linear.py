"""Affine drifts: none at all, and the Ornstein-Uhlenbeck family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.process.reference.base import Reference, Values


class Brownian(Reference):
    """No drift: the reference of the vanilla Schrödinger bridge. It has no parameters.

    Args:
        dim: number of coordinates.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        return torch.zeros_like(x)

    def features(self, t: Tensor | float, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape, 0)

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        return x.new_zeros(*x.shape, x.shape[-1])


class OrnsteinUhlenbeck(Reference):
    r""":math:`\dot x = Ax + b` with a full matrix.

    Args:
        dim: number of coordinates.
        matrix: where :math:`A (d, d)` starts; zeros by default.
        shift: where :math:`b (d)` starts; zeros by default.

    Raises:
        ValueError: for other shapes.
    """

    def __init__(
        self,
        dim: int,
        matrix: Sequence[Sequence[float]] | None = None,
        shift: Sequence[float] | None = None,
    ) -> None:
        start = torch.zeros(dim, dim) if matrix is None else matrix
        super().__init__(dim, matrix=start, shift=torch.zeros(dim) if shift is None else shift)
        self.matrix, self.shift = matrix, shift
        for name, shape in (("matrix", (dim, dim)), ("shift", (dim,))):
            if self.raw[name].shape != shape:
                raise ValueError(
                    f"OrnsteinUhlenbeck(dim={dim}): {name} must have shape {shape}, got "
                    f"{tuple(self.raw[name].shape)}"
                )

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        matrix, shift = (values[name].to(x) for name in ("matrix", "shift"))
        return (matrix @ x[..., None])[..., 0] + shift

    def features(self, t: Tensor | float, x: Tensor) -> Tensor:
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        slopes = torch.einsum("ij,bk->bijk", eye, x).flatten(2)
        return torch.cat([slopes, eye.expand(len(x), -1, -1)], 2)

    def solve(self, x: Tensor, y: Tensor, weight: Tensor) -> bool:
        if not all(p.requires_grad for p in self.raw.values()):
            return False
        # all coordinates share one design, so that the d (d + 1) parameters need no matrix over them
        root = weight.sqrt()[:, None]
        design = torch.cat([x, torch.ones_like(x[:, :1])], 1) * root
        q, r = torch.linalg.qr(design)
        found = torch.linalg.lstsq(r.cpu(), (q.mT @ (y * root)).cpu(), driver="gelsd").solution.mT
        self.assign(matrix=found[:, :-1], shift=found[:, -1])
        return True

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        values = self.values() if values is None else values
        return values["matrix"].to(x).expand(*x.shape, self.dim)
