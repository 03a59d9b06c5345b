"""Editing: from data part of the way back and forward again."""

import pytest
import torch
from exact import DATA, START, Known, gaussian_model, moments, seeded
from gaussians import pair

from genflow.interpolant import BrownianBridge, Linear, Mirror, OneSided, Quadratic, Trigonometric
from genflow.model import Generator
from genflow.network import MLP, Guided
from genflow.oracle import Exact, independent
from genflow.process import SDE, StochasticInterpolant
from genflow.solver import Adaptive, Euler, Heun, StochasticHeun
from genflow.source import Gaussian
from genflow.transform import Standardise

PATHS = [OneSided(), OneSided(Trigonometric()), BrownianBridge(), Linear(gamma=Quadratic())]
every_path = pytest.mark.parametrize("path", PATHS, ids=str)
N = 4000


def model_of(path):
    start = Gaussian(2).double() if isinstance(path, OneSided) else START
    process = StochasticInterpolant(Exact(independent(start, DATA), path), path)
    return Generator(start, process, Heun(25)).double()


def correlations(x, y):
    return torch.corrcoef(torch.cat([x, y], 1).T)[:2, 2:].abs()


def errors(x):
    """Of mean and covariance against the data's, in standard errors."""
    mean, cov = moments(DATA)
    first = (x.mean(0) - mean) / (cov.diagonal() / len(x)).sqrt()
    outer = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    second = (outer.mean(0) - cov) / (outer.std(0) / len(x) ** 0.5)
    return max(float(first.abs().max()), float(second.abs().max()))


@pytest.mark.parametrize("epsilon", [0.0, "gamma"])
@every_path
def test_a_short_way_changes_little(path, epsilon):
    x = DATA.sample(200, seeded())
    found = model_of(path).edit(x, 1 - 1e-4, epsilon=epsilon, generator=seeded(2))
    assert (found - x).abs().max() < 0.1 and not torch.equal(found, x)


@pytest.mark.parametrize("epsilon", [0.0, "gamma"])
@every_path
def test_from_the_start_nothing_is_left(path, epsilon):
    """4.5 standard errors of a correlation, and of the moments of fresh samples."""
    x = DATA.sample(N, seeded())
    found = model_of(path).edit(x, 0.0, epsilon=epsilon, generator=seeded(2))
    assert correlations(x, found).max() < 4.5 / N**0.5 and errors(found) < 4.5


@every_path
def test_edits_of_data_are_data(path):
    x = DATA.sample(N, seeded())
    kept = []
    for t in (0.3, 0.8):
        found = model_of(path).edit(x, t, epsilon="gamma_squared", steps=30, generator=seeded(2))
        assert errors(found) < 4.5
        kept.append((found - x).norm(dim=1).mean())
    assert kept[1] < 0.7 * kept[0]


def test_a_mirror_varies_what_it_is_given():
    x, path = DATA.sample(N, seeded()), Mirror()
    process = StochasticInterpolant(Exact(independent(DATA, DATA), path), path)
    found = Generator(DATA, process, Heun(25)).edit(x, 0.5, epsilon="gamma", generator=seeded(2))
    assert errors(found) < 4.5 and 0.1 < (found - x).abs().mean() < 1.5


def test_a_way_back_adds_the_noise_of_the_interpolant():
    # one Euler step of a field of zeros shows where it turned round
    path = BrownianBridge()
    process = StochasticInterpolant(Zeros(), path)
    model, x = Generator(START, process, Euler(1)).double(), DATA.sample(6, seeded())
    draws = seeded(2)
    x0 = START.sample(6, draws)
    want = path.sample(0.4, x0, x, generator=draws).x
    torch.testing.assert_close(model.edit(x, 0.4, generator=seeded(2)), want)


class Zeros(torch.nn.Module):
    outputs = ["velocity", "noise"]

    def forward(self, t, x, cond=None):
        self.seen = cond
        return dict.fromkeys(self.outputs, torch.zeros_like(x))


def test_data_units():
    path = OneSided()
    transform = Standardise(2).double().prepare(40 + 7 * torch.randn(500, 2, generator=seeded()))
    process = StochasticInterpolant(Zeros(), path)
    model = Generator(Gaussian(2), process, Euler(1), transform).double()
    x = 40 + 7 * torch.randn(6, 2, generator=seeded()).double()
    near = model.edit(x, 1 - 1e-9)
    torch.testing.assert_close(near, x, atol=1e-6, rtol=0)
    assert (model.edit(x, 0.5, generator=seeded(5)) - x).abs().max() > 1


def test_conditions_reach_the_fields():
    laws = [pair(), pair()._replace(mean1=pair().mean1 + 20)]
    model = gaussian_model(pair(), OneSided())
    model.process.fields = Known(laws, OneSided())
    x, cond = torch.zeros(400, 2, dtype=torch.float64), torch.arange(400) % 2
    found = model.edit(x, 0.1, cond=cond, generator=seeded())
    assert (found[cond == 1] > 12).all() and (found[cond == 0] < 8).all()


def test_guided_networks_edit():
    torch.manual_seed(0)
    network = MLP(2, 8, classes=4, outputs=["velocity", "noise"])
    guided = Guided(network, empty=3, scale=2.0).eval()
    model = Generator(Gaussian(2), StochasticInterpolant(guided, BrownianBridge()), Heun(4)).eval()
    x, cond = torch.zeros(6, 2), torch.arange(6) % 3
    for epsilon in (0.0, 0.5):
        strong = model.edit(x, 0.5, cond=cond, epsilon=epsilon, generator=seeded())
        guided.scale = 1.0
        plain = model.edit(x, 0.5, cond=cond, epsilon=epsilon, generator=seeded())
        guided.scale = 2.0
        assert strong.shape == (6, 2) and not torch.allclose(strong, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_shapes_and_precision(shape, dtype):
    network = MLP(list(shape), 8, outputs=["velocity", "noise"])
    model = Generator(Gaussian(list(shape)), StochasticInterpolant(network, OneSided()), Heun(3))
    x = torch.randn(5, *shape, generator=seeded())
    for options in ({}, {"epsilon": "gamma"}, {"steps": 2}, {"solver": Adaptive()}, {"epsilon": abs}):
        found = model.to(dtype).edit(x, 0.3, generator=seeded(), **options)
        assert found.shape == x.shape and found.dtype == dtype and not found.requires_grad


def test_the_generator_rules_the_edits():
    model, x = model_of(BrownianBridge()), DATA.sample(10, seeded())
    for epsilon in (0.0, 0.5):
        draws = [model.edit(x, 0.5, epsilon=epsilon, generator=seeded(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])


def test_noise_needs_a_solver_for_noise():
    model, x = model_of(BrownianBridge()), DATA.sample(5, seeded())
    with pytest.raises(ValueError, match="is for ODEs"):
        model.edit(x, 0.5, epsilon=0.5, solver=Heun(3))
    same = [
        model.edit(x, 0.5, epsilon=0.5, generator=seeded(), **options)
        for options in ({}, {"solver": StochasticHeun(25)})
    ]
    assert torch.equal(*same)


@pytest.mark.parametrize("t", [-0.1, 1.0, 1.5, float("nan")])
def test_times_outside_are_refused(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\)"):
        model_of(OneSided()).edit(torch.zeros(3, 2), t)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"epsilon": -1.0}, "must be a finite number >= 0"),
        ({"epsilon": lambda t: 0.8 - t}, "epsilon must be finite and >= 0 at every time"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"solver": "heun"}, "solver must be a solver"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        model_of(OneSided()).edit(torch.zeros(3, 2), 0.5, **options)


def test_models_that_cannot_edit_say_so():
    with pytest.raises(ValueError, match="edit needs the interpolant .* which SDE does not keep"):
        Generator(Gaussian(2), SDE(MLP(2, 8)), Euler(3)).edit(torch.zeros(3, 2), 0.5)
    with pytest.raises(ValueError, match=r"event shape \(3,\), but the model was made for \(2,\)"):
        model_of(OneSided()).edit(torch.zeros(3, 3), 0.5)
