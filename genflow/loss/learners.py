"""Whether a process is sampled by what a matching loss has it learn."""

from __future__ import annotations

import math
from collections.abc import Mapping

from genflow.interpolant import BrownianBridge, Interpolant
from genflow.interpolant.base import same_path
from genflow.loss.base import Learner
from genflow.process import SDE, LightBridge, Process, ReversedGeometric, StochasticInterpolant
from genflow.target import Denoised, Drift, Hyvarinen, Noise, Rate, Score, Target, Velocity

KINDS = {"velocity": Velocity, "rate": Rate, "noise": Noise, "score": Score, "denoised": Denoised}
"""The targets that a stochastic interpolant reads by name."""


def check_learner(
    learner: Learner, interpolant: Interpolant, target: Target | Mapping[str, Target] | None
) -> None:
    """Refuse a process that the target on this path does not teach what it is sampled by.

    Raises:
        ValueError: with what is allowed.
    """
    own = getattr(learner, "interpolant", None)
    if isinstance(learner, Process) and own is not None and not same_path(own, interpolant):
        raise ValueError(
            f"the process samples {own}, but the loss trains {interpolant}; give both the same "
            "interpolant"
        )
    if isinstance(learner, ReversedGeometric) and target is not None:
        want = Noise if learner.predicts == "noise" else Hyvarinen
        if type(target) is not want:
            raise ValueError(
                f"a ReversedGeometric(predicts={learner.predicts!r}) learns {want.__name__}(), got "
                f"target {target}; use target={want.__name__.lower()}, or another predicts"
            )
    if isinstance(learner, StochasticInterpolant):
        _check_fields(target)
    if isinstance(learner, LightBridge):
        _check_bridge(learner.sigma, interpolant, target)
    if not isinstance(learner, SDE) or _fits(learner.sigma, interpolant, target):
        return
    want = "target=velocity" if learner.sigma == 0 else f"target=drift with sigma={learner.sigma}"
    raise ValueError(
        f"an SDE(sigma={learner.sigma}) is sampled by its drift, which target {target} on "
        f"{interpolant} does not learn: use {want}, or another sigma of the process"
    )


def _check_fields(target: Target | Mapping[str, Target]) -> None:
    """A stochastic interpolant reads its fields by name."""
    named = isinstance(target, Mapping)
    if not named or any(type(v) is not KINDS.get(k) for k, v in target.items()):
        raise ValueError(
            f"a StochasticInterpolant learns fields by name, got target {target}; use "
            "target=velocity_noise, or a dict such as {'velocity': Velocity(), 'noise': Noise()}"
        )


def _check_bridge(
    sigma: float, interpolant: Interpolant, target: Target | Mapping[str, Target]
) -> None:
    """A light bridge is that of one diffusion, along whose bridges alone its drift is learned."""
    parts = (interpolant, BrownianBridge), (target, Drift)
    if not all(isinstance(v, kind) and math.isclose(v.sigma, sigma) for v, kind in parts):
        raise ValueError(
            f"a LightBridge of epsilon={sigma**2:g} is matched with BrownianBridge(sigma) and "
            f"Drift(sigma) of sigma={sigma:g}, the root of epsilon, got {interpolant} and {target}"
        )


def _fits(sigma: float, interpolant: Interpolant, target: Target | Mapping[str, Target]) -> bool:
    if isinstance(target, Drift):
        return target.sigma == sigma
    if isinstance(target, Rate):  # without width it is the velocity
        return sigma == 0 and not getattr(interpolant, "stochastic", True)
    known = isinstance(target, (Denoised, Noise, Score, Mapping))
    return not known and (sigma == 0 or not isinstance(target, Velocity))
