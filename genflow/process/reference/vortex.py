"""A vortex in the plane."""

from __future__ import annotations

import torch
from torch import Tensor

from genflow.process.reference.base import Reference, Values


class Vortex(Reference):
    r"""Elliptic rotation about a centre, and a part that spreads or gathers:

    .. math:: f(x) = h(x)\,s\,(y\,e^{-\ell},\,-x) + c\,(x, y),\qquad h = \frac{1-e^{-q}}{q},\quad
        q = \frac{x^2+y^2}{\text{core}^2}

    with coordinates :math:`(x, y)` from the centre. Without a core, :math:`h = 1` and the rotation is
    that of a solid body; with one it decays outside, as that of a Lamb-Oseen vortex does.

    Args:
        strength: where :math:`s` starts, clockwise, per unit of time.
        centre: where the centre starts.
        log_aspect: where :math:`\ell` starts; 0 is a circle.
        divergence: where :math:`c` starts.
        core: where the radius of the core starts, positive; ``None`` for none.
    """

    positive = ("core",)

    def __init__(
        self,
        strength: float = 0.0,
        centre: tuple[float, float] = (0.0, 0.0),
        log_aspect: float = 0.0,
        divergence: float = 0.0,
        core: float | None = None,
    ) -> None:
        start = {} if core is None else {"core": core}
        super().__init__(
            2, strength=strength, centre=centre, log_aspect=log_aspect, divergence=divergence, **start
        )
        if self.raw["centre"].shape != (2,):
            raise ValueError(f"Vortex(centre={centre!r}): centre must be two numbers")
        self.strength, self.centre, self.core = strength, list(centre), core
        self.log_aspect, self.divergence = log_aspect, divergence

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        v = {name: value.to(x) for name, value in values.items()}
        away = x - v["centre"]
        first, second = away.unbind(-1)
        turn = torch.stack([second * torch.exp(-v["log_aspect"]), -first], -1)
        rate = v["strength"]
        if "core" in v:
            q = (away.square().sum(-1) / v["core"] ** 2).clamp_min(1e-8)
            rate = rate * -torch.expm1(-q) / q
        divergence = v["divergence"]
        return rate[..., None] * turn + divergence[..., None] * away
