"""Small known drifts that several tests run or fit."""

import torch
from torch import Tensor, nn

from genflow.process import Process
from genflow.solver import Field


class Affine(nn.Module):
    """``f(t, x) = A x + b``; with a condition, ``b + cond``."""

    def __init__(self, matrix, offset=None) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.as_tensor(matrix, dtype=torch.float64))
        offset = torch.zeros(len(self.matrix)) if offset is None else torch.as_tensor(offset)
        self.offset = nn.Parameter(offset.double())

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        out = x @ self.matrix.T + self.offset
        return out if cond is None else out + cond.to(out)[:, None]


class Oscillating(nn.Module):
    """``f(t, x) = cos(5 t) x``, whose flow over [0, t] multiplies by ``exp(sin(5 t) / 5)``."""

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.cos(5 * t)[:, None] * x


class Still(nn.Module):
    """``f(t, x) = 0`` for events of any shape."""

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


class Growing(Process):
    """``dX = -X dt + sqrt(2 t) dW``: noise that depends on time, with known moments."""

    stochastic = True

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return -x

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return (2 * t).sqrt()[:, None] * dw


class OneDraw(Field):
    """A field whose noise is zero but for one draw of a step, number ``chosen``, of which it is the
    standard deviation: a solver's ``step`` then tells the factor of that draw."""

    def __init__(self, process, chosen=None, backward=False) -> None:
        super().__init__(process, None, backward)
        self.chosen, self.drawn = chosen, -1

    def noise(self, t, x, length, generator=None):
        self.drawn += 1
        dw = torch.full_like(x, abs(length) ** 0.5 * (self.drawn == self.chosen))
        return self.process.diffusion(self._rows(t, x), x, dw)
