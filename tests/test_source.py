"""Sources: densities, scikit-learn's laws, reproducible draws."""

import math

import pytest
import torch
from sklearn import datasets
from torch import distributions as D

from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Euler
from genflow.source import (
    Box,
    Checkerboard,
    Circles,
    EightGaussians,
    Empirical,
    Gaussian,
    GaussianMixture,
    Moons,
    Spiral,
    SwissRoll,
)
from genflow.source.toys import Labelled
from genflow.specs import build, spec

POINTS = torch.arange(12.0).reshape(6, 2)
PLANE = [Checkerboard, Circles, EightGaussians, Moons, Spiral, SwissRoll]
MAKERS = [
    *PLANE, lambda: Gaussian(2, 0.5, 2.0), lambda: Gaussian([1, 4, 4]), lambda: Empirical(POINTS),
    lambda: GaussianMixture([[0.0, 1.0], [2.0, -1.0]], 0.3), lambda: Box([0.0, 1.0], [2.0, 3.0]),
]  # fmt: skip
every = pytest.mark.parametrize("make", MAKERS, ids=lambda m: str(m()).split("(")[0])


def moments(x):
    """First and second moments, ``(n, 5)``, a row a draw."""
    return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]], 1)


def z_scores(x, y):
    """Differences of the moments of two samples in standard errors."""
    a, b = moments(x), moments(y)
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return ((a.mean(0) - b.mean(0)) / error).abs()


@every
def test_draws_follow_the_generator_and_the_precision(make):
    source = make()
    draws = [source.sample(7, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert len(draws[0]) == 7 and draws[0].dtype == torch.float32
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    double = source.double().sample(7)
    assert double.dtype == torch.float64 and double.shape == draws[0].shape


def test_latent_tells_noise_from_data():
    assert Gaussian(2).latent and not any(make().latent for make in [*PLANE, Empirical])


@pytest.mark.parametrize("dim, mean, std", [(3, 0.0, 1.0), ((1, 4, 4), -1.0, 0.3)], ids=str)
def test_gaussian(dim, mean, std, generator):
    source = Gaussian(dim, mean, std).double()
    x = source.sample(4_000, generator)
    law = D.Normal(torch.tensor(mean, dtype=torch.float64), std)
    torch.testing.assert_close(source.log_prob(x), law.log_prob(x).flatten(1).sum(1))
    n = x.numel()  # 4 standard errors
    assert abs(x.mean() - mean) < 4 * std / n**0.5 and abs(x.std() - std) < 4 * std / (2 * n) ** 0.5


@pytest.mark.parametrize("source", [EightGaussians(), EightGaussians(2.0, 0.7, 5)])
def test_eight_gaussians(source, generator):
    source = source.double()
    modes = D.Independent(D.Normal(source.centres(), source.std), 1)
    law = D.MixtureSameFamily(D.Categorical(torch.ones(source.modes)), modes)
    x = source.sample(20_000, generator)
    torch.testing.assert_close(source.log_prob(x), law.log_prob(x))
    surprise = -source.log_prob(x)  # its mean is the entropy, which torch estimates too
    own = -law.log_prob(law.sample((20_000,)))
    assert abs(surprise.mean() - own.mean()) < 4.5 * (2 * surprise.var() / 20_000) ** 0.5
    nearest = torch.cdist(x, source.centres()).argmin(1).bincount(minlength=source.modes)
    share = 1 / source.modes
    assert (nearest / 20_000 - share).abs().max() < 4.5 * (share * (1 - share) / 20_000) ** 0.5


def test_eight_gaussians_touch_the_circle_at_angle_zero():
    centres = EightGaussians().centres()
    torch.testing.assert_close(centres[0], torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 5.0))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_checkerboard(scale, generator):
    source = Checkerboard(scale).double()
    side = 3 * scale / 600  # midpoints, aligned with the fields; reaches beyond the board
    grid = -1.5 * scale + side * (torch.arange(600, dtype=torch.float64) + 0.5)
    density = source.log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert density.sum() * side**2 == pytest.approx(1.0, abs=1e-7)
    x = source.sample(40_000, generator)
    assert source.log_prob(x).isfinite().all()
    cell = ((x / scale + 1) * 2).floor().long()
    counts = (4 * cell[:, 0] + cell[:, 1]).bincount(minlength=16)
    dark = counts[counts > 0] / 40_000
    assert len(dark) == 8 and (dark - 1 / 8).abs().max() < 4.5 * (7 / 64 / 40_000) ** 0.5
    inner = (x / scale + 1) * 2 - cell  # uniform inside the fields
    assert (inner.mean(0) - 0.5).abs().max() < 4.5 / math.sqrt(12 * 40_000)


def test_checkerboard_density_is_exact_in_float64():
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert Checkerboard().double().log_prob(x) == pytest.approx(-math.log(32), abs=1e-14)


REFERENCES = {
    "moons": (
        Moons(noise=0.1),
        lambda n: datasets.make_moons(n, noise=0.1, random_state=0)[0],
        lambda x: (x + 1) / 3,
    ),
    "circles": (
        Circles(noise=0.1, factor=0.4),
        lambda n: datasets.make_circles(n, noise=0.1, factor=0.4, random_state=0)[0],
        lambda x: x / 3,
    ),
    "roll": (
        SwissRoll(noise=0.5),
        lambda n: datasets.make_swiss_roll(n, noise=0.5, random_state=0)[0][:, [0, 2]],
        lambda x: x / 0.3,
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_toys_follow_the_laws_of_scikit_learn(name, generator):
    source, reference, undo = REFERENCES[name]
    n = 40_000
    ours = undo(source.sample(n, generator).double())
    theirs = torch.from_numpy(reference(n))
    assert z_scores(ours, theirs).max() < 4.5
    # squares of squares and a rotated view: moments that another curve would not share
    turned = ours @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    turned_theirs = theirs @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert z_scores(turned**3, turned_theirs**3).max() < 4.5
    assert (
        z_scores(ours * 1.05, theirs).max() > 4.5
        and z_scores(ours + 0.05 * ours.std(), theirs).max() > 4.5
    )


def test_spiral_has_two_even_arms(generator):
    n = 20_000
    x = Spiral(noise=0.0).double().sample(n, generator) / 4
    radius = x.norm(dim=1)
    turn = torch.atan2(x[:, 1], x[:, 0]) - 3 * math.pi * radius
    arm = (torch.cos(turn) < 0).double()
    assert (torch.cos(turn).abs() - 1).abs().max() < 1e-9 and radius.max() <= 1
    assert abs(arm.mean() - 0.5) < 4.5 * 0.5 / n**0.5
    # radius is the root of a uniform variable: mean 2/3, variance 1/18
    assert abs(radius.mean() - 2 / 3) < 4.5 * (1 / 18 / n) ** 0.5


def test_box(generator):
    low, high = [5.0, -1.0, 0.0], [5.1, 2.0, 1e-3]
    source = Box(low, high).double()
    law = D.Independent(D.Uniform(torch.tensor(low).double(), torch.tensor(high).double()), 1)
    x = source.sample(20_000, generator)
    torch.testing.assert_close(source.log_prob(x), law.log_prob(x))
    inner = (x - law.mean) / law.stddev
    assert inner.abs().max() <= 3**0.5 + 1e-6 and inner.mean(0).abs().max() < 4.5 / 20_000**0.5
    assert (inner.square().mean(0) - 1).abs().max() < 4.5 * (0.8 / 20_000) ** 0.5
    assert source.log_prob(x + torch.tensor([0.0, 3.1, 0.0])).eq(-math.inf).all()


def test_empirical_draws_its_points_evenly(generator):
    x = Empirical(POINTS).sample(6_000, generator)
    rows = (x[:, None] == POINTS).all(2)
    assert rows.any(1).all()
    share = rows.double().mean(0)
    assert (share - 1 / 6).abs().max() < 4.5 * (5 / 36 / 6_000) ** 0.5


def test_empirical_takes_its_points_once():
    source = Empirical()
    with pytest.raises(ValueError, match="has no points yet"):
        source.sample(3)
    assert source.prepare(POINTS.double()) is source
    assert source.points.dtype == torch.float32 and torch.equal(source.points, POINTS)
    source.prepare(-POINTS)
    assert torch.equal(source.points, POINTS)
    assert Empirical([6, 2]).points.shape == (6, 2)


def test_empirical_draws_by_weight(generator):
    weight = torch.tensor([0.0, 1.0, 0.0, 5.0, 2.0, 0.0])
    given, told = Empirical(POINTS, weight), Empirical().prepare(POINTS, weight)
    again = build(spec(given))
    again.load_state_dict(given.state_dict())
    listed = Empirical(POINTS, weight.tolist())
    for source in (given, told, again, listed):
        x = source.sample(6_000, generator)
        share = (x[:, None] == POINTS).all(2).double().mean(0)
        assert (share[weight == 0] == 0).all()
        assert (share - weight / 8).abs().max() < 4.5 * (0.25 / 6_000) ** 0.5
    assert told.prepare(-POINTS, weight[:2]) is told  # it has its points
    assert list(Empirical(POINTS).state_dict()) == ["points"]


@pytest.mark.parametrize("make", [Moons, Circles, SwissRoll, Spiral, lambda: Empirical(POINTS)])
def test_laws_without_a_density_say_so(make):
    with pytest.raises(NotImplementedError, match="has no density"):
        make().log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Gaussian(2, std=0.0), "std must be positive"),
        (lambda: EightGaussians(std=-1.0), "std must be positive"),
        (lambda: EightGaussians(modes=0), "modes must be a whole number"),
        (lambda: Moons(noise=-0.1), "noise must be zero or positive"),
        (lambda: Circles(factor=0.0), "factor must lie"),
        (lambda: Circles(factor=1.5), "factor must"),
        (lambda: Checkerboard(0.0), "scale must be positive"),
        (lambda: Box([0.0], [1.0, 2.0]), "two corners of equal length"),
        (lambda: Box([0.0, 1.0], [1.0, 1.0]), "with low below high"),
        (lambda: Box([], []), "two corners"),
        (lambda: SwissRoll(scale=0.0), "scale must be positive"),
        (lambda: Spiral(turns=0.0), "turns must be positive"),
        (lambda: Empirical(torch.zeros(3)), "points have shape"),
        (lambda: Empirical(torch.zeros(0, 2)), "points have shape"),
        (lambda: Empirical(torch.zeros(2, 2), torch.ones(3)), "it must be 2 finite numbers >= 0"),
        (lambda: Empirical(torch.zeros(2, 2), torch.zeros(2)), "not all 0"),
        (lambda: Empirical().prepare(torch.zeros(2, 2), -torch.ones(2)), "numbers >= 0"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


LABELLED = [EightGaussians, Moons, Circles, Spiral]


@pytest.mark.parametrize("make", LABELLED)
def test_labels_come_with_the_same_draws(make):
    source = make().double()
    x, labels = source.sample_labelled(50, torch.Generator().manual_seed(3))
    assert torch.equal(x, source.sample(50, torch.Generator().manual_seed(3)))
    assert labels.shape == (50,) and labels.dtype == torch.long


@pytest.mark.parametrize("make", LABELLED)
def test_classes_are_even(make, generator):
    n = 8_000
    classes = 8 if make is EightGaussians else 2
    share = make().sample_labelled(n, generator)[1].bincount() / n
    assert len(share) == classes
    assert (share - 1 / classes).abs().max() < 4.5 * ((classes - 1) / classes**2 / n) ** 0.5


def moon(x):
    """The nearer of scikit-learn's two half circles, by brute force over their points."""
    curve, labels = datasets.make_moons(2000, shuffle=False, noise=None)
    return torch.from_numpy(labels)[torch.cdist((x + 1) / 3, torch.from_numpy(curve)).argmin(1)]


NEAREST = {
    "modes": (
        EightGaussians(),
        lambda x: torch.cdist(x, EightGaussians().double().centres()).argmin(1),
    ),
    "five modes": (
        EightGaussians(3.0, 0.2, 5),
        lambda x: (torch.atan2(x[:, 1], x[:, 0]) * 5 / (2 * math.pi)).round().long() % 5,
    ),
    "moons": (Moons(), moon),
    "circles": (Circles(), lambda x: (x.norm(dim=1) < 2.25).long()),
    "arms": (
        Spiral(noise=0.0),
        lambda x: (
            torch.cos(torch.atan2(x[:, 1], x[:, 0]) - 3 * math.pi * x.norm(dim=1) / 4) < 0
        ).long(),
    ),
}


@pytest.mark.parametrize("name", NEAREST)
def test_labels_agree_with_the_geometry(name, generator):
    source, nearest = NEAREST[name]
    x, labels = source.double().sample_labelled(4_000, generator)
    # a point in a thousand may lie beyond the middle between two classes
    assert (nearest(x) == labels).double().mean() > 0.999
    assert (nearest(x).roll(1) == labels).double().mean() < 0.6


@pytest.mark.parametrize(
    "make", [lambda: Gaussian(2), Checkerboard, SwissRoll, lambda: Empirical(POINTS)]
)
def test_laws_without_classes_say_so(make):
    with pytest.raises(ValueError, match="has no classes; EightGaussians"):
        make().sample_labelled(3)


class Cube(Labelled):
    """A labelled law of a user's own, in space."""

    def sample_labelled(self, n, generator=None):
        return self._uniform(n, 3, generator), torch.zeros(n, dtype=torch.long)


def test_a_law_of_ones_own_has_its_own_shape():
    assert Cube().shape is None and Cube().sample(4).shape == (4, 3)
    model = Generator(Cube(), SDE(MLP(3, 8)), Euler(2))
    assert model.sample(x0=torch.zeros(4, 3)).shape == (4, 3)
    for law in (EightGaussians(), Moons(), Circles(), Spiral()):
        assert law.shape == (2,)
