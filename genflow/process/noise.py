r"""How much noise a stochastic interpolant is sampled with, :math:`\epsilon(t)`.

Every :math:`\epsilon(t) \ge 0` passes the same laws, so it is chosen when sampling, and may be lowered
where a learned score cannot be trusted. Only the ratio :math:`\epsilon/\gamma` meets the learned noise,
and it never divides by zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

Epsilon = float | str | Callable[[Tensor], Tensor | float]
"""A number, ``"gamma"``, ``"gamma_squared"``, or a function of times ``(B,)``."""

NAMED = ("gamma", "gamma_squared")


def check_epsilon(epsilon: Epsilon) -> Epsilon:
    """Refuse what is no amount of noise; a tensor of one number becomes that number.

    Raises:
        ValueError: for negative numbers, numbers that are not finite, and unknown names.
    """
    if isinstance(epsilon, Tensor) and epsilon.ndim == 0:
        epsilon = epsilon.item()
    if callable(epsilon) or (isinstance(epsilon, str) and epsilon in NAMED):
        return epsilon
    number = isinstance(epsilon, Real) and not isinstance(epsilon, bool)
    if not number or not math.isfinite(epsilon) or epsilon < 0:
        raise ValueError(
            f"epsilon={epsilon!r}: it must be a finite number >= 0, 'gamma', 'gamma_squared', or a "
            "function of the time"
        )
    return epsilon if type(epsilon) is int else float(epsilon)  # numpy's own cannot be saved


def check_values(epsilon: Epsilon, times: Tensor) -> None:
    """Refuse a function that is negative or not finite somewhere on ``times (B,)``, or fails there.

    Raises:
        ValueError: with the time and the value.
    """
    if not callable(epsilon):
        return
    try:
        values = torch.as_tensor(epsilon(times), dtype=times.dtype).expand(times.shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "epsilon must take a tensor of times (B,) and give a number or (B,) of them, by torch's "
            f"functions (torch.where instead of if): {str(error).splitlines()[0]}"
        ) from error
    bad = ~(values.isfinite() & (values >= 0))
    if bool(bad.any()):
        where = int(bad.nonzero()[0])
        raise ValueError(
            f"epsilon({float(times[where]):g}) = {float(values[where]):g}: epsilon must be finite and "
            ">= 0 at every time"
        )


def amount(epsilon: Epsilon, t: Tensor, gamma: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    r""":math:`\epsilon` and :math:`\epsilon/\gamma` at times ``t (B,)`` of widths ``gamma (B,)``.

    Where the width is below ``floor``, numbers and functions are lowered with its square: the pull of
    the score on data without spread, :math:`\epsilon/\gamma^2`, then stays bounded.
    """
    if epsilon == "gamma":
        return gamma, torch.ones_like(gamma)
    if epsilon == "gamma_squared":
        return gamma**2, gamma
    value = epsilon(t) if callable(epsilon) else epsilon
    wide = gamma.clamp_min(floor)
    ratio = torch.as_tensor(value, dtype=t.dtype, device=t.device) / wide * (gamma / wide)
    return ratio * gamma, ratio
