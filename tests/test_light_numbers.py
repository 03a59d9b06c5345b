"""The numbers of light bridges: given, kept, changed, and what depends on them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lights import FAMILIES, double, law_at, light, scales, states

import genflow
from genflow.process import LightBridge
from genflow.specs import build

every_family = pytest.mark.parametrize("family", FAMILIES)


def close(found, want, tolerance=1e-9):
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


# Numbers that change


def fused(made):
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1, fused=True)
    made.objective(states(3, 9), states(3, 9, 8)).backward()
    optimizer.step()


def descent(made):
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made.objective(states(3, 9), states(3, 9, 8)).backward()
    optimizer.step()


def copied(made):
    for p in made.parameters():
        p.data.copy_(p.data + 0.1)


def swapped(made):
    for p in made.parameters():
        p.data = p.data + 0.1


@every_family
@pytest.mark.parametrize("change", [fused, descent, copied, swapped])
def test_answers_follow_the_numbers(family, change):
    made, _ = light(family)
    made.anchor(states(3, 20))
    x = states(3, 5)
    x1 = states(3, 5, 9)

    def answers(of):
        with torch.no_grad():
            return [
                of.drift(0.5, x), of.log_potential(x), of.plan(x).log_prob(x1), of.log_density(0.5, x),
                of.backward_drift(0.5, x), of.covariances(),
            ]  # fmt: skip

    before = answers(made)
    change(made)
    after = answers(made)
    fresh = LightBridge(3, 4, made.epsilon, family, made.rank).double()
    fresh.load_state_dict(made.state_dict())
    for old, new, want in zip(before, after, answers(fresh)):
        assert (old - new).abs().max() > 1e-4
        close(new, want, 1e-13)


@every_family
def test_anchors_that_change_are_seen(family):
    made, _ = light(family)
    x = states(3, 5)
    with torch.no_grad():
        first = made.anchor(states(3, 20)).log_density(0.5, x)
        second = made.anchor(states(3, 20, 9)).log_density(0.5, x)
        assert (first - second).abs().max() > 1e-3
        other, _ = light(family)
        close(other.anchor(states(3, 20, 9)).log_density(0.5, x), second, 1e-13)
        close(made.anchor(states(3, 20)).log_density(0.5, x), first, 1e-13)


@torch.no_grad()
def test_what_took_time_is_kept_until_a_number_changes():
    made, _ = light("full")
    assert made.potential is made.potential
    kept = made.potential
    made.log_weight += 0.1
    assert made.potential is not kept and made.potential is made.potential


# Gradients


def call(made, names, values, what):
    return torch.func.functional_call(made, dict(zip(names, values)), what)


class Asked(torch.nn.Module):
    """A method of a bridge as the forward of a module."""

    def __init__(self, made, method):
        super().__init__()
        self.made, self.method = made, method

    def forward(self, *arguments):
        return getattr(self.made, self.method)(*arguments)


@every_family
@pytest.mark.parametrize(
    "method",
    ["drift", "log_potential", "log_normaliser", "log_prob_at", "log_density", "backward_drift"],
)
def test_gradients_of_states_and_parameters(family, method):
    made, _ = light(family, dim=3, count=2)
    asked = Asked(made.anchor(states(3, 4, 5)), method)
    names, values = zip(*((k, v.detach().clone()) for k, v in asked.named_parameters()))
    x, t = states(3, 2), torch.tensor([0.3, 1.0], dtype=double)
    arguments = (x,) if method in ("log_potential", "log_normaliser") else (t, x)
    if method == "log_prob_at":
        arguments = (t, x, states(3, 2, 9))

    def value(*tensors):
        places = iter(tensors[len(names) :])
        given = tuple(t if a is t else next(places) for a in arguments)
        return call(asked, names, tensors[: len(names)], given)

    inputs = [*values, *(a for a in arguments if a is not t)]
    assert torch.autograd.gradcheck(value, [v.requires_grad_() for v in inputs])


@every_family
@pytest.mark.parametrize("method", ["drift", "log_density", "score"])
def test_parameters_learn_from_plain_states_as_often_as_asked(family, method):
    made, _ = light(family)
    made.anchor(states(3, 6, 5))
    found = []
    for x in (states(3, 4), states(3, 4), states(3, 4).requires_grad_()):
        made.zero_grad()
        getattr(made, method)(0.4, x).square().sum().backward()
        found.append([p.grad.clone() for p in made.parameters()])
    for a, b, c in zip(*found):
        close(a, b, 0)
        close(a, c)
        assert a.abs().max() > 1e-3


@every_family
def test_the_drift_has_a_second_derivative(family):
    made, _ = light(family, dim=3, count=2)
    made.requires_grad_(False)
    x = states(3, 2).requires_grad_()
    for t in (0.0, 0.6, 1.0, torch.tensor([0.2, 0.9], dtype=double)):
        assert torch.autograd.gradgradcheck(lambda v, t=t: made.drift(t, v), x)
    # of one row: symmetric, as the drift is a gradient
    jacobian = torch.func.jacrev(lambda v: made.drift(0.6, v[None])[0])(x[0].detach())
    close(jacobian, jacobian.mT)


@every_family
def test_the_drift_has_a_derivative_in_time(family):
    made, _ = light(family, dim=3, count=2)
    for t in (torch.tensor(0.4, dtype=double), torch.tensor([0.0, 0.7], dtype=double),
              torch.tensor([0.3, 0.3], dtype=double)):  # fmt: skip
        assert torch.autograd.gradcheck(
            lambda v: made.drift(v, states(3, 2)), (t + 0.01).requires_grad_()
        )


# What a bridge is given, and what it gives back


@every_family
def test_numbers_come_back_as_they_went_in(family):
    made, numbers = light(family, 4)
    close(made.covariances(), numbers.matrices, 1e-12)
    other = LightBridge(4, 4, made.epsilon, family, made.rank).double()
    given = made.numbers()
    assert other.assign(*given) is other
    for a, b in zip(other.numbers(), given):
        close(a, b, 1e-12)
    x = states(4, 6)
    close(other.drift(0.4, x), made.drift(0.4, x))
    given[1].zero_()  # copies
    assert made.location.abs().min() > 0
    close(made.log_weight.detach(), numbers.log_weight, 0)
    close(made.location.detach(), numbers.location, 0)


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 5]), st.integers(1, 3))
def test_any_matrix_comes_back_from_full_covariances(seed, dim, count):
    matrices = scales("full", count, dim, 1e-3, 10.0, seed)
    made = LightBridge(dim, count, 1.0, "full").double()
    made.assign(torch.zeros(count), torch.zeros(count, dim), matrices)
    close(made.covariances(), matrices, 1e-11)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_is_the_nearest_of_its_kind(rank):
    matrices = scales("full", 3, 5, 0.1, 4.0, 0)
    made = LightBridge(5, 3, 1.0, "low_rank", rank).double()
    found = made.assign(torch.zeros(3), torch.zeros(3, 5), matrices).covariances()
    values, vectors = torch.linalg.eigh(matrices)
    values[:, : 5 - rank] = values[:, : 5 - rank].mean(1, keepdim=True)
    close(found, vectors @ torch.diag_embed(values) @ vectors.mT, 1e-11)
    close(made.assign(torch.zeros(3), torch.zeros(3, 5), found).covariances(), found, 1e-11)
    assert made.scales.log_values.shape == (3, rank + 1)


@every_family
def test_spec_save_and_load(family, tmp_path):
    made, _ = light(family, (1, 4, 4))
    assert genflow.spec(build(genflow.spec(made))) == genflow.spec(made)
    made.anchor(states((1, 4, 4), 11))
    single = made.float()
    genflow.save(single, tmp_path / "bridge.ckpt")
    loaded = genflow.load(tmp_path / "bridge.ckpt")
    assert genflow.spec(loaded) == genflow.spec(single) and loaded.anchors.shape == (11, 16)
    x = states((1, 4, 4), 5).float()
    for method, arguments in (("drift", (0.3, x)), ("score", (0.3, x)), ("log_density", (0.3, x))):
        assert torch.equal(getattr(loaded, method)(*arguments), getattr(single, method)(*arguments))
    draws = [m.transition(1, 0, x, torch.Generator().manual_seed(0)) for m in (single, loaded)]
    assert torch.equal(*draws)


@every_family
def test_precision(family):
    made = LightBridge(3, 4, 1, family, 2 if family == "low_rank" else None)
    assert {p.dtype for p in made.parameters()} == {torch.float32} and made.epsilon == 1.0
    with torch.no_grad():
        for p in made.parameters():
            p += 0.3
    x, want = states(3, 5), made.drift(0.3, states(3, 5))
    for way in (made.double, lambda: made.to(torch.float64)):
        changed = way()
        assert {p.dtype for p in changed.parameters()} == {double}
        close(changed.drift(0.3, x), want, 1e-12)  # forms were computed in double all along
    assert made.sigma == 1.0 and made.stochastic and made.span == (0.0, 1.0)
    assert made.anchor(x.float()).anchors.dtype == double
    close(made.diffusion(torch.tensor(0.3), x, x), x)
    assert LightBridge(3, 4, 0.25).diffusion(0.3, x, x).equal(x / 2)


@every_family
def test_event_shapes_are_flat_inside(family):
    tall, _ = light(family, (1, 4, 4))
    flat, _ = light(family, 16)
    x = states((1, 4, 4), 6)
    for t in (0.3, torch.linspace(0, 1, 6)):
        close(tall.drift(t, x).flatten(1), flat.drift(t, x.flatten(1)), 1e-12)
    close(tall.log_potential(x), flat.log_potential(x.flatten(1)), 1e-12)
    close(law_at(light(family, 16)[1], 0.5, x.flatten(1)).log_prob(x.flatten(1)),
          tall.log_prob_at(0.5, x, x))  # fmt: skip


def test_a_fresh_bridge_has_components_that_differ():
    torch.manual_seed(0)
    made = LightBridge(3, 5, 1.0)
    assert torch.pdist(made.location.detach()).min() > 0.1
    close(made.log_weight.detach().exp().sum(), torch.tensor(1.0), 1e-6)
    close(made.covariances(), torch.eye(3, dtype=double).expand(5, 3, 3), 0)
