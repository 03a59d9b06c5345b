"""Point sets, weights, directions and estimators that tests of sliced distances share."""

import torch

from genflow.variate import Harmonics, Lower, Several, TwoLevel, Upper

VARIATES = {
    "plain": None, "lower": Lower(), "upper": Upper(1.0), "two_level": TwoLevel(inner=20),
    "harmonics": Harmonics(2), "published": Lower("published"),
    "regression": Several([Lower(), Upper()]),
}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(n=9, m=9, dim=3, seed=0, dtype=torch.float64, batch=()):
    """Normal and warped normal points: no variate fits them exactly."""
    draw = seeded(seed)
    x, y = (torch.randn(*batch, k, dim, generator=draw, dtype=torch.float64) for k in (n, m))
    return x.to(dtype), (0.6 + 1.4 * y + 0.3 * y**2).to(dtype)


def weights(*shape, seed=0):
    """Of any sum, some zero."""
    found = torch.rand(shape, generator=seeded(seed), dtype=torch.float64) + 0.1
    return torch.where(torch.arange(shape[-1]) % 4 == 1, 0.0, 3 * found)


def axes(projections, dim, seed=0):
    """Directions of any kind."""
    vectors = torch.randn(projections, dim, generator=seeded(seed), dtype=torch.float64)
    return vectors / vectors.norm(dim=1, keepdim=True)
