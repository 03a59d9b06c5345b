r"""Covariances of the potentials of a light bridge, as functions of their eigenvalues.

All that a light bridge computes is made of :math:`f(S_k)` for scalar functions :math:`f`: quadratic
forms, products with a vector, determinants. A family knows how to apply them without forming a matrix
where it can.

Shapes: ``x (B, D)``, ``r (K, D)``, weights ``w (B, K)``; ``f`` holds the function's values at the ``R``
eigenvalues of each component, ``(K, R)`` where it is the same for all rows, or ``(B, K, R)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

FAMILIES = ("diagonal", "full", "isotropic", "low_rank")


class Spectrum(ABC):
    """Eigenvalues and eigenvectors of ``S_k``, ready for functions of them.

    Attributes:
        values: eigenvalues ``(K, R)``.
        dim: number of dimensions ``D``.
    """

    values: Tensor
    dim: int

    @abstractmethod
    def count(self, f: Tensor) -> Tensor:
        """Trace of ``f(S_k)``, ``(K,)`` or ``(B, K)``."""

    @abstractmethod
    def quadratic(self, x: Tensor, f: Tensor) -> Tensor:
        """``x^T f(S_k) x``, ``(B, K)``."""

    @abstractmethod
    def linear(self, x: Tensor, r: Tensor, f: Tensor) -> Tensor:
        """``x^T f(S_k) r_k``, ``(B, K)``."""

    @abstractmethod
    def own(self, r: Tensor, f: Tensor) -> Tensor:
        """``r_k^T f(S_k) r_k``, ``(K,)`` or ``(B, K)``."""

    @abstractmethod
    def combine(self, w: Tensor, x: Tensor, r: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """``sum_k w_k (f(S_k) x + g(S_k) r_k)``, ``(B, D)``."""

    @abstractmethod
    def apply(self, f: Tensor, x: Tensor) -> Tensor:
        """``f(S_k) x_k`` of ``x (..., K, D)``, the same shape."""

    @abstractmethod
    def select(self, k: Tensor, f: Tensor, x: Tensor) -> Tensor:
        """``f(S_k) x`` for one component ``k (n,)`` a row of ``x (n, D)``, with ``f (n, R)``."""

    @abstractmethod
    def matrix(self, f: Tensor) -> Tensor:
        """``f(S_k)`` as matrices ``(..., K, D, D)``."""

    @abstractmethod
    def matrix_diagonal(self, f: Tensor) -> Tensor:
        """Diagonals of ``f(S_k)``, ``(..., K, D)``."""

    @abstractmethod
    def average(self, w: Tensor, f: Tensor) -> Tensor:
        """``sum_k w_k f(S_k)``, ``(B, D, D)``."""


class Axes(Spectrum):
    """The axes are the eigenvectors; one value for all (``R = 1``), or one for each (``R = D``)."""

    def __init__(self, values: Tensor, dim: int) -> None:
        self.values, self.dim = values, dim
        self.times = dim // values.shape[-1]

    def count(self, f: Tensor) -> Tensor:
        return f.sum(-1) * self.times

    def quadratic(self, x: Tensor, f: Tensor) -> Tensor:
        square = x.square() if self.times == 1 else x.square().sum(-1, keepdim=True)
        return square @ f.mT if f.ndim == 2 else torch.einsum("br,bkr->bk", square, f)

    def linear(self, x: Tensor, r: Tensor, f: Tensor) -> Tensor:
        if self.values.shape[-1] == 1:
            return (x @ r.mT) * f[..., 0]
        return x @ (f * r).mT if f.ndim == 2 else torch.einsum("bd,bkd->bk", x, f * r)

    def own(self, r: Tensor, f: Tensor) -> Tensor:
        return (f * r.square()).sum(-1)

    def combine(self, w: Tensor, x: Tensor, r: Tensor, f: Tensor, g: Tensor) -> Tensor:
        if f.ndim == 2:
            return torch.addcmul(w @ (g * r), w @ f, x)
        if self.values.shape[-1] == 1:
            return (w[..., None] * f).sum(1) * x + (w * g[..., 0]) @ r
        return torch.einsum("bk,bkd->bd", w, f * x[:, None] + g * r)

    def apply(self, f: Tensor, x: Tensor) -> Tensor:
        return f * x

    def select(self, k: Tensor, f: Tensor, x: Tensor) -> Tensor:
        return f * x

    def matrix(self, f: Tensor) -> Tensor:
        return torch.diag_embed(self.matrix_diagonal(f))

    def matrix_diagonal(self, f: Tensor) -> Tensor:
        return f.expand(*f.shape[:-1], self.dim)

    def average(self, w: Tensor, f: Tensor) -> Tensor:
        mean = w @ f if f.ndim == 2 else torch.einsum("bk,bkr->br", w, f)
        return self.matrix(mean)


class Rotated(Spectrum):
    """Eigenvectors of each component's own, ``vectors (K, D, R)``; with ``rest``, one more value, the
    last, for all directions orthogonal to them."""

    def __init__(self, values: Tensor, vectors: Tensor, rest: bool) -> None:
        self.values, self.vectors, self.rest = values, vectors, rest
        self.dim, self.rank = vectors.shape[-2], vectors.shape[-1]

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor | float]:
        """Values on the vectors, less the one of the rest, and that one."""
        if not self.rest:
            return f, 0.0
        return f[..., :-1] - f[..., -1:], f[..., -1]

    def _turn(self, x: Tensor) -> Tensor:
        """Coordinates along each component's vectors, ``(B, K, R)``."""
        flat = self.vectors.permute(1, 0, 2).flatten(1)
        return (x @ flat).unflatten(-1, (len(self.vectors), self.rank))

    def _turn_own(self, r: Tensor) -> Tensor:
        return torch.einsum("...kd,kdr->...kr", r, self.vectors)

    def count(self, f: Tensor) -> Tensor:
        inner, rest = self._split(f)
        return inner.sum(-1) + self.dim * rest

    def quadratic(self, x: Tensor, f: Tensor) -> Tensor:
        inner, rest = self._split(f)
        return (inner * self._turn(x).square()).sum(-1) + rest * x.square().sum(-1, keepdim=True)

    def linear(self, x: Tensor, r: Tensor, f: Tensor) -> Tensor:
        inner, rest = self._split(f)
        found = (inner * self._turn_own(r) * self._turn(x)).sum(-1)
        return found + rest * (x @ r.mT) if self.rest else found

    def own(self, r: Tensor, f: Tensor) -> Tensor:
        inner, rest = self._split(f)
        return (inner * self._turn_own(r).square()).sum(-1) + rest * r.square().sum(-1)

    def combine(self, w: Tensor, x: Tensor, r: Tensor, f: Tensor, g: Tensor) -> Tensor:
        (f, rest_f), (g, rest_g) = self._split(f), self._split(g)
        inner = w[..., None] * (f * self._turn(x) + g * self._turn_own(r))
        found = inner.flatten(1) @ self.vectors.permute(0, 2, 1).flatten(0, 1)
        if not self.rest:
            return found
        return found + (w * rest_f).sum(-1, keepdim=True) * x + (w * rest_g) @ r

    def apply(self, f: Tensor, x: Tensor) -> Tensor:
        inner, rest = self._split(f)
        found = torch.einsum("...kr,kdr->...kd", inner * self._turn_own(x), self.vectors)
        return found + rest[..., None] * x if self.rest else found

    def select(self, k: Tensor, f: Tensor, x: Tensor) -> Tensor:
        inner, rest = self._split(f)
        found = torch.empty_like(x)
        for one in k.unique():  # a matrix for each component, not for each row
            rows = k == one
            vectors = self.vectors[one]
            found[rows] = (inner[rows] * (x[rows] @ vectors)) @ vectors.mT
        return found + rest[..., None] * x if self.rest else found

    def matrix(self, f: Tensor) -> Tensor:
        inner, rest = self._split(f)
        found = (self.vectors * inner[..., None, :]) @ self.vectors.mT
        if not self.rest:
            return found
        return found + rest[..., None, None] * torch.eye(self.dim).to(found)

    def matrix_diagonal(self, f: Tensor) -> Tensor:
        inner, rest = self._split(f)
        found = torch.einsum("...kr,kdr->...kd", inner, self.vectors.square())
        return found + rest[..., None] if self.rest else found

    def average(self, w: Tensor, f: Tensor) -> Tensor:
        if f.ndim == 2:  # one matrix for each component, not for each row
            return (w @ self.matrix(f).flatten(1)).unflatten(1, (self.dim, self.dim))
        inner, rest = self._split(f)
        scaled = (w[..., None] * inner)[:, :, None, :] * self.vectors  # (B, K, D, R)
        found = torch.einsum("bkdr,ker->bde", scaled, self.vectors)
        if not self.rest:
            return found
        share = (w * rest).sum(-1)
        return found + share[:, None, None] * torch.eye(self.dim).to(found)


class Covariance(nn.Module):
    r"""The parameters of :math:`S_k`: logarithms of eigenvalues, and for ``full`` and ``low_rank`` the
    eigenvectors as products of Householder reflections, which are orthogonal whatever their numbers.

    Args:
        dim: number of dimensions ``D``.
        components: how many, ``K``.
        family: ``"diagonal"``; ``"isotropic"``, :math:`S = cI`; ``"full"``; or ``"low_rank"``,
            :math:`S = cI + U\Lambda U^\top` of ``rank`` columns.
        rank: of ``"low_rank"``, less than ``dim``.
    """

    def __init__(self, dim: int, components: int, family: str, rank: int | None) -> None:
        super().__init__()
        self.dim, self.family = dim, family
        self.rank = {"full": dim, "low_rank": rank}.get(family, 0)
        size = {"diagonal": dim, "isotropic": 1, "full": dim, "low_rank": (rank or 0) + 1}[family]
        self.log_values = nn.Parameter(torch.zeros(components, size))
        if self.rank:
            self.reflections = nn.Parameter(torch.zeros(components, dim, self.rank))

    def spectrum(self) -> Spectrum:
        """Eigenvalues and eigenvectors in float64, with the gradient of the parameters."""
        values = self.log_values.double().exp()
        if not self.rank:
            return Axes(values, self.dim)
        below = self.reflections.double().tril(-1)
        scale = 2 / (1 + below.square().sum(-2))
        vectors = torch.linalg.householder_product(below, scale)
        return Rotated(values, vectors, self.family == "low_rank")

    @torch.no_grad()
    def assign(self, scale: Tensor) -> None:
        """Take ``S``: ``(K, D)`` diagonal, ``(K,)`` isotropic, ``(K, D, D)`` full or of low rank; a
        matrix is projected on the family."""
        if not self.rank:
            self.log_values.copy_(scale.reshape(self.log_values.shape).log())
            return
        values, vectors = torch.linalg.eigh(scale.double())
        values, vectors = values.flip(-1), vectors.flip(-1)
        if self.family == "low_rank":
            rest = values[..., self.rank :].mean(-1, keepdim=True)
            values, vectors = torch.cat([values[..., : self.rank], rest], -1), vectors[..., : self.rank]
        self.log_values.copy_(values.log())
        # of an orthonormal matrix, QR's triangle is a diagonal of signs: Q has the same columns
        self.reflections.copy_(torch.geqrf(vectors.contiguous())[0].tril(-1))
