"""Log-densities beside facebookresearch/flow_matching: agreement, and what that library cannot do."""

import math

import pytest
import torch
from exact import same, seeded
from torch import nn

from genflow.model import Generator
from genflow.process import SDE
from genflow.solver import Heun
from genflow.source import Gaussian


class Mixing(nn.Module):
    """A linear velocity that mixes an event's coordinates, for events of any shape."""

    def forward(self, t, x, cond=None):
        return 0.3 * x + 0.5 * x.flatten(1).flip(1).reshape(x.shape)


def normal(x):
    return -(0.5 * x.flatten(1) ** 2 + 0.5 * math.log(2 * math.pi)).sum(1)


def theirs(x, exact):
    library = pytest.importorskip("flow_matching.solver")
    from flow_matching.utils import ModelWrapper

    class Wrapped(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model(t, x)

    solver = library.ODESolver(Wrapped(Mixing()))
    return solver.compute_likelihood(x, normal, 0.025, "rk4", exact_divergence=exact)[1]


def ours(x, **options):
    return (
        Generator(Gaussian(list(x.shape[1:])), SDE(Mixing()), Heun()).to(x.dtype).log_prob(x, **options)
    )


def linear_truth(x):
    rows, dim = x.flatten(1).double(), x[0].numel()
    eye = torch.eye(dim, dtype=torch.float64)
    matrix = 0.3 * eye + 0.5 * eye.flip(0)
    return normal(rows @ torch.linalg.matrix_exp(-matrix).T) - matrix.trace()


def event(shape, dtype):
    return torch.randn(5, *shape, generator=seeded(), dtype=dtype)


def test_flow_matching_agrees_on_vectors():
    x = event((2,), torch.float32)
    same(ours(x), theirs(x, exact=True), 1e-4)
    same(ours(x).double(), linear_truth(x), 1e-4)


@pytest.mark.parametrize(
    "shape, dtype, exact, error",
    [
        ((2,), torch.float64, False, RuntimeError),  # its signs are float32 in any case
        ((1, 4, 4), torch.float64, False, RuntimeError),
        ((1, 4, 4), torch.float32, True, IndexError),  # its exact divergence indexes channels
        ((1, 4, 4), torch.float64, True, IndexError),
    ],
)
def test_what_flow_matching_cannot_do_works_here(shape, dtype, exact, error):
    x = event(shape, dtype)
    with pytest.raises(error):
        theirs(x, exact)
    if exact:
        same(ours(x).double(), linear_truth(x), 1e-3)
        return
    found = ours(x.repeat_interleave(500, 0), divergence="hutchinson", steps=10, generator=seeded())
    found = found.reshape(5, 500)
    error = found.std(1) / 500**0.5
    assert ((found.mean(1) - linear_truth(x)).abs() < 4.5 * error + 1e-3).all()
