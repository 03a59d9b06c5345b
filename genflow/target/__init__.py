"""Targets: what a learner regresses on, each a closed form of one :class:`PathSample`; conversions
between the fields that are learned."""

from genflow.target.convert import convert
from genflow.target.fields import Denoised, Drift, Noise, Rate, Score, Target, Velocity

__all__ = ["Denoised", "Drift", "Noise", "Rate", "Score", "Target", "Velocity", "convert"]
