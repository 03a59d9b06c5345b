"""The colours of two photographs, for colour transfer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from genflow.checks import count, one_of
from genflow.data.base import Data, Table

NAMES = ("china", "flower")


@cache
def _photograph(name: str) -> Tensor:
    from sklearn.datasets import load_sample_image

    return torch.tensor(load_sample_image(f"{name}.jpg"))


def even_out(before: Tensor, after: Tensor, radius: int = 4, epsilon: float = 1e-3) -> Tensor:
    """A recoloured picture without grain and blocks.

    Where many pixels are nearly of one colour, a transport map spreads them over others, and shows
    the noise and the compression of the photograph much enlarged. As Rabin, Delon & Gousseau (2011,
    "Removing artefacts from color and contrast modifications") do, the *change* of the colours is
    smoothed, along the edges of the picture before; here by the guided filter of He, Sun & Tang (2013,
    "Guided image filtering"), which fits the change in each window by an affine function of the
    colour.

    Args:
        before, after: pictures ``(h, w, 3)``.
        radius: of the square windows, in pixels.
        epsilon: variance of colour above which an edge is kept.

    Returns:
        ``(h, w, 3)``, the picture before plus the smoothed change.
    """

    def mean(v: Tensor) -> Tensor:  # over windows, (h, w, ...) to (h, w, ...)
        flat = v.flatten(2).permute(2, 0, 1)
        pooled = avg_pool2d(flat, 2 * radius + 1, 1, radius, count_include_pad=False)
        return pooled.permute(1, 2, 0).reshape(v.shape)

    guide, change = before.double(), after.double() - before.double()
    middle, level = mean(guide), mean(change)
    outer = (
        mean(guide[..., :, None] * guide[..., None, :]) - middle[..., :, None] * middle[..., None, :]
    )
    cross = (
        mean(guide[..., :, None] * change[..., None, :]) - middle[..., :, None] * level[..., None, :]
    )
    slope = torch.linalg.solve(outer + epsilon * torch.eye(3, dtype=torch.float64), cross)
    rest = level - (middle[..., None, :] @ slope)[..., 0, :]
    smooth = (guide[..., None, :] @ mean(slope))[..., 0, :] + mean(rest)
    return (guide + smooth).to(before.dtype)


@dataclass(frozen=True)
class Photographs(Data):
    """Pixels of scikit-learn's two photographs as colours in [0, 1]^3: one is ``x0``, the other ``x1``.

    Moving the first cloud of colours onto the second one gives the first picture the palette of the
    second (Rabin, Peyré, Delon & Bernot 2012, "Wasserstein barycenter and its application to texture
    mixing", by sliced distances). The photographs are 427 x 640, and the same in every split.

    Args:
        stride: every how manieth row and column is taken: 4 leaves 107 x 160 pixels.
        first: the picture of ``x0``, "china" (a palace under a grey sky) or "flower" (a red dahlia).
        second: the picture of ``x1``.
    """

    stride: int = 4
    first: str = "china"
    second: str = "flower"

    def __post_init__(self) -> None:
        count(self, stride=self.stride)
        one_of(self, NAMES, first=self.first, second=self.second)

    def image(self, name: str, stride: int | None = None) -> Tensor:
        """A photograph by name, ``(h, w, 3)`` in [0, 1], at its own ``stride`` if given."""
        one_of("Photographs.image", NAMES, name=name)
        step = self.stride if stride is None else stride
        return _photograph(name)[::step, ::step].float() / 255

    def render(self, points: Tensor, stride: int | None = None) -> Tensor:
        """Colours ``(h w, 3)``, row by row as in ``x0``, as a picture ``(h, w, 3)`` in [0, 1].

        Raises:
            ValueError: for another number of points than pixels.
        """
        step = self.stride if stride is None else stride
        h, w = -(-427 // step), -(-640 // step)
        if tuple(points.shape) != (h * w, 3):
            raise ValueError(
                f"Photographs.render: points have shape {tuple(points.shape)}, expected ({h * w}, 3), "
                f"the pixels of {h} x {w} in order"
            )
        return points.detach().cpu().clamp(0, 1).reshape(h, w, 3)

    def marginals(self, split: str) -> tuple[Table, ...]:
        colours = (self.image(name).flatten(0, 1) for name in (self.first, self.second))
        return tuple(Table(x, torch.arange(len(x))) for x in colours)
