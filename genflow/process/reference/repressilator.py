"""Genes that repress each other in a ring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.process.reference.base import Reference, Values

OFFSET = 1e-8
"""Added to concentrations before the power, whose gradient in ``n`` is not finite at 0."""


class Repressilator(Reference):
    r""":math:`\dot x_i = \beta/(1 + (x_{i-1}/k)^n) - \gamma x_i` in a ring (Elowitz & Leibler 2000).

    Noise may carry a state below 0: inside the Hill term it counts as 0, and is itself left alone.

    Args:
        beta: where the rate of production starts: one number, or one a gene, like all others here.
        n: exponent of the Hill term.
        k: concentration at which production is halved.
        gamma: rate of decay.
        genes: length of the ring, at least 2.
    """

    positive = ("beta", "n", "k", "gamma")

    def __init__(
        self,
        beta: float | Sequence[float] = 1.0,
        n: float | Sequence[float] = 1.0,
        k: float | Sequence[float] = 1.0,
        gamma: float | Sequence[float] = 0.1,
        genes: int = 3,
    ) -> None:
        super().__init__(genes, beta=beta, n=n, k=k, gamma=gamma)
        self.beta, self.n, self.k, self.gamma, self.genes = beta, n, k, gamma, genes
        for name, value in self.raw.items():
            if value.shape not in ((), (genes,)):
                raise ValueError(
                    f"Repressilator({name}={getattr(self, name)!r}): give one number, or {genes}, one "
                    f"a gene"
                )
        if genes < 2:
            raise ValueError(f"Repressilator(genes={genes}): a ring has at least 2 genes")

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        beta, n, k, gamma = (values[name].to(x) for name in self.positive)
        before = x.roll(1, -1).clamp_min(0) + OFFSET
        return beta / (1 + (before / k) ** n) - gamma * x

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        values = self.values() if values is None else values
        beta, n, k, gamma = (values[name].to(x) for name in self.positive)
        before = x.roll(1, -1)
        level = before.clamp_min(0) + OFFSET
        power = (level / k) ** n
        slope = -beta * n * power / (level * (1 + power) ** 2) * (before > 0)
        eye = torch.eye(self.genes, dtype=x.dtype, device=x.device)
        ring = eye.roll(-1, 1)  # row i has its one at column i - 1
        return slope[..., None] * ring - (gamma * torch.ones_like(x))[..., None] * eye
