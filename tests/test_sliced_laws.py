"""What holds for every sliced Wasserstein distance, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sliced_pairs import VARIATES, axes, pair, seeded, weights

from genflow.directions import Auto, Fixed, Grid, Isotropic, Orthogonal
from genflow.distance import EnergySliced, MaxSliced, SlicedWasserstein
from genflow.variate import Harmonics, Lower, Quadratic, Several, TwoLevel, Upper

every = pytest.mark.parametrize("name", VARIATES)


@st.composite
def problems(draw, weighted=True):
    """Two sets of any sizes, clustered, tied or spread, weights or none, and an order."""
    n, m, dim = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(2, 4))
    seed, kind = draw(st.integers(0, 10**6)), draw(st.sampled_from(["normal", "ties", "heavy", "flat"]))
    x, y = pair(n, m, dim, seed)
    if kind == "ties":
        x, y = x.round(), y.round()
    elif kind == "heavy":
        x, y = x**3, y**5
    elif kind == "flat":
        x[:, 1:], y[:, :1] = 0.0, 0.0
    given = (None, None)
    if weighted and draw(st.booleans()):
        given = weights(n, seed=seed), weights(m, seed=seed + 1)
    return x, y, given, draw(st.sampled_from([1, 1.5, 2, 3.3]))


def same(found, truth, scale):
    """Up to rounding in numbers as large as ``scale``."""
    torch.testing.assert_close(found, truth, rtol=1e-7, atol=1e-10 * (1 + float(scale)))


@every
@given(problem=problems())
def test_invariances(name, problem):
    x, y, (a, b), p = problem
    dim = x.shape[1]
    sw = SlicedWasserstein(15, p, Isotropic(), VARIATES[name])

    def value(x, y, a=a, b=b):
        return sw(x, y, a, b, seeded(1))

    truth = value(x, y)
    size = max(x.abs().max(), y.abs().max()) ** p
    same(value(y, x, b, a), truth, size)
    turn_x, turn_y = (torch.randperm(len(z), generator=seeded(2)) for z in (x, y))
    shares = (None, None) if a is None else (a[turn_x], b[turn_y])
    same(value(x[turn_x], y[turn_y], *shares), truth, size)
    step = torch.linspace(-2, 3, dim, dtype=torch.float64)
    same(value(x + step, y + step), truth, size + 10)
    if p == 2 or name not in ("published", "upper"):  # squares, whatever the order
        same(value(-3 * x, -3 * y), 3**p * truth, 3**p * size)
    same(value(x.repeat(2, 1), y, *((None, b) if a is None else (a.repeat(2), b))), truth, size)


@pytest.mark.parametrize("variate", [None, Lower(), TwoLevel(), TwoLevel(inner=1)], ids=str)
@given(problem=problems(), projections=st.integers(1, 5))
def test_fixed_coefficients_are_never_negative(variate, problem, projections):
    x, y, (a, b), p = problem
    for seed in range(5):
        value = SlicedWasserstein(projections, p, Isotropic(), variate)(x, y, a, b, seeded(seed))
        assert value >= 0


@pytest.mark.parametrize("variate", [Lower(), TwoLevel(inner=3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_makes_nothing_negative(variate, dtype):
    """Means and covariances of one set in two orders differ by rounding, and that is all there is."""
    sw, seen = SlicedWasserstein(1, directions=Isotropic(), variate=variate), []
    for seed in range(40):
        x = pair(50, seed=seed, dtype=dtype)[0] + 100
        seen.append(sw(x, x.flip(0), generator=seeded(seed)).item())
    assert min(seen) >= 0 and max(seen) < torch.finfo(dtype).eps


def test_other_coefficients_may_be_negative():
    x, _ = pair()
    assert SlicedWasserstein(8, variate=Upper(1.0))(x, x, generator=seeded(2)) < 0
    sw = SlicedWasserstein(2, directions=Isotropic(), variate=TwoLevel(20.0))
    assert min(sw(*pair(), generator=seeded(k)) for k in range(20)) < 0


@given(problem=problems())
def test_bounds_hold_on_every_direction(problem):
    """From means and covariances by NumPy."""
    x, y, (a, b), p = problem
    shares = [np.full(len(z), 1 / len(z)) if w is None else (w / w.sum()).numpy()
              for z, w in ((x, a), (y, b))]  # fmt: skip
    means = [np.average(z, 0, w) for z, w in zip((x, y), shares)]
    covs = [((z - c).T * w) @ (z - c) for z, w, c in zip((x.numpy(), y.numpy()), shares, means)]
    for theta in axes(12, x.shape[1], 3):
        step = abs(theta.numpy() @ (means[0] - means[1]))
        spreads = [math.sqrt(max(theta.numpy() @ c @ theta.numpy(), 0)) for c in covs]
        gauss = step**2 + (spreads[0] - spreads[1]) ** 2
        square = SlicedWasserstein(1, 2, Fixed(theta[None]), None)(x, y, a, b).item()
        power = SlicedWasserstein(1, p, Fixed(theta[None]), None)(x, y, a, b).item()
        slack = 1e-10 * (1 + square + step**2 + spreads[0] ** 2 + spreads[1] ** 2)
        assert step**2 <= gauss + slack and gauss <= square + slack
        assert square <= step**2 + spreads[0] ** 2 + spreads[1] ** 2 + slack
        assert step**p <= power + slack ** (p / 2)
        if p >= 2:
            assert gauss ** (p / 2) <= power + slack ** (p / 2)


@given(problem=problems(), seed=st.integers(0, 10**6))
def test_the_root_is_a_metric_and_grows_with_the_order(problem, seed):
    x, y, (a, b), p = problem
    z = pair(5, 5, x.shape[1], seed)[0]

    def distance(p, *arguments):
        directions = Fixed(axes(9, x.shape[1]))
        return SlicedWasserstein(9, p, directions, None, root=True)(*arguments).item()

    here = distance(p, x, y, a, b)
    assert distance(p, x, x, a, a) <= 1e-9 * (1 + x.abs().max())
    assert here <= (distance(p, x, z, a, None) + distance(p, z, y, None, b)) * (1 + 1e-12) + 1e-9
    assert here <= distance(p + 0.7, x, y, a, b) * (1 + 1e-12) + 1e-9


def test_never_above_the_wasserstein_distance():
    x, y = pair(30, 30, 4)
    cost = torch.cdist(x, y).square().numpy()
    optimal = cost[linear_sum_assignment(cost)].mean()
    value = SlicedWasserstein(500)(x, y, generator=seeded()).item()
    assert value < optimal / 2  # a part of the dimensions is seen: at most 1 / d of a translation


X, Y = torch.zeros(4, 3), torch.ones(5, 3)
INT = torch.zeros(4, 3, dtype=torch.long)
NAN = torch.where(torch.arange(12).reshape(4, 3) == 7, float("nan"), X)


def call(x=X, y=Y, a=None, b=None, **options):
    return lambda: SlicedWasserstein(**options)(x, y, a, b)


BAD = [
    (TypeError, "SlicedWasserstein: x must be a floating-point tensor, got torch.int64", call(INT)),
    (TypeError, "y must be a floating-point tensor, got list", call(y=[[1.0, 2.0, 3.0]])),
    (TypeError, "x is torch.float32 on cpu, y is torch.float64 on cpu; ", call(y=Y.double())),
    (ValueError, r"x has shape \(4,\), expected \(..., n, d\); ", call(X[:, 0], Y[:, 0])),
    (ValueError, r"x of shape \(0, 3\) is empty", call(X[:0])),
    (ValueError, r"y of shape \(5, 0\) is empty", call(y=Y[:, :0])),
    (ValueError, r"x has shape \(4, 3\) and y \(5, 2\); the last dimension and all", call(y=Y[:, :2])),
    (ValueError, r"x has shape \(2, 4, 3\) and y \(5, 3\)", call(X.expand(2, 4, 3))),
    (ValueError, "x holds numbers that are not finite", call(NAN)),
    (ValueError, "x and y holds numbers that are not finite", call(NAN, Y / 0)),
    (ValueError, "x holds numbers that are not finite", call(NAN, variate=None)),
    (ValueError, "x holds numbers that are not finite", call(NAN, a=(torch.arange(4) != 2) + 0.0)),
    (ValueError, "projected distances overflow torch.float32; scale the", call(y=1e30 * Y)),
    (ValueError, "projected distances overflow torch.float32", call(1e18 * pair(4, 5)[0].float())),
    (ValueError, "weights_x must be zero or positive, finite, and sum to", call(a=X[:, 0] - 1)),
    (ValueError, "weights_y must be zero or positive, finite, and sum", call(b=0 * Y[:, 0])),
    (ValueError, "weights_x must be zero or positive, finite", call(a=NAN[:, 1])),
    (ValueError, r"weights_x has shape \(5,\), expected \(4,\) or \(4,\), ", call(a=torch.ones(5))),
    (ValueError, r"weights_y has shape \(1, 5\), expected \(5,\)", call(b=torch.ones(1, 5))),
    (ValueError, r"p=0.5\): p must be at least 1 and finite", call(p=0.5)),
    (ValueError, "p must be at least 1 and finite", call(p=math.inf)),
    (ValueError, "p must be at least 1 and finite", call(p=math.nan)),
    (ValueError, "p must be at least 1 and finite", call(p="2")),
    (ValueError, r"projections=0\): projections must be a whole number >= 1", call(projections=0)),
    (ValueError, r"projections=2.5\): projections must be", call(projections=2.5)),
    (ValueError, r"chunk=0\): chunk must be a whole number", call(chunk=0)),
    (ValueError, "needs at least 2 projections", call(projections=1, variate=Lower("regression"))),
    (ValueError, "needs at least 2 projections", call(projections=1, variate=Upper())),
    (ValueError, "needs at least 2 projections", call(projections=1, variate=Harmonics())),
    (ValueError, r"take Isotropic\(\) instead of Auto\(\)", call(variate=Lower("leave_one_out"))),
    (ValueError, r"instead of Orthogonal\(\)",
     call(variate=Quadratic("leave_one_out"), directions=Orthogonal())),
    (ValueError, "Quadratic fits 3 coefficients in 3 dimensions and needs at least 4 projections",
     call(projections=3, variate=Quadratic())),
    (ValueError, "Quadratic fits 3 coefficients in 3 dimensions and needs at least 5 projections",
     call(projections=4, variate=Quadratic("leave_one_out"), directions=Isotropic())),
    (ValueError, "Harmonics fits 14 coefficients in 3 dimensions and needs at least 15",
     call(projections=14, variate=Harmonics(4))),
    (ValueError, "Several fits 4 coefficients in 3 dimensions",
     call(projections=4, variate=Several([Lower(), Quadratic()]))),
    (ValueError, "only degree 2 is known above three dimensions",
     call(torch.zeros(3, 4), torch.ones(3, 4), variate=Harmonics(4))),
    (ValueError, "Grid directions live in 2 dimensions, the points have 3", call(directions=Grid())),
    (ValueError, "repeats must be a whole number >= 2",
     lambda: SlicedWasserstein().estimate(X, Y, repeats=1)),
    (ValueError, "the directions are not random, the value has no standard error",
     lambda: SlicedWasserstein(1, directions=Fixed([[1.0, 0.0, 0.0]])).estimate(X, Y)),
    (ValueError, "MaxSliced: x and y holds numbers that are", lambda: MaxSliced()(NAN, Y / 0)),
    (ValueError, "MaxSliced: x holds numbers that are not", lambda: MaxSliced().direction(NAN, Y)),
    (ValueError, "directions must be Directions, such as", call(directions="iid")),
    (ValueError, "directions must be Directions", lambda: EnergySliced(directions=Isotropic)),
    (ValueError, r"variate must be a Variate, such as Lower\(\), or None", call(variate="lower")),
    (ValueError, "variate must be a Variate", call(variate=Lower)),
    (ValueError, "give a list of at least one variate", lambda: Several(Lower())),
    (ValueError, "give a list of at least one variate", lambda: Several(["lower"])),
    (FloatingPointError, "the distance overflows torch.float16; use float32",
     call(400 * pair(4, 5)[0].half(), torch.zeros(5, 3).half())),
    (ValueError, "EnergySliced: y of shape", lambda: EnergySliced()(X, Y[:0])),
]  # fmt: skip


@pytest.mark.parametrize(("error", "says", "what"), BAD, ids=[says[:60] for _, says, _ in BAD])
def test_bad_input_is_refused_in_one_sentence(error, says, what):
    with pytest.raises(error, match=says) as caught:
        what()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variate", [Lower(), Upper(), Quadratic(), Lower("published")], ids=str)
@pytest.mark.parametrize("p", [2, 3])
def test_variates_without_effect_are_told(variate, p):
    """Over full orthogonal blocks all quadratic forms have their exact means."""

    def both(*options):
        return [SlicedWasserstein(*options, v)(x, y, generator=seeded()) for v in (variate, None)]

    x, y = pair(dim=4)
    if variate == Lower() and p != 2:  # no quadratic form
        assert not torch.allclose(*both(12, p, Auto()), rtol=1e-6)
    else:
        for directions in (Auto(), Orthogonal()):
            says = "has no effect: over 12 directions in 4 dim"
            with pytest.warns(UserWarning, match=says) as told:
                torch.testing.assert_close(*both(12, p, directions))
            assert told[0].filename == __file__
    for projections, directions in ((13, Auto()), (12, Isotropic())):
        assert not torch.allclose(*both(projections, p, directions), rtol=1e-6)
