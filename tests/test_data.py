"""Data: batches that are functions of their number, tables on disk, the user's own arrays, digits."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.data import Arrays, Batches, Digits, Passes, Simulated, Table, draw_rows
from genflow.source import EightGaussians, Gaussian, Moons, SwissRoll

N = 12


def table(n: int = N, cond: bool = False) -> Table:
    """Rows that carry their own number, so that a batch says which rows it holds."""
    x = torch.arange(float(n))[:, None].expand(n, 2).contiguous()
    return Table(x, torch.arange(n), 10 * torch.arange(n) if cond else None)


def numbers(x: torch.Tensor) -> list[int]:
    return x[:, 0].long().tolist()


def first(batches: Batches, count: int) -> list:
    return list(itertools.islice(iter(batches), count))


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.xs, right.xs, strict=True))


def test_batch_k_is_the_kth_of_iteration():
    stream = Batches([Gaussian(2), table()], 4, seed=3)
    again = Batches([Gaussian(2), table()], 4, seed=3)
    for k, batch in enumerate(first(stream, 9)):
        assert same(batch, again.batch(k))
    # out of order too: nothing may hang on which batches were asked for before
    assert same(again.batch(1), first(Batches([Gaussian(2), table()], 4, seed=3), 2)[1])


def test_a_stream_restarts_at_start():
    whole = first(Batches([EightGaussians(), table()], 5, seed=1), 8)
    rest = first(Batches([EightGaussians(), table()], 5, seed=1, start=5), 3)
    assert all(same(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_batches_differ_by_number_seed_and_rank():
    laws = [Gaussian(2), Gaussian(2)]
    base = Batches(laws, 4).batch(0)
    for other in (
        Batches(laws, 4).batch(1),
        Batches(laws, 4, seed=1).batch(0),
        Batches(laws, 4, rank=1, world=2).batch(0),
    ):
        assert not any(torch.equal(a, b) for a, b in zip(base.xs, other.xs))
    assert not torch.equal(*base.xs), "the two marginals must not share their draws"


def test_global_draws_do_not_matter():
    stream = Batches([Moons(), table()], 4)
    torch.manual_seed(0)
    left = stream.batch(2)
    torch.manual_seed(1)
    assert same(left, stream.batch(2))


@pytest.mark.parametrize(("size", "world"), [(4, 1), (5, 1), (4, 2), (5, 2), (12, 1)])
def test_every_row_is_seen_once_a_pass(size, world):
    ranks = [Batches([table()], size, rank=r, world=world) for r in range(world)]
    seen = [i for k in range(N) for rank in ranks for i in numbers(rank.batch(k).xs[0])]
    passes = [seen[k : k + N] for k in range(0, len(seen) - N + 1, N)]
    assert len(passes) >= 4
    assert all(sorted(p) == list(range(N)) for p in passes)
    assert len({tuple(p) for p in passes}) == len(passes), "each pass has its own order"


def test_two_ranks_see_disjoint_rows_of_a_pass():
    left, right = (Batches([table()], 3, rank=r, world=2) for r in range(2))
    for start in (0, 2):  # two batches of three rows a rank are a pass of twelve
        rows = [
            {i for k in (start, start + 1) for i in numbers(s.batch(k).xs[0])} for s in (left, right)
        ]
        assert rows[0].isdisjoint(rows[1])
        assert rows[0] | rows[1] == set(range(N))


def test_two_tables_are_shuffled_independently():
    stream = Batches([table(), table()], 6)
    pairs = {pair for k in range(20) for pair in zip(*map(numbers, stream.batch(k).xs))}
    assert len(pairs) > 3 * N, "rows of two tables must meet in every combination"


def test_conditions_follow_their_rows():
    batch = Batches([Gaussian(2), table(cond=True)], 5).batch(3)
    assert batch.cond.tolist() == [10 * i for i in numbers(batch.xs[1])]


def test_passes_have_a_length_and_go_on():
    stream = Passes([table()], 4, length=2)
    assert len(stream) == 2
    endless = Batches([table()], 4)
    for epoch in range(3):
        batches = list(stream)
        assert len(batches) == 2
        assert all(same(b, endless.batch(2 * epoch + k)) for k, b in enumerate(batches))
    # resumed in the middle of a pass, it ends where the pass ended
    assert len(list(Passes([table()], 4, length=3, start=4))) == 2


def test_only_passes_count_as_finite():
    assert not hasattr(Batches([table()], 4), "__len__")


def test_fixed_passes_repeat():
    stream = Passes([Gaussian(2), table()], 4, length=3, fixed=True)
    once, twice = list(stream), list(stream)
    assert len(once) == 3
    assert all(same(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize(("size", "world", "allowed"), [(13, 1, 12), (7, 2, 6)])
def test_a_batch_larger_than_the_data_is_refused(size, world, allowed):
    with pytest.raises(ValueError, match=f"batch_size={size}.*12 rows of x1.*batch_size <= {allowed}"):
        Batches([Gaussian(2), table()], size, world=world)
    Batches([Gaussian(2), table()], allowed, world=world)


def test_laws_take_any_batch():
    assert [len(x) for x in Batches([Gaussian(2), Moons()], 5000).batch(0).xs] == [5000, 5000]


@pytest.mark.parametrize("kind", ["tensor", "array", "file"])
def test_a_table_takes_rows_in_the_order_asked(kind, tmp_path, generator):
    values = np.random.default_rng(0).normal(size=(50, 3, 2))
    np.save(tmp_path / "x.npy", values)
    x = {
        "tensor": torch.from_numpy(values),
        "array": values,
        "file": np.load(tmp_path / "x.npy", mmap_mode="r"),
    }[kind]
    rows = torch.randperm(50, generator=generator)[:40]
    found = Table(x, rows, cond=np.arange(50))
    index = torch.randperm(40, generator=generator)[:20]
    assert not torch.equal(index, index.sort().values)
    got, cond = found.take(index)
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.from_numpy(values[rows[index].numpy()]).float())
    assert torch.equal(cond, rows[index])
    assert found.shape == (3, 2)
    assert len(found) == 40


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_a_file_larger_than_memory_is_read_by_rows(tmp_path):
    path, shape = tmp_path / "large.npy", (4096, 1 << 18)  # 4 GiB, a hole apart from three rows
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for row in (0, 2000, 4095):
        written[row] = row + 1
    del written
    try:
        x = np.load(path, mmap_mode="r")
        before = resident()
        got, _ = Table(x, torch.arange(len(x))).take(torch.tensor([4095, 7, 0, 2000]))
        assert got[:, 0].tolist() == [4096.0, 0.0, 1.0, 2001.0]
        assert got[:, -1].tolist() == [4096.0, 0.0, 1.0, 2001.0]
        assert resident() - before < 200 << 20
    finally:
        path.unlink()


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = Digits(Gaussian([1, 8, 8]), labels=True)
    tables = [data.marginals(split)[1] for split in ("train", "val", "test")]
    rows = torch.cat([t.rows for t in tables])
    assert sorted(rows.tolist()) == list(range(1797)), "splits must be disjoint and cover"
    assert [len(t) for t in tables] == [1797 - 2 * 270, 270, 270]
    for found in tables:
        x, cond = found.take(torch.arange(len(found)))
        assert x.shape[1:] == (1, 8, 8)
        assert torch.equal((x.flatten(1) + 1) * 8, torch.from_numpy(images).float()[found.rows])
        assert torch.equal(cond, torch.from_numpy(labels)[found.rows].long())
    whole = tables[0].x
    assert (float(whole.min()), float(whole.max())) == (-1.0, 1.0)


def test_digits_give_labels_only_if_asked():
    assert Digits(Gaussian([1, 8, 8])).marginals("train")[1].cond is None
    with pytest.raises(ValueError, match=r"Digits\(holdout=0.5\).*between 0 and 0.5"):
        Digits(Gaussian([1, 8, 8]), holdout=0.5)


def test_draw_rows_repeats():
    laws = [Moons(), table(cond=True)]
    left, right = draw_rows(laws, 7, 0, "val"), draw_rows(laws, 7, 0, "val")
    assert same(left, right)
    assert torch.equal(left.cond, right.cond)
    assert left.cond.tolist() == [10 * i for i in numbers(left.xs[1])]
    for other in (draw_rows(laws, 7, 1, "val"), draw_rows(laws, 7, 0, "test")):
        assert not any(torch.equal(a, b) for a, b in zip(left.xs, other.xs))


def test_draw_rows_takes_no_row_twice():
    few, all_rows = draw_rows([table()], 5, 0).xs[0], draw_rows([table()], 99, 0).xs[0]
    assert len(set(numbers(few))) == 5
    assert sorted(numbers(all_rows)) == list(range(N))


def test_simulated_data_are_their_laws():
    x0, x1 = Gaussian(2), Moons()
    assert Simulated(x0, x1).marginals("train") == (x0, x1)


def test_arrays_take_part_in_batches(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(200.0).reshape(100, 2))
    source, data = Arrays(str(tmp_path / "x.npy"), Gaussian(2)).marginals("train")
    batch = Batches([source, data], 16).batch(0)
    assert batch.xs[1].shape == (16, 2)
    assert torch.equal(batch.xs[1][:, 1] - batch.xs[1][:, 0], torch.ones(16))


def nearest(x: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, EightGaussians().centres()).argmin(1)


def test_simulated_data_give_labels_if_asked():
    plain, labelled = (Simulated(Gaussian(2), EightGaussians(), labels) for labels in (False, True))
    draws = [
        lambda data: Batches(data.marginals("train"), 64, seed=2).batch(3),
        lambda data: draw_rows(data.marginals("val"), 64, 0, "val"),
    ]
    for draw in draws:
        batch = draw(labelled)
        assert batch.cond.dtype == torch.long
        assert torch.equal(batch.cond, nearest(batch.xs[1]))
        assert len(batch.cond.unique()) == 8
        # the points are those of data without labels
        assert same(batch, draw(plain)) and draw(plain).cond is None
        assert torch.equal(batch.cond, draw(labelled).cond)
    loaded = first(Passes(labelled.marginals("val"), 8, length=2, fixed=True), 2)
    assert all(torch.equal(b.cond, nearest(b.xs[1])) for b in loaded)


def test_labels_of_the_source_side_are_not_taken():
    data = Simulated(EightGaussians(), Moons(), labels=True)
    assert draw_rows(data.marginals("train"), 100, 0).cond.max() == 1


def test_labels_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="SwissRoll has no classes"):
        Simulated(Gaussian(2), SwissRoll(), labels=True)
    Simulated(Gaussian(2), SwissRoll())
