"""How much mass a coupling gives to each row, relative to what the row was given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling import Coupling, Gibbs, Independent, Side, Transport, effective_sample_size

DRAWS = 32
"""Plans averaged for a coupling whose masses have no formula."""
TINY = 1e-300


@dataclass(frozen=True)
class Masses:
    """Relative masses, of mean one.

    Attributes:
        given: of the rows of ``x0`` given each class, ``(C, n)``.
        share: of the classes, ``(C,)``.
        left, right: of the rows of ``x0 (n,)`` and ``x1 (m,)``.
        ess: effective sample size of the weights.
        exact: whether every class's masses are free of the noise of single draws.
    """

    given: Tensor
    share: Tensor
    left: Tensor
    right: Tensor
    ess: float
    exact: bool

    def left_tilt(self) -> tuple[float, float]:
        """KL and total variation at ``x0``: the mean over classes where they are known exactly."""
        rows, share = (
            (self.given, self.share) if self.exact else (self.left[None], self.share[:1] * 0 + 1)
        )
        pairs = [divergences(mass) for mass in rows]
        kl, tv = (sum(float(s) * p[k] for s, p in zip(share, pairs)) for k in (0, 1))
        return kl, tv

    def right_tilt(self) -> tuple[float, float]:
        """KL and total variation at ``x1``."""
        return divergences(self.right)


def divergences(mass: Tensor) -> tuple[float, float]:
    """KL(tilted | given) in nats, and total variation, of relative masses."""
    kl = torch.special.xlogy(mass, mass).mean().clamp_min(0)
    return float(kl), float((mass - 1).abs().mean()) / 2


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
    n, m = len(left.x), len(right.x)
    ones = [torch.ones(k, dtype=torch.float64, device=left.x.device) for k in (1, n, m)]
    balanced = isinstance(coupling, Independent) or getattr(coupling, "balanced", False)
    if balanced:
        known = Masses(ones[1][None], ones[0], ones[1], ones[2], 1.0, True)
    elif isinstance(coupling, Transport) and coupling.conditions == "ignore":
        known = _by_plan(coupling, left, right)
    else:
        return _by_draws(coupling, left, right, index, generator, DRAWS)
    if index is None:
        return known
    drawn = _by_draws(coupling, left, right, index, generator, 1)
    return dataclasses.replace(drawn, left=known.left, right=known.right, ess=known.ess)


def _by_plan(coupling: Transport, left: Side, right: Side) -> Masses:
    plan = coupling.plan(left.x, right.x)
    mass0, mass1 = (v / v.mean() for v in (plan.sum(1), plan.sum(0)))
    size = float(effective_sample_size(mass0 if len(mass0) >= len(mass1) else mass1))
    return Masses(mass0[None], mass0.new_ones(1), mass0, mass1, size, True)


def _by_draws(
    coupling: Coupling,
    left: Side,
    right: Side,
    index: Tensor | None,
    generator: torch.Generator | None,
    draws: int,
) -> Masses:
    index = torch.zeros(len(right.x), dtype=torch.long) if index is None else index
    index = index.to(left.x.device)
    given = left.x.new_zeros(int(index.max()) + 1, len(left.x), dtype=torch.float64)
    mass, sizes = given.new_zeros(len(right.x)), []
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(draws):  # in a new order each time: rows as they come would meet once only
        rows0 = torch.randperm(len(left.x), generator=shuffle).to(index.device)
        rows1 = torch.randperm(len(right.x), generator=shuffle).to(index.device)
        mine, theirs = left.take(rows0), right.take(rows1)
        cond = None if theirs.cond is None else (mine.cond, theirs.cond)
        if mine.cond is None:
            cond = theirs.cond
        plan = coupling(mine.x, theirs.x, cond=cond, generator=generator)
        i, j, weight = rows0[plan.indices[0]], rows1[plan.indices[1]], plan.weight.double()
        given.index_put_((index[j], i), weight, accumulate=True)
        mass.index_add_(0, j, weight)
        sizes.append(effective_sample_size(weight))
    share = given.sum(1) / given.sum()
    given = given / given.mean(1, keepdim=True).clamp_min(TINY)
    size = float(torch.stack(sizes).mean())
    return Masses(given, share, share @ given, mass / mass.mean(), size, False)


def _by_weights(coupling: Gibbs, left: Side, right: Side, index: Tensor | None) -> Masses:
    """Log-mean-exp over all pairs of rows, class by class."""
    index = torch.zeros(len(right.x), dtype=torch.long) if index is None else index
    index = index.to(left.x.device)
    whole = None if coupling.by_class else coupling.log_weights(left, right)
    top = None if whole is None else float(whole.max())
    given, share, squares = [], [], 0.0
    mass = left.x.new_zeros(len(right.x), dtype=torch.float64)
    for k in range(int(index.max()) + 1):
        columns = torch.nonzero(index == k).squeeze(1)
        theirs = right.take(columns)
        mine = _rows_of(coupling, left, theirs)
        weight = coupling.log_weights(left.take(mine), theirs) if whole is None else whole[:, columns]
        weight = (weight - (float(weight.max()) if top is None else top)).double().exp()
        if whole is None:  # each class has its own normaliser
            weight = weight / weight.mean()
        across = left.x.new_zeros(len(left.x), dtype=torch.float64)
        across[mine] = weight.mean(1) * (len(left.x) / len(mine))
        given.append(across / across.mean().clamp_min(TINY))
        part = len(columns) / len(right.x)
        share.append(part * weight.mean())
        mass[columns] = weight.mean(0)
        squares += part * float((weight**2).mean())
    total = float(sum(share))
    parts, rows = torch.stack(share) / total, torch.stack(given)
    return Masses(rows, parts, parts @ rows, mass / mass.mean(), total**2 / squares, True)


def _rows_of(coupling: Gibbs, left: Side, theirs: Side) -> Tensor:
    """Rows of the source that meet a class: all, unless the source has classes of its own."""
    every = torch.arange(len(left.x), device=left.x.device)
    if not coupling.by_class or left.cond is None:
        return every
    same = left.cond.reshape(len(left.x), -1) == theirs.cond[:1].reshape(1, -1)
    return every[same.all(1)]
