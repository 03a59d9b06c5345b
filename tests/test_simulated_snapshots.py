"""Simulated snapshots: the published arrays bit for bit, and laws that are known in closed form."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import composed, plain
from hydra.utils import instantiate
from scipy.linalg import expm
from torch import nn

import genflow
from genflow.data import SimulatedSnapshots
from genflow.process import Brownian, LotkaVolterra, OrnsteinUhlenbeck, Repressilator, Vortex
from genflow.source import Box, Gaussian

EIGHT = [float(t) for t in range(9)]


class Ring(nn.Module):
    """The repressilator as the published simulator has it: nothing is added to concentrations."""

    def forward(self, t, x):
        return 10 / (1 + x.roll(1, 1).clamp_min(0) ** 3) - x


def predators(**options) -> SimulatedSnapshots:
    start = Box([5.0, 4.0], [5.1, 4.1])
    given = {"times": EIGHT, "heldout": [1.0, 3.0, 5.0, 7.0]} | options
    return SimulatedSnapshots(LotkaVolterra(1.0, 0.4, 0.4, 0.1), start, **given)


def genes(reference, **options) -> SimulatedSnapshots:
    start, times = Box([1.0, 1.0, 2.0], [1.1, 1.1, 2.1]), [0.75 * k for k in range(11)]
    given = {"heldout": times[1::2], "dt": 0.01, "clip": 0.0} | options
    return SimulatedSnapshots(reference, start, times, **given)


def published(name: str) -> np.lib.npyio.NpzFile:
    folder = os.environ.get("GENFLOW_DATA")
    path = Path(folder or ".") / "snapshots" / name
    if folder is None or not path.is_file():
        pytest.skip(f"needs the published arrays: let GENFLOW_DATA name a folder with snapshots/{name}")
    return np.load(path)


@pytest.mark.parametrize("name", ["LV.npz", "repres.npz"])
def test_training_snapshots_are_the_published_ones_bit_for_bit(name):
    file = published(name)
    made = predators if name == "LV.npz" else lambda **more: genes(Ring(), **more)
    series = made().series
    assert series.train == tuple(file["train"]) and series.heldout == tuple(file["heldout"])
    assert np.array_equal(series.times, file["times"])
    for k in series.train:
        assert np.array_equal(series.arrays[k], file[f"x{k}"])
    assert not np.array_equal(made(seed=1).series.arrays[2], file["x2"])
    for k in series.heldout:  # equal in law alone: means within 4.5 standard errors
        x, y = series.arrays[k], file[f"x{k}"]
        error = np.sqrt(x.var(0) / len(x) + y.var(0) / len(y))
        assert (abs(x.mean(0) - y.mean(0)) < 4.5 * error).all()


def test_the_family_of_genes_gives_the_published_ones_up_to_its_offset():
    file, series = published("repres.npz"), genes(Repressilator(10.0, 3.0, 1.0, 1.0)).series
    assert max(abs(series.arrays[k] - file[f"x{k}"]).max() for k in series.train) < 1e-6


MATRIX, SHIFT = [[-0.5, -1.0], [1.0, -0.3]], [0.4, -0.2]


def linear(dt: float, sigma: float, n: int, **options) -> SimulatedSnapshots:
    reference = OrnsteinUhlenbeck(2, MATRIX, SHIFT)
    return SimulatedSnapshots(
        reference, Gaussian(2, 1.0, 0.3), [0.5, 1.0, 2.5], n, sigma, dt, **options
    )


def law(time: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance after ``time`` by matrix exponentials (Van Loan)."""
    a, d = np.array(MATRIX), 2
    block = np.block([[a, np.array(SHIFT)[:, None]], [np.zeros((1, d + 1))]])
    flow = expm(time * block)
    noise = expm(time * np.block([[-a, sigma**2 * np.eye(d)], [np.zeros((d, d)), a.T]]))
    covariance = 0.09 * flow[:d, :d] @ flow[:d, :d].T + noise[d:, d:].T @ noise[:d, d:]
    return flow[:d, :d] @ np.ones(d) + flow[:d, d], covariance


def z_scores(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Moments of Gaussian rows in standard errors."""
    n, spread = len(x), np.diag(covariance)
    second = (np.outer(spread, spread) + covariance**2) / n
    first = (x.mean(0) - mean) / np.sqrt(spread / n)
    return np.concatenate([first, ((np.cov(x.T) - covariance) / np.sqrt(second)).ravel()])


def test_linear_drifts_follow_their_law():
    data = linear(0.005, 0.5, 20_000)
    for k, time in ((1, 0.5), (2, 2.0)):  # paths begin at the first time
        x = data.series.arrays[k]
        assert abs(z_scores(x, *law(time, 0.5))).max() < 4.5
        assert abs(z_scores(x, *law(time + 0.5, 0.5))).max() > 10  # not at time 0
        assert abs(z_scores(x, *law(time, 0.55))).max() > 10
    for split in ("val", "test"):
        (table,) = data.marginals(split)[2:]
        assert abs(z_scores(table.x.numpy(), *law(2.0, 0.5))).max() < 4.5


def test_paths_converge_in_dt_with_order_one():
    flow = expm(2.0 * np.block([[np.array(MATRIX), np.array(SHIFT)[:, None]], [np.zeros((1, 3))]]))
    errors = []
    for dt in (0.02, 0.01, 0.005):
        first, _, last = linear(dt, 0.0, 1000).series.arrays  # the first holds the last one's starts
        errors.append(np.linalg.norm((last - first @ flow[:2, :2].T - flow[:2, 2]).mean(0)))
    assert errors[2] < 0.02
    assert [math.log2(a / b) for a, b in zip(errors, errors[1:])] == pytest.approx([1, 1], abs=0.15)


def test_a_circular_vortex_turns_clockwise():
    angle = 0.8
    data = SimulatedSnapshots(Vortex(angle), Box([1.0, 0.0], [1.1, 0.1]), [0.0, 1.0], 40, 0.0, 1e-3)
    first, last = data.series.arrays
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert abs(last - first @ turn.T).max() < 1e-3  # the first snapshot holds the last one's starts
    assert abs(last - first @ turn).max() > 1


def test_every_snapshot_is_a_batch_of_its_own():
    data = predators(n=30)
    still = SimulatedSnapshots(Brownian(2), Box([0, 0], [1, 1]), [0.0, 1.0, 2.0, 3.0], 30, 1e-9)
    one, two, three, four = still.series.arrays
    assert abs(one - four).max() < 1e-6  # those are the same starts, as published
    for x, y in ((one, two), (two, three), (three, four)):
        assert abs(x - y).max() > 0.1
    train, val, test = (data.marginals(split) for split in ("train", "val", "test"))
    for k, (a, b, c) in enumerate(zip(train, val, test)):
        assert [t.x.shape for t in (a, b, c)] == [(30, 2)] * 3
        assert abs(np.asarray(a.x) - np.asarray(b.x)).max() > 1e-3 < abs(b.x - c.x).max()
        assert torch.equal(b.x, data.marginals("val")[k].x)
    assert [t.x.tolist() for t in predators(n=30).marginals("test")] == [t.x.tolist() for t in test]


def test_what_is_held_out_does_not_change_with_other_roles():
    whole, other = predators(n=20), predators(n=20, heldout=[3.0, 7.0])
    assert np.array_equal(whole.series.arrays[3], other.series.arrays[3])
    fewer = predators(n=20, train=[0.0, 4.0, 8.0])
    assert fewer.series.train == (0, 4, 8) and np.isfinite(fewer.series.arrays[6]).all()


def test_only_later_snapshots_are_clipped():
    start = Box([-1.0, -1.0], [1.0, 1.0])
    made = SimulatedSnapshots(Brownian(2), start, [0.0, 1.0], 50, 1.0, 0.1, clip=0.0).series.arrays
    assert made[0].min() < 0 == made[1].min() and (made[1] == 0).any()


class Flat(nn.Module):
    def forward(self, t, x):
        return x.sum(1)


BAD = [
    ({"sigma": -0.1}, "sigma must be zero or positive"),
    ({"dt": 0.0}, "dt must be positive"),
    ({"n": 0}, "n must be a whole number"),
    ({"seed": -1}, "seed must be a whole number"),
    ({"times": [0.0], "heldout": None}, "at least two snapshots"),
    ({"times": [0.0, 2.0, 1.0], "heldout": None}, "must rise from snapshot to snapshot"),
    ({"heldout": [1.5]}, "there is no snapshot 1.5"),
    ({"train": [0.0]}, "at least two snapshots must be left"),
]


@pytest.mark.parametrize(("options", "said"), BAD, ids=lambda v: str(v)[:25])
def test_bad_input_gets_one_sentence(options, said):
    with pytest.raises(ValueError, match=said) as caught:
        predators(**options)
    assert "\n" not in str(caught.value)


def test_bad_drifts_are_named():
    start = Box([0.5, 0.5], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"Flat gives a drift of shape \(50,\) at states of shape"):
        SimulatedSnapshots(Flat(), start, [0.0, 1.0])
    with pytest.raises(FloatingPointError, match="LotkaVolterra are not finite at time 8"):
        SimulatedSnapshots(LotkaVolterra(1e3, 1e3, 1e-3, 1e3), start, [0.0, 8.0], dt=1.0)


NAMES = ["lotka_volterra", "repressilator", "ornstein_uhlenbeck", "vortex_drift"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_simulators(tmp_path, name):
    node = composed(tmp_path, f"data={name}").data
    made = instantiate(node, _convert_="all")
    assert genflow.spec(made) == plain(node)
    assert len(made.series.heldout) >= 3 and len(made.series.inside()) == len(made.series.heldout)
    if name == "lotka_volterra":
        assert np.array_equal(made.series.arrays[8], predators().series.arrays[8])


def test_snapshots_that_are_held_out_are_independent():
    """Each has a stream of its own; from one they would hold the same increments."""
    low, high = [0.0, 0.0], [1e-9, 1e-9]
    data = SimulatedSnapshots(
        Brownian(2), Box(low, high), [0.0, 1.0, 1.5, 2.0], n=400, sigma=1.0, dt=2.0, heldout=[1.0, 1.5]
    )
    one, other = (np.asarray(data.series.arrays[k]).ravel() for k in (1, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / 800**0.5
