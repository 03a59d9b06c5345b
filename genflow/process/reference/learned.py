"""Drifts of networks: any module, and the gradient of a potential."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genflow.checks import count, one_of
from genflow.process.reference.base import Reference, Values

ACTIVATIONS = {"silu": nn.SiLU, "softplus": nn.Softplus, "tanh": nn.Tanh}
"""Smooth ones: a bridge needs derivatives of the drift, which are zero under ReLU."""


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

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            total = self.potential(x).sum()
            (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        return gradient if keep else gradient.detach()
