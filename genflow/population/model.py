"""A marginal likelihood of snapshots as a Pyro model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from genflow.checks import count, name_of, one_of, positive
from genflow.population.moments import CLOSURES, population_moments
from genflow.process.reference import Reference
from genflow.process.reference.law import ParameterLaw
from genflow.tensors import check_marginals

if TYPE_CHECKING:
    from genflow.population.posterior import Posterior

STARTS = ("mean", "gaussian", "fixed")
WIDE = 10.0
"""Standard deviations of the first snapshot that the prior of a start's mean spans."""


class PopulationModel:
    r"""Snapshots as independent draws from a population that follows a reference; a Pyro model.

    Particles of one snapshot are never those of another, so that what the data say of the parameters is

    .. math:: \prod_k\prod_i \mathcal N(x_k^i \mid m_\theta(t_k), P_\theta(t_k))

    with the moments of :func:`population_moments` as functions of the parameters and of the law of the
    start. The objective of a bridge is no substitute: read as a likelihood it claims to know which
    particle went where, and its intervals are too short.

    Parameters, and sites of a ``ParameterLaw``, that ``requires_grad_(False)`` has frozen are known.
    Called, it samples all unknowns and observes the snapshots; :meth:`posterior` infers them.

    Args:
        reference: the family of drifts with named parameters; default priors are centred where it
            stands. The sites of a ``ParameterLaw`` are the unknowns.
        sigma: noise per square root of time, known, positive.
        times: of the snapshots, rising, ``(K+1,)``.
        snapshots: ``K+1`` tensors ``(n_k, d)``.
        start: what is unknown of the law at ``times[0]``: its ``"mean"`` (the covariance is that of the
            first snapshot), all of a ``"gaussian"``, or nothing (``"fixed"`` to the first snapshot).
        closure: of the moment equations, ``"cubature"`` or ``"linear"``.
        steps: of Runge-Kutta in each interval.
        dt: the step of the Euler-Maruyama simulator that made the snapshots, if one did.
        spread: of default priors: LogNormal(log of the centre, ``spread``) for positive parameters,
            Normal(centre, 10 ``spread``) for others.
        priors: laws in place of default ones, by name.
        weights: particle weights ``(n_k,)`` of each snapshot; one with weights counts as
            :math:`(\sum w)^2/\sum w^2` particles (Kish 1965).

    Raises:
        ValueError: for fewer than two snapshots, times that do not rise, dimensions that differ, a
            first snapshot too small for a covariance, values that are not finite, or families without
            parameters.
    """

    def __init__(
        self,
        reference: Reference,
        sigma: float,
        times: Sequence[float],
        snapshots: Sequence[Tensor],
        start: str = "mean",
        closure: str = "cubature",
        steps: int = 8,
        dt: float | None = None,
        spread: float = 1.0,
        priors: Mapping[str, Distribution] | None = None,
        weights: Sequence[Tensor | None] | None = None,
    ) -> None:
        positive(self, sigma=sigma, spread=spread, **({} if dt is None else {"dt": dt}))
        count(self, steps=steps)
        one_of(self, STARTS, start=start)
        one_of(self, CLOSURES, closure=closure)
        self.reference, self.sigma, self.start, self.closure = reference, sigma, start, closure
        self.steps, self.dt, self.spread = steps, dt, spread
        self.times = _rising(times, len(snapshots))
        self.sizes, self.means, self.covariances = _summaries(reference, snapshots, weights)
        self.frozen, self.frozen_sites = _frozen(reference)
        self.priors = self._priors(priors or {})

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Sample the unknowns, observe the snapshots; means and covariances at all times."""
        import pyro

        means, covariances = self.moments(self.parameters(), *self.initial())
        fits = self.log_likelihood(means, covariances)
        for k, fit in enumerate(fits):
            pyro.factor(f"snapshot_{k}", fit)
        return means, covariances

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that are inferred."""
        return tuple(name for name in self.reference.names if name not in self.frozen)

    def parameters(self) -> dict[str, Tensor]:
        """Sample the parameters of the family, beside those that are frozen."""
        import pyro

        given = dict(self.frozen)
        if isinstance(self.reference, ParameterLaw):
            given |= pyro.poutine.condition(self.reference.law, self.frozen_sites)()
        return given | {name: pyro.sample(name, prior) for name, prior in self.priors.items()}

    def initial(self) -> tuple[Tensor, Tensor]:
        """Sample what is unknown of the start: its mean ``(d,)`` and covariance ``(d, d)``."""
        import pyro
        from pyro.distributions import LKJCholesky, LogNormal, Normal

        mean, covariance = self.means[0], self.covariances[0]
        sd = covariance.diagonal().sqrt()
        if self.start != "fixed":
            mean = pyro.sample("start_mean", Normal(mean, WIDE * sd).to_event(1))
        if self.start == "gaussian":
            scale = pyro.sample("start_scale", LogNormal(sd.log(), 1.0).to_event(1))
            root = scale.diag()
            if len(sd) > 1:  # one coordinate has no correlations
                root = root @ pyro.sample("start_root", LKJCholesky(len(sd), sd.new_ones(())))
            covariance = root @ root.mT
        return mean, covariance

    def moments(
        self, values: Mapping[str, Tensor], mean: Tensor, covariance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means ``(K+1, d)`` and covariances ``(K+1, d, d)`` of the population at all times."""
        return population_moments(
            self.reference, values, mean, covariance, self.sigma, self.times, self.steps, self.closure,
            self.dt,
        )  # fmt: skip

    def log_likelihood(self, means: Tensor, covariances: Tensor) -> Tensor:
        """Of each snapshot, ``(K+1,)``, through its mean and covariance, which suffice;
        :math:`-\\infty` where moments are not those of a law."""
        try:
            roots = torch.linalg.cholesky(covariances)
        except torch.linalg.LinAlgError:
            return (means * 0).nan_to_num().sum(1) - math.inf
        away = self.means - means
        scatter = self.covariances + away[:, :, None] * away[:, None]
        misfit = torch.cholesky_solve(scatter, roots).diagonal(dim1=1, dim2=2).sum(1)
        volume = 2 * roots.diagonal(dim1=1, dim2=2).log().sum(1)
        return -self.sizes / 2 * (means.shape[1] * math.log(2 * math.pi) + volume + misfit)

    def posterior(self, method: str = "laplace", **options: Any) -> Posterior:
        """Infer all unknowns.

        Args:
            method: ``"laplace"`` (mode by Fisher scoring, and a Gaussian there; a second or so),
                ``"svi"`` (a full-rank Gaussian by stochastic variational inference, begun there) or
                ``"nuts"`` (Hoffman & Gelman 2014, in coordinates that are white there).
            **options: of :func:`genflow.population.laplace`, ``svi`` or ``nuts``.
        """
        from genflow.population import posterior

        one_of("PopulationModel.posterior", posterior.METHODS, method=method)
        return getattr(posterior, method)(self, **options)

    def _priors(self, given: Mapping[str, Distribution]) -> dict[str, Distribution]:
        from pyro.distributions import LogNormal, Normal

        family = self.reference
        decided = family.given if isinstance(family, ParameterLaw) else ()
        known = {*decided, *self.frozen}
        free = {k: v.detach().double() for k, v in family.values().items() if k not in known}
        if not family.names:
            raise ValueError(
                f"PopulationModel: {name_of(family)} has no named parameters to infer; intervals need "
                "a family of few"
            )
        if not self.names:
            raise ValueError(
                f"PopulationModel: all parameters of {name_of(family)} are frozen; let one require grad"
            )
        unknown = sorted(set(given) - set(free))
        if unknown:
            raise ValueError(
                f"PopulationModel(priors=...): {', '.join(unknown)} is no free parameter of "
                f"{name_of(family)}; allowed are {', '.join(free) or 'none'}"
            )

        def default(name: str, value: Tensor) -> Distribution:
            scale = torch.full_like(value, self.spread)
            if name in family.positive:
                return LogNormal(value.log(), scale).to_event(value.ndim)
            return Normal(value, 10 * scale).to_event(value.ndim)

        return {name: given.get(name) or default(name, value) for name, value in free.items()}


@torch.enable_grad()
def _frozen(family: Reference) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters, and sites of a law, by name, that no update would move."""
    values = family.values()
    sites = family.sites() if isinstance(family, ParameterLaw) else {}
    return tuple(
        {name: v.detach().double() for name, v in each.items() if not v.requires_grad}
        for each in (values, sites)
    )


def _rising(times: Sequence[float], number: int) -> list[float]:
    clock = [float(t) for t in times]
    rising = all(math.isfinite(t) for t in clock) and all(a < b for a, b in zip(clock, clock[1:]))
    if len(clock) != number or number < 2 or not rising:
        raise ValueError(
            f"PopulationModel(times={clock}): times must rise, one for each of the {number} snapshots, "
            "of which at least two are needed"
        )
    return clock


def _summaries(
    reference: Reference, snapshots: Sequence[Tensor], weights: Sequence[Tensor | None] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes ``(K+1,)``, means and maximum-likelihood covariances, all that a Gaussian sees."""
    check_marginals("PopulationModel", *snapshots)
    weights = [None] * len(snapshots) if weights is None else weights
    if len(weights) != len(snapshots):
        raise ValueError(
            f"PopulationModel: {len(weights)} weights for {len(snapshots)} snapshots; give each its "
            "own (n_k,), or None"
        )
    found = []
    for k, (x, w) in enumerate(zip(snapshots, weights)):
        x = x.detach().double()
        w = torch.ones_like(x[:, 0]) if w is None else torch.as_tensor(w).to(x)
        if x.shape[1:] != (reference.dim,) or not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"PopulationModel: snapshot {k} has shape {tuple(x.shape)}; it must be finite and "
                f"(n, {reference.dim}) for this {name_of(reference)}"
            )
        if w.shape != x.shape[:1] or not bool((w >= 0).all()) or not bool(w.sum() > 0):
            raise ValueError(
                f"PopulationModel: weights of snapshot {k} must be {len(x)} numbers >= 0, not all 0"
            )
        share = w / w.sum()
        mean = share @ x
        away = x - mean
        found.append((1 / share.square().sum(), mean, away.mT @ (share[:, None] * away)))
    sizes, means, covariances = (torch.stack(each) for each in zip(*found))
    if not bool(torch.linalg.cholesky_ex(covariances[0])[1] == 0):
        raise ValueError(
            f"PopulationModel: the first snapshot has {len(snapshots[0])} particles, whose covariance "
            f"is not positive definite in {reference.dim} coordinates; the start needs more, or fewer "
            "coordinates"
        )
    return sizes, means, covariances
