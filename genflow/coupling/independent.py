"""Independent pairs: plain conditional flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling.base import Coupling, Plan, same_length
from genflow.coupling.sides import Conditions, pair_rows, side_masses
from genflow.tensors import check_marginals


@dataclass(frozen=True)
class Independent(Coupling):
    """Rows as they come: independent where the batches were drawn independently.

    Batches that are *paired* (row ``i`` of ``x0`` belongs to row ``i`` of ``x1``) stay paired.
    """

    independent = True

    def __call__(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        check_marginals("Independent", *xs)
        indices = pair_rows(*xs, generator=generator)
        weight, aligned = xs[0].new_ones(len(indices[0])), same_length(*xs)
        if weights is None:
            return Plan(indices, weight, aligned, even=True)
        for mass, rows in zip(side_masses("Independent", xs, weights), indices):
            if mass is not None:
                weight = weight * mass[rows].to(weight)
        return Plan(indices, weight / weight.mean(), aligned)
