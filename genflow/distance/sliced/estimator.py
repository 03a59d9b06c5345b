"""The sliced Wasserstein distance, estimated with control variates."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.checks import count
from genflow.directions import Auto, Directions
from genflow.distance.base import safe_root
from genflow.distance.sliced.base import Sliced, Slices, apply, even, plain
from genflow.distance.sliced.checks import check_options
from genflow.distance.sliced.sweep import Sets
from genflow.variate import (
    Lower,
    Moments,
    Pull,
    Quadratic,
    TwoLevel,
    Upper,
    Variate,
    residuals,
    weights_of,
)  # fmt: skip


class Estimate(NamedTuple):
    """A value and how sure it is.

    Attributes:
        value: the distance, ``(...)``.
        error: its standard error, ``(...)``.
    """

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class SlicedWasserstein(Sliced):
    r""":math:`SW_p^p = E_\theta W_p^p(\theta'x, \theta'y)` over directions :math:`\theta`, uniform on
    the sphere (Rabin et al. 2012; Bonneel et al. 2015).

    As it stands the estimate is unbiased, never negative, and for ``p = 2`` has a small fraction of the
    variance of plain Monte Carlo with as many projections. Weighted sets and sets of different sizes
    are exact on every projection. Half precision is computed in single.

    Args:
        projections: how many directions, ``L``.
        p: order, at least 1.
        directions: how they are drawn.
        variate: control variate (Nguyen & Ho 2023); ``None`` for plain Monte Carlo.
        root: give :math:`SW_p` rather than :math:`SW_p^p`: biased low, and zero where an estimate by
            regression is negative.
        chunk: directions handled at a time; ``None`` bounds their memory to some 32 MB.

    Raises:
        ValueError: if arguments or their combination make no estimate.
    """

    projections: int = 100
    p: float = 2.0
    directions: Directions = field(default_factory=Auto)
    variate: Variate | None = field(default_factory=TwoLevel)
    root: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if self.variate is not None and not isinstance(self.variate, Variate):
            raise ValueError(
                f"SlicedWasserstein(variate={self.variate!r}): variate must be a Variate, such as "
                "Lower(), or None"
            )
        kind = getattr(self.variate, "coefficient", None)
        if isinstance(kind, str) and self.projections < 2:
            raise ValueError(
                f"SlicedWasserstein(projections={self.projections}): a fitted coefficient needs at "
                "least 2 projections"
            )
        if kind == "leave_one_out" and not self.directions.independent:
            raise ValueError(
                "SlicedWasserstein: coefficient='leave_one_out' is unbiased for independent directions "
                f"alone, take Isotropic() instead of {type(self.directions).__name__}()"
            )

    def _value(self, x: Tensor, y: Tensor, sets: Sets, generator: torch.Generator | None) -> Tensor:
        return apply(x, y, sets, self._slices(sets.x, generator), type(self).__name__)

    @torch.no_grad()
    def estimate(
        self,
        x: Tensor,
        y: Tensor,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
        generator: torch.Generator | None = None,
        repeats: int = 8,
    ) -> Estimate:
        """The mean of several estimates with its standard error, over directions alone.

        Args:
            x, y, weights_x, weights_y, generator: as for a call.
            repeats: how many estimates are averaged, each with all projections; at least 2. Their
                spread tells the error, whatever the directions and the variate.

        Raises:
            ValueError: for directions that are always the same.
        """
        count("estimate", 2, repeats=repeats)
        if not self.directions.random:
            raise ValueError("estimate: the directions are not random, the value has no standard error")
        power = replace(self, root=False)
        found = [power(x, y, weights_x, weights_y, generator).double() for _ in range(repeats)]
        values = torch.stack(found)
        value, error = values.mean(0), values.std(0) / math.sqrt(repeats)
        if self.root:
            slope = safe_root(value, self.p) / torch.where(value > 0, value * self.p, 1.0)
            value, error = safe_root(value, self.p), error * slope
        return Estimate(value.to(x.dtype), error.to(x.dtype))

    def _slices(self, x: Tensor, generator: torch.Generator | None) -> Slices:
        """The estimator for sets like ``x (B, n, d)``."""
        batch, _, dim = x.shape
        if dim == 1:  # there is one direction, and its mirror image
            return plain(x.new_ones(1, 1), batch)
        directions = self.directions.sample(self.projections, dim, generator, x)
        variate = self.variate
        if variate is None:
            return plain(directions, batch)
        self._fits(dim)
        bound = variate.coefficient == 1 and variate.bound(self.p)

        def features(known: Moments) -> tuple[Tensor, Pull]:
            return variate.linearised(directions, known, self.p, generator)

        def value(costs: Tensor, features: Tensor) -> Tensor:
            mean = residuals(costs, features, variate).mean(1)
            # never negative but for rounding
            return mean + (mean.detach().clamp_min(0) - mean.detach()) if bound else mean

        share = None if variate.coefficient == "published" else even(directions, batch)
        if variate.order == 0 and variate.coefficient == "regression":
            # a weighted sum, whose weights the costs have no part in
            weights = weights_of(features(Moments(x[:, 0]))[0].double())
            return Slices(directions, lambda costs, _: (costs * weights).sum(1), weights.to(x))
        fixed = not isinstance(variate.coefficient, str)
        pull = -variate.coefficient / len(directions) if fixed else None
        return Slices(directions, value, share, features, variate.order, pull)

    def _fits(self, dim: int) -> None:
        variate, kind = self.variate, self.variate.coefficient
        if isinstance(kind, str) and kind != "published":
            extra = 2 if kind == "leave_one_out" else 1
            least = variate.count(self.projections, dim) + extra
            if self.projections < least:
                raise ValueError(
                    f"SlicedWasserstein(projections={self.projections}): {type(variate).__name__} fits "
                    f"{least - extra} coefficients in {dim} dimensions and needs at least {least} "
                    "projections, better several times as many"
                )
        square = isinstance(variate, Lower) and (self.p == 2 or kind == "published")
        idle = square or isinstance(variate, (Upper, Quadratic))
        if idle and self.directions.balanced(self.projections, dim):
            warnings.warn(
                f"{type(variate).__name__} has no effect: over {self.projections} directions in {dim} "
                f"dimensions by {type(self.directions).__name__} quadratic forms have exact means; "
                "take another variate, or other directions",
                stacklevel=5,
            )
