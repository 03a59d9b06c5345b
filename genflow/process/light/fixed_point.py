"""The fixed-point iteration: no learning rate, and never uphill."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genflow.process.light.state import TINY, Sides, State, match_moments, moments, over, project, times

LEAST, SURE = 1e-3, 0.25
"""Smallest part of a step that is tried, and that by which a small gain says that there is no more."""


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


class Step:
    r"""The way from a state to where the moments of both sides would have the components.

    Part of a way is taken in each component's own frame, the centre :math:`m` of its share of the
    start: by its weight there, :math:`\log\alpha + (m^\top Sm + 2r^\top m)/2\varepsilon`, the place
    :math:`r + Sm` that it carries the centre to, and its scale. In :math:`\alpha` and :math:`r`
    themselves half a change of :math:`S` would move what the component carries.
    """

    def __init__(self, look: Look, sides: Sides) -> None:
        mass0, self.centre, spread0 = moments(sides.x0, look.start, sides)
        mass1, mean1, spread1 = moments(sides.x1, look.stop, sides)
        _, scale = match_moments(self.centre, spread0, mean1, spread1, sides)
        self.sides, state = sides, look.state
        place = state.location + times(state.scale, self.centre)
        self.start = State(
            state.log_weight + self._lift(state.location, state.scale), place, state.scale
        )
        gain = mass1.clamp_min(TINY).log() - mass0.clamp_min(TINY).log()
        # a component that one side has forgotten has no moments there: it stays
        alive = (mass0 * len(sides.x0) > 1e-3) & (mass1 * len(sides.x1) > 1e-3)
        aim = State(self.start.log_weight + gain, mean1, scale)
        self.aim = State(*(torch.where(over(alive, a), a, b) for a, b in zip(aim, self.start)))

    def part(self, share: float) -> State:
        """The state at a part of the way, from 0 to 1."""
        weight, place = (torch.lerp(a, b, share) for a, b in zip(self.start[:2], self.aim[:2]))
        here, there = self.start.scale, self.aim.scale
        if here.ndim == 2:
            scale = torch.lerp(here.log(), there.log(), share).exp()
        else:
            scale = project(torch.lerp(here, there, share), self.sides)
        location = place - times(scale, self.centre)
        return State(weight - self._lift(location, scale), location, scale)

    def _lift(self, location: Tensor, scale: Tensor) -> Tensor:
        """What a component's weight gains at its centre."""
        along = times(scale, self.centre) + 2 * location
        return (self.centre * along).sum(1) / (2 * self.sides.epsilon)


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
        The state, and whether the iteration had converged: a good part of a step changes nothing.
    """
    look, share = Look(state, sides), 1.0
    for _ in range(iterations):
        reborn = revive(look, sides)
        if reborn is not None:
            tried = Look(reborn, sides)
            look = tried if tried.objective < look.objective else look
        step, before, flat = Step(look, sides), look.objective, False
        while True:
            tried = Look(step.part(share), sides)
            if tried.objective < before:
                break
            flat = flat or (share >= SURE and tried.objective - before < tolerance)
            share /= 2
            if share < LEAST:
                return look.state, flat
        look, taken, share = tried, share, min(1.0, 2 * share)
        tell(look, taken)
        if before - look.objective < tolerance:
            return look.state, taken >= SURE
    return look.state, False
