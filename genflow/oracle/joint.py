r"""Gaussian-mixture laws of the coupled pair :math:`(x_0, x_1)`, for which all fields are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from genflow.source import Components
from genflow.source.components import draw_components
from genflow.tensors import symmetric_root

ROUNDING = 1e-8
"""How far below zero an eigenvalue of a covariance may lie, relative to the largest."""


@dataclass(frozen=True, eq=False)
class Joint:
    """A mixture of Gaussian pairs: with probability ``weights[k]`` the pair ``(x0, x1)`` has means
    ``mean0[k], mean1[k]``, covariances ``cov0[k], cov1[k]`` and ``cross[k] = Cov(x0, x1)``.

    Events are flattened; all numbers are kept in float64. Singular covariances are allowed, such as
    those of pairs that determine each other.

    Args:
        weights: ``(K,)``, made to sum to one.
        mean0, mean1: ``(K, d)``.
        cov0, cov1, cross: ``(K, d, d)``.

    Raises:
        ValueError: if sizes do not fit, a number is not finite, a weight is negative, or the
            covariance of a pair is not positive semidefinite.
    """

    weights: Tensor
    mean0: Tensor
    mean1: Tensor
    cov0: Tensor
    cov1: Tensor
    cross: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            value = torch.as_tensor(getattr(self, field.name), dtype=torch.float64)
            if not bool(value.isfinite().all()):
                raise ValueError(f"Joint: {field.name} must be finite")
            object.__setattr__(self, field.name, value.detach())
        self._check_sizes()
        if bool((self.weights < 0).any()) or self.weights.sum() <= 0:
            raise ValueError("Joint: weights must be non-negative numbers with a positive sum")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())
        cov = self.cov
        if (cov - cov.mT).abs().max() > ROUNDING * cov.abs().max():
            raise ValueError("Joint: cov0 and cov1 must be symmetric")
        values = torch.linalg.eigvalsh(cov)
        if bool((values[:, 0] < -ROUNDING * values[:, -1]).any()):
            raise ValueError(
                "Joint: the covariance [[cov0, cross], [cross^T, cov1]] of each pair must be positive "
                f"semidefinite; its smallest eigenvalue is {float(values.min()):.3g}"
            )

    def _check_sizes(self) -> None:
        count, dim = len(self.weights.reshape(-1)), self.mean0.shape[-1] if self.mean0.ndim else 0
        want = {"weights": (count,), "mean0": (count, dim), "mean1": (count, dim)}
        want |= dict.fromkeys(("cov0", "cov1", "cross"), (count, dim, dim))
        for name, shape in want.items():
            if tuple(getattr(self, name).shape) != shape or 0 in shape:
                raise ValueError(
                    f"Joint: {name} has shape {tuple(getattr(self, name).shape)}, expected {shape} for "
                    f"{count} components in {dim} dimensions"
                )

    @property
    def dim(self) -> int:
        """Number of dimensions of one side."""
        return self.mean0.shape[1]

    @property
    def mean(self) -> Tensor:
        """Means of the pairs, ``(K, 2d)``."""
        return torch.cat([self.mean0, self.mean1], 1)

    @property
    def cov(self) -> Tensor:
        """Covariances of the pairs, ``(K, 2d, 2d)``."""
        upper = torch.cat([self.cov0, self.cross], 2)
        return torch.cat([upper, torch.cat([self.cross.mT, self.cov1], 2)], 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw ``n`` coupled rows ``x0, x1``, each ``(n, d)``, float64."""
        pair, _ = draw_components(self.weights, self.mean, symmetric_root(self.cov), n, generator)
        return pair[:, : self.dim], pair[:, self.dim :]

    def marginal(self, side: int) -> Components:
        """The law of ``x0`` (0) or ``x1`` (1), with its ``log_prob``."""
        if side not in (0, 1):
            raise ValueError(f"Joint.marginal({side!r}): the side must be 0 or 1")
        mean, cov = ((self.mean0, self.cov0), (self.mean1, self.cov1))[side]
        return Components(self.weights, mean, cov)

    def standardised(
        self,
        shift0: Tensor | float = 0.0,
        scale0: Tensor | float = 1.0,
        shift1: Tensor | float = 0.0,
        scale1: Tensor | float = 1.0,
    ) -> Joint:
        """The law of ``((x0 - shift0) / scale0, (x1 - shift1) / scale1)``, element by element.

        Args:
            shift0, shift1: numbers, or one for each dimension, in any event shape.
            scale0, scale1: the same, not zero.
        """
        units = [
            torch.as_tensor(v, dtype=torch.float64, device="cpu").reshape(-1)
            for v in (shift0, scale0, shift1, scale1)
        ]
        (a, r), (b, s) = ((units[k], 1 / units[k + 1].expand(self.dim)) for k in (0, 2))
        return Joint(
            self.weights,
            (self.mean0 - a) * r,
            (self.mean1 - b) * s,
            r[:, None] * self.cov0 * r,
            s[:, None] * self.cov1 * s,
            r[:, None] * self.cross * s,
        )

    def to(self, device: torch.device) -> tuple[Tensor, ...]:
        """Its six tensors on a device, in the order of the arguments."""
        return tuple(getattr(self, field.name).to(device) for field in fields(self))


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part, which rounding may have left."""
    return (matrix + matrix.mT) / 2


def numbers(value: Tensor | Sequence | float) -> Tensor:
    """As float64 on the CPU."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")
