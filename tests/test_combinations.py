"""Stochastic interpolants from the command line: what goes together, and what is refused."""

import json

import pytest
import torch
from configs import QUIET, TINY, composed, plain
from toy_training import equal, stored

import genflow
from genflow.interpolant import Brownian, Linear, Trigonometric
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import StochasticInterpolant
from genflow.solver import Heun
from genflow.source import Gaussian
from genflow.target import Denoised, Noise, Rate, Score, Velocity
from genflow.training.cli import run

BARE = [*TINY, *QUIET, "logger=none", "callbacks.report=null", "callbacks.figures=null"]
GMM, ONE_SIDED = "experiment=interpolant_gmm", "experiment=one_sided_digits"
OTHER_PATH = "interpolant@interpolant.path=trigonometric"


def trained(folder, *overrides: str):
    run(composed(folder, *BARE, *overrides))
    return genflow.load(folder / "model.ckpt")


def refusal(folder, *overrides: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(composed(folder, *BARE, *overrides))
    said = stop.value.code
    assert said.startswith("genflow: ") and "\n" not in said
    assert not list(folder.rglob("*.ckpt")), "refused before training"
    return said


def test_the_noise_of_a_model_is_chosen_from_the_command_line(tmp_path):
    model = trained(tmp_path, GMM, "process.epsilon=gamma", "solver=stochastic_heun")
    assert (model.process.epsilon, type(model.solver).__name__) == ("gamma", "StochasticHeun")
    assert model.process.stochastic and model.process.interpolant.gamma.a == 1.0
    draws = [model.sample(20, generator=torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_heun_solver_gives_way_to_its_stochastic_kin(tmp_path):
    model = trained(tmp_path, GMM, "process.epsilon=1.0")
    assert bool(model.sample(20).isfinite().all())


def test_laws_of_time_keep_the_margin_and_the_path(tmp_path):
    first = composed(tmp_path, GMM)
    assert first.loss.time.margin == first.margin == 0.001
    for time in ("weighted", "importance", "stratified"):
        cfg = composed(tmp_path, GMM, f"time={time}", "margin=0.02")
        law = cfg.loss.time.law if time == "weighted" else cfg.loss.time
        assert law.margin == 0.02 and plain(cfg.process) == plain(first.process)
    cfg = composed(tmp_path, "time=weighted")
    assert "Zero" in cfg.interpolant.gamma._target_, "another law of times leaves the path alone"


def test_another_path_from_noise(tmp_path):
    model = trained(tmp_path, ONE_SIDED, OTHER_PATH)
    assert type(model.process.interpolant.path).__name__ == "Trigonometric"
    assert model.sample(3, steps=2, epsilon=1.0).shape == (3, 1, 8, 8)
    cfg = composed(tmp_path, ONE_SIDED, OTHER_PATH)
    assert plain(cfg.process.interpolant) == plain(cfg.loss.interpolant) == plain(cfg.interpolant)


@pytest.mark.parametrize(
    "overrides",
    [
        ["network=heads", "network.heads.velocity.width=16"],
        ["network.outputs=[rate,noise]", "target.velocity=null"],
        ["gamma=quadratic", "interpolant=trigonometric"],
        ["interpolant=one_sided", "gamma=zero", "source=gaussian"],
        [
            "interpolant=mirror",
            "source=gaussian_mixture",
            "target=named_noise",
            "network.outputs=[noise]",
            "loss.field_weights=null",
        ],
        ["transform=standardise", "time=logit_normal", "coupling=exact_ot"],
        ["time=weighted", "time.power=1.0"],
    ],
    ids=lambda o: o[0],
)
def test_parts_go_together(tmp_path, overrides):
    if "target.velocity=null" in overrides:
        rate = "+target.rate={_target_: genflow.target.Rate}"
        overrides = [
            "network.outputs=[rate,noise]",
            rate,
            "~target.velocity",
            "loss.field_weights=null",
        ]
    model = trained(tmp_path, GMM, *overrides)
    for epsilon in (0.0, 1.0, "gamma", "gamma_squared"):
        assert model.sample(5, epsilon=epsilon, steps=3).isfinite().all()


NAMED = ["network.outputs=[velocity]", "target=named_velocity", "loss.field_weights=null"]
REFUSED = {
    "one-sided with transport": (
        [ONE_SIDED, "coupling=exact_ot"], ["OneSided", "independent pairs alone", "ExactOT"]
    ),
    "one-sided with weights": (
        [ONE_SIDED, "coupling=gibbs"], ["OneSided", "independent pairs alone", "Gibbs"]
    ),
    "one-sided from moons": (
        [GMM, "interpolant=one_sided", "gamma=zero", "source=moons"],
        ["OneSided needs a standard normal x0", "source=gaussian"],
    ),
    "one-sided from wide noise": (
        [ONE_SIDED, "source.std=2.0", "batch_size=128"], ["standard normal", "variance by 3"]
    ),
    "one-sided with a width": ([ONE_SIDED, "gamma=brownian"], ["OneSided(path=Linear", "zero width"]),
    "mirror with transport": (
        ["experiment=mirror", "coupling=exact_ot"], ["Mirror", "independent pairs alone"]
    ),
    "mirror without width": (
        ["experiment=mirror", "gamma=zero"], ["Mirror(gamma=Zero())", "Brownian()"]
    ),
    "mirror on lines": (
        ["experiment=mirror", "interpolant=linear"], ["['noise'] give no velocity", "outputs="]
    ),
    "a target without name": (
        ["experiment=cfm", "process=stochastic_interpolant"],
        ["fields by name", "Velocity()", "target=velocity_noise"],
    ),
    "a network of one tensor": (
        [GMM, "network.outputs=null"], ["one tensor", "outputs=[velocity, noise]"]
    ),
    "a network of other fields": (
        [GMM, "network.outputs=[velocity,score]"],
        ["got ['score', 'velocity']", "outputs=[velocity, noise]"],
    ),
    "fields of an SDE": (
        ["experiment=cfm", "network.outputs=[velocity,noise]"],
        ["returned the fields ['noise', 'velocity']", "Velocity()", "outputs=null"],
    ),
    "targets of an SDE": (
        ["experiment=cfm", "gamma=brownian", "target=velocity_noise", "network=velocity_noise"],
        ["SDE(sigma=0.0)", "target=velocity"],
    ),
    "pairs parted": (
        ["experiment=inpainting", "coupling=exact_ot"], ["ExactOT", "coupling=independent"]
    ),
    "negative noise": ([GMM, "process.epsilon=-1"], ["epsilon=-1", ">= 0", "'gamma'"]),
    "unknown noise": ([GMM, "process.epsilon=gama"], ["epsilon='gama'", "'gamma_squared'"]),
    "endless noise": ([GMM, "process.epsilon=inf"], ["epsilon=inf", "finite"]),
    "noise without score": (
        [GMM, *NAMED, "process.epsilon=1.0"],
        ["epsilon=1.0", "['velocity']", "outputs=[velocity, noise]"],
    ),
    "a learned path": (
        ["experiment=interpolant_checker", "interpolant=learned_affine"],
        ["would bend LearnedAffine", "BridgeMatching"],
    ),
    "a width at the ends": ([GMM, "gamma=constant"], ["does not vanish at the ends", "Brownian()"]),
    "a mirror of other data": (
        ["experiment=mirror", "source=gaussian"], ["Mirror starts from data", "source"]
    ),
    "a taper of two": ([GMM, "process.taper=2"], ["taper=2", "between 0 and 1"]),
    "pairs without width": (
        ["experiment=cfm", "loss.antithetic=true"], ["antithetic=True", "no noise", "gamma"]
    ),
    "noise without width": ([GMM, "gamma=zero"], ["target Noise()", "gamma"]),
    "a negative weight": (
        [GMM, "loss.field_weights.noise=-1"], ["Matching(field_weights.noise=-1)", "positive"]
    ),
    "a weight for nothing": (
        [GMM, "+loss.field_weights.score=1"], ["field_weights=", "['noise', 'velocity']"]
    ),
    "guidance without labels": (
        ["experiment=guided_digits", "data.labels=false"], ["Guided", "data.labels=true"]
    ),
    "starts of the data from noise": (
        ["experiment=inpainting", "source=gaussian"], ["made from x1", "source=empirical"]
    ),
    "noise of another bridge": (
        ["experiment=bridge_gaussian", "process.sigma=0.3"], ["SDE(sigma=0.3)", "sigma=1.0"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_go_together_is_told_before_training(tmp_path, kind):
    overrides, words = REFUSED[kind]
    said = refusal(tmp_path, *overrides)
    for word in words:
        assert word in said, said


PATH = Linear(gamma=Brownian())
FIELDS = {"velocity": Velocity(), "noise": Noise()}


@pytest.mark.parametrize(
    ("path", "target", "words"),
    [
        (
            Linear(gamma=Brownian(0.5)),
            FIELDS,
            "process samples Linear.*trains Linear.*a=0.5.*give both",
        ),
        (Trigonometric(Brownian()), FIELDS, "process samples Linear.*trains Trigonometric"),
        (PATH, Velocity(), "fields by name, got target Velocity"),
        (PATH, FIELDS | {"noise": Score()}, "fields by name.*Score"),
        (PATH, {"velocity": Rate(), "noise": Noise()}, "fields by name.*Rate"),
        (PATH, FIELDS | {"other": Noise()}, "fields by name.*other"),
    ],
)
def test_loss_and_process_must_agree(path, target, words):
    process = StochasticInterpolant(MLP(2, 8, outputs=["velocity", "noise"]), PATH)
    Matching(PATH, target=FIELDS).check(process)
    Matching(PATH, target={"rate": Rate(), "score": Score(), "denoised": Denoised()}).check(process)
    with pytest.raises(ValueError, match=words):
        Matching(path, target=target).check(process)


@pytest.mark.parametrize("weights", [{"velocity": 0.25, "noise": 2.0}, {"velocity": 0.0, "noise": 1.0}])
@pytest.mark.parametrize("antithetic", [False, True])
def test_field_weights_weigh_the_losses(weights, antithetic, generator):
    network = MLP(2, 8, outputs=["velocity", "noise"])
    xs = [torch.randn(40, 2, generator=generator) for _ in range(2)]

    def loss(target, learner, **options):
        draw = torch.Generator().manual_seed(0)
        matching = Matching(PATH, target=target, antithetic=antithetic, **options)
        return float(matching(learner, *xs, generator=draw).detach())

    alone = {k: loss(v, lambda t, x, k=k: network(t, x)[k]) for k, v in FIELDS.items()}
    both = loss(FIELDS, network, field_weights=weights)
    assert both == pytest.approx(sum(weights[k] * alone[k] for k in FIELDS), rel=1e-5)
    assert loss(FIELDS, network) == pytest.approx(sum(alone.values()), rel=1e-5)
    assert both != pytest.approx(sum(alone.values()), rel=0.1)


@pytest.mark.parametrize(
    ("target", "weights"),
    [
        (FIELDS, {"velocity": 1.0}),
        (FIELDS, {"velocity": 1.0, "noise": 1.0, "score": 1.0}),
        (FIELDS, {"velocity": 1.0, "noise": -1.0}),
        (FIELDS, {"velocity": 1.0, "noise": float("nan")}),
        (Velocity(), {"velocity": 1.0}),
    ],
)
def test_field_weights_must_fit(target, weights):
    with pytest.raises(ValueError, match="field_weights"):
        Matching(PATH, target=target, field_weights=weights)


def test_a_network_of_one_tensor_is_told_when_sampling():
    model = Generator(Gaussian(2), StochasticInterpolant(MLP(2, 8), PATH), Heun(5))
    for ask in (model.sample, model.sample_with_log_prob):
        with pytest.raises(ValueError, match=r"one tensor.*use outputs=\[velocity, noise\]"):
            ask(3)


def test_a_killed_run_resumes_to_the_same_fields(tmp_path):
    def made(name: str, *overrides: str):
        report = ["callbacks.figures=null", "batch_size=32", "callbacks.report.n=64", *QUIET]
        run(composed(tmp_path / name, GMM, "network.width=32", *report, *overrides))
        return tmp_path / name / "model.ckpt"

    whole = made("whole", "steps=10")
    made("half", "steps=10", "callbacks.checkpoint.every=6")
    last = tmp_path / "half" / "last.ckpt"  # what a run killed after its sixth step leaves
    assert torch.load(last, weights_only=True)["batches_seen"] == 6
    rest = made("rest", "steps=10", f"ckpt_path={last}")
    for which in ("state_dict", "current_model_state"):
        assert equal(stored(whole, which), stored(rest, which))
        assert not equal(stored(whole, which), stored(last, which))
    numbers = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "rest")]
    known = [k for k in numbers[0] if k.startswith(("field_", "kl_bound", "log_prob"))]
    assert len(known) == 11 and all(numbers[0][k] == numbers[1][k] for k in known)
