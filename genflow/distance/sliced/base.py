"""What sliced distances share: checks of their sets, one differentiable pass over all projections."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genflow.directions import Directions
from genflow.distance.base import Distance, safe_root
from genflow.distance.sliced.checks import NotFinite, check_finite, check_sets, check_weights
from genflow.distance.sliced.sweep import Sets
from genflow.variate import Moments, Pull, add_gradient, moments


class Slices(NamedTuple):
    """How projected distances become a number.

    Attributes:
        directions: ``(L, d)``.
        value: from costs ``(B, L)`` and features ``(B, L, K)`` to values ``(B,)``, differentiable.
        share: its derivative in the costs ``(B, L)`` where that is known before they are, so that one
            sweep finds values and gradients.
        features: control variates of the moments, and how gradients in them come to the moments.
        order: moments that they need: 0 none, 1 means, 2 covariances too.
        pull: the derivative of the value in each feature, where that is a number.
    """

    directions: Tensor
    value: Callable[[Tensor, Tensor | None], Tensor]
    share: Tensor | None = None
    features: Callable[[Moments], tuple[Tensor, Pull]] | None = None
    order: int = 0
    pull: float | None = None


class Sliced(Distance):
    """A distance made of distances between projections.

    The last dimension is the space, the one before it the points, anything in front a batch: sets
    ``(..., n, d)`` and ``(..., m, d)`` give ``(...)``. Flatten events first, ``x.flatten(1)``.
    """

    random = True
    p: float
    projections: int
    directions: Directions
    root: bool
    chunk: int | None

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Distance of point sets.

        Args:
            x, y: ``(..., n, d)`` and ``(..., m, d)``.
            weights_x, weights_y: of the points, ``(n,)`` or ``(..., n)``; all alike if absent. They
                need not sum to one and carry no gradient.
            generator: where directions are drawn from.

        Raises:
            TypeError, ValueError: for sets or weights that do not fit, in one sentence.
            NotFinite: for points that are not finite, or too far apart for their precision.
            RuntimeError: for second derivatives, which are not known.
        """
        flat_x, flat_y, sets = self._sets(x, y, weights_x, weights_y)
        with full_precision(flat_x):
            value = self._value(flat_x, flat_y, sets, generator)
        value = safe_root(value, self.p) if self.root else value
        found = value.reshape(x.shape[:-2]).to(x.dtype)
        if found.dtype != value.dtype and not bool(found.isfinite().all()):
            raise NotFinite(f"{type(self).__name__}: the distance overflows {x.dtype}; use float32")
        return found

    @abstractmethod
    def _value(self, x: Tensor, y: Tensor, sets: Sets, generator: torch.Generator | None) -> Tensor:
        """The ``p``-th power of the distance, ``(B,)``, of sets ``(B, n, d)`` and ``(B, m, d)``."""

    def _sets(
        self, x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None
    ) -> tuple[Tensor, Tensor, Sets]:
        """Both batches as ``(B, n, d)`` in at least single precision, and all that is known of them."""
        name = type(self).__name__
        check_sets(name, x, y)
        dtype = torch.promote_types(x.dtype, torch.float32)
        flat = [z.to(dtype).reshape(-1, *z.shape[-2:]) for z in (x, y)]
        a = b = None
        if weights_x is not None or weights_y is not None:
            a = check_weights(name, "weights_x", weights_x, x, dtype)
            b = check_weights(name, "weights_y", weights_y, y, dtype)
        held = (z.detach().contiguous() for z in flat)
        return *flat, Sets(*held, a, b, self.p, self.chunk)


def even(directions: Tensor, batch: int) -> Tensor:
    """Every direction counts alike, ``(B, L)``."""
    return directions.new_full((batch, len(directions)), 1 / len(directions))


def plain(directions: Tensor, batch: int) -> Slices:
    """Plain Monte Carlo."""
    return Slices(directions, lambda costs, _: costs.mean(1), even(directions, batch))


def full_precision(x: Tensor) -> Any:
    """Autocast switched off where it is on: sorted projections need their digits."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def apply(x: Tensor, y: Tensor, sets: Sets, slices: Slices, name: str) -> Tensor:
    """Values ``(B,)`` with gradients in ``x`` and ``y``."""
    if not torch.is_grad_enabled():
        x, y = x.detach(), y.detach()
    value, costs = _Sliced.apply(x, y, sets, slices)
    check_finite(name, sets, costs.sum() + value.double().sum())
    return value


class _Sliced(torch.autograd.Function):
    """Gradients are made on the way forward, where sorted projections are at hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, sets: Sets, slices: Slices) -> tuple[Tensor, Tensor]:
        need = ctx.needs_input_grad[:2]
        means, features, pull = _features(sets, slices)
        share = slices.share
        if any(need) and share is None:  # it hangs on the costs: a first sweep for them alone
            share = _share(sets.sweep(slices.directions).costs, features, slices)
        swept = sets.sweep(slices.directions, share, *need)
        by_step = by_x = by_y = None
        if any(need) and features is not None:
            value, by_features = _value(swept.costs, features, slices)
            by_step, by_x, by_y = pull(by_features)
        else:
            value = slices.value(swept.costs, features)
        if swept.x is not None:
            add_gradient(swept.x, sets.x, sets.a, means[0], by_step, by_x)
        if swept.y is not None:
            by_step = None if by_step is None else -by_step
            add_gradient(swept.y, sets.y, sets.b, means[1], by_step, by_y)
        ctx.save_for_backward(swept.x, swept.y)
        ctx.points = x, y  # not saved: they may change now, the gradient is made
        costs = swept.costs
        ctx.mark_non_differentiable(costs)
        return value.to(x.dtype), costs

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        # multiplying by one would copy all points; but a gradient that is asked for again must be kept
        alone = grad.numel() == 1 and grad.device.type == "cpu" and not _kept()
        plain = alone and grad.item() == 1
        scale = grad[:, None, None]
        found = [z if z is None or plain else z * scale for z in (x, y)]
        if torch.is_grad_enabled():  # a gradient that hung on nothing would pass for a constant
            found = [None if z is None else _Once.apply(z, grad, *ctx.points) for z in found]
        return *found, None, None


def _kept() -> bool:
    """Whether the running backward pass keeps its graph; assumed where torch does not tell."""
    return getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()


class _Once(torch.autograd.Function):
    """A gradient that hangs on the points, in a way that is not known."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, *_: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("sliced distances have no second derivatives")


def _features(sets: Sets, slices: Slices) -> tuple[tuple[Tensor, ...], Tensor | None, Pull | None]:
    """Means of both sets, the features, and how gradients in these come to the moments."""
    if slices.features is None:
        return (sets.x[:, 0], sets.y[:, 0]), None, None
    mean_x, cov_x = moments(sets.x, sets.a, slices.order > 1)
    mean_y, cov_y = moments(sets.y, sets.b, slices.order > 1)
    known = Moments(mean_x - mean_y, cov_x, cov_y, sets.x.shape[1])
    return (mean_x, mean_y), *slices.features(known)


def _value(costs: Tensor, features: Tensor, slices: Slices) -> tuple[Tensor, Tensor]:
    """Values ``(B,)`` and their derivatives in the features."""
    if slices.pull is not None:
        return slices.value(costs, features), torch.full_like(features, slices.pull)
    with torch.enable_grad():
        leaf = features.requires_grad_()
        value = slices.value(costs, leaf)
    return value.detach(), torch.autograd.grad(value, leaf, torch.ones_like(value))[0]


def _share(costs: Tensor, features: Tensor | None, slices: Slices) -> Tensor:
    """Derivative of the value in the costs ``(B, L)``."""
    leaf = costs.requires_grad_()
    with torch.enable_grad():
        total = slices.value(leaf, None if features is None else features.detach()).sum()
    return torch.autograd.grad(total, leaf)[0].to(slices.directions.dtype)
