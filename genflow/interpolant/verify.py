"""A check of one's own schedules: rates against autograd, ends, widths and samples."""

from __future__ import annotations

import torch
from torch import Tensor

from genflow.interpolant.affine import Linear
from genflow.interpolant.base import Affine, Coefficients
from genflow.interpolant.gamma import Gamma
from genflow.tensors import expand

RATES = {"dalpha": "alpha", "dbeta": "beta", "dgamma": "gamma"}
NEAR = 1e-8
"""Distance from an end where ``gamma_dgamma`` must be close to its value at the end."""
CLOSE = 1e-2
"""How close, relative to its size: the rate of ``gamma^2`` may have a root in it, but no jump."""


def verify(path: Affine | Gamma, tolerance: float = 1e-8) -> dict[str, float]:
    r"""Check an interpolant or width of one's own; all that a training or a solver relies on.

    >>> errors = verify(Linear())

    Rates and ``gamma_dgamma`` are compared with autograd in float64 at times inside (0, 1), the ends
    with ``alpha(0) = beta(1) = 1``, ``alpha(1) = beta(0) = 0``, ``gamma(0) = gamma(1) = 0``. A constant
    width may stay positive at the ends. Where ``alpha`` is zero throughout and ``independent`` is true,
    the path is one-sided (``beta(0) = gamma(1) = 0``, ``beta(1) = gamma(0) = 1``) or, with
    ``beta(0) = 1``, a mirror. Everything must be finite in float32 and float64, ends included, the
    width positive inside, ``stochastic`` say whether there is one, and ``sample`` return
    ``alpha x0 + beta x1 + gamma noise`` with its rate.

    Args:
        path: an affine interpolant, or a width.
        tolerance: on errors relative to one plus the largest value, in float64.

    Returns:
        The largest error of each check, by name.

    Raises:
        ValueError: naming everything that is wrong, where in time it is worst, and what it must be.
    """
    if not isinstance(path, Affine | Gamma):
        raise ValueError(
            f"verify({path!r}): give an affine interpolant or a width, made or subclassed from "
            "genflow.interpolant"
        )
    affine = Linear(gamma=path) if isinstance(path, Gamma) else path
    errors: dict[str, float] = {}
    wrong = _finite(affine)
    if not wrong:  # nothing can be compared with what is no number
        for found, words in (_rates(affine), _ends(affine), _width(affine), _samples(affine)):
            errors |= found
            wrong += [words[name] for name, error in found.items() if not error <= tolerance]
    if wrong:
        words = f"verify({path}): " + "; ".join(wrong)
        if isinstance(path, Gamma):
            words = words.replace(f"stochastic is {affine.stochastic}", f"zero is {path.zero}")
        raise ValueError(words)
    return errors


Report = tuple[dict[str, float], dict[str, str]]
"""Errors by name, and what to say of each if it is too large."""


def _inside() -> Tensor:
    # no simple fractions: a schedule in pieces has its kinks there
    return torch.linspace(0.0013, 0.9989, 397, dtype=torch.float64)


def _finite(path: Affine) -> list[str]:
    wrong = []
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.0, 1.0, 0.5, 1e-7, 0.3], dtype=dtype)
        c = path.coefficients(t)
        if len(c) != len(Coefficients._fields):
            return [f"coefficients gives {len(c)} values, must be {', '.join(Coefficients._fields)}"]
        for name, value in zip(Coefficients._fields, c):
            if value.shape != t.shape or value.dtype != dtype:
                wrong.append(
                    f"{name} is {tuple(value.shape)} {value.dtype} for times {tuple(t.shape)} {dtype}, "
                    "must be the same"
                )
            elif not value.isfinite().all():
                worst = float(t[~value.isfinite()][0])
                wrong.append(f"{name} is not finite at t = {worst:g} in {dtype}")
    return wrong


def _rates(path: Affine) -> Report:
    t = _inside().requires_grad_()
    with torch.enable_grad():
        c = path.coefficients(t)
        values = {rate: getattr(c, value) for rate, value in RATES.items()}
        values["gamma_dgamma"] = c.gamma**2 / 2
        slopes = {rate: _slope(value, t) for rate, value in values.items()}
    errors, words = {}, {}
    for rate, slope in slopes.items():
        of = RATES.get(rate, "gamma^2 / 2")
        if slope is None:
            errors[rate] = float("inf")
            words[rate] = (
                f"{of} changes with t in a way that autograd cannot see, must be made by torch"
            )
            continue
        found = getattr(c, rate).detach()
        gap = (found - slope).abs() / (1 + slope.abs().max())
        k = int(gap.argmax())
        errors[rate] = float(gap[k])
        words[rate] = (
            f"{rate} is {float(found[k]):.6g} at t = {float(t.detach()[k]):.4g}, must be the "
            f"derivative {float(slope[k]):.6g} of {of}"
        )
    return errors, words


def _slope(value: Tensor, t: Tensor) -> Tensor | None:
    slope = None
    if value.requires_grad:
        slope = torch.autograd.grad(value.sum(), t, retain_graph=True, allow_unused=True)[0]
    if slope is None and bool((value == value[0]).all()):  # a constant
        return torch.zeros_like(value)
    return slope


def _ends(path: Affine) -> Report:
    t = torch.tensor([0.0, 1.0, NEAR, 1 - NEAR], dtype=torch.float64)
    c = Coefficients(*(v.detach() for v in path.coefficients(t)))
    inner = [v.detach() for v in path.coefficients(_inside())[:3]]
    want = {"alpha": (1.0, 0.0), "beta": (0.0, 1.0), "gamma": (0.0, 0.0)}
    kind = ""
    if path.independent and not inner[0].any():
        mirror = float(c.beta[0]) > 0.5
        kind = " on a mirror" if mirror else " on a one-sided path"
        want = {"alpha": (0.0, 0.0), "beta": (float(mirror), 1.0), "gamma": (float(not mirror), 0.0)}
    elif bool((inner[2] == inner[2][0]).all()):  # a constant width blurs both ends alike
        want["gamma"] = (float(inner[2][0]),) * 2
    errors, words = {}, {}
    for name, values in want.items():
        for end, value in enumerate(values):
            found, key = float(getattr(c, name)[end]), f"{name}({end})"
            errors[key] = abs(found - value)
            words[key] = f"{key} is {found:.6g}, must be {value:g}{kind}"
    product = c.gamma_dgamma
    for end in (0, 1):
        key = f"gamma_dgamma({end})"
        at, near = float(product[end]) + 0.0, float(product[end + 2])  # no minus zero
        errors[key] = 0.0 if abs(at - near) <= CLOSE * (1 + abs(near)) else abs(at - near)
        words[key] = (
            f"{key} is {at:.6g} but {near:.6g} close by, must be its limit: give the product in closed "
            "form, not as gamma * dgamma"
        )
    return errors, words


def _width(path: Affine) -> Report:
    t = torch.cat([torch.zeros(1), _inside(), torch.ones(1)])
    errors, words = {}, {}
    wide = path.coefficients(_inside()).gamma.detach()
    stated = bool(path.stochastic)
    errors["stochastic"] = float(stated != bool(wide.any()))
    words["stochastic"] = f"stochastic is {stated} but the largest gamma is {float(wide.max()):.6g}"
    for dtype in (torch.float32, torch.float64):
        width = path.coefficients(t.to(dtype)).gamma.detach()
        below = width < 0
        below[1:-1] |= (width[1:-1] <= 0) & stated
        k = int(torch.where(below, width, torch.inf).argmin())
        name = "positive" if dtype == torch.float64 else "positive_float32"
        errors[name] = float(below.any())
        words[name] = (
            f"gamma is {float(width[k]):.6g} at t = {float(t[k]):.4g} in {dtype}, must be positive "
            "inside (0, 1) and never negative"
        )
    return errors, words


def _samples(path: Affine) -> Report:
    draw = torch.Generator().manual_seed(0)
    t = torch.cat([torch.tensor([0.0, 1.0, 0.5]), torch.rand(13, generator=draw)]).double()
    x0, x1, z = torch.randn(3, len(t), 1, 2, 2, generator=draw, dtype=torch.float64)
    sample = path.sample(t, x0, x1, generator=draw)
    again = path.sample(t, x0, x1, noise=z)
    c = Coefficients(*(expand(v.detach(), x1) for v in path.coefficients(t)))
    gaps = {
        "sample": [s.x - (c.alpha * x0 + c.beta * x1 + c.gamma * s.noise) for s in (sample, again)],
        "sample_rate": [s.rate - (c.dalpha * x0 + c.dbeta * x1) for s in (sample, again)],
    }
    what = {"sample": "alpha x0 + beta x1 + gamma noise", "sample_rate": "dalpha x0 + dbeta x1"}
    errors, words = {}, {}
    for name, (first, second) in gaps.items():
        gap = torch.maximum(first.abs(), second.abs()).detach().flatten(1).amax(1)
        k = int(gap.argmax())
        errors[name] = float(gap[k])
        words[name] = (
            f"the {'rate' if name == 'sample_rate' else 'x'} of sample() is off {what[name]} by "
            f"{float(gap[k]):.3g} at t = {float(t[k]):.4g}"
        )
    return errors, words
