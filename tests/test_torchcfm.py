"""Matching against torchcfm 1.0.7: the same pairs, times and noise give the same regression."""

import pytest
import torch

from genflow.coupling import ExactOT, Independent, Sinkhorn
from genflow.interpolant import BrownianBridge, Linear, Trigonometric
from genflow.loss import Matching
from genflow.target import Velocity
from genflow.time import Uniform


def batches(n=16, m=16, shape=(2,), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x0, 1 + torch.randn(m, *shape, generator=generator, dtype=dtype)


MATCHERS = {
    "icfm": (Linear(sigma=0.3), Independent(), "ConditionalFlowMatcher", {"sigma": 0.3}),
    "fm": (Linear(), Independent(), "ConditionalFlowMatcher", {"sigma": 0.0}),
    "otcfm": (
        Linear(sigma=0.3), ExactOT(), "ExactOptimalTransportConditionalFlowMatcher", {"sigma": 0.3},
    ),
    "sbcfm": (
        BrownianBridge(0.8), Sinkhorn(2 * 0.8**2), "SchrodingerBridgeConditionalFlowMatcher",
        {"sigma": 0.8, "ot_method": "sinkhorn"},
    ),
    "vp": (Trigonometric(), Independent(), "VariancePreservingConditionalFlowMatcher", {"sigma": 0.0}),
}  # fmt: skip


def matcher(name):
    module = pytest.importorskip("torchcfm.conditional_flow_matching")
    _, _, kind, options = MATCHERS[name]
    return getattr(module, kind)(**options)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("name", MATCHERS)
def test_locations_and_targets_are_those_of_torchcfm(name, shape):
    path, coupling, _, _ = MATCHERS[name]
    other = matcher(name)
    # torchcfm adds 1e-8 to a denominator that vanishes at the ends, hence the margin and float64
    loss = Matching(path, coupling, Uniform(margin=0.05), Velocity())
    draw = loss.draw(
        *batches(shape=shape, dtype=torch.float64), generator=torch.Generator().manual_seed(1)
    )
    sample = draw.sample
    if hasattr(other, "ot_sampler"):  # its pairs are random: freeze ours
        other.ot_sampler.sample_plan = lambda x0, x1: (x0, x1)
    other.sample_noise_like = lambda x: sample.noise
    t, x, u = other.sample_location_and_conditional_flow(*sample.xs, t=sample.t)
    torch.testing.assert_close(sample.x, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(draw.target, u, rtol=1e-6, atol=1e-6)
    assert (draw.target - 1.01 * u).abs().max() > 1e-3


def test_exact_pairs_are_the_support_of_torchcfm_plan():
    xs = batches(32, 32)
    plan = torch.as_tensor(matcher("otcfm").ot_sampler.get_map(*xs))
    i, j = ExactOT()(*xs).indices
    assert torch.equal((plan > 1e-9).nonzero(), torch.stack([i, j], 1))


def test_entropic_plan_is_that_of_torchcfm():
    xs = batches(32, 32, dtype=torch.float64)
    plan = torch.as_tensor(matcher("sbcfm").ot_sampler.get_map(*xs))
    ours = Sinkhorn(2 * 0.8**2, tolerance=1e-10, max_iterations=50_000).plan(*xs)
    torch.testing.assert_close(ours, plan, rtol=0, atol=1e-5 / 32)
    wrong = Sinkhorn(0.8**2, tolerance=1e-10, max_iterations=50_000).plan(*xs)
    assert (wrong - plan).abs().max() > 1e-2 / 32
