"""Populations at several times: what is read, which snapshot is what, how predictions are scored."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from configs import QUIET, composed, plain
from hydra.utils import instantiate
from torch import Tensor
from toy_training import adam

import genflow
from genflow.data import Batches, Series, Snapshots, draw_rows
from genflow.loss import Matching
from genflow.model import Generator
from genflow.process import Process
from genflow.solver import Euler, Exact, Heun
from genflow.source import Empirical
from genflow.training import DataModule, Training
from genflow.training.cli import run
from genflow.training.heldout import heldout_distances
from genflow.transform import Standardise

DAYS = (2, 3, 4, 10)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of its own, so that files are named as users name them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENFLOW_DATA", raising=False)
    return tmp_path


def rows(n: int, level: float, d: int = 3) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, d)) + level


def days(folder="") -> str:
    """Files of 20, 30, 40 and 100 rows around the number of their day."""
    for day in DAYS:
        np.save(f"{folder}cells_day_{day}.npy", rows(10 * day, day))
    return f"{folder}cells_day_*.npy"


def archive(name: str = "series.npz", **more) -> str:
    np.savez(name, **{f"x{k}": rows(20 + k, k, 2) for k in range(11)}, **more)
    return name


def numbers(data: Snapshots) -> tuple:
    return data.series.times, data.series.train, data.series.heldout


def test_files_come_in_order_of_the_numbers_in_their_names(folder):
    data = Snapshots(days(), heldout=[3.0])
    assert numbers(data) == ((2.0, 3.0, 4.0, 10.0), (0, 2, 3), (1,))  # names would put day 10 first
    tables = data.marginals("train")
    assert [len(t) for t in tables] == [16, 32, 80]
    for table, day in zip(tables, (2, 4, 10)):
        x, cond = table.take(torch.arange(len(table)))
        assert cond is None and abs(float(x.mean()) - day) < 0.5
    assert data.snapshot(3.0).shape == (30, 3)
    assert torch.equal(data.snapshot(3.0), torch.from_numpy(rows(30, 3)).float())


def test_lists_keep_their_order(folder):
    days()
    names = ["cells_day_4.npy", "cells_day_2.npy"]
    assert Snapshots(names, times=[0, 0.5]).series.times == (0.0, 0.5)
    assert float(Snapshots(names, times=[0, 0.5]).snapshot(0.0).mean()) > 3
    with pytest.raises(ValueError, match="must rise from snapshot to snapshot, but 2 follows 4"):
        Snapshots(names)


@pytest.mark.parametrize("name", ["x_0.25.npy", "x0.25.npy", "day-0.25.npy", "t1_0.25.npy"])
def test_numbers_in_names_may_have_a_point(folder, name):
    np.save(name, rows(20, 0))
    np.save("later_7.npy", rows(20, 0))
    assert Snapshots([name, "later_7.npy"]).series.times == (0.25, 7.0)


def test_archives_say_which_snapshot_is_what(folder):
    times = 0.75 * np.arange(11)
    path = archive(times=times, train=np.arange(0, 11, 2), heldout=np.array([1, 9]))
    data = Snapshots(path)
    assert numbers(data) == (tuple(times), (0, 2, 4, 6, 8, 10), (1, 9))
    assert data.snapshot(10).shape == (30, 2)  # x10 after x9
    assert numbers(Snapshots(path, heldout=[0.75]))[1:] == ((0, *range(2, 11)), (1,))
    assert numbers(Snapshots(path, train=[0.0, 7.5]))[1:] == ((0, 10), ())
    assert numbers(Snapshots(archive("bare.npz"))) == (
        tuple(map(float, range(11))),
        tuple(range(11)),
        (),
    )


def test_arrays_of_an_archive_by_name(folder):
    np.savez("named.npz", late=rows(20, 1), early=rows(30, 0))
    data = Snapshots("named.npz", keys=["early", "late"], times=[1.5, 4])
    assert data.snapshot(0).shape == (30, 3) and data.series.times == (1.5, 4.0)
    with pytest.raises(
        ValueError, match=r"holds \['late', 'early'\], not x0, x1.*name its arrays by keys"
    ):
        Snapshots("named.npz")


def test_the_folder_of_the_environment_is_searched(folder, monkeypatch):
    (folder / "store").mkdir()
    monkeypatch.setenv("GENFLOW_DATA", str(folder / "store"))
    assert len(Snapshots(days("store/").removeprefix("store/")).series.times) == 4
    with pytest.raises(FileNotFoundError, match="no snapshots at 'none_.*' or '.*store/none_"):
        Snapshots("none_*.npy")


def test_whole_numbers_that_could_be_two_snapshots_are_refused(folder):
    path = days()
    assert numbers(Snapshots(path, heldout=[1]))[2] == (1,)  # no day 1: a number
    assert numbers(Snapshots(path, heldout=[4]))[2] == (2,)  # no number 4: a day
    with pytest.raises(ValueError, match="3 is the time of one snapshot and the number of another"):
        Snapshots(path, heldout=[3])
    assert numbers(Snapshots(path, heldout=[3.0]))[2] == (1,)
    assert numbers(Snapshots(path, heldout=[np.int64(0), np.float32(10)]))[2] == (0, 3)


BAD = [
    ({"heldout": [7.0]}, "there is no snapshot 7.0; the times are 2, 3, 4, 10, numbered 0 to 3"),
    ({"heldout": [12]}, "there is no snapshot 12"),
    ({"heldout": [-1]}, "there is no snapshot -1"),
    ({"heldout": [True]}, "True names no snapshot"),
    ({"train": [2.0]}, "at least two snapshots must be left to train on, got 1 of 4"),
    ({"heldout": [2.0, 3.0, 4.0]}, "got 1 of 4"),
    ({"train": [2.0, 3.0], "heldout": [3.0]}, "at time 3 cannot be both in train and in heldout"),
    ({"times": [0, 1, 1, 2]}, "must rise from snapshot to snapshot, but 1 follows 1"),
    ({"times": [0, 1, 2]}, "4 snapshots but 3 times"),
    ({"times": [0, 1, 2, float("nan")]}, "finite"),
    ({"holdout": 0.5}, "holdout must lie in"),
    ({"holdout": 0.01}, "at time 2 has 20 rows, too few to hold out 0.01"),
]


@pytest.mark.parametrize(("options", "said"), BAD, ids=lambda v: str(v)[:30])
def test_bad_input_gets_one_sentence(folder, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        Snapshots(days(), **options)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(folder):
    np.save("a_1.npy", rows(20, 0))
    np.save("b_2.npy", rows(20, 0, d=2))
    broken = rows(20, 0)
    broken[7, 1] = np.nan
    np.save("c_3.npy", broken)
    np.save("noname.npy", rows(20, 0))
    archive("wrong.npz", heldout=np.array([11]))
    (folder / "text.npz").write_text("no archive")
    for path, said in (
        (["a_1.npy", "b_2.npy"], r"at time 2 has event shape \(2,\) but that at time 1 has \(3,\)"),
        (["a_1.npy", "c_3.npy"], "at time 3 holds a value that is not finite .* row 7"),
        ("a_*.npy", "at least two snapshots are needed, got 1"),
        (["a_1.npy", "noname.npy"], "'noname.npy' does not end in a number, its time; give times="),
        ("wrong.npz", "heldout names snapshot 11, but there are 11"),
        ("text.npz", "no .npz archive"),
        ("folder/cells.csv", "no pattern of .npy files"),
        (["a_1.npy", "wrong.npz"], "must name .npy files"),
    ):
        with pytest.raises(ValueError, match=said):
            Snapshots(path)
    with pytest.raises(FileNotFoundError, match="no data file at 'gone_2.npy'"):
        Snapshots(["a_1.npy", "gone_2.npy"])


class Dense:
    """What scipy's sparse matrices can do."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def toarray(self) -> np.ndarray:
        return self.x


@pytest.mark.parametrize(
    "labels", [[3, 1, 3, 1, 3], ["D3", "D1", "D3", "D1", "D3"]], ids=["numbers", "words"]
)
def test_cells_of_an_annotated_file(folder, monkeypatch, labels):
    x = np.arange(10.0).reshape(5, 2)
    content = types.SimpleNamespace(obs={"day": labels}, obsm={"X_pca": x}, X=Dense(x + 1))
    stub = types.ModuleType("anndata")
    stub.read_h5ad = lambda file: content
    monkeypatch.setitem(sys.modules, "anndata", stub)
    (folder / "cells.h5ad").touch()
    data = Snapshots("cells.h5ad", obs="day", holdout=0)
    assert data.series.times == (1.0, 3.0)
    assert torch.equal(data.snapshot(3.0), torch.from_numpy(x[[0, 2, 4]]).float())
    assert float(Snapshots("cells.h5ad", obs="day", obsm=None, holdout=0).snapshot(1.0)[0, 0]) == 3
    with pytest.raises(ValueError, match=r"has no 'time' in obs, only \['day'\]; set obs"):
        Snapshots("cells.h5ad")
    with pytest.raises(ValueError, match=r"has no 'X_umap' in obsm"):
        Snapshots("cells.h5ad", obs="day", obsm="X_umap")


def test_annotated_files_need_their_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    (folder / "cells.h5ad").touch()
    with pytest.raises(
        ImportError, match="'cells.h5ad' needs the package anndata: pip install anndata"
    ):
        Snapshots("cells.h5ad")


def test_splits(folder):
    data = Snapshots(days(), train=[2.0, 10.0], holdout=0.2)
    for k, n in ((0, 20), (1, 100)):
        parts = [data.marginals(split)[k].rows.tolist() for split in ("train", "val", "test")]
        assert [len(p) for p in parts] == [n - 2 * (n // 5), n // 5, n // 5]
        assert sorted(sum(parts, [])) == list(range(n))
    whole = Snapshots(days(), holdout=0)
    assert all(len(whole.marginals(split)[0]) == 20 for split in ("train", "val", "test"))


def test_batches_of_many_marginals(folder):
    data = Snapshots(archive(), heldout=[1, 2])
    batch = Batches(data.marginals("train"), 8).batch(0)
    assert [tuple(x.shape) for x in batch.xs] == [(8, 2)] * 9 and batch.cond is None
    assert [len(x) for x in draw_rows(data.marginals("test"), 100).xs][:2] == [2, 2]


def test_the_clock_runs_over_the_training(folder):
    data = Snapshots(days(), train=[3.0, 10.0], heldout=[2.0, 4.0])
    assert [data.clock(t) for t in (3.0, 10.0, 6.5, 2.0)] == pytest.approx([0, 1, 0.5, -1 / 7])
    assert data.series.inside() == [2]


def test_a_series_needs_no_file():
    series = Series.of([rows(5, k) for k in range(3)], [0, 2, 3], heldout=[2.0])
    assert (series.train, series.heldout, series.clock(2.0)) == ((0, 2), (1,), pytest.approx(2 / 3))
    with pytest.raises(ValueError, match="at least two snapshots are needed, got 1"):
        Series.of([rows(5, 0)], [0])


def test_particles_have_weights(folder, monkeypatch):
    mass = np.arange(1.0, 22.0)
    path = archive(w1=mass, w0=np.ones(20))
    data = Snapshots(path, heldout=[2.0])
    assert data.series.mass(2) is None
    first, second, third = data.marginals("train")[:3]
    assert third.weight is None and torch.equal(second.weight, torch.from_numpy(mass))
    x = torch.stack([second.take(second.draw(1, torch.Generator().manual_seed(s)))[0][0]
                     for s in range(300)])  # fmt: skip
    kept = second.rows.numpy()
    mean = (rows(21, 1, 2)[kept] * mass[kept, None]).sum(0) / mass[kept].sum()
    assert abs(x.numpy().mean(0) - mean).max() < 4.5 / 300**0.5
    np.savez("named.npz", a=rows(20, 0), b=rows(20, 1), m=np.ones(20))
    other = Snapshots("named.npz", keys=["a", "b"], weights=["m", None])
    assert other.series.masses[1] is None
    days()
    np.save("w_2.npy", np.full(20, 2.0))
    files = Snapshots(["cells_day_2.npy", "cells_day_4.npy"], weights=["w_2.npy", None], holdout=0)
    assert files.series.mass(0).tolist() == [2.0] * 20 and files.series.mass(1) is None


BAD_WEIGHTS = [
    ({"w1": np.ones(5)}, {}, r"the weights at 1 have shape \(5,\) .* expected 21 numbers"),
    ({"w1": -np.ones(21)}, {}, "weights at 1 must be finite numbers >= 0 that are not all 0"),
    ({"w1": np.zeros(21)}, {}, "not all 0"),
    ({"w1": np.ones(21)}, {"weights": ["w1"]}, r"give a list of 11 names, one a snapshot"),
    ({"w1": np.ones(21)}, {"weights": "w1"}, "give a list of 11 names"),
    ({}, {"weights": ["w0"] * 11}, "name one of them, got 'w0'"),
    ({}, {"most": 1}, "most must be a whole number >= 2"),
    ({}, {"dims": 3}, "dims must be at most the number of their coordinates"),
]


@pytest.mark.parametrize(("held", "options", "said"), BAD_WEIGHTS)
def test_bad_weights_and_sizes_get_one_sentence(folder, held, options, said):
    with pytest.raises(ValueError, match=said):
        Snapshots(archive(**held), **options)


def test_fewer_rows_and_coordinates(folder):
    path = archive(w5=np.arange(1.0, 26.0))
    whole, few = Snapshots(path, holdout=0), Snapshots(path, holdout=0, most=22, dims=1)
    assert [len(x) for x in few.series.arrays] == [20, 21] + [22] * 9
    for k in (0, 5, 10):
        x, y = few.series.arrays[k], whole.series.arrays[k][:, :1]
        kept = np.flatnonzero(np.isin(y, x))
        assert np.array_equal(y[kept], x)  # in their order
        if k == 5:
            assert np.array_equal(few.series.masses[k], kept + 1.0)
    again = Snapshots(path, holdout=0, most=22, dims=1)
    assert all(np.array_equal(a, b) for a, b in zip(few.series.arrays, again.series.arrays))


class Shift(Process):
    """Moves along the diagonal, by one and a half in all; on its own clock, from 0 to 3."""

    stochastic, span = False, (0.0, 3.0)

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.full_like(x, 0.5)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return 0 * dw

    def transition(self, s: float, t: float, x: Tensor, generator=None) -> Tensor:
        return x + (t - s) * 0.5


@pytest.mark.parametrize("solver", [Euler(7), Heun(4), Exact()], ids=str)
@pytest.mark.parametrize("error", [0.0, 0.8])
def test_held_out_snapshots_score_the_paths(folder, solver, error):
    # each snapshot is the first one, moved as the process does in data units (twice its own); those
    # held out lie an error further
    first = rows(40, 0.0, 2)
    level = {0: 0.0, 1: 0.5 + error, 2: 1.0, 3: 2.0 + error, 4: 3.0}
    np.savez(
        "series.npz", times=[5.0, 6.0, 7.0, 9.0, 11.0], **{f"x{k}": first + v for k, v in level.items()}
    )
    data = Snapshots("series.npz", heldout=[6.0, 9.0], holdout=0.1)
    model = Generator(Empirical(), Shift(), solver, Standardise(2))
    model.transform.std.fill_(2.0)
    scored = report_of(model, data)
    assert scored["heldout_times"] == [6.0, 9.0]
    assert scored["heldout_w1"] == pytest.approx([error * 2**0.5] * 2, abs=1e-5)
    x, y = first, first + error
    pairs = [np.linalg.norm(a[:, None] - b, axis=-1).mean() for a, b in ((x, y), (x, x), (y, y))]
    energy = pairs[0] - (pairs[1] + pairs[2]) / 2
    assert scored["heldout_energy"] == pytest.approx([energy] * 2, abs=1e-5)


def test_particle_weights_score_the_paths(folder):
    # weights of whole numbers are rows that lie there as often
    often = [np.array(v) for v in ([0, 3, 1, 2, 1, 1], [5, 1, 0, 1, 1, 1], [1] * 6)]
    first, held = rows(6, 0.0, 2), rows(6, 0.7, 2)
    named = {"x0": first, "x1": held, "x2": first + 1}
    np.savez("weighed.npz", **named, **{f"w{k}": w for k, w in enumerate(often)})
    np.savez("laid_out.npz", **{k: x.repeat(w, 0) for (k, x), w in zip(named.items(), often)})
    np.savez("even.npz", **named)
    weighed, laid_out, even = (
        report_of(Generator(Empirical(), Shift(), Euler(7)), Snapshots(name, heldout=[1.0], holdout=0))
        for name in ("weighed.npz", "laid_out.npz", "even.npz")
    )
    for name in ("heldout_w1", "heldout_energy"):
        assert weighed[name] == pytest.approx(laid_out[name], rel=1e-5)
        assert abs(weighed[name][0] - even[name][0]) > 1e-3


def report_of(model: Generator, data: Snapshots) -> dict:
    return heldout_distances(Training(model, Matching(), adam), DataModule(data), 300)


def test_a_number_that_is_also_a_time_is_scored(folder):
    days()  # day 4 is number 2, and 2 is a day
    model = Generator(Empirical(), Shift(), Euler(7))
    assert report_of(model, Snapshots("cells_day_*.npy", heldout=[4.0]))["heldout_times"] == [4.0]


def test_without_held_out_snapshots_there_is_nothing_to_score(folder):
    model = Generator(Empirical(), Shift(), Euler(2))
    assert report_of(model, Snapshots(days())) == {}
    assert report_of(model, Snapshots(days(), heldout=[2.0])) == {}  # before the training begins


def test_the_command_line_trains_between_snapshots_and_scores_those_held_out(folder):
    run(composed(folder, "experiment=cfm", "data=snapshots", f"data.path={days()}", "dim=3", "steps=3",
                 "data.heldout=[3.0]", "data.train=[2.0,4.0]", "batch_size=8", *QUIET))  # fmt: skip
    found = json.loads((folder / "metrics.json").read_text())
    assert found["heldout_times"] == [3.0]
    assert len(found["heldout_w1"]) == len(found["heldout_energy"]) == 1
    assert genflow.load(folder / "model.ckpt").sample(5).shape == (5, 3)


def test_an_absent_series_is_one_sentence_that_names_the_path(folder):
    cfg = composed(folder, "experiment=light_cite", *QUIET)
    with pytest.raises(
        SystemExit, match="no snapshots at 'cite_pca50/.*day_.*npy'; let GENFLOW_DATA name"
    ) as caught:
        run(cfg)
    assert "\n" not in str(caught.value)


def test_the_part_describes_itself(folder):
    cfg = composed(folder, "experiment=light_cite", f"data.path={days()}")
    made = instantiate(cfg.data, _convert_="all")
    assert genflow.spec(made) == plain(cfg.data)
    assert numbers(made) == ((2.0, 3.0, 4.0, 10.0), (0, 2), (1,))
