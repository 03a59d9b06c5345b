"""What holds at the edges: large batches, labels on both sides, parts of the user, chunks, errors."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from toy_training import moons, toy, trainer

from genflow.coupling import Coupling, ExactOT, Gibbs, PartialOT, Plan, UnbalancedOT
from genflow.coupling.cost import pair_cost
from genflow.coupling.sides import pair_rows
from genflow.diagnostics import tilt_report
from genflow.loss import Matching
from genflow.model import Tilt
from genflow.time import Uniform
from genflow.training import Checkpoint, Figures, Report


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(n: int, m: int = 0, d: int = 2) -> tuple[Tensor, Tensor]:
    """Two Gaussian clouds, the second narrower and beside the first."""
    x0, x1 = (torch.randn(k, d, generator=seeded(k + s)).double() for s, k in enumerate((n, m or n)))
    return x0, 0.5 * x1 + 1


def test_partial_plans_of_large_batches_move_their_mass():
    plan = PartialOT(0.9).plan(*clouds(2000))
    assert float(plan.sum()) == pytest.approx(0.9)
    for mass in (plan.sum(0) * 2000, plan.sum(1) * 2000):  # a fraction of the rows, each as a whole
        assert float(mass.max()) < 1 + 1e-6 and int((mass > 0.5).sum()) == 1800


def test_even_weights_within_classes_of_both_sides_have_no_tilt():
    (x0, x1), labels = clouds(800), torch.arange(800) % 8
    report = tilt_report(Gibbs(1e6, conditions="within"), x0, x1, (labels, labels))
    assert report.worst < 1e-3 and report.note is report.class_shift_x0 is None


def test_classes_of_both_sides_report_the_shift_of_their_shares():
    (x0, x1), n = clouds(600), 600
    cond0, cond1 = torch.arange(n) % 2, (torch.arange(n) % 10 == 0).long()
    report = tilt_report(ExactOT(conditions="within"), x0, x1, (cond0, cond1), generator=seeded())
    # as many pairs as a class has rows on its larger side; they share the mass that it has in x1
    pairs, share = torch.tensor([540, 300]), torch.tensor([0.9, 0.1]).double()
    weight = (share / pairs).repeat_interleave(pairs)
    assert report.ess == pytest.approx(float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())))
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert report.kl_tilt_x0 == pytest.approx(kl, abs=0.05) and report.kl_tilt_x1 < 0.03


@pytest.mark.parametrize("coupling", [ExactOT(conditions="within"), Gibbs(1.0, conditions="within")])
def test_a_class_without_partners_is_refused(coupling):
    cond = (torch.arange(40) % 2, torch.arange(40) % 3)
    with pytest.raises(
        ValueError, match=rf"^{type(coupling).__name__}.*class \[?2\]?.* has no row in x0"
    ):
        tilt_report(coupling, *clouds(40), cond)


class Fives(Uniform):
    """Uniform times that count five times."""

    def __call__(self, x, generator=None):
        t, weight = super().__call__(x, generator)
        return t, 5 * weight


def test_weights_of_a_law_derived_from_another_are_used():
    xs = clouds(50)
    plain, five = (
        Matching(time=law)(lambda t, x: x, *xs, generator=seeded()) for law in (Uniform(), Fives())
    )
    torch.testing.assert_close(five, 5 * plain)


@dataclass(frozen=True)
class Wrapped(Coupling):
    """A coupling of the user's that hands on to another."""

    inner: Coupling
    most: int = 10**9

    def __call__(self, *xs, cond=None, weights=None, generator=None) -> Plan:
        if len(xs[0]) > self.most:
            raise ValueError(f"Wrapped takes {self.most} rows at most")
        return self.inner(*xs, generator=generator)


def test_the_noise_of_drawn_plans_is_no_tilt():
    # uniform laws on a circle are left alone by any weights of the distance
    angle = 2 * math.pi * torch.rand(2, 1000, generator=seeded(), dtype=torch.float64)
    x0, x1 = torch.stack([angle.cos(), angle.sin()], 2)
    report = tilt_report(Wrapped(Gibbs(0.1)), x0, x1, generator=seeded())
    assert report.worst < 0.05 and report.note is None
    assert tilt_report(Wrapped(Gibbs(0.1)), x0, x1[x1[:, 0] > 0], generator=seeded()).kl_tilt_x0 > 0.3


@pytest.mark.parametrize("limit", [10, 200, 1000, 10**6])
def test_functions_of_cost_are_given_few_numbers_at_a_time(limit, monkeypatch):
    (x0, x1), sizes = clouds(30, 20, 3), []

    def cost(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(max(x.numel(), y.numel()))
        return ((x - y) ** 2).sum(1)

    monkeypatch.setattr("genflow.coupling.cost.NUMBERS", limit)
    torch.testing.assert_close(pair_cost(cost, x0, x1), pair_cost("sqeuclidean", x0, x1))
    assert max(sizes) <= max(limit, x1.numel()) and sum(sizes) == 30 * x1.numel()


def test_weights_under_autocast_keep_their_precision():
    xs = tuple(x.float() for x in clouds(500, d=8))
    loss = Matching(coupling=Gibbs(ess=0.3, correction="gaussian")).prepare(*xs)
    outside = loss.draw(*xs).weight
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss.draw(*xs).weight
    assert inside.dtype == torch.float32 and outside.std() > 0.5
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pairs", [1, 5000, 10**6])
def test_tilted_starts_are_drawn_in_chunks(pairs, monkeypatch):
    monkeypatch.setattr("genflow.model.tilt.PAIRS", pairs)
    points = torch.cat([torch.full((20, 2), 4.0), torch.full((20, 2), -4.0)])
    tilt = Tilt(Gibbs(4.0), points, torch.arange(2).repeat_interleave(20), candidates=25)
    cond, asked, draw = (torch.arange(103) % 3 == 0).long(), [], seeded()

    def source(n: int) -> Tensor:
        asked.append(n)
        return torch.randn(n, 2, generator=draw)

    x = tilt.start(source, len(cond), cond, seeded())
    assert sum(asked) == 103 * 25 and max(asked) <= max(25, pairs // len(points))
    assert x.shape == (103, 2) and x[cond == 0].mean() > 0.7 and x[cond == 1].mean() < -0.7


def test_rare_classes_have_a_tilt_too():
    x0, x1 = clouds(5000)
    labels = (torch.arange(5000) % 2).index_fill(0, torch.tensor([7, 2000, 4444]), 2)
    tilt = Tilt(Gibbs(2.0), size=16).prepare(x0, x1, cond=labels)
    assert tilt.labels.bincount().tolist() == [16, 16, 3]
    expected = (-((x0[:9, None] - x1[labels == 2]) ** 2).sum(2) / 2).exp().sum(1).log()
    torch.testing.assert_close(tilt.log_mass(x0[:9], torch.full((9,), 2)), expected)


def test_conditions_that_a_tilt_does_not_know_are_refused():
    x0, x1 = clouds(20)
    for cond in (x1, (torch.arange(20), torch.arange(20))):
        with pytest.raises(ValueError, match="^Tilt knows integer labels of x1, not [^.]*$"):
            Tilt(Gibbs(1.0)).prepare(x0, x1, cond=cond)
    with pytest.raises(
        ValueError, match=r"^Tilt: Gibbs\(conditions=2.0\) needs conditions of the source"
    ):
        Tilt(Gibbs(1.0, conditions=2.0))


def test_model_and_loss_share_their_coupling_after_a_resume():
    def fresh():
        training = toy(loss=Matching(coupling=Gibbs()))
        training.model.tilt = Tilt(Gibbs())
        return training

    xs, checkpoint = tuple(x.float() for x in clouds(500)), {}
    other, training = fresh().prepare(*(3 * x for x in xs)), fresh().prepare(*xs)
    assert training.model.tilt.coupling is training.loss.coupling
    other.on_save_checkpoint(checkpoint)
    assert other.loss.coupling.epsilon > 8 * training.loss.coupling.epsilon
    for resumed in (training, fresh()):
        resumed.on_load_checkpoint(checkpoint)
        assert resumed.model.tilt.coupling is resumed.loss.coupling
        assert resumed.loss.coupling.epsilon == other.loss.coupling.epsilon


@dataclass(frozen=True)
class Plain(Coupling):
    """Knows no weights."""

    def __call__(self, *xs, cond=None, generator=None) -> Plan:
        return Plan(pair_rows(*xs, generator=generator), xs[0].new_ones(len(xs[0])))


class Open(Coupling):
    """Takes whatever it is given."""

    def __call__(self, *xs, **options) -> Plan:
        return Gibbs(1e9)(*xs, **options)


def test_weights_reach_couplings_that_take_them():
    xs, weights = clouds(6), (None, torch.arange(6.0))
    with pytest.raises(ValueError, match="weights were given but Plain takes none"):
        Matching(coupling=Plain()).draw(*xs, weights=weights)
    weight = Matching(coupling=Open()).draw(*xs, weights=weights).weight
    torch.testing.assert_close(weight, torch.arange(6.0).double() / 2.5, rtol=0, atol=1e-6)


def test_what_cannot_be_coupled_is_refused():
    x0, x1 = clouds(30)
    with pytest.raises(ValueError, match="all mass was left behind"):
        UnbalancedOT(penalty=0.05, epsilon=0.0).plan(x0, x1 + 100)
    with pytest.raises(ValueError, match="not finite"):
        Gibbs(1.0, correction="gaussian").prepare(x0, x1.index_fill(0, torch.tensor(3), math.nan))
    with pytest.raises(ValueError, match=r"x0 are 1 label\(s\) a row but those of x1 2 label\(s\)"):
        Gibbs(1.0, conditions="within")(
            x0, x1, cond=(torch.zeros(30).long(), torch.zeros(30, 2).long())
        )
    with pytest.raises(ValueError, match=r"Gibbs\(rule='std', correction='gaussian'\).*use rule='ess'"):
        Gibbs(rule="std", correction="gaussian")


def test_the_rule_by_deviation_looks_within_classes():
    # classes lie apart along an axis of hardly any variance, which moves all costs of a class alike
    (x0, x1), labels = clouds(8000, d=64), torch.arange(8000) % 2
    x0[:, 0], x1[:, 0] = 0.1 * x0[:, 0], 0.1 * x1[:, 0] + 12 * labels
    coupling = Gibbs(ess=0.5, rule="std", conditions="within").prepare(x0, x1, cond=labels)
    weight = coupling(x0, x1, cond=labels).weight
    assert float(1 / (weight**2).mean()) == pytest.approx(0.5, abs=0.1)


def test_prepared_couplings_are_short_to_print_and_can_be_keys():
    coupling = Gibbs(1.0, correction="gaussian").prepare(*clouds(300, d=60))
    assert len(repr(coupling)) < 400 and {coupling: 1}[coupling] == 1


def test_reports_of_weighted_rows_are_those_of_repeated_rows():
    xs = clouds(500)
    weights = tuple((3 * x[:, 0].sigmoid()).round() for x in xs)
    repeated = [x.repeat_interleave(w.long(), 0) for x, w in zip(xs, weights)]
    expected, plain = (tilt_report(Gibbs(2.0), *sides) for sides in (repeated, xs))
    found = tilt_report(Gibbs(2.0), *xs, weights=weights, rows=4096)
    # rows are drawn by their weights: a standard error of some 2 % from 4096 of them
    for name in ("ess", "kl_tilt_x0", "tv_tilt_x0", "kl_tilt_x1"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.08)
    assert plain.kl_tilt_x0 != pytest.approx(expected.kl_tilt_x0, rel=0.16)


def test_a_tilt_that_cannot_be_computed_loses_no_report(tmp_path):
    training = toy(loss=Matching(coupling=Wrapped(Gibbs(2.0), most=500)))
    parts = [Figures(str(tmp_path), 600, 3), Report(str(tmp_path), 600), Checkpoint(str(tmp_path))]
    trainer(tmp_path, 2, parts).fit(training, moons())
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["w2"] > 0 and "not known: Wrapped takes 500 rows at most" in numbers["note"]
    assert (tmp_path / "samples.png").is_file() and not (tmp_path / "tilt.png").exists()
