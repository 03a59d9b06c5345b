"""The command line: compose the configuration, build the parts, train, report.

``genflow-train`` and ``train.py`` both come here. Mistakes are answered with one sentence before
training starts; errors of a running training keep their traceback.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from genflow.checkpoint import read
from genflow.coupling.sinkhorn import bridge_epsilon
from genflow.data.arrays import event_shape
from genflow.model import Model
from genflow.process.multimarginal.plan import NotConverged
from genflow.training.errors import sentence


def conf_dir() -> Path:
    """The configuration folder: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


OmegaConf.register_new_resolver(
    "event_shape", lambda path, key=None: ListConfig(event_shape(path, key)), replace=True
)
OmegaConf.register_new_resolver("bridge_epsilon", bridge_epsilon, replace=True)
OmegaConf.register_new_resolver("light_epsilon", lambda sigma: sigma**2, replace=True)


def build(cfg: DictConfig) -> tuple[L.LightningModule, L.LightningDataModule, L.Trainer]:
    """Seed, then instantiate the training, its data and its trainer from a composed configuration."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.datamodule, _convert_="all")
    training = instantiate(cfg.training, _convert_="all")
    callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c is not None]
    logger = instantiate(cfg.logger, _convert_="all") if cfg.logger else False
    trainer = instantiate(cfg.trainer, _convert_="all", callbacks=callbacks, logger=logger)
    return training, data, trainer


def run(cfg: DictConfig) -> dict[str, Any]:
    """One run: build, train, and leave everything in the run folder.

    Returns:
        The numbers of the report.
    """
    training = None
    try:
        _check(cfg)
        training, data, trainer = build(cfg)
        folder = Path(cfg.folder)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        if cfg.ckpt_path is not None:
            check_resume(Path(cfg.ckpt_path), training)
        trainer.fit(training, datamodule=data, ckpt_path=cfg.ckpt_path)
    except Exception as error:
        running = training is not None and training.started
        told = (FloatingPointError, NotConverged)
        if running and not training.automatic_optimization:  # a loss that checks what it fits itself
            told = (*told, ValueError)
        _answer(error, cfg, keep_traceback=running and not isinstance(error, told))
    if trainer.is_global_zero:
        _farewell(folder, training.model)
    report = next((c for c in trainer.callbacks if hasattr(c, "metrics")), None)
    return report.metrics if report is not None else {}


def _check(cfg: DictConfig) -> None:
    """What no part checks: the numbers at the root, the file to resume from."""
    known = known_keys()
    for key in map(str, cfg):
        if key not in known and (near := difflib.get_close_matches(key, known, 1, 0.75)):
            raise ValueError(f"there is no '{key}' in the configuration (did you mean '{near[0]}'?)")
    for key, least in (("steps", 1), ("batch_size", 1), ("seed", 0)):
        value = cfg[key]
        if key == "batch_size" and value is None:  # whole snapshots
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
            raise ValueError(f"{key}={value!r}: {key} must be a whole number >= {least}, below 2^32")
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at ckpt_path='{cfg.ckpt_path}'")


def known_keys() -> set[str]:
    """Keys at the root of the shipped configuration; users may add their own."""
    shipped = OmegaConf.load(conf_dir() / "train.yaml")
    groups = [str(next(iter(entry))) for entry in shipped.defaults if isinstance(entry, DictConfig)]
    return {str(key) for key in shipped} | {g.rpartition("@")[2] for g in groups} | {"dim"}


def check_resume(path: Path, training: L.LightningModule) -> None:
    """Refuse a file that this run cannot go on from.

    Raises:
        ValueError: if it is damaged, no checkpoint of a run, or of a model of other shape.
    """
    content = read(path)
    if "loops" not in content:
        raise ValueError(
            f"'{path}' holds a model alone; to resume, name a last.ckpt or model.ckpt of a run"
        )
    here = {name: tuple(v.shape) for name, v in training.state_dict().items()}
    there = {name: tuple(v.shape) for name, v in content["state_dict"].items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name) and not _awaits_data(training, name):
            raise ValueError(
                f"'{path}' is of another model: the shape of '{name}' is {there.get(name, 'absent')} "
                f"there and {here.get(name, 'absent')} here; resume with the overrides of that run "
                "(its config.yaml)"
            )


def _awaits_data(training: L.LightningModule, name: str) -> bool:
    """Whether ``name`` is a buffer that ``prepare`` is yet to fill, or of a part that it sizes."""
    owner, _, buffer = name.rpartition(".")
    for within, module in training.named_modules():
        if getattr(module, "components", None) == "auto" and f"{owner}.".startswith(f"{within}."):
            return True
    try:
        return training.get_submodule(owner)._buffers.get(buffer, name) is None
    except AttributeError:  # one of as many modules as the data have intervals
        lists = ((k, m) for k, m in training.named_modules() if isinstance(m, nn.ModuleList))
        return any(len(m) == 0 and owner.startswith(f"{k}.") for k, m in lists)


def _answer(error: Exception, cfg: DictConfig | None = None, keep_traceback: bool = False) -> None:
    plain = keep_traceback or os.environ.get("GENFLOW_TRACEBACK")
    said = None if plain else sentence(error, () if cfg is None else [str(k) for k in cfg])
    if said is None:
        raise error
    sys.exit(f"genflow: {said}")


def _farewell(folder: Path, model: Model) -> None:
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    print()
    for name in ("samples.png", "flow.gif", "metrics.json", "model.ckpt"):
        if (folder / name).is_file():
            print(f"  {name:<20} {folder / name}")
    print("\nSample from it:\n")
    print("  import genflow")
    print(f"  model = genflow.load({str(folder / 'model.ckpt')!r})")
    print(f"  x = model.sample({min(1000, model.most or 1000)})")


def _quiet() -> None:
    """Silence hints that do not apply: our streams are resumable and come in ready batches."""
    for hint in (
        "does not have many workers",
        "dataloader is not resumable",
        "isinstance.treespec",
        "returned `None`",
    ):
        warnings.filterwarnings("ignore", f".*{hint}.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def main() -> None:
    """Entry point of ``genflow-train`` and ``train.py``."""
    _quiet()
    # Hydra would print its own errors over many lines; like this they come to us
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(run)
    try:
        start()
    except (HydraException, OmegaConfBaseException) as error:
        _answer(error)
