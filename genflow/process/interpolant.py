"""The process of a stochastic interpolant: one training, any amount of noise."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from genflow.checks import between
from genflow.interpolant import Affine
from genflow.process.base import Process
from genflow.process.noise import Epsilon, amount, check_epsilon, check_values
from genflow.tensors import expand

NAMES = ("velocity", "rate", "noise", "score", "denoised")
CLOSE = 0.01
"""Fraction of the largest width below which nothing is divided by the width."""


class StochasticInterpolant(Process):
    r"""The ODE and all SDEs with the marginals of a stochastic interpolant
    (Albergo, Boffi & Vanden-Eijnden 2023):

    .. math:: dX = (b + \epsilon s)\,dt + \sqrt{2\epsilon}\,dW,\qquad
              dX = (b - \epsilon s)\,dt + \sqrt{2\epsilon}\,d\bar W \text{ (from 1 to 0)},

    with the velocity :math:`b`, the score :math:`s = -\eta/\gamma` of the noise field :math:`\eta`, and
    any :math:`\epsilon(t) \ge 0`, chosen when sampling: ``model.sample(n, epsilon=0.5)``.

    Args:
        fields: ``forward(t, x, cond=None)`` gives a dict of fields ``(B, *d)``: ``velocity``, or
            ``rate`` with ``noise`` or ``score``; with noise or score for any ``epsilon`` but 0. On
            one-sided and mirror paths ``noise``, ``score`` or ``denoised`` suffices, on one-sided ones
            ``velocity`` too. Such are ``MLP(outputs=[...])`` and ``Heads``.
        interpolant: the affine interpolant of the training.
        epsilon: unless ``sample`` is told otherwise: a number (0 is the ODE), ``"gamma"`` or
            ``"gamma_squared"``. Functions of the time are given when sampling.
        taper: a constant ``epsilon`` falls with the width where that is below this fraction of its
            maximum: the law stays, and errors of the noise near both ends are not blown up.

    Raises:
        TypeError, ValueError: for an interpolant that is not affine, fields that do not suffice, and an
            ``epsilon`` that is negative, not finite, or unknown.
    """

    def __init__(
        self,
        fields: nn.Module,
        interpolant: Affine,
        epsilon: float | str = 0.0,
        taper: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(interpolant, Affine):
            raise TypeError(
                f"StochasticInterpolant(interpolant={interpolant!r}): interpolant must be an affine one"
            )
        between(self, 0, 1, taper=taper)
        check_epsilon(epsilon)
        if callable(epsilon):
            raise ValueError(
                "StochasticInterpolant(epsilon=<function>): a function cannot be saved with the model; "
                "pass it to sample(epsilon=...)"
            )
        self.fields, self.interpolant, self.taper = fields, interpolant, taper
        self.epsilon: Epsilon = epsilon
        self._check_fields()

    @property
    def stochastic(self) -> bool:
        return self.epsilon != 0

    @property
    def reversible(self) -> bool:
        return True

    def with_epsilon(self, epsilon: Epsilon, times: Tensor | None = None) -> StochasticInterpolant:
        """The same fields sampled with another ``epsilon``; they are shared, not copied.

        Args:
            epsilon: a number, ``"gamma"``, ``"gamma_squared"`` or a function of times ``(B,)``.
            times: where a function is looked at beforehand.

        Raises:
            ValueError: if it is negative or not finite, or the fields know no score.
        """
        check_epsilon(epsilon)
        if times is not None:
            check_values(epsilon, times)
        process = copy.copy(self)
        process.epsilon = epsilon
        process._check_fields()
        return process

    def forward(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None, only: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        options = {"only": only} if only is not None else {}
        args = (t, x) if cond is None else (t, x, cond)
        return self.fields(*args, **options)

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if not self.stochastic:
            return self.velocity(t, x, cond)
        velocity, noise, ratio = self._terms(t, x, cond)
        return velocity - ratio * noise

    def backward_drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if not self.stochastic:
            return self.velocity(t, x, cond)
        velocity, noise, ratio = self._terms(t, x, cond)
        return velocity + ratio * noise

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        epsilon, _ = self._amount(t)
        return expand((2 * epsilon).sqrt(), x) * dw

    def velocity(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Velocity of the probability-flow ODE, ``(B, *d)``."""
        found = self(t, x, cond, self._only(("velocity",)))
        if "velocity" in found:
            return found["velocity"]
        return self._velocity(found, self._noise(found, t, x), t, x)

    def noise(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mean of the added noise given the place, ``(B, *d)``.

        Raises:
            ValueError: if the fields know none.
        """
        return self._noise(self(t, x, cond), t, x)

    def score(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Score of the marginal at ``t``, ``(B, *d)``; at the very ends, where the width vanishes, it is
        lowered with it.

        Raises:
            ValueError: if the fields know none.
        """
        return -self.noise(t, x, cond) / self._width(t, x)

    def known(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        found = self(t, x, cond)
        noise = self._noise(found, t, x) if self._scores({*found}) else None
        velocity = self._velocity(found, noise, t, x)
        return {"velocity": velocity} | ({} if noise is None else {"noise": noise})

    def density_terms(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`b + \epsilon s,\ b - \epsilon s,\ \epsilon |s|^2` from one evaluation; the last by
        coordinates."""
        velocity, noise, ratio = self._terms(t, x, cond)
        change = ratio * noise
        return velocity - change, velocity + change, change * noise / self._width(t, x)

    @property
    def has_score(self) -> bool:
        """Whether the fields know a score, as far as can be told without calling them."""
        names = self._outputs()
        return names is None or self._scores(names)

    def _scores(self, names: set[str]) -> bool:
        if {"noise", "score"} & names:
            return True
        return self._single() and ("denoised" in names or ("velocity" in names and self._moves()))

    def _outputs(self) -> set[str] | None:
        names = getattr(self.fields, "outputs", None)
        return None if names is None else set(names)

    def _only(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        """Names to ask for, where the fields can be evaluated one by one."""
        outputs = self._outputs()
        if outputs is None or not outputs >= {*names}:
            return None
        return names if "only" in inspect.signature(self.fields.forward).parameters else None

    def _single(self) -> bool:
        """Whether the noise and one endpoint are all that enters a path."""
        return self.interpolant.independent

    def _moves(self) -> bool:
        """Whether the velocity tells the noise: not on a mirror, whose endpoint stands still."""
        half = torch.tensor([0.5], dtype=torch.float64)
        return bool(self.interpolant.coefficients(half).dbeta != 0)

    def _check_fields(self) -> None:
        names = self._outputs()
        if names is None:
            return
        unknown = names - {*NAMES}
        if unknown:
            raise ValueError(
                f"StochasticInterpolant: the fields return {sorted(unknown)}; known are "
                + ", ".join(NAMES)
            )
        if "velocity" not in names and not (self.has_score and ("rate" in names or self._single())):
            raise ValueError(self._no_velocity(names))
        if self.stochastic and not self.has_score:
            raise ValueError(self._no_score(names))

    @staticmethod
    def _no_velocity(names: Collection[str]) -> str:
        return (
            f"StochasticInterpolant: the fields {sorted(names)} give no velocity; use "
            "outputs=[velocity, noise]"
        )

    def _no_score(self, names: Collection[str]) -> str:
        return (
            f"epsilon={self.epsilon!r} and scores need a field that knows the score, but there is "
            f"only {sorted(names)} on {self.interpolant}: train outputs=[velocity, noise], or sample "
            "the ODE with epsilon=0"
        )

    def _floor(self, fraction: float) -> float:
        if "_widest" not in self.__dict__:
            grid = torch.linspace(0, 1, 201, dtype=torch.float64)
            self._widest = float(self.interpolant.coefficients(grid).gamma.detach().max())
        return fraction * self._widest

    def _width(self, t: Tensor, x: Tensor) -> Tensor:
        gamma = self.interpolant.coefficients(t).gamma.clamp_min(self._floor(CLOSE))
        return expand(gamma, x)

    def _amount(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self.interpolant.coefficients(t).gamma
        return amount(self.epsilon, t, gamma, self._floor(self.taper))

    def _terms(self, t: Tensor, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        found = self(t, x, cond)
        noise = self._noise(found, t, x)
        _, ratio = self._amount(t)
        return self._velocity(found, noise, t, x), noise, expand(ratio, x)

    def _noise(self, found: Mapping[str, Tensor], t: Tensor, x: Tensor) -> Tensor:
        if "noise" in found:
            return found["noise"]
        c = self.interpolant.coefficients(t)
        if "score" in found:
            return -expand(c.gamma, x) * found["score"]
        if self._single() and "denoised" in found:
            return (x - expand(c.beta, x) * found["denoised"]) / self._width(t, x)
        if self._single() and "velocity" in found and self._moves():
            turn = expand(c.gamma * c.dbeta - c.dgamma * c.beta, x)
            return (expand(c.dbeta, x) * x - expand(c.beta, x) * found["velocity"]) / turn
        raise ValueError(self._no_score(found))

    def _velocity(
        self, found: Mapping[str, Tensor], noise: Tensor | None, t: Tensor, x: Tensor
    ) -> Tensor:
        if "velocity" in found:
            return found["velocity"]
        c = self.interpolant.coefficients(t)
        # dgamma diverges at the ends of Brownian widths, where the noise vanishes
        turned = expand(c.gamma_dgamma, x) / self._width(t, x) * noise
        if "rate" in found:
            return found["rate"] + turned
        if not self._single():
            raise ValueError(self._no_velocity(found))
        if "denoised" in found:
            clean = found["denoised"]
        else:
            beta = c.beta.clamp_min(CLOSE)  # pure noise tells nothing about the data
            clean = (x - expand(c.gamma, x) * noise) / expand(beta, x)
        return expand(c.dbeta, x) * clean + turned
