r"""Score matching of positive data, by the Hyvarinen score :math:`h = x \odot \nabla\log p`.

The denoising form is ``Matching(GeometricBrownian(), target=Noise())``. For any :math:`h_\theta` these
two and it differ by constants (Hyvarinen 2007, non-negative score matching; Vincent 2011): they are
here for comparison, and for laws that are known.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genflow.checks import count
from genflow.interpolant.geometric import GeometricBrownian, GeometricSample
from genflow.loss.base import Learner, Loss
from genflow.loss.learners import check_learner
from genflow.process import Process, ReversedGeometric
from genflow.process.density import divergence, rademacher
from genflow.source.log_normal import LogNormalMixture
from genflow.tensors import check_marginals, mean_event
from genflow.time import Time, Uniform


@dataclass(frozen=True)
class _HyvarinenMatching(Loss):
    interpolant: GeometricBrownian = field(default_factory=GeometricBrownian)
    time: Time = field(default_factory=Uniform)
    weighted: bool = True

    def __post_init__(self) -> None:
        for name, role in (("interpolant", GeometricBrownian), ("time", Time)):
            part = getattr(self, name)
            if not isinstance(part, role):
                raise TypeError(
                    f"{type(self).__name__}({name}={part!r}): {name} must be a {role.__name__}"
                )

    def check(self, learner: Learner) -> None:
        if isinstance(learner, Process) and not isinstance(learner, ReversedGeometric):
            raise ValueError(
                f"{type(self).__name__} teaches a Hyvarinen score, by which a "
                f"{type(learner).__name__} is not sampled: use process=reversed_geometric"
            )
        check_learner(learner, self.interpolant, None)

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Loss:
        for part in (self.interpolant, self.time):
            if hasattr(part, "prepare"):
                part.prepare(*xs, cond=cond)
        return self

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        check_marginals(type(self).__name__, *xs)
        x1 = xs[-1]
        t, weight = self.time(x1, generator)
        sample = self.interpolant.sample(t, x1, x1, generator=generator)
        rows = self._rows(learner, sample, cond, generator)
        if self.weighted:
            weight = weight * self.interpolant.law(t).variance
        return (weight * rows).mean()

    def _score(self, learner: Learner, t: Tensor, x: Tensor, cond: Tensor | None) -> Tensor:
        ask = getattr(learner, "hyvarinen", learner)
        return ask(t, x) if cond is None else ask(t, x, cond)

    @abstractmethod
    def _rows(
        self,
        learner: Learner,
        sample: GeometricSample,
        cond: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The loss of each row, ``(B,)``."""


@dataclass(frozen=True)
class ExplicitScoreMatching(_HyvarinenMatching):
    r""":math:`\frac12 E[V\,|h_\theta - h|^2]` with the exact score of a law that is known; mean over
    event dimensions.

    Args:
        interpolant: the motion.
        time: where on it to look.
        weighted: with :math:`V(t)`, or without.
        law: of the data as the learner sees them, after the transform.
    """

    law: LogNormalMixture | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.law, "hyvarinen"):
            raise TypeError(
                f"ExplicitScoreMatching(law={self.law!r}): law must know its Hyvarinen score, as a "
                "LogNormalMixture does"
            )

    def _rows(self, learner, sample, cond, generator):  # type: ignore[override]
        exact = self.law.hyvarinen(sample.t, sample.x, self.interpolant)
        return mean_event((self._score(learner, sample.t, sample.x, cond) - exact) ** 2) / 2


@dataclass(frozen=True)
class ImplicitScoreMatching(_HyvarinenMatching):
    r""":math:`E[V \sum_i (\frac12 h_i^2 + h_i + x_i \partial_i h_i)]`, which needs no target: the score
    that it fits is that of the data themselves; mean over event dimensions (Hyvarinen 2007).

    Args:
        interpolant: the motion.
        time: where on it to look.
        weighted: with :math:`V(t)`, or without.
        probes: signs of Hutchinson's estimate of the derivatives; ``None`` takes all of them, one
            backward pass a dimension.
    """

    probes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes is not None:
            count(self, probes=self.probes)

    def _rows(self, learner, sample, cond, generator):  # type: ignore[override]
        y = sample.x.log().requires_grad_()
        signs = None if self.probes is None else rademacher(y, self.probes, generator)
        training = torch.is_grad_enabled()
        h, change = divergence(
            lambda y: self._score(learner, sample.t, y.exp(), cond), y, signs, differentiable=training
        )
        return mean_event(h**2 / 2 + h) + change / y[0].numel()
