"""Chains of pairs: marginals are kept, neighbours are coupled, weights multiply."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from genflow.coupling import (
    Chained,
    Coupling,
    ExactOT,
    Gibbs,
    Independent,
    Plan,
    Sinkhorn,
    UnbalancedOT,
)
from genflow.coupling.sinkhorn import bridge_epsilon
from genflow.interpolant import Chain
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Heun
from genflow.source import Empirical
from genflow.specs import fill, spec
from genflow.time import Stratified

COUPLINGS = [Independent(), ExactOT(), Sinkhorn(2.0, tolerance=1e-8), Gibbs(2.0), UnbalancedOT(5.0)]
SIZES = [(24, 24, 24, 24), (10, 24, 17), (24, 10, 24), (1, 7, 1), (9, 9)]
every = pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)


def batches(*sizes, seed=0, shape=(2,), dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [k + torch.randn(n, *shape, generator=draw, dtype=dtype) for k, n in enumerate(sizes)]


@sizes
@every
def test_a_plan_has_rows_of_every_marginal(coupling, sizes, generator):
    xs = batches(*sizes, shape=(1, 2, 2))
    plan = Chained(coupling)(*xs, generator=generator)
    assert len(plan.indices) == len(sizes) and plan.weight.dtype == xs[0].dtype
    assert plan.weight.shape == (max(sizes),)
    assert torch.isclose(plan.weight.mean(), torch.tensor(1.0))
    assert plan.even == coupling.__class__.__name__.startswith(("Ind", "Ex", "Sink"))
    for x, rows, gathered in zip(xs, plan.indices, plan.gather(*xs)):
        assert rows.shape == (max(sizes),) and rows.dtype == torch.int64
        assert torch.equal(gathered, x[rows])


@sizes
@pytest.mark.parametrize("coupling", COUPLINGS[:2], ids=lambda c: type(c).__name__)
def test_every_marginal_is_kept(coupling, sizes, generator):
    # a permutation where sizes are equal; else every row as often as any other, or once more
    for n, rows in zip(sizes, Chained(coupling)(*batches(*sizes), generator=generator).indices):
        counts = rows.bincount(minlength=n)
        assert counts.sum() == max(sizes) and counts.max() - counts.min() <= (max(sizes) % n > 0)


def test_neighbours_are_assigned_as_scipy_assigns_them():
    xs = batches(60, 60, 60, 60, dtype=torch.float64)
    plan = Chained(ExactOT())(*xs)
    assert not plan.aligned and torch.equal(plan.indices[0], torch.arange(60))
    for k in range(3):
        cost = torch.cdist(xs[k], xs[k + 1]) ** 2
        best = dict(zip(*(v.tolist() for v in linear_sum_assignment(cost.numpy()))))
        assert dict(zip(plan.indices[k].tolist(), plan.indices[k + 1].tolist())) == best


def test_a_chain_of_gaussians_follows_the_maps_of_brenier(generator):
    # symmetric positive maps are optimal, so that the pairs are known, and with them the path: with
    # means and covariances of pairwise Wasserstein geodesics
    n, s = 200, 0.3
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    maps = torch.tensor([[[2.0, 0.3], [0.3, 0.7]], [[0.5, -0.2], [-0.2, 1.5]]], dtype=torch.float64)
    x1 = x0 @ maps[0] + 1
    x2 = x1 @ maps[1] - 2
    mixed = [x[torch.randperm(n, generator=generator)] for x in (x0, x1, x2)]
    path = Chain([0.0, 1.0, 4.0])
    for start, stretch, first, t in (
        (x0, maps[0], 0.0, s / 4), (x1, maps[1], 0.25, 0.25 + s * 0.75),
    ):  # fmt: skip
        sample = path.sample(t, *Chained()(*mixed).gather(*mixed))
        middle = (1 - s) * torch.eye(2, dtype=torch.float64) + s * stretch
        torch.testing.assert_close(sample.x.mT.cov(), middle @ start.mT.cov() @ middle)
        loose = path.sample(t, *Chained(Independent())(*mixed).gather(*mixed)).x.mT.cov()
        assert (loose - middle @ start.mT.cov() @ middle).abs().max() > 0.1
        assert sample.t[0] >= first


def test_entropic_chains_are_bridges_one_after_the_other(generator):
    # correlations of a Markov chain of Gaussians multiply
    n, sigma, draws, stds = 400, 0.8, 20, (1.0, 0.7, 1.3)
    coupling, found = Chained(Sinkhorn(bridge_epsilon(sigma))), []
    for _ in range(draws):
        xs = [torch.randn(n, 1, generator=generator, dtype=torch.float64) * s for s in stds]
        x0, x1, x2 = (x[:, 0] for x in coupling(*xs, generator=generator).gather(*xs))
        found.append(torch.stack([(x0 * x1).mean(), (x1 * x2).mean(), (x0 * x2).mean()]))
    found = torch.stack(found)
    first, second = (
        ((4 * stds[k] ** 2 * stds[k + 1] ** 2 + sigma**4) ** 0.5 - sigma**2) / 2 for k in (0, 1)
    )
    true = torch.tensor([first, second, first * second / stds[1] ** 2], dtype=torch.float64)
    error = found.std(0) / draws**0.5
    assert ((found.mean(0) - true).abs() < 4 * error).all()
    exact = torch.tensor([0.7, 0.91, 1.3], dtype=torch.float64)
    assert ((found.mean(0) - exact).abs() > 10 * error).all(), "exact pairs are others"


def test_rows_of_unequal_batches_are_equally_frequent(generator):
    xs, draws = batches(10, 24, 16), 300
    counts = [torch.zeros(len(x)) for x in xs]
    for _ in range(draws):
        plan = Chained(Sinkhorn(2.0, tolerance=1e-8))(*xs, generator=generator)
        for count, rows in zip(counts, plan.indices):
            count += rows.bincount(minlength=len(count))
    for count in counts:
        mean = 24 / len(count)
        assert (count / draws - mean).abs().max() <= 4.5 * (mean / draws) ** 0.5


def test_weights_of_pairs_multiply():
    xs = batches(40, 40, 40, dtype=torch.float64)
    plan = Chained(Gibbs(0.8))(*xs)
    cost = sum(((xs[k] - xs[k + 1]) ** 2).sum(1) for k in (0, 1))
    weight = (-cost / 0.8).exp()
    torch.testing.assert_close(plan.weight, weight / weight.mean())
    masses = [torch.rand(40, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    plan = Chained(Independent())(*xs, weights=masses)
    weight = (masses[0] * masses[1] * masses[2]).double()
    torch.testing.assert_close(plan.weight, weight / weight.mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(2.0)], ids=lambda c: type(c).__name__)
def test_given_masses_are_those_of_the_weighted_rows(coupling, generator):
    xs, draws = batches(12, 20, 15), 400
    masses = [None, *(torch.rand(n, generator=generator) ** 3 for n in (20, 15))]
    found = []
    for _ in range(draws):
        plan = Chained(coupling)(*xs, weights=masses, generator=generator)
        found.append(torch.stack([(plan.weight[:, None] * x).mean(0) for x in plan.gather(*xs)]))
    found, true = torch.stack(found), []
    for x, mass in zip(xs, masses):
        mass = torch.ones(len(x)) if mass is None else mass
        true.append((mass / mass.sum()) @ x)
    error = found.std(0) / draws**0.5
    assert ((found.mean(0) - torch.stack(true)).abs() < 4.5 * error + 1e-3).all()
    plain = torch.stack([x.mean(0) for x in xs])
    assert ((found.mean(0) - plain)[1:].abs() > 5 * error[1:]).any(), "the masses were heeded"


def test_classes_are_kept_along_a_chain(generator):
    xs = batches(20, 20, 20)
    labels = [torch.randperm(20, generator=generator) % 4 for _ in xs]
    plan = Chained(ExactOT(conditions="within"))(*xs, cond=labels, generator=generator)
    first, *others = (c[rows] for c, rows in zip(labels, plan.indices))
    assert all(torch.equal(first, other) for other in others)
    for rows in plan.indices:
        assert torch.equal(rows.sort().values, torch.arange(20))
    last = Chained()(*xs, cond=labels[-1])  # the usual kind: conditions of the data's end alone
    assert torch.equal(last.indices[2], Chained()(*xs).indices[2])


def test_rows_that_come_paired_stay_paired():
    plan = Chained(Independent())(*batches(9, 9, 9))
    assert plan.aligned and Chained(Independent()).independent and not Chained().independent


def test_each_interval_may_have_its_own_coupling():
    xs = batches(30, 30, 30)
    mixed = Chained([Independent(), ExactOT()])(*xs)
    assert torch.equal(mixed.indices[0], mixed.indices[1])
    assert torch.equal(mixed.indices[2], ExactOT()(xs[1], xs[2]).indices[1])


def test_epsilon_per_time_is_that_of_each_bridge():
    coupling = Chained(Sinkhorn(2.0), per_time=True)
    assert [c.epsilon for c in coupling.couplings(5)] == [0.5] * 4
    coupling.observe([0, 12, 24, 72])
    assert [c.epsilon for c in coupling.couplings(4)] == pytest.approx([1 / 3, 1 / 3, 4 / 3])
    assert coupling.observe([1, 2, 3, 4]).times == [1, 2, 3, 4]  # of a second series
    stated = Chained(Sinkhorn(2.0), [0, 1, 4], True).observe([10, 20, 50])  # in another unit
    assert stated.times == [0, 1, 4]
    for other in ([0, 1, 2], [0, 1]):
        with pytest.raises(ValueError, match="not spaced as the marginals"):
            stated.observe(other)
    assert [c.epsilon for c in Chained(Sinkhorn(2.0)).couplings(3)] == [2.0, 2.0]


def test_equal_generators_give_equal_chains():
    xs = batches(10, 24, 16)
    one, other = (
        Chained(Sinkhorn(2.0))(*xs, generator=torch.Generator().manual_seed(s)).indices for s in (5, 5)
    )
    assert all(map(torch.equal, one, other))


def test_what_a_coupling_chooses_from_data_is_kept_and_put_back():
    xs = batches(200, 200, 200)
    coupling = Chained([Gibbs(ess=0.5), Gibbs(ess=0.5)])
    before = spec(coupling)
    assert coupling.needs_data
    prepared = Matching(Chain(), coupling).prepare(*xs).coupling
    assert not prepared.needs_data and prepared(*xs).weight.std() > 0
    again = Chained([Gibbs(ess=0.5), Gibbs(ess=0.5)])
    fill(again, before, spec(prepared))
    assert again == prepared
    with pytest.raises(ValueError, match="of 2 intervals at once; give a list"):
        Chained(Gibbs(ess=0.5)).prepare(*xs)


class Ranked(Coupling):
    """A user's own, for numbers: by rank, the largest first, knowing no weights."""

    def __call__(self, *xs, cond=None, generator=None):
        rows = tuple(x[:, 0].argsort(descending=True) for x in xs)
        return Plan(rows, xs[0].new_ones(len(rows[0])), even=True)


def test_the_rows_of_a_pair_may_come_in_any_order():
    xs = batches(9, 9, 9, shape=(1,))
    for x in Chained(Ranked())(*xs).gather(*xs):
        assert torch.equal(x, x.sort(0, descending=True).values)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Chained(None), TypeError, "coupling of two marginals"),
        (lambda: Chained([ExactOT(), 3]), TypeError, "coupling=3"),
        (lambda: Chained(Chained()), TypeError, "coupling of two marginals"),
        (lambda: Chained(per_time=True), ValueError, "states no epsilon"),
        (lambda: Chained(times=[0, 2, 2]), ValueError, "that rise"),
        (
            lambda: Chained([ExactOT()])(*batches(3, 3, 3)),
            ValueError,
            "1 couplings for the 2 intervals",
        ),
        (lambda: Chained(Sinkhorn(), [0, 1], True)(*batches(3, 3, 3)), ValueError, "got 3 marginals"),
        (lambda: Chained()(*batches(3)), ValueError, "at least two marginals"),
        (lambda: Chained()(*batches(3, 3), torch.zeros(3, 4)), ValueError, "x2 has event shape"),
    ],
)
def test_what_makes_no_chain_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_flow_matching_passes_through_every_snapshot(generator):
    # Gaussians on a line: quantiles move along known lines, which a small network learns
    torch.manual_seed(0)
    means, stds, n = (0.0, 2.0, 1.0), (1.0, 0.4, 0.8), 128
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(n) + 0.5) / n)[:, None]
    xs = [m + s * quantiles for m, s in zip(means, stds)]
    net = MLP(1, 64, depth=2)
    loss = Matching(Chain([0.0, 1.0, 3.0]), Chained(), Stratified())
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        mixed = [x[torch.randperm(n, generator=generator)] for x in xs]
        optimizer.zero_grad()
        loss(net, *mixed, generator=generator).backward()
        optimizer.step()
        schedule.step()
    model = Generator(Empirical(xs[0]), SDE(net), Heun(30))
    path = model.sample(x0=xs[0], times=torch.linspace(0, 1, 31), trajectory=True)
    for k, t in ((10, 1), (30, 2)):
        assert (path[k] - xs[t]).abs().mean() < 0.1
    half = (xs[0] + xs[1]) / 2  # the clock of the snapshots is the clock of the flow
    assert (path[5] - half).abs().mean() < 0.1
