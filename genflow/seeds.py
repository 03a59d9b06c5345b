"""Random streams that depend on their name alone, so that step ``k`` of a run can be repeated."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(*name: int | str) -> int:
    """A 63-bit seed for the stream called ``name``, such as ``(seed, "loss", step, rank)``."""
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*name: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator at the start of the stream called ``name``."""
    return torch.Generator(device=device).manual_seed(stream_seed(*name))
