"""Several fields at once: heads on one trunk, and a network a field."""

import pytest
import torch
from torch import nn

import genflow
from genflow.interpolant import BrownianBridge
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP, Heads
from genflow.process import SDE
from genflow.solver import Euler
from genflow.source import Gaussian
from genflow.specs import build, spec
from genflow.target import Noise, Velocity
from genflow.time import Uniform

NAMES = ["velocity", "noise"]
shapes = pytest.mark.parametrize("dim", [2, [1, 4, 4]], ids=str)


def events(dim, n=5, dtype=torch.float32):
    shape = [dim] if isinstance(dim, int) else dim
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Counting(nn.Module):
    """``f(t, x, cond) = value``, and how often it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, t, x, cond=None):
        self.calls += 1
        return torch.full_like(x, self.value) if cond is None else self.value * x + cond[:, None]


def mlp(outputs):
    torch.manual_seed(0)
    return MLP(2, 8, outputs=outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@shapes
def test_one_trunk_returns_every_field(dim, dtype):
    network, x = MLP(dim, 16, outputs=NAMES).to(dtype), events(dim, dtype=dtype)
    out = network(torch.rand(5), x)
    assert list(out) == NAMES == network.outputs
    assert all(field.shape == x.shape and field.dtype == dtype for field in out.values())
    assert not torch.allclose(*out.values())


def test_each_field_is_its_own_share_of_the_last_layer():
    # the same network with the weights of one field alone
    network, x, t = MLP([1, 4, 4], 16, outputs=["a", "b", "c"]), events([1, 4, 4]), torch.rand(5)
    out = network(t, x)
    for k, name in enumerate("abc"):
        alone = MLP([1, 4, 4], 16)
        rows = slice(16 * k, 16 * (k + 1))
        own = {n: v[rows] if n.startswith("last") else v for n, v in network.state_dict().items()}
        alone.load_state_dict(own)
        torch.testing.assert_close(alone(t, x), out[name])


def test_without_outputs_nothing_changes():
    plain, single = mlp(None), mlp(["velocity"])
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in single.state_dict().items()
    }
    x = events(2)
    assert torch.equal(plain(0.3, x), single(0.3, x)["velocity"])
    old = spec(plain)
    del old["outputs"]  # a checkpoint from before there were several
    build(old).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("outputs", [[], "velocity", ["a", "a"], ["a", 3], 2])
def test_outputs_that_are_no_names_are_refused(outputs):
    with pytest.raises(ValueError, match=r"MLP\(outputs=.*(list of names|must differ)"):
        MLP(2, outputs=outputs)


def test_heads_are_their_networks():
    networks = {name: MLP(2, 8, classes=3) for name in NAMES}
    heads, x, cond = Heads(networks), events(2), torch.tensor([0, 1, 2, 0, 1])
    out = heads(0.3, x, cond)
    assert list(out) == heads.outputs == NAMES
    for name, network in networks.items():
        assert torch.equal(out[name], network(0.3, x, cond))
    single = Heads({"noise": MLP(2, 8)})
    assert list(single(0.3, x)) == ["noise"], "no condition is handed on as none"


@pytest.mark.parametrize("only", [["noise"], ("velocity",), {"noise", "velocity"}, []])
def test_only_those_asked_for_are_evaluated(only):
    heads = Heads({name: Counting(k) for k, name in enumerate(NAMES)})
    out = heads(0.3, events(2), only=only)
    assert set(out) == set(only)
    assert {name: head.calls for name, head in heads.heads.items()} == {
        name: int(name in only) for name in NAMES
    }


def test_wrong_heads_are_refused():
    with pytest.raises(ValueError, match=r"holds \['a'\], not all of only=\['b'\]"):
        Heads({"a": Counting(1.0)})(0.3, events(2), only=["b"])
    for heads in ({}, None, [MLP(2)]):
        with pytest.raises(ValueError, match="must be a dict of networks"):
            Heads(heads)
    with pytest.raises(ValueError, match="forward"):
        Heads({"forward": MLP(2)})
    with pytest.raises(ValueError, match="Module"):
        Heads({"velocity": 3})


@pytest.mark.parametrize(
    "network",
    [MLP(2, 8, outputs=NAMES), Heads({"velocity": MLP(2, 8), "noise": MLP(2, 4, 2)})],
    ids=["trunk", "heads"],
)
def test_fields_survive_description_and_file(network, tmp_path):
    again = build(spec(network))
    assert spec(again) == spec(network)
    again.load_state_dict(network.state_dict())
    model = Generator(Gaussian(2), SDE(network), Euler(3))
    genflow.save(model, tmp_path / "model.ckpt")
    loaded, x = genflow.load(tmp_path / "model.ckpt").process.network, events(2)
    assert loaded.outputs == NAMES
    for name, field in network(0.3, x).items():
        assert torch.equal(again(0.3, x)[name], field)
        assert torch.equal(loaded(0.3, x)[name], field)


@pytest.mark.parametrize("shared", [True, False])
def test_both_fields_learn_from_one_draw(shared, generator):
    """Independent Gaussians and a Brownian width: both fields are linear with known factors."""
    torch.manual_seed(0)
    networks = {name: MLP(2, 32, 2) for name in NAMES}
    learner = MLP(2, 32, 2, outputs=NAMES) if shared else Heads(networks)
    target = {"velocity": Velocity(), "noise": Noise()}
    loss = Matching(BrownianBridge(1.0), time=Uniform(margin=0.4999), target=target)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    for _ in range(300):
        x0, x1 = torch.randn(2, 256, 2, generator=generator)
        optimizer.zero_grad()
        loss(learner, x0, 2 * x1, generator=generator).backward()
        optimizer.step()
    # at t = 1/2: x = (x0 + x1 + z) / 2 of variance 3/2, Cov(x1 - x0, x) = (4 - 1) / 2, Cov(z, x) = 1/2
    x = torch.linspace(-1, 1, 21)[:, None].repeat(1, 2)
    with torch.no_grad():
        out = learner(0.5, x)
    for name, factor in {"velocity": 1.0, "noise": 0.5 / 1.5}.items():
        assert (out[name] - factor * x).square().mean().sqrt() < 0.15, name
