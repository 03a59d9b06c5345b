"""Unbalanced and partial plans: optimal by other solvers, and outliers left out."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from genflow.coupling import ExactOT, PartialOT, Sinkhorn, UnbalancedOT

SIZES = pytest.mark.parametrize("sizes", [(20, 20), (12, 25), (25, 12)], ids=str)


def batches(n, m, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x0, 1 + torch.randn(m, 2, generator=generator, dtype=torch.float64)


def divergence(p, q):
    safe = np.where(p > 0, p, 1.0)
    return float((p * np.log(safe / q)).sum() - p.sum() + q.sum())


def primal(plan, xs, penalty, epsilon):
    """What an unbalanced plan between even masses minimises."""
    a, b = (np.full(len(x), 1 / len(x)) for x in xs)
    own = (ot.dist(xs[0].numpy(), xs[1].numpy()) * plan).sum()
    marginals = divergence(plan.sum(1), a) + divergence(plan.sum(0), b)
    return own + epsilon * divergence(plan, np.outer(a, b)) + penalty * marginals


def dual(plan, xs, penalty, epsilon):
    """What the potentials belonging to a plan attain: never above the smallest primal value."""
    a, b = (np.full(len(x), 1 / len(x)) for x in xs)
    f, g = -penalty * np.log(plan.sum(1) / a), -penalty * np.log(plan.sum(0) / b)
    excess = f[:, None] + g - ot.dist(xs[0].numpy(), xs[1].numpy())
    if epsilon == 0:  # potentials must not exceed the cost anywhere
        f, smooth = f - max(0.0, excess.max()), 0.0
    else:
        smooth = epsilon * (np.outer(a, b) * np.expm1(excess / epsilon)).sum()
    return -penalty * (a @ np.expm1(-f / penalty) + b @ np.expm1(-g / penalty)) - smooth


@SIZES
@pytest.mark.parametrize(
    "penalty, epsilon", [(0.5, 1.0), (5.0, 1.0), (5.0, 0.1), (5.0, 0.0), (0.5, 0.0)]
)
def test_unbalanced_plan_is_optimal(penalty, epsilon, sizes):
    # gap of duality, which bounds the distance from the optimum: 1e-6, without temperature 5e-3
    xs, bound = batches(*sizes), 1e-6 if epsilon else 5e-3

    def gap(plan):
        best = dual(plan, xs, penalty, epsilon)
        return primal(plan, xs, penalty, epsilon) / best - 1

    ours = UnbalancedOT(penalty, epsilon).plan(*xs).numpy()
    assert -1e-9 < gap(ours) < bound and ours.sum() < 0.95
    for wrong in (UnbalancedOT(2 * penalty, epsilon), UnbalancedOT(penalty, epsilon + 0.5)):
        value = primal(wrong.plan(*xs).numpy(), xs, penalty, epsilon)
        assert value > dual(ours, xs, penalty, epsilon) * (1 + 2 * bound)


@pytest.mark.parametrize("epsilon, tolerance", [(0.0, 0.1), (1.0, 1e-3)])
def test_unbalanced_plan_agrees_with_majorisation_of_pot(epsilon, tolerance):
    xs = batches(20, 30)
    masses = [np.full(n, 1 / n) for n in (20, 30)]
    true = ot.unbalanced.mm_unbalanced(
        *masses, ot.dist(xs[0].numpy(), xs[1].numpy()), reg_m=2.0, reg=epsilon, div="kl",
        numItermax=20_000, stopThr=1e-12,
    )  # fmt: skip
    ours = UnbalancedOT(2.0, epsilon).plan(*xs).numpy()
    assert np.abs(ours - true).sum() < tolerance  # without temperature, plans of near-equal cost differ
    assert ours.sum() == pytest.approx(true.sum(), rel=5e-3)
    assert primal(ours, xs, 2.0, epsilon) == pytest.approx(primal(true, xs, 2.0, epsilon), rel=2e-3)


def test_majorisation_that_has_not_converged_says_so():
    xs = batches(30, 30)
    UnbalancedOT(10.0, 0.0).plan(*xs)
    with pytest.warns(RuntimeWarning, match="have not converged"):
        UnbalancedOT(1000.0, 0.0).plan(*xs)


def test_a_dear_mass_is_kept():
    # cost and mass tend to those of the balanced plan, from below
    xs, epsilon = batches(30, 30), 0.5
    matrix = torch.cdist(*xs) ** 2
    balanced = Sinkhorn(epsilon, tolerance=1e-9)
    want = float((balanced.plan(*xs) * matrix).sum())
    plans = [UnbalancedOT(p, epsilon).plan(*xs) for p in (1.0, 10.0, 1000.0)]
    gaps = [abs(float((p * matrix).sum()) - want) for p in plans]
    masses = [float(p.sum()) for p in plans]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.05 * want
    assert masses[0] < masses[1] < masses[2] and masses[2] == pytest.approx(1.0, abs=0.02)


def test_tiny_temperatures_do_not_overflow():
    # cost over epsilon of 1e5: scaling iterations would leave the range of floating point
    xs = [10 * x for x in batches(15, 15)]
    plan = UnbalancedOT(50.0, 1e-2).plan(*xs)
    limit = UnbalancedOT(50.0, 0.0).plan(*xs)
    assert plan.isfinite().all() and (plan - limit).abs().sum() < 0.02 * limit.sum()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "coupling, most",
    [(UnbalancedOT(5.0), 1e-3), (UnbalancedOT(5.0, 0.0), 1e-3), (PartialOT(0.9), 1e-12)],
    ids=["unbalanced", "unbalanced-0", "partial"],
)
def test_outliers_are_hardly_learnt_from(coupling, most, side, generator):
    xs = batches(40, 40)
    xs[side][[3, 17]] += 25.0
    for x0, x1 in (xs, (xs[0], xs[1][:30]), (xs[0][:30], xs[1])):
        plan = coupling(x0, x1, generator=generator)
        out = torch.isin(plan.indices[side], torch.tensor([3, 17]))
        assert plan.weight.mean() == pytest.approx(1.0)
        assert plan.weight[out].sum() < most
    plan = ExactOT()(*xs)
    assert plan.weight[torch.isin(plan.indices[side], torch.tensor([3, 17]))].sum() == 2


@pytest.mark.parametrize("moved", [5, 14, 19])
def test_partial_plan_moves_the_cheapest_rows(moved):
    # `moved` of 20 rows: an assignment in which 20 - moved rows of each side may stay idle
    xs, n = batches(20, 20), 20
    matrix = ot.dist(xs[0].numpy(), xs[1].numpy())
    idle = n - moved
    full = np.zeros((n + idle, n + idle))
    full[:n, :n], full[n:, n:] = matrix, 1e6
    rows, columns = linear_sum_assignment(full)
    best = full[rows, columns].sum() / n
    plan = PartialOT(moved / n).plan(*xs).numpy()
    assert plan.sum() == pytest.approx(moved / n)
    assert (plan * matrix).sum() == pytest.approx(best, rel=1e-6)
    assert max(plan.sum(0).max(), plan.sum(1).max()) < 1 / n + 1e-9
    left = np.setdiff1d(np.arange(n), rows[(rows < n) & (columns < n)])
    weight = PartialOT(moved / n)(*xs).weight.numpy()
    assert np.abs(weight[left]).max() < 1e-9 and (weight > 0.5).sum() == moved


@SIZES
@pytest.mark.parametrize("mass", [0.35, 0.9])
def test_partial_plan_agrees_with_linear_programming(mass, sizes):
    # a dummy row and column take what stays: balanced transport by another of POT's solvers
    xs = batches(*sizes)
    matrix = ot.dist(xs[0].numpy(), xs[1].numpy())
    full = np.zeros((sizes[0] + 1, sizes[1] + 1))
    full[:-1, :-1], full[-1, -1] = matrix, 1e6
    masses = [np.append(np.full(n, 1 / n), 1 - mass) for n in sizes]
    plan = PartialOT(mass).plan(*xs).numpy()
    assert (plan * matrix).sum() == pytest.approx(ot.emd2(*masses, full), rel=1e-6)
    assert plan.sum() == pytest.approx(mass)


@SIZES
@pytest.mark.parametrize("coupling", [UnbalancedOT(2.0), PartialOT(0.6)], ids=["unbalanced", "partial"])
def test_pairs_carry_the_mass_of_their_row(coupling, sizes, generator):
    xs = batches(*sizes)
    larger = int(sizes[1] > sizes[0])
    mass = coupling.plan(*xs).sum(1 - larger)
    plan = coupling(*xs, generator=generator)
    torch.testing.assert_close(plan.weight, (mass / mass.mean())[plan.indices[larger]])
    assert plan.weight.std() > 0.05 and not plan.even


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: UnbalancedOT(penalty=0.0), "penalty must be positive"),
        (lambda: UnbalancedOT(penalty=float("inf")), "penalty must be a finite number"),
        (lambda: UnbalancedOT(epsilon=-1.0), "epsilon must be zero or positive"),
        (lambda: UnbalancedOT(cost="cosine"), "cost must be one of"),
        (lambda: PartialOT(mass=0.0), "strictly between 0 and 1"),
        (lambda: PartialOT(mass=1.0), "strictly between 0 and 1"),
        (lambda: PartialOT(cost="cosine"), "cost must be one of"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
