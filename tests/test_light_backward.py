"""Light bridges backwards in time: anchors, scores, densities, and ways back."""

import math

import pytest
import torch
from laws import moment_scores
from lights import FAMILIES, double, energy_score, grid, light, log_transition, states
from torch import distributions as D

import genflow
from genflow.model import Generator
from genflow.process import LightBridge
from genflow.process.light import anchors
from genflow.solver import Euler, Exact
from genflow.source import Gaussian

every_family = pytest.mark.parametrize("family", FAMILIES)


def close(found, want, tolerance=1e-9):
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


def anchored(family="diagonal", dim=3, n=12, **options):
    """A bridge with anchors, its numbers, and the anchors."""
    made, numbers = light(family, dim, **options)
    x0 = states(dim, n, 5)
    return made.anchor(x0), numbers, x0


def density(numbers, x0, t, x):
    """Log of the mean over anchors of the published transition."""
    each = [log_transition(numbers, 0.0, t, v.expand_as(x), x) for v in x0]
    return torch.stack(each).logsumexp(0) - math.log(len(x0))


# Densities, scores and drifts


@every_family
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9, 1.0])
def test_the_density_is_that_of_paths_from_the_anchors(family, t):
    made, numbers, x0 = anchored(family)
    x = states(3, 15)
    want = density(numbers, x0, t, x)
    close(made.log_density(t, x), want)
    close(made.log_density(torch.full((15,), t, dtype=double), x), want)
    each = torch.stack([made.log_prob_at(t, x, v.expand(15, 3)) for v in x0])
    close(each.logsumexp(0) - math.log(12), want)


@every_family
def test_the_score_is_the_gradient_of_the_density(family):
    made, numbers, x0 = anchored(family)
    for t in (0.05, 0.4, 0.9, 1.0):
        place = states(3, 9).requires_grad_()
        want = torch.autograd.grad(density(numbers, x0, t, place).sum(), place)[0]
        for way in (torch.no_grad(), torch.enable_grad()):
            with way:
                close(made.score(t, place.detach()), want, 1e-8)
                back = made.drift(t, place.detach()) - made.epsilon * want
                close(made.backward_drift(t, place.detach()), back, 1e-8)
        start = x0[:9]
        want = torch.autograd.grad(log_transition(numbers, 0.0, t, start, place).sum(), place)[0]
        close(made.score(t, place.detach(), start), want, 1e-8)
    with torch.no_grad():
        assert (made.score(0.4, place) - made.drift(0.4, place) / made.epsilon).abs().max() > 0.1


@every_family
@pytest.mark.parametrize("dim", [2, (1, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, double], ids=str)
def test_times_by_row_and_shapes(family, dim, dtype):
    made, _, _ = anchored(family, dim)
    x, near = states(dim, 6).to(dtype), 1e-10 if dtype == double else 3e-5
    times = torch.tensor([0.01, 0.2, 0.5, 0.7, 0.99, 1.0], dtype=dtype)
    for ask in (
        lambda t, v: made.score(t, v), lambda t, v: made.backward_drift(t, v),
        lambda t, v: made.log_density(t, v), lambda t, v: made.score(t, v, v / 2),
    ):  # fmt: skip
        rows = torch.cat([ask(float(t), v[None]) for t, v in zip(times, x)])
        found = ask(times, x)
        assert found.dtype == dtype and found.shape in ((6,), x.shape)
        close(found, rows, near)
    for t in (0.0, torch.linspace(0, 1, 6)):  # a law of points has no score at 0: that of early times
        for answer in (made.score(t, x), made.backward_drift(t, x)):
            assert bool(answer.isfinite().all())
    close(made.score(0.0, x), made.score(anchors.EARLY, x), near)
    close(made.backward_drift(0.0, x), made.backward_drift(anchors.EARLY, x), near)


def test_the_density_integrates_to_one():
    made, _, _ = anchored("diagonal", 1, epsilon=0.3)
    line, cell = grid(15.0, 8001)
    for t in (0.1, 0.5, 1.0):
        total = made.log_density(t, line).detach().exp().sum() * cell
        assert float(total) == pytest.approx(1, abs=1e-9)


def test_chunks_and_precision_do_not_change_answers(monkeypatch):
    made, _, _ = anchored("full", 3, 50)
    x, t = states(3, 23), torch.linspace(0.1, 1, 23, dtype=double)

    def answers():
        return made.log_density(t, x), made.backward_drift(t, x), made.log_density(0.3, x)

    with torch.no_grad():
        want = answers()
        monkeypatch.setattr(anchors, "CHUNK", 200)
        assert len(made._parts(t, x)) > 5
        for a, b in zip(answers(), want):
            close(a, b, 1e-12)
        n = 4000
        far = made.transition(
            t[:1].expand(n), 0.0, x[:1].expand(n, 3), torch.Generator().manual_seed(0)
        )
        near = made.transition(
            t[:1].expand(9), 0.0, x[:1].expand(9, 3), torch.Generator().manual_seed(0)
        )
    assert len(far.unique(dim=0)) > 5 and len(near) == 9


# Ways back


def test_two_anchors_are_returned_to_with_the_odds_of_bayes():
    made, numbers = light("diagonal", 1, epsilon=0.5)
    x0 = torch.tensor([[-0.5], [0.8]], dtype=double)
    made.anchor(x0)
    n = 20_000
    for t, x in ((0.3, 0.1), (1.0, 0.4)):
        place = torch.full((2, 1), x, dtype=double)
        odds = log_transition(numbers, 0.0, t, x0, place).softmax(0)
        assert 0.1 < float(odds[0]) < 0.9
        back = made.transition(t, 0.0, place[:1].expand(n, 1), torch.Generator().manual_seed(0))
        close(back.unique(), x0[:, 0], 1e-12)
        share = float((back < 0).double().mean())
        error = float((odds[0] * odds[1] / n).sqrt())
        assert abs(share - float(odds[0])) < 4.5 * error
        alone = (-((place - x0) ** 2) / (2 * made.epsilon * t))[:, 0].softmax(
            0
        )  # without the potential
        assert abs(share - float(alone[0])) > 4.5 * error


@pytest.mark.parametrize("s", [1.0, 0.6])
def test_ways_back_follow_the_distribution_function_of_bayes(s):
    # p(x_t | x_s) is proportional to p_t(x_t) p(x_s | x_t), on a line
    made, numbers, x0 = anchored("diagonal", 1, n=3, epsilon=0.3)
    line, cell = grid(8.0, 2001)
    x, t, n = torch.tensor([[0.3]], dtype=double), 0.25, 30_000
    logs = density(numbers, x0, t, line) + log_transition(numbers, t, s, line, x.expand_as(line))
    below = logs.softmax(0).cumsum(0)
    draw = torch.Generator().manual_seed(0)
    for times in ((s, t), (torch.full((n,), s), torch.full((n,), t))):
        back = made.transition(*times, x.expand(n, 1), draw)[:, 0].sort().values
        gap = (torch.searchsorted(back, line[:, 0] + cell / 2) / n - below).abs().max()
        assert gap < 1.95 / n**0.5  # Kolmogorov, one in a thousand
        late = torch.searchsorted(back + 0.1 * back.std(), line[:, 0] + cell / 2) / n - below
        assert late.abs().max() > 1.95 / n**0.5


@every_family
def test_forward_and_back_have_the_same_law(family, generator):
    made, _, x0 = anchored(family, n=8)
    n = 15_000
    starts = x0[torch.randint(8, (n,), generator=generator)]
    forward = made.sample_path(starts, [0.0, 0.3, 0.7, 1.0], generator)
    back = [made.transition(0.0, 1.0, starts, generator)]
    for s, t in ((1.0, 0.7), (0.7, 0.3), (0.3, 0.0)):
        back.append(made.transition(s, t, back[-1], generator))
    back = back[::-1]
    close(torch.cdist(back[0][:200], x0).min(1).values, torch.zeros(200, dtype=double), 1e-6)
    for k in range(3):  # pairs of neighbours: a joint law
        there = torch.cat([forward[k], forward[k + 1]], 1)
        again = torch.cat([back[k], back[k + 1]], 1)
        assert moment_scores(there, again) < 4.5
    there, again = (torch.cat([v[0], v[3]], 1)[:700] for v in (forward, torch.stack(back)))
    assert energy_score(there, again) < 4
    mixed = torch.cat([back[0], back[3].roll(1, 0)], 1)[:700]  # the laws of the ends alone
    assert moment_scores(torch.cat([forward[0], forward[3]], 1)[:700], mixed) > 4.5


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_euler_runs_back_as_exact_steps_do(family):
    made, _ = light(family, 2)
    model = Generator(Gaussian(2), made, Exact())
    draw = torch.Generator().manual_seed(0)
    source = torch.randn(200, 2, generator=draw, dtype=double)
    made.anchor(source)
    start = source.repeat(20, 1)
    x1 = model.sample(x0=start, generator=draw)
    times = torch.linspace(1, 0.1, 50)
    options = {"x0": x1, "reverse": True, "generator": draw}
    exact = model.sample(**options, times=[1.0, 0.5, 0.1])
    euler = model.sample(**options, solver=Euler(), times=times)
    straight = made.sample_at(start, 0.1, draw)
    assert moment_scores(exact, straight) < 4.5
    assert moment_scores(euler, straight) < 5
    assert moment_scores(exact, x1) > 5
    home = model.sample(**options)
    close(torch.cdist(home[:100], source).min(1).values, torch.zeros(100, dtype=double), 1e-6)


def test_ways_back_follow_the_generator():
    made, _, _ = anchored()
    x = states(3, 5)
    state = torch.get_rng_state()
    found = [made.transition(1, 0.4, x, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state) and not found[0].requires_grad
    made.transition(1, 0.4, x)
    assert not torch.equal(torch.get_rng_state(), state)
    assert made.transition(1, 0.4, x.float()).dtype == torch.float32
    assert not made.transition(1, 0.4, x.requires_grad_()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, double], ids=str)
def test_ways_back_of_a_small_epsilon(dtype):
    # log-odds of thousands: each row's own anchor, found again
    made, _ = light("diagonal", 2, epsilon=0.002, least=0.9, most=1.1, spread=0.1)
    x0 = 5 * states(2, 30)
    made = made.to(dtype).anchor(x0)
    x0 = x0.to(dtype)
    x1 = made.sample_at(x0, 1.0, torch.Generator().manual_seed(0))
    close(made.transition(1.0, 0.0, x1, torch.Generator().manual_seed(0)), x0, 1e-5)
    for answer in (made.log_density(1.0, x1), made.score(0.0, x0), made.backward_drift(1.0, x1)):
        assert bool(answer.isfinite().all())


# Anchors


@every_family
def test_anchors_are_saved_with_the_bridge(family, tmp_path):
    made, _, x0 = anchored(family, (1, 2, 2))
    made = made.float()
    x = states((1, 2, 2), 4).float()
    fresh = LightBridge((1, 2, 2), 4, made.epsilon, family, made.rank)
    fresh.load_state_dict(made.state_dict())
    again, _, _ = anchored(family, (1, 2, 2), 40, seed=3)  # of another number
    again.float().load_state_dict(made.state_dict())
    genflow.save(made, tmp_path / "bridge.ckpt")
    for other in (fresh, again, genflow.load(tmp_path / "bridge.ckpt")):
        close(other.anchors, x0.flatten(1).float(), 0)
        assert torch.equal(other.log_density(0.5, x), made.log_density(0.5, x))
        with torch.no_grad():
            assert torch.equal(other.backward_drift(0.5, x), made.backward_drift(0.5, x))
    bare = LightBridge((1, 2, 2), 4, made.epsilon, family, made.rank)
    fresh = LightBridge((1, 2, 2), 4, made.epsilon, family, made.rank)
    fresh.load_state_dict(bare.state_dict())
    assert "anchors" not in bare.state_dict() and fresh.anchors is None


def test_anchors_are_copies_and_not_too_many():
    made, most = LightBridge(2, 3, 0.5), anchors.MOST
    for dtype, n in ((torch.float32, 4 * most), (double, most + 10), (double, 7)):
        rows = torch.arange(n, dtype=double)[:, None].repeat(1, 2)
        assert made.to(dtype).anchor(rows) is made
        rows += 0.5
        kept = made.anchors[:, 0]
        assert made.anchors.dtype == dtype and made.anchors.shape == (min(n, most), 2)
        assert torch.equal(kept, kept.round()) and torch.equal(kept, made.anchors[:, 1])
        # of a sorted table from everywhere
        assert kept[0] == 0 and kept[-1] == n - 1 and 1 <= kept.diff().min()
        assert kept.diff().max() <= 1 + n / most
    assert made.reversible


def test_without_anchors_it_says_what_is_missing():
    made, x = LightBridge(2, 3, 0.5), torch.zeros(4, 2)
    for ask in (
        lambda: made.score(0.5, x),
        lambda: made.backward_drift(0.5, x),
        lambda: made.log_density(0.5, x),
        lambda: made.transition(1.0, 0.0, x),
        lambda: Exact().solve(made, x, [1.0, 0.0]),
    ):
        with pytest.raises(ValueError, match=r"call bridge.anchor\(x0\) with rows of the source"):
            ask()
    assert made.score(0.5, x, x).shape == (4, 2)  # of paths from given starts none is needed
    for t in (0.0, torch.tensor([0.0, 0.5, 0.5, 1.0])):
        with pytest.raises(ValueError, match="no density at t = 0"):
            made.anchor(x).log_density(t, x)


def test_one_anchor_is_a_brownian_bridge_back():
    made, _ = light("full", 2)
    x0, n = torch.tensor([[0.4, -1.0]], dtype=double), 20_000
    x = torch.tensor([[1.5, 0.3]], dtype=double)
    back = made.anchor(x0).transition(0.8, 0.3, x.expand(n, 2), torch.Generator().manual_seed(0))
    share = 0.3 / 0.8
    want = D.Normal(x0 + share * (x - x0), (made.epsilon * 0.3 * 0.5 / 0.8) ** 0.5)
    z = (back - want.mean) / want.stddev
    assert (
        moment_scores(z, torch.randn(n, 2, dtype=double, generator=torch.Generator().manual_seed(1)))
        < 4.5
    )
