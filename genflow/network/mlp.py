"""A residual multilayer perceptron of time, state and condition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genflow.checks import count
from genflow.network.condition import Conditional, field_names
from genflow.network.time import TimeFeatures
from genflow.tensors import as_shape, batch_time


def _activation(name: str) -> nn.Module:
    found = getattr(nn.modules.activation, str(name), None)
    try:
        return found()
    except TypeError as error:
        raise ValueError(
            f"MLP(activation={name!r}): activation must name an activation of torch.nn that needs no "
            "arguments, such as 'SiLU', 'SELU', 'GELU' or 'Tanh'"
        ) from error


class MLP(Conditional):
    """A residual MLP ``f(t, x, cond) -> (B, *dim)`` for events of any shape, or one for each of several
    fields.

    Args:
        dim: event shape, ``2`` or ``[1, 8, 8]``; events are flattened inside.
        width: hidden units a layer.
        depth: hidden layers.
        activation: name of an activation of ``torch.nn``, such as ``"SiLU"`` or ``"SELU"``.
        residual: add each hidden layer to its input (from the second on).
        frequencies: of :class:`TimeFeatures`.
        classes: number of class labels; ``cond`` is then an integer ``(B,)`` tensor. A list of numbers
            for several labels; ``cond`` is then ``(B, len(classes))``.
        cond_dim: size of a condition vector; ``cond`` is then ``(B, cond_dim)``.
        outputs: names of several fields, such as ``["velocity", "noise"]``; one trunk then returns a
            dict of them, each ``(B, *dim)``. ``None``: one field, a tensor.

    Raises:
        ValueError: for sizes that are no positive whole numbers, an unknown activation, both kinds
            of condition, outputs that are no different names, and in ``forward`` for an event shape
            or a condition that do not fit.
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        width: int = 64,
        depth: int = 3,
        activation: str = "SiLU",
        residual: bool = True,
        frequencies: int = 8,
        classes: int | Sequence[int] | None = None,
        cond_dim: int | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        count(self, width=width, depth=depth)
        self.dim = dim
        self.width, self.depth, self.activation = width, depth, activation
        self.residual, self.frequencies = residual, frequencies
        self.outputs = outputs
        fields = 1 if outputs is None else len(field_names(self, outputs))

        self.shape = as_shape(dim)
        size = math.prod(self.shape)
        self.time = TimeFeatures(frequencies)
        self._take(classes, cond_dim, width)
        extra = width if classes is not None else (cond_dim or 0)
        self.first = nn.Linear(size + self.time.size + extra, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, size * fields)
        self.act = _activation(activation)

    def forward(
        self, t: Tensor | float, x: Tensor, cond: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"MLP(dim={self.dim}) got events of shape {tuple(x.shape[1:])}, expected {self.shape}"
            )
        inputs = [x.flatten(1), self.time(batch_time(t, x)), *self._condition(cond, x)]
        h = self.act(self.first(torch.cat(inputs, 1)))
        for layer in self.hidden:
            update = self.act(layer(h))
            h = h + update if self.residual else update
        out = self.last(h)
        if self.outputs is None:
            return out.reshape(x.shape)
        fields = out.chunk(len(self.outputs), 1)
        return {name: field.reshape(x.shape) for name, field in zip(self.outputs, fields)}
