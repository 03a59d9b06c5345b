"""Combinators: weighted sums of losses, and losses on a part of the learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from genflow.diagnostics import TiltReport
from genflow.loss.base import Learner, Loss


@dataclass(frozen=True)
class Sum(Loss):
    """A weighted sum of losses on the same learner and batch.

    Args:
        losses: the terms.
        weights: one a term; ones if absent.
    """

    losses: Sequence[Loss]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.losses:
            raise ValueError("Sum(losses=[]): give at least one loss")
        if self.weights is not None and len(self.weights) != len(self.losses):
            raise ValueError(
                f"Sum: {len(self.weights)} weights for {len(self.losses)} losses; give one each"
            )

    def check(self, learner: Learner) -> None:
        for loss in self.losses:
            loss.check(learner)

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Sum:
        for loss in self.losses:
            loss.prepare(*xs, cond=cond)
        return self

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        weights = self.weights or [1.0] * len(self.losses)
        terms = [loss(learner, *xs, cond=cond, generator=generator) for loss in self.losses]
        return torch.stack([w * term for w, term in zip(weights, terms)]).sum()

    def diagnose(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, float]:
        found = [loss.diagnose(*xs, cond=cond, generator=generator) for loss in self.losses]
        return {k: v for numbers in reversed(found) for k, v in numbers.items()}

    def tilt(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TiltReport | None:
        found = (loss.tilt(*xs, cond=cond, generator=generator) for loss in self.losses)
        return next((report for report in found if report is not None), None)


@dataclass(frozen=True)
class On(Loss):
    """A loss on a part of the learner, named by its attribute path.

    Args:
        part: such as ``"denoiser"`` or ``"heads.score"``.
        loss: what is computed on it.
    """

    part: str
    loss: Loss

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> On:
        self.loss.prepare(*xs, cond=cond)
        return self

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        part = reduce(getattr, self.part.split("."), learner)
        return self.loss(part, *xs, cond=cond, generator=generator)

    def diagnose(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, float]:
        return self.loss.diagnose(*xs, cond=cond, generator=generator)

    def tilt(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TiltReport | None:
        return self.loss.tilt(*xs, cond=cond, generator=generator)
