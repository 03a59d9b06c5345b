"""Laws of the training time on [0, 1]. Every law returns its draw and the draw's weight.

``reweight=True`` weights a draw by the inverse of its density, so that the loss estimates the same
integral over time as :class:`Uniform` does (importance sampling).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import positive
from genflow.tensors import draw_device, rand_rows, randn_like

SMALLEST = 1e-4
"""Densities below this are not divided by: one draw must not rule a batch."""


class Time(ABC):
    """A law of times, one a row; ``even`` says that all weights are one."""

    even: bool = False

    def __init_subclass__(cls) -> None:
        if "__call__" in vars(cls) and "even" not in vars(cls):  # other weights than its parent's
            cls.even = False

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw ``t (B,)`` in the dtype and on the device of ``x (B, *d)``, with weights ``(B,)``."""


def _check_margin(owner: object, margin: float) -> None:
    if not 0 <= margin < 0.5:
        raise ValueError(
            f"{type(owner).__name__}(margin={margin!r}): margin must lie in [0, 0.5); times are "
            "drawn from [margin, 1 - margin]"
        )


def _inside(u: Tensor, margin: float) -> Tensor:
    return u if margin == 0 else margin + (1 - 2 * margin) * u


@dataclass(frozen=True)
class Uniform(Time):
    """Independent uniform times on ``[margin, 1 - margin]``.

    Args:
        margin: distance kept from both ends; 1e-3 where the target diverges there.
    """

    margin: float = 0.0
    even = True

    def __post_init__(self) -> None:
        _check_margin(self, self.margin)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        t = _inside(rand_rows(x, generator), self.margin)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class Stratified(Time):
    """One uniform time in each of ``B`` equal cells: the same law a row, less variance a batch.

    Args:
        margin: distance kept from both ends.
    """

    margin: float = 0.0
    even = True

    def __post_init__(self) -> None:
        _check_margin(self, self.margin)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u = rand_rows(x, generator)
        cells = torch.arange(len(u), dtype=u.dtype, device=u.device)
        t = _inside((cells + u) / len(u), self.margin)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class LogitNormal(Time):
    """Times whose logit is normal: more weight on the middle (Esser et al. 2024).

    Args:
        mean, std: of the logit.
        reweight: weight by the inverse density, so that only the variance changes. With ``std``
            well below 1 the ends are hardly ever drawn and the estimate misses them.
        margin: distance kept from both ends.
    """

    mean: float = 0.0
    std: float = 1.0
    reweight: bool = False
    margin: float = 0.0

    def __post_init__(self) -> None:
        positive(self, std=self.std)
        _check_margin(self, self.margin)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        z = randn_like(x.new_empty(x.shape[0]), generator)
        u = torch.sigmoid(self.mean + self.std * z)
        t = _inside(u, self.margin)
        if not self.reweight:
            return t, torch.ones_like(t)
        density = torch.exp(-(z**2) / 2) / (self.std * math.sqrt(2 * math.pi) * u * (1 - u))
        return t, 1 / density.clamp_min(SMALLEST)


@dataclass(frozen=True)
class Beta(Time):
    """Beta-distributed times.

    Args:
        a, b: both positive; ``a > b`` looks more at the data end.
        reweight: weight by the inverse density, so that only the variance changes.
        margin: distance kept from both ends.
    """

    a: float = 2.0
    b: float = 2.0
    reweight: bool = False
    margin: float = 0.0

    def __post_init__(self) -> None:
        positive(self, a=self.a, b=self.b)
        _check_margin(self, self.margin)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        # torch.distributions.Beta takes no generator; the gamma draws beneath it do
        shape = torch.tensor([self.a, self.b], dtype=x.dtype)
        device = draw_device(generator, x.device)
        gammas = torch._standard_gamma(
            shape.to(device).expand(x.shape[0], 2).contiguous(), generator=generator
        ).to(x.device)
        u = (gammas[:, 0] / gammas.sum(1)).clamp(0, 1)
        t = _inside(u, self.margin)
        if not self.reweight:
            return t, torch.ones_like(t)
        law = torch.distributions.Beta(*shape.to(x.device))
        edge = torch.finfo(u.dtype).eps
        density = law.log_prob(u.clamp(edge, 1 - edge)).exp()
        return t, 1 / density.clamp_min(SMALLEST)
