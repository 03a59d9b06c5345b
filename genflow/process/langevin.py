r"""Langevin dynamics that sample a given density of positive numbers.

Both move logarithms, the dual variable of the mirror map :math:`\phi(x) = \sum x\log x - x`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genflow.checks import positive
from genflow.process.positive import PositiveProcess

Density = nn.Module | Callable[[Tensor], Tensor]


class _Langevin(PositiveProcess):
    def __init__(self, density: Density, time: float = 10.0) -> None:
        super().__init__()
        positive(self, time=time)
        if not (hasattr(density, "log_prob") or callable(density)):
            raise TypeError(
                f"{type(self).__name__}(density={density!r}): density must have log_prob, or be a "
                "function of x (n, *d) that gives log p (n,)"
            )
        self.density, self.time = density, time
        self.span = (0.0, float(time))

    @property
    def stochastic(self) -> bool:
        return True

    def hyvarinen(self, x: Tensor) -> Tensor:
        r""":math:`x \odot \nabla\log p(x)`, ``(n, *d)``, by automatic differentiation."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = getattr(self.density, "log_prob", self.density)(x)
            (grad,) = torch.autograd.grad(value.sum(), x)
        return x.detach() * grad


class GeometricLangevin(_Langevin):
    r"""Dale-Langevin dynamics, :math:`d\log X = (1 + x\odot\nabla\log p)\,dt + \sqrt 2\,dW`.

    Run by ``Euler`` or ``DaleLangevin`` with steps :math:`\eta` it is the exponential update
    :math:`X' = X \odot \exp(\eta(1 + h) + \sqrt{2\eta}\,\xi)`, whose stationary law is ``density`` up
    to the step size; without the 1 it would be :math:`p(x)/x`.

    Args:
        density: an object with ``log_prob``, such as a source, or a function of ``x (n, *d)`` that
            gives ``log p (n,)``, by differentiable operations; need not be normalised.
        time: how long to run.
    """

    def log_drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        return 1 + self.hyvarinen(y.exp())

    def log_width(self, t: Tensor, y: Tensor) -> Tensor:
        return y.new_full((1,) * y.ndim, 2.0).sqrt()


class MirrorLangevin(_Langevin):
    r"""Mirror Langevin dynamics with the entropic mirror map,
    :math:`d\log X = \nabla\log p\,dt + \sqrt{2/X}\,dW` (Hsieh et al. 2018, Zhang et al. 2020).

    The exponent is that of exponentiated gradient descent, the plain gradient, which asks for this
    noise; beside :class:`GeometricLangevin` it is the other preconditioner of one mirror map.

    Args:
        density, time: as in :class:`GeometricLangevin`.
    """

    def log_drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        x = y.exp()
        return self.hyvarinen(x) / x

    def log_width(self, t: Tensor, y: Tensor) -> Tensor:
        return (2 * torch.exp(-y)).sqrt()
