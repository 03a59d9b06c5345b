"""The true error of a model's fields over time, and what it means for its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from genflow import plot
from genflow.model import Generator
from genflow.model.base import evaluating
from genflow.process import Process

if TYPE_CHECKING:
    from genflow.oracle.exact import Exact

Learner = Generator | Process | Callable[..., Any]
"""A model, its process, or any ``f(t, x)`` that returns a velocity or a dict of fields."""
FIELDS = ("velocity", "rate", "noise", "score", "drift", "denoised", "start")
TIMES = torch.linspace(0.01, 0.99, 25, dtype=torch.float64).tolist()


@dataclass(frozen=True)
class KLBound:
    r"""An upper bound on the KL divergence from the exact law at the last time to a model's.

    The SDE of :math:`b + \epsilon s` with noise :math:`\sqrt{2\epsilon}\,dW` and a constant
    :math:`\epsilon`, started from the exact law, obeys
    :math:`KL \le \int \frac{1}{4\epsilon}E|\delta b + \epsilon\,\delta s|^2 dt` by Girsanov's theorem
    (Albergo, Boffi & Vanden-Eijnden 2023). The integral runs over the times looked at, not beyond
    them. Nothing of the kind holds for the ODE.

    Attributes:
        epsilon: where the bound is smallest.
        bound: its value there, in nats.
        velocity, score, cross: integrals of :math:`E|\delta b|^2`, :math:`E|\delta s|^2` and
            :math:`E\,\delta b\cdot\delta s`, summed over dimensions.
    """

    epsilon: float
    bound: float
    velocity: float
    score: float
    cross: float

    def curve(self, epsilon: Any) -> Any:
        """The bound at other constants, a number or a tensor of them."""
        return (self.velocity / epsilon + 2 * self.cross + epsilon * self.score) / 4

    def by_losses(self, epsilon: Any) -> Any:
        r"""The looser form :math:`\int \Delta L_b/\epsilon + \epsilon\,\Delta L_s`, with the excesses
        of both losses over their minima, each with a factor one half."""
        return (self.velocity / epsilon + epsilon * self.score) / 2


def kl_bound(
    times: Sequence[float], velocity: Sequence[float], score: Sequence[float], cross: Sequence[float]
) -> KLBound:
    r"""The bound with the best constant :math:`\epsilon`.

    Args:
        times: a rising grid.
        velocity, score, cross: :math:`E|\delta b|^2`, :math:`E|\delta s|^2` and
            :math:`E\,\delta b\cdot\delta s` there, summed over dimensions.
    """
    a, b, c = (_integral(times, v) for v in (velocity, score, cross))
    best = math.sqrt(a / b) if b > 0 else (math.inf if a > 0 else 0.0)
    return KLBound(best, max(0.0, (math.sqrt(a * b) + c) / 2), a, b, c)


@dataclass(frozen=True)
class FieldError:
    """How wrong fields are over time.

    Attributes:
        times: where they were compared.
        rms: by field, the root mean square error per dimension at each time.
        relative: by field, the error's :math:`L^2` norm over that of the exact field; infinite where
            the exact field vanishes.
        kl_bound: what the errors mean for the samples of an SDE, for models that know both velocity and
            score (at the best constant epsilon), or a drift (at their own, ``sigma**2 / 2``).
    """

    times: list[float]
    rms: dict[str, list[float]]
    relative: dict[str, list[float]]
    kl_bound: KLBound | None = None

    def numbers(self) -> dict[str, float]:
        """Flat and finite, for ``metrics.json``: by field the means over time, the largest error and
        its time; the bound and its epsilon."""
        found: dict[str, float] = {}
        for name, values in self.rms.items():
            worst = max(range(len(values)), key=values.__getitem__)
            relative = [v for v in self.relative[name] if math.isfinite(v)]
            found[f"{name}_rms"] = sum(values) / len(values)
            found[f"{name}_rms_worst"] = values[worst]
            found[f"{name}_worst_time"] = self.times[worst]
            found[f"{name}_relative"] = sum(relative) / len(relative) if relative else math.inf
        if self.kl_bound is not None:
            found |= {"kl_bound": self.kl_bound.bound, "kl_bound_epsilon": self.kl_bound.epsilon}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def figure(self, title: str = "") -> Any:
        """Both errors over time, one line a field; a matplotlib figure."""
        return plot.field_error(self.times, self.rms, self.relative, title)


@torch.no_grad()
def measure(
    exact: Exact,
    model: Learner,
    times: Sequence[float] | Tensor | None,
    n: int,
    cond: Tensor | int | None,
    generator: torch.Generator | None,
) -> FieldError:
    """Compare a model with exact fields in its own space; see ``Exact.field_error``."""
    grid = TIMES if times is None else torch.as_tensor(times, dtype=torch.float64).tolist()
    learner = model.process if isinstance(model, Generator) else model
    _check_path(exact, learner)
    sigma = float(getattr(learner, "sigma", 0.0))
    like = _like(learner)
    rows = None if cond is None else torch.as_tensor(cond, device=like.device)
    rows = None if rows is None else rows.expand(n, *rows.shape)
    parts = []
    with evaluating(learner):
        for t in grid:
            x = exact.sample(t, n, generator).to(like)
            time = torch.full((n,), t, dtype=x.dtype, device=x.device)
            found = _ask(learner, time, x, rows)
            # float64 in, float64 out: errors far below the precision of the model's can be told
            true = exact.fields(time, x.double(), found, sigma)
            parts.append(_squares(found, true))
    rms = {k: [math.sqrt(p.error[k] / exact.law.dim) for p in parts] for k in parts[0].error}
    relative = {k: [_ratio(p.error[k], p.size[k]) for p in parts] for k in parts[0].error}
    return FieldError(grid, rms, relative, _bound(exact, grid, parts, sigma))


@dataclass(frozen=True)
class _Squares:
    """Mean squares at one time, summed over dimensions: errors, exact fields, and the mean product
    of the velocity's error with that of the noise or score."""

    error: dict[str, float]
    size: dict[str, float]
    product: dict[str, float]


def _squares(found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> _Squares:
    def mean(a: Tensor, b: Tensor) -> float:
        return float((a * b).flatten(1).sum(1).mean())

    wrong = {k: found[k].double() - true[k] for k in found}
    moved = wrong.get("velocity")
    product = {} if moved is None else {k: mean(v, moved) for k, v in wrong.items()}
    return _Squares(
        {k: mean(v, v) for k, v in wrong.items()}, {k: mean(true[k], true[k]) for k in found}, product
    )


def _bound(exact: Exact, times: list[float], parts: list[_Squares], sigma: float) -> KLBound | None:
    known = parts[0].error.keys()
    if "drift" in known and sigma > 0 and len(times) > 1:
        total, epsilon = _integral(times, [p.error["drift"] for p in parts]), sigma**2 / 2
        return KLBound(epsilon, total / (4 * epsilon), total, 0.0, 0.0)
    name = next((k for k in ("noise", "score") if k in known), None)
    if "velocity" not in known or name is None:
        return None
    # the score of a learnt noise is -noise / gamma, which at the very ends is nothing
    width = exact.interpolant.coefficients(torch.tensor(times, dtype=torch.float64)).gamma.tolist()
    inside = [k for k, g in enumerate(width) if g > 0]
    if len(inside) < 2:
        return None
    factor = [-1 / width[k] if name == "noise" else 1.0 for k in inside]
    return kl_bound(
        [times[k] for k in inside],
        [parts[k].error["velocity"] for k in inside],
        [f**2 * parts[k].error[name] for f, k in zip(factor, inside)],
        [f * parts[k].product[name] for f, k in zip(factor, inside)],
    )


def _check_path(exact: Exact, learner: Learner) -> None:
    """Refuse a process that keeps another interpolant: its fields are not those of this path."""
    own = getattr(learner, "interpolant", None)
    if own is None or not hasattr(own, "coefficients"):
        return
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    paths = zip(own.coefficients(t), exact.interpolant.coefficients(t))
    if not all(torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6) for a, b in paths):
        raise ValueError(
            f"field_error: the model was trained on {own}, but this oracle is for {exact.interpolant}; "
            "give Exact the interpolant of the model"
        )


def _ask(learner: Learner, t: Tensor, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
    ask = learner.known if isinstance(learner, Process) else learner
    answer = ask(t, x) if cond is None else ask(t, x, cond)
    answer = answer if isinstance(answer, Mapping) else {"velocity": answer}
    found = {k: v for k, v in answer.items() if k in FIELDS}
    if not found:
        raise ValueError(
            f"field_error: the model returns {sorted(answer)}, but the exact fields are "
            + ", ".join(FIELDS)
        )
    for name, value in found.items():
        if value.shape != x.shape:
            raise ValueError(
                f"field_error: the model's {name} has shape {tuple(value.shape)} for points of shape "
                f"{tuple(x.shape)}; give Exact the shape of events, Exact(..., shape=...)"
            )
    return found


def _like(learner: Learner) -> Tensor:
    """Where a learner lives and how precise it is: float64 for modules without numbers of their own,
    and torch's default for what is no module."""
    if isinstance(learner, nn.Module):
        for tensor in (*learner.parameters(), *learner.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.zeros((), dtype=torch.float64)
    return torch.zeros(())


def _ratio(error: float, size: float) -> float:
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return math.sqrt(error / size)


def _integral(times: Sequence[float], values: Sequence[float]) -> float:
    grid, heights = (torch.as_tensor(v, dtype=torch.float64) for v in (times, values))
    return float(torch.trapezoid(heights, grid))
