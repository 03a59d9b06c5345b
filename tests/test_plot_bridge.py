"""Figures of bridges through snapshots: what is drawn where."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from genflow import plot_bridge
from genflow.loss import LeastSquares, ReferenceRefinement, StaticBridge
from genflow.plot_parameters import flat
from genflow.population import Bootstrap
from genflow.process import GradientField, LotkaVolterra, MultiMarginalBridge, OrnsteinUhlenbeck

TIMES = torch.linspace(0, 5, 21)


def rows(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).double()


def scene(*shape, n=30):
    """Trajectories until 5, snapshots at 0, 2 and 4, held-out ones at 1 and 5."""
    seen = {t: rows(8, *shape, seed=int(t)) for t in (0.0, 2.0, 4.0)}
    return (
        rows(len(TIMES) * n, *shape).view(-1, n, *shape),
        seen,
        {t: rows(6, *shape) for t in (1.0, 5.0)},
    )


def fitted(reference, iterations=2):
    bridge = MultiMarginalBridge(reference, 0.5, times=[0, 1, 3], steps=8)
    xs = [2 + 0.2 * rows(10, 2, seed=k) for k in range(3)]
    loss = ReferenceRefinement(StaticBridge(), LeastSquares(paths=16))
    draw = torch.Generator().manual_seed(0)
    return loss.fit(bridge, *xs, iterations=iterations, generator=draw, progress=False)


def dots(axis):
    """Drawn clouds as ``(points, hollow)``."""
    return [
        (np.asarray(c.get_offsets()), len(c.get_facecolors()) == 0)
        for c in axis.collections
        if len(c.get_offsets()) > 1
    ]


def test_the_plane_shows_every_row_and_held_out_ones_hollow():
    paths, seen, heldout = scene(2)
    figure = plot_bridge.snapshots(TIMES, paths, seen, heldout, "a title", ("prey", "predators"))
    *over, plane = figure.axes
    drawn = dots(plane)
    assert [hollow for _, hollow in drawn] == [False] * 3 + [True] * 2
    for (points, _), x in zip(drawn, [*seen.values(), *heldout.values()]):
        assert np.allclose(points, x, atol=1e-6)
    hues = [tuple(c.get_edgecolors()[0]) for c in plane.collections][3:]
    assert len(set(hues)) == 2  # one a time
    assert plane.get_xlabel() == over[0].get_ylabel() == "prey"
    assert figure.get_suptitle() == "a title"
    # before the last seen snapshot in one colour, past it in another
    lines = plane.lines
    assert len(lines) == 60 and np.allclose(lines[0].get_xydata(), paths[:17, 0], atol=1e-6)
    assert np.allclose(lines[30].get_xydata(), paths[16:, 0], atol=1e-6)
    assert lines[0].get_color() != lines[30].get_color()


def test_ribbons_hold_their_shares_and_forecasts_are_shaded():
    paths, seen, heldout = scene(2, n=400)
    axis = plot_bridge.snapshots(TIMES, paths, seen, heldout).axes[1]
    wide, narrow = axis.collections[:2]
    for ribbon, share in ((wide, 0.9), (narrow, 0.5)):
        corners = ribbon.get_paths()[0].vertices
        inside = []
        for k, t in enumerate(TIMES.tolist()):
            low, high = np.sort(corners[np.isclose(corners[:, 0], t), 1])[[0, -1]]
            inside.append(((paths[k, :, 1] >= low) & (paths[k, :, 1] <= high)).double().mean())
        assert np.allclose(inside, share, atol=0.01)
    assert np.allclose(axis.lines[0].get_ydata(), np.median(paths[..., 1], 1), atol=0.05)
    (shade,) = axis.patches
    assert np.allclose(shade.get_extents().transformed(axis.transData.inverted()).intervalx, (4, 5))
    assert to_rgba(shade.get_facecolor()) == to_rgba(plot_bridge.FORECAST)
    for (points, _), (t, x) in zip(dots(axis)[-5:], [*seen.items(), *heldout.items()]):
        assert np.allclose(points[:, 1], x[:, 1], atol=1e-6) and abs(points[:, 0] - t).max() < 0.1


def test_without_a_forecast_nothing_is_shaded_or_named():
    paths, seen, _ = scene(2)
    figure = plot_bridge.snapshots(TIMES[:17], paths[:17], seen)
    assert not figure.axes[0].patches and len(figure.axes[-1].lines) == 30
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(named) == 2 and "fitted" in named[1]


@pytest.mark.parametrize("shape, panels", [((1,), 1), ((3,), 4), ((1, 2, 4), 4)], ids=str)
def test_events_of_any_shape(shape, panels):
    figure = plot_bridge.snapshots(TIMES, *scene(*shape))
    assert isinstance(figure, Figure) and len(figure.axes) == panels
    if panels > 1:
        paths, seen, _ = scene(*shape)
        every = torch.cat(list(seen.values())).flatten(1)
        frame = torch.linalg.svd(every - every.mean(0), full_matrices=False).Vh[:2].T
        first = dots(figure.axes[-1])[0][0]
        expected = (seen[0.0].flatten(1) - every.mean(0)) @ frame
        assert np.allclose(np.abs(first), expected.abs(), atol=1e-4)
        assert figure.axes[-1].get_xlabel() == "main direction 1"


def test_drift_field_beside_the_truth():
    region = 3 + rows(50, 2)
    found = OrnsteinUhlenbeck(2, [[0.0, 1.0], [-1.0, 0.0]], [0.5, 0.0])
    truth = OrnsteinUhlenbeck(2, [[0.0, 1.0], [-1.0, 0.0]])
    figure = plot_bridge.drift_field(found, region, truth, names=("u", "v"))
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["drift", "truth", "how far apart"] and figure.axes[0].get_ylabel() == "v"
    (picture,) = [c for c in figure.axes[2].collections if type(c).__name__ == "QuadMesh"]
    speed = region.float().double().square().sum(1).mean().sqrt()  # of a rotation: the radius
    assert np.allclose(picture.get_array(), 100 * 0.5 / speed, rtol=1e-4)
    low, high = figure.axes[0].get_xlim()
    assert low < region[:, 0].quantile(0.05) and high > region[:, 0].quantile(0.95)


def test_drift_field_of_more_coordinates_and_of_fewer():
    seen = []

    def drift(t, x):
        seen.append(x)
        return x.flip(1) + t

    region = rows(40, 3)
    figure = plot_bridge.drift_field(drift, region, t=2.0)
    assert len(figure.axes) == 2 and figure.axes[0].get_title() == "drift"
    assert torch.allclose(seen[0][:, 2], region.float().double().mean(0)[2].expand(len(seen[0])))
    with pytest.raises(ValueError, match="no plane"):
        plot_bridge.drift_field(drift, rows(9, 1))


def test_traces_show_objective_parameters_and_the_truth():
    bridge = fitted(LotkaVolterra())
    objective, parameters = plot_bridge.traces(bridge, {"alpha": 1.0}).axes
    assert np.allclose(objective.lines[0].get_ydata(), [e["objective"] for e in bridge.history])
    named = {line.get_label(): line for line in parameters.lines}
    assert list(named)[0] == r"$\alpha$"
    for label, value in flat(bridge.reference.numbers()).items():
        assert named[label].get_ydata()[-1] == pytest.approx(value)
    (dashed,) = [line for line in parameters.lines if line.get_linestyle() == "--"]
    assert set(dashed.get_ydata()) == {1.0} and dashed.get_color() == named[r"$\alpha$"].get_color()


def test_traces_of_vectors_of_networks_and_of_nothing():
    many = plot_bridge.traces(fitted(OrnsteinUhlenbeck(2))).axes[1]
    assert [t.get_text() for t in many.get_legend().get_texts()][1::4] == ["matrix[1, 2]", "shift[2]"]
    assert many.get_yscale() == "linear"
    bridge = MultiMarginalBridge(GradientField(2, 4, 1), 0.5, times=[0, 1], steps=4)
    with pytest.raises(ValueError, match="no iteration"):
        plot_bridge.traces(bridge)
    StaticBridge().fit(bridge, rows(5, 2), rows(5, 2, seed=1), progress=False)
    assert len(plot_bridge.traces(bridge).axes) == 1


@dataclass
class Known:
    """An answer whose intervals are as wide as they are likely."""

    mean: dict

    def intervals(self, level):
        return {k: (np.array(v) - level, np.array(v) + level) for k, v in self.mean.items()}


def test_posterior_draws_intervals_beside_the_truth():
    several = {
        "one": Known({"alpha": 1.0, "k": [2.0, 3.0]}),
        "two": Known({"alpha": 5.0, "k": [6.0, 7.0]}),
    }
    axes = plot_bridge.posterior(several, {"alpha": 4.0}, 0.8, "a title").axes
    assert [axis.get_title() for axis in axes] == [r"$\alpha$", "k[1]", "k[2]"]
    for axis, means in zip(axes, ((1, 5), (2, 6), (3, 7))):
        for place, mean in enumerate(means):
            wide, half, dot = axis.lines[3 * place : 3 * place + 3]
            assert np.allclose(wide.get_xdata(), (mean - 0.8, mean + 0.8))
            assert np.allclose(half.get_xdata(), (mean - 0.5, mean + 0.5))
            assert np.allclose(dot.get_xydata(), [[mean, place]])
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["one", "two"]
    assert axes[0].lines[-1].get_xdata()[0] == 4.0 and len(axes[1].lines) == 6


def test_posterior_of_draws():
    samples = {"beta": 10 + rows(200, 5)}
    found = Bootstrap(samples, ("beta",), {"beta": torch.full((5,), 10.0)})
    axes = plot_bridge.posterior(found).axes
    assert len(axes) == 8 and [axis.axison for axis in axes] == [True] * 5 + [False] * 3
    for k in range(5):
        assert np.allclose(axes[k].lines[0].get_xdata(), [v[k] for v in found.intervals(0.9)["beta"]])
