"""Diagnostics: path energies with a closed form, straightness, signed excess, classes of samples."""

import math

import pytest
import torch
from torch import Tensor, nn

from genflow.diagnostics import class_accuracy, energy_excess, path_energy, path_report
from genflow.process import SDE
from genflow.source import EightGaussians

MEAN = torch.tensor([1.5, -1.0], dtype=torch.float64)
CLOSED = float(MEAN @ MEAN) + 2 * (2 - math.pi / 2)
"""E of the linear path from N(0, I) to N(MEAN, I), independent coupling."""


class GaussianVelocity(nn.Module):
    """Exact velocity of that path; ``factor`` and ``shift`` spoil it."""

    def __init__(self, factor: float = 1.0, mean: Tensor = MEAN) -> None:
        super().__init__()
        self.factor, self.mean = factor, mean

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        t = t[:, None]
        slope = (2 * t - 1) / (1 - 2 * t + 2 * t**2)
        return self.mean + self.factor * slope * (x - t * self.mean)


class Constant(nn.Module):
    """The straight line of every point, ``f = v``; with a condition, ``f = cond``."""

    def __init__(self, velocity: Tensor) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.velocity.expand_as(x) if cond is None else cond.expand_as(x)


class Decay(nn.Module):
    """``f = -x``."""

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return -x


def starts(n: int = 5000, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, *(shape or (2,)), generator=draw, dtype=torch.float64)


def error(energy: float) -> float:
    return abs(energy - CLOSED) / CLOSED


def test_path_energy_has_its_closed_form():
    assert error(path_energy(SDE(GaussianVelocity()), starts())) < 0.08


@pytest.mark.parametrize(
    "wrong",
    [Constant(MEAN), GaussianVelocity(factor=2.0), GaussianVelocity(mean=-0.5 * MEAN)],
    ids=["no spread", "twice the slope", "wrong mean"],
)
def test_wrong_velocities_have_another_energy(wrong):
    assert error(path_energy(SDE(wrong), starts())) > 0.16


def test_energy_sums_over_event_dimensions():
    x0 = starts(500, 1, 3, 2)
    velocity = torch.ones(1, 3, 2, dtype=torch.float64)
    assert path_energy(SDE(Constant(velocity)), x0) == pytest.approx(6.0)


def test_straightness_has_its_closed_form():
    # every point ends displaced by MEAN exactly: the spread returns to what it was
    found = path_report(SDE(GaussianVelocity()), starts()).straightness
    assert found == pytest.approx(2 * (2 - math.pi / 2), rel=0.08)


def test_straightness_is_energy_beyond_the_displacement():
    x0 = starts(300)
    report = path_report(SDE(Decay()), x0, steps=400)
    displacement = x0 * (math.exp(-1) - 1)
    least = float((displacement**2).sum(1).mean())
    assert report.energy > 1.05 * least
    assert report.straightness == pytest.approx(report.energy - least, rel=1e-3)


def test_straight_lines_have_straightness_zero():
    report = path_report(SDE(Constant(MEAN)), starts(200))
    assert report.straightness == pytest.approx(0.0, abs=1e-20)
    assert report.energy == pytest.approx(float(MEAN @ MEAN))


def test_conditions_reach_the_process():
    cond = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    report = path_report(SDE(Constant(MEAN)), starts(2), cond)
    assert report.energy == pytest.approx((1 + 9) / 2)


def test_more_steps_converge():
    x0 = starts(300)
    square = float((x0**2).sum(1).mean())
    true = square * (1 - math.exp(-2)) / 2
    coarse, fine = (abs(path_energy(SDE(Decay()), x0, steps=s) - true) for s in (10, 20))
    assert fine < coarse / 3, "Heun and the trapezoid sum are both of order two"


def test_noisy_paths_have_energy_but_no_straightness():
    # with sigma^2 = 2 the law N(0, I) is stationary, so that E|f|^2 = 2 at all times; without
    # noise it would be 2 (1 - e^-2) / 2 = 0.86
    draw = torch.Generator().manual_seed(1)
    report = path_report(SDE(Decay(), sigma=2**0.5), starts(), generator=draw)
    assert report.straightness is None
    assert report.energy == pytest.approx(2.0, rel=0.08)


def test_noise_comes_from_the_generator():
    process, x0 = SDE(Decay(), sigma=1.0), starts(50)
    draws = [torch.Generator().manual_seed(k) for k in (0, 0, 1)]
    same, again, other = (path_energy(process, x0, steps=10, generator=g) for g in draws)
    assert same == again
    assert same != other


def test_no_gradients_are_kept():
    network = nn.Linear(2, 2).double()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
            assert not torch.is_grad_enabled()
            return self.net(x)

    path_report(SDE(Net()), starts(4), steps=2)


@pytest.mark.parametrize(
    ("energy", "w2", "excess"), [(8.0, 2.0, 1.0), (1.0, 2.0, -0.75), (4.0, 2.0, 0.0)]
)
def test_excess_keeps_its_sign(energy, w2, excess):
    assert energy_excess(energy, w2) == pytest.approx(excess)


def test_excess_of_the_gaussian_pair():
    # NPE = d (2 - pi/2) / |m|^2
    square = float(MEAN @ MEAN)
    assert energy_excess(CLOSED, square**0.5) == pytest.approx(2 * (2 - math.pi / 2) / square)


def labelled(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return EightGaussians().sample_labelled(n, torch.Generator().manual_seed(seed))


TRAIN, TEST = labelled(400, 0), labelled(200, 1)


def test_perfect_samples_are_of_their_class():
    found = class_accuracy(TRAIN, TEST, labelled(300, 2))
    assert found.samples == pytest.approx(1.0, abs=0.01)
    assert found.real == pytest.approx(1.0, abs=0.01)


def test_samples_that_ignore_their_class_are_at_chance():
    # 2,000 samples of eight classes: 4.5 standard errors
    x, labels = labelled(2000, 2)
    shuffled = labels[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    found = class_accuracy(TRAIN, TEST, (x, shuffled))
    assert abs(found.samples - 1 / 8) < 4.5 * (7 / 64 / 2000) ** 0.5
    assert found.real == pytest.approx(1.0, abs=0.01)


def test_some_wrong_samples_are_counted():
    x, labels = labelled(200, 2)
    wrong = torch.where(torch.arange(200) < 50, (labels + 1) % 8, labels)
    assert class_accuracy(TRAIN, TEST, (x, wrong)).samples == pytest.approx(0.75, abs=0.01)
    # the ceiling is that of held-out data, not of the samples
    assert class_accuracy(TRAIN, (x, wrong), labelled(99, 3)).real == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_of_no_class(bad):
    x, labels = labelled(200, 2)
    x[:50, 1] = bad
    assert class_accuracy(TRAIN, TEST, (x, labels)).samples == pytest.approx(0.75, abs=0.01)
    assert class_accuracy(TRAIN, TEST, (bad * torch.ones(9, 2), labels[:9])).samples == 0.0


def test_images_have_a_class_too():
    one, two = torch.zeros(20, 1, 3, 3), torch.ones(20, 1, 3, 3)
    data = torch.cat([one, two]), torch.arange(40) // 20
    noise = 0.1 * torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert class_accuracy(data, data, (data[0] + noise, data[1])) == (1.0, 1.0)


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match="at least two classes"):
        class_accuracy((TRAIN[0], 0 * TRAIN[1]), TEST, TEST)
