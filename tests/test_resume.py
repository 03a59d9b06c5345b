"""Resumed runs equal unbroken ones bit for bit, whatever a run is made of."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from toy_training import Dropping, Normed, counting, equal, moons, stored, toy, trainer

import genflow
from genflow.coupling import Gibbs, Sinkhorn
from genflow.data import Data, Digits, Table
from genflow.distance import EnergyDistance
from genflow.interpolant import BrownianBridge
from genflow.loss import Matching
from genflow.network import MLP
from genflow.process import SDE
from genflow.source import Gaussian, Moons
from genflow.target import Drift
from genflow.time import LogitNormal
from genflow.training import EMA, Checkpoint
from genflow.training.schedule import Cosine
from genflow.transform import Standardise

STEPS = 10
cosine = partial(Cosine, steps=STEPS)


class Rows(Data):
    """A table of 100 rows, so that passes end within a run."""

    def marginals(self, split: str):
        x = Moons().sample(100, torch.Generator().manual_seed(0))
        return Gaussian(2), Table(x, torch.arange(100))


def plain():
    return toy(), moons(), {}


def everything():
    training = toy(Dropping(), scheduler=cosine, metrics={"energy": EnergyDistance()}, metric_size=9)
    return training, moons(Rows()), {"gradient_clip_val": 0.5}


def normed():
    return toy(Normed()), moons(), {}


def bridge():
    loss = Matching(BrownianBridge(1.0), Sinkhorn(2.0), LogitNormal(), Drift(1.0))
    training = toy(loss=loss)
    training.model.process = SDE(training.model.process.network, 1.0)
    return training, moons(), {}


def weighted():
    training = toy(loss=Matching(coupling=Gibbs()))
    training.model.transform = Standardise(2)
    return training, moons(), {}


def images():
    training = toy(MLP([1, 8, 8], width=8, depth=1, classes=10))
    training.model.source = Gaussian([1, 8, 8])
    return training, moons(Digits(Gaussian([1, 8, 8]), labels=True)), {}


def epochs():
    training = toy(Dropping(), scheduler=cosine)
    return training, moons(Rows(), steps_per_epoch=5), {"max_epochs": 2, "val_check_interval": None}


def accumulating():
    return toy(), moons(), {"accumulate_grad_batches": 2, "val_check_interval": 4}


# our streams resume by themselves, which Lightning cannot know
pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")

RUNS = [plain, everything, normed, bridge, weighted, images, epochs, accumulating]


def train(make, folder, steps: int, every: int, path=None):
    """Run to ``steps``; returns where the file of the end lies."""
    training, data, options = make()
    torch.manual_seed(0 if path is None else 99)  # a resumed process starts anywhere
    run = trainer(folder, steps, [EMA(0.8), Checkpoint(str(folder), every)], **options)
    run.fit(training, data, ckpt_path=path, weights_only=True)
    return folder / "model.ckpt"


def agree(left, right) -> None:
    for which in ("state_dict", "current_model_state"):
        assert equal(stored(left, which), stored(right, which))


def folders(tmp_path):
    for name in ("whole", "half", "rest"):
        (tmp_path / name).mkdir()
        yield tmp_path / name


@pytest.mark.parametrize("make", RUNS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("every", [3, 6])
def test_a_killed_run_ends_like_the_unbroken_one(tmp_path, make, every):
    whole, half, rest = folders(tmp_path)
    unbroken = train(make, whole, STEPS, 1000)
    train(make, half, STEPS, every)  # its last.ckpt is what a run killed afterwards leaves
    resumed = train(make, rest, STEPS, 1000, half / "last.ckpt")
    agree(unbroken, resumed)


@pytest.mark.parametrize("make", [plain, everything, weighted], ids=lambda f: f.__name__)
def test_a_finished_run_can_be_prolonged(tmp_path, make):
    whole, half, rest = folders(tmp_path)
    unbroken = train(make, whole, STEPS, 1000)
    finished = train(make, half, 6, 1000)
    agree(unbroken, train(make, rest, STEPS, 1000, finished))


class Rates(L.Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_finished_cosine_is_prolonged_on_the_longer_curve(tmp_path):
    # the shorter run's own curve ends at rate zero; nothing of it may stay in the checkpoint
    def short():
        return toy(scheduler=partial(Cosine, steps=6)), moons(), {}

    finished = train(short, tmp_path / "half", 6, 1000)
    folder, rates = tmp_path / "rest", Rates()
    run = trainer(folder, STEPS, [EMA(0.8), Checkpoint(str(folder)), rates])
    run.fit(toy(scheduler=cosine), moons(), ckpt_path=finished, weights_only=True)
    assert len(rates.seen) == STEPS - 6
    assert rates.seen[-1] == pytest.approx(0.01 * (1 + math.cos(math.pi * 9 / STEPS)) / 2)


def test_a_run_killed_during_its_report_can_be_finished(tmp_path):
    # the last.ckpt of the last batch is written before the numbers and figures of the end
    whole, half, rest = folders(tmp_path)
    unbroken = train(plain, whole, STEPS, 1000)
    train(plain, half, STEPS, STEPS)
    agree(unbroken, train(plain, rest, STEPS, 1000, half / "last.ckpt"))


def test_a_run_killed_between_accumulated_batches_ends_alike(tmp_path):
    whole, half, rest = folders(tmp_path)
    unbroken = train(accumulating, whole, STEPS, 1000)
    train(accumulating, half, STEPS, 13)  # batch 13 of 20: half of a step of two
    agree(unbroken, train(accumulating, rest, STEPS, 1000, half / "last.ckpt"))


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")
@pytest.mark.parametrize("source", ["last.ckpt", "model.ckpt"])
def test_learners_that_fit_themselves_resume(tmp_path, source):
    ends = []
    for name, steps, start in (("whole", 7, None), ("half", 4, None), ("rest", 7, "half")):
        (tmp_path / name).mkdir()
        training = counting()
        path = None if start is None else tmp_path / start / source
        parts = [Checkpoint(str(tmp_path / name), 3)]
        trainer(tmp_path, steps, parts).fit(training, moons(), ckpt_path=path, weights_only=True)
        assert training.batches_seen == steps
        ends.append(stored(tmp_path / name / "model.ckpt"))
    assert equal(ends[0], ends[2])
    assert not equal(ends[0], ends[1])


def test_a_save_that_fails_keeps_the_file_before(tmp_path, monkeypatch):
    training = toy()
    run = trainer(tmp_path, 2, [Checkpoint(str(tmp_path), 1)])
    save, calls = run.save_checkpoint, []

    def broken(path, **options):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half a file")
            raise OSError("no space left on device")
        save(path, **options)

    monkeypatch.setattr(run, "save_checkpoint", broken)
    with pytest.raises(OSError, match="no space"):
        run.fit(training, moons())
    assert genflow.load(tmp_path / "last.ckpt").sample(3).shape == (3, 2)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["batches_seen"] == 1
