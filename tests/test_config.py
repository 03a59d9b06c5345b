"""Every YAML composes, builds what it says, and every experiment trains and loads."""

import inspect
import json
import os
import subprocess
import sys

import matplotlib.image
import pytest
import torch
from configs import CONF, EXPERIMENTS, OPTIONS, QUIET, TINY, composed, data_file, parts, plain
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import genflow
from genflow import specs
from genflow.training.cli import run

NODES = {"callback": "callbacks"}
"""Where a group lies in the configuration, if not under its own name."""
ONLY_PARTS = ("trainer", "logger", "callback", "optimizer", "scheduler", "experiment")
"""Groups of objects that are no genflow parts and describe no model."""
LAW = [(g, o) for g, o in OPTIONS if g not in ONLY_PARTS]


def node_of(tmp_path, group: str, option: str):
    """The composed node of one option of one group."""
    extra = []
    if (group, option) == ("data", "arrays"):
        extra = [f"data.x1={data_file(tmp_path)}"]
    if group == "target" and option in ("score", "noise", "drift"):
        extra = ["interpolant=brownian_bridge", "time.margin=0.01"]
    place = "callback@callbacks" if group == "callback" else group
    if group == "callback" and option != "default":
        cfg = composed(tmp_path)
        return cfg, cfg.callbacks[option]
    cfg = composed(tmp_path, f"{place}={option}", *extra)
    return cfg, cfg[NODES.get(group, group)]


def needs(node) -> None:
    """Skip what this machine cannot build."""
    target = plain(node).get("_target_", "") if node is not None else ""
    if target.endswith("WandbLogger"):
        pytest.importorskip("wandb")
    if target.endswith("TensorBoardLogger"):
        pytest.importorskip("tensorboard")
    if node is not None and node.get("accelerator") == "gpu" and not torch.cuda.is_available():
        pytest.skip("trainer=gpu needs a GPU")


@pytest.mark.parametrize(("group", "option"), LAW)
def test_a_part_describes_itself_as_its_yaml(tmp_path, group, option):
    _, node = node_of(tmp_path, group, option)
    resolved = plain(node)
    made = instantiate(node, _convert_="all")
    assert genflow.spec(made) == resolved
    assert genflow.spec(specs.build(resolved)) == resolved, "load builds the same without Hydra"


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if (g, o) not in LAW])
def test_everything_else_builds(tmp_path, group, option):
    if group == "experiment":
        cfg = composed(tmp_path, f"experiment={option}")
        instantiate(cfg.datamodule, _convert_="all")
        instantiate(cfg.training, _convert_="all")
        return
    _, node = node_of(tmp_path, group, option)
    needs(node)
    made = None if node is None else instantiate(node, _convert_="all")
    if option == "none":
        assert made is None
    elif group == "optimizer":
        optimizer = made([torch.nn.Parameter(torch.ones(2))])
        assert optimizer.param_groups[0]["lr"] == node.lr
    elif group == "scheduler":
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
        made(optimizer).step()
    elif group == "callback" and option != "default":
        for key, value in plain(node).items():
            if key not in ("_target_", "refresh_rate"):
                assert getattr(made, key) == value


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_keys_are_arguments_one_to_one(tmp_path, group, option):
    if group == "experiment":
        cfg, node = composed(tmp_path, f"experiment={option}"), None
    else:
        cfg, node = node_of(tmp_path, group, option)
    del cfg["folder"]
    whole = plain(OmegaConf.create({"node": node}) if node is not None else cfg) if node else {}
    if node is None:  # experiments and options that set null change the whole
        cfg.folder = str(tmp_path)
        whole = plain(cfg)
    seen = 0
    for path, found in parts(whole):
        if not found["_target_"].startswith("genflow."):
            continue
        arguments = set(inspect.signature(get_class(found["_target_"])).parameters)
        assert set(found) - {"_target_"} == arguments, f"{path}: {found['_target_']}"
        seen += 1
    assert seen or group in ONLY_PARTS


def test_every_class_of_a_role_has_a_yaml(tmp_path):
    targets = set()
    for file in CONF.rglob("*.yaml"):
        found = OmegaConf.load(file)
        targets |= {n["_target_"] for _, n in parts(OmegaConf.to_container(found))}
    roles = ("coupling", "distance", "interpolant", "solver", "source", "target", "time", "transform")
    for role in roles:
        module = getattr(__import__(f"genflow.{role}"), role)
        for name in module.__all__:
            part = getattr(module, name)
            made = (
                isinstance(part, type) and part.__bases__ != (object,) and part.__mro__[1] is not tuple
            )
            if (
                made
                and not inspect.isabstract(part)
                and "ABC" not in [b.__name__ for b in part.__bases__]
            ):
                assert f"genflow.{role}.{name}" in targets, f"{name} has no YAML in conf/{role}"


KEYS = {
    "w2", "w2_euler5", "path_energy", "ess", "train_seconds", "seed", "solver", "nfe", "ema",
    "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains an experiment once; returns its folder."""
    base, done = tmp_path_factory.mktemp("experiments"), {}

    def train(name: str):
        if name not in done:
            done[name] = base / name
            run(composed(base / name, f"experiment={name}", *TINY, *QUIET))
        return done[name]

    return train


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore:.*stopped after .* updates.*:RuntimeWarning")
def test_every_experiment_trains(trained, name):
    folder = trained(name)
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers.keys() >= KEYS
    assert (numbers["steps"], numbers["seed"], numbers["samples"]) == (5, 0, 64)
    assert 0 < numbers["ess"] <= 1
    assert matplotlib.image.imread(folder / "samples.png").std() > 0.01
    config = OmegaConf.load(folder / "config.yaml")
    assert not OmegaConf.missing_keys(config)
    assert config.steps == 5
    # the file is the run: what it says of the model is what the checkpoint says
    content = torch.load(folder / "model.ckpt", weights_only=True)
    assert content["spec"] == plain(config.model)


LOAD = """
import sys, torch, genflow
for path in sys.argv[1:]:
    model = genflow.load(path)
    draw = torch.Generator().manual_seed(0)
    x = model.sample(7, steps=2, generator=draw)
    assert x.shape[0] == 7 and bool(torch.isfinite(x).all()), path
    print(path, *x.shape)
heavy = {"lightning", "hydra", "omegaconf", "pyro", "ot", "sklearn", "torchmetrics", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.filterwarnings("ignore:.*stopped after .* updates.*:RuntimeWarning")
def test_torch_alone_loads_every_experiment(trained, tmp_path):
    files = [str(trained(name) / "model.ckpt") for name in EXPERIMENTS]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *files], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n")) == len(files) + 1


def test_a_written_config_is_the_run_again(trained, tmp_path):
    first = trained("cfm")
    again = OmegaConf.load(first / "config.yaml")
    text = (first / "config.yaml").read_text().replace(str(first), str(tmp_path))
    assert "${" not in text
    run(OmegaConf.create(text))
    left, right = (torch.load(f / "model.ckpt", weights_only=True) for f in (first, tmp_path))
    assert again.seed == 0
    assert all(torch.equal(v, right["state_dict"][k]) for k, v in left["state_dict"].items())


def test_overrides_reach_every_place(tmp_path):
    cfg = composed(tmp_path, "sigma=0.5", "seed=7", "dim=2", "coupling=sinkhorn",
                   "interpolant=brownian_bridge", "target=drift", "gamma=brownian")  # fmt: skip
    assert cfg.loss.coupling.epsilon == 0.5  # 2 sigma^2
    assert cfg.loss.interpolant.sigma == cfg.loss.target.sigma == 0.5
    assert cfg.training.seed == cfg.datamodule.seed == 7


def test_the_event_shape_comes_from_the_file(tmp_path):
    cfg = composed(tmp_path, "data=arrays", f"data.x1={data_file(tmp_path)}", "source=gaussian")
    assert cfg.network.dim == cfg.source.dim == [3]
