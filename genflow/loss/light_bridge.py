"""The objective of light Schrödinger bridges, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.loss.base import Learner, Loss
from genflow.tensors import check_marginals


@dataclass(frozen=True)
class LightBridgeKL(Loss):
    r""":math:`E_{p_0}\log c(x_0) - E_{p_1}\log v(x_1)`, which is :math:`KL(\pi^*\|\pi)` of the entropic
    plan and the learner's, up to a constant of the data (Korotin, Gushchin & Burnaev 2024, "Light
    Schrödinger bridge").

    It needs samples of both laws and no pairs: batches may differ in size, and nothing is drawn.

    Without any learning rate the same objective is lowered by ``LightBridge.fit``; this is for data of
    any size, and for training among other losses. ``Matching(BrownianBridge(sigma), coupling,
    target=Drift(sigma))`` has, times :math:`D/(2\varepsilon)` and whatever the coupling, the same
    gradient in expectation (Gushchin et al. 2024, "Light and optimal Schrödinger bridge matching").

    >>> loss = LightBridgeKL()(bridge, x0, x1)  # doctest: +SKIP
    """

    def check(self, learner: Learner) -> None:
        if not callable(getattr(learner, "objective", None)):
            raise ValueError(
                "LightBridgeKL needs the potential of a light bridge, which "
                f"{type(learner).__name__} does not have: use process=LightBridge(...)"
            )

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The objective, a scalar in float64.

        Args:
            learner: a ``LightBridge``.
            xs: ``x0 (B0, *d)`` and ``x1 (B1, *d)``.
            cond: refused: a light bridge has no conditions.
            generator: not used.

        Raises:
            ValueError: for another learner, other than two marginals, or conditions.
        """
        self.check(learner)
        if cond is not None:
            raise ValueError("LightBridgeKL: a light bridge has no conditions; leave cond out")
        check_marginals("LightBridgeKL", *xs)
        if len(xs) > 2:
            raise ValueError(f"LightBridgeKL bridges two marginals (x0, x1), got {len(xs)}")
        return learner.objective(*xs)
