"""Directions on which sliced distances look at a sample."""

from genflow.directions.base import Directions, normalised
from genflow.directions.plain import Fixed, Isotropic, Orthogonal, rotation
from genflow.directions.quasi import Auto, Grid, Sobol, Spiral

__all__ = [
    "Auto", "Directions", "Fixed", "Grid", "Isotropic", "Orthogonal", "Sobol", "Spiral", "normalised",
    "rotation",
]  # fmt: skip
