"""Corruptions: what a start may keep of the data that it belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from genflow.checks import count, non_negative, positive
from genflow.tensors import draw_device, randn_like


class Corruption(ABC):
    """Makes starts from data, row by row."""

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Corrupt ``x (B, *d)``; the result has its shape, dtype and device.

        Raises:
            ValueError: for events that it does not apply to.
        """

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of images ``(B, ..., h, w)``."""
        if x.ndim < 3:
            raise ValueError(
                f"{type(self).__name__} takes images (B, ..., h, w), got shape {tuple(x.shape)}"
            )
        return x.shape[-2], x.shape[-1]


@dataclass(frozen=True)
class Noisy(Corruption):
    """Gaussian noise on top, for denoising; events of any shape.

    Args:
        std: of the noise, positive.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        positive(self, std=self.std)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + self.std * randn_like(x, generator)


@dataclass(frozen=True)
class Mask(Corruption):
    """A rectangle of each image is replaced by Gaussian noise, for inpainting; the rest is kept.

    A network sees which pixels are known from the state alone. A fixed ``box`` it knows by heart, and
    keeps the rest. A random square fades as ``t`` nears 1, and with it the knowledge of what to keep:
    the law of the results is still that of the data, but known pixels move (root mean square 0.15 on
    digits in [-1, 1], against 0.0005 for a box). Where that matters put them back with
    ``torch.where(known, x0, samples)``.

    Args:
        box: ``[top, left, height, width]`` in pixels, the same for every image.
        fraction: instead of a box, the share of the area of a square (as near as whole pixels allow) at
            a random place in each image.
        noise: standard deviation of what fills it, positive.

    Raises:
        ValueError: unless one of ``box`` and ``fraction`` is given, and when called, for a box that
            lies not inside the image.
    """

    box: Sequence[int] | None = None
    fraction: float | None = None
    noise: float = 1.0

    def __post_init__(self) -> None:
        positive(self, noise=self.noise)
        if (self.box is None) == (self.fraction is None):
            raise ValueError("Mask: give box ([top, left, height, width]) or fraction, one of them")
        if self.fraction is not None:
            positive(self, fraction=self.fraction)
            if self.fraction > 1:
                raise ValueError(f"Mask(fraction={self.fraction!r}): fraction must be at most 1")
        elif not _is_box(self.box):
            raise ValueError(
                f"Mask(box={self.box!r}): box must be [top, left, height, width], whole numbers of "
                "pixels, height and width at least 1"
            )

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        region = self.region(x, generator)
        return torch.where(region, self.noise * randn_like(x, generator), x)

    def region(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Where noise goes: ``True`` inside, of a shape that broadcasts over ``x (B, ..., h, w)``."""
        height, width = self._size(x)
        rows = torch.arange(height, device=x.device)[:, None]
        columns = torch.arange(width, device=x.device)
        if self.box is not None:
            top, left, tall, wide = self.box
            if top + tall > height or left + wide > width:
                raise ValueError(
                    f"Mask(box={list(self.box)}) does not lie inside images of {height} x {width}"
                )
        else:
            side = round((self.fraction * height * width) ** 0.5)
            tall, wide = (min(max(side, 1), size) for size in (height, width))
            where = draw_device(generator, x.device)
            u = torch.rand(2, len(x), generator=generator, device=where).to(x.device)
            free = torch.tensor([height - tall + 1, width - wide + 1], device=x.device)
            place = (u * free[:, None]).long().reshape(2, len(x), *[1] * (x.ndim - 1))
            top, left = place[0], place[1]
        inside = (rows >= top) & (rows < top + tall)
        return inside & (columns >= left) & (columns < left + wide)


@dataclass(frozen=True)
class Downsample(Corruption):
    """Means over blocks of pixels, blown up again, and noise, for super-resolution.

    The noise is needed: without it the starts fill fewer dimensions than the images, which no flow can
    undo.

    Args:
        factor: pixels a block's side, which divides height and width.
        noise: standard deviation, zero or positive.
    """

    factor: int = 2
    noise: float = 0.2

    def __post_init__(self) -> None:
        count(self, 2, factor=self.factor)
        non_negative(self, noise=self.noise)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        height, width = self._size(x)
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Downsample(factor={self.factor}): images of {height} x {width} cannot be cut into "
                f"blocks of {self.factor} x {self.factor}"
            )
        small = avg_pool2d(x.reshape(-1, 1, height, width), self.factor)
        large = small.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return large.reshape(x.shape) + self.noise * randn_like(x, generator)


def _is_box(box: object) -> bool:
    return (
        isinstance(box, Sequence)
        and len(box) == 4
        and all(type(k) is int and k >= 0 for k in box)
        and min(box[2:]) > 0
    )
