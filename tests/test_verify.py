"""The check of users' own schedules: right ones pass, each kind of mistake is named."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genflow
from genflow.interpolant import (
    Affine,
    Brownian,
    BrownianBridge,
    Coefficients,
    Constant,
    EncoderDecoder,
    Gamma,
    LearnedAffine,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    SigmaDifference,
    SinSquared,
    Trigonometric,
    VariancePreserving,
    Zero,
    verify,
)
from genflow.interpolant.gamma import Width

RIGHT = [
    Zero(), Constant(0.2), Brownian(), Brownian(0.3), Quadratic(), SinSquared(), SigmaDifference(),
    Linear(), Linear(sigma=0.3), Linear(gamma=SinSquared()), BrownianBridge(2.0), Trigonometric(),
    VariancePreserving(), EncoderDecoder(), EncoderDecoder(SigmaDifference(3.0)), OneSided(),
    OneSided(Trigonometric()), Mirror(), Mirror(Quadratic()), LearnedAffine(4, 2.0),
]  # fmt: skip
KEYS = {
    "dalpha", "dbeta", "dgamma", "gamma_dgamma", "alpha(0)", "alpha(1)", "beta(0)", "beta(1)",
    "gamma(0)", "gamma(1)", "gamma_dgamma(0)", "gamma_dgamma(1)", "stochastic", "positive",
    "positive_float32", "sample", "sample_rate",
}  # fmt: skip


@pytest.mark.parametrize("path", RIGHT, ids=str)
def test_what_is_right_passes(path):
    errors = verify(path)
    assert errors.keys() == KEYS
    assert max(errors.values()) < 1e-12


def test_the_example_of_the_readme_passes():
    text = (Path(genflow.__file__).parents[1] / "README.md").read_text()
    code = re.search(r"```python\n(# genflow/interpolant/cosine.py.*?)```", text, re.DOTALL).group(1)
    names = {"__name__": "cosine"}
    exec(code, names)
    assert max(verify(names["Cosine"]()).values()) < 1e-12


@dataclass(frozen=True)
class Own(Affine):
    """Linear with the Brownian width; each mistake is a subclass that changes one value."""

    stochastic = True

    def coefficients(self, t: Tensor) -> Coefficients:
        return self.change(t, Linear(gamma=Brownian()).coefficients(t))

    def change(self, t, c):
        return c


def mistake(change, **attributes):
    return type("Mistake", (Own,), {"change": staticmethod(change), **attributes})()


def product_at_run_time(t, c):
    return c._replace(gamma_dgamma=c.gamma * c.dgamma)


def narrow(t, c):
    """Negative around t = 0.3, with the right rates."""
    dip = (t - 0.3) ** 2 - 1e-3
    g, dg = t * (1 - t) * dip, (1 - 2 * t) * dip + 2 * t * (1 - t) * (t - 0.3)
    return c._replace(gamma=g, dgamma=dg, gamma_dgamma=g * dg)


def one_sided(t, c):
    zero = torch.zeros_like(t)
    return Coefficients(zero, t, 1 - t, zero, 1 + zero, zero - 1, t - 1)


def unseen(t, c):
    beta = torch.as_tensor([math.sin(math.pi / 2 * s) for s in t.tolist()], dtype=t.dtype)
    return c._replace(beta=beta)


MISTAKES = [
    (lambda t, c: c._replace(dalpha=-c.dalpha), "dalpha is 1 at t = .*derivative -1 of alpha"),
    (lambda t, c: c._replace(dbeta=c.dbeta * t), "dbeta is 0.0013 at t = 0.0013, must be .* 1 of beta"),
    (lambda t, c: c._replace(dgamma=2 * c.dgamma), r"dgamma is .* at t = (0.0013|0.9989), must be"),
    (lambda t, c: c._replace(gamma_dgamma=-c.gamma_dgamma), "gamma_dgamma is .* of gamma.2 / 2"),
    (product_at_run_time, r"gamma_dgamma\(0\) is 0 but 0.5 close by.*gamma_dgamma\(1\) is 0 but -0.5"),
    (lambda t, c: c._replace(alpha=c.alpha + 0.1), r"alpha\(0\) is 1.1, must be 1; alpha\(1\) is 0.1"),
    (lambda t, c: c._replace(beta=0.9 * t, dbeta=0.9 * c.dbeta), r"beta\(1\) is 0.9, must be 1"),
    (
        lambda t, c: c._replace(gamma=(c.gamma**2 + 0.01).sqrt(),
                                dgamma=c.gamma_dgamma / (c.gamma**2 + 0.01).sqrt()),
        r"gamma\(0\) is 0.1, must be 0; gamma\(1\) is 0.1",
    ),
    (lambda t, c: c._replace(dgamma=c.gamma_dgamma / c.gamma), "dgamma is not finite at t = 0 in .*32"),
    (lambda t, c: c._replace(beta=t * t / t), "beta is not finite at t = 0 in .*float32.*float64"),
    (lambda t, c: c._replace(beta=t.float()), r"beta is \(5,\) torch.float32 for times \(5,\) .*64"),
    (lambda t, c: c._replace(alpha=torch.tensor(1.0)), r"alpha is \(\) torch.float32 for times \(5,\)"),
    (lambda t, c: c[:6], "gives 6 values, must be alpha, beta, gamma"),
    (narrow, "gamma is -0.000.* at t = 0.[23].*must be positive"),
    (one_sided, r"alpha\(0\) is 0, must be 1; gamma\(0\) is 1, must be 0"),
    (unseen, "beta changes with t in a way that autograd cannot see"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", MISTAKES)
def test_each_mistake_is_named(change, words):
    verify(Own())
    with pytest.raises(ValueError, match=words) as caught:
        verify(mistake(change))
    assert str(caught.value).startswith("verify(Mistake()): ")


def test_only_the_mistake_is_named():
    with pytest.raises(ValueError) as caught:
        verify(mistake(lambda t, c: c._replace(dalpha=c.dalpha + 1e-6)))
    # the sample's rate is that of the coefficients, right or wrong
    assert len(str(caught.value).split(";")) == 1
    verify(mistake(lambda t, c: c._replace(dalpha=c.dalpha + 1e-6)), tolerance=1e-5)


def test_independent_paths_have_other_ends():
    assert max(verify(mistake(one_sided, independent=True)).values()) < 1e-12
    with pytest.raises(ValueError, match=r"gamma\(0\) is 0.9, must be 1 on a one-sided path"):
        verify(mistake(lambda t, c: _wider(one_sided(t, c), 0.9), independent=True))
    with pytest.raises(ValueError, match=r"beta\(1\) is 0.8, must be 1 on a mirror"):
        verify(mistake(_sinking_mirror, independent=True))


def _wider(c, by):
    return c._replace(gamma=by * c.gamma, dgamma=by * c.dgamma, gamma_dgamma=by**2 * c.gamma_dgamma)


def _sinking_mirror(t, c):
    zero = torch.zeros_like(t)
    return c._replace(alpha=zero, dalpha=zero, beta=1 - 0.2 * t, dbeta=zero - 0.2)


@pytest.mark.parametrize("change, stochastic", [
    (lambda t, c: c, False), (lambda t, c: _wider(c, 0), True),
])  # fmt: skip
def test_stochastic_says_the_truth(change, stochastic):
    with pytest.raises(ValueError, match=rf"stochastic is {stochastic} but the largest gamma is"):
        verify(mistake(change, stochastic=stochastic))


@pytest.mark.parametrize("wrong, words", [
    (lambda s: s.x + 0.01 * s.xs[0], r"the x of sample\(\) is off alpha x0"),
    (lambda s: s.rate + s.noise, r"the rate of sample\(\) is off dalpha x0 \+ dbeta x1 by .* at t = "),
])  # fmt: skip
def test_an_own_sample_is_compared(wrong, words):
    class Sampled(Own):
        def sample(self, t, *xs, **options):
            s = super().sample(t, *xs, **options)
            object.__setattr__(s, "rate" if "rate" in words else "x", wrong(s))
            return s

    with pytest.raises(ValueError, match=words):
        verify(Sampled())


class Ramp(Gamma):
    """A width that does not return to zero."""

    def __call__(self, t):
        return Width(t, torch.ones_like(t), t)


class Hidden(Quadratic):
    zero = True


def test_widths_are_checked_alone():
    with pytest.raises(ValueError, match=r"gamma\(1\) is 1, must be 0"):
        verify(Ramp())
    with pytest.raises(ValueError, match="zero is True but the largest gamma is 0.25"):
        verify(Hidden())


@pytest.mark.parametrize("other", [3, "linear", Linear])
def test_other_things_are_refused(other):
    with pytest.raises(ValueError, match="give an affine interpolant or a width"):
        verify(other)
