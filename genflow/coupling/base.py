"""Couplings: which rows of the marginals form a path, and with which weight.

A coupling returns **indices**, so that labels and conditions follow them, and weights of mean one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.coupling.sides import Conditions
from genflow.tensors import draw_device


@dataclass(frozen=True)
class Plan:
    """Coupled rows.

    Attributes:
        indices: one ``(B,)`` tensor of row numbers for each marginal.
        weight: ``(B,)``, of mean one (in expectation, where a coupling divides by a constant).
        aligned: whether all indices are ``0..B-1``, so that nothing need be gathered.
        even: whether all weights are one.
    """

    indices: tuple[Tensor, ...]
    weight: Tensor
    aligned: bool = False
    even: bool = False

    def gather(self, *xs: Tensor) -> tuple[Tensor, ...]:
        """The coupled rows of the marginals."""
        return xs if self.aligned else tuple(x[rows] for x, rows in zip(xs, self.indices))


class Coupling(ABC):
    """A way to couple batches. Batches may have unequal sizes.

    ``independent`` says that rows stay as they come, neither paired anew nor weighted.
    """

    independent: bool = False

    @abstractmethod
    def __call__(
        self,
        *xs: Tensor,
        cond: Conditions | None = None,
        weights: Sequence[Tensor | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """Couple ``xs``, each ``(B_k, *d)``; the plan has as many rows as the largest of them.

        Args:
            xs: the marginals' batches.
            cond: for couplings that heed conditions: integer labels ``(B,)`` or ``(B, k)``, or
                vectors ``(B, k)``, of the last marginal's rows; or one such entry for each marginal.
            weights: how much each row counts, ``(B_k,)`` or ``None`` for each marginal; for weighted
                samples.
            generator: where random choices are drawn from.

        Raises:
            TypeError, ValueError: if a batch is empty or the batches do not fit together.
        """


def same_length(*xs: Tensor) -> bool:
    """Whether rows as they come are paired one to one."""
    return all(len(x) == len(xs[0]) for x in xs)


def sample_plan(plan: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw a pair from a transport plan ``(n, m)`` for each of its rows: ``n`` pairs.

    Every row occurs exactly once and draws its partner from the plan: drawing all pairs with
    replacement would drop a third of the points of a batch. Where the masses of the rows differ, they
    are the weights of the pairs.
    """
    where = draw_device(generator, plan.device)
    # a row without mass (unbalanced and partial plans) has any partner: its weight is 0
    plan = torch.where(plan.sum(1, keepdim=True) > 0, plan, torch.ones_like(plan))
    partner = torch.multinomial(plan.to(where), 1, generator=generator).squeeze(1)
    return torch.arange(len(plan), device=plan.device), partner.to(plan.device)


def effective_sample_size(weight: Tensor) -> Tensor:
    r"""Kish's effective sample size as a fraction, :math:`(\sum w)^2 / (n\sum w^2)`, in (0, 1]."""
    weight = weight.double()
    return weight.sum() ** 2 / (len(weight) * (weight**2).sum())
