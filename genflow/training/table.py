"""The numbers of a report for the eye."""

from __future__ import annotations

from typing import Any


def table(metrics: dict[str, Any]) -> str:
    """The numbers of a report as aligned lines."""
    lines = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            value = _words(value)
        if value is not None:
            lines.append(
                f"  {name:<20} {value:.4g}" if isinstance(value, float) else f"  {name:<20} {value}"
            )
    return "\n".join(lines)


def _words(value: dict[str, Any]) -> str | None:
    """A part by its class, parameters as ``name=value``; nothing of other mappings."""
    if "_target_" in value:
        return value["_target_"].rpartition(".")[2]
    plain = {k: v for k, v in value.items() if isinstance(v, float)}
    return ", ".join(f"{k}={v:.4g}" for k, v in plain.items()) or None
