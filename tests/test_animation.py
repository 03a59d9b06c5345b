"""Gradient flows as a training, and the pictures of what moves."""

from functools import partial

import pytest
import torch
from PIL import Image
from toy_training import equal, moons, stored, toy, trainer

from genflow.data import Photographs, Shapes
from genflow.distance import EnergyDistance, SlicedWasserstein
from genflow.loss import SampleDistance
from genflow.model import Particles
from genflow.training import Animation, Checkpoint, DataModule, Training
from genflow.training.schedule import Cosine

# our streams resume by themselves, which Lightning cannot know
pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")


def training(steps):
    return Training(
        Particles(60, 3), SampleDistance(SlicedWasserstein(9)), partial(torch.optim.SGD, lr=0.5),
        partial(Cosine, steps=steps),
    )  # fmt: skip


def run(folder, steps, until=None, ckpt_path=None, data=None):
    made = training(steps)
    animation = Animation(str(folder), frames=4, stages=3)
    callbacks = [animation, Checkpoint(str(folder), every=5)]
    loop = trainer(folder, until or steps, callbacks)
    batches = DataModule(data or Shapes(n=60), 60, val_batches=1)
    loop.fit(made, datamodule=batches, ckpt_path=ckpt_path)
    return made, animation


def test_a_resumed_flow_is_the_unbroken_one(tmp_path):
    whole, kept = run(tmp_path / "whole", 23)
    run(tmp_path / "half", 23, until=11)
    again, shown = run(tmp_path / "half", 23, ckpt_path=tmp_path / "half" / "last.ckpt")
    assert equal(stored(tmp_path / "whole" / "model.ckpt"), stored(tmp_path / "half" / "model.ckpt"))
    left, right = kept.state_dict(), shown.state_dict()
    assert left["steps"] == right["steps"] == [0, 4, 8, 12, 16, 20]
    assert equal(*({str(k): v for k, v in enumerate(s["clouds"])} for s in (left, right)))
    start, end = whole.model.sample(trajectory=True)
    target = Shapes(n=60).clouds()[1].float()
    assert EnergyDistance()(end, target) < 0.01 * EnergyDistance()(start, target)


def test_the_animation_shows_the_way(tmp_path):
    run(tmp_path, 9)
    with Image.open(tmp_path / "flow.gif") as gif:
        assert gif.n_frames == 4
        frames = []
        for k in range(4):
            gif.seek(k)
            frames.append(torch.tensor(list(gif.convert("L").tobytes()), dtype=torch.float32))
    assert all((a - b).abs().max() > 50 for a, b in zip(frames, frames[1:]))
    assert (tmp_path / "flow.gif").stat().st_size < 3e6
    with Image.open(tmp_path / "flow.png") as png:
        assert png.size[0] > 800


def test_photographs_are_shown_as_pictures(tmp_path):
    data = Photographs(stride=40, first="flower", second="china")
    animation = Animation(str(tmp_path), frames=3, stages=4)
    made = Training(
        Particles(176, 3), SampleDistance(EnergyDistance()), partial(torch.optim.SGD, lr=0.2)
    )
    trainer(tmp_path, 8, [animation]).fit(made, datamodule=DataModule(data, 176, val_batches=1))
    with Image.open(tmp_path / "flow.gif") as gif:
        assert gif.n_frames == 3
    with Image.open(tmp_path / "flow.png") as png:
        assert png.size[0] > 800
    # the flower's colours have gone: the mean of the picture is that of the palette
    moved, palette = made.model.sample().mean(0), data.image("china").mean((0, 1))
    before = data.image("flower").mean((0, 1))
    assert (moved - palette).norm() < 0.2 * (before - palette).norm()


def test_a_generator_is_shown_on_its_way(tmp_path):
    made, animation = toy(), Animation(str(tmp_path), frames=9, stages=3)
    trainer(tmp_path, 2, [animation]).fit(made, datamodule=moons())
    with Image.open(tmp_path / "flow.gif") as gif:
        assert gif.n_frames == 6  # Euler(5)
    assert (tmp_path / "flow.png").is_file()
