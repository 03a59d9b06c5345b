"""Paired data: what corruptions do, and that rows stay paired wherever batches come from."""

import math

import pytest
import torch
from configs import composed
from hydra.utils import instantiate
from test_resume import agree, train
from toy_training import moons, toy

import genflow
from genflow.coupling import ExactOT, Independent
from genflow.data import (
    Batches,
    Corrupted,
    Data,
    Digits,
    Downsample,
    Mask,
    Noisy,
    Passes,
    Simulated,
    Table,
    draw_rows,
)
from genflow.interpolant import Linear
from genflow.loss import Matching
from genflow.network import MLP
from genflow.source import EightGaussians, Empirical, Gaussian, Moons
from genflow.specs import build, spec
from genflow.training.datamodule import check_start

CORRUPTIONS = [Noisy(0.3), Mask([1, 2, 3, 4]), Mask(fraction=0.25), Downsample(2), Downsample(4, 0.0)]
every = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=repr)


def images(n=2000, channels=1):
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Numbered(Data):
    """100 rows of the plane, row ``i`` at ``(i, -i)``, with conditions ``10 i``; or weighted rows."""

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    def marginals(self, split: str):
        i = torch.arange(100)
        weight = (i % 10 == 3).double() if self.weighted else None
        return Gaussian(2), Table(torch.stack([i, -i], 1).float(), i, 10 * i, weight=weight)


class Law(Data):
    def marginals(self, split: str):
        return Simulated(Gaussian(2), EightGaussians(), labels=True).marginals(split)


def paired(batch) -> bool:
    """Whether starts are their own rows, up to noise of 0.01, and conditions follow."""
    x0, x1 = batch.xs
    known = batch.cond is None or torch.equal(batch.cond, 10 * x1[:, 0].long())
    return known and bool(((x0 - x1).abs() < 0.1).all()) and not torch.equal(x0, x1)


@every
def test_a_corruption_is_a_draw_of_its_generator(corruption):
    x = images(50)
    once, again, other = (corruption(x, draw(seed)) for seed in (0, 0, 1))
    assert once.shape == x.shape and once.dtype == x.dtype and torch.equal(once, again)
    assert torch.equal(once, other) == (corruption == Downsample(4, 0.0))
    assert corruption(x.double(), draw()).dtype == torch.float64
    assert corruption(images(3, 2), draw()).shape == (3, 2, 8, 8)
    assert spec(build(spec(corruption))) == spec(corruption) and build(spec(corruption)) == corruption
    torch.manual_seed(0)
    left = corruption(x)
    torch.manual_seed(0)
    assert torch.equal(left, corruption(x)), "without a generator torch's own draws"


def test_a_box_is_replaced_and_the_rest_is_kept():
    mask, x = Mask([1, 2, 3, 4], noise=0.5), images(channels=3)
    known = torch.ones(8, 8, dtype=torch.bool)
    known[1:4, 2:6] = False
    assert torch.equal(mask.region(x).expand_as(x), ~known.expand_as(x))
    out = mask(x, draw())
    assert torch.equal(out[..., known], x[..., known])
    noise = out[..., ~known].flatten()
    n = len(noise)
    assert abs(float(noise.mean())) < 4 * 0.5 / math.sqrt(n)
    assert abs(float(noise.var()) - 0.25) < 4 * 0.25 * math.sqrt(2 / n)
    both = torch.stack([noise, x[..., ~known].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(n), "nothing shines through"


@pytest.mark.parametrize(("fraction", "side"), [(0.25, 4), (0.1, 3), (1.0, 8), (1e-6, 1)])
def test_random_squares_lie_anywhere(fraction, side):
    mask, x = Mask(fraction=fraction), images(channels=2)
    out = mask(x, draw())
    changed = (out != x).any(1)
    assert torch.equal(changed, (out != x).all(1)), "all channels alike"
    rows, columns = changed.any(2), changed.any(1)
    assert bool((rows.sum(1) == side).all()) and bool((columns.sum(1) == side).all())
    assert bool((changed.sum((1, 2)) == side**2).all())
    places = 9 - side
    for first in (rows.int().argmax(1), columns.int().argmax(1)):
        counts = torch.bincount(first, minlength=places).double()
        assert len(counts) == places
        chi = float(((counts - 2000 / places) ** 2 / (2000 / places)).sum())
        assert chi < places + 5 * math.sqrt(2 * places)
    joint = torch.stack([rows.int().argmax(1), columns.int().argmax(1)]).double()
    if 1 < places:
        assert abs(float(torch.corrcoef(joint)[0, 1])) < 4 / math.sqrt(2000)


def test_squares_fit_into_images_that_are_not_square():
    x = torch.zeros(500, 1, 2, 8)
    changed = Mask(fraction=0.9)(x, draw()) != 0
    assert bool((changed.sum((1, 2, 3)) == 8).all())  # side round(sqrt(14.4)) = 4, cut to height 2


def test_downsampling_keeps_means_of_blocks():
    x = images(5, 3)
    out = Downsample(4, 0.0)(x)
    blocks = out.reshape(5, 3, 2, 4, 2, 4)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))
    torch.testing.assert_close(blocks[:, :, :, 0, :, 0], x.reshape(5, 3, 2, 4, 2, 4).mean((3, 5)))
    many = images()
    noise = Downsample(2, 0.3)(many, draw()) - Downsample(2, 0.0)(many)
    assert abs(float(noise.var()) - 0.09) < 4 * 0.09 * math.sqrt(2 / noise.numel())


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_stay_paired_over_shuffles_passes_and_resumes(weighted):
    marginals = Corrupted(Numbered(weighted), Noisy(0.01)).marginals("train")
    stream = Batches(marginals, 32, seed=3)
    batches = [stream.batch(k) for k in range(12)]  # passes of 100 rows end inside batches
    assert all(paired(batch) for batch in batches)
    if not weighted:
        seen = torch.cat([batch.xs[1][:, 0] for batch in batches]).long()
        assert sorted(seen[:100].tolist()) == list(range(100)), "each row once a pass"
    # what the data are does not depend on being corrupted; a stream that starts later is the same
    plain = Batches(Numbered(weighted).marginals("train"), 32, seed=3)
    resumed = iter(Batches(marginals, 32, seed=3, start=5))
    for k, batch in enumerate(batches):
        assert torch.equal(batch.xs[1], plain.batch(k).xs[1])
        if k >= 5:
            again = next(resumed)
            assert torch.equal(again.xs[0], batch.xs[0]) and torch.equal(again.xs[1], batch.xs[1])
    # the test can fail: starts of another batch are not paired
    other = (batches[0].xs[0], batches[1].xs[1])
    assert not paired(batches[0]._replace(xs=other, cond=None))


def test_every_batch_is_corrupted_anew():
    marginals = Corrupted(Numbered(), Noisy(0.01)).marginals("train")
    base = Batches(marginals, 100)
    noise = [(b.xs[0] - b.xs[1])[b.cond.argsort()] for b in (base.batch(0), base.batch(1))]
    assert not torch.equal(*noise)
    left, right = (Batches(marginals, 50, rank=r, world=2).batch(0) for r in range(2))
    assert paired(left) and paired(right)
    assert not torch.equal(left.xs[0] - left.xs[1], right.xs[0] - right.xs[1])


def test_evaluations_are_paired_and_repeat():
    marginals = Corrupted(Numbered(), Noisy(0.01)).marginals("val")
    passes = Passes(marginals, 8, length=3, fixed=True)
    for once, twice in zip(passes, passes, strict=True):
        assert paired(once) and torch.equal(once.xs[0], twice.xs[0])
    rows, again = (draw_rows(marginals, 40, 0, "val") for _ in range(2))
    assert paired(rows) and len(rows.xs[0]) == 40 and torch.equal(rows.xs[0], again.xs[0])
    assert len(draw_rows(marginals, 1000, 0).xs[0]) == 100


def test_laws_can_be_corrupted_too():
    batch = Batches(Corrupted(Law(), Noisy(0.01)).marginals("train"), 64).batch(2)
    assert ((batch.xs[0] - batch.xs[1]).abs() < 0.1).all()
    assert torch.equal(batch.cond, torch.cdist(batch.xs[1], EightGaussians().centres()).argmin(1))


def test_the_coupling_decides_whether_pairs_are_kept(generator):
    """Independent keeps each row's own start; exact OT deals the starts out anew."""
    x0, x1 = Batches(Corrupted(Law(), Noisy(3.0)).marginals("train"), 64).batch(0).xs
    kept = Matching(Linear(), Independent()).draw(x0, x1, generator=generator).sample
    assert torch.equal(kept.velocity, x1 - x0)
    dealt = Matching(Linear(), ExactOT()).draw(x0, x1, generator=generator).sample
    pairs = {(tuple(a), tuple(b)) for a, b in zip(x0.tolist(), x1.tolist())}
    ends = zip(dealt.xs[0].tolist(), dealt.xs[1].tolist())
    assert sum((tuple(a), tuple(b)) in pairs for a, b in ends) < 40


def test_starts_for_notebooks_are_those_of_training():
    data = Corrupted(Digits(Gaussian([1, 8, 8]), labels=True), Mask([0, 4, 8, 4]))
    start, table = data.marginals("test")
    x1, _ = table.take(torch.arange(20))
    assert torch.equal(data.corrupt(x1, draw()), start.make(x1, draw()))
    batch = draw_rows(data.marginals("test"), 50, 0)
    assert torch.equal(batch.xs[0][..., :4], batch.xs[1][..., :4]) and batch.cond.dtype == torch.long
    assert build(spec(data)).corruption == data.corruption


def restoring():
    training = toy(MLP([1, 8, 8], width=8, depth=1))
    training.model.source = Empirical()
    return training, moons(Corrupted(Digits(Empirical()), Mask([0, 4, 8, 4]))), {}


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")
def test_a_resumed_run_sees_the_same_pairs(tmp_path):
    for name in ("whole", "half", "rest"):
        (tmp_path / name).mkdir()
    unbroken = train(restoring, tmp_path / "whole", 8, 1000)
    train(restoring, tmp_path / "half", 8, 3)
    agree(unbroken, train(restoring, tmp_path / "rest", 8, 1000, tmp_path / "half" / "last.ckpt"))
    model = genflow.load(unbroken)
    x1 = images(3)
    assert model.sample(x0=Mask([0, 4, 8, 4])(x1)).shape == (3, 1, 8, 8)
    kept = model.sample(200, steps=1, trajectory=True)[0]  # starts of the training, without x0
    assert kept.min() >= -5 and bool((kept[..., :4] <= 1).all()) and bool((kept[..., 4:] > 1).any())


def test_a_model_learns_to_restore(generator):
    """Gaussian data with correlated halves: known numbers stay, lost ones get their conditional law."""

    class Pairs(Data):
        def marginals(self, split):
            a, z = torch.randn(2, 4000, generator=torch.Generator().manual_seed(2))
            x = torch.stack([a, 0.8 * a + 0.6 * z], 1).reshape(-1, 1, 1, 2)
            return Gaussian([1, 1, 2]), Table(x, torch.arange(4000))

    data = Corrupted(Pairs(), Mask([0, 1, 1, 1]))
    training = toy(MLP([1, 1, 2], width=32, depth=2))
    training.model.source = Gaussian([1, 1, 2])
    learner, stream = training.model.process, Batches(data.marginals("train"), 256)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 500)
        optimizer.zero_grad()
        Matching()(learner, *stream.batch(step).xs, generator=generator).backward()
        optimizer.step()
    x1, _ = Pairs().marginals("train")[1].take(torch.arange(4000))
    out = training.model.eval().sample(x0=data.corrupt(x1, generator), steps=40)
    known, lost = out[:, 0, 0, 0], out[:, 0, 0, 1]
    assert (known - x1[:, 0, 0, 0]).square().mean().sqrt() < 0.05
    residual = lost - 0.8 * x1[:, 0, 0, 0]
    assert abs(float(residual.std()) - 0.6) < 0.06
    assert abs(float(torch.corrcoef(torch.stack([residual, known]))[0, 1])) < 0.1


@pytest.mark.parametrize("option", ["inpainting", "super_resolution"])
def test_the_shipped_pairs_are_made_of_digits(tmp_path, option):
    data = instantiate(composed(tmp_path, f"data={option}").data, _convert_="all")
    batch = draw_rows(data.marginals("train"), 30, 0)
    assert batch.xs[0].shape == batch.xs[1].shape == (30, 1, 8, 8)
    residual = (batch.xs[0] - batch.xs[1]).square().mean().sqrt()
    assert 0.1 < float(residual) < 1.2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Noisy(0.0), "std must be positive"),
        (lambda: Mask(), "give box .* or fraction, one of them"),
        (lambda: Mask([0, 0, 2, 2], 0.5), "one of them"),
        (lambda: Mask(fraction=1.5), "at most 1"),
        (lambda: Mask(fraction=0.0), "fraction must be positive"),
        (lambda: Mask([0, 0, 2, 0]), "box must be"),
        (lambda: Mask([0, -1, 2, 2]), "box must be"),
        (lambda: Mask([0, 0, 2]), "box must be"),
        (lambda: Mask("half"), "box must be"),
        (lambda: Mask([0, 0, 2, 2], noise=-1.0), "noise must be positive"),
        (lambda: Mask([5, 0, 4, 8])(images(2)), "does not lie inside images of 8 x 8"),
        (lambda: Mask([0, 0, 1, 1])(torch.zeros(3, 2)), r"takes images .* \(3, 2\)"),
        (lambda: Downsample(1), "factor must be a whole number >= 2"),
        (lambda: Downsample(2, -0.1), "noise must be zero or positive"),
        (lambda: Downsample(3)(images(2)), "8 x 8 cannot be cut into blocks of 3 x 3"),
        (lambda: check_start(Corrupted(Law(), Noisy()).marginals("train")[0], toy().model),
         "made from x1 but the model starts from Gaussian: set source=empirical"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_only_data_and_corruptions_make_pairs():
    for arguments, words in (((Moons(), Noisy()), "data must be a Data"),
                             ((Law(), Gaussian(2)), "corruption must be a Corruption")):  # fmt: skip
        with pytest.raises(TypeError, match=words):
            Corrupted(*arguments)
