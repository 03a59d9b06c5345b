"""Targets: what a learner regresses on, each a closed form of one :class:`PathSample`."""

from genflow.target.fields import Denoised, Drift, Noise, Rate, Score, Target, Velocity

__all__ = ["Denoised", "Drift", "Noise", "Rate", "Score", "Target", "Velocity"]
