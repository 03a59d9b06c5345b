"""Randomised quasi-Monte-Carlo directions, and the choice that needs no thought."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.directions.base import Directions, draw_normal, draw_seed, normalised
from genflow.directions.plain import Orthogonal, rotation
from genflow.tensors import draw_device


def _only(owner: Directions, dim: int, known: int) -> None:
    if dim != known:
        raise ValueError(
            f"{type(owner).__name__} directions live in {known} dimensions, the points have {dim}: "
            "take Sobol, Orthogonal or Auto"
        )


@dataclass(frozen=True)
class Grid(Directions):
    """In two dimensions: equal steps over the half circle from a random start."""

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        _only(self, dim, 2)
        where = draw_device(generator, like.device)
        start = torch.rand((), generator=generator, dtype=torch.float64, device=where)
        step = torch.arange(projections, dtype=torch.float64, device=where)
        angle = (step + start) * (math.pi / projections)
        return torch.stack([angle.cos(), angle.sin()], 1).to(like)

    def balanced(self, projections: int, dim: int) -> bool:
        return projections > 1


@dataclass(frozen=True)
class Spiral(Directions):
    """In three dimensions: points along a spiral from pole to pole, under a random rotation.

    The spiral of Rakhmanov, Saff & Zhou (1994), as used by Nguyen, Bariletto & Ho (2024).
    """

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        _only(self, dim, 3)
        turn = rotation(3, generator, like)
        return spiral(projections).to(turn) @ turn


@functools.lru_cache(maxsize=16)
def spiral(projections: int) -> Tensor:
    """The spiral before its rotation, ``(L, 3)`` in float64."""
    z = 1 - (2 * torch.arange(1, projections + 1, dtype=torch.float64) - 1) / projections
    angle = 1.8 * math.sqrt(projections) * torch.acos(z)
    radius = (1 - z**2).clamp_min(0).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)


@dataclass(frozen=True)
class Sobol(Directions):
    """A scrambled Sobol sequence made normal and scaled to the sphere, in any dimension.

    Above some twenty dimensions and a hundred directions no better than independent ones. The
    scrambling is made on the CPU.
    """

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        most = torch.quasirandom.SobolEngine.MAXDIM
        if dim > most:
            raise ValueError(f"Sobol directions live in at most {most} dimensions, got {dim}")
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=draw_seed(generator))
        u = engine.draw(projections, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
        if dim == 1:  # a scaled number is a sign
            normal = draw_normal((projections, 1), generator, like)
        return normalised(normal).to(like)


@dataclass(frozen=True)
class Auto(Directions):
    """The best that the dimension allows: ``Grid`` in two, ``Spiral`` in three, else ``Orthogonal``."""

    def choose(self, dim: int) -> Directions:
        return {2: Grid(), 3: Spiral()}.get(dim, Orthogonal())

    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        return self.choose(dim)._draw(projections, dim, generator, like)

    def balanced(self, projections: int, dim: int) -> bool:
        return self.choose(dim).balanced(projections, dim)
