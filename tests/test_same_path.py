"""Losses and processes must speak of one path; what would bend or mistake it is refused."""

from dataclasses import dataclass

import pytest
import torch

from genflow.interpolant import Brownian, BrownianBridge, LearnedAffine, Linear
from genflow.interpolant.base import Affine, same_path
from genflow.loss import BridgeMatching, Matching
from genflow.network import MLP
from genflow.process import LearnedBridge, StochasticInterpolant
from genflow.target import Drift, Noise, Velocity

FIELDS = {"velocity": Velocity(), "noise": Noise()}


def frozen(shift=0.0):
    path = LearnedAffine().requires_grad_(False)
    path.terms += shift
    return path


class Own(Affine):
    """A path of a user's own that keeps its argument but knows no equality."""

    stochastic = True

    def __init__(self, a):
        self.a = a

    def coefficients(self, t):
        return Linear(gamma=Brownian(self.a)).coefficients(t)


@dataclass(frozen=True)
class Described(Own):
    a: float = 1.0


def test_the_regression_may_not_bend_its_path():
    with pytest.raises(ValueError, match="would bend LearnedAffine.*BridgeMatching"):
        Matching(LearnedAffine(), target=FIELDS)
    path, xs = frozen(), torch.randn(2, 8, 2)
    before = path.terms.clone()
    network = MLP(2, 8, outputs=["velocity", "noise"])
    Matching(path, target=FIELDS)(network, *xs).backward()
    assert path.terms.grad is None and torch.equal(path.terms, before)
    learner = LearnedBridge(MLP(2, 8), LearnedAffine(), 1.0)
    BridgeMatching()(learner, *xs).backward()  # which may
    assert learner.interpolant.terms.grad.abs().sum() > 0


def test_equal_paths_are_the_same():
    for one, other in (
        (Linear(), Linear()), (frozen(), frozen().double()), (Described(0.5), Described(0.5)),
    ):  # fmt: skip
        assert same_path(one, other)
    path = Own(0.5)
    assert same_path(path, path)
    for one, other in (
        (Linear(), BrownianBridge()), (frozen(), frozen(0.1)), (Described(0.5), Described(0.6)),
        (Own(0.5), Own(0.6)), (LearnedAffine(3), LearnedAffine(4)),
    ):  # fmt: skip
        assert not same_path(one, other)


def test_a_frozen_path_goes_with_its_copy():
    process = StochasticInterpolant(MLP(2, 8, outputs=["velocity", "noise"]), frozen())
    Matching(frozen(), target=FIELDS).check(process)
    with pytest.raises(ValueError, match="give both the same interpolant"):
        Matching(frozen(0.1), target=FIELDS).check(process)


def test_a_learned_bridge_is_trained_on_its_own_path():
    learner = LearnedBridge(MLP(2, 8), BrownianBridge(), 1.0)
    Matching(BrownianBridge(), target=Drift(1.0)).check(learner)
    for path in (BrownianBridge(0.5), Linear(gamma=Brownian(2.0))):
        with pytest.raises(ValueError, match="give both the same interpolant"):
            Matching(path, target=Drift(1.0)).check(learner)
    learner = LearnedBridge(MLP(2, 8), LearnedAffine(), 1.0)
    with pytest.raises(ValueError, match="process samples LearnedAffine.*trains BrownianBridge"):
        Matching(BrownianBridge(), target=Drift(1.0)).check(learner)
