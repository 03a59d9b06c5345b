"""The objective of light bridges as a loss: its value, its gradient, and a whole training."""

import json
import math

import lightning as L
import pytest
import torch
from configs import QUIET, TINY, composed
from torch import nn
from toy_training import trainer

import genflow
from genflow.coupling import ExactOT, Independent
from genflow.data import Simulated
from genflow.interpolant import BrownianBridge
from genflow.loss import LightBridgeKL, Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, LightBridge
from genflow.solver import Exact
from genflow.source import EightGaussians, Gaussian, Moons
from genflow.target import Drift, Velocity
from genflow.time import Stratified
from genflow.training import EMA, Checkpoint, DataModule, Training
from genflow.training.cli import run
from genflow.transform import Standardise


def bridge(dim: int = 2, epsilon: float = 1.0, covariance: str = "diagonal") -> LightBridge:
    """One with nothing symmetric about it, in double precision."""
    draw = torch.Generator().manual_seed(0)
    location = torch.randn(3, dim, generator=draw, dtype=torch.float64)
    scale = torch.rand(3, dim, generator=draw, dtype=torch.float64) + 0.5
    made = LightBridge(dim, 3, epsilon, covariance).double()
    scale = torch.diag_embed(scale) if covariance == "full" else scale
    return made.assign(torch.tensor([0.0, 0.5, -1.0]), location, scale)


def test_the_value_is_that_of_an_integral():
    # log c by quadrature of exp(x0 x1 / epsilon) v(x1), v by torch's own normal density
    made, x0, x1 = bridge(1, 0.7), torch.tensor([[-1.0], [0.3], [2.0]]), torch.tensor([[0.5], [-2.0]])
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    spread = (0.7 * made.covariances()[:, 0, 0]).sqrt()
    law = torch.distributions.Normal(made.location[:, 0].detach(), spread)

    def log_v(x):
        return torch.logsumexp(made.log_weight.detach() + law.log_prob(x.double()), 1)

    log_c = torch.logsumexp(x0.double() @ grid.T / 0.7 + log_v(grid), 1) + math.log(60 / 20_000)
    expected = float(log_c.mean() - log_v(x1).mean())
    assert LightBridgeKL()(made, x0, x1).item() == pytest.approx(expected, rel=1e-6)


def gradient(made: LightBridge, loss, x0, x1, draw=None):
    made.zero_grad()
    for pair in zip(x0, x1):
        loss(made, *pair, generator=draw).backward()
    return torch.cat([p.grad.flatten() for p in made.parameters()]) / len(x0)


@pytest.mark.parametrize(
    ("dim", "covariance", "coupling", "batches"),
    [
        (2, "diagonal", Independent(), (2, 50_000)),
        (5, "full", Independent(), (2, 50_000)),
        (2, "full", ExactOT(), (60, 200)),
        (5, "diagonal", ExactOT(), (60, 200)),
    ],
)
def test_bridge_matching_has_the_same_gradient(dim, covariance, coupling, batches, generator):
    made = bridge(dim, 1.0, covariance)
    x0, x1 = torch.randn(2, *batches, dim, generator=generator, dtype=torch.float64)
    x1[..., 0] *= 0.3
    exact = gradient(made, LightBridgeKL(), x0, x1)

    def compare(target):
        loss = Matching(BrownianBridge(1.0), coupling, Stratified(1e-3), target, antithetic=True)
        found = gradient(made, loss, x0, x1, generator) * dim / (2 * made.epsilon)
        return float(torch.cosine_similarity(exact, found, 0)), float(found.norm() / exact.norm())

    cosine, ratio = compare(Drift(1.0))
    assert cosine > 0.999
    assert ratio == pytest.approx(1, abs=0.02)
    cosine, ratio = compare(Velocity())  # of the flow with the same marginals: another field
    assert cosine < 0.99
    assert ratio < 0.9


def test_batches_of_unequal_sizes_and_precisions():
    made, draw = bridge().float(), torch.Generator().manual_seed(1)
    x0, x1 = torch.randn(7, 2, generator=draw), torch.randn(11, 2, generator=draw)
    value = LightBridgeKL()(made, x0, x1)
    assert value.dtype == torch.float64 and value.shape == ()
    value.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in made.parameters())
    assert torch.equal(value, LightBridgeKL()(made, x0, x1))  # nothing is drawn


@pytest.mark.parametrize(
    ("learner", "sizes", "options", "said"),
    [
        (SDE(MLP(2, 8), 1.0), (3, 3), {}, "potential of a light bridge, which SDE does not have"),
        (nn.Linear(2, 2), (3, 3), {}, "which Linear does not have"),
        (None, (3, 3), {"cond": torch.ones(3)}, "no conditions"),
        (None, (3, 3, 3), {}, "two marginals"),
        (None, (3,), {}, "at least two marginals"),
    ],
)
def test_what_does_not_fit_is_refused(learner, sizes, options, said):
    with pytest.raises(ValueError, match=said):
        LightBridgeKL()(learner or bridge(), *(torch.ones(n, 2).double() for n in sizes), **options)


def training(loss=None, seed: int = 0) -> Training:
    model = Generator(Gaussian(2), LightBridge(2, 6, 0.5), Exact())
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True)  # noqa: E731
    return Training(model, loss or LightBridgeKL(), adam, seed=seed)


def data() -> DataModule:
    return DataModule(Simulated(Gaussian(2), Moons()), batch_size=64, val_batches=2)


def test_training_prepares_and_lowers_the_objective(tmp_path, generator):
    x0, x1 = torch.randn(4000, 2, generator=generator), Moons().sample(4000, generator)
    part = training()
    blank = part.model.process.objective(x0, x1).item()
    trainer(tmp_path, 0).fit(part, data())
    warm = part.model.process.objective(x0, x1).item()
    assert part.model.process.anchors is not None and warm < blank - 1
    with torch.no_grad():
        part.model.process.location += 0.5
    worse = part.model.process.objective(x0, x1).item()
    part.prepare = lambda *xs, cond=None: part  # go on from there
    trainer(tmp_path, 150).fit(part, data())
    assert part.model.process.objective(x0, x1).item() < worse - 0.8 * (worse - warm)


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")
def test_a_killed_run_ends_like_the_unbroken_one(tmp_path):
    ends = []
    for name, start in (("whole", None), ("half", None), ("rest", "half")):
        path = None if start is None else tmp_path / start / "last.ckpt"
        (tmp_path / name).mkdir()
        parts = [EMA(0.8), Checkpoint(str(tmp_path / name), 4)]
        run_ = trainer(tmp_path, 6, parts)
        run_.fit(training(), data(), ckpt_path=path, weights_only=True)
        ends.append(torch.load(tmp_path / name / "model.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(v, ends[2][k]) for k, v in ends[0].items())
    assert "model.process.anchors" in ends[0]


class Looking(L.Callback):
    """Samples from the raw weights when training ends."""

    def on_train_end(self, trainer, pl_module) -> None:
        pl_module.model.sample(3)


def test_what_is_sampled_is_the_average_that_is_saved(tmp_path):
    # averages are swapped into the model behind torch's back: nothing that was computed from the raw
    # weights just before may be kept
    part = training()
    trainer(tmp_path, 10, [Looking(), EMA(0.9), Checkpoint(str(tmp_path))]).fit(part, data())
    loaded, x = genflow.load(tmp_path / "model.ckpt"), torch.linspace(-2, 2, 20).reshape(10, 2)
    part.eval()
    with torch.no_grad():
        assert torch.equal(part.model.process.drift(0.5, x), loaded.process.drift(0.5, x))
        assert torch.equal(part.model.process.objective(x, x), loaded.process.objective(x, x))
    draws = [m.sample(x0=x, generator=torch.Generator().manual_seed(3)) for m in (part.model, loaded)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("name", ["light_gmm", "lightm_gmm"])
def test_a_run_reports_the_objective_of_held_out_data(tmp_path, name):
    run(composed(tmp_path, f"experiment={name}", *TINY, *QUIET))
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    model = genflow.load(tmp_path / "model.ckpt")
    draw = torch.Generator().manual_seed(5)
    x0 = model.source.sample(20_000, draw)
    x1 = genflow.source.EightGaussians().sample(20_000, draw)
    known = [model.process.objective(*v).item() for v in zip(x0.split(64), x1.split(64))]
    spread = torch.tensor(known).std()
    assert abs(numbers["test_objective"] - torch.tensor(known).mean()) < 4 * spread
    assert "field_drift_rms" not in numbers, "a light bridge does not aim at the field of the pairs"
    assert (numbers["nfe"], numbers["ess"] if name == "lightm_gmm" else 1) == (1, 1)


@pytest.mark.parametrize(
    "interpolant, target",
    [
        (BrownianBridge(1.0), Velocity()),
        (BrownianBridge(1.0), Drift(0.5)),
        (BrownianBridge(0.5), Drift(1.0)),
    ],
    ids=["velocity", "sigma", "width"],
)
def test_bridge_matching_refuses_what_would_teach_another_bridge(interpolant, target):
    Matching(BrownianBridge(1.0), target=Drift(1.0)).check(bridge(epsilon=1.0))
    with pytest.raises(ValueError, match="LightBridge of epsilon=1 is matched with BrownianBridge"):
        Matching(interpolant, target=target).check(bridge(epsilon=1.0))


def test_a_model_of_a_light_bridge_knows_its_density(generator):
    # that of the data that it was made for, up to what 20 components miss; and it integrates to one
    target = EightGaussians()
    x0, x1 = torch.randn(1000, 2, generator=generator), target.sample(4000, generator)
    process = LightBridge(2, 20, 0.1)
    model = Generator(Gaussian(2), process, Exact(), Standardise(2)).prepare(x0, x1)
    x = target.sample(500, generator)
    apart = target.log_prob(x) - model.log_prob(x, batch_size=100)
    assert abs(float(apart.mean())) < 0.1
    side = torch.linspace(-9, 9, 91)
    grid = torch.cartesian_prod(side, side)
    total = float(model.log_prob(grid).double().exp().sum()) * 0.2**2
    assert total == pytest.approx(1, abs=1e-3)
