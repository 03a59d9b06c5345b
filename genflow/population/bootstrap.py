"""A parametric bootstrap: fit again what the fitted model makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.population.posterior import Draws
from genflow.process.multimarginal.ipf import clock
from genflow.process.multimarginal.ipf import simulate as euler_maruyama
from genflow.process.reference import Reference
from genflow.source import Source

Fit = Callable[[list[Tensor]], Mapping[str, Any]]
"""Snapshots to estimates by name."""


@dataclass(frozen=True)
class Bootstrap(Draws):
    r"""Estimates from simulated snapshots, and the truth that these have.

    Its intervals are the basic ones: errors of the replicates, taken off the estimate (relative errors
    for parameters named in ``logs``), so that the estimator's bias is taken off too.

    Attributes:
        truth: parameters that the simulations ran with, i.e. the estimates from the data.
        logs: parameters whose errors are relative.
        failed: messages of replicates whose fit raised or was not finite; they are left out.
    """

    truth: dict[str, Tensor]
    logs: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def _ends(self, name: str, tail: float) -> tuple[Any, Any]:
        low, high = (torch.tensor(v, dtype=torch.float64) for v in super()._ends(name, tail))
        truth = self.truth[name]
        if name in self.logs:
            return (truth**2 / high).tolist(), (truth**2 / low).tolist()
        return (2 * truth - high).tolist(), (2 * truth - low).tolist()


def bootstrap(
    fit: Fit,
    reference: Reference,
    sigma: float,
    times: Sequence[float],
    counts: Sequence[int],
    start: Source | Tensor,
    replicates: int = 100,
    dt: float = 0.02,
    generator: torch.Generator | None = None,
) -> Bootstrap:
    """Simulate independent snapshots from a fitted reference, fit each set, collect the estimates.

    Args:
        fit: takes a list of ``K+1`` snapshots ``(n_k, d)``, returns estimates by name; it should start
            where the fit of the data did.
        reference: the fitted family, as it stands.
        sigma: noise per square root of time, positive.
        times: of the snapshots, rising.
        counts: particles of each.
        start: law at ``times[0]``: a source, or rows ``(n, d)`` to draw from with replacement.
        replicates: how many sets.
        dt: step of the Euler-Maruyama simulator, shortened to end at each snapshot.
        generator: where all draws come from.

    Raises:
        ValueError: for counts that do not match, or if fewer than two fits succeed.
    """
    positive("bootstrap", sigma=sigma, dt=dt)
    count("bootstrap", least=2, replicates=replicates)
    if len(counts) != len(times):
        raise ValueError(f"bootstrap: {len(counts)} counts for {len(times)} times; give one for each")
    truth = {k: v.detach().clone().double().cpu() for k, v in reference.values().items()}
    found, failed = [], []
    for _ in range(replicates):
        snapshots = simulate(reference, sigma, times, counts, start, dt, generator)
        try:
            estimate = {k: torch.as_tensor(v).double().cpu() for k, v in fit(snapshots).items()}
        except (ArithmeticError, RuntimeError, ValueError) as error:
            failed.append(str(error))
            continue
        if set(estimate) != set(truth):
            raise ValueError(
                f"bootstrap: fit must return {', '.join(truth)}, got {', '.join(estimate) or 'nothing'}"
            )
        if all(bool(torch.isfinite(v).all()) for v in estimate.values()):
            found.append(estimate)
        else:
            failed.append("estimates are not finite")
    if len(found) < 2:
        raise ValueError(f"bootstrap: {len(failed)} of {replicates} fits failed, e.g. {failed[-1]!r}")
    samples = {name: torch.stack([each[name] for each in found]) for name in truth}
    return Bootstrap(samples, reference.names, truth, reference.positive, tuple(failed))


@torch.no_grad()
def simulate(
    reference: Reference,
    sigma: float,
    times: Sequence[float],
    counts: Sequence[int],
    start: Source | Tensor,
    dt: float = 0.02,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Snapshots ``(n_k, d)`` at ``times``, each an independent batch from ``times[0]`` on."""
    found = []
    for n, stop in zip(counts, times):
        x = _begin(start, n, generator)
        if stop > times[0]:
            grid = clock(float(times[0]), float(stop), dt)
            x = euler_maruyama(reference.drift, x, grid, sigma, generator)[-1]
        found.append(x)
    return found


def _begin(start: Source | Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    if isinstance(start, Source):
        return start.sample(n, generator=generator).double()
    device = start.device if generator is None else generator.device
    chosen = torch.randint(len(start), (n,), generator=generator, device=device)
    return start.detach()[chosen.to(start.device)].double()
