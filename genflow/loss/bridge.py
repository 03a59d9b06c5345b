r"""Learning an interpolant towards the Schrödinger bridge, together with its drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genflow.coupling import Coupling, Independent
from genflow.coupling.sides import Conditions
from genflow.diagnostics import TiltReport
from genflow.interpolant import Affine, Coefficients, PathSample
from genflow.loss.base import Learner, Loss
from genflow.loss.matching import Matching, Regression
from genflow.process import LearnedBridge
from genflow.target import Drift
from genflow.tensors import mean_event
from genflow.time import Time, Uniform


@dataclass(frozen=True)
class BridgeMatching(Loss):
    r"""The Schrödinger bridge of :math:`dX = \sigma dW` as a game, the interpolant's maximum of the
    drift's minimum (Albergo, Boffi & Vanden-Eijnden 2023):

    .. math:: \max_{\alpha,\beta,\gamma}\ \min_u\ \int_0^1
              E\big[\tfrac12|u(t, x_t)|^2 - T \cdot u(t, x_t)\big]\,dt,\qquad
              T = \dot I + \frac{\gamma\dot\gamma - \sigma^2/2}{\gamma}\,z.

    The minimum over :math:`u` is :math:`-\frac12\int E|b_F|^2`, minus the kinetic energy of the drift
    that has the interpolant's marginals; the path of least energy is the bridge's. One backward pass
    descends in the drift and ascends in the interpolant, whose gradients are turned round. Each draw is
    looked at with both signs of its noise, which keeps the variance bounded at both ends.

    The value is the integrand's mean over event dimensions, at the optimum minus half the energy per
    dimension. It is *not* a squared error: that differs by :math:`|T|^2/2`, which depends on the
    interpolant and would mislead it.

    **What it can reach.** The best of the marginals that the interpolant makes from the pairs of the
    coupling. With independent pairs these include the bridge's for isotropic Gaussian laws, and hardly
    for others; both ends are kept in any case. Entropic pairs with ``BrownianBridge(sigma)`` are the
    bridge for all laws, with nothing to learn but the drift: ``Matching`` with ``Drift(sigma)``.

    Args:
        coupling: which points are paired, with which weight.
        time: where on the path to look; its margin keeps off the ends, where the target diverges.

    Raises:
        ValueError: when called, for a learner other than a ``LearnedBridge``, or a coupling that its
            interpolant does not allow.
    """

    coupling: Coupling = field(default_factory=Independent)
    time: Time = field(default_factory=lambda: Uniform(1e-3))

    def __post_init__(self) -> None:
        Matching(coupling=self.coupling, time=self.time)  # refuses what is neither

    def check(self, learner: Learner) -> None:
        if not isinstance(learner, LearnedBridge):
            raise ValueError(
                f"BridgeMatching learns a drift and its interpolant, which {type(learner).__name__} "
                "does not own: use LearnedBridge(network, LearnedAffine(), sigma)"
            )

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> BridgeMatching:
        Matching(coupling=self.coupling, time=self.time).prepare(*xs, cond=cond)
        return self

    def __call__(
        self,
        learner: LearnedBridge,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The value of the game, a scalar; its gradients descend in the network and ascend in the
        interpolant.

        Args:
            learner: a ``LearnedBridge``.
            xs, cond, weights, generator: as for ``Matching.draw``.
        """
        self.check(learner)
        target = Drift(learner.sigma)
        rules = Matching(_Turned(learner.interpolant), self.coupling, self.time, target)
        draw = rules.draw(*xs, cond=cond, weights=weights, generator=generator)
        return (
            _value(learner, draw.sample, target, draw)
            + _value(learner, draw.sample.reflected, target, draw)
        ) / 2

    def diagnose(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, float]:
        """``ess``: effective sample size of the coupling's weights on this batch, a fraction."""
        return Matching(coupling=self.coupling).diagnose(*xs, cond=cond, generator=generator)

    def tilt(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TiltReport | None:
        return Matching(coupling=self.coupling).tilt(*xs, cond=cond, generator=generator)


def _value(learner: Learner, sample: PathSample, target: Drift, draw: Regression) -> Tensor:
    args = (sample.t, sample.x) if draw.cond is None else (sample.t, sample.x, draw.cond)
    drift = learner(*args)
    return (draw.weight * mean_event(drift * (drift / 2 - target(sample)))).mean()


class _Turned(Affine):
    """An interpolant whose parameters receive the opposite of their gradients."""

    def __init__(self, path: Affine) -> None:
        self.path, self.stochastic, self.independent = path, path.stochastic, path.independent

    def coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(*map(_Opposite.apply, self.path.coefficients(t)))


class _Opposite(torch.autograd.Function):
    """Itself, with the opposite gradient: descent becomes ascent."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient
