"""Transforms: round trips, fitted moments, Jacobians."""

import pytest
import torch

from genflow.transform import Identity, Standardise

KINDS = [(2, "feature"), (2, "all"), ([1, 3, 3], "feature"), ([1, 3, 3], "all")]
kinds = pytest.mark.parametrize("dim, per", KINDS, ids=str)


def data(dim, n=500, dtype=torch.float64):
    shape = (dim,) if isinstance(dim, int) else tuple(dim)
    generator = torch.Generator().manual_seed(3)
    scale = torch.linspace(0.5, 4.0, torch.Size(shape).numel(), dtype=dtype).reshape(shape)
    return 7 + scale * torch.randn(n, *shape, generator=generator, dtype=dtype)


def fitted(dim, per, dtype=torch.float64):
    return Standardise(dim, per).to(dtype).prepare(data(dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@kinds
def test_round_trip(dim, per, dtype):
    transform, x = fitted(dim, per, dtype), data(dim, dtype=dtype)
    z = transform(x)
    assert z.dtype == dtype and not torch.allclose(z, x)
    torch.testing.assert_close(transform.inverse(z), x)
    assert torch.equal(Identity().inverse(Identity()(x)), x)


@kinds
def test_fitted_data_are_standard(dim, per):
    z = fitted(dim, per)(data(dim))
    dims = 0 if per == "feature" else None
    mean, std = z.mean(dims), z.std(dims, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-12)
    spread = z.std(0, correction=0)
    assert (spread.max() > 1.2) == (per == "all")  # one number for all keeps their proportions


@kinds
def test_log_abs_det_is_that_of_the_jacobian(dim, per):
    transform, x = fitted(dim, per), data(dim)[:3]
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda r: transform(r[None])[0], row) for row in x]
    )
    size = x[0].numel()
    truth = torch.linalg.slogdet(jacobian.reshape(3, size, size)).logabsdet
    torch.testing.assert_close(transform.log_abs_det(x), truth)
    assert torch.equal(Identity().log_abs_det(x), torch.zeros(3, dtype=x.dtype))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_coordinates_keep_their_scale(value, dtype):
    x = data(2, dtype=dtype)
    x[:, 1] = value
    transform = Standardise(2).to(dtype).prepare(x)
    assert transform.std[1] == 1 and transform(x)[:, 1].abs().max() <= 1e-6 * abs(value)
    torch.testing.assert_close(transform.inverse(transform(x)), x)


def test_a_small_spread_far_from_zero_is_no_constant():
    x = 1e6 + data(2)
    torch.testing.assert_close(Standardise(2).double().prepare(x).std, x.std(0, correction=0))


def test_prepare_returns_itself_and_refuses_other_shapes():
    transform = Standardise([1, 3, 3])
    assert transform.prepare(data([1, 3, 3])) is transform
    with pytest.raises(ValueError, match=r"set dim to \[2\]"):
        transform.prepare(data(2))
    with pytest.raises(ValueError, match="'feature', 'all'"):
        Standardise(2, per="row")
