"""What a fit leaves behind: how its objective fell, and what it chose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """One look at a fit.

    Attributes:
        stage: ``"warm start"``, ``"annealing"``, ``"fixed point"``, ``"adam"``, ``"lbfgs"``, and
            ``"best"`` where an earlier state was better than the last of a polish.
        iteration: within the stage.
        objective: on the rows of a table, and on fresh ones of a law.
        held_out: on held-out rows of tables; ``None`` where there are none.
        step: part of the fixed-point step that was taken, or Adam's rate.
        seconds: of CPU of the process since the fit began, the search of ``"auto"`` included, without
            looks such as this one and without the draws of a law.
    """

    stage: str
    iteration: int
    objective: float
    held_out: float | None
    step: float
    seconds: float


class Choice(NamedTuple):
    """One number of components that was tried.

    Attributes:
        components: how many.
        objective, held_out: on training and held-out rows.
        error: standard error of the difference of ``held_out`` to the best choice's, 0 for that itself.
    """

    components: int
    objective: float
    held_out: float
    error: float


@dataclass
class History:
    """The trace of :meth:`LightBridge.fit`; iterate over it for its entries.

    Attributes:
        entries: looks in order.
        choices: numbers of components that ``"auto"`` tried.
        converged: whether the objective had come to rest.
        stopped: whether held-out rows ended the fit early.
    """

    entries: list[Entry] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    converged: bool = False
    stopped: bool = False

    def __iter__(self):
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, k: int) -> Entry:
        return self.entries[k]

    @property
    def objective(self) -> list[float]:
        """The objective at every look."""
        return [entry.objective for entry in self.entries]

    @property
    def held_out(self) -> list[float | None]:
        """The held-out objective at every look."""
        return [entry.held_out for entry in self.entries]

    @property
    def seconds(self) -> list[float]:
        """CPU seconds at every look."""
        return [entry.seconds for entry in self.entries]

    def trace(self, most: int = 8) -> str:
        """The last objectives as text."""
        return ", ".join(f"{value:.6g}" for value in self.objective[-most:])
