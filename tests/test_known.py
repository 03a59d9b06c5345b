"""Which trainings have a known oracle, and that it is what they regress on: residuals of a loss's own
draws are uncorrelated with every function of the place and time, or the oracle is another law's."""

import pytest
import torch
from gaussians import bridge_cross, distance, fields, pair, tilted
from laws import LEFT, RIGHT
from torch import Tensor

from genflow.coupling import ExactOT, Gibbs, Independent, PartialOT, Sinkhorn, UnbalancedOT
from genflow.interpolant import (
    Brownian,
    BrownianBridge,
    EncoderDecoder,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    Trigonometric,
)
from genflow.loss import BridgeMatching, Matching, On, Sum
from genflow.model import Generator
from genflow.network import MLP
from genflow.oracle import Exact, mirrored, oracle_of
from genflow.process import SDE
from genflow.solver import Euler
from genflow.source import (
    Checkerboard,
    EightGaussians,
    Empirical,
    Gaussian,
    GaussianMixture,
    Moons,
)
from genflow.target import Denoised, Drift, Noise, Rate, Score, Velocity
from genflow.time import Uniform
from genflow.transform import Identity, Standardise

START, END = LEFT.double(), RIGHT.double()
NOISE = Gaussian(2).double()
LAW = pair()
SINGLE = [
    GaussianMixture([m.tolist()], [c.tolist()]).double()
    for m, c in ((LAW.mean0, LAW.cov0), (LAW.mean1, LAW.cov1))
]
TARGETS = {
    "velocity": Velocity(), "rate": Rate(), "noise": Noise(), "score": Score(),
    "drift": Drift(0.7), "denoised": Denoised(),
}  # fmt: skip
NO_WIDTH = {name: TARGETS[name] for name in ("velocity", "rate", "denoised")}


def model(source=START, transform=None) -> Generator:
    return Generator(source, SDE(MLP(2, 8)), Euler(2), transform)


def features(t: Tensor, x: Tensor) -> Tensor:
    """Functions of place and time that a wrong field is unlikely to be orthogonal to, ``(B, 9)``."""
    a, b = x[:, 0], x[:, 1]
    rows = [a**0, t, a, b, a * b, a**2 - b**2, (2 * a).sin(), (2 * b).cos(), t * a]
    return torch.stack(rows, 1)


def strangeness(oracle: Exact, loss: Matching, x0, x1, n: int = 20_000) -> dict[str, float]:
    """By field, the largest correlation of a residual with a feature, in standard errors."""
    draw = torch.Generator().manual_seed(0)
    found = loss.draw(x0.sample(n, draw), x1.sample(n, draw), generator=draw)
    t, x, w = found.sample.t, found.sample.x, found.weight[:, None, None]
    exact = oracle.fields(t, x, found.target, sigma=0.7)
    seen = {}
    for name, target in found.target.items():
        each = w * (target - exact[name])[:, :, None] * features(t, x)[:, None]
        seen[name] = float((each.mean(0) / (each.std(0) / n**0.5)).abs().max())
    return seen


def training(path, coupling=None, target=None) -> Matching:
    target = target or (TARGETS if path.stochastic else NO_WIDTH)
    return Matching(path, coupling or Independent(), Uniform(margin=0.05), target)


KNOWN = {
    "plain": (training(Linear()), START, END),
    "blurred": (training(Linear(sigma=0.3)), START, END),
    "bridge": (training(BrownianBridge(0.7)), START, END),
    "trigonometric": (training(Trigonometric(Quadratic())), NOISE, END),
    "through noise": (training(EncoderDecoder()), EightGaussians().double(), END),
    "one-sided": (training(OneSided()), NOISE, END),
    "one-sided, turned": (training(OneSided(Trigonometric())), NOISE, END),
    "mirror": (training(Mirror(Brownian(0.8))), START, END),
    "tilted": (training(Linear(), Gibbs(3.0)), START, END),
    "tilted bridge": (training(BrownianBridge(1.0), Gibbs(2.0, normaliser="pilot")), START, END),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_the_oracle_is_what_the_loss_regresses_on(kind):
    loss, x0, x1 = KNOWN[kind]
    if getattr(loss.coupling, "normaliser", "batch") == "pilot":
        draw = torch.Generator().manual_seed(5)
        loss = training(loss.interpolant, loss.coupling)
        fitted = loss.coupling.prepare(x0.sample(20_000, draw), x1.sample(20_000, draw))
        loss = training(loss.interpolant, fitted)
    oracle = oracle_of(model(x0), loss, x0, x1)
    assert oracle.interpolant == loss.interpolant and oracle.shape == (2,)
    seen = strangeness(oracle, loss, x0, x1)
    assert seen.keys() == loss.target.keys() and max(seen.values()) < 4.5, seen


def test_an_oracle_of_another_law_would_be_seen():
    # weights forgotten, weights of another temperature, another path, another end
    weighted, x0, x1 = KNOWN["tilted"]
    plain = KNOWN["plain"][0]
    assert strangeness(oracle_of(model(), plain, x0, x1), weighted, x0, x1)["velocity"] > 10
    other = training(Linear(), Gibbs(1.5))
    assert strangeness(oracle_of(model(), other, x0, x1), weighted, x0, x1)["velocity"] > 10
    mirror = KNOWN["mirror"][0]
    assert strangeness(Exact(mirrored(x0), mirror.interpolant), mirror, x0, x1)["denoised"] > 10
    bent = training(Trigonometric())
    assert strangeness(oracle_of(model(), bent, x0, x1), plain, x0, x1)["velocity"] > 10
    assert strangeness(oracle_of(model(), plain, x1, x0), plain, x0, x1)["velocity"] > 10


@pytest.mark.parametrize("x0", [Checkerboard(), Empirical(), START], ids=lambda s: type(s).__name__)
def test_the_start_of_a_mirror_plays_no_role(x0):
    loss = training(Mirror())
    oracle = oracle_of(model(), loss, x0, END)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.2, 0.5):  # the data blurred by the width, from torch's own distributions
        weights, means, covs = END.components()
        blurred = torch.distributions.MultivariateNormal(means, covs + t * (1 - t) * torch.eye(2))
        law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), blurred)
        assert torch.allclose(oracle.log_prob(t, x), law.log_prob(x))
    assert oracle_of(model(), loss, END, Moons()) is None


# pairs that are known in closed form: tests/gaussians.py, which shares no code with the oracle


def slopes(oracle: Exact, t: float, names, sigma: float) -> dict:
    """The affine maps that the fields of a Gaussian pair are, read off at three points."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = oracle.fields(t, points, names, sigma)
    return {n: ((v[1:] - v[0]).T, v[0]) for n, v in found.items()}


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_gaussian_pairs_have_their_closed_form(t, epsilon):
    path, names = BrownianBridge(0.7), ["velocity", "noise", "drift", "denoised"]
    c = path.coefficients(torch.tensor([t], dtype=torch.float64))
    bridge = LAW._replace(cross=bridge_cross(LAW, (epsilon / 2) ** 0.5))
    truth = {"Sinkhorn": bridge, "Gibbs": tilted(LAW, 1 / epsilon), "Independent": LAW}
    for coupling in (Sinkhorn(epsilon), Gibbs(epsilon), Independent()):
        oracle = oracle_of(model(), training(path, coupling), *SINGLE)
        found = slopes(oracle, t, names, 0.7)
        for kind, law in truth.items():
            true = fields(law, c, 0.7)
            off = max(distance(found[name], true[name]) for name in names)
            if kind == type(coupling).__name__:
                assert off < 1e-10
            else:
                assert off > 0.01, "a law that is not that of these pairs"


def test_sinkhorn_pairs_have_the_covariance_of_their_oracle(generator):
    coupling, n = Sinkhorn(1.0), 1000
    law = oracle_of(model(), training(BrownianBridge(1.0), coupling), *SINGLE).law
    seen = []
    for _ in range(10):
        xs = [source.sample(n, generator) for source in SINGLE]
        a, b = coupling(*xs, generator=generator).gather(*xs)
        seen.append((a - law.mean0[0]).T @ (b - law.mean1[0]) / n)
    seen = torch.stack(seen)
    error = seen.std(0) / len(seen) ** 0.5
    assert ((seen.mean(0) - law.cross[0]).abs() < 4 * error + 0.01).all()
    assert (law.cross[0].abs() > 8 * error).any(), "independent pairs would show"


def prepared(x1=END) -> Standardise:
    return Standardise(2).double().prepare(x1.sample(4000, torch.Generator().manual_seed(1)))


UNKNOWN = {
    "moons": (training(Linear()), START, Moons()),
    "moons at the start": (training(Linear()), Moons(), END),
    "a table": (training(Linear()), Empirical(), END),
    "exact transport": (training(Linear(), ExactOT()), *SINGLE),
    "partial transport": (training(Linear(), PartialOT(0.5)), *SINGLE),
    "unbalanced transport": (training(Linear(), UnbalancedOT()), *SINGLE),
    "entropic mixtures": (training(Linear(), Sinkhorn(1.0)), START, END),
    "another cost": (training(Linear(), Sinkhorn(1.0, cost="euclidean")), *SINGLE),
    "another cost of weights": (training(Linear(), Gibbs(1.0, cost="euclidean")), *SINGLE),
    "Gaussian correction": (training(Linear(), Gibbs(1.0, correction="gaussian")), START, END),
    "Sinkhorn correction": (training(Linear(), Gibbs(1.0, correction="sinkhorn")), START, END),
    "weights within classes": (training(Linear(), Gibbs(1.0, conditions="within")), START, END),
    "weights of conditions": (training(Linear(), Gibbs(1.0, conditions=0.5)), START, END),
    "pairs within classes": (training(Linear(), Sinkhorn(1.0, conditions="within")), *SINGLE),
    "no temperature yet": (training(Linear(), Gibbs()), START, END),
    "a sum of losses": (Sum([training(Linear())]), START, END),
    "a part of the learner": (On("network", training(Linear())), START, END),
    "a learned path": (BridgeMatching(Independent(), Uniform()), START, END),
    "no loss of matching": (None, START, END),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_others_are_not_known(kind):
    assert oracle_of(model(), *UNKNOWN[kind]) is None


def test_units_count_where_a_temperature_does():
    for coupling, ends in ((Gibbs(1.0), (START, END)), (Sinkhorn(1.0), SINGLE)):
        loss = training(Linear(), coupling)
        assert oracle_of(model(transform=prepared()), loss, *ends) is None
        assert oracle_of(model(transform=Identity()), loss, *ends) is not None
    assert oracle_of(model(transform=prepared()), training(Linear()), START, END) is not None


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (OneSided(), NOISE),
        *((p, s) for p in (Mirror(), Linear(gamma=Brownian())) for s in (NOISE, START)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_independent_pairs_are_known_in_any_units(path, source, generator):
    """The learner trains on encoded draws: their residuals must not see the oracle in data units."""
    transform = prepared(END)
    outer, loss = model(source, transform).double(), training(path)
    inner = oracle_of(outer, loss, source, END)._inside(outer)

    class Encoded:
        def __init__(self, law):
            self.law = law

        def sample(self, n, draw):
            x = self.law.sample(n, draw)
            return x if self.law.latent else transform(x)

    seen = strangeness(inner, loss, Encoded(source), Encoded(END))
    assert max(seen.values()) < 4.5, seen
    raw = strangeness(oracle_of(outer, loss, source, END), loss, Encoded(source), Encoded(END))
    assert max(raw.values()) > 10
