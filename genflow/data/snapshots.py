"""Snapshots of a population at several times, from ``.npy``, ``.npz`` or ``.h5ad`` files."""

from __future__ import annotations

import glob
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.checks import count
from genflow.data.arrays import find_file, open_array
from genflow.data.base import Data, Table, split_rows
from genflow.data.series import Series
from genflow.seeds import stream

NUMBER = re.compile(r"(\d+(?:\.\d+)?)$")
Read = tuple[list[np.ndarray], Sequence[float] | None, dict[str, Sequence[Any]]]
"""Arrays, times, and what else is said of them: ``train``, ``heldout``, ``weights``."""


@dataclass(frozen=True)
class Snapshots(Data):
    """A population seen at several times; each training snapshot is one marginal.

    Snapshots may differ in size and spacing. Particles of one are not those of another: nothing is
    paired. Paths are looked for in the working directory, then below ``$GENFLOW_DATA``.

    A snapshot is named by its time (``3.0``) or by its number, counted from 0; a whole number that
    could be either of two snapshots is refused. What was read lies in ``series``: its ``times``, and
    the numbers of the snapshots in ``train`` and ``heldout``.

    Args:
        path: a pattern of ``.npy`` files such as ``day_*.npy``, a list of them, or one ``.npz`` or
            ``.h5ad`` file.
        times: of the snapshots, rising; by default the number at the end of each file's name, the array
            ``times`` of an ``.npz`` file (else 0, 1, ...), or the column ``obs`` of an ``.h5ad`` file.
        train: the snapshots that are marginals, at least two; all but ``heldout`` by default.
        heldout: snapshots kept to score predictions. Where neither is given, an ``.npz`` file may hold
            both under these names, as numbers of snapshots.
        holdout: fraction of the rows of each marginal for validation and for test, each. With 0 every
            split is all rows, for small series that are scored by held-out snapshots.
        keys: arrays of an ``.npz`` file in order of time; ``x0``, ``x1``, ... by default.
        obs: column of ``.h5ad`` observations that holds the time, numbers or words that end in one.
        obsm: coordinates of ``.h5ad`` observations; ``None`` takes ``X`` itself.
        weights: how much each particle counts (growth, unequal masses): names of arrays ``(N_k,)`` of
            an ``.npz`` file, by default ``w0``, ``w1``, ... where it holds them; ``.npy`` files, one
            for each of ``path``; or a column of ``.h5ad`` observations.
        most: keep at most so many rows of each snapshot, the same ones every time; all by default.
        dims: keep the first so many coordinates, for principal components in order; all by default.

    Raises:
        FileNotFoundError, ImportError, ValueError: one sentence naming the file and what is allowed.
    """

    path: str | Sequence[str]
    times: Sequence[float] | None = None
    train: Sequence[float] | None = None
    heldout: Sequence[float] | None = None
    holdout: float = 0.1
    keys: Sequence[str] | None = None
    obs: str = "time"
    obsm: str | None = "X_pca"
    weights: str | Sequence[str | None] | None = None
    most: int | None = None
    dims: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 0.5:
            raise ValueError(f"Snapshots(holdout={self.holdout!r}): holdout must lie in [0, 0.5)")
        arrays, times, said = self._read()
        times = times if self.times is None else self.times
        masses = said.pop("weights", None)
        if self.most is not None:
            count(self, 2, most=self.most)
            arrays, masses = _fewer(arrays, masses, self.most)
        given = {"train": self.train, "heldout": self.heldout}
        if self.train is None and self.heldout is None:
            given = {name: _named(numbers, times, name) for name, numbers in said.items()}
        if self.dims is not None:
            count(self, dims=self.dims)
            if any(x.ndim != 2 or x.shape[1] < self.dims for x in arrays):
                raise ValueError(
                    f"Snapshots(dims={self.dims}): rows have shape {arrays[0].shape[1:]}; dims must be "
                    "at most the number of their coordinates"
                )
            arrays = [x[:, : self.dims] for x in arrays]
        series = Series.of(arrays, times, **given, masses=masses)
        for k in series.train:
            if self.holdout and round(len(arrays[k]) * self.holdout) < 1:
                raise ValueError(
                    f"Snapshots: the snapshot at time {series.times[k]:g} has {len(arrays[k])} rows, "
                    f"too few to hold out {self.holdout:g} of them for validation and test each; raise "
                    "holdout, or set it to 0"
                )
        object.__setattr__(self, "series", series)  # opened and checked once

    def marginals(self, split: str) -> tuple[Table, ...]:
        """One table of rows for each training snapshot, in order of time."""

        def table(k: int) -> Table:
            x = self.series.arrays[k]
            rows = split_rows(len(x), split, self.holdout) if self.holdout else torch.arange(len(x))
            return Table(x, rows, weight=self.series.mass(k))

        return tuple(map(table, self.series.train))

    def snapshot(self, which: float) -> Tensor:
        """All rows ``(N, *d)`` of any snapshot, by its time or number."""
        return self.series.rows(which)

    def clock(self, time: float) -> float:
        """A time on the clock of the training: 0 at its first snapshot, 1 at its last."""
        return self.series.clock(time)

    def _read(self) -> Read:
        if not isinstance(self.path, str):
            return _read_files([find_file(path) for path in self.path], self.times, self.weights)
        suffix = Path(self.path).suffix
        if glob.has_magic(self.path) or suffix == ".npy":
            files = find_files(self.path)
            files = files if self.times is not None else sorted(files, key=_time_of)
            return _read_files(files, self.times, self.weights)
        if suffix == ".npz":
            return _read_npz(self.path, self.keys, self.weights)
        if suffix == ".h5ad":
            return _read_h5ad(find_file(self.path), self.obs, self.obsm, self.weights)
        raise ValueError(
            f"Snapshots: '{self.path}' is no pattern of .npy files, .npz or .h5ad file, nor a list of "
            ".npy files"
        )


def find_files(pattern: str) -> list[Path]:
    """Files that match in the working directory, else below the folder that ``GENFLOW_DATA`` names, in
    order of their names.

    Raises:
        FileNotFoundError: if there are none, naming the places looked at.
    """
    places = [Path(pattern).expanduser()]
    if os.environ.get("GENFLOW_DATA"):
        places.append(Path(os.environ["GENFLOW_DATA"]) / pattern)
    for place in places:
        found = sorted(filter(os.path.isfile, glob.glob(str(place))))
        if found:
            return list(map(Path, found))
    looked = " or ".join(f"'{place}'" for place in places)
    raise FileNotFoundError(
        f"no snapshots at {looked}; let GENFLOW_DATA name the folder that they lie in, or set data.path"
    )


def _number(text: str, where: str) -> float:
    found = NUMBER.search(text)
    if found is None:
        raise ValueError(f"Snapshots: {where} does not end in a number, its time; give times=[...]")
    return float(found.group(1))


def _time_of(file: Path) -> float:
    return _number(file.stem, f"the name of '{file}'")


def _read_files(files: Sequence[Path], times: Sequence[float] | None, weights: Any) -> Read:
    if any(file.suffix != ".npy" for file in files):
        named = list(map(str, files))
        raise ValueError(f"Snapshots: a list or pattern must name .npy files, got {named}")
    times = list(map(_time_of, files)) if times is None else None
    said = {} if weights is None else {"weights": _each(weights, len(files), open_array)}
    return [open_array(str(file)) for file in files], times, said


def _each(names: Any, n: int, read: Callable[[str], np.ndarray]) -> list[np.ndarray | None]:
    """Weights of ``n`` snapshots by their names; ``None`` stays what it is."""
    if isinstance(names, str) or len(names) != n:
        raise ValueError(f"Snapshots(weights={names!r}): give a list of {n} names, one a snapshot")
    return [None if name is None else read(name) for name in names]


def _read_npz(path: str, keys: Sequence[str] | None, weights: Any) -> Read:
    file = find_file(path)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"'{file}' cannot be read as numeric arrays: it is no .npz archive")
    with zipfile.ZipFile(file) as content:
        held = [name.removesuffix(".npy") for name in content.namelist()]
    if keys is None:
        numbered = {int(k[1:]): k for k in held if re.fullmatch(r"x\d+", k)}
        keys = [numbered[k] for k in sorted(numbered)]
        if weights is None and any(f"w{k}" in held for k in numbered):
            weights = [f"w{k}" if f"w{k}" in held else None for k in sorted(numbered)]
    if not keys:
        raise ValueError(f"Snapshots: '{path}' holds {held}, not x0, x1, ...; name its arrays by keys")
    arrays = [open_array(path, key) for key in keys]
    known = {name for name in ("times", "train", "heldout") if name in held}
    said = {name: np.atleast_1d(open_array(path, name)).tolist() for name in known}
    if weights is not None:
        said["weights"] = _each(weights, len(arrays), lambda name: open_array(path, name))
    return arrays, said.pop("times", range(len(arrays))), said


def _named(numbers: Sequence[int], times: Sequence[float], name: str) -> list[float]:
    """The times of snapshots that a file names by number."""
    for k in numbers:
        if not isinstance(k, int) or not 0 <= k < len(times):
            raise ValueError(
                f"Snapshots: the file's {name} names snapshot {k}, but there are {len(times)}, "
                "numbered from 0"
            )
    return [float(times[k]) for k in numbers]


def _read_h5ad(file: Path, obs: str, obsm: str | None, weights: Any) -> Read:
    try:
        import anndata
    except ImportError as error:
        raise ImportError(f"reading '{file}' needs the package anndata: pip install anndata") from error
    content = anndata.read_h5ad(file)
    asked = (obs, content.obs, "obs"), (obsm, content.obsm, "obsm"), (weights, content.obs, "weights")
    for name, held, what in asked:
        if name is not None and name not in held:
            raise ValueError(
                f"Snapshots: '{file}' has no '{name}' in {what}, only {sorted(held.keys())}; set {what}"
            )
    labels = np.asarray(content.obs[obs])
    times = np.array([v if _is_number(v) else _number(str(v), f"obs '{v}'") for v in labels], float)
    x: Any = content.X if obsm is None else content.obsm[obsm]
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x)
    distinct = np.unique(times)
    said: dict[str, Any] = {}
    if weights is not None:
        mass = np.asarray(content.obs[weights], float)
        said["weights"] = [mass[times == time] for time in distinct]
    return [x[times == time] for time in distinct], distinct.tolist(), said


def _fewer(arrays: list[np.ndarray], masses: Sequence[Any] | None, most: int) -> tuple[list, Any]:
    """At most ``most`` rows of each snapshot, in their order, with their weights."""
    arrays, masses = list(arrays), None if masses is None else list(masses)
    for k, x in enumerate(arrays):
        if len(x) > most:
            rows = torch.randperm(len(x), generator=stream("most", k))[:most].sort().values.numpy()
            arrays[k] = np.array(x[rows])
            if masses is not None and masses[k] is not None:
                masses[k] = masses[k][rows]
    return arrays, masses


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))
