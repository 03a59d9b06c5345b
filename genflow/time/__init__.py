"""Times: where on a path the loss looks, and with which weight."""

from genflow.time.laws import Beta, LogitNormal, Stratified, Time, Uniform
from genflow.time.weighted import Importance, Weighted

__all__ = ["Beta", "Importance", "LogitNormal", "Stratified", "Time", "Uniform", "Weighted"]
