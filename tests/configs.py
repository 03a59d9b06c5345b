"""Composed configurations for tests of ``conf/``."""

from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from genflow.training.cli import conf_dir

CONF = conf_dir()
OPTIONS = sorted(
    (str(p.parent.relative_to(CONF)), p.stem) for p in CONF.rglob("*.yaml") if p.parent != CONF
)
"""All pairs (group, option)."""
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]
QUIET = ["callbacks.progress=null", "+trainer.enable_progress_bar=false"]
TINY = ["steps=5", "batch_size=32", "callbacks.report.n=64", "callbacks.figures.n=64"]


def composed(folder: Path, *overrides: str) -> DictConfig:
    """The configuration of the command line with these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"folder={folder}", *overrides])


def plain(node) -> object:
    return OmegaConf.to_container(node, resolve=True)


def parts(node, path: str = ""):
    """All ``(path, node)`` of a resolved configuration that make an object."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from parts(child, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for k, child in enumerate(node):
            yield from parts(child, f"{path}[{k}]")


def data_file(folder: Path) -> Path:
    """A file for ``data=arrays``."""
    np.save(folder / "x1.npy", np.random.default_rng(0).normal(size=(100, 3)))
    return folder / "x1.npy"
