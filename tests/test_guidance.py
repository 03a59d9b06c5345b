"""Guidance: on fields known exactly, what is dropped and how often, files and resumed runs."""

import math

import pytest
import torch
from test_resume import agree, train
from torch import nn
from toy_training import moons, toy

import genflow
from genflow.data import Simulated
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP, Guided, Heads, guidance
from genflow.process import SDE
from genflow.solver import Heun
from genflow.source import Gaussian, Moons
from genflow.specs import build, spec
from genflow.time import Uniform

CENTRES = [[2.0, -1.0], [0.0, 3.0], [-0.5, 0.25]]  # two classes, and without a class


class Known(nn.Module):
    """The velocity from N(0, I) to N(centre, std²) on the straight path, for each class."""

    def __init__(self, stds=(0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.stds = list(stds)
        self.centres, self.scales = torch.tensor(CENTRES).double(), torch.tensor(stds).double()

    def forward(self, t, x, cond):
        centre, var = self.centres[cond], self.scales[cond][:, None] ** 2
        t = torch.as_tensor(t).double().reshape(-1, 1)
        slope = (t * var - (1 - t)) / ((1 - t) ** 2 + t**2 * var)
        return centre + slope * (x - t * centre)


class Echo(nn.Module):
    """Returns the condition that arrives, in every entry of the event."""

    def __init__(self, cond_dim: int | None = None) -> None:
        super().__init__()
        self.cond_dim, self.batches = cond_dim, []

    def forward(self, t, x, cond):
        self.batches.append(len(x))
        return cond.reshape(len(x), -1).to(x).sum(1, keepdim=True).expand_as(x)


def guided(**options):
    return Guided(Known(), empty=2, **options).eval()


def start(n=400):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


LABELS = torch.arange(400) % 2


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 3.5, -1.0])
def test_guided_samples_of_gaussians_are_known(scale):
    """With equal widths the guided law is Gaussian around the moved centre: x0 -> centre + std x0."""
    model = Generator(Gaussian(2), SDE(guided(scale=scale)), Heun(400)).double().eval()
    centres = torch.tensor(CENTRES).double()

    def truth(scale):
        return centres[2] + scale * (centres[LABELS] - centres[2]) + 0.5 * start()

    out = model.sample(x0=start(), cond=LABELS)
    torch.testing.assert_close(out, truth(scale), atol=2e-4, rtol=0)
    if scale not in (0.0, 1.0):  # other conventions are far off: 1 + w, and the two fields swapped
        assert (out - truth(1 + scale)).abs().max() > 1
        assert scale == 0.5 or (out - truth(1 - scale)).abs().max() > 1


def test_a_guided_field_is_the_line_through_both():
    """Unequal widths: centre + slope (x - t centre) of each law, written out by hand at t = 1/2."""
    field = Guided(Known((0.5, 2.0, 1.0)), empty=2, scale=2.5).eval()
    x, label = start(2), torch.tensor([0, 1])
    slopes = torch.tensor([[-1.2], [1.2]], dtype=torch.float64)  # 2 (var - 1) / (var + 1)
    centres = torch.tensor(CENTRES).double()
    given = centres[:2] + slopes * (x - centres[:2] / 2)
    without = centres[2] + 0 * x  # from N(0, 1) to N(centre, 1) the slope at 1/2 is zero
    torch.testing.assert_close(field(0.5, x, label), 2.5 * given - 1.5 * without)


@pytest.mark.parametrize("time", [0.3, "rows"])
@pytest.mark.parametrize(
    "network",
    [MLP(2, 8, classes=4), MLP(2, 8, classes=4, outputs=["velocity", "noise"]),
     Heads({"velocity": MLP(2, 8, classes=4), "noise": MLP(2, 4, classes=4)})],
    ids=["tensor", "trunk", "heads"],
)  # fmt: skip
def test_one_doubled_batch_is_two_calls(network, time):
    field, x, cond = Guided(network, empty=3, scale=1.7).eval(), start(6).float(), torch.arange(6) % 3
    t = torch.rand(6) if time == "rows" else time
    out, given, without = field(t, x, cond), network(t, x, cond), network(t, x, 0 * cond + 3)
    for name in given if isinstance(given, dict) else [slice(None)]:
        want = without[name] + 1.7 * (given[name] - without[name])
        torch.testing.assert_close(out[name], want)
    assert field.outputs == getattr(network, "outputs", None)


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 5), (1.0, 5), (2.0, 10)])
def test_what_a_scale_costs(scale, rows):
    echo = Echo()
    Guided(echo, empty=9, scale=scale).eval()(0.5, torch.zeros(5, 2), torch.arange(5))
    assert echo.batches == [rows]


def test_scale_zero_and_no_condition_are_unconditional():
    field, x = guided(scale=0.0), start(4)
    without = Known()(0.5, x, torch.full((4,), 2))
    assert torch.equal(field(0.5, x, LABELS[:4]), without)
    for scale in (0.0, 1.0, 4.0):
        field.scale = scale
        assert torch.equal(field(0.5, x), without)
    model = Generator(Gaussian(2), SDE(guided(scale=3.0)), Heun(200)).double().eval()
    torch.testing.assert_close(
        model.sample(x0=start()), torch.tensor(CENTRES[2]) + 0.5 * start(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("only", [["velocity"], ["noise"], []])
@pytest.mark.parametrize("kind", ["heads", "trunk"])
def test_only_some_fields_are_asked_for(kind, only):
    if kind == "heads":
        network = Heads({name: MLP(2, 8, classes=3) for name in ("velocity", "noise")})
    else:
        network = MLP(2, 8, classes=3, outputs=["velocity", "noise"])
    field, x, cond = Guided(network, 2, scale=2.0).eval(), start(4).float(), torch.tensor([0, 1, 0, 1])
    out, whole = field(0.5, x, cond, only=only), field(0.5, x, cond)
    assert list(out) == only and all(torch.equal(out[k], whole[k]) for k in only)
    if kind == "heads":
        others = [v for k, v in network.heads.items() if k not in only]
        for other in others:
            other.forward = None  # whoever evaluates it fails
        field(0.5, x, cond, only=only)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_conditions_are_dropped_at_their_rate(dropout):
    torch.manual_seed(0)
    n, field = 40_000, Guided(Echo(), empty=7, dropout=dropout, scale=3.0)
    cond = torch.arange(n) % 7
    out = field(0.5, torch.zeros(n, 2), cond)[:, 0]
    dropped = out == 7
    assert torch.equal(out[~dropped], cond[~dropped].float()), "a row keeps its own label"
    error = math.sqrt(dropout * (1 - dropout) / n)
    assert abs(float(dropped.float().mean()) - dropout) <= 4 * error
    # rows are dropped one by one, whatever their label or their neighbour
    if dropout:
        both = (dropped[1:] & dropped[:-1]).float().mean()
        assert abs(float(both) - dropout**2) <= 6 * dropout / math.sqrt(n)
        again = field(0.5, torch.zeros(n, 2), cond)[:, 0] == 7
        assert not torch.equal(dropped, again)
    field.eval()
    field.scale = 1.0
    assert torch.equal(field(0.5, torch.zeros(n, 2), cond)[:, 0], cond.float())


@pytest.mark.parametrize(
    ("empty", "cond", "want"),
    [
        (None, torch.full((3, 4), 2.0), 0.0),
        ([1.0, 2.0, 3.0, 4.0], torch.full((3, 4), 2.0), 10.0),
        ([5, 6], torch.zeros(3, 2, dtype=torch.long), 11.0),
        (7, torch.zeros(3, dtype=torch.long), 7.0),
    ],
    ids=["zeros", "vector", "labels", "label"],
)
def test_every_kind_of_condition_has_an_empty_one(empty, cond, want):
    field, x = Guided(Echo(4), empty, scale=0.0).eval(), torch.ones(3, 2)
    assert torch.equal(field(0.5, x, cond), torch.full((3, 2), want))
    assert torch.equal(field(0.5, x), torch.full((3, 2), want))
    field.train().dropout = 1 - 1e-9  # all rows
    assert torch.equal(field(0.5, x, cond), torch.full((3, 2), want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_the_state(dtype):
    field = Guided(MLP(2, 8, cond_dim=3), [0.1, 0.2, 0.3], scale=2.0).to(dtype).eval()
    assert field(0.5, start(4).to(dtype), torch.ones(4, 3)).dtype == dtype
    assert field(0.5, start(4).to(dtype)).dtype == dtype


def test_the_manager_sets_and_restores_every_scale():
    part = Heads({"a": guided(scale=1.0), "b": guided(scale=0.5)})
    with guidance(part, 3.0):
        assert [head.scale for head in part.heads.values()] == [3.0, 3.0]
    with pytest.raises(KeyError), guidance(part, 2.0):
        raise KeyError
    assert [head.scale for head in part.heads.values()] == [1.0, 0.5]
    with pytest.raises(ValueError, match="no Guided network inside this MLP"), guidance(MLP(2), 2.0):
        pass
    with pytest.raises(ValueError, match=r"scale=nan"), guidance(part, math.nan):
        pass
    assert part.heads["a"].scale == 1.0


def test_the_unconditional_field_is_learnt_too(generator):
    """Classes are the points -1 and 1; at t = 1/2 the velocity is 2 (E[x1 | x, cond] - x)."""
    torch.manual_seed(0)
    field = Guided(MLP(1, 32, 2, "Tanh", classes=3, frequencies=0), 2, dropout=0.4)
    loss, optimizer = Matching(time=Uniform(margin=0.4999)), torch.optim.Adam(field.parameters())
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 400)
        cond = torch.randint(2, (512,), generator=generator)
        x1, x0 = 2.0 * cond[:, None] - 1, torch.randn(512, 1, generator=generator)
        optimizer.zero_grad()
        loss(field, x0, x1, cond=cond, generator=generator).backward()
        optimizer.step()
    field.eval()
    x = torch.linspace(-1, 1, 11)[:, None]
    ends = {0: -torch.ones(11, 1), 1: torch.ones(11, 1), None: torch.tanh(2 * x)}
    with torch.no_grad():
        for label, end in ends.items():
            cond = None if label is None else torch.full((11,), label)
            assert (field(0.5, x, cond) - 2 * (end - x)).abs().mean() < 0.15, label


def labelled():
    network = Guided(MLP(2, 8, classes=3), empty=2, dropout=0.5, scale=2.0)
    return toy(network), moons(Simulated(Gaussian(2), Moons(), labels=True)), {}


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")
def test_a_resumed_run_drops_the_same_labels(tmp_path):
    for name in ("whole", "half", "rest"):
        (tmp_path / name).mkdir()
    unbroken = train(labelled, tmp_path / "whole", 8, 1000)
    train(labelled, tmp_path / "half", 8, 3)
    agree(unbroken, train(labelled, tmp_path / "rest", 8, 1000, tmp_path / "half" / "last.ckpt"))
    assert genflow.load(unbroken).sample(cond=torch.tensor([0, 1])).shape == (2, 2)


@pytest.mark.parametrize("empty", [4, [4, 2], None, [0.5, 1.0]], ids=str)
def test_description_and_file(empty, tmp_path):
    conditions = {"classes": 5} if empty == 4 else {"classes": [5, 3]} if empty == [4, 2] else {}
    network = MLP(2, 8, **(conditions or {"cond_dim": 2}))
    made = Guided(network, empty, 0.2, 3.0)
    assert "_empty" not in made.state_dict()
    again = build(spec(made))
    assert spec(again) == spec(made)
    model = Generator(Gaussian(2), SDE(made), Heun(3)).eval()
    model.process.network.scale = 1.5  # what was set after training is what the file says
    genflow.save(model, tmp_path / "model.ckpt")
    loaded = genflow.load(tmp_path / "model.ckpt")
    assert loaded.process.network.scale == 1.5
    x0 = torch.randn(4, 2)
    cond = torch.ones(4, 2) if not conditions else torch.ones(4, 2).long()
    cond = cond[:, 0] if empty == 4 else cond
    for inputs in ({}, {"cond": cond}):
        assert torch.equal(loaded.sample(x0=x0, **inputs), model.sample(x0=x0, **inputs))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Guided(MLP(2, classes=10), 10), r"empty=10.*classes=10; give it one class more"),
        (lambda: Guided(MLP(2, classes=10)), "empty=None.*must be a class"),
        (lambda: Guided(MLP(2, classes=10), [3]), "must be a class"),
        (lambda: Guided(MLP(2, classes=[3, 4]), 2), "must be a class"),
        (lambda: Guided(MLP(2, classes=[3, 4]), [2, 4]), "must be a class"),
        (lambda: Guided(MLP(2, classes=3), -1), "must be a class"),
        (lambda: Guided(MLP(2, classes=3), 1.0), "must be a class"),
        (lambda: Guided(Heads({"a": MLP(2, classes=3)}), 3), "must be a class"),
        (lambda: Guided(MLP(2, cond_dim=3), 0), "None or 3 numbers"),
        (lambda: Guided(MLP(2, cond_dim=3), [0.0]), "None or 3 numbers"),
        (lambda: Guided(MLP(2)), "has no condition"),
        (lambda: Guided(Echo(), 1, scale=math.inf), "scale must be a finite number"),
        (lambda: Guided(Echo(), 1, dropout=-0.1), "dropout must be zero or positive"),
        (lambda: Guided(Echo(), 1, dropout=1.0), "dropout must lie below 1"),
        (lambda: Guided(Echo(), 1)(0.5, start(3)), "learns with conditions: pass cond"),
        (lambda: Guided(Echo(), [1, 2])(0.5, start(3), torch.arange(3)), r"shape \(2,\).*cond \(\)"),
        (lambda: Guided(Echo()).eval()(0.5, start(3)), "size of the empty condition is not known"),
        (lambda: Guided(Echo())(0.5, start(3), torch.arange(3)), "labels need a label of their own"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
