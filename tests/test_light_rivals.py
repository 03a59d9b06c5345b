"""The published light bridges are what their formulas say, or the benchmark beats a straw man."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.light_rivals import (
    PublishedFullLightSB,
    PublishedLightSB,
    PublishedLightSBM,
    train,
)

EPSILON = 0.7


def random_model(kind: type, generator: torch.Generator) -> PublishedLightSB:
    model = kind(3, 4, EPSILON, 0.4).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def points(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", [PublishedLightSB, PublishedLightSBM])
def test_the_loss_is_the_sum_written_out(kind, generator) -> None:
    model = random_model(kind, generator)
    x, y = points(5, generator), points(6, generator)
    log_alpha, r, s = (part.tolist() for part in model.state())
    log_c, log_v = [], []
    for row in x.tolist():
        terms = [
            a + sum(z * (c * z + 2 * b) for z, b, c in zip(row, rk, sk)) / (2 * EPSILON)
            for a, rk, sk in zip(log_alpha, r, s)
        ]
        log_c.append(math.log(sum(map(math.exp, terms))))
    for row in y.tolist():
        terms = [
            a - sum(((z - b) ** 2 / (EPSILON * c) + math.log(2 * math.pi * EPSILON * c)) / 2
                    for z, b, c in zip(row, rk, sk))
            for a, rk, sk in zip(log_alpha, r, s)
        ]  # fmt: skip
        log_v.append(math.log(sum(map(math.exp, terms))))
    assert model.log_normaliser(x).tolist() == pytest.approx(log_c)
    assert model.log_potential(y).tolist() == pytest.approx(log_v)


def test_the_drift_is_that_of_the_closed_form(generator) -> None:
    model = random_model(PublishedLightSB, generator)
    log_alpha, r, s = model.state()
    t, x = torch.rand(5, generator=generator, dtype=torch.float64), points(5, generator)
    q, wide = 1 - t[:, None, None] * (1 - s), x[:, None]
    square = (wide * (s - 1) * wide + 2 * wide * r - t[:, None, None] * r**2) / q
    share = (log_alpha - q.log().sum(-1) / 2 + square.sum(-1) / (2 * EPSILON)).softmax(1)
    want = (share[..., None] * ((s - 1) * wide + r) / q).sum(1)
    torch.testing.assert_close(model.drift(t, x), want, rtol=1e-9, atol=1e-9)


def test_samples_have_the_moments_of_the_plan(generator) -> None:
    torch.manual_seed(0)
    model = random_model(PublishedLightSB, generator)
    model.sampling_batch_size = 5000
    _, r, s = model.state()
    x = points(1, generator)
    log_c = (model.log_alpha + ((x * s * x + 2 * x * r).sum(-1)) / (2 * EPSILON)).detach()
    share = log_c.softmax(0)
    mean = share @ (r + s * x)
    found = model.sample(x.expand(20_000, 3))
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - mean).abs() < 4 * error).all())


def test_full_covariances_without_a_turn_are_diagonal_ones(generator) -> None:
    plain = random_model(PublishedLightSB, generator)
    full = PublishedFullLightSB(3, 4, EPSILON).double()
    full.load_state_dict(plain.state_dict(), strict=False)
    x, y = points(5, generator), points(6, generator)
    torch.testing.assert_close(full.loss(x, y), plain.loss(x, y))
    full.loss(x, y).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in full.parameters())


@pytest.mark.parametrize("kind", [PublishedLightSB, PublishedLightSBM])
def test_training_shifts_the_mean(kind, generator) -> None:
    """One Gaussian moved by two: the loss falls and the plan's mean follows."""
    torch.manual_seed(0)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x, y = (torch.randn(n, 2, generator=generator) for _ in range(2))
        return x, y + 2

    model = kind(2, 3, 1.0, sampling_batch_size=4000).start_at(draw(3)[1])
    train(model, draw, 1e-2, steps=300)
    found = model.sample(draw(4000)[0])
    assert bool(((found.mean(0) - 2).abs() < 0.2).all())
