"""Gaussian mixtures of one's own, and the laws that say that they are mixtures."""

import math

import pytest
import torch
from torch import distributions as D

from genflow import spec
from genflow.data import Simulated
from genflow.source import Components, EightGaussians, Gaussian, GaussianMixture, Moons
from genflow.specs import build

MEANS = [[1.0, -2.0], [-3.0, 0.5], [0.0, 4.0]]
COVS = [[[1.0, 0.4], [0.4, 0.5]], [[0.3, -0.1], [-0.1, 0.2]], [[2.0, 0.0], [0.0, 0.1]]]
WEIGHTS = [1.0, 3.0, 6.0]


def reference(source, dtype=torch.float64):
    """The law of ``components()`` by torch's own distributions."""
    weights, means, covs = (v.to(dtype) for v in source.components())
    return D.MixtureSameFamily(D.Categorical(weights), D.MultivariateNormal(means, covs))


def test_density_is_that_of_torch(generator):
    source = GaussianMixture(MEANS, COVS, WEIGHTS)
    law = D.MixtureSameFamily(
        D.Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)),
        D.MultivariateNormal(
            torch.tensor(MEANS, dtype=torch.float64), torch.tensor(COVS, dtype=torch.float64)
        ),
    )
    x = 3 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(source.log_prob(x), law.log_prob(x), rtol=1e-12, atol=1e-12)
    assert source.log_prob(x.float()).dtype == torch.float32


def test_density_is_exact_in_the_tails():
    source = GaussianMixture(MEANS, 1.0)
    x = torch.tensor([[1e4, -3e3]])
    near = source.log_prob(x)
    square = ((x.double() - torch.tensor(MEANS).double()) ** 2).sum(1).min()
    want = -square / 2 - math.log(3) - math.log(2 * math.pi)
    torch.testing.assert_close(near.double(), want[None], rtol=1e-6, atol=0.0)
    assert math.exp(float(near)) == 0  # an unguarded sum of densities would give log(0)


def test_draws_follow_the_density_and_the_classes(generator):
    n, source = 40_000, GaussianMixture(MEANS, COVS, WEIGHTS)
    x, labels = source.sample_labelled(n, generator)
    assert x.dtype == torch.float32 and x.shape == (n, 2) and labels.dtype == torch.long
    shares = torch.tensor(WEIGHTS) / 10
    error = (shares * (1 - shares) / n).sqrt()
    assert ((labels.bincount() / n - shares).abs() / error).max() < 4.5
    for k in range(3):
        rows = x[labels == k].double()
        z = torch.linalg.solve(
            torch.linalg.cholesky(torch.tensor(COVS[k]).double()), (rows - torch.tensor(MEANS[k])).T
        )
        count = len(rows)
        assert (z.mean(1).abs() * count**0.5).max() < 4.5
        assert ((z.var(1) - 1).abs() * (count / 2) ** 0.5).max() < 4.5
        assert abs(float((z[0] * z[1]).mean())) * count**0.5 < 4.5


def test_draws_follow_the_generator_and_the_precision():
    source = GaussianMixture(MEANS, COVS)
    draws = [source.sample(9, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert source.double().sample(3).dtype == torch.float64
    labelled = source.sample_labelled(9, torch.Generator().manual_seed(4))[0]
    assert torch.equal(labelled, source.sample(9, torch.Generator().manual_seed(4)))
    data = Simulated(Gaussian(2), source, labels=True)
    assert len(data.marginals("train")) == 2


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        ([0.5, 1.0, 2.0], [0.5, 1.0, 2.0]),
    ],
    ids=["one", "each"],
)
def test_numbers_are_variances(given, want):
    found = GaussianMixture(MEANS, given).components()
    eye = torch.eye(2, dtype=torch.float64)
    assert torch.equal(found.covariances, torch.stack([v * eye for v in want]))
    assert torch.allclose(found.weights, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize(
    "source",
    [Gaussian(2, 0.5, 2.0), Gaussian([1, 2, 2], -1.0, 0.3), EightGaussians(3.0, 0.7, 5),
     GaussianMixture(MEANS, COVS, WEIGHTS), GaussianMixture([[2.0]])],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_mixtures_say_so(source, generator):
    found = source.components()
    assert all(v.dtype == torch.float64 for v in found) and found.weights.sum() == pytest.approx(1)
    x = source.double().sample(50, generator)
    torch.testing.assert_close(found.log_prob(x), source.log_prob(x))
    torch.testing.assert_close(reference(source).log_prob(x.flatten(1)), source.log_prob(x))
    doubled = Components(found.weights, found.means + 0.1, found.covariances)
    assert not torch.allclose(doubled.log_prob(x), source.log_prob(x))


def test_other_laws_are_no_mixtures():
    with pytest.raises(NotImplementedError, match="Moons is no mixture of Gaussians"):
        Moons().components()


def test_description_is_plain_lists_even_of_tensors():
    source = GaussianMixture(torch.tensor(MEANS), torch.tensor(COVS).double(), torch.tensor(WEIGHTS))
    found = spec(source)
    assert found["means"] == MEANS and found["weights"] == WEIGHTS
    again = build(found)
    assert spec(again) == found and torch.equal(again.components().means, source.components().means)
    assert not source.state_dict()  # the description says all of it


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianMixture([]), "means must be K lists"),
        (lambda: GaussianMixture([1.0, 2.0]), "means must be K lists"),
        (lambda: GaussianMixture([[1.0, 2.0], [1.0]]), "lists of equal length"),
        (lambda: GaussianMixture([[1.0, math.nan]]), "means must be finite"),
        (lambda: GaussianMixture("two"), "means must be numbers"),
        (lambda: GaussianMixture(MEANS, [1.0, 2.0]), "one variance, 3 variances or 3 matrices"),
        (lambda: GaussianMixture(MEANS, COVS[:2]), "one variance, 3 variances or 3 matrices"),
        (lambda: GaussianMixture(MEANS, 0.0), "symmetric and positive definite"),
        (lambda: GaussianMixture(MEANS, [1.0, -1.0, 1.0]), "covariance 1 must be symmetric"),
        (lambda: GaussianMixture([[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
        (lambda: GaussianMixture([[0.0, 0.0]], [[[1.0, 1.0], [1.0, 1.0]]]), "positive definite"),
        (lambda: GaussianMixture([[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (lambda: GaussianMixture(MEANS, 1.0, [1.0, 2.0]), "weights must be 3 positive numbers"),
        (lambda: GaussianMixture(MEANS, 1.0, [1.0, -1.0, 2.0]), "weights must be 3 positive"),
        (lambda: GaussianMixture(MEANS, 1.0, [1.0, 0.0, 2.0]), "weights must be 3 positive"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
