"""Sliced distances: averages and maxima over projections to the line."""

from genflow.distance.sliced.energy import EnergySliced
from genflow.distance.sliced.estimator import Estimate, SlicedWasserstein
from genflow.distance.sliced.largest import MaxSliced

__all__ = ["EnergySliced", "Estimate", "MaxSliced", "SlicedWasserstein"]
