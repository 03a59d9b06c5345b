"""What :class:`Gibbs` chooses from data: moments, temperature and normaliser, from a pilot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genflow.coupling.base import effective_sample_size
from genflow.coupling.potentials import FULL, GaussianPotentials, moments
from genflow.coupling.sides import Side, class_index, class_rows
from genflow.coupling.weights import (
    cost_spread,
    epsilon_by_deviation,
    epsilon_by_size,
    epsilon_for,
    softmax_weight,
)

if TYPE_CHECKING:
    from genflow.coupling.gibbs import Gibbs

PILOT = 20_000
"""Pairs from which epsilon is chosen."""
NORMALISER = 100_000
"""Pairs from which the constant normaliser is computed."""
ENTROPIC = 400
"""Rows of each side from which epsilon is chosen for ``correction="sinkhorn"``."""
NUMBERS = 1 << 22
"""Numbers gathered at a time, so that a pilot of images fits memory."""


def fit(coupling: Gibbs, left: Side, right: Side) -> tuple[float, dict[str, Any] | None]:
    """Epsilon and the fitted numbers of a coupling, for samples of both sides.

    Every draw comes from a fixed stream, so that the same data give the same numbers.
    """
    draw = torch.Generator().manual_seed(0)
    fitted: dict[str, Any] = {}
    index = None
    if coupling.by_class:
        labels, (index,) = class_index(right.cond)
        fitted["labels"] = labels.tolist()
    if coupling.correction == "gaussian":
        fitted |= _moments(coupling, left, right, index)
    epsilon = coupling.epsilon
    if epsilon is None:
        epsilon = _epsilon(coupling, fitted, left, right, index, draw)
    if coupling.normaliser == "pilot" and coupling.correction != "sinkhorn":
        pairs = _pairs(coupling, left, right, index, NORMALISER, draw)
        log_weight, of = _log_weights(coupling, fitted, epsilon, left, right, index, pairs)
        fitted["log_z"] = _log_mean_exp(log_weight, of, len(fitted.get("labels", [0])))
    if fitted:
        fitted["purpose"] = coupling.purpose(epsilon)
    return epsilon, fitted or None


def _moments(coupling: Gibbs, left: Side, right: Side, index: Tensor | None) -> dict[str, list[Any]]:
    event = left.x.shape[1:]
    full = coupling.covariance == "full" or (
        coupling.covariance == "auto" and len(event) == 1 and event[0] <= FULL
    )
    pairs = [(left, right)]
    if index is not None:
        pairs = []
        for k in range(int(index.max()) + 1):
            rows = torch.nonzero(index == k).squeeze(1)
            mine = right.take(rows)
            pairs.append((left.take(class_rows(coupling, left, mine)), mine))
    found: dict[str, list[Any]] = {name: [] for name in ("mean0", "cov0", "mean1", "cov1")}
    for sides in pairs:
        for k, side in enumerate(sides):
            mean, cov = moments(side.x, side.mass, not full)
            found[f"mean{k}"].append(mean.tolist())
            found[f"cov{k}"].append(cov.tolist())
    return found


def _pairs(
    coupling: Gibbs, left: Side, right: Side, index: Tensor | None, n: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Independent pairs of rows, drawn by their masses; of one class where classes are kept apart."""
    j = _draw(right, n, draw)
    if index is None or left.cond is None:
        return _draw(left, n, draw), j
    i = torch.zeros_like(j)
    for k in range(int(index.max()) + 1):
        mine = torch.nonzero(index[j] == k).squeeze(1)
        if len(mine):
            rows = class_rows(coupling, left, right.take(j[mine[:1]]))
            i[mine] = rows[_draw(left.take(rows), len(mine), draw)]
    return i, j


def _draw(side: Side, n: int, draw: torch.Generator) -> Tensor:
    if side.mass is None:
        rows = torch.randint(len(side.x), (n,), generator=draw)
    else:
        rows = torch.multinomial(side.share().cpu(), n, replacement=True, generator=draw)
    return rows.to(side.x.device)


def _log_weights(
    coupling: Gibbs,
    fitted: dict[str, Any],
    epsilon: float,
    left: Side,
    right: Side,
    index: Tensor | None,
    pairs: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor | None]:
    """Log-weights of many pairs in float64, and their classes."""
    potentials = None
    if coupling.correction == "gaussian":
        potentials = GaussianPotentials.of(fitted, epsilon, left.x.double())
    ready = type(coupling)(epsilon, cost=coupling.cost, conditions=coupling.conditions)
    size = max(1, NUMBERS // math.prod(left.x.shape[1:]))
    out = []
    for i, j in zip(*(rows.split(size) for rows in pairs)):
        mine, theirs = left.take(i), right.take(j)
        if potentials is None:
            out.append(ready.log_weight(mine, theirs).double())
        else:
            of = None if index is None else index[j]
            out.append(potentials.rows(mine.x.double(), theirs.x.double(), of))
    return torch.cat(out), None if index is None else index[pairs[1]]


def _epsilon(
    coupling: Gibbs,
    fitted: dict[str, Any],
    left: Side,
    right: Side,
    index: Tensor | None,
    draw: torch.Generator,
) -> float:
    pairs = _pairs(coupling, left, right, index, PILOT, draw)
    plain = type(coupling)(1.0, cost=coupling.cost, conditions=coupling.conditions)
    log_weight, of = _log_weights(plain, {}, 1.0, left, right, index, pairs)
    cost = -log_weight
    if coupling.rule == "std":
        return epsilon_by_deviation(cost, coupling.ess, of)
    if coupling.correction == "none":
        return epsilon_for(cost, coupling.ess, of)
    spread = cost_spread(cost, coupling.ess)
    if coupling.correction == "sinkhorn":
        return _entropic_epsilon(coupling, left, right, spread, draw)

    few = max(1000, min(PILOT, NUMBERS // math.prod(left.x.shape[1:])))
    pairs = tuple(rows[:few] for rows in pairs)

    def size(epsilon: float) -> float:
        log_weight, of = _log_weights(coupling, fitted, epsilon, left, right, index, pairs)
        return float(effective_sample_size(softmax_weight(log_weight, index=of)))

    return epsilon_by_size(size, spread, coupling.ess)


def _entropic_epsilon(
    coupling: Gibbs, left: Side, right: Side, spread: float, draw: torch.Generator
) -> float:
    """By the evenness of the entropic plan between a few hundred rows; classes are lumped together."""
    few = left.take(_draw(left, ENTROPIC, draw)), right.take(_draw(right, ENTROPIC, draw))
    few = tuple(Side(side.x, None, side.cond) for side in few)

    def size(epsilon: float) -> float:
        ready = type(coupling)(
            epsilon, cost=coupling.cost, correction="sinkhorn",
            conditions="ignore" if coupling.by_class else coupling.conditions,
        )  # fmt: skip
        return float(effective_sample_size(ready.log_weights(*few).exp().flatten()))

    # below a tenth of the spread a few hundred points tell nothing of an entropic plan
    low, high = math.log(spread) - 3.5, math.log(spread) + 10
    if not size(math.exp(low)) < coupling.ess < size(math.exp(high)):
        raise ValueError(
            f"Gibbs(ess={coupling.ess}, correction='sinkhorn'): no epsilon above a thirtieth of the "
            "deviation of the costs gives that; give epsilon, or another ess"
        )
    while high - low > 1e-2:
        middle = (low + high) / 2
        low, high = (middle, high) if size(math.exp(middle)) < coupling.ess else (low, middle)
    return math.exp((low + high) / 2)


def _log_mean_exp(log_weight: Tensor, index: Tensor | None, classes: int) -> list[float]:
    if index is None:
        return [float(torch.logsumexp(log_weight, 0)) - math.log(len(log_weight))]
    groups = [log_weight[index == k] for k in range(classes)]
    # a class too rare to be among the pairs has no constant of its own; it takes the common one
    groups = [g if len(g) else log_weight for g in groups]
    return [float(torch.logsumexp(g, 0)) - math.log(len(g)) for g in groups]
