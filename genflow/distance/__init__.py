"""Distances between samples: metric, loss and stopping rule in one."""

from genflow.distance.base import Distance
from genflow.distance.bures import BuresWasserstein
from genflow.distance.kernel import MMD, EnergyDistance
from genflow.distance.sliced import EnergySliced, Estimate, MaxSliced, SlicedWasserstein
from genflow.distance.wasserstein import Wasserstein

__all__ = [
    "MMD", "BuresWasserstein", "Distance", "EnergyDistance", "EnergySliced", "Estimate", "MaxSliced",
    "SlicedWasserstein", "Wasserstein",
]  # fmt: skip
