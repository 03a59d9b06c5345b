"""Where on a path the loss varies most: the law of times that estimates it best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from genflow.checks import count
from genflow.coupling.sides import Conditions
from genflow.loss.base import Learner
from genflow.loss.matching import Matching
from genflow.tensors import mean_event
from genflow.time import Stratified, Time, Weighted

LEAST = 0.1
"""Part of the mean density that every cell keeps: a loss measured as small may not stay so."""


@torch.no_grad()
def importance_density(
    loss: Matching,
    learner: Learner,
    *xs: Tensor,
    cond: Conditions | None = None,
    cells: int = 20,
    draws: int = 10,
    generator: torch.Generator | None = None,
) -> list[float]:
    r"""Measure the loss over time and propose the density of times for ``Importance``.

    >>> law = Importance(importance_density(loss, net, x0, x1), margin=1e-3)  # doctest: +SKIP
    >>> loss = replace(loss, time=law)  # or Weighted(law, ...)  # doctest: +SKIP

    The density is the root of the second moment of the loss in each cell of ``[margin, 1 - margin]``,
    which gives the estimate of the integral over time the least variance (Nichol & Dhariwal 2021 draw
    diffusion steps so); one tenth of the mean is the least a cell gets. The weight of a ``Weighted``
    law counts as part of the loss, other laws only by their margin.

    Args:
        loss: whose draws are measured.
        learner: at its present state, the moments change as it learns.
        xs, cond: batches as for the loss.
        cells: number of equal cells.
        draws: how often the batches are drawn from.
        generator: where all draws come from.

    Returns:
        One number a cell, of mean one.

    Raises:
        ValueError: if there are fewer than one cell or draw, or the loss is not finite in a cell, or
            some cell was never looked at.
    """
    count(loss, cells=cells, draws=draws)
    margin = getattr(loss.time, "margin", 0.0)
    loss = replace(loss, time=_even(loss.time, margin))
    total = visits = torch.zeros(cells, dtype=torch.float64)
    for _ in range(draws):
        t, value = _rows(loss, learner, *xs, cond=cond, generator=generator)
        place = ((t.double() - margin) / (1 - 2 * margin) * cells).long().clamp(0, cells - 1).cpu()
        total = total.index_add(0, place, value.double().cpu() ** 2)
        visits = visits.index_add(0, place, torch.ones(len(place), dtype=torch.float64))
    if not bool((visits > 0).all()):
        raise ValueError(
            f"importance_density: {int((visits == 0).sum())} of {cells} cells were never drawn; give "
            "larger batches, more draws or fewer cells"
        )
    density = (total / visits).sqrt()
    if not bool(density.isfinite().all()):
        raise ValueError("importance_density: the loss is not finite; give the law of times a margin")
    if not bool(density.any()):
        return [1.0] * cells
    density = (density / density.mean()).clamp_min(LEAST)
    return (density / density.mean()).tolist()


def _even(law: Time, margin: float) -> Time:
    """All times alike, with the weight that belongs to the loss."""
    return replace(law, law=_even(law.law, margin)) if isinstance(law, Weighted) else Stratified(margin)


def _rows(
    loss: Matching,
    learner: Learner,
    *xs: Tensor,
    cond: Conditions | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Times and the loss at each, ``(B,)`` both."""
    draw = loss.draw(*xs, cond=cond, generator=generator)
    place = (draw.sample.t, draw.sample.x)
    output = learner(*place) if draw.cond is None else learner(*place, draw.cond)
    target = draw.target
    if not isinstance(target, Mapping):
        output, target = {"": output}, {"": target}
    share = loss.field_weights or {}
    errors = [
        share.get(name, 1.0) * mean_event((output[name] - value) ** 2) for name, value in target.items()
    ]
    return draw.sample.t, draw.weight * torch.stack(errors).sum(0)
