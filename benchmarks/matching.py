"""What a loss step costs, beside torchcfm: forward and backward of one batch in two dimensions.

The same network, batches and thread for both; every round times each method once, in a new random
order, and the medians over rounds are compared. Run it with

    python -m benchmarks.matching --figure docs/figures/matching.png

and read the ratios: plain matching at most 1.05 of torchcfm's; Gibbs weights at most 1.2 of plain
matching at batch 128 and 1.1 from 512 on; the exact plan at most 1.0 of torchcfm's, keeping every
point. The figure shows what each coupling alone costs against the batch size.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.optimal_transport import OTPlanSampler

from genflow.coupling import Coupling, ExactOT, Gibbs, Independent, Sinkhorn
from genflow.loss import Matching
from genflow.source import EightGaussians, Moons

BATCHES = (128, 256, 512, 1024, 2048)


class Net(nn.Module):
    """The 64 x 3 SELU network of torchcfm's tutorials."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = (3, width, width, width)
        layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.SELU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.body(torch.cat([x, t[:, None]], 1))


def by_genflow(net: Net, coupling: Coupling, x0: Tensor, x1: Tensor) -> Callable[[], None]:
    loss = Matching(coupling=coupling)
    draw = torch.Generator().manual_seed(0)

    def step() -> None:
        net.zero_grad()
        loss(net, x0, x1, generator=draw).backward()

    return step


def by_torchcfm(net: Net, exact: bool, x0: Tensor, x1: Tensor) -> Callable[[], None]:
    kind = ExactOptimalTransportConditionalFlowMatcher if exact else ConditionalFlowMatcher
    matcher = kind(sigma=0.0)

    def step() -> None:
        net.zero_grad()
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        ((net(t, xt) - ut) ** 2).mean().backward()

    return step


def medians(steps: dict[str, Callable[[], object]], rounds: int, warm: int = 3) -> dict[str, float]:
    """Median seconds of each, timed in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, order = list(steps), random.Random(0)
    for k in range(rounds + warm):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            steps[name]()
            if k >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def batches(n: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(n)
    return EightGaussians().sample(n, draw), Moons(noise=0.2).sample(n, draw)


def couplings() -> dict[str, Coupling]:
    x0, x1 = batches(20_000)
    return {
        "Independent": Independent(),
        "Gibbs": Gibbs().prepare(x0, x1),
        "Gibbs, gaussian": Gibbs(correction="gaussian").prepare(x0, x1),
        "Gibbs, sinkhorn": Gibbs(correction="sinkhorn").prepare(x0, x1),
        "Sinkhorn": Sinkhorn(15.0),
        "ExactOT": ExactOT(),
    }


def loss_steps(rounds: int) -> None:
    ours = couplings()
    print("seconds of a loss step (forward and backward), medians; ratios beside them")
    head = "batch  torchcfm   plain (ratio)   Gibbs / plain   gaussian / plain"
    print(head, flush=True)
    for n in BATCHES:
        x0, x1 = batches(n)
        torch.manual_seed(0)
        net = Net()
        steps = {
            name: by_genflow(net, ours[name], x0, x1)
            for name in ("Independent", "Gibbs", "Gibbs, gaussian")
        }
        steps["torchcfm"] = by_torchcfm(net, False, x0, x1)
        t = medians(steps, rounds)
        plain = t["Independent"]
        print(
            f"{n:>5}  {t['torchcfm'] * 1e3:6.3f}ms  {plain * 1e3:6.3f}ms ({plain / t['torchcfm']:.2f})"
            f"  {t['Gibbs'] / plain:12.2f}  {t['Gibbs, gaussian'] / plain:16.2f}",
            flush=True,
        )


def plans(rounds: int) -> None:
    """Exact plans alone, and how many points each keeps."""
    theirs, ours = OTPlanSampler(method="exact"), ExactOT()
    print("\nexact plan: torchcfm, genflow, ratio; distinct points of x1 kept by each")
    for n in BATCHES:
        x0, x1 = batches(n)
        steps = {"theirs": lambda: theirs.sample_plan(x0, x1), "ours": lambda: ours(x0, x1)}  # noqa: B023
        t = medians(steps, max(3, rounds * 128 // n // 8), warm=1)
        kept = [len(theirs.sample_plan(x0, x1)[1].unique(dim=0)), len(ours(x0, x1).indices[1].unique())]
        print(
            f"{n:>5}  {t['theirs'] * 1e3:8.2f}ms {t['ours'] * 1e3:8.2f}ms"
            f"  {t['ours'] / t['theirs']:.2f}   {kept[0] / n:.0%} {kept[1] / n:.0%}",
            flush=True,
        )


def figure(path: str, rounds: int) -> None:
    """Milliseconds of each coupling against the batch size, with the loss step for scale."""
    from matplotlib.figure import Figure

    sizes = (64, *BATCHES)
    lines: dict[str, list[float]] = {}
    for n in sizes:
        x0, x1 = batches(n)
        calls = {name: (lambda c=c, a=x0, b=x1: c(a, b)) for name, c in couplings().items()}
        torch.manual_seed(0)
        net = Net()
        calls["a step of the network (64 x 3)"] = by_genflow(net, Independent(), x0, x1)
        for name, value in medians(calls, max(3, rounds * 64 // n // 4), warm=1).items():
            lines.setdefault(name, []).append(1e3 * value)
    picture = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = picture.subplots()
    for name, values in lines.items():
        style = (
            {"ls": "--", "color": "#444444"} if name.startswith("a step") else {"marker": "o", "ms": 3}
        )
        axis.loglog(sizes, values, label=name, **style)
    axis.set(xlabel="batch size", ylabel="milliseconds, one thread", title="what a coupling costs")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    picture.savefig(path, dpi=110)
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--figure", default=None, help="where the figure of couplings goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loss_steps(options.rounds)
    plans(options.rounds)
    if options.figure:
        figure(options.figure, options.rounds)


if __name__ == "__main__":
    main()
