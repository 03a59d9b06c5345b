"""What solves a multi-marginal bridge for its reference as it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genflow.loss.base import Learner, Loss
from genflow.loss.rounds import rounds
from genflow.process import MultiMarginalBridge


class Projection(Loss):
    """The step of a bridge towards its marginals. It has no gradients: the bridge holds the
    solution."""

    @abstractmethod
    def project(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> Tensor:
        """Solve the prepared bridge, in place; returns the objective, a scalar."""

    def check(self, learner: Learner) -> None:
        if not isinstance(learner, MultiMarginalBridge):
            raise ValueError(
                f"{type(self).__name__} solves a MultiMarginalBridge, not a {type(learner).__name__}: "
                f"use process=multi_marginal_bridge"
            )

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Solve the bridge, and note it as an iteration.

        Args:
            learner: a ``MultiMarginalBridge`` that knows its times.
            xs: whole snapshots ``x0 (N0, *d), ..., xK (NK, *d)``, of any sizes.
            cond: refused: a bridge has no conditions.
            generator: where all draws come from.

        Returns:
            The objective, a scalar in nats.

        Raises:
            ValueError: for another learner, conditions, or data that do not fit it.
        """
        self.check(learner)
        if cond is not None:
            raise ValueError(f"{type(self).__name__}: a bridge has no conditions; leave cond out")
        learner.prepare(*xs)
        objective = self._advance(learner, generator)
        learner.record(float(objective))
        return objective

    def _advance(self, bridge: MultiMarginalBridge, generator: torch.Generator | None) -> Tensor:
        """One outer iteration on a prepared bridge."""
        return self.project(bridge, generator)

    def fit(
        self,
        bridge: MultiMarginalBridge,
        *xs: Tensor,
        times: Sequence[float] | None = None,
        weights: Sequence[Tensor | None] | None = None,
        iterations: int = 1,
        heldout: Mapping[float, Tensor] | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> MultiMarginalBridge:
        """Advance a bridge without Lightning.

        Args:
            bridge: what is fitted, in place.
            xs: whole snapshots ``(N_k, *d)``.
            times: of the snapshots, where the bridge does not know them.
            weights: how much each row counts, ``(N_k,)`` or ``None`` for each snapshot.
            iterations: how many to make, on top of those made.
            heldout: snapshots that are not fitted, by their times; the bar shows the mean exact W1.
            generator: where all draws come from.
            progress: show a bar.

        Returns:
            The bridge.
        """
        self.check(bridge)
        known = bridge.times or ([0.0, 1.0] if len(xs) == 2 else None)
        times = known if times is None else list(map(float, times))
        if times is None:
            raise ValueError(
                f"{type(self).__name__}.fit has {len(xs)} snapshots but no times: give times=[...], "
                f"one for each"
            )
        if times != bridge.times or weights is not None:  # else masses that are known stay
            bridge.observe(times, weights)

        def advance() -> float:
            return float(self(bridge, *xs, generator=generator))

        rounds(bridge, advance, iterations, heldout, progress)
        return bridge
