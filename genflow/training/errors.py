"""One sentence for each mistake that a user can make before training starts."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterable
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_class
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from genflow.process.multimarginal.plan import NotConverged

SPOKEN = (
    ValueError, TypeError, FileNotFoundError, FloatingPointError, NotConverged,
    MisconfigurationException,
)  # fmt: skip
"""Errors of parts, whose messages already are such sentences."""


def sentence(error: BaseException, groups: Collection[str] = ()) -> str | None:
    """What to tell the user, or ``None`` for an error that deserves its traceback.

    Args:
        error: what was raised.
        groups: keys at the root of the configuration, by which users know its parts.
    """
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", str(error)):
        key = _place(missing.group(1), groups)
        return f"the configuration needs a value for '{key}': add {key}=..."
    if isinstance(error, ConfigCompositionException):
        return _bad_override(error)
    if isinstance(error, InstantiationException):
        return _bad_part(error, groups)
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as an override; write key=value or group=option"
    if inner := re.match(r"\w+ raised while resolving interpolation: (.*)", str(error)):
        return inner.group(1)
    if isinstance(error, (HydraException, OmegaConfBaseException, *SPOKEN)):
        return _one_line(str(error))
    return None


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", "; ", text.strip())


def _close(word: str, allowed: Iterable[str]) -> str:
    allowed = sorted(allowed)
    near = difflib.get_close_matches(word, allowed, 1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"{hint}; allowed: {', '.join(allowed) or 'none'}"


def _missing_option(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or "?"
    group, _, option = str(name).rpartition("/")
    if group and error.options:
        return f"there is no {group} called '{option}'{_close(option, error.options)}"
    return _one_line(str(error))


def _bad_override(error: ConfigCompositionException) -> str:
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    key = str(getattr(cause, "key", "") or "")
    if parent is not None and key and hasattr(parent, "keys"):
        keys = [str(k) for k in parent.keys() if not str(k).startswith("_")]
        full = getattr(cause, "full_key", key)
        where = full.rpartition(".")[0]
        place = f"'{where}' of the configuration" if where else "the configuration"
        return f"there is no '{key}' in {place}{_close(key, keys)}"
    return _one_line(str(error))


def _place(full_key: str, groups: Collection[str]) -> str:
    """``training.model.process.network`` is what the user overrides as ``network``."""
    parts = full_key.split(".")
    starts = [k for k, part in enumerate(parts) if part in groups]
    return ".".join(parts[starts[-1] :]) if starts else full_key


def _bad_part(error: InstantiationException, groups: Collection[str]) -> str:
    """The innermost cause, with the place in the configuration and the arguments allowed there."""
    cause: Any = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error)
    place = re.search(r"full_key: (\S+)", text)
    where = f" (at '{_place(place.group(1), groups)}' of the configuration)" if place else ""
    if isinstance(cause, InstantiationException):
        return _one_line(text)
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    target = re.search(r"target '([\w.]+)'", text)
    if unknown and target:
        allowed = [
            name for name in inspect.signature(get_class(target.group(1))).parameters if name != "self"
        ]
        owner = target.group(1).rpartition(".")[2]
        word = unknown.group(1)
        return f"{owner} has no argument '{word}'{where}{_close(word, allowed)}"
    return f"{_one_line(str(cause))}{where}"
