"""The energy-based sliced Wasserstein distance."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genflow.checks import one_of, positive
from genflow.directions import Auto, Directions
from genflow.distance.sliced.base import Sliced, Slices, apply
from genflow.distance.sliced.checks import check_options
from genflow.distance.sliced.sweep import Sets


@dataclass(frozen=True)
class EnergySliced(Sliced):
    r"""Projected distances weighted by how large they are (Nguyen & Ho 2023, "Energy-Based Sliced
    Wasserstein Distance"), by importance sampling from uniform directions.

    Directions count in proportion to ``f(W)``: ``"exponential"`` is :math:`e^{W / \mathrm{scale}}`,
    which hangs on the units of the points; ``"power"`` is :math:`W^{\mathrm{scale}}`, which does not.
    Another divergence than the sliced Wasserstein distance, and no estimate of it: at least as large as
    plain Monte Carlo on the same directions. Consistent, not unbiased.

    Args:
        projections: how many directions.
        p: order, at least 1.
        energy: ``"exponential"`` or ``"power"``.
        scale: of the energy, see above.
        through: let gradients run through the weights, instead of holding them fixed.
        directions: how they are drawn.
        root: give the ``p``-th root.
        chunk: directions handled at a time; ``None`` bounds their memory to some 32 MB.

    Raises:
        ValueError: for arguments out of range.
    """

    projections: int = 100
    p: float = 2.0
    energy: str = "exponential"
    scale: float = 1.0
    through: bool = False
    directions: Directions = field(default_factory=Auto)
    root: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_options(self)
        one_of(self, ("exponential", "power"), energy=self.energy)
        positive(self, scale=self.scale)

    def _value(self, x: Tensor, y: Tensor, sets: Sets, generator: torch.Generator | None) -> Tensor:
        directions = self.directions.sample(self.projections, x.shape[-1], generator, x)
        return apply(x, y, sets, Slices(directions, self._weighted), type(self).__name__)

    def _weighted(self, costs: Tensor, features: Tensor | None) -> Tensor:
        weighed = costs if self.through else costs.detach()
        if self.energy == "exponential":
            energy = weighed / self.scale
        else:  # equal weights where all distances are zero
            energy = self.scale * weighed.clamp_min(torch.finfo(costs.dtype).tiny).log()
        return (torch.softmax(energy, 1) * costs).sum(1)
