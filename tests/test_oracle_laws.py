"""Laws of pairs: products, bridges, weighted pairs, changes of units."""

import math

import gaussians
import pytest
import torch
from laws import LEFT, RIGHT, coupled, moment_scores
from torch import distributions as D

from genflow.coupling import Gibbs
from genflow.interpolant import Brownian, BrownianBridge, Linear, Mirror, SinSquared
from genflow.oracle import Exact, Joint, entropic, gaussian, independent, mirrored, tilted
from genflow.source import Components, EightGaussians, Gaussian, Moons

FIELDS = ("velocity", "rate", "noise", "score", "denoised", "start")


def test_independent_pairs_are_products():
    law = independent(LEFT, RIGHT)
    assert law.weights.shape == (6,) and not law.cross.any()
    x = torch.randn(30, 2, dtype=torch.float64)
    torch.testing.assert_close(law.marginal(0).log_prob(x), LEFT.log_prob(x))
    torch.testing.assert_close(law.marginal(1).log_prob(x), RIGHT.log_prob(x))
    parts = independent(LEFT.components(), RIGHT)
    assert torch.equal(parts.weights, law.weights)


def test_mirrored_pairs_are_equal(generator):
    law = mirrored(RIGHT)
    x0, x1 = law.sample(100, generator)
    torch.testing.assert_close(x0, x1, rtol=0.0, atol=1e-7)
    path = Linear(gamma=SinSquared())
    through, mirror = Exact(law, path), Exact(law, Mirror(SinSquared()))
    for name in FIELDS:
        torch.testing.assert_close(getattr(through, name)(0.3, x1), getattr(mirror, name)(0.3, x1))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_entropic_plans_are_bridges(sigma):
    pair = gaussians.pair()
    left, right = (
        Components(torch.ones(1), m[None], c[None])
        for m, c in ((pair.mean0, pair.cov0), (pair.mean1, pair.cov1))
    )
    law = entropic(left, right, sigma)
    want = gaussians.bridge_cross(pair, sigma)
    torch.testing.assert_close(law.cross[0], want, rtol=1e-10, atol=1e-12)
    # an entropic plan has the kernel's cross term in its precision
    precision = torch.linalg.inv(law.cov[0])
    torch.testing.assert_close(precision[:2, 2:], -torch.eye(2).double() / sigma**2)
    wrong = torch.linalg.inv(entropic(left, right, sigma * 2**0.5).cov[0])
    assert (wrong[:2, 2:] + torch.eye(2) / sigma**2).abs().max() > 0.04


def test_entropic_plan_of_a_grid():
    ot = pytest.importorskip("ot")
    sigma, grid = 0.8, torch.linspace(-6, 6, 241, dtype=torch.float64)
    laws = [D.Normal(0.5, 1.0), D.Normal(-0.3, 0.6)]
    a, b = (law.log_prob(grid).exp() for law in laws)
    a, b = a / a.sum(), b / b.sum()
    cost = (grid[:, None] - grid) ** 2
    plan = torch.from_numpy(
        ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), 2 * sigma**2, stopThr=1e-12, numItermax=5000)
    )
    found = grid @ plan @ grid - (a @ grid) * (b @ grid)
    law = entropic(Gaussian(1, 0.5, 1.0), Gaussian(1, -0.3, 0.6), sigma)
    assert float(law.cross) == pytest.approx(float(found), abs=1e-6)


def test_entropic_plans_of_singular_laws():
    flat = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double()
    round_ = torch.tensor([[0.5, 0.1], [0.1, 2.0]]).double()
    zero, one = torch.zeros(1, 2).double(), torch.ones(1).double()

    def plan(left, right):
        return entropic(Components(one, zero, left[None]), Components(one, zero, right[None]), 0.7)

    eye = torch.eye(2).double()
    for left, right in ((flat, round_), (round_, flat), (flat, 0 * flat)):
        near = plan(left + 1e-9 * eye, right + 1e-9 * eye).cross
        torch.testing.assert_close(plan(left, right).cross, near, rtol=0.0, atol=1e-6)
    steep = torch.diag(torch.tensor([1.0, 1e-14])).double()
    found = plan(steep, steep).cross[0].diagonal()  # coordinate by coordinate
    one_by_one = [((4 * v**2 + 0.7**4) ** 0.5 - 0.7**2) / 2 for v in (1.0, 1e-14)]
    assert float(found[0]) == pytest.approx(one_by_one[0])
    assert float(found[1]) == pytest.approx(1e-28 / 0.7**2, rel=1e-6)
    exact = Exact(plan(flat, round_), BrownianBridge(0.7))
    assert exact.velocity(0.2, torch.randn(5, 2)).isfinite().all()


def test_the_bridge_keeps_its_reference(generator):
    # Brownian motion from a Gaussian is its own bridge: the drift vanishes
    law = entropic(Gaussian(2, 0.3, 0.5), Gaussian(2, 0.3, (0.25 + 0.49) ** 0.5), 0.7)
    exact = Exact(law, BrownianBridge(0.7))
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    for t in (0.0, 0.4, 0.95, 1.0):
        assert exact.drift(t, x, 0.7).abs().max() < 1e-9
        assert exact.drift(t, x, 0.6).abs().max() > 0.01


def weighted_scores(law, x0, x1, weight):
    """Moments of a law against those of weighted pairs, in standard errors."""
    x = torch.cat([x0, x1], 1)
    y = torch.cat(law.sample(len(x), torch.Generator().manual_seed(9)), 1)
    f, g = (
        torch.cat([v, v**2, v[:, :1] * v[:, 2:3], v[:, 1:2] * v[:, 3:], torch.tanh(v), torch.cos(v)], 1)
        for v in (x, y)
    )
    share = (weight / weight.sum())[:, None]
    mean = (share * f).sum(0)
    error = (share**2 * (f - mean) ** 2).sum(0) + g.var(0) / len(g)
    return float(((mean - g.mean(0)) / error.sqrt()).abs().max())


def test_tilted_mixtures_are_weighted_pairs(generator):
    epsilon = 3.0
    x0, x1 = independent(LEFT, RIGHT).sample(150_000, generator)
    weight = torch.exp(-((x0 - x1) ** 2).sum(1) / epsilon)
    law = tilted(LEFT, RIGHT, epsilon)
    assert weighted_scores(law, x0, x1, weight) < 4.5
    flat = independent(LEFT, RIGHT)
    same = Joint(flat.weights, law.mean0, law.mean1, law.cov0, law.cov1, law.cross)
    assert weighted_scores(same, x0, x1, weight) > 20  # weights without their evidence
    assert weighted_scores(tilted(LEFT, RIGHT, 2 * epsilon), x0, x1, weight) > 20
    plan = Gibbs(epsilon)(x0[:500], x1[:500])
    torch.testing.assert_close(plan.weight, weight[:500] / weight[:500].mean())


def test_tilted_gaussians_have_their_closed_form():
    pair = gaussians.pair()
    sides = ((pair.mean0, pair.cov0), (pair.mean1, pair.cov1))
    laws = [Components(torch.ones(1), m[None], c[None]) for m, c in sides]
    law, want = tilted(*laws, 0.8), gaussians.tilted(pair, 1 / 0.8)
    for name in want._fields:
        torch.testing.assert_close(getattr(law, name)[0], getattr(want, name))
    # the evidence of two components
    means, covs = torch.stack([pair.mean0, pair.mean0 + 2]), torch.stack([pair.cov0, 2 * pair.cov0])
    far = Components(torch.tensor([0.3, 0.7], dtype=torch.float64), means, covs)
    other = pair._replace(mean0=pair.mean0 + 2, cov0=2 * pair.cov0)
    odds = math.log(0.3 / 0.7) + gaussians.log_z(pair, 1.25) - gaussians.log_z(other, 1.25)
    found = tilted(far, laws[1], 0.8).weights
    assert math.log(found[0] / found[1]) == pytest.approx(odds, rel=1e-9)
    point = tilted(Components(torch.ones(1), pair.mean0[None], 0 * pair.cov0[None]), laws[1], 1e-9)
    torch.testing.assert_close(point.mean1, pair.mean0[None], rtol=0.0, atol=1e-6)


def test_standardised_pairs_follow_their_units(generator):
    law, path, t = coupled(), Linear(), 0.4
    shift, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    both = law.standardised(shift, scale, shift, scale)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    moved = (x - shift) / scale
    torch.testing.assert_close(
        Exact(both, path).velocity(t, moved), Exact(law, path).velocity(t, x) / scale
    )
    change = Exact(both, path).log_prob(t, moved) - Exact(law, path).log_prob(t, x)
    torch.testing.assert_close(change, scale.double().log().sum().expand(20))
    one = law.standardised(shift1=1.0, scale1=2.0)
    x0, x1 = law.sample(30_000, generator)
    pairs = torch.cat([x0, (x1 - 1) / 2], 1)
    drawn = torch.cat(one.sample(30_000, generator), 1)
    assert moment_scores(pairs, drawn) < 4.5


def opposite():
    """Pairs of opposite points, which all meet in the middle."""
    eye = torch.eye(2)
    return gaussian([0.0, 0.0], eye, [0.0, 0.0], eye, -eye)


LINE = Exact(coupled(), Linear())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: independent(Moons(), LEFT), NotImplementedError, "Moons is no mixture"),
        (lambda: independent(LEFT, Gaussian(3)), ValueError, "x0 has 2 dimensions but x1 has 3"),
        (lambda: independent(3, LEFT), TypeError, "needs a source or Components, got int"),
        (lambda: entropic(LEFT, Gaussian(2), 1.0), ValueError, "have 2 and 1 components"),
        (lambda: entropic(Gaussian(2), Gaussian(2), 0.0), ValueError, "sigma must be positive"),
        (lambda: tilted(LEFT, RIGHT, -1.0), ValueError, "epsilon must be positive"),
        (lambda: gaussian([0.0], [[1.0]], [0.0], [[1.0]], [[1.1]]), ValueError, "semidefinite"),
        (lambda: gaussian([0.0], [[1.0]], [math.nan], [[1.0]]), ValueError, "mean1 must be finite"),
        (lambda: gaussian([0.0, 0.0], [[1.0]], [0.0, 0.0], [[1.0]]), ValueError, "expected .1, 2, 2."),
        (lambda: Joint([-1.0], *[[[0.0]]] * 2, *[[[[1.0]]]] * 3), ValueError, "weights must be non"),
        (lambda: coupled().marginal(2), ValueError, "side must be 0 or 1"),
        (lambda: Exact(coupled(), Brownian()), TypeError, "need an affine interpolant"),
        (lambda: Exact(coupled(), Linear(), [1, 4]), ValueError, "does not hold 2 numbers"),
        (lambda: LINE.velocity(1.5, torch.zeros(1, 2)), ValueError, r"must lie in \[0, 1\]"),
        (lambda: LINE.score(0.5, torch.zeros(1, 3)), ValueError, "event shape"),
        (lambda: LINE.score(torch.ones(3), torch.ones(2, 2)), ValueError, "3 times but x has 2"),
        (lambda: LINE.fields(0.5, torch.ones(2, 2), ["flow"]), ValueError, "got .'flow'."),
        (lambda: Exact(opposite(), Linear()).velocity(0.5, torch.ones(2, 2)), ValueError, "no density"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_eight_gaussians_enter_exactly():
    exact = Exact(independent(Gaussian(2), EightGaussians()), Linear())
    x = torch.randn(10, 2, dtype=torch.float64)
    torch.testing.assert_close(exact.log_prob(1.0, x), EightGaussians().double().log_prob(x))
    torch.testing.assert_close(exact.log_prob(0.0, x), Gaussian(2).log_prob(x))
