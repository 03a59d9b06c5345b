"""What a control variate is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genflow.checks import name_of
from genflow.variate.moments import Moments

HELD = 2**22
"""Numbers that an array of products with directions may hold."""
FITTED = ("regression", "clamped", "leave_one_out", "published")


Pull = Callable[[Tensor], tuple[Tensor | None, ...]]
"""From a gradient in features ``(B, L, K)`` to gradients in step and covariances."""


class Variate(ABC):
    """Functions of the direction that vary as the projected distances do, with means that are known.

    The estimate is the mean over directions of the distance minus ``coefficient`` times (function minus
    its mean). What ``coefficient`` may be:

    - a number, one variate only: **unbiased** on directions that are;
    - ``"regression"``: least squares on the same directions, held fixed in gradients; **consistent**,
      with a bias of order one over their number. Where the function hardly varies the coefficient is
      wild, and gradients with it;
    - ``"clamped"``: the same for one variate, kept in [0, 1]; consistent and safe;
    - ``"leave_one_out"``: each direction by the coefficient of all others; **unbiased** for independent
      directions, which it demands;
    - ``"published"``: Nguyen & Ho's own, one variate: covariance over the second moment about the
      *known* mean, with gradients through it; consistent.
    """

    order: int = 2
    """Moments of the points that are needed: 0 none, 1 means, 2 covariances too."""

    coefficient: float | str

    def features(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The functions minus their means, ``(B, L, K)``, differentiable in the moments.

        Args:
            directions: ``(L, d)``.
            moments: of the sets.
            p: order of the distance.
            generator: for means that are themselves estimated.

        Raises:
            NotImplementedError: for a variate that defines neither this nor :meth:`linearised`.
        """
        if type(self).linearised is Variate.linearised:
            raise NotImplementedError(f"{name_of(self)} must define features or linearised")

        def make(*known: Tensor) -> tuple[Tensor, Pull]:
            return self.linearised(directions, Moments(*known, moments.size), p, generator)

        return _ByHand.apply(make, *moments[:3])

    def linearised(
        self,
        directions: Tensor,
        moments: Moments,
        p: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Pull]:
        """The features without a graph, and what takes a gradient in them to gradients in the moments
        (step, both covariances). A variate defines this by hand, which for few points is faster, or
        :meth:`features`.
        """
        leaves = [m.detach().requires_grad_() for m in moments[:3] if m is not None]
        with torch.enable_grad():
            known = Moments(*leaves, *[None] * (3 - len(leaves)), moments.size)
            found = self.features(directions, known, p, generator)

        def pull(grad: Tensor) -> tuple[Tensor | None, ...]:
            if not found.requires_grad:
                return None, None, None
            by = torch.autograd.grad(found, leaves, grad, allow_unused=True)
            return (*by, None, None)[:3]

        return found.detach(), pull

    @abstractmethod
    def count(self, projections: int, dim: int) -> int:
        """How many functions, ``K``."""

    def bound(self, p: float) -> bool:
        """Whether the function lies below the distance on every direction."""
        return False

    def _check(self, *allowed: str, number: bool = True) -> None:
        value = self.coefficient
        if isinstance(value, str) and value in allowed:
            return
        if (
            number
            and isinstance(value, Real)
            and not isinstance(value, bool)
            and abs(value) < float("inf")
        ):
            return
        choices = ", ".join(map(repr, allowed))
        raise ValueError(
            f"{name_of(self)}(coefficient={value!r}): coefficient must be "
            + (f"a finite number or one of {choices}" if number else f"one of {choices}")
        )


class _ByHand(torch.autograd.Function):
    """Features with the gradient that comes with them."""

    @staticmethod
    def forward(ctx: Any, make: Callable[..., tuple[Tensor, Pull]], *known: Tensor) -> Tensor:
        found, ctx.pull = make(*known)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.pull(grad)


def squares(directions: Tensor, matrix: Tensor) -> Tensor:
    """Quadratic forms of directions ``(L, d)`` and matrices ``(..., d, d)``, as ``(..., L)``."""
    parts = matrix.flatten(0, -3).split(_together(directions))
    found = [(torch.matmul(directions, part) * directions).sum(-1) for part in parts]
    return torch.cat(found).unflatten(0, matrix.shape[:-2])


def outer(directions: Tensor, weights: Tensor) -> Tensor:
    """Sums of weighted outer products of directions with themselves, ``(..., L) -> (..., d, d)``."""
    parts = weights.flatten(0, -2).split(_together(directions))
    found = [(directions.mT * part[:, None]) @ directions for part in parts]
    return torch.cat(found).unflatten(0, weights.shape[:-1])


def _together(directions: Tensor) -> int:
    """How many matrices are looked at together: the products with all directions are held."""
    return max(1, HELD // directions.numel())


def trace(matrix: Tensor) -> Tensor:
    """Traces of matrices ``(B, d, d)``."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
