"""One interval between two snapshots: its plan, and paths through it, in blocks that fit memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.process.multimarginal.bridges import Guide, Paths
from genflow.process.multimarginal.linear_noise import LinearNoise, log_density
from genflow.process.reference import Reference

BLOCK = 1 << 23
"""Numbers of one array of matrices over starts and grid."""


def transitions(
    intervals: Sequence[Interval], steps: int
) -> Iterator[list[tuple[Tensor, Tensor, slice]]]:
    """Means ``(N, d)`` and covariances of the linearised reference from all starts to the ends of their
    intervals, for each interval in blocks with their rows; intervals that fit into one block are
    followed together, which for small snapshots costs as much as one."""
    first = intervals[0]
    rows, dim = [len(v.x0) for v in intervals], first.x0.shape[1]
    if sum(rows) * steps * dim**2 > BLOCK:
        for interval in intervals:
            yield [(*interval.end(rows, steps), rows) for rows in interval.blocks(steps)]
        return
    grids = [v.grid(steps)[:, None].expand(-1, n) for v, n in zip(intervals, rows)]
    starts = torch.cat([v.x0 for v in intervals])
    mean, gained = LinearNoise.along(first.reference, starts, torch.cat(grids, 1)).end()
    for interval, m, g in zip(intervals, mean.split(rows), gained.split(rows)):
        yield [(m, interval.sigma**2 * g, slice(0, len(m)))]


def log_densities(intervals: Sequence[Interval], steps: int) -> Iterator[Tensor]:
    r"""Log-densities :math:`\log\tilde p(y_j|x_i)` of each interval, ``(n, m)``; differentiable
    in the parameters."""
    for interval, parts in zip(intervals, transitions(intervals, steps)):
        found = [log_density(mean, spread, interval.x1) for mean, spread, _ in parts]
        yield torch.cat(found) if len(found) > 1 else found[0]


@dataclass(frozen=True, eq=False)
class Interval:
    """Two neighbouring snapshots and what joins them.

    Attributes:
        reference: the family, at its present parameters.
        sigma: diffusion coefficient.
        x0, x1: snapshots ``(n, d)`` and ``(m, d)``, float64.
        mu, nu: their masses, each summing to one.
        span: their times.
    """

    reference: Reference
    sigma: float
    x0: Tensor
    x1: Tensor
    mu: Tensor
    nu: Tensor
    span: tuple[float, float]

    def grid(self, steps: int, times: Tensor | None = None) -> Tensor:
        """``steps`` equal steps and, among them, ``times`` inside the interval; float64."""
        even = torch.linspace(*self.span, steps + 1, dtype=torch.float64)
        if times is None or len(times) == 0:
            return even
        # a point of the even grid that all but is a wanted time gives way to it
        near = (even[:, None] - times).abs().amin(1) < 1e-6 * (self.span[1] - self.span[0])
        return torch.cat([even[~near], times]).sort().values

    def blocks(self, steps: int) -> Iterator[slice]:
        """Starts that are followed together."""
        size = max(1, BLOCK // (steps * self.x0.shape[1] ** 2))
        for k in range(0, len(self.x0), size):
            yield slice(k, k + size)

    def end(self, rows: slice, steps: int) -> tuple[Tensor, Tensor]:
        """Mean and covariance at the end of the linearised reference from some rows."""
        lines = LinearNoise.along(self.reference, self.x0[rows], self.grid(steps))
        mean, gained = lines.end()
        return mean, self.sigma**2 * gained

    @torch.no_grad()
    def paths(
        self,
        source: Tensor,
        target: Tensor,
        steps: int,
        guided: bool = True,
        times: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Paths:
        """Bridges from rows ``source (N,)`` of ``x0`` to rows ``target (N,)`` of ``x1``, on
        ``grid(steps, times)``."""
        grid = self.grid(steps, times)
        parts, order = [], []
        for rows in self.blocks(len(grid) - 1):
            stop = min(rows.stop, len(self.x0))
            chosen = ((source >= rows.start) & (source < stop)).nonzero()[:, 0]
            if len(chosen) == 0:
                continue
            own, index = source[chosen].unique(return_inverse=True)
            lines = LinearNoise.along(self.reference, self.x0[own], grid)
            guide = Guide(self.reference, lines, self.sigma)
            parts.append(guide.paths(index, self.x1[target[chosen]], guided, generator))
            order.append(chosen)
        if len(parts) == 1 and len(order[0]) == len(source):
            return parts[0]
        back = torch.cat(order).argsort()
        times_, x, control = (
            torch.cat([getattr(p, name) for p in parts], 1)[:, back]
            for name in ("times", "x", "control")
        )
        return Paths(times_, x, control, torch.cat([p.log_weight for p in parts])[back])

    @torch.no_grad()
    def correction(self, steps: int, paths: int, generator: torch.Generator | None = None) -> Tensor:
        r"""Estimate of :math:`\log p(y_j|x_i) - \log\tilde p(y_j|x_i)` from ``paths`` guided bridges of
        each pair, ``(n, m)``: the mean of their likelihood ratios."""
        n, m = len(self.x0), len(self.x1)
        parts = []
        size = max(1, BLOCK // (steps * self.x0.shape[1] * m * paths))
        for first in range(0, n, size):
            own = torch.arange(first, min(first + size, n), device=self.x0.device)
            source = own.repeat_interleave(m * paths)
            target = torch.arange(m, device=self.x0.device).repeat_interleave(paths).repeat(len(own))
            weight = self.paths(source, target, steps, generator=generator).log_weight
            parts.append(weight.view(len(own), m, paths).logsumexp(2))
        return torch.cat(parts) - math.log(paths)
