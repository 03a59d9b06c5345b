"""The true error of a model's fields: models whose error is known, and what it means in nats."""

import json
import math

import pytest
import torch
from laws import LEFT, RIGHT, coupled
from torch import nn

from genflow import plot
from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    LearnedAffine,
    Linear,
    Mirror,
    OneSided,
    Trigonometric,
)
from genflow.model import Generator
from genflow.network import MLP
from genflow.oracle import Exact, entropic, independent, kl_bound
from genflow.process import SDE, LearnedBridge, StochasticInterpolant
from genflow.solver import Euler
from genflow.source import Gaussian
from genflow.transform import Identity, Standardise, Transform

PATH = Linear(gamma=Brownian())


class Off(nn.Module):
    """Exact fields, wrong by a known amount: a constant, and for the noise ``score * gamma``."""

    outputs = ("velocity", "noise")

    def __init__(self, exact, offset=0.0, score=0.0, field=None, sigma=0.0):
        super().__init__()
        self.exact, self.offset, self.score = exact, offset, score
        self.field, self.sigma, self.dropout = field, sigma, nn.Dropout(0.5)

    def forward(self, t, x, cond=None):
        if self.field is not None:
            found = self.exact.fields(t, x, [self.field], self.sigma)[self.field]
            return self.dropout(torch.ones_like(x)) * (found + self.offset)
        found = self.exact(t, x)
        gamma = self.exact.interpolant.coefficients(t).gamma
        wrong = self.score * gamma.reshape(-1, *[1] * (x.ndim - 1))
        return {"velocity": found["velocity"] + self.offset, "noise": found["noise"] - wrong}


def test_a_known_error_is_found(generator):
    exact = Exact(coupled(), PATH)
    error = exact.field_error(Off(exact, 0.3, 0.5), n=500, generator=generator)
    assert len(error.times) == 25 and error.times[0] == 0.01 and error.times[-1] == 0.99
    assert error.rms.keys() == error.relative.keys() == {"velocity", "noise"}
    assert error.rms["velocity"] == pytest.approx([0.3] * 25, rel=1e-9)
    widths = [0.5 * (t * (1 - t)) ** 0.5 for t in error.times]
    assert error.rms["noise"] == pytest.approx(widths, rel=1e-9)
    numbers = error.numbers()
    assert numbers["velocity_rms"] == pytest.approx(0.3)
    assert numbers["noise_worst_time"] == pytest.approx(0.5)
    assert numbers["noise_rms_worst"] == pytest.approx(0.25)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_relative_errors_are_shares_of_the_field(generator):
    exact = Exact(coupled(), PATH)

    def model(t, x):
        return 1.25 * exact.velocity(t, x)

    error = exact.field_error(model, times=[0.1, 0.6], n=50, generator=generator)
    assert error.relative == {"velocity": pytest.approx([0.25, 0.25])}
    assert error.kl_bound is None and "kl_bound" not in error.numbers()
    nothing = exact.field_error(lambda t, x: 0 * x, times=[0.1, 0.6], n=50)
    assert nothing.relative["velocity"] == pytest.approx([1.0, 1.0])


def test_the_model_answers_in_its_own_precision(generator):
    exact = Exact(coupled(), PATH)
    perfect = exact.field_error(exact, n=100, generator=generator)
    assert perfect.numbers()["velocity_rms"] == 0.0
    assert perfect.kl_bound.bound == 0.0

    class Single(Off):
        def __init__(self, exact):
            super().__init__(exact)
            self.register_buffer("own", torch.zeros(()))

    rounded = exact.field_error(Single(exact), n=100, generator=generator)
    assert 0 < rounded.numbers()["velocity_rms"] < 1e-5  # float32


def test_dropout_is_off_while_looking():
    exact = Exact(coupled(), PATH)
    model = Off(exact, 0.1, field="velocity")
    model.exact.eval()
    error = exact.field_error(model, times=[0.5], n=20)
    assert error.rms["velocity"] == pytest.approx([0.1])
    assert model.training and model.dropout.training and not exact.training


class Net(nn.Module):
    """An exact velocity as a plain network with a parameter, in float64."""

    def __init__(self, exact, offset):
        super().__init__()
        self.exact, self.offset = exact, nn.Parameter(torch.tensor(offset, dtype=torch.float64))

    def forward(self, t, x, cond=None):
        return self.exact.velocity(t, x) + self.offset


def standardise(generator, dim=2, law=RIGHT):
    transform = Standardise(dim).double()
    return transform.prepare(law.double().sample(5_000, generator).reshape(-1, *transform.mean.shape))


@pytest.mark.parametrize("latent", [True, False])
def test_a_generator_is_compared_in_its_own_space(latent, generator):
    source = Gaussian(2) if latent else LEFT
    law, path = independent(source, RIGHT), Linear()
    transform = standardise(generator)
    units = transform.mean, transform.std
    inner = Exact(law.standardised(*((0.0, 1.0) if latent else units), *units), path)
    model = Generator(source, SDE(Net(inner, 0.2)), Euler(3), transform)
    exact = Exact(law, path)
    found = exact.field_error(model, times=[0.0, 0.5, 1.0], n=200, generator=generator)
    assert found.rms["velocity"] == pytest.approx([0.2] * 3, rel=1e-6)
    bare = exact.field_error(model.process, times=[0.5], n=200, generator=generator)
    assert bare.rms["velocity"][0] > 0.5  # the process alone is in other units
    plain = Generator(source, SDE(Net(exact, 0.2)), Euler(3), Identity())
    assert exact.field_error(plain, times=[0.5], n=50).rms["velocity"] == pytest.approx([0.2])


class Cube(Transform):
    def forward(self, x):
        return x**3

    def inverse(self, z):
        return z

    def log_abs_det(self, x):
        return x[:, 0]


def test_what_cannot_be_compared_is_refused():
    exact = Exact(coupled(), PATH)
    model = Generator(LEFT, SDE(MLP(2, 8)), Euler(3), Cube())
    with pytest.raises(ValueError, match="no Gaussian mixture after Cube"):
        exact.field_error(model)
    with pytest.raises(ValueError, match=r"returns \['flow'\], but the exact fields are velocity"):
        exact.field_error(lambda t, x: {"flow": x})
    with pytest.raises(ValueError, match=r"velocity has shape \(2000, 1\).*shape of events"):
        exact.field_error(lambda t, x: x[:, :1])
    with pytest.raises(ValueError, match="trained on Mirror.*give Exact the interpolant"):
        exact.field_error(StochasticInterpolant(MLP(2, 8, outputs=["noise"]), Mirror()))
    same = StochasticInterpolant(Off(exact), BrownianBridge(1.0))  # another name for the same path
    assert exact.field_error(same, times=[0.5], n=10).rms["velocity"] == [0.0]


def test_networks_of_every_kind_are_asked(generator):
    images = independent(Gaussian([1, 4, 4]), Gaussian([1, 4, 4], 1.0, 0.5))
    path = Trigonometric(Brownian())
    exact = Exact(images, path, [1, 4, 4])
    fields = MLP((1, 4, 4), 8, outputs=["rate", "noise"])
    model = Generator(
        Gaussian([1, 4, 4]), StochasticInterpolant(fields, path), Euler(3), Standardise([1, 4, 4])
    )
    error = exact.field_error(model, times=[0.2, 0.8], n=30, generator=generator)
    assert error.rms.keys() == {"velocity", "noise"} and error.kl_bound.bound > 0
    bare = exact.field_error(fields, times=[0.2, 0.8], n=30, generator=generator)
    assert bare.rms.keys() == {"rate", "noise"} and bare.kl_bound is None
    noisy = exact.field_error(SDE(MLP((1, 4, 4), 8), 0.5), times=[0.2, 0.8], n=30)
    assert noisy.rms.keys() == {"drift"}
    labels = exact.field_error(MLP((1, 4, 4), 8, classes=3), times=[0.5], n=30, cond=2)
    assert labels.rms.keys() == {"velocity"}
    single = Exact(independent(Gaussian(2), RIGHT), OneSided())
    both = StochasticInterpolant(MLP(2, 8, outputs=["velocity"]), OneSided())
    assert single.field_error(both, n=30).rms.keys() == {"velocity", "noise"}


# what errors mean in nats


def motion(start, sigma):
    """Brownian motion from a Gaussian of deviation ``start`` in one dimension: its drift is zero."""
    end = math.sqrt(start**2 + sigma**2)
    return Exact(entropic(Gaussian(1, 0.0, start), Gaussian(1, 0.0, end), sigma), BrownianBridge(sigma))


@pytest.mark.parametrize("start", [0.01, 1.0])
def test_the_bound_of_a_drift_is_sharp_from_a_point(start):
    # a constant error shifts the end by just as much: the divergence is known
    sigma, offset = 0.8, 0.5
    exact = motion(start, sigma)
    process = SDE(Off(exact, offset, field="drift", sigma=sigma), sigma)
    found = exact.field_error(process, times=[0.0, 0.3, 1.0], n=50).kl_bound
    truth = offset**2 / (2 * (start**2 + sigma**2))
    assert found.epsilon == pytest.approx(sigma**2 / 2)
    assert found.bound == pytest.approx(offset**2 / (2 * sigma**2)) and truth <= found.bound
    assert start > 0.1 or truth > 0.999 * found.bound  # half of it would be no bound


@pytest.mark.parametrize("score", [0.4, -0.3, 0.0])
def test_the_bound_of_velocity_and_noise_is_sharp_too(score):
    epsilon, offset = 0.32, 0.5
    exact = motion(0.01, (2 * epsilon) ** 0.5)
    grid = torch.linspace(1e-6, 1 - 1e-6, 7)
    found = exact.field_error(Off(exact, offset, score), times=grid, n=20).kl_bound
    truth = (offset + epsilon * score) ** 2 / (2 * (1e-4 + 2 * epsilon))
    assert truth == pytest.approx(float(found.curve(epsilon)), rel=1e-3)
    assert truth <= found.curve(epsilon) * (1 + 1e-4) and found.curve(epsilon) <= found.by_losses(
        epsilon
    )
    if score < 0:  # errors that cancel at the best constant
        assert found.epsilon == pytest.approx(-offset / score, rel=1e-4)
        assert found.bound == pytest.approx(0.0, abs=1e-6)


def test_the_best_epsilon_is_the_lowest_point_of_the_curve(generator):
    exact = Exact(coupled(), PATH)
    network = MLP(2, 16, outputs=["velocity", "noise"])
    found = exact.field_error(network, n=300, generator=generator).kl_bound
    grid = torch.logspace(-3, 3, 2001, dtype=torch.float64)
    curve = found.curve(grid)
    assert float(curve.min()) == pytest.approx(found.bound, rel=1e-4)
    assert float(grid[curve.argmin()]) == pytest.approx(found.epsilon, rel=0.01)
    assert (curve <= found.by_losses(grid) * (1 + 1e-12)).all()
    error = exact.field_error(network, generator=generator)
    assert error.numbers()["kl_bound"] == error.kl_bound.bound


def test_bounds_without_an_error_are_zero():
    assert kl_bound([0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]).bound == 0
    only = kl_bound([0.0, 1.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0])
    assert only.bound == 0 and only.epsilon == math.inf  # with boundless noise
    assert only.curve(2.0) == pytest.approx(0.25)


def test_the_figure_has_a_line_for_each_field():
    exact = Exact(coupled(), PATH)
    error = exact.field_error(Off(exact, 0.3, 0.5), times=[0.2, 0.5, 0.8], n=20)
    figure = error.figure("a title")
    assert figure.get_suptitle() == "a title" and len(figure.axes) == 2
    left = figure.axes[0].lines
    assert [line.get_label() for line in left] == ["velocity", "noise"]
    assert list(left[0].get_ydata()) == error.rms["velocity"]
    assert list(figure.axes[1].lines[1].get_ydata()) == error.relative["noise"]
    gaps = plot.field_error([0.0, 1.0], {"rate": [1.0, 1.0]}, {"rate": [math.inf, 1.0]})
    assert math.isnan(gaps.axes[1].lines[0].get_ydata()[0])


def test_a_learned_interpolant_has_an_oracle(generator):
    path = LearnedAffine()
    exact = Exact(coupled(), path)
    for t in (0.3, torch.linspace(0, 1, 5)):
        x = exact.sample(t, 5, generator)
        assert x.shape == (5, 2) and not x.requires_grad
    same = Exact(coupled(), Linear(gamma=Brownian()))  # which it is at first
    draws = [e.sample(0.3, 5, torch.Generator().manual_seed(1)) for e in (exact, same)]
    torch.testing.assert_close(*draws)
    learner = LearnedBridge(MLP(2, 8), path, 0.7)
    assert exact.field_error(learner, n=50).kl_bound.epsilon == pytest.approx(0.245)


def test_single_precision_may_be_hidden_in_a_function():
    """A function does not say how precise its network is."""
    exact, network = Exact(coupled(), PATH), MLP(2, 8)
    found = exact.field_error(lambda t, x: network(t, x), n=50)
    assert found.numbers()["velocity_rms"] > 0
