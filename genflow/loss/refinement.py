"""Iterative reference refinement."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genflow.loss.projection import Projection
from genflow.loss.static_bridge import StaticBridge
from genflow.loss.updates import LeastSquares, Update
from genflow.process import MultiMarginalBridge


@dataclass(frozen=True)
class ReferenceRefinement(Projection):
    r"""Alternates the two projections of :math:`\min_{Q,\theta} KL(Q\,\|\,P_\theta)` over path laws
    with the given marginals (Shen, Berlinghieri & Broderick 2024): bridges for the reference, and the
    reference for the bridges.

    One call is one outer iteration: the reference moves, and the bridges are solved for it, so that the
    learner is always solved for the reference that it holds. The first call also solves the bridges of
    the reference's start, which for one close to zero is the vanilla Schrödinger bridge.

    The objective is :math:`\min_Q KL(Q\,\|\,P_\theta)` up to a constant of the data: it compares
    families and tells when to stop, without held-out snapshots. It is no likelihood: see
    ``genflow.population`` for the uncertainty of parameters.

    >>> loss = ReferenceRefinement(StaticBridge(), LeastSquares())  # doctest: +SKIP
    >>> loss.fit(bridge, *snapshots, times=times, iterations=10)  # doctest: +SKIP

    Args:
        projection: what solves the bridges.
        update: what moves the reference.
    """

    projection: Projection = field(default_factory=StaticBridge)
    update: Update = field(default_factory=LeastSquares)

    def __post_init__(self) -> None:
        for name, role in (("projection", Projection), ("update", Update)):
            part = getattr(self, name)
            if not isinstance(part, role):
                raise TypeError(
                    f"ReferenceRefinement({name}={part!r}): {name} must be a {role.__name__}"
                )

    def check(self, learner) -> None:
        super().check(learner)
        self.projection.check(learner)

    def project(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> Tensor:
        return self.projection.project(bridge, generator)

    def _advance(self, bridge: MultiMarginalBridge, generator: torch.Generator | None) -> Tensor:
        if not bridge.solved:
            self.project(bridge, generator)
        before = [p.detach().clone() for p in bridge.reference.parameters()]
        try:
            self.update.step(bridge, generator)
            return self.project(bridge, generator)
        except Exception:  # the bridge stays solved for the reference that it holds
            with torch.no_grad():
                for p, old in zip(bridge.reference.parameters(), before):
                    p.copy_(old)
            raise
