"""What a run says of its fields: networks of known error and density, in metrics.json and figures."""

import json
import math
from functools import partial

import pytest
import torch
from test_callbacks import modes
from torch import Tensor, nn
from toy_training import Normed, equal, moons, toy, trainer

from genflow.coupling import ExactOT, Gibbs
from genflow.data import Corrupted, Data, Digits, Mask, Simulated
from genflow.interpolant import Brownian, BrownianBridge, Linear, OneSided
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.oracle import Exact, independent
from genflow.process import SDE, StochasticInterpolant
from genflow.solver import Euler, Heun
from genflow.source import Gaussian, GaussianMixture, Moons
from genflow.target import Drift, Noise, Velocity
from genflow.training import EMA, Checkpoint, Figures, Report, Training

START = GaussianMixture([[0.5, 0.0], [-1.0, 1.0]], [0.5, 1.0], [0.4, 0.6])
END = GaussianMixture([[2.0, 0.0], [-1.0, 2.0]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]]])
PATH = Linear(gamma=Brownian())
FIELDS = {"velocity": Velocity(), "noise": Noise()}
still = partial(torch.optim.SGD, lr=0.0)


def strict(folder) -> dict:
    """What a reader of JSON sees that knows no NaN and no infinity."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


class Wrong(nn.Module):
    """The exact fields of independent pairs of START and END, each off by a known constant."""

    outputs = ("velocity", "noise")

    def __init__(self, velocity: float = 0.0, noise: float = 0.0, single: bool = False) -> None:
        super().__init__()
        self.velocity, self.noise, self.single = velocity, noise, single
        self.exact = Exact(independent(START, END), Linear() if single else PATH)
        self.shift = nn.Parameter(torch.zeros(()))
        if single:
            self.outputs = None

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None):
        if self.single:
            return self.exact.velocity(t, x) + self.velocity + self.shift
        found = self.exact(t, x)
        return {k: found[k] + getattr(self, k) + self.shift for k in found}


def interpolating(network: nn.Module) -> Training:
    model = Generator(START, StochasticInterpolant(network, PATH), Heun(5))
    return Training(model, Matching(PATH, target=FIELDS), still)


def flowing(network: nn.Module, x0=START, **options) -> Training:
    return Training(Generator(x0, SDE(network), Heun(5)), Matching(**options), still)


def pairs(x0=START, x1=END, **options):
    return moons(Simulated(x0, x1), **options)


def reported(folder, training, data, n: int = 50) -> dict:
    trainer(folder, 2, [Report(str(folder), n)]).fit(training, data)
    return strict(folder)


def test_known_errors_are_reported(tmp_path):
    numbers = reported(tmp_path, interpolating(Wrong(0.3, -0.2)), pairs())
    for name, size in (("velocity", 0.3), ("noise", 0.2)):
        assert numbers[f"field_{name}_rms"] == pytest.approx(size, rel=1e-4)
        assert numbers[f"field_{name}_rms_worst"] == pytest.approx(size, rel=1e-4)
        assert 0.01 <= numbers[f"field_{name}_worst_time"] <= 0.99
        assert numbers[f"field_{name}_relative"] > 0
    # a velocity off by a, a score by s/gamma, on [0.01, 0.99]: integrals of 2 a^2 and 2 s^2/(t(1-t))
    speed, score = 0.98 * 2 * 0.3**2, 2 * 0.2**2 * 2 * math.log(99)
    assert numbers["kl_bound_epsilon"] == pytest.approx((speed / score) ** 0.5, rel=0.15)
    assert numbers["kl_bound"] > 0


def test_the_error_of_a_drift_bounds_its_samples(tmp_path):
    sigma, offset = 0.8, 0.4
    start, end = Gaussian(2, 0.0, 0.7), Gaussian(2, 0.5, 1.1)

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exact = Exact(independent(start, end), BrownianBridge(sigma))
            self.shift = nn.Parameter(torch.tensor(offset))

        def forward(self, t, x, cond=None):
            return self.exact.drift(t, x, sigma) + self.shift

    loss = Matching(BrownianBridge(sigma), target=Drift(sigma))
    training = Training(Generator(start, SDE(Drifting(), sigma), Euler(5)), loss, still)
    numbers = reported(tmp_path, training, pairs(start, end))
    assert numbers["field_drift_rms"] == pytest.approx(offset, rel=1e-4)
    assert numbers["kl_bound"] == pytest.approx(0.98 * 2 * offset**2 / (2 * sigma**2), rel=1e-3)
    assert numbers["kl_bound_epsilon"] == pytest.approx(sigma**2 / 2)
    assert "log_prob" not in numbers, "noise without a score has no density"


def test_densities_are_those_of_the_data(tmp_path):
    training, data = flowing(Wrong(single=True)), pairs()
    numbers = reported(tmp_path, training, data, 200)
    x1 = data.rows("test", 200).xs[1]
    weights, means, covs = END.components()
    modes = torch.distributions.MultivariateNormal(means, covs)
    law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), modes)
    assert numbers["log_prob"] == pytest.approx(float(law.log_prob(x1.double()).mean()), abs=2e-3)
    assert numbers["field_velocity_rms"] < 1e-5
    wrong = reported(tmp_path, flowing(Wrong(0.5, single=True)), data, 200)
    assert wrong["log_prob"] < numbers["log_prob"] - 0.05


def field_names(numbers: dict) -> set[str]:
    return {k for k in numbers if k.startswith(("field_", "kl_bound"))}


def test_what_is_not_known_is_left_out(tmp_path):
    plain = reported(tmp_path, toy(), moons())
    assert not field_names(plain) and math.isfinite(plain["log_prob"])
    latent = toy()
    latent.model.source = Moons()
    assert "log_prob" not in reported(tmp_path, latent, pairs(Moons(), END))
    assert not field_names(strict(tmp_path))
    paired = flowing(Wrong(single=True), coupling=ExactOT())
    numbers = reported(tmp_path, paired, pairs())
    assert not field_names(numbers) and "log_prob" in numbers


def test_densities_of_many_dimensions_are_left_out(tmp_path):
    for dim, known in ((16, True), (17, False)):
        training = flowing(MLP(dim, 8, 1), Gaussian(dim))
        numbers = reported(tmp_path, training, pairs(Gaussian(dim), Gaussian(dim, 1.0)), 20)
        assert ("log_prob" in numbers) == known
        assert "field_velocity_rms" in numbers


class Steep(nn.Module):
    """A velocity that carries everything out of sight."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.speed = speed
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.speed * (1 + x) + self.shift


def test_numbers_without_bounds_are_null(tmp_path):
    numbers = reported(tmp_path, flowing(Steep(1e3)), pairs())
    assert numbers["log_prob"] is numbers["path_energy"] is None
    assert numbers["field_velocity_rms"] > 100


def test_field_errors_are_found_in_the_right_data():
    def seen(data: Data, training=None):
        return (flowing(Wrong(single=True)) if training is None else training).field_error(data)

    assert seen(Simulated(START, END)).numbers()["velocity_rms"] < 1e-5
    assert seen(Simulated(START, END, labels=True)) is None, "one law a class is another matter"
    assert seen(Simulated(START, Moons())) is None
    image = Gaussian([1, 8, 8])
    images = flowing(MLP([1, 8, 8], 8, 1), image)
    assert seen(Digits(image), images) is None
    assert seen(Corrupted(Digits(image), Mask(fraction=0.5)), images) is None
    process = StochasticInterpolant(MLP(2, 8, outputs=["velocity"]), OneSided())
    loss = Matching(OneSided(), target={"velocity": Velocity()})
    single = Training(Generator(Gaussian(2), process, Heun(5)), loss, still)
    assert {*seen(Simulated(Gaussian(2), END), single).rms} == {"velocity", "noise"}


def test_looking_leaves_no_trace():
    training = flowing(Normed())
    training.train()
    before = {k: v.clone() for k, v in training.state_dict().items()}
    state = torch.get_rng_state()
    one = training.field_error(Simulated(START, END)).numbers()
    assert torch.equal(torch.get_rng_state(), state) and training.model.process.network.training
    assert equal(before, training.state_dict())
    again = flowing(Normed())
    again.load_state_dict(before)
    assert again.field_error(Simulated(START, END)).numbers() == one


def test_the_report_is_of_the_averaged_weights(tmp_path):
    """The raw ones have moved far, and whoever looked at them before must not be believed."""

    class Asking(Report):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            pl_module.field_error(trainer.datamodule.data)

    network = Wrong(single=True)
    training = flowing(network)
    training.optimizer = partial(torch.optim.SGD, lr=0.4)
    data = Simulated(START, END)
    parts = [EMA(0.9), Asking(str(tmp_path), 30), Checkpoint(str(tmp_path))]
    trainer(tmp_path, 5, parts).fit(training, moons(data))
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    key = "model.process.network.shift"
    average, raw = (float(content[k][key]) for k in ("state_dict", "current_model_state"))
    assert abs(average) != pytest.approx(abs(raw), rel=0.05)
    assert strict(tmp_path)["field_velocity_rms"] == pytest.approx(abs(average), rel=1e-3)


def drawn(folder, training, data) -> set[str]:
    trainer(folder, 2, [Figures(str(folder), 30, 3)]).fit(training, data)
    return {path.name for path in folder.glob("*.png")}


def test_the_error_is_drawn_where_it_is_known(tmp_path):
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    assert "field_error.png" in drawn(known, interpolating(Wrong(0.1)), pairs())
    assert (known / "field_error.png").stat().st_size > 5000
    assert "field_error.png" not in drawn(unknown, toy(), moons())
    labelled = toy(MLP(2, width=8, depth=1, classes=8))
    assert "field_error.png" not in drawn(tmp_path / "labels", labelled, modes())


def test_weighted_runs_are_compared_with_the_tilted_law(tmp_path):
    """The network is exact for independent pairs: with weights it is wrong."""
    training = flowing(Wrong(single=True), coupling=Gibbs(2.0))
    numbers = reported(tmp_path, training, pairs())
    assert numbers["field_velocity_rms"] > 0.2


def test_the_solver_that_sampled_is_named(tmp_path):
    """Heun gives way to its stochastic kin where there is noise."""
    training = interpolating(Wrong())
    training.model.process.epsilon = "gamma"
    found = reported(tmp_path, training, pairs())
    assert found["solver"] == {"_target_": "genflow.solver.StochasticHeun", "steps": 5}
    assert found["nfe"] == 10
