"""Several fields, one network each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn


class Heads(nn.Module):
    """A network a field: ``f(t, x, cond) -> {name: (B, *d)}``.

    Fields that shall share a trunk are ``MLP(outputs=[...])``; here each has its own weights, and one
    that nobody asks for costs nothing.

    Args:
        heads: name of the field to its network, such as ``{"velocity": MLP(2), "noise": MLP(2)}``.

    Raises:
        ValueError: if there are none, for a name that a module cannot have, and in ``forward`` for
            a name that it does not hold.
    """

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not isinstance(heads, (Mapping, nn.ModuleDict)) or not heads:
            raise ValueError(
                f"Heads(heads={heads!r}): heads must be a dict of networks, such as "
                "{'velocity': MLP(2), 'noise': MLP(2)}"
            )
        try:
            self.heads = nn.ModuleDict(heads)
        except (KeyError, TypeError) as error:
            raise ValueError(f"Heads(heads={list(heads)}): {error.args[0]}") from error

    @property
    def outputs(self) -> list[str]:
        """Names of the fields."""
        return list(self.heads)

    def forward(
        self,
        t: Tensor | float,
        x: Tensor,
        cond: Tensor | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """The fields at times ``t (B,)`` and states ``x (B, *d)``.

        Args:
            t, x, cond: handed to every network.
            only: names to evaluate; all if absent. An ODE is sampled without the noise, say.
        """
        if only is not None and not set(only) <= self.heads.keys():
            raise ValueError(f"Heads holds {self.outputs}, not all of only={list(only)}")
        inputs = (t, x) if cond is None else (t, x, cond)
        wanted = self.heads if only is None else only
        return {name: head(*inputs) for name, head in self.heads.items() if name in wanted}
