"""Bits per dimension: laws whose bits are known, and draws within cells of a grid."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genflow.data import Digits
from genflow.diagnostics import bits_per_dim, dequantise
from genflow.source import Gaussian
from genflow.tensors import rand_like

POSITIVE = st.floats(0.01, 100)


@given(levels=st.integers(2, 1000), dim=st.integers(1, 5), step=POSITIVE)
def test_even_levels_cost_their_logarithm(levels, dim, step):
    # the uniform density over all cells of the grid
    log_prob = torch.full((3,), -dim * math.log(levels * step), dtype=torch.float64)
    found = bits_per_dim(log_prob, dim, step)
    assert found.shape == (3,) and found.dtype == torch.float64
    assert found.tolist() == pytest.approx([math.log2(levels)] * 3)


@given(scale=POSITIVE, step=POSITIVE)
def test_units_do_not_count(scale, step):
    law = Gaussian([1, 2, 2], 0.3, 0.8).double()
    x = law.sample(6, torch.Generator().manual_seed(0))
    scaled = Gaussian([1, 2, 2], 0.3 * scale, 0.8 * scale).double()
    found = bits_per_dim(law.log_prob(x), [1, 2, 2], step)
    assert torch.allclose(bits_per_dim(scaled.log_prob(scale * x), [1, 2, 2], scale * step), found)
    assert torch.allclose(bits_per_dim(law.log_prob(x), 4, step), found)


def test_a_gaussian_has_the_bits_of_its_entropy(generator):
    law = Gaussian(3, 0.0, 2.0).double()
    bits = bits_per_dim(law.log_prob(law.sample(40_000, generator)), 3)
    truth = 0.5 * math.log2(2 * math.pi * math.e * 4)
    assert float(bits.mean()) == pytest.approx(truth, abs=4 * float(bits.std()) / 200)


def test_a_perfect_model_of_cells_has_the_entropy_of_the_levels(generator):
    shares, step = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64), 0.25
    level = torch.multinomial(shares, 40_000, replacement=True, generator=generator)
    x = dequantise(level.double() * step - 1, step, generator)
    cell = ((x + 1) / step).floor().long()
    assert torch.equal(cell, level), "no draw leaves its cell"
    bits = bits_per_dim((shares[cell] / step).log(), 1, step)
    assert float(bits.mean()) == pytest.approx(1.75, abs=4 * float(bits.std()) / 200)
    # forgetting the step, or its sign, or the logarithm's base, is far off
    assert abs(float(bits_per_dim((shares[cell] / step).log(), 1).mean()) - 1.75) > 1
    # a model of wrong shares pays the divergence on top
    wrong = bits_per_dim((torch.full_like(shares, 0.25)[cell] / step).log(), 1, step)
    assert float(wrong.mean()) == pytest.approx(2.0)


def test_draws_are_even_within_cells(generator):
    u = dequantise(torch.zeros(50_000, 1, dtype=torch.float64), 2.0, generator).flatten() / 2
    assert 0 <= float(u.min()) and float(u.max()) < 1
    # Kolmogorov and Smirnov's distance to the uniform law, at one in a thousand
    order, n = u.sort().values, len(u)
    steps = torch.arange(n, dtype=torch.float64)
    gap = torch.maximum((order - steps / n).abs(), ((steps + 1) / n - order).abs()).max()
    assert float(gap) < 1.95 / n**0.5


def test_digits_lie_on_the_grid_of_the_documented_step(generator):
    table = Digits(Gaussian([1, 8, 8])).marginals("train")[1]
    x, _ = table.take(torch.arange(50))
    levels = (x + 1) * 8
    assert torch.equal(levels, levels.round()) and (levels.min(), levels.max()) == (0, 16)
    spread = dequantise(x, 1 / 8, generator)
    assert torch.equal(((spread + 1) * 8).floor(), levels)


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf, math.nan])
def test_a_step_is_a_width(step):
    with pytest.raises(ValueError, match="width of the grid must be a positive number"):
        bits_per_dim(torch.zeros(2), 2, step)
    with pytest.raises(ValueError, match="step="):
        dequantise(torch.zeros(2, 1), step)


@pytest.mark.parametrize("dim", [0, -1, [], [2, 0], 1.5, "2"])
def test_an_event_has_a_size(dim):
    with pytest.raises(ValueError, match="dim must be a positive whole number"):
        bits_per_dim(torch.zeros(2), dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_draws_are_like_what_they_are_for(dtype):
    x = torch.ones(3, 1, 4, 4, dtype=dtype)
    one, two = (rand_like(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == x.shape and one.dtype == dtype and torch.equal(one, two)
    assert bool(((one >= 0) & (one < 1)).all()) and one.unique().numel() > 20
    other = rand_like(x, torch.Generator().manual_seed(2))
    assert not torch.equal(one, other)
    state = torch.get_rng_state()
    rand_like(x, torch.Generator())
    assert torch.equal(torch.get_rng_state(), state), "a generator of one's own leaves the global one"
    assert dequantise(x, 0.5, torch.Generator().manual_seed(1)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_whole_numbers_are_dequantised(dtype, generator):
    x = torch.arange(16, dtype=dtype).reshape(4, 1, 2, 2)
    found = dequantise(x, 1.0, generator)
    assert found.dtype == torch.float32 and torch.equal(found.floor(), x.float())
    assert (found != x).all()
