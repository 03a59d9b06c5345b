r"""What a coupling does to the laws that it was given.

Weighted pairs are not pairs of the given laws :math:`\mu, \nu` but of the tilted ones,
:math:`\tilde\mu \propto \mu k` with :math:`k(x) = E_{y\sim\nu} w(x, y)`, and likewise for :math:`\nu`.
The effective sample size does not show it: half of the weights may be wasted with hardly any tilt, or
with a large one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling import Coupling, Gibbs, Independent, Side, Transport, effective_sample_size
from genflow.coupling.sides import Conditions, class_index, two_sides

LARGE = 0.05
"""Nats of tilt from which a report says so: about 0.16 of total variation, by Pinsker's inequality."""
ROUND = 1e-12
"""Numbers below this are rounding, and shown as zero."""
CLASSES = 64
"""Most classes that are looked at one by one."""
DRAWS = 16
"""Plans averaged for a coupling whose masses have no formula."""


@dataclass(frozen=True)
class TiltReport:
    """How far the coupled laws are from the given ones; ``x0`` source, ``x1`` data.

    Attributes:
        ess: effective sample size of the weights, a fraction.
        kl_tilt_x0, kl_tilt_x1: KL(tilted | given) in nats; for ``x0`` the mean over classes where
            there are labels.
        tv_tilt_x0, tv_tilt_x1: their total variation.
        mean_shift_x0, mean_shift_x1: distance of the means, in units of the root of the total
            variance of that side.
        std_shift_x0, std_shift_x1: relative change of that root; negative where the law shrinks.
        class_shift_x0: root mean square over classes of the distance between the mean of ``x0`` given
            the class and the mean of ``x0``, in the same units; ``None`` without labels. A sampler
            draws the source freely of the class, so this should be no larger than chance,
            ``class_shift_chance``.
        note: a sentence that says what is wrong and what mends it, or ``None``.
        mass0, mass1: how much each row counts in the tilted laws, of mean one.
        x0, x1: the rows looked at.
    """

    ess: float
    kl_tilt_x0: float
    kl_tilt_x1: float
    tv_tilt_x0: float
    tv_tilt_x1: float
    mean_shift_x0: float
    mean_shift_x1: float
    std_shift_x0: float
    std_shift_x1: float
    class_shift_x0: float | None
    class_shift_chance: float | None
    note: str | None
    mass0: Tensor
    mass1: Tensor
    x0: Tensor
    x1: Tensor

    def numbers(self) -> dict[str, float | str | None]:
        """Everything but the tensors."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: v for name, v in found.items() if not isinstance(v, Tensor)}

    @property
    def worst(self) -> float:
        """The larger tilt of the two sides, in nats."""
        return max(self.kl_tilt_x0, self.kl_tilt_x1)


@dataclass(frozen=True)
class _Masses:
    """Relative masses of rows: of ``x0`` given each class ``(C, n)``, of ``x1 (m,)``."""

    given: Tensor
    share: Tensor
    right: Tensor
    ess: float


@torch.no_grad()
def tilt_report(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    cond: Conditions | None = None,
    rows: int = 2048,
    generator: torch.Generator | None = None,
) -> TiltReport:
    """How a coupling bends the laws of ``x0`` and ``x1``, for any coupling, in or outside a run.

    >>> tilt_report(Gibbs(ess=0.5).prepare(x0, x1), x0, x1).note  # doctest: +SKIP

    For :class:`Gibbs` all pairs of the rows enter, in log space; plans of balanced transport and
    independent pairs leave the laws as they are; other couplings are called some times.

    Args:
        coupling: what to look at, prepared.
        x0, x1: samples of both sides, ``(n, *d)``; at least 512 for a KL within a few per cent.
        cond: their conditions, as in a call of the coupling.
        rows: how many of each side are used at most.
        generator: where couplings draw from.

    Raises:
        TypeError, ValueError: as the coupling raises.
    """
    left, right = two_sides(coupling, (x0, x1), cond, None)
    left, right = (_first(side, rows) for side in (left, right))
    index = _classes(right)
    masses = _masses(coupling, left, right, index, generator)
    mass0 = masses.share @ masses.given
    numbers: dict[str, float | None] = {"ess": masses.ess}
    # without a formula single rows are drawn: noise of each class by itself is no tilt
    each = masses.given if isinstance(coupling, Gibbs) else mass0[None]
    part = masses.share if isinstance(coupling, Gibbs) else mass0.new_ones(1)
    numbers["kl_tilt_x0"] = float(part @ torch.stack([_kl(r) for r in each]))
    numbers["kl_tilt_x1"] = float(_kl(masses.right))
    numbers["tv_tilt_x0"] = float(part @ (each - 1).abs().mean(1)) / 2
    numbers["tv_tilt_x1"] = float((masses.right - 1).abs().mean()) / 2
    for k, (side, mass) in enumerate(((left, mass0), (right, masses.right))):
        shift, std = _moments(side.x, mass)
        numbers[f"mean_shift_x{k}"], numbers[f"std_shift_x{k}"] = shift, std
    labels = index is not None and int(index.max()) > 0
    shifts = [_moments(left.x, r)[0] ** 2 for r in masses.given] if labels else []
    numbers["class_shift_x0"] = (
        math.sqrt(sum(float(s) * v for s, v in zip(masses.share, shifts))) if labels else None
    )
    numbers["class_shift_chance"] = math.sqrt(len(shifts) / len(left.x)) if labels else None
    numbers = {k: 0.0 if v is not None and abs(v) < ROUND else v for k, v in numbers.items()}
    report = TiltReport(**numbers, note=None, mass0=mass0, mass1=masses.right, x0=left.x, x1=right.x)
    return dataclasses.replace(report, note=_note(report, coupling, left, right))


def _first(side: Side, rows: int) -> Side:
    return side.take(torch.arange(min(rows, len(side.x)), device=side.x.device))


def _classes(side: Side) -> Tensor | None:
    """Classes of the rows, where there are labels and few enough of them."""
    if side.cond is None or side.cond.is_floating_point():
        return None
    labels, (index,) = class_index(side.cond)
    return index if len(labels) <= CLASSES else None


def _kl(mass: Tensor) -> Tensor:
    return torch.special.xlogy(mass, mass).mean().clamp_min(0)


def _moments(x: Tensor, mass: Tensor) -> tuple[float, float]:
    flat = x.flatten(1).double()
    flat = flat - flat.mean(0)
    share = mass.double() / mass.sum()
    mean = share @ flat
    total = float((flat**2).sum(1).mean())
    after = float(share @ (flat**2).sum(1) - mean @ mean)
    if total == 0:
        return 0.0, 0.0
    return float(mean.norm()) / math.sqrt(total), math.sqrt(max(after, 0.0) / total) - 1


def _masses(
    coupling: Coupling,
    left: Side,
    right: Side,
    index: Tensor | None,
    generator: torch.Generator | None,
) -> _Masses:
    n, m = len(left.x), len(right.x)
    ones = [torch.ones(k, dtype=torch.float64, device=left.x.device) for k in (1, n, m)]
    if isinstance(coupling, Gibbs):
        return _gibbs_masses(coupling, left, right, index)
    balanced = isinstance(coupling, Independent) or getattr(coupling, "balanced", False)
    if balanced and index is None:
        return _Masses(ones[1][None], ones[0], ones[2], 1.0)
    if isinstance(coupling, Transport) and coupling.conditions == "ignore" and index is None:
        plan = coupling.plan(left.x, right.x)
        mass0, mass1 = plan.sum(1), plan.sum(0)
        weight = mass0 if n >= m else mass1
        size = float(effective_sample_size(weight))
        return _Masses((mass0 / mass0.mean())[None], ones[0], mass1 / mass1.mean(), size)
    found = _drawn_masses(coupling, left, right, index, generator)
    if balanced:
        found = dataclasses.replace(found, right=ones[2])
    return found


def _drawn_masses(
    coupling: Coupling,
    left: Side,
    right: Side,
    index: Tensor | None,
    generator: torch.Generator | None,
) -> _Masses:
    """Masses from plans that the coupling draws."""
    index = torch.zeros(len(right.x), dtype=torch.long) if index is None else index
    index = index.to(left.x.device)
    classes = int(index.max()) + 1
    given = left.x.new_zeros(classes, len(left.x), dtype=torch.float64)
    mass = given.new_zeros(len(right.x))
    cond = None if right.cond is None else (left.cond, right.cond)
    sizes = []
    for _ in range(DRAWS):
        plan = coupling(left.x, right.x, cond=cond, generator=generator)
        i, j, weight = *plan.indices, plan.weight.double()
        given.index_put_((index[j], i), weight, accumulate=True)
        mass.index_add_(0, j, weight)
        sizes.append(effective_sample_size(weight))
    share = given.sum(1) / given.sum()
    given = given / given.mean(1, keepdim=True).clamp_min(1e-300)
    return _Masses(given, share, mass / mass.mean(), float(torch.stack(sizes).mean()))


def _gibbs_masses(coupling: Gibbs, left: Side, right: Side, index: Tensor | None) -> _Masses:
    """Exact masses between the rows: log-mean-exp over all pairs."""
    index = torch.zeros(len(right.x), dtype=torch.long) if index is None else index
    index = index.to(left.x.device)
    whole = None if coupling.by_class else coupling.log_weights(left, right)
    given, share = [], []
    mass = left.x.new_zeros(len(right.x), dtype=torch.float64)
    squares = 0.0
    top = 0.0 if whole is None else float(whole.max())
    for k in range(int(index.max()) + 1):
        columns = torch.nonzero(index == k).squeeze(1)
        theirs = right.take(columns)
        mine = _rows_of(coupling, left, theirs)
        weight = coupling.log_weights(left.take(mine), theirs) if whole is None else whole[:, columns]
        weight = (weight - (float(weight.max()) if whole is None else top)).double().exp()
        part = len(columns) / len(right.x)
        if whole is None:  # each class has its own normaliser
            weight = weight / weight.mean()
        across = left.x.new_zeros(len(left.x), dtype=torch.float64)
        across[mine] = weight.mean(1) * (len(left.x) / len(mine))
        given.append(across / across.mean().clamp_min(1e-300))
        share.append(part * weight.mean())
        mass[columns] = weight.mean(0)
        squares += part * float((weight**2).mean())
    total = float(sum(share))
    parts = torch.stack(share) / total
    return _Masses(torch.stack(given), parts, mass / mass.mean(), total**2 / squares)


def _rows_of(coupling: Gibbs, left: Side, theirs: Side) -> Tensor:
    """Rows of the source that meet a class: all, unless the source has classes of its own."""
    every = torch.arange(len(left.x), device=left.x.device)
    if not coupling.by_class or left.cond is None:
        return every
    same = left.cond.reshape(len(left.x), -1) == theirs.cond[:1].reshape(1, -1)
    return every[same.all(1)]


def _note(report: TiltReport, coupling: Coupling, left: Side, right: Side) -> str | None:
    """One sentence on what is wrong, and what mends it."""
    where = f"{report.kl_tilt_x0:.2g} nats at x0, {report.kl_tilt_x1:.2g} at x1"
    if isinstance(coupling, Gibbs):
        if report.worst <= LARGE:
            return None
        return f"the weights bend the data: KL(tilted | given) is {where}; " + _remedy(
            report, coupling, left, right
        )
    chance = report.class_shift_chance
    if chance is not None and report.class_shift_x0 > max(0.1, 3 * chance):
        return (
            "the pairs tie the source to the condition: the mean of x0 given a class moves by "
            f"{report.class_shift_x0:.2f} standard deviations ({chance:.2f} by chance), though samples "
            "start anywhere; coupling.conditions=within mends it"
        )
    if report.worst > LARGE and isinstance(coupling, Transport) and not coupling.balanced:
        return (
            f"the plan leaves mass behind: KL(coupled | given) is {where}; that is what "
            f"{type(coupling).__name__} is for, ExactOT keeps every point"
        )
    return None


def _remedy(report: TiltReport, coupling: Gibbs, left: Side, right: Side) -> str:
    """The cheapest correction that brings the tilt below ``LARGE``, with what it leaves."""
    labels = coupling.conditions == "ignore" and report.class_shift_x0 is not None
    changes = {"conditions": "within"} if labels else {}
    stated = "coupling.conditions=within " if labels else ""
    if (
        coupling.cost == "sqeuclidean"
        and coupling.correction == "none"
        and (labels or isinstance(coupling.conditions, str))
    ):
        mended = dataclasses.replace(coupling, **changes, correction="gaussian", fitted=None)
        cond = None if right.cond is None else (left.cond, right.cond)
        mended.prepare(left.x, right.x, cond=cond)
        masses = _gibbs_masses(mended, left, right, _classes(right))
        rest = float(masses.share @ torch.stack([_kl(r) for r in masses.given]))
        rest = max(rest, float(_kl(masses.right)))
        if rest <= LARGE:
            return f"{stated}coupling.correction=gaussian mends it ({rest:.2g} left)"
    if coupling.correction == "sinkhorn":
        return "raise epsilon, or use coupling=exact_ot"
    return f"{stated}coupling.correction=sinkhorn mends it"
