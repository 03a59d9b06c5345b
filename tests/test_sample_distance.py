"""The distance between samples and data as a loss: its value, its draws, classes, several ranks."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from genflow.distance import (
    MMD,
    BuresWasserstein,
    Distance,
    EnergyDistance,
    SlicedWasserstein,
    Wasserstein,
)
from genflow.loss import On, SampleDistance, Sum
from genflow.model import PushForward
from genflow.network import MLP
from genflow.process import SDE
from genflow.seeds import stream
from genflow.source import Gaussian


@dataclass(frozen=True)
class Along(Distance):
    """The squared difference of means along one random direction."""

    random = True

    def __call__(self, x: Tensor, y: Tensor, generator=None) -> Tensor:
        direction = torch.randn(x.shape[1], generator=generator, dtype=x.dtype)
        return ((x.mean(0) - y.mean(0)) @ direction) ** 2


class Shift(nn.Module):
    """``x + shift``, or ``x + shift[cond]``; keeps what it was asked."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        self.t = t
        return x + (self.shift if cond is None else self.shift[cond])


def batch(n=20, m=20, shape=(2,), dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, *shape, generator=draw, dtype=dtype)
    return x0, 1 + 2 * torch.randn(m, *shape, generator=draw, dtype=dtype)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("sizes", [(20, 20), (30, 17)], ids=str)
@pytest.mark.parametrize("distance", [EnergyDistance(), MMD(), Wasserstein()], ids=str)
def test_the_value_is_the_distance_of_samples_at_time_zero(distance, sizes, shape):
    x0, x1 = batch(*sizes, shape)
    learner = Shift(torch.full(shape, 0.3, dtype=torch.float64))
    found = SampleDistance(distance)(learner, x0, x1)
    assert found.item() == pytest.approx(float(distance(x0 + 0.3, x1)), rel=1e-12)
    assert torch.equal(learner.t, torch.zeros(sizes[0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found, learner.shift)
    assert gradient.shape == shape
    assert gradient.norm() > 0


def test_a_mean_is_moved_to_the_data():
    # W2^2 of a translate is that of the centred samples plus the squared gap: least where means agree
    x0, x1 = batch()
    learner = Shift(torch.zeros(2, dtype=torch.float64))
    loss = SampleDistance(Wasserstein(root=False))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss(learner, x0, x1).backward()
        optimizer.step()
    assert torch.allclose(learner.shift, x1.mean(0) - x0.mean(0), atol=1e-9)


def test_draws_come_from_the_generator():
    x0, x1 = batch()
    loss, learner = SampleDistance(Along()), Shift(torch.zeros(2, dtype=torch.float64))
    direction = torch.randn(2, generator=stream(1), dtype=torch.float64)
    truth = ((x0.mean(0) - x1.mean(0)) @ direction) ** 2
    found = [loss(learner, x0, x1, generator=stream(seed)).item() for seed in (1, 1, 2)]
    assert found[0] == found[1] == pytest.approx(float(truth))
    assert found[2] != found[0]
    draw = stream(1)
    first, second = (loss(learner, x0, x1, generator=draw) for _ in range(2))
    assert first != second
    before = draw.get_state()
    SampleDistance(EnergyDistance())(learner, x0, x1, generator=draw)
    assert torch.equal(before, draw.get_state()), "a distance that draws nothing is given none"


def test_a_sliced_distance_gets_flat_events_and_the_generator():
    x0, x1 = batch(16, 16, (1, 4, 4))
    learner, sliced = Shift(torch.zeros(1, 4, 4, dtype=torch.float64)), SlicedWasserstein(8)
    found = SampleDistance(sliced)(learner, x0, x1, generator=stream(1))
    truth = sliced(x0.flatten(1), x1.flatten(1), generator=stream(1))
    assert found.shape == ()
    assert found.item() == pytest.approx(float(truth), rel=1e-12)


def test_classes_are_compared_each_with_its_own():
    x0, x1 = batch(24, 24)
    labels = torch.tensor([3] * 12 + [5] * 8 + [9] * 4)[torch.randperm(24, generator=stream(0))]
    learner = Shift(torch.randn(10, 2, generator=stream(1), dtype=torch.float64))
    distance = EnergyDistance()
    found = SampleDistance(distance)(learner, x0, x1, cond=labels)
    made = x0 + learner.shift[labels]
    rows = {k: labels == k for k in (3, 5, 9)}
    terms = [float(own.sum()) / 24 * distance(made[own], x1[own]) for own in rows.values()]
    assert found.item() == pytest.approx(sum(terms).item(), rel=1e-12)
    assert found.item() != pytest.approx(distance(made, x1).item(), rel=1e-2), "not of the mixtures"
    (gradient,) = torch.autograd.grad(found, learner.shift)
    assert set(gradient.norm(dim=1).nonzero().flatten().tolist()) == {3, 5, 9}
    matched = Shift(torch.zeros(10, 2, dtype=torch.float64))
    swapped = x0[torch.randperm(24, generator=stream(2))]  # the same law, not class by class
    assert SampleDistance(distance)(matched, x0, x0, cond=labels).item() < 1e-12
    assert SampleDistance(distance)(matched, swapped, x0, cond=labels).item() > 1e-3


def test_it_works_inside_the_combinators():
    x0, x1 = batch()
    learner = nn.ModuleDict({"map": Shift(torch.zeros(2, dtype=torch.float64))})
    learner.map = learner["map"]
    once = SampleDistance(EnergyDistance())
    both = Sum([On("map", once), On("map", SampleDistance(BuresWasserstein()))], [2.0, 1.0])
    truth = 2 * EnergyDistance()(x0, x1) + BuresWasserstein()(x0, x1)
    assert both(learner, x0, x1).item() == pytest.approx(float(truth))


@pytest.mark.filterwarnings("ignore:.*autocast.*:UserWarning")
def test_samples_of_lower_precision_are_compared_in_that_of_the_data():
    x0, x1 = batch(200, 200, dtype=torch.float32)
    network = MLP(2, width=16, depth=2)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(torch.zeros(200), x0)
        found = SampleDistance(EnergyDistance())(network, x0, x1)
    assert (low.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    assert found.item() == pytest.approx(EnergyDistance()(low.float(), x1).item(), rel=1e-6)


def test_bad_input_is_told_in_one_sentence():
    x0, x1 = batch()
    learner, loss = Shift(torch.zeros(2, dtype=torch.float64)), SampleDistance(EnergyDistance())
    with pytest.raises(TypeError, match="must be a Distance"):
        SampleDistance(lambda x, y: 0)
    with pytest.raises(ValueError, match="compares two marginals"):
        loss(learner, x0, x1, x1)
    with pytest.raises(ValueError, match="integer labels"):
        loss(learner, x0, x1, cond=torch.zeros(20, 3))
    with pytest.raises(ValueError, match="of its 20 rows"):
        loss(learner, x0, x1, cond=torch.zeros(19, dtype=torch.long))
    with pytest.raises(ValueError, match="as many rows"):
        loss(learner, x0[:10], x1, cond=torch.zeros(20, dtype=torch.long))
    with pytest.raises(ValueError, match=r"events of shape \(3,\), expected"):
        loss(lambda t, x: torch.zeros(20, 3), x0, x1)
    with pytest.raises(ValueError, match="returned a dict"):
        loss(lambda t, x: {"velocity": x}, x0, x1)
    loss.check(PushForward(Gaussian(2), learner).learner)
    with pytest.raises(ValueError, match="learns a field to follow"):
        loss.check(SDE(learner))


RANKS = """
import sys, torch
sys.path.insert(0, sys.argv[3])
from test_sample_distance import Along, batch
from torch import distributed as dist
from genflow.distance import EnergyDistance, SlicedWasserstein
from genflow.loss import SampleDistance
from genflow.network import MLP
from genflow.seeds import stream

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
x0, x1 = batch(32, 32)
labels = torch.randint(3, (32,), generator=stream("labels"))
mine = slice(16 * rank, 16 * rank + 16)

def net(classes):
    torch.manual_seed(0)
    return MLP(2, width=8, depth=2, classes=classes).double()

def gradient(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])

for distance in (EnergyDistance(), Along(), SlicedWasserstein(10)):
    for cond in (None, labels):
        own = None if cond is None else cond[mine]
        one, draw = net(3 if own is not None else None), stream("draws", 0)
        alone = SampleDistance(distance, gather=False)(one, x0, x1, cond=cond, generator=draw)
        alone.backward()
        for gather in (True, False):
            many, own_draw = net(one.classes), stream("draws", rank)
            untouched = own_draw.get_state()
            given = x0[mine], x1[mine]
            value = SampleDistance(distance, gather)(many, *given, cond=own, generator=own_draw)
            value.backward()
            for p in many.parameters():  # what DistributedDataParallel does
                dist.all_reduce(p.grad)
                p.grad /= 2
            same = torch.allclose(gradient(many), gradient(one), rtol=1e-9, atol=1e-13)
            same_value = torch.allclose(value, alone, rtol=1e-12)
            assert (same, same_value) == (gather, gather), (rank, distance, gather, value, alone)
            if gather and distance.random:
                expected = draw.get_state() if rank == 0 else untouched
                assert torch.equal(own_draw.get_state(), expected)
many = net(None)
torch.manual_seed(rank)  # without a generator too all ranks look along the same directions
value = SampleDistance(Along())(many, x0[mine], x1[mine]).detach()
least = value.clone()
dist.all_reduce(least, dist.ReduceOp.MIN)
assert torch.equal(least, value)
for learner in (many, lambda t, x: many(t, x)):  # points that are learned have no rows of their own
    with torch.no_grad():
        assert not SampleDistance(EnergyDistance())(learner, x0[mine], x1[mine]).requires_grad
try:
    SampleDistance(EnergyDistance())(many, x0[: 16 + rank], x1[:16])
except ValueError as error:
    assert "equal batches on all ranks, got (x0, x1) of sizes [(16, 16), (17, 16)]" in str(error)
else:
    raise AssertionError("unequal batches went through")
dist.barrier()  # a rank that leaves early breaks the messages of the other
dist.destroy_process_group()
"""


def test_several_ranks_give_the_value_and_the_gradient_of_one(tmp_path):
    arguments = [str(tmp_path / "meeting"), os.path.dirname(__file__)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), *arguments], **options)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
