"""Self-describing checkpoints: a spec, weights and a version; read by torch alone, no pickle runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genflow.specs import build, spec
from genflow.version import __version__

MODEL_PREFIX = "model."
"""Lightning's file names the weights of ``Training.model`` with this prefix."""


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write a model to one file that :func:`load` reads back with torch alone.

    Args:
        model: any model made of genflow parts, ``torch.nn`` modules and own modules that keep
            their constructor arguments under their own names.
        path: the file to write; its folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"spec": spec(model), "state_dict": model.state_dict(), "genflow": __version__}
    # a killed save must not leave half a file, nor two processes write into one
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    torch.save(content, partial)
    os.replace(partial, path)


def load(
    path: str | os.PathLike,
    *,
    trust: Iterable[str] = (),
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Rebuild a model from a file of :func:`save` or of a training run.

    Args:
        path: ``*.ckpt`` of a run, or what :func:`save` wrote.
        trust: further prefixes of classes that may be built, such as ``["mypkg."]``.
        device: where the model goes.

    Returns:
        The model in eval mode, in the dtype it was saved in; the averaged weights if it was
        trained with EMA.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no genflow checkpoint or asks for an untrusted class.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at '{path}'")
    content = read(path)
    model, state = build(content["spec"], trust), _model_state(content)
    if not isinstance(model, nn.Module):
        raise ValueError(f"'{path}' is no genflow checkpoint: its spec describes no module")
    floating = next((v.dtype for v in state.values() if v.is_floating_point()), None)
    if floating is not None:
        model.to(floating)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in state and state[name].is_floating_point():  # parts may keep a dtype of their own
            tensor.data = tensor.data.to(state[name].dtype)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in '{path}' do not fit its spec: {error}") from error
    return model.to(device).eval()


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, checked."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle meet foreign bytes with any kind of error
        raise ValueError(
            f"'{path}' is no genflow checkpoint: it is damaged or holds pickled objects, which "
            "are never run"
        ) from error
    if not isinstance(content, dict) or not {"spec", "state_dict"} <= content.keys():
        raise ValueError(
            f"'{path}' is no genflow checkpoint: it has no 'spec' and 'state_dict'; write one "
            "with genflow.save(model, path)"
        )
    return content


def _model_state(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = content["state_dict"]
    if "pytorch-lightning_version" not in content:
        return state
    return {k[len(MODEL_PREFIX) :]: v for k, v in state.items() if k.startswith(MODEL_PREFIX)}
