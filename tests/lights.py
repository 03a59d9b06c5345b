"""Light bridges of every family beside their published forms, in matrices and torch's own laws."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributions as D

from genflow.process import LightBridge

FAMILIES = ["diagonal", "full", "isotropic", "low_rank"]
double = torch.float64


class Numbers(NamedTuple):
    """What a bridge was given: log-weights ``(K,)``, locations ``(K, d)``, matrices ``(K, d, d)``."""

    epsilon: float
    log_weight: Tensor
    location: Tensor
    matrices: Tensor


def scales(family: str, count: int, dim: int, least: float, most: float, seed: int) -> Tensor:
    """Matrices ``S`` of the family, of eigenvalues between two numbers and both among them."""
    draw = torch.Generator().manual_seed(seed)
    share = torch.rand(count, dim, generator=draw, dtype=double)
    share[0, 0], share[-1, 0] = 0, 1
    values = least * (most / least) ** share
    turn = torch.linalg.qr(torch.randn(count, dim, dim, generator=draw, dtype=double))[0]
    if family == "isotropic":
        values = values[:, :1].expand(-1, dim)
    if family == "low_rank":  # the greatest, and one value for all the others
        values = values.sort(descending=True).values
        values = torch.cat([values[:, :1], values[:, -1:].expand(-1, dim - 1)], 1)
    if family in ("diagonal", "isotropic"):
        return torch.diag_embed(values)
    return (turn * values[:, None]) @ turn.mT


def light(
    family: str,
    dim=3,
    count: int = 4,
    epsilon: float = 0.5,
    least: float = 0.2,
    most: float = 2.5,
    seed: int = 0,
    spread: float = 1.0,
) -> tuple[LightBridge, Numbers]:
    """A bridge with nothing symmetric about it, in double precision, and its numbers."""
    size = math.prod(dim) if isinstance(dim, tuple) else dim
    draw = torch.Generator().manual_seed(seed)
    location = spread * torch.randn(count, size, generator=draw, dtype=double)
    matrices = scales(family, count, size, least, most, seed + 1)
    # weights of all sizes, none so small that a term would not show
    log_weight = torch.randn(count, generator=draw, dtype=double) - location.square().sum(1) / 2
    made = LightBridge(dim, count, epsilon, family, 1 if family == "low_rank" else None).double()
    made.assign(log_weight, location, shaped(family, matrices))
    return made, Numbers(epsilon, log_weight, location, matrices)


def shaped(family: str, matrices: Tensor) -> Tensor:
    """Matrices as ``assign`` takes them."""
    if family == "diagonal":
        return matrices.diagonal(dim1=1, dim2=2)
    return matrices[:, 0, 0] if family == "isotropic" else matrices


def log_v(n: Numbers, x1: Tensor) -> Tensor:
    """The potential by torch's own normal law."""
    law = D.MultivariateNormal(n.location.to(x1), n.epsilon * n.matrices.to(x1))
    return torch.logsumexp(n.log_weight.to(x1) + law.log_prob(x1[:, None]), 1)


def log_c(n: Numbers, x0: Tensor) -> Tensor:
    """The normaliser as it is published."""
    square = torch.einsum("bd,kde,be->bk", x0, n.matrices, x0) + 2 * x0 @ n.location.mT
    return torch.logsumexp(n.log_weight + square / (2 * n.epsilon), 1)


def log_phi(n: Numbers, t: float, x: Tensor) -> Tensor:
    """The potential at ``t < 1``, by the Gaussian integral as it is published, with its constants."""
    dim, eps, t = x.shape[1], n.epsilon, torch.as_tensor(t, dtype=x.dtype)
    left = eps * (1 - t)
    inverse = torch.linalg.inv(n.matrices.to(x))
    r, eye = n.location.to(x), torch.eye(dim).to(x)
    a = t / left * eye + inverse / eps
    h = x[:, None] / left + (inverse @ r[..., None])[..., 0] / eps
    terms = (
        n.log_weight.to(x)
        - torch.logdet(n.matrices.to(x)) / 2
        - torch.logdet(a) / 2
        - torch.einsum("kd,kde,ke->k", r, inverse, r) / (2 * eps)
        + (h * torch.linalg.solve(a, h[..., None])[..., 0]).sum(-1) / 2
    )
    constant = dim / 2 * (2 * math.pi * eps * left).log()
    return torch.logsumexp(terms, 1) - x.square().sum(1) / (2 * left) - constant


def published_drift(n: Numbers, t: float, x: Tensor) -> Tensor:
    """Drift by autograd through the published form, in the precision of ``x``."""
    with torch.enable_grad():
        place = x.clone().requires_grad_()
        return n.epsilon * torch.autograd.grad(log_phi(n, t, place).sum(), place)[0]


def log_transition(n: Numbers, s: float, t: float, x: Tensor, y: Tensor) -> Tensor:
    """Log-density of ``y`` at ``t`` given ``x`` at ``s``: Brownian motion, tilted by the potential."""
    free = D.Normal(x, (n.epsilon * (t - s)) ** 0.5).log_prob(y).sum(1)
    last = log_phi(n, t, y) if t < 1 else log_v(n, y) + y.square().sum(1) / (2 * n.epsilon)
    return free + last - log_phi(n, s, x)


def law_at(n: Numbers, t: float, x0: Tensor) -> D.MixtureSameFamily:
    """Law of ``x_t`` given starts ``x0 (B, d)``: the plan's components, moved and widened."""
    square = torch.einsum("bd,kde,be->bk", x0, n.matrices, x0) + 2 * x0 @ n.location.mT
    ends = n.location + torch.einsum("kde,be->bkd", n.matrices, x0)
    means = (1 - t) * x0[:, None] + t * ends
    eye = torch.eye(x0.shape[1], dtype=x0.dtype)
    covs = n.epsilon * (t**2 * n.matrices + t * (1 - t) * eye)
    logits = n.log_weight + square / (2 * n.epsilon)
    return D.MixtureSameFamily(
        D.Categorical(logits=logits), D.MultivariateNormal(means, covs.expand(len(x0), -1, -1, -1))
    )


def states(dim, n: int, seed: int = 7, scale: float = 1.0) -> Tensor:
    """Points of an event shape, in double precision."""
    shape = dim if isinstance(dim, tuple) else (dim,)
    return scale * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=double)


def grid(half: float = 8.0, count: int = 801) -> tuple[Tensor, float]:
    """A line ``(count, 1)`` and the length of a cell."""
    line = torch.linspace(-half, half, count, dtype=double)[:, None]
    return line, 2 * half / (count - 1)


def energy_score(x: Tensor, y: Tensor, shuffles: int = 60) -> float:
    """Energy distance of two samples, in standard deviations of what relabelled samples give."""
    both, n = torch.cat([x, y]), len(x)
    apart = torch.cdist(both, both)
    draw = torch.Generator().manual_seed(0)
    sign = torch.ones(len(both), dtype=both.dtype)
    sign[n:] = -n / len(y)

    def value(signs: Tensor) -> Tensor:
        return -(signs @ apart @ signs)

    null = torch.stack(
        [value(sign[torch.randperm(len(both), generator=draw)]) for _ in range(shuffles)]
    )
    return float((value(sign) - null.mean()) / null.std())
