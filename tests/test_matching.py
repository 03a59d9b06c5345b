"""Matching: stationarity at the truth, weights, conditions, refusals."""

from dataclasses import dataclass

import pytest
import torch
from fields import Affine
from gaussians import draw, fields, pair, tilted
from torch import nn

from genflow.coupling import ExactOT, Gibbs, Independent, Plan, Sinkhorn
from genflow.coupling.base import Coupling
from genflow.interpolant import BrownianBridge, Linear, SinSquared
from genflow.loss import Matching, On, Sum
from genflow.network import MLP
from genflow.process import SDE
from genflow.target import Denoised, Drift, Noise, Rate, Velocity
from genflow.time import LogitNormal, Time, Uniform

DIM = (1, 4, 4)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def batches(n=16, m=16, shape=(2,), dtype=torch.float32, seed=0):
    generator = seeded(seed)
    x0 = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x0, 1 + torch.randn(m, *shape, generator=generator, dtype=dtype)


@dataclass(frozen=True)
class Doubled(Coupling):
    """Rows as they come, weighted by ``factor`` (a coupling whose weight is known)."""

    factor: float = 2.0

    def __call__(self, *xs, cond=None, generator=None):
        rows = torch.arange(len(xs[0]))
        return Plan((rows, rows), self.factor * xs[0].new_ones(len(rows)))


@dataclass(frozen=True)
class Halved(Time):
    """Uniform times of weight one half."""

    def __call__(self, x, generator=None):
        t, weight = Uniform()(x, generator)
        return t, weight / 2


def simple(t, x, cond=None):
    return 0.3 * x + t.reshape(-1, *[1] * (x.ndim - 1))


class Truth(nn.Module):
    """The analytic velocity of a Gaussian pair plus a trainable error, zero at the start."""

    def __init__(self, law, path, field):
        super().__init__()
        self.law, self.path, self.field = law, path, field
        self.error = nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))

    def forward(self, t, x, cond=None):
        def one_row(s, point):
            slope, intercept = fields(self.law, self.path.coefficients(s[None]))[self.field]
            return slope @ point + intercept

        basis = torch.stack([torch.ones_like(t), x[:, 0], x[:, 1]], 1)
        return torch.func.vmap(one_row)(t, x) + torch.cat([basis, t[:, None] * basis], 1) @ self.error


def z_score(loss, learner, law, repeats=40, size=1000):
    """Largest coordinate of the loss's mean gradient at the learner, in standard errors."""
    generator, gradients = seeded(7), []
    for _ in range(repeats):
        value = loss(learner, *draw(law, size, generator), generator=generator)
        gradients.append(torch.autograd.grad(value, learner.error)[0])
    gradients = torch.stack(gradients)
    return float((gradients.mean(0) / (gradients.std(0) / repeats**0.5)).abs().max())


@pytest.mark.parametrize("path", [Linear(gamma=SinSquared()), BrownianBridge(0.8)], ids=str)
def test_the_gradient_vanishes_at_the_true_field_alone(path):
    # |z| < 4.5; the rate in place of the velocity (no gamma') is the mistake to catch
    loss = Matching(path, time=Uniform(margin=0.1))
    assert z_score(loss, Truth(pair(True), path, "velocity"), pair(True)) < 4.5
    assert z_score(loss, Truth(pair(True), path, "rate"), pair(True)) > 9


def test_the_gradient_of_weighted_matching_vanishes_at_the_tilted_field_alone():
    path, law, epsilon = Linear(), pair(), 4.0
    loss = Matching(path, Gibbs(epsilon))
    assert z_score(loss, Truth(tilted(law, 1 / epsilon), path, "velocity"), law) < 4.5
    assert z_score(loss, Truth(law, path, "velocity"), law) > 9


@pytest.mark.parametrize("target", [Velocity(), Rate(), Denoised(), Noise(), Drift(0.5)], ids=str)
def test_value_is_the_weighted_mean_square(target):
    loss = Matching(BrownianBridge(0.5), Gibbs(1.0), LogitNormal(reweight=True), target)
    xs = batches(shape=DIM)
    drawn = loss.draw(*xs, generator=seeded())
    error = (simple(drawn.sample.t, drawn.sample.x) - target(drawn.sample)) ** 2
    expected = (drawn.weight * error.flatten(1).mean(1)).mean()
    torch.testing.assert_close(loss(simple, *xs, generator=seeded()), expected)


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 4, 2)], ids=str)
def test_value_does_not_depend_on_the_event_shape(shape):
    x0, x1 = batches()
    wide = [
        x.reshape(16, 1, 1, 2).expand(16, 1, 4, 2) if shape[1] == 4 else x.reshape(16, *shape)
        for x in (x0, x1)
    ]
    values = [Matching()(simple, *xs, generator=seeded()) for xs in ((x0, x1), wide)]
    torch.testing.assert_close(values[0], values[1])


def test_weights_of_coupling_and_time_multiply():
    xs = batches()
    plain = Matching()(simple, *xs, generator=seeded())
    for coupling, time, factor in (
        (Doubled(3.0), Uniform(), 3.0),
        (Independent(), Halved(), 0.5),
        (Doubled(3.0), Halved(), 1.5),
    ):
        weighted = Matching(coupling=coupling, time=time)(simple, *xs, generator=seeded())
        torch.testing.assert_close(weighted, factor * plain)


class Heads(nn.Module):
    """Two fields as one learner."""

    def __init__(self):
        super().__init__()
        self.velocity, self.noise = MLP(2, 8), MLP(2, 8)

    def forward(self, t, x, cond=None):
        return {"velocity": self.velocity(t, x), "noise": self.noise(t, x)}


def test_several_targets_share_one_draw():
    torch.manual_seed(0)
    path, heads, xs = BrownianBridge(), Heads(), batches()
    targets = {"velocity": Velocity(), "noise": Noise()}
    both = Matching(path, target=targets)(heads, *xs, generator=seeded())
    single = [
        Matching(path, target=target)(getattr(heads, name), *xs, generator=seeded())
        for name, target in targets.items()
    ]
    torch.testing.assert_close(both, single[0] + single[1])
    both.backward()
    assert all(bool(p.grad.any()) for p in heads.parameters())


@pytest.mark.parametrize(
    "coupling", [Independent(), ExactOT(), Sinkhorn(), Gibbs(1.0)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("sizes", [(16, 16), (16, 24), (24, 16)], ids=str)
def test_conditions_follow_their_rows(coupling, sizes):
    x0, x1 = batches(*sizes)
    seen = {}

    def learner(t, x, cond):
        seen["cond"] = cond
        return torch.zeros_like(x)

    loss = Matching(Linear(), coupling)
    loss(learner, x0, x1, cond=x1 + 7, generator=seeded())
    drawn = loss.draw(x0, x1, cond=x1 + 7, generator=seeded())
    assert torch.equal(seen["cond"], drawn.cond) and torch.equal(drawn.cond, drawn.sample.xs[1] + 7)
    assert len(drawn.cond) == max(sizes)


def test_labels_reach_a_network():
    network = MLP(2, 8, classes=3)
    labels = torch.arange(16) % 3
    Matching(coupling=ExactOT())(network, *batches(), cond=labels).backward()
    assert network.label.weight.grad.any(1).all()


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(2,), DIM], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_the_network_through_its_process(dtype, shape, sigma):
    process = SDE(MLP(shape, 8), sigma).to(dtype)
    loss = Matching(BrownianBridge(0.5), Sinkhorn(0.5), target=Drift(sigma))
    value = loss(process, *batches(12, 20, shape, dtype), generator=seeded())
    assert value.shape == () and value.dtype == dtype and value.isfinite()
    value.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in process.parameters())


@pytest.mark.parametrize(
    "coupling", [Independent(), ExactOT(), Sinkhorn(), Gibbs(1.0)], ids=lambda c: type(c).__name__
)
def test_the_generator_rules_the_value(coupling):
    loss = Matching(BrownianBridge(), coupling)
    values = [loss(simple, *batches(12, 20), generator=seeded(s)) for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_learning_lowers_the_loss():
    law = pair()
    network = Affine([[0.0, 0.0], [0.0, 0.0]])
    optimizer, generator = torch.optim.Adam(network.parameters(), 0.05), seeded()
    xs = draw(law, 4_000, generator)
    before = Matching()(network, *xs, generator=seeded())
    for _ in range(100):
        optimizer.zero_grad()
        Matching()(network, *draw(law, 256, generator), generator=generator).backward()
        optimizer.step()
    assert Matching()(network, *xs, generator=seeded()) < 0.9 * before


def test_sum_weighs_its_terms():
    xs, terms = batches(), [Matching(), Matching(target=Denoised())]
    # equal draws: the generator's state runs on from the first term to the second
    generator = seeded()
    values = [loss(simple, *xs, generator=generator) for loss in terms]
    torch.testing.assert_close(Sum(terms)(simple, *xs, generator=seeded()), values[0] + values[1])
    weighted = Sum(terms, [2.0, 0.5])(simple, *xs, generator=seeded())
    torch.testing.assert_close(weighted, 2 * values[0] + 0.5 * values[1])


def test_on_finds_a_part_by_its_path():
    torch.manual_seed(0)
    holder = nn.ModuleDict({"heads": Heads()})
    holder.parts = holder["heads"]
    value = On("parts.noise", Matching())(holder, *batches(), generator=seeded())
    torch.testing.assert_close(value, Matching()(holder.parts.noise, *batches(), generator=seeded()))
    value.backward()
    assert all(p.grad is None for p in holder.parts.velocity.parameters())


def test_preparation_reaches_the_coupling_through_combinators():
    losses = [Matching(coupling=Gibbs()), On("noise", Matching(coupling=Gibbs()))]
    xs = batches(200, 200)
    assert Sum(losses).prepare(*xs) is not None
    assert losses[0].coupling.epsilon == losses[1].loss.coupling.epsilon > 0
    found = Sum(losses).diagnose(*xs)
    assert found["ess"] == pytest.approx(0.5, abs=0.15)
    assert Matching().diagnose(*xs)["ess"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Matching(interpolant=Uniform()), TypeError, "interpolant must be a Interpolant"),
        (lambda: Matching(coupling=Linear()), TypeError, "coupling must be a Coupling"),
        (lambda: Matching(time=0.5), TypeError, "time must be a Time"),
        (lambda: Matching(target=Linear()), TypeError, "target must be a Target"),
        (lambda: Matching(target={"a": None}), TypeError, "target must be a Target"),
        (lambda: Sum([]), ValueError, "at least one loss"),
        (lambda: Sum([Matching()], [1.0, 2.0]), ValueError, "2 weights for 1 losses"),
    ],
)
def test_bad_parts_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "learner, xs, cond, error, words",
    [
        (simple, batches(0, 4), None, ValueError, "x0 is empty"),
        (simple, (torch.zeros(4, 2), torch.zeros(4, 3)), None, ValueError, "x1 has event shape"),
        (simple, (torch.zeros(4, 2).long(),) * 2, None, TypeError, "x0 must be a floating"),
        (simple, (torch.zeros(4, 2),), None, ValueError, "at least two marginals"),
        (simple, (torch.zeros(4, 2),) * 3, None, ValueError, "two marginals"),
        (simple, batches(4, 4), torch.zeros(3), ValueError, "cond of x1 must be .* got 3 rows"),
        (
            lambda t, x: x[:, :1],
            batches(4, 4),
            None,
            ValueError,
            r"returned \(4, 1\), expected \(4, 2\)",
        ),
        (lambda t, x: x.sum(), batches(4, 4), None, ValueError, r"returned \(\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(learner, xs, cond, error, words):
    with pytest.raises(error, match=words):
        Matching()(learner, *xs, cond=cond)


@pytest.mark.parametrize("learner", [simple, lambda t, x: {"velocity": x}])
def test_a_learner_without_the_right_heads_is_refused(learner):
    loss = Matching(BrownianBridge(), target={"velocity": Velocity(), "noise": Noise()})
    with pytest.raises(ValueError, match=r"dict with keys \['noise', 'velocity'\]"):
        loss(learner, *batches())


def test_an_unprepared_coupling_is_refused():
    with pytest.raises(ValueError, match="loss.prepare"):
        Matching(coupling=Gibbs())(simple, *batches())


@pytest.mark.parametrize(
    "coupling", [Independent(), Gibbs(1.0), ExactOT()], ids=lambda c: type(c).__name__
)
def test_a_first_marginal_that_is_no_tensor_is_refused(coupling):
    with pytest.raises(TypeError, match="x0 must be a floating-point tensor, got list"):
        Matching(coupling=coupling).draw([[0.0, 0.0]], torch.zeros(1, 2))
