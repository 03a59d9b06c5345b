"""The max-sliced and the energy-based sliced distances: closed forms, dense grids, gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from spheres import draw, project, repeated

from genflow.directions import Isotropic
from genflow.distance import EnergySliced, MaxSliced, SlicedWasserstein

ORDERS = [1.0, 1.5, 2.0, 3.0]


def pair(n=15, m=15, d=2, seed=0):
    x = torch.randn(n, d, generator=draw(seed), dtype=torch.float64)
    y = torch.randn(m, d, generator=draw(seed + 1), dtype=torch.float64)
    return x, 1.5 * y * torch.linspace(0.4, 1.4, d) + 0.3


def circle(angle):
    return torch.stack([angle.cos(), angle.sin()], 1)


def peak(x, y, p=2.0, points=4000):
    """The largest projected distance in the plane, from a grid that is laid anew around its best angle;
    the angle; and whether the distance is smooth there."""
    angle = torch.arange(points, dtype=torch.float64) * (math.pi / points)
    width = math.pi / points
    for _ in range(3):
        costs = project(x, y, circle(angle), p)
        best = angle[costs.argmax()]
        angle = best + torch.linspace(-width, width, 401, dtype=torch.float64)
        width /= 200
    around = project(x, y, circle(best + torch.tensor([-1e-5, 0.0, 1e-5], dtype=torch.float64)), p)
    return float(costs.max()), best, float(2 * around[1] - around[0] - around[2]) < 1e-7


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_dense_grid_in_the_plane(seed, p):
    x, y = pair(12, 18, seed=seed)
    truth, angle, _ = peak(*repeated(x, y), p)
    distance = MaxSliced(p=p, steps=60)
    found = float(distance(x, y, generator=draw(1)))
    assert truth * (1 - 1e-6) < found <= truth * (1 + 1e-7)
    way = distance.direction(x, y, generator=draw(1))
    assert abs(float(way @ circle(angle[None])[0])) == pytest.approx(1, abs=1e-4)
    assert float(project(*repeated(x, y), way[None], p)) == pytest.approx(found)


def test_climbs_from_where_it_starts():
    """One direction and no step fall short; steps lift the same start."""
    x, y = pair(seed=3)
    y = y - y.mean(0) + x.mean(0)  # no help from the means
    truth = peak(x, y)[0]
    low = [float(MaxSliced(1, starts=1, steps=0)(x, y, generator=draw(s))) for s in range(10)]
    high = [float(MaxSliced(1, starts=2, steps=60)(x, y, generator=draw(s))) for s in range(10)]
    assert max(high) > truth * (1 - 1e-5) and all(b >= a for a, b in zip(low, high))
    assert np.mean(low) < 0.8 * truth < np.mean(high)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("d", [1, 2, 3, 30])
def test_translation_has_the_length_of_its_step(d, p):
    x = torch.randn(20, d, generator=draw(0), dtype=torch.float64)
    step = torch.randn(d, generator=draw(1), dtype=torch.float64)
    length = float(step.norm())
    assert float(MaxSliced(p=p)(x, x + step, generator=draw(2))) == pytest.approx(length**p)
    assert float(MaxSliced(p=p, root=True)(x, x + step, generator=draw(2))) == pytest.approx(length)
    way = MaxSliced(p=p).direction(x, x + step, generator=draw(2))
    assert abs(float(way @ step)) == pytest.approx(length)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_gaussians_with_one_stretched_axis(d):
    """The map along the axis is monotone, and no other coupling of the sets' projections costs less."""
    x = torch.randn(2000, d, generator=draw(0), dtype=torch.float64)
    turn = torch.from_numpy(stats.ortho_group.rvs(d, random_state=1))
    stretch = torch.ones(d, dtype=torch.float64)
    stretch[0] = 3.0
    sets = x @ turn, (x * stretch) @ turn
    distance = MaxSliced(200, steps=100)
    found = float(distance(*sets, generator=draw(3)))
    truth = 4 * float((x[:, 0] ** 2).mean())
    assert truth * (1 - 1e-4) < found <= truth * (1 + 1e-9)
    assert abs(found - 4) < 4 * 4 * (2 / 2000) ** 0.5  # that of the laws
    assert abs(float(distance.direction(*sets, generator=draw(3)) @ turn[0])) > 0.999
    assert float(SlicedWasserstein(200, variate=None)(*sets, generator=draw(3))) < 0.7 * truth


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6),
    st.sampled_from(ORDERS),
)  # fmt: skip
def test_lies_between_the_average_and_the_coupled_distance(n, m, d, seed, p):
    x, y = pair(n, m, d, seed)
    found = float(MaxSliced(30, p, steps=10)(x, y, generator=draw(seed)))
    tried = SlicedWasserstein(30, p, variate=None)(x, y, generator=draw(seed))
    assert float(tried) <= found * (1 + 1e-9) + 1e-12
    # any coupling costs at least what projections of it do: here all with all
    cost = torch.cdist(x, y).pow(p).mean()
    assert found <= float(cost) * (1 + 1e-9)
    if d == 2:
        assert found <= peak(*repeated(x, y), p, 300)[0] * (1 + 1e-3)


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
def test_gradients_against_finite_differences_of_the_grid_maximum(p):
    tested = 0
    for seed in range(20):
        x, y = pair(6, 6, seed=seed)
        if not peak(x, y, p)[2]:  # two orders of projections meet: no gradient there
            continue
        tested += 1
        a, b = (z.clone().requires_grad_() for z in (x, y))
        MaxSliced(p=p, steps=100)(a, b, generator=draw(0)).backward()
        ways = [torch.randn(6, 2, generator=draw(seed + k), dtype=torch.float64) for k in range(2)]
        up, down = (peak(x + h * ways[0], y + h * ways[1], p)[0] for h in (1e-4, -1e-4))
        along = float((a.grad * ways[0]).sum() + (b.grad * ways[1]).sum())
        assert along == pytest.approx((up - down) / 2e-4, rel=1e-3, abs=1e-4)
        if tested == 3:
            return
    raise AssertionError("too few smooth maxima")


@pytest.mark.parametrize("distance", [MaxSliced(), EnergySliced(energy="power")], ids=str)
def test_whole_numbers_as_weights_are_copies(distance):
    x, y = pair(6, 8, 3)
    a, b = torch.tensor([1, 2, 3, 0, 1, 1]), torch.tensor([2, 1, 1, 1, 3, 1, 1, 2])
    value = distance(x, y, a, b, generator=draw(0))
    copies = distance(x.repeat_interleave(a, 0), y.repeat_interleave(b, 0), generator=draw(0))
    torch.testing.assert_close(value, copies)
    assert float(distance(x, y, a, generator=draw(0)) - copies) != pytest.approx(0, abs=1e-4)


def weighted(costs, energy, scale):
    """Importance weights by hand: a loop, and no softmax."""
    size = np.array([math.exp(c / scale) if energy == "exponential" else c**scale for c in costs])
    return size / size.sum()


ENERGIES = [("exponential", 1.0), ("exponential", 3.0), ("power", 1.0), ("power", 0.5), ("power", 2.0)]
energies = pytest.mark.parametrize("energy, scale", ENERGIES)


@pytest.mark.parametrize("p", ORDERS)
@energies
def test_energy_is_a_mean_by_hand(energy, scale, p):
    x, y = pair(d=3)
    distance = EnergySliced(25, p, energy, scale, directions=Isotropic())
    value = float(distance(x, y, generator=draw(2)))
    costs = project(x, y, Isotropic().sample(25, 3, draw(2), x), p).numpy()
    assert value == pytest.approx(float(weighted(costs, energy, scale) @ costs))
    plain = float(SlicedWasserstein(25, p, Isotropic(), None)(x, y, generator=draw(2)))
    assert plain < value < costs.max()
    assert float(replace(distance, root=True)(x, y, generator=draw(2))) == pytest.approx(
        value ** (1 / p)
    )


@given(
    st.integers(1, 10), st.integers(1, 10), st.integers(1, 5), st.integers(0, 10**6),
    st.sampled_from(ENERGIES), st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_energy_is_at_least_plain(n, m, d, seed, energy, units):
    x, y = (z * units for z in pair(n, m, d, seed))
    value = float(EnergySliced(20, 2.0, *energy, directions=Isotropic())(x, y, generator=draw(seed)))
    plain = float(SlicedWasserstein(20, 2.0, Isotropic(), None)(x, y, generator=draw(seed)))
    assert value >= plain * (1 - 1e-9)
    largest = MaxSliced(20, steps=0, directions=Isotropic())
    assert value <= float(largest(x, y, generator=draw(seed))) * (1 + 1e-9)


def test_limits_of_the_energy():
    x, y = pair(d=3)
    plain = SlicedWasserstein(30, directions=Isotropic(), variate=None)(x, y, generator=draw(0))
    top = project(x, y, Isotropic().sample(30, 3, draw(0), x)).max()

    def value(energy, scale):
        return EnergySliced(30, 2.0, energy, scale, directions=Isotropic())(x, y, generator=draw(0))

    torch.testing.assert_close(value("exponential", 1e9), plain)
    torch.testing.assert_close(value("power", 1e-9), plain)
    torch.testing.assert_close(value("exponential", 1e-6), top)
    torch.testing.assert_close(value("power", 1e6), top)


def test_power_does_not_hang_on_units():
    x, y = pair(d=3)
    for energy, same in (("power", True), ("exponential", False)):
        distance = EnergySliced(30, energy=energy)
        one, ten = (distance(c * x, c * y, generator=draw(0)) for c in (1.0, 10.0))
        assert (float(ten) == pytest.approx(100 * float(one), rel=1e-9)) == same


@pytest.mark.parametrize("p", [1.5, 2.0])
@pytest.mark.parametrize("through", [False, True])
@energies
def test_gradients_of_the_energy(energy, scale, through, p):
    x, y = (z.requires_grad_() for z in pair(d=3))
    distance = EnergySliced(12, p, energy, scale, through, Isotropic())
    found = torch.autograd.grad(distance(x, y, generator=draw(4)), (x, y))
    costs = project(x, y, Isotropic().sample(12, 3, draw(4), x), p)
    size = (costs / scale).exp() if energy == "exponential" else costs**scale
    share = size / size.sum()
    truths = [
        torch.autograd.grad((weight * costs).sum(), (x, y), retain_graph=True)
        for weight in (share.detach(), share)
    ]
    for a, b, other in zip(found, truths[through], truths[not through]):
        torch.testing.assert_close(a, b)
        assert float((a - other).abs().max()) > 1e-2 * float(a.abs().max())


EVERY = [
    MaxSliced(), MaxSliced(p=1.0, root=True), EnergySliced(), EnergySliced(through=True, root=True),
    EnergySliced(energy="power"), EnergySliced(energy="power", through=True),
    EnergySliced(energy="power", scale=3.0, p=1.5, through=True, root=True),
]  # fmt: skip
every = pytest.mark.parametrize("distance", EVERY, ids=str)


@every
def test_sets_that_coincide(distance):
    x, _ = pair(d=3)
    x, y = x.clone().requires_grad_(), x.flip(0).clone().requires_grad_()
    value = distance(x, y, generator=draw(0))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-12)
    assert x.grad.isfinite().all() and y.grad.isfinite().all()
    # a root has no derivative there, and follows what rounding left
    assert float(x.grad.abs().max()) < (1 if distance.root else 1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batches(distance, dtype):
    """Values and gradients of a batch are those of its pairs."""
    x, y = (torch.randn(2, 3, n, 4, generator=draw(n), dtype=dtype) for n in (7, 9))
    x, y = x.requires_grad_(), y.requires_grad_()
    found = distance(x, y, generator=draw(0))
    assert found.shape == (2, 3) and found.dtype == dtype
    scale = torch.arange(1.0, 7, dtype=dtype).view(2, 3)
    grads = torch.autograd.grad((scale * found).sum(), (x, y))
    generator = draw(0)
    for i in range(2):
        for j in range(3):
            if isinstance(distance, EnergySliced):  # a batch shares its directions
                generator = draw(0)
            one = distance(x[i, j], y[i, j], generator=generator)
            torch.testing.assert_close(found[i, j], one)
            for whole, part in zip(grads, torch.autograd.grad(scale[i, j] * one, (x, y))):
                torch.testing.assert_close(whole[i, j], part[i, j], rtol=1e-4, atol=1e-6)


@every
def test_chunks_change_nothing(distance):
    x, y = pair(9, 11, 3)
    parts = [replace(distance, projections=37, chunk=c) for c in (1, 5, 37, None)]
    values = [float(part(x, y, generator=draw(0))) for part in parts]
    assert max(values) - min(values) < 1e-12


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: MaxSliced(0), "projections"), (lambda: MaxSliced(starts=0), "starts"),
        (lambda: MaxSliced(steps=-1), "steps"), (lambda: MaxSliced(rate=0.0), "rate"),
        (lambda: MaxSliced(p=0.9), "p must be at least 1"), (lambda: MaxSliced(chunk=0), "chunk"),
        (lambda: EnergySliced(energy="linear"), "energy"), (lambda: EnergySliced(scale=-1.0), "scale"),
        (lambda: EnergySliced(p=math.inf), "p must be at least 1"),
    ],
)  # fmt: skip
def test_arguments_out_of_range(make, word):
    with pytest.raises((ValueError, TypeError), match=word):
        make()


@every
def test_points_that_are_no_numbers(distance):
    x, y = pair(d=3)
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="x holds numbers that are not finite"):
        distance(x, y)
    with pytest.raises(ValueError, match="last dimension"):
        distance(y[:, :2], y)


@every
def test_second_derivatives_are_refused(distance):
    x, y = pair(d=3)
    grad = torch.autograd.grad(distance(x.requires_grad_(), y), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()
