"""The parametric bootstrap against a closed form."""

import math

import pytest
import torch
from populations import START, TRUTH, Push, double

from genflow.population import bootstrap


def difference(xs):
    return {"push": (xs[1].mean() - xs[0].mean()) / 2}


def test_the_bootstrap_has_the_width_of_independent_batches(generator):
    start = torch.randn(5000, 1, generator=generator, dtype=double)
    times, n = (0.0, 2.0), (40, 60)
    found = bootstrap(
        difference, Push(0.5), 0.8, times, n, start, replicates=600, dt=2.0, generator=generator
    )
    honest = math.sqrt(float(start.var()) / 40 + (float(start.var()) + 0.64 * 2) / 60) / 2
    assert float(found.samples["push"].std()) == pytest.approx(honest, rel=0.12)
    low, high = found.intervals()["push"]
    assert (high - low) / (2 * 1.645) == pytest.approx(honest, rel=0.15)
    # a bias of the estimator is taken off
    biased = bootstrap(
        lambda xs: {"push": difference(xs)["push"] + 1}, Push(1.5), 0.8, times, n, start,
        replicates=600, dt=2.0, generator=generator,
    )  # fmt: skip
    low, high = biased.intervals()["push"]
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.05)


def test_positive_parameters_have_relative_errors(generator):
    def doubled(xs):
        return {"alpha": 2.0, "beta": 0.4, "gamma": 0.4, "delta": 0.1}

    found = bootstrap(doubled, TRUTH, 0.1, (0.0, 1.0), (3, 3), START, 4, 0.5, generator)
    assert found.intervals()["alpha"] == pytest.approx((0.5, 0.5))


def test_fits_that_fail_are_counted(generator):
    calls = []

    def sometimes(xs):
        calls.append(xs)
        if len(calls) % 3 == 0:
            raise (FloatingPointError if len(calls) % 2 else ValueError)("it diverged")
        return {"push": math.nan} if len(calls) % 3 == 1 else {"push": 1.0}

    options = (Push(), 0.8, (0.0, 2.0), (4, 4), torch.zeros(2, 1), 9, 1.0, generator)
    found = bootstrap(sometimes, *options)
    assert len(found.failed) == 6 and found.failed.count("it diverged") == 3
    assert [len(x) for x in calls[0]] == [4, 4]

    def never(xs):
        raise RuntimeError("no")

    with pytest.raises(ValueError, match="9 of 9 fits failed, e.g. 'no'"):
        bootstrap(never, *options)
    with pytest.raises(ValueError, match="must return push, got pull"):
        bootstrap(lambda xs: {"pull": 1.0}, *options)
