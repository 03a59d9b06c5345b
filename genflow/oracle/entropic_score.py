r"""Scores of a learnt plan against the known one of an :class:`~genflow.oracle.EntropicPair`.

Unexplained variance percentages (UVP) divide :math:`BW_2^2 = \frac12 W_2^2` of the Gaussians with
the same moments by half the variance of :math:`p_1` (Gushchin et al. 2023). The constant guess "the
mean of :math:`p_1`" costs about 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from genflow.checks import count

if TYPE_CHECKING:
    from genflow.oracle.entropic_pair import EntropicPair

NUMBERS = 2**22
"""How many numbers of a covariance or a sample are held at a time."""


class Score(NamedTuple):
    """A score and its standard error, by Monte Carlo."""

    value: float
    error: float


class Potentials(Protocol):
    """A plan ``exp(<x0, x1> / epsilon) v(x1) / c(x0)`` at the pair's epsilon, ``LightBridge`` or the
    pair itself."""

    def log_potential(self, x1: Tensor) -> Tensor: ...

    def log_normaliser(self, x0: Tensor) -> Tensor: ...


class Conditional(Protocol):
    """A learner that knows the moments of its plan."""

    def conditional_moments(self, x0: Tensor) -> tuple[Tensor, Tensor]: ...


Moments = Conditional | Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x0 (B, *d)`` to the mean ``(B, d)`` and the covariance ``(B, d, d)`` of ``x1``."""


HEAVY = 0.5
"""Variance of a log-ratio of densities from which the ratio itself has heavy tails."""


@torch.no_grad()
def kl(
    pair: EntropicPair, bridge: Potentials, n: int, generator: torch.Generator | None = None
) -> Score:
    r""":math:`KL(\pi^*\|\pi) = E_{p_0}\log(c/c^*) - E_{p_1}\log(v/v^*)` of a learner's plan, in nats;
    also that of the two bridges as processes. Every log-density is exact and float64; what is random
    is the mean over pairs of the true plan, whose standard error is stated.

    With :math:`r = \pi/\pi^*` the mean of :math:`-\log r + b(r - 1)` is taken, the second term having
    the mean zero: near the truth both nearly cancel, and the error falls from :math:`\sqrt{2KL/n}` to
    a small part of KL itself. :math:`b = s/(e^s - 1)`, with ``s`` the variance of :math:`\log r`, is
    best for a log-normal ``r``. Where ``s`` is not small the second term is left out: its tails are
    heavy, and neither its mean nor its error could be trusted.

    Args:
        pair: the truth.
        bridge: ``log_potential(x1)`` and ``log_normaliser(x0)``, ``(B,)``.
        n: pairs, at least 2.
        generator: where they come from; by default the pair's own stream, the same for every learner.

    Raises:
        TypeError: for a learner without these two.
        ValueError: for a learner of another epsilon.
    """
    for name in ("log_potential", "log_normaliser"):
        if not callable(getattr(bridge, name, None)):
            raise TypeError(f"kl: the learner ({type(bridge).__name__}) has no {name}")
    epsilon = getattr(bridge, "epsilon", pair.epsilon)
    if not math.isclose(epsilon, pair.epsilon, rel_tol=1e-6):
        raise ValueError(f"kl: the learner has epsilon={epsilon:g} but the pair has {pair.epsilon:g}")
    count("kl", least=2, n=n)
    x0, x1 = pair.sample(n, pair.stream("kl") if generator is None else generator, torch.float64)
    logs = []
    for a, b in zip(x0.split(8192), x1.split(8192)):
        near, far = (v.to(_device(bridge)) for v in (a, b))
        own = bridge.log_normaliser(near).double() - bridge.log_potential(far).double()
        logs.append(own.to(a.device) - pair.log_normaliser(a) + pair.log_potential(b))
    loss = torch.cat(logs)
    spread = loss.var()
    share = (spread / spread.expm1()).nan_to_num(1.0) if spread < HEAVY else 0.0
    rows = loss + share * torch.expm1(-loss)
    return Score(float(rows.mean()), float(rows.std() / n**0.5))


@torch.no_grad()
def conditional_bw(pair: EntropicPair, learner: Moments, n: int) -> float:
    r"""cBW2-UVP without noise: the mean of :math:`BW_2^2(\pi(.|x_0), \pi^*(.|x_0))` over the first
    ``n`` test points of the pair's seed, from the moments of both, in percent of half the variance of
    :math:`p_1`. Truth costs 0.

    Args:
        pair: the truth.
        learner: its ``conditional_moments(x0)``, or a function that returns the same.
        n: test points.

    Raises:
        TypeError: for a learner without moments.
        ValueError: for moments of other shapes, or that are not finite.
    """
    moments = getattr(learner, "conditional_moments", learner)
    if not callable(moments) or (moments is learner and isinstance(learner, nn.Module)):
        raise TypeError(
            f"conditional_bw: {type(learner).__name__} has no conditional_moments(x0); give a function "
            "of x0, or score a sampler with conditional_bw_sampled"
        )
    device, costs = _device(learner), []
    for x0 in pair.test_points(n).double().split(max(1, NUMBERS // pair.size**2)):
        found = moments(x0.to(device))
        costs.append(_cost(pair, x0, *(v.to("cpu", torch.float64) for v in found)))
    return _percent(pair, torch.cat(costs))


@torch.no_grad()
def conditional_bw_sampled(
    pair: EntropicPair, sampler: Callable[[Tensor], Tensor], n: int, m: int
) -> float:
    """cBW2-UVP as published: that of :func:`conditional_bw` with the learner's moments taken from
    ``m`` samples at each test point. A perfect sampler does not get 0 but the pair's ``floor``.

    Args:
        pair: the truth.
        sampler: ``x0 (B, *d)``, float32 on the CPU, to one ``x1`` a row; test points come repeated.
        n: test points.
        m: samples at each, at least 2.

    Raises:
        ValueError: for samples of another shape, or that are not finite.
    """
    count("conditional_bw_sampled", least=2, m=m)
    costs = []
    for x0 in pair.test_points(n).split(max(1, NUMBERS // (m * pair.size))):
        start = x0.repeat_interleave(m, 0)
        x1 = sampler(start)
        if x1.shape != start.shape:
            raise ValueError(
                f"conditional_bw_sampled: the sampler returned {tuple(x1.shape)} for x0 of shape "
                f"{tuple(start.shape)}; they must be equal"
            )
        mean, covariance = _moments(x1.to("cpu", torch.float64).reshape(len(x0), m, pair.size))
        costs.append(_cost(pair, x0.double(), mean, covariance))
    return _percent(pair, torch.cat(costs))


@torch.no_grad()
def bw(pair: EntropicPair, samples: Tensor) -> float:
    """BW2-UVP: the same distance between samples ``(n, *d)`` of ``x1`` and :math:`p_1`, whose moments
    are the pair's ``target_moments``.

    Raises:
        ValueError: for fewer than two samples, of another shape, or that are not finite.
    """
    if samples.ndim < 2 or tuple(samples.shape[1:]) != pair.shape or len(samples) < 2:
        raise ValueError(
            f"bw: samples have shape {tuple(samples.shape)}, expected at least two of {pair.shape}"
        )
    mean, covariance = _moments(samples.to("cpu", torch.float64).flatten(1)[None])
    return _percent(pair, _bures(mean, covariance, *(v[None] for v in pair.target_moments)))


def _cost(pair: EntropicPair, x0: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Distances ``(B,)`` of moments given ``x0`` from the true ones."""
    want = (len(x0), pair.size), (len(x0), pair.size, pair.size)
    if (tuple(mean.shape), tuple(covariance.shape)) != want:
        raise ValueError(
            f"conditional_bw: moments have shapes {tuple(mean.shape)} and {tuple(covariance.shape)}, "
            f"expected {want[0]} and {want[1]}"
        )
    return _bures(mean, covariance, *pair.plan_moments(x0))


def _bures(mean: Tensor, covariance: Tensor, true_mean: Tensor, true: Tensor) -> Tensor:
    r""":math:`BW_2^2` row by row. With :math:`\Sigma = LL^\top` of the truth, the trace of
    :math:`(\Sigma^{1/2}C\Sigma^{1/2})^{1/2}` is that of :math:`(L^\top CL)^{1/2}`, which needs no
    eigenvectors; ``C`` may be singular."""
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("EntropicPair: the learner's moments or samples hold NaN or infinity")
    factor = torch.linalg.cholesky(true)
    values = torch.linalg.eigvalsh(factor.mT @ covariance @ factor)
    trace = (covariance + true).diagonal(dim1=1, dim2=2).sum(1)
    far = (mean - true_mean).square().sum(1)
    return (far + trace) / 2 - values.clamp_min(0).sqrt().sum(1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means ``(B, d)`` and unbiased covariances ``(B, d, d)`` of ``B`` samples ``(B, m, d)``."""
    mean = x.mean(1)
    x = x - mean.unsqueeze(1)
    return mean, x.mT @ x / (x.shape[1] - 1)


def _percent(pair: EntropicPair, costs: Tensor) -> float:
    return 200 * float(costs.mean() / pair.target_moments[1].trace())


def _device(learner: object) -> torch.device:
    """Where a learner lives; the CPU for what is no module."""
    if isinstance(learner, nn.Module):
        for tensor in (*learner.parameters(), *learner.buffers()):
            return tensor.device
    return torch.device("cpu")
