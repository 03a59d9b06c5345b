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
from genflow.process.moment import (
    CLOSE,
    Moment,
    check_ends,
    equal,
    formed_within,
    noise_of,
    velocity_of,
)
from genflow.process.noise import Epsilon, amount, check_epsilon, check_values
from genflow.tensors import path_time

NAMES = ("velocity", "rate", "noise", "score", "denoised")


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
        interpolant: the affine interpolant of the training. Where data are blurred at an end, by a
            constant width, no process carries one law to the other.
        epsilon: unless ``sample`` is told otherwise: a number (0 is the ODE), ``"gamma"`` or
            ``"gamma_squared"``. Functions of the time are given when sampling.
        taper: where the width is below this fraction of its maximum, an ``epsilon`` that is a number
            or a function falls with the square of the width: the law stays, and errors of the noise
            near both ends are not blown up.

    Raises:
        TypeError, ValueError: for an interpolant that is not affine or has a width at its ends, fields
            that do not suffice, and an ``epsilon`` that is negative, not finite, or unknown.
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
        check_ends(interpolant)
        self.fields, self.interpolant, self.taper = fields, interpolant, taper
        self.epsilon = epsilon
        self._insides: dict[frozenset[str], tuple[float, float]] = {}
        # looked up once: an ODE asks at every step
        alone = "only" in inspect.signature(fields.forward).parameters
        self._only = ("velocity",) if alone and "velocity" in (self._outputs() or ()) else None

    @property
    def epsilon(self) -> Epsilon:
        """How much noise it is sampled with unless ``sample`` is told otherwise."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float | str) -> None:
        if callable(value):
            raise ValueError(
                "StochasticInterpolant(epsilon=<function>): a function cannot be saved with the model; "
                "pass it to sample(epsilon=...)"
            )
        self._take(value)

    def _take(self, epsilon: Epsilon) -> None:
        epsilon = check_epsilon(epsilon)
        self._check_fields(epsilon)
        self._epsilon = epsilon

    @property
    def stochastic(self) -> bool:
        return self._epsilon != 0

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
        if times is not None:
            check_values(epsilon, times)
        process = copy.copy(self)
        process._take(epsilon)
        return process

    def forward(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None, only: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        args = (t, x) if cond is None else (t, x, cond)
        found = self.fields(*args) if only is None else self.fields(*args, only=only)
        if isinstance(found, Tensor):
            raise ValueError(self._no_velocity(["one tensor"]))
        return found

    def drift(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None, at: Moment | None = None
    ) -> Tensor:
        if not self.stochastic:
            return self.velocity(t, x, cond, at)
        velocity, noise, ratio = self._terms(t, x, cond, at)
        return torch.addcmul(velocity, ratio, noise, value=-1)

    def backward_drift(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None, at: Moment | None = None
    ) -> Tensor:
        if not self.stochastic:
            return self.velocity(t, x, cond, at)
        velocity, noise, ratio = self._terms(t, x, cond, at)
        return torch.addcmul(velocity, ratio, noise)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor, at: Moment | None = None) -> Tensor:
        at = self._moment(path_time(t, x)) if at is None else at
        return at.over(at.noise, x) * dw

    def look_ahead(self, times: Tensor) -> list[Moment]:
        found = self._moment(times)
        return [found._replace(row=k) for k in range(len(times))]

    def velocity(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None, at: Moment | None = None
    ) -> Tensor:
        """Velocity of the probability-flow ODE, ``(B, *d)``."""
        t = path_time(t, x) if at is None else t
        found = self.forward(t, x, cond, self._only)
        return found["velocity"] if "velocity" in found else self._velocity(found, t, x, cond, at)

    def noise(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mean of the added noise given the place, ``(B, *d)``.

        Raises:
            ValueError: if the fields know none, or a time lies outside [0, 1].
        """
        t = path_time(t, x)
        return self._noise(self(t, x, cond), self._moment(t), x)

    def score(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Score of the marginal at ``t``, ``(B, *d)``; at the very ends, where the width vanishes, it
        is lowered with it.

        Raises:
            ValueError: if the fields know none, or a time lies outside [0, 1].
        """
        t = path_time(t, x)
        at = self._moment(t)
        return -self._noise(self(t, x, cond), at, x) / at.over(at.width, x)

    def known(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        t = path_time(t, x)
        found, at = self(t, x, cond), self._moment(t)
        known = {"velocity": self._velocity(found, t, x, cond, at)}
        return known | ({"noise": self._noise(found, at, x)} if self._scores({*found}) else {})

    def density_terms(
        self, t: Tensor, x: Tensor, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`b + \epsilon s,\ b - \epsilon s,\ \epsilon |s|^2` from one evaluation; the last by
        coordinates."""
        at = self._moment(t)
        velocity, noise, ratio = self._terms(t, x, cond, at)
        change = ratio * noise
        return velocity - change, velocity + change, change * noise / at.over(at.width, x)

    @property
    def has_score(self) -> bool:
        """Whether the fields know a score, as far as can be told without calling them."""
        names = self._outputs()
        return self.interpolant.stochastic if names is None else self._scores(names)

    def _scores(self, names: set[str]) -> bool:
        if not self.interpolant.stochastic or {"noise", "score"} & names:
            return self.interpolant.stochastic
        return self._single() and ("denoised" in names or ("velocity" in names and self._moves()))

    def _outputs(self) -> set[str] | None:
        names = getattr(self.fields, "outputs", None)
        return None if names is None else set(names)

    def _single(self) -> bool:
        """Whether the noise and one endpoint are all that enters a path."""
        return self.interpolant.independent

    def _moves(self) -> bool:
        """Whether the velocity tells the noise: not on a mirror, whose endpoint stands still."""
        half = torch.tensor([0.5], dtype=torch.float64)
        return bool(self.interpolant.coefficients(half).dbeta != 0)

    def _check_fields(self, epsilon: Epsilon) -> None:
        names = self._outputs()
        unknown = (names or set()) - {*NAMES}
        if unknown:
            raise ValueError(
                f"StochasticInterpolant: the fields return {sorted(unknown)}; known are "
                + ", ".join(NAMES)
            )
        told = names is None or "velocity" in names
        if not told and not (self.has_score and ("rate" in names or self._single())):
            raise ValueError(self._no_velocity(names))
        if epsilon != 0 and not self.has_score:
            raise ValueError(self._no_score(names, epsilon))

    @staticmethod
    def _no_velocity(names: Collection[str]) -> str:
        return (
            f"StochasticInterpolant: the fields {sorted(names)} give no velocity by name; use "
            "outputs=[velocity, noise]"
        )

    def _no_score(self, names: Collection[str] | None, epsilon: Epsilon) -> str:
        if not self.interpolant.stochastic:
            return (
                f"epsilon={epsilon!r} and scores need a path with a width, but that of "
                f"{self.interpolant} is zero: give it a gamma such as Brownian(), or take epsilon=0"
            )
        return (
            f"epsilon={epsilon!r} and scores need a field that knows the score, but there is "
            f"only {sorted(names)} on {self.interpolant}: train outputs=[velocity, noise], or sample "
            "the ODE with epsilon=0"
        )

    def _floor(self, fraction: float) -> float:
        learns = isinstance(self.interpolant, nn.Module)  # its widest place may move
        if learns or "_widest" not in self.__dict__:
            grid = torch.linspace(0, 1, 201, dtype=torch.float64)
            self._widest = float(self.interpolant.coefficients(grid).gamma.detach().max())
        return fraction * self._widest

    def _moment(self, t: Tensor) -> Moment:
        c = self.interpolant.coefficients(t)
        epsilon, ratio = amount(self.epsilon, t, c.gamma, self._floor(self.taper))
        return Moment(c, (2 * epsilon).sqrt(), ratio, c.gamma.clamp_min(self._floor(CLOSE)))

    def _terms(
        self, t: Tensor, x: Tensor, cond: Tensor | None, at: Moment | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        t = path_time(t, x) if at is None else t
        found, at = self.forward(t, x, cond), self._moment(t) if at is None else at
        velocity = found["velocity"] if "velocity" in found else self._velocity(found, t, x, cond, at)
        return velocity, self._noise(found, at, x), at.over(at.ratio, x)

    def _noise(self, found: Mapping[str, Tensor], at: Moment, x: Tensor) -> Tensor:
        known = "noise" in found and self.interpolant.stochastic
        if not known and not self._scores({*found}):
            raise ValueError(self._no_score(found, self.epsilon))
        return noise_of(found, at, x)

    def _velocity(
        self, found: Mapping[str, Tensor], t: Tensor, x: Tensor, cond: Tensor | None, at: Moment | None
    ) -> Tensor:
        """The velocity, formed from other fields where there is none; a little inside of both ends."""
        if "velocity" in found:
            return found["velocity"]
        if not (self._scores({*found}) and ("rate" in found or self._single())):
            raise ValueError(self._no_velocity(found))
        inner = t.clamp(*self._inside(frozenset(found)))
        if not equal(inner, t):
            found, at = self.forward(inner, x, cond), None
        return velocity_of(found, self._moment(inner) if at is None else at, x)

    def _inside(self, names: frozenset[str]) -> tuple[float, float]:
        if names not in self._insides:
            self._insides[names] = formed_within(self.interpolant, names)
        return self._insides[names]
