"""The layers of the package: imports point left, and heavy packages stay out of the core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import genflow

ROOT = Path(genflow.__file__).parent
LAYERS = [
    {"tensors", "checks", "version", "seeds", "plot"},
    {"specs", "plot_flow", "plot_images"},
    {"interpolant"},
    {"checkpoint", "coupling", "time", "network", "source", "transform", "directions"},
    {"target", "process", "variate"},
    {"solver", "distance", "plot_parameters"},
    {"model", "diagnostics", "flow", "plot_bridge", "plot_light"},
    {"oracle"},
    {"loss", "population"},
    {"data"},
    {"training"},
]
LEVEL = {name: k for k, names in enumerate(LAYERS) for name in names}
HEAVY = {
    "hydra", "lightning", "matplotlib", "omegaconf", "ot", "pyro", "scipy", "sklearn", "torchdiffeq",
    "torchmetrics",
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def role(path):
    """``coupling`` for both ``genflow/coupling/exact.py`` and ``genflow/coupling.py``."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def modules(node):
    """Names that an import statement imports, ``genflow.x`` spelt out."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        own = node.module == "genflow"
        return [f"genflow.{alias.name}" for alias in node.names] if own else [node.module]
    return []


def at_import_time(tree):
    """Statements that run when the module is imported: everything outside function bodies."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import_time(node)


def misplaced(source, own):
    """Imports of genflow that do not point left of ``own``."""
    found = [name.split(".") for node in ast.walk(ast.parse(source)) for name in modules(node)]
    roles = {parts[1] for parts in found if parts[0] == "genflow" and len(parts) > 1}
    return sorted(r for r in roles - {own} if LEVEL[r] >= LEVEL[own])


def heavy(source):
    """Heavy packages that are loaded at import time."""
    nodes = at_import_time(ast.parse(source))
    return sorted({name.split(".")[0] for node in nodes for name in modules(node)} & HEAVY)


def test_every_module_has_a_layer():
    assert {role(f) for f in FILES} - {"__init__"} <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left(path):
    if role(path) != "__init__":
        assert misplaced(path.read_text(), role(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_stay_out_of_the_core(path):
    if role(path) != "training":
        assert heavy(path.read_text()) == []


def test_the_layer_tests_can_fail():
    assert misplaced("def f():\n    from genflow.model import Generator", "coupling") == ["model"]
    assert misplaced("from genflow import loss", "solver") == ["loss"]
    assert heavy("try:\n    import ot.lp\nexcept ImportError:\n    ot = None") == ["ot"]
    assert heavy("class A:\n    from scipy import stats") == ["scipy"]
    assert heavy("def f():\n    import ot") == []


CORE = "genflow.loss, genflow.coupling, genflow.distance, genflow.model, genflow.data, genflow.oracle"


@pytest.mark.parametrize("names", ["genflow", "genflow.loss", CORE])
def test_the_core_loads_torch_alone(names):
    code = f"import {names}, sys; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
