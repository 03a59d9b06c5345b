"""Models: something to sample from."""

from genflow.model.base import Model
from genflow.model.generator import Generator

__all__ = ["Generator", "Model"]
