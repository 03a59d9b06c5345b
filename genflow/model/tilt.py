"""Starting a model from the tilted source of the weighted coupling that it was trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genflow.checks import count
from genflow.coupling import Gibbs, Side
from genflow.coupling.sides import class_index, some_rows
from genflow.tensors import draw_device

PAIRS = 1 << 22
"""Weights held at a time."""


class Tilt(nn.Module):
    r"""The tilted source :math:`\tilde\mu \propto \mu k` by importance resampling.

    A model trained with plain Gibbs weights carries :math:`\tilde\mu` to :math:`\tilde\nu`. Started
    from :math:`\mu` it ends in neither :math:`\nu` nor :math:`\tilde\nu`; started from here it ends in
    :math:`\tilde\nu`. Each start is one of ``candidates`` draws of the source, picked in proportion to
    :math:`k(x) = E_y\,w(x, y)` over kept rows of data (an error of order ``1 / candidates``).

    Args:
        coupling: the :class:`~genflow.coupling.Gibbs` of the training, without correction.
        points: data rows ``(N, *d)`` in the model's space, or their shape (filled by ``load``), or
            ``None`` (filled by :meth:`prepare`).
        labels: conditions of the points, or their shape; each class then has its own tilt.
        candidates: draws of the source for each start.
        size: rows kept by :meth:`prepare`, of each class where there are labels.

    Raises:
        TypeError, ValueError: for another coupling, or one whose correction leaves nothing to tilt.
    """

    def __init__(
        self,
        coupling: Gibbs,
        points: Tensor | Sequence[int] | None = None,
        labels: Tensor | Sequence[int] | None = None,
        candidates: int = 16,
        size: int = 1024,
    ) -> None:
        super().__init__()
        if not isinstance(coupling, Gibbs):
            raise TypeError(f"Tilt(coupling={coupling!r}): only Gibbs weights tilt the source")
        if coupling.correction != "none":
            raise ValueError(
                f"Tilt: Gibbs(correction={coupling.correction!r}) leaves the source where it is; use "
                "tilt=none"
            )
        if not isinstance(coupling.conditions, str):
            raise ValueError(
                f"Tilt: Gibbs(conditions={coupling.conditions}) needs conditions of the source, which "
                "a model draws without; use conditions='within' or 'ignore'"
            )
        count(self, candidates=candidates, size=size)
        self.coupling, self.candidates, self.size = coupling, candidates, size
        shape = points is not None and not isinstance(points, Tensor)
        self.register_buffer("points", torch.full(tuple(points), math.nan) if shape else points)
        shape = labels is not None and not isinstance(labels, Tensor)
        zeros = torch.zeros(tuple(labels), dtype=torch.long) if shape else labels
        self.register_buffer("labels", zeros)

    @torch.no_grad()
    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Tilt:
        """Keep rows of the data, and let the coupling choose its epsilon from all of them.

        Args:
            xs: ``x0`` and ``x1`` in the model's space.
            cond: integer labels of ``x1``, which are kept.

        Raises:
            ValueError: for conditions that are no labels.
        """
        if cond is not None and (not isinstance(cond, Tensor) or cond.is_floating_point()):
            raise ValueError("Tilt knows integer labels of x1, not vectors or conditions of both sides")
        self.coupling.prepare(*xs, cond=cond)
        if self.points is None:
            side = Side(xs[-1], None, cond)
            parts = [side]
            if cond is not None:
                index = class_index(cond)[1][0]
                parts = [side.take(torch.nonzero(index == k).squeeze(1)) for k in index.unique()]
            parts = [some_rows(part, self.size) for part in parts]
            self.points = torch.cat([part.x for part in parts]).detach().clone()
            if cond is not None:
                self.labels = torch.cat([part.cond for part in parts]).detach().clone()
        return self

    @torch.no_grad()
    def log_mass(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """``log k`` of points ``x (n, *d)`` in the model's space, up to a constant a class: ``(n,)``.

        Raises:
            ValueError: before :meth:`prepare`, or for a class without kept points.
        """
        if self.points is None:
            raise ValueError("Tilt has no points yet: call tilt.prepare(x0, x1) with training samples")
        if self.labels is None:
            return self._log_mean(x, Side(self.points))
        if cond is None:
            raise ValueError("Tilt was prepared with labels: pass cond")
        _, (of_x, of_points) = class_index(cond.to(self.labels), self.labels)
        out = x.new_zeros(len(x), dtype=torch.float64)
        for k in of_x.unique():
            mine, theirs = of_x == k, of_points == k
            if not bool(theirs.any()):
                label = cond[mine][0].tolist()
                raise ValueError(f"Tilt: class {label} is not among the kept rows; raise size")
            out[mine] = self._log_mean(x[mine], Side(self.points[theirs], None, self.labels[theirs]))
        return out

    def _log_mean(self, x: Tensor, bank: Side) -> Tensor:
        size = max(1, PAIRS // len(bank.x))
        parts = [self.coupling.log_weights(Side(part), bank) for part in x.split(size)]
        return torch.logsumexp(torch.cat(parts), 1)

    def start(
        self,
        draw: Callable[[int], Tensor],
        n: int,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``n`` starts from the tilted source.

        Args:
            draw: draws that many points of the source, in the model's space.
            n: how many starts.
            cond: conditions, one a start.
            generator: where the choice is drawn from.
        """
        if self.points is None:
            raise ValueError("Tilt has no points yet: call tilt.prepare(x0, x1) with training samples")
        numbers = self.candidates * max(len(self.points), self.points[0].numel())
        parts = []
        for rows in torch.arange(n).split(max(1, PAIRS // numbers)):  # candidates of images are many
            x = draw(len(rows) * self.candidates)
            some = None if cond is None else cond[rows.to(cond.device)]
            some = None if some is None else some.repeat_interleave(self.candidates, 0)
            mass = torch.softmax(self.log_mass(x, some).reshape(len(rows), self.candidates), 1)
            mass = mass.to(draw_device(generator, mass.device))
            choice = torch.multinomial(mass, 1, generator=generator).squeeze(1).to(x.device)
            parts.append(x[torch.arange(len(rows), device=x.device) * self.candidates + choice])
        return torch.cat(parts)
