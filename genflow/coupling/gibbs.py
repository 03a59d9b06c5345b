r"""Gibbs weights: weighted conditional flow matching (Calvo-Ordoñez et al. 2025).

Independent pairs get the weight :math:`w \propto e^{-c(x_0,x_1)/\varepsilon}`. The learner then fits
the entropic plan *between the tilted marginals* :math:`\tilde\mu, \tilde\nu`, not between the given
ones: report the effective sample size and the tilt beside every result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import between, positive
from genflow.coupling.base import Coupling, Plan, effective_sample_size, pair_rows, two_marginals
from genflow.coupling.cost import Cost, check_cost, row_cost
from genflow.tensors import check_marginals

PILOT = 20_000
"""Pairs from which ``prepare`` chooses epsilon."""
CHUNK = 1_000
"""Pairs gathered at a time, so that a pilot of images fits memory."""


def gibbs_weight(cost: Tensor, epsilon: float) -> Tensor:
    """``B softmax(-cost / epsilon)``: weights of mean one that neither under- nor overflow."""
    return len(cost) * torch.softmax(-cost / epsilon, 0)


def epsilon_for(cost: Tensor, ess: float) -> float:
    r"""The temperature at which Gibbs weights of these costs have effective sample size ``ess``.

    Bisection in :math:`\log\varepsilon`: the size grows with :math:`\varepsilon` because
    :math:`\log Z` is convex in :math:`1/\varepsilon`.

    Args:
        cost: ``(N,)`` costs of independent pairs.
        ess: target fraction in (0, 1).

    Raises:
        ValueError: if all costs are equal, so that every temperature gives uniform weights.
    """
    cost = cost.double()
    if not bool(torch.isfinite(cost).all()):
        raise ValueError("Gibbs: the costs of the pilot are not finite; do the data hold NaN?")
    spread = float(cost.std())
    if not spread > 1e-12 * max(1.0, float(cost.abs().max())):
        raise ValueError(
            "Gibbs: all costs of the pilot are equal, so no epsilon gives the effective sample "
            f"size {ess}; give epsilon, or use Independent()"
        )
    low, high = math.log(spread) - 30.0, math.log(spread) + 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if effective_sample_size(gibbs_weight(cost, math.exp(middle))) < ess:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Gibbs(Coupling):
    r"""Independent pairs weighted by :math:`e^{-c/\varepsilon}`: ``epsilon`` is the temperature of the
    named cost (for ``"sqeuclidean"``, :math:`|x_0-x_1|^2/\varepsilon`).

    >>> plan = Gibbs(epsilon=0.2)(x0, x1)                  # doctest: +SKIP
    >>> coupling = Gibbs(ess=0.5).prepare(all_x0, all_x1)  # doctest: +SKIP

    An epsilon once chosen stays: make a new ``Gibbs`` for other data.

    Args:
        epsilon: temperature, positive; ``None`` lets :meth:`prepare` choose it.
        ess: target effective sample size, a fraction in (0, 1), for :meth:`prepare`.
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function ``(x (B, *d), y (B, *d)) -> (B,)``.
    """

    epsilon: float | None = None
    ess: float = 0.5
    cost: Cost = "sqeuclidean"

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            positive(self, epsilon=self.epsilon)
        between(self, 0, 1, ess=self.ess)
        check_cost(self, self.cost)

    @torch.no_grad()
    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Gibbs:
        """Choose ``epsilon`` for the target ``ess`` from data, if it was not given.

        Args:
            xs: the marginals' samples, ``(N_k, *d)``; 20,000 random pairs of them are used.

        Returns:
            This coupling, with ``epsilon`` a number from now on.
        """
        check_marginals("Gibbs.prepare", *xs)
        if self.epsilon is None:
            draw = torch.Generator().manual_seed(0)
            rows = [torch.randint(len(x), (PILOT,), generator=draw).to(x.device) for x in xs]
            chunks = zip(*(i.split(CHUNK) for i in rows))
            cost = torch.cat(
                [row_cost(self.cost, *(x[i] for x, i in zip(xs, pair))) for pair in chunks]
            )
            object.__setattr__(self, "epsilon", epsilon_for(cost, self.ess))
        return self

    @torch.no_grad()
    def __call__(
        self,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        check_marginals("Gibbs", *xs)
        two_marginals(self, xs)
        if self.epsilon is None:
            raise ValueError(
                f"Gibbs(ess={self.ess}) chooses epsilon from data: call coupling.prepare(x0, x1) "
                "(or loss.prepare(x0, x1)) once with your training samples, or give epsilon"
            )
        indices = pair_rows(*xs, generator=generator)
        cost = row_cost(self.cost, *(x[i] for x, i in zip(xs, indices)))
        return Plan(indices, gibbs_weight(cost, self.epsilon))
