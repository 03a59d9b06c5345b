r"""Joint laws of :math:`(x_0, x_1)` in closed form, for the couplings that have one.

=================  ======================================================
coupling           law
=================  ======================================================
``Independent``    :func:`independent`
``Sinkhorn``       :func:`entropic` (Gaussian marginals)
``Gibbs``          :func:`tilted`
pairs of one's own :func:`gaussian`, or :class:`~genflow.oracle.Joint`
=================  ======================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.checks import positive
from genflow.oracle.joint import Joint, numbers, symmetric
from genflow.source import Components, Source
from genflow.tensors import symmetric_root

Law = Source | Components
"""A source that is a mixture of Gaussians, or the mixture itself."""


def independent(x0: Law, x1: Law) -> Joint:
    """Independent pairs: one component for each pair of components.

    >>> independent(Gaussian(2), EightGaussians()).weights.shape  # doctest: +SKIP
    torch.Size([8])

    Args:
        x0, x1: laws of the same dimension, ``Gaussian``, ``EightGaussians``, ``GaussianMixture`` or
            ``Components``.

    Raises:
        NotImplementedError: for a source that is no mixture of Gaussians.
        ValueError: if the dimensions differ.
    """
    weights, mean0, cov0, mean1, cov1 = _pairs(x0, x1)
    return Joint(weights, mean0, mean1, cov0, cov1, torch.zeros_like(cov0))


def gaussian(
    mean0: Tensor | Sequence[float],
    cov0: Tensor | Sequence[Sequence[float]],
    mean1: Tensor | Sequence[float],
    cov1: Tensor | Sequence[Sequence[float]],
    cross: Tensor | Sequence[Sequence[float]] | None = None,
) -> Joint:
    """One Gaussian pair.

    Args:
        mean0, mean1: ``(d,)``.
        cov0, cov1: ``(d, d)``.
        cross: ``Cov(x0, x1) (d, d)``; zeros where absent.

    Raises:
        ValueError: as :class:`Joint` raises.
    """
    cov0 = numbers(cov0)
    cross = torch.zeros_like(cov0) if cross is None else numbers(cross)
    given = (torch.ones(()), mean0, mean1, cov0, cov1, cross)
    return Joint(*(numbers(v)[None] for v in given))


def mirrored(x1: Law) -> Joint:
    """Pairs of equal points, ``x0 = x1``."""
    weights, means, covs = _components(x1)
    return Joint(weights, means, means, covs, covs, covs)


def entropic(x0: Law, x1: Law, sigma: float) -> Joint:
    r"""The static Schrödinger bridge of :math:`dX = \sigma dW` between two Gaussians: the entropic
    plan of cost :math:`|x-y|^2` at temperature :math:`2\sigma^2`.

    The cross-covariance is written without inverses, so that singular covariances are no obstacle:
    :math:`2A^{1/2}\varphi(4A^{1/2}SA^{1/2})A^{1/2}S` with
    :math:`\varphi(\tau) = 1/(\sqrt{\tau+\sigma^4}+\sigma^2)`; equal to the form of Janati, Muzellec,
    Peyré & Cuturi (2020) and of Bunne et al. (2023) where that exists. On ``BrownianBridge(sigma)``
    the fields of this law are those of the bridge.

    Args:
        x0, x1: laws of one component each.
        sigma: diffusion coefficient of the reference, positive.

    Raises:
        ValueError: for a mixture, whose bridge has no closed form, or a ``sigma`` that is not positive.
    """
    positive("entropic", sigma=sigma)
    (_, mean0, cov0), (_, mean1, cov1) = _components(x0), _components(x1)
    if len(mean0) != 1 or len(mean1) != 1:
        raise ValueError(
            f"entropic: the laws have {len(mean0)} and {len(mean1)} components; only the bridge of two "
            "single Gaussians has a closed form"
        )
    _same_dimension(mean0, mean1)
    half, variance = symmetric_root(cov0), sigma**2
    values, vectors = torch.linalg.eigh(symmetric(4 * half @ cov1 @ half))
    phi = 1 / ((values.clamp_min(0) + variance**2).sqrt() + variance)
    inner = (vectors * phi.unsqueeze(-2)) @ vectors.mT
    cross = 2 * half @ inner @ half @ cov1
    return Joint(torch.ones(1), mean0, mean1, cov0, cov1, cross)


def tilted(x0: Law, x1: Law, epsilon: float) -> Joint:
    r"""Independent pairs weighted by :math:`e^{-|x_0-x_1|^2/\varepsilon}`: what ``Gibbs(epsilon)``
    without a correction couples, tilted marginals and all.

    The weight is the likelihood of observing :math:`x_0 - x_1 = 0` with noise of variance
    :math:`\varepsilon/2`, so that every pair of components is conditioned as Gaussians are, and its
    weight is multiplied by its own evidence.

    Args:
        x0, x1: laws of the same dimension.
        epsilon: temperature of the cost ``|x0 - x1|^2``, positive.

    Raises:
        ValueError, NotImplementedError: as :func:`independent` raises, and for an ``epsilon`` that is
            not positive.
    """
    positive("tilted", epsilon=epsilon)
    weights, mean0, cov0, mean1, cov1 = _pairs(x0, x1)
    noise = epsilon / 2 * torch.eye(mean0.shape[1], dtype=torch.float64)
    factor = torch.linalg.cholesky(cov0 + cov1 + noise)
    offset = (mean0 - mean1)[..., None]
    pull = torch.cholesky_solve(offset, factor)
    logs = weights.log() - 0.5 * (offset * pull).sum((1, 2))
    logs = logs - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    # cov - cov G^-1 cov as a product: no difference of large numbers for a small epsilon
    own0 = cov0 @ torch.cholesky_solve(cov1 + noise, factor)
    own1 = cov1 @ torch.cholesky_solve(cov0 + noise, factor)
    return Joint(
        logs.softmax(0),
        mean0 - (cov0 @ pull)[..., 0],
        mean1 + (cov1 @ pull)[..., 0],
        symmetric(own0),
        symmetric(own1),
        cov0 @ torch.cholesky_solve(cov1, factor),
    )


def _components(law: Law) -> Components:
    if isinstance(law, Components):
        return Components(*(numbers(v) for v in law))
    if not isinstance(law, Source):
        raise TypeError(f"an oracle needs a source or Components, got {type(law).__name__}")
    return law.components()


def _pairs(x0: Law, x1: Law) -> tuple[Tensor, ...]:
    """Weights, and means and covariances of both sides, of all pairs of components."""
    (p, m, c), (q, n, d) = _components(x0), _components(x1)
    _same_dimension(m, n)
    left = torch.arange(len(p)).repeat_interleave(len(q))
    right = torch.arange(len(q)).repeat(len(p))
    return p[left] * q[right], m[left], c[left], n[right], d[right]


def _same_dimension(mean0: Tensor, mean1: Tensor) -> None:
    if mean0.shape[1] != mean1.shape[1]:
        raise ValueError(
            f"x0 has {mean0.shape[1]} dimensions but x1 has {mean1.shape[1]}; they must be equal"
        )
