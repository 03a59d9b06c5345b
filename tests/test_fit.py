"""Parts that do not belong together are told before training, not sampled from afterwards."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import adam, toy, trainer

from genflow.coupling import ExactOT, Gibbs, Sinkhorn
from genflow.data import Arrays, Digits, Simulated
from genflow.interpolant import BrownianBridge, Linear
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Adaptive, Euler, Heun, StochasticHeun
from genflow.source import EightGaussians, Empirical, Gaussian, Moons
from genflow.specs import fill, spec
from genflow.target import Denoised, Drift, Noise, Rate, Score, Velocity
from genflow.training import EMA, Checkpoint, DataModule, Training

MOONS = Simulated(Gaussian(2), Moons())


def fit(folder, training, data=MOONS, steps=2, callbacks=(), **options):
    run = trainer(folder, steps, list(callbacks), **options)
    run.fit(training, DataModule(data, batch_size=16))
    return run


def model(process, solver=None, source=None):
    return Generator(source or Gaussian(2), process, solver or Euler(5))


BRIDGE = BrownianBridge(1.0)


@pytest.mark.parametrize(
    ("sigma", "interpolant", "target"),
    [
        (0.0, Linear(), Denoised()),
        (0.0, BRIDGE, Noise()),
        (0.0, BRIDGE, Score()),
        (0.0, BRIDGE, Rate()),
        (0.0, BRIDGE, Drift(1.0)),
        (1.0, BRIDGE, Velocity()),
        (1.0, BRIDGE, Drift(0.2)),
        (0.0, BRIDGE, {"velocity": Velocity()}),
    ],
)
def test_an_sde_learns_what_it_is_sampled_by(tmp_path, sigma, interpolant, target):
    loss = Matching(interpolant, target=target)
    with pytest.raises(ValueError, match="is sampled by its drift.*use target="):
        fit(tmp_path, Training(model(SDE(MLP(2), sigma)), loss, adam))


@pytest.mark.parametrize(
    ("sigma", "interpolant", "target"),
    [
        (0.0, BRIDGE, Velocity()),
        (1.0, BRIDGE, Drift(1.0)),
        (0.0, Linear(), Rate()),
        (0.0, Linear(), Drift(0.0)),
    ],
)
def test_what_fits_is_let_through(sigma, interpolant, target):
    Matching(interpolant, target=target).check(SDE(MLP(2), sigma))


def test_the_data_must_start_where_the_model_does(tmp_path):
    with pytest.raises(ValueError, match="x0 of the data is .*EightGaussians.*starts from .*Gaussian"):
        fit(tmp_path, toy(), Simulated(EightGaussians(), Moons()))


def test_a_file_of_starts_needs_an_empirical_source(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    data = Arrays(str(tmp_path / "x.npy"), str(tmp_path / "x.npy"))
    with pytest.raises(ValueError, match="set source=empirical"):
        fit(tmp_path, toy(), data)
    training = Training(model(SDE(MLP(2)), source=Empirical()), Matching(), adam)
    fit(tmp_path, training, data)
    assert training.model.source.points.shape == (80, 2)


def test_events_of_other_shape_are_told(tmp_path):
    with pytest.raises(ValueError, match="x1 has event shape"):
        fit(tmp_path, toy(), Digits(Gaussian(2)))


def test_a_solver_for_odes_gives_way_where_there_is_noise(tmp_path):
    noisy = model(SDE(MLP(2), 1.0), Heun(5))
    fit(tmp_path, Training(noisy, Matching(BRIDGE, target=Drift(1.0)), adam))
    draws = [
        noisy.sample(3, solver=solver, generator=torch.Generator().manual_seed(0))
        for solver in (None, StochasticHeun(5))
    ]
    assert torch.equal(*draws)
    with pytest.raises(ValueError, match="Heun is for ODEs"):
        noisy.sample(3, solver=Heun(5))


class Forgetful(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, t, x, cond=None):
        return self.net(x)


def test_a_network_that_cannot_be_described_is_told(tmp_path):
    with pytest.raises(TypeError, match="does not keep its argument 'size'"):
        fit(tmp_path, Training(model(SDE(Forgetful(3))), Matching(), adam))


def test_labels_out_of_range_are_told(tmp_path):
    network = MLP([1, 8, 8], width=8, classes=4)
    start = Gaussian([1, 8, 8])
    training = Training(Generator(start, SDE(network), Euler(2)), Matching(), adam)
    with pytest.raises(ValueError, match="labels must lie in 0..3, got 0..9"):
        fit(tmp_path, training, Digits(start, labels=True))


def test_a_fused_optimizer_does_not_clip_mixed_precision(tmp_path):
    fused = partial(torch.optim.Adam, lr=1e-3, fused=True)
    training = Training(model(SDE(MLP(2))), Matching(), fused)
    with pytest.raises(ValueError, match="set optimizer.fused=false"):
        fit(tmp_path, training, precision="bf16-mixed", gradient_clip_val=1.0)


def test_double_precision_trains_and_samples(tmp_path):
    training = Training(model(SDE(MLP(2)), Adaptive()), Matching(coupling=Gibbs()), adam)
    fit(
        tmp_path,
        training,
        steps=4,
        callbacks=[EMA(0.9), Checkpoint(str(tmp_path))],
        precision="64-true",
    )
    assert training.model.sample(3).dtype == torch.float64


def test_times_must_agree_with_the_direction():
    flow = model(SDE(MLP(2)))
    with pytest.raises(ValueError, match="times must fall with reverse=True"):
        flow.sample(x0=torch.zeros(3, 2), reverse=True, times=[0.0, 1.0])
    with pytest.raises(ValueError, match="times must fall with reverse=True"):
        flow.sample(3, times=[1.0, 0.0])


@pytest.mark.parametrize("solver", [Euler(), StochasticHeun()])
def test_a_step_takes_a_bare_process(solver, generator):
    x = torch.zeros(3, 2)
    assert solver.step(SDE(MLP(2), 1.0), 0.0, 0.1, x, generator).shape == x.shape


def test_a_cost_of_wrong_shape_is_told():
    x = torch.randn(2, 2)
    with pytest.raises(ValueError, match=r"cost function returned shape \(2, 2\)"):
        Gibbs(1.0, cost=lambda a, b: (a - b) ** 2)(x, x)


def test_what_another_coupling_chose_is_not_filled_in():
    loss = Matching(coupling=Gibbs())
    before = spec(loss)
    fill(loss, before, spec(Matching(coupling=Sinkhorn(9.0))))
    assert loss.coupling.epsilon is None


def test_small_widths_keep_their_score():
    x = torch.zeros(4, 2)
    noise = torch.ones(4, 2)
    score = Linear(sigma=1e-4).sample(0.5, x, x, noise=noise).score
    torch.testing.assert_close(score, torch.full((4, 2), -1e4), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    "coupling", [Gibbs(conditions="within"), ExactOT(conditions="within")], ids=["Gibbs", "ExactOT"]
)
def test_labels_need_not_come_in_every_combination(coupling, tmp_path):
    # the least and the greatest of both labels never meet in a row of these data
    first = np.arange(200) % 2
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 2)))
    np.save(tmp_path / "labels.npy", np.stack([first, 1 - first], 1))
    data = Arrays(str(tmp_path / "x.npy"), Gaussian(2), cond=str(tmp_path / "labels.npy"))
    training = Training(model(SDE(MLP(2, classes=[2, 2]))), Matching(coupling=coupling), adam)
    fit(tmp_path, training, data)
    cond = torch.tensor([[0, 1], [1, 0]])
    assert training.model.sample(cond=cond).isfinite().all()
