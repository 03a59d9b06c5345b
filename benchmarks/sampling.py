"""What sampling costs beside the bare network: our loops, torchdiffeq, flow_matching and torchsde.

A 256 x 4 MLP in the plane, float32, one thread. Every loop takes the same network through as many
evaluations, 64 at batch 64 and 16 at batch 1,000 (torchsde adds one, to look at shapes; times are per
evaluation); "bare" are those very calls, on times and states prepared beforehand. A round times each
side once, in a new random order, and ratios are taken within a round; the median over rounds is
reported with its quartiles. Run it with

    python -m benchmarks.sampling

and read the first ratio: at most 1.05 at batch 1,000 and 1.2 at batch 64. It takes two minutes.
Other libraries are given as their time over ours.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torchsde
from flow_matching.solver import ODESolver
from torch import Tensor, nn
from torchdiffeq import odeint

from genflow.interpolant import BrownianBridge
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, Process, StochasticInterpolant
from genflow.solver import Euler, Heun, Stepper, StochasticHeun
from genflow.source import Gaussian

CALLS = {64: 64, 1000: 16}
"""Powers of two: steps whose lengths add up without rounding, or torchsde takes one more."""
LIMITS = {64: 1.2, 1000: 1.05}


class Counted(nn.Module):
    """A network that keeps what it was called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls, self.outputs = network, [], getattr(network, "outputs", None)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls.append((torch.as_tensor(t).expand(len(x)).clone(), x.clone()))
        return self.network(t, x)


class Diagonal(nn.Module):
    """The SDE as torchsde wants it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.f = network

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def bare(network: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for t, x in calls:
            network(t, x)


def by_torchdiffeq(network: nn.Module, x: Tensor, steps: int, method: str) -> Tensor:
    with torch.no_grad():
        return odeint(network, x, torch.linspace(0, 1, steps + 1), method=method)[-1]


def by_flow_matching(network: nn.Module, x: Tensor, steps: int, method: str) -> Tensor:
    return ODESolver(lambda x, t: network(t, x)).sample(x, step_size=1 / steps, method=method)


def by_torchsde(network: nn.Module, x: Tensor, steps: int, method: str) -> Tensor:
    with torch.no_grad():
        times = torch.tensor([0.0, 1.0])
        return torchsde.sdeint(Diagonal(network), x, times, method=method, dt=1 / steps)[-1]


class Case:
    """One of our loops, and the rivals that do the same under their name of the method."""

    def __init__(
        self,
        name: str,
        process: Callable[[nn.Module], Process],
        solver: type[Stepper],
        **rivals: str,
    ) -> None:
        self.name, self.process, self.solver, self.rivals = name, process, solver, rivals
        self.outputs = ["velocity", "noise"] if name.startswith("interpolant") else None


def interpolant(epsilon: float | str) -> Callable[[nn.Module], Process]:
    return lambda network: StochasticInterpolant(network, BrownianBridge(), epsilon=epsilon)


RIVALS = {"torchdiffeq": by_torchdiffeq, "flow_matching": by_flow_matching, "torchsde": by_torchsde}
CASES = (
    Case("ODE, Euler", SDE, Euler, torchdiffeq="euler", flow_matching="euler"),
    Case("ODE, Heun", SDE, Heun, torchdiffeq="heun2", flow_matching="heun2"),
    Case("SDE(1), Euler", lambda net: SDE(net, 1.0), Euler, torchsde="euler"),
    Case("SDE(1), stochastic Heun", lambda net: SDE(net, 1.0), StochasticHeun),
    *(
        Case(f"interpolant, {epsilon}, {name}", interpolant(epsilon), solver)
        for epsilon in (1.0, "gamma")
        for name, solver in (("Euler", Euler), ("Heun", StochasticHeun))
    ),
)


def sides(case: Case, batch: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Everything that is timed for a case, with its number of evaluations; refuses rivals that, without
    noise, end elsewhere."""
    torch.manual_seed(0)
    steps = CALLS[batch] if case.solver is Euler else CALLS[batch] // 2
    network, x = MLP(2, 256, 4, outputs=case.outputs), torch.randn(batch, 2)
    counted = Counted(network)
    recorded, model = (
        Generator(Gaussian(2), case.process(net), case.solver(steps)) for net in (counted, network)
    )
    want, calls = recorded.sample(x0=x), counted.calls
    assert len(calls) == CALLS[batch]
    found: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: model.sample(x0=x), len(calls)),
        "bare": (lambda: bare(network, calls), len(calls)),
    }
    for name, method in case.rivals.items():
        rival, counted = RIVALS[name], Counted(network)
        end = rival(counted, x, steps, method)
        assert name == "torchsde" or torch.allclose(end, want, atol=1e-4), name

        def run(rival=rival, method=method) -> Tensor:
            return rival(network, x, steps, method)

        found[name] = run, len(counted.calls)
    return found


def rounds_of(case: Case, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds an evaluation of every side, in every round but the first, which warms up."""
    timed = sides(case, batch)
    times: dict[str, list[float]] = {name: [] for name in timed}
    names, order = list(timed), random.Random(0)
    for k in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            run, calls = timed[name]
            start = time.perf_counter()
            run()
            if k > 0:
                times[name].append((time.perf_counter() - start) / calls)
    return times


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios within rounds."""
    return tuple(statistics.quantiles([a / b for a, b in zip(above, below)], n=4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batch", type=int, nargs="*", choices=CALLS, default=list(CALLS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("ours / bare: median of ratios within a round [quartiles]; rivals: their time / ours")
    for batch in options.batch:
        print(f"batch {batch}, at most {LIMITS[batch]}")
        for case in CASES:
            times = rounds_of(case, batch, options.rounds)
            low, middle, high = ratio(times["ours"], times["bare"])
            call = statistics.median(times["bare"])
            rivals = [f"{name} {ratio(times[name], times['ours'])[1]:.2f}" for name in case.rivals]
            print(
                f"  {case.name:<26} bare {call * 1e6:6.0f} us  ours {middle:.3f} "
                f"[{low:.3f}, {high:.3f}]  {'  '.join(rivals)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
