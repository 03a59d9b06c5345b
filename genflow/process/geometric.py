"""Geometric Brownian motion run from noise to data: multiplicative diffusion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genflow.checks import between, one_of
from genflow.interpolant.geometric import GeometricBrownian, Law
from genflow.process.noise import Epsilon, amount, check_epsilon, check_values
from genflow.process.positive import PositiveProcess, log_size
from genflow.tensors import as_shape, batch_time, check_positive, expand, path_time

PREDICTS = ("noise", "hyvarinen")
INPUTS = ("log", "raw")
TAPER = 0.1
"""Below this share of the widest noise a constant epsilon fades, as in ``StochasticInterpolant``."""


class Moment(NamedTuple):
    r"""What depends on the time alone, such that it broadcasts over states: mean of the logarithms,
    :math:`1/\sqrt{V + v}` and :math:`\sqrt V` where the field is asked; and at the time itself
    :math:`\sigma^2/2 - \mu`, :math:`\sigma^2/2`, epsilon and :math:`\sqrt{2\epsilon}`."""

    shift: Tensor
    scale: Tensor
    width: Tensor
    rate: Tensor
    half: Tensor
    epsilon: Tensor
    noise: Tensor


class ReversedGeometric(PositiveProcess):
    r"""The reverse of a geometric Brownian motion, by a learned noise (Shetty et al. 2025).

    With the Hyvarinen score :math:`h = x \odot \nabla\log p_t(x)` the states follow
    :math:`dX = X \odot [-\mu + 2\sigma^2 + \sigma^2 h]dt + \sigma X \odot dW` and their logarithms
    :math:`dY = [-\mu + \frac32\sigma^2 + \sigma^2 h]dt + \sigma dW`, both Ito. Solvers step the
    logarithms: ``DaleLangevin`` by the sign-preserving exponential update, ``Euler`` likewise with the
    noise of the middle of a step, ``Heun`` at ``epsilon`` 0 by the probability-flow ODE at order two;
    ``AmbientEuler`` alone steps the states.

    Called, it is what a loss fits: the mean of the noise given the place. The field sees standardised
    logarithms, :math:`n = (\log x - m - M)/\sqrt{V + v}` with the mean ``m`` and variance ``v`` of
    log-data, which ``prepare`` measures.

    Args:
        field: ``f(t, input, cond=None) -> (B, *d)``.
        interpolant: the motion.
        dim: event shape, for ``m`` and ``v`` of each coordinate; ``None`` for one of each (images).
        predicts: ``"noise"``, or ``"hyvarinen"`` for a field that is fitted to ``target=Hyvarinen()``.
        inputs: ``"log"`` as above, or ``"raw"`` to show the field ``x`` as it is.
        skip: the field's output, times :math:`\sqrt{v/(V + v)}`, is added to the noise that log-normal
            data would have, :math:`\sqrt{V/(V + v)}\,n`: an output of zero samples a log-normal law,
            and a right one has size one at every time. Needs ``inputs="log"``.
        epsilon: how much noise to sample with, as in :class:`StochasticInterpolant` (noise
            :math:`\sqrt{2\epsilon}\,dW` of the logarithms); ``None`` for :math:`\sigma^2/2`, the
            reverse SDE; 0 for the ODE.
        closest: how near to the data the field is asked, in time.

    Raises:
        TypeError, ValueError: for parts and options that do not fit; from ``prepare`` for data that are
            not positive.
    """

    def __init__(
        self,
        field: nn.Module,
        interpolant: GeometricBrownian,
        dim: int | Sequence[int] | None = None,
        predicts: str = "noise",
        inputs: str = "log",
        skip: bool = True,
        epsilon: float | str | None = None,
        closest: float = 1e-3,
    ) -> None:
        super().__init__()
        if not isinstance(interpolant, GeometricBrownian):
            raise TypeError(
                f"ReversedGeometric(interpolant={interpolant!r}): interpolant must be a "
                f"GeometricBrownian"
            )
        one_of(self, PREDICTS, predicts=predicts)
        one_of(self, INPUTS, inputs=inputs)
        between(self, 0, 0.5, closest=closest)
        if skip and inputs == "raw":
            raise ValueError("ReversedGeometric(skip=True, inputs='raw'): the skip needs inputs='log'")
        if callable(epsilon):
            raise ValueError(
                "ReversedGeometric(epsilon=<function>): a function cannot be saved with the model; "
                "pass it to sample(epsilon=...)"
            )
        self.field, self.interpolant, self.dim = field, interpolant, dim
        self.predicts, self.inputs, self.skip, self.closest = predicts, inputs, skip, closest
        self.epsilon = None if epsilon is None else check_epsilon(epsilon)
        widest = interpolant.law(torch.zeros((), dtype=torch.float64)).variance
        self._taper = TAPER * float(widest) ** 0.5
        shape = () if dim is None else as_shape(dim)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    @property
    def network(self) -> nn.Module:
        """The field, by the name that other processes have for it."""
        return self.field

    @property
    def stochastic(self) -> bool:
        return self.epsilon is None or self.epsilon != 0

    @property
    def reversible(self) -> bool:
        return True

    def with_epsilon(self, epsilon: Epsilon, times: Tensor | None = None) -> ReversedGeometric:
        """The same field sampled with another ``epsilon``; it is shared, not copied.

        Raises:
            ValueError: if it is negative or not finite.
        """
        if times is not None:
            check_values(epsilon, times)
        process = copy.copy(self)
        process.epsilon = check_epsilon(epsilon)
        return process

    @torch.no_grad()
    def prepare(self, *xs: Tensor) -> ReversedGeometric:
        """Measure mean and variance of log-data, in place."""
        check_positive("ReversedGeometric: x1", xs[-1], wait=True)
        y = xs[-1].double().log()
        if self.dim is not None and y.shape[1:] != self.mean.shape:
            raise ValueError(
                f"ReversedGeometric(dim={self.dim}) got data of event shape {tuple(y.shape[1:])}; set "
                f"dim to {list(y.shape[1:])}, or to null for one mean and variance for all coordinates"
            )
        over = tuple(range(y.ndim)) if self.dim is None else 0
        self.mean.copy_(y.mean(over))
        self.var.copy_(y.var(over, correction=0))
        return self

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """What a loss fits: noise (or Hyvarinen score) at times ``t (B,)``, places ``x (B, *d)``."""
        t = batch_time(t, x)  # losses have looked at their times
        y = x.clamp_min(torch.finfo(x.dtype).tiny).log()
        return self._predict(t, y, cond, *self._place(expand(t, x)))

    def noise(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mean of the noise given the place, ``(B, *d)``."""
        return self.known(t, x, cond)["noise"]

    def hyvarinen(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Hyvarinen score :math:`h = x \odot \nabla\log p_t(x)`, ``(B, *d)``."""
        return self.log_score(path_time(t, x), log_size(x), cond) - 1

    def score(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Score of the states, ``(B, *d)``."""
        return self.hyvarinen(t, x, cond) / x

    def denoised(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Geometric mean of the data given the place, :math:`e^{E[\log X_1|x]}` (Tweedie)."""
        t, y = path_time(t, x), log_size(x)
        mean, variance = self.interpolant.gained(expand(t, x))
        return torch.exp(y - mean + variance * self.log_score(t, y, cond))

    def known(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        h = self.hyvarinen(t, x, cond)
        width = self._moment(expand(path_time(t, x), x)).width
        return {"noise": -(1 + h) * width, "hyvarinen": h, "score": h / x}

    def log_score(
        self, t: Tensor, y: Tensor, cond: Tensor | None = None, at: Moment | None = None
    ) -> Tensor:
        r"""Score of the logarithms, :math:`\nabla\log q_t(y) = 1 + h(t, e^y)`, ``(B, *d)``."""
        at = self._moment(expand(t, y)) if at is None else at
        found = self._predict(t.clamp_max(1 - self.closest), y, cond, *at[:3])
        return 1 + found if self.predicts == "hyvarinen" else found / -at.width

    def _predict(
        self, t: Tensor, y: Tensor, cond: Tensor | None, shift: Tensor, scale: Tensor, width: Tensor
    ) -> Tensor:
        if self.inputs == "raw":
            return self._ask(t, y.exp(), cond)
        n = (y - shift) * scale
        out = self._ask(t, n, cond)
        if not self.skip:
            return out
        noise = torch.addcmul(width * n, self.var.sqrt(), out) * scale
        return noise if self.predicts == "noise" else -1 - noise / width

    def _ask(self, t: Tensor, x: Tensor, cond: Tensor | None) -> Tensor:
        found = self.field(t, x) if cond is None else self.field(t, x, cond)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"ReversedGeometric needs one field, but {type(self.field).__name__} returned "
                f"{sorted(found) if isinstance(found, dict) else type(found).__name__}: use a network "
                "with outputs=null"
            )
        return found

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = self.interpolant.gained(t)
        width = variance.clamp_min(torch.finfo(t.dtype).tiny).sqrt()
        return mean + self.mean, (variance + self.var).rsqrt(), width

    def _moment(self, t: Tensor) -> Moment:
        """At times that broadcast over states."""
        law = self.interpolant.law(t)
        half = law.squared / 2
        place = self._place(t.clamp_max(1 - self.closest))
        epsilon = self._amount(t, law)
        return Moment(*place, half - law.mu, half, epsilon, (2 * epsilon).sqrt())

    def look_ahead(self, times: Tensor) -> list[Moment]:
        found = self._moment(times.reshape(-1, *[1] * self.mean.ndim))
        return [Moment(*row) for row in zip(*(v.unbind() for v in torch.broadcast_tensors(*found)))]

    def _amount(self, t: Tensor, law: Law) -> Tensor:
        if self.epsilon is None:
            return law.squared / 2
        width = law.variance.clamp_min(0).sqrt()
        if self.epsilon == 0:
            return torch.zeros_like(width)
        return amount(self.epsilon, t, width, self._taper)[0]

    def log_drift(
        self, t: Tensor, y: Tensor, cond: Tensor | None = None, at: Moment | None = None
    ) -> Tensor:
        at = self._moment(expand(t, y)) if at is None else at
        return torch.addcmul(at.rate, at.half + at.epsilon, self.log_score(t, y, cond, at))

    def log_backward_drift(
        self, t: Tensor, y: Tensor, cond: Tensor | None = None, at: Moment | None = None
    ) -> Tensor:
        at = self._moment(expand(t, y)) if at is None else at
        if self.epsilon is None:  # the motion itself, which needs no field
            return at.rate.expand_as(y)
        return at.rate + (at.half - at.epsilon) * self.log_score(t, y, cond, at)

    def log_width(self, t: Tensor, y: Tensor, at: Moment | None = None) -> Tensor:
        at = self._moment(expand(t, y)) if at is None else at
        return at.noise

    def log_density_terms(
        self, t: Tensor, y: Tensor, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        at = self._moment(expand(t, y))
        score = self.log_score(t, y, cond, at)
        velocity, pull = at.rate + at.half * score, at.epsilon * score
        return velocity + pull, velocity - pull, pull * score
