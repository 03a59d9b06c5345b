"""Multiplicative diffusion: what a step costs, how well its samplers recover a law, and which fields.

    python -m benchmarks.multiplicative step
    python -m benchmarks.multiplicative recovery --figure docs/figures/multiplicative_recovery.png
    python -m benchmarks.multiplicative fields

``step``: a training step (loss, backward, Adam) and a sampler step, beside a variance-exploding
diffusion of log-data in plain torch with the same network and the same preconditioning; every round
runs each once in a new random order, and the least CPU times are compared: at most 1.05 of it.
``recovery``: distances of Kolmogorov and Smirnov of samples to a mixture whose score is known.
``fields``: ``experiment=geometric_lognormal`` under the overrides of each row.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.sliced_speed import interleaved, markdown, verdict
from genflow.interpolant import ConstantVolatility, GeometricBrownian, GeometricVolatility
from genflow.loss import Matching
from genflow.network import MLP, UNet
from genflow.oracle import GeometricField
from genflow.process import ReversedGeometric
from genflow.solver import AmbientEuler, DaleLangevin, Heun, Solver
from genflow.source import LogNormal, LogNormalMixture
from genflow.target import Noise
from genflow.time import Uniform

LIMIT, MARGIN, RUN = 1.05, 1e-3, 50
"""Run: sampler steps that are timed together."""
SIGMA_MIN, SIGMA_MAX = 0.02, 2.5
Call = Callable[[], object]


class PlainDiffusion:
    """What one would write for log-data: variance exploding, preconditioned, Euler-Maruyama."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.net, self.x, self.rate = net, x, 2 * math.log(SIGMA_MAX / SIGMA_MIN)
        y = x.log()
        self.mean, self.var = float(y.mean()), float(y.var(correction=0))
        self.std = self.var**0.5
        self.adam = torch.optim.Adam(net.parameters(), lr=1e-4)

    def noise(self, t: Tensor, y: Tensor, variance: Tensor | float) -> Tensor:
        total = variance + self.var
        n = (y - self.mean) * total**-0.5
        return total**-0.5 * (variance**0.5 * n + self.std * self.net(t, n))

    def train(self) -> None:
        y = self.x.log()
        t = MARGIN + (1 - 2 * MARGIN) * torch.rand(len(y))
        variance = SIGMA_MIN**2 * torch.expm1(self.rate * (1 - t))
        variance = variance.view(-1, *[1] * (y.ndim - 1))
        z = torch.randn_like(y)
        loss = (self.noise(t, y + variance.sqrt() * z, variance) - z).square().mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    @torch.no_grad()
    def sample(self, y: Tensor, steps: int) -> Tensor:
        for k in range(steps):
            s = 1 - k / steps
            squared = self.rate * SIGMA_MIN**2 * math.exp(self.rate * s) / steps
            variance = SIGMA_MIN**2 * math.expm1(self.rate * s)
            noise = self.noise(torch.full((len(y),), 1 - s), y, variance)
            y = y - squared * variance**-0.5 * noise + squared**0.5 * torch.randn_like(y)
        return y.exp()


def our_calls(net: nn.Module, x1: Tensor, start: Tensor) -> tuple[Call, Call]:
    path = GeometricBrownian(GeometricVolatility(SIGMA_MIN, SIGMA_MAX))
    process = ReversedGeometric(net, path).prepare(x1)
    loss = Matching(path, time=Uniform(MARGIN), target=Noise())
    adam = torch.optim.Adam(net.parameters(), lr=1e-4)

    def train() -> None:
        adam.zero_grad()
        loss(process, x1, x1).backward()
        adam.step()

    def sample() -> Tensor:
        with torch.no_grad():
            return DaleLangevin(RUN).solve(process, start).x

    return train, sample


def agree(net: nn.Module, x1: Tensor) -> None:
    """Both sides must be the same function before their times mean anything."""
    path = GeometricBrownian(GeometricVolatility(SIGMA_MIN, SIGMA_MAX))
    process, t = ReversedGeometric(net, path).prepare(x1), torch.full((len(x1),), 0.4)
    variance = float(path.law(t[:1]).variance)
    with torch.no_grad():
        torch.testing.assert_close(process(t, x1), PlainDiffusion(net, x1).noise(t, x1.log(), variance))


def step(rounds: int, few: int) -> None:
    sizes = {
        "MLP 128 x 3": (MLP(2, 128, 3), (256, 2), (2000, 2), rounds),
        "UNet 28 x 28": (UNet([1, 28, 28]), (64, 1, 28, 28), (16, 1, 28, 28), few),
    }
    print(f"least CPU milliseconds in turns, one thread; a step of a run of {RUN} for the sampler")
    rows, verdicts = {}, []
    for name, (net, batch, many, count) in sizes.items():
        if count == 0:
            continue
        torch.manual_seed(0)
        nn.init.normal_(getattr(net, "last", net).weight, std=0.02) if hasattr(net, "last") else None
        x1, y0 = (0.4 * torch.randn(batch)).exp(), SIGMA_MAX * torch.randn(many)
        agree(net, x1)
        start = y0.exp()
        hand, (train, sample) = PlainDiffusion(net, x1), our_calls(net, x1, start)
        calls = {"train, by hand": hand.train, "train": train}
        spent = interleaved(calls, count)
        calls = {"sample, by hand": partial(hand.sample, y0, RUN), "sample": sample}
        spent |= interleaved(calls, max(4, count // 20))
        for kind, many in (("train", 1), ("sample", RUN)):
            plain, ours = (1e3 * spent[f"{kind}{side}"][0] / many for side in (", by hand", ""))
            rows[f"{name}, {kind}"] = [f"{plain:.3f}", f"{ours:.3f}", f"{ours / plain:.3f}"]
            verdicts.append("- " + verdict(f"{name}, {kind}:", ours / plain, LIMIT, False))
    markdown("Cost of a step", ["by hand", "genflow", "ratio"], rows)
    print("\n" + "\n".join(verdicts))


# the mixture of ``recovery``, in one dimension, and both kinds of volatility
LAW = ([[-1.0], [0.7]], [0.09, 0.04], [0.4, 0.6])
VOLATILITIES = {
    "constant, 1.5": ConstantVolatility(1.5),
    "geometric, 0.05 to 3": GeometricVolatility(0.05, 3.0),
}
SAMPLERS: dict[str, Callable[[int], Solver]] = {
    "AmbientEuler": AmbientEuler,
    "DaleLangevin": DaleLangevin,
    "DaleLangevin, exact": lambda n: DaleLangevin(n, "exact"),
    "DaleLangevin, ancestral": lambda n: DaleLangevin(n, "ancestral"),
    "Heun of the ODE": Heun,
}
STEPS = (12, 50, 200, 800)


def ks(x: Tensor, law: LogNormalMixture) -> list[float]:
    """Of each coordinate, against the exact distribution function; what is no number counts as lost."""
    share = law.cdf(x.nan_to_num(nan=math.inf)).sort(0).values
    rank = torch.arange(len(x) + 1).unsqueeze(1) / len(x)
    return torch.maximum(rank[1:] - share, share - rank[:-1]).amax(0).tolist()


def recovery(n: int, figure: str | None) -> None:
    law, draw = LogNormalMixture(*LAW), torch.Generator().manual_seed(0)
    floors = [ks(law.sample(n, draw), law)[0] for _ in range(20)]
    print(f"{n} samples; exact draws have a KS of {sum(floors) / 20:.4f} in the mean")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for title, volatility in VOLATILITIES.items():
        path = GeometricBrownian(volatility)
        field = GeometricField(law, path)
        process = ReversedGeometric(field, path, predicts="hyvarinen", inputs="raw", skip=False)
        prior = LogNormal(1, path).match(law.sample(200_000, draw))
        start, rows = prior.sample(n, draw), {}
        for name, solver in SAMPLERS.items():
            run = process.with_epsilon(0.0) if "ODE" in name else process
            cells = found.setdefault((title, name), [])
            for steps in STEPS:
                made = solver(steps).solve(run, start, generator=draw)
                cells.append((ks(made.x, law)[0], made.nonpositive or 0.0))
            lost = [f" ({share:.2g} lost)" if share else "" for _, share in cells]
            rows[name] = [f"{value:.3f}{more}" for (value, _), more in zip(cells, lost)]
        markdown(f"KS, volatility {title}", [f"{s} steps" for s in STEPS], rows)
    if figure:
        draw_recovery(found, sum(floors) / 20).savefig(figure, dpi=100)


def draw_recovery(found: dict, floor: float) -> object:
    from genflow.plot import blank

    figure = blank(3.6 * (len(VOLATILITIES) + 1), 3.4)
    axes = figure.subplots(1, len(VOLATILITIES) + 1)
    for axis, title in zip(axes, VOLATILITIES):
        for k, name in enumerate(SAMPLERS):
            axis.plot(STEPS, [v for v, _ in found[title, name]], "o-", ms=3, color=f"C{k}", label=name)
        axis.axhline(floor, ls=":", color="0.4", label="exact draws")
        axis.set(title=f"KS, {title}", yscale="log", ylim=(0.003, 1.2))
    for k, title in enumerate(VOLATILITIES):
        lost = [share for _, share in found[title, "AmbientEuler"]]
        axes[-1].plot(STEPS, lost, ("o-", "o--")[k], ms=3, color="C0", label=title)
    axes[-1].plot(STEPS, [0] * len(STEPS), "o-", ms=3, color="C1", label="DaleLangevin, both")
    axes[-1].set(title="share lost to zero or below")
    for axis in axes:
        axis.set(xscale="log", xlabel="steps")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=7)
    axes[-1].legend(frameon=False, fontsize=7)
    return figure


FIELDS = (
    "",
    "process.skip=false",
    "process.dim=null",
    "process.skip=false process.inputs=raw",
    "process.predicts=hyvarinen target=hyvarinen",
    "process.skip=false process.predicts=hyvarinen target=hyvarinen",
)


def fields(steps: int, n: int, only: list[int]) -> None:
    from hydra import compose, initialize_config_dir

    import genflow
    from genflow.training.cli import build, conf_dir

    rows = {}
    for row in (FIELDS[k] for k in only):
        with tempfile.TemporaryDirectory() as folder:
            options = [
                "experiment=geometric_lognormal", *row.split(), f"folder={folder}", "metrics=none",
                "logger=none", "callbacks.report=null", "callbacks.figures=null",
                "callbacks.progress=null", *([f"steps={steps}"] if steps else []),
            ]  # fmt: skip
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                training, data, trainer = build(compose("train", options))
            trainer.fit(training, datamodule=data)
            model = genflow.load(Path(folder) / "model.ckpt")
        law, cells = data.data.marginals("test")[-1], []
        law = getattr(law, "source", law)
        for solver in (DaleLangevin(250), AmbientEuler(250)):
            draw = torch.Generator().manual_seed(1)
            found = model.solve(n, solver=solver, generator=draw)
            cells.append(", ".join(f"{value:.3f}" for value in ks(found.x, law)))
        x = law.sample(500, torch.Generator().manual_seed(2))
        surplus = float((law.log_prob(x) - model.log_prob(x)).mean())
        rows[row or "as it is"] = [*cells, f"{found.nonpositive:.3f}", f"{surplus:.4f}"]
        print(row, rows[row or "as it is"], flush=True)
    draw = torch.Generator().manual_seed(3)
    floors = torch.tensor([ks(law.sample(n, draw), law) for _ in range(20)]).mean(0)
    print(f"{n} samples; exact draws: {', '.join(f'{v:.3f}' for v in floors.tolist())}")
    heads = ["KS, DaleLangevin", "KS, AmbientEuler", "lost", "KL, nats"]
    markdown("Fields, 250 steps", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "recovery", "fields"])
    parser.add_argument("--rounds", type=int, default=1000, help="of the step of the MLP")
    parser.add_argument("--unet-rounds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, help="of the training, for fields")
    parser.add_argument("--only", type=int, nargs="+", default=[*range(len(FIELDS))])
    parser.add_argument("--figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "AmbientEuler took")
    if options.what == "step":
        step(options.rounds, options.unet_rounds)
    elif options.what == "recovery":
        recovery(options.samples, options.figure)
    else:
        fields(options.steps, options.samples, options.only)


if __name__ == "__main__":
    main()
