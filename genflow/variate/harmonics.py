"""Spherical harmonics as variates (Leluc et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count
from genflow.variate.base import Variate
from genflow.variate.moments import Moments


@dataclass(frozen=True)
class Harmonics(Variate):
    """Regression on all even spherical harmonics up to a degree, whose means are zero.

    The estimate is a fixed weighted sum of the projected distances, with weights that depend on the
    directions alone, and gradients follow it. Exact where the distance is an even polynomial of that
    degree on the sphere; consistent. For two and three dimensions, where smooth problems gain orders of
    magnitude; in more only degree 2 is known, ``d (d + 1) / 2 - 1`` functions. There must be clearly
    more directions than functions.

    Args:
        degree: even; ``None`` for the largest whose functions are at most half as many as directions.
    """

    degree: int | None = None
    coefficient = "regression"
    order = 0

    def __post_init__(self) -> None:
        if self.degree is not None:
            count(self, 2, degree=self.degree)
            if self.degree % 2:
                raise ValueError(f"Harmonics(degree={self.degree}): degree must be even")

    def features(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        projections, dim = directions.shape
        degree = self._degree(projections, dim)
        theta = directions.double()
        if dim == 2:
            found = _circle(theta, degree)
        else:
            found = _sphere(theta, degree) if dim == 3 else _degree_two(theta)
        return found.expand(len(moments.step), -1, -1)

    def count(self, projections: int, dim: int) -> int:
        return _size(self._degree(projections, dim), dim)

    def _degree(self, projections: int, dim: int) -> int:
        if self.degree is not None:
            if dim > 3 and self.degree > 2:
                raise ValueError(
                    f"Harmonics(degree={self.degree}) in {dim} dimensions: only degree 2 is known "
                    "above three dimensions"
                )
            return self.degree
        most = 2
        while dim <= 3 and _size(most + 2, dim) <= projections / 2:
            most += 2
        return most


def _size(degree: int, dim: int) -> int:
    if dim == 2:
        return degree
    return (degree + 1) * (degree + 2) // 2 - 1 if dim == 3 else dim * (dim + 1) // 2 - 1


def _circle(theta: Tensor, degree: int) -> Tensor:
    angle = torch.atan2(theta[:, 1], theta[:, 0])[:, None]
    angle = angle * torch.arange(2, degree + 1, 2, device=theta.device)
    return math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], 1)


def _degree_two(theta: Tensor) -> Tensor:
    d = theta.shape[1]
    rows, columns = torch.triu_indices(d, d, 1, device=theta.device)
    return torch.cat([theta[:, :-1] ** 2 - 1 / d, theta[:, rows] * theta[:, columns]], 1) * d


def _sphere(theta: Tensor, degree: int) -> Tensor:
    """Real harmonics of even degrees, of mean square one: associated Legendre functions by their
    recurrence in the degree, times cosine and sine of the longitude."""
    z = theta[:, 2]
    radius, angle = torch.hypot(theta[:, 0], theta[:, 1]), torch.atan2(theta[:, 1], theta[:, 0])
    found, start = [], torch.ones_like(z)
    for m in range(degree + 1):
        if m:
            start = start * radius * math.sqrt((2 * m + 1) / (2 * m))
        before, now = torch.zeros_like(z), start
        for k in range(m, degree + 1):
            if k > m:
                scale = math.sqrt((4 * k * k - 1) / (k * k - m * m))
                back = math.sqrt(((k - 1) ** 2 - m * m) / (4 * (k - 1) ** 2 - 1)) if k > 1 else 0.0
                before, now = now, scale * (z * now - back * before)
            if k % 2 == 0 and k > 0:
                if m == 0:
                    found.append(now)
                else:  # sqrt(2) for the mean squares of cosine and sine
                    found += [
                        math.sqrt(2) * now * (m * angle).cos(),
                        math.sqrt(2) * now * (m * angle).sin(),
                    ]
    return torch.stack(found, 1)
