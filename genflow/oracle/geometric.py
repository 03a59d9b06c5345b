"""The exact field of multiplicative diffusion, where the data are a log-normal mixture."""

from __future__ import annotations

from torch import Tensor, nn

from genflow.interpolant.geometric import GeometricBrownian
from genflow.source.log_normal import LogNormalMixture


class GeometricField(nn.Module):
    """The Hyvarinen score of a log-normal mixture under a geometric Brownian motion, as a field:
    ``ReversedGeometric(GeometricField(law, path), path, predicts="hyvarinen", inputs="raw",
    skip=False)``.

    Args:
        law: of the data.
        interpolant: the motion.
    """

    def __init__(self, law: LogNormalMixture, interpolant: GeometricBrownian) -> None:
        super().__init__()
        self.law, self.interpolant = law, interpolant

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.law.hyvarinen(t, x, self.interpolant)
