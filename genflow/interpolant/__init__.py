"""Interpolants: how a path runs between coupled endpoints."""

from genflow.interpolant.affine import (
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Trigonometric,
    VariancePreserving,
)
from genflow.interpolant.base import Affine, Coefficients, Interpolant, PathSample
from genflow.interpolant.chain import Chain
from genflow.interpolant.gamma import (
    Brownian,
    Constant,
    Gamma,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Zero,
)
from genflow.interpolant.geometric import GeometricBrownian, GeometricSample
from genflow.interpolant.learned import LearnedAffine
from genflow.interpolant.onesided import Mirror, OneSided
from genflow.interpolant.verify import verify
from genflow.interpolant.volatility import ConstantVolatility, GeometricVolatility, Volatility

__all__ = [
    "Affine", "Brownian", "BrownianBridge", "Chain", "Coefficients", "Constant", "ConstantVolatility",
    "EncoderDecoder", "Gamma", "GeometricBrownian", "GeometricSample", "GeometricVolatility",
    "Interpolant", "LearnedAffine", "Linear", "Mirror", "OneSided", "PathSample", "Quadratic",
    "SigmaDifference", "SinSquared", "Trigonometric", "VariancePreserving", "Volatility", "Zero",
    "verify",
]  # fmt: skip
