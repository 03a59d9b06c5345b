"""Features of time that a network can read."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genflow.checks import count


class TimeFeatures(nn.Module):
    r""":math:`t`, and :math:`\cos \pi k t, \sin \pi k t` for ``k = 1..frequencies``.

    Half waves, so that the two ends of [0, 1] differ in every feature.

    Args:
        frequencies: how many; 0 leaves the bare time.
    """

    def __init__(self, frequencies: int = 8) -> None:
        super().__init__()
        count(self, 0, frequencies=frequencies)
        self.frequencies = frequencies
        self.size = 1 + 2 * frequencies
        # whole numbers, exact in every dtype a module may be cast to
        waves = torch.arange(1, frequencies + 1, dtype=torch.get_default_dtype())
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """``t (B,) -> (B, size)``."""
        t = t[:, None]
        if self.frequencies == 0:
            return t
        phase = math.pi * (t * self.waves)
        return torch.cat([t, phase.cos(), phase.sin()], 1)
