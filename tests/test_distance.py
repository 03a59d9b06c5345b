"""Distances: references, closed forms, invariances, gradients."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import linalg, stats

from genflow.distance import MMD, BuresWasserstein, EnergyDistance, Wasserstein

EVERY = [
    Wasserstein(), Wasserstein(p=1), Wasserstein(root=False), EnergyDistance(),
    EnergyDistance(unbiased=True), MMD(1.0), MMD([0.5, 2.0], unbiased=False), MMD(),
    BuresWasserstein(), BuresWasserstein(root=False),
]  # fmt: skip
every = pytest.mark.parametrize("distance", EVERY, ids=str)


def pair(n=30, m=40, shape=(2,), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, 0.7 + 1.5 * torch.randn(m, *shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("sizes", [(30, 30), (20, 45)], ids=str)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_wasserstein_agrees_with_pot(p, sizes):
    x, y = pair(*sizes)
    matrix = ot.dist(x.numpy(), y.numpy(), metric="euclidean") ** p
    power = ot.emd2([], [], matrix)
    assert float(Wasserstein(p, root=False)(x, y)) == pytest.approx(power, rel=1e-9)
    assert float(Wasserstein(p)(x, y)) == pytest.approx(power ** (1 / p), rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_wasserstein_on_the_line_pairs_sorted_points(p):
    x, y = pair(50, 50, (1,))
    truth = (x[:, 0].sort().values - y[:, 0].sort().values).abs().pow(p).mean() ** (1 / p)
    torch.testing.assert_close(Wasserstein(p)(x, y), truth)


@pytest.mark.parametrize("distance", [Wasserstein(1), Wasserstein(2), BuresWasserstein()], ids=str)
def test_distance_of_a_translation_is_its_length(distance):
    x, _ = pair()
    step = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert float(distance(x, x + step)) == pytest.approx(5.0)


def test_energy_distance_agrees_with_scipy():
    x, y = pair(60, 35, (1,))
    root = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert float(EnergyDistance()(x, y)) == pytest.approx(root**2)


def mean_of_pairs(x, y, function, skip):
    values = [
        function(float((a - b).norm()))
        for i, a in enumerate(x)
        for j, b in enumerate(y)
        if not (skip and i == j)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("unbiased", [False, True])
def test_energy_distance_by_hand(unbiased):
    x, y = pair(7, 5)
    means = [
        mean_of_pairs(a, b, float, s and unbiased) for a, b, s in ((x, y, 0), (x, x, 1), (y, y, 1))
    ]
    found = EnergyDistance(unbiased=unbiased)(x, y)
    assert float(found) == pytest.approx(2 * means[0] - means[1] - means[2])


@pytest.mark.parametrize("bandwidth", [0.6, [0.5, 2.0], None])
@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_by_hand(unbiased, bandwidth):
    x, y = pair(7, 6)  # 13 points, 78 distances: torch's median is the lower middle one
    widths = [bandwidth] if isinstance(bandwidth, float) else bandwidth
    if bandwidth is None:
        distances = sorted(torch.pdist(torch.cat([x, y])).tolist())
        widths = [distances[38] * f for f in (0.25, 0.5, 1, 2, 4)]

    def kernel(r):
        return sum(math.exp(-(r**2) / (2 * h**2)) for h in widths) / len(widths)

    means = [
        mean_of_pairs(a, b, kernel, s and unbiased) for a, b, s in ((x, y, 0), (x, x, 1), (y, y, 1))
    ]
    found = MMD(bandwidth, unbiased)(x, y)
    assert float(found) == pytest.approx(means[1] + means[2] - 2 * means[0], abs=1e-12)


@pytest.mark.parametrize(
    "make", [lambda u: MMD(1.0, u), lambda u: EnergyDistance(u)], ids=["mmd", "energy"]
)
def test_unbiased_estimates_of_nothing_have_mean_zero(make):
    draws = [pair(20, 20, seed=s)[0] for s in range(600)]
    pairs = list(zip(draws[::2], draws[1::2]))
    values = {u: np.array([float(make(u)(x, y)) for x, y in pairs]) for u in (True, False)}
    error = values[True].std() / len(pairs) ** 0.5
    assert abs(values[True].mean()) < 4 * error
    assert (values[True] < 0).any() and (values[False] > 0).all()
    assert values[False].mean() > 20 * error


@pytest.mark.parametrize("kind", ["full", "line", "few"])
def test_bures_agrees_with_the_matrix_root(kind):
    x, y = pair(40, 50, (4,)) if kind != "few" else pair(3, 4, (4,))
    if kind == "line":  # singular covariance of rank one
        x = x[:, :1] @ torch.tensor([[1.0, 2.0, 0.5, -1.0]], dtype=torch.float64)
    a, b = (np.cov(z.numpy().T, ddof=0) for z in (x, y))
    # sqrtm takes no singular matrix: there, the roots of the eigenvalues of the product
    spectrum = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    cross = (
        spectrum if kind != "full" else np.trace(linalg.sqrtm(linalg.sqrtm(a) @ b @ linalg.sqrtm(a)))
    )
    square = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert float(BuresWasserstein(root=False)(x, y)) == pytest.approx(float(square), abs=1e-6)
    assert float(BuresWasserstein()(x, y)) == pytest.approx(float(square) ** 0.5, abs=1e-6)


def test_bures_of_gaussians_on_the_line():
    x, y = pair(40, 50, (1,))
    means, deviations = (x.mean() - y.mean()), x.std(correction=0) - y.std(correction=0)
    torch.testing.assert_close(BuresWasserstein()(x, y), (means**2 + deviations**2).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [5, 40])  # torch.cdist changes its algorithm at 25 points
@every
def test_equal_sets_have_distance_zero_and_finite_gradients(distance, n, dtype):
    x = pair(n, dtype=dtype)[0]
    mine = x.clone().requires_grad_()
    value = distance(mine, x)
    assert value.dtype == dtype and value.shape == ()
    if not getattr(distance, "unbiased", False):  # an unbiased estimate of 0 may be negative
        assert value.abs() < 1e-3 if distance == BuresWasserstein() else value.abs() < 1e-6
    value.backward()
    assert mine.grad.isfinite().all()


@pytest.mark.parametrize("distance", [d for d in EVERY if d != MMD()], ids=str)
def test_gradients_agree_with_finite_differences(distance):
    x, y = pair(6, 8)
    assert torch.autograd.gradcheck(distance, (x.requires_grad_(), y.requires_grad_()), atol=1e-5)


def test_the_median_bandwidth_carries_no_gradient():
    x, y = pair(6, 8)
    x.requires_grad_()
    median = float(torch.pdist(torch.cat([x, y]).detach()).median())
    fixed = MMD([median * f for f in (0.25, 0.5, 1.0, 2.0, 4.0)])
    free, held = (torch.autograd.grad(d(x, y), x)[0] for d in (MMD(), fixed))
    torch.testing.assert_close(free, held)


@pytest.mark.parametrize("distance", [BuresWasserstein(), BuresWasserstein(root=False)], ids=str)
@pytest.mark.parametrize("kind", ["line", "constant", "few", "one"])
def test_bures_has_finite_gradients_where_covariances_are_singular(distance, kind):
    # a constant coordinate is what the border pixels of images are
    x, y = pair(20, 30, (3,))
    if kind == "line":
        x = x[:, :1] * torch.ones(3, dtype=torch.float64)
    elif kind == "constant":
        x[:, 0] = y[:, 0] = 0.0
    else:
        x, y = (x[:1], y[:1]) if kind == "one" else (x[:2], y[:3])
    x.requires_grad_()
    distance(x, y).backward()
    assert x.grad.isfinite().all()


@every
def test_events_are_flattened(distance):
    x, y = pair(10, 12, (1, 2, 3))
    torch.testing.assert_close(distance(x, y), distance(x.flatten(1), y.flatten(1)))


@every
def test_order_of_rows_and_arguments_does_not_matter(distance):
    x, y = pair()
    torch.testing.assert_close(distance(x, y), distance(y, x))
    torch.testing.assert_close(distance(x, y), distance(x.flip(0), y))


@pytest.mark.parametrize("offset", [1e2, 1e3, 1e4])
@every
def test_a_common_shift_does_not_matter_in_float32(distance, offset):
    x, y = pair(60, 70, dtype=torch.float32)
    x, y = x + offset, y + offset  # rounded once here, so that both sides below see one sample
    truth = distance(x.double() - offset, y.double() - offset).float()
    torch.testing.assert_close(distance(x, y), truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "x, y, error, words",
    [
        (torch.zeros(0, 2), torch.zeros(3, 2), ValueError, "x0 is empty"),
        (torch.zeros(3, 2), torch.zeros(3, 3), ValueError, "x1 has event shape"),
        (torch.zeros(3), torch.zeros(3), ValueError, "at least one event dimension"),
        (torch.zeros(3, 2), torch.zeros(3, 2).long(), TypeError, "x1 must be a floating"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), TypeError, "x1 is torch.float64"),
    ],
)
@every
def test_samples_that_do_not_fit_are_refused(distance, x, y, error, words):
    with pytest.raises(error, match=words):
        distance(x, y)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Wasserstein(p=0.5), "p must be at least 1"),
        (lambda: Wasserstein(p=math.nan), "p must be at least 1"),
        (lambda: MMD(0.0), "bandwidth must be positive"),
        (lambda: MMD([1.0, -1.0]), "bandwidth must be positive"),
        (lambda: MMD([]), "at least one bandwidth"),
        (lambda: MMD(1.0)(torch.zeros(1, 2), torch.zeros(3, 2)), "at least two points"),
        (lambda: EnergyDistance(True)(torch.zeros(1, 2), torch.zeros(3, 2)), "at least two points"),
        (lambda: Wasserstein()(torch.full((3, 2), math.nan), torch.zeros(3, 2)), "not finite"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("distance", [Wasserstein(p=1), Wasserstein(), EnergyDistance()], ids=str)
def test_weights_are_repeated_rows(distance, generator):
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, 5))
    a, b = torch.tensor([1, 3, 0, 2, 1, 1, 4]), torch.tensor([2, 1, 1, 5, 1])
    repeated = distance(x.repeat_interleave(a, 0), y.repeat_interleave(b, 0))
    torch.testing.assert_close(distance(x, y, a, b), repeated, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(distance(x, y, None, b), distance(x, y.repeat_interleave(b, 0)))
    torch.testing.assert_close(distance(x, y, torch.ones(7)), distance(x, y))
    assert abs(float(distance(x, y, a, b) - distance(x, y))) > 1e-3
    for wrong in (torch.ones(6), -a, 0 * a, a / 0.0):
        with pytest.raises(ValueError, match="weights_x must be 7 finite numbers >= 0"):
            distance(x, y, wrong)
