"""Weighted samples, and transport that leaves mass behind."""

import pytest
import torch
from gaussians import bridge_cross, draw, pair, tilted

from genflow.coupling import ExactOT, Gibbs, Independent, PartialOT, Side, Sinkhorn, UnbalancedOT
from genflow.interpolant import Linear
from genflow.loss import Matching

TIGHT = {"tolerance": 1e-10, "max_iterations": 100_000}
PLANS = [ExactOT(), Sinkhorn(1.0, **TIGHT), UnbalancedOT(3.0), UnbalancedOT(3.0, 0.0), PartialOT(0.7)]
CALLED = [
    Independent(), *PLANS, Gibbs(3.0), Gibbs(3.0, correction="sinkhorn"),
    ExactOT(conditions="within"), Gibbs(3.0, conditions="within"),
    Gibbs(3.0, correction="sinkhorn", conditions="within"), Sinkhorn(1.0, conditions=2.0),
]  # fmt: skip
SLOPES = torch.tensor([[0.8, -0.5], [-0.4, 0.3]], dtype=torch.float64)
EPSILON = 3.0
N = 100_000


def name(coupling):
    parts = [type(coupling).__name__]
    parts += [str(getattr(coupling, k, "")) for k in ("epsilon", "correction", "conditions")]
    return "-".join(p for p in parts if p)


plans = pytest.mark.parametrize("coupling", PLANS, ids=name)
called = pytest.mark.parametrize("coupling", CALLED, ids=name)
by_class = [c for c in CALLED if getattr(c, "conditions", "") == "within"]
within = pytest.mark.parametrize("coupling", by_class, ids=name)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(n, m, seed=0):
    generator = seeded(seed)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x0, 1 + 2 * torch.randn(m, 2, generator=generator, dtype=torch.float64)


def shifted():
    """The law of ``pair()`` weighted by ``exp(slope . x)`` on each side: means move by cov slope."""
    law = pair()
    mean0, mean1 = law.mean0 + law.cov0 @ SLOPES[0], law.mean1 + law.cov1 @ SLOPES[1]
    return law._replace(mean0=mean0, mean1=mean1)


def weighted(n, generator):
    """Rows of ``pair()`` and weights that make them samples of ``shifted()``."""
    xs = draw(pair(), n, generator)
    return xs, tuple((x @ slope).exp() for x, slope in zip(xs, SLOPES))


def moments(x0, x1, weight):
    w = (weight / weight.sum())[:, None]
    mean0, mean1 = (w * x0).sum(0), (w * x1).sum(0)
    return mean0, mean1, (w * (x0 - mean0)).T @ (x1 - mean1)


def furthest(found, true):
    return max(float((f - t).abs().max()) for f, t in zip(found, true))


# for each coupling whose rows are paired as they come, the moments it should have
LAWS = [
    (Independent(), lambda law: law),
    (Gibbs(EPSILON), lambda law: tilted(law, 1 / EPSILON)),
    (Gibbs(EPSILON, normaliser="pilot"), lambda law: tilted(law, 1 / EPSILON)),
    (
        Gibbs(EPSILON, correction="gaussian"),
        lambda law: law._replace(cross=bridge_cross(law, (EPSILON / 2) ** 0.5)),
    ),
]


@pytest.mark.parametrize("coupling, law", LAWS, ids=["independent", "raw", "pilot", "gaussian"])
def test_weighted_samples_stand_for_their_law(coupling, law, generator):
    # exp(slope . x) makes a Gaussian another one: means and cross-covariance within .04
    xs, weights = weighted(2 * N, generator)
    if isinstance(coupling, Gibbs):
        coupling.prepare(*xs, weights=weights)
    true = law(shifted())
    weight = coupling(*xs, weights=weights).weight
    assert weight.mean() == pytest.approx(1.0, abs=0.03)
    assert furthest(moments(*xs, weight), (true.mean0, true.mean1, true.cross)) < 0.04
    for wrong in (None, (weights[0], None), (None, weights[1])):
        found = moments(*xs, coupling(*xs, weights=wrong).weight)
        assert furthest(found, (true.mean0, true.mean1, true.cross)) > 0.1


@pytest.mark.parametrize(
    "coupling",
    [ExactOT(), Sinkhorn(EPSILON), Gibbs(EPSILON, correction="sinkhorn")],
    ids=name,
)
def test_batches_of_weighted_samples_stand_for_their_law(coupling, generator):
    # means over 40 batches of 200 within .1, cross-covariance of entropic plans within .1
    found, law = [], shifted()
    for _ in range(40):
        xs, weights = weighted(200, generator)
        plan = coupling(*xs, weights=weights, generator=generator)
        assert plan.weight.mean() == pytest.approx(1.0)
        found.append((*plan.gather(*xs), plan.weight))
    mean0, mean1, cross = moments(*(torch.cat(v) for v in zip(*found)))
    assert furthest((mean0, mean1), (law.mean0, law.mean1)) < 0.1
    assert furthest((mean0, mean1), (pair().mean0, pair().mean1)) > 0.3
    sigma = 0.0 if isinstance(coupling, ExactOT) else (EPSILON / 2) ** 0.5
    assert furthest([cross], [bridge_cross(law, sigma)]) < 0.1


@pytest.mark.parametrize("sizes", [(12, 12), (8, 15), (15, 8)], ids=str)
@plans
def test_a_row_of_weight_k_is_k_rows(coupling, sizes, generator):
    xs = batches(*sizes)
    times = [torch.randint(1, 4, (n,), generator=generator) for n in sizes]
    plan = coupling.plan(*xs, weights=[t.float() for t in times])
    rows = [torch.arange(n).repeat_interleave(t) for n, t in zip(sizes, times)]
    copied = coupling.plan(*(x[r] for x, r in zip(xs, rows)))
    merged = torch.zeros(sizes[0], len(rows[1]), dtype=torch.float64).index_add(0, rows[0], copied)
    merged = torch.zeros(sizes, dtype=torch.float64).index_add(1, rows[1], merged)
    tolerance = 1e-3 if isinstance(coupling, UnbalancedOT) else 1e-8
    assert (plan - merged).abs().sum() < tolerance
    assert (plan - coupling.plan(*xs)).abs().sum() > 0.1
    if coupling.balanced:
        for side in (0, 1):
            share = times[side] / times[side].sum()
            assert (plan.sum(1 - side) - share).abs().max() < 1e-8


@pytest.mark.parametrize("sizes", [(12, 12), (8, 15), (15, 8)], ids=str)
@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(1.0), UnbalancedOT(3.0), PartialOT(0.7)])
def test_pairs_are_drawn_from_the_weighted_plan(coupling, sizes, generator):
    # mean weight of every pair over 400 draws: 4.5 standard errors, and three draws of a rare pair
    xs = batches(*sizes)
    weights = [torch.rand(n, generator=generator) + 0.1 for n in sizes]
    true = coupling.plan(*xs, weights=weights)
    true = true / true.sum()
    found = []
    for _ in range(400):
        plan = coupling(*xs, weights=weights, generator=generator)
        square = torch.zeros(sizes, dtype=torch.float64)
        found.append(square.index_put(plan.indices, plan.weight, accumulate=True) / max(sizes))
    found = torch.stack(found)
    larger = int(sizes[1] > sizes[0])  # whose masses are exact in every draw
    assert (found.sum(2 - larger) - true.sum(1 - larger)).abs().max() < 1e-6
    # a pair of mass p in rows of mass r has variance p (r - p) a draw
    row = true.sum(1 - larger, keepdim=True)
    error = (true * (row - true).clamp_min(0) / 400).sqrt()
    assert ((found.mean(0) - true).abs() <= 4.5 * error + 3 * row / 400).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("coupling", CALLED, ids=name)
def test_rows_without_weight_count_for_nothing(coupling, side, generator):
    xs, cond = batches(40, 40), torch.arange(40) % 2
    weights = [None, None]
    weights[side] = torch.rand(40, generator=generator) * (torch.arange(40) % 5 > 0)
    for given in (cond, (cond, cond)):
        plan = coupling(*xs, cond=given, weights=weights, generator=generator)
        rows = plan.indices[side]
        assert plan.weight.isfinite().all() and plan.weight.mean() == pytest.approx(1.0)
        assert plan.weight[rows % 5 == 0].abs().sum() < 1e-12
    weights[side] = None
    assert (coupling(*xs, cond=(cond, cond), generator=generator).indices[side] % 5 == 0).any()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("coupling", PLANS, ids=name)
def test_a_plan_is_that_of_the_rows_with_weight(coupling, side):
    xs, weights = list(batches(20, 20)), [None, None]
    weights[side] = (torch.arange(20) >= 6).float()
    plan = coupling.plan(*xs, weights=weights)
    xs[side] = xs[side][6:]
    assert (plan.narrow(side, 6, 14) - coupling.plan(*xs)).abs().sum() < 1e-4
    assert plan.narrow(side, 0, 6).abs().max() == 0


@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_batch_potentials_are_those_of_the_rows_with_weight(epsilon):
    x0, x1 = batches(50, 50)
    mass = (torch.arange(50) >= 10).double()
    coupling = Gibbs(epsilon, correction="sinkhorn")
    found = coupling.log_weights(Side(x0, mass), Side(x1)).exp()
    assert found.isfinite().all()
    assert (found[10:].mean(1) - 1).abs().mean() < 1e-3 and (found[10:].mean(0) - 1).abs().max() < 1e-3
    alone = coupling.log_weights(Side(x0[10:]), Side(x1)).exp()
    assert (found[10:] - alone).abs().mean() < 5e-3


def test_a_far_row_without_weight_does_not_drown_the_others():
    # its pair alone is cheap; every other exponential underflows beside it
    x0, x1 = batches(8, 8)
    x1, mass = x1 + 1e3, (torch.arange(8) > 0).float()
    x1[0] = x0[0]
    for options in ({}, {"conditions": "within"}):
        cond = torch.zeros(8, dtype=torch.long)
        weight = Gibbs(EPSILON, **options)(x0, x1, cond=cond, weights=(None, mass)).weight
        alone = Gibbs(EPSILON)(x0[1:], x1[1:]).weight
        torch.testing.assert_close(weight[1:], alone * 8 / 7)


@within
def test_a_class_without_weight_counts_for_nothing(coupling, generator):
    xs, cond = batches(12, 12), torch.arange(12) % 3
    for given in (cond, (cond, cond)):
        plan = coupling(*xs, cond=given, weights=(None, (cond > 0).float()), generator=generator)
        assert plan.weight.isfinite().all() and plan.weight.mean() == pytest.approx(1.0)
        assert plan.weight[cond[plan.indices[1]] == 0].abs().sum() == 0


@within
def test_classes_keep_their_weight(coupling, generator):
    xs, cond = batches(60, 60), torch.arange(60) % 3
    weights = [torch.rand(60, generator=generator) for _ in range(2)]
    true = torch.zeros(3).index_add(0, cond, weights[1]) / weights[1].sum()
    for given in (cond, (cond.flip(0), cond)):
        plan = coupling(*xs, cond=given, weights=weights, generator=generator)
        mass = torch.zeros(3).index_add(0, cond[plan.indices[1]], plan.weight.float()) / 60
        assert (mass - true).abs().max() < 1e-5
    assert (true - 1 / 3).abs().max() > 0.02


@called
def test_weights_that_do_not_fit_are_refused(coupling):
    xs, cond, fine = batches(4, 4), torch.arange(4) % 2, torch.ones(4)
    for bad in (fine[:3], -fine, 0 * fine, fine / 0, fine[:, None], fine * float("nan")):
        with pytest.raises(ValueError, match="weights of x1 must be 4 finite numbers >= 0"):
            coupling(*xs, cond=(cond, cond), weights=(None, bad))
    for bad in (fine, (fine,), (fine,) * 3):
        with pytest.raises(ValueError, match="one .* tensor or None for each of the 2 marginals"):
            coupling(*xs, cond=(cond, cond), weights=bad)


@pytest.mark.parametrize("coupling", [Independent(), ExactOT(), Gibbs(EPSILON)], ids=name)
def test_the_loss_uses_weights(coupling, generator):
    # velocity of straight paths is x1 - x0 at all times, so the loss of zero is a weighted mean
    xs = batches(30, 30)
    weights = [torch.rand(30, generator=generator) for _ in range(2)]
    loss = Matching(Linear(), coupling)
    found = loss(lambda t, x: 0 * x, *xs, weights=weights, generator=seeded(3))
    plan = coupling(*xs, weights=weights, generator=seeded(3))
    square = ((xs[1][plan.indices[1]] - xs[0][plan.indices[0]]) ** 2).mean(1)
    assert found == pytest.approx(float((plan.weight * square).mean()), rel=1e-6)
    assert abs(loss(lambda t, x: 0 * x, *xs, generator=seeded(3)) / found - 1) > 0.01
    if isinstance(coupling, Independent):  # and the weights are the product of those of the rows
        both = weights[0] * weights[1]
        torch.testing.assert_close(plan.weight, (both / both.mean()).double())
