"""Figures of light bridges: what is drawn where."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from genflow import plot_light
from genflow.process import LightBridge
from genflow.process.light.choice import chosen
from genflow.process.light.history import Choice, Entry, History


def cloud(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def known(*shape: int, covariance: str = "diagonal", epsilon: float = 0.1) -> LightBridge:
    torch.manual_seed(0)
    return LightBridge(list(shape), 3, epsilon, covariance)


def history(held: bool) -> History:
    stages = ["warm start", "annealing", "fixed point", "fixed point", "adam", "adam"]
    entries = [
        Entry(s, k, 9.0 - k, 8.0 - k if held else None, 1.0, 0.1 * k) for k, s in enumerate(stages)
    ]
    choices = [Choice(k, 5.0, v, e) for k, v, e in ((1, 9, 1), (2, 6.2, 0.3), (5, 6, 0), (10, 7, 0.4))]
    return History(entries, choices)


@pytest.mark.parametrize("held", [False, True])
def test_trace_shows_every_look_and_the_last_stage_from_near(held):
    whole, near = plot_light.trace(history(held), "a title").axes
    seen = np.concatenate([c.get_offsets() for c in whole.collections])
    assert np.allclose(seen, [(0.1 * k, 5.0 - k) for k in range(6)])
    assert len(whole.lines) == 1 + held
    assert near.get_xlim()[0] == pytest.approx(0.3, abs=0.05)  # from the last look before Adam
    assert near.get_ylim()[1] == pytest.approx(2.0, abs=0.2)


def test_trace_of_one_stage_is_one_panel():
    assert len(plot_light.trace(History(history(True).entries[:1])).axes) == 1


def test_choice_marks_the_number_that_was_chosen():
    figure = plot_light.choice(history(False))
    assert chosen(history(False).choices) == 2  # within one standard error of five
    for axis in figure.axes:
        (mark,) = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert set(mark.get_xdata()) == {2}
        (bars,) = axis.containers
        assert np.allclose(bars.lines[0].get_xydata()[:, 1], [9, 6.2, 6, 7])
    with pytest.raises(ValueError, match="'auto'"):
        plot_light.choice(History())


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (1, 4, 4)], ids=str)
def test_paths_start_and_end_where_the_bridge_says(shape):
    bridge, x0, x1 = known(*shape), cloud(30, *shape), cloud(40, *shape, seed=1)
    draw = torch.Generator().manual_seed(3)
    figure = plot_light.paths(bridge, x0, x1, draw)
    assert isinstance(figure, Figure) and len(figure.axes) == 3
    starts, ends = (figure.axes[k].collections[-1].get_offsets() for k in (0, 2))
    assert len(starts) == len(ends) == 30
    if shape == (2,):
        draw = torch.Generator().manual_seed(3)
        path = bridge.sample_path(x0, torch.linspace(0, 1, plot_light.STEPS + 1), draw)
        assert np.allclose(starts, x0) and np.allclose(ends, path[-1], atol=1e-6)
        assert np.allclose(figure.axes[1].lines[4].get_xydata(), path[:, 4], atol=1e-6)


def test_epsilons_share_starts_and_noise():
    bridges, x0 = [known(2, epsilon=e) for e in (0.1, 0.1, 2.0)], cloud(8, 2)
    axes = plot_light.epsilons(bridges, x0, cloud(20, 2, seed=1), columns=2).axes
    drawn = [np.array(axis.lines[0].get_xydata()) for axis in axes[:3]]
    assert np.array_equal(drawn[0], drawn[1]) and not np.allclose(drawn[0], drawn[2])
    assert [axis.get_title() for axis in axes[:3]][2].endswith("= 2")
    assert not axes[3].axison


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_plan_draws_the_components_of_each_start(shape, covariance):
    bridge, x0, x1 = known(*shape, covariance=covariance), cloud(2, *shape), cloud(50, *shape, seed=1)
    axes = plot_light.plan(bridge, x0, x1, least=0.0).axes
    assert len(axes) == 2
    for k, axis in enumerate(axes):
        *ellipses, star = axis.lines
        assert len(ellipses) == 3 and star.get_marker() == "*"
        law = bridge.plan(x0).mixture().component_distribution
        if shape != (2,):  # the two main directions of the data
            flat = x1.flatten(1)
            frame = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:2].T.double()
            for drawn, mean in zip(ellipses, law.mean[k]):
                centre = torch.as_tensor(drawn.get_xydata())[:-1].mean(0)
                assert torch.allclose(centre, (mean - flat.mean(0)) @ frame, atol=1e-5)
        else:
            assert np.allclose(star.get_xydata(), x0[k])
            for drawn, mean, root in zip(ellipses, law.mean[k], law.scale_tril[k]):
                apart = torch.as_tensor(drawn.get_xydata()) - mean
                radius = torch.linalg.solve_triangular(root, apart.mT, upper=False).norm(dim=0)
                assert torch.allclose(radius, torch.ones(()).double(), atol=1e-5)


def test_filled_regions_hold_their_mass():
    # a region of mass m of one round Gaussian is a disc of radius sqrt(-2 log(1 - m))
    figure = plot_light.blank(3, 3)
    axis = figure.subplots()
    axis.set(xlim=(-5, 5), ylim=(-5, 5))
    one = torch.ones(1).double()
    plot_light._fill(axis, one, torch.zeros(1, 2).double(), torch.eye(2).double()[None], "C0")
    for mass, filled in zip(plot_light.MASSES, axis.collections):
        radius = np.linalg.norm(filled.get_paths()[0].vertices, axis=1).max()
        assert radius == pytest.approx((-2 * np.log(1 - mass)) ** 0.5, rel=0.03)


def test_plans_of_numbers_have_no_plane():
    with pytest.raises(ValueError, match="one number"):
        plot_light.plan(known(1), cloud(2, 1), cloud(9, 1))
