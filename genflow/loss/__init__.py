"""Losses: functions of a learner and one batch per marginal; import them into any project.

>>> from genflow.loss import Matching
>>> loss = Matching()(net, x0, x1)  # doctest: +SKIP
"""

from genflow.loss.base import Loss
from genflow.loss.bridge import BridgeMatching
from genflow.loss.combine import On, Sum
from genflow.loss.direct import Direct
from genflow.loss.gradient_update import Gradient
from genflow.loss.hyvarinen import ExplicitScoreMatching, ImplicitScoreMatching
from genflow.loss.importance import importance_density
from genflow.loss.ipf import IPF
from genflow.loss.light_bridge import LightBridgeKL
from genflow.loss.matching import Matching, Regression
from genflow.loss.projection import Projection
from genflow.loss.refinement import ReferenceRefinement
from genflow.loss.rounds import heldout_w1
from genflow.loss.sample_distance import SampleDistance
from genflow.loss.static_bridge import StaticBridge
from genflow.loss.updates import LeastSquares, Update

__all__ = [
    "IPF", "BridgeMatching", "Direct", "ExplicitScoreMatching", "Gradient", "ImplicitScoreMatching",
    "LeastSquares", "LightBridgeKL", "Loss", "Matching", "On", "Projection", "ReferenceRefinement",
    "Regression", "SampleDistance", "StaticBridge", "Sum", "Update", "heldout_w1",
    "importance_density",
]  # fmt: skip
