"""Sliced distances in backward passes of all kinds: kept graphs, half precision, autocast."""

import pytest
import torch

from genflow.distance import EnergySliced, MaxSliced, SlicedWasserstein

EVERY = [SlicedWasserstein(20), SlicedWasserstein(20, variate=None), EnergySliced(20), MaxSliced(20)]
every = pytest.mark.parametrize("sw", EVERY, ids=lambda sw: f"{type(sw).__name__}{EVERY.index(sw)}")


def pair(dtype=torch.float32, dim=4):
    draw = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(2, 30, dim, generator=draw, dtype=torch.float64)
        + torch.tensor([0.0, 1])[:, None, None]
    )
    return x.to(dtype).requires_grad_(), y.to(dtype)


def seed():
    return torch.Generator().manual_seed(1)


@every
def test_points_that_change_after_the_call_leave_the_gradient_alone(sw):
    x, y = pair()
    (truth,) = torch.autograd.grad(sw(x, y, generator=seed()), x)
    value = sw(x, y, generator=seed())
    y.zero_()  # a buffer that the loader fills again
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], truth)


@every
def test_a_kept_graph_gives_the_same_gradient_again(sw):
    x, y = pair()
    (truth,) = torch.autograd.grad(sw(x, y, generator=seed()), x)
    value = sw(x, y, generator=seed())
    for k in (1, 2, 3):
        value.backward(retain_graph=True)
        torch.testing.assert_close(x.grad, k * truth)
    x.grad.zero_()  # in place: what is kept must not be what was handed out
    value.backward()
    torch.testing.assert_close(x.grad, truth)


@pytest.mark.parametrize("dim", [2, 3, 5])  # each has its own directions
@every
def test_autocast_changes_nothing(sw, dim):
    x, y = pair(dim=dim)
    plain = sw(x, y, generator=seed())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sw(x, y, generator=seed())
        (gradient,) = torch.autograd.grad(value, x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, x)[0])


@pytest.mark.parametrize("kind", [SlicedWasserstein, EnergySliced, MaxSliced])
def test_a_root_that_fits_half_precision_is_found_though_its_square_does_not(kind):
    x = torch.full((5, 1), 300.0, dtype=torch.float16)
    assert float(kind(5, root=True)(x, -x)) == 600
