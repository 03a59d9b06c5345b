"""Components of a potential, with functions of their covariances by their eigenvalues."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Bump(NamedTuple):
    """A component of the potential: its centre ``(d,)``, the eigenvalues ``(d,)`` of its covariance
    and the eigenvectors ``(d, d)``, ``None`` where all eigenvalues are equal."""

    centre: Tensor
    values: Tensor
    axes: Tensor | None

    def to(self, device: torch.device) -> Bump:
        return Bump(*(None if v is None else v.to(device) for v in self))

    def apply(self, f: Tensor, rows: Tensor) -> Tensor:
        """A function of the covariance times rows ``(B, d)``, by its eigenvalues ``(d,)`` or
        ``(B, d)``."""
        return rows * f if self.axes is None else (rows @ self.axes * f) @ self.axes.mT

    def matrix(self, f: Tensor) -> Tensor:
        """The same function as a matrix ``(d, d)``."""
        return torch.diag(f) if self.axes is None else (self.axes * f) @ self.axes.mT


def draw_bumps(
    shape: tuple[int, int],
    radius: float,
    variance: float,
    anisotropy: float,
    generator: torch.Generator,
) -> list[Bump]:
    """``K`` components in ``d`` dimensions, in float64 on the CPU.

    Args:
        shape: ``(K, d)``.
        radius: distance of the centres from zero, in random directions.
        variance: geometric mean of the eigenvalues.
        anisotropy: largest over smallest eigenvalue, evenly spaced in logarithms; 1 is round.
        generator: where directions and axes come from.
    """
    directions = torch.randn(shape, generator=generator, dtype=torch.float64)
    centres = radius * directions / directions.norm(dim=1, keepdim=True)
    half = 0.5 * math.log(anisotropy)
    values = variance * torch.linspace(-half, half, shape[1], dtype=torch.float64).exp()
    if half == 0:
        return [Bump(centre, values, None) for centre in centres]
    turns = torch.randn(*shape, shape[1], generator=generator, dtype=torch.float64)
    return [Bump(centre, values, torch.linalg.qr(turn)[0]) for centre, turn in zip(centres, turns)]
