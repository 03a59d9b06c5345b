r"""Mean and covariance of a population that follows a drift: closed systems of moment equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genflow.checks import count, one_of, positive
from genflow.process.reference import Reference
from genflow.process.reference.base import Values

CLOSURES = ("cubature", "linear")
State = Tensor
"""``(1 + d, d)``: the mean on top of the covariance, so that one sum steps both."""


def population_moments(
    reference: Reference,
    values: Values,
    mean: Tensor,
    covariance: Tensor,
    sigma: float,
    times: Sequence[float],
    steps: int = 8,
    closure: str = "cubature",
    dt: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Moments at ``times`` of :math:`dX = f(t, X)\,dt + \sigma\,dW`, differentiable in all tensors.

    .. math:: \dot m = E f(X),\qquad \dot P = E[f(X)(X-m)^\top] + E[(X-m)f(X)^\top] + \sigma^2 I

    with expectations under the Gaussian of these moments: by the third-degree cubature rule of
    Arasaratnam & Haykin (2009), exact for drifts that are polynomials of degree 2 in ``x`` (their
    law need not be Gaussian, so the closure itself remains an approximation); or with the drift
    linearised at the mean (the linear-noise approximation, van Kampen 2007), exact for affine drifts.

    Args:
        reference: the family of drifts.
        values: its parameters by name.
        mean: at ``times[0]``, ``(d,)``.
        covariance: there, ``(d, d)``.
        sigma: noise per square root of time, positive.
        times: rising, ``(K+1,)``.
        steps: of the classical Runge-Kutta method in each interval.
        closure: ``"cubature"`` or ``"linear"``.
        dt: for snapshots that an Euler-Maruyama simulator made, its step: the moments are then those
            of that recursion, whose bias is not small beside the standard error of a large population.

    Returns:
        Means ``(K+1, d)`` and covariances ``(K+1, d, d)``; NaN from where a covariance has lost its
        positive definiteness.
    """
    one_of("population_moments", CLOSURES, closure=closure)
    positive("population_moments", sigma=sigma)
    count("population_moments", steps=steps)
    advance = _Cubature if closure == "cubature" else _Linear
    closed = advance(reference, values, sigma, len(mean), mean)
    step = closed.euler if dt is not None else closed.runge_kutta
    state = torch.cat([mean[None], covariance])
    found = [state]
    for s, t in pairwise(float(v) for v in times):
        n = steps if dt is None else max(1, math.ceil((t - s) / dt - 1e-6))
        for i in range(n):
            state = step(s + (t - s) * i / n, state, (t - s) / n)
        found.append(state)
    states = torch.stack(found)
    return states[:, 0], states[:, 1:]


class _Closed:
    """Right-hand sides of the moment equations."""

    def __init__(
        self, reference: Reference, values: Values, sigma: float, dim: int, like: Tensor
    ) -> None:
        self.reference, self.values = reference, values
        eye = torch.eye(dim, dtype=like.dtype, device=like.device)
        self.eye, self.noise = eye, sigma**2 * eye
        self.unit = math.sqrt(dim) * torch.cat([eye, -eye])

    rate: Callable[[float, State], State]

    def runge_kutta(self, t: float, y: State, h: float) -> State:
        a = self.rate(t, y)
        b = self.rate(t + h / 2, y + h / 2 * a)
        c = self.rate(t + h / 2, y + h / 2 * b)
        d = self.rate(t + h, y + h * c)
        return y + h / 6 * (a + 2 * (b + c) + d)


class _Cubature(_Closed):
    def points(self, t: float, y: State) -> tuple[Tensor, Tensor, Tensor]:
        """Deviations of the points ``(2d, d)``, the points and the drift there."""
        away = self.unit @ _root(y[1:]).mT
        x = y[0] + away
        return away, x, self.reference.field(t, x, self.values)

    def rate(self, t: float, y: State) -> State:
        away, _, f = self.points(t, y)
        half = away.mT @ f / len(f)
        return torch.cat([f.mean(0, keepdim=True), half + half.mT + self.noise])

    def euler(self, t: float, y: State, h: float) -> State:
        _, x, f = self.points(t, y)
        moved = x + h * f
        mean = moved.mean(0, keepdim=True)
        away = moved - mean
        return torch.cat([mean, away.mT @ away / len(f) + h * self.noise])


class _Linear(_Closed):
    def linear(self, t: float, y: State) -> tuple[Tensor, Tensor]:
        """Drift ``(1, d)`` and its Jacobian ``(d, d)`` at the mean."""
        x = y[:1]
        f = self.reference.field(t, x, self.values)
        return f, self.reference.jacobian(t, x, self.values)[0]

    def rate(self, t: float, y: State) -> State:
        f, jacobian = self.linear(t, y)
        half = jacobian @ y[1:]
        return torch.cat([f, half + half.mT + self.noise])

    def euler(self, t: float, y: State, h: float) -> State:
        f, jacobian = self.linear(t, y)
        push = self.eye + h * jacobian
        return torch.cat([y[:1] + h * f, push @ y[1:] @ push.mT + h * self.noise])


def _root(covariance: Tensor) -> Tensor:
    """Its Cholesky factor; NaN, where there is none: a sampler then turns away."""
    try:
        return torch.linalg.cholesky(covariance)
    except torch.linalg.LinAlgError:
        return covariance * math.nan
