"""The fixed-point iteration: no learning rate, and never uphill."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genflow.process.light.state import TINY, Sides, State, match_moments, moments

LEAST = 1e-3
"""Smallest part of a step that is tried."""


class Look:
    """A state with its objective, and the shares that both sides give to the components."""

    def __init__(self, state: State, sides: Sides, epsilon: float | None = None) -> None:
        self.state = state
        potential = state.potential(sides, epsilon)
        zero, one = sides.x0.new_zeros(()), sides.x0.new_ones(())
        start, stop = potential.logits(zero, sides.x0), potential.logits(one, sides.x1)
        c, v = start.logsumexp(-1, keepdim=True), stop.logsumexp(-1, keepdim=True)
        self.start, self.stop = (start - c).exp_(), (stop - v).exp_()
        log_c = c.mean() + sides.x0.square().sum(-1).mean() / (2 * potential.epsilon)
        square = sides.x1.square().sum(-1).mean() / potential.epsilon
        norm = sides.x1.shape[1] * math.log(2 * math.pi * potential.epsilon)
        self.objective = float(log_c - v.mean() + (norm + square) / 2)


def update(look: Look, sides: Sides) -> State:
    """Where the moments of both sides would have the components."""
    mass0, mean0, spread0 = moments(sides.x0, look.start, sides)
    mass1, mean1, spread1 = moments(sides.x1, look.stop, sides)
    location, scale = match_moments(mean0, spread0, mean1, spread1, sides)
    log_weight = look.state.log_weight + mass1.clamp_min(TINY).log() - mass0.clamp_min(TINY).log()
    # a component that one side has forgotten has no moments there: it stays
    alive = (mass0 * len(sides.x0) > 1e-3) & (mass1 * len(sides.x1) > 1e-3)
    fresh = (log_weight, location, scale)
    return State(*(torch.where(_over(alive, a), a, b) for a, b in zip(fresh, look.state)))


def revive(look: Look, sides: Sides) -> State | None:
    """Components that hold less than one row become halves of those that hold most; ``None`` where
    there are none."""
    mass = look.stop.mean(0)
    dead = (mass * len(sides.x1) < 1).nonzero()[:, 0].tolist()
    if not dead:
        return None
    state = State(*(v.clone() for v in look.state))
    order = mass.argsort(descending=True).tolist()
    for k, twin in zip(dead, order):
        if mass[twin] * len(sides.x1) < 4:
            break
        state.scale[k] = state.scale[twin]
        width = _width(state.scale[twin], sides)
        state.location[k] = state.location[twin] + width / 2
        state.location[twin] -= width / 2
        state.log_weight[twin] -= math.log(2)
        state.log_weight[k] = state.log_weight[twin]
    return state


def _width(scale: Tensor, sides: Sides) -> Tensor:
    """Half a deviation along the widest axis."""
    if scale.ndim == 2:
        values, vectors = torch.linalg.eigh(scale)
        return (sides.epsilon * values[-1]).sqrt() * vectors[:, -1]
    along = torch.zeros(sides.x1.shape[1]).to(scale)
    place = int(scale.argmax()) if len(scale) > 1 else 0
    along[place] = (sides.epsilon * scale.max()).sqrt()
    return along


def iterate(
    state: State,
    sides: Sides,
    iterations: int,
    tolerance: float,
    tell: Callable[[Look, float], None],
) -> tuple[State, bool]:
    """Iterate until the objective falls by less than ``tolerance`` nats.

    A step is taken only as far as the full-batch objective falls: the bare iteration is not monotone.

    Args:
        state: where to begin.
        sides: the data.
        iterations: most iterations.
        tolerance: in nats.
        tell: called after each with the look at it and the part of the step that was taken.

    Returns:
        The state, and whether the iteration had converged.
    """
    look, step = Look(state, sides), 1.0
    for _ in range(iterations):
        reborn = revive(look, sides)
        if reborn is not None:
            tried = Look(reborn, sides)
            look = tried if tried.objective < look.objective else look
        aim, before = update(look, sides), look.objective
        while True:
            tried = Look(look.state.towards(aim, step), sides)
            if tried.objective < before:
                look, taken = tried, step
                step = min(1.0, 2 * step)
                break
            step /= 2
            if step < LEAST:
                return look.state, True
        tell(look, taken)
        if before - look.objective < tolerance:
            return look.state, True
    return look.state, False


def _over(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.ndim - 1))
