"""Snapshots that are simulated, so that nothing needs a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from genflow.checks import count, non_negative, positive
from genflow.data.base import Data, Table
from genflow.data.series import Series, check_times
from genflow.process.reference import Reference
from genflow.seeds import stream
from genflow.source import Source

Drift = Callable[[float, Tensor], Tensor]


@dataclass(frozen=True)
class SimulatedSnapshots(Data):
    r"""A population that follows :math:`dX = f(t, X)\,dt + \sigma\,dW`, seen at several times.

    Every snapshot is an independent batch of particles, started anew at the first of ``times`` and run
    by Euler-Maruyama: no particle is seen twice. Draws follow the published benchmarks (Shen,
    Berlinghieri & Broderick 2024, "Multi-marginal Schrödinger bridges with iterative reference
    refinement"): from one stream, a batch of starts that is not used, then for each later training
    snapshot its starts and all its increments; the first snapshot holds the starts of the last one's
    particles. Increments are float32, paths float64. All other snapshots, and the rows of validation
    and test, have streams of their own.

    Args:
        reference: the drift, a :class:`~genflow.process.Reference` or any module ``f(t, x)``.
        start: law of the particles at the first of ``times``.
        times: of the snapshots, rising.
        n: particles of each.
        sigma: diffusion coefficient, zero or positive.
        dt: the longest step.
        train: the snapshots that are marginals, by time (``2.0``) or number; all but ``heldout`` by
            default.
        heldout: snapshots kept to score predictions.
        clip: the least value stored, for coordinates that cannot be negative; paths are not clipped.
        seed: of every stream.

    Raises:
        ValueError: for times as in :class:`~genflow.data.Series`, or a drift of the wrong shape.
        FloatingPointError: where a path stops being finite.
    """

    reference: nn.Module
    start: Source
    times: Sequence[float]
    n: int = 50
    sigma: float = 0.1
    dt: float = 0.02
    train: Sequence[float] | None = None
    heldout: Sequence[float] | None = None
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        count(self, n=self.n)
        count(self, 0, seed=self.seed)
        non_negative(self, sigma=self.sigma)
        positive(self, dt=self.dt)
        check_times(self.times, len(self.times), "SimulatedSnapshots")
        empty = [np.zeros((1, 1))] * len(self.times)
        roles = Series.of(empty, self.times, self.train, self.heldout, "SimulatedSnapshots")
        arrays = self._published(roles.train)
        for k in set(range(len(self.times))) - set(roles.train):
            arrays[k] = self.draw(k, stream(self.seed, "snapshot", k))
        arrays = tuple(arrays[k].numpy() for k in range(len(self.times)))
        series = Series(arrays, roles.times, roles.train, roles.heldout, "SimulatedSnapshots")
        object.__setattr__(self, "series", series)

    def _published(self, train: Sequence[int]) -> dict[int, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        start, found = self._starts(draw), {}
        for k in train:
            if k > 0:
                start = self._starts(draw)
                found[k] = self._carry(start, self.times[k], draw)
        return found | ({0: start.double()} if 0 in train else {})

    def draw(self, k: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh particles ``(n, d)`` of snapshot number ``k``, in float64."""
        return self._carry(self._starts(generator), self.times[k], generator)

    def _starts(self, generator: torch.Generator | None) -> Tensor:
        return self.start.sample(self.n, generator).detach()

    @torch.no_grad()
    def _carry(self, start: Tensor, time: float, generator: torch.Generator | None) -> Tensor:
        """Particles at ``time`` that began as ``start (n, d)``."""
        first, x, drift = self.times[0], start.double(), exact_drift(self.reference)
        steps = math.ceil((time - first) / self.dt - 1e-9)
        dt = (time - first) / max(1, steps)
        noise = torch.randn(len(x), steps, *x.shape[1:], generator=generator) * dt**0.5 * self.sigma
        for s in range(steps):
            moved = drift(first + s * dt, x)
            if moved.shape != x.shape:
                raise ValueError(
                    f"SimulatedSnapshots: {type(self.reference).__name__} gives a drift of shape "
                    f"{tuple(moved.shape)} at states of shape {tuple(x.shape)}; they must be equal"
                )
            x = x + moved * dt + noise[:, s]
        if not bool(x.isfinite().all()):
            raise FloatingPointError(
                f"SimulatedSnapshots: paths of {type(self.reference).__name__} are not finite at time "
                f"{time:g}; take a smaller dt, or a drift that keeps them in bounds"
            )
        return x if self.clip is None or steps == 0 else x.clamp_min(self.clip)

    def marginals(self, split: str) -> tuple[Table, ...]:
        """One table of ``n`` rows for each training snapshot; those of validation and test are fresh
        particles."""
        whole = torch.arange(self.n)
        if split == "train":
            return tuple(Table(self.series.arrays[k], whole) for k in self.series.train)
        if "_fresh" not in self.__dict__:
            object.__setattr__(self, "_fresh", {})
        if split not in self._fresh:
            draws = ((k, stream(self.seed, split, k)) for k in self.series.train)
            self._fresh[split] = tuple(Table(self.draw(k, draw), whole) for k, draw in draws)
        return self._fresh[split]


def exact_drift(reference: nn.Module) -> Drift:
    """The drift with its parameters as they were stated: exp(log(0.4)) is not 0.4 to the last bit."""
    if not isinstance(reference, Reference):
        return reference
    values = {name: value.detach() for name, value in reference.values().items()}
    for name, value in values.items():
        stated = getattr(reference, name, None)
        if stated is not None:
            number = torch.as_tensor(stated, dtype=value.dtype)
            if number.shape == value.shape and torch.allclose(number, value, rtol=1e-12, atol=0):
                values[name] = number
    return lambda t, x: reference.field(t, x, values)
