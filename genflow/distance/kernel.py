"""Energy distance and maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import positive
from genflow.distance.base import Distance, flat_pair, shares


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # cdist's default multiplies matrices from 25 points on and cancels far from the origin
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _within(kernel: Tensor, unbiased: bool) -> Tensor:
    """Mean of a kernel matrix of one sample, without its diagonal if unbiased."""
    if not unbiased:
        return kernel.mean()
    n = len(kernel)
    if n < 2:
        raise ValueError("an unbiased estimate needs at least two points in each sample")
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


@dataclass(frozen=True)
class EnergyDistance(Distance):
    r""":math:`2E|X-Y| - E|X-X'| - E|Y-Y'|` (Székely & Rizzo 2013).

    Args:
        unbiased: leave out the pairs of a point with itself; the estimate may then be negative.
    """

    unbiased: bool = False

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
    ) -> Tensor:
        """Distance of ``x (n, *d)`` and ``y (m, *d)``; weights ``(n,)`` and ``(m,)`` say how much each
        row counts, ``None`` all alike.

        Raises:
            ValueError: for weights with ``unbiased``.
        """
        x, y = flat_pair(self, x, y)
        if weights_x is not None or weights_y is not None:
            return self._weighted(x, y, weights_x, weights_y)
        cross = 2 * _distances(x, y).mean()
        within = [_within(_distances(z, z), self.unbiased) for z in (x, y)]
        return cross - within[0] - within[1]

    def _weighted(
        self, x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None
    ) -> Tensor:
        if self.unbiased:
            raise ValueError("EnergyDistance(unbiased=True) takes no weights; use unbiased=False")
        given = (x, weights_x, "weights_x"), (y, weights_y, "weights_y")
        a, b = (
            v.new_full((len(v),), 1 / len(v)) if w is None else shares(self, v, w, name).to(v)
            for v, w, name in given
        )
        cross = a @ _distances(x, y) @ b
        return 2 * cross - a @ _distances(x, x) @ a - b @ _distances(y, y) @ b


@dataclass(frozen=True)
class MMD(Distance):
    r"""Squared maximum mean discrepancy with Gaussian kernels (Gretton et al. 2012).

    The kernel is the mean of :math:`e^{-|x-y|^2/(2h^2)}` over bandwidths ``h``.

    Args:
        bandwidth: one ``h``, several, or ``None`` for the median distance of the joint sample
            times 1/4, 1/2, 1, 2 and 4.
        unbiased: leave out the pairs of a point with itself; the estimate may then be negative.
    """

    bandwidth: float | Sequence[float] | None = None
    unbiased: bool = True

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            bandwidths = self.bandwidth if isinstance(self.bandwidth, Sequence) else [self.bandwidth]
            if not bandwidths:
                raise ValueError("MMD(bandwidth=[]): give at least one bandwidth, or None")
            for h in bandwidths:
                positive(self, bandwidth=h)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = flat_pair(self, x, y)
        squares = [_distances(a, b) ** 2 for a, b in ((x, y), (x, x), (y, y))]
        scale = self._scale(x, y)

        def kernel(square: Tensor) -> Tensor:
            return torch.stack([torch.exp(-square / (2 * h**2)) for h in scale]).mean(0)

        cross, own_x, own_y = map(kernel, squares)
        return _within(own_x, self.unbiased) + _within(own_y, self.unbiased) - 2 * cross.mean()

    def _scale(self, x: Tensor, y: Tensor) -> list[float]:
        if self.bandwidth is None:
            with torch.no_grad():
                median = float(torch.pdist(torch.cat([x, y])[:4000]).median())
            return [max(median, 1e-12) * f for f in (0.25, 0.5, 1.0, 2.0, 4.0)]
        return list(self.bandwidth) if isinstance(self.bandwidth, Sequence) else [self.bandwidth]
