"""Gradients of sliced distances: finite differences, autograd, precisions, degenerate sets."""

import pytest
import torch
from sliced_pairs import VARIATES, axes, pair, seeded, weights

from genflow.directions import Fixed, Isotropic
from genflow.distance import EnergySliced, MaxSliced, SlicedWasserstein
from genflow.variate import Lower, Quadratic, TwoLevel

every = pytest.mark.parametrize("name", VARIATES)
weighted = pytest.mark.parametrize("weighted", [False, True])


@pytest.mark.parametrize("name", [n for n in VARIATES if n != "regression"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6)])
@weighted
def test_gradients_agree_with_finite_differences(name, p, n, m, weighted):
    x, y = pair(n, m)
    both = (weights(n), weights(m, seed=1)) if weighted else (None, None)
    sw = SlicedWasserstein(11, p, Isotropic(), VARIATES[name], chunk=4)

    def value(x, y):
        return sw(x, y, *both, seeded(3))

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), y.requires_grad_()), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: value(x, y), (x,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda y: value(x, y), (y,), fast_mode=True)


def test_every_element_of_a_gradient_agrees_with_finite_differences():
    x, y = pair(4, 5, batch=(2,))
    sw = SlicedWasserstein(6, root=True)
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: sw(x, y, generator=seeded()), inputs)


@pytest.mark.parametrize("variate", [Quadratic(), Lower("clamped"), Lower("leave_one_out")], ids=str)
def test_regression_holds_its_coefficients(variate):
    """Gradients leave out how coefficients change: finite differences do not."""
    x, y = pair()
    sw = SlicedWasserstein(8, directions=Isotropic(), variate=variate)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda x: sw(x, y, generator=seeded()), (x.requires_grad_(),))


@pytest.mark.parametrize("need", ["x", "y", "both"])
@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_gradients_agree_with_plain_autograd(need, p):
    """Rows long enough for the radix sort, in single precision."""
    x, y = pair(800, 800, dtype=torch.float32)
    theta = axes(25, 3)
    leaves = [z.clone().requires_grad_(need in (k, "both")) for k, z in (("x", x), ("y", y))]
    wanted = [z for z in leaves if z.requires_grad]
    value = SlicedWasserstein(25, p, Fixed(theta), None)(*leaves)
    found = torch.autograd.grad(value, wanted)
    one, two = ((z.double() @ theta.T).sort(0).values for z in leaves)
    truth = (one - two).abs().pow(p).mean()
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
    for one, other in zip(found, torch.autograd.grad(truth, wanted)):
        assert (one - other).norm() < 1e-5 * other.norm()


POINT = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
DEGENERATE = {
    "coincident": (pair()[0], pair()[0]),
    "shuffled": (pair()[0], pair()[0].flip(0)),
    "repeated": (pair()[0], pair()[0].repeat(2, 1)),
    "one point": (POINT, POINT + 1),
    "the same point": (POINT, POINT.clone()),
    "all points equal": (POINT.expand(6, 3), (POINT - 1).expand(4, 3)),
    "a line": (torch.linspace(0, 1, 7)[:, None].double() * POINT, POINT.expand(3, 3)),
    "zeros": (torch.zeros(5, 3).double(), torch.zeros(5, 3).double()),
    "the same mean": (pair()[0], -pair()[0] + 2 * pair()[0].mean(0)),
}


@every
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_degenerate_sets_have_finite_values_and_gradients(name, case, p):
    x, y = (z.clone().requires_grad_() for z in DEGENERATE[case])
    for root in (False, True):
        sw = SlicedWasserstein(8, p, Isotropic(), VARIATES[name], root)
        value = sw(x, y, generator=seeded())
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (x, y)))
        assert value.isfinite()
        if case in ("coincident", "shuffled", "repeated", "the same point", "zeros"):
            # upper bounds know nothing of the coincidence: their variates do not vanish
            assert name in ("upper", "regression") or abs(value.item()) < 1e-7


def test_gradients_vanish_where_sets_coincide():
    x, _ = pair(600, dtype=torch.float32)
    x, y = x.requires_grad_(), x.detach().flip(0).clone().requires_grad_()
    for variate in (None, Lower(), TwoLevel()):
        value = SlicedWasserstein(10, variate=variate)(x, y, generator=seeded())
        assert value.item() == pytest.approx(0, abs=1e-10)
        for found in torch.autograd.grad(value, (x, y)):
            assert found.abs().max() < 1e-8
        # the root has a kink there: its slopes only stay as long as anywhere else
        value = SlicedWasserstein(10, variate=variate, root=True)(x, y, generator=seeded())
        for found in torch.autograd.grad(value, (x, y)):
            assert found.norm() < 1.1 / 600**0.5


ANY = [SlicedWasserstein(6), MaxSliced(6, steps=3), EnergySliced(6)]


@pytest.mark.parametrize("distance", ANY, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_raise_wherever_they_count(distance, power):
    x, y = (z.requires_grad_() for z in pair())
    value = distance(x, y, generator=seeded()) ** power
    slope, _ = torch.autograd.grad(value, (x, y), create_graph=True)
    for leaf in (x, y):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(slope.square().sum() + x.sum() + y.sum(), leaf, retain_graph=True)
    # no harm where they do not
    held = x.square().sum() + slope.detach().sum()
    torch.testing.assert_close(torch.autograd.grad(held, x)[0], 2 * x)


@pytest.mark.parametrize("distance", ANY, ids=lambda d: type(d).__name__)
def test_no_gradient_where_none_is_asked_for(distance):
    x, y = pair()
    leaf = x.clone().requires_grad_()
    truth = distance(leaf, y, generator=seeded())
    assert truth.requires_grad and not distance(x, y, generator=seeded()).requires_grad
    with torch.no_grad():
        silent = distance(leaf, y, generator=seeded())
    assert not silent.requires_grad
    torch.testing.assert_close(silent, truth.detach())
    with torch.inference_mode():
        torch.testing.assert_close(distance(x, y, generator=seeded()), truth.detach())
    before = x.clone(), y.clone()
    distance(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]), "the points are left alone"


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(name, dtype):
    """As good as their own numbers allow, and never worse than single precision inside."""
    x, y = pair(700, 600, dtype=dtype)
    x, y = x.requires_grad_(), y.requires_grad_()
    sw = SlicedWasserstein(12, directions=Fixed(axes(12, 3)), variate=VARIATES[name])
    value = sw(x, y, generator=seeded())
    assert value.dtype == dtype
    grads = torch.autograd.grad(value, (x, y))
    doubles = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    truth = sw(*doubles, generator=seeded())
    eps = max(torch.finfo(dtype).eps, 2e-6)
    # two levels draw their rotation in the precision of the points
    assert value.item() == pytest.approx(truth.item(), rel=0.02 if name == "two_level" else eps)
    if name != "two_level":
        for found, exact in zip(grads, torch.autograd.grad(truth, doubles)):
            assert found.dtype == dtype
            off = (found.double() - exact).norm(dim=1)
            # now and then two points that are nearly tied change places
            assert off.sort().values[:-4].norm() < 4 * eps * exact.norm()
            assert off.norm() < max(4 * eps, 1e-3) * exact.norm()
