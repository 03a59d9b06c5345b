"""Velocities that are formed from other fields are as good as a velocity itself, ends included."""

import pytest
import torch
from exact import ONE_SIDED, TWO_SIDED, Known, ends, same, seeded
from gaussians import pair

from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    SinSquared,
    VariancePreserving,
)
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import StochasticInterpolant
from genflow.solver import Euler, Heun, RungeKutta, StochasticHeun

LAW = pair()._replace(mean1=torch.tensor([5.0, -4.0], dtype=torch.float64))
RATES = [["rate", "noise"], ["rate", "score"]]
ALONE = [["velocity"], ["noise"], ["score"], ["denoised"]]
SETS = {
    **{path: RATES for path in TWO_SIDED},
    **{path: [*RATES, *ALONE] for path in ONE_SIDED},
    **{path: ALONE for path in (Mirror(), Mirror(Quadratic()))},
}
CASES = [(path, names) for path, sets in SETS.items() for names in sets]
FEW = {
    Linear(gamma=Brownian(0.3)), VariancePreserving(), EncoderDecoder(SinSquared()), ONE_SIDED[0],
    ONE_SIDED[1], Mirror(),
}  # fmt: skip
ids = {"ids": lambda v: "+".join(v) if isinstance(v, list) else str(v)}


def model_of(path, names, dtype=torch.float64):
    process = StochasticInterpolant(Known(LAW, path, names), path)
    return Generator(ends(LAW, path)[0], process, Heun(40)).to(dtype)


def errors(path, names, solver, dtype=torch.float64):
    """Of mean and covariance at the end, without sampling: the flow of a Gaussian pair is affine, so
    that three starts tell all of it."""
    first, last = (law.components() for law in ends(LAW, path))
    rows = first.means[0] + torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    x = model_of(path, names, dtype).sample(x0=rows.to(dtype), solver=solver).double()
    turn = x[1:] - x[0]
    covariance = turn.T @ first.covariances[0] @ turn - last.covariances[0]
    return float((x[0] - last.means[0]).abs().max()), float(covariance.abs().max())


@pytest.mark.parametrize("path, names", CASES, **ids)
def test_the_flow_carries_means_and_covariances(path, names):
    mean, covariance = errors(path, names, RungeKutta(40))
    assert mean < 1e-2 and covariance < 1e-2


@pytest.mark.parametrize("path, names", [c for c in CASES if c[0] in FEW], **ids)
def test_densities_are_within_a_hundredth(path, names):
    x = ends(LAW, path)[1].sample(8, seeded(3))
    law = torch.distributions.MultivariateNormal(LAW.mean1, LAW.cov1)
    same(model_of(path, names).log_prob(x), law.log_prob(x), 1e-2)


@pytest.mark.parametrize("path", SETS, ids=str)
def test_heun_does_as_well_as_with_the_velocity(path):
    for steps in (10, 20):
        best, *found = (max(errors(path, v, Heun(steps))) for v in (["velocity"], *SETS[path]))
        assert max(found) < 1.6 * best + 6e-3


def test_a_width_of_infinite_rate_keeps_order_two():
    for names in RATES:
        coarse, fine = (max(errors(BrownianBridge(), names, Heun(k))) for k in (10, 20))
        assert coarse > 3 * fine  # four at order two; at order one the factor is two


@pytest.mark.parametrize("names", [["noise"], ["score"]], ids="+".join)
def test_euler_finds_far_data_from_the_noise_alone(names):
    mean, _ = errors(OneSided(), names, Euler(20))
    assert mean < 1e-2
    x = model_of(OneSided(), names, torch.float32).sample(
        4000, epsilon="gamma", solver=StochasticHeun(40), generator=seeded()
    )
    error = (LAW.cov1.diagonal() / 4000).sqrt()
    assert ((x.mean(0) - LAW.mean1).abs() < 4 * error + 1e-2).all()


@pytest.mark.parametrize("path, names", [c for c in CASES if c[0] in FEW], **ids)
def test_single_precision_suffices(path, names):
    mean, covariance = errors(path, names, RungeKutta(40), torch.float32)
    assert mean < 1e-2 and covariance < 1e-2


MAPPED = [
    (BrownianBridge(), ["velocity", "noise"]), (BrownianBridge(), RATES[0]), (OneSided(), ["noise"]),
]  # fmt: skip


@pytest.mark.parametrize("path, names", MAPPED, **ids)
def test_fields_are_mapped_and_compiled(path, names):
    process = StochasticInterpolant(MLP(2, 8, outputs=names), path)
    t, x = torch.tensor([0.0, 0.3, 0.6, 1.0]), torch.randn(4, 2, generator=seeded())
    for field in (process.velocity, process.noise, process.score):
        rows = torch.func.vmap(lambda t, x, field=field: field(t[None], x[None])[0])(t, x)
        torch.testing.assert_close(rows, field(t, x), atol=1e-5, rtol=1e-4)
    whole = torch.compile(process.velocity, backend="eager", fullgraph=True)(t, x)
    torch.testing.assert_close(whole, process.velocity(t, x), atol=1e-5, rtol=1e-4)
    z = torch.zeros_like(x)
    found = torch.func.vmap(lambda t, x: path.sample(t[None], x[None], x[None], noise=x[None]).x[0])(
        t, x
    )
    torch.testing.assert_close(found, path.sample(t, x, x, noise=x).x)
    assert torch.compile(path.sample, backend="eager", fullgraph=True)(t, z, x, noise=x).x.shape == (
        4,
        2,
    )
