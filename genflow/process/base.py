"""What a process is: a drift and an applied diffusion on its own span of time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Process(nn.Module, ABC):
    """:math:`dX = f(t, X)\\,dt + g(t, X)\\,dW` on ``span``; called, it is the field that a loss fits.

    Attributes:
        span: start and stop of its clock.
    """

    span: tuple[float, float] = (0.0, 1.0)

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether the diffusion is anything but zero."""

    @abstractmethod
    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Drift at times ``t (B,)`` and states ``x (B, *d)``."""

    @abstractmethod
    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        """The diffusion applied to a Brownian increment ``dw``, in the shape of ``x``."""
