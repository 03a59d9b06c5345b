"""MNIST and its kin are read from the files that users have, and bad files are named."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.data import Batches, IdxImages
from genflow.data import idx_images as module
from genflow.source import Gaussian

X0 = Gaussian([1, 28, 28])
FASHION = Path("/usr/share/datasets/fashion-mnist")


def write(file: Path, array: np.ndarray) -> None:
    """An IDX file, as its authors describe it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = head + array.astype(np.uint8).tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def arrays(n: int = 40, side: int = 28, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (n, side, side)), draw.integers(0, 10, n)


def write_all(folder: Path, dot: str = "-", end: str = "") -> dict[str, tuple]:
    made = {"train": arrays(40), "t10k": arrays(15, seed=1)}
    for stem, (images, labels) in made.items():
        write(folder / f"{stem}-images{dot}idx3-ubyte{end}", images)
        write(folder / f"{stem}-labels{dot}idx1-ubyte{end}", labels)
    return made


def rows(data: IdxImages, split: str) -> tuple:
    table = data.marginals(split)[-1]
    return table.take(torch.arange(len(table)))


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_every_layout_gives_the_same_images(tmp_path, dot, end, below):
    images, labels = write_all(tmp_path / below, dot, end)["t10k"]
    x, cond = rows(IdxImages(X0, folder=str(tmp_path), labels=True), "test")
    assert x.shape == (15, 1, 28, 28)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x[:, 0].numpy(), images / 255 * 2 - 1, atol=1e-6)
    assert cond.dtype == torch.int64
    assert cond.tolist() == labels.tolist()


def test_training_and_validation_share_the_training_file(tmp_path):
    images, labels = write_all(tmp_path)["train"]
    data = IdxImages(X0, folder=str(tmp_path), labels=True, holdout=0.25)
    train, val = rows(data, "train"), rows(data, "val")
    assert (len(train[0]), len(val[0])) == (30, 10)
    both = torch.cat([train[0], val[0]]).flatten(1), torch.cat([train[1], val[1]])
    whole = torch.from_numpy(images).flatten(1) / 127.5 - 1
    place = torch.cdist(both[0], whole).argmin(1)
    assert sorted(place.tolist()) == list(range(40))
    assert both[1].tolist() == labels[place.numpy()].tolist()


def test_bytes_stay_bytes_until_a_batch_is_taken(tmp_path):
    write_all(tmp_path)
    data = IdxImages(X0, folder=str(tmp_path))
    table = data.marginals("train")[-1]
    assert table.x.dtype == torch.uint8
    assert table.cond is None
    assert table.x.data_ptr() == data.marginals("val")[-1].x.data_ptr(), "read once"
    (start, x), cond = Batches(data.marginals("train"), 8).batch(0)
    assert start.shape == x.shape == (8, 1, 28, 28)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert cond is None


def test_a_changed_file_is_read_again(tmp_path):
    write_all(tmp_path)
    data = IdxImages(X0, folder=str(tmp_path))
    before = rows(data, "test")[0]
    images, _ = arrays(15, 24, seed=5)
    write(tmp_path / "t10k-images-idx3-ubyte", images)
    after = rows(data, "test")[0]
    assert before.shape[1:] == (1, 28, 28)
    np.testing.assert_allclose(after[:, 0].numpy(), images / 127.5 - 1, atol=1e-6)


def test_files_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv("GENFLOW_DATA", str(tmp_path / "mine"))
    for name, place in (
        ("mnist", "mine/mnist"), ("kmnist", "mine/KMNIST/raw"),
        ("fashion-mnist", "system/fashion-mnist"),
    ):  # fmt: skip
        write_all(tmp_path / place)
        assert IdxImages(X0, name).find() == tmp_path / place
    write_all(tmp_path / "mine/own")
    assert IdxImages(X0, folder="own").find() == tmp_path / "mine/own"
    monkeypatch.delenv("GENFLOW_DATA")
    with pytest.raises(FileNotFoundError, match="of mnist in '.*/system/mnist', nor"):
        IdxImages(X0, "mnist").marginals("train")


def test_absent_files_are_looked_for_aloud(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_DATA", "/mine")
    with pytest.raises(FileNotFoundError) as caught:
        IdxImages(X0, folder=str(tmp_path / "no")).marginals("train")
    said = str(caught.value)
    assert f"'{tmp_path / 'no'}'" in said
    assert "'FashionMNIST/raw'" in said
    assert "Debian's package dataset-fashion-mnist" in said
    assert "\n" not in said
    write_all(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 't10k-labels-idx1-ubyte'"):
        IdxImages(X0, folder=str(tmp_path)).marginals("test")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("t10k-images-idx3-ubyte", lambda c: c[:1000], "says that it holds 15 x 28 x 28 bytes but 984"),
        ("t10k-images-idx3-ubyte", lambda c: c + b"\0", "but 11761 follow"),
        ("t10k-images-idx3-ubyte", lambda c: c[:9], "no IDX file of unsigned bytes in 3 dimensions"),
        ("t10k-images-idx3-ubyte", lambda c: b"", "begins with nothing"),
        ("t10k-images-idx3-ubyte", lambda c: b"<html>" + c, "begins with 3c 68 74 6d"),
        ("t10k-labels-idx1-ubyte", lambda c: b"\0\0\x0d" + c[3:], "in 1 dimension: it begins"),
        ("t10k-images-idx3-ubyte.gz", lambda c: gzip.compress(c)[:-30], "cannot be read: .*fetch it"),
        ("t10k-images-idx3-ubyte.gz", lambda c: c, "cannot be read: Not a gzipped file"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, damage, said):
    write_all(tmp_path)
    plain = tmp_path / name.removesuffix(".gz")
    content = plain.read_bytes()
    plain.unlink()
    (tmp_path / name).write_bytes(damage(content))
    with pytest.raises(ValueError, match=said) as caught:
        IdxImages(X0, folder=str(tmp_path), labels=True).marginals("test")
    assert str(tmp_path / name) in str(caught.value)


def test_images_and_labels_must_be_as_many(tmp_path):
    write_all(tmp_path)
    write(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(14))
    with pytest.raises(ValueError, match="15 images but 14 labels of 't10k'"):
        IdxImages(X0, folder=str(tmp_path)).marginals("test")


@pytest.mark.parametrize(
    ("options", "said"), [({"name": "emnist"}, "name"), ({"holdout": 1}, "holdout")]
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=f"IdxImages.*{said} must"):
        IdxImages(X0, **options)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_the_systems():
    data = IdxImages(X0, labels=True)
    with gzip.open(FASHION / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    x, labels = rows(data, "test")
    assert labels.bincount().tolist() == [1000] * 10
    np.testing.assert_allclose(x[::100, 0].numpy(), pixels[::100] / 127.5 - 1, atol=1e-6)
    train, val = (data.marginals(split)[-1] for split in ("train", "val"))
    assert (len(train), len(val)) == (54_000, 6_000)
    assert torch.cat([train.cond[train.rows], train.cond[val.rows]]).bincount().tolist() == [6000] * 10
