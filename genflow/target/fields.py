r"""Regression targets. The least-squares learner of each is its mean given :math:`x_t`.

========== ============================================ ==========================================
target     value                                        learner at the optimum
========== ============================================ ==========================================
Velocity   :math:`\dot I + \dot\gamma z`                :math:`b`, of the probability-flow ODE
Rate       :math:`\dot I`                               :math:`v`
Noise      :math:`z`                                    :math:`\eta`, with score :math:`-\eta/\gamma`
Score      :math:`-z/\gamma`                            :math:`s = \nabla\log\rho_t`
Drift      velocity + :math:`\sigma^2/2` score          drift of :math:`dX = f dt + \sigma dW`
Denoised   :math:`x_1`                                  :math:`E[x_1|x_t]`
Hyvarinen  :math:`-1 - z/\gamma` (multiplicative noise)  :math:`x\odot\nabla\log\rho_t`
========== ============================================ ==========================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import non_negative
from genflow.interpolant import Interpolant, PathSample
from genflow.interpolant.base import width_floor


class Target(ABC):
    """A function of one path sample, ``(B, *d)``."""

    needs_width: bool = False
    additive: bool | None = None
    """Defined where noise is added to the path (``True``), multiplied into it (``False``), or both."""

    @abstractmethod
    def __call__(self, sample: PathSample) -> Tensor:
        """The value to regress on, of the shape of ``sample.x``."""

    def check(self, interpolant: Interpolant) -> None:
        """Refuse an interpolant that this target is not defined on.

        Raises:
            ValueError: if the target needs a path of positive width and the interpolant has none.
        """
        if self.needs_width and not getattr(interpolant, "stochastic", True):
            raise ValueError(
                f"target {self} is not defined on {interpolant}: a path of zero width adds no "
                "noise and has no score; use BrownianBridge(sigma), Linear(sigma=...) or an "
                "interpolant with a gamma, or the target Velocity(), Rate() or Denoised()"
            )
        additive = getattr(interpolant, "additive", True)
        if self.additive is not None and self.additive != additive:
            how = "added to" if additive else "multiplied into"
            raise ValueError(
                f"target {self} is not defined on {interpolant}, whose noise is {how} the path; use "
                f"the target Noise(), "
                f"{'Score() or Velocity()' if additive else 'Hyvarinen() or Score()'}"
            )


@dataclass(frozen=True)
class Velocity(Target):
    """The time derivative of the path; the learner becomes the velocity of the ODE."""

    def __call__(self, sample: PathSample) -> Tensor:
        return sample.velocity


@dataclass(frozen=True)
class Rate(Target):
    """The time derivative of the part without noise, bounded at both ends."""

    additive = True

    def __call__(self, sample: PathSample) -> Tensor:
        return sample.rate


@dataclass(frozen=True)
class Noise(Target):
    """The standard normal that was added: the recommended way to learn a score."""

    needs_width = True

    def __call__(self, sample: PathSample) -> Tensor:
        return sample.noise


@dataclass(frozen=True)
class Score(Target):
    """The conditional score; its variance diverges at both ends, so prefer :class:`Noise`."""

    needs_width = True

    def __call__(self, sample: PathSample) -> Tensor:
        return sample.score


@dataclass(frozen=True)
class Hyvarinen(Target):
    r"""The conditional Hyvarinen score :math:`x\odot\nabla\log p`, of multiplicative noise; its
    variance diverges at the data, so prefer :class:`Noise` (Shetty et al. 2025)."""

    needs_width = True
    additive = False

    def __call__(self, sample: PathSample) -> Tensor:
        return sample.hyvarinen


@dataclass(frozen=True)
class Drift(Target):
    r"""Drift of :math:`dX = f\,dt + \sigma\,dW` with the path's marginals.

    Computed as :math:`\dot I + \frac{\gamma\dot\gamma - \sigma^2/2}{\gamma} z`, which never adds two
    diverging terms: on ``BrownianBridge(sigma)`` it is :math:`(x_1-x_t)/(1-t)`, zero-noise limit
    at :math:`t=0` included.

    Args:
        sigma: diffusion coefficient, zero (then it is the velocity) or positive.
    """

    sigma: float = 1.0
    additive = True

    def __post_init__(self) -> None:
        non_negative(self, sigma=self.sigma)

    @property
    def needs_width(self) -> bool:
        return self.sigma > 0

    def __call__(self, sample: PathSample) -> Tensor:
        if self.sigma == 0:
            return sample.velocity
        excess = sample.gamma_dgamma - self.sigma**2 / 2
        slope = torch.where(excess == 0, excess, excess / width_floor(sample.gamma))
        return sample.rate + slope * sample.noise


@dataclass(frozen=True)
class Denoised(Target):
    """The data end of the path, :math:`x_1`."""

    def __call__(self, sample: PathSample) -> Tensor:
        return sample.xs[-1]
