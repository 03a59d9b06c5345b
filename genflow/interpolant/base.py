r"""Interpolants: random paths :math:`x_t = I(t, x_0, x_1) + \gamma(t) z` between coupled endpoints.

Affine ones, :math:`I = \alpha(t) x_0 + \beta(t) x_1`, are given by their coefficients and rates,
all in closed form (Albergo, Boffi & Vanden-Eijnden 2023).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genflow.specs import spec
from genflow.tensors import expand, path_time, randn_like


class Coefficients(NamedTuple):
    """``alpha, beta, gamma``, their rates, and ``gamma_dgamma`` in closed form; each ``(B,)``."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    dalpha: Tensor
    dbeta: Tensor
    dgamma: Tensor
    gamma_dgamma: Tensor


@dataclass(frozen=True)
class PathSample:
    """One draw of a path per row.

    Attributes:
        t: times ``(B,)``.
        x: locations ``(B, *d)``.
        xs: the coupled endpoints, each ``(B, *d)``.
        rate: time derivative of the part without noise, ``(B, *d)``.
        noise: the standard normal ``z`` that was added, ``(B, *d)``; zeros on a path of zero width.
        gamma, dgamma, gamma_dgamma: width, its rate and their product, broadcast as
            ``(B, 1, ..., 1)``.
        stochastic: whether the path has a width at all.
    """

    t: Tensor
    x: Tensor
    xs: tuple[Tensor, ...]
    rate: Tensor
    noise: Tensor
    gamma: Tensor
    dgamma: Tensor
    gamma_dgamma: Tensor
    stochastic: bool = True

    @property
    def velocity(self) -> Tensor:
        r"""Time derivative of the path, :math:`\dot I + \dot\gamma z`."""
        return self.rate + self.dgamma * self.noise if self.stochastic else self.rate

    @property
    def score(self) -> Tensor:
        r"""Conditional score :math:`-z/\gamma`; its mean given ``x`` is the score of the marginal.

        Where :math:`\gamma` is zero (at the ends) the square root of ``finfo.eps`` stands for it.

        Raises:
            ValueError: on a path of zero width, which has no density to take the score of.
        """
        if not self.stochastic:
            raise ValueError(
                "a path of zero width has no score: use an interpolant with gamma, such as "
                "Linear(gamma=Brownian()) or BrownianBridge(sigma)"
            )
        return -self.noise / width_floor(self.gamma)

    @property
    def reflected(self) -> PathSample:
        """The antithetic draw: the same times and endpoints, the opposite noise.

        Raises:
            ValueError: on a path of zero width, which has no noise to turn round.
        """
        if not self.stochastic:
            raise ValueError(
                "a path of zero width has no noise, and so no antithetic draw: use antithetic=False or "
                "an interpolant with a gamma"
            )
        return replace(self, x=self.x - 2 * self.gamma * self.noise, noise=-self.noise)


def width_floor(gamma: Tensor) -> Tensor:
    """``gamma`` with its zeros, at the ends of a path, replaced so that a division stays finite."""
    return gamma.masked_fill(gamma == 0, torch.finfo(gamma.dtype).eps ** 0.5)


class Interpolant(ABC):
    """A random path between endpoints.

    ``stochastic`` says whether it has a width; ``independent`` that it is right for independent pairs
    alone.
    """

    stochastic: bool
    independent: bool = False
    additive: bool = True
    """Whether noise is added to the path, rather than multiplied into it."""

    @abstractmethod
    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """Draw the path at times ``t`` between coupled endpoints.

        Args:
            t: times ``(B,)`` in [0, 1], or one number.
            xs: endpoints ``(B, *d)``, row by row coupled; usually ``x0, x1``.
            noise: the standard normal to add, ``(B, *d)``; drawn if absent.
            generator: where the noise is drawn from.
        """


class Affine(Interpolant):
    """An interpolant that is given by its coefficients."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Coefficients and rates at times ``t (B,)`` in [0, 1]: closed forms, finite at the ends."""

    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        x0, x1 = self._ends(xs)
        t = path_time(t, x1)
        c = Coefficients(*(expand(v, x1) for v in self.coefficients(t)))
        x = c.alpha * x0 + c.beta * x1
        rate = c.dalpha * x0 + c.dbeta * x1
        if self.stochastic:
            noise = randn_like(x1, generator) if noise is None else noise
            x = x + c.gamma * noise
        else:
            noise = x1.new_zeros(()).expand_as(x1)
        width = c.gamma, c.dgamma, c.gamma_dgamma
        return PathSample(t, x, (x0, x1), rate, noise, *width, self.stochastic)

    def _ends(self, xs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if len(xs) != 2:
            raise ValueError(f"{type(self).__name__} joins two marginals (x0, x1), got {len(xs)}")
        if xs[0].shape != xs[1].shape:
            raise ValueError(
                f"{type(self).__name__}: x0 {tuple(xs[0].shape)} and x1 {tuple(xs[1].shape)} must be "
                "coupled row by row; apply a coupling first"
            )
        return xs


def same_path(path: Interpolant, other: Interpolant) -> bool:
    """Equal, or described alike where a class of the user's own knows no equality."""
    if path is other or path == other:
        return True
    try:
        alike = type(path) is type(other) and spec(path) == spec(other)
    except TypeError:
        return False
    if not alike or not isinstance(path, nn.Module):
        return alike
    numbers = ([v.double().cpu() for v in p.state_dict().values()] for p in (path, other))
    return all(map(torch.equal, *numbers))  # wherever each lives
