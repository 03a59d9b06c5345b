"""Learning-rate schedules that a resumed run may prolong."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Cosine(LambdaLR):
    """Half a cosine from the optimizer's learning rate to zero at ``steps``.

    torch's ``CosineAnnealingLR`` keeps its length in the checkpoint and computes each rate from the
    one before: a finished run that is resumed with more steps would stay at zero. This one keeps
    neither.
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        super().__init__(optimizer, lambda k: (1 + math.cos(math.pi * min(1.0, k / steps))) / 2)
