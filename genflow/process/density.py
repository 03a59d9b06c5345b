r"""Densities along a process: the state carries the integral of a divergence with it.

Along the ODE :math:`\dot X = b` the log-density changes by :math:`-\nabla\cdot b` (Chen et al. 2018,
Grathwohl et al. 2019); along the backward SDE of a stochastic interpolant by
:math:`\nabla\cdot b_F + \epsilon|s|^2` in expectation (Albergo, Boffi & Vanden-Eijnden 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.process.base import Process
from genflow.tensors import draw_device, sum_event


def rademacher(x: Tensor, probes: int, generator: torch.Generator | None = None) -> Tensor:
    """Random signs ``(probes, *x.shape)`` in the dtype and on the device of ``x``."""
    device = draw_device(generator, x.device)
    bits = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=device)
    return (2 * bits - 1).to(x)


def divergence(
    field: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    x: Tensor,
    probes: Tensor | None = None,
    differentiable: bool = False,
) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
    r"""A field and its divergence, from one evaluation.

    Args:
        field: of ``x (B, *d)``, each row by itself; where it returns a tuple, the divergence is that of
            the first.
        x: where.
        probes: signs ``(k, B, *d)`` for Hutchinson's estimate, the mean of
            :math:`e^\top \partial_x(e\cdot f)`; exact by one derivative a dimension if absent.
        differentiable: keep the graph, for gradients of the divergence itself.

    Returns:
        What ``field`` returns, and the divergence ``(B,)``.
    """
    with torch.enable_grad():
        x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        out = field(x)
        value = out[0] if isinstance(out, tuple) else out
        found = _trace(value, x, probes, differentiable)
    if differentiable:
        return out, found
    return tuple(v.detach() for v in out) if isinstance(out, tuple) else out.detach(), found.detach()


def _trace(value: Tensor, x: Tensor, probes: Tensor | None, differentiable: bool) -> Tensor:
    if not value.requires_grad:  # a field that does not depend on x
        return x.new_zeros(len(x))

    def slope(along: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(
            value, x, along, retain_graph=True, create_graph=differentiable, allow_unused=True
        )
        return torch.zeros_like(x) if grad is None else grad

    if probes is not None:
        return sum(sum_event(e * slope(e)) for e in probes) / len(probes)
    total = x.new_zeros(len(x))
    for k in range(x[0].numel()):
        unit = torch.zeros_like(value).flatten(1)
        unit[:, k] = 1
        total = total + slope(unit.reshape(value.shape)).flatten(1)[:, k]
    return total


class Density(Process):
    """A process whose states ``(B, d + 1)`` are the flattened states of another, and an integral.

    The integral is that of the divergence for an ODE, and of the divergence of the forward drift plus
    ``epsilon |score|^2`` for a stochastic interpolant that is run backwards with noise.

    Args:
        process: whose density is followed.
        shape: its event shape.
        probes: as in :func:`divergence`.
        differentiable: keep the graph.
    """

    def __init__(
        self,
        process: Process,
        shape: tuple[int, ...],
        probes: Tensor | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.process, self.shape = process, tuple(shape)
        self.probes, self.differentiable = probes, differentiable
        self.span = process.span

    @property
    def stochastic(self) -> bool:
        return self.process.stochastic

    @property
    def reversible(self) -> bool:
        return self.process.reversible

    def pack(self, x: Tensor) -> Tensor:
        """States with an integral of zero, ``(B, d + 1)``."""
        return torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)

    def unpack(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """States ``(B, *d)`` and the integral ``(B,)``."""
        return y[:, :-1].reshape(len(y), *self.shape), y[:, -1]

    def drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        x, _ = self.unpack(y)
        value, change = divergence(
            lambda x: self.process.drift(t, x, cond), x, self.probes, self.differentiable
        )
        return torch.cat([value.flatten(1), change[:, None]], 1)

    def backward_drift(self, t: Tensor, y: Tensor, cond: Tensor | None = None) -> Tensor:
        if not self.stochastic:
            return self.drift(t, y, cond)
        x, _ = self.unpack(y)
        (_, backward, square), change = divergence(
            lambda x: self.process.density_terms(t, x, cond), x, self.probes, self.differentiable
        )
        change = change + sum_event(square)
        return torch.cat([backward.flatten(1), change[:, None]], 1)

    def diffusion(self, t: Tensor, y: Tensor, dw: Tensor) -> Tensor:
        x, _ = self.unpack(y)
        noise = self.process.diffusion(t, x, dw[:, :-1].reshape(x.shape))
        return torch.cat([noise.flatten(1), torch.zeros_like(dw[:, -1:])], 1)
