"""Directions: unit rows, uniform on the sphere by their moments, evenly spread, repeatable."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from genflow.directions import Auto, Fixed, Grid, Isotropic, Orthogonal, Sobol, Spiral, rotation
from genflow.directions.base import Directions
from genflow.directions.plain import _frames
from genflow.directions.quasi import spiral
from genflow.distance import SlicedWasserstein

EVERY = [
    (Isotropic(), 1), (Isotropic(), 2), (Isotropic(), 5), (Orthogonal(), 1), (Orthogonal(), 2),
    (Orthogonal(), 5), (Sobol(), 1), (Sobol(), 2), (Sobol(), 5), (Grid(), 2), (Spiral(), 3),
    (Auto(), 1), (Auto(), 2), (Auto(), 3), (Auto(), 6),
]  # fmt: skip
every = pytest.mark.parametrize(("directions", "dim"), EVERY, ids=str)
UNIFORM = [(d, dim) for d, dim in EVERY if dim > 1 and not (isinstance(d, (Auto, Grid)) and dim == 2)]
"""Where each direction for itself is uniform; a grid is so only on average."""
DOUBLE = torch.empty(0, dtype=torch.float64)


def draws(directions, projections, dim, repeats, generator):
    """``(repeats, L, d)`` in double precision."""
    found = [directions.sample(projections, dim, generator, DOUBLE) for _ in range(repeats)]
    return torch.stack(found)


def z_score(values, truth):
    """Of means of independent ``values (R, ...)``; what is exact counts as right."""
    off, error = values.mean(0) - truth, values.std(0) / len(values) ** 0.5
    return torch.where(off.abs() < 1e-12, 0.0, off / error).abs().max().item()


@every
@pytest.mark.parametrize("projections", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_have_length_one(directions, dim, projections, dtype, generator):
    assert isinstance(directions, Directions)
    found = directions.sample(projections, dim, generator, torch.empty(0, dtype=dtype))
    assert found.shape == (projections, dim) and found.dtype == dtype
    assert directions.sample(projections, dim, generator).dtype == torch.float32
    one = torch.ones(projections, dtype=dtype)
    torch.testing.assert_close(found.norm(dim=1), one, rtol=0, atol=4 * torch.finfo(dtype).eps)


@every
def test_draws_repeat_with_their_generator(directions, dim):
    def draw(seed=None):
        if seed is not None:
            return directions.sample(6, dim, torch.Generator().manual_seed(seed))
        return directions.sample(6, dim)

    generator = torch.Generator().manual_seed(1)
    first, second = (directions.sample(6, dim, generator) for _ in range(2))
    assert torch.equal(first, draw(1))
    if dim > 1:
        assert not torch.equal(first, second) and not torch.equal(first, draw(2))
    torch.manual_seed(3)
    free = draw()
    torch.manual_seed(3)
    assert torch.equal(free, draw())
    state = torch.get_rng_state()
    draw(1)
    assert torch.equal(state, torch.get_rng_state()), "a generator leaves the global state alone"


def moments(theta):
    """Even moments of directions ``(..., d)`` up to order six, in random axes: they tell laws apart."""
    a, b = theta[..., 0], theta[..., -1]
    return torch.stack([a**2, a * b, a**4, a**2 * b**2, a**3 * b, a**6], -1)


def true_moments(d):
    two, four = 1 / d, 1 / (d * (d + 2))
    return torch.tensor([two, 0, 3 * four, four, 0, 15 * four / (d + 4)], dtype=torch.float64)


@pytest.mark.parametrize(("directions", "dim"), UNIFORM, ids=str)
def test_each_direction_is_uniform(directions, dim, generator):
    theta = draws(directions, 8, dim, 1500, generator)
    assert z_score(moments(theta), true_moments(dim)) < 4.5
    assert z_score(theta, 0.0) < 4.5


def test_moments_tell_other_laws(generator):
    cube = torch.rand(20_000, 5, generator=generator, dtype=torch.float64) - 0.5
    assert z_score(moments(cube / cube.norm(dim=1, keepdim=True)), true_moments(5)) > 10


@every
@pytest.mark.parametrize("projections", [1, 7])
def test_averages_are_unbiased(directions, dim, projections, generator):
    """Of a function with a kink, whose mean comes from one-dimensional quadrature."""
    if dim == 1:
        return
    axis = torch.arange(1.0, dim + 1, dtype=torch.float64)
    theta = draws(directions, projections, dim, 500, generator)
    values = ((theta @ axis).abs() / axis.norm() - 0.3).abs().mean(1)
    # t = cos of the angle has density (1 - t^2)^((d - 3) / 2)
    density = special.gamma(dim / 2) / (math.sqrt(math.pi) * special.gamma((dim - 1) / 2))
    truth, _ = integrate.quad(
        lambda a: density * math.sin(a) ** (dim - 2) * abs(abs(math.cos(a)) - 0.3), 0, math.pi,
        points=[math.acos(0.3), math.acos(-0.3), math.pi / 2],
    )  # fmt: skip
    assert z_score(values, truth) < 4.5


@pytest.mark.parametrize(
    ("directions", "dim", "most"),
    [
        (Orthogonal(), 2, 0.1), (Orthogonal(), 5, 0.1), (Sobol(), 2, 0.3), (Sobol(), 5, 0.7),
        (Grid(), 2, 1e-20), (Spiral(), 3, 1e-3), (Auto(), 2, 1e-20), (Auto(), 3, 1e-3),
    ],
    ids=str,
)  # fmt: skip
def test_smooth_averages_vary_less_than_independent_ones(directions, dim, most, generator):
    def variance(kind):
        axis = torch.full((dim,), dim**-0.5, dtype=torch.float64)
        return (draws(kind, 40, dim, 200, generator) @ axis).square().exp().mean(1).var()

    assert variance(directions) < most * variance(Isotropic())


@pytest.mark.parametrize(("projections", "dim"), [(1, 4), (3, 4), (4, 4), (11, 4), (24, 12)])
def test_blocks_are_orthonormal(projections, dim, generator):
    found = Orthogonal().sample(projections, dim, generator, DOUBLE)
    for block in found.split(dim):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block), dtype=torch.float64))
    full = projections // dim
    truth = torch.full((dim,), full, dtype=torch.float64)
    torch.testing.assert_close(found[: full * dim].square().sum(0), truth)


def test_blocks_are_independent_of_each_other(generator):
    theta = draws(Orthogonal(), 8, 4, 3000, generator)
    across = theta[:, :4] @ theta[:, 4:].mT
    assert z_score(across.flatten(1), 0.0) < 4.5
    assert z_score(across.square().flatten(1), 0.25) < 4.5


@pytest.mark.parametrize("made", ["rotation", "frames"])
def test_frames_are_uniform_rotations(made, generator):
    """Traces of uniform orthogonal matrices have the moments of a normal number (Diaconis & Shahshahani
    1994: 0, 1, 0, 3); rows and columns are alike."""
    if made == "rotation":
        turns = torch.stack([rotation(5, generator, DOUBLE) for _ in range(4000)])
    else:
        turns = draws(Orthogonal(), 5, 5, 4000, generator)
    trace = turns.diagonal(dim1=1, dim2=2).sum(1)
    assert z_score(torch.stack([trace**k for k in range(1, 5)], 1), torch.tensor([0, 1, 0, 3])) < 4.5
    assert z_score(turns.det()[:, None], 0.0) < 4.5


def test_frames_without_signs_are_not(generator):
    normal = torch.randn(4000, 5, 5, generator=generator, dtype=torch.float64)
    naive = torch.linalg.qr(normal).Q
    assert z_score(naive.diagonal(dim1=1, dim2=2).sum(1), 0.0) > 10
    # the law of uniform matrices does not change when they are turned
    right = _frames(normal).mT
    turned = _frames(rotation(5, generator, DOUBLE) @ normal).mT
    assert z_score(right[:, 0, 0] - turned[:, 0, 0], 0.0) < 4.5


def test_a_grid_has_equal_steps_and_integrates_waves(generator):
    theta = draws(Grid(), 9, 2, 50, generator)
    angle = torch.atan2(theta[..., 1], theta[..., 0]).remainder(math.pi).sort(dim=1).values
    steps = torch.diff(angle, dim=1, append=angle[:, :1] + math.pi)
    torch.testing.assert_close(steps, torch.full_like(steps, math.pi / 9))
    for k in range(1, 9):  # exact for all even waves below twice the number of directions
        assert (2 * k * angle).cos().mean(1).abs().max() < 1e-12
    assert (18 * angle).cos().mean(1).abs().max() > 0.5


@pytest.mark.parametrize("projections", [50, 1000])
def test_a_spiral_fills_the_sphere_evenly(projections, generator):
    points = spiral(projections)
    heights = points[:, 2].flip(0)
    torch.testing.assert_close(heights, (2 * torch.arange(projections).double() + 1) / projections - 1)
    near = torch.cdist(points, points) + 9 * torch.eye(projections)
    assert near.min() > 2.5 / projections**0.5  # hexagons as large as their shares: 3.8
    turned = Spiral().sample(projections, 3, generator, DOUBLE)
    torch.testing.assert_close((turned @ turned.T), points @ points.T)  # a rotation, nothing else
    free = Isotropic().sample(projections, 3, generator, DOUBLE)
    assert worst_cap(turned, generator) < 0.35 * worst_cap(free, generator)


def worst_cap(points, generator):
    """Largest difference between the share of points in a cap and its share of the sphere."""
    poles = Isotropic().sample(300, 3, generator, DOUBLE)
    level = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    inside = (points @ poles.T)[..., None] > level
    return (inside.double().mean(0) - (1 - level) / 2).abs().max()


def test_automatic_choice():
    assert [Auto().choose(d) for d in (1, 2, 3, 4)] == [Orthogonal(), Grid(), Spiral(), Orthogonal()]
    assert Isotropic().independent and not Orthogonal().independent


@pytest.mark.parametrize("projections, dim", [(14, 7), (15, 7), (2, 2), (1, 2), (5, 2), (9, 3)])
@pytest.mark.parametrize("kind", [Isotropic, Orthogonal, Auto, Sobol])
def test_balanced_directions_are_those_that_average_quadratic_forms_exactly(kind, projections, dim):
    matrix = torch.diag(torch.arange(1.0, dim + 1, dtype=torch.float64))
    errors = []
    for seed in range(5):
        theta = kind().sample(projections, dim, torch.Generator().manual_seed(seed), DOUBLE)
        errors.append(abs(float((theta @ matrix * theta).sum(1).mean() - matrix.trace() / dim)))
    assert (max(errors) < 1e-12) == kind().balanced(projections, dim)


def test_fixed_directions_are_scaled_and_stay():
    vectors = [[3.0, 4.0], [0.0, -2.0], [1e-30, 1e-30]]
    fixed = Fixed(vectors)
    truth = torch.tensor([[0.6, 0.8], [0.0, -1.0], [0.5**0.5, 0.5**0.5]], dtype=torch.float64)
    for made in (fixed, Fixed(torch.tensor(vectors, dtype=torch.float64)), Fixed(np.array(vectors))):
        assert made == fixed and not made.random
        torch.testing.assert_close(made.sample(3, 2, like=DOUBLE), truth)
    assert fixed.sample(3, 2).dtype == torch.float32


BAD = {
    "a row is zero": lambda: Fixed([[1.0, 0.0], [0.0, 0.0]]),
    "finite numbers": lambda: Fixed([[1.0, float("nan")]]),
    r"vectors of shape \(2,\)": lambda: Fixed([1.0, 2.0]),
    r"vectors of shape \(0,\)": lambda: Fixed([]),
    "table of numbers": lambda: Fixed([["a", "b"]]),
    "must be a table of numbers: expected sequence": lambda: Fixed([[1.0, 2.0], [3.0]]),
    "1 vectors in 2 dimensions, asked for 100 in 2": lambda: Fixed([[1.0, 0.0]]).sample(100, 2),
    "1 vectors in 2 dimensions, asked for 1 in 3": lambda: Fixed([[1.0, 0.0]]).sample(1, 3),
    "Grid directions live in 2 dimensions, the points have 3": lambda: Grid().sample(5, 3),
    "Spiral directions live in 3 dimensions, the points have 2": lambda: Spiral().sample(5, 2),
    "at most 21201 dimensions": lambda: Sobol().sample(5, 21_202),
    "asked for 100 in 3": lambda: SlicedWasserstein(directions=Fixed([[1.0, 0.0, 0.0]]))(
        torch.zeros(4, 3), torch.ones(4, 3)
    ),
}


@pytest.mark.parametrize("says", BAD)
def test_what_cannot_be_is_said(says):
    with pytest.raises(ValueError, match=says):
        BAD[says]()
