"""Starts from the tilted source: its law, where an exact field carries it, files and runs."""

import json
from pathlib import Path

import pytest
import torch
from configs import QUIET, TINY, composed
from gaussians import Pair, fields, root, tilted
from torch import Tensor, nn
from toy_training import equal, moons, stored, toy, trainer

import genflow
from genflow.coupling import Gibbs, Independent
from genflow.interpolant import Linear
from genflow.loss import Matching
from genflow.model import Generator, Tilt
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Euler, Heun
from genflow.source import EightGaussians, Gaussian, Moons
from genflow.specs import spec
from genflow.training import EMA, Checkpoint
from genflow.training.cli import run
from genflow.transform import Standardise

EPSILON = 4.0
N = 1000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law() -> Pair:
    """N(0, I) and a Gaussian beside it."""
    cov = torch.tensor([[1.0, 0.5], [0.5, 0.8]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    return Pair(0 * eye[0], eye, torch.tensor([3.0, -1.5], dtype=torch.float64), cov, 0 * eye)


def matched(mean: Tensor, cov: Tensor, n: int) -> Tensor:
    """Gaussian rows whose mean and covariance are exactly these."""
    z = torch.randn(n, 2, generator=seeded(9), dtype=torch.float64)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T
    return z @ torch.linalg.cholesky(cov).T + mean


class Exact(nn.Module):
    """The velocity of the linear path between the tilted Gaussians, with their entropic plan."""

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        plan = tilted(law(), 1 / EPSILON)
        slope, intercept = fields(plan, Linear().coefficients(t[:1]))["velocity"]
        return x @ slope.T + intercept


def model(**options) -> Generator:
    # 128 candidates: their error, of order 1 / 128, is a third of a standard error of 1000 starts
    options = {"points": matched(law().mean1, law().cov1, 256), "candidates": 128} | options
    tilt = Tilt(Gibbs(EPSILON), **options)
    return Generator(Gaussian(2), SDE(Exact()), Heun(30), tilt=tilt).double()


def gaps(x: Tensor, mean: Tensor, cov: Tensor) -> float:
    """Largest difference of a mean and a covariance to those of a Gaussian, in standard errors."""
    variance = cov.diagonal()
    of_mean = (x.mean(0) - mean) / (variance / len(x)).sqrt()
    of_cov = (x.T.cov() - cov) / ((cov**2 + variance[:, None] * variance) / len(x)).sqrt()
    return float(torch.cat([of_mean, of_cov.flatten()]).abs().max())


def wasserstein(x: Tensor, mean: Tensor, cov: Tensor) -> float:
    """W2 between Gaussians, one of them with the moments of the rows."""
    half, own = root(cov), x.T.cov()
    trace = torch.trace(own + cov - 2 * root(half @ own @ half))
    return float((x.mean(0) - mean) @ (x.mean(0) - mean) + trace) ** 0.5


def test_starts_follow_the_tilted_source():
    plan, made = tilted(law(), 1 / EPSILON), model()
    x = made.start(N, generator=seeded())
    assert gaps(x, plan.mean0, plan.cov0) < 4.5
    # neither the source, nor twice or half the temperature
    others = [law(), tilted(law(), 2 / EPSILON), tilted(law(), 0.5 / EPSILON)]
    assert all(gaps(x, other.mean0, other.cov0) > 6 for other in others)


def test_the_exact_field_ends_in_the_tilted_data_from_tilted_starts_alone():
    plan, made = tilted(law(), 1 / EPSILON), model()
    x = made.sample(N, generator=seeded())
    assert gaps(x, plan.mean1, plan.cov1) < 4.5
    assert wasserstein(x, plan.mean1, plan.cov1) < 0.1
    # from the source the same field ends in neither: the second bias
    x = made.sample(x0=matched(law().mean0, law().cov0, N))
    assert wasserstein(x, plan.mean1, plan.cov1) > 0.6
    assert wasserstein(x, law().mean1, law().cov1) > 1.0


def test_one_candidate_is_the_source():
    made = model(candidates=1)
    assert torch.equal(made.start(50, generator=seeded()), made.source.sample(50, seeded()))


def test_given_starts_are_taken_as_they_are():
    made, x0 = model(), torch.ones(3, 2, dtype=torch.float64)
    path = made.sample(x0=x0, trajectory=True)
    assert torch.equal(path[0], x0)


def test_the_generator_rules_the_starts():
    made = model(candidates=8)
    draws = [made.start(20, generator=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    path = made.sample(20, generator=seeded(1), trajectory=True)
    assert torch.equal(path[0], draws[0])


def test_log_mass_is_the_mean_weight_over_the_points(monkeypatch):
    points, x = matched(law().mean1, law().cov1, 30), Gaussian(2).double().sample(40, seeded())
    true = torch.exp(-((x[:, None] - points) ** 2).sum(2) / EPSILON).mean(1).log()

    def error() -> Tensor:
        return Tilt(Gibbs(EPSILON), points).log_mass(x) - true

    assert error().std() < 1e-9
    monkeypatch.setattr("genflow.model.tilt.PAIRS", 70)  # a few rows at a time
    assert error().std() < 1e-9


def test_each_class_has_its_own_tilt():
    # two classes on either side of the source, of unequal share: the tilted pair of each alone
    mean, n = torch.tensor([3.0, -1.5], dtype=torch.float64), 128
    cloud = matched(0 * mean, law().cov1, n)
    points = torch.cat([cloud + mean, cloud[: n // 2] - mean])
    labels = torch.tensor([4] * n + [1] * (n // 2))
    made = model(points=points, labels=labels)
    cond = torch.tensor([4, 1]).repeat(N)
    x = made.start(2 * N, cond=cond, generator=seeded())
    plan = tilted(law(), 1 / EPSILON)
    assert gaps(x[cond == 4], plan.mean0, plan.cov0) < 4.5
    # half of the cloud has moments of its own, which the tilt follows
    half = cloud[: n // 2] - mean
    other = tilted(law()._replace(mean1=half.mean(0), cov1=half.T.cov(correction=0)), 1 / EPSILON)
    assert gaps(x[cond == 1], other.mean0, other.cov0) < 5
    assert x[cond == 4][:, 0].mean() > 0.5 > -0.5 > x[cond == 1][:, 0].mean()


def test_several_labels_are_one_class_together():
    points = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([[0, 0], [0, 1], [1, 1]])
    tilt = Tilt(Gibbs(EPSILON), points, labels)
    x = Gaussian(2).double().sample(5, seeded())
    for row in range(3):
        cond = labels[row].expand(5, 2)
        true = -((x - points[row]) ** 2).sum(1) / EPSILON
        torch.testing.assert_close(tilt.log_mass(x, cond), true)


def data(labels: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    x1, cond = EightGaussians().sample_labelled(300, seeded(1))
    return Gaussian(2).sample(300, seeded()), x1, cond if labels else None


def fresh(labels: bool = False) -> Generator:
    network = MLP(2, 8, classes=8 if labels else None)
    return Generator(Gaussian(2), SDE(network), Euler(3), Standardise(2), Tilt(Gibbs(), size=200))


@pytest.mark.parametrize("labels", [False, True])
def test_a_tilt_survives_its_file(labels, tmp_path):
    x0, x1, cond = data(labels)
    made = fresh(labels).prepare(x0, x1, cond=cond).eval()
    genflow.save(made, tmp_path / "model.ckpt")
    again = genflow.load(tmp_path / "model.ckpt")
    assert spec(again) == spec(made)
    assert again.tilt.coupling == made.tilt.coupling and again.tilt.coupling.epsilon > 0
    assert torch.equal(again.tilt.points, made.tilt.points)
    assert (again.tilt.labels is None) is not labels
    # the kept rows are rows of the data, each with its own label
    inside, kept = made.transform(x1), again.tilt.points
    rows = torch.cdist(kept.double(), inside.double()).argmin(1)
    assert torch.equal(inside[rows], kept) and len(rows.unique()) == len(rows)
    counts = cond[rows].bincount() if labels else torch.tensor([len(rows)])
    assert torch.equal(counts, (cond.bincount() if labels else torch.tensor([len(x1)])).clamp_max(200))
    assert not labels or torch.equal(again.tilt.labels, cond[rows])
    draws = [m.sample(30, cond=None if cond is None else cond[:30], generator=seeded())
             for m in (made, again)]  # fmt: skip
    assert torch.equal(*draws)


def test_prepare_keeps_what_is_there():
    x0, x1, _ = data()
    tilt = fresh().prepare(x0, x1).tilt
    points, epsilon = tilt.points, tilt.coupling.epsilon
    tilt.prepare(x0, 9 * x1)
    assert tilt.points is points and tilt.coupling.epsilon == epsilon
    x1 += 5  # the rows are a copy
    assert not torch.equal(fresh().prepare(x0, x1).tilt.points, points)
    assert abs(points.mean()) < 0.5


def test_starts_of_data_lie_in_the_space_of_the_model():
    # a source of data far from zero: points and candidates must both be standardised
    x0 = Moons(shift=30.0).sample(2000, seeded())
    x1 = Moons(shift=36.0).sample(2000, seeded(1))
    made = Generator(Moons(shift=30.0), SDE(MLP(2, 8)), Euler(2), Standardise(2), Tilt(Gibbs(1.0)))
    made.prepare(x0, x1)
    x = made.start(400, generator=seeded())
    # importance resampling by hand, over the rows themselves
    a, b = made.transform(x0), made.transform(x1[:1024])
    share = torch.exp(-(torch.cdist(a, b) ** 2)).mean(1)
    share = share / share.sum()
    mean = share @ a
    deviation = (share @ (a - mean) ** 2).sqrt()
    # 400 starts, and 2000 rows by hand: 4.5 standard errors, and the candidates' own, 1 / 16
    error = 4.5 * deviation * (1 / 400 + 1 / 800) ** 0.5 + 1 / 16 * (mean - a.mean(0)).abs()
    assert ((x.mean(0) - mean).abs() < error).all()
    assert ((a.mean(0) - mean).abs() > 2 * error).any()
    path = made.sample(50, generator=seeded(), trajectory=True)
    torch.testing.assert_close(path[0], made.transform.inverse(made.start(50, generator=seeded())))
    assert path[0].mean() > 20


def test_reverse_runs_know_no_tilt():
    made = model(points=None)
    x = torch.ones(3, 2, dtype=torch.float64)
    assert made.sample(x0=x, reverse=True).isfinite().all()


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Tilt(Independent()), TypeError, "only Gibbs weights tilt"),
        (lambda: Tilt(Gibbs(1.0, correction="gaussian")), ValueError, "leaves the source where it is"),
        (lambda: Tilt(Gibbs(1.0, correction="sinkhorn")), ValueError, "use tilt=none"),
        (lambda: Tilt(Gibbs(1.0), candidates=0), ValueError, "candidates must be a whole number"),
        (lambda: Tilt(Gibbs(1.0), size=2.5), ValueError, "size must be a whole number"),
        (lambda: Tilt(Gibbs(1.0)).log_mass(torch.zeros(3, 2)), ValueError, "has no points yet"),
        (lambda: Tilt(Gibbs(), torch.ones(3, 2)).log_mass(torch.zeros(3, 2)), ValueError, "prepare"),
        (
            lambda: Tilt(Gibbs(1.0), torch.ones(3, 2), torch.arange(3)).log_mass(torch.zeros(3, 2)),
            ValueError,
            "pass cond",
        ),
        (
            lambda: Tilt(Gibbs(1.0), torch.ones(3, 2), torch.arange(3)).log_mass(
                torch.zeros(2, 2), torch.tensor([1, 7])
            ),
            ValueError,
            r"class 7 is not among .* raise size",
        ),
    ],
)
def test_what_cannot_be_tilted_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("labels", [False, True])
def test_a_run_starts_from_the_tilt(labels, tmp_path):
    extra = ["data=eight_gaussians", "source=gaussian", "data.labels=true", "network.classes=8"]
    choice = extra if labels else []
    run(composed(tmp_path, "coupling=gibbs", "tilt=resample", *choice, *TINY, *QUIET))
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    loaded = genflow.load(tmp_path / "model.ckpt")
    # model and loss chose the same temperature, and the report is of this one
    assert loaded.tilt.coupling.epsilon == numbers["epsilon"] > 0
    assert loaded.tilt.points.shape == (8 * 1024 if labels else 1024, 2)
    assert (loaded.tilt.labels is None) is not labels
    cond = torch.arange(7) if labels else None
    assert loaded.sample(7, cond=cond, generator=seeded()).isfinite().all()
    starts = torch.arange(8).repeat(200) if labels else None
    x = loaded.start(1600, cond=starts, generator=seeded())
    assert (tmp_path / "tilt.png").is_file() and (tmp_path / "samples.png").is_file()
    if labels:  # each class draws its starts to its own side
        centres = EightGaussians().centres() / 5
        along = (x * centres[starts]).sum(1)
        assert along.mean() > 8 * along.std() / 1600**0.5
        assert numbers["class_shift_x0"] > 0.2
    # path numbers begin at the tilted starts, samples too
    assert numbers["kl_tilt_x0"] > 0 and numbers["path_energy"] > 0


def test_a_resumed_run_keeps_its_tilt(tmp_path):
    def fit(name: str, steps: int, **options) -> Path:
        training = toy(loss=Matching(coupling=Gibbs()))
        training.model.tilt = Tilt(Gibbs(), size=100)
        parts = [EMA(0.9), Checkpoint(str(tmp_path / name))]
        trainer(tmp_path, steps, parts).fit(training, moons(), **options)
        return tmp_path / name / "model.ckpt"

    whole, half = fit("whole", 4), fit("half", 2)
    resumed = fit("resumed", 4, ckpt_path=half, weights_only=True)
    assert equal(stored(whole), stored(resumed))
    assert genflow.load(resumed).tilt.coupling == genflow.load(whole).tilt.coupling


def test_a_correction_and_a_tilt_do_not_go_together(tmp_path):
    with pytest.raises(SystemExit, match="use tilt=none"):
        run(composed(tmp_path, "experiment=wcfm_gaussian", "tilt=resample", *TINY, *QUIET))
