"""A population seen at several times: which snapshots are marginals or held out, and their clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from genflow.data.arrays import check_array


@dataclass(frozen=True)
class Series:
    """Snapshots in order of time, of unequal sizes and spacing.

    Attributes:
        arrays: rows of each snapshot ``(N_k, *d)``.
        times: of each, rising.
        train: numbers of the snapshots that are marginals, in order of time, at least two.
        heldout: numbers of those that are kept to score predictions.
        name: what messages call it.
        masses: how much each particle of each snapshot counts ``(N_k,)``, ``None`` where all alike.

    Raises:
        ValueError: for fewer than two snapshots, rows that are no finite numbers, event shapes that
            differ, times that do not rise, fewer than two marginals, or masses that are none.
    """

    arrays: tuple[np.ndarray, ...]
    times: tuple[float, ...]
    train: tuple[int, ...]
    heldout: tuple[int, ...] = ()
    name: str = "Snapshots"
    masses: tuple[np.ndarray | None, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.arrays) < 2:
            raise ValueError(f"{self.name}: at least two snapshots are needed, got {len(self.arrays)}")
        check_times(self.times, len(self.arrays), self.name)
        for array, time in zip(self.arrays, self.times):
            check_array(array, f"{self.name}: the snapshot at time {time:g}")
            if array.shape[1:] != self.arrays[0].shape[1:]:
                raise ValueError(
                    f"{self.name}: the snapshot at time {time:g} has event shape {array.shape[1:]} but "
                    f"that at time {self.times[0]:g} has {self.arrays[0].shape[1:]}; they must be equal"
                )
        for k, mass in enumerate(self.masses or ()):
            if mass is not None:
                check_masses(
                    mass, len(self.arrays[k]), f"{self.name}: the weights at {self.times[k]:g}"
                )
        both = set(self.train) & set(self.heldout)
        if both:
            raise ValueError(
                f"{self.name}: the snapshot at time {self.times[min(both)]:g} cannot be both in train "
                "and in heldout"
            )
        if len(self.train) < 2:
            raise ValueError(
                f"{self.name}: at least two snapshots must be left to train on, got {len(self.train)} "
                f"of {len(self.times)}"
            )

    @classmethod
    def of(
        cls,
        arrays: Sequence[np.ndarray],
        times: Sequence[float],
        train: Sequence[float] | None = None,
        heldout: Sequence[float] | None = None,
        name: str = "Snapshots",
        masses: Sequence[np.ndarray | None] | None = None,
    ) -> Series:
        """A series whose parts are named as in :func:`which`; all but ``heldout`` are ``train`` unless
        stated."""
        times = tuple(map(float, times))
        check_times(times, len(arrays), name)
        held = tuple(sorted({which(v, times, f"{name}(heldout)") for v in heldout or ()}))
        if train is None:
            kept = tuple(k for k in range(len(times)) if k not in held)
        else:
            kept = tuple(sorted({which(v, times, f"{name}(train)") for v in train}))
        masses = None if masses is None else tuple(masses)
        return cls(tuple(arrays), times, kept, held, name, masses)

    def index(self, snapshot: float) -> int:
        """The number of a snapshot, named as in :func:`which`."""
        return which(snapshot, self.times, self.name)

    def rows(self, snapshot: float) -> Tensor:
        """All rows of a snapshot ``(N, *d)``, in float32."""
        array = np.array(self.arrays[self.index(snapshot)], dtype=np.float32)
        return torch.from_numpy(array)

    def mass(self, k: int) -> Tensor | None:
        """Weights ``(N_k,)`` of snapshot number ``k`` in float64, ``None`` where all count alike."""
        found = None if self.masses is None else self.masses[k]
        return None if found is None else torch.from_numpy(np.array(found, dtype=np.float64))

    def clock(self, time: float) -> float:
        """A time on the clock that is 0 at the first training snapshot and 1 at the last."""
        first, last = (self.times[k] for k in (self.train[0], self.train[-1]))
        return (time - first) / (last - first)

    def inside(self) -> list[int]:
        """Numbers of the held-out snapshots between the first and the last training snapshot."""
        return [k for k in self.heldout if self.train[0] < k < self.train[-1]]


def which(snapshot: float, times: Sequence[float], where: str) -> int:
    """The number of the snapshot that a user names by its time or by its number, counted from 0.

    A float is a time. A whole number may be either, and is refused where the two are different
    snapshots: day 3 of days 2, 3, 4 and 7 must not become day 7.

    Raises:
        ValueError: if there is no such snapshot, or two are meant.
    """
    listed = ", ".join(f"{t:g}" for t in times)
    if isinstance(snapshot, bool) or not isinstance(snapshot, Real):
        raise ValueError(f"{where}: {snapshot!r} names no snapshot; give one of the times {listed}")
    near = [k for k, t in enumerate(times) if math.isclose(t, snapshot, rel_tol=1e-6, abs_tol=1e-9)]
    if isinstance(snapshot, Integral) and 0 <= snapshot < len(times):
        if near and near != [snapshot]:
            raise ValueError(
                f"{where}: {snapshot} is the time of one snapshot and the number of another (at time "
                f"{times[snapshot]:g}); write {float(snapshot)!r} or "
                f"{times[snapshot]!r}, which are times"
            )
        return int(snapshot)
    if not near:
        raise ValueError(
            f"{where}: there is no snapshot {snapshot!r}; the times are {listed}, numbered 0 to "
            f"{len(times) - 1}"
        )
    return near[0]


def check_times(times: Sequence[float], n: int, name: str) -> None:
    """Refuse times that are not finite, do not rise, or are not one a snapshot.

    Raises:
        ValueError: naming the first pair that does not rise.
    """
    if len(times) != n:
        raise ValueError(f"{name}: there are {n} snapshots but {len(times)} times; give one each")
    if not all(map(math.isfinite, times)):
        raise ValueError(f"{name}: times must be finite numbers, got {list(times)}")
    for before, after in zip(times[:-1], times[1:]):
        if not before < after:
            raise ValueError(
                f"{name}: times must rise from snapshot to snapshot, but {after:g} follows {before:g}"
            )


def check_masses(mass: np.ndarray, n: int, where: str) -> None:
    """Refuse weights that are not ``n`` finite numbers >= 0 with a positive sum.

    Raises:
        ValueError: saying what they are.
    """
    if mass.shape != (n,) or mass.dtype.kind not in "iuf":
        raise ValueError(
            f"{where} have shape {mass.shape} and dtype {mass.dtype}, expected {n} numbers, one a row"
        )
    if not (np.isfinite(mass) & (mass >= 0)).all() or not mass.sum() > 0:
        raise ValueError(f"{where} must be finite numbers >= 0 that are not all 0")
