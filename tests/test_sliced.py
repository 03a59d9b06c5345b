"""Values of sliced Wasserstein distances: peers, closed forms, quadrature, standard errors."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import integrate, special
from sliced_pairs import VARIATES, axes, pair, seeded, weights

from genflow.directions import Fixed, Grid, Isotropic, Sobol
from genflow.distance import SlicedWasserstein
from genflow.variate import Harmonics, Lower, TwoLevel, Upper

every = pytest.mark.parametrize("name", VARIATES)
weighted = pytest.mark.parametrize("weighted", [False, True])


@pytest.mark.parametrize(("n", "m"), [(9, 9), (5, 12), (1, 4)])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@weighted
def test_agrees_with_pot_on_the_same_directions(n, m, p, weighted):
    x, y = pair(n, m, 4)
    a, b = (weights(n), weights(m, seed=1)) if weighted else (None, None)
    theta = axes(30, 4)
    sw = SlicedWasserstein(30, p, Fixed(theta), None, root=True)
    shares = (None, None) if a is None else ((a / a.sum()).numpy(), (b / b.sum()).numpy())
    sets = x.numpy(), y.numpy(), *shares
    truth = ot.sliced_wasserstein_distance(*sets, projections=theta.T.numpy(), p=p)
    assert sw(x, y, a, b).item() == pytest.approx(float(truth), rel=1e-9)


@every
@pytest.mark.parametrize("shared", [True, False, None])
def test_a_batch_is_its_members(name, shared):
    x, y = pair(7, 10, batch=(2, 3))
    a, b = (weights(7), weights(10, seed=1)) if shared else (weights(2, 3, 7), weights(2, 3, 10))
    a, b = (None, None) if shared is None else (a, b)
    x, y = x.requires_grad_(), y.requires_grad_()
    sw = SlicedWasserstein(12, variate=VARIATES[name])
    whole = sw(x, y, a, b, seeded())
    scale = torch.arange(1.0, 7).reshape(2, 3).double()  # each member has its own upstream gradient
    found = torch.autograd.grad((whole * scale).sum(), (x, y))
    own = [
        sw(x[k], y[k], *((a, b) if shared is not False else (a[k], b[k])), seeded())
        for k in np.ndindex(2, 3)
    ]
    torch.testing.assert_close(whole.flatten(), torch.stack(own))
    truth = torch.autograd.grad((torch.stack(own) * scale.flatten()).sum(), (x, y))
    torch.testing.assert_close(found, truth)


@every
@weighted
def test_chunks_change_nothing(name, weighted):
    x, y = pair(40, 33, batch=(2,))
    x.requires_grad_()
    both = (weights(40), weights(33)) if weighted else (None, None)
    found = []
    for chunk in (None, 1, 5, 1000):
        value = SlicedWasserstein(12, variate=VARIATES[name], chunk=chunk)(x, y, *both, seeded())
        found.append((value.detach(), torch.autograd.grad(value.sum(), x)[0]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("dim", [2, 3, 5])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_translations_have_a_closed_form(dim, p):
    x, _ = pair(dim=dim)
    step = torch.linspace(1, 2, dim, dtype=torch.float64)
    # the height t = cos of the angle has density (1 - t^2)^((d - 3) / 2)
    moment = integrate.quad(lambda a: math.sin(a) ** (dim - 2) * math.cos(a) ** p, 0, math.pi / 2)[0]
    mass = special.beta((dim - 1) / 2, 0.5) / 2
    truth = moment / mass * step.norm().item() ** p
    for coefficient in (1.0, "regression", "leave_one_out"):
        sw = SlicedWasserstein(10, p, Isotropic(), Lower(coefficient))
        assert sw(x, x + step, generator=seeded()).item() == pytest.approx(truth, rel=1e-9)
    plain = SlicedWasserstein(10, p, Isotropic(), None)(x, x + step, generator=seeded())
    assert plain.item() != pytest.approx(truth, rel=1e-3)
    if p == 2:
        default = SlicedWasserstein(10)(x, x + step, generator=seeded())
        assert default.item() == pytest.approx(step.square().mean().item(), rel=1e-4)


def gaussian_truth(mean, cov_x, cov_y):
    def along(angle):
        theta = np.array([math.cos(angle), math.sin(angle)])
        spread = math.sqrt(theta @ cov_x @ theta) - math.sqrt(theta @ cov_y @ theta)
        return (theta @ mean) ** 2 + spread**2

    return integrate.quad(along, 0, math.pi)[0] / math.pi


@pytest.mark.parametrize(
    "sw",
    [
        SlicedWasserstein(40, variate=None), SlicedWasserstein(40),
        SlicedWasserstein(40, variate=Harmonics()),
        SlicedWasserstein(60, directions=Sobol(), variate=Lower()),
        SlicedWasserstein(60, directions=Isotropic(), variate=TwoLevel()),
    ],
    ids=str,
)  # fmt: skip
def test_gaussians_in_the_plane_against_quadrature(sw, generator):
    """Large samples: their own bias, of order log log n / n, is far below the standard error."""
    one, two = np.array([[1.0, 0.3], [0.0, 0.4]]), np.array([[0.5, 0.0], [-0.6, 1.5]])
    mean = np.array([0.4, -0.2])
    truth = gaussian_truth(mean, one.T @ one, two.T @ two)
    values = []
    for _ in range(12):
        z = torch.randn(2, 10_000, 2, generator=generator, dtype=torch.float64)
        x, y = z[0] @ torch.from_numpy(one), z[1] @ torch.from_numpy(two) + torch.from_numpy(mean)
        values.append(sw(x, y, generator=generator).item())
    error = np.std(values, ddof=1) / 12**0.5
    assert error < 0.02 * truth
    assert abs(np.mean(values) - truth) < 4 * error
    no_means = gaussian_truth(0 * mean, one.T @ one, two.T @ two)
    assert abs(np.mean(values) - no_means) > 8 * error


@every
def test_draws_follow_the_generator(name):
    x, y = pair()
    sw = SlicedWasserstein(8, directions=Isotropic(), variate=VARIATES[name])
    draw = seeded(1)
    one, two = sw(x, y, generator=draw), sw(x, y, generator=draw)
    assert torch.equal(one, sw(x, y, generator=seeded(1))) and not torch.equal(one, two)
    torch.manual_seed(1)
    assert torch.equal(sw(x, y), one)


def test_root():
    x, y = pair(batch=(2,))
    for p in (1, 2, 3):
        power, root = (SlicedWasserstein(9, p, root=r)(x, y, generator=seeded()) for r in (False, True))
        torch.testing.assert_close(root**p, power)


def test_root_of_what_is_negative_is_zero():
    x, _ = pair()
    values = [SlicedWasserstein(8, variate=Upper(1.0), root=r)(x.requires_grad_(), x.detach().clone(),
              generator=seeded(2)) for r in (False, True)]  # fmt: skip
    assert values[0] < 0 and values[1] == 0
    assert not torch.autograd.grad(values[1], x)[0].any()


@pytest.mark.parametrize("p", [1, 3])
def test_the_standard_error_is_right(p, generator):
    """Its square is the variance of the values, on average over many; the truth is from a fine grid."""
    x, y = pair(6, 8, 2, batch=(3,))
    truth = SlicedWasserstein(3000, p, Grid(), None)(x, y, generator=generator)
    sw = SlicedWasserstein(6, p, Isotropic(), Lower())
    found = [sw.estimate(x, y, generator=generator) for _ in range(120)]
    value, error = (torch.stack(z) for z in zip(*found))
    assert value.shape == error.shape == (120, 3) and (error > 0).all()
    ratio = error.square().mean(0) / value.var(0)
    assert ((ratio > 0.6) & (ratio < 1.6)).all()  # their own errors are an eighth
    assert ((value.mean(0) - truth).abs() < 4 * value.std(0) / 120**0.5).all()
    assert not sw.estimate(x.requires_grad_(), y, generator=generator).value.requires_grad


def test_an_estimate_is_the_mean_of_its_calls():
    x, y = pair()
    for root in (False, True):
        found = SlicedWasserstein(7, root=root).estimate(x, y, generator=seeded(), repeats=5)
        draw = seeded()
        calls = torch.stack([SlicedWasserstein(7)(x, y, generator=draw) for _ in range(5)])
        value, error = calls.mean(), calls.std() / 5**0.5
        if root:  # the error by the slope of the root
            value, error = value.sqrt(), error / (2 * value.sqrt())
        torch.testing.assert_close(tuple(found), (value, error))
    nothing = SlicedWasserstein(7, root=True).estimate(x, x, generator=seeded())
    assert nothing.value.item() == pytest.approx(0, abs=1e-6) and nothing.error.isfinite()
