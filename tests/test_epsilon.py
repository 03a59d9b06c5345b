"""The noise of a stochastic interpolant: which amounts, which paths, which times."""

import numpy as np
import pytest
import torch
from exact import Known, seeded
from gaussians import pair
from torch import nn

import genflow
from genflow.interpolant import (
    BrownianBridge,
    Constant,
    EncoderDecoder,
    LearnedAffine,
    Linear,
    Mirror,
    OneSided,
    SigmaDifference,
    Trigonometric,
)
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import StochasticInterpolant
from genflow.solver import Heun
from genflow.source import Gaussian

NAMES = ["velocity", "noise"]
TIMES = torch.full((3,), 0.5)
X = torch.zeros(3, 2)


class Unnamed(nn.Module):
    """Fields that do not say beforehand what they return."""

    def forward(self, t, x, cond=None):
        return dict.fromkeys(NAMES, x)


def process_of(path=None, names=NAMES, **options):
    path = BrownianBridge() if path is None else path
    return StochasticInterpolant(MLP(2, 8, outputs=list(names)), path, **options)


def model_of(process=None):
    return Generator(Gaussian(2), process_of() if process is None else process, Heun(3))


@pytest.mark.parametrize("epsilon", [0.5, "gamma", "gamma_squared"])
@pytest.mark.parametrize("fields", [MLP(2, 8, outputs=NAMES), Unnamed()], ids=["named", "unnamed"])
@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
def test_a_path_without_width_has_no_score(path, fields, epsilon):
    with pytest.raises(ValueError, match="need a path with a width"):
        StochasticInterpolant(fields, path, epsilon)
    process = StochasticInterpolant(fields, path)
    assert not process.has_score and process.known(0.5, X).keys() == {"velocity"}
    for ask in (
        lambda: model_of(process).sample(3, epsilon=epsilon),
        lambda: model_of(process).log_prob(X, epsilon=epsilon),
        lambda: process.score(TIMES, X),
        lambda: process.noise(TIMES, X),
    ):
        with pytest.raises(ValueError, match="need a path with a width"):
            ask()
    assert model_of(process).sample(3).isfinite().all()


def test_an_amount_that_is_set_is_checked():
    process = process_of(epsilon="gamma")
    for bad in (-1.0, float("nan"), "beta", None, True, torch.tensor([0.1, 0.2]), lambda t: t):
        with pytest.raises(ValueError, match="epsilon"):
            process.epsilon = bad
        assert process.epsilon == "gamma"
    process = process_of(names=["velocity"])
    with pytest.raises(ValueError, match="need a field that knows the score"):
        process.epsilon = 0.5
    assert process.epsilon == 0 and model_of(process).sample(3).shape == (3, 2)


@pytest.mark.parametrize("number", [torch.tensor(0.5), np.float32(0.5), np.float64(0.5), 0.5])
def test_numbers_of_other_libraries_are_numbers(number, tmp_path):
    process = process_of(epsilon=number)
    assert type(process.epsilon) is float and process.epsilon == 0.5
    genflow.save(model_of(process), tmp_path / "model.ckpt")
    assert genflow.load(tmp_path / "model.ckpt").process.epsilon == 0.5
    draws = [model_of(process).sample(3, epsilon=e, generator=seeded()) for e in (number, 0.5)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: 0.1 if t < 0.5 else 0.2,
        lambda t: float(t),
        lambda t: None,
        lambda t: torch.ones(2, 2),
        lambda t, x: t,
    ],
)
def test_functions_must_take_times_by_the_batch(function):
    for ask in (lambda: model_of().sample(3, epsilon=function),
                lambda: model_of().log_prob(X, epsilon=function)):  # fmt: skip
        with pytest.raises(ValueError, match=r"epsilon must take a tensor of times \(B,\)"):
            ask()


def test_a_function_cannot_be_described():
    with pytest.raises(TypeError, match="use a function that can be imported"):
        genflow.spec(lambda t: t)
    described = genflow.spec(torch.nn.functional.silu)
    assert described == {"_target_": "hydra.utils.get_method", "path": "torch.nn.functional.silu"}


@pytest.mark.parametrize(
    "path",
    [Linear(sigma=0.5), Linear(gamma=Constant(0.1)), Trigonometric(Constant(0.2)),
     Mirror(Constant(0.3))], ids=str,
)  # fmt: skip
def test_a_width_at_the_ends_is_refused(path):
    with pytest.raises(ValueError, match="width does not vanish at the ends"):
        process_of(path)


@pytest.mark.parametrize(
    "path",
    [OneSided(), Mirror(), LearnedAffine(), EncoderDecoder(), Linear(gamma=SigmaDifference(1.0))],
    ids=lambda p: type(p).__name__,
)
def test_a_width_that_vanishes_is_not(path):
    assert process_of(path).interpolant is path


FIELDS = ["velocity", "noise", "score", "known", "drift", "backward_drift"]


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("name", FIELDS)
def test_times_of_a_path_are_numbers_or_rows_inside(name, epsilon):
    process = StochasticInterpolant(Known(pair(), BrownianBridge()), BrownianBridge(), epsilon)
    ask, x = getattr(process, name), torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
    want = ask(torch.full((3,), 0.3, dtype=torch.float64), x)
    for t in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        torch.testing.assert_close(ask(t, x), want)
    for t in (1.5, torch.tensor(-0.1), torch.tensor([0.1, 0.2, 1.5]), float("nan")):
        with pytest.raises(ValueError, match=r"times of a path must lie in \[0, 1\]"):
            ask(t, x)
    with pytest.raises(ValueError, match="3 rows"):
        ask(torch.rand(2), x)
