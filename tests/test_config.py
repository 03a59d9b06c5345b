"""Every YAML composes, builds what it says, and every experiment trains and loads."""

import importlib
import inspect
import json
import os
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from configs import CONF, EXPERIMENTS, OPTIONS, QUIET, TINY, composed, data_file, parts, plain
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import genflow
from genflow import specs
from genflow.data.snapshots import find_files
from genflow.training.cli import run

OTHERS = ("trainer", "logger", "callback", "optimizer", "scheduler")
"""Groups of objects that are no genflow parts and describe no model."""
EMPTY = (*OTHERS, "tilt", "variate", "reference", "projection", "update")
"""Groups that may be left out."""
NONE = [(g, o) for g, o in OPTIONS if o == "none" and g in EMPTY]
PARTS = [(g, o) for g, o in OPTIONS if g not in (*OTHERS, "experiment") and (g, o) not in NONE]
REST = [(g, o) for g, o in OPTIONS if g in OTHERS and (g, o) not in NONE]


def node_of(tmp_path, group: str, option: str):
    """The node of one option of one group, in a whole configuration."""
    if group == "callback":
        found = composed(tmp_path).callbacks
        if option not in (*found, "default"):  # one that only some experiments take
            found = composed(tmp_path, f"+callback@callbacks.{option}={option}").callbacks
        return found if option == "default" else found[option]
    if group == "distance":
        return composed(tmp_path, f"distance@metrics.w2={option}").metrics.w2
    extra = {
        ("data", "arrays"): [f"data.x1={data_file(tmp_path)}"],
        ("data", "snapshots"): [f"data.path={snapshot_file(tmp_path)}"],
        ("network", "unet"): ["data=digits"],
        ("network", "guided_unet"): ["data=digits"],
        ("process", "reversed_geometric"): ["interpolant=geometric_brownian"],
        ("source", "log_normal"): ["interpolant=geometric_brownian"],
        ("loss", "explicit_score_matching"): ["interpolant=geometric_brownian"],
        ("loss", "implicit_score_matching"): ["interpolant=geometric_brownian"],
    }.get((group, option), [])
    return composed(tmp_path, f"{group}={option}", *extra)[group]


def snapshot_file(folder):
    """A file for ``data=snapshots``."""
    np.savez(folder / "x.npz", **{f"x{k}": np.eye(20, 3) for k in range(3)})
    return folder / "x.npz"


def image_files(folder):
    """Small IDX files of images in ten classes, so that these experiments run wherever tests do."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, stem in enumerate(("train", "t10k")):
        pixels = np.random.default_rng(k).integers(0, 256, (100, 28, 28), dtype=np.uint8)
        labels = np.arange(100, dtype=np.uint8) % 10
        for name, values in (
            (f"{stem}-images-idx3-ubyte", pixels),
            (f"{stem}-labels-idx1-ubyte", labels),
        ):
            head = np.array([0x800 + values.ndim, *values.shape], dtype=">i4").tobytes()
            (folder / name).write_bytes(head + values.tobytes())


def mirrored(resolved) -> int:
    """Asserts that keys are constructor arguments, one to one; returns for how many nodes."""
    found = [(p, n) for p, n in parts(resolved) if n["_target_"].startswith("genflow.")]
    for path, node in found:
        signature = inspect.signature(get_class(node["_target_"])).parameters.values()
        # a module without __init__ inherits nn.Module's *args, **kwargs, which it refuses
        arguments = [v.name for v in signature if v.kind not in (v.VAR_POSITIONAL, v.VAR_KEYWORD)]
        if "_partial_" in node:  # completed by Training, with what stands first
            arguments = ["_partial_", *arguments[1:]]
        assert set(node) - {"_target_"} == set(arguments), f"{path}: {node['_target_']}"
    return len(found)


@pytest.mark.parametrize(("group", "option"), PARTS)
def test_a_part_describes_itself_as_its_yaml(tmp_path, group, option):
    node = node_of(tmp_path, group, option)
    resolved = plain(node)
    assert mirrored(resolved) or option == "none"
    assert genflow.spec(instantiate(node, _convert_="all")) == resolved
    assert genflow.spec(specs.build(resolved)) == resolved, "load builds the same without Hydra"


@pytest.mark.parametrize(("group", "option"), REST)
def test_everything_else_builds(tmp_path, group, option):
    if option == "wandb":
        pytest.importorskip("wandb", reason="logger=wandb needs wandb")
    if (group, option) == ("trainer", "gpu") and not torch.cuda.is_available():
        pytest.skip("trainer=gpu needs a GPU")
    node = node_of(tmp_path, group, option)
    assert mirrored(plain(node)) or group != "callback"
    made = instantiate(node, _convert_="all")
    if group == "optimizer":
        optimizer = made([torch.nn.Parameter(torch.ones(2))])
        assert optimizer.param_groups[0]["lr"] == node.lr
    elif group == "scheduler":
        assert made(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)).lr_lambdas
    elif group == "callback" and option not in ("default", "progress"):
        assert all(getattr(made, k) == v for k, v in plain(node).items() if k != "_target_")


@pytest.mark.parametrize(("group", "option"), NONE)
def test_none_is_nothing(tmp_path, group, option):
    assert composed(tmp_path, f"{group}=none")[group] is None


def test_every_reference_and_update_has_a_yaml():
    files = [OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.rglob("*.yaml")]
    targets = {node["_target_"] for content in files for _, node in parts(content)}
    for package, bases in (("process", ["Reference"]), ("loss", ["Projection", "Update"])):
        module = importlib.import_module(f"genflow.{package}")
        bases = tuple(getattr(module, base) for base in bases)
        found = [v for v in map(vars(module).get, module.__all__) if isinstance(v, type)]
        final = {v for v in found if issubclass(v, bases) and not inspect.isabstract(v)}
        assert final and {f"genflow.{package}.{v.__name__}" for v in final} <= targets


ROLES = (
    "coupling", "directions", "distance", "interpolant", "solver", "source", "target", "time",
    "transform", "variate",
)  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_every_class_of_a_role_has_a_yaml(role):
    files = [OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.rglob("*.yaml")]
    targets = {node["_target_"] for content in files for _, node in parts(content)}
    module = importlib.import_module(f"genflow.{role}")
    base = next(v for k, v in vars(module).items() if k.lower() == role)  # Coupling, Distance, ...
    found = [v for v in map(vars(module).get, module.__all__) if isinstance(v, type)]
    final = [v for v in found if issubclass(v, base) and not inspect.isabstract(v)]
    assert final
    assert {f"genflow.{role}.{v.__name__}" for v in final} <= targets


KEYS = {"w2", "w2_floor", "train_seconds", "seed", "solver", "nfe", "ema", "versions"}
POSITIVE = {"ks", "nonpositive"}
"""Of processes on positive numbers, where the law of the data is known."""
TILT = {"ess", "kl_tilt_x0", "kl_tilt_x1", "tv_tilt_x0", "mean_shift_x1", "std_shift_x0", "note"}
"""Of losses that couple."""
LIGHT = {"test_objective"}
"""Of light bridges."""
HELDOUT = {"heldout_times", "heldout_w1"}
"""Of series with snapshots that are not trained on."""
BRIDGE = {"heldout_w2", "parameter_count", "objective", "cpu_seconds"}
"""Of bridges through many snapshots."""


def tiny(folder, name: str) -> list[str]:
    """Overrides that make an experiment small."""
    cfg = composed(folder, f"experiment={name}")
    if "image_quality" in cfg.callbacks:  # its classifier takes minutes; it has tests of its own
        image_files(folder)
        shrunk = ["callbacks.image_quality=null", "network.network.width=8", "solver.steps=3"]
        return [*TINY, *shrunk, *([f"data.folder={folder}"] if "folder" in cfg.data else [])]
    if "Geometric" in cfg.process._target_:
        return [*TINY, "solver.steps=3"]
    if cfg.batch_size is not None:
        return TINY
    whole = [v for v in TINY if not v.startswith("batch_size")]
    few = ["data.n=10"] if "n" in cfg.data else ["data.most=40"]
    if OmegaConf.is_missing(cfg.data, "path"):  # a file of the user's own
        folder.mkdir(parents=True, exist_ok=True)
        few = [f"data.path={snapshot_file(folder)}", "data.most=10", "dim=3", "data.heldout=[1.0]"]
    if "grid" in (cfg["update"] or {}):
        few += ["update.grid=4", "update.steps=1"]
    return [*whole, *few, "process.steps=5", "callbacks.heldout.every=5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains an experiment once; returns its folder."""
    base, done = tmp_path_factory.mktemp("experiments"), {}

    def train(name: str):
        if name not in done:
            small = tiny(base / name, name)
            cfg = composed(base / name, f"experiment={name}", *small, *QUIET)
            if missing := absent(cfg):
                pytest.skip(missing)
            done[name] = base / name
            run(cfg)
        return done[name]

    return train


def absent(cfg) -> str:
    """What to say of an experiment whose data are not on this machine; nothing if they are."""
    try:
        return "" if "path" not in cfg.data or find_files(cfg.data.path) else "empty"
    except FileNotFoundError as error:
        return str(error)


def no_json(constant: str):
    raise ValueError(f"{constant} is a number that other readers of JSON refuse")


def keyed(node):
    """All ``(key, value)`` of nested plain data."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield key, value
        yield from keyed(value)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore:.*stopped after .* updates.*:RuntimeWarning")
def test_every_experiment_trains(trained, name):
    folder = trained(name)
    numbers = json.loads((folder / "metrics.json").read_text(), parse_constant=no_json)
    assert numbers.keys() >= KEYS
    assert (numbers["steps"], numbers["seed"]) == (5, 0)
    assert matplotlib.image.imread(folder / "samples.png").std() > 0.01
    config = OmegaConf.load(folder / "config.yaml")
    few = config.data.get("n") or config.data.get("most") or 64  # of snapshots
    assert numbers["samples"] == min(64, few)
    bridge = "MultiMarginal" in config.model.get("process", {}).get("_target_", "")
    assert numbers.keys() >= BRIDGE if bridge else not numbers.keys() & {"heldout_w2", "objective"}
    follows = "process" in config.model and not bridge
    coupling = config.loss.get("coupling", {"_target_": "Chained"})["_target_"]
    coupled = not coupling.endswith("Chained")  # of many marginals, nothing is said of tilts
    assert ("w2_euler5" in numbers) == follows
    positive = "Geometric" in config.model.get("process", {}).get("_target_", "")
    assert ("path_energy" in numbers) == (follows and not positive and config.callbacks.report.paths)
    known = positive and config.data.get("x1", {}).get("_target_", "").endswith("LogNormalMixture")
    assert numbers.keys() >= POSITIVE if known else not numbers.keys() & POSITIVE
    assert numbers.keys() >= TILT if coupled else not numbers.keys() & (TILT - {"ess"})
    assert not coupled or 0 < numbers["ess"] <= 1
    light = follows and config.model.process["_target_"].endswith("LightBridge")
    assert numbers.keys() >= LIGHT if light else not numbers.keys() & LIGHT
    assert numbers.keys() >= HELDOUT if config.data.get("heldout") else not numbers.keys() & HELDOUT
    assert not OmegaConf.missing_keys(config)
    # training, datamodule and callbacks lie in train.yaml: no group has them
    assert mirrored(plain(config)) > 10
    assert config.steps == 5
    classes = [value for key, value in keyed(plain(config.network)) if key == "classes"]
    assert ("class_accuracy" in numbers) == (classes != [None])
    # the file is the run: what it says of the model is what the checkpoint says
    content = torch.load(folder / "model.ckpt", weights_only=True)
    source = config.model.get("source") or {"_target_": ""}
    if source["_target_"].endswith("Empirical"):  # its points came from the data
        content["spec"]["source"]["points"] = None
    if bridge:  # and so did its clock
        assert len(content["spec"]["process"]["times"]) >= 2
        content["spec"]["process"]["times"] = None
    assert content["spec"] == plain(config.model)


LOAD = """
import sys, torch, genflow
for path in sys.argv[1:]:
    model = genflow.load(path)
    draw = torch.Generator().manual_seed(0)
    conditional = any(getattr(m, "classes", None) is not None for m in model.modules())
    cond = torch.arange(7) if conditional else None
    options = {"steps": 2} if hasattr(model, "process") else {}
    x = model.sample(7, cond=cond, generator=draw, **options)
    assert x.shape[0] == 7 and bool(torch.isfinite(x).all()), path
    print(path, *x.shape)
heavy = {"lightning", "hydra", "omegaconf", "pyro", "ot", "sklearn", "torchmetrics", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.filterwarnings("ignore:.*stopped after .* updates.*:RuntimeWarning")
def test_torch_alone_loads_every_experiment(trained, tmp_path):
    small = {name: tiny(tmp_path / name, name) for name in EXPERIMENTS}
    here = [k for k, v in small.items() if not absent(composed(tmp_path, f"experiment={k}", *v))]
    files = [str(trained(name) / "model.ckpt") for name in here]
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


def test_the_tilt_shares_the_coupling_of_the_loss(tmp_path):
    cfg = composed(tmp_path, "coupling=gibbs", "coupling.epsilon=0.7", "tilt=resample")
    assert plain(cfg.model.tilt.coupling) == plain(cfg.loss.coupling)
    assert cfg.model.tilt.coupling.epsilon == 0.7
    assert composed(tmp_path, "coupling=gibbs").model.tilt is None


def test_the_event_shape_comes_from_the_file(tmp_path):
    cfg = composed(tmp_path, "data=arrays", f"data.x1={data_file(tmp_path)}", "source=gaussian")
    assert cfg.network.dim == cfg.source.dim == [3]
