r"""Entropic potentials of Gaussian marginals: the closed form behind ``Gibbs(correction="gaussian")``.

For :math:`N(a, A)` and :math:`N(m, S)` the entropic plan of cost :math:`|x-y|^2` at temperature
:math:`\varepsilon = 2\sigma^2` is Gaussian, with the cross-covariance of the static Schrödinger bridge
(Janati, Muzellec, Peyré & Cuturi 2020; Bunne et al. 2023). Its density over the product of the
marginals is

.. math:: \log w = -\tfrac12 \tilde x^\top F \tilde x - \tfrac12 \tilde y^\top G \tilde y
    + \tilde x\cdot\tilde y/\sigma^2 - \tfrac12\sum_i\log(2\sigma^2\varphi(\tau_i)),

with centred points, :math:`\varphi(\tau) = 1/(\sqrt{\tau + \sigma^4} + \sigma^2)`,
:math:`\tau` the eigenvalues of :math:`4A^{1/2}SA^{1/2}`, and
:math:`F = \frac{2}{\sigma^2} S^{1/2}\varphi(4S^{1/2}AS^{1/2})S^{1/2}`; :math:`G` with both swapped.
In this form no covariance is inverted, so that directions without variance do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.tensors import symmetric_root

FULL = 64
"""Dimensions of a vector up to which covariances are full unless told otherwise."""


def moments(x: Tensor, mass: Tensor | None, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and covariance, ``(d, d)`` or its diagonal ``(d,)``, of weighted rows; float64."""
    flat = x.flatten(1).double()
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("Gibbs: the samples hold values that are not finite (NaN or infinite)")
    share = torch.full_like(flat[:, 0], 1 / len(flat)) if mass is None else mass / mass.sum()
    mean = share @ flat
    centred = flat - mean
    cov = share @ centred**2 if diagonal else (centred * share[:, None]).mT @ centred
    return mean, cov


def _half(here: Tensor, there: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """The quadratic form of the side with covariance ``here``, and ``sum log(2 variance phi)``."""
    if here.ndim == 2:  # (C, d): diagonals
        tau = 4 * here * there
        phi = 1 / ((tau + variance**2).sqrt() + variance)
        return 2 / variance * there * phi, (2 * variance * phi).log().sum(1)
    root = symmetric_root(there)
    values, vectors = torch.linalg.eigh(4 * root @ here @ root)
    phi = 1 / ((values.clamp_min(0) + variance**2).sqrt() + variance)
    inner = (vectors * phi[:, None]) @ vectors.mT
    return 2 / variance * root @ inner @ root, (2 * variance * phi).log().sum(1)


@dataclass(frozen=True)
class GaussianPotentials:
    r"""Log-weights between Gaussian marginals, one pair of laws a class:
    :math:`\log w = -\tfrac12 z^\top Q z + c` with the centred pair :math:`z = (\tilde x, \tilde y)`.

    Attributes:
        mean: of the pair, ``(C, 2d)``.
        form: the quadratic form ``Q``, ``(C, 2d, 2d)``; for diagonal covariances the diagonals of its
            four blocks, ``(C, 3, d)``: both sides', and the cross term.
        constant: ``(C,)``.
    """

    mean: Tensor
    form: Tensor
    constant: Tensor
    diagonal: bool

    @classmethod
    def of(
        cls, fitted: Mapping[str, Sequence[Any]], epsilon: float, like: Tensor
    ) -> GaussianPotentials:
        """From plain lists of means and covariances by class, in the dtype and on the device of
        ``like``; computed in float64 on the CPU."""
        names = ("mean0", "cov0", "mean1", "cov1")
        mean0, cov0, mean1, cov1 = (torch.tensor(fitted[n], dtype=torch.float64) for n in names)
        variance = epsilon / 2
        left, logs = _half(cov0, cov1, variance)
        right, _ = _half(cov1, cov0, variance)
        diagonal = cov0.ndim == 2
        if diagonal:
            form = torch.stack([left, right, torch.full_like(left, -1 / variance)], 1)
        else:
            cross = torch.eye(mean0.shape[1], dtype=torch.float64).expand_as(left) / -variance
            form = torch.cat([torch.cat([left, cross], 2), torch.cat([cross, right], 2)], 1)
        found = (v.to(like) for v in (torch.cat([mean0, mean1], 1), form, -logs / 2))
        return cls(*found, diagonal)

    def rows(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        """Log-weight of row ``i`` of ``x`` with row ``i`` of ``y``, whose class is ``index[i]``."""
        k: Any = 0 if index is None else index
        z = torch.cat([x.flatten(1), y.flatten(1)], 1) - self.mean[k]
        if self.diagonal:
            x, y = z.chunk(2, 1)
            left, right, cross = self.form[k].unbind(-2)
            square = (left * x * x + right * y * y + 2 * cross * x * y).sum(1)
        elif index is None:
            square = (z @ self.form[0]).mul_(z).sum(1)
        else:
            square = torch.einsum("bd,bde,be->b", z, self.form[k], z)
        return torch.add(self.constant[k], square, alpha=-0.5)

    def pairs(self, x: Tensor, y: Tensor, k: int = 0) -> Tensor:
        """Log-weight of every row of ``x (n, *d)`` with every row of ``y (m, *d)`` in class ``k``."""
        mean0, mean1 = self.mean[k].chunk(2)
        x, y = x.flatten(1) - mean0, y.flatten(1) - mean1
        d = x.shape[1]
        if self.diagonal:
            left, right, cross = self.form[k]
            squares = (left * x * x).sum(1, keepdim=True) + (right * y * y).sum(1)
            return self.constant[k] - squares / 2 - (x * cross) @ y.mT
        form = self.form[k]
        left = ((x @ form[:d, :d]) * x).sum(1, keepdim=True)
        right = ((y @ form[d:, d:]) * y).sum(1)
        return self.constant[k] - (left + right) / 2 - x @ form[:d, d:] @ y.mT
