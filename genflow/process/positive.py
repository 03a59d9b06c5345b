r"""Processes on positive numbers, given by the motion of their logarithms.

For :math:`Y = \log X`, :math:`dY = f\,dt + w\,dW`, Ito's formula gives
:math:`dX = X \odot (f + w^2/2)\,dt + X \odot w\,dW`. Solvers step :math:`Y`, so that no step, however
large, leaves the positive numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from genflow.process.base import Chart, Process
from genflow.tensors import check_positive, sum_event


class PositiveProcess(Process):
    """A process on positive states ``(B, *d)``; subclasses say how logarithms ``y`` move."""

    @abstractmethod
    def log_drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        """Drift of the logarithms. Where a process looks ahead, these three take the row as ``at=``."""

    def log_backward_drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        """Drift of the logarithms on the way from stop to start."""
        raise NotImplementedError(f"{type(self).__name__} does not run backwards")

    @abstractmethod
    def log_width(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion coefficient of the logarithms, broadcast over ``y``."""

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None, at: Any = None) -> Tensor:
        """Ito drift of the states themselves; of states that have lost their sign, in absolute
        value."""
        y = log_size(x)
        return x * (
            self.log_drift(t, y, cond, **_row(at)) + self.log_width(t, y, **_row(at)).square() / 2
        )

    def backward_drift(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None, at: Any = None
    ) -> Tensor:
        y = log_size(x)
        return x * (
            self.log_backward_drift(t, y, cond, **_row(at))
            - self.log_width(t, y, **_row(at)).square() / 2
        )

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor, at: Any = None) -> Tensor:
        return x * self.log_width(t, log_size(x), **_row(at)) * dw

    def chart(self) -> Chart:
        return Chart(Logarithm(self), self._log, torch.exp, lambda x: -sum_event(x.log()))

    def _log(self, x: Tensor) -> Tensor:
        remedy = "start from source=log_normal, and take data through transform=positive"
        check_positive(f"{type(self).__name__}: states", x, remedy=remedy)
        return x.log()


class Logarithm(Process):
    """The motion of the logarithms of a process on positive numbers."""

    def __init__(self, process: PositiveProcess) -> None:
        super().__init__()
        self.process, self.span = process, process.span

    @property
    def stochastic(self) -> bool:
        return self.process.stochastic

    @property
    def reversible(self) -> bool:
        return self.process.reversible

    def look_ahead(self, times: Tensor) -> list[Any] | None:
        return self.process.look_ahead(times)

    def drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None, at: Any = None) -> Tensor:
        return self.process.log_drift(t, y, cond, **_row(at))

    def backward_drift(
        self, t: Tensor, y: Tensor, cond: Tensor | None = None, at: Any = None
    ) -> Tensor:
        return self.process.log_backward_drift(t, y, cond, **_row(at))

    def diffusion(self, t: Tensor, y: Tensor, dw: Tensor, at: Any = None) -> Tensor:
        return self.process.log_width(t, y, **_row(at)) * dw

    def density_terms(
        self, t: Tensor, y: Tensor, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of a stochastic interpolant, for the density of the logarithms."""
        return self.process.log_density_terms(t, y, cond)


def _row(at: Any) -> dict[str, Any]:
    return {} if at is None else {"at": at}


def log_size(x: Tensor) -> Tensor:
    """Logarithms of sizes, finite at zero."""
    return x.abs().clamp_min(torch.finfo(x.dtype).tiny).log()
