"""Toy laws in the plane, drawn in torch so that a generator rules them on any device.

Sizes follow the figures of the flow-matching literature: eight Gaussians on a circle of radius 5,
moons blown up threefold and centred (Tong et al. 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genflow.checks import between, count, non_negative, positive
from genflow.source.base import Source
from genflow.source.components import Components


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


class Labelled(Source):
    """A law whose draws have a class."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.sample_labelled(n, generator)[0]


class EightGaussians(Labelled):
    """Equal Gaussians, evenly spaced on a circle; the class is the mode.

    Args:
        radius: of the circle.
        std: of each Gaussian.
        modes: how many.
    """

    shape = (2,)

    def __init__(self, radius: float = 5.0, std: float = 0.1**0.5, modes: int = 8) -> None:
        super().__init__()
        positive(self, radius=radius, std=std)
        count(self, modes=modes)
        self.radius, self.std, self.modes = radius, std, modes

    def centres(self) -> Tensor:
        """Means of the modes, ``(modes, 2)``."""
        return self._centres(self._like)

    def _centres(self, like: Tensor) -> Tensor:
        k = torch.arange(self.modes, dtype=like.dtype, device=like.device)
        return _polar(torch.full_like(k, self.radius), 2 * math.pi * k / self.modes)

    def components(self) -> Components:
        weights = torch.full((self.modes,), 1 / self.modes, dtype=torch.float64)
        covariance = self.std**2 * torch.eye(2, dtype=torch.float64)
        return Components(weights, self._centres(weights), covariance.expand(self.modes, 2, 2))

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        mode = (self._uniform(n, 1, generator)[:, 0] * self.modes).long()
        return self.centres()[mode] + self.std * self._normal((n, 2), generator), mode

    def log_prob(self, x: Tensor) -> Tensor:
        square = ((x[:, None] - self.centres()) ** 2).sum(2) / self.std**2
        constant = math.log(self.modes) + math.log(2 * math.pi * self.std**2)
        return torch.logsumexp(-square / 2, 1) - constant


class Moons(Labelled):
    """Two interleaved half circles (scikit-learn's ``make_moons``), scaled and shifted.

    Args:
        noise: standard deviation added before scaling.
        scale: factor on both coordinates.
        shift: added to both coordinates after scaling.
    """

    shape = (2,)

    def __init__(self, noise: float = 0.05, scale: float = 3.0, shift: float = -1.0) -> None:
        super().__init__()
        non_negative(self, noise=noise)
        positive(self, scale=scale)
        self.noise, self.scale, self.shift = noise, scale, shift

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        u = self._uniform(n, 2, generator)
        angle, lower = math.pi * u[:, 0], u[:, 1] < 0.5
        x = torch.where(lower, 1 - angle.cos(), angle.cos())
        y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
        points = torch.stack([x, y], 1) + self.noise * self._normal((n, 2), generator)
        return self.scale * points + self.shift, lower.long()


class Circles(Labelled):
    """Two concentric circles (scikit-learn's ``make_circles``), scaled.

    Args:
        noise: standard deviation added before scaling.
        factor: inner radius over outer radius, in (0, 1).
        scale: outer radius.
    """

    shape = (2,)

    def __init__(self, noise: float = 0.05, factor: float = 0.5, scale: float = 3.0) -> None:
        super().__init__()
        non_negative(self, noise=noise)
        positive(self, scale=scale)
        between(self, 0, 1, factor=factor)
        self.noise, self.factor, self.scale = noise, factor, scale

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        u = self._uniform(n, 2, generator)
        inner = u[:, 1] < 0.5
        radius = torch.where(inner, self.factor * torch.ones_like(u[:, 1]), 1.0)
        points = _polar(radius, 2 * math.pi * u[:, 0])
        return self.scale * (points + self.noise * self._normal((n, 2), generator)), inner.long()


class Checkerboard(Source):
    """Uniform on the dark fields of a 4 x 4 board.

    Args:
        scale: half the side of the board.
    """

    shape = (2,)

    def __init__(self, scale: float = 4.0) -> None:
        super().__init__()
        positive(self, scale=scale)
        self.scale = scale

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        u = self._uniform(n, 3, generator)
        column = (4 * u[:, 0]).floor()
        row = 2 * (2 * u[:, 2]).floor() + column % 2
        x, y = 4 * u[:, 0], row + u[:, 1]
        return self.scale * (torch.stack([x, y], 1) / 2 - 1)

    def log_prob(self, x: Tensor) -> Tensor:
        cell = ((x / self.scale + 1) * 2).floor()
        inside = ((cell >= 0) & (cell < 4)).all(1) & ((cell.sum(1) % 2) == 0)
        density = torch.full_like(x[:, 0], -math.log(2 * self.scale**2))
        return density.masked_fill(~inside, -math.inf)


class SwissRoll(Source):
    """The first and last coordinate of scikit-learn's ``make_swiss_roll``, scaled to about 4.

    Args:
        noise: standard deviation added before scaling.
        scale: factor on both coordinates.
    """

    shape = (2,)

    def __init__(self, noise: float = 0.3, scale: float = 0.3) -> None:
        super().__init__()
        non_negative(self, noise=noise)
        positive(self, scale=scale)
        self.noise, self.scale = noise, scale

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        angle = 1.5 * math.pi * (1 + 2 * self._uniform(n, 1, generator)[:, 0])
        points = _polar(angle, angle) + self.noise * self._normal((n, 2), generator)
        return self.scale * points


class Spiral(Labelled):
    """Two intertwined Archimedean arms.

    Args:
        noise: standard deviation added to the points.
        turns: of each arm.
        scale: outer radius.
    """

    shape = (2,)

    def __init__(self, noise: float = 0.1, turns: float = 1.5, scale: float = 4.0) -> None:
        super().__init__()
        non_negative(self, noise=noise)
        positive(self, turns=turns, scale=scale)
        self.noise, self.turns, self.scale = noise, turns, scale

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        u = self._uniform(n, 2, generator)
        radius = u[:, 0].sqrt()  # even density along the arm
        second = u[:, 1] < 0.5
        points = _polar(radius, 2 * math.pi * self.turns * radius + math.pi * second.to(u.dtype))
        return self.scale * points + self.noise * self._normal((n, 2), generator), second.long()
