"""Processes: a drift and an applied diffusion."""

from genflow.process.base import Process
from genflow.process.sde import SDE

__all__ = ["SDE", "Process"]
