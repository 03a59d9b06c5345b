"""Targets: what a learner regresses on, each a closed form of one :class:`PathSample`; conversions
between the fields that are learned."""

from genflow.target.convert import convert
from genflow.target.fields import Denoised, Drift, Hyvarinen, Noise, Rate, Score, Target, Velocity

__all__ = [
    "Denoised", "Drift", "Hyvarinen", "Noise", "Rate", "Score", "Target", "Velocity", "convert",
]  # fmt: skip
