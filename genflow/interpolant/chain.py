r"""One path through many coupled endpoints: flow matching for a time course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from genflow.checks import non_negative, one_of
from genflow.interpolant.base import Interpolant, PathSample
from genflow.tensors import expand, path_time, randn_like


@dataclass(frozen=True)
class Chain(Interpolant):
    r"""A path through the coupled endpoints :math:`x_0, \dots, x_K` of as many snapshots, plus the
    noise of a Brownian bridge between neighbours.

    The clock of the path is 0 at the first snapshot and 1 at the last. On the interval from
    :math:`t_k` to :math:`t_{k+1}` the width is
    :math:`\gamma = \sigma\sqrt{(t-t_k)(t_{k+1}-t)/(t_{k+1}-t_k)}`, zero at every snapshot, so that the
    marginals there are the data. With ``"linear"`` and ``target=Drift(sigma)`` this is [SF]2M (Tong et
    al. 2024) on each interval, with ``"spline"`` and no width multi-marginal flow matching along
    natural cubic splines (Rohbeck et al. 2025).

    At a snapshot the rate is that of the interval which begins there (at the last: which ends there).
    The drift is finite at the ends of an interval but its variance grows as
    :math:`\sigma^2/(t_{k+1}-t)` towards each snapshot, as that of any bridge; a ``margin`` of the time
    law keeps off the first and the last alone.

    Args:
        times: of the snapshots, rising, in any unit; equally spaced if absent, unless the data tell
            them (:meth:`observe`).
        kind: ``"linear"``, straight pieces, or ``"spline"``, natural cubic splines, whose rate is
            continuous. Both are the same between two snapshots.
        sigma: diffusion coefficient of the bridges, zero (no noise) or positive, per square root of the
            *path's* time: where the snapshots span a time ``T``, noise of ``s`` per square root of the
            user's time is ``sigma = s * T**0.5``.

    Raises:
        ValueError: for fewer than two times or times that do not rise; from ``sample``, for another
            number of endpoints than of times.
    """

    times: Sequence[float] | None = None
    kind: str = "linear"
    sigma: float = 0.0

    def __post_init__(self) -> None:
        one_of(self, ("linear", "spline"), kind=self.kind)
        non_negative(self, sigma=self.sigma)
        if self.times is not None:
            object.__setattr__(self, "times", list(map(float, self.times)))
            _check_times(self.times)
        object.__setattr__(self, "_stated", self.times is not None)

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    def observe(self, times: Sequence[float], weights: object = None) -> Chain:
        """Take the times of the data, in place of those taken before; stated ones are only compared.

        Args:
            times: of the snapshots, rising.
            weights: of their particles, which do not matter to a path.

        Raises:
            ValueError: for times that do not rise, or that those stated contradict: of another number,
                or spaced otherwise (the unit is free).
        """
        times = list(map(float, times))
        _check_times(times)
        if not self._stated:
            object.__setattr__(self, "times", times)
        elif len(times) != len(self.times):
            raise ValueError(
                f"Chain(times={self.times}) has {len(self.times)} times but the data have {len(times)} "
                "snapshots; give one time each, or times=None to take those of the data"
            )
        elif not all(map(math.isclose, _clock(self.times)[1:], _clock(times)[1:])):
            raise ValueError(
                f"Chain(times={self.times}) is not spaced as the snapshots, which were seen at "
                f"{times}; leave times=None, which takes those of the data"
            )
        return self

    def knots(self, count: int) -> tuple[float, ...]:
        """Times of ``count`` snapshots on the clock of the path, from 0 to 1."""
        if self.times is None:
            return tuple(k / (count - 1) for k in range(count))
        return _clock(self.times)

    def weights(self, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What each endpoint counts in the path and in its rate at times ``t (B,)``; each
        ``(B, count)``. Both kinds are linear in the endpoints."""
        knots = torch.tensor(self.knots(count), dtype=t.dtype, device=t.device)
        k, left, right = _interval(t, knots)
        h = right - left
        a, b = ((right - t) / h)[:, None], ((t - left) / h)[:, None]
        h = h[:, None]
        ends = torch.eye(count, dtype=t.dtype, device=t.device)
        value, rate = a * ends[k] + b * ends[k + 1], (ends[k + 1] - ends[k]) / h
        if self.kind == "linear" or count == 2:
            return value, rate
        bend = _bend(self.knots(count)).to(ends)
        value = value + h**2 / 6 * ((a**3 - a) * bend[k] + (b**3 - b) * bend[k + 1])
        rate = rate + h / 6 * ((3 * b**2 - 1) * bend[k + 1] - (3 * a**2 - 1) * bend[k])
        return value, rate

    def width(self, t: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """``gamma``, its rate and their product at times ``t (B,)``, finite at every snapshot."""
        knots = torch.tensor(self.knots(count), dtype=t.dtype, device=t.device)
        _, left, right = _interval(t, knots)
        variance = self.sigma**2 * (t - left) * (right - t) / (right - left)
        product = self.sigma**2 / 2 * (left + right - 2 * t) / (right - left)
        floor = self.sigma**2 * (right - left) * torch.finfo(t.dtype).eps
        rate = product / variance.clamp_min(floor).sqrt() if self.stochastic else product
        return variance.sqrt(), rate, product

    def sample(
        self,
        t: Tensor | float,
        *xs: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        self._check_ends(xs)
        t = path_time(t, xs[-1])
        x, rate = (
            sum(expand(w[:, k], v) * v for k, v in enumerate(xs)) for w in self.weights(t, len(xs))
        )
        width = tuple(expand(v, xs[-1]) for v in self.width(t, len(xs)))
        if self.stochastic:
            noise = randn_like(x, generator) if noise is None else noise
            x = x + width[0] * noise
        else:
            noise = x.new_zeros(()).expand_as(x)
        return PathSample(t, x, xs, rate, noise, *width, self.stochastic)

    def _check_ends(self, xs: tuple[Tensor, ...]) -> None:
        if len(xs) < 2 or (self.times is not None and len(xs) != len(self.times)):
            wanted = "at least two" if self.times is None else f"{len(self.times)}, one for each time,"
            raise ValueError(f"Chain joins marginals (x0, ..., xK), {wanted} but got {len(xs)}")
        for k, x in enumerate(xs):
            if x.shape != xs[0].shape:
                raise ValueError(
                    f"Chain: x0 {tuple(xs[0].shape)} and x{k} {tuple(x.shape)} must be coupled row by "
                    "row; apply a coupling first, such as Chained(ExactOT())"
                )


def _check_times(times: Sequence[float]) -> None:
    if len(times) < 2 or not all(map(math.isfinite, times)):
        raise ValueError(f"Chain(times={times}): give at least two finite numbers, one a snapshot")
    for before, after in pairwise(times):
        if not before < after:
            raise ValueError(
                f"Chain(times={times}): times must rise from snapshot to snapshot, but {after:g} "
                f"follows {before:g}"
            )


def _clock(times: Sequence[float]) -> tuple[float, ...]:
    """Times from 0 to 1."""
    return tuple((t - times[0]) / (times[-1] - times[0]) for t in times)


def _interval(t: Tensor, knots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number of the interval that each time lies in, and its ends; a snapshot begins one."""
    k = torch.searchsorted(knots[1:-1].contiguous(), t.detach().contiguous(), right=True)
    return k, knots[k], knots[k + 1]


@lru_cache
def _bend(knots: tuple[float, ...]) -> Tensor:
    """Second derivatives of the natural spline at its knots as a matrix on the endpoints, float64:
    continuous slopes inside, none at both ends."""
    h = torch.tensor(knots, dtype=torch.float64).diff()
    n = len(knots)
    system, jump = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for k in range(1, n - 1):
        system[k, k - 1 : k + 2] = torch.stack([h[k - 1], 2 * (h[k - 1] + h[k]), h[k]]) / 6
        jump[k, k - 1 : k + 2] = torch.stack([1 / h[k - 1], -1 / h[k - 1] - 1 / h[k], 1 / h[k]])
    return torch.linalg.solve(system, jump)
