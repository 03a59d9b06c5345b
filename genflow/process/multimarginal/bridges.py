r"""Paths of a reference between given points.

The linearised reference is conditioned exactly: with what is missing at the end, :math:`r = y - m_S -
\Phi_l\delta_l`, a step is Gaussian with mean :math:`A_l\delta_l + K_lr`, :math:`K_l =
Q_l\Phi_{l+1}^\top P_l^{-1}`. Guided paths add what the linearisation leaves of the drift; likelihood
ratios make them exact (Delyon & Hu 2006; Schauer, van der Meulen & van Zanten 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.process.multimarginal.linear_noise import LinearNoise, cholesky
from genflow.process.reference import Reference
from genflow.tensors import randn_like

GROWTH = 1e12
"""What a deviation may grow by over an interval, before digits are lost."""


@dataclass(frozen=True)
class Paths:
    r"""Bridges on a grid.

    Attributes:
        times: ``(S+1, N)``.
        x: ``(S+1, N, d)``, which end at the given points.
        control: what the bridge adds to the reference's drift, :math:`u = \sigma^2\nabla\log h`, at all
            but the last point of the grid, ``(S, N, d)``.
        log_weight: logarithm of the likelihood ratio of the true bridge to these paths, up to one
            constant a pair, ``(N,)``; zeros where the reference is affine.
    """

    times: Tensor
    x: Tensor
    control: Tensor
    log_weight: Tensor


class Guide:
    """Linearised bridges from the starts of ``lines``, computed once for all ends.

    Args:
        reference: whose bridges these are.
        lines: its linearisation.
        sigma: diffusion coefficient.
    """

    def __init__(self, reference: Reference, lines: LinearNoise, sigma: float) -> None:
        self.reference, self.lines, self.sigma = reference, lines, sigma
        phi, gained = lines.remaining()
        growth = float(phi.abs().max())
        if not growth < GROWTH:
            raise FloatingPointError(
                f"{type(reference).__name__} magnifies differences by {growth:.0e} over an interval, "
                f"more than its bridges can be computed with: start its parameters nearer to what the "
                f"data show"
            )
        root = cholesky(gained[:-1])
        # u = pull r with pull = Phi' P^-1, and K = Q Phi' P^-1 with the next Phi
        self.phi = phi
        self.pull = torch.cholesky_solve(phi[:-1], root).mT
        gain = torch.cholesky_solve(phi[1:] @ lines.noise, root).mT
        spread = lines.noise - gain @ phi[1:] @ lines.noise
        size = spread.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(phi.shape[-1], dtype=phi.dtype, device=phi.device)
        self.gain = gain
        with torch.no_grad():  # at every point of the grid at once
            self.values = reference.values()
            flat, times = lines.mean[:-1].flatten(0, 1), lines.times[:-1].flatten()
            slope = reference.jacobian(times, flat, self.values)
            base = reference.field(times, flat, self.values)
        self.slope, self.base = slope.view_as(lines.step), base.view_as(lines.mean[:-1])
        self.spread = cholesky(spread[:-1] + (1e-12 * size[:-1] + 1e-300) * eye) * sigma

    @torch.no_grad()
    def paths(
        self,
        index: Tensor,
        y: Tensor,
        guided: bool = True,
        generator: torch.Generator | None = None,
        until: int | None = None,
    ) -> Paths:
        """Bridges from the starts ``index (N,)`` to ``y (N, d)``.

        Args:
            index: numbers of starts.
            y: where each path ends.
            guided: add what the linearisation leaves of the drift.
            generator: where the noise is drawn from.
            until: the last step to make, all by default.
        """
        lines, steps = self.lines, len(self.lines.step)
        until = steps if until is None else until
        x = lines.mean[0, index]
        missing = y - lines.mean[-1, index]
        states, controls = [x], []
        log_weight = x.new_zeros(len(x))
        for k in range(until):
            mean, t = lines.mean[k, index], lines.times[k, index]
            h = (lines.times[k + 1, index] - t)[:, None]
            away = x - mean
            rest = missing - _times(self.phi[k, index], away)
            control = _times(self.pull[k, index], rest)
            ahead = lines.mean[k + 1, index] + _times(lines.step[k, index], away)
            ahead = ahead + _times(self.gain[k, index], rest)
            if guided:
                left = self.reference.field(t, x, self.values) - self.base[k, index]
                left = left - _times(self.slope[k, index], away)
                log_weight = log_weight + (left * control).sum(1) * h[:, 0] / self.sigma**2
                ahead = ahead + h * left
            if k == steps - 1:
                ahead = y
            else:
                ahead = ahead + _times(self.spread[k, index], randn_like(x, generator))
            controls.append(control)
            states.append(ahead)
            x = ahead
        times = lines.times[: until + 1, index]
        return Paths(times, torch.stack(states), torch.stack(controls), log_weight)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrices ``(N, d, d)`` applied to rows ``(N, d)``."""
    return (matrix @ x[..., None])[..., 0]
