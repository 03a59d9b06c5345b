"""The training loop: equal to a loop written by hand, with errors told before and during it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from toy_training import (
    Counter,
    Dropping,
    Normed,
    Recorder,
    adam,
    counting,
    equal,
    moons,
    stored,
    toy,
    trainer,
    weights,
)

import genflow
from genflow.coupling import Gibbs
from genflow.data import Arrays, Batch, Digits
from genflow.distance import Wasserstein
from genflow.loss import Matching
from genflow.network import MLP
from genflow.seeds import stream
from genflow.source import Gaussian
from genflow.training import Checkpoint, Figures, Report
from genflow.training.module import as_batch


def by_hand(training, data, steps: int, accumulate: int = 1) -> torch.Tensor:
    """The weights after a plain loop on the same streams."""
    optimizer, batches = adam(training.model.parameters()), data._stream("train")
    for k in range(steps * accumulate):
        draw = stream(training.seed, "loss", k, 0)
        loss = training.loss(training.model.learner, *batches.batch(k).xs, generator=draw)
        (loss / accumulate).backward()
        if (k + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return weights(training)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_equals_a_plain_loop(tmp_path, accumulate):
    training, recorder = toy(seed=5), Recorder()
    options = {"accumulate_grad_batches": accumulate}
    trainer(tmp_path, 4, [recorder], **options).fit(training, moons())
    assert len(recorder.weights) == training.batches_seen == 4 * accumulate
    assert torch.equal(weights(training), by_hand(toy(seed=5), moons(), 4, accumulate))


def test_the_seed_names_every_draw(tmp_path):
    found = []
    for global_seed, seed in ((0, 0), (1, 0), (0, 1)):
        training = toy(seed=seed)
        torch.manual_seed(global_seed)
        trainer(tmp_path, 3).fit(training, moons(seed=seed))
        found.append(weights(training))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_schedules_move_at_every_step(tmp_path):
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8)
    run = trainer(tmp_path, 4, accumulate_grad_batches=2)
    run.fit(toy(scheduler=cosine), moons())
    # a quarter wave after half of T_max, counted in optimizer steps and not in batches
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 2)


def test_the_loss_decreases(tmp_path):
    training, data = toy(), moons(batch_size=128)
    batch = data._stream("val").batch(0)

    def loss() -> float:
        return float(training._loss(batch, stream("fixed")).detach())

    before = loss()
    trainer(tmp_path, 150).fit(training, data)
    assert loss() < 0.7 * before


def test_validation_logs_loss_and_metrics(tmp_path):
    training = toy(metrics={"w2": Wasserstein()}, metric_size=50)
    run = trainer(tmp_path, 3)
    run.fit(training, moons())
    batches = moons()._evaluation("val")
    losses = [float(training._loss(b, stream(0, "val", k, 0)).detach()) for k, b in enumerate(batches)]
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(sum(losses) / 2)
    samples = training.model.sample(50, generator=stream(0, "metrics"))
    w2 = float(Wasserstein()(samples, moons().rows("val", 50).xs[1]))
    assert float(run.callback_metrics["val/w2"]) == pytest.approx(w2)


def test_validation_does_not_disturb_training(tmp_path):
    found = []
    for interval in (1, 100):
        training = toy(Dropping(), metrics={"w2": Wasserstein()}, metric_size=10)
        torch.manual_seed(0)
        trainer(tmp_path, 4, val_check_interval=interval).fit(training, moons())
        found.append(weights(training))
    assert torch.equal(*found)


def test_any_loader_of_tuples_works(tmp_path):
    x0, x1 = torch.randn(64, 2), torch.randn(64, 2) + 3
    training = toy()
    before = weights(training)
    pairs = TensorDataset(x0, x1)
    loader = DataLoader(pairs, batch_size=16, shuffle=True)
    trainer(tmp_path, 6).fit(training, loader, DataLoader(pairs, batch_size=16))
    assert training.batches_seen == 6
    assert not torch.equal(before, weights(training))


def test_a_batch_is_a_batch_or_a_tuple():
    x = torch.ones(2, 2)
    assert as_batch([x, x]).xs == (x, x)
    batch = Batch((x, x), torch.ones(2))
    assert as_batch(batch) is batch
    for other in ({"x": x}, x, (x, "label")):
        with pytest.raises(TypeError, match=r"genflow.data.Batch or a tuple of tensors \(x0, x1\)"):
            as_batch(other)


def test_runs_can_be_measured_in_epochs(tmp_path):
    training = toy()
    run = trainer(tmp_path, max_epochs=2, val_check_interval=None)
    run.fit(training, moons(steps_per_epoch=3))
    assert (run.global_step, run.current_epoch, training.batches_seen) == (6, 2, 6)
    # passes go on where the last ended: epochs and steps are the same training
    assert torch.equal(weights(training), by_hand(toy(), moons(), 6))


def test_epochs_without_their_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="max_epochs=2 needs passes: .*steps_per_epoch.*max_steps"):
        trainer(tmp_path, max_epochs=2).fit(toy(), moons())


def test_shapes_that_do_not_fit_are_told_before_training(tmp_path):
    training = toy(MLP(3, width=8, depth=1))
    with pytest.raises(ValueError, match=r"MLP\(dim=3\) got events of shape \(2,\)"):
        trainer(tmp_path, 3).fit(training, moons())
    assert not training.started


@pytest.mark.parametrize(
    "training", [toy(Normed()), toy(Dropping()), counting()], ids=["norm", "drop", "count"]
)
def test_the_rehearsal_leaves_no_trace(training):
    before = {k: v.clone() for k, v in training.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    training.rehearse(moons()._stream("train").batch(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(before, training.state_dict())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    # a step of 1e30 leaves weights whose next loss overflows
    training = toy(optimizer=lambda p: torch.optim.Adam(p, lr=1e30))
    with pytest.raises(FloatingPointError, match=r"the loss is (inf|nan) at step 1 \(batch 1\)"):
        trainer(tmp_path, 5, [Checkpoint(str(tmp_path), 1)]).fit(training, moons())
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["batches_seen"] == 1
    genflow.load(tmp_path / "last.ckpt")


def test_a_model_without_parameters_needs_no_optimizer(tmp_path):
    training = counting()
    training.optimizer, training.automatic_optimization = adam, True
    with pytest.raises(ValueError, match="no parameters to optimise: set optimizer=null"):
        trainer(tmp_path, 2).fit(training, moons())


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")
def test_losses_may_fit_their_learner_themselves(tmp_path):
    training, data = counting(), moons()
    trainer(tmp_path, 5, [Checkpoint(str(tmp_path), 2)]).fit(training, data)
    learner = training.model.process
    batches = [data._stream("train").batch(k).xs[1].mean(0) for k in range(5)]
    assert int(learner.updates) == training.batches_seen == 5
    assert torch.allclose(learner.mean, torch.stack(batches).mean(0), atol=1e-5)
    loaded = genflow.load(tmp_path / "model.ckpt", trust="toy_training.")
    assert isinstance(loaded.process, Counter)
    assert torch.equal(loaded.process.mean, learner.mean)


def test_labels_reach_the_network(tmp_path):
    training = toy(MLP([1, 8, 8], width=8, depth=1, classes=10))
    training.model.source = Gaussian([1, 8, 8])
    data = moons(Digits(Gaussian([1, 8, 8]), labels=True))
    folder = str(tmp_path)
    parts = [Report(folder, 20), Figures(folder, 20, 4)]
    training.metrics = {"w2": Wasserstein()}
    trainer(tmp_path, 3, parts).fit(training, data)
    assert json.loads((tmp_path / "metrics.json").read_text())["samples"] == 20
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_tables_shorter_than_every_size_train(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)))
    training = toy(metrics={"w2": Wasserstein()})
    data = moons(Arrays(str(tmp_path / "x.npy"), Gaussian(2)), batch_size=32)
    folder = str(tmp_path)
    trainer(tmp_path, 3, [Report(folder), Figures(folder)]).fit(training, data)
    assert json.loads((tmp_path / "metrics.json").read_text())["samples"] == 4


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")
def test_a_finished_run_without_optimizer_is_not_run_on(tmp_path):
    trainer(tmp_path, 3, [Checkpoint(str(tmp_path))]).fit(counting(), moons())
    again = counting()
    trainer(tmp_path, 3).fit(again, moons(), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    done = stored(tmp_path / "model.ckpt")["model.process.updates"]
    assert int(again.model.process.updates) == int(done)


def test_what_prepare_chose_is_stored(tmp_path):
    training = toy(loss=Matching(coupling=Gibbs(ess=0.4)))
    trainer(tmp_path, 2, [Checkpoint(str(tmp_path))]).fit(training, moons())
    epsilon = training.loss.coupling.epsilon
    assert epsilon > 0
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["loss"]["coupling"]["epsilon"] == epsilon
    assert "model.process.network.first.weight" in stored(tmp_path / "model.ckpt")


@pytest.mark.parametrize(("stated", "used"), [(None, 123.0), (3.0, 3.0)])
def test_a_resumed_run_keeps_the_stored_epsilon_unless_told(tmp_path, stated, used):
    checkpoint = [Checkpoint(str(tmp_path))]
    trainer(tmp_path, 2, checkpoint).fit(toy(loss=Matching(coupling=Gibbs())), moons())
    # a number that no data would give, to tell it from one chosen anew
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    content["loss"]["coupling"]["epsilon"] = 123.0
    torch.save(content, tmp_path / "changed.ckpt")
    again = toy(loss=Matching(coupling=Gibbs(epsilon=stated)))
    trainer(tmp_path, 3).fit(again, moons(), ckpt_path=tmp_path / "changed.ckpt", weights_only=True)
    assert again.loss.coupling.epsilon == used
