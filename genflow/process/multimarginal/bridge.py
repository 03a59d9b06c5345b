"""A bridge through snapshots of a population at several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from genflow.checks import count, positive
from genflow.process.base import Process
from genflow.process.multimarginal.interval import Interval
from genflow.process.multimarginal.ready import (
    check_reference,
    check_snapshots,
    check_times,
    check_weights,
)
from genflow.process.multimarginal.state import Kept
from genflow.process.multimarginal.trajectories import Trajectories
from genflow.process.reference import Reference


class MultiMarginalBridge(Trajectories, Process):
    r"""The path law with given marginals at given times that is nearest to a reference,
    :math:`\min_{Q} KL(Q\,\|\,P_\theta)`, and the reference that is nearest to it in turn (Shen,
    Berlinghieri & Broderick 2024, "Multi-marginal Schrödinger bridges with iterative reference
    refinement").

    The bridge holds the state: snapshots, reference, solution, and the trace of iterations. A loss
    moves it on: ``StaticBridge`` and ``IPF`` solve it for the reference as it is,
    ``ReferenceRefinement`` refines the reference too. Once solved by plans, drift and transitions are
    known at any state without a network; past the last snapshot the reference runs on by itself.

    ``sigma`` is known and never learned: path laws of different volatility are infinitely far apart.

    >>> bridge = MultiMarginalBridge(LotkaVolterra(), sigma=0.1, times=[0, 2, 4])  # doctest: +SKIP
    >>> ReferenceRefinement().fit(bridge, x0, x1, x2)  # doctest: +SKIP
    >>> bridge.trajectories(), bridge.reference.numbers()  # doctest: +SKIP

    Args:
        reference: family of drifts.
        sigma: diffusion coefficient of all path laws, per square root of the users' time; positive.
        times: of the marginals, rising; ``None`` takes those of the data.
        steps: of the grid of each interval.
        regressor: for ``IPF``: a learner with ``fit(t, x, y)`` such as ``GaussianProcess``; each
            interval gets two copies, one a direction.

    Raises:
        ValueError: for ``sigma`` that is not positive, or times that do not rise.
    """

    def __init__(
        self,
        reference: Reference,
        sigma: float,
        times: Sequence[float] | None = None,
        steps: int = 50,
        regressor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(reference, Reference):
            raise TypeError(
                f"MultiMarginalBridge(reference={reference!r}): reference must be a family such as "
                "LotkaVolterra(); for a network take Learned(network, dim)"
            )
        positive(self, sigma=sigma)
        count(self, 2, steps=steps)
        self.reference, self.sigma, self.steps = reference, sigma, steps
        self.regressor, self.kept = regressor, Kept()
        self.forwards, self.backwards = nn.ModuleList(), nn.ModuleList()
        self.times: list[float] | None = None
        self._weights: list[Tensor | None] | None = None
        self._solved_for: list[Tensor] | None = None
        self._stated = False
        if times is not None:
            self.observe(times)
            self._stated = False

    def observe(
        self, times: Sequence[float], weights: Sequence[Tensor | None] | None = None
    ) -> MultiMarginalBridge:
        """Set the clock, and how much the rows of each snapshot count.

        Args:
            times: of the marginals, rising.
            weights: ``(N_k,)`` for each marginal, positive; ``None`` counts all rows alike.
        """
        known, self.times = self.times, check_times(times)
        if known not in (None, self.times):
            self.kept.clear()
        self.span = (self.times[0], self.times[-1])
        self._weights, self._stated = check_weights(weights), True
        if self.regressor is not None and len(self.forwards) != len(self.times) - 1:
            intervals = range(len(self.times) - 1)
            self.forwards = nn.ModuleList(deepcopy(self.regressor) for _ in intervals)
            self.backwards = nn.ModuleList(deepcopy(self.regressor) for _ in intervals)
        return self

    def prepare(self, *xs: Tensor) -> MultiMarginalBridge:
        """Keep the snapshots ``(N_k, *d)``, after a look at whether the reference can run on them.

        Raises:
            ValueError: for fewer than two, sizes that do not fit, or a family that gives wrong shapes.
            FloatingPointError: for one that gives values that are not finite, naming the state.
        """
        if self.times is None and len(xs) == 2:
            self.observe((0.0, 1.0))
        try:
            flat = check_snapshots(self, xs, self._weights)
        except ValueError:
            self._weights, self._stated = None, False  # of no use to another call
            raise
        place = next((p.device for p in self.reference.parameters()), flat[0].device)
        flat = [x.to(place) for x in flat]
        check_reference(self.reference, self.times, flat)
        # what was solved on the same rows is still true, also with the masses of a file
        if not self.kept.holds(flat, self._weights, self._stated):
            self.kept.keep(flat, self.times, self._weights)
        return self

    @property
    def iterations(self) -> int:
        """Outer iterations made so far."""
        return 0 if self.kept.trace is None else len(self.kept.trace)

    @property
    def history(self) -> list[dict[str, Any]]:
        """After each iteration: ``objective`` and ``parameters``, a flat list in the order of
        ``reference.values()``."""
        rows = [] if self.kept.trace is None else self.kept.trace.tolist()
        return [{"objective": r[0], "parameters": r[1:]} for r in rows]

    def record(self, objective: float) -> None:
        """Note the end of an outer iteration."""
        values = [v.detach().double().flatten() for v in self.reference.values().values()]
        start = torch.tensor([objective], dtype=torch.float64, device=self.kept.points.device)
        row = torch.cat([start, *values])[None]
        past = self.kept.trace
        self.kept.trace = row if past is None else torch.cat([past, row])

    def settle(self, how: int) -> None:
        """Note that plans or drifts (``state.PLANS``, ``state.DRIFTS``) solve the bridge for the
        reference as it is."""
        self.kept.solved.fill_(how)
        self._solved_for = [p.detach().clone() for p in self.reference.parameters()]

    @property
    def solved(self) -> bool:
        """Whether plans solve it for the reference as it is, or drifts were learned."""
        if self.kept.by_drifts or not self.kept.by_plans:
            return self.kept.by_drifts
        known = self._solved_for  # of a file: that of its reference
        now = self.reference.parameters()
        return known is None or all(torch.equal(old.to(p), p) for old, p in zip(known, now))

    def _check_solved(self) -> None:
        super()._check_solved()
        if not self.solved:
            raise RuntimeError(
                "MultiMarginalBridge: the reference has changed since its bridges were solved; solve "
                "them for it by StaticBridge().fit(bridge, *snapshots)"
            )

    def intervals(self) -> list[Interval]:
        """Pairs of neighbouring snapshots under the reference as it is.

        Raises:
            RuntimeError: before ``prepare``.
        """
        if self.kept.points is None:
            raise RuntimeError(
                "MultiMarginalBridge has seen no snapshots yet: call prepare(x0, ..., xK), or fit of "
                "a loss"
            )
        found = []
        for k, span in enumerate(zip(self.times[:-1], self.times[1:])):
            ends = [self.kept.rows(name, j) for name in ("points", "masses") for j in (k, k + 1)]
            found.append(Interval(self.reference, self.sigma, *ends, span))
        return found

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def reversible(self) -> bool:
        return True

    def forward(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.drift(t, x, cond)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return self.sigma * dw

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        held = {
            int(k[len(prefix) :].split(".")[1])
            for k in state_dict
            if k.startswith(f"{prefix}forwards.")
        }
        if held and self.regressor is not None and len(self.forwards) != len(held):
            self.forwards = nn.ModuleList(deepcopy(self.regressor) for _ in held)
            self.backwards = nn.ModuleList(deepcopy(self.regressor) for _ in held)
        self._solved_for = None
        super()._load_from_state_dict(state_dict, prefix, *rest)
        times = state_dict.get(f"{prefix}kept.times")
        if times is not None and times.tolist() != self.times:
            if self.times is not None:
                raise ValueError(
                    f"MultiMarginalBridge has the times {self.times}, but the state is of a bridge of "
                    f"the times {times.tolist()}; make it with these, or with times=None"
                )
            self.observe(times.tolist())
            self._stated = False

    def _apply(self, fn: Callable[[Tensor], Tensor], *rest: Any) -> MultiMarginalBridge:
        # everything is computed in float64, whatever the dtype of the model around it
        def kept(x: Tensor) -> Tensor:
            found = fn(x)
            narrowed = x.dtype == torch.float64 and found.dtype != x.dtype
            return x.to(found.device) if narrowed else found

        return super()._apply(kept, *rest)
