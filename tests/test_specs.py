"""Specs and checkpoints: round trips of every part, and what a file may never do."""

import dataclasses
import importlib
import inspect
import os
import pickle

import pytest
import torch
from torch import nn

import genflow.specs
from genflow import directions, process, variate
from genflow.coupling import (
    Chained,
    ExactOT,
    Gibbs,
    Independent,
    PartialOT,
    Plan,
    Side,
    Sinkhorn,
    UnbalancedOT,
)
from genflow.directions import Auto, Fixed, Grid, Isotropic, Orthogonal, Sobol
from genflow.distance import (
    MMD,
    BuresWasserstein,
    EnergyDistance,
    EnergySliced,
    Estimate,
    MaxSliced,
    SlicedWasserstein,
    Wasserstein,
)
from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    Chain,
    Coefficients,
    Constant,
    ConstantVolatility,
    EncoderDecoder,
    GeometricBrownian,
    GeometricSample,
    GeometricVolatility,
    LearnedAffine,
    Linear,
    Mirror,
    OneSided,
    PathSample,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Trigonometric,
    VariancePreserving,
    Zero,
)
from genflow.loss import (
    IPF,
    BridgeMatching,
    Direct,
    ExplicitScoreMatching,
    Gradient,
    ImplicitScoreMatching,
    LeastSquares,
    LightBridgeKL,
    Matching,
    On,
    ReferenceRefinement,
    Regression,
    SampleDistance,
    StaticBridge,
    Sum,
)
from genflow.model import Generator, Particles, PushForward, Tilt
from genflow.network import MLP, Adapter, Fitted, GaussianProcess, Guided, Heads, TimeFeatures, UNet
from genflow.process import (
    SDE,
    Chart,
    GeometricLangevin,
    GradientField,
    HierarchicalRates,
    Learned,
    LearnedBridge,
    LightBridge,
    LotkaVolterra,
    MirrorLangevin,
    MultiMarginalBridge,
    OrnsteinUhlenbeck,
    ParameterLaw,
    Repressilator,
    ReversedGeometric,
    StochasticInterpolant,
    Vortex,
)
from genflow.solver import (
    Adaptive,
    AmbientEuler,
    DaleLangevin,
    Euler,
    Exact,
    Field,
    Heun,
    RungeKutta,
    Solution,
    StochasticHeun,
)
from genflow.source import (
    Box,
    Checkerboard,
    Circles,
    Components,
    EightGaussians,
    Empirical,
    Gaussian,
    GaussianMixture,
    LogNormal,
    LogNormalMixture,
    Moons,
    Spiral,
    SwissRoll,
)
from genflow.specs import build, fill, spec, target_name
from genflow.target import Denoised, Drift, Hyvarinen, Noise, Rate, Score, Velocity
from genflow.time import Beta, Importance, LogitNormal, Stratified, Uniform, Weighted
from genflow.transform import Identity, Positive, Standardise
from genflow.variate import Harmonics, Lower, Moments, Several, TwoLevel, Upper

GEOMETRIC = GeometricBrownian(ConstantVolatility(0.5), "martingale")
PARTS = [
    Zero(), Constant(0.2), Brownian(0.5), Quadratic(), SinSquared(), SigmaDifference(4.0),
    Linear(sigma=0.1), Linear(gamma=Brownian(2.0)), BrownianBridge(0.7), Trigonometric(Quadratic()),
    VariancePreserving(Quadratic()), EncoderDecoder(SinSquared()), OneSided(Trigonometric()),
    Mirror(SinSquared()), Chain(), Chain([0.0, 1.0, 4.0], "spline", 0.3),
    Chained(), Chained(Sinkhorn(), None, True), Chained([Independent(), ExactOT()], [0.0, 2.0, 3.0]),
    Independent(), ExactOT("euclidean"), Sinkhorn(0.5, "euclidean", 100, 1e-4), Gibbs(0.3, 0.7),
    ExactOT(conditions=2.5), UnbalancedOT(3.0, 0.5, "euclidean"), PartialOT(0.7, conditions="within"),
    Gibbs(0.3, correction="gaussian", covariance="full", normaliser="pilot", conditions="within",
          fitted={"labels": [[0], [2]], "log_z": [-1.0, -2.0]}),
    Velocity(), Rate(), Noise(), Score(), Drift(0.4), Denoised(),
    Uniform(0.01), Stratified(0.02), LogitNormal(0.1, 2.0, True, 0.03), Beta(1.5, 2.5, True, 0.01),
    Weighted(Uniform(0.1), Quadratic(), -1.5), Importance([0.5, 2.0], True, True, 0.01),
    LearnedAffine(4, 0.5), LearnedBridge(MLP(2, 8), LearnedAffine(2), 0.7),
    BridgeMatching(Sinkhorn(2.0), Uniform(0.1)),
    ConstantVolatility(0.7), GeometricVolatility(0.1, 3.0), GEOMETRIC, Hyvarinen(),
    LogNormal(3, GEOMETRIC),
    LogNormalMixture([[0.0, 1.0], [2.0, 3.0]], [0.5, 1.0], [1, 3]), Positive("floor", 0.1, -1.0, 2.0),
    ReversedGeometric(MLP(2, 8), GEOMETRIC, 2, "hyvarinen", "raw", False, "gamma", 0.01),
    GeometricLangevin(Gaussian(2), 3.0), MirrorLangevin(LogNormalMixture([[0.0]]), 4.0),
    UNet([1, 4, 4], 8, [1, 2], attention=[False, True]), Adapter(MLP(2, 8), "tx", (1, 0)),
    DaleLangevin(7, "exact"), AmbientEuler(8), ImplicitScoreMatching(GEOMETRIC, Uniform(0.1), False, 3),
    ExplicitScoreMatching(GEOMETRIC, law=LogNormalMixture([[0.0, 1.0]])),
    Box([0.0, 1.0], [2.0, 3.0]),
    MLP(2, 8), MLP((1, 4, 4), 8, 2, "Tanh", False, 3, 5), MLP(2, 8, cond_dim=3), TimeFeatures(4),
    MLP(2, 8, classes=[3, 4]), MLP(2, 8, outputs=["velocity", "noise"]),
    Heads({"velocity": MLP(2, 8), "noise": MLP(2, 4, 2)}), Guided(MLP(2, 8, classes=4), 3, 0.2, 2.0),
    Gaussian([1, 4, 4], 0.5, 2.0), Checkerboard(2.0), Circles(0.1, 0.3, 2.0), Spiral(0.2, 1.0, 3.0),
    EightGaussians(3.0, 0.2, 5), Moons(0.1, 2.0, 0.0), SwissRoll(0.1, 0.2), Empirical(),
    GaussianMixture([[0.0, 1.0], [2.0, 3.0]], [0.5, 1.0], [1, 3]),
    Empirical(torch.arange(6.0).reshape(3, 2)), Identity(), Standardise([1, 4, 4], "all"),
    SDE(MLP(2, 8), 0.3), Euler(7), Heun(8), StochasticHeun(9), RungeKutta(6),
    Adaptive(1e-3, 1e-4, "bosh3", 5), Exact(3), LightBridgeKL(),
    LightBridge([1, 2, 2], 3, 0.5), LightBridge(4, "auto", 2, "low_rank", 2),
    Generator(Gaussian(2), LightBridge(2, 3, 0.1, "full"), Exact()),
    process.Brownian(3), OrnsteinUhlenbeck(2, [[0.0, 1.0], [-1.0, 0.0]], [0.5, 0.0]),
    LotkaVolterra(1.0, 0.4), Repressilator(5.0, [2.0, 3.0], 1.0, 0.2, 2), Vortex(0.5, core=2.0),
    GradientField(3, 8, 1, "tanh"), Learned(MLP(2, 8), 2), HierarchicalRates(),
    ParameterLaw(Repressilator(), HierarchicalRates()), Fitted(MLP(2, 8), 10), GaussianProcess(2, 0.5),
    MultiMarginalBridge(LotkaVolterra(), 0.1, [0.0, 2.0, 5.0], 20),
    MultiMarginalBridge(process.Brownian(2), 0.1, [0.0, 1.0], regressor=GaussianProcess(2)),
    StaticBridge(2), IPF(3, 0.1), LeastSquares(64), Gradient(5, 0.1), Direct(1, 4),
    ReferenceRefinement(IPF(), Gradient()), ReferenceRefinement(StaticBridge(), Direct()),
    MMD(0.5), MMD([0.5, 1.0], False), EnergyDistance(True), Wasserstein(1.0, False),
    BuresWasserstein(False),
    Isotropic(), Orthogonal(), Sobol(), Grid(), directions.Spiral(), Auto(), Fixed([[0.6, 2]]),
    Lower("clamped"), Upper(0.5), variate.Quadratic("leave_one_out"), TwoLevel(0.9, 50), Harmonics(4),
    Several([Lower(), Harmonics(2)], "leave_one_out"), SlicedWasserstein(),
    SlicedWasserstein(50, 3.0, Isotropic(), variate.Quadratic(), True, 10), MaxSliced(20, 1.0, 3, 7),
    SlicedWasserstein(1, directions=Fixed([[0.6, 0.8]]), variate=None),
    EnergySliced(30, energy="power"), Particles(8, 2, 2),
    PushForward(Gaussian(2), MLP(2, 8), Standardise(2)), SampleDistance(SlicedWasserstein(20)),
    Generator(Gaussian(2), SDE(MLP(2, 8)), Euler(3), Standardise(2)),
    Generator(Moons(), SDE(MLP(2, 8), 0.1), StochasticHeun(3)),
    Tilt(Gibbs(2.0)), Tilt(Gibbs(2.0), [7, 2], [7, 3], 8, 128), Tilt(Gibbs(2.0), torch.ones(5, 2)),
    Generator(Gaussian(2), SDE(MLP(2, 8)), Euler(3), tilt=Tilt(Gibbs(2.0), [7, 2])),
    Matching(BrownianBridge(), Sinkhorn(2.0), Uniform(0.1), {"velocity": Velocity(), "noise": Noise()}),
    Matching(BrownianBridge(), target={"velocity": Velocity(), "noise": Noise()}, antithetic=True,
             field_weights={"velocity": 0.1, "noise": 1.0}),
    StochasticInterpolant(MLP(2, 8, outputs=["velocity", "noise"]), BrownianBridge(), "gamma", 0.2),
    Sum([Matching(), On("heads.score", Matching())], [1.0, 0.5]), On("denoiser", Matching()),
]  # fmt: skip
RECORDS = {
    Chart, Coefficients, Components, Estimate, Field, GeometricSample, Moments, PathSample, Plan,
    Regression, Side, Solution,
}  # fmt: skip
"""Exported classes that hold results: nobody writes them into a YAML."""
ROLES = (
    "interpolant coupling target time network source transform process solver directions variate "
    "distance model loss"
).split()


class Shifted(nn.Module):
    """A user's own module."""

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        self.shift, self.layer = shift, nn.Linear(2, 2)

    def forward(self, t, x, cond=None):
        return self.layer(x) + self.shift


class Touch:
    """A pickle that writes a file as soon as it is read by the pickle module."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def model(dtype=torch.float32):
    torch.manual_seed(0)
    points = 5 + 3 * torch.randn(20, 2)
    made = Generator(Empirical(), SDE(MLP(2, 8)), Euler(5), Standardise(2))
    return made.to(dtype).prepare(points.to(dtype), points.to(dtype) - 3)


@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_every_part_is_rebuilt_from_its_description(part):
    described = spec(part)
    again = build(described)
    assert type(again) is type(part) and spec(again) == described
    if isinstance(part, ExplicitScoreMatching):  # it holds a module, which knows no equality
        again.law.load_state_dict(part.law.state_dict())
    elif dataclasses.is_dataclass(part):
        assert again == part
    else:
        again.load_state_dict(part.state_dict())


@pytest.mark.parametrize("role", ROLES)
def test_every_exported_part_is_among_them(role):
    package = importlib.import_module(f"genflow.{role}")
    for name in package.__all__:
        cls = getattr(package, name)
        if inspect.isclass(cls) and not inspect.isabstract(cls) and cls not in RECORDS:
            assert cls in map(type, PARTS), f"add {cls.__name__} to PARTS of this test"
            assert target_name(cls) == f"genflow.{role}.{name}"


def test_a_description_is_plain_and_complete():
    assert spec(Matching(coupling=Gibbs(0.2))) == {
        "_target_": "genflow.loss.Matching",
        "interpolant": {
            "_target_": "genflow.interpolant.Linear",
            "sigma": 0.0,
            "gamma": {"_target_": "genflow.interpolant.Zero"},
        },
        "coupling": {
            "_target_": "genflow.coupling.Gibbs",
            "epsilon": 0.2,
            "ess": 0.5,
            "cost": "sqeuclidean",
            "rule": "ess",
            "correction": "none",
            "covariance": "auto",
            "normaliser": "batch",
            "conditions": "ignore",
            "fitted": None,
        },
        "time": {"_target_": "genflow.time.Uniform", "margin": 0.0},
        "target": {"_target_": "genflow.target.Velocity"},
        "antithetic": False,
        "field_weights": None,
    }


def test_torch_modules_are_described_too():
    network = nn.Sequential(nn.Linear(2, 8, bias=False), nn.SiLU(), nn.Linear(8, 2))
    again = build(spec(network))
    again.load_state_dict(network.state_dict())
    x = torch.randn(3, 2)
    assert torch.equal(again(x), network(x)) and again[0].bias is None


def test_what_cannot_be_described_says_so():
    class Forgetful(nn.Module):
        def __init__(self, size):
            super().__init__()

    with pytest.raises(TypeError, match="write self.size = size"):
        spec(Forgetful(3))
    with pytest.raises(TypeError, match="cannot describe a object"):
        spec(object())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_survives_its_file(dtype, tmp_path):
    made, path = model(dtype), tmp_path / "deep" / "model.ckpt"
    genflow.save(made, path)
    loaded = genflow.load(path)
    assert spec(loaded) == spec(made) and not loaded.training and loaded.dtype == dtype
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in made.state_dict().items())
    draws = [m.sample(7, generator=torch.Generator().manual_seed(3)) for m in (made, loaded)]
    assert draws[0].dtype == dtype and torch.equal(*draws)
    assert [p.name for p in path.parent.iterdir()] == ["model.ckpt"]  # nothing half-written is left


def test_own_classes_need_trust(tmp_path):
    made, path = Generator(Gaussian(2), SDE(Shifted(2.0)), Euler(3)), tmp_path / "own.ckpt"
    genflow.save(made, path)
    with pytest.raises(ValueError, match=r"'test_specs.Shifted'.*trust=\['test_specs.'\]"):
        genflow.load(path)
    for trust in (["test_specs."], "test_specs."):
        loaded = genflow.load(path, trust=trust)
        x0 = torch.ones(3, 2)
        assert torch.equal(loaded.sample(x0=x0), made.sample(x0=x0))


UNTRUSTED = [
    "os.system", "builtins.exec", "genflow.specs.importlib.import_module",
    "genflow.checkpoint.torch.load", "genflow.checkpoint.os.replace", "genflow.specs.build",
    "genflow.specs.sys.modules", "genflow.checkpoint.Path", "torch.nn.functional.relu",
    "torch.nn.modules.module.torch.load", "genflowish.Part", "genflow.missing.Part", "genflow.", "",
]  # fmt: skip


@pytest.mark.parametrize("name", UNTRUSTED)
def test_untrusted_targets_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"asks for '{name}'"):
        build({"_target_": "genflow.process.SDE", "network": {"_target_": name, "command": "true"}})


def test_classes_defined_elsewhere_are_refused_under_a_trusted_name(monkeypatch):
    monkeypatch.setattr(genflow.specs, "Borrowed", Shifted, raising=False)
    with pytest.raises(ValueError, match="asks for 'genflow.specs.Borrowed'"):
        build({"_target_": "genflow.specs.Borrowed"})


def test_a_file_with_an_untrusted_target_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    content = {"_target_": "os.mkdir", "_args_": [str(marker)]}
    torch.save({"spec": content, "state_dict": {}, "genflow": "0.1.0"}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="'os.mkdir', which lies outside the trusted prefixes"):
        genflow.load(tmp_path / "evil.ckpt")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", ["torch", "legacy", "pickle"])
def test_pickles_never_run(write, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    content = {"spec": {"_target_": "genflow.network.MLP", "dim": 2}, "state_dict": Touch(marker)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(ValueError, match="never run"):
        genflow.load(path)
    assert not marker.exists()
    if write != "pickle":  # the trap is armed: a plain load does run it
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*missing.ckpt"):
        genflow.load(tmp_path / "missing.ckpt")


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"a: 1\n", b"\0" * 200, b"PK\x03\x04" + b"\0" * 50, b"\x80\x02."]
)
def test_other_files_are_no_checkpoints(content, tmp_path):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="is no genflow checkpoint"):
        genflow.load(tmp_path / "other")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"spec": {}}, 3])
def test_other_torch_files_are_no_checkpoints(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="has no 'spec' and 'state_dict'"):
        genflow.load(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [{}, "text", {"_target_": 3}, {"_target_": "genflow.solver.Euler"}])
def test_a_spec_that_is_no_module_is_refused(content, tmp_path):
    torch.save({"spec": content, "state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt|asks for"):
        genflow.load(tmp_path / "other.pt")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    genflow.save(model(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="it is damaged"):
        genflow.load(path)


def losses():
    return Sum([Matching(coupling=Gibbs()), On("a", Matching(coupling=Gibbs(ess=0.9)))])


def test_fill_restores_what_prepare_chose(generator):
    x = torch.randn(2, 100, 2, generator=generator)
    prepared, resumed = losses().prepare(*x), losses()
    fill(resumed, spec(losses()), spec(prepared))
    assert resumed == prepared and resumed.losses[0].coupling.epsilon is not None


def test_fill_leaves_what_the_user_states(generator):
    x = torch.randn(2, 100, 2, generator=generator)
    prepared, stated = Matching(coupling=Gibbs()).prepare(*x), Matching(coupling=Gibbs(0.123, 0.7))
    fill(stated, spec(stated), spec(prepared))
    assert stated.coupling == Gibbs(0.123, 0.7)


CORRECTED = {"correction": "gaussian", "normaliser": "pilot"}


def test_fill_restores_containers_inside_containers(generator):
    # a mapping of numbers, inside a loss, inside a list and a mapping
    x = torch.randn(2, 100, 2, generator=generator)

    def parts():
        return [{"a": Matching(coupling=Gibbs(**CORRECTED)), "b": Gibbs(2.0)}, 3.0]

    prepared, resumed = parts(), parts()
    prepared[0]["a"].prepare(*x)
    fill(resumed, spec(parts()), spec(prepared))
    assert resumed == prepared and spec(resumed) == spec(prepared)
    found = resumed[0]["a"].coupling.fitted
    assert found.keys() == {"mean0", "cov0", "mean1", "cov1", "log_z", "purpose"}
    plans = [part[0]["a"].coupling(*x) for part in (prepared, resumed)]
    assert torch.equal(plans[0].weight, plans[1].weight)


def test_fill_leaves_the_containers_that_the_user_states(generator):
    x = torch.randn(2, 100, 2, generator=generator)
    stated = Gibbs(0.3, **CORRECTED).prepare(*x)
    own = Matching(coupling=stated)
    fill(own, spec(own), spec(Matching(coupling=Gibbs(0.3, **CORRECTED)).prepare(*(3 * x))))
    assert own.coupling.fitted == stated.fitted


@dataclasses.dataclass(frozen=True)
class Holder:
    """A part of the user with something left open."""

    chosen: object = None


@pytest.mark.parametrize(
    "value", [Sinkhorn(2.0), [Sinkhorn(2.0)], {"a": {"b": Sinkhorn(2.0)}}], ids=str
)
def test_fill_does_not_take_descriptions_for_values(value):
    holder = Holder()
    fill(holder, spec(holder), spec(Holder(value)))
    assert holder.chosen is None
    fill(holder, spec(holder), spec(Holder({"a": [1.0, "word"], "b": True})))
    assert holder.chosen == {"a": [1.0, "word"], "b": True}
