"""MNIST, Fashion-MNIST and KMNIST from the files that their authors publish."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from genflow.checks import between, one_of
from genflow.data.base import Data, Table, split_rows
from genflow.source import Source

NAMES = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "mnist": "MNIST"}
"""What a data set is called here and among Debian's packages, and its folder in torchvision."""
SYSTEM = Path("/usr/share/datasets")
"""Where Debian's packages put data sets."""
STEMS = {"train": "train", "val": "train", "test": "t10k"}
"""How the files begin that hold a split."""


@dataclass(frozen=True)
class Pixels(Table):
    """A table of bytes, four times smaller than numbers, whose batches lie in [-1, 1]."""

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        x, cond = super().take(index)
        return x / 127.5 - 1, cond


@dataclass(frozen=True)
class IdxImages(Data):
    """Grey images in [-1, 1] of shape ``(1, 28, 28)``, in ten classes, from IDX files (LeCun, Cortes &
    Burges 1998, "The MNIST database of handwritten digits"; Xiao, Rasul & Vollgraf 2017,
    "Fashion-MNIST"; Clanuwat et al. 2018, "Deep learning for classical Japanese literature").

    Nothing is downloaded. Files may be gzipped or not, be called ``train-images-idx3-ubyte`` or
    ``train-images.idx3-ubyte``, and lie in the folder itself, in ``raw/`` or, as torchvision leaves
    them, in ``FashionMNIST/raw/``. On Debian, ``apt install dataset-fashion-mnist`` provides
    Fashion-MNIST.

    The 10,000 images of the ``t10k`` files are the test split, those of the ``train`` files are shared
    by training and validation.

    Args:
        x0: the source side.
        name: ``"fashion-mnist"``, ``"kmnist"`` or ``"mnist"``.
        folder: where the files lie, also looked for below ``$GENFLOW_DATA``; ``None``: in
            ``$GENFLOW_DATA/<name>``, in ``$GENFLOW_DATA`` in the layout of torchvision, and among the
            system's data sets in ``/usr/share/datasets/<name>``.
        labels: give the class, 0 to 9, as condition.
        holdout: fraction of the training files for validation.

    Raises:
        FileNotFoundError: when the data are first used, if there are no files, naming the places.
        ValueError: if a file is damaged, or images and labels differ in number.
    """

    x0: Source
    name: str = "fashion-mnist"
    folder: str | None = None
    labels: bool = False
    holdout: float = 0.1

    def __post_init__(self) -> None:
        one_of(self, tuple(NAMES), name=self.name)
        between(self, 0, 1, holdout=self.holdout)

    def marginals(self, split: str) -> tuple[Source | Table, ...]:
        folder = self.find()
        images = _idx(folder, f"{STEMS[split]}-images", 3)
        labels = _idx(folder, f"{STEMS[split]}-labels", 1)
        if len(images) != len(labels):
            raise ValueError(
                f"IdxImages: '{folder}' holds {len(images)} images but {len(labels)} labels of "
                f"'{STEMS[split]}'; take both files from the same source"
            )
        rows = torch.arange(len(images))
        if split != "test":
            held = torch.isin(rows, split_rows(len(images), "test", self.holdout))
            rows = rows[held if split == "val" else ~held]
        return self.x0, Pixels(images[:, None], rows, labels.long() if self.labels else None)

    def find(self) -> Path:
        """The folder that holds the files.

        Raises:
            FileNotFoundError: if there is none, naming the places looked at.
        """
        places = self._places()
        below = ("", "raw", f"{NAMES[self.name]}/raw")
        for folder in (place / inner for place in places for inner in below):
            if _file(folder, "train-images", 3) is not None:
                return folder
        hint = ", or install Debian's package dataset-fashion-mnist" * (self.name == "fashion-mnist")
        raise FileNotFoundError(
            f"no file 'train-images-idx3-ubyte' or 'train-images-idx3-ubyte.gz' of {self.name} in "
            f"{' or '.join(repr(str(place)) for place in places)}, nor below in 'raw' or "
            f"'{NAMES[self.name]}/raw': give the folder of your copy as folder (data.folder=path){hint}"
        )

    def _places(self) -> list[Path]:
        below = os.environ.get("GENFLOW_DATA")
        if self.folder is not None:
            given = Path(self.folder).expanduser()
            return [given, *([Path(below) / given] if below else [])]
        own = [Path(below) / self.name, Path(below)] if below else []
        return [*own, SYSTEM / self.name]


def _file(folder: Path, stem: str, dims: int) -> Path | None:
    names = (f"{stem}{dot}idx{dims}-ubyte{end}" for dot in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _idx(folder: Path, stem: str, dims: int) -> Tensor:
    file = _file(folder, stem, dims)
    if file is None:
        raise FileNotFoundError(
            f"'{folder}' lacks '{stem}-idx{dims}-ubyte', as it is or gzipped; all four files are needed"
        )
    state = file.stat()
    return read_idx(file, dims, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=8)
def read_idx(file: Path, dims: int, version: object = None) -> Tensor:
    """Bytes of an IDX file: four bytes of magic number, the sizes in big-endian, then the numbers.

    Args:
        file: gzipped if its name ends in ``.gz``.
        dims: how many dimensions there must be.
        version: what tells a changed file from one that was read before.

    Returns:
        ``(N, ...)``, of unsigned bytes. It is kept: do not write into it.

    Raises:
        ValueError: if the file is damaged, or holds something else.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"'{file}' cannot be read: {error}; fetch it anew") from error
    magic = bytes([0, 0, 8, dims])  # unsigned bytes in so many dimensions
    start = 4 + 4 * dims
    if content[:4] != magic or len(content) < start:
        raise ValueError(
            f"'{file}' is no IDX file of unsigned bytes in {dims} dimension{'s' * (dims > 1)}: it "
            f"begins with {content[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')}"
        )
    shape = [int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4)]
    found = len(content) - start
    if found != math.prod(shape) or found == 0:
        raise ValueError(
            f"'{file}' says that it holds {' x '.join(map(str, shape))} bytes but {found} follow; "
            "fetch it anew"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)
