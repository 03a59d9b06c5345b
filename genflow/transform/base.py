"""What a transform is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Transform(nn.Module, ABC):
    """An invertible map from data units to the model's space; its numbers are saved buffers."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Data units to model space, ``(B, *d)`` to the same shape."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Model space to data units."""

    @abstractmethod
    def log_abs_det(self, x: Tensor) -> Tensor:
        """Log absolute determinant of the Jacobian of :meth:`forward` at ``x``: ``(B,)``."""

    def prepare(self, x: Tensor) -> Transform:
        """Fit what depends on data, in place."""
        return self
