"""Transforms: invertible maps between data units and the model's own space."""

from genflow.transform.affine import Identity, Standardise
from genflow.transform.base import Transform
from genflow.transform.positive import Positive

__all__ = ["Identity", "Positive", "Standardise", "Transform"]
