"""The exact law of a light bridge at one time given its place at another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
)

from genflow.process.light.potential import CHUNK, Potential, pick, rows_at
from genflow.tensors import draw_device

if TYPE_CHECKING:
    from collections.abc import Iterator


class Transition(Distribution):
    r"""Law of :math:`X_t` given :math:`X_s = x`, a mixture of ``K`` Gaussians for each row:

    .. math:: \sum_k w_k(s, x)\,
              \mathcal N\big(x + (t-s)\,u_k(s, x),\ \varepsilon(t-s)\,Q_k(t)Q_k(s)^{-1}\big),

    with the weights and fields of the drift :math:`\sum_k w_k u_k` and
    :math:`Q_k(t) = (1-t)I + tS_k`. From ``s = 0`` to ``t = 1`` this is the plan
    :math:`\pi(x_1|x_0)` (Korotin, Gushchin & Burnaev 2024).

    ``batch_shape`` is ``(B,)`` and ``event_shape`` that of ``x``; sampling draws the component first,
    then one normal. :meth:`mixture` gives the same law by torch's own classes, of whose parts
    ``pyro.distributions.MixtureSameFamily`` makes one for Pyro models.

    Args:
        potential: of the bridge.
        s, t: numbers, or one a row, ``(B,)``, with ``0 <= s < t <= 1``.
        x: states ``(B, *d)`` at ``s``.
    """

    arg_constraints = {}
    has_rsample = False

    def __init__(self, potential: Potential, s: Tensor, t: Tensor, x: Tensor) -> None:
        self.potential, self.x = potential, x
        self._s, self._t = s, t
        self._flat = x.flatten(1).double()
        super().__init__(x.shape[:1], x.shape[1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def logits(self) -> Tensor:
        """Log-probabilities of the components, ``(B, K)``, float64."""
        return self.potential.logits(self._s, self._flat).log_softmax(-1)

    @property
    def mean(self) -> Tensor:
        moved = self._flat + self._gap[:, None] * self.potential.drift(self._s, self._flat)
        return moved.reshape(self.x.shape).to(self.x.dtype)

    @property
    def variance(self) -> Tensor:
        found = torch.cat([self._rows(rows)._variance() for rows in self._chunks()])
        return found.reshape(self.x.shape).to(self.x.dtype)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariances of the flattened event, ``(B, d, d)``: within components and between them."""
        found = [self._rows(rows)._covariance() for rows in self._chunks()]
        return torch.cat(found).to(self.x.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities ``(..., B)`` of places ``(..., B, *d)``."""
        if value.ndim < self.x.ndim or value.shape[-self.x.ndim + 1 :] != self.event_shape:
            raise ValueError(
                f"log_prob: places have shape {tuple(value.shape)}, expected (..., "
                f"{', '.join(map(str, self.x.shape))})"
            )
        lead = value.shape[: value.ndim - self.x.ndim]
        y = value.expand(*lead, *self.x.shape).reshape(lead.numel(), *self._flat.shape).double()
        found = []
        for rows in self._chunks():
            own = self._rows(rows)
            at_once = max(1, CHUNK // max(1, len(own._flat) * self.potential.location.numel()))
            parts = [y] if self._tracked(value) else y.split(at_once)
            found.append(torch.cat([own._log_prob(part[:, rows]) for part in parts]))
        return torch.cat(found, -1).reshape(*lead, len(self._flat)).to(self.x.dtype)

    @torch.no_grad()
    def sample(
        self, sample_shape: torch.Size | tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``(*sample_shape, B, *d)``."""
        shape = torch.Size(sample_shape)
        count = shape.numel()
        found = [self._rows(rows)._draw(count, generator) for rows in self._chunks()]
        x = torch.cat(found, 1)
        return x.reshape(*shape, *self.x.shape)

    def mixture(self) -> MixtureSameFamily:
        """The law of the flattened event as a ``MixtureSameFamily`` of ``MultivariateNormal``, in
        float64. It holds ``B K d^2`` numbers."""
        covariance = self.potential.spectrum.matrix(self._variances).expand(len(self._flat), -1, -1, -1)
        means = self._flat[:, None] + self._gap[:, None, None] * self._fields()
        return MixtureSameFamily(Categorical(logits=self.logits), MultivariateNormal(means, covariance))

    @property
    def _gap(self) -> Tensor:
        """How long the step is, ``(B,)`` or ``(1,)``."""
        return (self._t - self._s).reshape(-1)

    @property
    def _variances(self) -> Tensor:
        """Eigenvalues of the components' covariances, ``(K, R)`` or ``(B, K, R)``."""
        gap = (self._t - self._s)[..., None, None]
        ratio = self.potential.width(self._t) / self.potential.width(self._s)
        return self.potential.epsilon * gap * ratio

    def _fields(self) -> Tensor:
        """The fields of all components, ``(B, K, D)``."""
        p = self.potential
        slope, pull = p.coefficients(self._s)
        own = p.spectrum.apply(slope, self._flat[:, None].expand(-1, len(p.log_weight), -1))
        return own + p.spectrum.apply(pull, p.location)

    def _apart(self) -> tuple[Tensor, Tensor]:
        """Weights ``(B, K)``, and the fields around their mean ``(B, K, D)``."""
        w, fields = self.logits.exp(), self._fields()
        return w, fields - torch.einsum("bk,bkd->bd", w, fields)[:, None]

    def _variance(self) -> Tensor:
        w, apart = self._apart()
        own = self.potential.spectrum.matrix_diagonal(self._variances)
        within = w @ own if own.ndim == 2 else torch.einsum("bk,bkd->bd", w, own)
        return within + (self._gap**2)[:, None] * torch.einsum("bk,bkd->bd", w, apart.square())

    def _covariance(self) -> Tensor:
        w, apart = self._apart()
        between = torch.einsum("bk,bkd,bke->bde", w, apart, apart)
        within = self.potential.spectrum.average(w, self._variances)
        return within + (self._gap**2)[:, None, None] * between

    def _log_prob(self, y: Tensor) -> Tensor:
        spectrum, v = self.potential.spectrum, self._variances
        means = self._flat[:, None] + self._gap[:, None, None] * self._fields()
        apart = y[..., None, :] - means
        square = (apart * spectrum.apply(1 / v, apart)).sum(-1)
        norm = spectrum.count((2 * torch.pi * v).log())
        return (self.logits - (square + norm) / 2).logsumexp(-1)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        p, b = self.potential, len(self._flat)
        where = draw_device(generator, self.x.device)
        options = {"generator": generator, "dtype": torch.float64, "device": where}
        u = torch.rand(b, count, **options).to(self.x.device)
        z = torch.randn(count * b, p.spectrum.dim, **options).to(self.x.device)
        k = pick(self.logits.exp(), u).mT.reshape(-1)
        slope, pull = (rows_at(c, k) for c in p.coefficients(self._s))
        x = self._flat.repeat(count, 1)
        field = p.spectrum.select(k, slope, x) + p.spectrum.select(k, pull, p.location[k])
        noise = p.spectrum.select(k, rows_at(self._variances, k).sqrt(), z)
        gap = self._gap.expand(b).repeat(count)[:, None]
        return (x + gap * field + noise).to(self.x.dtype).reshape(count, *self.x.shape)

    def _rows(self, rows: slice) -> Transition:
        s, t = (v if v.ndim == 0 else v[rows] for v in (self._s, self._t))
        return Transition(self.potential, s, t, self.x[rows])

    def _tracked(self, *given: Tensor) -> bool:
        return self.potential.tracked(self._s, self._t, self._flat, *given)

    def _chunks(self) -> Iterator[slice]:
        rows = len(self._flat)
        size = rows if self._tracked() else CHUNK // self.potential.location.numel()
        for start in range(0, max(1, rows), max(1, size)):
            yield slice(start, start + max(1, size))
