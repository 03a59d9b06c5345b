"""Couplings that heed conditions: pairs inside classes, prices, and a source that stays the same."""

import pytest
import torch
from gaussians import bridge_cross, draw, log_z, pair
from scipy.optimize import linear_sum_assignment

from genflow.coupling import ExactOT, Gibbs, PartialOT, Sinkhorn, UnbalancedOT
from genflow.source import EightGaussians

WITHIN = [
    ExactOT(conditions="within"),
    Sinkhorn(2.0, conditions="within"),
    PartialOT(0.8, conditions="within"),
    UnbalancedOT(conditions="within"),
    Gibbs(2.0, conditions="within"),
    Gibbs(2.0, correction="sinkhorn", conditions="within"),
]
BALANCED = [ExactOT, lambda **options: Sinkhorn(0.5, **options)]
within = pytest.mark.parametrize(
    "coupling", WITHIN, ids=lambda c: type(c).__name__ + getattr(c, "correction", "")
)
balanced = pytest.mark.parametrize("make", BALANCED, ids=["exact", "sinkhorn"])
sizes = pytest.mark.parametrize("sizes", [(60, 60), (40, 90), (90, 40)], ids=str)

KEPT = [(n, c) for n in [(60, 60), (40, 90), (90, 40)] for c in (ExactOT, Sinkhorn)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(n, m, seed=0):
    generator = seeded(seed)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x0, 1 + torch.randn(m, 2, generator=generator, dtype=torch.float64)


def labels(n, generator, classes=3):
    """Labels with every class among them, in mixed order, some rarer than others."""
    chance = 1 / torch.arange(1.0, classes + 1)
    drawn = torch.multinomial(chance, n - classes, replacement=True, generator=generator)
    return torch.cat([drawn, torch.arange(classes)])[torch.randperm(n, generator=generator)]


@sizes
@within
def test_pairs_of_two_labelled_sides_share_their_class(coupling, sizes, generator):
    xs = batches(*sizes)
    cond = tuple(labels(n, generator) for n in sizes)
    plan = coupling(*xs, cond=cond, generator=generator)
    i, j = plan.indices
    assert torch.equal(cond[0][i], cond[1][j])
    assert plan.weight.mean() == pytest.approx(1.0)
    # each class keeps the share that it has among x1, whatever its share among x0
    mass = torch.zeros(3, dtype=torch.float64).index_add(0, cond[1][j], plan.weight) / len(j)
    true = cond[1].bincount(minlength=3) / sizes[1]
    assert (mass - true).abs().max() < 1e-6
    assert (cond[0].bincount(minlength=3) / sizes[0] - true).abs().max() > 0.01
    for k in range(3):  # every row of the larger side of a class is there once
        rows = [torch.nonzero(c == k).squeeze(1) for c in cond]
        side = int(len(rows[1]) > len(rows[0]))
        mine = plan.indices[side][cond[1][j] == k]
        assert torch.equal(mine.sort().values, rows[side])


@sizes
@within
def test_rows_come_in_the_order_of_the_batch(coupling, sizes, generator):
    # stratified times fall on rows in order: were these sorted by class, times would know it
    xs, larger = batches(*sizes), int(sizes[1] >= sizes[0])
    cond = tuple(labels(n, generator) for n in sizes)
    for given in (cond, cond[1], (None, cond[1])):
        plan = coupling(*xs, cond=given, generator=generator)
        assert given is not cond or (plan.indices[larger].diff() >= 0).all()
        assert (cond[1][plan.indices[1]].diff() != 0).float().mean() > 0.2  # sorted: .02
    if sizes[1] >= sizes[0]:
        assert (plan.indices[1].diff() >= 0).all()


@sizes
@within
def test_classes_of_x1_alone_keep_their_frequencies(coupling, sizes, generator):
    xs, cond = batches(*sizes), labels(sizes[1], generator)
    plan = coupling(*xs, cond=cond, generator=generator)
    assert len(plan.weight) == max(sizes) and plan.weight.mean() == pytest.approx(1.0)
    mass = torch.zeros(3, dtype=torch.float64).index_add(0, cond[plan.indices[1]], plan.weight)
    # a smaller x1 is repeated evenly: a class counts for at most one more row of it
    true = cond.bincount(minlength=3) / sizes[1]
    assert (mass / max(sizes) - true).abs().max() < (1e-6 if sizes[1] >= sizes[0] else 0.1)


@pytest.mark.parametrize("conditions", ["within", 5.0])
@pytest.mark.parametrize("sizes, make", KEPT)
def test_every_row_of_the_larger_batch_is_kept_with_conditions(make, conditions, sizes, generator):
    larger, cond = int(sizes[1] > sizes[0]), labels(sizes[1], generator)
    plan = make(conditions=conditions)(*batches(*sizes), cond=cond, generator=generator)
    assert torch.equal(plan.indices[larger].sort().values, torch.arange(max(sizes)))
    if make is ExactOT and sizes == (60, 60):
        for rows in plan.indices:
            assert torch.equal(rows.sort().values, torch.arange(60))


@pytest.mark.parametrize("conditions", ["within", 1e4])
@balanced
def test_the_source_given_the_mode_is_the_source(make, conditions):
    # 20 batches of 256, a standard normal to eight Gaussians, mode means in standard errors
    generator, draws = seeded(1), []
    for _ in range(20):
        x0 = torch.randn(256, 2, generator=generator)
        draws.append((x0, *EightGaussians().sample_labelled(256, generator)))

    def largest(coupling):
        """Deviation of the mean and second moment of x0 given the mode, over all modes."""
        parts = []
        for x0, x1, mode in draws:
            plan = coupling(x0, x1, cond=mode, generator=generator)
            parts.append((x0[plan.indices[0]], mode[plan.indices[1]]))
        x0, mode = (torch.cat(v) for v in zip(*parts))
        scores = []
        for k in range(8):
            mine = torch.cat([x0[mode == k], x0[mode == k] ** 2 - 1], 1)
            scores.append(mine.mean(0) / mine.std(0) * len(mine) ** 0.5)
        return torch.stack(scores).abs().max()

    assert largest(make(conditions=conditions)) < 4.5
    assert largest(make()) > 20


def test_pairs_within_a_class_are_the_cheapest(generator):
    # each class by itself, by another solver; pairs as they come cost far more
    xs = batches(90, 90)
    cond = labels(90, generator)
    cond = cond, cond[torch.randperm(90, generator=generator)]
    i, j = ExactOT(conditions="within")(*xs, cond=cond).indices
    matrix = torch.cdist(*xs) ** 2
    for k in range(3):
        block = matrix[cond[0] == k][:, cond[1] == k].numpy()
        mine = cond[1][j] == k
        ours = matrix[i[mine], j[mine]].mean()
        assert ours == pytest.approx(block[linear_sum_assignment(block)].mean(), rel=1e-9)
        assert block.trace() / len(block) > 1.3 * ours


@pytest.mark.parametrize("price", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["vectors", "numbers", "labels", "label"])
def test_a_price_is_added_to_the_cost(kind, price, generator):
    xs = batches(50, 50)
    shape = (2, 50) if kind in ("numbers", "label") else (2, 50, 3)
    cond = torch.randn(shape, generator=generator)
    if kind.startswith("label"):
        cond = (cond * 2).round().long()
    rows = cond.reshape(2, 50, -1)
    between = rows[0][:, None] - rows[1]
    far = (between != 0).sum(2) if kind.startswith("label") else (between.double() ** 2).sum(2)
    full = torch.cdist(*xs) ** 2 + price * far
    i, j = ExactOT(conditions=price)(*xs, cond=tuple(cond)).indices
    best = full[linear_sum_assignment(full.numpy())].mean()
    assert full[i, j].mean() == pytest.approx(float(best), rel=1e-9)
    plain = torch.cdist(*xs) ** 2
    if price == 1e4:  # as conditions alone would pair
        alone = far.double()[linear_sum_assignment(far.numpy())].mean()
        assert far[i, j].double().mean() == pytest.approx(float(alone), rel=1e-3, abs=1e-3)
    if price == 0.01:  # about as if there were none
        cheapest = plain[linear_sum_assignment(plain.numpy())].mean()
        assert plain[i, j].mean() < cheapest + 0.02
    ignoring = ExactOT()(*xs, cond=tuple(cond)).indices
    assert price == 0.01 or full[ignoring].mean() > 1.05 * best


def test_entropic_pairs_heed_a_price(generator):
    xs, cond = batches(64, 64), torch.arange(64) % 2
    shuffled = cond[torch.randperm(64, generator=generator)]
    i, j = Sinkhorn(1.0, conditions=500.0)(*xs, cond=(cond, shuffled), generator=generator).indices
    assert torch.equal(cond[i], shuffled[j])
    i, j = Sinkhorn(1.0)(*xs, cond=(cond, shuffled), generator=generator).indices
    assert 0.2 < (cond[i] != shuffled[j]).double().mean() < 0.8


def test_pairs_of_several_labels_agree_in_all_of_them(generator):
    xs = batches(80, 80)
    cond = torch.stack([torch.arange(80) % 2, torch.arange(80) // 2 % 3], 1)
    shuffled = cond[torch.randperm(80, generator=generator)]
    for coupling in WITHIN:
        i, j = coupling(*xs, cond=(cond, shuffled), generator=generator).indices
        assert torch.equal(cond[i], shuffled[j])
    i, j = ExactOT(conditions="within")(*xs, cond=(cond[:, 0], shuffled[:, 0])).indices
    assert not torch.equal(cond[i], shuffled[j])  # the second label is not idle


@pytest.mark.parametrize("price", [0.7, 3.0])
def test_gibbs_weights_heed_a_price(price, generator):
    xs, cond = batches(40, 40), torch.randint(0, 3, (2, 40, 2), generator=generator)
    weight = Gibbs(2.0, conditions=price)(*xs, cond=tuple(cond)).weight
    cost = ((xs[0] - xs[1]) ** 2).sum(1) + price * (cond[0] != cond[1]).sum(1)
    true = torch.exp(-cost / 2.0)
    torch.testing.assert_close(weight, true / true.mean())
    vectors = cond.float() / 2
    weight = Gibbs(2.0, conditions=price)(*xs, cond=tuple(vectors)).weight
    cost = ((xs[0] - xs[1]) ** 2).sum(1) + price * ((vectors[0] - vectors[1]) ** 2).sum(1)
    true = torch.exp(-cost / 2.0)
    torch.testing.assert_close(weight, true / true.mean())


def two_gaussians(n, seed):
    """A Gaussian source; data of two classes that are Gaussian, a quarter in the first."""
    generator = seeded(seed)
    x0, x1 = draw(pair(), n, generator)
    mode = (torch.rand(n, generator=generator) > 0.25).long()
    laws = pair(), pair()._replace(mean1=pair().mean1 - 3, cov1=0.25 * pair().cov1)
    other = laws[1].mean1 + 0.5 * (x1 - pair().mean1)
    return x0, torch.where(mode[:, None] == 1, other, x1), mode, laws


def by_class(coupling, data):
    """Deviations of each class from its law: means and covariances of both sides, and the cross."""
    x0, x1, mode, laws = data
    plan = coupling(x0, x1, cond=mode)
    marginal, cross = [], []
    for k, law in enumerate(laws):
        w, a, b = (v[mode == k] for v in (plan.weight, x0, x1))
        w = (w / w.sum())[:, None]
        ca, cb = a - (w * a).sum(0), b - (w * b).sum(0)
        marginal += [(w * a).sum(0) - law.mean0, (w * b).sum(0) - law.mean1]
        marginal += [((w * ca).T @ ca - law.cov0).flatten(), ((w * cb).T @ cb - law.cov1).flatten()]
        cross += [(w * ca).T @ cb - bridge_cross(law, (coupling.epsilon / 2) ** 0.5)]
    return float(torch.cat(marginal).abs().max()), float(torch.stack(cross).abs().max())


@pytest.mark.parametrize("normaliser", ["batch", "pilot"])
def test_potentials_of_each_class_keep_its_marginals(normaliser):
    # two Gaussian classes: marginals .05, cross-covariances .05, shares .03
    options = {"correction": "gaussian", "normaliser": normaliser}
    train, test = two_gaussians(50_000, 2), two_gaussians(150_000, 3)
    ours = Gibbs(3.0, conditions="within", **options).prepare(*train[:2], cond=train[2])
    assert len(ours.fitted["mean0"]) == 2 and ours.fitted["labels"] == [[0], [1]]
    marginal, cross = by_class(ours, test)
    assert marginal < 0.05 and cross < 0.05
    weight = ours(*test[:2], cond=test[2]).weight
    means = torch.stack([weight[test[2] == k].mean() for k in range(2)])
    assert (means - 1).abs().max() < (1e-9 if normaliser == "batch" else 0.03)
    # potentials of the whole, and none at all, do not
    whole = Gibbs(3.0, **options).prepare(*train[:2])
    assert by_class(whole, test)[0] > 0.2
    assert by_class(Gibbs(3.0, conditions="within"), test)[0] > 0.2


def test_batch_potentials_within_classes_keep_the_source(generator):
    # 40 batches of 256; tolerance .1 (potentials of a whole batch: over .3)
    sums = {"within": [], "ignore": []}
    for seed in range(40):
        x0, x1, mode, laws = two_gaussians(256, 100 + seed)
        for conditions, found in sums.items():
            weight = Gibbs(3.0, correction="sinkhorn", conditions=conditions)(x0, x1, cond=mode).weight
            if conditions == "within":
                means = torch.stack([weight[mode == k].mean() for k in range(2)])
                assert (means - 1).abs().max() < 1e-9
            shares = [(weight * (mode == k) / (weight * (mode == k)).sum()) @ x0 for k in range(2)]
            found.append(torch.stack(shares) - laws[0].mean0)
    assert torch.stack(sums["within"]).mean(0).abs().max() < 0.1
    assert torch.stack(sums["ignore"]).mean(0).abs().max() > 0.3


def test_gibbs_weights_of_each_class_have_mean_one(generator):
    x0, x1, mode, _ = two_gaussians(500, 4)
    weight = Gibbs(3.0, conditions="within")(x0, x1, cond=mode).weight
    for k in range(2):
        true = torch.softmax(-((x0 - x1) ** 2).sum(1)[mode == k] / 3.0, 0) * (mode == k).sum()
        torch.testing.assert_close(weight[mode == k], true)
    plain = Gibbs(3.0)(x0, x1, cond=mode).weight
    assert abs(plain[mode == 0].mean() - 1) > 0.3


def test_each_class_has_its_constant_normaliser():
    # against log Z of each class in closed form, .03; the source knows classes, or not
    x0, x1, mode, laws = two_gaussians(100_000, 5)
    true = torch.tensor([log_z(law, 1 / 3.0) for law in laws])
    assert abs(true[0] - true[1]) > 0.3
    other = mode[torch.randperm(len(mode), generator=seeded(6))]
    for cond, source in ((mode, x0), ((other, mode), x0 - other[:, None])):
        coupling = Gibbs(3.0, conditions="within", normaliser="pilot").prepare(source, x1, cond=cond)
        if cond is mode:
            assert (torch.tensor(coupling.fitted["log_z"]) - true).abs().max() < 0.03
        plan = coupling(source, x1, cond=cond)
        kept = mode[plan.indices[1]]
        mass = torch.stack([plan.weight[kept == k].sum() / (mode == k).sum() for k in range(2)])
        assert (mass * len(mode) / len(kept) - 1).abs().max() < 0.05


def call(coupling, *cond):
    x0, x1 = torch.zeros(4, 2), torch.arange(8.0).reshape(4, 2)
    return coupling(x0, x1, cond=cond if len(cond) > 1 else cond[0])


FOUR = torch.tensor([0, 0, 1, 1])


def prepared_then_called():
    x0, x1 = batches(4, 4)
    Gibbs(conditions="within").prepare(x0, x1, cond=FOUR)(x0, x1, cond=FOUR + 1)


@pytest.mark.parametrize(
    "run, words",
    [
        (lambda: call(ExactOT(conditions="within"), None), "needs the conditions of x1: pass cond="),
        (lambda: call(Sinkhorn(conditions=1.0), FOUR, None), "needs the conditions of x1"),
        (lambda: call(Gibbs(1.0, conditions="within"), None), "needs the conditions of x1"),
        (
            lambda: call(ExactOT(conditions="within"), FOUR.float()),
            "needs integer labels, got torch.fl",
        ),
        (lambda: call(Gibbs(1.0, conditions="within"), FOUR.float()), "for vectors give a number"),
        (lambda: call(ExactOT(conditions="within"), FOUR, 2 * FOUR), r"class \[1\] has no row in x1"),
        (lambda: call(Gibbs(1.0, conditions="within"), 2 * FOUR, FOUR), r"\[1\] has no row in x0"),
        (lambda: call(ExactOT(conditions=1.0), FOUR, FOUR, FOUR), "3 entries for 2 marginals"),
        (lambda: call(ExactOT(conditions=1.0), FOUR[:3]), "cond of x1 must be a tensor of its 4 rows"),
        (lambda: call(ExactOT(conditions=1.0), [0, 0, 1, 1], FOUR), "cond of x0 must .* got list"),
        (lambda: call(Gibbs(1.0, conditions=1.0), FOUR), "needs the conditions of both sides"),
        (prepared_then_called, "class 2 was not among the data that prepare saw"),
        (lambda: ExactOT(conditions="across"), "conditions must be 'ignore', 'within'"),
        (lambda: Sinkhorn(conditions=0.0), "positive number"),
        (lambda: Gibbs(conditions=-1.0), "positive number"),
        (lambda: PartialOT(conditions=float("nan")), "positive number"),
        (lambda: UnbalancedOT(conditions=True), "positive number"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(run, words):
    with pytest.raises(ValueError, match=words):
        run()
