r"""Exact fields of an affine interpolant between Gaussian mixtures, for any coupling that is one too.

Given component :math:`k`, :math:`x_t = \alpha x_0 + \beta x_1 + \gamma z` is Gaussian with mean
:math:`\mu_k` and covariance
:math:`\Sigma_k = \alpha^2 C + \beta^2 D + \alpha\beta(K + K^\top) + \gamma^2`, and whatever is linear
in the endpoints and the noise has a conditional mean that is linear in
:math:`u_k = \Sigma_k^{-1}(x - \mu_k)`:

.. math:: E[x_0|x] = m + (\alpha C + \beta K)u,\quad E[x_1|x] = n + (\alpha K^\top + \beta D)u,\quad
    E[z|x] = \gamma u,\quad \nabla\log\rho_t = -\sum_k r_k u_k

with responsibilities :math:`r_k` in log space. Every field is a combination of these, and the
velocity takes :math:`\gamma\dot\gamma` in closed form, so that nothing diverges at the ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genflow.interpolant import Affine, Coefficients, Mirror, OneSided
from genflow.model import Generator
from genflow.oracle.error import FIELDS, FieldError, Learner, measure
from genflow.oracle.joint import Joint
from genflow.source.components import log_normal
from genflow.tensors import randn_like
from genflow.transform import Identity, Standardise


class State(NamedTuple):
    """Everything about ``G`` times with ``R`` rows each that the fields are made of.

    ``moved0, moved1`` are the covariances of the endpoints with ``x_t``, and ``factors`` the Cholesky
    factors ``L`` of that of ``x_t``, ``(G, K, d, d)``; ``logs`` are the log-densities of the weighted
    components, ``(G, K, R)``, ``share`` their softmax ``r``; ``pull`` is ``r L^-1 (x - mu)``,
    ``(G, K, d, R)``.
    """

    c: Coefficients
    mean0: Tensor
    mean1: Tensor
    moved0: Tensor
    moved1: Tensor
    factors: Tensor
    logs: Tensor
    share: Tensor
    pull: Tensor


class Exact(nn.Module):
    r"""The fields that a perfect network would learn, for any affine interpolant and any
    Gaussian-mixture law of the pairs (Albergo, Boffi & Vanden-Eijnden 2023, generalised to coupled
    pairs).

    >>> exact = Exact(independent(Gaussian(2), EightGaussians()), Linear())  # doctest: +SKIP
    >>> exact.velocity(0.5, x), exact.log_prob(0.5, x)  # doctest: +SKIP

    It computes in float64 and answers in the dtype of ``x``; called, it returns ``velocity`` and
    ``noise`` like a network with two heads, and stands in for one wherever a network may. It is
    differentiable in ``x``. It has no parameters, and is not meant for checkpoints.

    Args:
        law: of the pairs. Of a ``OneSided`` or ``Mirror`` path only ``x1`` counts.
        interpolant: how paths run.
        shape: of an event, for :meth:`sample`; ``(d,)`` where absent. Other methods flatten.

    Raises:
        TypeError: for an interpolant that is not affine.
        ValueError: for a shape that does not hold ``d`` numbers.
    """

    outputs = ("velocity", "noise")

    def __init__(self, law: Joint, interpolant: Affine, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if not hasattr(interpolant, "coefficients"):
            raise TypeError(
                f"Exact: {interpolant!r} has no coefficients; exact fields need an affine interpolant"
            )
        if shape is not None and math.prod(shape) != law.dim:
            raise ValueError(
                f"Exact: shape {tuple(shape)} does not hold {law.dim} numbers, as the law has"
            )
        self.law, self.interpolant = law, interpolant
        self.shape = (law.dim,) if shape is None else tuple(shape)

    def forward(
        self,
        t: Tensor | float,
        x: Tensor,
        cond: Tensor | None = None,
        only: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """``velocity`` and ``noise`` in one evaluation; ``cond`` is ignored, ``only`` names some."""
        return self.fields(t, x, self.outputs if only is None else only)

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        r""":math:`E[\dot x_t | x_t = x]`, at ``t (B,)`` or a number and ``x (B, *d)``."""
        return self.fields(t, x, ["velocity"])["velocity"]

    def rate(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Conditional mean of the derivative of the part without noise."""
        return self.fields(t, x, ["rate"])["rate"]

    def noise(self, t: Tensor | float, x: Tensor) -> Tensor:
        """:math:`E[z | x_t = x]`; zeros on a path of zero width."""
        return self.fields(t, x, ["noise"])["noise"]

    def score(self, t: Tensor | float, x: Tensor) -> Tensor:
        r""":math:`\nabla\log\rho_t(x)`, also on paths of zero width wherever they have a density."""
        return self.fields(t, x, ["score"])["score"]

    def denoised(self, t: Tensor | float, x: Tensor) -> Tensor:
        """:math:`E[x_1 | x_t = x]`."""
        return self.fields(t, x, ["denoised"])["denoised"]

    def start(self, t: Tensor | float, x: Tensor) -> Tensor:
        """:math:`E[x_0 | x_t = x]`; the noise on a ``OneSided`` path, the data on a ``Mirror``."""
        return self.fields(t, x, ["start"])["start"]

    def drift(self, t: Tensor | float, x: Tensor, sigma: float) -> Tensor:
        r"""Drift of :math:`dX = f\,dt + \sigma\,dW` with the law of the path:
        velocity plus :math:`\frac{\sigma^2}{2}` score."""
        return self.fields(t, x, ["drift"], sigma)["drift"]

    def fields(
        self, t: Tensor | float, x: Tensor, names: Iterable[str], sigma: float = 0.0
    ) -> dict[str, Tensor]:
        """Several fields in one evaluation.

        Args:
            t: times ``(B,)`` in [0, 1], or one number; equal times share their factorisations.
            x: locations ``(B, *d)``.
            names: among ``velocity``, ``rate``, ``noise``, ``score``, ``drift``, ``denoised`` and
                ``start``.
            sigma: diffusion coefficient for the drift.

        Raises:
            ValueError: for other names, times outside [0, 1], events of another size, or a time at
                which the path has no density.
        """
        names = list(names)
        if not set(names) <= set(FIELDS):
            raise ValueError(f"Exact: fields are {', '.join(FIELDS)}, got {names}")
        s = self._state(t, x)
        return {name: self._combine(s, name, sigma, x) for name in names}

    def log_prob(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Log-density of the path at ``t``, ``(B,)``."""
        return torch.logsumexp(self._state(t, x).logs, 1).reshape(len(x)).to(x)

    @torch.no_grad()
    def sample(self, t: Tensor | float, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(n, *shape)`` of the path at ``t``, a number or ``(n,)``; float64 on the CPU."""
        x0, x1 = self.law.sample(n, generator)
        c = Coefficients(*(v[:, None] for v in self.interpolant.coefficients(_times(t, x1))))
        x = c.alpha * x0 + c.beta * x1 + c.gamma * randn_like(x1, generator)
        return x.reshape(n, *self.shape)

    def field_error(
        self,
        model: Learner,
        times: Sequence[float] | Tensor | None = None,
        n: int = 2000,
        cond: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldError:
        """How wrong the fields of a trained model are, over time, on draws of the exact path.

        Args:
            model: a ``Generator`` (its transform, ``Identity`` or ``Standardise``, is applied to this
                law), a process, or any ``f(t, x)`` that returns a velocity or a dict of fields.
            times: where to look; 25 times from 0.01 to 0.99 if absent.
            n: draws at each time.
            cond: the condition of this law, for a model that takes one: one row, repeated.
            generator: where the draws come from.

        Raises:
            TypeError, ValueError: for a model of which nothing can be compared, or another transform.
        """
        exact = self._inside(model) if isinstance(model, Generator) else self
        return measure(exact, model, times, n, cond, generator)

    def _inside(self, model: Generator) -> Exact:
        """The same law in the model's own space."""
        transform = model.transform
        if transform is None or isinstance(transform, Identity):
            return self
        if not isinstance(transform, Standardise):
            raise ValueError(
                f"field_error: the law is no Gaussian mixture after {type(transform).__name__}; only "
                "Identity and Standardise keep it one"
            )
        units = transform.mean, transform.std
        latent = (0.0, 1.0) if model.source.latent else units
        return Exact(self.law.standardised(*latent, *units), self.interpolant, self.shape)

    def _state(self, t: Tensor | float, x: Tensor) -> State:
        if x[:1].numel() != self.law.dim * len(x[:1]):
            raise ValueError(
                f"Exact: x has event shape {tuple(x.shape[1:])}, but the law has {self.law.dim} "
                "dimensions"
            )
        weights, mean0, mean1, cov0, cov1, cross = self.law.to(x.device)
        c = self.interpolant.coefficients(_times(t, x))
        a, b, g = (v[:, None, None, None] for v in c[:3])
        moved0, moved1 = a * cov0 + b * cross, a * cross.mT + b * cov1
        noise = g**2 * torch.eye(self.law.dim, dtype=torch.float64, device=x.device)
        try:
            factors = torch.linalg.cholesky(a * moved0 + b * moved1 + noise)
        except torch.linalg.LinAlgError as reason:
            raise ValueError(
                "Exact: the path has no density at this time, as a covariance is singular; keep off it "
                "or give the interpolant a width (gamma)"
            ) from reason
        each = 1 if len(a) == len(x) else len(x)
        rows = x.flatten(1).double().reshape(len(a), each, self.law.dim).mT
        logs, white = log_normal(rows, a[..., 0] * mean0 + b[..., 0] * mean1, factors)
        logs = logs + weights.log()[:, None]
        share = logs.softmax(1)
        pull = share.unsqueeze(2) * white
        return State(c, mean0, mean1, moved0, moved1, factors, logs, share, pull)

    def _combine(self, s: State, name: str, sigma: float, x: Tensor) -> Tensor:
        """The conditional mean of ``p x0 + q x1 + w u`` in the shape and dtype of ``x``."""
        p, q, w = (v[:, None, None, None] for v in self._weights(s.c, name, sigma))
        eye = torch.eye(self.law.dim, dtype=torch.float64, device=x.device)
        slope = p * s.moved0 + q * s.moved1 + w * eye
        # u = L^-T white: the solve moves to the slopes, which are fewer than the rows
        slope = torch.linalg.solve_triangular(s.factors, slope.mT, upper=False)
        found = slope.flatten(1, 2).mT @ s.pull.flatten(1, 2)
        if bool((p != 0).any() or (q != 0).any()):
            mean = p[..., 0] * s.mean0 + q[..., 0] * s.mean1
            found = found + mean.mT @ s.share
        return found.mT.reshape(x.shape).to(x)

    def _weights(self, c: Coefficients, name: str, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Each field in terms of both endpoints and of ``u``."""
        zero, one = torch.zeros_like(c.alpha), torch.ones_like(c.alpha)
        if name == "start" and isinstance(self.interpolant, OneSided | Mirror):
            name = "noise" if isinstance(self.interpolant, OneSided) else "denoised"
        return {
            "velocity": (c.dalpha, c.dbeta, c.gamma_dgamma),
            "rate": (c.dalpha, c.dbeta, zero),
            "drift": (c.dalpha, c.dbeta, c.gamma_dgamma - sigma**2 / 2),
            "noise": (zero, zero, c.gamma),
            "score": (zero, zero, -one),
            "denoised": (zero, one, zero),
            "start": (one, zero, zero),
        }[name]


def _times(t: Tensor | float, x: Tensor) -> Tensor:
    """Times ``(1,)`` if all are equal, else ``(B,)``; float64."""
    t = torch.as_tensor(t, dtype=torch.float64, device=x.device).reshape(-1)
    if len(t) not in (1, len(x)):
        raise ValueError(f"Exact: t has {len(t)} times but x has {len(x)} rows")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError("Exact: times must lie in [0, 1]")
    return t[:1] if len(x) and bool((t == t[0]).all()) else t
