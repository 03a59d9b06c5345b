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

FULL = 64
"""Dimensions of a vector up to which covariances are full unless told otherwise."""


def moments(x: Tensor, mass: Tensor | None, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and covariance, ``(d, d)`` or its diagonal ``(d,)``, of weighted rows; float64."""
    flat = x.flatten(1).double()
    share = torch.full_like(flat[:, 0], 1 / len(flat)) if mass is None else mass / mass.sum()
    mean = share @ flat
    centred = flat - mean
    cov = share @ centred**2 if diagonal else (centred * share[:, None]).mT @ centred
    return mean, cov


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT


def _half(here: Tensor, there: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """The quadratic form of the side with covariance ``here``, and ``sum log(2 variance phi)``."""
    if here.ndim == 2:  # (C, d): diagonals
        tau = 4 * here * there
        phi = 1 / ((tau + variance**2).sqrt() + variance)
        return 2 / variance * there * phi, (2 * variance * phi).log().sum(1)
    root = _root(there)
    values, vectors = torch.linalg.eigh(4 * root @ here @ root)
    phi = 1 / ((values.clamp_min(0) + variance**2).sqrt() + variance)
    inner = (vectors * phi[:, None]) @ vectors.mT
    return 2 / variance * root @ inner @ root, (2 * variance * phi).log().sum(1)


@dataclass(frozen=True)
class GaussianPotentials:
    """Log-weights between Gaussian marginals, one pair of laws a class.

    Attributes:
        mean0, mean1: ``(C, d)``.
        form0, form1: the quadratic forms, ``(C, d, d)`` or diagonals ``(C, d)``.
        constant: ``(C,)``.
        variance: sigma squared, half the temperature.
    """

    mean0: Tensor
    mean1: Tensor
    form0: Tensor
    form1: Tensor
    constant: Tensor
    variance: float

    @classmethod
    def of(
        cls, fitted: Mapping[str, Sequence[Any]], epsilon: float, like: Tensor
    ) -> GaussianPotentials:
        """From plain lists of means and covariances by class, in the dtype and on the device of
        ``like``; computed in float64 on the CPU."""
        names = ("mean0", "cov0", "mean1", "cov1")
        mean0, cov0, mean1, cov1 = (torch.tensor(fitted[n], dtype=torch.float64) for n in names)
        form0, logs = _half(cov0, cov1, epsilon / 2)
        form1, _ = _half(cov1, cov0, epsilon / 2)
        found = (v.to(like) for v in (mean0, mean1, form0, form1, -logs / 2))
        return cls(*found, epsilon / 2)

    def rows(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        """Log-weight of row ``i`` of ``x`` with row ``i`` of ``y``, whose class is ``index[i]``."""
        k: Any = 0 if index is None else index
        x, y = x.flatten(1) - self.mean0[k], y.flatten(1) - self.mean1[k]
        square = (self._apply(self.form0[k], x) * x + self._apply(self.form1[k], y) * y).sum(1)
        return (x * y).sum(1) / self.variance - square / 2 + self.constant[k]

    def pairs(self, x: Tensor, y: Tensor, k: int = 0) -> Tensor:
        """Log-weight of every row of ``x (n, *d)`` with every row of ``y (m, *d)`` in class ``k``."""
        x, y = x.flatten(1) - self.mean0[k], y.flatten(1) - self.mean1[k]
        left = (self._apply(self.form0[k], x) * x).sum(1, keepdim=True)
        right = (self._apply(self.form1[k], y) * y).sum(1)
        return x @ y.mT / self.variance - (left + right) / 2 + self.constant[k]

    def _apply(self, form: Tensor, x: Tensor) -> Tensor:
        if self.form0.ndim == 2:  # diagonals
            return form * x
        return x @ form if form.ndim == 2 else torch.einsum("bd,bde->be", x, form)
