"""Models: what can be sampled from."""

from genflow.model.base import Model
from genflow.model.generator import Generator
from genflow.model.tilt import Tilt

__all__ = ["Generator", "Model", "Tilt"]
