"""Every notebook runs from top to bottom, and says the same as the readable .py beside it."""

import shutil
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_script_has_its_notebook():
    assert {p.stem for p in NOTEBOOKS} == {p.stem for p in FOLDER.glob("*.py")} != set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_equals_its_script(path):
    script = jupytext.read(path.with_suffix(".py"))
    assert sources(jupytext.read(path)) == sources(script)


LONG = {"any_amount_of_noise", "when_weights_bend"}
"""Half of the time of all: `make test-slow` runs them."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem in LONG else p for p in NOTEBOOKS],
    ids=lambda p: p.stem,
)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel shows figures inline unless told not to
    shutil.copy(path, tmp_path)
    notebook = jupytext.read(tmp_path / path.name)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises where a cell does
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no figure was shown"
