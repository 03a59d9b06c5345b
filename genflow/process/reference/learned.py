"""Drifts of networks: any module, and the gradient of a potential."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genflow.checks import count, one_of
from genflow.process.reference.base import Reference, Values

ACTIVATIONS = {"silu": nn.SiLU, "softplus": nn.Softplus, "tanh": nn.Tanh}
"""Smooth ones: a bridge needs derivatives of the drift, which are zero under ReLU."""


def slopes(activation: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of an activation."""
    if activation == "tanh":
        value = z.tanh()
        slope = 1 - value**2
        return slope, -2 * value * slope
    s = z.sigmoid()
    bend = s * (1 - s)
    if activation == "softplus":
        return s, bend
    return s * (1 + z * (1 - s)), bend * (2 + z * (1 - 2 * s))


class Learned(Reference):
    """Any network as drift.

    Args:
        network: ``f(t, x)`` with ``t (B,)`` and ``x (B, d)``; it is turned to float64 in place. Smooth
            activations only: bridges follow its Jacobian.
        dim: number of coordinates.
    """

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__(dim)
        self.network = network.double()

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        return self.network(t, x)


class GradientField(Reference):
    r""":math:`f = \nabla\phi`, the gradient of a potential that is a network of ``x`` alone.

    Its last layer starts at zero, so that the field does.

    Args:
        dim: number of coordinates.
        width: units of each hidden layer.
        depth: hidden layers.
        activation: ``"silu"``, ``"softplus"`` or ``"tanh"``; smooth, since bridges need second
            derivatives of the potential.
    """

    def __init__(self, dim: int, width: int = 64, depth: int = 2, activation: str = "silu") -> None:
        super().__init__(dim)
        count(self, width=width, depth=depth)
        one_of(self, tuple(ACTIVATIONS), activation=activation)
        self.width, self.depth, self.activation = width, depth, activation
        sizes = [dim, *[width] * depth]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:]):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        last = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.potential = nn.Sequential(*layers, last).double()

    def _through(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Weights of all layers, and both derivatives of the activation at each hidden one."""
        weights, first, second = [], [], []
        for layer in self.potential:
            if isinstance(layer, nn.Linear):
                weights.append(layer.weight)
            else:
                for kept, value in zip((first, second), slopes(self.activation, x)):
                    kept.append(value)
            x = layer(x)
        return weights, first, second

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        weights, first, _ = self._through(x)
        gradient = weights[-1].expand(len(x), -1)
        for weight, slope in zip(weights[-2::-1], first[::-1]):
            gradient = (gradient * slope) @ weight
        return gradient

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        # the Hessian in closed form: of each hidden layer its bend times what reaches it from above,
        # between its derivatives in x; several times faster than to differentiate the gradient
        weights, first, second = self._through(x)
        above = [weights[-1].expand(len(x), -1)]
        for weight, slope in zip(weights[-2:0:-1], first[:0:-1]):
            above.append((above[-1] * slope) @ weight)
        total, inner = 0.0, None
        for weight, slope, bend, down in zip(weights, first, second, above[::-1]):
            inner = weight.expand(len(x), -1, -1) if inner is None else weight @ inner
            total = total + inner.mT @ ((bend * down)[..., None] * inner)
            inner = slope[..., None] * inner
        return total
