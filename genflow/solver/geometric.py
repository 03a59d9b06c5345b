"""Samplers of multiplicative diffusion: one that keeps signs at every step size, one that does not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.checks import count, one_of
from genflow.process import Process, ReversedGeometric
from genflow.process.density import Density
from genflow.process.positive import Logarithm, PositiveProcess
from genflow.solver.base import Field, Solution, Stepper
from genflow.tensors import randn_like

INCREMENTS = ("left", "exact", "ancestral")


def _motion(solver: object, process: object) -> PositiveProcess:
    """The process on positive numbers behind what a solver is given."""
    motion = process.process if isinstance(process, Logarithm) else process
    if isinstance(motion, Density):
        raise ValueError(
            f"{solver} carries no density: for log_prob use RungeKutta(), Heun() or Adaptive()"
        )
    if not isinstance(motion, PositiveProcess):
        raise ValueError(
            f"{type(solver).__name__} runs processes on positive numbers, such as ReversedGeometric; "
            f"this is a {type(process).__name__}: use Euler(), Heun() or StochasticHeun()"
        )
    return motion


def _left(field: Field, s: float, t: float, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Euler-Maruyama with the noise, too, as it is where the step begins."""
    moved = torch.add(x, field.drift(s, x), alpha=t - s)
    return moved + field.noise(s, x, t - s, generator) if field.stochastic else moved


@dataclass(frozen=True)
class DaleLangevin(Stepper):
    r"""The sign-preserving exponential update of multiplicative diffusion (Shetty et al. 2025): over a
    step :math:`\delta`, :math:`X' = X \odot \exp((-\mu + \frac32\sigma^2 + \sigma^2 h)\delta +
    \sigma\sqrt\delta\,\xi)`. Positive at every step size; order one, weakly and strongly.

    Args:
        steps: number of equal steps where no grid is given.
        increments: ``"left"`` is the above; ``"exact"`` takes those of the law,
            :math:`-\Delta M + \Delta V(1 + h) + \sqrt{\Delta V}\xi`; ``"ancestral"`` those of the
            motion pinned to the denoised data (Ho et al. 2020), whose noise is less by the factor
            :math:`V_{t+\delta}/V_t` and whose last step is the denoising itself: no noise is left in
            images, but on data with spread in every direction its error falls more slowly. At
            ``epsilon`` 0 these are the ODE's (ancestral: the deterministic steps of Song et al. 2021,
            "DDIM", good for few steps).

    Raises:
        ValueError: when run, for a process that is not on positive numbers; exact and ancestral
            increments are those of ``ReversedGeometric`` with ``epsilon`` ``None`` or 0.
    """

    steps: int = 250
    increments: str = "left"

    def __post_init__(self) -> None:
        count(self, steps=self.steps)
        one_of(self, INCREMENTS, increments=self.increments)

    def grid(self, process: Process, times=None, reverse: bool = False) -> Tensor:
        left = self.increments == "left"  # which is Euler's step, of a density too
        motion = _motion(self, getattr(process, "process", process) if left else process)
        if not left and not (isinstance(motion, ReversedGeometric) and motion.epsilon in (None, 0)):
            raise ValueError(
                f"DaleLangevin(increments={self.increments!r}) knows those of a ReversedGeometric with "
                "epsilon None or 0; use increments='left'"
            )
        return super().grid(process, times, reverse)

    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        field = Field.of(process)
        if isinstance(field.process, PositiveProcess):  # one step of the states themselves
            chart = field.process.chart()
            inside = Field(chart.process, field.cond, field.backward)
            y = self.step(inside, s, t, chart.into(x), generator)
            field.calls += inside.calls
            return chart.back(y)
        if self.increments == "left":
            return _left(field, s, t, x, generator)
        return self._law_step(field, s, t, x, generator)

    def _law_step(
        self, field: Field, s: float, t: float, y: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        motion = _motion(self, field.process)
        law = motion.interpolant.law(torch.tensor([s, t], dtype=torch.float64))
        (m0, m1), (v0, v1) = law.mean.tolist(), law.variance.tolist()
        gone = v0 - v1
        if t < s and field.stochastic:  # the motion itself, which needs no field
            return y + (m1 - m0) + (-gone) ** 0.5 * randn_like(y, generator)
        field.calls += 1
        score = motion.log_score(Field._rows(s, y), y, field.cond, field.at(s))
        ancestral = self.increments == "ancestral"
        if not field.stochastic:
            near = torch.tensor(1 - motion.closest, dtype=torch.float64)  # where the field was asked
            last = max(v0, float(motion.interpolant.law(near).variance)) ** 0.5
            pull = (v0**0.5 - v1**0.5) * last if ancestral else gone / 2
            return torch.add(y + (m1 - m0), score, alpha=pull)
        moved = torch.add(y + (m1 - m0), score, alpha=gone)
        variance = gone * v1 / v0 if ancestral else gone
        return torch.add(moved, randn_like(y, generator), alpha=variance**0.5)


@dataclass(frozen=True)
class AmbientEuler(Stepper):
    r"""Euler-Maruyama of the states themselves, :math:`X' = X \odot (1 + f\delta +
    \sigma\sqrt\delta\,\xi)`, heedless of signs: a large step may take states to zero or below, where
    the field is asked at their sizes. Needs about :math:`\sigma^2\delta < 0.05`; for comparison with
    :class:`DaleLangevin`.

    The share of coordinates that were lost to zero or below in some step is ``Solution.nonpositive``.

    Args:
        steps: number of equal steps where no grid is given.

    Warns:
        UserWarning: where any are lost, with their share and the remedy.
    """

    steps: int = 250
    charts = False

    def __post_init__(self) -> None:
        count(self, steps=self.steps)

    def grid(self, process: Process, times=None, reverse: bool = False) -> Tensor:
        _motion(self, process)
        return super().grid(process, times, reverse)

    def step(
        self,
        process: Process | Field,
        s: float,
        t: float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        field = Field.of(process)
        moved = _left(field, s, t, x, generator)
        lost = moved <= 0
        field.lost = lost if field.lost is None else field.lost | lost
        return moved

    def _run(self, process: Process, *args, **options) -> Solution:
        found = super()._run(process, *args, **options)
        if found.nonpositive:
            warnings.warn(
                f"AmbientEuler took {found.nonpositive:.3g} of the coordinates to zero or below: use "
                f"more than its {len(found.times) - 1} steps (sigma^2 times the step below 0.05), or "
                "solver=dale_langevin, which keeps them positive at every step size",
                stacklevel=2,
            )
        return found
