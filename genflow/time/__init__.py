"""Times: where on a path the loss looks, and with which weight."""

from genflow.time.laws import Beta, LogitNormal, Stratified, Time, Uniform

__all__ = ["Beta", "LogitNormal", "Stratified", "Time", "Uniform"]
