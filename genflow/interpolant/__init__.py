"""Interpolants: how a path runs between coupled endpoints."""

from genflow.interpolant.affine import (
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Trigonometric,
    VariancePreserving,
)
from genflow.interpolant.base import Affine, Coefficients, Interpolant, PathSample
from genflow.interpolant.gamma import (
    Brownian,
    Constant,
    Gamma,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Zero,
)

__all__ = [
    "Affine", "Brownian", "BrownianBridge", "Coefficients", "Constant", "EncoderDecoder", "Gamma",
    "Interpolant", "Linear", "PathSample", "Quadratic", "SigmaDifference", "SinSquared",
    "Trigonometric", "VariancePreserving", "Zero",
]  # fmt: skip
