"""Argument checks that answer bad input in one sentence: what, where, what is allowed."""

from __future__ import annotations

import math
from numbers import Real


def name_of(owner: object) -> str:
    """How a message names what refuses: its class, or a function by the name that is given."""
    return owner if isinstance(owner, str) else type(owner).__name__


def _number(owner: object, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name_of(owner)}({name}={value!r}): {name} must be a finite number")
    return float(value)


def positive(owner: object, **values: float) -> None:
    """Refuse numbers that are not finite and above zero."""
    for name, value in values.items():
        if _number(owner, name, value) <= 0:
            raise ValueError(f"{name_of(owner)}({name}={value!r}): {name} must be positive")


def non_negative(owner: object, **values: float) -> None:
    """Refuse numbers that are negative or not finite."""
    for name, value in values.items():
        if _number(owner, name, value) < 0:
            raise ValueError(f"{name_of(owner)}({name}={value!r}): {name} must be zero or positive")


def between(owner: object, low: float, high: float, **values: float) -> None:
    """Refuse numbers outside the open interval ``(low, high)``."""
    for name, value in values.items():
        if not low < _number(owner, name, value) < high:
            raise ValueError(
                f"{name_of(owner)}({name}={value!r}): {name} must lie strictly between {low} and {high}"
            )


def count(owner: object, least: int = 1, **values: int) -> None:
    """Refuse anything but whole numbers of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"{name_of(owner)}({name}={value!r}): {name} must be a whole number >= {least}"
            )


def one_of(owner: object, allowed: tuple[str, ...], **values: str) -> None:
    """Refuse names outside ``allowed``."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(
                f"{name_of(owner)}({name}={value!r}): {name} must be one of "
                + ", ".join(map(repr, allowed))
            )
