"""Figures: what is drawn where, for points, projections and images."""

import io

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from genflow import plot

SHAPES = [(1,), (2,), (5,), (1, 8, 8), (3, 8, 8), (2, 4, 4), (7, 3)]


def cloud(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    file.seek(0)
    return matplotlib.image.imread(file)[..., :3]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("steps", [None, 3])
def test_every_event_has_a_figure(shape, steps):
    source, data, samples = (cloud(30, *shape, seed=k) for k in range(3))
    path = None if steps is None else cloud(steps * 20, *shape).unflatten(0, (steps, 20))
    figure = plot.flow(source, data, samples, path, title="a title")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == (3 if steps is None else 4)
    assert figure.get_suptitle() == "a title"
    picture = pixels(figure)
    width = picture.shape[1] // len(figure.axes)
    for k in range(len(figure.axes)):  # no panel is blank
        panel = picture[picture.shape[0] // 4 :, k * width : (k + 1) * width]
        assert panel.std() > 0.01


def test_points_are_those_given():
    source, data, samples = (cloud(20, 2, seed=k) for k in range(3))
    figure = plot.flow(source, data, samples)
    for axis, points, name in zip(figure.axes, (source, data, samples), ("source", "data", "samples")):
        assert axis.get_title() == name
        assert np.allclose(axis.collections[0].get_offsets(), points)


def test_trajectories_run_from_start_to_end():
    path = cloud(5 * 6, 2).unflatten(0, (5, 6))
    axis = plot.flow(cloud(9, 2), cloud(9, 2), cloud(9, 2), path).axes[3]
    assert len(axis.lines) == 6
    for k, line in enumerate(axis.lines):
        assert np.allclose(line.get_xydata(), path[:, k])
    starts, ends = axis.collections
    assert np.allclose(starts.get_offsets(), path[0])
    assert np.allclose(ends.get_offsets(), path[-1])


def test_large_clouds_are_thinned():
    many = cloud(plot.MOST_POINTS + 500, 2)
    path = cloud(2 * (plot.MOST_PATHS + 9), 2).unflatten(0, (2, -1))
    figure = plot.flow(many, many, many, path)
    assert len(figure.axes[0].collections[0].get_offsets()) == plot.MOST_POINTS
    assert len(figure.axes[3].lines) == plot.MOST_PATHS


def test_many_dimensions_show_the_main_directions_of_the_data():
    # data in a plane of five dimensions: the projection must keep their distances
    flat = cloud(40, 2) * torch.tensor([3.0, 1.0])
    frame, _ = torch.linalg.qr(cloud(5, 2))
    data = flat @ frame.T
    figure = plot.flow(cloud(40, 5), data, cloud(40, 5))
    shown = torch.as_tensor(np.asarray(figure.axes[1].collections[0].get_offsets()))
    assert torch.allclose(torch.pdist(shown), torch.pdist(data).double(), atol=1e-4)
    assert "2 main directions" in figure.axes[1].get_title()


def test_gradients_and_float64_are_no_obstacle():
    x = cloud(8, 2).double().requires_grad_()
    assert isinstance(plot.flow(x, x, x, x[None]), Figure)


def test_equal_points_are_no_obstacle():
    x = torch.ones(8, 2)
    assert pixels(plot.flow(x, x, x)).std() > 0


@pytest.mark.parametrize(
    ("shape", "image"), [((1, 8, 8), True), ((3, 4, 6), True), ((2, 8, 8), False), ((8, 8), False)]
)
def test_what_counts_as_an_image(shape, image):
    assert plot.is_image(shape) is image


def test_mosaic_puts_images_row_by_row():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 3)
    picture = plot.mosaic(images, 0.0, 4.0)
    assert picture.shape == (5, 7, 1)
    tiles = [picture[:2, :3], picture[:2, 4:], picture[3:, :3], picture[3:, 4:]]
    assert [float(v.unique()) for v in tiles] == [0.0, 0.25, 0.5, 0.75]
    assert bool((picture[2] == 1).all())
    assert bool((picture[:, 3] == 1).all())


def test_mosaic_keeps_pixels_and_colours():
    image = cloud(1, 3, 4, 5).sigmoid()
    assert torch.allclose(plot.mosaic(image, 0.0, 1.0), image[0].permute(1, 2, 0))


def test_mosaic_fills_the_square_and_clips():
    picture = plot.mosaic(torch.tensor([-9.0, 0.0, 9.0])[:, None, None, None], -1.0, 1.0)
    assert picture[..., 0].tolist() == [[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_mosaic_of_a_constant_is_finite():
    assert bool(torch.isfinite(plot.mosaic(torch.zeros(2, 1, 2, 2), 0.0, 0.0)).all())


def offsets(axis) -> Tensor:
    return torch.as_tensor(np.asarray(axis.collections[0].get_offsets())).float()


def same(shown: Tensor, points: Tensor) -> Tensor:
    """Which of the points each shown one is, ``(n, m)``."""
    return (shown[:, None] == points).all(2)


def test_a_tilt_is_shown_on_both_sides():
    x0, x1, samples = (cloud(50, 2, seed=k) for k in range(3))
    even = torch.ones(50)
    figure = plot.tilt(x0, x1, even, even, samples, title="a title")
    names = ["source", "tilted source", "data", "tilted data", "samples"]
    assert [axis.get_title() for axis in figure.axes] == names
    assert figure.get_suptitle() == "a title"
    for k, points in ((0, x0), (2, x1), (4, samples)):
        assert torch.allclose(offsets(figure.axes[k]), points)
    for k, points in ((1, x0), (3, x1)):  # rows of the same side
        shown = offsets(figure.axes[k])
        assert shown.shape == points.shape
        assert bool(same(shown, points).any(1).all())
    assert len(plot.tilt(x0, x1, even, even).axes) == 4


def test_masses_choose_the_tilted_rows():
    x0, x1 = cloud(60, 2), cloud(40, 2, seed=1)
    mass0, mass1 = torch.zeros(60), torch.zeros(40)
    mass0[[3, 7]], mass1[5] = torch.tensor([3.0, 1.0]), 2.0
    figure = plot.tilt(x0, x1, mass0, mass1)
    tilted = offsets(figure.axes[1])
    counts = [int(same(tilted, x0[k : k + 1]).sum()) for k in (3, 7)]
    assert sum(counts) == 60 and abs(counts[0] - 45) < 4.5 * (60 * 3 / 16) ** 0.5
    assert torch.allclose(offsets(figure.axes[3]), x1[5].expand(40, 2))
    again = plot.tilt(x0, x1, mass0, mass1)
    assert torch.equal(offsets(again.axes[1]), tilted), "equal reports give equal pictures"


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 8, 8), (3, 8, 8), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("samples", [False, True])
def test_every_event_has_a_figure_of_its_tilt(shape, samples):
    x0, x1 = cloud(30, *shape).double().requires_grad_(), cloud(20, *shape, seed=1).double()
    masses = torch.rand(30, generator=torch.Generator().manual_seed(0)), torch.ones(20)
    figure = plot.tilt(x0, x1, *masses, cloud(25, *shape, seed=2) if samples else None)
    assert len(figure.axes) == (5 if samples else 4)
    picture = pixels(figure)
    width = picture.shape[1] // len(figure.axes)
    for k in range(len(figure.axes)):  # no panel is blank
        assert picture[picture.shape[0] // 4 :, k * width : (k + 1) * width].std() > 0.01
    if plot.is_image(shape):  # pictures, not points
        assert all(axis.images and not axis.collections for axis in figure.axes)


def test_tilted_images_are_those_of_mass():
    # white data of mass zero but one black image: the tilted mosaic is black
    images = torch.ones(4, 1, 2, 2)
    images[2] = 0
    figure = plot.tilt(cloud(4, 1, 2, 2), images, torch.ones(4), torch.tensor([0.0, 0.0, 1.0, 0.0]))
    shown = np.asarray(figure.axes[3].images[0].get_array())
    assert shown[:2, :2].max() == shown[3:, 3:].max() == 0
    assert np.asarray(figure.axes[2].images[0].get_array())[:2, :2].min() == 1


@pytest.mark.parametrize(
    ("decades", "shift", "logarithmic"), [(4.0, 0.0, True), (1.0, 0.0, False), (4.0, -1.0, False)]
)
def test_positive_points_that_span_decades_have_logarithmic_axes(decades, shift, logarithmic):
    spread = 10 ** (decades * torch.linspace(-0.5, 0.5, 200)[:, None].expand(-1, 2)) + shift
    figure = plot.flow(spread, spread, spread, spread.expand(3, -1, -1))
    for axis in figure.axes:
        assert axis.get_xscale() == axis.get_yscale() == ("log" if logarithmic else "linear")
        low, high = axis.get_xlim()
        assert low < float(spread.median()) < high
