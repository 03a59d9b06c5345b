"""Networks of other libraries as learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from genflow.checks import between, one_of
from genflow.tensors import batch_time


class Adapter(nn.Module):
    """Any network of a state and a time, such as ``g(x, t)``, as a learner ``f(t, x, cond)``.

    For diffusers' ``UNet2DModel``, whose clock has a thousand ticks, whose labels are ``class_labels``
    and whose result is an object with the field in ``sample``::

        Adapter(UNet2DModel(...), times=(0, 1000), condition="class_labels", output="sample")

    Networks of that library learnt with noise at 1000, data at 0: give such ``times=(1000, 0)``. For
    a ``DiT`` or a network of flow_matching, ``g(x, t, y)``, it is ``Adapter(network, condition="y")``.

    A saved model describes the network by its constructor arguments, so it must keep them as attributes
    of their names, and its package must be trusted: ``genflow.load(path, trust=["diffusers."])``.

    Args:
        network: what is called.
        order: ``"xt"`` where the state comes first, ``"tx"`` where time does.
        times: what the network is told at times 0 and 1; in between the line between them.
        condition: name of the argument that takes ``cond``; ``None``: it takes none.
        output: name of the attribute of the result that holds the field; ``None``: it is the result.

    Raises:
        ValueError: for an unknown order, times that are no two different finite numbers, and in
            ``forward`` for a condition that the network does not take and for a result that is no field
            of the shape of ``x``.
    """

    def __init__(
        self,
        network: nn.Module,
        order: str = "xt",
        times: Sequence[float] = (0.0, 1.0),
        condition: str | None = None,
        output: str | None = None,
    ) -> None:
        super().__init__()
        one_of(self, ("xt", "tx"), order=order)
        if not isinstance(times, Sequence) or len(times) != 2 or times[0] == times[1]:
            raise ValueError(
                f"Adapter(times={times!r}): times must be two different numbers, what the network is "
                "told at times 0 and 1"
            )
        for value in times:
            between(self, float("-inf"), float("inf"), times=value)
        self.network, self.order, self.times = network, order, times
        self.condition, self.output = condition, output

    def forward(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The field ``(B, *d)`` at times ``t (B,)`` and states ``x (B, *d)``, in the dtype of ``x``."""
        if cond is not None and self.condition is None:
            raise ValueError(
                f"Adapter got cond but {self._name} takes none: give condition= the name of its "
                "argument"
            )
        start, stop = self.times
        clock = start + (stop - start) * batch_time(t, x)
        inputs = (x, clock) if self.order == "xt" else (clock, x)
        found = self.network(*inputs, **({} if cond is None else {self.condition: cond}))
        return self._field(found, x).to(x.dtype)

    def _field(self, found: Any, x: Tensor) -> Tensor:
        field = found if self.output is None else getattr(found, self.output, None)
        if not isinstance(field, Tensor):
            names = ", ".join(k for k, v in _members(found).items() if isinstance(v, Tensor))
            raise ValueError(
                f"Adapter(output={self.output!r}): {self._name} returned a {type(found).__name__} "
                f"whose tensors are called {names or 'nothing'}; give output= the name of one"
            )
        if field.shape != x.shape:
            raise ValueError(
                f"Adapter: {self._name} returned {tuple(field.shape)} for states of shape "
                f"{tuple(x.shape)}; a field must have the shape of the state"
            )
        return field

    @property
    def _name(self) -> str:
        return type(self.network).__name__


def _members(found: Any) -> dict[str, Any]:
    return dict(found) if isinstance(found, dict) else getattr(found, "__dict__", {})
