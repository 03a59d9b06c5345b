"""Models: what can be sampled from."""

from genflow.model.base import Model
from genflow.model.generator import Generator
from genflow.model.particles import Particles
from genflow.model.push_forward import PushForward
from genflow.model.tilt import Tilt

__all__ = ["Generator", "Model", "Particles", "PushForward", "Tilt"]
