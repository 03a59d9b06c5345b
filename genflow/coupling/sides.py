"""The two sides of a coupling: rows with their masses and conditions, and pairing within classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.tensors import check_marginals, randperm

Conditions = Tensor | Sequence[Tensor | None]
"""Conditions of the last marginal's rows, or an entry for each marginal (``None``: it has none)."""
Pairs = tuple[Tensor, Tensor, Tensor]
"""Rows of the left side, rows of the right side, weights."""


@dataclass(frozen=True)
class Side:
    """One marginal's batch.

    Attributes:
        x: ``(n, *d)``.
        mass: ``(n,)`` float64, how much each row counts, or ``None`` where all count alike.
        cond: integer labels ``(n,)`` or ``(n, k)``, or vectors ``(n, k)``, or ``None``.
    """

    x: Tensor
    mass: Tensor | None = None
    cond: Tensor | None = None

    def take(self, rows: Tensor) -> Side:
        """The side with these rows alone."""
        mass, cond = (v if v is None else v[rows] for v in (self.mass, self.cond))
        return Side(self.x[rows], mass, cond)

    def share(self) -> Tensor:
        """Masses that sum to one, float64; even ones where no row counts."""
        if self.mass is None or not float(self.mass.sum()) > 0:
            return torch.full(
                (len(self.x),), 1 / len(self.x), dtype=torch.float64, device=self.x.device
            )
        return self.mass / self.mass.sum()

    def total(self) -> float:
        """Sum of the masses."""
        return float(len(self.x) if self.mass is None else self.mass.sum())


def some_rows(side: Side, n: int) -> Side:
    """At most ``n`` rows of a side, a fixed random choice in the order in which they came; rows that
    count differently are drawn by their masses, with replacement."""
    if side.mass is not None:
        draw = torch.Generator().manual_seed(0)
        rows = torch.multinomial(side.share().cpu(), n, replacement=True, generator=draw)
        return Side(side.x, None, side.cond).take(rows.sort().values.to(side.x.device))
    if len(side.x) <= n:
        return side
    rows = torch.randperm(len(side.x), generator=torch.Generator().manual_seed(0))[:n]
    return side.take(rows.sort().values.to(side.x.device))


def two_sides(
    owner: object,
    xs: tuple[Tensor, ...],
    cond: Conditions | None,
    weights: Sequence[Tensor | None] | None,
) -> tuple[Side, Side]:
    """The checked sides of a coupling between two marginals.

    Raises:
        TypeError, ValueError: in one sentence, if anything does not fit.
    """
    name = type(owner).__name__
    check_marginals(name, *xs)
    if len(xs) != 2:
        raise ValueError(f"{name} couples two marginals, got {len(xs)}")
    conds = side_conditions(name, xs, cond)
    masses = side_masses(name, xs, weights)
    return Side(xs[0], masses[0], conds[0]), Side(xs[1], masses[1], conds[1])


def side_conditions(
    where: str, xs: tuple[Tensor, ...], cond: Conditions | None
) -> tuple[Tensor | None, ...]:
    """Conditions of each marginal: a lone tensor belongs to the last one."""
    if cond is None:
        return (None,) * len(xs)
    conds = (None,) * (len(xs) - 1) + (cond,) if isinstance(cond, Tensor) else tuple(cond)
    if len(conds) != len(xs):
        raise ValueError(
            f"{where}: cond has {len(conds)} entries for {len(xs)} marginals; give the tensor of the "
            "last marginal, or one entry for each"
        )
    for k, (x, c) in enumerate(zip(xs, conds)):
        if c is not None and (not isinstance(c, Tensor) or len(c) != len(x)):
            got = f"{len(c)} rows" if isinstance(c, Tensor) else type(c).__name__
            raise ValueError(f"{where}: cond of x{k} must be a tensor of its {len(x)} rows, got {got}")
    return conds


def side_masses(
    where: str, xs: tuple[Tensor, ...], weights: Sequence[Tensor | None] | None
) -> tuple[Tensor | None, ...]:
    """Masses of each marginal's rows, float64; ``None`` where all rows count alike."""
    if weights is None:
        return (None,) * len(xs)
    if isinstance(weights, Tensor) or len(weights) != len(xs):
        raise ValueError(
            f"{where}: weights must hold one (B,) tensor or None for each of the {len(xs)} marginals"
        )
    masses = []
    for k, (x, w) in enumerate(zip(xs, weights)):
        if w is not None:
            w = torch.as_tensor(w, device=x.device).double()
            fine = (
                w.shape == x.shape[:1] and bool(((w >= 0) & w.isfinite()).all()) and float(w.sum()) > 0
            )
            if not fine:
                raise ValueError(
                    f"{where}: weights of x{k} must be {len(x)} finite numbers >= 0 that are not all "
                    f"0, got shape {tuple(w.shape)}"
                )
        masses.append(w)
    return tuple(masses)


def pair_rows(*xs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
    """Rows as they come; a smaller batch is repeated in random order, each row equally often."""
    size = max(len(x) for x in xs)
    if all(len(x) == size and x.device == xs[0].device for x in xs):
        return (torch.arange(size, device=xs[0].device),) * len(xs)
    indices = []
    for x in xs:
        if len(x) == size:
            rows = torch.arange(size, device=x.device)
        else:
            repeats = -(-size // len(x))
            rows = torch.cat([randperm(len(x), x.device, generator) for _ in range(repeats)])[:size]
        indices.append(rows)
    return tuple(indices)


def check_strength(owner: object, conditions: str | float) -> None:
    """Refuse a ``conditions`` argument that is neither a known word nor a positive number."""
    number = isinstance(conditions, (int, float)) and not isinstance(conditions, bool)
    if conditions not in ("ignore", "within") and not (
        number and math.isfinite(conditions) and conditions > 0
    ):
        raise ValueError(
            f"{type(owner).__name__}(conditions={conditions!r}): conditions must be 'ignore', "
            "'within', or a positive number, the price of a unit of distance between conditions"
        )


def need_conditions(owner: object, conditions: str | float, left: Side, right: Side) -> None:
    """Refuse to couple by conditions that are absent or do not fit, or within classes of vectors."""
    stated = f"{type(owner).__name__}(conditions={conditions!r})"
    if right.cond is None:
        raise ValueError(f"{stated} needs the conditions of x1: pass cond=")
    if conditions == "within" and right.cond.is_floating_point():
        raise ValueError(
            f"{stated} needs integer labels, got {right.cond.dtype}; for vectors give a number, the "
            "price of a unit of distance between conditions"
        )
    if left.cond is not None:
        one, other = (_kind(side.cond) for side in (left, right))
        if one != other:
            raise ValueError(f"{stated}: conditions of x0 are {one} a row but those of x1 {other}")


def _kind(cond: Tensor) -> str:
    numbers = cond[:1].numel() if len(cond) else 0
    return f"{numbers} {'number(s)' if cond.is_floating_point() else 'label(s)'}"


def condition_cost(left: Tensor, right: Tensor) -> Tensor:
    """Distance of conditions, ``(n, m)`` float64: the number of labels that differ, or the squared
    Euclidean distance of vectors."""
    left, right = left.flatten(1) if left.ndim > 1 else left[:, None], right.reshape(len(right), -1)
    if not left.is_floating_point():
        return (left[:, None] != right).sum(2).double()
    return torch.cdist(left.double(), right.double()) ** 2


def row_condition_cost(left: Tensor, right: Tensor) -> Tensor:
    """The same for row ``i`` of both: ``(n,)``."""
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    if not left.is_floating_point():
        return (left != right).sum(1)
    return ((left - right) ** 2).sum(1)


def class_rows(owner: object, left: Side, right: Side) -> Tensor:
    """Rows of the source that meet the one class of ``right``: all, unless it has classes of its own.

    Raises:
        ValueError: if it has no row in that class.
    """
    if left.cond is None:
        return torch.arange(len(left.x), device=left.x.device)
    same = (left.cond.reshape(len(left.x), -1) == right.cond[:1].reshape(1, -1)).all(1)
    if not bool(same.any()):
        raise ValueError(
            f"{type(owner).__name__}: class {right.cond[0].tolist()} of x1 has no row in x0"
        )
    return torch.nonzero(same).squeeze(1)


def class_index(*conds: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Distinct rows of labels ``(C, k)``, and the number of each row's class, for each tensor."""
    rows = [c.reshape(len(c), -1) for c in conds]
    labels, index = torch.unique(torch.cat(rows), dim=0, return_inverse=True)
    return labels, index.split([len(r) for r in rows])


def couple_within(
    owner: object, left: Side, right: Side, couple: Callable[[Side, Side], Pairs]
) -> Pairs:
    """Couple class by class; each class gets the share that it has on the right side, and as many pairs
    as it has rows on its larger side.

    Raises:
        ValueError: if a class has rows on one side alone.
    """
    labels, (of_left, of_right) = class_index(left.cond, right.cond)
    parts = []
    for k in range(len(labels)):
        rows0, rows1 = (torch.nonzero(index == k).squeeze(1) for index in (of_left, of_right))
        if not (len(rows0) and len(rows1)):
            absent = "x0" if not len(rows0) else "x1"
            raise ValueError(
                f"{type(owner).__name__}(conditions='within'): class {labels[k].tolist()} has no row "
                f"in {absent} of this batch; use larger batches, or a number instead of 'within'"
            )
        mine, theirs = left.take(rows0), right.take(rows1)
        if mine.total() > 0 and theirs.total() > 0:
            i, j, weight = couple(mine, theirs)
            weight = weight * (theirs.total() / (right.total() * len(i)))
        else:  # a class that counts for nothing: any pairs, of weight zero
            (i, j), weight = pair_rows(mine.x, theirs.x), left.x.new_zeros(max(len(rows0), len(rows1)))
        parts.append((rows0[i], rows1[j], weight))
    i, j, weight = (torch.cat(values) for values in zip(*parts))
    weight = weight / weight.sum()
    # rows as they came: whatever is drawn row by row afterwards must not know the class
    order = (j if len(right.x) >= len(left.x) else i).argsort(stable=True)
    return i[order], j[order], weight[order] * len(order)
