"""Families of drifts against plain numpy, differences and forward-mode derivatives."""

import math

import numpy as np
import pytest
import torch
from mm_pairs import normal, rows, slopes
from torch import nn

from genflow import process, specs
from genflow.network import MLP
from genflow.process.multimarginal.ready import check_reference
from genflow.process.reference import (
    Brownian,
    GradientField,
    Learned,
    LotkaVolterra,
    OrnsteinUhlenbeck,
    Reference,
    Repressilator,
    Vortex,
)

double = torch.float64


def shaken(reference, seed=0):
    """With no parameter where it started: layers that start at zero hide mistakes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in reference.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draw, dtype=double)
    return reference


MAKE = {
    "brownian": lambda: Brownian(3),
    "ou": lambda: OrnsteinUhlenbeck(2, [[-0.5, 1.2], [-0.7, 0.3]], [0.4, -1.0]),
    "lotka_volterra": lambda: LotkaVolterra(1.1, 0.4, 0.5, 0.2),
    "repressilator": lambda: Repressilator(10.0, 3.0, 1.2, 0.9),
    "genes_apart": lambda: Repressilator(
        [10.0, 8.0, 9.0, 7.0], [3.0, 2.0, 2.5, 1.5], [1.0, 1.3, 0.8, 2.0], [1.0, 0.9, 1.1, 0.5], 4
    ),
    "vortex": lambda: Vortex(0.8, (0.2, -0.3), 0.4, -0.2),
    "vortex_core": lambda: Vortex(0.8, (0.2, -0.3), 0.4, -0.2, core=0.9),
    "gradient": lambda: shaken(GradientField(3, 8, 2)),
    "tanh_gradient": lambda: shaken(GradientField(2, 8, 1, "tanh")),
    "learned": lambda: Learned(MLP(2, width=8, depth=2), 2),
}
FAMILIES = pytest.mark.parametrize("name", MAKE)
PLAIN = [n for n in MAKE if "gradient" not in n and n != "learned"]
AFFINE = ["brownian", "ou", "lotka_volterra"]


def at(reference, n=7):
    """States of both signs, off the kinks."""
    return 1.5 * normal(n, reference.dim, seed=5) + 0.2, torch.linspace(0.1, 0.9, n, dtype=double)


# The papers' formulas, one state at a time


def lotka_volterra(x, alpha, beta, gamma, delta):
    return [alpha * x[0] - beta * x[0] * x[1], delta * x[0] * x[1] - gamma * x[1]]


def repressilator(x, beta, n, k, gamma):
    beta, n, k, gamma = (np.broadcast_to(v, len(x)) for v in (beta, n, k, gamma))
    before = [max(x[i - 1], 0) + 1e-8 for i in range(len(x))]
    return [beta[i] / (1 + (before[i] / k[i]) ** n[i]) - gamma[i] * x[i] for i in range(len(x))]


def vortex(x, strength, centre, log_aspect, divergence, core=None):
    a, b = x[0] - centre[0], x[1] - centre[1]
    turn = strength
    if core is not None:
        q = (a**2 + b**2) / core**2
        turn = strength * (1 - math.exp(-q)) / q
    return [
        turn * b * math.exp(-log_aspect) + divergence * a,
        -turn * a + divergence * b,
    ]


def linear(x, matrix, shift):
    return np.asarray(matrix) @ x + shift


FORMULAS = {
    "brownian": lambda x: 0 * x, "ou": linear, "lotka_volterra": lotka_volterra,
    "repressilator": repressilator, "genes_apart": repressilator, "vortex": vortex,
    "vortex_core": vortex,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_drifts_are_those_of_the_papers(name):
    reference = MAKE[name]()
    x, t = at(reference)
    want = np.array([FORMULAS[name](state, **reference.numbers()) for state in x.numpy()])
    np.testing.assert_allclose(reference(t, x).detach(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reference.drift(0.3, x).detach(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        reference.field(t, x, reference.values()).detach(), want, rtol=1e-12, atol=1e-12
    )


def test_the_truth_of_the_papers():
    # at (5, 4): 5 - 8 and 2 - 1.6; at (2, 1, 0): 10/(1 + 0) - 2, 10/9 - 1, 10/2
    found = LotkaVolterra(1.0, 0.4, 0.4, 0.1)(0.0, rows([5.0, 4.0]))
    torch.testing.assert_close(found.detach(), rows([-3.0, 0.4]))
    found = Repressilator(10.0, 3.0, 1.0, 1.0)(0.0, rows([2.0, 1.0, 0.0]))
    torch.testing.assert_close(found.detach(), rows([8.0, 10 / 9 - 1, 5.0]), rtol=0, atol=1e-6)


def test_a_wide_core_is_a_solid_body_and_the_centre_of_a_core_is_finite():
    x = rows([0.3, 0.7], [-1.0, 0.1])
    solid, wide = Vortex(0.8, (0.2, 0.1), 0.3), Vortex(0.8, (0.2, 0.1), 0.3, core=1e3)
    torch.testing.assert_close(wide(0.0, x), solid(0.0, x), rtol=1e-6, atol=0)
    narrow = Vortex(0.8, (0.2, 0.1), 0.3, 0.5, core=0.5)
    centre = rows([0.2, 0.1])
    assert not narrow(0.0, centre).any()
    want = Vortex(0.8, (0.2, 0.1), 0.3, 0.5).jacobian(0.0, centre)
    torch.testing.assert_close(narrow.jacobian(0.0, centre), want)
    # far off, the speed falls as one over the distance
    far = Vortex(0.8, core=0.5)(0.0, rows([10.0, 0.0], [20.0, 0.0])).detach().norm(dim=1)
    assert float(far[0] / far[1]) == pytest.approx(2)


def test_a_gradient_field_is_the_gradient_of_its_potential():
    reference = MAKE["gradient"]()
    x, _ = at(reference)

    def potential(z):
        for layer in reference.potential:
            z = layer(z)
        return z

    want = slopes(potential, x)[:, 0]
    torch.testing.assert_close(reference(0.0, x), want, rtol=0, atol=1e-8)
    assert not GradientField(3)(0.0, x).any()  # where it starts, there is no drift
    with torch.no_grad():
        assert not reference(0.0, x).requires_grad


def test_learned_is_the_network_with_one_time_a_row():
    seen = []

    class Clock(nn.Module):
        def forward(self, t, x):
            seen.append(t)
            return t[:, None] * x

    reference = Learned(Clock(), 2)
    x = rows([1.0, 2.0], [3.0, 4.0])
    torch.testing.assert_close(reference(0.5, x), x / 2)
    torch.testing.assert_close(reference(rows(0.5, 2.0), x), rows([0.5, 1.0], [6.0, 8.0]))
    assert [t.shape for t in seen] == [(2,), (2,)] and seen[0].dtype == double
    network = MLP(2, width=4, depth=1)
    assert {p.dtype for p in Learned(network, 2).parameters()} == {double}
    with torch.no_grad():
        torch.testing.assert_close(Learned(network, 2)(0.5, x), network(rows(0.5, 0.5), x))


# Jacobians


@FAMILIES
def test_jacobians_are_central_differences(name):
    reference = MAKE[name]()
    x, t = at(reference)
    found = reference.jacobian(t, x)
    want = slopes(lambda z: reference(t, z).detach(), x)
    assert found.shape == (len(x), reference.dim, reference.dim)
    torch.testing.assert_close(found.detach(), want, rtol=1e-6, atol=1e-7)
    if name not in ("brownian", "gradient", "tanh_gradient"):  # those of gradients are symmetric
        assert (found.mT - want).abs().max() > 1e-2
    with torch.no_grad():
        again = reference.jacobian(t, x)
    assert again.grad_fn is None
    torch.testing.assert_close(again, found.detach())


@FAMILIES
def test_jacobians_are_forward_mode_derivatives(name):
    reference = MAKE[name]()
    x, _ = at(reference)
    if "gradient" in name:  # its drift is itself a derivative: the Hessian of its potential
        derive = torch.func.hessian(lambda z: reference.potential(z)[0])
    else:
        derive = torch.func.jacfwd(lambda z: reference(0.4, z[None])[0])
    want = torch.stack([derive(row) for row in x])
    torch.testing.assert_close(reference.jacobian(0.4, x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["repressilator", "genes_apart"])
def test_states_below_zero_neither_repress_nor_bend(name):
    reference = MAKE[name]()
    x = -at(reference)[0].abs()
    slope = reference.jacobian(0.0, x).detach()
    gamma = reference.values()["gamma"].detach()
    torch.testing.assert_close(slope, -torch.diag_embed(gamma.expand_as(x)))
    # inside the Hill term they count as 0; the state itself is not clipped
    values = reference.values()
    want = values["beta"] - values["gamma"] * x
    torch.testing.assert_close(reference(0.0, x), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["repressilator", "genes_apart"])
def test_no_gradient_is_lost_at_zero(name):
    reference = MAKE[name]()
    x = torch.zeros(2, reference.dim, dtype=double, requires_grad=True)
    total = reference(0.0, x).sum() + reference.jacobian(0.0, x).square().sum()
    for g in torch.autograd.grad(total, [x, *reference.parameters()]):
        assert bool(torch.isfinite(g).all())


# Gradients in parameters


def flat(tensors):
    return torch.cat([v.flatten() for v in tensors])


@FAMILIES
@pytest.mark.parametrize("what", ["drift", "jacobian"])
def test_gradients_in_parameters_are_differences(name, what):
    reference = MAKE[name]()
    parameters = list(reference.parameters())
    if not parameters:
        assert name == "brownian"
        return
    x, t = at(reference)
    weight = normal(*getattr(reference, what)(t, x).shape, seed=2)

    def value():
        return (getattr(reference, what)(t, x) * weight).sum()

    found = flat(torch.autograd.grad(value(), parameters, materialize_grads=True))
    sizes = [p.numel() for p in parameters]
    plain = name in PLAIN
    ways = torch.eye(len(found), dtype=double) if plain else normal(4, len(found), seed=3)
    for way in ways:
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                for p, step in zip(parameters, way.split(sizes)):
                    p += h * step.view_as(p)
                ends.append(value())
                for p, step in zip(parameters, way.split(sizes)):
                    p -= h * step.view_as(p)
        want = float(ends[0] - ends[1]) / 2e-5
        assert float(found @ way) == pytest.approx(want, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", AFFINE)
def test_features_times_parameters_are_the_drift(name):
    reference = MAKE[name]()
    x, t = at(reference)
    features = reference.features(t, x)
    theta = flat([torch.zeros(0, dtype=double), *reference.values().values()])
    assert features.shape == (*x.shape, len(theta))
    torch.testing.assert_close(features @ theta, reference(t, x))
    if len(theta):
        assert (features @ theta.flip(0) - reference(t, x)).abs().max() > 0.1


def test_other_families_have_no_features():
    for name in MAKE.keys() - set(AFFINE):
        reference = MAKE[name]()
        assert reference.features(0.0, at(reference)[0]) is None


ROWS = {
    "ou": {"matrix": (2, 2), "shift": (2,)},
    "lotka_volterra": dict.fromkeys(("alpha", "beta", "gamma", "delta"), ()),
    "repressilator": dict.fromkeys(("beta", "n", "k", "gamma"), (1,)),
    "genes_apart": dict.fromkeys(("beta", "n", "k", "gamma"), (4,)),
    "vortex": {"strength": (), "centre": (2,), "log_aspect": (), "divergence": ()},
    "vortex_core": {"strength": (), "centre": (2,), "log_aspect": (), "divergence": (), "core": ()},
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_may_have_its_own_values(name):
    reference = MAKE[name]()
    x, t = at(reference, 5)
    values = {
        k: 0.5 + torch.rand(5, *shape, generator=torch.Generator().manual_seed(4), dtype=double)
        for k, shape in ROWS[name].items()
    }
    found, slope = reference.field(t, x, values), reference.jacobian(t, x, values)
    for k in range(5):
        own = {name: value[k] for name, value in values.items()}
        torch.testing.assert_close(found[k : k + 1], reference.field(t[k], x[k : k + 1], own))
        torch.testing.assert_close(slope[k : k + 1], reference.jacobian(t[k], x[k : k + 1], own))


@pytest.mark.parametrize("name", PLAIN)
def test_single_precision_stays_single(name):
    reference = MAKE[name]()
    x, t = at(reference)
    found = reference(t.float(), x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference(t, x), rtol=1e-4, atol=1e-4)
    assert reference.jacobian(t.float(), x.float()).dtype == torch.float32


# Parameters by name


def test_names_numbers_and_assign():
    reference = LotkaVolterra()
    assert reference.names == ("alpha", "beta", "gamma", "delta")  # in this order, not sorted
    assert reference.numbers() == pytest.approx(dict.fromkeys(reference.names, 0.01))
    assert reference.assign(beta=0.5, delta=torch.tensor(0.2)) is reference
    assert reference.numbers()["beta"] == pytest.approx(0.5)
    assert reference.numbers()["alpha"] == pytest.approx(0.01)
    assert reference.values()["delta"].requires_grad
    ring = Repressilator([1.0, 2.0, 3.0]).assign(beta=[4.0, 5.0, 6.0])
    assert ring.numbers()["beta"] == pytest.approx([4.0, 5.0, 6.0])
    vortex = Vortex().assign(strength=-2.0, centre=[1.0, -1.0])  # of any sign
    assert vortex.numbers()["strength"] == -2.0 and vortex.numbers()["centre"] == [1.0, -1.0]
    matrix = [[1.0, -2.0], [3.0, 4.0]]
    assert OrnsteinUhlenbeck(2).assign(matrix=matrix).numbers()["matrix"] == matrix
    for name in ("brownian", "gradient", "learned"):
        assert MAKE[name]().names == () and MAKE[name]().numbers() == {}


@FAMILIES
def test_without_a_law_there_is_no_prior(name):
    assert float(MAKE[name]().log_prior()) == 0


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_positive_stays_so_wherever_an_update_moves_it(name):
    reference = MAKE[name]()
    with torch.no_grad():
        for p in reference.parameters():
            p -= 7.0
    for name, value in reference.values().items():
        assert bool((value > 0).all()) == (name in reference.positive)


START_LESS = {
    "a rate of zero": (lambda: LotkaVolterra(alpha=0.0), r"\(alpha=0.0\): alpha must be positive"),
    "a negative rate": (lambda: Repressilator(n=-1.0), r"Repressilator\(n=-1.0\): n must be positive"),
    "one gene of three": (lambda: Repressilator([1.0, 0.0, 1.0]), "beta must be positive"),
    "too few genes": (lambda: Repressilator([1.0, 2.0]), "give one number, or 3, one a gene"),
    "no ring": (lambda: Repressilator(genes=1), "a ring has at least 2 genes"),
    "infinite": (lambda: Vortex(math.inf), r"Vortex\(strength=inf\): strength must be finite"),
    "not a number": (lambda: OrnsteinUhlenbeck(1, [[math.nan]]), "matrix must be finite"),
    "no core": (lambda: Vortex(core=0.0), "core must be positive"),
    "a centre in space": (lambda: Vortex(centre=(0.0, 0.0, 0.0)), "centre must be two numbers"),
    "not square": (lambda: OrnsteinUhlenbeck(2, [[1.0, 2.0]]), r"matrix must have shape \(2, 2\)"),
    "a long shift": (lambda: OrnsteinUhlenbeck(2, None, [1.0]), r"shift must have shape \(2,\)"),
    "no coordinates": (lambda: Brownian(0), r"Brownian\(dim=0\): dim must be a whole number >= 1"),
    "half a coordinate": (lambda: GradientField(1.5), "dim must be a whole number"),
    "no width": (lambda: GradientField(2, 0), "width must be a whole number"),
    "a kink": (lambda: GradientField(2, activation="relu"), "activation must be one of 'silu'"),
    "no such name": (lambda: LotkaVolterra().assign(kappa=1.0), "no parameter 'kappa'; it has alpha"),
    "no names": (lambda: Brownian(2).assign(alpha=1.0), "no parameter 'alpha'; it has none"),
    "another shape": (lambda: LotkaVolterra().assign(beta=[1.0, 2.0]), r"has shape \(\), got \(2,\)"),
    "assigned zero": (lambda: LotkaVolterra().assign(beta=0.0), "beta must be positive"),
    "assigned NaN": (lambda: Vortex().assign(strength=math.nan), "strength must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", START_LESS)
def test_bad_starts_get_one_sentence(case):
    make, sentence = START_LESS[case]
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_refused_value_changes_nothing():
    reference = LotkaVolterra()
    with pytest.raises(ValueError, match="positive"):
        reference.assign(beta=-1.0)
    assert reference.numbers()["beta"] == pytest.approx(0.01)


# Descriptions


@FAMILIES
def test_description_and_state_rebuild_it(name):
    reference = shaken(MAKE[name](), seed=9)
    described = specs.spec(reference)
    again = specs.build(described)
    assert specs.spec(again) == described and type(again) is type(reference)
    assert list(again.state_dict()) == list(reference.state_dict())
    again.load_state_dict(reference.state_dict())
    x, t = at(reference)
    assert torch.equal(again(t, x), reference(t, x))
    assert torch.equal(again.jacobian(t, x), reference.jacobian(t, x))


def test_they_are_exported():
    for name in (Reference, Brownian, GradientField, Learned, LotkaVolterra, Vortex):
        assert getattr(process, name.__name__) is name


# What a bridge asks of a family


class User(Reference):
    """A family of one number, as users write them."""

    positive = ("rate",)

    def __init__(self, drift, dim=2):
        super().__init__(dim, rate=0.7)
        self.made = drift

    def field(self, t, x, values):
        return self.made(t, x, values["rate"])


def snapshots():
    return [0.0, 2.0], [normal(12, 2), normal(9, 2, seed=1)]


@FAMILIES
def test_every_family_is_accepted(name):
    reference = MAKE[name]()
    x, _ = at(reference)
    check_reference(reference, [0.0, 1.0], [x, x + 1])


def test_a_family_of_a_user_needs_no_more_than_its_drift():
    reference = User(lambda t, x, rate: rate * torch.sin(x.flip(1)))
    check_reference(reference, *snapshots())
    x, t = at(reference)
    want = slopes(lambda z: reference(t, z).detach(), x)
    torch.testing.assert_close(reference.jacobian(t, x).detach(), want, rtol=1e-6, atol=1e-8)
    reference.jacobian(t, x).sum().backward()
    assert reference.raw["rate"].grad.abs() > 0


DETACHED = {
    "whole": lambda t, x, rate: rate * torch.sin(x.detach()),
    "a part": lambda t, x, rate: rate * x * torch.exp(x.flip(1).detach()),
    "a coordinate": lambda t, x, rate: rate * torch.stack([x[:, 1], x[:, 0].detach()], 1),
}


@pytest.mark.parametrize("case", DETACHED)
def test_a_detach_inside_a_drift_is_refused(case):
    with pytest.raises(ValueError, match=r"User: the Jacobian .* at time 0; a detach\(\)") as caught:
        check_reference(User(DETACHED[case]), *snapshots())
    assert "\n" not in str(caught.value)


def test_no_grad_inside_a_drift_is_refused():
    def drift(t, x, rate):
        with torch.no_grad():
            return torch.sin(x) * rate

    with pytest.raises(ValueError, match=r"torch.no_grad\(\) inside the drift"):
        check_reference(User(drift), *snapshots())


def test_a_jacobian_by_hand_that_is_wrong_is_refused():
    class Turned(LotkaVolterra):
        def jacobian(self, t, x, values=None):
            return super().jacobian(t, x, values).mT

    times, xs = snapshots()
    with pytest.raises(ValueError, match="Turned: the Jacobian of its drift disagrees"):
        check_reference(Turned(1.0, 0.4, 0.4, 0.1), times, xs)


def test_a_drift_that_is_not_finite_is_named_with_its_state():
    times, (x0, x1) = snapshots()
    x0, x1 = x0.abs(), x1.abs()
    x1[4] = rows(-0.125, 3.5)
    reference = User(lambda t, x, rate: rate * x.sqrt())
    with pytest.raises(FloatingPointError, match=r"User .* \(-0.125, 3.5\) .* at time 2") as caught:
        check_reference(reference, times, [x0, x1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "drift, got",
    [
        (lambda t, x, rate: rate * x.sum(1), r"\(12,\)"),
        (lambda t, x, rate: rate * x[:, :1], r"\(12, 1\)"),
        (lambda t, x, rate: (rate * x)[None], r"\(1, 12, 2\)"),
        (lambda t, x, rate: (x, x), "tuple"),
    ],
)
def test_wrong_shapes_are_refused(drift, got):
    with pytest.raises(ValueError, match=rf"User gives a drift of shape {got} for states \(12, 2\)"):
        check_reference(User(drift), *snapshots())
