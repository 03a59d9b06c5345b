"""The Schrödinger bridge that Sinkhorn pairs teach, beside the closed form of Gaussians."""

import json

import pytest
import torch
from configs import QUIET, composed
from gaussians import Pair, bridge_cross
from hydra.utils import instantiate
from torch import Tensor, nn

import genflow
from genflow.data import Simulated
from genflow.interpolant import BrownianBridge
from genflow.model import Generator
from genflow.oracle import Exact, entropic, independent
from genflow.process import SDE
from genflow.solver import StochasticHeun
from genflow.training.cli import run

SIGMA = 1.0
WORST = 0.04
ROWS = 20_000
ROOM = 0.015


class Known(nn.Module):
    """The drift that a perfect training on pairs of this law would learn."""

    def __init__(self, law) -> None:
        super().__init__()
        self.exact = Exact(law, BrownianBridge(SIGMA))

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.exact.drift(t, x, SIGMA)


def experiment(folder, *overrides: str):
    """Its configuration, its data, and their laws in the words of ``gaussians``."""
    cfg = composed(folder, "experiment=bridge_gaussian", *QUIET, *overrides)
    data = instantiate(cfg.data, _convert_="all")
    ends = [(law.means[0], law.covariances[0]) for law in (data.x0, data.x1)]
    numbers = [torch.tensor(v, dtype=torch.float64) for end in ends for v in end]
    assert cfg.sigma == SIGMA
    return cfg, data, Pair(*numbers, torch.zeros(2, 2, dtype=torch.float64))


def memory(model: Generator, data: Simulated, law: Pair, n: int) -> tuple[Tensor, Tensor]:
    """How starts and ends of a model's paths vary together, and the standard errors of that."""
    draw = torch.Generator().manual_seed(0)
    x0 = data.x0.sample(n, draw)
    x1 = model.sample(x0=x0, steps=50, generator=draw)
    each = (x0.double() - law.mean0)[:, :, None] * (x1.double() - law.mean1)[:, None]
    return each.mean(0), each.std(0) / n**0.5


def agrees(found: Tensor, error: Tensor, truth: Tensor, room: float) -> bool:
    return bool(((found - truth).abs() < 4 * error + room).all())


def model_of(law, data: Simulated) -> Generator:
    return Generator(data.x0, SDE(Known(law), SIGMA), StochasticHeun(50))


def test_other_pairs_are_told_from_those_of_the_bridge(tmp_path):
    """What the slow test asks of a trained model, asked of perfect ones."""
    _, data, law = experiment(tmp_path)
    ends = data.x0, data.x1
    exact = Exact(entropic(*ends, SIGMA), BrownianBridge(SIGMA))

    def error(pairs) -> float:
        return exact.field_error(SDE(Known(pairs), SIGMA)).numbers()["drift_relative"]

    def remembers(pairs) -> bool:
        return agrees(*memory(model_of(pairs, data), data, law, ROWS), bridge_cross(law, SIGMA), ROOM)

    assert error(exact.law) < 1e-6 and remembers(exact.law)
    assert error(independent(*ends)) > 2 * WORST and not remembers(independent(*ends))
    for sigma in (SIGMA / 2, 2 * SIGMA):  # pairs of another temperature
        assert error(entropic(*ends, sigma)) > 1.5 * WORST


@pytest.mark.slow
def test_sinkhorn_pairs_teach_the_bridge(tmp_path):
    options = ["steps=1500", "callbacks.figures=null", "callbacks.report.n=200", "metrics=none"]
    cfg, data, law = experiment(tmp_path, *options)
    run(cfg)
    learned = json.loads((tmp_path / "metrics.json").read_text())["field_drift_relative"]
    assert learned < WORST  # 0.019 seen
    found = memory(genflow.load(tmp_path / "model.ckpt"), data, law, ROWS)
    assert agrees(*found, bridge_cross(law, SIGMA), ROOM)
