"""What a process is: a drift and an applied diffusion on its own span of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Chart:
    """A process seen in other coordinates.

    Attributes:
        process: what moves there.
        into, back: from states ``(n, *d)`` to coordinates, and back.
        log_abs_det: of the Jacobian of ``into`` at states: ``(n,)``.
    """

    process: Process
    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    log_abs_det: Callable[[Tensor], Tensor]


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

    @property
    def reversible(self) -> bool:
        """Whether it can be run from stop to start: an ODE can, noise needs a score."""
        return not self.stochastic

    @property
    def reach(self) -> tuple[float, float]:
        """The times that a solver may visit: the span, and for some processes what lies past it."""
        return self.span

    def prepare(self, *xs: Tensor) -> Process:
        """Fit what depends on data, in place, from marginals ``(B, *d)`` in its own space; most
        processes need nothing."""
        return self

    @abstractmethod
    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Drift at times ``t (B,)`` and states ``x (B, *d)``."""

    def backward_drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Drift of the process that passes the same laws from stop to start,
        :math:`f - g^2\nabla\log\rho_t`; that of an ODE is its drift."""
        return self.drift(t, x, cond)

    @abstractmethod
    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        """The diffusion applied to a Brownian increment ``dw``, in the shape of ``x``."""

    def chart(self) -> Chart | None:
        """Coordinates in which solvers step, where they are not the states themselves."""
        return None

    def look_ahead(self, times: Tensor) -> list[Any] | None:
        """What depends on the time alone, for all ``times (G,)`` of a run at once, or ``None``; drifts
        and ``diffusion`` then take their row as ``at=``, which saves a dozen kernels a step."""
        return None

    def known(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        """The fields that this process knows, by name (``velocity``, ``noise``, ``drift``, ...)."""
        return {"drift" if self.stochastic else "velocity": self.drift(t, x, cond)}
