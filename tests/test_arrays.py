"""The user's own arrays: where they are found, what is refused and how it is said."""

import gc

import numpy as np
import pytest
import torch

from genflow.data import Arrays, Batches, draw_rows
from genflow.data.arrays import CHUNK, event_shape, open_array
from genflow.source import Gaussian

NORMAL = np.random.default_rng(0).normal(size=(40, 3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of its own, so that files are named as users name them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENFLOW_DATA", raising=False)
    return tmp_path


def saved(name: str, array: np.ndarray) -> str:
    np.save(name, array, allow_pickle=array.dtype == object)
    return name


def rows(data: Arrays, split: str, side: int = 1) -> list[int]:
    return data.marginals(split)[side].rows.tolist()


def everything(data: Arrays, split: str):
    found = data.marginals(split)[1]
    return found.take(torch.arange(len(found)))


def test_splits_are_disjoint_and_cover(folder):
    data = Arrays(saved("x.npy", NORMAL), saved("y.npy", NORMAL[:30]), holdout=0.2)
    for side, sizes in ((0, [18, 6, 6]), (1, [24, 8, 8])):
        parts = [rows(data, split, side) for split in ("train", "val", "test")]
        assert [len(p) for p in parts] == sizes
        assert sorted(sum(parts, [])) == list(range(sum(sizes)))
    assert rows(data, "val") == rows(Arrays("x.npy", Gaussian(3), holdout=0.2), "val")


def test_splits_are_random(folder):
    held = rows(Arrays(saved("x.npy", NORMAL), Gaussian(3)), "test")
    assert held not in (list(range(4)), list(range(36, 40))), "files are often sorted by time"


def test_values_and_conditions_arrive(folder):
    cond = np.arange(40, dtype=np.int16)
    data = Arrays(saved("x.npy", NORMAL), Gaussian(3), saved("c.npy", cond))
    x, labels = everything(data, "val")
    assert torch.equal(x, torch.from_numpy(NORMAL).float()[rows(data, "val")])
    assert labels.dtype == torch.int64
    assert labels.tolist() == rows(data, "val")


def test_vector_conditions_become_floats(folder):
    data = Arrays(saved("x.npy", NORMAL), Gaussian(3), saved("c.npy", NORMAL[:, :2]))
    x, cond = everything(data, "train")
    assert cond.dtype == torch.float32
    assert torch.equal(cond, x[:, :2])


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "float64"])
def test_numbers_become_floats(folder, dtype):
    values = np.arange(24).reshape(12, 2).astype(dtype)
    x, _ = everything(Arrays(saved("x.npy", values), Gaussian(2)), "train")
    assert x.dtype == torch.float32
    assert float(x.max()) == float(values.max())


def test_files_of_several_arrays_need_a_key(folder):
    np.savez("one.npz", x=NORMAL)
    np.savez("two.npz", first=NORMAL, second=NORMAL + 1)
    assert np.array_equal(open_array("one.npz"), NORMAL)
    assert np.array_equal(open_array("two.npz", "second"), NORMAL + 1)
    for key in (None, "third"):
        with pytest.raises(ValueError, match=f"two.npz.*'first', 'second'.*{key}"):
            open_array("two.npz", key)
    assert event_shape("two.npz", "first") == [3]


def test_npy_files_are_mapped_not_read(folder):
    assert isinstance(open_array(saved("x.npy", NORMAL)), np.memmap)
    assert isinstance(Arrays("x.npy", Gaussian(3)).marginals("train")[1].x, np.memmap)


def test_relative_paths_are_found_below_genflow_data(folder, monkeypatch):
    store = folder / "store" / "sub"
    store.mkdir(parents=True)
    np.save(store / "x.npy", NORMAL)
    monkeypatch.setenv("GENFLOW_DATA", str(folder / "store"))
    assert event_shape("sub/x.npy") == [3]
    (folder / "sub").mkdir()
    saved("sub/x.npy", NORMAL[:, :2])
    assert event_shape("sub/x.npy") == [2], "the working directory comes first"


def test_a_missing_file_names_the_places(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no data file at 'nowhere.npy'; give an existing"):
        Arrays("nowhere.npy", Gaussian(2))
    monkeypatch.setenv("GENFLOW_DATA", "/some/place")
    with pytest.raises(FileNotFoundError, match="'nowhere.npy' or '/some/place/nowhere.npy'"):
        Arrays("nowhere.npy", Gaussian(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 23, 39])
def test_the_first_row_that_is_not_finite_is_named(folder, bad, row):
    values = NORMAL.copy()
    values[row:, 1] = bad
    with pytest.raises(ValueError, match=f"x1 .'x.npy'.*not finite.*row {row};"):
        Arrays(saved("x.npy", values), Gaussian(3))
    with pytest.raises(ValueError, match=f"x0 .'x.npy'.*not finite.*row {row};"):
        Arrays(saved("y.npy", NORMAL), "x.npy")


def test_rows_are_counted_across_chunks(folder, monkeypatch):
    monkeypatch.setattr("genflow.data.arrays.CHUNK", 20)  # 6 rows of 3 numbers at a time
    assert CHUNK > 20
    values = NORMAL.copy()
    values[[31, 35], 2] = np.nan
    with pytest.raises(ValueError, match="row 31;"):
        Arrays(saved("x.npy", values), Gaussian(3))


BAD = {
    "objects": (np.array([[1, "a"], [None, {}]], dtype=object), "bad.npy.*cannot be read as a numeric"),
    "strings": (np.array([["a", "b"], ["c", "d"]]), "x1 .'bad.npy'.*<U1.*real numbers"),
    "complex": (np.ones((4, 2), dtype=complex), "complex128.*real numbers"),
    "dates": (np.ones((4, 2), dtype="datetime64[s]"), "datetime64.*real numbers"),
    "numbers": (np.ones(4), r"shape \(4,\).*\(N, \*dims\).*event dimension"),
    "a number": (np.array(1.0), r"shape \(\).*\(N, \*dims\)"),
    "empty": (np.ones((0, 2)), r"shape \(0, 2\).*N >= 1"),
    "records": (np.ones(4, dtype=[("a", float)]), "real numbers"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_arrays_are_refused(folder, kind):
    array, sentence = BAD[kind]
    saved("bad.npy", array)
    with pytest.raises(ValueError, match=sentence) as refusal:
        Arrays("bad.npy", Gaussian(2))
    assert "\n" not in str(refusal.value)


def test_objects_inside_npz_are_refused(folder):
    np.savez("bad.npz", x=np.array([[None, {}]], dtype=object))
    with pytest.raises(ValueError, match="array 'x' of 'bad.npz' is not numeric"):
        Arrays("bad.npz", Gaussian(2))


@pytest.mark.parametrize("name", ["x.csv", "x.pt", "x"])
def test_other_suffixes_are_refused(folder, name):
    (folder / name).write_text("1,2\n3,4\n")
    with pytest.raises(ValueError, match=f"'{name}' is no .npy or .npz file; save .*numpy.save"):
        Arrays(name, Gaussian(2))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # numpy leaves a file that is no zip open
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
def test_damaged_files_are_refused(folder, name, kind):
    (np.save if name == "x.npy" else np.savez)(name, NORMAL)
    whole = (folder / name).read_bytes()
    content = {"empty": b"", "text": b"not an array", "cut": whole[: len(whole) // 2]}[kind]
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        Arrays(name, Gaussian(3))
    said = str(refusal.value)
    del refusal
    gc.collect()  # now, while the warning is ignored
    assert f"'{name}'" in said
    assert "cannot be read as a numeric array" in said or "damaged" in said


@pytest.mark.parametrize(
    ("cond", "sentence"),
    [
        (np.arange(39), r"cond .'c.npy'.*\(39,\).*expected 40 rows"),
        (np.array(["a"] * 40), "cond .'c.npy'.*<U1"),
        (np.where(np.arange(40) == 7, np.nan, 1.0)[:, None], "cond .'c.npy'.*finite.*row 7"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(folder, cond, sentence):
    saved("x.npy", NORMAL)
    with pytest.raises(ValueError, match=sentence):
        Arrays("x.npy", Gaussian(3), saved("c.npy", cond))


def test_marginals_of_different_shapes_are_refused(folder):
    with pytest.raises(ValueError, match=r"x0 has event shape \(2,\) but x1 has \(3,\)"):
        Arrays(saved("x.npy", NORMAL), saved("y.npy", NORMAL[:, :2]))


@pytest.mark.parametrize("holdout", [0, 0.5, -0.1, 1])
def test_holdout_leaves_something_to_train_on(folder, holdout):
    with pytest.raises(ValueError, match=r"holdout must lie strictly between 0 and 0.5"):
        Arrays(saved("x.npy", NORMAL), Gaussian(3), holdout=holdout)


def test_arrays_too_short_to_split_are_refused(folder):
    with pytest.raises(ValueError, match="rows"):
        Arrays(saved("x.npy", NORMAL[:3]), Gaussian(3))


def test_weighted_rows_are_drawn_by_their_weights(tmp_path):
    n = 1000
    x1 = np.arange(n, dtype=np.float32)[:, None]
    weight = np.where(np.arange(n) % 3 == 0, 3.0, np.where(np.arange(n) % 3 == 1, 1.0, 0.0))
    np.save(tmp_path / "x1.npy", x1)
    np.save(tmp_path / "weight.npy", weight)
    paths = [str(tmp_path / f"{name}.npy") for name in ("x1", "weight")]
    data = Arrays(paths[0], Gaussian(1), weight=paths[1])
    stream = iter(Batches(data.marginals("train"), 200))
    drawn = torch.cat([next(stream).xs[1] for _ in range(50)])[:, 0].long()
    share = torch.bincount(drawn % 3, minlength=3) / len(drawn)
    train = data.marginals("train")[1].rows
    mass = torch.tensor(weight)[train]
    want = torch.stack([mass[train % 3 == k].sum() for k in range(3)]) / mass.sum()
    error = (want * (1 - want) / len(drawn)).sqrt()
    assert ((share - want).abs() <= 4.5 * error).all() and want[2] == share[2] == 0
    assert (want[0] - 1 / 3).abs() > 10 * error[0]  # even rows would be seen
    evaluated = draw_rows(data.marginals("test"), 50, 0).xs[1][:, 0].long()
    assert not (evaluated % 3 == 2).any()
    again = next(iter(Batches(data.marginals("train"), 200))).xs[1][:, 0].long()
    assert torch.equal(again, drawn[:200]), "batches depend on their number alone"


@pytest.mark.parametrize(
    "weight, words",
    [
        (np.ones(9), "expected 10 numbers"),
        (-np.ones(10), "finite numbers >= 0"),
        (np.full(10, np.nan), "finite numbers >= 0"),
        (np.zeros(10), "is 0 on every row of the train split"),
    ],
)
def test_bad_weights_are_refused(tmp_path, weight, words):
    np.save(tmp_path / "x1.npy", np.zeros((10, 2)))
    np.save(tmp_path / "w.npy", weight)
    with pytest.raises(ValueError, match=words):
        Arrays(str(tmp_path / "x1.npy"), Gaussian(2), weight=str(tmp_path / "w.npy"))
