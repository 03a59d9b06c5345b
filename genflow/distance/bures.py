"""Wasserstein distance of fitted Gaussians."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.distance.base import Distance, flat_pair, safe_root


@dataclass(frozen=True)
class BuresWasserstein(Distance):
    r""":math:`W_2` between the Gaussians with the samples' means and covariances, in float64.

    The trace term :math:`\mathrm{tr}(A^{1/2} B A^{1/2})^{1/2}` is the nuclear norm of
    :math:`X Y^\top` with the centred samples as rows, :math:`\langle P, X Y^\top\rangle` for its
    polar factor :math:`P`. No matrix root is taken, and with :math:`P` held fixed (it is the
    subgradient) singular covariances are exact and their gradients finite.

    Args:
        root: give the distance (default) rather than its square.
    """

    root: bool = True

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = x.dtype
        x, y = (z.double() for z in flat_pair(self, x, y))
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = (x - mean_x) / len(x) ** 0.5, (y - mean_y) / len(y) ** 0.5
        overlap = _nuclear_norm(x, y)
        square = ((mean_x - mean_y) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * overlap
        square = square.clamp_min(0)
        return (safe_root(square, 2) if self.root else square).to(dtype)


def _nuclear_norm(x: Tensor, y: Tensor) -> Tensor:
    """Nuclear norm of ``x @ y.T`` without forming it: through thin QR factors."""
    with torch.no_grad():
        (basis_x, factor_x), (basis_y, factor_y) = torch.linalg.qr(x), torch.linalg.qr(y)
        u, _, vh = torch.linalg.svd(factor_x @ factor_y.mT, full_matrices=False)
        polar = u @ vh
    return (polar * ((basis_x.mT @ x) @ (basis_y.mT @ y).mT)).sum()
