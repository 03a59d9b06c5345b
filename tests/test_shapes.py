"""Clouds in space, the colours of photographs, and how both are drawn."""

import math

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.functional import conv2d

from genflow import plot_flow
from genflow.data import Photographs, Shapes, shape
from genflow.data.photographs import even_out
from genflow.data.shapes import SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_centred_and_of_size_one(name):
    draw = torch.Generator().manual_seed(0)
    points = shape(name, 500, draw)
    assert points.shape == (500, 3) and points.dtype == torch.float64
    torch.testing.assert_close(points.mean(0), torch.zeros(3, dtype=torch.float64))
    assert float(points.norm(dim=1).max()) == pytest.approx(1)
    assert torch.equal(points, shape(name, 500, torch.Generator().manual_seed(0)))
    # a surface: of all the volume that it spans little is filled
    spread = torch.pdist(points).median()
    assert (torch.cdist(points, points) + torch.eye(500)).min(1).values.median() < 0.1 * spread


def test_the_trefoil_is_a_tube_of_one_width():
    # all points lie 0.45 from the knot, found by search over a fine curve
    u, v = torch.rand(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    x, y = a.sin() + 2 * (2 * a).sin(), a.cos() - 2 * (2 * a).cos()
    curve = torch.stack([x, (3 * a).sin(), y], 1)
    gap = torch.cdist(SHAPES["trefoil"](u, v), curve).min(1).values
    torch.testing.assert_close(gap, torch.full_like(gap, 0.45), atol=2e-3, rtol=0)


def test_two_clouds_apart():
    data = Shapes(n=300, shift=20.0, first="torus", second="helix", size=2.0)
    x, y = data.clouds()
    torch.testing.assert_close(y.mean(0) - x.mean(0), torch.tensor([20.0, 0, 0], dtype=torch.float64))
    for points in (x, y):
        assert float((points - points.mean(0)).norm(dim=1).max()) == pytest.approx(2)
    for split in ("train", "test"):
        first, second = data.marginals(split)
        assert len(first) == len(second) == 300
        assert torch.equal(first.take(torch.arange(300))[0], x.float())
    assert torch.equal(Shapes(n=9).clouds()[1], Shapes(n=9).clouds()[1])
    assert not torch.equal(Shapes(n=9).clouds()[1], Shapes(n=9, seed=1).clouds()[1])
    assert not torch.equal(
        *(c - c.mean(0) for c in Shapes(n=9, first="torus", second="torus").clouds())
    )


@pytest.mark.parametrize("change", [{"n": 1}, {"first": "cube"}, {"size": 0.0}, {"shift": math.nan}])
def test_shapes_refuse(change):
    with pytest.raises(ValueError, match=f"Shapes.*{next(iter(change))}"):
        Shapes(**change)


def test_photographs_come_back_as_they_were():
    data = Photographs(stride=8)
    first, second = data.marginals("train")
    assert first.shape == (3,) and len(first) == len(second) == 54 * 80
    picture = data.render(first.x)
    assert picture.shape == (54, 80, 3)
    assert torch.equal(picture, data.image("china")) and torch.equal(picture[1, 2], first.x[82])
    assert torch.equal(data.image("flower", 4)[::2, ::2], data.image("flower"))
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    assert data.render(first.x * 3 - 1).aminmax() == (0, 1)
    assert data.render(data.image("china", 4).flatten(0, 1), 4).shape == (107, 160, 3)
    with pytest.raises(ValueError, match=r"expected \(4320, 3\)"):
        data.render(first.x[1:])
    with pytest.raises(ValueError, match="'china', 'flower'"):
        Photographs(first="cat")
    with pytest.raises(ValueError, match="stride must be"):
        Photographs(stride=0)


def windows(picture, radius):
    """Means over square windows cut off at the edges, by convolution: ``(h, w, c)``."""
    size = 2 * radius + 1
    kernel = torch.ones(1, 1, size, size, dtype=torch.float64)
    total = conv2d(picture.double().permute(2, 0, 1)[:, None], kernel, padding=radius)
    number = conv2d(torch.ones_like(picture[None, None, ..., 0]).double(), kernel, padding=radius)
    return (total / number)[:, 0].permute(1, 2, 0)


def test_an_affine_change_of_colour_is_left_alone():
    before = Photographs(stride=10).image("china")
    matrix = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.7, -0.2], [0.0, 0.3, 0.9]])
    after = before @ matrix + 0.1
    torch.testing.assert_close(even_out(before, after, 3, 1e-9), after, atol=1e-3, rtol=0)


def test_grain_is_evened_out():
    draw = torch.Generator().manual_seed(0)
    flat = torch.full((30, 40, 3), 0.5)
    noise = 0.2 * torch.randn(flat.shape, generator=draw)
    torch.testing.assert_close(  # without edges it is the window's mean, twice
        even_out(flat, flat + noise, 2), flat + windows(windows(noise, 2), 2).float()
    )
    edge = flat.clone()
    edge[:, 20:] = 0.9
    step = edge.clone()
    step[:, 20:] = 0.1
    kept = even_out(edge, step + 0.05 * noise, 2)
    assert (kept - step).abs().max() < 0.1, "an edge stays one"


@pytest.mark.parametrize("event", [(2,), (3,), (5,), (1, 4, 4)], ids=str)
def test_every_cloud_is_drawn(tmp_path, event):
    draw = torch.Generator().manual_seed(0)
    clouds, target = torch.randn(3, 20, *event, generator=draw), torch.randn(9, *event, generator=draw)
    figure = plot_flow.cloud_stages(clouds, target, ["a", "b", "c"])
    assert isinstance(figure, Figure)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "c"]
    if event == (2,):
        shown = torch.as_tensor(figure.axes[1].collections[1].get_offsets())
        assert torch.equal(shown.float().sort(0).values, clouds[1].sort(0).values)
    plot_flow.animate_clouds(tmp_path / "a.gif", clouds, target, ["a", "b", "c"])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
        gif.seek(2)
        assert gif.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_what_is_near_is_drawn_last_and_strongest():
    depth = torch.linspace(-3, 3, 7)
    points = torch.stack([torch.arange(7.0), depth, torch.zeros(7)], 1)  # the second axis points away
    axis = plot_flow.cloud_stages(points[None].expand(2, 7, 3), points, ["a", "b"]).axes[0]
    drawn = axis.collections[1]
    x = torch.as_tensor(drawn.get_offsets())[:, 0]
    assert bool((x.diff() < 0).all())
    pale = torch.as_tensor(drawn.get_facecolors())[:, :3].min(1).values
    assert pale[0] > 0.5 > pale[-1]
