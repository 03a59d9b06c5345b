"""What a reference is: a family of drifts, whose parameters a bridge refines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genflow.checks import count, name_of

Values = Mapping[str, Tensor]
"""Parameters of a family by name."""


class Reference(nn.Module, ABC):
    r"""A family of drifts :math:`f_\theta` of :math:`dX = f_\theta(t, X)\,dt + \sigma\,dW`.

    The noise belongs to the bridge. Parameters are kept in ``raw``, in float64: the logarithms of
    those named in ``positive``, all others as they are; constructor arguments are where they start, and
    ``numbers()`` says where they are.

    Args:
        dim: number of coordinates.
        start: parameters by name: numbers, or nested lists of them.

    Raises:
        ValueError: for values that are not finite, or not positive where they must be.
    """

    positive: tuple[str, ...] = ()
    """Parameters that are kept in logarithms."""

    def __init__(self, dim: int, **start: float | Sequence[Any]) -> None:
        super().__init__()
        count(self, dim=dim)
        self.dim = dim
        kept = ((name, self._raw(name, value)) for name, value in start.items())
        self.raw = nn.ParameterDict(OrderedDict(kept))  # a plain dict would be sorted

    def _raw(self, name: str, value: Any) -> Tensor:
        """What is kept of a value: its logarithm where it is positive."""
        number = torch.as_tensor(value, dtype=torch.float64).detach().clone()
        if not bool(torch.isfinite(number).all()):
            raise ValueError(f"{name_of(self)}({name}={value!r}): {name} must be finite")
        if name not in self.positive:
            return number
        if bool((number <= 0).any()):
            raise ValueError(f"{name_of(self)}({name}={value!r}): {name} must be positive")
        return number.log()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters; networks have none."""
        return tuple(self.raw)

    def values(self) -> dict[str, Tensor]:
        """Parameters by name, as functions of what is kept."""
        return {k: v.exp() if k in self.positive else v for k, v in self.raw.items()}

    def numbers(self) -> dict[str, Any]:
        """Parameters by name, as plain numbers."""
        return {k: v.detach().tolist() for k, v in self.values().items()}

    def assign(self, **values: float | Sequence[Any] | Tensor) -> Reference:
        """Set parameters in place.

        Raises:
            ValueError: for a name or a value that the family does not know.
        """
        for name, value in values.items():
            if name not in self.raw:
                raise ValueError(
                    f"{name_of(self)} has no parameter {name!r}; it has "
                    f"{', '.join(self.names) or 'none'}"
                )
            raw, old = self._raw(name, value), self.raw[name]
            if raw.shape != old.shape:
                raise ValueError(
                    f"{name_of(self)}: {name} has shape {tuple(old.shape)}, got {tuple(raw.shape)}"
                )
            with torch.no_grad():
                old.copy_(raw)
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.numbers().items())

    def log_prior(self) -> Tensor:
        """Log-density of a law of the parameters, where the family has one; else 0."""
        return torch.zeros((), dtype=torch.float64)

    @abstractmethod
    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        """The drift as a function of its parameters.

        Args:
            t: times ``(B,)``, or one number.
            x: states ``(B, d)``.
            values: parameters by name.

        Returns:
            ``(B, d)``.
        """

    def features(self, t: Tensor | float, x: Tensor) -> Tensor | None:
        """``(B, d, p)`` of a family that is linear in its parameters: the drift is their sum over the
        ``p`` numbers of all parameters in order; ``None`` for others."""
        return None

    def solve(self, x: Tensor, y: Tensor, weight: Tensor) -> bool:
        """Set the parameters to those of the least-squares fit of the drift to ``y (M, d)`` at states
        ``x (M, d)`` with weights ``(M,)``, where a family knows a way of its own; ``False`` for
        others."""
        return False

    def drift(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Drift ``(B, d)`` at states ``x (B, d)``."""
        return self.field(t, x, self.values())

    def forward(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.drift(t, x)

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        r""":math:`\partial f_i/\partial x_j` as ``[b, i, j]``, ``(B, d, d)``; differentiable in turn
        where gradients are recorded."""
        values = self.values() if values is None else values
        if torch.is_inference_mode_enabled():  # nothing could be differentiated there, in silence
            with torch.inference_mode(False), torch.no_grad():
                t = t.clone() if isinstance(t, Tensor) else t
                return self.jacobian(t, x.clone(), {k: v.clone() for k, v in values.items()})
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            outputs = self.field(t, x, values)
            if not outputs.requires_grad:
                return x.new_zeros(*x.shape, x.shape[-1]).detach()
            rows = []
            for column in outputs.sum(0):
                (row,) = torch.autograd.grad(
                    column, x, create_graph=keep, retain_graph=True, materialize_grads=True
                )
                rows.append(row)
        return torch.stack(rows, 1)


def stack_square(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """``(B, d, d)`` from entries that broadcast to ``(B,)``."""
    flat = torch.broadcast_tensors(*(v for row in rows for v in row))
    return torch.stack(flat, -1).unflatten(-1, (len(rows), len(rows)))
