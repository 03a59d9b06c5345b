"""Log-densities of a model: what it carries from source to data, and at which expansion."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from genflow.checks import count, one_of
from genflow.model.base import Sourced, evaluating
from genflow.model.rows import align, around, batches, check_event
from genflow.process import Epsilon, Process
from genflow.process.density import Density, rademacher
from genflow.solver import RungeKutta, Solver, StochasticHeun

EXACT = 16
"""Dimensions up to which ``divergence="auto"`` is exact."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a density is computed; the arguments of ``Likelihood.log_prob`` of these names."""

    divergence: str = "auto"
    probes: int = 1
    steps: int | None = None
    solver: Solver | None = None
    epsilon: Epsilon | None = None
    paths: int = 1
    differentiable: bool = False

    def __post_init__(self) -> None:
        one_of("log_prob", ("auto", "exact", "hutchinson"), divergence=self.divergence)
        count("log_prob", probes=self.probes, paths=self.paths)
        if self.paths > 1 and not self.epsilon:
            raise ValueError("log_prob: paths average over noise: give an epsilon above zero")
        if self.steps is not None:
            count("log_prob", steps=self.steps)

    def process(self, model: Likelihood) -> Process:
        """The process whose density is asked for.

        Raises:
            NotImplementedError: if it has none that is known, with the reason.
            ValueError: if an epsilon is given to a process that has its own noise.
        """
        process = model.process
        if model.tilt is not None:
            raise NotImplementedError(
                "log_prob: this model starts from a tilted source, whose density is not known"
            )
        if hasattr(process, "with_epsilon"):
            return process.with_epsilon(0.0 if self.epsilon is None else self.epsilon)
        if self.epsilon:
            raise ValueError(
                f"log_prob: epsilon needs a score, which {type(process).__name__} does not know; leave "
                "epsilon out, or train a StochasticInterpolant"
            )
        if process.stochastic:
            known = f"(sigma={process.sigma})" if hasattr(process, "sigma") else ""
            raise NotImplementedError(
                f"log_prob: {type(process).__name__}{known} has noise "
                "but knows no score, so its density is not known; train an ODE (sigma=0) or a "
                "StochasticInterpolant"
            )
        return process

    def follow(self, process: Process, x: Tensor, generator: torch.Generator | None) -> Density:
        """The process with its density, for states like ``x (n, *d)``."""
        exact = self.divergence == "exact" or (self.divergence == "auto" and x[0].numel() <= EXACT)
        probes = None if exact else rademacher(x, self.probes, generator)
        return Density(process, x.shape[1:], probes, self.differentiable)

    def choose(self, process: Process) -> Solver:
        """The solver: classical Runge-Kutta for the ODE, stochastic Heun with noise."""
        solver = self.solver
        if solver is None:
            solver = StochasticHeun(200) if process.stochastic else RungeKutta()
        return solver if self.steps is None else dataclasses.replace(solver, steps=self.steps)


class Likelihood(Sourced):
    """A model whose process carries the density of its source."""

    def log_prob(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        *,
        divergence: str = "auto",
        probes: int = 1,
        steps: int | None = None,
        solver: Solver | None = None,
        epsilon: Epsilon | None = None,
        paths: int = 1,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        differentiable: bool = False,
        progress: bool = False,
    ) -> Tensor:
        """Log-density of data, ``(n, *d) -> (n,)``, in nats and data units.

        By default that of the ODE, by the change of variables along it (Chen et al. 2018). With an
        ``epsilon`` above zero an estimate from backward paths of the SDE, unbiased where the score is
        exact (Albergo, Boffi & Vanden-Eijnden 2023). A light bridge knows it in closed form, for
        starts at its anchors, and looks at ``x`` and ``batch_size`` alone.

        Args:
            x: data ``(n, *d)``.
            cond: conditions, one a row.
            divergence: ``"exact"`` takes one derivative a dimension, ``"hutchinson"`` a random estimate
                with signs that stay fixed along a path, unbiased for the log-density (Grathwohl et al.
                2019); ``"auto"`` is exact up to 16 dimensions.
            probes: signs that Hutchinson's estimate averages over.
            steps, solver: ``RungeKutta(40)`` for the ODE and ``StochasticHeun(200)`` with noise, unless
                told otherwise.
            epsilon: as in :meth:`sample`.
            paths: noisy paths that an ``epsilon`` above zero averages over.
            generator: where signs and noise are drawn from.
            batch_size: rows at a time.
            differentiable: keep the graph, for gradients in ``x`` and the parameters.
            progress: show a progress bar.

        Raises:
            NotImplementedError: if process or source have no density that is known, with the reason.
            ValueError: for another event shape than the model's, or a noise whose score is not known.
        """
        options = Options(divergence, probes, steps, solver, epsilon, paths, differentiable)
        check_event("x", x, self.source)
        n, cond = align("log_prob", cond, self.device, x=x)
        parts = []
        with torch.set_grad_enabled(differentiable), evaluating(self):
            x = x.to(device=self.device, dtype=self.dtype)
            z = x if self.transform is None else self.transform(x)
            for rows in batches(n, batch_size, progress, "density"):
                chunk = cond if cond is None else cond[rows]
                parts.append(_log_prob(self, z[rows], chunk, options, generator))
            found = torch.cat(parts)
            return found if self.transform is None else found + self.transform.log_abs_det(x)

    def sample_with_log_prob(
        self,
        n: int | None = None,
        *,
        x0: Tensor | None = None,
        cond: Tensor | None = None,
        divergence: str = "auto",
        probes: int = 1,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        differentiable: bool = False,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Samples of the ODE ``(n, *d)`` with their log-densities ``(n,)``, from one run.

        Args:
            n, x0, cond, generator, batch_size, progress: as in :meth:`sample`.
            divergence, probes, steps, solver, differentiable: as in :meth:`log_prob`.
        """
        options = Options(divergence, probes, steps, solver, None, 1, differentiable)
        n, cond = align("sample_with_log_prob", cond, self.device, n=n, x0=x0)
        parts = []
        with torch.set_grad_enabled(differentiable), evaluating(self):
            start = self._start(n, x0, cond, generator, False)
            for rows in batches(n, batch_size, progress):
                chunk = cond if cond is None else cond[rows]
                parts.append(_sample_with_log_prob(self, start[rows], chunk, options, generator))
            z, found = (torch.cat(part) for part in zip(*parts))
            if self.transform is None:
                return z, found
            x = self.transform.inverse(z)
            return x, found + self.transform.log_abs_det(x)


def _log_prob(
    model: Likelihood,
    x: Tensor,
    cond: Tensor | None,
    options: Options,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log-density of states ``x (n, *d)`` in the model's space, ``(n,)``."""
    if options.epsilon is None and hasattr(model.process, "log_density"):
        return model.process.log_density(model.process.span[1], x)
    process = options.process(model)
    solver = options.choose(process)
    if options.paths > 1:  # every path is a row of one batch
        x = x.repeat_interleave(options.paths, 0)
        cond = None if cond is None else cond.repeat_interleave(options.paths, 0)
    chart, moved = process.chart(), 0.0
    if chart is not None:  # the density of the coordinates in which solvers step
        moved, x, process = chart.log_abs_det(x), chart.into(x), chart.process
    density = options.follow(process, x, generator)
    grid = solver.grid(density, None, reverse=True)
    if callable(options.epsilon):
        model.process.with_epsilon(options.epsilon, around(grid))
    y = solver.solve(density, density.pack(x), grid, cond, generator).x
    start, change = density.unpack(y)
    if chart is not None:
        start = chart.back(start)
        moved = moved - chart.log_abs_det(start)
    # the integral ran from 1 to 0, and has the sign of that
    found = source_log_prob(model, start) + change + moved
    return found.reshape(-1, options.paths).mean(1)


def _sample_with_log_prob(
    model: Likelihood,
    x: Tensor,
    cond: Tensor | None,
    options: Options,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Final states of starts ``x (n, *d)`` in the model's space with their log-densities ``(n,)``."""
    process = options.process(model)
    if process.stochastic:
        raise ValueError(
            "sample_with_log_prob follows the ODE, whose paths know their density; take epsilon=0"
        )
    solver = options.choose(process)
    found = source_log_prob(model, x)
    chart = process.chart()
    if chart is not None:
        found, x, process = found - chart.log_abs_det(x), chart.into(x), chart.process
    density = options.follow(process, x, generator)
    y = solver.solve(density, density.pack(x), None, cond, generator).x
    final, change = density.unpack(y)
    if chart is None:
        return final, found - change
    final = chart.back(final)
    return final, found - change + chart.log_abs_det(final)


def source_log_prob(model: Likelihood, z: Tensor) -> Tensor:
    """Log-density of the start ``z (n, *d)`` in the model's space.

    Raises:
        NotImplementedError: if the source has none.
    """
    if model.transform is None or model.source.latent:
        return model.source.log_prob(z)
    x = model.transform.inverse(z)
    return model.source.log_prob(x) - model.transform.log_abs_det(x)
