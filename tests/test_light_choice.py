"""How many components a light bridge takes by itself."""

import math
from types import SimpleNamespace

import pytest
import torch
from light_fits import of_seed, ordered, quick, same
from toy_training import trainer

import genflow
from genflow.data import Simulated
from genflow.loss import LightBridgeKL
from genflow.model import Generator
from genflow.process import LightBridge
from genflow.process.light import choice
from genflow.process.light.choice import CANDIDATES, choose, chosen
from genflow.process.light.fit import Settings
from genflow.process.light.history import Choice
from genflow.process.light.rows import gather
from genflow.solver import Exact
from genflow.source import Gaussian, GaussianMixture
from genflow.specs import build
from genflow.training import DataModule, Training

CORNERS = [[6.0, 0.0], [-6.0, 0.0], [0.0, 6.0], [0.0, -6.0], [0.0, 0.0]]
BLOBS = GaussianMixture(CORNERS, 0.1)


def tables(rows=400):
    return Gaussian(2).sample(rows, of_seed(0)), BLOBS.sample(rows, of_seed(1))


def auto(x0, x1, **options):
    return quick(
        LightBridge(2, "auto", 1.0), x0, x1, **{"steps": 60, "generator": of_seed(2), **options}
    )


# What is chosen


@pytest.mark.parametrize("law", [False, True])
def test_separate_blobs_are_counted(law):
    rows = (Gaussian(2), BLOBS) if law else tables()
    bridge = auto(*rows, pilot=1000)
    assert bridge.components == len(bridge.location) == 5
    choices = bridge.history.choices
    assert tuple(c.components for c in choices) == CANDIDATES[: len(choices)] and len(choices) > 3
    held = {c.components: c.held_out for c in choices}
    assert held[1] > held[2] > held[5] + 0.1
    assert all(0 <= c.error < 0.5 and math.isfinite(c.objective) for c in choices)
    best = min(choices, key=lambda c: c.held_out)
    assert best.error == 0 and [c.error for c in choices].count(0) == 1
    assert bridge.history[0].stage == "warm start"
    # rows that no trial saw are worth what the choice says
    x0, x1 = Gaussian(2).sample(4000, of_seed(7)), BLOBS.sample(4000, of_seed(8))
    assert bridge.objective(x0, x1).item() == pytest.approx(held[5], abs=0.6)


def test_one_blob_is_one():
    counts = []
    for seed in range(3):
        x0, noise = Gaussian(2).sample(1200, of_seed(seed)).chunk(2)
        bridge = auto(x0, 3 * noise + 1)
        counts.append(bridge.components)
        assert [c.components for c in bridge.history.choices][:3] == [1, 2, 5]
    assert sorted(counts)[1] == 1


def test_the_fewest_within_one_standard_error():
    made = [Choice(k, 0.0, held, error) for k, held, error in
            [(1, 9.0, 1.0), (2, 5.3, 0.2), (5, 5.1, 0.2), (10, 5.0, 0.0), (20, 5.05, 0.5)]]  # fmt: skip
    assert chosen(made) == 5
    assert chosen(made[:2]) == 2 and chosen(made[3:]) == 10
    assert chosen([c._replace(error=0.0) for c in made]) == 10


def trials(values, monkeypatch, rows=400, share=0.0):
    """Choices where a trial of ``k`` components scores held-out starts by ``values(k, rows)``; what the
    trials were given; and the rows of both sides."""
    seen = []

    class Trial:
        def __init__(self, bridge, start, stop, settings, generator):
            self.bridge = bridge
            seen.append((bridge.components, start, stop, settings))

        def run(self):
            k = self.bridge.components
            fake = SimpleNamespace(
                log_normaliser=lambda x: values(k, x), log_potential=lambda x: 0 * x[:, 0]
            )
            monkeypatch.setattr(LightBridge, "potential", property(lambda _: fake))
            return [SimpleNamespace(objective=float(k))]

    monkeypatch.setattr(choice, "Fit", Trial)
    where = (2,), torch.device("cpu"), 10_000, share, of_seed(9)
    sides = [gather("x", torch.randn(rows, 2, generator=of_seed(k)) + 5, *where) for k in (0, 1)]
    found = choose(LightBridge(2, "auto", 1.0), *sides, Settings(steps=9), of_seed(2))
    return found, seen, sides


def test_it_ends_after_two_that_are_worse(monkeypatch):
    score = {1: 5.0, 2: 3.0, 5: 4.0, 10: 2.0, 20: 2.5, 50: 2.4, 100: 0.0}
    choices, seen, _ = trials(lambda k, x: score[k] + 0 * x[:, 0], monkeypatch, 4000)
    assert [c.components for c in choices] == [1, 2, 5, 10, 20, 50]
    assert [c.held_out for c in choices] == pytest.approx([score[c.components] for c in choices])
    assert [c.objective for c in choices] == [1, 2, 5, 10, 20, 50]
    assert all(settings.steps == 4 for *_, settings in seen)


def test_few_rows_try_few_components(monkeypatch):
    held = []
    choices, seen, sides = trials(lambda k, x: held.append(x) or 0 * x[:, 0] - k, monkeypatch, 250)
    assert [c.components for c in choices] == [1, 2, 5, 10, 20]  # of 200 rows, a fifth being held out
    kept = [trial[1].pilot + trial[1].centre for trial in seen]
    assert all(torch.equal(kept[0], k) and torch.equal(held[0], h) for k, h in zip(kept, held))
    assert (len(kept[0]), len(held[0])) == (200, 50)
    whole = sides[0].pilot + sides[0].centre
    torch.testing.assert_close(ordered(torch.cat([kept[0], held[0]])), ordered(whole))


def test_rows_that_are_held_out_already_judge(monkeypatch):
    held = []
    choices, seen, sides = trials(
        lambda k, x: held.append(x) or x[:, 0] + abs(k - 2), monkeypatch, 70, share=0.3
    )
    known = sides[0].held_out + sides[0].centre
    assert len(known) == 21 and all(torch.equal(known, h) for h in held)
    want = known[:, 0].mean().item() + torch.tensor([1.0, 0.0, 3.0])
    assert [c.held_out for c in choices[:3]] == pytest.approx(want.tolist())
    assert all(torch.equal(start.pilot, sides[0].pilot) for _, start, _, _ in seen)


def test_errors_are_those_of_differences(monkeypatch):
    # what all trials share, however much it varies, says nothing about which is best
    choices, _, sides = trials(
        lambda k, x: 100 * x[:, 0] + (k - 2) ** 2 * (0.1 + x[:, 1]), monkeypatch, 500, share=0.3
    )
    held = sides[0].held_out[:, 1]
    for c in choices:
        want = (c.components - 2) ** 2 * held.std().item() / len(held) ** 0.5
        assert c.error == pytest.approx(want, rel=1e-6, abs=1e-12)


# What follows it


def test_what_was_chosen_is_saved_and_loaded(tmp_path):
    x0, x1 = tables()
    bridge = LightBridge(2, "auto", 1.0)
    assert genflow.spec(bridge)["components"] == "auto" and bridge.location.shape == (1, 2)
    assert build(genflow.spec(bridge)).components == "auto"
    quick(bridge, x0, x1, steps=60, generator=of_seed(2))
    assert genflow.spec(bridge)["components"] == 5
    model = Generator(Gaussian(2), bridge, Exact())
    genflow.save(model, tmp_path / "model.ckpt")
    loaded = genflow.load(tmp_path / "model.ckpt").process
    assert same(loaded, bridge) and torch.equal(loaded.anchors, bridge.anchors)
    assert torch.equal(loaded.plan(x0[:4]).mean, bridge.plan(x0[:4]).mean)
    quick(bridge, x0, x1)  # the choice has been made
    assert bridge.components == 5 and bridge.history.choices == []
    assert set(dict(bridge.named_parameters())) == set(dict(LightBridge(2, 5, 1.0).named_parameters()))


@pytest.mark.parametrize(("dtype", "family"), [(torch.float32, "isotropic"), (torch.float64, "full")])
def test_parameters_are_fresh_and_of_the_same_kind(dtype, family):
    bridge = quick(LightBridge(2, "auto", 1.0, family).to(dtype), *tables(100), steps=20)
    assert all(p.dtype == dtype for p in bridge.parameters())
    assert bridge.covariances().shape == (bridge.components, 2, 2)
    bridge.requires_grad_().objective(*tables(50)).backward()
    assert all(p.grad is not None for p in bridge.parameters())


def test_choices_repeat():
    x0, x1 = tables(150)
    ends = [auto(x0, x1, generator=of_seed(k)) for k in (1, 1, 2)]
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])
    assert ends[0].history.choices == ends[1].history.choices != ends[2].history.choices


def test_a_choice_draws_nothing_global():
    bridge, state = LightBridge(2, "auto", 1.0), torch.get_rng_state()
    quick(bridge, *tables(200), steps=20)
    assert torch.equal(state, torch.get_rng_state())


def test_only_the_last_fit_is_told(capsys):
    seen = []
    bridge = auto(*tables(200), callback=lambda b, k: seen.append((b, k)), progress=True)
    assert [k for _, k in seen] == list(range(len(bridge.history)))
    assert all(b is bridge for b, _ in seen)
    capsys.readouterr()


# Few rows


@pytest.mark.parametrize("rows", [2, 3, 9])
def test_rows_too_few_to_choose_by_take_one(rows):
    bridge = auto(*tables(rows))
    assert bridge.components == 1 and bridge.history.choices == []
    assert bridge.objective(*tables(rows)).isfinite()


def test_few_rows_are_enough():
    bridge = auto(*tables(12))
    assert [c.components for c in bridge.history.choices] == [1, 2]
    assert bridge.objective(*tables(12)).isfinite()


def test_bad_rows_are_refused_before_any_trial():
    x0, x1 = tables(20)
    bridge = LightBridge(2, "auto", 1.0)
    with pytest.raises(ValueError, match="x1 is constant"):
        bridge.fit(x0, torch.ones(20, 2))
    with pytest.raises(ValueError, match="restart=False needs"):
        bridge.fit(x0, x1, restart=False)
    assert bridge.components == "auto"


# In a training


def test_a_training_chooses_before_it_begins(tmp_path):
    model = Generator(Gaussian(2), LightBridge(2, "auto", 1.0), Exact())
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    part = Training(model, LightBridgeKL(), adam)
    data = DataModule(Simulated(Gaussian(2), BLOBS), batch_size=64, val_batches=1)
    trainer(tmp_path, 0).fit(part, data)
    process = part.model.process
    assert process.components == len(process.location) == 5 and process.history.choices
    held = {p for group in part.optimizers().optimizer.param_groups for p in group["params"]}
    assert held == set(process.parameters())


def test_numbers_of_another_count_load_into_auto():
    made = LightBridge(2, 7, 1.0).anchor(torch.randn(9, 2, generator=of_seed(0)))
    read = LightBridge(2, "auto", 1.0)
    read.load_state_dict(made.state_dict())
    assert read.components == 7 and read.anchors.shape == (9, 2)
    torch.testing.assert_close(read.location, made.location)
