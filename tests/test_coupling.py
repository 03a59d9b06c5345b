"""Couplings: marginals are kept, exact plans are exact, entropic plans are entropic."""

import math
import warnings

import numpy as np
import ot
import pytest
import torch
from gaussians import bridge_cross, draw, pair
from scipy.optimize import linear_sum_assignment

from genflow.coupling import (
    Chained,
    ExactOT,
    Gibbs,
    Independent,
    PartialOT,
    Sinkhorn,
    UnbalancedOT,
    effective_sample_size,
)
from genflow.coupling.sinkhorn import bridge_epsilon

TIGHT = {"tolerance": 1e-10, "max_iterations": 100_000}
UNWEIGHTED = [Independent(), ExactOT(), Sinkhorn(2.0, **TIGHT)]
EVERY = [
    *UNWEIGHTED, Gibbs(epsilon=2.0), Gibbs(epsilon=2.0, correction="sinkhorn"),
    UnbalancedOT(5.0), UnbalancedOT(5.0, epsilon=0.0), PartialOT(0.7),
    Chained(),
]  # fmt: skip
SIZES = [(32, 32), (12, 40), (40, 12), (1, 7), (7, 1), (1, 1)]
unweighted = pytest.mark.parametrize("coupling", UNWEIGHTED, ids=lambda c: type(c).__name__)
every = pytest.mark.parametrize("coupling", EVERY, ids=lambda c: type(c).__name__)
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)


def batches(n, m, seed=0, shape=(2,), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x0, 1 + 2 * torch.randn(m, *shape, generator=generator, dtype=dtype)


@sizes
@every
def test_plan_has_the_rows_of_the_larger_batch(coupling, sizes, generator):
    xs = batches(*sizes, shape=(1, 4, 4))
    plan = coupling(*xs, generator=generator)
    assert plan.weight.shape == (max(sizes),) and plan.weight.dtype == xs[0].dtype
    for x, rows in zip(xs, plan.indices):
        assert rows.shape == (max(sizes),) and rows.dtype == torch.int64
        assert rows.min() >= 0 and rows.max() < len(x)
    assert torch.isclose(plan.weight.mean(), torch.tensor(1.0))


@sizes
@every
def test_every_row_of_the_larger_batch_is_kept_once(coupling, sizes, generator):
    plan = coupling(*batches(*sizes), generator=generator)
    larger = plan.indices[int(sizes[1] > sizes[0])]
    assert torch.equal(larger.sort().values, torch.arange(max(sizes)))


def test_independent_repeats_the_smaller_batch_evenly(generator):
    plan = Independent()(*batches(12, 40), generator=generator)
    counts = plan.indices[0].bincount(minlength=12)
    assert counts.min() == 3 and counts.max() == 4


def test_independent_keeps_paired_rows():
    plan = Independent()(*batches(9, 9))
    assert all(torch.equal(rows, torch.arange(9)) for rows in plan.indices)


@pytest.mark.parametrize("sizes", [(10, 10), (10, 24), (24, 10)], ids=str)
@unweighted
def test_rows_are_equally_frequent(coupling, sizes):
    draws, generator = 300, torch.Generator().manual_seed(5)
    xs = batches(*sizes)
    for side in (0, 1):
        counts = torch.zeros(sizes[side])
        for _ in range(draws):
            counts += coupling(*xs, generator=generator).indices[side].bincount(minlength=sizes[side])
        mean = max(sizes) / sizes[side]
        # a count is a sum of independent indicators, of variance at most its mean
        assert (counts / draws - mean).abs().max() <= 4.5 * (mean / draws) ** 0.5


@pytest.mark.parametrize("n", [1, 2, 3, 49, 128])
def test_exact_plan_of_equal_sizes_is_a_permutation(n):
    plan = ExactOT()(*batches(n, n))
    for rows in plan.indices:
        assert torch.equal(rows.sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [16, 49, 100])
def test_exact_plan_is_a_permutation_where_points_coincide(n):
    # every plan is optimal here: the solver must still return a vertex
    points = torch.zeros(n, 2)
    half = torch.cat([torch.zeros(n // 2, 2), torch.ones(n - n // 2, 2)])
    for x0, x1 in ((points, points), (half, points), (half, half)):
        for rows in ExactOT()(x0, x1).indices:
            assert torch.equal(rows.sort().values, torch.arange(n))


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_exact_plan_costs_what_the_references_cost(cost):
    x0, x1 = batches(64, 64, dtype=torch.float64)
    matrix = ot.dist(x0.numpy(), x1.numpy(), metric=cost)
    i, j = ExactOT(cost)(x0, x1).indices
    ours = matrix[i.numpy(), j.numpy()].mean()
    assert ours == pytest.approx(ot.emd2([], [], matrix), rel=1e-9)
    assert ours == pytest.approx(matrix[linear_sum_assignment(matrix)].mean(), rel=1e-9)
    assert matrix.trace() / 64 > 1.5 * ours  # rows as they come are far from it


def test_exact_plan_of_unequal_sizes_costs_what_pot_says():
    x0, x1 = batches(8, 20, dtype=torch.float64)
    matrix, generator = ot.dist(x0.numpy(), x1.numpy()), torch.Generator().manual_seed(1)
    plans = [ExactOT()(x0, x1, generator=generator).indices for _ in range(200)]
    costs = np.array([matrix[i.numpy(), j.numpy()].mean() for i, j in plans])
    error = costs.std() / len(costs) ** 0.5
    assert abs(costs.mean() - ot.emd2([], [], matrix)) < 4.5 * error + 1e-12


@pytest.mark.parametrize("sizes", [(30, 30), (20, 45)], ids=str)
@pytest.mark.parametrize("epsilon", [0.3, 2.0, 50.0])
def test_entropic_plan_agrees_with_pot(epsilon, sizes):
    x0, x1 = batches(*sizes, dtype=torch.float64)
    ours = Sinkhorn(epsilon, **TIGHT).plan(x0, x1).numpy()
    matrix = ot.dist(x0.numpy(), x1.numpy())
    options = {"method": "sinkhorn_log", "stopThr": 1e-12, "numItermax": 100_000}
    pots = ot.sinkhorn(ot.unif(sizes[0]), ot.unif(sizes[1]), matrix, epsilon, **options)
    assert np.abs(ours - pots).max() < 1e-5 / max(sizes)
    half = ot.sinkhorn(ot.unif(sizes[0]), ot.unif(sizes[1]), matrix, epsilon / 2, **options)
    assert np.abs(half - pots).max() > 1e-3 / max(sizes)  # the temperature is seen


@pytest.mark.parametrize("sizes", [(30, 30), (20, 45)], ids=str)
def test_entropic_plan_has_uniform_marginals(sizes):
    plan = Sinkhorn(0.5, **TIGHT).plan(*batches(*sizes))
    assert plan.dtype == torch.float64 and (plan >= 0).all()
    for side in (0, 1):
        assert (plan.sum(side) - 1 / sizes[1 - side]).abs().max() < 1e-9


def test_a_small_temperature_gives_the_sharp_plan(generator):
    # plain (not log-domain) Sinkhorn underflows here, and torchcfm falls back to the uniform plan
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    order = torch.randperm(25, generator=generator)
    x1 = (grid + 0.05 * torch.randn(25, 2, generator=generator))[order]
    sharp = Sinkhorn(1e-2).plan(grid, x1)
    assert torch.equal(sharp.argmax(1), ExactOT()(grid, x1).indices[1])
    assert torch.equal(order[sharp.argmax(1)], torch.arange(25))
    assert sharp.max(1).values.min() > 0.99 / 25


@pytest.mark.parametrize("epsilon", [1e-4, 1e-9])
def test_the_plan_is_never_uniform_even_before_convergence(epsilon):
    x0, x1 = batches(40, 40, dtype=torch.float64)
    matrix = torch.cdist(x0, x1) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        plan = Sinkhorn(epsilon).plan(x0, x1)
    exact = ot.emd2([], [], matrix.numpy())
    # potentials of size cost / epsilon = 1e10 leave a rounding of 1e-6 in the exponent
    assert plan.isfinite().all() and (plan.sum(0) - 1 / 40).abs().max() < 1e-6 / 40
    assert (plan * matrix).sum() < 1.2 * exact < 0.6 * matrix.mean()


def plain_updates(cost, epsilon, tolerance):
    """Updates of both potentials that plain log-domain Sinkhorn needs."""
    n, g, done, error = len(cost), cost.new_zeros(len(cost)), 0, math.inf
    while error > tolerance:
        f = -math.log(n) - torch.logsumexp(-cost / epsilon + g, 1)
        g = -math.log(n) - torch.logsumexp(-cost / epsilon + f[:, None], 0)
        error = ((-cost / epsilon + f[:, None] + g).exp().sum(1) - 1 / n).abs().sum() / 2
        done += 1
    return done


def test_cheap_updates_count_as_much_as_exact_ones():
    x0, x1 = batches(30, 30, dtype=torch.float64)
    needed = plain_updates(torch.cdist(x0, x1) ** 2, 0.3, 1e-6)
    assert needed > 200
    Sinkhorn(0.3, tolerance=1e-6, max_iterations=needed + 21).plan(x0, x1)  # or it would warn


def test_an_unconverged_plan_warns():
    with pytest.warns(RuntimeWarning, match="stopped after 3 updates.*raise epsilon"):
        Sinkhorn(0.01, max_iterations=3).plan(*batches(40, 40))


def test_entropic_cross_covariance_is_that_of_the_bridge(generator):
    # 40 batches of 128, tolerance .06; sigma^2 = epsilon / 2 for |x - y|^2
    law, sigma = pair(), 0.9
    found = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(40):
        x0, x1 = draw(law, 128, generator)
        plan = Sinkhorn(bridge_epsilon(sigma)).plan(x0, x1)
        found += (x0 - x0.mean(0)).T @ plan @ (x1 - x1.mean(0)) / 40
    assert (found - bridge_cross(law, sigma)).abs().max() < 0.06
    assert (found - bridge_cross(law, 2**0.5 * sigma)).abs().max() > 0.06  # epsilon = sigma^2


@pytest.mark.parametrize("name", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize(
    "make",
    [
        ExactOT, Sinkhorn, lambda cost: Gibbs(1.0, cost=cost), lambda cost: UnbalancedOT(cost=cost),
        lambda cost: PartialOT(cost=cost), lambda cost: Gibbs(1.0, cost=cost, correction="sinkhorn"),
    ],
)  # fmt: skip
def test_a_cost_function_equals_the_named_cost(make, name):
    def own(x, y):
        square = ((x - y) ** 2).flatten(1).sum(1)
        return square if name == "sqeuclidean" else square.sqrt()

    xs = batches(20, 30, shape=(1, 2, 2), dtype=torch.float64)
    named, ours = (make(cost=c)(*xs, generator=torch.Generator().manual_seed(3)) for c in (name, own))
    assert all(torch.equal(a, b) for a, b in zip(named.indices, ours.indices))
    torch.testing.assert_close(named.weight, ours.weight)


@every
def test_the_generator_rules_the_plan(coupling):
    xs = batches(12, 40)
    plans = [coupling(*xs, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(plans[0].indices[0], plans[1].indices[0])
    assert torch.equal(plans[0].weight, plans[1].weight)
    assert not torch.equal(plans[0].indices[0], plans[2].indices[0])


@pytest.mark.parametrize(
    "xs, error, words",
    [
        ((torch.zeros(0, 2), torch.zeros(3, 2)), ValueError, "x0 is empty"),
        ((torch.zeros(3, 2), torch.zeros(0, 2)), ValueError, "x1 is empty"),
        ((torch.zeros(3, 2), torch.zeros(3, 3)), ValueError, "x1 has event shape"),
        ((torch.zeros(3), torch.zeros(3)), ValueError, "at least one event dimension"),
        ((torch.zeros(3, 2),), ValueError, "at least two marginals"),
        ((torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)), TypeError, "x1 must be a floating"),
        ((torch.zeros(3, 2), [[0.0, 0.0]]), TypeError, "got list"),
        ((torch.zeros(3, 2), torch.zeros(3, 2).double()), TypeError, "x1 is torch.float64"),
    ],
)
@every
def test_batches_that_do_not_fit_are_refused(coupling, xs, error, words):
    with pytest.raises(error, match=words):
        coupling(*xs)


@pytest.mark.parametrize("coupling", EVERY[1:-1], ids=lambda c: type(c).__name__)
def test_more_than_two_marginals_are_refused(coupling):
    with pytest.raises(ValueError, match="couples two marginals, got 3"):
        coupling(*[torch.zeros(3, 2)] * 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "coupling", [ExactOT(), Sinkhorn(), UnbalancedOT(), PartialOT()], ids=lambda c: type(c).__name__
)
def test_values_that_are_not_finite_are_refused(coupling, value):
    x0, x1 = batches(8, 8)
    x1[3, 1] = value
    with pytest.raises(ValueError, match="finite"):
        coupling(x0, x1)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Sinkhorn(epsilon=0.0), "epsilon must be positive"),
        (lambda: Sinkhorn(epsilon=-1.0), "epsilon must be positive"),
        (lambda: Sinkhorn(epsilon=float("nan")), "epsilon must be a finite number"),
        (lambda: Sinkhorn(tolerance=0.0), "tolerance must be positive"),
        (lambda: Sinkhorn(max_iterations=0), "whole number"),
        (lambda: Sinkhorn(cost="cosine"), "cost must be one of"),
        (lambda: ExactOT(cost="cosine"), "cost must be one of"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_effective_sample_size_of_known_weights():
    assert effective_sample_size(torch.ones(7)) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([4.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert effective_sample_size(torch.tensor([2.0, 2.0, 0.0, 0.0])) == pytest.approx(0.5)
