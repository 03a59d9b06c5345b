"""Averaged weights: what validation, test, figures, numbers, checkpoints and resumed runs see."""

import json

import pytest
import torch
from toy_training import (
    Normed,
    Recorder,
    Watching,
    equal,
    moons,
    stored,
    toy,
    trainer,
    weights,
)

import genflow
from genflow import plot
from genflow.distance import Wasserstein
from genflow.seeds import stream
from genflow.training import EMA, Checkpoint, Figures, Report

DECAY = 0.7


def average(history: list[torch.Tensor], decay: float = DECAY) -> torch.Tensor:
    """The moving average by hand; it starts at the weights after the first step."""
    out = history[0]
    for n, current in enumerate(history[1:], 1):
        held = min(decay, (1 + n) / (10 + n))
        out = held * out + (1 - held) * current
    return out


def watching(**options) -> Watching:
    base = toy()
    return Watching(base.model, base.loss, base.optimizer, **options)


def test_the_average_is_what_is_left_after_training(tmp_path):
    training, recorder = toy(), Recorder()
    trainer(tmp_path, 7, [EMA(DECAY), recorder]).fit(training, moons())
    assert torch.allclose(weights(training), average(recorder.weights), atol=1e-6)
    assert not torch.allclose(weights(training), recorder.weights[-1], atol=1e-4)


def test_averaging_leaves_training_alone(tmp_path):
    # validations swap the weights in between: training must go on from the raw ones
    recorders = Recorder(), Recorder()
    for recorder, parts in zip(recorders, ([EMA(DECAY)], [])):
        trainer(tmp_path, 7, [*parts, recorder], val_check_interval=2).fit(toy(), moons())
    assert all(torch.equal(a, b) for a, b in zip(*(r.weights for r in recorders), strict=True))


def test_only_optimizer_steps_are_averaged(tmp_path):
    training, recorder = toy(), Recorder()
    options = {"accumulate_grad_batches": 3}
    trainer(tmp_path, 4, [EMA(DECAY), recorder], **options).fit(training, moons())
    assert torch.allclose(weights(training), average(recorder.weights[2::3]), atol=1e-6)


def test_the_end_of_an_epoch_is_no_step(tmp_path):
    training, recorder = toy(), Recorder()
    options = {"max_epochs": 3, "val_check_interval": None}
    trainer(tmp_path, callbacks=[EMA(DECAY), recorder], **options).fit(
        training, moons(steps_per_epoch=2)
    )
    assert len(recorder.weights) == 6
    assert torch.allclose(weights(training), average(recorder.weights), atol=1e-6)


def test_validation_sees_the_average(tmp_path):
    training, recorder = watching(), Recorder()
    trainer(tmp_path, 6, [EMA(DECAY), recorder], val_check_interval=2).fit(training, moons())
    assert len(training.validated) == 3
    for steps, seen in zip((2, 4, 6), training.validated):
        assert torch.allclose(seen, average(recorder.weights[:steps]), atol=1e-6)


@pytest.mark.parametrize("name", ["model.ckpt", "last.ckpt", None])
def test_a_test_in_the_same_trainer_sees_the_average(tmp_path, name):
    training, recorder = watching(), Recorder()
    run = trainer(tmp_path, 5, [EMA(DECAY), recorder, Checkpoint(str(tmp_path), 3)])
    run.fit(training, moons())
    path = None if name is None else tmp_path / name
    run.test(training, moons(), ckpt_path=path, weights_only=True, verbose=False)
    steps = 3 if name == "last.ckpt" else 5
    assert len(training.tested) > 0
    for seen in training.tested:
        assert torch.allclose(seen, average(recorder.weights[:steps]), atol=1e-6)


@pytest.mark.parametrize("again", ["same trainer", "another trainer"])
def test_a_later_validation_sees_the_average(tmp_path, again):
    training, recorder, ema = watching(), Recorder(), EMA(DECAY)
    run = trainer(tmp_path, 5, [ema, recorder, Checkpoint(str(tmp_path))])
    run.fit(training, moons())
    if again == "another trainer":
        training, run = watching(), trainer(tmp_path, callbacks=[EMA(DECAY)])
    path = tmp_path / "model.ckpt"
    run.validate(training, moons(), ckpt_path=path, weights_only=True, verbose=False)
    assert torch.allclose(training.validated[-1], average(recorder.weights), atol=1e-6)


def test_files_hold_the_average_and_the_raw_weights(tmp_path):
    training, recorder = toy(), Recorder()
    parts = [EMA(DECAY), recorder, Checkpoint(str(tmp_path), 3)]
    trainer(tmp_path, 5, parts).fit(training, moons())
    for name, steps in (("last.ckpt", 3), ("model.ckpt", 5)):
        loaded = weights(genflow.load(tmp_path / name))
        assert torch.allclose(loaded, average(recorder.weights[:steps]), atol=1e-6)
        raw = stored(tmp_path / name, "current_model_state")
        names = [n for n, _ in training.named_parameters()]
        flat = torch.cat([raw[n].flatten() for n in names])
        assert torch.equal(flat, recorder.weights[steps - 1])
    assert torch.equal(loaded, weights(training))


def test_a_resumed_run_starts_from_the_raw_weights(tmp_path):
    history = []
    for steps, path in ((4, None), (6, tmp_path / "model.ckpt")):
        recorder, training = Recorder(), toy()
        parts = [EMA(DECAY), recorder, Checkpoint(str(tmp_path))]
        trainer(tmp_path, steps, parts).fit(training, moons(), ckpt_path=path, weights_only=True)
        history += recorder.weights
    unbroken = Recorder()
    trainer(tmp_path, 6, [unbroken]).fit(toy(), moons())
    assert all(torch.equal(a, b) for a, b in zip(history, unbroken.weights, strict=True))
    assert torch.allclose(weights(training), average(history), atol=1e-6)


class Figured(Figures):
    """Keeps the samples that were drawn."""

    def draw(self, trainer, pl_module, title):
        keep, show = [], plot.flow
        plot.flow = lambda *parts: keep.append(parts) or show(*parts)
        try:
            return super().draw(trainer, pl_module, title)
        finally:
            plot.flow, self.drawn = show, keep[-1]


def test_numbers_and_figures_are_of_the_average(tmp_path):
    training, data, figures = toy(seed=3), moons(seed=3), Figured(str(tmp_path), 40, 5)
    parts = [EMA(DECAY), Report(str(tmp_path), 50), figures, Checkpoint(str(tmp_path))]
    trainer(tmp_path, 5, parts).fit(training, data)
    loaded = genflow.load(tmp_path / "model.ckpt")
    samples = loaded.sample(50, generator=stream(3, "report"))
    w2 = float(Wasserstein()(samples, data.rows("test", 50).xs[1]))
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["w2"] == pytest.approx(w2)
    assert numbers["ema"] == DECAY
    source, target, drawn, path, _ = figures.drawn
    assert torch.allclose(drawn, loaded.sample(x0=source), atol=1e-6)
    assert torch.equal(target, data.rows("test", 40).xs[1])
    assert torch.allclose(path[-1], drawn[:5], atol=1e-6)


class Buffers(Recorder):
    """The buffers after every batch."""

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.weights.append({k: v.clone() for k, v in pl_module.model.named_buffers()})


def test_buffers_are_shared_not_averaged(tmp_path):
    training, recorder = toy(Normed()), Buffers()
    parts = [EMA(DECAY), recorder, Checkpoint(str(tmp_path), 4)]
    trainer(tmp_path, 6, parts).fit(training, moons())
    assert not equal(recorder.weights[0], recorder.weights[-1])
    assert equal(dict(training.model.named_buffers()), recorder.weights[-1])
    for name, steps in (("last.ckpt", 4), ("model.ckpt", 6)):
        loaded = genflow.load(tmp_path / name, trust="toy_training.")
        assert equal(dict(loaded.named_buffers()), recorder.weights[steps - 1])
    batches = loaded.process.network.net[1].num_batches_tracked
    assert batches.dtype == torch.int64


def test_without_decay_nothing_is_averaged(tmp_path):
    training, recorder = toy(), Recorder()
    parts = [EMA(None), recorder, Checkpoint(str(tmp_path)), Report(str(tmp_path), 20)]
    trainer(tmp_path, 5, parts).fit(training, moons())
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert "current_model_state" not in content
    assert torch.equal(weights(genflow.load(tmp_path / "model.ckpt")), recorder.weights[-1])
    assert json.loads((tmp_path / "metrics.json").read_text())["ema"] is None


@pytest.mark.filterwarnings("ignore:.*not created with WeightAveraging.*")
def test_averaging_may_begin_at_a_resume(tmp_path):
    trainer(tmp_path, 3, [Checkpoint(str(tmp_path))]).fit(toy(), moons())
    recorder, unbroken = Recorder(), Recorder()
    trainer(tmp_path, 6, [unbroken]).fit(toy(), moons())
    path = tmp_path / "model.ckpt"
    trainer(tmp_path, 6, [EMA(DECAY), recorder]).fit(toy(), moons(), ckpt_path=path, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(recorder.weights, unbroken.weights[3:], strict=True))


def test_one_callback_may_serve_two_fits(tmp_path):
    ema, training, recorder = EMA(DECAY), toy(), Recorder()
    trainer(tmp_path, 3, [ema]).fit(training, moons())
    trainer(tmp_path, 5, [ema, recorder]).fit(training, moons())
    assert torch.allclose(weights(training), average(recorder.weights), atol=1e-6)


@pytest.mark.parametrize("decay", [0, 1, -0.1, 2])
def test_decay_is_a_fraction(decay):
    with pytest.raises(ValueError, match=rf"EMA\(decay={decay}\): decay must lie in \(0, 1\)"):
        EMA(decay)
