r"""The static half of a bridge: the plan nearest to a reference among those with given marginals.

:math:`\pi = \arg\min\{KL(\pi\,\|\,\mu\otimes\tilde p) : \pi\in\Pi(\mu,\nu)\}` is
:math:`\pi_{ij} = e^{a_i + b_j}\,\tilde p(y_j|x_i)`: entropic optimal transport at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BURST = 20
"""Updates between two exponentials of all pairs."""
NEWTON = 1500
"""Points of both sides together up to which Newton's method finishes what updates cannot."""
LONGEST = 8.0
"""The most that a potential may move in a step of Newton's method."""


class NotConverged(RuntimeError):
    """A plan whose marginals are not the data's."""


@dataclass(frozen=True)
class BridgePlan:
    """The plan by its potentials.

    Attributes:
        left: ``a (n,)``.
        right: ``b (m,)``.
        log_plan: ``(n, m)``.
        objective: its divergence from the reference, in nats.
        error: total variation of its row marginal.
    """

    left: Tensor
    right: Tensor
    log_plan: Tensor
    objective: Tensor
    error: float


@torch.no_grad()
def solve_plan(
    log_density: Tensor,
    mu: Tensor,
    nu: Tensor,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    iterations: int = 20_000,
) -> BridgePlan:
    """The plan for ``log_density (n, m)`` between masses ``mu (n,)`` and ``nu (m,)``.

    Updates from a ladder of falling temperatures, or from ``start``, the potential ``right`` of a plan
    nearby; where these creep and the problem is small, Newton's method on the dual.

    Raises:
        NotConverged: where ``iterations`` do not bring the error below ``tolerance``.
    """
    sweep = _Sweep(log_density, mu, nu)
    b, done = (start, 0) if start is not None else _ladder(sweep)
    small, newton = sum(log_density.shape) <= NEWTON, False
    while True:
        updates = 1 if newton else BURST
        a, b, error = sweep(b, updates=updates)
        done += updates
        if error <= tolerance:
            break
        if not done < iterations or error != error:
            raise NotConverged(
                f"the plan of a bridge has a marginal error of {error:.1e} after {done} updates, above "
                f"its tolerance {tolerance:.0e}: the reference misses the data by many sigma; raise "
                "iterations or tolerance of StaticBridge, check sigma and the units of the data, or "
                "start the reference nearer to what the data show"
            )
        newton = small and done > 200
        if newton:
            step = _newton((log_density + a[:, None] + b).exp(), mu, nu)
            if step is not None:
                a, b = _guarded(log_density, mu, nu, a, b, *step)
    log_plan = (log_density + a[:, None]).add_(b)
    objective = (mu * (a - mu.log())).sum() + (nu * b).sum()
    return BridgePlan(a, b, log_plan, objective, error)


class _Sweep:
    """A burst of updates with the potentials absorbed into the kernel (Schmitzer 2019, stabilised
    scaling), so that a burst takes one exponential of each pair; all in one array that is kept.

    Args:
        log_density: ``(n, m)``.
        mu, nu: masses.
    """

    def __init__(self, log_density: Tensor, mu: Tensor, nu: Tensor) -> None:
        self.logs, self.mu, self.nu = log_density, mu, nu
        self.kernel = torch.empty_like(log_density)

    def __call__(
        self, b: Tensor, temperature: float = 1.0, updates: int = BURST
    ) -> tuple[Tensor, Tensor, float]:
        """Potentials after updates of both from ``b``, and the total variation of the row marginal; the
        column marginal is exact."""
        kernel = torch.div(self.logs, temperature, out=self.kernel).add_(b)
        most = kernel.amax(1)
        kernel.sub_(most[:, None]).exp_()
        u = self.mu / kernel.sum(1)
        for k in range(updates):
            v = self.nu / (u @ kernel)
            if not bool(torch.isfinite(v).all()):  # a column that no row reaches with digits
                a = u.log() - most
                logs = torch.div(self.logs, temperature, out=kernel).add_(a[:, None])
                b = self.nu.log() - torch.logsumexp(logs, 0)
                return a, b, self._error(logs.add_(b).exp_().sum(1))
            rows = kernel @ v
            if k < updates - 1:
                u = self.mu / rows
        return u.log() - most, b + v.log(), self._error(u * rows)

    def _error(self, rows: Tensor) -> float:
        return float((rows - self.mu).abs().sum()) / 2


def _ladder(sweep: _Sweep) -> tuple[Tensor, int]:
    """The potential at temperature 1 from higher ones, each four times the next."""
    b, done = torch.zeros_like(sweep.nu), 0
    # differences that no potential takes up
    away = (sweep.logs - sweep.logs.mean(1, keepdim=True)).abs_()
    rung = max(1.0, float(away.mean()) / 4)
    while rung > 1:
        _, b, _ = sweep(b, rung, 10)
        done += 10
        lower = max(1.0, rung / 4)
        b, rung = b * (rung / lower), lower
    return b, done


def _newton(plan: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor] | None:
    """A step of Newton's method on the concave dual, whose Hessian is that of a bipartite graph."""
    rows, columns = plan.sum(1), plan.sum(0)
    schur = torch.diag(columns) - plan.mT @ (plan / rows[:, None])
    schur = schur + torch.ones_like(schur) / len(nu) ** 2 + 1e-14 * torch.eye(len(nu)).to(schur)
    right = (nu - columns) - plan.mT @ ((mu - rows) / rows)
    root, info = torch.linalg.cholesky_ex(schur)
    if int(info) != 0:
        return None
    up_b = torch.cholesky_solve(right[:, None], root)[:, 0]
    up_a = (mu - rows - plan @ up_b) / rows
    # near a plan that all but falls into parts, the way between the parts is endless
    short = (LONGEST / torch.cat([up_a, up_b]).abs().max()).clamp_max(1.0)
    return short * up_a, short * up_b


def _guarded(
    log_density: Tensor, mu: Tensor, nu: Tensor, a: Tensor, b: Tensor, up_a: Tensor, up_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The longest of halved steps that raises the dual enough."""

    def dual(a: Tensor, b: Tensor) -> Tensor:
        total = (log_density + a[:, None] + b).exp().sum()
        return (mu * a).sum() + (nu * b).sum() - total

    value, length = dual(a, b), 1.0
    while length > 1e-4:
        next_a, next_b = a + length * up_a, b + length * up_b
        found = dual(next_a, next_b)
        if bool(torch.isfinite(found)) and bool(found >= value):
            return next_a, next_b
        length /= 2
    return a, b
