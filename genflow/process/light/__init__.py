"""Light Schrödinger bridges."""

from genflow.process.light.bridge import LightBridge
from genflow.process.light.law import Transition

__all__ = ["LightBridge", "Transition"]
