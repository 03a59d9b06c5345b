"""torch.compile of the network: in place, so that a checkpoint is that of a run without."""

import pytest
import torch
from configs import QUIET, TINY, composed
from torch import nn

import genflow
from genflow.loss import LightBridgeKL
from genflow.model import Generator
from genflow.process import SDE, LightBridge
from genflow.solver import Euler, Exact
from genflow.source import Gaussian
from genflow.training import Training
from genflow.training.cli import run


class Counted(nn.Module):
    """Counts how often it is compiled."""

    def __init__(self):
        super().__init__()
        self.layer, self.times = nn.Linear(2, 2), 0

    def compile(self, *args, **options):
        self.times += 1

    def forward(self, t, x, cond=None):
        return self.layer(x)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_network_is_compiled_where_it_is_asked_for(wanted):
    network = Counted()
    Training(Generator(Gaussian(2), SDE(network), Euler(2)), LossOfNothing(), compile=wanted)
    assert network.times == wanted


class LossOfNothing(LightBridgeKL):
    pass


def test_a_learner_without_network_is_refused():
    model = Generator(Gaussian(2), LightBridge(2, 3, 0.5), Exact())
    with pytest.raises(ValueError, match="LightBridge has no network to compile; use compile=false"):
        Training(model, LightBridgeKL(), compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_ends_like_a_plain_one(tmp_path):
    for name, wanted in (("plain", "false"), ("compiled", "true")):
        options = [f"compile={wanted}", "scheduler=none", *TINY, *QUIET]
        run(composed(tmp_path / name, "experiment=cfm", *options))
    left, right = (
        torch.load(tmp_path / name / "model.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "compiled")
    )
    assert left.keys() == right.keys()
    assert all(torch.allclose(v, right[k], atol=1e-5) for k, v in left.items())
    assert genflow.load(tmp_path / "compiled" / "model.ckpt").sample(3).shape == (3, 2)
