"""Entropic optimal transport between batches, in the log domain (SB-CFM: Tong et al. 2024)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.coupling.cost import Cost
from genflow.coupling.sides import Side
from genflow.coupling.transport import Transport

ITERATIONS, TOLERANCE = 500, 1e-4
"""Of :func:`log_density`; at usual temperatures about ten are made."""
BURST = 20
"""Cheap multiplicative updates between two exact updates in the log domain."""


def bridge_epsilon(sigma: float) -> float:
    r"""Temperature of ``"sqeuclidean"`` at which the entropic plan is that of the Schrödinger bridge
    with reference :math:`dX = \sigma dW`: its kernel is :math:`e^{-|x-y|^2/(2\sigma^2)}`.
    """
    return 2 * sigma**2


def sinkhorn_log_plan(
    cost: Tensor,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> tuple[Tensor, float]:
    r"""Log of the entropic plan between the masses ``a`` and ``b``, even unless given.

    Potentials are kept in the log domain. Between log-domain updates the kernel
    :math:`e^{(f+g-c)/\varepsilon}` is formed with the current potentials absorbed, where plain
    matrix-vector updates neither under- nor overflow for a while and cost a fiftieth
    (Schmitzer 2019, stabilised scaling); a burst that does leave the range is thrown away.

    Args:
        cost: ``(n, m)`` in float64.
        epsilon: temperature of that cost.
        max_iterations: of full updates.
        tolerance: largest total variation of the row marginal.
        a, b: ``(n,)`` and ``(m,)``, positive, summing to one.

    Returns:
        ``log P (n, m)`` with exact column marginals, and the total variation of its row marginal.
    """
    n, m = cost.shape
    a = cost.new_full((n,), 1 / n) if a is None else a
    b = cost.new_full((m,), 1 / m) if b is None else b
    log_a, log_b = a.log(), b.log()
    kernel = -cost / epsilon
    f, g, done = _warm_start(cost, epsilon, max_iterations // 4, log_a, log_b)
    while True:
        f = log_a - torch.logsumexp(kernel + g, 1)
        g = log_b - torch.logsumexp(kernel + f[:, None], 0)
        log_plan = kernel + f[:, None] + g
        plan = log_plan.exp()
        error = float((plan.sum(1) - a).abs().sum()) / 2
        done += 1
        if error <= tolerance or done >= max_iterations:
            return log_plan, error
        u, v = plan.new_ones(n), plan.new_ones(m)
        for _ in range(min(BURST, max_iterations - done)):
            u = a / (plan @ v)
            v = b / (u @ plan)
            done += 1
        step_f, step_g = u.log(), v.log()
        if bool(torch.isfinite(step_f).all()) and bool(torch.isfinite(step_g).all()):
            f, g = f + step_f, g + step_g


def _warm_start(
    cost: Tensor, epsilon: float, budget: int, log_a: Tensor, log_b: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Potentials in units of ``epsilon`` from a falling ladder of temperatures.

    At a temperature far below the costs, updates from zero creep; from the potentials of four times
    the temperature they need a few (epsilon scaling).
    """
    n, m = cost.shape
    f, g, done = cost.new_zeros(n), cost.new_zeros(m), 0
    rung = float(cost.mean()) / 16
    while rung > epsilon and done < budget:
        for _ in range(BURST // 2):
            f = log_a - torch.logsumexp(g - cost / rung, 1)
            g = log_b - torch.logsumexp(f[:, None] - cost / rung, 0)
            done += 1
        step = max(epsilon, rung / 4)
        f, g, rung = f * (rung / step), g * (rung / step), step
    return (f, g, done) if rung <= epsilon else (f * (rung / epsilon), g * (rung / epsilon), done)


def log_density(cost: Tensor, epsilon: float, left: Side, right: Side) -> Tensor:
    """Log-density of the entropic plan over the product of the masses, ``(n, m)``: what weights of
    independent pairs are when both sides keep their masses."""
    tiny = torch.finfo(torch.float64).tiny
    a, b = (side.share().clamp_min(tiny) for side in (left, right))
    log_plan, _ = sinkhorn_log_plan(cost, epsilon, ITERATIONS, TOLERANCE, a, b)
    return log_plan - a.log()[:, None] - b.log()


@dataclass(frozen=True)
class Sinkhorn(Transport):
    r"""Pairs of the entropic plan :math:`\min_P \langle c, P\rangle + \varepsilon KL(P|ab)`.

    ``epsilon`` is the temperature of the named cost: for ``"sqeuclidean"`` the Schrödinger bridge of
    :math:`dX = \sigma dW` has ``epsilon = 2 sigma**2``. Computed in the log domain, so that a small
    ``epsilon`` gives the sharp plan and never the uniform one. Every point of the larger batch is
    kept and draws its partner from the plan.

    Args:
        epsilon: temperature, positive.
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function of rows.
        max_iterations: most updates of both potentials; where they do not suffice, a warning
            says so.
        tolerance: total variation of the marginals at which to stop.
        conditions: as in :class:`ExactOT`.
    """

    epsilon: float = 2.0
    cost: Cost = "sqeuclidean"
    max_iterations: int = 2000
    tolerance: float = 1e-3
    conditions: str | float = "ignore"
    balanced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, epsilon=self.epsilon, tolerance=self.tolerance)
        count(self, max_iterations=self.max_iterations)

    def transport(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        log_plan, error = sinkhorn_log_plan(
            cost, self.epsilon, self.max_iterations, self.tolerance, a, b
        )
        if not error <= self.tolerance:
            warnings.warn(
                # no number that changes from batch to batch: Python shows equal texts once
                f"Sinkhorn(epsilon={self.epsilon}) stopped after {self.max_iterations} updates "
                f"with a marginal error above its tolerance {self.tolerance:.1e}: raise epsilon, "
                "tolerance or max_iterations, or use ExactOT()",
                RuntimeWarning,
                stacklevel=5,
            )
        return log_plan.exp()
