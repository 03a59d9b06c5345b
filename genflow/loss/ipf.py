"""Bridges by iterative proportional fitting of drifts."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.loss.base import Learner
from genflow.loss.projection import Projection
from genflow.process import MultiMarginalBridge
from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.ipf import HalfBridges, ipf
from genflow.process.multimarginal.state import DRIFTS

FAR = 2.0
"""Distance of means, in units of spread and noise, from which on a snapshot counts as missed: what
converges ends below a half, what does not connect above three."""


@dataclass(frozen=True)
class IPF(Projection):
    r"""Solves each interval by regressed drifts, forward and backward in turn (Vargas et al. 2021,
    "Solving Schrödinger bridges via maximum likelihood"), as iterative reference refinement was
    published with.

    The bridge's ``regressor`` learns the drifts, ``GaussianProcess(dim)`` as published, and the
    bridge keeps two of them for each interval. It is faithful, not fast: a Gaussian process costs
    :math:`n^3` in rows times steps, twice an iteration. The drifts are learned near one snapshot and
    followed to the next, so that a smoother regressor, fewer rows or a larger ``dt`` may never
    connect the two. The reference is met in the first simulation alone, so that errors of steps and of
    regression add up over iterations. ``StaticBridge`` has neither trouble.

    The objective is :math:`\sum_k KL(Q_k\,\|\,P_\theta)` of the learned drifts along their last
    paths, in nats. It holds the noise of the regression, and is not on the scale of
    ``StaticBridge``'s.

    Trajectories and updates use the grid of the bridge: ``steps`` of it should cut intervals to
    ``dt`` where the published loop is wanted.

    Args:
        iterations: each fits both drifts of every interval once.
        dt: step of the simulations, in the users' time; ``None`` takes the bridge's grid.

    Raises:
        ValueError: for numbers out of range, a bridge without a regressor, and paths that are not
            finite.

    Warns:
        RuntimeWarning: where forward paths end far from the next snapshot.
    """

    iterations: int = 10
    dt: float | None = None

    def __post_init__(self) -> None:
        count(self, iterations=self.iterations)
        if self.dt is not None:
            positive(self, dt=self.dt)

    def check(self, learner: Learner) -> None:
        super().check(learner)
        if not hasattr(learner.regressor, "fit"):
            raise ValueError(
                "IPF needs a regressor with fit(t, x, y): use MultiMarginalBridge(..., "
                "regressor=GaussianProcess(dim)), or Fitted(network)"
            )

    @torch.no_grad()
    def project(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> Tensor:
        """Solve all intervals; the drifts go into the bridge once all are learned."""
        self.check(bridge)
        halves, total = [], 0.0
        for interval in bridge.intervals():
            start, stop = interval.span
            dt = (stop - start) / bridge.steps if self.dt is None else self.dt
            template = bridge.regressor
            if hasattr(template, "for_increments"):
                template = template.for_increments(bridge.sigma, dt)
            x0 = even(interval.x0, interval.mu, generator)
            x1 = even(interval.x1, interval.nu, generator)
            half = ipf(
                x0,
                x1,
                interval.span,
                bridge.reference,
                template,
                bridge.sigma,
                dt,
                self.iterations,
                generator,
            )
            self._judge(interval, half)
            total = total + divergence(interval, half)
            halves.append(half)
        for k, half in enumerate(halves):
            bridge.forwards[k], bridge.backwards[k] = half.forward, half.backward
        bridge.settle(DRIFTS)
        return total

    def _judge(self, interval: Interval, half: HalfBridges) -> None:
        far = miss(half.path[-1], interval)
        if far <= FAR:
            return
        start, stop = interval.span
        warnings.warn(
            f"IPF between t={start:g} and t={stop:g} has not converged after {self.iterations} "
            f"iterations: forward paths end {far:.1f} units of spread and noise from the snapshot at "
            f"t={stop:g}; raise iterations, take a smaller dt or more rows, or use StaticBridge",
            RuntimeWarning,
            stacklevel=6,
        )


def miss(end: Tensor, interval: Interval) -> float:
    r"""Distance of the mean of ``end (n, d)`` from that of the second snapshot, in units of
    :math:`\sqrt{s^2 + \sigma^2\Delta}` with its mean variance :math:`s^2`."""
    mean = interval.nu @ interval.x1
    spread = (interval.nu @ (interval.x1 - mean).square()).mean()
    start, stop = interval.span
    return float((end.mean(0) - mean).norm() / (spread + interval.sigma**2 * (stop - start)).sqrt())


def divergence(interval: Interval, half: HalfBridges) -> Tensor:
    r""":math:`E\int|b - f|^2dt / 2\sigma^2` along the last forward paths."""
    times = half.times
    total = half.path.new_zeros(())
    for t, h, x in zip(times.tolist(), times.diff().tolist(), half.path):
        away = half.forward(t, x) - interval.reference(t, x)
        total = total + h * away.square().sum(1).mean()
    return total / (2 * interval.sigma**2)


def even(x: Tensor, masses: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows that count alike: those of a snapshot, or as many drawn by uneven masses."""
    if math.isclose(float(masses.min()), float(masses.max()), rel_tol=1e-9):
        return x
    place = masses.device if generator is None else generator.device
    rows = torch.multinomial(masses.to(place), len(x), replacement=True, generator=generator)
    return x[rows.to(x.device)]
