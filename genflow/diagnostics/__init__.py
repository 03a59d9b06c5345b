"""Numbers that tell how a model transports, and what a coupling does to the data."""

from genflow.diagnostics.bits import bits_per_dim, dequantise
from genflow.diagnostics.classes import ClassAccuracy, class_accuracy
from genflow.diagnostics.classifier import Classifier, cached_classifier, fit_classifier
from genflow.diagnostics.image_quality import (
    Manifolds,
    Neighbours,
    QualityReport,
    frechet_distance,
    image_quality,
    kernel_distance,
    manifolds,
    nearest,
)
from genflow.diagnostics.paths import PathReport, energy_excess, path_energy, path_report
from genflow.diagnostics.tilt import TiltReport, tilt_report

__all__ = [
    "ClassAccuracy", "Classifier", "Manifolds", "Neighbours", "PathReport", "QualityReport",
    "TiltReport", "bits_per_dim", "cached_classifier", "class_accuracy", "dequantise",
    "energy_excess", "fit_classifier", "frechet_distance", "image_quality", "kernel_distance",
    "manifolds", "nearest", "path_energy", "path_report", "tilt_report",
]  # fmt: skip
