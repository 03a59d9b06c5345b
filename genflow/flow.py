"""Gradient flows: points that move downhill in a distance. Plain torch, one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count, non_negative, positive
from genflow.tensors import check_marginals, expand


@dataclass(frozen=True)
class Flow:
    """What :func:`gradient_flow` did.

    Attributes:
        points: where the points ended, ``(n, *d)``.
        trajectory: the points after each of ``steps``, ``(K, n, *d)``; the first are the given ones.
        steps: how many steps each snapshot had made, ``K`` numbers from 0 to the last.
        values: the distance after 0, 1, 2, ... steps, ``(steps + 1,)`` in float64 on the CPU.
    """

    points: Tensor
    trajectory: Tensor
    steps: tuple[int, ...]
    values: Tensor


def gradient_flow(
    x: Tensor,
    y: Tensor,
    distance: Callable[..., Tensor],
    steps: int = 1000,
    lr: float = 0.01,
    *,
    momentum: float = 0.0,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    keep: int | Sequence[int] = 20,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Flow:
    r"""Move the points ``x`` by gradient descent so that ``distance(x, y)`` falls.

    A point of ``n`` has an ``n``-th of the mass and feels an ``n``-th of the gradient; here every
    gradient is divided by the mass of its point (multiplied by ``n``), as in the Wasserstein gradient
    flow of the distance, so that ``lr`` is a step *per point*, whatever their number. Two common
    settings:

    - the loss :math:`n\,SW_2` of the point-cloud flow of Nguyen & Ho (2023, "Sliced Wasserstein
      estimation with control variates"), ``SlicedWasserstein(root=True)`` with ``lr=0.01``: distant
      points move at one speed, about ``lr / sqrt(d)`` a step, and tremble by as much at the end;
    - :math:`SW_2^2`, ``SlicedWasserstein()``: each step goes about the fraction ``2 lr / d`` of the way
      that is left. Stable for ``lr < d``; ``lr = d / 2`` would be a single step for a translation.

    >>> flow = gradient_flow(x, y, SlicedWasserstein(), 500, 0.1)  # doctest: +SKIP

    Args:
        x: the points to move ``(n, *d)``; they are left as they are.
        y: where to ``(m, *d)``.
        distance: any :class:`~genflow.distance.Distance`, or ``(x, y) -> ()`` of points ``(n, d)``.
        steps: how many, at least 1.
        lr: step of plain gradient descent.
        momentum: of plain gradient descent.
        optimizer: makes another optimizer from parameters, such as ``partial(Adam, lr=0.05)``; ``lr``
            and ``momentum`` then have no effect.
        weights_x, weights_y: masses of the points ``(n,)``, ``(m,)``, for a distance that takes them;
            points without mass stay.
        keep: how many snapshots, evenly spaced (at least the first and the last), or after which steps.
        generator: where the distance draws from; the same state gives the same flow.
        progress: show a progress bar with the distance.

    Raises:
        TypeError, ValueError: for points that do not fit, or weights that the distance does not take.
        FloatingPointError: naming the step where the distance or the points are no longer finite.
    """
    check_marginals("gradient_flow", x, y)
    count("gradient_flow", steps=steps)
    kept = snapshots(steps, keep)
    options = _options(distance, {"weights_x": weights_x, "weights_y": weights_y}, generator)
    points = x.detach().clone().requires_grad_()
    target, mass = y.detach().flatten(1), _mass(x, weights_x)
    if optimizer is None:
        positive("gradient_flow", lr=lr)
        non_negative("gradient_flow", momentum=momentum)
        descent = torch.optim.SGD([points], lr=lr, momentum=momentum)
    else:
        descent = optimizer([points])
    trajectory, values = [points.detach().clone()], []
    for step in _counted(steps, progress, values):
        with torch.enable_grad():
            value = _measured(distance, points, target, options, step)
        values.append(float(value.detach()))
        (gradient,) = torch.autograd.grad(value, points)
        points.grad = torch.where(mass > 0, gradient / mass, 0.0)
        descent.step()
        if not bool(points.isfinite().all()):
            raise FloatingPointError(
                f"gradient_flow: points are not finite after step {step + 1}, before which the "
                f"distance was {values[-1]:g}; lower lr"
            )
        if step + 1 in kept:
            trajectory.append(points.detach().clone())
    with torch.no_grad():
        values.append(float(_measured(distance, points, target, options, steps)))
    path = torch.stack(trajectory)
    return Flow(points.detach(), path, kept, torch.tensor(values, dtype=torch.float64))


def snapshots(steps: int, keep: int | Sequence[int]) -> tuple[int, ...]:
    """Which of the states after ``0, ..., steps`` steps are kept, in order; both ends always.

    Raises:
        ValueError: for fewer than two, or steps outside.
    """
    if not isinstance(keep, Sequence):
        count("gradient_flow", 2, keep=keep)
        keep = [round(k * steps / (keep - 1)) for k in range(keep)]
    elif not all(type(k) is int and 0 <= k <= steps for k in keep):
        raise ValueError(
            f"gradient_flow(keep={list(keep)}): give how many snapshots, or whole numbers of steps "
            f"from 0 to {steps}"
        )
    return tuple(sorted({0, steps, *keep}))


def _options(
    distance: Callable[..., Tensor],
    weights: dict[str, Tensor | None],
    generator: torch.Generator | None,
) -> dict[str, object]:
    """The keywords that this distance takes."""
    known = inspect.signature(distance).parameters
    weights = {name: w for name, w in weights.items() if w is not None}
    if missing := sorted(weights.keys() - known.keys()):
        raise ValueError(
            f"gradient_flow: {missing[0]} was given but {distance} takes no weights; use "
            "SlicedWasserstein, or leave them out"
        )
    random = getattr(distance, "random", "generator" in known)
    return weights | ({"generator": generator} if random else {})


def _mass(x: Tensor, weights: Tensor | None) -> Tensor:
    """Masses of the points, of sum one, to divide gradients ``(n, *d)`` by."""
    if weights is None:
        return torch.full_like(x[:1], 1 / len(x))
    weights = torch.as_tensor(weights)
    if weights.shape != x.shape[:1]:
        raise ValueError(
            f"gradient_flow: weights_x has shape {tuple(weights.shape)}, expected ({len(x)},)"
        )
    weights = weights.detach().to(x)
    return expand(weights / weights.sum(), x)


def _measured(
    distance: Callable[..., Tensor],
    points: Tensor,
    target: Tensor,
    options: dict[str, object],
    step: int,
) -> Tensor:
    """The distance after so many steps.

    Raises:
        FloatingPointError: if it is not finite.
        ValueError: if it is no single number, or does not depend on the points.
    """
    remedy = "check the points, or lower lr"
    try:
        value = distance(points.flatten(1), target, **options)
    except FloatingPointError as error:
        raise FloatingPointError(f"gradient_flow: after {step} steps, {error}; {remedy}") from None
    if value.ndim != 0:
        raise ValueError(f"gradient_flow: {distance} gave {tuple(value.shape)}, expected one number")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(f"gradient_flow: {distance} does not depend on the points")
    if not bool(value.isfinite()):
        raise FloatingPointError(
            f"gradient_flow: the distance is {float(value.detach())} after {step} steps; {remedy}"
        )
    return value


def _counted(steps: int, progress: bool, values: list[float]) -> Iterator[int]:
    """``0, ..., steps - 1``, behind a bar that shows the last of ``values``."""
    if not progress:
        yield from range(steps)
        return
    from tqdm.auto import trange

    with trange(steps, desc="gradient flow", unit="step") as bar:
        for step in bar:
            yield step
            bar.set_postfix(distance=f"{values[-1]:.3g}", refresh=False)
