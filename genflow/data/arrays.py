"""The user's own arrays, from ``.npy`` or ``.npz`` files; ``.npy`` files are memory-mapped."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genflow.checks import between
from genflow.data.base import SPLITS, Data, Table, split_rows
from genflow.source import Source

CHUNK = 1 << 24
"""Numbers checked at a time."""


def find_file(path: str) -> Path:
    """The file at ``path``, or below the folder that ``GENFLOW_DATA`` names.

    Raises:
        FileNotFoundError: if neither exists, naming the places looked at.
    """
    places = [Path(path).expanduser()]
    if os.environ.get("GENFLOW_DATA"):
        places.append(Path(os.environ["GENFLOW_DATA"]) / path)
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(f"'{place}'" for place in places)
    raise FileNotFoundError(f"no data file at {looked}; give an existing .npy or .npz file")


def open_array(path: str, key: str | None = None) -> np.ndarray:
    """An array from a file, memory-mapped where it is ``.npy``.

    Args:
        path: a ``.npy`` or ``.npz`` file.
        key: which array of an ``.npz`` file; not needed where it holds one.

    Raises:
        FileNotFoundError, ValueError: one sentence naming the file and what is allowed.
    """
    file = find_file(path)
    if file.suffix not in (".npy", ".npz"):
        raise ValueError(f"'{file}' is no .npy or .npz file; save your array with numpy.save")
    if file.suffix == ".npz" and not zipfile.is_zipfile(file):  # np.load would leave it open
        raise ValueError(f"'{file}' cannot be read as a numeric array: it is no .npz archive")
    try:
        content = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"'{file}' cannot be read as a numeric array: {error}") from error
    if file.suffix == ".npy":
        return content
    with content:
        return _member(content, file, key)


def _member(content: Any, file: Path, key: str | None) -> np.ndarray:
    keys = list(content.keys())
    if key is None and len(keys) == 1:
        key = keys[0]
    if key not in keys:
        raise ValueError(f"'{file}' holds the arrays {keys}; name one of them, got {key!r}")
    try:
        return content[key]
    except ValueError as error:
        raise ValueError(f"array '{key}' of '{file}' is not numeric: {error}") from error


def check_array(array: np.ndarray, name: str) -> None:
    """Refuse arrays that cannot be trained on, with the first bad row.

    Raises:
        ValueError: for other than real numbers, no event dimension, no rows, NaN or infinities.
    """
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype}, expected real numbers")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (N, *dims) with N >= 1 and at least one "
            "event dimension, none of them 0"
        )
    if array.dtype.kind != "f":
        return
    rows = max(1, CHUNK // max(1, array[0].size))
    for start in range(0, len(array), rows):
        finite = np.isfinite(array[start : start + rows]).reshape(-1, array[0].size).all(1)
        if not finite.all():
            bad = start + int(np.argmin(finite))
            raise ValueError(
                f"{name} holds a value that is not finite (NaN or infinite), first in row {bad}; "
                "remove or fill such rows"
            )


@dataclass(frozen=True)
class Arrays(Data):
    """Rows from files, shuffled anew every pass; larger than memory is fine for ``.npy``.

    Relative paths are looked for in the working directory, then below ``$GENFLOW_DATA``.

    Args:
        x1: path of the data side, ``(N, *dims)``.
        x0: a source, or the path of the source side.
        cond: path of the conditions of ``x1``: integer labels ``(N,)`` or vectors ``(N, k)``.
        key: name of the array of ``x1`` (and ``x0``) inside ``.npz`` files.
        cond_key: name of the conditions inside an ``.npz`` file.
        weight: path of the weights of ``x1``, ``(N,)``, for weighted samples: rows are drawn in
            proportion to them, in training and in every evaluation.
        weight_key: name of the weights inside an ``.npz`` file.
        holdout: fraction for validation and for test, each.
    """

    x1: str
    x0: Source | str
    cond: str | None = None
    key: str | None = None
    cond_key: str | None = None
    holdout: float = 0.1
    weight: str | None = None
    weight_key: str | None = None

    def __post_init__(self) -> None:
        between(self, 0, 0.5, holdout=self.holdout)
        data = self._open(self.x1, "x1")
        cond = None if self.cond is None else self._cond(len(data))
        start = self._open(self.x0, "x0") if isinstance(self.x0, str) else self.x0
        if isinstance(start, np.ndarray) and start.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"Arrays: x0 has event shape {start.shape[1:]} but x1 has {data.shape[1:]}; they "
                "must be equal"
            )
        # opened once: scanning a large file for NaN at every split would take minutes
        weight = None if self.weight is None else self._weight(len(data))
        object.__setattr__(self, "_opened", (start, data, cond, weight))

    def _open(self, path: str, name: str) -> np.ndarray:
        array = open_array(path, self.key)
        check_array(array, f"Arrays: {name} ('{path}')")
        if round(len(array) * self.holdout) < 1:
            raise ValueError(
                f"Arrays: {name} ('{path}') has {len(array)} rows, too few to hold out "
                f"{self.holdout:g} of them for validation and test each; raise holdout or add rows"
            )
        return array

    def _cond(self, n: int) -> np.ndarray:
        cond = open_array(self.cond, self.cond_key)
        if len(cond) != n or cond.dtype.kind not in "iuf":
            raise ValueError(
                f"Arrays: cond ('{self.cond}') has shape {cond.shape} and dtype {cond.dtype}, "
                f"expected {n} rows of labels or vectors like x1"
            )
        if cond.dtype.kind == "f" and not np.isfinite(cond).all():
            bad = int(np.argmin(np.isfinite(cond).reshape(n, -1).all(1)))
            raise ValueError(
                f"Arrays: cond ('{self.cond}') holds a value that is not finite, first in row {bad}"
            )
        return cond.astype(np.int64) if cond.dtype.kind in "iu" else cond.astype(np.float32)

    def _weight(self, n: int) -> torch.Tensor:
        weight = open_array(self.weight, self.weight_key)
        stated = f"Arrays: weight ('{self.weight}')"
        if weight.shape != (n,) or weight.dtype.kind not in "iuf":
            raise ValueError(
                f"{stated} has shape {weight.shape} and dtype {weight.dtype}, expected {n} numbers, "
                "one a row of x1"
            )
        weight = torch.from_numpy(np.array(weight, dtype=np.float64))
        if not bool(((weight >= 0) & weight.isfinite()).all()):
            raise ValueError(f"{stated} must hold finite numbers >= 0")
        for split in SPLITS:
            if not float(weight[split_rows(n, split, self.holdout)].sum()) > 0:
                raise ValueError(f"{stated} is 0 on every row of the {split} split; raise holdout")
        return weight

    def marginals(self, split: str) -> tuple[Source | Table, ...]:
        start, data, cond, weight = self._opened
        if isinstance(start, np.ndarray):
            start = Table(start, split_rows(len(start), split, self.holdout))
        rows = split_rows(len(data), split, self.holdout)
        return start, Table(data, rows, cond, weight=weight)


def event_shape(path: str, key: str | None = None) -> list[int]:
    """Event shape of the array in a file: what ``dim`` should be."""
    return list(open_array(path, key).shape[1:])
