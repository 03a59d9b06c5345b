"""Control variates of sliced distances: functions of the direction with a mean that is known."""

from genflow.variate.base import Pull, Variate
from genflow.variate.coefficient import residuals, weights_of
from genflow.variate.gaussian import TwoLevel
from genflow.variate.harmonics import Harmonics
from genflow.variate.moments import Moments, add_gradient, moments
from genflow.variate.quadratic import Lower, Quadratic, Several, Upper

__all__ = [
    "Harmonics", "Lower", "Moments", "Pull", "Quadratic", "Several", "TwoLevel", "Upper", "Variate",
    "add_gradient", "moments", "residuals", "weights_of",
]  # fmt: skip
