"""What a loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from genflow.diagnostics import TiltReport

Learner = Callable[..., Tensor]
"""Any ``f(t, x)`` or ``f(t, x, cond)``: a network, or a process."""


class Loss(ABC):
    """A number for a learner and one batch per marginal. It owns no parameters."""

    @abstractmethod
    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            learner: what is fitted.
            xs: batches ``x0 (B0, *d), ..., xK (BK, *d)``, in the learner's space.
            cond: conditions of the rows of the last marginal.
            generator: where all draws come from: equal states give equal values.
        """

    def check(self, learner: Learner) -> None:
        """Refuse a learner that would be fitted to something else than it is sampled by.

        Raises:
            ValueError: with what is allowed.
        """
        return None

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Loss:
        """Choose from data what was left open (epsilon of ``Gibbs``); returns the loss itself."""
        return self

    def diagnose(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, float]:
        """Numbers worth reporting about this loss on a batch, such as ``ess``."""
        return {}

    def tilt(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TiltReport | None:
        """How the loss's coupling bends the given laws, or ``None`` where it has no coupling."""
        return None
