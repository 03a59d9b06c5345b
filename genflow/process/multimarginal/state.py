"""What a bridge keeps of the data and of its solution, as buffers that travel in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PLANS, DRIFTS = 1, 2
"""What may solve a bridge."""
NAMES = (
    "points", "masses", "left", "right", "counts", "times", "correction", "left_corrected",
    "right_corrected", "trace", "solved",
)  # fmt: skip


class Kept(nn.Module):
    """Snapshots of unequal sizes, laid end to end, with the potentials of the plans between them.

    Attributes:
        points: all rows ``(sum N_k, d)``.
        masses: of each row; those of a snapshot sum to one.
        left, right: potentials of each row as start of the next interval and as end of the last.
        counts: rows of each snapshot ``(K+1,)``.
        times: of the snapshots, ``(K+1,)``.
        correction: of the log-densities of all pairs, end to end; ``None`` for none.
        left_corrected, right_corrected: potentials of the plans under these corrections.
        trace: objective and parameters after each iteration, ``(R, 1 + p)``.
        solved: whether plans (1) or learned drifts (2) solve the bridge; 0 for none.
    """

    points: Tensor | None
    masses: Tensor | None
    left: Tensor | None
    right: Tensor | None
    counts: Tensor | None
    times: Tensor | None
    correction: Tensor | None
    left_corrected: Tensor | None
    right_corrected: Tensor | None
    trace: Tensor | None
    solved: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.register_buffer(name, None)
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def keep(
        self,
        xs: Sequence[Tensor],
        times: Sequence[float],
        weights: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Keep snapshots ``(N_k, d)`` and how much each row counts, in float64."""
        self.points, self.masses, self.counts = _end_to_end(xs, weights)
        self.left, self.right = torch.zeros_like(self.masses), torch.zeros_like(self.masses)
        self.times = torch.tensor(times, dtype=torch.float64, device=self.points.device)
        self.solved = torch.zeros((), dtype=torch.long, device=self.points.device)
        self.correction = self.left_corrected = self.right_corrected = self.trace = None

    def holds(
        self, xs: Sequence[Tensor], weights: Sequence[Tensor | None] | None, weighted: bool
    ) -> bool:
        """Whether these are the snapshots that are kept; with their masses, if ``weighted``."""
        if self.points is None:
            return False
        found = _end_to_end(xs, weights)
        kept = self.points, self.masses if weighted else found[1], self.counts
        return all(a.shape == b.shape and torch.equal(a, b.to(a)) for a, b in zip(kept, found))

    @property
    def by_plans(self) -> bool:
        """Whether plans solve the bridge."""
        return self.solved is not None and int(self.solved) == PLANS

    @property
    def by_drifts(self) -> bool:
        """Whether learned drifts do."""
        return self.solved is not None and int(self.solved) == DRIFTS

    def clear(self) -> None:
        """Forget all."""
        for name in NAMES:
            setattr(self, name, None)

    def rows(self, name: str, k: int) -> Tensor:
        """Part ``k`` of a buffer, a view."""
        counts = self.counts.tolist()
        first = sum(counts[:k])
        return getattr(self, name)[first : first + counts[k]]

    def corrections(self) -> list[Tensor]:
        """The corrections of each interval, ``(N_k, N_{k+1})``."""
        counts = self.counts.tolist()
        sizes = [n * m for n, m in zip(counts[:-1], counts[1:])]
        parts = self.correction.split(sizes)
        return [part.view(n, -1) for part, n in zip(parts, counts)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in NAMES:  # sizes are those of the data that were seen
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self._like.device))
            else:
                setattr(self, name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _end_to_end(
    xs: Sequence[Tensor], weights: Sequence[Tensor | None] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, masses and counts of snapshots, in float64."""
    masses = []
    for x, weight in zip(xs, [None] * len(xs) if weights is None else weights):
        share = torch.ones(len(x)) if weight is None else weight
        share = share.to(device=x.device, dtype=torch.float64)
        masses.append(share / share.sum())
    points = torch.cat([x.detach().double() for x in xs])
    return points, torch.cat(masses), torch.tensor([len(x) for x in xs], device=points.device)
