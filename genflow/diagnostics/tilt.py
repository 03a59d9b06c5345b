r"""What a coupling does to the laws that it was given.

Weighted pairs are not pairs of the given laws :math:`\mu, \nu` but of the tilted ones,
:math:`\tilde\mu \propto \mu k` with :math:`k(x) = E_{y\sim\nu} w(x, y)`, and likewise for :math:`\nu`.
The effective sample size does not show it: half of the weights may be wasted with hardly any tilt, or
with a large one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling import Coupling, Gibbs, Side, Transport
from genflow.coupling.sides import Conditions, class_index, some_rows, two_sides
from genflow.diagnostics.masses import masses_of

LARGE = 0.05
"""Nats of tilt from which a report says so: about 0.16 of total variation, by Pinsker's inequality."""
ROUND = 1e-6
"""Numbers below this are rounding, and shown as zero."""
CLASSES = 64
"""Most classes that are looked at one by one."""


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


@torch.no_grad()
def tilt_report(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    cond: Conditions | None = None,
    weights: Sequence[Tensor | None] | None = None,
    rows: int = 2048,
    generator: torch.Generator | None = None,
) -> TiltReport:
    """How a coupling bends the laws of ``x0`` and ``x1``, for any coupling, in or outside a run.

    >>> tilt_report(Gibbs(ess=0.5).prepare(x0, x1), x0, x1).note  # doctest: +SKIP

    For :class:`Gibbs` all pairs of the rows enter, in log space; plans of balanced transport and
    independent pairs leave the laws as they are; other couplings are called some times, and the noise
    of that is taken off the KL (not off the total variation).

    Args:
        coupling: what to look at, prepared.
        x0, x1: samples of both sides, ``(n, *d)``; at least 512 for a KL within a few per cent.
        cond: their conditions, as in a call of the coupling.
        weights: how much each row counts, ``(n,)`` or ``None`` for each side.
        rows: how many of each side are used at most, a random choice.
        generator: where couplings draw from.

    Raises:
        TypeError, ValueError: as the coupling raises.
    """
    left, right = two_sides(coupling, (x0, x1), cond, weights)
    left, right = (some_rows(side, rows) for side in (left, right))
    masses = masses_of(coupling, left, right, _classes(right), generator)
    numbers: dict[str, float | None] = {"ess": masses.ess}
    for k, (side, mass) in enumerate(((left, masses.left), (right, masses.right))):
        numbers[f"kl_tilt_x{k}"], numbers[f"tv_tilt_x{k}"] = masses.tilts[k]
        shift, std = _moments(side.x, mass)
        numbers[f"mean_shift_x{k}"], numbers[f"std_shift_x{k}"] = shift, std
    several = masses.given is not None and len(masses.given) > 1
    shifts = [_moments(left.x, r)[0] ** 2 for r in masses.given] if several else []
    square = sum(float(s) * v for s, v in zip(masses.share, shifts)) if several else 0.0
    numbers["class_shift_x0"] = math.sqrt(square) if several else None
    numbers["class_shift_chance"] = math.sqrt(len(shifts) / len(left.x)) if several else None
    numbers = {k: 0.0 if v is not None and abs(v) < ROUND else v for k, v in numbers.items()}
    sides = {"mass0": masses.left, "mass1": masses.right, "x0": left.x, "x1": right.x}
    report = TiltReport(**numbers, note=None, **sides)
    return dataclasses.replace(report, note=_note(report, coupling, left, right))


def _classes(side: Side) -> Tensor | None:
    """Classes of the rows, where there are labels and few enough of them."""
    if side.cond is None or side.cond.is_floating_point():
        return None
    labels, (index,) = class_index(side.cond)
    return index if len(labels) <= CLASSES else None


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
        known = getattr(coupling, "conditions", "within") != "within"
        cure = "; coupling.conditions=within mends it" if known else ""
        return (
            "the pairs tie the source to the condition: the mean of x0 given a class moves by "
            f"{report.class_shift_x0:.2f} standard deviations ({chance:.2f} by chance), though samples "
            f"start anywhere{cure}"
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
    known = labels or isinstance(coupling.conditions, str)  # not a price, which potentials ignore
    if coupling.cost == "sqeuclidean" and known and (labels or coupling.correction == "none"):
        mended = dataclasses.replace(coupling, **changes, correction="gaussian", fitted=None)
        cond = None if right.cond is None else (left.cond, right.cond)
        mended.prepare(left.x, right.x, cond=cond)
        masses = masses_of(mended, left, right, _classes(right))
        rest = max(kl for kl, _ in masses.tilts)
        if rest <= LARGE:
            return f"{stated}coupling.correction=gaussian mends it ({rest:.2g} left at this epsilon)"
    if coupling.correction == "sinkhorn" and not labels:
        return "raise epsilon, or use coupling=exact_ot"
    return f"{stated}coupling.correction=sinkhorn mends it"
