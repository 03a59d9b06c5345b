"""Report, figures and loggers: right numbers, in the right place, without losing a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import Dropping, Normed, equal, moons, toy, trainer, weights

from genflow.coupling import ExactOT, Gibbs, Independent
from genflow.data import Arrays, Digits, Simulated
from genflow.diagnostics import class_accuracy, path_report, tilt_report
from genflow.distance import Wasserstein
from genflow.interpolant import BrownianBridge
from genflow.loss import Matching
from genflow.model import Tilt
from genflow.network import MLP
from genflow.process import SDE
from genflow.seeds import stream
from genflow.solver import Euler, StochasticHeun
from genflow.source import EightGaussians, Empirical, Gaussian
from genflow.target import Drift
from genflow.training import EMA, Checkpoint, Figures, Progress, Report
from genflow.training.table import table


def reported(folder: Path, training, data=None, steps: int = 3, **options) -> dict:
    parts = [Report(str(folder), 50)]
    trainer(folder, steps, parts, **options).fit(training, moons() if data is None else data)
    return json.loads((folder / "metrics.json").read_text())


def test_distances_are_those_of_samples_to_test_data(tmp_path):
    training, data = toy(seed=2), moons(seed=2)
    numbers = reported(tmp_path, training, data)
    x1, model = data.rows("test", 50).xs[1], training.model
    for name, options in (("w2", {}), ("w2_euler5", {"solver": Euler(5)})):
        samples = model.sample(50, generator=stream(2, "report"), **options)
        assert numbers[name] == pytest.approx(float(Wasserstein()(samples, x1)))
    floor = Wasserstein()(data.rows("train", 50).xs[1], x1)
    assert numbers["w2_floor"] == pytest.approx(float(floor))
    assert numbers["nfe"] == 5
    assert numbers["samples"] == 50


def test_path_numbers_are_those_of_test_starts(tmp_path):
    training, data = toy(), moons()
    numbers = reported(tmp_path, training, data)
    x0, x1 = data.rows("test", 50).xs
    found = path_report(training.model.process, x0)
    w2 = float(Wasserstein()(x0, x1))
    assert numbers["path_energy"] == pytest.approx(found.energy)
    assert numbers["straightness"] == pytest.approx(found.straightness)
    assert numbers["w2_pair"] == pytest.approx(w2)
    excess = numbers["path_energy_excess"]
    assert excess == pytest.approx((found.energy - w2**2) / w2**2)
    assert excess < 0, "three steps leave a model that hardly moves: the sign must tell"


def test_the_coupling_is_reported(tmp_path):
    plain = reported(tmp_path, toy())
    assert plain["ess"] == pytest.approx(1.0)
    assert plain["epsilon"] is None
    training = toy(loss=Matching(coupling=Gibbs(ess=0.3)))
    weighted = reported(tmp_path, training, moons(batch_size=2000))
    assert weighted["ess"] == pytest.approx(0.3, abs=0.06)
    assert weighted["epsilon"] == training.loss.coupling.epsilon


def test_the_tilt_is_reported(tmp_path, capsys):
    training, data = toy(loss=Matching(coupling=Gibbs(2.0))), moons()
    training.model.source = Gaussian(2)
    numbers = reported(tmp_path, training, data)
    report = tilt_report(Gibbs(2.0), *data.rows("train", 50).xs)
    expected = {k: v for k, v in report.numbers().items() if k not in ("ess", "note")}
    assert {k: numbers[k] for k in expected} == pytest.approx(expected)
    assert numbers["kl_tilt_x1"] > 0.1 and numbers["class_shift_x0"] is None
    assert "coupling.correction=gaussian mends it" in numbers["note"]
    assert f"note: {numbers['note']}" in capsys.readouterr().out
    # ess stays that of training batches
    batch = data.rows("train", 32).xs
    assert numbers["ess"] == pytest.approx(training.loss.diagnose(*batch)["ess"])


def test_plain_pairs_have_no_tilt_and_no_note(tmp_path, capsys):
    numbers = reported(tmp_path, toy())
    assert numbers["kl_tilt_x0"] == numbers["tv_tilt_x1"] == numbers["std_shift_x0"] == 0
    assert numbers["note"] is None and "note" not in capsys.readouterr().out


def modes(**options):
    return moons(Simulated(Gaussian(2), EightGaussians(), labels=True), **options)


def by_class(coupling=None, **options):
    return toy(
        MLP(2, width=16, depth=2, classes=8), Matching(coupling=coupling or Independent()), **options
    )


def test_conditional_samples_are_judged_by_their_class(tmp_path):
    training, data = by_class(), modes()
    numbers = reported(tmp_path, training, data)
    train, test = data.rows("train", 50), data.rows("test", 50)
    samples = training.model.sample(cond=test.cond, generator=stream(0, "report"))
    sides = [(train.xs[1], train.cond), (test.xs[1], test.cond), (samples, test.cond)]
    found = class_accuracy(*sides)
    assert (numbers["class_accuracy"], numbers["class_accuracy_real"]) == pytest.approx(tuple(found))
    assert numbers["class_accuracy"] < 0.6 < numbers["class_accuracy_real"]
    assert "class_accuracy" not in reported(tmp_path, toy())


def test_pairs_that_tie_the_source_to_the_class_are_told(tmp_path):
    def numbers(coupling):  # enough rows for the means of eight classes to be known
        report = Report(str(tmp_path), 400)
        trainer(tmp_path, 2, [report]).fit(by_class(coupling), modes(batch_size=128))
        return report.metrics

    tied, free = numbers(ExactOT()), numbers(ExactOT(conditions="within"))
    assert tied["class_shift_x0"] > 0.5 and "coupling.conditions=within" in tied["note"]
    assert free["class_shift_x0"] < 1.5 * free["class_shift_chance"] and free["note"] is None


def test_paths_of_a_tilted_model_begin_where_it_does(tmp_path):
    training = toy(loss=Matching(coupling=Gibbs(2.0)))
    training.model.tilt = Tilt(Gibbs(2.0))
    data = moons()
    numbers = reported(tmp_path, training, data)
    draw = stream(0, "paths")
    start = training.model.start(50, generator=draw)
    found = path_report(training.model.process, start, generator=draw)
    assert numbers["path_energy"] == pytest.approx(found.energy)
    plain = path_report(training.model.process, data.rows("test", 50).xs[0])
    assert numbers["path_energy"] != pytest.approx(plain.energy, rel=0.01)


def test_settings_are_reported(tmp_path):
    training = toy(seed=7)
    training.model.solver = StochasticHeun(4)
    numbers = reported(tmp_path, training, accumulate_grad_batches=2)
    assert numbers["seed"] == 7
    assert numbers["steps"] == 6
    assert numbers["solver"] == {"_target_": "genflow.solver.StochasticHeun", "steps": 4}
    assert numbers["parameters"] == len(weights(training))
    assert numbers["device"] == "cpu"
    assert numbers["versions"]["torch"] == torch.__version__
    assert {"genflow", "python", "lightning"} <= numbers["versions"].keys()


def test_noisy_models_have_no_straightness(tmp_path):
    training = toy(loss=Matching(BrownianBridge(0.5), target=Drift(0.5)))
    training.model.process = SDE(training.model.process.network, sigma=0.5)
    numbers = reported(tmp_path, training)
    assert numbers["straightness"] is None
    assert numbers["path_energy"] > 0


def test_train_seconds_add_up_over_a_resume(tmp_path):
    def parts():
        return [Report(str(tmp_path), 10), Checkpoint(str(tmp_path))]

    trainer(tmp_path, 2, parts()).fit(toy(), moons())
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    content["callbacks"]["Report"]["seconds"] = 1000.0
    torch.save(content, tmp_path / "changed.ckpt")
    trainer(tmp_path, 4, parts()).fit(
        toy(), moons(), ckpt_path=tmp_path / "changed.ckpt", weights_only=True
    )
    seconds = json.loads((tmp_path / "metrics.json").read_text())["train_seconds"]
    assert 1000 < seconds < 1100


def test_networks_are_evaluated_in_eval_mode(tmp_path):
    # dropout would make two evaluations differ
    training, data = toy(Dropping()), moons()
    numbers = reported(tmp_path, training, data)
    samples = training.model.eval().sample(50, generator=stream(0, "report"))
    assert numbers["w2"] == pytest.approx(float(Wasserstein()(samples, data.rows("test", 50).xs[1])))


def test_equal_marginals_are_reported(tmp_path):
    # W2 between them is zero, so that an excess relative to it has no value
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 2)))
    path = str(tmp_path / "x.npy")
    training = toy()
    training.model.source = Empirical()
    numbers = reported(tmp_path, training, moons(Arrays(path, path)))
    assert numbers["w2_pair"] == pytest.approx(0.0, abs=1e-6)
    assert numbers["path_energy"] > 0


class Failing(Report):
    def evaluate(self, trainer, pl_module):
        raise RuntimeError("numbers that cannot be had")


def test_a_report_that_fails_does_not_lose_the_model(tmp_path):
    parts = [EMA(0.9), Failing(str(tmp_path)), Checkpoint(str(tmp_path))]
    with pytest.raises(RuntimeError, match="cannot be had"):
        trainer(tmp_path, 3, parts).fit(toy(), moons())
    assert (tmp_path / "model.ckpt").is_file()


def test_the_table_shows_every_number():
    lines = table(
        {"w2": 0.123456, "epsilon": None, "solver": {"_target_": "a.Heun"}, "versions": {}, "seed": 3}
    )
    assert [line.split() for line in lines.split("\n")] == [
        ["w2", "0.1235"],
        ["solver", "Heun"],
        ["seed", "3"],
    ]


def test_figures_are_drawn_at_validations_if_asked(tmp_path):
    folder = str(tmp_path)
    trainer(tmp_path, 6, [Figures(folder, 20, 3, at_validation=True)]).fit(toy(), moons())
    names = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert names == ["step_0000003.png", "step_0000006.png"]
    assert (tmp_path / "samples.png").is_file()


def test_figures_of_labelled_images(tmp_path):
    training = toy(MLP([1, 8, 8], width=8, depth=1, classes=10))
    training.model.source = Gaussian([1, 8, 8])
    data = moons(Digits(Gaussian([1, 8, 8]), labels=True))
    # more source rows than images: conditions must not run out
    trainer(tmp_path, 2, [Figures(str(tmp_path), 500, 3)]).fit(training, data)
    assert (tmp_path / "samples.png").stat().st_size > 1000


def named(part) -> str:
    return type(part).__name__


def drawn(folder, training, data=None) -> set[str]:
    trainer(folder, 2, [Figures(str(folder), 40, 3)]).fit(training, data or moons())
    return {path.name for path in folder.glob("*.png")}


@pytest.mark.parametrize(
    ("coupling", "bent"),
    [(Gibbs(2.0), True), (Gibbs(ess=0.5), True), (ExactOT(), False), (Independent(), False)],
    ids=["epsilon", "ess", "ExactOT", "Independent"],
)
def test_the_tilt_is_drawn_for_weighted_runs(tmp_path, coupling, bent):
    names = drawn(tmp_path, toy(loss=Matching(coupling=coupling)))
    assert names == {"samples.png", "loss.png"} | ({"tilt.png"} if bent else set())


@pytest.mark.parametrize("coupling", [Gibbs(2.0), ExactOT(), ExactOT(conditions="within")], ids=named)
def test_the_tilt_of_labelled_data_is_drawn(tmp_path, coupling):
    assert ("tilt.png" in drawn(tmp_path, by_class(coupling), modes())) == isinstance(coupling, Gibbs)


def test_the_figure_of_a_tilt_shows_the_report(tmp_path):
    training, data = toy(loss=Matching(coupling=Gibbs(2.0))), moons()
    figures = Figures(str(tmp_path), 40, 3)
    run = trainer(tmp_path, 2, [figures])
    run.fit(training, data)
    report = tilt_report(Gibbs(2.0), *data.rows("train", 40).xs)
    figure = figures.draw_tilt(run, training)
    assert f"{report.kl_tilt_x0:.2g} nats at x0, {report.kl_tilt_x1:.2g} at x1" in figure.get_suptitle()
    assert len(figure.axes) == 5
    shown = np.asarray(figure.axes[2].collections[0].get_offsets())
    assert np.allclose(shown, report.x1)


@pytest.mark.parametrize("coupling", [Independent(), Gibbs(2.0)], ids=named)
def test_figures_and_reports_leave_the_model_as_it_is(tmp_path, coupling):
    # running statistics of a network in training mode would move with every sample
    training = toy(Normed(), loss=Matching(coupling=coupling))
    trainer(tmp_path, 2, [Checkpoint(str(tmp_path))]).fit(training, moons())
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    training = toy(Normed(), loss=Matching(coupling=coupling))
    parts = [Figures(str(tmp_path), 40, 3), Report(str(tmp_path), 20)]
    trainer(tmp_path, 2, parts).fit(training, moons())
    assert equal(before, training.model.state_dict())


def test_tensorboard_gets_numbers_and_a_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="logs")
    training = toy(metrics={"w2": Wasserstein()}, metric_size=20)
    parts = [Figures(str(tmp_path), 20, 3)]
    trainer(tmp_path, 6, parts, logger=logger, log_every_n_steps=2).fit(training, moons())
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "val/loss", "val/w2"} <= set(scalars)
    assert len(events.Scalars("train/loss")) == 3
    assert events.Tags()["images"] == ["samples", "loss"]


def test_csv_gets_numbers(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="logs")
    parts = [Figures(str(tmp_path), 20, 3)]
    trainer(tmp_path, 6, parts, logger=logger, log_every_n_steps=2).fit(toy(), moons())
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert {"step", "train/loss", "val/loss"} <= set(header.split(","))
    assert len(rows) == 5


def test_the_bar_counts_the_whole_run(tmp_path, capsys):
    run = trainer(tmp_path, 6, [Progress(2)], enable_progress_bar=True)
    run.fit(toy(), moons())
    assert "6/6" in capsys.readouterr().out + capsys.readouterr().err
    assert run.progress_bar_callback.total_train_batches == 6


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Report(n=1), r"Report\(n=1\).*>= 2"),
        (lambda: Figures(n=0), r"Figures\(n=0\)"),
        (lambda: Figures(paths=-1), r"Figures\(paths=-1\)"),
        (lambda: Checkpoint(every=0), r"Checkpoint\(every=0\)"),
    ],
)
def test_sizes_are_positive(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
