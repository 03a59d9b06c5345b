"""Corrections of Gibbs weights: potentials that keep the marginals, against Gaussian closed forms."""

import numpy as np
import ot
import pytest
import torch
from gaussians import bridge_cross, draw, log_z, pair, tilted
from torch.distributions import MultivariateNormal, Normal

from genflow.coupling import Gibbs, Side

EPSILON = 3.0
SIGMA = (EPSILON / 2) ** 0.5
N = 200_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted_to(law):
    """What ``prepare`` would find in infinitely many samples."""
    moments = {"mean0": law.mean0, "cov0": law.cov0, "mean1": law.mean1, "cov1": law.cov1}
    return {name: [value.tolist()] for name, value in moments.items()}


def moments(x0, x1, weight):
    """Weighted means of both sides, covariances of both sides, cross-covariance."""
    w = (weight / weight.sum())[:, None]
    mean0, mean1 = (w * x0).sum(0), (w * x1).sum(0)
    c0, c1 = x0 - mean0, x1 - mean1
    return mean0, mean1, (w * c0).T @ c0, (w * c1).T @ c1, (w * c0).T @ c1


def furthest(found, true):
    return max(float((f - t).abs().max()) for f, t in zip(found, true))


@pytest.fixture(scope="module")
def prepared():
    """Gaussian potentials from data of their own, and pairs that they have not seen."""
    coupling = Gibbs(EPSILON, correction="gaussian").prepare(*draw(pair(), N, seeded(1)))
    return coupling, *draw(pair(), N, seeded(2))


def test_gaussian_potentials_keep_the_marginals(prepared):
    # mean weight .03, means .03, covariances .05, cross-covariance .04
    coupling, x0, x1 = prepared
    law, weight = pair(), coupling(x0, x1).weight
    own = coupling.log_weight(Side(x0), Side(x1)).exp()
    assert abs(own.mean() - 1) < 0.03  # without any normaliser
    torch.testing.assert_close(weight, own / own.mean())
    found = moments(x0, x1, weight)
    assert furthest(found[:2], (law.mean0, law.mean1)) < 0.03
    assert furthest(found[2:4], (law.cov0, law.cov1)) < 0.05
    assert furthest(found[4:], [bridge_cross(law, SIGMA)]) < 0.04
    assert furthest(found[4:], [bridge_cross(law, 2**0.5 * SIGMA)]) > 0.08  # epsilon for sigma^2


def test_raw_weights_move_the_marginals(prepared):
    # ten times the tolerances of the corrected ones
    _, x0, x1 = prepared
    law, raw = pair(), Gibbs(EPSILON)(x0, x1).weight
    found = moments(x0, x1, raw)
    assert furthest(found[:2], (law.mean0, law.mean1)) > 0.3
    assert furthest(found[2:4], (law.cov0, law.cov1)) > 0.3
    assert furthest(found[4:], [bridge_cross(law, SIGMA)]) > 0.08
    assert Gibbs(EPSILON).log_weight(Side(x0), Side(x1)).exp().mean() < 0.5


@pytest.mark.parametrize("epsilon", [0.2, 3.0, 50.0])
def test_log_weight_is_the_log_density_of_the_joint_gaussian(epsilon):
    # over the product of the marginals; tolerance 1e-8
    law = pair()
    law = law._replace(cross=bridge_cross(law, (epsilon / 2) ** 0.5))
    x0, x1 = draw(pair(), 200, seeded(3))
    cov = torch.cat([torch.cat([law.cov0, law.cross], 1), torch.cat([law.cross.T, law.cov1], 1)])
    joint = MultivariateNormal(torch.cat([law.mean0, law.mean1]), cov)
    apart = MultivariateNormal(law.mean0, law.cov0), MultivariateNormal(law.mean1, law.cov1)
    true = joint.log_prob(torch.cat([x0, x1], 1)) - apart[0].log_prob(x0) - apart[1].log_prob(x1)
    coupling = Gibbs(epsilon, correction="gaussian", fitted=fitted_to(law))
    assert (coupling.log_weight(Side(x0), Side(x1)) - true).abs().max() < 1e-8
    square = coupling.log_weights(Side(x0), Side(x1[:50]))
    assert square.shape == (200, 50) and (square.diagonal() - true[:50]).abs().max() < 1e-8
    single = Gibbs(epsilon, correction="gaussian", fitted=fitted_to(law))
    found = single.log_weight(Side(x0.float()), Side(x1.float()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), true, rtol=1e-3, atol=1e-3)


def test_diagonal_potentials_are_those_of_each_pixel():
    # images (1, 8, 8): every pixel is a Gaussian pair by itself
    generator = seeded(4)
    scale = 0.2 + torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    x0, x1 = scale[:, None] * torch.randn(2, 500, 1, 8, 8, generator=generator, dtype=torch.float64)
    coupling = Gibbs(20.0, correction="gaussian").prepare(x0, x1)
    assert np.shape(coupling.fitted["cov0"]) == (1, 64)
    flat0, flat1 = x0.flatten(1), x1.flatten(1)
    mean, var = [v.mean(0) for v in (flat0, flat1)], [v.var(0, correction=0) for v in (flat0, flat1)]
    cross = (var[0] * var[1] + 5.0**2).sqrt() - 5.0  # sigma^2 / 2 = 5
    cov = torch.stack([torch.stack([var[0], cross], 1), torch.stack([cross, var[1]], 1)], 1)
    true = MultivariateNormal(torch.stack(mean, 1), cov).log_prob(torch.stack([flat0, flat1], 2))
    for k, flat in enumerate((flat0, flat1)):
        true = true - Normal(mean[k], var[k].sqrt()).log_prob(flat)
    found = coupling.log_weight(Side(x0), Side(x1))
    assert (found - true.sum(1)).abs().max() < 1e-8
    assert coupling.log_weights(Side(x0), Side(x1)).diagonal().allclose(found)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)], ids=str)
def test_a_constant_pixel_does_no_harm(covariance, sides, generator):
    # equal to the weights without that pixel wherever it is constant on a side
    xs = list(torch.randn(2, 300, 3, generator=generator, dtype=torch.float64))
    rest = [x[:, :2].clone() for x in xs]
    for k in sides:
        xs[k][:, 2] = 5.0
    options = {"correction": "gaussian", "covariance": covariance}
    weight = Gibbs(2.0, **options).prepare(*xs)(*xs).weight
    assert weight.isfinite().all()
    if covariance == "full" and len(sides) == 1:  # the two other pixels are slightly correlated to it
        return
    torch.testing.assert_close(weight, Gibbs(2.0, **options).prepare(*rest)(*rest).weight)


@pytest.mark.parametrize(
    "shape, covariance, dims",
    [
        ((64,), "auto", (1, 64, 64)),
        ((65,), "auto", (1, 65)),
        ((1, 2, 2), "auto", (1, 4)),
        ((1, 2, 2), "full", (1, 4, 4)),
        ((3,), "diagonal", (1, 3)),
    ],
)
def test_which_covariance_is_fitted(shape, covariance, dims, generator):
    x0, x1 = torch.randn(2, 80, *shape, generator=generator)
    coupling = Gibbs(9.0, correction="gaussian", covariance=covariance).prepare(x0, x1)
    assert np.shape(coupling.fitted["cov0"]) == np.shape(coupling.fitted["cov1"]) == dims
    rows = np.array(coupling.fitted["cov1"][0])
    true = np.cov(x1.flatten(1).numpy().T, bias=True)
    np.testing.assert_allclose(rows, true if rows.ndim == 2 else np.diag(true), atol=1e-5)


@pytest.mark.parametrize("sizes", [(60, 60), (40, 70)], ids=str)
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_potentials_of_a_batch_are_those_of_pot(epsilon, sizes):
    # marginals 1e-3; total variation from POT's plan 5e-4
    x0, x1 = (x[:n] for x, n in zip(draw(pair(), 70, seeded(5)), sizes))
    coupling = Gibbs(epsilon, correction="sinkhorn")
    weights = coupling.log_weights(Side(x0), Side(x1)).exp()
    assert abs(weights.mean() - 1) < 1e-9
    assert (weights.mean(0) - 1).abs().max() < 1e-3 and (weights.mean(1) - 1).abs().max() < 1e-2
    assert (weights.mean(1) - 1).abs().mean() < 1e-3

    def plan(at):
        options = {"method": "sinkhorn_log", "stopThr": 1e-12, "numItermax": 100_000}
        matrix = ot.dist(x0.numpy(), x1.numpy())
        return ot.sinkhorn(ot.unif(len(x0)), ot.unif(len(x1)), matrix, at, **options)

    ours = weights.numpy() / weights.numel()
    assert np.abs(ours - plan(epsilon)).sum() / 2 < 5e-4
    assert np.abs(ours - plan(epsilon / 2)).sum() / 2 > 0.02  # the temperature is seen
    raw = Gibbs(epsilon).log_weights(Side(x0), Side(x1)).exp()
    assert (raw.mean(0) / raw.mean() - 1).abs().max() > 0.5


def test_weights_of_pairs_are_the_diagonal_of_the_plan():
    x0, x1 = draw(pair(), 64, seeded(6))
    plan = Gibbs(EPSILON, correction="sinkhorn", normaliser="pilot")(x0, x1)
    all_pairs = Gibbs(EPSILON, correction="sinkhorn").log_weights(Side(x0), Side(x1)).exp()
    torch.testing.assert_close(plan.weight, all_pairs.diagonal())
    even = Gibbs(EPSILON, correction="sinkhorn")(x0, x1).weight
    torch.testing.assert_close(even, plan.weight / plan.weight.mean())


def test_batch_potentials_give_the_cross_covariance_of_the_bridge(generator):
    # 40 batches of 128, tolerance .06; pairs drawn by row are weighted in the same way
    law, sigma = pair(), 0.9
    coupling = Gibbs(2 * sigma**2, correction="sinkhorn", normaliser="pilot")
    found, raw, drawn = (torch.zeros(2, 2, dtype=torch.float64) for _ in range(3))
    means = []
    for _ in range(40):
        x0, x1 = draw(law, 128, generator)
        c0, c1 = x0 - law.mean0, x1 - law.mean1
        found += c0.T @ coupling.log_weights(Side(x0), Side(x1)).exp() @ c1 / 128**2 / 40
        w = torch.softmax(-(torch.cdist(x0, x1) ** 2).flatten() / (2 * sigma**2), 0).reshape(128, 128)
        raw += (x0 - w.sum(1) @ x0).T @ w @ (x1 - w.sum(0) @ x1) / 40
        weight = coupling(x0, x1).weight
        means.append(float(weight.mean()))
        drawn += (weight[:, None] * c0).T @ c1 / 128 / 40
    true = bridge_cross(law, sigma)
    assert (found - true).abs().max() < 0.06 and (drawn - true).abs().max() < 0.12
    assert (found - bridge_cross(law, 2**0.5 * sigma)).abs().max() > 0.06
    assert (raw - true).abs().max() > 0.12
    error = np.std(means) / 40**0.5
    assert abs(np.mean(means) - 1) < 4.5 * error  # of mean one in expectation, with no normaliser


def test_a_constant_normaliser_is_unbiased_on_small_batches(generator):
    # batches of 4; tolerance 4.5 standard errors, which division by the batch's own mean exceeds
    law, epsilon, batches = pair(), 1.5, 8_000
    pilot = Gibbs(epsilon, normaliser="pilot").prepare(*draw(law, N, seeded(8)))
    pairs = list(zip(*(x.split(4) for x in draw(law, 4 * batches, generator))))
    true = tilted(law, 1 / epsilon).mean1

    def deviation(coupling):
        found = torch.stack([(coupling(a, b).weight[:, None] * b).mean(0) for a, b in pairs])
        return (found.mean(0) - true).abs() / (found.std(0) / batches**0.5)

    assert deviation(pilot).max() < 4.5
    assert deviation(Gibbs(epsilon)).max() > 6
    weights = torch.cat([pilot(a, b).weight for a, b in pairs])
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / len(weights) ** 0.5
    assert max(abs(pilot(a, b).weight.mean() - 1) for a, b in pairs[:20]) > 0.1


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 20.0])
def test_the_constant_normaliser_agrees_with_the_closed_form(epsilon):
    # log Z within .02 at 100,000 pairs
    data = draw(pair(), N, seeded(9))
    found = Gibbs(epsilon, normaliser="pilot").prepare(*data).fitted["log_z"]
    assert len(found) == 1 and abs(found[0] - log_z(pair(), 1 / epsilon)) < 0.02
    assert abs(found[0] - log_z(pair(), 0.5 / epsilon)) > 0.04
    both = Gibbs(epsilon, correction="gaussian", normaliser="pilot").prepare(*data)
    assert abs(both.fitted["log_z"][0]) < 0.02  # corrected weights are of mean one as they are
