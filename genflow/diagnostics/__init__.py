"""Numbers that tell how a model transports, and what a coupling does to the data."""

from genflow.diagnostics.bits import bits_per_dim, dequantise
from genflow.diagnostics.classes import ClassAccuracy, class_accuracy
from genflow.diagnostics.paths import PathReport, energy_excess, path_energy, path_report
from genflow.diagnostics.tilt import TiltReport, tilt_report

__all__ = [
    "ClassAccuracy", "PathReport", "TiltReport", "bits_per_dim", "class_accuracy", "dequantise",
    "energy_excess", "path_energy", "path_report", "tilt_report",
]  # fmt: skip
