"""Distances on the line against linear programmes; sorting by every path against torch."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from genflow.directions import Fixed
from genflow.distance import SlicedWasserstein
from genflow.distance.sliced import sorting
from genflow.distance.sliced.line import transport
from genflow.distance.sliced.sorting import order_rows, sort_rows

SIZES = [(1, 1), (1, 7), (9, 9), (12, 18), (30, 17)]
NEED = [(False, False), (True, False), (False, True), (True, True)]
sizes = pytest.mark.parametrize(("n", "m"), SIZES)
orders = pytest.mark.parametrize("p", [1, 1.5, 2, 3, 7])


def pair(n, m, *shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=draw, dtype=torch.float64)
    y = 0.5 + 1.5 * torch.randn(m, *shape, generator=draw, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def weights(n, seed=0, zeros=True):
    """Positive numbers of any sum; every third is zero."""
    found = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    if zeros and n > 2:
        found[::3] = 0.0
    return 5 * found


def programme(x, y, p, a=None, b=None):
    """The optimum of the linear programme, which sorts nothing."""
    a, b = (
        np.full(len(z), 1 / len(z)) if w is None else (w / w.sum()).numpy() for z, w in ((x, a), (y, b))
    )
    cost = (x[:, None] - y[None]).abs().pow(p).numpy()
    return ot.emd2(a, b, cost)


@sizes
@orders
@pytest.mark.parametrize("given", ["none", "x", "y", "both"])
def test_agrees_with_the_linear_programme(n, m, p, given):
    x, y = pair(n, m)
    a = weights(n, 1) if given in ("x", "both") else None
    b = weights(m, 2) if given in ("y", "both") else None
    truth = programme(x, y, p, a, b)
    found = SlicedWasserstein(p=p)(x[:, None], y[:, None], a, b)
    assert found.item() == pytest.approx(truth, rel=1e-12)
    shares = (None if w is None else (w / w.sum()).numpy() for w in (a, b))
    peer = ot.wasserstein_1d(x.numpy(), y.numpy(), *shares, p=p)
    assert found.item() == pytest.approx(peer.item(), rel=1e-12)


def test_points_without_weight_do_not_count():
    x, y = pair(12, 9)
    a, b = weights(12), weights(9)
    sw = SlicedWasserstein(p=1.5)
    truth = sw(x[a > 0, None], y[b > 0, None], a[a > 0], b[b > 0])
    torch.testing.assert_close(sw(x[:, None], y[:, None], a, b), truth)
    assert sw(x[:, None], y[:, None]).item() != pytest.approx(truth.item(), rel=0.01)


def test_equal_weights_are_none_and_whole_weights_are_repetitions():
    x, y = pair(6, 4)
    sw = SlicedWasserstein(p=3)
    plain = sw(x[:, None], y[:, None])
    torch.testing.assert_close(sw(x[:, None], y[:, None], torch.full((6,), 0.3)), plain)
    times = torch.tensor([1, 3, 2, 1])
    often = y.repeat_interleave(times)
    truth = sw(x[:, None], often[:, None])
    torch.testing.assert_close(sw(x[:, None], y[:, None], None, times), truth)


def quantiles(law, n):
    return torch.from_numpy(law.ppf((np.arange(n) + 0.5) / n))[:, None]


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gaussians_on_the_line_against_quadrature(p):
    one, two = stats.norm(0.3, 1.0), stats.norm(-1.0, 1.7)
    truth, _ = integrate.quad(lambda u: abs(one.ppf(u) - two.ppf(u)) ** p, 0, 1, limit=200)
    if p == 2:
        assert truth == pytest.approx(1.3**2 + 0.7**2, rel=1e-6)
    x, y = quantiles(one, 40_000), quantiles(two, 30_000)
    assert SlicedWasserstein(p=p)(x, y).item() == pytest.approx(truth, rel=1e-3)


def plain(x, y, p, a=None, b=None):
    """The same in plain differentiable torch: quantile functions at the middle of all levels."""
    n, m = x.shape[1], y.shape[1]
    a = x.new_full((n,), 1 / n) if a is None else a / a.sum()
    b = y.new_full((m,), 1 / m) if b is None else b / b.sum()
    total = []
    for row_x, row_y in zip(x, y):
        (sx, ix), (sy, iy) = row_x.sort(), row_y.sort()
        ends_x, ends_y = a[ix].cumsum(0), b[iy].cumsum(0)
        ends = torch.cat([ends_x, ends_y]).sort().values
        width = torch.diff(ends, prepend=ends.new_zeros(1))
        middle = (ends - width / 2).clamp(max=1)
        at_x = torch.searchsorted(ends_x, middle).clamp(max=n - 1)
        at_y = torch.searchsorted(ends_y, middle).clamp(max=m - 1)
        total.append(((sx[at_x] - sy[at_y]).abs() ** p * width).sum())
    return torch.stack(total)


@sizes
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_slopes_agree_with_autograd(n, m, p, weighted):
    x, y = (z.T.contiguous() for z in pair(n, m, 3))
    a, b = (weights(n), weights(m, 1)) if weighted else (None, None)
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    truth = plain(*leaves, p, a, b)
    slopes = torch.autograd.grad(truth.sum(), leaves)
    rows = (None, None) if a is None else ((a / a.sum()).expand(3, -1), (b / b.sum()).expand(3, -1))
    for need in NEED:
        moved = transport(x.clone(), y.clone(), p, *rows, *need)
        torch.testing.assert_close(moved.cost, truth.detach())
        for wanted, found, slope in zip(need, moved[1:], slopes):
            assert (found is not None) == wanted
            assert not wanted or torch.allclose(found, slope, atol=1e-13)


def difficult(n, kind):
    """Rows of single precision that a sort of their bits may get wrong."""
    x = pair(4 * n, 1, dtype=torch.float32)[0].reshape(4, n)
    if kind == "ties":
        x = (3 * x).round() + 0.0  # no -0.0
    elif kind == "zeros":
        x = torch.where(x.abs() < 0.7, torch.copysign(torch.zeros(()), x), x)
    elif kind == "offset":
        x = x + 1e6
    elif kind == "extremes":
        x = x.sign() * torch.exp(20 * x.abs())
        x[:, :4] = torch.tensor([float("inf"), -float("inf"), 1e-42, -1e-42])
    return x


KINDS = ["normal", "ties", "zeros", "offset", "extremes"]


@pytest.mark.parametrize("radix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [511, 512, 70_000])  # below and at the least, above one block
def test_sorting_agrees_with_torch(monkeypatch, n, kind, radix):
    monkeypatch.setattr(sorting, "_radix_is_faster", lambda bits: radix)
    x = difficult(n, kind)
    truth = x.sort(dim=1).values
    order = order_rows(x)
    assert torch.equal(x.gather(1, order), truth)
    assert torch.equal(order.sort(dim=1).values, torch.arange(n).expand(4, -1))
    assert torch.equal(sort_rows(x.clone()), truth)
    if n >= 512 and kind != "zeros":  # by radix ties keep their order; -0.0 comes before 0.0
        assert torch.equal(order, x.argsort(dim=1, stable=True))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_these_rows_tell_wrong_sorts(kind):
    x = difficult(600, kind)
    bits = x.numpy().view(np.int32)
    for key in (bits, bits.view(np.uint32)):  # negative numbers run the wrong way, or come last
        assert not torch.equal(x.gather(1, torch.from_numpy(key.argsort(axis=1))), x.sort(dim=1).values)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_radix_sorts_any_numbers(values):
    row = np.array([values], dtype=np.float32)
    order = np.empty(row.shape, dtype=np.int64)
    sorting._radix_order(row, order)
    assert (row[0][order[0]] == np.sort(row[0])).all()
    sorting._radix_sort(row)
    assert (row[0] == np.sort(np.array(values, dtype=np.float32))).all()


def test_the_choice_of_sort_is_measured_once_and_changes_nothing(monkeypatch):
    sorting._radix_is_faster.cache_clear()
    assert sorting._radix_is_faster(10) in (True, False)
    assert sorting._radix_is_faster.cache_info().misses == 1
    x, y = pair(700, 700, 3, dtype=torch.float32)
    values = []
    for radix in (True, False):
        monkeypatch.setattr(sorting, "_radix_is_faster", lambda bits, radix=radix: radix)
        draw = torch.Generator().manual_seed(0)
        values.append(SlicedWasserstein(20)(x, y, generator=draw))
    assert torch.equal(*values)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def by_one_thread():
    return many(2_000)


def many(n):
    x, y = pair(n, n, 3, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    x.requires_grad_()
    value = SlicedWasserstein(200)(x, y, generator=draw)
    rows = torch.randn(50, n, generator=draw)
    return value.detach(), torch.autograd.grad(value, x)[0], order_rows(rows), sort_rows(rows)


def test_several_threads_find_the_same(by_one_thread, three_threads):
    assert torch.get_num_threads() == 3
    for one, found in zip(by_one_thread, many(2_000)):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-9)
    assert torch.equal(found, one)


@pytest.mark.parametrize("n", [40, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_single_precision_is_exact_along_the_axes(n, offset):
    """Axes project without rounding, so that the same points in double precision tell the truth."""
    x, y = (z + offset for z in pair(n, n, 2, dtype=torch.float32))
    sw = SlicedWasserstein(2, directions=Fixed([[1.0, 0.0], [0.0, 1.0]]), variate=None)
    assert sw(x, y).item() == pytest.approx(sw(x.double(), y.double()).item(), rel=2e-6)
