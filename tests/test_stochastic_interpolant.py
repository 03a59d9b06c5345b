"""StochasticInterpolant: evaluations, trajectories, batches, files, sharing, refusals."""

import copy

import pytest
import torch
from exact import (
    Known,
    gaussian_model,
    seeded,
)
from gaussians import pair
from torch import nn

import genflow
from genflow.interpolant import (
    BrownianBridge,
    Mirror,
    OneSided,
    Quadratic,
    Trigonometric,
)
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP, Heads
from genflow.process import SDE, StochasticInterpolant
from genflow.solver import Adaptive, Euler, Heun, RungeKutta, StochasticHeun
from genflow.source import Gaussian
from genflow.target import Noise, Rate, Velocity

NAMES = ["velocity", "noise"]


def ramp(t):
    return 0.2 + t


def counted(path=None):
    path = BrownianBridge() if path is None else path
    heads = {name: Counting(name, path) for name in NAMES}
    return Generator(Gaussian(2), StochasticInterpolant(Heads(heads), path), Euler(7)).double()


class Counting(nn.Module):
    def __init__(self, name, path):
        super().__init__()
        self.name, self.field = name, Known(pair(), path, [name])

    def forward(self, t, x, cond=None):
        return self.field(t, x)[self.name]


def calls(model):
    heads = model.process.fields.heads
    return [heads[name].field.calls for name in NAMES]


@pytest.mark.parametrize(
    "solver, times", [(Euler(7), 1), (Heun(7), 2), (StochasticHeun(7), 2), (RungeKutta(7), 4)]
)
def test_the_ode_asks_for_the_velocity_alone(solver, times):
    model = counted()
    assert model.solve(5, solver=solver).nfe == 7 * times
    assert calls(model) == [7 * times, 0]
    model.log_prob(torch.zeros(3, 2), solver=solver)
    assert calls(model) == [14 * times, 0]


def test_noise_asks_for_both_fields():
    model = counted()
    assert model.solve(5, epsilon=0.5).nfe == 7 and calls(model) == [7, 7]
    assert model.solve(5, epsilon=0.0).nfe == 7 and calls(model) == [14, 7]


@pytest.mark.parametrize("solver", [Heun(7), RungeKutta(7), Adaptive(steps=7)])
def test_solvers_for_odes_are_stood_in_for(solver):
    model = gaussian_model(pair(), BrownianBridge())
    model.solver = solver
    found = model.solve(5, epsilon=0.5, generator=seeded())
    want = model.solve(5, epsilon=0.5, solver=StochasticHeun(7), generator=seeded())
    assert torch.equal(found.x, want.x) and found.nfe == 14
    with pytest.raises(ValueError, match="is for ODEs"):
        model.sample(5, epsilon=0.5, solver=solver)
    assert model.sample(5).shape == (5, 2)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, "gamma"])
def test_trajectories(epsilon, reverse):
    model, x0 = gaussian_model(pair(), BrownianBridge()), torch.randn(6, 2, generator=seeded())
    options = {"x0": x0, "epsilon": epsilon, "reverse": reverse, "steps": 9}
    found = model.solve(**options, trajectory=True, generator=seeded())
    assert found.trajectory.shape == (10, 6, 2) and bool(found.times[0] == reverse)
    torch.testing.assert_close(found.trajectory[0], x0.double())
    assert torch.equal(found.trajectory[-1], found.x)
    assert torch.equal(found.x, model.sample(**options, generator=seeded()))


def test_the_generator_rules_the_noise():
    model = gaussian_model(pair(), BrownianBridge())
    for size in (None, 4):
        x = [model.sample(10, epsilon=0.5, generator=seeded(s), batch_size=size) for s in (1, 1, 2)]
        assert torch.equal(x[0], x[1]) and not torch.allclose(x[0], x[2])


def test_batches_cover_all_rows():
    model, x0 = gaussian_model(pair(), BrownianBridge()), torch.randn(10, 2, generator=seeded())
    whole, parts = (model.solve(x0=x0, batch_size=size) for size in (None, 3))
    torch.testing.assert_close(whole.x, parts.x)
    assert whole.nfe == parts.nfe
    noisy = model.solve(x0=x0, epsilon=0.5, batch_size=3, trajectory=True)
    assert noisy.trajectory.shape == (61, 10, 2) and noisy.nfe == whole.nfe


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_shapes_and_precision(shape, dtype):
    network = MLP(list(shape), 8, outputs=NAMES)
    model = Generator(Gaussian(list(shape)), StochasticInterpolant(network, BrownianBridge()), Heun(3))
    for epsilon in (0, 0.5, "gamma", ramp):
        x = model.to(dtype).sample(5, epsilon=epsilon)
        assert x.shape == (5, *shape) and x.dtype == dtype and not x.requires_grad
        assert model.sample(x0=x.float(), epsilon=epsilon, reverse=True).dtype == dtype


def networks():
    torch.manual_seed(0)
    return {
        "trunk": MLP(2, 8, outputs=NAMES), "heads": Heads({name: MLP(2, 8) for name in NAMES}),
    }  # fmt: skip


@pytest.mark.parametrize("epsilon", ["gamma", 0.3, 0.0])
@pytest.mark.parametrize("kind", ["trunk", "heads"])
def test_a_model_survives_its_file(kind, epsilon, tmp_path):
    process = StochasticInterpolant(networks()[kind], Trigonometric(Quadratic()), epsilon, 0.2)
    model = Generator(Gaussian(2), process, Heun(4))
    genflow.save(model, tmp_path / "model.ckpt")
    loaded = genflow.load(tmp_path / "model.ckpt")
    assert loaded.process.epsilon == epsilon and loaded.process.taper == 0.2
    assert loaded.process.interpolant == process.interpolant
    for options in ({}, {"epsilon": 0.5}, {"epsilon": ramp}):
        x = [m.sample(5, generator=seeded(), **options) for m in (model, loaded)]
        assert torch.equal(*x)


def test_only_the_fields_are_saved():
    network = networks()["heads"]
    process = StochasticInterpolant(network, BrownianBridge(), "gamma")
    assert {*process.state_dict()} == {f"fields.{key}" for key in network.state_dict()}
    process.drift(torch.rand(3), torch.zeros(3, 2))
    assert {*process.state_dict()} == {f"fields.{key}" for key in network.state_dict()}


def test_another_epsilon_shares_the_fields():
    process = StochasticInterpolant(networks()["trunk"], BrownianBridge())
    noisy = process.with_epsilon("gamma")
    assert process.epsilon == 0 and not process.stochastic and noisy.stochastic
    assert all(a is b for a, b in zip(process.parameters(), noisy.parameters()))
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    before = noisy.drift(t, x)
    with torch.no_grad():
        next(process.parameters()).add_(1.0)
    assert not torch.allclose(noisy.drift(t, x), before)


def test_deep_copies_stand_alone():
    process = StochasticInterpolant(networks()["trunk"], BrownianBridge(), 0.5)
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    twin, before = copy.deepcopy(process), process.drift(t, x)
    assert torch.equal(twin.drift(t, x), before)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert torch.equal(process.drift(t, x), before) and not torch.equal(twin.drift(t, x), before)


def test_sampling_leaves_the_model_as_it_is():
    model = gaussian_model(pair(), BrownianBridge(), epsilon="gamma")
    process = model.process
    model.sample(3, epsilon=0.2)
    model.log_prob(torch.zeros(3, 2), epsilon=0.2)
    assert model.process is process and process.epsilon == "gamma"
    assert not torch.equal(model.sample(3, generator=seeded()), model.sample(3, epsilon=0.0))


def test_the_loss_fits_the_process_and_its_fields():
    path = BrownianBridge()
    target = {"velocity": Velocity(), "noise": Noise()}
    process = StochasticInterpolant(networks()["trunk"], path)
    Matching(path, target=target).check(process)
    with pytest.raises(ValueError, match="give both the same interpolant"):
        Matching(BrownianBridge(2.0), target=target).check(process)
    for wrong in (Velocity(), {"velocity": Rate(), "noise": Noise()}, {"speed": Velocity()}):
        with pytest.raises(ValueError, match="learns fields by name"):
            Matching(path, target=wrong).check(process)


BAD = [-0.1, float("nan"), float("inf"), "beta", True, None]


@pytest.mark.parametrize("epsilon", BAD, ids=str)
def test_amounts_that_are_none_are_refused(epsilon):
    with pytest.raises(ValueError, match="must be a finite number >= 0, 'gamma', 'gamma_squared'"):
        StochasticInterpolant(networks()["trunk"], BrownianBridge(), epsilon)
    if epsilon is not None:  # which stands for the model's own
        with pytest.raises(ValueError, match="must be a finite number >= 0, 'gamma', 'gamma_squared'"):
            gaussian_model(pair(), BrownianBridge()).sample(3, epsilon=epsilon)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda t: 0.5 - t, r"epsilon\(0.5[0-9]*\) = -0.0"),
        (lambda t: -1.0, r"epsilon\(0\) = -1"),
        (lambda t: 1 / t, r"epsilon\(0\) = inf"),
        (lambda t: torch.where(t > 0.9, torch.nan, 1.0), "= nan"),
    ],
)
def test_functions_below_zero_are_refused(function, words):
    with pytest.raises(ValueError, match=words):
        gaussian_model(pair(), BrownianBridge()).sample(3, epsilon=function)


def test_functions_are_for_sampling():
    with pytest.raises(ValueError, match="cannot be saved with the model"):
        StochasticInterpolant(networks()["trunk"], BrownianBridge(), lambda t: t)


def alone(*names):
    return Heads({name: MLP(2, 8) for name in names})


@pytest.mark.parametrize(
    "fields, path, words",
    [
        (alone("noise"), BrownianBridge(), "give no velocity"),
        (alone("denoised"), BrownianBridge(), "give no velocity"),
        (alone("rate"), OneSided(), "give no velocity"),
        (alone("velocity"), Mirror(), None),
        (alone("velocity", "speed"), BrownianBridge(), r"return \['speed'\]; known are velocity"),
    ],
)
def test_fields_that_do_not_suffice_are_refused(fields, path, words):
    if words is None:
        StochasticInterpolant(fields, path)
        return
    with pytest.raises(ValueError, match=words):
        StochasticInterpolant(fields, path)


@pytest.mark.parametrize("path", [BrownianBridge(), Mirror()], ids=str)
def test_noise_without_a_score_is_refused(path):
    with pytest.raises(ValueError, match="need a field that knows the score"):
        StochasticInterpolant(alone("velocity"), path, 0.5)
    process = StochasticInterpolant(alone("velocity"), path)
    model, x = Generator(Gaussian(2), process, Heun(3)), torch.zeros(3, 2)
    assert not process.has_score and model.sample(3).shape == (3, 2)
    for ask in (
        lambda: model.sample(3, epsilon=0.5),
        lambda: model.log_prob(x, epsilon=0.5),
        lambda: process.score(torch.rand(3), x),
        lambda: process.noise(torch.rand(3), x),
    ):
        with pytest.raises(ValueError, match="need a field that knows the score"):
            ask()


def test_bad_parts_are_refused():
    with pytest.raises(TypeError, match="must be an affine one"):
        StochasticInterpolant(networks()["trunk"], "linear")
    for taper in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="taper"):
            StochasticInterpolant(networks()["trunk"], BrownianBridge(), taper=taper)


def test_noise_of_its_own_takes_no_epsilon():
    model = Generator(Gaussian(2), SDE(MLP(2, 8), 0.3), Euler(3))
    with pytest.raises(ValueError, match="leave epsilon out"):
        model.sample(3, epsilon=0.5)
    with pytest.raises(ValueError, match="cannot run backwards"):
        model.sample(x0=torch.zeros(3, 2), reverse=True)
