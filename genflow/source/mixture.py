"""A mixture of Gaussians of the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.source.components import Components, draw_components
from genflow.source.toys import Labelled

MARGIN = 1e-12
"""Smallest eigenvalue of a covariance, relative to the largest, that counts as positive."""


class GaussianMixture(Labelled):
    """Gaussians of any means, covariances and weights; the class of a draw is its component.

    Args:
        means: one list of ``d`` numbers for each of the ``K`` components.
        covariances: one variance for all, ``K`` variances, or ``K`` matrices ``d x d``, positive
            definite.
        weights: ``K`` positive numbers, made to sum to one; ``None`` for equal ones.

    Raises:
        ValueError: if sizes do not fit, a covariance is not symmetric and positive definite, or a
            weight is not positive.
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        covariances: float | Sequence[float] | Sequence[Sequence[Sequence[float]]] = 1.0,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.means, self.covariances, self.weights = (_plain(v) for v in (means, covariances, weights))
        centres = _numbers("means", self.means)
        if centres.ndim != 2 or 0 in centres.shape:
            raise ValueError(
                "GaussianMixture(means=...): means must be K lists of d numbers, got shape "
                f"{tuple(centres.shape)}"
            )
        spreads = _matrices(self.covariances, *centres.shape)
        self._law = Components(_shares(self.weights, len(centres)), centres, spreads)
        self.shape = (centres.shape[1],)
        found = (self._law.weights, centres, torch.linalg.cholesky(spreads))
        for name, value in zip(("_weights", "_centres", "_factors"), found):
            self.register_buffer(name, value.to(self._like), persistent=False)

    def components(self) -> Components:
        return self._law

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return draw_components(self._weights, self._centres, self._factors, n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._law.log_prob(x)


def _matrices(given: Any, count: int, dim: int) -> Tensor:
    """Covariances ``(count, dim, dim)``, from one variance, ``count`` variances or as many matrices.

    Raises:
        ValueError: if they are anything else, or not symmetric and positive definite.
    """
    found = _numbers("covariances", given)
    if found.ndim < 2 and found.shape in ((), (count,)):
        found = found.expand(count)[:, None, None] * torch.eye(dim, dtype=torch.float64)
    if found.shape != (count, dim, dim):
        raise ValueError(
            f"GaussianMixture(covariances=...): covariances must be one variance, {count} variances or "
            f"{count} matrices {dim} x {dim}, as many as means; got shape {tuple(found.shape)}"
        )
    for k, matrix in enumerate(found):
        uneven = (matrix - matrix.mT).abs().max() > 1e-8 * matrix.abs().max()
        values = torch.linalg.eigvalsh(matrix)
        if uneven or values[0] <= MARGIN * values[-1].abs():
            raise ValueError(
                f"GaussianMixture(covariances=...): covariance {k} must be symmetric and positive "
                f"definite; its smallest eigenvalue is {float(values[0]):.3g}"
            )
    return (found + found.mT) / 2


def _shares(weights: Sequence[float] | None, count: int) -> Tensor:
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    found = _numbers("weights", weights)
    if found.shape != (count,) or bool((found <= 0).any()):
        raise ValueError(
            f"GaussianMixture(weights={weights}): weights must be {count} positive numbers, one for "
            "each of the means"
        )
    return found / found.sum()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _numbers(name: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as reason:
        raise ValueError(
            f"GaussianMixture({name}=...): {name} must be numbers in lists of equal length"
        ) from reason
    if not all(map(math.isfinite, found.flatten().tolist())):
        raise ValueError(f"GaussianMixture({name}=...): {name} must be finite numbers")
    return found
