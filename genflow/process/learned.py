"""A drift together with the interpolant that is learned beside it."""

from __future__ import annotations

from torch import nn

from genflow.checks import positive
from genflow.interpolant import Affine
from genflow.process.sde import SDE


class LearnedBridge(SDE):
    r""":math:`dX = u(t, X)\,dt + \sigma\,dW` with a network as drift, and the interpolant whose
    marginals it has; ``genflow.loss.BridgeMatching`` learns both. Solvers run it like any ``SDE``, and
    the learned schedule travels in its checkpoint.

    Args:
        network: ``forward(t, x, cond=None) -> (B, *d)``.
        interpolant: such as ``LearnedAffine(a=sigma**2)``; one without parameters stays as it is.
        sigma: diffusion coefficient of the reference :math:`dX = \sigma dW`, positive.

    Raises:
        ValueError: for an interpolant that is not affine or has no width.
    """

    def __init__(self, network: nn.Module, interpolant: Affine, sigma: float = 1.0) -> None:
        super().__init__(network, sigma)
        positive(self, sigma=sigma)
        if not isinstance(interpolant, Affine) or not interpolant.stochastic:
            raise ValueError(
                f"LearnedBridge(interpolant={interpolant}): an SDE needs an affine interpolant of "
                "positive width, such as LearnedAffine() or BrownianBridge(sigma)"
            )
        self.interpolant = interpolant
