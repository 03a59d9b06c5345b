"""Coefficients of control variates, and the distances that are left once variates are taken off."""

from __future__ import annotations

import torch
from torch import Tensor

from genflow.variate.base import Variate


def residuals(costs: Tensor, features: Tensor, variate: Variate) -> Tensor:
    """Distances minus coefficient times centred variates, ``(B, L)``: their mean is the estimate.

    Args:
        costs: projected distances ``(B, L)``, in float64.
        features: variates minus their means, ``(B, L, K)``.
        variate: whose coefficient counts. Gradients run through costs and features, and through fitted
            coefficients only if they are the published ones.
    """
    kind, features = variate.coefficient, features.to(costs)
    if not isinstance(kind, str):
        return costs - kind * features[..., 0]
    if kind == "published":
        return costs - _published(costs, features[..., 0])[:, None] * features[..., 0]
    held = features.detach()
    slope = _fitted(costs.detach(), held, kind)
    slope = slope if slope.ndim == 3 else slope[:, None]
    return costs - (slope * features).sum(-1)


def weights_of(features: Tensor) -> Tensor:
    """Weights of the directions ``(B, L)`` whose sum of distances is the estimate by regression: for
    variates that know nothing of the points, so that gradients must come through the weights."""
    centred = features - features.mean(1, True)
    gram = torch.linalg.pinv(centred.mT @ centred, hermitian=True, rtol=1e-10)
    pull = (centred @ gram @ features.mean(1)[..., None])[..., 0]
    return 1 / features.shape[1] - pull


def _fitted(costs: Tensor, features: Tensor, kind: str) -> Tensor:
    if kind == "leave_one_out":
        return _leave_one_out(costs, features)
    slope = _regression(costs, features)
    return slope.clamp(0, 1) if kind == "clamped" else slope


def _published(costs: Tensor, feature: Tensor) -> Tensor:
    """Covariance over the second moment about the known mean, ``(B,)``."""
    covariance = ((costs - costs.mean(1, True)) * feature).mean(1)
    second = (feature**2).mean(1)
    flat = second == 0
    return torch.where(flat, 0.0, covariance / torch.where(flat, 1.0, second))


def _solve(costs: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Least squares with an intercept: slopes ``(B, K)`` in features of equal spread, these features,
    the inverse of their products, and their scales; zero along combinations that do not vary."""
    centred = features - features.mean(1, True)
    scale = centred.square().mean(1, True).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    centred = centred / scale
    inverse = torch.linalg.pinv(centred.mT @ centred, hermitian=True, rtol=1e-10)
    slope = (inverse @ (centred.mT @ costs[..., None]))[..., 0]
    return slope, centred, inverse, scale


def _regression(costs: Tensor, features: Tensor) -> Tensor:
    slope, _, _, scale = _solve(costs, features)
    return slope / scale[:, 0]


def _leave_one_out(costs: Tensor, features: Tensor) -> Tensor:
    """For each direction the regression on all others, ``(B, L, K)``, by one update each."""
    slope, centred, inverse, scale = _solve(costs, features)
    pull = centred @ inverse
    leverage = (pull * centred).sum(-1) + 1 / costs.shape[1]
    left = costs - costs.mean(1, True) - (centred @ slope[..., None])[..., 0]
    return (slope[:, None] - pull * (left / (1 - leverage).clamp_min(1e-12))[..., None]) / scale
