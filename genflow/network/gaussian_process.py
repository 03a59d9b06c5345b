"""Exact Gaussian-process regression, one kernel for all outputs, with cached weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genflow.checks import count, non_negative, positive
from genflow.tensors import batch_time

ROWS = 256
"""Rows of the kernel formed at once: a block of them stays in the processor's cache."""
BLOCK = 800
"""Most rows of a block of the preconditioner."""
STEPS, TOLERANCE = 40, 1e-10
"""Of conjugate gradients, and the relative residual at which they stop."""


class GaussianProcess(nn.Module):
    r"""Posterior mean of a Gaussian process with the exponential kernel, in float64.

    .. math:: k(z, z') = \text{variance}\, e^{-|z - z'| / \text{length}},\qquad z = (x, t),

    zero prior mean and one kernel for the independent outputs, in raw units of state and time. This is
    the regressor of the drifts of Vargas et al. 2021, "Solving Schrödinger bridges via maximum
    likelihood". Nothing is tuned: :meth:`fit` solves for the weights of the mean, :math:`\alpha =
    (K + \text{noise} + \text{jitter})^{-1} Y`, once; a prediction is then one product.

    ``n`` rows take :math:`8 n^2` bytes. Conjugate gradients in float64 solve them to a relative
    residual of 1e-10; their preconditioner is made of Cholesky factors in float32 of blocks in order
    of time, and where it does not serve there is one Cholesky factor in float64.

    Args:
        dim: number of coordinates of the state.
        length: of the kernel.
        variance: of the kernel. ``None``: 1, and ``1 / dt`` where a loop regresses increments
            (:meth:`for_increments`).
        noise: variance of the noise of the targets. ``None``: 1, and ``sigma^2 / dt``, what increments
            have, in such a loop.
        jitter: added to the noise.

    Raises:
        ValueError: for numbers out of range, and where shapes do not fit or ``fit`` was not called.
    """

    def __init__(
        self,
        dim: int,
        length: float = 1.0,
        variance: float | None = None,
        noise: float | None = None,
        jitter: float = 1e-6,
    ) -> None:
        super().__init__()
        count(self, dim=dim)
        positive(self, length=length, **({} if variance is None else {"variance": variance}))
        non_negative(self, jitter=jitter, **({} if noise is None else {"noise": noise}))
        self.dim, self.length, self.variance = dim, length, variance
        self.noise, self.jitter = noise, jitter
        self.register_buffer("inputs", torch.empty(0, dim + 1, dtype=torch.float64))
        self.register_buffer("weights", torch.empty(0, dim, dtype=torch.float64))

    def for_increments(self, sigma: float, dt: float) -> GaussianProcess:
        """One for speeds ``(x_{s+dt} - x_s) / dt`` of paths with diffusion ``sigma``: what was left
        open becomes variance ``1 / dt`` and noise ``sigma^2 / dt``, as published."""
        variance = 1 / dt if self.variance is None else self.variance
        noise = sigma**2 / dt if self.noise is None else self.noise
        return GaussianProcess(self.dim, self.length, variance, noise, self.jitter).to(
            self.inputs.device
        )

    def fit(self, t: Tensor | float, x: Tensor, y: Tensor) -> GaussianProcess:
        """Condition on targets ``y (n, dim)`` at times ``t (n,)`` and states ``x (n, dim)``."""
        if y.shape != x.shape or not len(x):
            raise ValueError(
                f"GaussianProcess.fit: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; both must "
                f"be (n, {self.dim}) with n >= 1"
            )
        variance = 1.0 if self.variance is None else self.variance
        noise = 1.0 if self.noise is None else self.noise
        rows = self._rows(t, x.detach())
        order = rows[:, -1].argsort(stable=True)
        self.inputs = rows[order]
        # the posterior mean depends on variance and noise through their ratio alone
        ratio = (noise + self.jitter) / variance
        self.weights = solve(self.inputs, y.detach().double()[order], ratio)
        return self

    def forward(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The posterior mean ``(B, dim)`` at times ``t (B,)`` and states ``x (B, dim)``."""
        if not len(self.inputs):
            raise ValueError("GaussianProcess: call fit(t, x, y) before it is evaluated")
        z = self._rows(t, x)
        blocks = [kernel(rows, self.inputs.double()) @ self.weights.double() for rows in z.split(ROWS)]
        return (torch.cat(blocks) if blocks else z[:, : self.dim]).to(x.dtype)

    def _rows(self, t: Tensor | float, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"GaussianProcess(dim={self.dim}): x must have shape (B, {self.dim}), got "
                f"{tuple(x.shape)}"
            )
        x = x.double()
        return torch.cat([x, batch_time(t, x)[:, None]], 1) / self.length

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # how many rows there are is known from the fit alone
        for name in ("inputs", "weights"):
            value = state.get(prefix + name)
            if value is not None and value.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, getattr(self, name).new_empty(value.shape))
        super()._load_from_state_dict(state, prefix, *rest)


def kernel(z: Tensor, w: Tensor) -> Tensor:
    """Exponential kernel of unit variance and length between rows ``z (n, p)`` and ``w (m, p)``."""
    # distances from products of matrices would lose half of the digits of near rows
    return torch.cdist(z, w, compute_mode="donot_use_mm_for_euclid_dist").neg().exp()


def solve(z: Tensor, y: Tensor, noise: float) -> Tensor:
    """Weights ``(k(z, z) + noise)^-1 y`` for rows ``z (n, p)`` and targets ``y (n, d)``, in float64.

    Raises:
        ValueError: if the matrix is singular, as it is where rows repeat and there is no noise.
    """
    matrix = z.new_empty(len(z), len(z))
    for rows, block in zip(z.split(ROWS), matrix.split(ROWS)):
        block.copy_(kernel(rows, z))
    matrix.diagonal().add_(noise)
    rough = rough_inverse(matrix)
    found = None if rough is None else conjugate_gradients(matrix, rough, y)
    if found is not None:
        return found
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise ValueError(
            "GaussianProcess.fit: the kernel matrix is not positive definite; raise noise or jitter, "
            "or leave out rows that are NaN or repeat"
        )
    return torch.cholesky_solve(y, factor)


def rough_inverse(matrix: Tensor, block: int = BLOCK) -> Callable[[Tensor], Tensor] | None:
    """An approximate inverse in float32, of a law where a block of rows depends on the one before alone
    (Vecchia 1988), as blocks in order of time nearly do; ``None`` where float32 does not suffice."""
    count = math.ceil(len(matrix) / block)
    parts = torch.arange(len(matrix)).tensor_split(count)
    spans = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
    gains, factors, broken, before = [], [], [], None
    for k, span in enumerate(spans):
        own = matrix[span, span].float()
        left = own
        if k:
            cross = matrix[span, spans[k - 1]].float()
            gains.append(torch.cholesky_solve(cross.mT, before).mT)
            left = own - gains[-1] @ cross.mT
        factor, failed = torch.linalg.cholesky_ex(left)
        factors.append(factor)
        broken.append(failed)
        before = torch.linalg.cholesky_ex(own)[0] if 0 < k < count - 1 else factor
    if bool(torch.stack(broken).any()):
        return None

    def apply(y: Tensor) -> Tensor:
        x = [y[span] for span in spans]
        x[1:] = [own - gain @ last for own, gain, last in zip(x[1:], gains, x)]
        x = [torch.cholesky_solve(own, factor) for own, factor in zip(x, factors)]
        for k, gain in enumerate(gains):
            x[k] = x[k] - gain.mT @ x[k + 1]
        return torch.cat(x)

    return apply


def conjugate_gradients(matrix: Tensor, rough: Callable[[Tensor], Tensor], y: Tensor) -> Tensor | None:
    """The solution of ``matrix x = y``, column by column, preconditioned by a rough inverse in float32;
    ``None`` where they do not converge."""
    x, left, size = torch.zeros_like(y), y.clone(), y.norm(dim=0)
    tiny = torch.finfo(y.dtype).tiny
    direction, before = torch.zeros_like(y), torch.ones_like(size)
    for step in range(STEPS):
        # scaled, since the residual of a converged column would underflow in float32
        scale = left.norm(dim=0).clamp_min(tiny)
        near = rough((left / scale).float()).to(y.dtype) * scale
        now = (left * near).sum(0)
        direction = near + direction * (now / before.clamp_min(tiny) if step else 0.0)
        moved = matrix @ direction
        pace = now / (direction * moved).sum(0).clamp_min(tiny)
        x, left, before = x + pace * direction, left - pace * moved, now
        if bool((left.norm(dim=0) <= TOLERANCE * size).all()):
            return x
    return None
