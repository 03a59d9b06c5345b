"""Losses: functions of a learner and one batch per marginal; import them into any project.

>>> from genflow.loss import Matching
>>> loss = Matching()(net, x0, x1)  # doctest: +SKIP
"""

from genflow.loss.base import Loss
from genflow.loss.combine import On, Sum
from genflow.loss.matching import Matching, Regression

__all__ = ["Loss", "Matching", "On", "Regression", "Sum"]
