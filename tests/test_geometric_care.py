"""Multiplicative diffusion where it is easily held wrong: each of these was silent or unclear once."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import kstest, norm

import genflow
from genflow.data import Batch, Simulated
from genflow.interpolant import ConstantVolatility, GeometricBrownian, GeometricVolatility
from genflow.loss import ImplicitScoreMatching, Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, GeometricLangevin, ReversedGeometric
from genflow.seeds import stream
from genflow.solver import AmbientEuler, DaleLangevin, Euler, Heun
from genflow.source import Box, Gaussian, LogNormal, LogNormalMixture
from genflow.target import Noise, Velocity
from genflow.training import Figures, Training
from genflow.training.coordinates import coordinates
from genflow.training.datamodule import check_prior
from genflow.transform import Positive

PATH = GeometricBrownian()
LAW = LogNormalMixture([[-0.5, 0.3], [0.8, -0.6]], [0.04, 0.09], [0.4, 0.6])


def reversed_(path=PATH, **options):
    return ReversedGeometric(MLP(2, width=8, depth=1, **options), path, dim=2)


@pytest.mark.parametrize("drift", ["median", "martingale", 0.7])
def test_the_turned_draw_is_the_draw_with_the_opposite_noise(drift, generator):
    path = GeometricBrownian(drift=drift)
    x = torch.rand(64, 2, dtype=torch.float64, generator=generator) + 0.5
    t = torch.rand(64, dtype=torch.float64, generator=generator)
    one = path.sample(t, x, x, generator=generator)
    other = path.sample(t, x, x, noise=-one.noise)
    for name in ("x", "rate", "velocity", "score", "hyvarinen", "noise"):
        torch.testing.assert_close(getattr(one.reflected, name), getattr(other, name))
    if drift != "median":  # whose rate is zero: there a rate that is kept does no harm
        wrong = one.rate + other.dgamma * other.noise * other.x
        assert not torch.allclose(wrong, other.velocity)


def test_velocity_of_the_turned_draw_is_the_derivative_of_its_path(generator):
    path, step = GeometricBrownian(drift="martingale"), 1e-6
    x = torch.rand(16, 2, dtype=torch.float64, generator=generator) + 0.5
    t = torch.full((16,), 0.4, dtype=torch.float64)
    turned = path.sample(t, x, x, generator=generator).reflected
    ends = [path.sample(t + h, x, x, noise=turned.noise).x for h in (-step, step)]
    torch.testing.assert_close(turned.velocity, (ends[1] - ends[0]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_prior_and_process_of_different_motions_are_refused():
    other = GeometricBrownian(ConstantVolatility(3.0))
    with pytest.raises(ValueError, match="give both the same interpolant"):
        Generator(LogNormal(2, other), reversed_(), Euler(2))
    Generator(LogNormal(2, GeometricBrownian()), reversed_(), Euler(2))


@pytest.mark.parametrize("source", [Box([0.1, 0.1], [1.0, 1.0]), Gaussian(2)])
def test_a_training_from_another_start_than_the_prior_is_refused(source):
    model = Generator(source, reversed_(), Euler(2))
    with pytest.raises(ValueError, match="source=log_normal"):
        check_prior(model, Matching(PATH, target=Noise()))
    flow = Generator(source, SDE(MLP(2, width=8)), Euler(2))
    with pytest.raises(ValueError, match="source=log_normal"):
        check_prior(flow, Matching(PATH, target=Velocity()))
    check_prior(Generator(LogNormal(2, PATH), reversed_(), Euler(2)), Matching(PATH, target=Noise()))
    check_prior(flow, Matching())


def test_starts_that_are_not_positive_name_the_prior(generator):
    model = Generator(Gaussian(2), reversed_(), Euler(2))
    with pytest.raises(ValueError, match=r"must be positive.*source=log_normal"):
        model.sample(8, generator=generator)


def test_implicit_score_matching_teaches_no_velocity():
    with pytest.raises(ValueError, match="process=reversed_geometric"):
        ImplicitScoreMatching(PATH).check(SDE(MLP(2, width=8)))
    ImplicitScoreMatching(PATH).check(reversed_())
    ImplicitScoreMatching(PATH).check(lambda t, x: -x)


def test_a_network_of_several_fields_is_refused(generator):
    x = LAW.sample(4, generator)
    with pytest.raises(ValueError, match="outputs=null"):
        reversed_(outputs=["velocity", "noise"])(torch.full((4,), 0.5), x)


@pytest.mark.parametrize("drift", ["median", "martingale"])
def test_noise_past_the_range_of_the_dtype_is_refused(drift, generator):
    x = LAW.sample(64, generator)
    path = GeometricBrownian(GeometricVolatility(sigma_max=100.0), drift)
    with pytest.raises(ValueError, match=r"float32 holds .* lower volatility.sigma_max"):
        path.prepare(x, x)
    with pytest.raises(ValueError, match="float32"):
        Training(Generator(LogNormal(2, path), reversed_(path), Euler(2)), Matching(path)).prepare(x, x)
    GeometricBrownian(GeometricVolatility(sigma_max=10.0)).prepare(x, x)
    GeometricBrownian(GeometricVolatility(sigma_max=30.0)).prepare(x.double(), x.double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_refused_as_such(bad):
    x = torch.tensor([[1.0, 2.0], [1.5, bad]])
    for refuse in (LogNormal(2, PATH).match, reversed_().prepare, Positive("identity").prepare):
        with pytest.raises(ValueError, match="column 1 holds NaN or infinity"):
            refuse(x)
    with pytest.raises(ValueError, match="NaN or infinity"):
        Positive("one_plus").prepare(x)


def test_the_transform_that_is_named_can_be_built():
    with pytest.raises(ValueError, match=r"transform.low=0 transform.high=1,"):
        Positive("identity").prepare(torch.zeros(3, 2))


@pytest.mark.parametrize(
    "solver", [DaleLangevin(4, "exact"), DaleLangevin(4, "ancestral"), AmbientEuler(4)]
)
def test_samplers_that_carry_no_density_say_so(solver, generator):
    model = Generator(LogNormal(2, PATH), reversed_(), Heun(4))
    x = LAW.sample(4, generator)
    with pytest.raises(ValueError, match="carries no density.*RungeKutta"):
        model.log_prob(x, solver=solver)
    with pytest.raises(ValueError, match="carries no density"):
        model.sample_with_log_prob(4, solver=solver, generator=generator)
    found = model.log_prob(x, solver=DaleLangevin(4))
    torch.testing.assert_close(found, model.log_prob(x, solver=Euler(4)))


class Modules:
    data = Simulated(LogNormal(2, PATH), LAW, labels=True)


def test_coordinates_of_a_conditional_model_are_those_of_the_whole_law(generator):
    x = LAW.sample(64, generator)
    model = Generator(LogNormal(2, PATH), reversed_(classes=2), DaleLangevin(3)).prepare(x, x)
    found = coordinates(Training(model, Matching(PATH, target=Noise())), Modules)
    assert len(found["ks"]) == 2 and found["nonpositive"] == 0


def test_a_given_density_of_positive_numbers_needs_no_prior(generator):
    process = GeometricLangevin(LAW, time=1.0)
    x = Generator(LAW, process, Euler(100)).sample(8, generator=generator)
    assert bool((x > 0).all())


def test_a_loss_of_derivatives_refuses_a_compiled_network():
    model = Generator(LogNormal(2, PATH), reversed_(), Euler(2))
    with pytest.raises(ValueError, match="compile=false"):
        Training(model, ImplicitScoreMatching(PATH), compile=True)


def test_two_processes_that_keep_one_file_do_not_meet(tmp_path, monkeypatch):
    path, write = tmp_path / "classifier.pt", torch.save
    mine, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def meanwhile(content, file):
        write(content, file)
        monkeypatch.setattr(torch, "save", write)
        monkeypatch.setattr("os.getpid", lambda: -1)
        genflow.save(other, path)
        monkeypatch.undo()

    monkeypatch.setattr(torch, "save", meanwhile)
    genflow.save(mine, path)
    torch.testing.assert_close(genflow.load(path).weight, mine.weight)
    assert list(tmp_path.iterdir()) == [path]


def test_dynamics_of_a_given_density_say_why_they_have_none():
    model = Generator(LAW, GeometricLangevin(LAW), Euler(2))
    with pytest.raises(NotImplementedError, match="GeometricLangevin has noise"):
        model.log_prob(torch.ones(2, 2))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ks_in_the_report_is_scipys_on_either_side(sign, monkeypatch):
    monkeypatch.setattr("genflow.training.coordinates.COORDINATES", 300)
    model = Generator(LogNormal(2, PATH), reversed_(), DaleLangevin(5))
    made = LogNormalMixture([[sign, 2 * sign]], [1.0])  # samples lie above, or below, most of the law
    model.prepare(LAW.sample(50), LAW.sample(50))
    training = Training(model, Matching(PATH, target=Noise()), seed=3)
    found = coordinates(training, SimpleNamespace(data=Simulated(LAW, made)))["ks"]
    x = model.sample(300, generator=stream(3, "coordinates")).double()
    marginals = zip(x.mT, ([sign, 1.0], [2 * sign, 1.0]))
    want = [kstest(v.log().numpy(), norm(*law).cdf).statistic for v, law in marginals]
    assert found == pytest.approx(want, abs=1e-6)


def test_figures_start_at_the_fitted_prior_not_at_that_of_the_batch(monkeypatch):
    seen = {}
    monkeypatch.setattr("genflow.plot.flow", lambda start, *rest: seen.update(start=start))
    far = LogNormalMixture([[8.0, 8.0]], [0.01])
    model = Generator(LogNormal(2, PATH), reversed_(), DaleLangevin(3))
    model.prepare(far.sample(100), far.sample(100))
    training = Training(model, Matching(PATH, target=Noise()))
    batch = Batch((LogNormal(2, PATH).sample(200), far.sample(200)))  # what unfitted data yield
    rows = SimpleNamespace(rows=lambda split, n: batch)
    Figures(n=200).draw(SimpleNamespace(datamodule=rows), training, "")
    assert float(seen["start"].log().mean()) == pytest.approx(8.0, abs=0.6)  # standard error 0.13


def test_the_first_deterministic_step_away_from_data_moves():
    process = reversed_().with_epsilon(0.0).double()
    process.prepare(LAW.sample(50).double())
    x = LAW.sample(20).double()
    moved = DaleLangevin(1, "ancestral").solve(process, x, [1.0, 0.5]).x
    noise = process.noise(1.0, x).detach()  # as the field sees it closest to the data
    width = PATH.law(torch.tensor(0.5, dtype=torch.float64)).variance.sqrt()
    torch.testing.assert_close(moved, x * torch.exp(width * noise))
