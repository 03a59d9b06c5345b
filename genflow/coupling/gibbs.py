r"""Gibbs weights: weighted conditional flow matching (Calvo-Ordoñez et al. 2025).

Independent pairs get the weight :math:`w \propto e^{-c(x_0,x_1)/\varepsilon}`. The learner then fits
the entropic plan *between the tilted marginals* :math:`\tilde\mu, \tilde\nu`, not between the given
ones: :func:`genflow.diagnostics.tilt_report` tells how far they are, and ``correction`` mends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genflow.checks import between, one_of, positive
from genflow.coupling.base import Coupling, Plan, same_length
from genflow.coupling.cost import Cost, check_cost, pair_cost, row_cost
from genflow.coupling.pilot import fit
from genflow.coupling.potentials import GaussianPotentials
from genflow.coupling.sides import (
    Conditions,
    Pairs,
    Side,
    check_strength,
    class_index,
    class_rows,
    condition_cost,
    couple_within,
    need_conditions,
    pair_rows,
    row_condition_cost,
    two_sides,
)
from genflow.coupling.sinkhorn import log_density
from genflow.coupling.weights import relative_mass, softmax_weight


@dataclass(frozen=True)
class Gibbs(Coupling):
    r"""Independent pairs weighted by :math:`e^{-c/\varepsilon}`: ``epsilon`` is the temperature of the
    named cost (for ``"sqeuclidean"``, :math:`|x_0-x_1|^2/\varepsilon`).

    >>> plan = Gibbs(epsilon=0.2)(x0, x1)                  # doctest: +SKIP
    >>> coupling = Gibbs(ess=0.5).prepare(all_x0, all_x1)  # doctest: +SKIP

    What was once chosen by :meth:`prepare` stays: make a new ``Gibbs`` for other data.

    The corrections keep the cross term of :math:`e^{-c/\varepsilon}` and add potentials of each side,
    :math:`w = e^{(f(x_0) + g(x_1) - c)/\varepsilon}`, so that the marginals stay where they are:

    - ``"none"``: the published method. Unbiased only where every point of one side is equally far
      from the other.
    - ``"gaussian"``: the potentials of Gaussians with the means and covariances of the data, fitted
      once. Exact for Gaussian marginals, close for others, free at training time.
    - ``"sinkhorn"``: the potentials of each batch; exact for any marginals and cost as batches grow, at
      a price quadratic in the batch.

    Args:
        epsilon: temperature, positive; ``None`` lets :meth:`prepare` choose it.
        ess: target effective sample size of the weights, a fraction in (0, 1), for :meth:`prepare`.
        cost: ``"sqeuclidean"``, ``"euclidean"``, or a function ``(x (B, *d), y (B, *d)) -> (B,)``.
        rule: how :meth:`prepare` chooses epsilon: ``"ess"`` by bisection on a pilot of 20,000 pairs
            (for ``"sinkhorn"`` on the plan of 400 rows, classes lumped together), ``"std"`` by
            :math:`\mathrm{std}(c)/\sqrt{\log(1/\mathrm{ess})}`, for uncorrected weights.
        correction: ``"none"``, ``"gaussian"`` (squared Euclidean cost alone) or ``"sinkhorn"``.
        covariance: of the Gaussian correction: ``"full"``, ``"diagonal"``, or ``"auto"``, which is full
            for vectors of up to 64 numbers.
        normaliser: what weights are divided by: ``"batch"``, their mean (a ratio, biased towards even
            weights by about 0.4 over the rows of the batch, or of the class in the batch), or
            ``"pilot"``, a constant from 100,000 pairs (unbiased; the choice for many classes), which is
            1 for ``"sinkhorn"``.
        conditions: ``"ignore"``; ``"within"`` for labels, whose classes then have their own normaliser
            and potentials and keep their frequencies; or, where both sides have conditions, a number,
            the price of a unit of distance between conditions.
        fitted: what :meth:`prepare` found in the data, as plain numbers; leave it ``None``.

    Raises:
        ValueError: in one sentence, for values outside these.
    """

    epsilon: float | None = None
    ess: float = 0.5
    cost: Cost = "sqeuclidean"
    rule: str = "ess"
    correction: str = "none"
    covariance: str = "auto"
    normaliser: str = "batch"
    conditions: str | float = "ignore"
    fitted: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            positive(self, epsilon=self.epsilon)
        between(self, 0, 1, ess=self.ess)
        check_cost(self, self.cost)
        one_of(self, ("ess", "std"), rule=self.rule)
        one_of(self, ("none", "gaussian", "sinkhorn"), correction=self.correction)
        one_of(self, ("auto", "full", "diagonal"), covariance=self.covariance)
        one_of(self, ("batch", "pilot"), normaliser=self.normaliser)
        check_strength(self, self.conditions)
        if self.rule == "std" and self.correction != "none":
            raise ValueError(
                f"Gibbs(rule='std', correction={self.correction!r}): the rule is for uncorrected "
                "weights; use rule='ess'"
            )
        if self.correction == "gaussian" and self.cost != "sqeuclidean":
            raise ValueError(
                f"Gibbs(correction='gaussian', cost={self.cost!r}): its potentials are those of "
                "cost='sqeuclidean'; use that, or correction='sinkhorn'"
            )
        if self.correction == "gaussian" and not isinstance(self.conditions, str):
            raise ValueError(
                f"Gibbs(correction='gaussian', conditions={self.conditions}): its potentials know "
                "positions alone; use conditions='within', or correction='sinkhorn'"
            )

    @property
    def by_class(self) -> bool:
        """Whether each class has its own normaliser."""
        return self.conditions == "within"

    @property
    def needs_data(self) -> bool:
        """Whether :meth:`prepare` is still to choose something."""
        if self.epsilon is None:
            return True
        fits = self.correction == "gaussian"
        fits |= self.normaliser == "pilot" and self.correction != "sinkhorn"
        if not fits or self.fitted is None:
            return fits
        # numbers of the user's own come without a purpose, and are taken as they are
        return self.fitted.get("purpose", self.purpose(self.epsilon)) != self.purpose(self.epsilon)

    def purpose(self, epsilon: float) -> dict[str, Any]:
        """What fitted numbers are good for: they are not used once one of these has changed."""
        names = ("correction", "covariance", "normaliser", "conditions")
        constant = epsilon if self.normaliser == "pilot" else None
        return {name: getattr(self, name) for name in names} | {"epsilon": constant}

    @torch.no_grad()
    def prepare(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
    ) -> Gibbs:
        """Choose from data what was left open: ``epsilon``, potentials, the constant normaliser.

        Args:
            xs: the marginals' samples, ``(N_k, *d)``; random pairs of them are used.
            cond: their conditions, as in a call.
            weights: how much each row counts, as in a call.

        Returns:
            This coupling, ready to be called.
        """
        sides = two_sides(self, xs, cond, weights)
        self._check_conditions(*sides)
        if self.needs_data:
            epsilon, fitted = fit(self, *sides)
            object.__setattr__(self, "epsilon", epsilon)
            object.__setattr__(self, "fitted", fitted)
        return self

    def __call__(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        # weights have no gradient; this is cheaper than no_grad
        xs = tuple(x.detach() if getattr(x, "requires_grad", False) else x for x in xs)
        left, right = two_sides(self, xs, cond, weights)
        self._check_conditions(left, right)
        self._check_ready()
        if self.by_class and left.cond is not None:
            i, j, share = couple_within(self, left, right, lambda a, b: _pairs(a, b, generator))
            return Plan((i, j), self._weight(left.take(i), right.take(j), share))
        i, j = pair_rows(*xs, generator=generator)
        if same_length(*xs):
            return Plan((i, j), self._weight(left, right, None), aligned=True)
        return Plan((i, j), self._weight(left.take(i), right.take(j), None))

    def _weight(self, left: Side, right: Side, share: Tensor | None) -> Tensor:
        """Weights of paired rows, of mean one; ``share`` where rows were paired class by class."""
        index = self.class_of(right.cond) if self.by_class else None
        if self.correction == "sinkhorn":
            log_weight = self._entropic(left, right, index)
        else:
            log_weight = self.log_weight(left, right, index)
        groups = None if share is None else index
        own = share
        if right.mass is not None:
            mass = relative_mass(right.mass, groups).to(log_weight)
            own = mass if own is None else own * mass
        base = own
        if left.mass is not None:
            mass = relative_mass(left.mass, groups).to(log_weight)
            base = mass if base is None else base * mass
        if self.normaliser == "batch":
            return softmax_weight(log_weight, base, index, own)
        if self.correction != "sinkhorn":  # whose weights are of mean one over all pairs as they are
            constant = log_weight.new_tensor(self.fitted["log_z"])
            log_weight = log_weight - (constant[0] if index is None else constant[index])
        return log_weight.exp() if base is None else log_weight.exp() * base

    def log_weight(self, left: Side, right: Side, index: Tensor | None = None) -> Tensor:
        """Logarithm of the weight of paired rows, not yet normalised, ``(B,)``; not for
        ``correction="sinkhorn"``, whose potentials belong to whole batches."""
        if self.correction == "gaussian":
            return self._potentials(left.x).rows(left.x, right.x, index)
        cost = row_cost(self.cost, left.x, right.x)
        if not isinstance(self.conditions, str):
            cost = cost + self.conditions * row_condition_cost(left.cond, right.cond).to(cost)
        return cost * (-1 / self.epsilon)

    def log_weights(self, left: Side, right: Side) -> Tensor:
        """Logarithms of the weights of all pairs of rows, ``(n, m)``, up to a constant; with
        ``conditions="within"`` all rows of ``right`` must be of one class."""
        self._check_ready()
        if self.correction == "gaussian":
            k = int(self.class_of(right.cond[:1])[0]) if self.by_class else 0
            return self._potentials(left.x.double()).pairs(left.x.double(), right.x.double(), k)
        if self.correction == "sinkhorn":
            return self._log_density(left, right)
        return -self._costs(left, right) / self.epsilon

    def _costs(self, left: Side, right: Side) -> Tensor:
        cost = pair_cost(self.cost, left.x, right.x)
        if not isinstance(self.conditions, str):
            cost = cost + self.conditions * condition_cost(left.cond, right.cond)
        return cost

    def _log_density(self, left: Side, right: Side) -> Tensor:
        return log_density(self._costs(left, right), self.epsilon, left, right)

    def _entropic(self, left: Side, right: Side, index: Tensor | None) -> Tensor:
        """Log-weights of paired rows by the potentials of this batch, one set a class."""
        if index is None:
            return self._log_density(left, right).diagonal().to(left.x)
        out = left.x.new_zeros(len(left.x))
        for k in index.unique():
            rows = torch.nonzero(index == k).squeeze(1)
            theirs = right.take(rows)
            # a source without classes meets each class as a whole: its potentials use all rows
            mine = class_rows(self, left, theirs)
            density = self._log_density(left.take(mine), theirs)
            place = torch.searchsorted(mine, rows)
            out[rows] = density[place, torch.arange(len(rows), device=place.device)].to(out)
        return out

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What is made of ``fitted`` once, not at every step."""
        store = self.__dict__.get("_store")
        if store is None or store[0] is not self.fitted or store[1] != self.epsilon:
            store = (self.fitted, self.epsilon, {})
            object.__setattr__(self, "_store", store)
        if key not in store[2]:
            store[2][key] = make()
        return store[2][key]

    def _potentials(self, like: Tensor) -> GaussianPotentials:
        return self._kept(
            (like.dtype, like.device),
            lambda: GaussianPotentials.of(self.fitted, self.epsilon, like),
        )

    def class_of(self, cond: Tensor) -> Tensor:
        """Number of each row's class: among those that :meth:`prepare` saw, or of this batch."""
        if self.fitted is None or "labels" not in self.fitted:
            return class_index(cond)[1][0]
        labels = self._kept(
            cond.device, lambda: torch.tensor(self.fitted["labels"], device=cond.device)
        )
        equal = (cond.reshape(len(cond), 1, -1) == labels).all(2)
        known = equal.any(1)
        if not bool(known.all()):
            raise ValueError(
                f"Gibbs: class {cond[~known][0].tolist()} was not among the data that prepare saw"
            )
        return equal.long().argmax(1)

    def _check_ready(self) -> None:
        if self.needs_data:
            what = "epsilon" if self.epsilon is None else "potentials or normaliser"
            raise ValueError(
                f"Gibbs(ess={self.ess}) chooses {what} from data: call coupling.prepare(x0, x1) "
                "(or loss.prepare(x0, x1)) once with your training samples, or give epsilon"
            )

    def _check_conditions(self, left: Side, right: Side) -> None:
        if self.conditions == "ignore":
            return
        need_conditions(self, self.conditions, left, right)
        if not isinstance(self.conditions, str) and left.cond is None:
            raise ValueError(
                f"Gibbs(conditions={self.conditions}) needs the conditions of both sides, "
                "cond=(cond0, cond1): a source without conditions has that of its partner, so that "
                "the price is always 0; use conditions='within'"
            )


def _pairs(left: Side, right: Side, generator: torch.Generator | None) -> Pairs:
    i, j = pair_rows(left.x, right.x, generator=generator)
    return i, j, left.x.new_ones(len(i))
