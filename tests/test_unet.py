"""The U-Net: shapes, conditions, what starts at zero, gradients, precision, files, refusals."""

import pytest
import torch
from torch.nn import functional as F

import genflow
from genflow.model import Generator
from genflow.network import MLP, Guided, Heads, UNet
from genflow.network.unet import Attention, Block, Norm, groups
from genflow.process import SDE
from genflow.solver import Euler
from genflow.source import Gaussian
from genflow.specs import build, spec

SMALL = {"width": 8, "heads": 2, "frequencies": 4}


def images(n=3, dim=(1, 8, 8), dtype=torch.float32):
    return torch.randn(n, *dim, generator=torch.Generator().manual_seed(1), dtype=dtype)


def awake(network):
    """The network with weights where it starts with zeros."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in network.parameters():
            if not p.any():
                p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return network


def unet(dim=(1, 8, 8), **options):
    torch.manual_seed(0)
    return awake(UNet(dim, **SMALL | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [(1, 8, 8), [3, 8, 8], (2, 4, 12), (1, 28, 28)], ids=str)
def test_fields_have_the_shape_and_precision_of_the_images(dim, dtype):
    network, x = unet(dim).to(dtype), images(dim=dim, dtype=dtype)
    t = torch.rand(3, dtype=dtype)
    out = network(t, x)
    assert out.shape == x.shape and out.dtype == dtype
    assert not torch.allclose(out, network(t / 2, x)), "time matters"
    moved = network(t, x.flip(-1))
    assert not torch.allclose(out, moved) and not torch.allclose(out, moved.flip(-1))
    assert torch.equal(network(0.3, x), network(torch.full((3,), 0.3, dtype=dtype), x))


@pytest.mark.parametrize(
    "options",
    [
        {"multipliers": (1,), "attention": (True,)},
        {"multipliers": (1, 3), "attention": (True, False)},
        {"blocks": 2, "attention": (False, True, True)},
        {"multipliers": (2, 1, 1, 2), "attention": (False,) * 4, "width": 4},
    ],
    ids=str,
)
def test_levels_blocks_and_attention(options):
    network, x = unet(**options), images()
    network(torch.rand(3), x).square().sum().backward()
    assert all(bool(p.grad.any()) for p in network.parameters()), "every layer learns"
    found = sum(isinstance(m, Attention) for m in network.modules())
    wanted = options["attention"]
    assert found == 2 * options.get("blocks", 1) * sum(wanted) + wanted[-1]
    blocks = sum(isinstance(m, Block) for m in network.modules())
    assert blocks == 2 * options.get("blocks", 1) * len(wanted) + 2


def test_it_starts_at_zero_and_blocks_at_nothing():
    network, x = UNet((1, 8, 8), **SMALL, classes=3), images()
    assert not network(0.5, x, torch.tensor([0, 1, 2])).any()
    block, h, e = Block(8, 8, 16, 0.0), images(dim=(8, 4, 4)), torch.randn(3, 16)
    assert torch.equal(block(h, e), h) and torch.equal(Attention(8, 2)(h), h)
    # the gradient of an untrained network reaches its last layer, and from there all others
    for step in range(3):
        loss = (network(0.5, x, torch.tensor([0, 1, 2])) - 1).square().mean()
        grads = torch.autograd.grad(loss, list(network.parameters()))
        moved = [bool(g.any() and g.isfinite().all()) for g in grads]
        assert moved.count(True) == 2 if step == 0 else True
        with torch.no_grad():
            for p, g in zip(network.parameters(), grads):
                p -= 0.01 * g
    assert all(moved)


def test_rows_do_not_see_each_other():
    network, x, t = unet(classes=4), images(4), torch.rand(4)
    y = torch.tensor([0, 1, 2, 3])
    out = network(t, x, y)
    torch.testing.assert_close(network(t[1:3], x[1:3], y[1:3]), out[1:3], atol=1e-5, rtol=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(t[order], x[order], y[order]), out[order], atol=1e-5, rtol=1e-4)
    assert network(t[:0], x[:0], y[:0]).shape == (0, 1, 8, 8)


def test_conditions_matter_row_by_row():
    x, t = images(), torch.rand(3)
    network = unet(classes=3)
    out, other = (network(t, x, torch.tensor(y)) for y in ([0, 1, 2], [0, 1, 1]))
    assert (out - other).abs().amax((1, 2, 3)).gt(1e-4).tolist() == [False, False, True]
    network = unet(classes=[3, 2])
    pairs = torch.tensor([[0, 1], [1, 0], [2, 1]])
    for k in range(2):
        changed = pairs.clone()
        changed[1, k] = 1 - changed[1, k]
        moved = (network(t, x, pairs) - network(t, x, changed)).abs().amax((1, 2, 3))
        assert moved.gt(1e-4).tolist() == [False, True, False]
    network, cond = unet(cond_dim=4), torch.randn(3, 4)
    assert not torch.allclose(network(t, x, cond), network(t, x, cond + 1))


def test_labels_that_do_not_fit_are_refused_as_by_an_mlp():
    """One sentence for both networks, but for its first word."""
    for options, cond in (
        ({"classes": 3}, None),
        ({}, torch.zeros(3).long()),
        ({"classes": 3}, torch.zeros(3)),
        ({"classes": 3}, torch.tensor([0, 3, 1])),
        ({"classes": [3, 2]}, torch.zeros(3).long()),
        ({"cond_dim": 2}, torch.zeros(3, 3)),
    ):
        told = []
        for network in (UNet([1, 8, 8], **SMALL, **options), MLP([1, 8, 8], 8, **options)):
            with pytest.raises(ValueError) as caught:
                network(0.5, images(), cond)
            told.append(str(caught.value).removeprefix(type(network).__name__))
        assert told[0] == told[1]


def test_several_fields_are_shares_of_the_last_layer():
    network, x, t = unet((2, 8, 8), outputs=["velocity", "noise"]), images(dim=(2, 8, 8)), torch.rand(3)
    out = network(t, x)
    assert list(out) == network.outputs == ["velocity", "noise"]
    for k, name in enumerate(out):
        alone = unet((2, 8, 8))
        rows = slice(2 * k, 2 * k + 2)
        own = {n: v[rows] if n.startswith("last") else v for n, v in network.state_dict().items()}
        alone.load_state_dict(own)
        torch.testing.assert_close(alone(t, x), out[name])


def test_guidance_takes_it():
    x, y = images(), torch.tensor([0, 1, 1])
    network = unet(classes=3)
    field = Guided(network, empty=2, scale=3.0).eval()
    given, without = network(0.3, x, y), network(0.3, x, torch.full((3,), 2))
    torch.testing.assert_close(field(0.3, x, y), without + 3 * (given - without), atol=1e-5, rtol=1e-4)
    Guided(Heads({"velocity": network, "noise": unet(classes=3)}), empty=2)
    with pytest.raises(ValueError, match="give it one class more"):
        Guided(UNet([1, 8, 8], **SMALL, classes=10), empty=10)
    with pytest.raises(ValueError, match="has no condition"):
        Guided(UNet([1, 8, 8], **SMALL), empty=10)


@pytest.mark.parametrize("channels", [8, 12, 32, 6, 3, 1, 96])
def test_modulated_normalisation_is_that_of_each_row(channels):
    """In one pass over all rows, beside GroupNorm without weights and the affine map written out."""
    norm, x = awake(Norm(channels)).double(), images(dim=(channels, 3, 5), dtype=torch.float64)
    norm.weight.data += 0.3 * torch.randn(channels)
    scale, shift = torch.randn(2, 3, channels, dtype=torch.float64).requires_grad_()
    plain = F.group_norm(x, groups(channels), eps=norm.eps)
    wide = [v[..., None, None] for v in (norm.weight, norm.bias, scale, shift)]
    want = F.silu((plain * wide[0] + wide[1]) * (1 + wide[2]) + wide[3])
    torch.testing.assert_close(norm(x, scale, shift), want)
    torch.testing.assert_close(norm(x), F.silu(plain * wide[0] + wide[1]))
    inputs = (scale, shift, norm.weight, norm.bias)
    ours, theirs = (
        torch.autograd.grad(v.sin().sum(), inputs, retain_graph=True)
        for v in (norm(x, scale, shift), want)
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    assert channels % groups(channels) == 0 and groups(channels) <= 8
    assert channels < 4 or channels // groups(channels) >= 4


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_that_of_torch(heads):
    part, x = awake(Attention(8, heads)).double(), images(dim=(8, 3, 4), dtype=torch.float64)
    torch_part = torch.nn.MultiheadAttention(8, heads, batch_first=True).double()
    torch_part.load_state_dict(
        {
            "in_proj_weight": part.inputs.weight[:, :, 0, 0],
            "in_proj_bias": part.inputs.bias,
            "out_proj.weight": part.output.weight[:, :, 0, 0],
            "out_proj.bias": part.output.bias,
        }
    )
    rows = part.norm(x).flatten(2).mT
    want = x + torch_part(rows, rows, rows, need_weights=False)[0].mT.reshape(x.shape)
    torch.testing.assert_close(part(x), want)
    # pixels are a set to it: what moves in moves out
    torch.testing.assert_close(part(x.flip(-1)), part(x).flip(-1))


def test_evaluation_is_training_without_dropout():
    network, x = unet(), images()
    out = network.train()(0.5, x)
    assert torch.equal(network.eval()(0.5, x), out)
    network = unet(dropout=0.5)
    network.load_state_dict(unet().state_dict())
    assert torch.equal(network.eval()(0.5, x), out)
    assert not torch.allclose(network.train()(0.5, x), out)


def test_autocast_gives_the_precision_of_the_images_and_nearly_their_field():
    network, x, t = unet(classes=3), images(), torch.rand(3)
    y = torch.tensor([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        low = network(t, x, y)
    high = network(t, x, y)
    assert low.dtype == torch.float32
    assert 0 < (low - high).abs().max() < 0.05 * high.abs().max()


def test_description_and_file(tmp_path):
    network = Guided(unet(classes=4, attention=[False, True, False], dropout=0.1), empty=3)
    assert spec(build(spec(network))) == spec(network)
    model = Generator(Gaussian([1, 8, 8]), SDE(network), Euler(2)).eval()
    genflow.save(model, tmp_path / "model.ckpt")
    loaded, y = genflow.load(tmp_path / "model.ckpt"), torch.tensor([0, 1, 2])
    assert torch.equal(loaded.sample(x0=images(), cond=y), model.sample(x0=images(), cond=y))


@pytest.mark.slow
def test_compiling_in_place_keeps_keys_and_values():
    network, x, t = unet(classes=3), images(), torch.rand(3)
    y = torch.tensor([0, 1, 2])
    keys, out = list(network.state_dict()), network(t, x, y)
    network.compile()
    torch.testing.assert_close(network(t, x, y), out, atol=1e-4, rtol=1e-3)
    assert list(network.state_dict()) == keys
    assert spec(network) == spec(unet(classes=3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNet((1, 7, 8)), r"dim=\(1, 7, 8\).*multiples of 4 to be halved 2 times"),
        (lambda: UNet((1, 8, 6)), "multiples of 4"),
        (lambda: UNet(2), r"dim must be \[channels, height, width\]"),
        (lambda: UNet([8, 8]), r"dim must be \[channels, height, width\]"),
        (lambda: UNet([1, 8, 8], width=0), "width must be a whole number"),
        (lambda: UNet([1, 8, 8], blocks=0), "blocks must be a whole number"),
        (lambda: UNet([1, 8, 8], multipliers=(1, 0, 2)), "multipliers must be a whole number"),
        (lambda: UNet([1, 8, 8], multipliers=(), attention=()), "multipliers must be a whole number"),
        (lambda: UNet([1, 8, 8], attention=(True,)), "one of True and False for each of the 3 levels"),
        (lambda: UNet([1, 8, 8], width=6, heads=5), "heads must divide the 12 channels"),
        (lambda: UNet([1, 8, 8], dropout=1.0), "dropout must lie below 1"),
        (lambda: UNet([1, 8, 8], dropout=-0.1), "dropout must be zero or positive"),
        (lambda: UNet([1, 8, 8], classes=2, cond_dim=2), "UNet: give classes.*not both"),
        (lambda: UNet([1, 8, 8], outputs=["a", "a"]), "UNet.*names must differ"),
        (lambda: UNet([1, 8, 8], **SMALL)(0.5, torch.zeros(3, 1, 8, 4)), r"expected \(1, 8, 8\)"),
        (lambda: UNet([1, 8, 8], **SMALL)(torch.rand(2), torch.zeros(3, 1, 8, 8)), "3 rows"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
