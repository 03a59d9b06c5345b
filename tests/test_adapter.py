"""Networks of other libraries as learners: order, clock, conditions, results, files, training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import genflow
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP, Adapter, Guided
from genflow.process import SDE
from genflow.solver import Euler
from genflow.source import Gaussian
from genflow.specs import build, spec


class Theirs(nn.Module):
    """``g(x, t, y)`` of a state and a clock, known by hand; its result is wrapped."""

    def __init__(self, wrapped: bool = True, classes: int = 4) -> None:
        super().__init__()
        self.wrapped, self.classes = wrapped, classes
        self.weight = nn.Parameter(torch.arange(float(classes)))

    def forward(self, x, t, y=None):
        assert t.shape == x.shape[:1] and t.dtype == x.dtype
        extra = 0 if y is None else self.weight.to(x)[y][:, None, None, None]
        field = 2 * x + t[:, None, None, None] + extra
        return SimpleNamespace(sample=field, other=x) if self.wrapped else field


class TimeFirst(nn.Module):
    def forward(self, t, x):
        return t[:, None] - x


class Given(nn.Module):
    def __init__(self, result) -> None:
        super().__init__()
        self.result = result

    def forward(self, x, t):
        return self.result


def images(n=5, dtype=torch.float32):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("times", "at"), [((0, 1), 0.3), ((0, 1000), 300.0), ((1000, 0), 700.0)])
def test_the_clock_runs_as_the_network_wants_it(times, at, dtype):
    x, y = images(dtype=dtype), torch.tensor([0, 1, 2, 3, 1])
    adapter = Adapter(Theirs(), times=times, condition="y", output="sample").to(dtype)
    shift = y.to(dtype)[:, None, None, None]
    for t in (0.3, torch.full((5,), 0.3, dtype=dtype)):
        torch.testing.assert_close(adapter(t, x, y), 2 * x + at + shift)
        torch.testing.assert_close(adapter(t, x), 2 * x + at)
    assert adapter(0.3, x).dtype == dtype


def test_time_first_and_plain_results():
    x = torch.randn(3, 2)
    torch.testing.assert_close(Adapter(TimeFirst(), "tx")(0.5, x), 0.5 - x)
    with pytest.raises(RuntimeError, match="must match the size"):
        Adapter(TimeFirst())(0.5, x)  # the other order
    torch.testing.assert_close(Adapter(Theirs(False))(1.0, images()), 2 * images() + 1)


def test_guidance_reaches_the_network_behind_it():
    adapter = Adapter(Theirs(), condition="y", output="sample")
    field, x = Guided(adapter, empty=3, scale=2.0).eval(), images()
    y = torch.tensor([0, 1, 2, 0, 1])
    shift = (2 * y - 3).float()[:, None, None, None]
    torch.testing.assert_close(field(0.0, x, y), 2 * x + shift)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adapter(Theirs(), "yx"), "order must be one of 'xt', 'tx'"),
        (lambda: Adapter(Theirs(), times=(1, 1)), "two different numbers"),
        (lambda: Adapter(Theirs(), times=[0, 1, 2]), "two different numbers"),
        (lambda: Adapter(Theirs(), times=1000), "two different numbers"),
        (lambda: Adapter(Theirs(), times=(0, float("nan"))), "times must be a finite number"),
        (
            lambda: Adapter(Theirs(), output="sample")(0.5, images(), torch.zeros(5)),
            "Theirs takes none",
        ),
        (lambda: Adapter(Theirs())(0.5, images()), "SimpleNamespace whose tensors.*sample, other"),
        (lambda: Adapter(Theirs(), output="field")(0.5, images()), "output='field'.*sample, other"),
        (lambda: Adapter(Given(None))(0.5, images()), "NoneType whose tensors are called nothing"),
        (lambda: Adapter(Given({"a": images()}))(0.5, images()), "dict whose tensors are called a;"),
        (
            lambda: Adapter(Given(torch.zeros(5, 2, 4, 4)))(0.5, images()),
            r"Given returned \(5, 2, 4, 4\) for states of shape \(5, 1, 4, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_told(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_description_and_file(tmp_path):
    adapter = Adapter(Theirs(), "xt", [0.0, 1000.0], "y", "sample")
    trust = f"{Theirs.__module__}."
    assert spec(build(spec(adapter), [trust])) == spec(adapter)
    with torch.no_grad():
        adapter.network.weight += 1
    model = Generator(Gaussian([1, 4, 4]), SDE(adapter), Euler(2)).eval()
    genflow.save(model, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=f"trust=\\['{trust}'\\]"):
        genflow.load(tmp_path / "model.ckpt")
    loaded, y = genflow.load(tmp_path / "model.ckpt", trust=[trust]), torch.tensor([0, 1, 2, 3, 3])
    assert torch.equal(loaded.sample(x0=images(), cond=y), model.sample(x0=images(), cond=y))


def test_a_network_in_the_other_order_learns_the_same(generator):
    """An MLP behind an adapter is the MLP."""
    torch.manual_seed(0)
    network, (x0, x1) = MLP(2, 8), torch.randn(2, 16, 2, generator=generator)
    loss, draw = Matching(), torch.Generator()
    direct = loss(network, x0, x1, generator=draw.manual_seed(1))
    behind = loss(Adapter(network, "tx"), x0, x1, generator=draw.manual_seed(1))
    assert torch.equal(direct, behind)


@pytest.fixture(scope="module")
def diffusers_unet():
    diffusers = pytest.importorskip("diffusers", reason="needs the extra genflow[images]")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=[8, 8], layers_per_block=1,
        down_block_types=["DownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "UpBlock2D"],
        norm_num_groups=4, attention_head_dim=4, num_class_embeds=3,
    )  # fmt: skip


def diffused(network):
    return Adapter(network, times=[0.0, 1000.0], condition="class_labels", output="sample")


def test_a_network_of_diffusers_is_called_as_it_wants(diffusers_unet):
    adapter, x = diffused(diffusers_unet), torch.randn(4, 1, 8, 8)
    t, y = torch.rand(4), torch.tensor([0, 1, 2, 0])
    want = diffusers_unet(x, 1000 * t, class_labels=y).sample
    assert torch.equal(adapter(t, x, y), want)
    assert not torch.allclose(adapter(t / 2, x, y), want)
    with pytest.raises(ValueError, match="tensors are called sample;"):
        Adapter(diffusers_unet, condition="class_labels")(t, x, y)
    loss = Matching()(adapter, torch.randn(4, 1, 8, 8), x, cond=y)
    loss.backward()
    grads = [p.grad for p in adapter.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


def test_a_network_of_diffusers_is_saved_and_loaded(diffusers_unet, tmp_path):
    model = Generator(Gaussian([1, 8, 8]), SDE(diffused(diffusers_unet)), Euler(2)).eval()
    genflow.save(model, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="diffusers.UNet2DModel"):
        genflow.load(tmp_path / "model.ckpt")
    loaded = genflow.load(tmp_path / "model.ckpt", trust=["diffusers."])
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert torch.equal(loaded.sample(x0=x, cond=y), model.sample(x0=x, cond=y))


def test_a_network_of_flow_matching(generator):
    utils = pytest.importorskip("flow_matching.utils")

    class Velocity(utils.ModelWrapper):
        def forward(self, x, t, label=None):
            return self.model(t, x, label)

    inner = MLP(2, 8, classes=3)
    x, y = torch.randn(4, 2, generator=generator), torch.tensor([0, 1, 2, 0])
    assert torch.equal(Adapter(Velocity(inner), condition="label")(0.3, x, y), inner(0.3, x, y))
