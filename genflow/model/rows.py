"""How many rows are asked for, and which of them run together."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.source import Source


def align(where: str, cond: Any, device: torch.device, **given: Any) -> tuple[int, Tensor | None]:
    """The number of rows that all arguments agree on, and the condition of each.

    Args:
        where: names the caller in messages.
        cond: conditions, one a row, or a single label for all rows.
        device: where the conditions go.
        given: ``n``, a number, or tensors by name; ``None`` where absent.

    Raises:
        ValueError: if they differ, or none tells.
    """
    cond = None if cond is None else torch.as_tensor(cond, device=device)
    sizes = {k: v if k == "n" else len(v) for k, v in given.items() if v is not None}
    sizes = {k if k == "n" else f"len({k})": v for k, v in sizes.items()}
    if cond is not None and cond.ndim > 0:
        sizes["len(cond)"] = len(cond)
    if not sizes:
        names = [*given, "cond"]
        raise ValueError(
            f"{where} needs {', '.join(names[:-1])} or {names[-1]} to know how many samples to draw"
        )
    if len(set(sizes.values())) > 1:
        stated = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"{where}: sizes differ: {stated}; they must be equal")
    size = next(iter(sizes.values()))
    if not hasattr(size, "__index__") or isinstance(size, bool) or size < 1:
        raise ValueError(f"{where}: n must be a whole number >= 1, got {size!r}")
    n = operator.index(size)
    return n, cond.expand(n) if cond is not None and cond.ndim == 0 else cond


def batches(n: int, batch_size: int | None, progress: bool, unit: str = "sampling") -> Sequence[slice]:
    """Rows that run together.

    Raises:
        ValueError: for a ``batch_size`` that is no positive whole number.
    """
    if batch_size is None:
        return [slice(0, n)]
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"sample: batch_size must be a whole number >= 1, got {batch_size!r}")
    found = [slice(k, k + batch_size) for k in range(0, n, batch_size)]
    if progress:
        from tqdm.auto import tqdm

        found = tqdm(found, desc=unit, unit="batch")
    return found


def refuse_options(model: object, does: str, **options: Any) -> None:
    """Refuse options of ``sample`` that a model has no use for.

    Args:
        model: which model.
        does: what it does instead of following a process.
        options: as they were given; ``None`` and ``False`` are absent.

    Raises:
        ValueError: naming those that are set.
    """
    names = [k for k, v in options.items() if v is not None and v is not False]
    if names:
        raise ValueError(
            f"sample: {type(model).__name__} {does}: leave {', '.join(names)} out, which belong to "
            "models that follow a process"
        )


def around(grid: Tensor) -> Tensor:
    """A grid and its midpoints: where solvers look."""
    return torch.cat([grid, (grid[1:] + grid[:-1]) / 2])


def check_event(name: str, x: Tensor, source: Source) -> None:
    """Refuse what is no batch of events like those of the source.

    Raises:
        ValueError: with what is allowed.
    """
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a tensor (n, *d) of at least one row, got {got}")
    if source.shape is not None and tuple(x.shape[1:]) != tuple(source.shape):
        raise ValueError(
            f"{name} has event shape {tuple(x.shape[1:])}, but the model was made for "
            f"{tuple(source.shape)}"
        )
