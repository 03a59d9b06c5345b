"""What networks share that take a condition or return several fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genflow.checks import count, name_of


def field_names(owner: object, outputs: Sequence[str]) -> Sequence[str]:
    """Different names, at least one.

    Raises:
        ValueError: for anything else.
    """
    several = isinstance(outputs, Sequence) and not isinstance(outputs, str)
    if not several or not outputs or not all(isinstance(name, str) for name in outputs):
        raise ValueError(
            f"{name_of(owner)}(outputs={outputs!r}): outputs must be a list of names such as "
            "['velocity', 'noise'], or None for one field"
        )
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"{name_of(owner)}(outputs={outputs!r}): the names must differ")
    return outputs


class Conditional(nn.Module):
    """A network that takes class labels, condition vectors, or nothing. A subclass calls
    :meth:`_take` when it is made and :meth:`_condition` in ``forward``."""

    classes: int | Sequence[int] | None
    cond_dim: int | None

    def _take(self, classes: int | Sequence[int] | None, cond_dim: int | None, width: int) -> None:
        """Keep what the condition is; labels get embeddings of the given width.

        Raises:
            ValueError: for sizes that are no positive whole numbers, and for both kinds at once.
        """
        if cond_dim is not None:
            count(self, cond_dim=cond_dim)
        if classes is not None and cond_dim is not None:
            raise ValueError(f"{name_of(self)}: give classes (labels) or cond_dim (vectors), not both")
        self.classes, self.cond_dim, self.label = classes, cond_dim, None
        if classes is not None:
            several = isinstance(classes, Sequence) and not isinstance(classes, str)
            self.sizes = tuple(classes) if several else (classes,)
            for labels in self.sizes or (0,):
                count(self, classes=labels)
            first = torch.tensor((0, *self.sizes[:-1])).cumsum(0)
            self.register_buffer("first_label", first, persistent=False)
            self.label = nn.Embedding(sum(self.sizes), width)

    def _condition(self, cond: Tensor | None, x: Tensor) -> list[Tensor]:
        """The embedding ``(B, width)`` of labels or the vector ``(B, cond_dim)``, if there is one.

        Raises:
            ValueError: for a condition that does not fit.
        """
        conditional = self.classes is not None or self.cond_dim is not None
        if conditional != (cond is not None):
            name = name_of(self)
            raise ValueError(
                f"{name} was built with a condition: pass cond" if conditional
                else f"{name} got cond but was built without: give classes= or cond_dim="
            )  # fmt: skip
        if cond is None:
            return []
        if self.label is not None:
            return [self._embed(cond, len(x))]
        if cond.shape != (len(x), self.cond_dim):
            raise ValueError(
                f"{name_of(self)}(cond_dim={self.cond_dim}): cond must have shape "
                f"({len(x)}, {self.cond_dim}), got {tuple(cond.shape)}"
            )
        return [cond.to(x.dtype)]

    def _embed(self, cond: Tensor, n: int) -> Tensor:
        """The sum of the embeddings of all labels, ``(n, width)``."""
        shape = (n,) if isinstance(self.classes, int) else (n, len(self.sizes))
        if cond.is_floating_point() or cond.shape != shape:
            raise ValueError(
                f"{name_of(self)}(classes={self.classes}): cond must be integers of shape "
                f"{str(shape).replace(' ', '')}, got {cond.dtype} {tuple(cond.shape)}"
            )
        # elsewhere the look would wait for the device, and a compiled graph would break
        if cond.device.type == "cpu" and not torch.compiler.is_compiling():
            for k, size in enumerate(self.sizes):
                labels = cond if cond.ndim == 1 else cond[:, k]
                if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < size:
                    raise ValueError(
                        f"{name_of(self)}(classes={self.classes}): labels must lie in 0..{size - 1}, "
                        f"got {int(labels.min())}..{int(labels.max())}"
                    )
        if isinstance(self.classes, int):
            return self.label(cond)
        return self.label(cond + self.first_label).sum(1)
