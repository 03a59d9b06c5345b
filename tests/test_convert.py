"""Conversions between fields: one table, tested on samples, exact fields and explicit formulas."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from gaussians import Pair, fields, pair, root
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.interpolant import (
    Affine,
    Brownian,
    BrownianBridge,
    EncoderDecoder,
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
)
from genflow.target import convert

WIDTHS = [Brownian(), Brownian(0.3), Quadratic(), SinSquared(), SigmaDifference(4.0)]
BELOW_ONE = [g for g in WIDTHS if not isinstance(g, SinSquared)]
PATHS = [
    Linear(), Linear(sigma=0.3), BrownianBridge(0.7), Trigonometric(), VariancePreserving(Zero()),
    *[Linear(gamma=g) for g in WIDTHS], *map(Trigonometric, WIDTHS),
    *map(VariancePreserving, BELOW_ONE), *map(EncoderDecoder, WIDTHS), *map(Mirror, WIDTHS),
    OneSided(), OneSided(Trigonometric()), OneSided(VariancePreserving(Zero())),
]  # fmt: skip
NAMES = ("velocity", "rate", "noise", "score", "denoised", "start")
every_path = pytest.mark.parametrize("path", PATHS, ids=str)


def record(path, t, seed=0, shape=(2,)):
    """``x`` and all fields of one draw; what holds for draws holds for their means given ``x``."""
    draw = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, len(t), *shape, generator=draw, dtype=torch.float64)
    s = path.sample(t, x0, x1, generator=draw)
    known = {"velocity": s.velocity, "rate": s.rate, "denoised": s.xs[1], "start": s.xs[0]}
    return s.x, known | ({"noise": s.noise, "score": s.score} if path.stochastic else {})


def rows(path, t):
    """The table at one time, in the unknowns x0, x1 and z."""
    a, b, g, da, db, dg, _ = (float(v) for v in path.coefficients(torch.tensor([t]).double()))
    start = {OneSided: (0, 0, 1), Mirror: (0, 1, 0)}.get(type(path), (1, 0, 0))
    found = {"x": (a, b, g), "velocity": (da, db, dg), "rate": (da, db, 0), "noise": (0, 0, 1),
             "score": (0, 0, -1 / g if g else 0), "denoised": (0, 1, 0), "start": start}  # fmt: skip
    return {
        name: np.array(row) / max(map(abs, row), default=1) for name, row in found.items() if any(row)
    }


def determined(path, t, known, to):
    """By ranks: whether the row of ``to`` lies in the span of the known ones."""
    table = rows(path, t)
    if to not in table:  # zero throughout
        return True
    span = [table[name] for name in ("x", *known) if name in table]
    ranks = [np.linalg.matrix_rank(np.stack(m), tol=1e-6) for m in (span, [*span, table[to]])]
    return ranks[0] == ranks[1]


@every_path
@settings(max_examples=5)
@given(t=st.floats(0.03, 0.97), seed=st.integers(0, 100), k=st.integers(1, 3), draw=st.randoms())
def test_round_trips(path, t, seed, k, draw):
    if abs(t - 0.5) < 0.02:  # the rate of a symmetric width is zero in the middle
        t = 0.52
    x, true = record(path, torch.full((3,), t, dtype=torch.float64), seed)
    known = draw.sample(sorted(true), k)
    for to in true.keys() - known:
        if not determined(path, t, known, to):
            with pytest.raises(ValueError, match=f"the {to} on "):
                convert(to, t, x, path, **{name: true[name] for name in known})
            continue
        found = convert(to, t, x, path, **{name: true[name] for name in known})
        scale = 1 + max(float(v.abs().max()) for v in true.values())
        assert (found - true[to]).abs().max() < 1e-7 * scale, (known, to)
        back = {name: true[name] for name in known[1:]} | {to: found}
        if determined(path, t, back, known[0]):
            again = convert(known[0], t, x, path, **back)
            assert (again - true[known[0]]).abs().max() < 1e-6 * scale, (known, to)


@every_path
def test_every_pair_of_fields_at_many_times(path):
    t = torch.tensor([0.02, 0.4, 0.81], dtype=torch.float64)
    x, true = record(path, t)
    done = 0
    for known in itertools.combinations(true, 2):
        for to in true.keys() - set(known):
            if not all(determined(path, float(s), known, to) for s in t):
                continue
            found = convert(to, t, x, path, **{name: true[name] for name in known})
            torch.testing.assert_close(found, true[to], rtol=1e-8, atol=1e-8)
            done += 1
    assert done >= (2 if path.stochastic else 10)


SINGLE = [Linear(), Trigonometric(), VariancePreserving(Zero())]


@pytest.mark.parametrize("t", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("path", SINGLE, ids=str)
def test_one_sided_formulas(path, t, generator):
    x, b = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    time = torch.tensor([t], dtype=torch.float64)
    alpha, beta, _, dalpha, dbeta, *_ = (float(v) for v in path.coefficients(time))
    turn = alpha * dbeta - dalpha * beta
    noise = (dbeta * x - beta * b) / turn
    score = (beta * b - dbeta * x) / (alpha * turn)
    denoised = (x + alpha**2 * score) / beta
    one = OneSided(path)

    def close(found, true):
        return (found - true).abs().max() < 1e-9 * (1 + true.abs().max())

    for name, true in (("score", score), ("noise", noise), ("start", noise), ("denoised", denoised)):
        assert close(convert(name, t, x, one, velocity=b), true), name
    again = dbeta / beta * x + alpha * (alpha * dbeta / beta - dalpha) * score
    assert close(convert("velocity", t, x, one, score=score), again)
    assert close(again, b)
    if path == Linear():
        assert close(convert("score", t, x, one, velocity=b), (t * b - x) / (1 - t))
        assert close(convert("velocity", t, x, one, score=score), (x + (1 - t) * score) / t)
    assert not close(convert("score", t, x, one, velocity=b), -score)
    assert not close(convert("score", t, x, one, velocity=b), score * alpha) or alpha > 1 - 1e-3


def gaussian_source(coupled):
    """A standard normal source, and data that are its optimal map or independent of it."""
    law = pair()
    eye, spread = torch.eye(2, dtype=torch.float64), root(law.cov1)
    return Pair(0 * law.mean0, eye, law.mean1, law.cov1, spread if coupled else 0 * eye)


def exact(law, path, t, x):
    """Exact fields at one time, x (B, 2)."""
    c = path.coefficients(torch.tensor([t], dtype=torch.float64))
    a, b, g = (float(v) for v in c[:3])
    lines = fields(law, c)
    inverse = torch.linalg.inv(
        a**2 * law.cov0 + b**2 * law.cov1 + a * b * (law.cross + law.cross.T)
        + g**2 * torch.eye(2, dtype=torch.float64)
    )  # fmt: skip
    slope = (a * law.cov0 + b * law.cross) @ inverse
    lines["start"] = (slope, law.mean0 - slope @ (a * law.mean0 + b * law.mean1))
    return {name: x @ m.T + k for name, (m, k) in lines.items()}


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_one_sided_score_is_wrong_for_transport_pairs(t, generator):
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    for coupled in (False, True):
        true = exact(gaussian_source(coupled), Linear(), t, x)
        found = convert("score", t, x, OneSided(Linear()), velocity=true["velocity"])
        error = (found - true["score"]).abs().max()
        assert error < 1e-9 if not coupled else error > 0.1
        # what holds for every coupling does hold
        found = convert("denoised", t, x, Linear(), velocity=true["velocity"])
        assert (found - true["denoised"]).abs().max() < 1e-9


ENDS = [
    (Linear(), "denoised", "velocity"), (Linear(), "start", "velocity"),
    (Linear(), "velocity", "denoised start"), (Trigonometric(), "denoised", "velocity"),
    (BrownianBridge(0.7), "velocity", "rate score"), (BrownianBridge(0.7), "rate", "velocity score"),
    (BrownianBridge(0.7), "score", "velocity rate"), (BrownianBridge(0.7), "noise", "velocity rate"),
    (BrownianBridge(0.7), "noise", "score"), (BrownianBridge(0.7), "denoised", "velocity score"),
    (BrownianBridge(0.7), "start", "velocity score"), (BrownianBridge(0.7), "denoised", "rate noise"),
    (EncoderDecoder(), "velocity", "rate score"), (VariancePreserving(), "velocity", "rate score"),
    (VariancePreserving(), "score", "velocity rate"), (Linear(gamma=SinSquared()), "noise", "score"),
    (Linear(gamma=Quadratic()), "velocity", "rate noise"),
    (Linear(gamma=Quadratic()), "denoised", "velocity noise"),
]  # fmt: skip


@pytest.mark.parametrize("t", [0.0, 1e-13, 1e-5, 1 - 1e-5, 1.0])
@pytest.mark.parametrize("path, to, known", ENDS, ids=str)
def test_limits_at_both_ends(path, to, known, t, generator):
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    true = exact(pair(correlated=True), path, t, x)
    found = convert(to, t, x, path, **{name: true[name] for name in known.split()})
    assert (found - true[to]).abs().max() < 1e-6


@pytest.mark.parametrize("t", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
def test_one_sided_limits_at_both_ends(path, t, generator):
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    true = exact(gaussian_source(False), path, t, x)
    for to in ("denoised", "start", "noise"):
        found = convert(to, t, x, OneSided(path), velocity=true["velocity"])
        want = true["start"] if to == "noise" else true[to]
        assert (found - want).abs().max() < 1e-6, to
    if t < 0.5:  # at t = 1 the velocity no longer tells the score
        found = convert("score", t, x, OneSided(path), velocity=true["velocity"])
        assert (found - true["score"]).abs().max() < 1e-6


@every_path
def test_always_finite(path, generator):
    t, dtype = torch.tensor([0.0, 0.5, 1.0, 1e-8, 0.25]), torch.float32
    x, *values = torch.randn(7, 5, 1, 4, 4, generator=generator)
    for known in itertools.combinations(zip(NAMES[:5], values), 2):
        for to in NAMES:
            try:
                found = convert(to, t, x, path, **dict(known))
            except ValueError:
                continue
            assert found.isfinite().all() and found.dtype == dtype and found.shape == x.shape


def test_a_learned_interpolant_is_converted_too(generator):
    path = LearnedAffine(4, 2.0).double()
    torch.nn.init.normal_(path.terms, std=0.3, generator=generator)
    t = torch.rand(5, generator=generator, dtype=torch.float64)
    x, true = record(path, t)
    found = convert("denoised", t, x, path, velocity=true["velocity"], noise=true["noise"])
    torch.testing.assert_close(found, true["denoised"], rtol=1e-8, atol=1e-8)


def test_a_path_that_cannot_be_hashed_is_converted_too(generator):
    @dataclasses.dataclass
    class Mutable(Affine):
        stochastic = False

        def coefficients(self, t):
            return Linear().coefficients(t)

    x, b = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(convert("denoised", 0.3, x, Mutable(), velocity=b), x + 0.7 * b)


def test_shapes_times_and_gradients(generator):
    x, b = torch.randn(2, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    b.requires_grad_()
    number = convert("score", 0.3, x, OneSided(), velocity=b)
    each = convert("score", torch.full((5,), 0.3), x, OneSided(), velocity=b)
    mixed = convert("score", torch.tensor([0.3, 0.9, 0.3, 0.1, 0.3]), x, OneSided(), velocity=b)
    assert number.shape == x.shape
    torch.testing.assert_close(number, each, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(number[::2], mixed[::2], rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(number.sum(), b)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.3 / 0.7))
    assert convert("score", 0.3, x, Linear(), score=b) is b


@pytest.mark.parametrize(
    "to, path, known, words",
    [
        ("score", Linear(), ["velocity"], r"zero width.*OneSided\(path\) stands for.*would be wrong"),
        ("noise", Trigonometric(), ["denoised", "velocity"], r"zero width.*OneSided\(path\)"),
        (
            "score",
            BrownianBridge(),
            ["velocity"],
            r"give rate, or noise, or denoised, or start as well",
        ),
        (
            "denoised",
            BrownianBridge(),
            ["noise"],
            "x and noise do not .* give velocity, or rate, or st",
        ),
        ("start", BrownianBridge(), [], "x alone does not .* give velocity and rate, or"),
        ("denoised", EncoderDecoder(), ["velocity", "noise"], "no other field does"),
        ("speed", Linear(), ["velocity"], "unknown field 'speed'; it must be one of velocity, rate"),
        ("score", Linear(), ["drift"], "unknown field 'drift'"),
        ("score", Brownian(), ["velocity"], "no affine interpolant"),
    ],
)
def test_what_is_not_determined_is_refused(to, path, known, words):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=words):
        convert(to, 0.3, x, path, **dict.fromkeys(known, x))


def test_bad_times_and_shapes_are_refused():
    x = torch.zeros(3, 2)
    for t in (-0.1, 1.5, float("nan"), torch.tensor([0.1, 0.2, 1.1])):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            convert("score", t, x, BrownianBridge(), noise=x)
    with pytest.raises(ValueError, match=r"noise has shape \(3, 1\), expected \(3, 2\)"):
        convert("score", 0.5, x, BrownianBridge(), noise=x[:, :1])
    with pytest.raises(ValueError, match="3 rows"):
        convert("score", torch.rand(4), x, BrownianBridge(), noise=x)


def test_a_path_in_two_halves_is_decided_in_each():
    x, true = record(EncoderDecoder(), torch.tensor([0.7, 0.9], dtype=torch.float64))
    known = {"noise": true["noise"]}
    found = convert("denoised", torch.tensor([0.7, 0.9]).double(), x, EncoderDecoder(), **known)
    torch.testing.assert_close(found, true["denoised"])
    with pytest.raises(ValueError, match="denoised on"):
        convert("denoised", torch.tensor([0.3, 0.9]).double(), x, EncoderDecoder(), **known)
