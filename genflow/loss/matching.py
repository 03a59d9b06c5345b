"""Matching: regression on a field along random paths between coupled points.

One class spans interpolant x coupling x time x target: conditional flow matching, OT-CFM,
weighted CFM, SB-CFM and bridge matching are five choices of parts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from genflow.checks import non_negative
from genflow.coupling import (
    Coupling,
    Gibbs,
    Independent,
    Transport,
    effective_sample_size,
)
from genflow.coupling.sides import Conditions, side_conditions
from genflow.diagnostics import TiltReport, tilt_report
from genflow.interpolant import Interpolant, Linear, PathSample
from genflow.loss.base import Learner, Loss
from genflow.loss.learners import check_learner
from genflow.target import Target, Velocity
from genflow.tensors import check_marginals, expand
from genflow.time import Time, Uniform

OWN = (Gibbs, Independent, Transport)
"""Couplings that refuse batches which do not fit; checking twice costs a hundredth of a small step."""


@dataclass(frozen=True)
class Regression:
    """One draw of the regression problem behind :class:`Matching`.

    Attributes:
        sample: the path sample; ``sample.t`` and ``sample.x`` are the learner's inputs.
        target: what to regress on, ``(B, *d)``, or a dict of them.
        weight: ``(B,)``, of mean about one.
        cond: conditions of the rows, or ``None``.
        even: whether all weights are one.
    """

    sample: PathSample
    target: Tensor | dict[str, Tensor]
    weight: Tensor
    cond: Tensor | None
    even: bool = False


@dataclass(frozen=True)
class Matching(Loss):
    r""":math:`E\,[w\,|f(t, x_t) - T|^2]`, mean over event dimensions and batch.

    >>> loss = Matching(Linear(), Gibbs(epsilon=0.2))(net, x0, x1)  # doctest: +SKIP

    Args:
        interpolant: how paths run.
        coupling: which points are paired, with which weight.
        time: where on the path to look, with which weight.
        target: the field to learn, or a dict of them for a learner that returns a dict with the
            same keys; the losses of several fields are added.
        antithetic: look at every draw a second time with its noise turned round, and average. The
            gradient of the velocity's loss then stays bounded where the rate of the width does not
            (Albergo, Boffi & Vanden-Eijnden 2023), for twice the evaluations.
        field_weights: how much the loss of each field of a dict counts; ones if absent. Worth setting
            where fields share a trunk and one is much larger, as a velocity is beside a noise.

    Raises:
        ValueError: if a target is not defined on the interpolant, or the interpolant allows independent
            pairs alone and the coupling makes others.
    """

    interpolant: Interpolant = field(default_factory=Linear)
    coupling: Coupling = field(default_factory=Independent)
    time: Time = field(default_factory=Uniform)
    target: Target | Mapping[str, Target] = field(default_factory=Velocity)
    antithetic: bool = False
    field_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, role in (("interpolant", Interpolant), ("coupling", Coupling), ("time", Time)):
            part = getattr(self, name)
            if not isinstance(part, role):
                raise TypeError(f"Matching({name}={part!r}): {name} must be a {role.__name__}")
        targets = self.target.values() if isinstance(self.target, Mapping) else [self.target]
        for target in targets:
            if not isinstance(target, Target):
                raise TypeError(f"Matching(target={target!r}): target must be a Target")
            target.check(self.interpolant)
        parameters = getattr(self.interpolant, "parameters", tuple)()
        if any(p.requires_grad for p in parameters):
            raise ValueError(
                f"Matching: the regression would bend {type(self.interpolant).__name__} to make itself "
                "easy; learn an interpolant by BridgeMatching, or freeze it by requires_grad_(False)"
            )
        if self.interpolant.independent and not getattr(self.coupling, "independent", False):
            raise ValueError(
                f"Matching: {self.interpolant} is right for independent pairs alone, but the coupling "
                f"is {self.coupling}; use coupling=independent or a two-sided interpolant"
            )
        if self.field_weights is not None:
            self._check_weights(self.field_weights)
        if self.antithetic and not getattr(self.interpolant, "stochastic", True):
            raise ValueError(
                f"Matching(antithetic=True): {self.interpolant} has no noise to turn round; use "
                "antithetic=False or an interpolant with a gamma"
            )

    def _check_weights(self, weights: Mapping[str, float]) -> None:
        names = self.target.keys() if isinstance(self.target, Mapping) else ()
        if set(weights) != set(names):
            raise ValueError(
                f"Matching(field_weights={dict(weights)}): give one weight for each field of the "
                f"target dict, which has {sorted(names)}"
            )
        non_negative(self, **{f"field_weights.{name}": weight for name, weight in weights.items()})

    def check(self, learner: Learner) -> None:
        check_learner(learner, self.interpolant, self.target)

    def prepare(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
    ) -> Matching:
        for part in (self.interpolant, self.coupling, self.time):
            if hasattr(part, "prepare"):
                given = self._weights(weights) if part is self.coupling else {}
                part.prepare(*xs, cond=cond, **given)
        return self

    def _weights(self, weights: Sequence[Tensor | None] | None) -> dict[str, Any]:
        """The argument for the coupling, where there are weights; a coupling may not know them."""
        if weights is None:
            return {}
        known = inspect.signature(type(self.coupling).__call__).parameters.values()
        if not any(p.name == "weights" or p.kind is p.VAR_KEYWORD for p in known):
            raise ValueError(
                f"Matching: weights were given but {type(self.coupling).__name__} takes none; let its "
                "__call__ accept weights="
            )
        return {"weights": weights}

    def draw(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Regression:
        """Couple the batches, draw times and paths, and form the targets.

        Args:
            xs: batches of the marginals, of equal or unequal sizes.
            cond: conditions of the rows of the last marginal, which follow its indices; or one entry
                for each marginal, for couplings that heed those of both sides.
            weights: how much each row counts, ``(B_k,)`` or ``None`` for each marginal.
            generator: where all draws come from.
        """
        own = None
        if cond is not None or not isinstance(self.coupling, OWN):  # which check what they are given
            check_marginals("Matching", *xs)
            own = side_conditions("Matching", xs, cond)[-1]
        given = self._weights(weights)
        # costs and weights need their full precision; whatever is no tensor the coupling refuses
        kind = xs[0].device.type if xs and isinstance(xs[0], Tensor) else "cpu"
        lowered = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if lowered else nullcontext():
            plan = self.coupling(*xs, cond=cond, generator=generator, **given)
        coupled = plan.gather(*xs)
        t, time_weight = self.time(coupled[-1], generator)
        sample = self.interpolant.sample(t, *coupled, generator=generator)
        if own is not None and not plan.aligned:
            own = own[plan.indices[-1]]
        weight = plan.weight if self.time.even else plan.weight * time_weight
        even = plan.even and self.time.even
        return Regression(sample, self._target(sample), weight, own, even)

    def _target(self, sample: PathSample) -> Tensor | dict[str, Tensor]:
        if isinstance(self.target, Mapping):
            return {name: part(sample) for name, part in self.target.items()}
        return self.target(sample)

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            learner: any ``f(t, x)``, or ``f(t, x, cond)`` where there are conditions.
            xs, cond, weights, generator: as in :meth:`draw`.
        """
        draw = self.draw(*xs, cond=cond, weights=weights, generator=generator)
        loss = self._regress(learner, draw)
        if not self.antithetic:
            return loss
        turned = draw.sample.reflected
        draw = replace(draw, sample=turned, target=self._target(turned))
        return (loss + self._regress(learner, draw)) / 2

    def _regress(self, learner: Learner, draw: Regression) -> Tensor:
        inputs = (draw.sample.t, draw.sample.x)
        output = learner(*inputs) if draw.cond is None else learner(*inputs, draw.cond)
        if not isinstance(draw.target, dict):
            return self._error(output, draw.target, draw)
        if not isinstance(output, Mapping) or output.keys() != draw.target.keys():
            got = sorted(output) if isinstance(output, Mapping) else "one tensor"
            raise ValueError(
                f"Matching: the learner must return a dict with keys {sorted(draw.target)}, got {got}; "
                f"use a network with outputs=[{', '.join(draw.target)}], or another target"
            )
        shares = self.field_weights or dict.fromkeys(draw.target, 1.0)
        errors = [shares[k] * self._error(output[k], v, draw) for k, v in draw.target.items()]
        return torch.stack(errors).sum()

    def _error(self, output: Tensor, target: Tensor, draw: Regression) -> Tensor:
        if isinstance(output, Mapping):
            raise ValueError(
                f"Matching: the learner returned the fields {sorted(output)}, but the target is one, "
                f"{self.target}; use a network with outputs=null, or a dict of targets"
            )
        if output.shape != target.shape:
            raise ValueError(
                f"Matching: the learner returned {tuple(output.shape)}, expected "
                f"{tuple(target.shape)} like x"
            )
        if draw.even:
            return mse_loss(output, target)
        root = expand(draw.weight.sqrt(), output)  # one fused kernel each way instead of four
        return mse_loss(output * root, target * root)

    @torch.no_grad()
    def diagnose(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, float]:
        """``ess``: effective sample size of the coupling's weights on this batch, a fraction."""
        plan = self.coupling(*xs, cond=cond, generator=generator)
        return {"ess": float(effective_sample_size(plan.weight))}

    def tilt(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TiltReport | None:
        return tilt_report(self.coupling, *xs, cond=cond, generator=generator) if len(xs) == 2 else None
