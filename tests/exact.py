"""Exact fields as networks, for the tests of sampling and likelihood."""

from collections.abc import Sequence

import torch
from gaussians import Pair, fields
from torch import Tensor, nn

from genflow.interpolant import (
    Affine,
    Brownian,
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Trigonometric,
    VariancePreserving,
    Zero,
)
from genflow.model import Generator
from genflow.network import MLP
from genflow.oracle import Exact, independent
from genflow.process import StochasticInterpolant
from genflow.solver import Heun
from genflow.source import Gaussian, GaussianMixture

WIDTHS = [Brownian(), Brownian(0.3), Quadratic(), SinSquared(), SigmaDifference()]
TWO_SIDED = [
    BrownianBridge(0.7), *(Linear(gamma=g) for g in WIDTHS), *map(Trigonometric, WIDTHS),
    *(VariancePreserving(g) for g in WIDTHS if not isinstance(g, SinSquared)),
    *map(EncoderDecoder, WIDTHS),
]  # fmt: skip
ONE_SIDED = [OneSided(), OneSided(Trigonometric()), OneSided(VariancePreserving(Zero()))]
MIRRORS = list(map(Mirror, WIDTHS))


class Known(nn.Module):
    """The fields of a Gaussian pair in the plane, in closed form, by the names ``outputs``.

    All rows share one time, as they do in a solver. With conditions, each row follows ``laws[cond]``.
    ``calls`` counts evaluations.
    """

    def __init__(
        self,
        law: Pair | Sequence[Pair],
        path: Affine,
        outputs: Sequence[str] = ("velocity", "noise"),
    ) -> None:
        super().__init__()
        self.laws = [law] if isinstance(law, Pair) else list(law)
        self.path, self.outputs, self.calls = path, list(outputs), 0

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        c = self.path.coefficients(t[:1].double())
        rows = [self._fields(fields(law, c), x) for law in self.laws]
        if cond is None:
            return rows[0]
        own = torch.arange(len(x))
        return {name: torch.stack([row[name] for row in rows])[cond, own] for name in self.outputs}

    def _fields(self, found: dict[str, tuple[Tensor, Tensor]], x: Tensor) -> dict[str, Tensor]:
        return {n: (x.double() @ found[n][0].T + found[n][1]).to(x) for n in self.outputs}


class Turned(nn.Module):
    """Mistakes to catch: the fields of a network, each times its factor."""

    def __init__(self, network: nn.Module, **factors: float) -> None:
        super().__init__()
        self.network, self.factors, self.outputs = network, factors, network.outputs

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        return {name: self.factors.get(name, 1) * v for name, v in self.network(t, x, cond).items()}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ends(law: Pair, path: Affine) -> tuple[nn.Module, nn.Module]:
    """The laws at both ends as sources in float64; noise at the start of a one-sided path."""
    data = GaussianMixture([law.mean1.tolist()], [law.cov1.tolist()]).double()
    if isinstance(path, OneSided):
        return Gaussian(2).double(), data
    if isinstance(path, Mirror):
        return data, data
    return GaussianMixture([law.mean0.tolist()], [law.cov0.tolist()]).double(), data


def gaussian_model(law: Pair, path: Affine, **options) -> Generator:
    """A model with the exact fields of a Gaussian pair."""
    process = StochasticInterpolant(Known(law, path), path, **options)
    return Generator(ends(law, path)[0], process, Heun(60)).double()


START = GaussianMixture(
    [[-1.5, 0.0], [1.0, 1.0]], [[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]]], [0.4, 0.6]
).double()
DATA = GaussianMixture(
    [[2.0, 0.0], [-1.0, 2.0], [0.0, -2.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.4, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.4]]],
    [0.5, 0.3, 0.2],
).double()


def mixture(means: Tensor, covs: Tensor, weights: Tensor) -> torch.distributions.Distribution:
    """A mixture of Gaussians of torch's own."""
    parts = torch.distributions.MultivariateNormal(means, covs)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts)


def truth(law: GaussianMixture, blur: float = 0.0, scale: float = 1.0):
    """``scale X + blur Z`` of a mixture ``X``, as a distribution of torch."""
    weights, means, covs = law.components()
    eye = torch.eye(means.shape[1], dtype=torch.float64)
    return mixture(scale * means, scale**2 * covs + blur**2 * eye, weights)


def moments(law: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    weights, means, covs = law.components()
    mean = weights @ means
    return mean, torch.einsum("k,kij->ij", weights, covs + means[:, :, None] * means[:, None]) - (
        mean[:, None] * mean
    )


def score(law: torch.distributions.Distribution, x: Tensor) -> Tensor:
    """Gradient of a log-density."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(law.log_prob(x).sum(), x)[0]


def mixture_model(
    path: Affine | None = None, kind=StochasticInterpolant, **factors: float
) -> Generator:
    """A model with the exact fields from ``START``, or noise on a one-sided path, to ``DATA``."""
    path = BrownianBridge() if path is None else path
    start = Gaussian(2).double() if isinstance(path, OneSided) else START
    exact = Turned(Exact(independent(start, DATA), path), **factors)
    return Generator(start, kind(exact, path), Heun(25)).double()


def mlp_model(shape: Sequence[int] = (2,), outputs: Sequence[str] = ("velocity", "noise")) -> Generator:
    """A small network of random weights, in float64."""
    torch.manual_seed(0)
    network = MLP(list(shape), 16, 2, "Tanh", outputs=list(outputs))
    process = StochasticInterpolant(network, BrownianBridge())
    return Generator(Gaussian(list(shape)), process, Heun(10)).double()


def estimate(model: Generator, x: Tensor, epsilon: float | str, n: int) -> tuple[Tensor, Tensor]:
    """Means of the density's estimate over ``n`` noisy paths, and their standard errors."""
    rows = x.repeat_interleave(n, 0)
    draws = model.log_prob(rows, epsilon=epsilon, steps=100, generator=seeded()).reshape(len(x), n)
    return draws.mean(1), draws.std(1) / n**0.5


def same(found: Tensor, want: Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(found, want, atol=tolerance, rtol=0)
