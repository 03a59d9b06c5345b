"""Closed forms of Gaussian pairs: the oracle that several tests share."""

from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """Joint Gaussian law of ``(x0, x1)`` with cross-covariance ``cross = Cov(x0, x1)``."""

    mean0: Tensor
    cov0: Tensor
    mean1: Tensor
    cov1: Tensor
    cross: Tensor


def pair(correlated: bool = False) -> Pair:
    """A pair in the plane with nothing symmetric about it, so that swapped terms show."""
    cov0 = torch.tensor([[1.0, 0.3], [0.3, 0.6]], dtype=torch.float64)
    cov1 = torch.tensor([[0.5, -0.2], [-0.2, 1.2]], dtype=torch.float64)
    cross = torch.tensor([[0.3, 0.2], [-0.1, 0.25]], dtype=torch.float64)
    return Pair(
        torch.tensor([0.4, -0.3], dtype=torch.float64), cov0,
        torch.tensor([1.2, 0.5], dtype=torch.float64), cov1,
        cross if correlated else 0 * cross,
    )  # fmt: skip


def draw(law: Pair, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` rows of ``(x0, x1)`` in float64."""
    joint = torch.cat([torch.cat([law.cov0, law.cross], 1), torch.cat([law.cross.T, law.cov1], 1)])
    z = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    x = z @ torch.linalg.cholesky(joint).T + torch.cat([law.mean0, law.mean1])
    return x[:, :2], x[:, 2:]


def fields(law: Pair, c, sigma: float = 0.0) -> dict[str, tuple[Tensor, Tensor]]:
    """Optimal learners at one time, each ``(slope, intercept)``: ``E[T|x] = slope x + intercept``.

    ``c`` are an interpolant's coefficients at one time (0-d or (1,) tensors, float64).
    """
    alpha, beta, gamma, dalpha, dbeta, _, product = (v.reshape(()) for v in c)
    a, s, k, eye = law.cov0, law.cov1, law.cross, torch.eye(2, dtype=torch.float64)
    mean = alpha * law.mean0 + beta * law.mean1
    cov = alpha**2 * a + beta**2 * s + alpha * beta * (k + k.T) + gamma**2 * eye
    rate = alpha * dalpha * a + beta * dbeta * s + dbeta * alpha * k.T + dalpha * beta * k
    inverse, nothing = torch.linalg.inv(cov), torch.zeros(2, dtype=torch.float64)
    moved = dalpha * law.mean0 + dbeta * law.mean1
    slopes = {
        "velocity": (rate + product * eye, moved),
        "rate": (rate, moved),
        "noise": (gamma * eye, nothing),
        "score": (-eye, nothing),
        "drift": (rate + (product - sigma**2 / 2) * eye, moved),
        "denoised": (alpha * k.T + beta * s, law.mean1),
    }
    return {n: (v @ inverse, m - v @ inverse @ mean) for n, (v, m) in slopes.items()}


def least_squares(x: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the weighted regression of ``target`` on ``(1, x)``."""
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    left = design if weight is None else weight[:, None] * design
    solution = torch.linalg.solve(left.T @ design, left.T @ target)
    return solution[1:].T, solution[0]


def distance(found: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor]) -> float:
    """Largest absolute difference of two affine maps' numbers."""
    return max(float((f - t).abs().max()) for f, t in zip(found, true))


def tilted(law: Pair, kappa: float) -> Pair:
    """Law of independent pairs weighted by ``exp(-kappa |x0 - x1|^2)``."""
    own0, own1 = torch.linalg.inv(law.cov0), torch.linalg.inv(law.cov1)
    eye = 2 * kappa * torch.eye(2, dtype=torch.float64)
    precision = torch.cat([torch.cat([own0 + eye, -eye], 1), torch.cat([-eye, own1 + eye], 1)])
    cov = torch.linalg.inv(precision)
    mean = cov @ torch.cat([own0 @ law.mean0, own1 @ law.mean1])
    return Pair(mean[:2], cov[:2, :2], mean[2:], cov[2:, 2:], cov[:2, 2:])


def log_z(law: Pair, kappa: float) -> float:
    """``log E exp(-kappa |x0 - x1|^2)`` for independent ``x0, x1``."""
    m = torch.eye(2, dtype=torch.float64) + 2 * kappa * (law.cov0 + law.cov1)
    offset = law.mean0 - law.mean1
    return float(-0.5 * torch.logdet(m) - kappa * offset @ torch.linalg.solve(m, offset))


def ess(law: Pair, kappa: float) -> float:
    """Effective sample size of those weights, ``Z(kappa)^2 / Z(2 kappa)``."""
    return float(torch.tensor(2 * log_z(law, kappa) - log_z(law, 2 * kappa)).exp())


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


def bridge_cross(law: Pair, sigma: float) -> Tensor:
    """Cross-covariance of the Schrödinger bridge of ``dX = sigma dW``."""
    half, eye = root(law.cov0), torch.eye(2, dtype=torch.float64)
    inner = root(4 * half @ law.cov1 @ half + sigma**4 * eye)
    return half @ inner @ torch.linalg.inv(half) / 2 - sigma**2 / 2 * eye
