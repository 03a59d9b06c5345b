"""Chains of pairs: rows of many marginals from a coupling of every two neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from genflow.coupling.base import Coupling, Plan, same_length
from genflow.coupling.exact import ExactOT
from genflow.coupling.sides import Conditions, pair_rows, side_conditions, side_masses
from genflow.tensors import check_marginals


@dataclass(frozen=True)
class Chained(Coupling):
    r"""Rows of :math:`x_0, \dots, x_K` that form a path: neighbours are paired by a coupling of two,
    and each row draws its partner onwards, as in a Markov chain.

    The plan has as many rows as the largest batch. A smaller batch is repeated first, each row equally
    often, so that an exact plan keeps every marginal: a permutation where sizes are equal. The rows
    that the chain has reached are then paired with the next batch, and what they weigh so far is their
    mass in that pairing. The weight of a chain is therefore the product of the weights of its pairs
    where the coupling weighs them (``Gibbs``; ``Independent`` with ``weights``), and the mass of its
    first row where the coupling keeps given masses (``ExactOT``, ``Sinkhorn``).

    Args:
        coupling: of two marginals, for every interval; or a list of them, one for each interval.
        times: of the marginals, rising, in any unit; equally spaced if absent, unless the data tell
            them (:meth:`observe`). They matter with ``per_time`` alone.
        per_time: the ``epsilon`` of the coupling is for the whole time from the first marginal to the
            last, and is multiplied by the share of each interval. The Schrödinger bridge of
            :math:`dX = \sigma dW` with :math:`\sigma` per square root of that time then has
            ``Sinkhorn(epsilon=2 * sigma**2)`` on all of them, however unequal.

    Raises:
        TypeError, ValueError: for what is no coupling, another number of couplings or times than there
            are marginals, or ``per_time`` without a stated ``epsilon``; from ``prepare``, for one
            coupling that would have to choose from the data of several intervals.
    """

    coupling: Coupling | Sequence[Coupling] = field(default_factory=ExactOT)
    times: Sequence[float] | None = None
    per_time: bool = False

    def __post_init__(self) -> None:
        for part in self._parts():
            if not isinstance(part, Coupling) or isinstance(part, Chained):
                raise TypeError(
                    f"Chained(coupling={part!r}): coupling must be a coupling of two marginals, such "
                    "as ExactOT() or Sinkhorn(), or a list of them"
                )
            if self.per_time and (self.needs_data or getattr(part, "epsilon", None) is None):
                raise ValueError(
                    f"Chained(per_time=True): {part} states no epsilon to multiply by the length of an "
                    "interval; use Sinkhorn(epsilon), or per_time=False"
                )
        if self.times is not None:
            object.__setattr__(self, "times", _rising(self.times))
        object.__setattr__(self, "_stated", self.times is not None)

    @property
    def independent(self) -> bool:
        return all(part.independent for part in self._parts())

    @property
    def needs_data(self) -> bool:
        return any(getattr(part, "needs_data", False) for part in self._parts())

    def _parts(self) -> Sequence[Coupling]:
        return self.coupling if isinstance(self.coupling, (list, tuple)) else [self.coupling]

    def observe(self, times: Sequence[float], weights: object = None) -> Chained:
        """Take the times of the data, in place of those taken before; stated ones are only compared.

        Args:
            times: of the marginals, rising.
            weights: of their rows; those of a batch are given at the call.

        Raises:
            ValueError: for times that do not rise, or that those stated contradict: of another number,
                or spaced otherwise (the unit is free).
        """
        times = _rising(times)
        if not self._stated:
            object.__setattr__(self, "times", times)
        elif len(times) != len(self.times) or not all(
            map(math.isclose, _shares(self.times), _shares(times))
        ):
            raise ValueError(
                f"Chained(times={self.times}) is not spaced as the marginals, which were seen at "
                f"{times}; leave times=None, which takes those of the data"
            )
        return self

    def couplings(self, count: int) -> list[Coupling]:
        """The coupling of each of the ``count - 1`` intervals between ``count`` marginals."""
        parts = list(self._parts())
        if isinstance(self.coupling, Coupling):
            parts = parts * (count - 1)
        elif len(parts) != count - 1:
            raise ValueError(
                f"Chained has {len(parts)} couplings for the {count - 1} intervals between {count} "
                "marginals; give one for each, or a single one for all"
            )
        if not self.per_time:
            return parts
        times = list(range(count)) if self.times is None else self.times
        if len(times) != count:
            raise ValueError(f"Chained(times={times}): got {count} marginals; give one time for each")
        return [replace(p, epsilon=p.epsilon * share) for p, share in zip(parts, _shares(times))]

    def prepare(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
    ) -> Chained:
        """Let the couplings of all intervals choose from data what was left open."""
        if not self.needs_data:
            return self
        if isinstance(self.coupling, Coupling) and len(xs) > 2:
            raise ValueError(
                f"Chained: {self.coupling} would choose from the data of {len(xs) - 1} intervals at "
                "once; give a list of couplings, one for each"
            )
        conds = side_conditions("Chained", xs, cond)
        masses = side_masses("Chained", xs, weights)
        for k, part in enumerate(self.couplings(len(xs))):
            if hasattr(part, "prepare"):
                pair = slice(k, k + 2)
                part.prepare(*xs[pair], **_given(cond=conds[pair], weights=masses[pair]))
        return self

    @torch.no_grad()
    def __call__(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        check_marginals("Chained", *xs)
        conds = side_conditions("Chained", xs, cond)
        masses = side_masses("Chained", xs, weights)
        rows = pair_rows(*xs, generator=generator)
        chain, mass = [rows[0]], None if masses[0] is None else masses[0][rows[0]]
        aligned, even = same_length(*xs), weights is None
        weight = xs[0].new_ones(len(rows[0]))
        for k, part in enumerate(self.couplings(len(xs))):
            last, following = chain[-1], rows[k + 1]
            given = _given(
                cond=(_take(conds[k], last), _take(conds[k + 1], following)),
                weights=(mass, _take(masses[k + 1], following)),
            )
            plan = part(xs[k][last], xs[k + 1][following], generator=generator, **given)
            if not plan.aligned:
                chain = [v[plan.indices[0]] for v in chain]
                following = following[plan.indices[1]]
            chain.append(following)
            aligned, even, weight = aligned and plan.aligned, even and plan.even, plan.weight
            mass = None if even else weight.double()
        return Plan(tuple(chain), weight, aligned, even)


def _take(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _given(**pairs: tuple[Any, Any]) -> dict[str, Any]:
    """The arguments of which either side has one: a coupling of the user's own may know none."""
    return {name: pair for name, pair in pairs.items() if any(v is not None for v in pair)}


def _shares(times: Sequence[float]) -> list[float]:
    """The length of each interval, of all."""
    return [(b - a) / (times[-1] - times[0]) for a, b in pairwise(times)]


def _rising(times: Sequence[float]) -> list[float]:
    times = list(map(float, times))
    if len(times) < 2 or not all(map(math.isfinite, times)) or times != sorted(set(times)):
        raise ValueError(f"Chained(times={times}): times must be at least two finite numbers that rise")
    return times
