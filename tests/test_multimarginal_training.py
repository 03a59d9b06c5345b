"""Multi-marginal bridges through Lightning and Hydra: whole snapshots, clocks, resuming, scores."""

import json
import math

import lightning as L
import matplotlib.image
import numpy as np
import ot
import pytest
import torch
from configs import QUIET, composed
from toy_training import adam, counting, moons, trainer

import genflow
from genflow.data import Batches, Simulated, SimulatedSnapshots, Snapshots, Table
from genflow.loss import Matching, ReferenceRefinement
from genflow.model import Generator
from genflow.process import SDE, Brownian, LotkaVolterra, MultiMarginalBridge
from genflow.solver import Exact
from genflow.source import Box, Empirical, Gaussian
from genflow.training import Checkpoint, DataModule, HeldOut, Report, Training
from genflow.training.cli import run
from genflow.training.heldout import heldout_distances
from genflow.transform import Standardise

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*"),
    pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.*"),
]
FEW = ["data.n=12", "process.steps=10", "callbacks.report.n=12", "callbacks.figures=null", *QUIET]


def archive(folder, sizes=(7, 12, 9, 5), times=(0.0, 1.0, 2.5, 4.0), **more) -> str:
    """Snapshots of unequal sizes and spacing that drift to the right."""
    draw = np.random.default_rng(0)
    arrays = {
        f"x{k}": draw.normal(size=(n, 2)) * 0.3 + [t, 0.0] for k, (n, t) in enumerate(zip(sizes, times))
    }
    np.savez(folder / "series.npz", times=np.array(times), **arrays, **more)
    return str(folder / "series.npz")


def whole(data, **options) -> DataModule:
    return DataModule(data, **({"batch_size": None} | options))


def bridge(reference=None, transform=None, **options) -> Training:
    process = MultiMarginalBridge(reference or Brownian(2), 0.8, steps=8, **options)
    model = Generator(Empirical(), process, Exact(), transform).double()
    return Training(model, ReferenceRefinement())


def test_whole_batches_are_all_rows_in_order_and_precision(tmp_path):
    data = Snapshots(archive(tmp_path), heldout=[1.0], holdout=0)
    file = np.load(tmp_path / "series.npz")
    stream = Batches(data.marginals("train"), None)
    for k in (0, 5):
        xs, cond = stream.batch(k)
        assert cond is None and [x.dtype for x in xs] == [torch.float64] * 3
        assert all(np.array_equal(x, file[name]) for x, name in zip(xs, ("x0", "x2", "x3")))
    table = Table(torch.ones(4, 2), torch.tensor([3, 1]))
    assert Batches([table], None).batch(0).xs[0].dtype == torch.float32
    with pytest.raises(ValueError, match="takes all rows of each marginal, but x1 is a law"):
        Batches([table, Gaussian(2)], None)


def test_clock_and_weights_of_the_data_reach_the_process(tmp_path):
    mass = {"w0": np.arange(1.0, 8.0), "w3": np.array([1, 1, 2, 2, 4])}
    data = Snapshots(archive(tmp_path, **mass), heldout=[1.0], holdout=0)
    training = bridge(transform=Standardise(2))
    trainer(tmp_path, 1).fit(training, whole(data))
    process, file = training.model.process, np.load(tmp_path / "series.npz")
    assert (process.times, process.span, process.iterations) == ([0.0, 2.5, 4.0], (0.0, 4.0), 1)
    points = training.model.transform.inverse(process.kept.points)
    assert np.allclose(points, np.concatenate([file[f"x{k}"] for k in (0, 2, 3)]), atol=1e-12)
    even = [np.full(9, 1 / 9)]
    shares = [mass["w0"] / 28, *even, mass["w3"] / 10]
    assert np.allclose(process.kept.masses, np.concatenate(shares), atol=1e-12)


def test_a_stated_clock_must_be_that_of_the_data(tmp_path):
    data = Snapshots(archive(tmp_path), heldout=[1.0], holdout=0)
    trainer(tmp_path, 1).fit(bridge(times=[0.0, 2.5, 4.0]), whole(data))
    with pytest.raises(ValueError, match=r"has times=\[0.0, 1.0, 4.0\] but .* \[0.0, 2.5, 4.0\]"):
        trainer(tmp_path, 1).fit(bridge(times=[0.0, 1.0, 4.0]), whole(data))


@pytest.mark.parametrize("transform", [None, Standardise(2)], ids=["raw", "standardised"])
def test_held_out_scores_are_exact_transport_from_all_trajectories(tmp_path, transform):
    data = Snapshots(archive(tmp_path), heldout=[1.0], holdout=0)  # unequally spaced: by time
    training = bridge(transform=transform)
    trainer(tmp_path, 1).fit(training, whole(data))
    found = heldout_distances(training, whole(data), 3)
    process, seen = training.model.process, []
    draw = genflow.seeds.stream(0, "heldout")
    (x,) = process.trajectories(times=[1.0], generator=draw)
    x = x if transform is None else transform.inverse(x)
    y = np.load(tmp_path / "series.npz")["x1"]
    assert len(x) == 7 + 9 + 5
    for p in (1, 2):
        cost = ot.dist(x.numpy(), y, "euclidean") ** p
        seen.append(ot.emd2(ot.unif(len(x)), ot.unif(len(y)), cost) ** (1 / p))
    assert found == {
        "heldout_times": [1.0], "heldout_w1": [pytest.approx(seen[0])],
        "heldout_w2": [pytest.approx(seen[1])],
    }  # fmt: skip
    assert seen[1] > 1.01 * seen[0], "one is not the other"
    (wrong,) = process.trajectories(times=[2.0], generator=genflow.seeds.stream(0, "heldout"))
    assert abs(float(wrong[:, 0].mean() - process.trajectories(times=[1.0])[0][:, 0].mean())) > 0.2


def prey(**options) -> SimulatedSnapshots:
    start, rates = Box([5.0, 4.0], [5.1, 4.1]), LotkaVolterra(1.0, 0.4, 0.4, 0.1)
    return SimulatedSnapshots(rates, start, [0.0, 1.0, 2.0, 4.0], 12, heldout=[1.0], dt=0.05, **options)


def fitted(folder, steps: int, path=None, every: int = 1) -> dict:
    folder.mkdir(exist_ok=True)
    training = bridge(LotkaVolterra())
    parts = [Checkpoint(str(folder), every), HeldOut(), Report(str(folder), 12)]
    run = trainer(folder, steps, parts)
    run.fit(training, whole(prey()), ckpt_path=path, weights_only=True)
    return json.loads((folder / "metrics.json").read_text())


def test_a_killed_run_goes_on_at_the_next_iteration(tmp_path):
    unbroken = fitted(tmp_path / "whole", 4)
    fitted(tmp_path / "half", 3, every=2)  # its last.ckpt is of iteration 2
    resumed = fitted(tmp_path / "rest", 4, tmp_path / "half" / "last.ckpt")
    for name in ("objective", "heldout_w1"):
        assert resumed[name] == pytest.approx(unbroken[name], rel=1e-9)
    assert resumed["parameters"] == pytest.approx(unbroken["parameters"], rel=1e-9)
    model = genflow.load(tmp_path / "rest" / "model.ckpt")
    assert model.process.iterations == 4 == unbroken["steps"] and model.dtype == torch.float64
    assert model.process.reference.numbers() == pytest.approx(unbroken["parameters"], rel=1e-9)
    assert unbroken.keys() >= {"cpu_seconds", "train_seconds", "heldout_times", "heldout_w2"}
    assert unbroken["parameter_count"] == 4 and "w2_euler5" not in unbroken
    spent = torch.load(tmp_path / "half" / "last.ckpt", weights_only=True)["callbacks"]
    before = {k: v["cpu_seconds"] for k, v in spent.items() if "cpu_seconds" in v}
    assert len(before) == 2 and resumed["cpu_seconds"] > before["Report"] - before["HeldOut"] > 0
    other = fitted(tmp_path / "short", 3)
    assert other["parameters"] != pytest.approx(unbroken["parameters"], rel=1e-6)


class Seen(L.Callback):
    def __init__(self) -> None:
        self.values: list[dict] = []

    def on_train_batch_end(self, run, module, *_) -> None:
        found = {k: float(v) for k, v in run.progress_bar_metrics.items()}
        self.values.append(found)


def test_the_bar_shows_objective_and_held_out_score(tmp_path):
    seen, training = Seen(), bridge(LotkaVolterra())
    trainer(tmp_path, 3, [HeldOut(2), seen], log_every_n_steps=1).fit(training, whole(prey()))
    history = [row["objective"] for row in training.model.process.history]
    assert [v["objective"] for v in seen.values] == pytest.approx(history, rel=1e-5)
    assert "heldout_w1" not in seen.values[0]
    assert math.isfinite(seen.values[1]["heldout_w1"])
    other = counting()  # without trajectories there is nothing to score
    seen = Seen()
    trainer(tmp_path, 2, [HeldOut(), seen], log_every_n_steps=1).fit(other, moons())
    assert seen.values[-1].keys() == {"objective"}


def test_an_objective_that_is_not_finite_stops_with_the_step(tmp_path, monkeypatch):
    training = bridge(LotkaVolterra())
    made = ReferenceRefinement.project

    def project(self, bridge, generator=None):
        found = made(self, bridge, generator)
        return found * math.nan if bridge.iterations == 2 else found

    monkeypatch.setattr(ReferenceRefinement, "project", project)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2: check the data, sigma"):
        trainer(tmp_path, 4).fit(training, whole(prey()))


def test_other_learners_are_refused_before_training(tmp_path):
    model = Generator(Empirical(), SDE(torch.nn.Identity()), Exact())
    with pytest.raises(ValueError, match="solves a MultiMarginalBridge, not a SDE"):
        trainer(tmp_path, 1).fit(Training(model, ReferenceRefinement()), whole(prey()))


def test_batches_of_rows_are_refused_before_training(tmp_path):
    data = Snapshots(archive(tmp_path), holdout=0)
    for size in (3, 256):  # the second is larger than any snapshot, which must not lead there
        with pytest.raises(ValueError, match=f"whole snapshots, not batch_size={size}: use .*=null"):
            trainer(tmp_path, 1).fit(bridge(), DataModule(data, size))
    laws = Simulated(Gaussian(2), Gaussian(2))
    for size in (3, None):
        with pytest.raises(ValueError, match="needs whole snapshots, but x0 of the data is a law"):
            trainer(tmp_path, 1).fit(bridge(), DataModule(laws, size))


def test_an_optimizer_is_refused_before_training(tmp_path):
    training = bridge(LotkaVolterra())
    training = Training(training.model, training.loss, adam)
    words = "ReferenceRefinement moves its learner itself: use optimizer=none"
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, 1).fit(training, whole(prey()))
    rows = torch.utils.data.DataLoader([0], collate_fn=lambda _: (torch.ones(3, 2),) * 2)
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, 1).fit(training, rows, rows)
    assert training.model.process.iterations == 0


def test_starts_are_drawn_by_the_weights_of_the_first_snapshot(tmp_path):
    mass = {"w0": np.array([1, 6, 1, 2, 4, 1, 1]), "w1": np.ones(12)}
    data = Snapshots(archive(tmp_path, **mass), heldout=[1.0], holdout=0)
    training = bridge(transform=Standardise(2))
    trainer(tmp_path, 1, [Checkpoint(str(tmp_path))]).fit(training, whole(data))
    first = torch.from_numpy(np.load(tmp_path / "series.npz")["x0"])
    for model in (training.model, genflow.load(tmp_path / "model.ckpt")):
        x = model.source.sample(4000, torch.Generator().manual_seed(0))
        share = (x[:, None] == first).all(2).double().mean(0)
        expected = torch.from_numpy(mass["w0"] / 16)
        assert bool(((share - expected).abs() <= 4.5 * (expected * (1 - expected) / 4000).sqrt()).all())
        assert genflow.spec(model.source)["weight"] == [7]
    # a pilot is drawn by its weights already
    other = counting()
    other.model.source = Empirical()
    trainer(tmp_path, 1).fit(other, DataModule(data, 4))
    assert other.model.source.weight is None and "source.weight" not in other.model.state_dict()


def test_weights_of_held_out_rows_count_in_their_scores(tmp_path):
    sure = {"w1": np.eye(12)[4]}
    data = Snapshots(archive(tmp_path, **sure), heldout=[1.0], holdout=0)
    training = bridge()
    trainer(tmp_path, 1).fit(training, whole(data))
    found = heldout_distances(training, whole(data), 100)
    (x,) = training.model.process.trajectories(
        times=[1.0], generator=genflow.seeds.stream(0, "heldout")
    )
    away = (x - torch.from_numpy(data.series.arrays[1][4])).norm(dim=1)
    assert found["heldout_w1"] == [pytest.approx(float(away.mean()))]
    assert found["heldout_w2"] == [pytest.approx(float(away.square().mean().sqrt()))]


def test_other_losses_keep_their_own_pilot(tmp_path):
    data = Snapshots(archive(tmp_path, (40, 40), (0.0, 1.0)), holdout=0)
    module = DataModule(data, 8)
    assert [len(x) for x in module._stream("train").batch(0).xs] == [8, 8]
    assert Matching().prepare(*module.rows("train", 30).xs) == Matching()


RUNS = ["mm_lotka_volterra", "mm_brownian"]


@pytest.mark.parametrize("name", RUNS)
def test_the_command_line_leaves_numbers_and_a_model(tmp_path, name):
    few = [v for v in FEW if v != "callbacks.figures=null"]
    cfg = composed(
        tmp_path,
        f"experiment={name}",
        "steps=2",
        *few,
        "callbacks.figures.n=12",
        "callbacks.figures.paths=4",
    )
    found = run(cfg)
    assert found == json.loads((tmp_path / "metrics.json").read_text())
    assert found["heldout_times"] == [1.0, 3.0, 5.0, 7.0] and len(found["heldout_w1"]) == 4
    rates = set("alpha beta gamma delta".split())
    assert set(found["parameters"]) == (rates if name == "mm_lotka_volterra" else set())
    for picture in ("samples.png", "parameters.png"):
        assert matplotlib.image.imread(tmp_path / picture).std() > 0.01
    model = genflow.load(tmp_path / "model.ckpt")
    assert model.process.times == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert model.sample(3, generator=torch.Generator().manual_seed(0)).shape == (3, 2)


def test_any_experiment_takes_a_file_of_snapshots(tmp_path):
    path = archive(tmp_path, train=np.array([0, 2, 3]), heldout=np.array([1]))
    few = [v for v in FEW if not v.startswith("data.")]
    cfg = composed(
        tmp_path, "experiment=mm_brownian", "data=snapshots", f"data.path={path}", "steps=1", *few
    )
    assert cfg.datamodule.data.holdout == 0
    found = run(cfg)
    assert found["heldout_times"] == [1.0] and found["steps"] == 1
    assert genflow.load(tmp_path / "model.ckpt").process.times == [0.0, 2.5, 4.0]
    file = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert len(file["model.process.kept.points"]) == 7 + 9 + 5


def test_a_run_of_the_command_line_resumes(tmp_path):
    again = [*FEW, "experiment=mm_lotka_volterra"]
    run(composed(tmp_path / "half", "steps=1", *again))
    last = tmp_path / "half" / "last.ckpt"
    found = run(composed(tmp_path / "rest", "steps=2", f"ckpt_path={last}", *again))
    assert found["steps"] == 2
    model = genflow.load(tmp_path / "rest" / "model.ckpt")
    assert model.process.iterations == 2
    assert found["objective"] == model.process.history[1]["objective"]


def test_plans_that_do_not_converge_are_one_sentence(tmp_path):
    options = ["projection.iterations=1", "projection.tolerance=1e-12", "sigma=0.01", "steps=1"]
    with pytest.raises(SystemExit, match="marginal error .* raise iterations or tolerance") as caught:
        run(composed(tmp_path, "experiment=mm_lotka_volterra", *options, *FEW))
    assert "\n" not in str(caught.value)
