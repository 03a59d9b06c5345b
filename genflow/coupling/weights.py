"""Weights of mean one from their logarithms, and the temperature that makes them as even as asked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genflow.coupling.base import effective_sample_size


def softmax_weight(
    log_weight: Tensor,
    base: Tensor | None = None,
    index: Tensor | None = None,
    goal: Tensor | None = None,
) -> Tensor:
    """Weights ``(B,)`` of mean one that neither under- nor overflow: ``base exp(log_weight)`` up to a
    constant.

    Args:
        log_weight: ``(B,)``.
        base: ``(B,)`` factors, zeros allowed; ones if absent.
        index: class of each row; each class then has a constant of its own, so that its weights sum
            to its share.
        goal: ``(B,)``, whose sum over a class is its share; ones if absent.
    """
    if index is None and base is None:
        return torch.softmax(log_weight, 0).mul_(len(log_weight))
    if base is not None:  # a row that counts for nothing must not be the one that others are scaled by
        log_weight = log_weight.masked_fill(base <= 0, -math.inf)
    if index is None:
        raised = (log_weight - log_weight.max()).exp() * base
        return raised / raised.mean()
    goal = torch.ones_like(log_weight) if goal is None else goal.to(log_weight)
    classes = int(index.max()) + 1
    top = log_weight.new_full((classes,), -math.inf)
    top = top.scatter_reduce(0, index, log_weight, "amax")
    top = top.masked_fill(top == -math.inf, 0.0)  # a class that counts for nothing
    raised = (log_weight - top[index]).exp()
    raised = raised if base is None else raised * base
    sums, shares = (raised.new_zeros(classes).index_add(0, index, v) for v in (raised, goal))
    weight = raised * torch.where(sums > 0, shares / sums, 0.0)[index]
    return weight * (len(weight) / weight.sum())


def relative_mass(mass: Tensor, index: Tensor | None) -> Tensor:
    """Masses of mean one, in each class by itself with ``index``."""
    if index is None:
        return mass / mass.mean()
    sums = mass.new_zeros(int(index.max()) + 1).index_add(0, index, mass)
    return mass * torch.where(sums > 0, index.bincount() / sums, 0.0)[index]


def epsilon_by_size(size: Callable[[float], float], scale: float, ess: float) -> float:
    r"""The temperature at which the effective sample size ``size(epsilon)`` is ``ess``.

    Bisection in :math:`\log\varepsilon`: the size grows with :math:`\varepsilon` because
    :math:`\log Z` is convex in :math:`1/\varepsilon`.

    Args:
        size: effective sample size at a temperature.
        scale: a typical deviation of the costs.
        ess: target fraction in (0, 1).
    """
    low, high = math.log(scale) - 30.0, math.log(scale) + 30.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if size(math.exp(middle)) < ess:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def cost_spread(cost: Tensor, ess: float) -> float:
    """Standard deviation of the costs of a pilot.

    Raises:
        ValueError: if all costs are equal, so that every temperature gives uniform weights, or if
            they are not finite.
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
    return spread


def epsilon_for(cost: Tensor, ess: float, index: Tensor | None = None) -> float:
    r"""The temperature at which Gibbs weights of these costs have effective sample size ``ess``.

    Args:
        cost: ``(N,)`` costs of independent pairs.
        ess: target fraction in (0, 1).
        index: classes of the pairs, where weights are normalised within them.

    Raises:
        ValueError: if all costs are equal, so that every temperature gives uniform weights.
    """
    spread, cost = cost_spread(cost, ess), cost.double()

    def size(epsilon: float) -> float:
        return float(effective_sample_size(softmax_weight(-cost / epsilon, index=index)))

    return epsilon_by_size(size, spread, ess)


def epsilon_by_deviation(cost: Tensor, ess: float, index: Tensor | None = None) -> float:
    r"""The rule :math:`\varepsilon = \mathrm{std}(c) / \sqrt{\log(1/\mathrm{ESS})}`.

    Exact where costs are normally distributed, as in high dimensions; needs no search. With ``index``
    the deviation is that within classes.
    """
    if index is not None:
        sums = cost.new_zeros(int(index.max()) + 1).index_add(0, index, cost)
        cost = cost - (sums / index.bincount().clamp_min(1))[index]
    return cost_spread(cost, ess) / math.sqrt(math.log(1 / ess))
