r"""The solved bridge at any state: drift both ways, and transitions, without a network.

With the plans' potentials the path law is known: from :math:`x` at :math:`t` the next snapshot's point
:math:`y_j` is met with probability :math:`\propto e^{b_j}\,\tilde p(y_j|x)`, the last one's :math:`x_i`
was left with :math:`\propto e^{a_i}\,\tilde p(x|x_i)`, and between two points runs a bridge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genflow.process.multimarginal.bridges import Guide
from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.linear_noise import LinearNoise, cholesky, log_density
from genflow.tensors import rand_rows, randn_like


def grid_between(s: float | Tensor, t: float, length: float, steps: int) -> Tensor:
    """From ``s`` to ``t`` in as many equal steps as that part of an interval of ``length`` deserves;
    ``(S+1,)``, or ``(S+1, N)`` from times ``(N,)``."""
    if isinstance(s, Tensor):
        part = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=s.device)[:, None]
        return s + (t - s) * part
    n = max(2, math.ceil(steps * abs(t - s) / length))
    return torch.linspace(s, t, n + 1, dtype=torch.float64)


class Ahead:
    """States ``x (N, d)`` at ``s``, a number or ``(N,)``, seen from the end of their interval.

    Args:
        interval: with the potential ``right (m,)`` of its end.
    """

    def __init__(
        self, interval: Interval, right: Tensor, s: float | Tensor, x: Tensor, steps: int
    ) -> None:
        start, stop = interval.span
        self.interval, self.x, self.s = interval, x, s
        self.grid = grid_between(s, stop, stop - start, steps)
        self.lines = LinearNoise.along(interval.reference, x, self.grid)
        mean, gained = self.lines.end()
        logits = log_density(mean, interval.sigma**2 * gained, interval.x1) + right
        self.share = logits.softmax(1)

    def control(self) -> Tensor:
        r""":math:`\sigma^2\nabla\log h` at the states."""
        phi, gained = (v[0] for v in self.lines.remaining())
        missing = self.share @ self.interval.x1 - self.lines.mean[-1]
        solved = torch.cholesky_solve(missing[..., None], cholesky(gained))
        return (phi.mT @ solved)[..., 0]

    def at(self, t: float, generator: torch.Generator | None) -> Tensor:
        """States at ``t``, at most the end."""
        target = draw(self.share, generator)
        y = self.interval.x1[target]
        if t >= self.interval.span[1]:
            return y
        inner = grid_between(self.s, t, self.grid[-1] - self.s, len(self.grid) - 1)
        outer = grid_between(t, self.interval.span[1], self.grid[-1] - self.s, len(self.grid) - 1)
        lines = LinearNoise.along(self.interval.reference, self.x, torch.cat([inner, outer[1:]]))
        guide = Guide(self.interval.reference, lines, self.interval.sigma)
        index = torch.arange(len(y), device=y.device)
        return guide.paths(index, y, generator=generator, until=len(inner) - 1).x[-1]


class Behind:
    """States ``x (N, d)`` at ``s`` seen from the start of their interval.

    Args:
        interval: with the potential ``left (n,)`` of its start.
    """

    def __init__(self, interval: Interval, left: Tensor, s: float, x: Tensor, steps: int) -> None:
        start, stop = interval.span
        self.interval, self.x, self.s, self.steps = interval, x, s, steps
        grid = grid_between(start, s, stop - start, steps)
        ends = []
        for rows in interval.blocks(len(grid) - 1):
            ends.append(LinearNoise.along(interval.reference, interval.x0[rows], grid).end())
        self.mean, gained = (torch.cat(part) for part in zip(*ends))
        self.covariance = interval.sigma**2 * gained
        logits = log_density(self.mean, self.covariance, x) + left[:, None]
        self.share = logits.softmax(0).mT

    def score(self) -> Tensor:
        r""":math:`\nabla\log\sum_i e^{a_i}\tilde p(x|x_i)`."""
        root = cholesky(self.covariance)
        missing = (self.mean[:, None] - self.x).mT  # (n, d, N)
        pulls = torch.cholesky_solve(missing, root)
        return torch.einsum("bn,ndb->bd", self.share, pulls)

    def at(self, t: float, generator: torch.Generator | None) -> Tensor:
        """States at ``t``, at least the start."""
        source = draw(self.share, generator)
        start, stop = self.interval.span
        x0 = self.interval.x0[source]
        if t <= start:
            return x0
        inner = grid_between(start, t, stop - start, self.steps)
        outer = grid_between(t, self.s, stop - start, self.steps)
        own, index = source.unique(return_inverse=True)
        lines = LinearNoise.along(
            self.interval.reference, self.interval.x0[own], torch.cat([inner, outer[1:]])
        )
        guide = Guide(self.interval.reference, lines, self.interval.sigma)
        return guide.paths(index, self.x, generator=generator, until=len(inner) - 1).x[-1]


def draw(share: Tensor, generator: torch.Generator | None) -> Tensor:
    """One column for each row of ``share (N, m)``, in proportion to its entries."""
    law = share.cumsum(1)
    u = rand_rows(share, generator)[:, None] * law[:, -1:]
    return torch.searchsorted(law, u, right=True)[:, 0].clamp_max(share.shape[1] - 1)


@torch.no_grad()
def forecast(
    interval: Interval, s: float, t: float, x: Tensor, steps: int, generator: torch.Generator | None
) -> Tensor:
    """The reference itself from ``x`` at ``s`` to ``t``: past the last snapshot nothing else is
    known."""
    start, stop = interval.span
    grid = grid_between(s, t, stop - start, 2 * steps)
    for a, b in zip(grid[:-1].tolist(), grid[1:].tolist()):
        h = b - a
        noise = interval.sigma * h**0.5 * randn_like(x, generator)
        first = interval.reference(a, x)
        second = interval.reference(b, x + h * first + noise)
        x = x + h / 2 * (first + second) + noise  # Heun's method, of weak order 2 for additive noise
    return x
