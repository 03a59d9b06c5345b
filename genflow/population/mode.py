"""The mode of the posterior of a population, and its width there, by Fisher scoring."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import biject_to

from genflow.process.reference.law import ParameterLaw, at, centre, latent, traced

if TYPE_CHECKING:
    from genflow.population.model import PopulationModel

ENOUGH = 1e-6
"""Fall of the potential, in nats, that a step would still promise at what counts as the mode."""
FARTHEST = 3.0
"""Widths of the prior that one step may go."""
MOST = 1e12
"""Damping, relative to the curvature, under which a step is none."""


@dataclass(frozen=True)
class Mode:
    """Where a posterior is highest, in unconstrained coordinates.

    Attributes:
        z: the mode, ``(p,)``.
        precision: information of the data there plus that of the prior, ``(p, p)``.
        potential: negative log-density of model and data there.
        iterations: how many steps it took.
    """

    z: Tensor
    precision: Tensor
    potential: float
    iterations: int

    @property
    def root(self) -> Tensor:
        """``R (p, p)`` with ``R R' =`` the inverse of the precision: ``z + R w`` is white in ``w``."""
        eye = torch.eye(len(self.z), dtype=self.z.dtype, device=self.z.device)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(self.precision), eye, upper=False).mT


class Flat:
    """The unknowns of a population model as one unconstrained vector."""

    def __init__(self, model: PopulationModel) -> None:
        self.model = model
        device = model.means.device  # laws without a median or a mean do not tell theirs
        sites = latent(traced(self._unknowns, lambda site: centre(site["fn"]).to(device)))
        free = {k: biject_to(v["fn"].support).inv(v["value"]).double() for k, v in sites.items()}
        self.shapes = {name: value.shape for name, value in free.items()}
        self.supports = {name: site["fn"].support for name, site in sites.items()}
        self.start = torch.cat([value.reshape(-1) for value in free.values()])
        self.widths = self._of_prior(self.start).diagonal().clamp_min(1e-4).rsqrt()

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """Unconstrained sites by name."""
        parts = z.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    def named(self, zs: Tensor) -> dict[str, Tensor]:
        """Sites and parameters by name, ``(S, ...)``, at unconstrained points ``(S, p)``."""
        if not isinstance(self.model.reference, ParameterLaw):  # all priors are independent
            parts = zip(self.shapes.items(), zs.split([math.prod(v) for v in self.shapes.values()], 1))
            return {
                name: biject_to(self.supports[name])(part.reshape(len(zs), *shape))
                for (name, shape), part in parts
            }
        rows = [{**sites, **parameters} for parameters, _, sites, _ in map(self.unknowns, zs)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def unknowns(self, z: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor], dict, Tensor]:
        """Parameters, start, constrained sites, and the negative log-density of the prior at ``z``."""
        free = self.split(z)
        trace = traced(self._unknowns, lambda site: at(site["fn"], free[site["name"]]))
        sites = latent(trace)
        energy = -trace.log_prob_sum()
        for name, site in sites.items():
            bijection = biject_to(site["fn"].support)
            energy = energy - bijection.log_abs_det_jacobian(free[name], site["value"]).sum()
        parameters, start = trace.nodes["_RETURN"]["value"]
        return parameters, start, {name: site["value"] for name, site in sites.items()}, energy

    def potential(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Negative log-density of prior and data at ``z``, and the moments that it saw."""
        parameters, start, _, prior = self.unknowns(z)
        means, covariances = self.model.moments(parameters, *start)
        return prior - self.model.log_likelihood(means, covariances).sum(), means, covariances

    def _unknowns(self) -> tuple[Mapping[str, Tensor], tuple[Tensor, Tensor]]:
        return self.model.parameters(), self.model.initial()

    def information(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Potential, its gradient and the information at ``z``: that of the data is expected under the
        model, hence positive semidefinite wherever one is."""
        z = z.detach().requires_grad_()
        potential, means, covariances = self.potential(z)
        if not bool(torch.isfinite(potential)):
            return potential.detach(), z, z
        (gradient,) = torch.autograd.grad(potential, z, retain_graph=True)
        outputs = torch.cat([means[..., None], covariances], 2)
        jacobian = _jacobian(outputs, z)
        with torch.no_grad():
            inverse = torch.linalg.inv(covariances)
            n = self.model.sizes
            dm, dp = jacobian[..., 0, :], jacobian[..., 1:, :]
            of_means = torch.einsum("k,kip,kij,kjq->pq", n, dm, inverse, dm)
            turned = torch.einsum("kij,kjlp->kilp", inverse, dp)
            of_covariances = torch.einsum("k,kijp,kjiq->pq", n / 2, turned, turned)
        return potential.detach(), gradient, of_means + of_covariances + self._of_prior(z.detach())

    def _of_prior(self, z: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(lambda v: self.unknowns(v)[3], z)


def find_mode(model: PopulationModel, iterations: int = 100) -> tuple[Flat, Mode]:
    """Climb to the mode from the centres of the priors, by damped Fisher scoring.

    Raises:
        RuntimeError: if it does not get there.
    """
    flat = Flat(model)
    z, damping = flat.start.clone(), 1e-3
    if model.start == "gaussian":  # else a wide start would be taken for the cause of every misfit
        coarse = copy.copy(model)
        coarse.start = "mean"
        known = find_mode(coarse, iterations)[1].z
        z[: len(known)] = known
    for k in range(iterations + 1):
        potential, gradient, precision = flat.information(z)
        if not bool(torch.isfinite(potential)):
            raise RuntimeError(
                "PopulationModel: the likelihood is not finite where the reference stands; fit it "
                "first, or raise steps"
            )
        root, failed = torch.linalg.cholesky_ex(precision)
        if not failed:
            ahead = torch.linalg.solve_triangular(root, gradient[:, None], upper=False)
            if float(ahead.square().sum()) / 2 < ENOUGH:
                return flat, Mode(z, precision, float(potential), k)
        step, damping = _downhill(flat, z, potential, gradient, precision, damping)
        if step is None:
            break
        z = z + step
    raise RuntimeError(
        f"PopulationModel: no maximum of the posterior found in {k} steps; fit the reference first, "
        "state priors where data leave a direction undecided, or raise iterations or steps"
    )


def _downhill(
    flat: Flat, z: Tensor, potential: Tensor, gradient: Tensor, precision: Tensor, damping: float
) -> tuple[Tensor | None, float]:
    """A step that lowers the potential, damped as much as it takes, and the damping to go on with."""
    curvature = precision.diagonal().abs().clamp_min(1e-8).diag()
    while damping < MOST:
        step = torch.linalg.lstsq(precision + damping * curvature, -gradient[:, None]).solution[:, 0]
        step = step / (step / flat.widths / FARTHEST).abs().max().clamp_min(1)
        with torch.no_grad():
            there = flat.potential(z + step)[0]
        if bool(there < potential):
            return step, max(damping / 10, 1e-9)
        damping *= 10
    return None, damping


def _jacobian(outputs: Tensor, z: Tensor) -> Tensor:
    """``(*outputs, p)``, by one backward pass for all outputs."""
    flat = outputs.reshape(-1)
    eye = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    try:
        (rows,) = torch.autograd.grad(flat, z, eye, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # a drift with operations that cannot be batched
        rows = torch.stack([torch.autograd.grad(v, z, retain_graph=True)[0] for v in flat])
    return rows.reshape(*outputs.shape, -1)
