"""How much mass a coupling gives to each row, relative to what the row was given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling import Coupling, Gibbs, Independent, Side, Transport, effective_sample_size
from genflow.coupling.sides import class_rows

DRAWS = 16
"""Plans averaged for a coupling whose masses have no formula; even, since halves are compared."""
TINY = 1e-300


@dataclass(frozen=True)
class Masses:
    """Relative masses, of mean one.

    Attributes:
        left, right: of the rows of ``x0 (n,)`` and ``x1 (m,)``.
        ess: effective sample size of the weights.
        tilts: KL and total variation at ``x0`` and at ``x1``; at ``x0`` the mean over classes where
            they are known exactly.
        given: of the rows of ``x0`` given each class ``(C, n)``, where ``x1`` has labels and ``x0`` has
            none; a sampler draws the source freely of the class.
        share: of the classes, ``(C,)``.
    """

    left: Tensor
    right: Tensor
    ess: float
    tilts: tuple[tuple[float, float], tuple[float, float]]
    given: Tensor | None = None
    share: Tensor | None = None


def divergences(mass: Tensor, noise: float = 0.0) -> tuple[float, float]:
    """KL(tilted | given) in nats, and total variation, of relative masses; ``noise`` is the mean
    variance of the masses as estimates, whose share of the KL is half of it and taken off."""
    kl = float(torch.special.xlogy(mass, mass).mean()) - noise / 2
    return max(kl, 0.0), float((mass - 1).abs().mean()) / 2


def masses_of(
    coupling: Coupling,
    left: Side,
    right: Side,
    index: Tensor | None,
    generator: torch.Generator | None = None,
) -> Masses:
    """Masses of the rows of both sides; ``index`` are the classes of the right side's rows.

    By formula for Gibbs weights and for transport plans, from plans that are drawn for the rest.
    """
    if isinstance(coupling, Gibbs):
        return _by_weights(coupling, left, right, index)
    balanced = isinstance(coupling, Independent) or getattr(coupling, "balanced", False)
    within = getattr(coupling, "conditions", "ignore") == "within"
    if balanced and not (within and left.cond is not None):  # else classes take the right side's share
        ones = (torch.ones(len(s.x), dtype=torch.float64, device=s.x.device) for s in (left, right))
        known = Masses(*ones, 1.0, ((0.0, 0.0), (0.0, 0.0)))
    elif isinstance(coupling, Transport) and coupling.conditions == "ignore":
        known = _by_plan(coupling, left, right)
    else:
        return _by_draws(coupling, left, right, index, generator, DRAWS)
    if index is None or left.cond is not None:
        return known
    drawn = _by_draws(coupling, left, right, index, generator, 1)
    return dataclasses.replace(known, given=drawn.given, share=drawn.share)


def _by_plan(coupling: Transport, left: Side, right: Side) -> Masses:
    plan = coupling.plan(left.x, right.x)
    mass0, mass1 = (v / v.mean() for v in (plan.sum(1), plan.sum(0)))
    size = float(effective_sample_size(mass0 if len(mass0) >= len(mass1) else mass1))
    return Masses(mass0, mass1, size, (divergences(mass0), divergences(mass1)))


def _by_draws(
    coupling: Coupling,
    left: Side,
    right: Side,
    index: Tensor | None,
    generator: torch.Generator | None,
    draws: int,
) -> Masses:
    """From plans between the rows in a new order each time: as they come they would meet once only."""
    classes = torch.zeros(len(right.x), dtype=torch.long) if index is None else index
    classes = classes.to(left.x.device)
    given = left.x.new_zeros(int(classes.max()) + 1, len(left.x), dtype=torch.float64)
    halves = [
        [side.x.new_zeros(len(side.x), dtype=torch.float64) for _ in "ab"] for side in (left, right)
    ]
    sizes, shuffle = [], torch.Generator().manual_seed(0)
    for k in range(draws):
        rows = [torch.randperm(len(s.x), generator=shuffle).to(s.x.device) for s in (left, right)]
        mine, theirs = (side.take(r) for side, r in zip((left, right), rows))
        cond = theirs.cond if mine.cond is None else (mine.cond, theirs.cond)
        plan = coupling(mine.x, theirs.x, cond=cond, generator=generator)
        i, j = (r[places] for r, places in zip(rows, plan.indices))
        weight = plan.weight.double()
        given.index_put_((classes[j], i), weight, accumulate=True)
        for side, places in zip(halves, (i, j)):
            side[k % 2].index_add_(0, places, weight)
        sizes.append(effective_sample_size(weight))
    share = given.sum(1) / given.sum()
    given = given / given.mean(1, keepdim=True).clamp_min(TINY)
    masses, tilts = zip(*(_joined(*side, draws) for side in halves))
    size = float(torch.stack(sizes).mean())
    free = index is not None and left.cond is None
    return Masses(*masses, size, tilts, given if free else None, share if free else None)


def _joined(a: Tensor, b: Tensor, draws: int) -> tuple[Tensor, tuple[float, float]]:
    """The masses of both halves of the draws, and what they tell once their noise is taken off."""
    mass = (a + b) / (a + b).mean()
    noise = 0.0
    if draws > 1:
        noise = float(((a / a.mean() - b / b.mean()) ** 2).mean()) / 4
    return mass, divergences(mass, noise)


def _by_weights(coupling: Gibbs, left: Side, right: Side, index: Tensor | None) -> Masses:
    """Log-mean-exp over all pairs of rows, class by class."""
    classes = torch.zeros(len(right.x), dtype=torch.long) if index is None else index
    classes = classes.to(left.x.device)
    whole = None if coupling.by_class else coupling.log_weights(left, right)
    top = None if whole is None else float(whole.max())
    given, share, each, squares = [], [], [], 0.0
    mass = left.x.new_zeros(len(right.x), dtype=torch.float64)
    every = torch.arange(len(left.x), device=left.x.device)
    for k in range(int(classes.max()) + 1):
        columns = torch.nonzero(classes == k).squeeze(1)
        theirs = right.take(columns)
        mine = every if whole is not None else class_rows(coupling, left, theirs)
        weight = coupling.log_weights(left.take(mine), theirs) if whole is None else whole[:, columns]
        weight = (weight - (float(weight.max()) if top is None else top)).double().exp()
        if whole is None:  # each class has its own normaliser
            weight = weight / weight.mean()
        own = weight.mean(1)
        own = own / own.mean().clamp_min(TINY)
        each.append(divergences(own))
        across = torch.zeros_like(every, dtype=torch.float64)
        across[mine] = own * (len(left.x) / len(mine))
        given.append(across)
        part = len(columns) / len(right.x)
        share.append(part * weight.mean())
        mass[columns] = weight.mean(0)
        squares += part * float((weight**2).mean())
    total = float(sum(share))
    parts, rows, mass = torch.stack(share) / total, torch.stack(given), mass / mass.mean()
    mean = tuple(sum(float(p) * t[k] for p, t in zip(parts, each)) for k in (0, 1))
    free = index is not None and left.cond is None
    return Masses(
        parts @ rows, mass, total**2 / squares, (mean, divergences(mass)),
        rows if free else None, parts if free else None,
    )  # fmt: skip
