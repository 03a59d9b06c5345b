"""The wheel: complete, and enough to launch a run from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*") if p.is_file())


def test_the_wheel_is_told_to_carry_the_configs():
    tomllib = pytest.importorskip("tomllib")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert wheel["wheel"] == {"packages": ["genflow"], "force-include": {"conf": "genflow/conf"}}
    assert CONFIGS
    assert all(name.endswith(".yaml") for name in CONFIGS)


def call(*command, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, timeout=300,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("genflow-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_code_and_configs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(p.relative_to(ROOT)) for p in (ROOT / "genflow").rglob("*.py")}
    assert names >= code | {f"genflow/{name}" for name in CONFIGS} | {"genflow/py.typed"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"genflow"}


@pytest.mark.slow
def test_the_wheel_launches_from_an_empty_folder(wheel, tmp_path):
    env, empty = tmp_path / "env", tmp_path / "empty"
    empty.mkdir()
    call(sys.executable, "-m", "venv", "--without-pip", env, cwd=tmp_path)
    # what genflow needs is taken from here, behind the environment's own packages
    site = next((env / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = env / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=empty)
    where = call(python, "-c", "import genflow; print(genflow.__file__)", cwd=empty)
    assert Path(where.strip()).is_relative_to(env)
    small = ["steps=5", "callbacks.report.n=64", "hydra.run.dir=out", "experiment=otcfm"]
    said = call(env / "bin" / "genflow-train", *small, cwd=empty)
    assert "model = genflow.load" in said
    assert (empty / "out" / "model.ckpt").is_file()
    assert [p.name for p in empty.iterdir()] == ["out"]
