"""Paired data: the start of each row is a corrupted copy of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.data.base import Data, FromLast, Marginal
from genflow.data.corruption import Corruption


@dataclass(frozen=True)
class Corrupted(Data):
    r"""Pairs :math:`(c(x_1), x_1)`: a data-dependent coupling (Albergo, Goldstein, Boffi, Ranganath &
    Vanden-Eijnden 2023, "Stochastic interpolants with data-dependent couplings").

    Row ``i`` of ``x0`` is made from row ``i`` of ``x1``, anew in every batch, and ``Independent`` pairs
    rows as they come, so a training needs nothing else than ``source=empirical`` (which keeps some
    starts, so that ``model.sample(n)`` works as well). Any other coupling deals the starts out anew and
    loses what they know. Afterwards ``model.sample(x0=data.corrupt(x1))`` restores images.

    All that is known of ``x1`` is in ``x0``, and the network gets it through the state; no mask goes
    along as a condition (the paper gives it to the network and sets the velocity on known pixels to
    zero). So ``x0`` is all that sampling needs, and the place of the condition is left to labels. The
    price: on known pixels zero is what the velocity learns, not what it is made to be; see
    :class:`Mask` for how much that is.

    Args:
        data: where ``x1`` and its conditions come from; its own source side is not used.
        corruption: makes ``x0`` from ``x1``.
    """

    data: Data
    corruption: Corruption

    def __post_init__(self) -> None:
        for name, role in (("data", Data), ("corruption", Corruption)):
            if not isinstance(getattr(self, name), role):
                raise TypeError(
                    f"Corrupted({name}={getattr(self, name)!r}): {name} must be a {role.__name__}"
                )

    def marginals(self, split: str) -> tuple[Marginal, ...]:
        return FromLast(self.corruption), self.data.marginals(split)[-1]

    def corrupt(self, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Starts for ``x1 (n, *d)``, in its shape."""
        return self.corruption(x1, generator)
