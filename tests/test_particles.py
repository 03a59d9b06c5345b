"""Gradient flows: as a function and as a model."""

from functools import partial

import pytest
import torch
from toy_training import equal

import genflow
from genflow.data import Shapes
from genflow.directions import Orthogonal
from genflow.distance import EnergyDistance, SlicedWasserstein
from genflow.flow import gradient_flow, snapshots
from genflow.loss import SampleDistance
from genflow.model import Particles

SQUARE = {"directions": Orthogonal(), "variate": None}
"""As many directions as dimensions: for translates the sliced distance is then exact."""


def means(x, y, weights_x=None):
    """The squared distance of the means: its flow carries every point along in the same way."""
    mean = x.mean(0) if weights_x is None else weights_x @ x / weights_x.sum()
    return (mean - y.mean(0)).square().sum()


def cloud(n, *shape, seed=0, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=draw, dtype=torch.float64) + shift


@pytest.mark.parametrize("n", [1, 7, 400])
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)], ids=str)
def test_a_step_is_per_point_whatever_their_number(n, shape):
    x, y = cloud(n, *shape), cloud(30, *shape, seed=1, shift=5.0)
    flow = gradient_flow(x, y, means, steps=6, lr=0.1, keep=7)
    away = x.mean(0) - y.mean(0)
    for k in range(7):  # all move alike: what is left shrinks by 1 - 2 lr
        left = 0.8**k * away
        torch.testing.assert_close(flow.trajectory[k], x - away + left)
        assert float(flow.values[k]) == pytest.approx(float(left.square().sum()), rel=1e-9)
    assert flow.steps == (0, 1, 2, 3, 4, 5, 6)
    assert torch.equal(flow.points, flow.trajectory[-1])


def test_momentum_is_the_heavy_ball():
    x, y = cloud(5, 2), cloud(5, 2, seed=1, shift=3.0)
    flow = gradient_flow(x, y, means, steps=9, lr=0.05, momentum=0.7)
    left, speed = x.mean(0) - y.mean(0), torch.zeros(2, dtype=torch.float64)
    for _ in range(9):
        speed = 0.7 * speed + 2 * left
        left = left - 0.05 * speed
    torch.testing.assert_close(flow.points.mean(0) - y.mean(0), left)


def test_masses_divide_the_gradient():
    x, y = cloud(4, 2), cloud(6, 2, seed=1, shift=4.0)
    weights = torch.tensor([1.0, 5.0, 0.0, 2.0], dtype=torch.float64)
    flow = gradient_flow(x, y, means, steps=1, lr=0.25, weights_x=weights)
    away = weights @ x / 8 - y.mean(0)
    moved = flow.points - x
    torch.testing.assert_close(moved[[0, 1, 3]], -0.5 * away.expand(3, 2))
    assert not moved[2].any(), "a point without mass stays"


@pytest.mark.parametrize("d", [2, 5])
def test_the_stated_speeds_of_the_sliced_flow(d):
    x = cloud(50, d)
    shift = torch.zeros(d, dtype=torch.float64)
    shift[0] = 10.0
    run = partial(gradient_flow, x, x + shift, steps=8, generator=torch.Generator().manual_seed(0))
    square = run(SlicedWasserstein(projections=d, **SQUARE), lr=0.3)
    torch.testing.assert_close(square.points, x + shift * (1 - (1 - 0.6 / d) ** 8))
    root = run(SlicedWasserstein(projections=d, root=True, **SQUARE), lr=0.3)
    torch.testing.assert_close(root.points, x + shift * 8 * 0.3 / d**0.5 / 10)


def test_a_cloud_arrives():
    x, y = (v.float() for v in Shapes(n=200, shift=4.0).clouds())
    before = [v.clone() for v in (x, y)]
    runs = [
        gradient_flow(x, y, EnergyDistance(), 60, 1.0),
        gradient_flow(x, y, SlicedWasserstein(30), 60, 0.5, generator=torch.Generator().manual_seed(0)),
        gradient_flow(x, y, EnergyDistance(), 60, optimizer=partial(torch.optim.Adam, lr=0.2)),
    ]
    energy = EnergyDistance()
    floor = energy(Shapes(n=200, shift=4.0, seed=1).clouds()[1].float(), y)  # another draw of y
    for flow in runs:
        assert flow.points.dtype == torch.float32
        assert energy(flow.points, y) < 2 * floor < 0.05 * energy(x, y)
        assert flow.values[-1] < 0.02 * flow.values[0]
    assert torch.equal(before[0], x) and torch.equal(before[1], y)
    stuck = gradient_flow(x, y, EnergyDistance(), 60, 1.0 / 200)  # an lr that is not per point
    assert energy(stuck.points, y) > 0.5 * energy(x, y)


def test_equal_generators_give_equal_flows():
    x, y = cloud(40, 3), cloud(50, 3, seed=1)

    def run(seed):
        draw = torch.Generator().manual_seed(seed)
        return gradient_flow(x, y, SlicedWasserstein(7), 5, 0.1, generator=draw).points

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(2, (0, 10)), (3, (0, 5, 10)), (100, tuple(range(11))), ([3, 1], (0, 1, 3, 10)), ([], (0, 10))],
)
def test_what_is_kept(keep, kept):
    assert snapshots(10, keep) == kept
    x, y = cloud(3, 2), cloud(3, 2, seed=1)
    flow = gradient_flow(x, y, means, 10, 0.1, keep=keep)
    assert flow.steps == kept and len(flow.trajectory) == len(kept)
    whole = gradient_flow(x, y, means, 10, 0.1, keep=11).trajectory
    assert torch.equal(flow.trajectory, whole[list(kept)])


def test_the_bar_counts_and_changes_nothing(capsys):
    x, y = cloud(3, 2), cloud(3, 2, seed=1)
    shown = gradient_flow(x, y, means, 10, 0.1, progress=True)
    assert "10/10" in capsys.readouterr().err
    assert torch.equal(shown.points, gradient_flow(x, y, means, 10, 0.1).points)


def test_a_flow_that_diverges_says_where():
    x, y = cloud(3, 2), cloud(3, 2, seed=1)
    with pytest.raises(FloatingPointError, match=r"distance is inf after \d+ steps.*lower lr"):
        gradient_flow(x, y, means, 1000, 10.0)
    with pytest.raises(FloatingPointError, match="not finite after step 1,.*lower lr"):
        gradient_flow(x, x, lambda *pair: means(*pair).sqrt(), 5)  # no slope at its root
    with pytest.raises(FloatingPointError, match="distance is nan after 0 steps"):
        gradient_flow(x, y, lambda x, y: (x - y).sum() * float("nan"), 5)
    with pytest.raises(FloatingPointError, match=r"after \d+ steps, Sliced.* overflow .*lower lr"):
        gradient_flow(x.float(), y.float(), SlicedWasserstein(10), 200, 1e4)


def test_a_flow_needs_one_number_that_depends_on_the_points():
    x, y = cloud(3, 2), cloud(3, 2, seed=1)
    with torch.no_grad():  # it asks for its own gradients
        assert gradient_flow(x, y, means, 10, 0.1).values[-1] < 1
    with pytest.raises(ValueError, match=r"gave \(3,\), expected one number"):
        gradient_flow(x, y, lambda x, y: x.sum(1), 5)
    with pytest.raises(ValueError, match="does not depend on the points"):
        gradient_flow(x, y, lambda x, y: y.sum(), 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"momentum": -1.0}, "momentum must be zero or positive"),
        ({"keep": 1}, "keep must be a whole number >= 2"),
        ({"keep": [3, 99]}, "whole numbers of steps from 0 to 5"),
        ({"weights_y": torch.ones(4)}, "takes no weights"),
        ({"weights_x": torch.ones(9)}, r"expected \(4,\)"),
        ({"y": torch.ones(4, 3)}, "event shape"),
        ({"x": torch.ones(0, 2)}, "x0 is empty"),
    ],
)
def test_bad_input_is_refused(change, said):
    given = {"x": torch.ones(4, 2), "y": torch.zeros(4, 2), "distance": means, "steps": 5}
    with pytest.raises(ValueError, match=said):
        gradient_flow(**(given | change))


def started(n=30, shape=(3,), neighbours=1):
    x = cloud(n + 9, *shape).float()
    return Particles(n, list(shape), neighbours).prepare(x, x + 1), x


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)], ids=str)
def test_particles_start_from_the_source_once(shape):
    model, x = started(shape=shape)
    assert torch.equal(model.sample(), x[:30]) and torch.equal(model(0.0, x), x[:30])
    model.prepare(x + 5, x)
    assert torch.equal(model.sample(), x[:30])
    some = model.sample(7)
    assert torch.equal(some[:3], model.sample(3)) and not torch.equal(some, x[:7])
    assert torch.equal(model.sample(30).sort(0).values, x[:30].sort(0).values)
    assert model.sample(4, trajectory=True).shape == (2, 4, *shape)


def test_further_points_follow_their_nearest_starts():
    model, x = started()
    with torch.no_grad():
        model.points.copy_(2 * model.start + 1)
    torch.testing.assert_close(model.sample(x0=x[:30]), model.points.detach())  # a start is its own
    near = torch.cdist(x, x[:30]).argmin(1)
    torch.testing.assert_close(model.sample(x0=x), x + x[near] + 1)
    model.neighbours = 4
    near = torch.cdist(x, x[:30]).argsort(1)[:, :4]
    torch.testing.assert_close(model.sample(x0=x), x + (x[near] + 1).mean(1))
    pair = model.sample(x0=x, trajectory=True)
    assert torch.equal(pair[0], x) and torch.equal(pair[1], model.sample(x0=x))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: Particles(3, 2).sample(), "no points yet"),
        (lambda m: m.sample(31), "there are 30 Particles"),
        (lambda m: m.sample(0), "whole number >= 1"),
        (lambda m: m.sample(x0=torch.ones(2, 5)), r"shape \(m, 3\)"),
        (lambda m: m.sample(4, steps=3), "leave steps out"),
        (lambda m: m.sample(2, cond=torch.ones(2)), "leave cond out"),
        (lambda m: Particles(9, 3).prepare(torch.ones(4, 3), torch.ones(4, 3)), "4 rows"),
        (lambda m: Particles(2, 5).prepare(torch.ones(4, 3), torch.ones(4, 3)), r"shape \(3,\)"),
        (lambda m: Particles(0, 3), "n must be a whole number >= 1"),
        (lambda m: Particles(3, 0), "dim"),
    ],
)
def test_particles_refuse(call, said):
    with pytest.raises(ValueError, match=said):
        call(started()[0])


def test_particles_have_no_density():
    with pytest.raises(NotImplementedError, match="no density"):
        started()[0].log_prob(torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_particles_are_saved(tmp_path, dtype):
    model = started(shape=(1, 2, 2))[0].to(dtype)
    with torch.no_grad():
        model.points.add_(torch.pi)
    genflow.save(model, tmp_path / "model.ckpt")
    again = genflow.load(tmp_path / "model.ckpt")
    assert genflow.spec(again) == genflow.spec(model)
    assert genflow.spec(model) == {
        "_target_": "genflow.model.Particles", "n": 30, "dim": [1, 2, 2], "neighbours": 1,
    }  # fmt: skip
    assert equal(again.state_dict(), model.state_dict()) and again.dtype == dtype
    again.prepare(torch.zeros(40, 1, 2, 2), torch.zeros(40, 1, 2, 2))
    assert torch.equal(again.sample(), model.sample()), "a loaded cloud does not start again"


def test_gradient_descent_on_particles_is_the_gradient_flow():
    x, y = cloud(30, 3), cloud(40, 3, seed=1, shift=2.0)
    model = Particles(30, 3).double().prepare(x, y)
    loss = SampleDistance(EnergyDistance())
    descent = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(5):
        descent.zero_grad()
        loss(model.learner, x, y).backward()
        descent.step()
    flow = gradient_flow(x, y, EnergyDistance(), 5, 0.3)
    torch.testing.assert_close(model.sample(), flow.points)


def test_the_frozen_cloud_still_speaks():
    model, _ = started()
    assert not model.requires_grad_(False)(0.0, None).requires_grad
