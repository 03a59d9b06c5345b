"""Losses: functions of a learner and one batch per marginal; import them into any project.

>>> from genflow.loss import Matching
>>> loss = Matching()(net, x0, x1)  # doctest: +SKIP
"""

from genflow.loss.base import Loss
from genflow.loss.bridge import BridgeMatching
from genflow.loss.combine import On, Sum
from genflow.loss.importance import importance_density
from genflow.loss.light_bridge import LightBridgeKL
from genflow.loss.matching import Matching, Regression
from genflow.loss.sample_distance import SampleDistance

__all__ = [
    "BridgeMatching", "LightBridgeKL", "Loss", "Matching", "On", "Regression", "SampleDistance",
    "Sum", "importance_density",
]  # fmt: skip
