"""Two clouds of points in space, apart from each other: what point-cloud flows are shown on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count, non_negative, one_of, positive
from genflow.data.base import Data, Table
from genflow.seeds import stream


def _trefoil(u: Tensor, v: Tensor) -> Tensor:
    """A tube around the trefoil knot, standing."""

    def knot(a: Tensor) -> Tensor:
        x, y = a.sin() + 2 * (2 * a).sin(), a.cos() - 2 * (2 * a).cos()
        return torch.stack([x, y, -(3 * a).sin()], -1)

    turn = 2 * math.pi * u
    tangent = torch.nn.functional.normalize(knot(turn + 1e-4) - knot(turn - 1e-4), dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=u.dtype).expand_as(tangent)
    side = torch.nn.functional.normalize(torch.linalg.cross(tangent, up, dim=-1), dim=-1)
    angle = 2 * math.pi * v[:, None]
    tube = angle.cos() * side + angle.sin() * torch.linalg.cross(side, tangent)
    x, y, z = (knot(turn) + 0.45 * tube).T
    return torch.stack([x, -z, y], -1)


def _torus(u: Tensor, v: Tensor) -> Tensor:
    """A torus, standing, its tube thicker on one side."""
    a, b = 2 * math.pi * u, 2 * math.pi * v
    tube = 0.35 + 0.15 * a.sin()
    ring = 1 + tube * b.cos()
    return torch.stack([ring * a.cos(), tube * b.sin(), ring * a.sin()], -1)


def _sphere(u: Tensor, v: Tensor) -> Tensor:
    """A sphere with bumps."""
    z, a = 2 * u - 1, 2 * math.pi * v
    ring = (1 - z**2).sqrt()
    x, y = ring * a.cos(), ring * a.sin()
    bumps = (
        (5 * x).sin() * (5 * y).sin() + (5 * y).sin() * (5 * z).sin() + (5 * z).sin() * (5 * x).sin()
    )
    return (1 + 0.12 * bumps)[:, None] * torch.stack([x, y, z], -1)


def _helix(u: Tensor, v: Tensor) -> Tensor:
    """A ribbon that winds upwards."""
    a = 6 * math.pi * u
    ring = 0.6 + 0.3 * v
    return torch.stack([ring * a.cos(), ring * a.sin(), 2.4 * u], -1)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "trefoil": _trefoil, "torus": _torus, "sphere": _sphere, "helix": _helix,
}  # fmt: skip


def shape(name: str, n: int, generator: torch.Generator | None = None) -> Tensor:
    """``n`` points on a surface, ``(n, 3)`` in float64: mean zero, the farthest one at distance one.

    Args:
        name: "trefoil", "torus", "sphere" (with bumps) or "helix".
        n: how many, at least 2.
        generator: where they are drawn from.
    """
    one_of("shape", tuple(SHAPES), name=name)
    count("shape", 2, n=n)
    u, v = torch.rand(2, n, generator=generator, dtype=torch.float64)
    points = SHAPES[name](u, v)
    points = points - points.mean(0)
    return points / points.norm(dim=1).max()


@dataclass(frozen=True)
class Shapes(Data):
    """Two clouds of ``n`` points in 3-D, their means ``shift`` apart along the first axis.

    They are the same in every split: a cloud is all there is.

    Args:
        n: points of each cloud.
        shift: distance of the means.
        first: the cloud of ``x0``: "sphere", "trefoil", "torus" or "helix".
        second: the cloud of ``x1``.
        size: distance of the farthest point of each cloud from its mean.
        seed: of the points.
    """

    n: int = 2048
    shift: float = 20.0
    first: str = "sphere"
    second: str = "trefoil"
    size: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        count(self, 2, n=self.n)
        count(self, 0, seed=self.seed)
        non_negative(self, shift=self.shift)
        positive(self, size=self.size)
        one_of(self, tuple(SHAPES), first=self.first, second=self.second)

    def clouds(self) -> tuple[Tensor, Tensor]:
        """``x0`` and ``x1``, each ``(n, 3)`` in float64."""
        place = torch.tensor([self.shift / 2, 0.0, 0.0], dtype=torch.float64)
        first, second = (
            self.size * shape(name, self.n, stream("shapes", k, self.seed))
            for k, name in enumerate((self.first, self.second))
        )
        return first - place, second + place

    def marginals(self, split: str) -> tuple[Table, ...]:
        return tuple(Table(x, torch.arange(len(x))) for x in self.clouds())
