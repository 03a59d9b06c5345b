"""The identity and standardisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.checks import one_of
from genflow.tensors import as_shape
from genflow.transform.base import Transform


class Identity(Transform):
    """Leaves data as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, z: Tensor) -> Tensor:
        return z

    def log_abs_det(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))


class Standardise(Transform):
    """Subtract the mean and divide by the standard deviation of the training data.

    Args:
        dim: event shape, ``2`` or ``[1, 8, 8]``.
        per: ``"feature"`` (each coordinate on its own; constant ones keep their scale) or ``"all"``
            (one mean and one deviation, the choice for images).
    """

    def __init__(self, dim: int | Sequence[int], per: str = "feature") -> None:
        super().__init__()
        one_of(self, ("feature", "all"), per=per)
        self.dim, self.per = dim, per
        shape = as_shape(dim)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @torch.no_grad()
    def prepare(self, x: Tensor) -> Standardise:
        if x.shape[1:] != self.mean.shape:
            raise ValueError(
                f"Standardise(dim={self.dim}) got data of event shape {tuple(x.shape[1:])}; set "
                f"dim to {list(x.shape[1:])}"
            )
        data = x.double()
        if self.per == "all":
            mean, std = data.mean(), data.std(correction=0)
        else:
            mean, std = data.mean(0), data.std(0, correction=0)
        # rounding leaves a constant coordinate with a deviation near 1e-16, not 0
        constant = std <= 1e-10 * mean.abs().clamp_min(1e-10)
        self.mean.copy_(mean.expand_as(self.mean))
        self.std.copy_(torch.where(constant, 1.0, std).expand_as(self.std))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean

    def log_abs_det(self, x: Tensor) -> Tensor:
        return (-self.std.log().sum()).expand(len(x))
