r"""The static half of a bridge: the plan nearest to a reference among those with given marginals.

:math:`\pi = \arg\min\{KL(\pi\,\|\,\mu\otimes\tilde p) : \pi\in\Pi(\mu,\nu)\}` is
:math:`\pi_{ij} = e^{a_i + b_j}\,\tilde p(y_j|x_i)`: entropic optimal transport at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BURST = 20
"""Cheap multiplicative updates between two in the log domain."""
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

    Updates in the log domain from a ladder of falling temperatures, or from ``start``, the potential
    ``right`` of a plan nearby; bursts of plain updates between (Schmitzer 2019, stabilised scaling);
    where these creep and the problem is small, Newton's method on the dual.

    Raises:
        NotConverged: where ``iterations`` do not bring the error below ``tolerance``.
    """
    log_mu, log_nu = mu.log(), nu.log()
    a, b, done = _ladder(log_density, log_mu, log_nu) if start is None else (None, start, 0)
    small = sum(log_density.shape) <= NEWTON
    while True:
        a = log_mu - torch.logsumexp(log_density + b, 1)
        b = log_nu - torch.logsumexp(log_density + a[:, None], 0)
        log_plan = log_density + a[:, None] + b
        plan = log_plan.exp()
        error = float((plan.sum(1) - mu).abs().sum()) / 2
        done += 1
        if error <= tolerance:
            break
        if not done < iterations or error != error:
            raise NotConverged(
                f"the plan of a bridge has a marginal error of {error:.1e} after {done} updates, above "
                f"its tolerance {tolerance:.0e}: the reference misses the data by many sigma; raise "
                "iterations or tolerance of StaticBridge, check sigma and the units of the data, or "
                "start the reference nearer to what the data show"
            )
        if small and done > 200:
            step = _newton(plan, mu, nu)
            if step is not None:
                a, b = _guarded(log_density, mu, nu, a, b, *step)
                continue
        u, v = torch.ones_like(mu), torch.ones_like(nu)
        for _ in range(BURST):
            u = mu / (plan @ v)
            v = nu / (u @ plan)
        done += BURST
        up_a, up_b = u.log(), v.log()
        if bool(torch.isfinite(up_a).all()) and bool(torch.isfinite(up_b).all()):
            a, b = a + up_a, b + up_b
    objective = (mu * (a - log_mu)).sum() + (nu * b).sum()
    return BridgePlan(a, b, log_plan, objective, error)


def _ladder(log_density: Tensor, log_mu: Tensor, log_nu: Tensor) -> tuple[None, Tensor, int]:
    """Potentials at temperature 1 from higher ones, each four times the next."""
    b, done = torch.zeros_like(log_nu), 0
    # differences that no potential takes up
    centred = log_density - log_density.mean(1, keepdim=True)
    rung = max(1.0, float(centred.abs().mean()) / 4)
    while rung > 1:
        for _ in range(10):
            a = log_mu - torch.logsumexp(log_density / rung + b, 1)
            b = log_nu - torch.logsumexp(log_density / rung + a[:, None], 0)
        done += 10
        lower = max(1.0, rung / 4)
        b, rung = b * (rung / lower), lower
    return None, b, done


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
