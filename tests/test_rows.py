"""Rows and conditions of a model's calls, and the mode in which it is asked."""

import pytest
import torch
from exact import seeded
from torch import nn

from genflow.interpolant import BrownianBridge
from genflow.model import Generator
from genflow.network import MLP, Guided
from genflow.process import StochasticInterpolant
from genflow.solver import Euler, Heun
from genflow.source import Gaussian

NAMES = ["velocity", "noise"]
LABELS = torch.arange(6) % 3


class Watched(nn.Module):
    """Notes how many rows arrive, and with which conditions."""

    outputs = NAMES

    def __init__(self):
        super().__init__()
        self.rows, self.seen = [], []

    def forward(self, t, x, cond=None):
        self.rows.append(len(x))
        self.seen.append(cond)
        shift = 0 if cond is None else cond.to(x)[:, None]
        return dict.fromkeys(NAMES, 0.1 * x + shift)


def model_of(network=None):
    network = Watched() if network is None else network
    return Generator(Gaussian(2), StochasticInterpolant(network, BrownianBridge()), Heun(3))


def guided():
    torch.manual_seed(0)
    network = MLP(2, 8, classes=4, outputs=NAMES)
    return model_of(Guided(network, empty=3, dropout=0.5, scale=3.0))


X = torch.randn(6, 2, generator=seeded())
ASKED = {
    "sample": lambda m, **o: m.sample(x0=X, **o),
    "solve": lambda m, **o: m.solve(x0=X, **o).x,
    "sample_with_log_prob": lambda m, **o: m.sample_with_log_prob(x0=X, **o)[1],
    "log_prob": lambda m, **o: m.log_prob(X, **o),
    "edit": lambda m, **o: m.edit(X, 0.3, generator=seeded(), **o),
}
every = pytest.mark.parametrize("name", ASKED)


@every
def test_a_model_in_training_answers_as_in_evaluation(name):
    ask, model = ASKED[name], guided()
    model.eval()
    want = ask(model, cond=LABELS)
    model.train()
    model.process.fields.network.eval()  # which part was in which mode is kept
    modes = [part.training for part in model.modules()]
    assert torch.equal(ask(model, cond=LABELS), want)
    assert [part.training for part in model.modules()] == modes and model.training
    model.process.fields.scale = 1.0
    assert not torch.equal(ask(model, cond=LABELS), want)


def test_the_mode_comes_back_after_an_error():
    model = guided().train()
    with pytest.raises(ValueError, match="takes condition vectors|shape"):
        model.sample(3, cond=torch.zeros(3, 2))
    assert all(part.training for part in model.modules())


@every
def test_one_label_is_for_all_rows(name):
    ask = ASKED[name]
    for label in (2, torch.tensor(2)):
        model = model_of()
        found = ask(model, cond=label)
        assert all(torch.equal(cond, torch.full((len(cond),), 2)) for cond in model.process.fields.seen)
        torch.testing.assert_close(found, ask(model, cond=torch.full((6,), 2)))
        torch.testing.assert_close(found, ask(model, cond=[2] * 6))


@every
@pytest.mark.parametrize("size", [5, 7])
def test_conditions_are_one_a_row(name, size):
    with pytest.raises(ValueError, match=rf"{name if name != 'solve' else 'sample'}: sizes differ"):
        ASKED[name](model_of(), cond=torch.zeros(size))


@every
def test_rows_run_in_batches(name):
    """Every way of asking keeps to ``batch_size``, with the conditions of the rows."""
    ask, cond = ASKED[name], torch.arange(6)
    whole = ask(model_of(), cond=cond)
    model = model_of()
    torch.testing.assert_close(ask(model, cond=cond, batch_size=4), whole)
    assert max(model.process.fields.rows) == 4 and min(model.process.fields.rows) == 2


def test_draws_run_in_batches_too():
    model = model_of()
    x, log_prob = model.sample_with_log_prob(7, batch_size=3, solver=Euler(2))
    assert x.shape == (7, 2) and log_prob.shape == (7,) and max(model.process.fields.rows) == 3
