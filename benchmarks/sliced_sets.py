"""The point sets of the sliced-Wasserstein benchmark, and reference values for them.

All are float32, drawn from fixed seeds, with as many points on one side as on the other, since the
published estimators know nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

N = 1000
REFERENCE = 100_000  # directions of a reference value
GROUPS = 20  # independent groups that they come in


def sphere(n: int, generator: torch.Generator, radius: float = 1.0) -> Tensor:
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return radius * x / x.norm(dim=1, keepdim=True)


def torus(n: int, generator: torch.Generator, ring: float = 1.0, tube: float = 0.35) -> Tensor:
    """Uniform on the surface: an angle around the tube is kept in proportion to its circle's length."""
    around, keep = torch.rand(2, 4 * n + 64, generator=generator, dtype=torch.float64)
    length = (ring + tube * (2 * math.pi * around).cos()) / (ring + tube)
    around = 2 * math.pi * around[keep < length][:n]
    along = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    radius = ring + tube * around.cos()
    return torch.stack([radius * along.cos(), radius * along.sin(), tube * around.sin()], 1)


def concentric(n: int = N, shift: tuple[float, ...] = (0.0, 0.0, 0.0)) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, y = sphere(n, draw), torus(n, draw)
    return x.float(), (y + torch.tensor(shift)).float()


def shifted(n: int = N) -> tuple[Tensor, Tensor]:
    return concentric(n, (1.0, 0.5, 0.0))


def gaussians(n: int = N, dim: int = 32) -> tuple[Tensor, Tensor]:
    """Two Gaussians 2 apart, each with falling scales along axes of its own."""
    draw = torch.Generator().manual_seed(0)
    falling = 0.95 ** torch.arange(dim)
    sides = []
    for scales in (3 * falling, 2 * falling):
        axes = torch.linalg.qr(torch.randn(dim, dim, generator=draw))[0]
        sides.append(torch.randn(n, dim, generator=draw) * scales @ axes.T)
    shift = torch.randn(dim, generator=draw)
    return sides[0], sides[1] + 2 * shift / shift.norm()


def digits() -> tuple[Tensor, Tensor]:
    """Odd against even handwritten digits of scikit-learn, pixels in [0, 1], 64 dimensions."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    odd, even = (torch.tensor(images[labels % 2 == k] / 16, dtype=torch.float32) for k in (1, 0))
    n = min(len(odd), len(even))
    return odd[:n], even[:n]


def ring_and_moons(n: int = N) -> tuple[Tensor, Tensor]:
    """A noisy ring against two moons, in the plane."""
    draw = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(n, generator=draw)
    ring = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    half = math.pi * torch.rand(n, generator=draw)
    moons = torch.stack([half.cos(), half.sin()], 1)
    moons[n // 2 :] = torch.tensor([1.0, 0.5]) - moons[n // 2 :]
    noise = 0.1 * torch.randn(2, n, 2, generator=draw)
    return ring + noise[0], moons + noise[1]


SETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "sphere/torus": concentric,
    "Gaussians, 32-D": gaussians,
    "digits": digits,
    "sphere/torus, shifted": shifted,
    "ring/moons": ring_and_moons,
}
JUDGED = tuple(SETS)[:3]  # the sets that the limits are about


def even_directions(dim: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """A randomly turned even cover: equal angles (2-D), a Fibonacci lattice (3-D) or Haar frames."""
    frame, upper = np.linalg.qr(draw.standard_normal((dim, dim)))
    frame = frame * np.sign(np.diag(upper))
    if dim == 2:
        angle = np.pi * np.arange(count) / count
        return np.stack([np.cos(angle), np.sin(angle)], 1) @ frame
    if dim == 3:
        k = np.arange(count) + 0.5
        z, angle = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
        flat = np.sqrt(1 - z**2)
        return np.stack([flat * np.cos(angle), flat * np.sin(angle), z], 1) @ frame
    full, upper = np.linalg.qr(draw.standard_normal((-(-count // dim), dim, dim)))
    signs = np.sign(np.diagonal(upper, axis1=1, axis2=2))
    return (full * signs[:, None, :]).swapaxes(1, 2).reshape(-1, dim)


@dataclass(frozen=True)
class Reference:
    """The value and its gradient in ``x``, with squared standard errors (summed over the gradient)."""

    value: float
    gradient: Tensor
    value_error: float
    gradient_error: float


def reference(x: Tensor, y: Tensor, directions: int = REFERENCE) -> Reference:
    """Plain mean over many even directions, in float64 NumPy, in groups that give its error."""
    a, b = (z.double().numpy() for z in (x, y))
    draw = np.random.default_rng(0)
    values, gradients = [], []
    for _ in range(GROUPS):
        theta = even_directions(a.shape[1], directions // GROUPS, draw)
        value, gradient = 0.0, np.zeros_like(a)
        for part in np.array_split(theta, -(-len(theta) // 1000)):
            p, q = part @ a.T, np.sort(part @ b.T, 1)
            order = p.argsort(1)
            gap = np.take_along_axis(p, order, 1) - q
            value += (gap**2).mean(1).sum()
            back = np.empty_like(gap)
            np.put_along_axis(back, order, gap, 1)
            gradient += 2 / len(a) * back.T @ part
        values.append(value / len(theta))
        gradients.append(gradient / len(theta))
    stack = np.stack(gradients)
    return Reference(
        value=float(np.mean(values)),
        gradient=torch.from_numpy(stack.mean(0)),
        value_error=float(np.var(values, ddof=1) / GROUPS),
        gradient_error=float(stack.var(0, ddof=1).sum() / GROUPS),
    )
