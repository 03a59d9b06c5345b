"""A source pushed forward by one evaluation: samples, data units, what is refused, training."""

import json
from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from toy_training import adam, equal, moons, stored, toy, trainer

import genflow
from genflow.data import Digits, Simulated
from genflow.distance import EnergyDistance, SlicedWasserstein, Wasserstein
from genflow.loss import Matching, SampleDistance
from genflow.model import Model, PushForward
from genflow.network import MLP
from genflow.seeds import stream
from genflow.source import Empirical, Gaussian, Moons
from genflow.training import EMA, Checkpoint, DataModule, Figures, Report, Training
from genflow.transform import Standardise


class Twice(nn.Module):
    """``2 x + t + cond``: what a sample must be is known."""

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = t if cond is None else t + cond
        return 2 * x + shift.reshape(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("shape", [2, [1, 8, 8]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_are_the_mapped_source(shape, dtype):
    model = PushForward(Gaussian(shape, mean=1.0, std=0.5), Twice()).to(dtype)
    x = model.sample(5, generator=stream(3))
    start = model.source.sample(5, stream(3))
    assert x.dtype == dtype
    assert torch.equal(x, 2 * start)
    assert torch.equal(model.sample(x0=start), x)
    assert torch.equal(model.sample(5, generator=stream(3), batch_size=2), x)
    labels = torch.arange(5)
    moved = x + labels.reshape(-1, *[1] * (x.ndim - 1))
    assert torch.allclose(model.sample(cond=labels, generator=stream(3)), moved)
    assert torch.allclose(model.sample(5, cond=4, generator=stream(3)), x + 4)


def test_users_speak_data_units(generator):
    x1 = 7 + 3 * torch.randn(500, 2, generator=generator)
    x0 = torch.randn(500, 2, generator=generator)
    mean, std = x1.mean(0), x1.std(0, correction=0)
    model = PushForward(Gaussian(2), Twice(), Standardise(2)).prepare(x0, x1)
    found = model.sample(x0=x0)
    fitted = model.transform.inverse(torch.zeros(1, 2))  # whatever its own convention is
    assert torch.allclose(fitted[0], mean, atol=1e-4)
    assert torch.allclose(found, mean + std * 2 * x0, rtol=5e-3, atol=5e-3), "noise is not transformed"
    inside = model.encode(x0, x1)
    assert torch.equal(inside[0], x0)
    assert torch.allclose(inside[1], (x1 - mean) / std, rtol=5e-3, atol=5e-3)
    data = PushForward(Empirical(), Twice(), Standardise(2)).prepare(x1, x1 + 1)
    both = torch.cat([x1, x1 + 1]).mean(0)
    assert torch.allclose(data.sample(x0=x1), both + 2 * (x1 - both), atol=1e-3), "a source of data is"
    assert data.sample(3, generator=generator).shape == (3, 2)


def test_dropout_is_off_while_sampling_alone():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def forward(self, t, x, cond=None):
            return self.net(x)

    model, x0 = PushForward(Gaussian(2), Net()), torch.ones(4, 2)
    assert torch.equal(model.sample(x0=x0), model.sample(x0=x0))
    assert network.training


@pytest.mark.parametrize(
    "option", [{"steps": 1}, {"times": [0.0, 1.0]}, {"epsilon": 0.0}, {"solver": "euler"},
               {"trajectory": True}, {"reverse": True}], ids=str,
)  # fmt: skip
def test_options_of_a_process_are_refused(option):
    with pytest.raises(ValueError, match=f"PushForward maps .*{next(iter(option))}"):
        PushForward(Gaussian(2), Twice()).sample(3, **option)


def test_bad_input_is_told_in_one_sentence():
    model = PushForward(Gaussian(2), Twice())
    with pytest.raises(ValueError, match="sizes differ"):
        model.sample(3, x0=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="event shape"):
        model.sample(x0=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="needs n"):
        model.sample()
    with pytest.raises(NotImplementedError, match="invertible"):
        model.log_prob(torch.zeros(3, 2))


def test_it_is_saved_and_loaded(tmp_path):
    model = PushForward(Gaussian(2), MLP(2, width=8, depth=2, classes=3), Standardise(2))
    model.prepare(torch.randn(9, 2), 5 + torch.randn(9, 2))
    genflow.save(model, tmp_path / "model.pt")
    again = genflow.load(tmp_path / "model.pt")
    options = {"cond": torch.tensor([0, 2]), "x0": torch.ones(2, 2)}
    assert torch.equal(again.sample(**options), model.sample(**options))
    assert genflow.spec(again) == genflow.spec(model)


def pushed(network: nn.Module | None = None, loss=None, **options) -> Training:
    """The toy training, of a map instead of a field."""
    like = toy(network, Matching())
    model = PushForward(like.model.source, like.model.process.network)
    loss = SampleDistance(EnergyDistance()) if loss is None else loss
    return Training(model, loss, **({"optimizer": adam} | options))


def test_training_reports_and_draws_it(tmp_path):
    training = pushed(seed=2, metrics={"w2": Wasserstein()})
    data = moons(seed=2)
    callbacks = [Report(str(tmp_path), 50), Figures(str(tmp_path), 50, 10, at_validation=True)]
    trainer(tmp_path, 4, callbacks).fit(training, data)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    x1 = data.rows("test", 50).xs[1]
    samples = training.model.sample(50, generator=stream(2, "report"))
    assert numbers["w2"] == pytest.approx(float(Wasserstein()(samples, x1)))
    assert (numbers["nfe"], numbers["solver"], numbers["samples"]) == (1, None, 50)
    assert {"w2_floor", "seed", "versions"} <= numbers.keys()
    assert not {"w2_euler5", "path_energy", "ess", "log_prob"} & numbers.keys()
    for name in ("samples.png", "loss.png", "figures/step_0000003.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_training_brings_samples_to_the_data(tmp_path):
    training, data = pushed(), moons(batch_size=128)
    x0, x1 = data.rows("test", 500).xs
    before = float(Wasserstein()(training.model.sample(x0=x0), x1))
    trainer(tmp_path, 300).fit(training, data)
    after = float(Wasserstein()(training.model.sample(x0=x0), x1))
    assert after < before / 3


def test_an_interrupted_run_goes_on_as_if_it_were_unbroken(tmp_path):
    for name, steps in (("whole", 6), ("half", 3)):
        parts = [EMA(0.9), Checkpoint(tmp_path / name)]
        (tmp_path / name).mkdir()
        trainer(tmp_path, steps, parts).fit(pushed(), moons())
    parts = [EMA(0.9), Checkpoint(tmp_path / "half")]
    resumed = pushed(network=None)
    trainer(tmp_path, 6, parts).fit(resumed, moons(), ckpt_path=tmp_path / "half" / "model.ckpt")
    assert equal(*(stored(tmp_path / name / "model.ckpt") for name in ("whole", "half")))


def test_labels_of_images_train_and_colour_the_figure(tmp_path):
    model = PushForward(Gaussian([1, 8, 8]), MLP([1, 8, 8], 16, 2, classes=10), Standardise([1, 8, 8]))
    training = Training(model, SampleDistance(EnergyDistance()), adam)
    data = DataModule(Digits(Gaussian([1, 8, 8]), labels=True), 64)
    parts = [Report(str(tmp_path), 100), Figures(str(tmp_path), 100)]
    trainer(tmp_path, 3, parts).fit(training, data)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= numbers["class_accuracy"] <= 1
    assert (tmp_path / "samples.png").is_file()


def test_a_loss_of_fields_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="use loss=sample_distance"):
        trainer(tmp_path, 2).fit(pushed(loss=Matching()), moons())
    with pytest.raises(ValueError, match="use model=push_forward"):
        trainer(tmp_path, 2).fit(toy(loss=SampleDistance(EnergyDistance())), moons())


class Points(Model):
    """A model without source, process or solver: thirty points that are learned."""

    most = 30

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.zeros(30, 2))

    @property
    def learner(self) -> nn.Module:
        return self

    def encode(self, *xs: Tensor) -> tuple[Tensor, ...]:
        return xs

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Model:
        self.points.data = xs[0][:30].clone()
        return self

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.points

    def sample(self, n, *, cond=None, generator=None) -> Tensor:
        assert n <= 30
        return self.points.detach()[:n]


def test_a_model_of_so_many_points_is_asked_for_no_more(tmp_path):
    loss = SampleDistance(EnergyDistance())
    training = Training(Points(), loss, adam, metrics={"w2": Wasserstein()})
    data = DataModule(Simulated(Moons(), Moons()), 64)
    trainer(tmp_path, 4, [Report(str(tmp_path), 50), Figures(str(tmp_path), 50)]).fit(training, data)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    x1 = data.rows("test", 50).xs[1]
    assert numbers["w2"] == pytest.approx(float(Wasserstein()(training.model.points.detach(), x1)))
    assert numbers["nfe"] is None
    assert (tmp_path / "samples.png").is_file()


def test_a_distance_that_overflows_stops_the_run_at_its_step(tmp_path):
    model = PushForward(Gaussian(2), MLP(2, 8, 1))
    training = Training(model, SampleDistance(SlicedWasserstein(5)), partial(torch.optim.SGD, lr=1e30))
    trainer = Trainer(
        max_steps=9, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = DataModule(Simulated(Gaussian(2), Moons()), batch_size=16)
    with pytest.raises(
        FloatingPointError, match=r"SlicedWasserstein: .* at step \d .*lower the learning"
    ):
        trainer.fit(training, datamodule=data)
