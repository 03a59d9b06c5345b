"""Multi-marginal Schrödinger bridges."""

from genflow.process.multimarginal.bridge import MultiMarginalBridge

__all__ = ["MultiMarginalBridge"]
