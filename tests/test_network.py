"""Networks: shapes, precisions, conditions and refusals."""

import pytest
import torch

from genflow.network import MLP, TimeFeatures

shapes = pytest.mark.parametrize("dim", [2, (3,), [1, 8, 8]], ids=str)


def events(dim, n=5, dtype=torch.float32):
    shape = (dim,) if isinstance(dim, int) else dim
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@shapes
def test_output_has_the_shape_and_precision_of_the_state(dim, dtype):
    network, x = MLP(dim, width=16).to(dtype), events(dim, dtype=dtype)
    t = torch.rand(5, dtype=dtype)
    out = network(t, x)
    assert out.shape == x.shape and out.dtype == dtype
    assert not torch.allclose(out, network(t / 2, x)) and not torch.allclose(out, network(t, x / 2))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("activation", ["SELU", "Tanh"])
def test_every_layer_gets_a_gradient(activation, depth, residual):
    network = MLP(2, 8, depth, activation, residual)
    network(torch.rand(5), events(2)).square().sum().backward()
    assert len(list(network.parameters())) == 2 * (depth + 1)
    assert all(bool(p.grad.any()) for p in network.parameters())


def test_one_number_is_a_time_for_every_row():
    network, x = MLP(2), events(2)
    torch.testing.assert_close(network(0.3, x), network(torch.full((5,), 0.3), x))


def test_rows_do_not_see_each_other():
    network, x, t = MLP(2), events(2), torch.rand(5)
    torch.testing.assert_close(network(t[1:3], x[1:3]), network(t, x)[1:3])


def test_labels_matter():
    network, x = MLP(2, classes=3), events(2)
    labels = torch.tensor([0, 1, 2, 0, 1])
    out = network(0.5, x, labels)
    assert out.shape == x.shape
    changed = (network(0.5, x, torch.tensor([0, 1, 2, 0, 2])) != out).any(1)
    assert changed.tolist() == [False] * 4 + [True]


def pairs(n, k):
    return torch.zeros(n, k, dtype=torch.long)


def test_several_labels_add_their_embeddings():
    network, x = MLP(2, width=8, classes=[3, 4, 2]), events(2)
    labels = torch.tensor([[0, 0, 0], [2, 3, 1], [1, 0, 1], [0, 2, 0], [2, 1, 1]])
    # the tables of the three labels lie one after the other
    weight = network.label.weight
    assert len(weight) == 3 + 4 + 2
    tables = weight[:3], weight[3:7], weight[7:]
    summed = sum(table[labels[:, k]] for k, table in enumerate(tables))
    inputs = torch.cat([x, network.time(torch.full((5,), 0.5)), summed], 1)
    h = network.act(network.first(inputs))
    for layer in network.hidden:
        h = h + network.act(layer(h))
    torch.testing.assert_close(network(0.5, x, labels), network.last(h))
    # each label matters by itself, and equal numbers of different labels are different things
    out = network(0.5, x, labels)
    for k in range(3):
        other = labels.clone()
        other[1, k] -= 1
        assert (network(0.5, x, other) != out).any(1).tolist() == [False, True, False, False, False]
    assert not torch.allclose(network(0.5, x, labels[:, [0, 2, 1]] % 2), network(0.5, x, labels % 2))


def test_several_labels_learn_and_keep_their_place_on_a_move():
    network = MLP(2, width=8, classes=(3, 4)).double()
    labels = torch.stack([torch.arange(12) % 3, torch.arange(12) % 4], 1)
    network(0.5, events(2, 12, torch.float64), labels).square().sum().backward()
    assert bool(network.label.weight.grad.any(1).all())
    assert network.first_label.tolist() == [0, 3]
    assert not any("first_label" in name for name in network.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_condition_vectors_matter_and_take_the_precision_of_the_state(dtype):
    network, x = MLP([1, 2, 2], cond_dim=4).to(dtype), events((1, 2, 2), dtype=dtype)
    cond = torch.randn(5, 4)
    out = network(0.5, x, cond)
    assert out.dtype == dtype and not torch.allclose(out, network(0.5, x, cond + 1))


@pytest.mark.parametrize(
    "network, call, words",
    [
        (MLP(2), lambda f: f(0.5, torch.zeros(5, 3)), r"expected \(2,\)"),
        (MLP(2), lambda f: f(torch.rand(4), torch.zeros(5, 2)), "5 rows"),
        (MLP(2), lambda f: f(0.5, torch.zeros(5, 2), torch.zeros(5)), "built without"),
        (MLP(2, classes=3), lambda f: f(0.5, torch.zeros(5, 2)), "pass cond"),
        (MLP(2, classes=3), lambda f: f(0.5, torch.zeros(5, 2), torch.zeros(5)), "must be integers"),
        (MLP(2, classes=3), lambda f: f(0.5, torch.zeros(5, 2), torch.zeros(4).long()), r"\(5,\)"),
        (MLP(2, cond_dim=3), lambda f: f(0.5, torch.zeros(5, 2), torch.zeros(5, 2)), r"\(5, 3\)"),
        (
            MLP(2, classes=[3, 4]),
            lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 1)),
            r"\(5,2\).*\(5, 1\)",
        ),
        (MLP(2, classes=[3, 4]), lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 2)[:, 0]), r"\(5,2\)"),
        (MLP(2, classes=[3]), lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 1)[:, 0]), r"\(5,1\)"),
        (MLP(2, classes=[3, 4]), lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 2) / 1), "integers"),
        (
            MLP(2, classes=[3, 4]),
            lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 2) + 3),
            r"0\.\.2, got 3",
        ),
        (
            MLP(2, classes=[4, 3]),
            lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 2) + 3),
            r"0\.\.2, got 3",
        ),
        (
            MLP(2, classes=[3, 4]),
            lambda f: f(0.5, torch.zeros(5, 2), pairs(5, 2) - 1),
            r"0\.\.2, got -1",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(network, call, words):
    with pytest.raises(ValueError, match=words):
        call(network)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: MLP(2, width=0), "width must be a whole number"),
        (lambda: MLP(2, depth=1.5), "depth must be a whole number"),
        (lambda: MLP(2, frequencies=-1), "frequencies must be a whole number"),
        (lambda: MLP(2, activation="Swish"), "activation must name"),
        (lambda: MLP(2, classes=2, cond_dim=2), "not both"),
        (lambda: MLP(2, classes=[2], cond_dim=2), "not both"),
        (lambda: MLP(2, classes=0), "classes must be a whole number"),
        (lambda: MLP(2, classes=2.5), "classes must be a whole number"),
        (lambda: MLP(2, classes=[]), "classes must be a whole number"),
        (lambda: MLP(2, classes=[3, 0]), "classes must be a whole number"),
        (lambda: MLP(2, classes=[3, True]), "classes must be a whole number"),
    ],
)
def test_bad_sizes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("frequencies", [0, 1, 8])
def test_time_features(frequencies):
    features = TimeFeatures(frequencies)
    t = torch.tensor([0.0, 0.25, 1.0])
    out = features(t)
    assert out.shape == (3, features.size) == (3, 1 + 2 * frequencies)
    assert torch.equal(out[:, 0], t)
    for k in range(1, frequencies + 1):
        torch.testing.assert_close(out[:, k], torch.cos(torch.pi * k * t))
        torch.testing.assert_close(out[:, frequencies + k], torch.sin(torch.pi * k * t))
