"""Parts as data: any part describes itself as the YAML that makes it, and is rebuilt from it.

The rule that makes this work: **a constructor argument is kept as the attribute of its name.**
Tensors are described by their shape; their numbers travel in the state dict.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

TRUSTED = ("genflow.", "torch.nn.")
"""Prefixes of the classes that :func:`build` makes unless told of more."""


def target_name(cls: type) -> str:
    """The shortest importable name of a class: ``genflow.interpolant.Linear``."""
    parts = cls.__module__.split(".")
    for k in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:k]))
        if getattr(module, cls.__qualname__, None) is cls:
            return ".".join([*parts[:k], cls.__qualname__])
    return f"{cls.__module__}.{cls.__qualname__}"


def spec(part: Any) -> Any:
    """Describe a part as plain data: the resolved YAML that builds it.

    Args:
        part: a module or dataclass of genflow or of a user, or a container of them.

    Returns:
        A dict ``{"_target_": name, argument: value, ...}`` of numbers, strings, lists and dicts.

    Raises:
        TypeError: if a part does not keep an argument under its own name, or keeps a value that
            plain data cannot express.
    """
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, Tensor):
        return list(part.shape)
    if isinstance(part, (nn.ModuleList, list, tuple)) and type(part) is not nn.Sequential:
        return [spec(v) for v in part]
    if isinstance(part, (nn.ModuleDict, Mapping)):
        return {str(k): spec(v) for k, v in part.items()}
    if isinstance(part, types.FunctionType):
        path = f"{part.__module__}.{part.__qualname__}"
        if "<" in path:
            raise TypeError(f"genflow.spec cannot describe {path}: use a function that can be imported")
        return {"_target_": "hydra.utils.get_method", "path": path}
    if isinstance(part, nn.Module):
        return _describe_module(part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        names = [f.name for f in dataclasses.fields(part) if f.init]
        return {"_target_": target_name(type(part))} | {n: spec(getattr(part, n)) for n in names}
    raise TypeError(
        f"genflow.spec cannot describe a {type(part).__name__} ({part!r}): parts are dataclasses or "
        "torch.nn modules that keep their arguments under their own names"
    )


def _describe_module(part: nn.Module) -> dict[str, Any]:
    out: dict[str, Any] = {"_target_": target_name(type(part))}
    if type(part).__init__ is nn.Module.__init__:  # takes no arguments, whatever its signature says
        return out
    from_torch = type(part).__module__.startswith("torch.")
    kept = getattr(part, "config", None)  # where diffusers keeps arguments; it warns of other ways
    kept = kept if isinstance(kept, Mapping) else {}
    for name, parameter in inspect.signature(type(part).__init__).parameters.items():
        if name == "self" or (from_torch and name in ("device", "dtype")):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            out["_args_"] = [spec(child) for child in part.children()]
        elif name in kept:
            out[name] = spec(kept[name])
        elif not hasattr(part, name):
            raise TypeError(
                f"genflow.spec: {type(part).__name__} does not keep its argument '{name}' as an "
                f"attribute; write self.{name} = {name} in __init__"
            )
        elif from_torch and name == "bias":  # torch.nn.Linear(bias=True) keeps a Parameter there
            out[name] = part.bias is not None and part.bias is not False
        else:
            out[name] = spec(getattr(part, name))
    return out


def build(description: Any, trust: Iterable[str] = ()) -> Any:
    """Build a part from :func:`spec` data, from trusted classes alone.

    Args:
        description: what :func:`spec` returned.
        trust: prefixes beyond ``genflow.`` and ``torch.nn.`` whose classes may be built, such as
            ``["mypkg."]``.

    Raises:
        ValueError: if a class lies outside the trusted prefixes, or is no part at all.
    """
    prefixes = (*TRUSTED, *([trust] if isinstance(trust, str) else trust))
    if isinstance(description, Mapping):
        if "_target_" not in description:
            return {k: build(v, trust) for k, v in description.items()}
        arguments = {k: build(v, trust) for k, v in description.items() if k != "_target_"}
        positional = arguments.pop("_args_", [])
        cls = _trusted_class(str(description["_target_"]), prefixes)
        try:
            return cls(*positional, **arguments)
        except TypeError as error:
            raise ValueError(f"the checkpoint does not fit this version's classes: {error}") from error
    if isinstance(description, (list, tuple)):
        return [build(v, trust) for v in description]
    return description


def _trusted_class(name: str, prefixes: tuple[str, ...]) -> type:
    refusal = (
        f"the checkpoint asks for '{name}', which lies outside the trusted prefixes "
        f"{list(prefixes)}; if you trust its author, pass trust=['{name.split('.')[0]}.']"
    )
    if not name.startswith(prefixes):
        raise ValueError(refusal)
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the checkpoint asks for '{name}', which cannot be imported") from error
    # `genflow.specs.importlib.import_module` starts with a trusted prefix too: only classes that
    # were *defined* under one, and that are parts, are called.
    part = isinstance(cls, type) and (issubclass(cls, nn.Module) or dataclasses.is_dataclass(cls))
    if not part or not f"{cls.__module__}.".startswith(prefixes):
        raise ValueError(refusal)
    return cls


def fill(part: Any, before: Any, stored: Any) -> None:
    """Put back what ``prepare`` once chose from data, such as the epsilon of ``Gibbs``.

    Args:
        part: the part to complete, in place.
        before: its :func:`spec` before ``prepare``: only what is ``None`` there is filled, so that
            a value that the user states wins.
        stored: the spec of the prepared part.
    """
    if isinstance(part, Mapping):
        for key in part.keys() & before.keys() & stored.keys():
            fill(part[key], before[key], stored[key])
    elif isinstance(part, (list, tuple)):
        for child, old, new in zip(part, before, stored):
            fill(child, old, new)
    elif dataclasses.is_dataclass(part) and isinstance(stored, Mapping):
        if stored.get("_target_") != before.get("_target_"):  # another part took its place
            return
        # a number chosen under other settings than those stated now is of no use; fitted numbers say
        # themselves what they are good for
        agree = all(stored.get(k) == v for k, v in before.items() if v is not None and _plain(v))
        for field in dataclasses.fields(part):
            old, new = before.get(field.name), stored.get(field.name)
            if old is None and _plain(new) and (agree or isinstance(new, Mapping)):
                found = getattr(part, field.name)
                object.__setattr__(part, field.name, new)
                if isinstance(new, Mapping) and getattr(part, "needs_data", False):
                    object.__setattr__(part, field.name, found)
            elif isinstance(old, (Mapping, list)) and isinstance(new, (Mapping, list)):
                fill(getattr(part, field.name), old, new)


def _plain(value: Any) -> bool:
    """Numbers, words, and containers of them; not the description of a part."""
    if isinstance(value, Mapping):
        return "_target_" not in value and all(v is None or _plain(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(v is None or _plain(v) for v in value)
    return isinstance(value, (bool, int, float, str))
