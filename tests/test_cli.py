"""The command line: runs, sweeps, killed runs, and one sentence for each mistake."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import QUIET, TINY
from hydra.core.global_hydra import GlobalHydra

import genflow
from genflow.training.cli import main

TRAIN = Path(__file__).parents[1] / "train.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(TRAIN), f"hydra.run.dir={folder}", *TINY, *overrides]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Calls ``main`` as from a shell, in a folder of its own; returns what it said."""
    handlers, level = logging.root.handlers[:], logging.root.level
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # whatever main sets is put back
        monkeypatch.delenv(name)
    monkeypatch.delenv("GENFLOW_TRACEBACK", raising=False)

    def call(*overrides: str, folder: str = "run") -> str:
        flags = [word for word in overrides if word.startswith("-")]
        rest = [word for word in overrides if word not in flags]
        where = [] if flags else [f"hydra.run.dir={folder}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *where, *TINY, *QUIET, *rest])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    yield call
    GlobalHydra.instance().clear()
    for handler in {*logging.root.handlers} - {*handlers}:  # Hydra's own, open in the run folder
        handler.close()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def refusal(cli, capsys, *overrides: str) -> str:
    """What a refused command says; it must be one line for the shell and exit code 1."""
    with pytest.raises(SystemExit) as stop:
        cli(*overrides)
    said = stop.value.code  # the interpreter prints a string to stderr and exits with 1
    assert isinstance(said, str)
    assert said.startswith("genflow: ")
    assert "\n" not in said
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return said


def weights(path: Path) -> dict:
    content = torch.load(path, weights_only=True)
    return content["state_dict"] | {f"raw.{k}": v for k, v in content["current_model_state"].items()}


def agree(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a run"
    done = subprocess.run(
        command(folder), capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.json",
        "model.ckpt",
        "samples.png",
        "loss.png",
        "logs",
        ".hydra",
    }
    assert not list(folder.rglob("*.partial"))
    lines = done.stdout.strip().split("\n")[-3:]
    load = "  model = genflow.load('a run/model.ckpt')"  # relative to where the user stands
    assert lines == ["  import genflow", load, "  x = model.sample(1000)"]
    assert "w2_euler5" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr, done.stderr
    space: dict = {}
    exec("\n".join(line.strip() for line in lines), space)  # what is printed must run
    assert space["x"].shape == (1000, 2)


def test_the_default_folder_is_in_the_working_directory(cli, tmp_path):
    cli("hydra.run.dir=runs/${name}/here", "experiment=cfm")
    assert (tmp_path / "runs" / "cfm" / "here" / "model.ckpt").is_file()


def test_a_killed_run_resumes_to_the_same_end(cli, tmp_path):
    steps = ["steps=600", "callbacks.checkpoint.every=20", "experiment=wcfm"]
    last = tmp_path / "killed" / "last.ckpt"
    process = subprocess.Popen(
        command(last.parent, *QUIET, *steps), env=ENVIRONMENT, cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 100
        while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert last.is_file()
    assert not (last.parent / "model.ckpt").is_file(), "killed too late to prove anything"
    assert torch.load(last, weights_only=True)["batches_seen"] < 600
    cli(*steps, f"ckpt_path={last}", folder="resumed")
    cli(*steps, folder="whole")
    agree(tmp_path / "resumed" / "model.ckpt", tmp_path / "whole" / "model.ckpt")


def test_sweeps_make_a_folder_for_each_run(cli, tmp_path):
    cli("-m", "seed=0,1", "hydra.sweep.dir=sweep", "experiment=cfm")
    runs = [tmp_path / "sweep" / name for name in ("0", "1")]
    for seed, run in enumerate(runs):
        assert f"\nseed: {seed}\n" in (run / "config.yaml").read_text()
        assert genflow.load(run / "model.ckpt").sample(2).shape == (2, 2)
    first, second = (weights(run / "model.ckpt") for run in runs)
    assert not all(torch.equal(first[k], second[k]) for k in first)


def test_runs_repeat(cli, tmp_path):
    for folder in ("one", "two"):
        cli("experiment=otcfm", folder=folder)
    agree(tmp_path / "one" / "model.ckpt", tmp_path / "two" / "model.ckpt")


def test_own_arrays_train(cli, tmp_path):
    for k, name in enumerate(("x0", "x1")):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(k).normal(size=(200, 3)))
    cli("data=arrays", "data.x1=x1.npy", "data.x0=x0.npy", "source=empirical", "transform=standardise")
    assert genflow.load(tmp_path / "run" / "model.ckpt").sample(4).shape == (4, 3)


MISTAKES = {
    "unknown option": (["coupling=exactot"], ["coupling", "'exactot'", "exact_ot", "sinkhorn"]),
    "unknown key": (["network.widht=3"], ["'widht'", "network", "'width'", "depth"]),
    "unknown appended key": (["+network.widht=3"], ["'widht'", "MLP", "'width'", "depth"]),
    "unknown group": (["cuopling=gibbs"], ["cuopling", "coupling"]),
    "unknown root key": (["bach_size=3"], ["'bach_size'", "'batch_size'"]),
    "bad number": (["coupling=gibbs", "coupling.epsilon=-1"], ["Gibbs(epsilon=-1)", "positive"]),
    "bad root number": (["steps=-5"], ["steps=-5", ">= 1"]),
    "bad type": (["network.width=wide"], ["MLP(width='wide')", "whole number"]),
    "bad ema": (["ema=1.5"], ["EMA(decay=1.5)", "(0, 1)", "null"]),
    "bad syntax": (["network.width"], ["'network.width'", "key=value"]),
    "large batch": (
        ["data=digits", "batch_size=5000", "source=gaussian"],
        ["batch_size=5000", "1257 rows of x1", "batch_size <= 1257"],
    ),
    "undefined target": (["target=score", "interpolant=linear"], ["Score", "Linear", "gamma"]),
    "missing file": (
        ["data=arrays", "data.x1=no/such.npy", "source=gaussian"],
        ["no data file at 'no/such.npy'", ".npy or .npz"],
    ),
    "missing checkpoint": (["ckpt_path=no/such.ckpt"], ["no checkpoint", "'no/such.ckpt'"]),
    "wrong dim": (["dim=3"], ["dim=3", "(2,)"]),
    "missing value": (["data=arrays", "source=gaussian"], ["'data.x1'", "data.x1=..."]),
    "epochs without length": (["trainer.max_epochs=3"], ["max_epochs=3", "steps_per_epoch"]),
    "unknown trainer key": (["trainer.presicion=16"], ["'presicion'", "'precision'"]),
    "no such device": (["trainer.accelerator=tpux"], ["tpux"]),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_told_in_one_sentence(cli, capsys, kind):
    overrides, words = MISTAKES[kind]
    said = refusal(cli, capsys, *overrides)
    for word in words:
        assert word in said, said
    assert not re.search(r"\{|\bobject_type\b|full_key|hydra\.", said), "no insides of Hydra"


def test_a_damaged_checkpoint_is_told(cli, capsys, tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    assert "bad.ckpt" in refusal(cli, capsys, "ckpt_path=bad.ckpt")


def test_a_checkpoint_of_another_model_is_told(cli, capsys):
    cli("experiment=cfm", "network.width=16", "network.depth=3")
    for key, other in (("width", 32), ("depth", 4), ("depth", 2)):
        sizes = {"width": 16, "depth": 3} | {key: other}
        overrides = [f"network.{k}={v}" for k, v in sizes.items()]
        said = refusal(cli, capsys, "experiment=cfm", *overrides, "ckpt_path=run/model.ckpt")
        assert "run/model.ckpt" in said
        assert "model.process.network." in said


def test_a_mistake_ends_the_process_with_one_line(tmp_path):
    done = subprocess.run(
        command(tmp_path / "run", "coupling=exactot"), capture_output=True, text=True,
        cwd=tmp_path, env=ENVIRONMENT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("genflow: there is no coupling called 'exactot'")
    assert done.stdout == ""


def test_a_traceback_can_be_had(cli, monkeypatch):
    monkeypatch.setenv("GENFLOW_TRACEBACK", "1")
    with pytest.raises(ValueError, match="MLP"):
        cli("dim=3")


def test_a_diverging_run_is_told(cli, capsys, tmp_path):
    said = refusal(cli, capsys, "optimizer.lr=1e30", "callbacks.checkpoint.every=1")
    assert re.search(r"the loss is (inf|nan) at step 1", said)
    assert (tmp_path / "run" / "last.ckpt").is_file()
    assert not (tmp_path / "run" / "model.ckpt").exists()


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        command(folder, *QUIET, "trainer=ddp", "steps=6", "experiment=otcfm"), capture_output=True,
        text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert genflow.load(folder / "model.ckpt").sample(3).shape == (3, 2)
    assert done.stdout.count("Sample from it") == 1
    assert not list(folder.rglob("*.partial"))
