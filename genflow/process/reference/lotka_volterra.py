"""Predators and prey."""

from __future__ import annotations

import torch
from torch import Tensor

from genflow.process.reference.base import Reference, Values, stack_square


class LotkaVolterra(Reference):
    r""":math:`\dot x = \alpha x - \beta xy,\quad \dot y = \delta xy - \gamma y`, all rates positive.

    The published convention of these names (Shen, Berlinghieri & Broderick 2024): ``gamma`` is the
    death rate of the predators, ``delta`` their growth by prey.

    Args:
        alpha, beta, gamma, delta: where the rates start, per unit of time.
    """

    positive = ("alpha", "beta", "gamma", "delta")

    def __init__(
        self, alpha: float = 0.01, beta: float = 0.01, gamma: float = 0.01, delta: float = 0.01
    ) -> None:
        super().__init__(2, alpha=alpha, beta=beta, gamma=gamma, delta=delta)
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        prey, predators = x.unbind(-1)
        alpha, beta, gamma, delta = (values[name].to(x) for name in self.positive)
        # in this order the simulated snapshots are those of the published data, bit for bit
        grown = alpha * prey - beta * prey * predators
        return torch.stack([grown, delta * prey * predators - gamma * predators], -1)

    def features(self, t: Tensor | float, x: Tensor) -> Tensor:
        prey, predators = x.unbind(-1)
        none = torch.zeros_like(prey)
        met = prey * predators
        rows = [[prey, -met, none, none], [none, none, -predators, met]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        values = self.values() if values is None else values
        prey, predators = x.unbind(-1)
        alpha, beta, gamma, delta = (values[name].to(x) for name in self.positive)
        return stack_square(
            [[alpha - beta * predators, -beta * prey], [delta * predators, delta * prey - gamma]]
        )
