"""Estimates of log-densities: Hutchinson's traces and noisy paths, unbiased with known spread."""

import pytest
import torch
from exact import DATA, estimate, mixture_model, mlp_model, same, seeded, truth

import genflow.model.likelihood
from genflow.interpolant import BrownianBridge, OneSided, Trigonometric
from genflow.model import Generator
from genflow.oracle import Exact, independent
from genflow.process import StochasticInterpolant
from genflow.solver import Heun
from genflow.source import Gaussian, GaussianMixture


def points(n):
    return DATA.sample(n, seeded(3))


def test_hutchinson_is_unbiased():
    model, n = mixture_model(), 2000
    x = points(3)
    rows = x.repeat_interleave(n, 0)
    found = model.log_prob(rows, divergence="hutchinson", steps=20, generator=seeded()).reshape(3, n)
    error = found.std(1) / n**0.5
    assert (error > 2e-4).all() and ((found.mean(1) - model.log_prob(x)).abs() < 4 * error + 1e-3).all()


def test_signs_vary_less_than_normal_probes(monkeypatch):
    model, rows = mixture_model(), points(1).repeat(1000, 1)
    signs = model.log_prob(rows, divergence="hutchinson", steps=20, generator=seeded()).std()

    def normal(x, probes, generator=None):
        return torch.randn(probes, *x.shape, generator=generator, dtype=x.dtype)

    monkeypatch.setattr(genflow.model.likelihood, "rademacher", normal)
    probes = model.log_prob(rows, divergence="hutchinson", steps=20, generator=seeded()).std()
    assert signs < 0.8 * probes


def test_more_probes_vary_less():
    model, rows = mlp_model((1, 4, 4)), torch.randn(1, 1, 4, 4).double().repeat(300, 1, 1, 1)
    spread = [
        model.log_prob(rows, divergence="hutchinson", probes=k, steps=5, generator=seeded()).std()
        for k in (1, 16)
    ]
    assert 0.15 < spread[1] / spread[0] < 0.4  # a quarter


def image_law(dtype):
    """Gaussians on (1, 4, 4) whose coordinates are correlated."""
    root = torch.randn(16, 16, generator=seeded(), dtype=torch.float64) / 4
    cov = root @ root.T + 0.3 * torch.eye(16, dtype=torch.float64)
    data = GaussianMixture([[0.3] * 16], [cov.tolist()]).double()
    exact = Exact(independent(Gaussian(16), data), OneSided(), (1, 4, 4))
    model = Generator(Gaussian([1, 4, 4]), StochasticInterpolant(exact, OneSided()), Heun(20))
    x = data.sample(4, seeded(2)).reshape(4, 1, 4, 4)
    return model.to(dtype), x.to(dtype), truth(data).log_prob(x.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_in_either_precision(dtype):
    model, x, want = image_law(dtype)
    found = model.log_prob(x)
    assert found.shape == (4,) and found.dtype == dtype
    same(found.double(), want, 2e-2 if dtype == torch.float32 else 1e-3)
    rows = x.repeat_interleave(100, 0)
    draws = model.log_prob(rows, divergence="hutchinson", steps=10, generator=seeded()).reshape(4, 100)
    assert draws.dtype == dtype
    assert ((draws.mean(1) - want).abs() < 4.5 * draws.std(1) / 10 + 0.02).all()


def test_sixteen_dimensions_are_exact():
    for dim, exact in ((16, True), (17, False)):
        model, x = mlp_model((dim,)), torch.randn(3, dim, generator=seeded()).double()
        draws = [model.log_prob(x, steps=3, generator=seeded(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2]) == exact
        whole = model.log_prob(x, steps=3, divergence="exact")
        assert torch.allclose(draws[0], whole) == exact


@pytest.mark.parametrize("epsilon", [0.5, "gamma"])
@pytest.mark.parametrize("path", [BrownianBridge(), OneSided(Trigonometric())], ids=str)
def test_noisy_paths_estimate_the_density(path, epsilon):
    # .015: the steps of a constant epsilon
    model, x = mixture_model(path), points(6)
    found, error = estimate(model, x, epsilon, 500)
    assert ((found - truth(DATA).log_prob(x)).abs() < 4 * error + 0.015).all()


class NoSquare(StochasticInterpolant):
    """The mistake to catch: the divergence alone, without epsilon |score|^2."""

    def density_terms(self, t, x, cond=None):
        forward, backward, square = super().density_terms(t, x, cond)
        return forward, backward, 0 * square


def test_the_square_of_the_score_counts():
    model, x = mixture_model(), points(6)
    model.process = NoSquare(model.process.fields, model.process.interpolant)
    found, error = estimate(model, x, 0.5, 100)
    off = (found - truth(DATA).log_prob(x)).abs()
    assert (off > 4 * error).all() and off.mean() > 0.5


def test_paths_are_averaged():
    model, x = mixture_model(), points(3)
    rows = model.log_prob(x.repeat_interleave(8, 0), epsilon=0.5, steps=10, generator=seeded())
    found = model.log_prob(x, epsilon=0.5, steps=10, paths=8, generator=seeded())
    torch.testing.assert_close(found, rows.reshape(3, 8).mean(1))
    again = model.log_prob(x, epsilon=0.5, steps=10, paths=8, generator=seeded(2))
    assert not torch.allclose(found, again)
