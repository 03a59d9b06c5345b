"""What couplings do to the laws that they are given, against closed forms and masses by brute force."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from gaussians import ess, pair, tilted
from scipy.special import iv
from torch import Tensor

from genflow.coupling import (
    Coupling,
    ExactOT,
    Gibbs,
    Independent,
    PartialOT,
    Plan,
    Sinkhorn,
    UnbalancedOT,
)
from genflow.coupling.sides import pair_rows
from genflow.diagnostics import TiltReport, tilt_report
from genflow.loss import Matching, On, Sum
from genflow.source import EightGaussians, Gaussian, Moons

EPSILON = 3.0
ROWS = 2048


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matched(mean: Tensor, cov: Tensor, n: int = ROWS, seed: int = 0) -> Tensor:
    """Gaussian rows whose mean and covariance are exactly these: most of the noise is gone."""
    z = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T
    return z @ torch.linalg.cholesky(cov).T + mean


def gaussians() -> tuple[Tensor, Tensor]:
    law = pair()
    return matched(law.mean0, law.cov0), matched(law.mean1, law.cov1, seed=1)


def kl(mean1: Tensor, cov1: Tensor, mean0: Tensor, cov0: Tensor) -> float:
    """KL(N(mean1, cov1) | N(mean0, cov0))."""
    inverse, offset = torch.linalg.inv(cov0), mean1 - mean0
    logs = torch.logdet(cov0) - torch.logdet(cov1)
    return float(torch.trace(inverse @ cov1) - len(mean1) + offset @ inverse @ offset + logs) / 2


def variation(mean1: Tensor, cov1: Tensor, mean0: Tensor, cov0: Tensor) -> float:
    """Total variation of two Gaussians in the plane, on a grid."""
    one, two = (torch.distributions.MultivariateNormal(*law) for law in ((mean1, cov1), (mean0, cov0)))
    side = torch.linspace(-8, 8, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side) + mean0
    gap = (one.log_prob(grid).exp() - two.log_prob(grid).exp()).abs()
    return float(gap.sum()) * float(side[1] - side[0]) ** 2 / 2


def truths(kappa: float) -> dict[str, float]:
    """The numbers of the report for the Gaussian pair, without sampling error."""
    law = pair()
    moved = tilted(law, kappa)
    numbers = {"ess": ess(law, kappa)}
    for k in (0, 1):
        laws = [getattr(p, f"{name}{k}") for p in (moved, law) for name in ("mean", "cov")]
        mean1, cov1, mean0, cov0 = laws
        numbers[f"kl_tilt_x{k}"] = kl(*laws)
        numbers[f"tv_tilt_x{k}"] = variation(*laws)
        numbers[f"mean_shift_x{k}"] = float((mean1 - mean0).norm() / cov0.trace().sqrt())
        numbers[f"std_shift_x{k}"] = float((cov1.trace() / cov0.trace()).sqrt()) - 1
    return numbers


def within(report: TiltReport, numbers: dict[str, float], rel: float) -> list[bool]:
    return [getattr(report, k) == pytest.approx(v, rel=rel) for k, v in numbers.items()]


def test_gaussian_pairs_have_their_closed_form():
    # 5 % each; the sampling error of single numbers is below 3 %
    report = tilt_report(Gibbs(EPSILON), *gaussians())
    assert all(within(report, truths(1 / EPSILON), 0.05))
    assert report.std_shift_x0 < 0 and report.worst == report.kl_tilt_x0 > report.kl_tilt_x1
    # the temperatures of c / 2 and 2 c, and swapped sides, are seen in every number
    for wrong in (tilt_report(Gibbs(2 * EPSILON), *gaussians()), tilt_report(Gibbs(1.5), *gaussians())):
        assert not any(within(wrong, truths(1 / EPSILON), 0.1))
    swapped = tilt_report(Gibbs(EPSILON), *reversed(gaussians()))
    assert swapped.kl_tilt_x0 == pytest.approx(report.kl_tilt_x1)
    assert not swapped.kl_tilt_x0 == pytest.approx(report.kl_tilt_x0, rel=0.1)


def test_a_cost_of_the_user_has_its_own_temperature():
    half = Gibbs(EPSILON, cost=lambda x, y: ((x - y) ** 2).sum(1) / 2)
    report = tilt_report(half, *(x[:600] for x in gaussians()))
    assert report.kl_tilt_x0 == pytest.approx(truths(0.5 / EPSILON)["kl_tilt_x0"], rel=0.15)
    assert report.kl_tilt_x0 < 0.6 * truths(1 / EPSILON)["kl_tilt_x0"]


@pytest.mark.parametrize("correction", ["gaussian", "sinkhorn"])
def test_corrections_leave_no_tilt(correction):
    # the rows have the moments of the Gaussians, so that what is left is their higher moments
    xs = gaussians()
    report = tilt_report(Gibbs(EPSILON, correction=correction).prepare(*xs), *xs)
    assert abs(report.worst) < 1e-3 and max(report.tv_tilt_x0, report.tv_tilt_x1) < 0.01
    assert max(report.mean_shift_x0, report.mean_shift_x1, abs(report.std_shift_x0)) < 0.01
    assert report.note is None
    assert report.ess < 0.8, "even weights would leave no tilt either"


def test_masses_are_those_of_all_pairs():
    x0, x1 = (x[:50] for x in gaussians())
    x1 = x1[:40]
    report = tilt_report(Gibbs(EPSILON), x0, x1)
    w = torch.exp(-((x0[:, None] - x1) ** 2).sum(2) / EPSILON)
    for mass, plain in ((report.mass0, w.mean(1)), (report.mass1, w.mean(0))):
        torch.testing.assert_close(mass, plain / plain.mean())
    assert report.ess == pytest.approx(float(w.mean() ** 2 / (w**2).mean()))
    assert torch.equal(report.x0, x0) and torch.equal(report.x1, x1)
    r = report.mass0
    assert report.kl_tilt_x0 == pytest.approx(float((r * r.log()).mean()))
    assert report.tv_tilt_x0 == pytest.approx(float((r - 1).abs().mean() / 2))


def test_far_laws_do_not_underflow():
    # exp(-c / epsilon) is zero for every pair; shifting a side far away is the closed form's offset
    x0, x1 = gaussians()
    report = tilt_report(Gibbs(1.0), x0, x1 + 100)
    assert math.isfinite(report.kl_tilt_x0) and report.kl_tilt_x0 > 1
    assert report.mass0.sum() == pytest.approx(ROWS)


def circle(n: int, centre: float = 0.0) -> Tensor:
    """Even points of the unit circle: the uniform law without noise."""
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angle.cos() + centre, angle.sin()], 1)


def test_weights_leave_uniform_laws_on_a_circle_alone():
    # E <x, y> under weights exp(-|x - y|^2 / epsilon) = exp((2 <x, y> - 2) / epsilon) on the unit
    # circle is I1(2 / epsilon) / I0(2 / epsilon)
    def moments(epsilon: float, x: Tensor, y: Tensor) -> float:
        plan = Gibbs(epsilon)(x, y)
        i, j = plan.indices
        return float((plan.weight * (x[i] * y[j]).sum(1)).mean())

    angles = 2 * math.pi * torch.rand(2, 200_000, generator=seeded(), dtype=torch.float64)
    x, y = torch.stack([angles.cos(), angles.sin()], 2)
    expected = iv(1, 4) / iv(0, 4)
    assert abs(moments(0.5, x, y) - expected) < 0.01
    assert abs(moments(1.0, x, y) - expected) > 0.1
    assert abs(moments(0.25, x, y) - expected) > 0.05
    for sides in ((x[:ROWS], y[:ROWS]), (circle(300), circle(200))):
        report = tilt_report(Gibbs(0.5), *sides)
        assert abs(report.worst) < 0.005 and report.note is None and report.ess < 0.3
    assert abs(report.worst) < 1e-12
    # off the centre the points are no longer equally far from the other side
    assert tilt_report(Gibbs(0.5), circle(300, 0.5), circle(200)).worst > 0.02


@pytest.mark.parametrize(
    "coupling",
    [Independent(), ExactOT(), ExactOT("euclidean"), Sinkhorn(2.0)],
    ids=lambda c: type(c).__name__,
)
@pytest.mark.parametrize("sizes", [(60, 60), (60, 90)], ids=str)
@pytest.mark.parametrize("labels", [False, True])
def test_balanced_couplings_have_no_tilt(coupling, sizes, labels):
    x0, x1 = (x[:n] for x, n in zip(gaussians(), sizes))
    cond = torch.arange(sizes[1]) % 2 if labels else None
    report = tilt_report(coupling, x0, x1, cond, generator=seeded())
    numbers = report.numbers()
    assert numbers["ess"] == pytest.approx(1.0)
    if labels and sizes[0] < sizes[1]:  # partners in x0 are drawn: their counts differ a little
        names = {name for name in numbers if name.endswith("x1") and "tilt" in name}
    else:
        names = {name for name in numbers if "tilt" in name or name.startswith(("mean", "std"))}
    assert names and all(abs(numbers[name]) < 1e-12 for name in names)
    assert (numbers["class_shift_x0"] is None) is not labels


def test_unbalanced_transport_reports_the_mass_that_it_loses():
    # an outlier is left behind: at a price of 1 it would cost 400 to fetch
    x0, x1 = (x[:100].clone() for x in gaussians())
    x1[0] = 20.0
    report = tilt_report(UnbalancedOT(penalty=1.0, epsilon=1.0), x0, x1)
    assert report.mass1[0] < 0.05 and report.mass1[1:].min() > report.mass1[0]
    assert report.mean_shift_x1 > 0.05 and report.std_shift_x1 < -0.3
    assert "leaves mass behind" in report.note and "UnbalancedOT is for" in report.note
    # a dear price keeps everything, and then there is nothing to say
    kept = tilt_report(UnbalancedOT(penalty=1e5, epsilon=1.0), *(x[:100] for x in gaussians()))
    assert abs(kept.worst) < 1e-3 and kept.note is None


def test_partial_transport_reports_the_mass_that_it_loses():
    # a fraction m of even mass is kept, 1 / m each: KL log(1 / m), total variation 1 - m
    report = tilt_report(PartialOT(0.8), *(x[:200] for x in gaussians()))
    for k in (0, 1):
        assert getattr(report, f"kl_tilt_x{k}") == pytest.approx(math.log(1 / 0.8))
        assert getattr(report, f"tv_tilt_x{k}") == pytest.approx(0.2)
    assert report.ess == pytest.approx(0.8)
    assert "PartialOT is for" in report.note


def eight(n: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    x1, labels = EightGaussians().double().sample_labelled(n, seeded(1))
    return Gaussian(2).double().sample(n, seeded(2)), x1, labels


def test_exact_transport_ties_the_source_to_the_class():
    x0, x1, labels = eight(800)
    report = tilt_report(ExactOT(), x0, x1, labels)
    # by brute force: the mean of x0 over the partners of each class
    rows = ExactOT()(x0, x1).indices
    share = labels.bincount() / len(labels)
    means = torch.stack([x0[rows[0][labels[rows[1]] == k]].mean(0) for k in range(8)])
    squares = ((means - x0.mean(0)) ** 2).sum(1) / x0.var(0, correction=0).sum()
    assert report.class_shift_x0 == pytest.approx(float((share * squares).sum().sqrt()), rel=1e-6)
    # a plan from a round law to a round law keeps the angle: means of sectors of 45 degrees,
    # sqrt(pi / 2) sin(pi / 8) / (pi / 8), over the root of the total variance
    sector = math.sqrt(math.pi / 2) * math.sin(math.pi / 8) / (math.pi / 8) / math.sqrt(2)
    assert report.class_shift_x0 == pytest.approx(sector, rel=0.05)
    assert report.class_shift_x0 > 5 * report.class_shift_chance
    assert "coupling.conditions=within mends it" in report.note
    assert f"{report.class_shift_x0:.2f} standard deviations" in report.note


@pytest.mark.parametrize("coupling", [ExactOT(conditions="within"), Independent()], ids=["within", "I"])
def test_pairs_that_heed_the_class_leave_the_source_free_of_it(coupling):
    report = tilt_report(coupling, *eight(800), generator=seeded())
    assert report.class_shift_x0 < 1.5 * report.class_shift_chance
    assert report.note is None


def test_chance_is_what_independent_pairs_show():
    # root of the mean square over many draws; 16 of them have a standard error of about 5 %
    found = []
    for seed in range(16):
        x0 = Gaussian(2).double().sample(400, seeded(seed))
        report = tilt_report(Independent(), x0, eight(400)[1], eight(400)[2])
        found.append(report.class_shift_x0**2)
    assert math.sqrt(sum(found) / 16) == pytest.approx(report.class_shift_chance, rel=0.2)


@pytest.mark.parametrize("conditions", ["ignore", "within"])
def test_weights_tilt_each_class_by_itself(conditions):
    x0, x1, labels = (v[:600] for v in eight())
    report = tilt_report(Gibbs(10.0, conditions=conditions), x0, x1, labels)
    w = torch.exp(-((x0[:, None] - x1) ** 2).sum(2) / 10)
    given = torch.stack([w[:, labels == k].mean(1) for k in range(8)])
    counts = labels.bincount().double() / len(labels)
    share = counts * given.mean(1) / (counts * given.mean(1)).sum()
    share = counts if conditions == "within" else share
    r = given / given.mean(1, keepdim=True)
    assert report.kl_tilt_x0 == pytest.approx(float(share @ (r * r.log()).mean(1)), rel=1e-5)
    assert report.tv_tilt_x0 == pytest.approx(float(share @ (r - 1).abs().mean(1) / 2), rel=1e-5)
    means = r @ x0 / len(x0) - x0.mean(0)
    square = (means**2).sum(1) / x0.var(0, correction=0).sum()
    assert report.class_shift_x0 == pytest.approx(float((share @ square).sqrt()), rel=1e-5)
    # over all classes the source hardly moves: its tilts cancel, and labels alone show them
    blind = tilt_report(Gibbs(10.0), x0, x1)
    assert blind.kl_tilt_x0 < 0.1 * report.kl_tilt_x0 and blind.class_shift_x0 is None
    if conditions == "within":  # classes keep their frequencies
        for k in range(8):
            assert report.mass1[labels == k].mean() == pytest.approx(1.0)


def test_sources_with_classes_meet_their_own():
    # two classes far apart, each around its own source: all masses are those of a class by itself
    x0, x1 = (x[:300] for x in gaussians())
    own = torch.arange(300) % 2
    far = 50.0 * own[:, None]
    coupling = Gibbs(EPSILON, conditions="within")
    report = tilt_report(coupling, x0 + far, x1 + far, (own, own))
    for k in (0, 1):
        alone = tilt_report(Gibbs(EPSILON), x0[own == k], x1[own == k])
        torch.testing.assert_close(report.mass1[own == k], alone.mass1)


def stated(note: str) -> dict[str, str]:
    """Overrides of the coupling that a note names."""
    return dict(re.findall(r"coupling\.(\w+)=(\w+)", note))


def left_over(note: str) -> float:
    return float(re.search(r"mends it \((\S+) left at this epsilon\)", note).group(1))


def test_a_note_names_the_correction_and_what_it_leaves():
    x0, x1 = Gaussian(2).sample(600, seeded()), Moons().sample(600, seeded(1))
    raw = Gibbs(4.0)
    note = tilt_report(raw, x0, x1).note
    assert stated(note) == {"correction": "gaussian"} and 0 < left_over(note) < 0.05
    report = tilt_report(raw, x0, x1)
    assert f"{report.kl_tilt_x0:.2g} nats at x0, {report.kl_tilt_x1:.2g} at x1" in note
    mended = tilt_report(dataclasses.replace(raw, **stated(note)).prepare(x0, x1), x0, x1)
    assert mended.worst == pytest.approx(left_over(note), rel=0.05)
    assert mended.note is None


def test_a_note_on_labelled_data_mends_each_class():
    x0, x1, labels = (v[:600] for v in eight())
    raw = Gibbs(10.0)
    note = tilt_report(raw, x0, x1, labels).note
    assert stated(note) == {"conditions": "within", "correction": "gaussian"}
    mended = dataclasses.replace(raw, **stated(note)).prepare(x0, x1, cond=labels)
    report = tilt_report(mended, x0, x1, labels)
    assert report.worst < 1e-3 and left_over(note) < 1e-3 and report.note is None


def test_a_note_falls_back_to_what_always_mends():
    # a tenth of the points lies far off on both sides: no Gaussian, and its potentials do harm
    away = torch.tensor([4.0, 0.0], dtype=torch.float64) * (torch.arange(400) % 10 == 0)[:, None]
    x0, x1 = (0.3 * torch.randn(400, 2, generator=seeded(k)).double() + away for k in (0, 1))
    for raw in (Gibbs(2.0), Gibbs(2.0, correction="gaussian").prepare(x0, x1)):
        note = tilt_report(raw, x0, x1).note
        assert stated(note) == {"correction": "sinkhorn"}
        mended = dataclasses.replace(raw, correction="sinkhorn", fitted=None).prepare(x0, x1)
        assert abs(tilt_report(mended, x0, x1).worst) < 1e-3
    euclidean = tilt_report(Gibbs(1.0, cost="euclidean"), x0, x1)
    assert stated(euclidean.note) == {"correction": "sinkhorn"}


@pytest.mark.parametrize("correction", ["gaussian", "sinkhorn"])
def test_a_corrected_run_that_ignores_labels_is_told_to_heed_them(correction):
    # the marginals stay, but the source is tied to the class as by any plan that ignores it
    x0, x1, labels = (v[:600] for v in eight())
    raw = Gibbs(10.0, correction=correction).prepare(x0, x1)
    note = tilt_report(raw, x0, x1, labels).note
    assert stated(note)["conditions"] == "within"
    mended = dataclasses.replace(raw, **stated(note), fitted=None).prepare(x0, x1, cond=labels)
    report = tilt_report(mended, x0, x1, labels)
    assert report.worst < 0.05 and report.note is None


def test_small_tilts_have_no_note():
    # KL falls as epsilon^-2: a note where it is above .05 nats alone
    xs = tuple(x[:600] for x in gaussians())
    for epsilon in (4.0, 5.0, 6.0, 7.0, 8.0, 30.0):
        report = tilt_report(Gibbs(epsilon), *xs)
        assert (report.note is None) == (report.worst <= 0.05)
    assert report.note is None and report.worst < 0.01
    assert tilt_report(Gibbs(4.0), *xs).note is not None


class Mine(Coupling):
    """A user's own weighted coupling: pairs as they come, weights that know both points."""

    def __init__(self) -> None:
        self.inner, self.calls = Gibbs(2 * EPSILON), 0

    def __call__(self, *xs, cond=None, weights=None, generator=None) -> Plan:
        self.calls += 1
        return self.inner(*xs, generator=generator)


class Lopsided(Coupling):
    """Keeps the left half of x1 alone."""

    def __call__(self, *xs, cond=None, weights=None, generator=None) -> Plan:
        i, j = pair_rows(*xs, generator=generator)
        return Plan((i, j), 2.0 * (xs[1][j][:, 0] <= xs[1][:, 0].median()))


@pytest.mark.parametrize("sizes", [(1500, 1500), (1500, 700)], ids=str)
def test_a_coupling_of_the_user_is_called(sizes):
    # masses from drawn plans: the noise of drawing adds about .01 nats here, the tilt is .05
    xs = [x[:n] for x, n in zip(gaussians(), sizes)]
    coupling = Mine()
    report, exact = tilt_report(coupling, *xs, generator=seeded()), tilt_report(coupling.inner, *xs)
    assert coupling.calls > 1
    assert report.ess == pytest.approx(exact.ess, rel=0.05)
    for k in (0, 1):
        for name in ("mean_shift", "std_shift"):
            found, true = (getattr(r, f"{name}_x{k}") for r in (report, exact))
            assert found == pytest.approx(true, abs=0.03)
        assert getattr(report, f"kl_tilt_x{k}") == pytest.approx(
            getattr(exact, f"kl_tilt_x{k}"), abs=0.025
        )


def test_a_coupling_that_drops_half_of_the_data():
    # half of the mass is kept, twice each: KL log 2, total variation 1/2
    x0, x1 = (x[:200] for x in gaussians())
    report = tilt_report(Lopsided(), x0, x1, generator=seeded())
    assert report.kl_tilt_x1 == pytest.approx(math.log(2))
    assert report.tv_tilt_x1 == pytest.approx(0.5)
    assert report.ess == pytest.approx(0.5)
    assert report.mass1[x1[:, 0] > x1[:, 0].median()].abs().max() == 0


def test_many_classes_and_vectors_are_not_looked_at_one_by_one():
    x0, x1 = (x[:200] for x in gaussians())
    for cond in (torch.arange(200), x1, torch.zeros(200, dtype=torch.long)):
        report = tilt_report(ExactOT(), x0, x1, cond)
        assert report.class_shift_x0 is report.class_shift_chance is None
        assert report.worst == 0


def test_rows_are_limited_and_a_generator_repeats():
    xs = gaussians()
    report = tilt_report(Gibbs(EPSILON), *xs, rows=100)
    assert len(report.x0) == len(report.mass1) == 100
    draws = [tilt_report(Mine(), *xs, rows=100, generator=seeded(s)).kl_tilt_x0 for s in (0, 0)]
    assert draws[0] == draws[1]


def test_numbers_are_plain():
    x0, x1, labels = (v[:100] for v in eight())
    numbers = tilt_report(Gibbs(10.0), x0.float(), x1.float(), labels).numbers()
    kinds = {type(v) for v in numbers.values()}
    assert kinds <= {float, str} and not any(isinstance(v, np.generic) for v in numbers.values())
    assert len(numbers) == 12


def test_images_have_masses_too():
    x0, x1 = (torch.randn(80, 1, 3, 3, generator=seeded(k)) for k in (0, 1))
    report = tilt_report(Gibbs(5.0), x0, x1)
    flat = tilt_report(Gibbs(5.0), x0.flatten(1), x1.flatten(1))
    torch.testing.assert_close(report.mass0, flat.mass0)
    assert report.mean_shift_x0 == pytest.approx(flat.mean_shift_x0) and report.x0.shape == x0.shape


def test_losses_report_the_tilt_of_their_coupling():
    xs = tuple(x[:200] for x in gaussians())
    weighted = Matching(coupling=Gibbs(EPSILON))
    truth = tilt_report(Gibbs(EPSILON), *xs).numbers()
    for loss in (weighted, On("a", weighted), Sum([weighted, Matching()])):
        assert loss.tilt(*xs).numbers() == truth
    assert Matching().tilt(*xs).worst == 0
    labels = torch.arange(200) % 2
    assert weighted.tilt(*xs, cond=labels).class_shift_x0 > 0


@pytest.mark.parametrize(
    "coupling, words",
    [(Gibbs(), "call coupling.prepare"), (Gibbs(1.0, conditions="within"), "needs the conditions")],
)
def test_what_a_coupling_refuses_is_refused(coupling, words):
    with pytest.raises(ValueError, match=words):
        tilt_report(coupling, *(x[:20] for x in gaussians()))
