"""A few gradient steps of the reference towards the bridges."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genflow.checks import count, positive
from genflow.loss.updates import Update, regression
from genflow.process import MultiMarginalBridge


@dataclass(frozen=True)
class Gradient(Update):
    r"""Steps of a new Adam towards the drift of the bridges, all samples at once, as iterative
    reference refinement was published with (Shen, Berlinghieri & Broderick 2024).

    It suits families with many parameters, such as networks. It is a partial step: no parameter moves
    by much more than ``steps * lr`` in what the family keeps, which is the logarithm of rates that
    are positive (the published code moves the rates themselves). A law of the parameters enters as the
    prior of as many particles as a snapshot has.

    After ``IPF`` the targets are forward differences of whole trajectories, as published: they carry
    noise of variance :math:`\sigma^2/h`, so that the error does not tell convergence. After
    ``StaticBridge`` they are the drifts of sampled bridges, without that noise.

    Args:
        steps: of Adam.
        lr: its rate.
        paths: bridges sampled in each interval, after ``StaticBridge``.

    Raises:
        ValueError: for numbers out of range, and where the error stops being finite; the reference
            then is as it was.
    """

    steps: int = 20
    lr: float = 0.05
    paths: int = 256

    def __post_init__(self) -> None:
        count(self, steps=self.steps, paths=self.paths)
        positive(self, lr=self.lr)

    def step(self, bridge: MultiMarginalBridge, generator: torch.Generator | None = None) -> None:
        reference = bridge.reference
        parameters = [p for p in reference.parameters() if p.requires_grad]
        if not parameters:
            return
        before = [p.detach().clone() for p in parameters]
        target = regression(bridge, self.paths, generator=generator)
        share = (target.weight / target.weight.sum() / target.x.shape[1])[:, None]
        # in nats of a snapshot's particles, the mean square is worth this much
        nats = bridge.kept.counts.double().mean() * target.weight.sum() / (2 * bridge.sigma**2)
        nats = nats * target.x.shape[1]
        adam = torch.optim.Adam(parameters, lr=self.lr)
        with torch.enable_grad():
            for _ in range(self.steps):
                adam.zero_grad()
                loss = (share * (reference(target.t, target.x) - target.y).square()).sum()
                loss = loss - reference.log_prior() / nats
                loss.backward()
                adam.step()
            adam.zero_grad()
        if not all(bool(p.isfinite().all()) for p in (loss, *parameters)):
            with torch.no_grad():
                for p, old in zip(parameters, before):
                    p.copy_(old)
            raise ValueError(
                f"Gradient(steps={self.steps}, lr={self.lr:g}): the error of the drift is not finite; "
                "use a smaller lr, or check the reference on the trajectories"
            )
