"""Oracles of multi-marginal bridges: Gaussian laws in closed form, and populations by numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import expm, sqrtm
from torch import Tensor

PREY = dict(alpha=1.0, beta=0.4, gamma=0.4, delta=0.1)
GENES = dict(beta=10.0, n=3.0, k=1.0, gamma=1.0)


class LinearLaw:
    """The Schrödinger bridge of ``dX = (A X + b) dt + sigma dW`` through Gaussian marginals.

    The plan of an interval is the entropic one of a bilinear cost (Janati et al. 2020, "Entropic
    optimal transport between unbalanced Gaussian measures has a closed form"); all else is
    conditioning of Gaussian vectors.
    """

    def __init__(self, matrix, shift, sigma: float, times, means, covs) -> None:
        self.matrix, self.shift = np.atleast_2d(matrix), np.atleast_1d(shift)
        self.sigma, self.times, self.dim = sigma, list(times), len(self.shift)
        self.means = [np.atleast_1d(m).astype(float) for m in means]
        self.covs = [np.atleast_2d(c).astype(float) for c in covs]

    def flow(self, h: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``X_h | x ~ N(phi x + move, gain)`` under the reference (Van Loan 1978)."""
        d, a = self.dim, self.matrix
        block = np.zeros((2 * d, 2 * d))
        block[:d, :d], block[:d, d:], block[d:, d:] = -a, self.sigma**2 * np.eye(d), a.T
        big = expm(block * h)
        phi = big[d:, d:].T
        affine = np.zeros((d + 1, d + 1))
        affine[:d, :d], affine[:d, d] = a, self.shift
        return phi, expm(affine * h)[:d, d], phi @ big[:d, d:]

    def cross(self, k: int) -> np.ndarray:
        """``Cov(x_k, x_{k+1})``."""
        phi, _, gain = self.flow(self.times[k + 1] - self.times[k])
        pull = phi.T @ np.linalg.inv(gain)  # the plan is exp(x0' pull x1) times functions of one end
        root = np.real(sqrtm(self.covs[k]))
        inner = 4 * root @ pull @ self.covs[k + 1] @ pull.T @ root + np.eye(self.dim)
        bent = (root @ np.real(sqrtm(inner)) @ np.linalg.inv(root) - np.eye(self.dim)) / 2
        return bent @ np.linalg.inv(pull.T)

    def inside(self, k: int, s: float, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of ``(X_s, X_t)`` inside interval ``k``."""
        d, start, stop = self.dim, self.times[k], self.times[k + 1]
        slope, level = np.eye(d), np.zeros(d)
        rows, levels, noise, now = [], [], np.zeros((0, 0)), start
        for time in (s, t, stop):  # the reference from x0
            phi, move, gain = self.flow(time - now)
            slope, level, now = phi @ slope, phi @ level + move, time
            rows.append(slope), levels.append(level)
            side = phi @ noise[-d:] if len(noise) else np.zeros((d, 0))
            corner = gain + (phi @ noise[-d:, -d:] @ phi.T if len(noise) else 0)
            noise = np.block([[noise, side.T], [side, corner]])
        m, c, b = np.concatenate(rows), np.concatenate(levels), noise
        pull = b[: 2 * d, 2 * d :] @ np.linalg.inv(b[2 * d :, 2 * d :])  # conditioned on x1
        ends = np.hstack([m[: 2 * d] - pull @ m[2 * d :], pull])
        offset = c[: 2 * d] - pull @ c[2 * d :]
        left = b[: 2 * d, : 2 * d] - pull @ b[2 * d :, : 2 * d]
        x = self.cross(k)
        joint = np.block([[self.covs[k], x], [x.T, self.covs[k + 1]]])
        mean = ends @ np.concatenate([self.means[k], self.means[k + 1]]) + offset
        return mean, ends @ joint @ ends.T + left

    def ahead(self, s: float, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``X_t | x_s ~ N(slope x + level, left)``, forward or backward, and past the last snapshot."""
        slope, level, left = np.eye(self.dim), np.zeros(self.dim), np.zeros((self.dim, self.dim))
        inner = [u for u in self.times if min(s, t) < u < max(s, t)]
        stops = [s, *(inner if s < t else inner[::-1]), t]
        for a, b in zip(stops[:-1], stops[1:]):
            one = self._flown(a, b) if min(a, b) >= self.times[-1] else self._regressed(a, b)
            slope, level = one[0] @ slope, one[0] @ level + one[1]
            left = one[0] @ left @ one[0].T + one[2]
        return slope, level, left

    def _flown(self, a: float, b: float):
        return self.flow(b - a)

    def _regressed(self, a: float, b: float):
        low, high = min(a, b), max(a, b)
        k = max(j for j, u in enumerate(self.times[:-1]) if u <= low)
        mean, cov = self.inside(k, low, high)
        d, order = self.dim, (0, 1) if a < b else (1, 0)
        own, other = (slice(d * j, d * j + d) for j in order)
        slope = cov[other, own] @ np.linalg.inv(cov[own, own])
        return slope, mean[other] - slope @ mean[own], cov[other, other] - slope @ cov[own, other]

    def marginal(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        slope, level, left = self.ahead(self.times[0], t)
        return slope @ self.means[0] + level, slope @ self.covs[0] @ slope.T + left

    def joint(self, times: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the states at ``times``, stacked: the bridge is Markov."""
        mean, cov = self.marginal(times[0])
        means, d = [mean], self.dim
        for s, t in zip(times[:-1], times[1:]):
            slope, level, left = self.ahead(s, t)
            means.append(slope @ means[-1] + level)
            side = slope @ cov[-d:]
            cov = np.block([[cov, side.T], [side, slope @ cov[-d:, -d:] @ slope.T + left]])
        return np.concatenate(means), cov

    def drift(self, t: float, x: np.ndarray) -> np.ndarray:
        k = max(j for j, u in enumerate(self.times[:-1]) if u <= t)
        phi, move, gain = self.flow(self.times[k + 1] - t)
        slope, level, _ = self.ahead(t, self.times[k + 1])
        missing = x @ (slope - phi).T + level - move
        control = self.sigma**2 * missing @ np.linalg.inv(gain) @ phi
        return x @ self.matrix.T + self.shift + control

    def score(self, t: float, x: np.ndarray) -> np.ndarray:
        mean, cov = self.marginal(t)
        return -(x - mean) @ np.linalg.inv(cov)


def lattice(mean, cov, n: int = 41, reach: float = 5.5) -> tuple[Tensor, Tensor]:
    """Rows and weights that stand for a Gaussian: the trapezoidal rule, exact to its tails."""
    mean, cov = np.atleast_1d(mean), np.atleast_2d(cov)
    axis = np.linspace(-reach, reach, n)
    z = np.stack(np.meshgrid(*[axis] * len(mean), indexing="ij"), -1).reshape(-1, len(mean))
    z = z[np.square(z).sum(1) <= reach**2]
    rows = mean + z @ np.linalg.cholesky(cov).T
    return torch.from_numpy(rows), torch.from_numpy(np.exp(-np.square(z).sum(1) / 2))


def check_moments(x: Tensor, mean, cov, slack: float = 0.0) -> None:
    """Rows against a Gaussian's moments, within 4.5 standard errors and a bias of ``slack``."""
    x, mean, cov = x.double().numpy(), np.atleast_1d(mean), np.atleast_2d(cov)
    spread = np.diag(cov)
    assert (np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(spread / len(x)) + slack).all()
    error = np.sqrt((np.outer(spread, spread) + cov**2) / len(x))
    found = np.cov(x.T, bias=True).reshape(cov.shape)
    assert (np.abs(found - cov) < 4.5 * error + slack).all()


def lotka_volterra(t, x, alpha, beta, gamma, delta):
    prey, predators = x[..., 0], x[..., 1]
    return np.stack([alpha * prey - beta * prey * predators,
                     delta * prey * predators - gamma * predators], -1)  # fmt: skip


def repressilator(t, x, beta, n, k, gamma):
    before = np.maximum(np.roll(x, 1, -1), 0) + 1e-8
    return beta / (1 + (before / k) ** n) - gamma * x


def population(drift, low, high, times, n, sigma, dt=0.02, seed=0) -> list[Tensor]:
    """Independent batches of ``n`` particles at each time, all begun in a box, by Euler-Maruyama."""
    rng, found = np.random.default_rng(seed), []
    for time in times:
        x = rng.uniform(low, high, (n, len(low)))
        steps = round((time - times[0]) / dt)
        for s in range(steps):
            noise = rng.standard_normal(x.shape) * dt**0.5
            x = x + drift(times[0] + s * dt, x) * dt + sigma * noise
        found.append(torch.from_numpy(x))
    return found


def predators(times, n=50, sigma=0.1, seed=0, **rates) -> list[Tensor]:
    """The published Lotka-Volterra population."""
    rates = PREY | rates
    field = lambda t, x: lotka_volterra(t, x, **rates)  # noqa: E731
    return population(field, [5.0, 4.0], [5.1, 4.1], times, n, sigma, seed=seed)


def genes(times, n=50, sigma=0.1, seed=0) -> list[Tensor]:
    """The published repressilator population."""
    field = lambda t, x: repressilator(t, x, **GENES)  # noqa: E731
    low, high = [1.0, 1.0, 2.0], [1.1, 1.1, 2.1]
    return population(field, low, high, times, n, sigma, dt=0.01, seed=seed)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
