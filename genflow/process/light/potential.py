r"""The Schrödinger potential of a light bridge, a mixture of Gaussians, carried through time.

.. math:: v(x_1) = \sum_k\alpha_k\,\mathcal N(x_1|r_k, \varepsilon S_k),\qquad
          c(x_0) = \sum_k\alpha_k\exp\Big(\frac{x_0^\top S_kx_0 + 2r_k^\top x_0}{2\varepsilon}\Big)

(Korotin, Gushchin & Burnaev 2024). With :math:`Q_k(t) = (1-t)I + tS_k` the potential at ``t`` is, up to
a constant,

.. math:: \log\varphi_t(x) = \mathrm{LSE}_k\Big[\log\alpha_k - \tfrac12\log|Q_k| + \tfrac1{2\varepsilon}
          \big(x^\top(S_k-I)Q_k^{-1}x + 2r_k^\top Q_k^{-1}x - t\,r_k^\top Q_k^{-1}r_k\big)\Big],

and the drift :math:`\varepsilon\nabla\log\varphi_t = \sum_kw_kQ_k^{-1}[(S_k-I)x + r_k]` with the
softmax :math:`w` of the bracket: nothing divides by :math:`1-t`, so both hold on all of [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.process.light.covariance import Axes, Spectrum

BLOCK = 1 << 16
"""Weights of rows and components that fit the cache."""
CHUNK = 1 << 22
"""Numbers that one temporary array of rows, components and dimensions may hold."""


def pick(weights: Tensor, u: Tensor) -> Tensor:
    """Numbers drawn in proportion to ``weights (B, K)`` by uniform ``u (B, n)``, ``(B, n)``."""
    below = weights.cumsum(-1)
    return torch.searchsorted(below, u * below[:, -1:], right=True).clamp_max(weights.shape[1] - 1)


def blocks(t: Tensor, x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Times, one or one a row, and states by so many rows; one block at least."""
    size = max(1, size)
    parts = range(0, max(1, len(x)), size)
    return [(t if t.ndim == 0 else t[k : k + size], x[k : k + size]) for k in parts]


def rows_at(values: Tensor, k: Tensor) -> Tensor:
    """Component ``k (n,)`` of values ``(K, R)``, or ``(B, K, R)`` where rows repeat ``n / B`` times."""
    if values.ndim == 2:
        return values[k]
    rows = torch.arange(len(values), device=k.device).repeat(len(k) // len(values))
    return values[rows, k]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, from the side that is faster where ``b`` has few columns."""
    return (b.mT.contiguous() @ a.mT).mT if b.shape[1] < 16 else a @ b


@dataclass(frozen=True, eq=False)
class Potential:
    """Numbers of a light bridge in float64, and the forms that are made of them.

    Times are ``()`` tensors or ``(B,)``, states ``(B, D)``; all float64.

    Attributes:
        epsilon: entropic coefficient.
        log_weight: :math:`\\log\\alpha`, ``(K,)``.
        location: :math:`r`, ``(K, D)``.
        spectrum: of the :math:`S_k`.
    """

    epsilon: float
    log_weight: Tensor
    location: Tensor
    spectrum: Spectrum

    def width(self, t: Tensor) -> Tensor:
        """Eigenvalues of :math:`Q_k(t)`, ``(K, R)`` or ``(B, K, R)``."""
        return 1 + t[..., None, None] * (self.spectrum.values - 1)

    def tracked(self, *states: Tensor) -> bool:
        """Whether a gradient is wanted, in states or times or in the numbers."""
        parts = (*states, self.log_weight, self.location, self.spectrum.values)
        return torch.is_grad_enabled() and any(v.requires_grad for v in parts)

    def quick(self, t: Tensor, x: Tensor) -> bool:
        """Whether :meth:`quick_drift` will do."""
        return t.ndim == 0 and isinstance(self.spectrum, Axes) and not self.tracked(t, x)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of :math:`(S_k-I)Q_k^{-1}` and of :math:`Q_k^{-1}`."""
        pull = 1 / self.width(t)
        return (self.spectrum.values - 1) * pull, pull

    def logits(self, t: Tensor, x: Tensor, given: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The bracket: what each component adds to the potential, ``(B, K)``; ``given`` are
        ``coefficients(t)`` where they are known."""
        slope, pull = self.coefficients(t) if given is None else given
        s, r = self.spectrum, self.location
        square = s.quadratic(x, slope) + 2 * s.linear(x, r, pull) - t[..., None] * s.own(r, pull)
        return self.log_weight + s.count(pull.log()) / 2 + square / (2 * self.epsilon)

    def log_value(self, t: Tensor, x: Tensor) -> Tensor:
        """:math:`\\log\\varphi_t`, ``(B,)``."""
        return torch.cat([self.logits(a, b).logsumexp(-1) for a, b in self._chunks(t, x)])

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """:math:`\\varepsilon\\nabla\\log\\varphi_t`, ``(B, D)``."""
        return torch.cat([self._drift(a, b) for a, b in self._chunks(t, x)])

    def quick_drift(self, t: Tensor, x: Tensor) -> Tensor:
        """:meth:`drift` at one time for all rows, along the axes and without gradients: logits are
        formed in float64, and weigh in the dtype of ``x``. Blocks of rows stay in the cache."""
        slope, pull = self.coefficients(t)
        r, wide = self.location, 1 / (2 * self.epsilon)
        own = (
            self.log_weight
            + self.spectrum.count(pull.log()) / 2
            - wide * t * self.spectrum.own(r, pull)
        )
        size = len(r.mT)
        slope, pull = slope.expand(-1, size), pull * r
        weighed = torch.cat([pull, slope], 1)
        logits = torch.cat([slope * wide, pull * (2 * wide)], 1).mT.contiguous()
        found = []
        for some in x.split(max(1, BLOCK // len(r))):
            y = some.double()
            w = torch.addmm(own, torch.cat([y * y, y], 1), logits)
            w = w.sub_(w.amax(1, keepdim=True)).to(x.dtype).softmax(1).double()
            # both sums are large and cancel near t = 1, but the same weights in both do no harm
            moved = _product(w, weighed)
            found.append(torch.addcmul(moved[:, :size], moved[:, size:], y).to(x.dtype))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _drift(self, t: Tensor, x: Tensor) -> Tensor:
        given = self.coefficients(t)
        w = self.logits(t, x, given).softmax(-1)
        return self.spectrum.combine(w, x, self.location, *given)

    def log_normaliser(self, x0: Tensor) -> Tensor:
        """:math:`\\log c`, ``(B,)``."""
        zero = x0.new_zeros(())
        return self.log_value(zero, x0) + x0.square().sum(-1) / (2 * self.epsilon)

    def log_potential(self, x1: Tensor) -> Tensor:
        """:math:`\\log v`, ``(B,)``."""
        norm = x1.shape[-1] * math.log(2 * math.pi * self.epsilon)
        square = x1.square().sum(-1) / self.epsilon
        return self.log_value(x1.new_ones(()), x1) - (norm + square) / 2

    def _chunks(self, t: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        small = t.ndim == 0 and not hasattr(self.spectrum, "vectors")  # then (B, K) is the largest
        each = len(self.location) if small else self.location.numel()
        return blocks(t, x, len(x) if self.tracked(t, x) else CHUNK // each)
