"""A learned drift with constant noise; without noise, an ODE."""

from __future__ import annotations

from torch import Tensor, nn

from genflow.checks import non_negative
from genflow.process.base import Process


class SDE(Process):
    r""":math:`dX = f(t, X)\,dt + \sigma\,dW` with a network as drift.

    With ``sigma=0`` this is the ODE of flow matching, and the network learns its velocity; with
    ``sigma > 0`` the loss's target should be ``Drift(sigma)``.

    Args:
        network: ``forward(t, x, cond=None) -> (B, *d)``.
        sigma: diffusion coefficient, per square root of time.
    """

    def __init__(self, network: nn.Module, sigma: float = 0.0) -> None:
        super().__init__()
        non_negative(self, sigma=sigma)
        self.network, self.sigma = network, sigma

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.network(t, x) if cond is None else self.network(t, x, cond)

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.forward(t, x, cond)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return self.sigma * dw
