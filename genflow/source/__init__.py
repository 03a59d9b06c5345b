"""Sources: laws to sample from, as the start of a model or as data."""

from genflow.source.base import Source
from genflow.source.box import Box
from genflow.source.components import Components
from genflow.source.empirical import Empirical
from genflow.source.gaussian import Gaussian
from genflow.source.log_normal import LogNormal, LogNormalMixture
from genflow.source.mixture import GaussianMixture
from genflow.source.toys import Checkerboard, Circles, EightGaussians, Moons, Spiral, SwissRoll

__all__ = [
    "Box", "Checkerboard", "Circles", "Components", "EightGaussians", "Empirical", "Gaussian",
    "GaussianMixture", "LogNormal", "LogNormalMixture", "Moons", "Source", "Spiral", "SwissRoll",
]  # fmt: skip
