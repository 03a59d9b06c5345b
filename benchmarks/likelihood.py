"""Log-likelihoods with an exact velocity, beside flow_matching's ``compute_likelihood``.

Standard normal noise is carried to a mixture of four Gaussians, in the plane and on images (1, 4, 4),
by the exact velocity of the straight path, so that every error is the method's own. Both sides take 40
steps of a Runge-Kutta method of order four (160 evaluations). With the exact divergence the largest
error over all points is shown in nats: it should be at most 0.01. Hutchinson's estimate from one probe
is random; its mean error is shown with the standard error, and how far a single point is off. Run it
with

    python -m benchmarks.likelihood

Times are medians over rounds in turns, given as flow_matching's over ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from flow_matching.solver import ODESolver
from torch import Tensor

from genflow.interpolant import Linear
from genflow.model import Generator
from genflow.oracle import Exact, independent
from genflow.process import StochasticInterpolant
from genflow.solver import RungeKutta
from genflow.source import Gaussian, GaussianMixture

STEPS = 40
DIVERGENCES = ("exact", "hutchinson")


class Problem:
    """Points of a mixture with their true log-density, and both ways to compute it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, points: int) -> None:
        draw = torch.Generator().manual_seed(0)
        size = torch.Size(shape).numel()
        means = 1.5 * torch.randn(4, size, generator=draw, dtype=torch.float64)
        data = GaussianMixture(means.tolist(), [0.2, 0.3, 0.5, 0.8], [1.0, 2.0, 3.0, 4.0])
        source = Gaussian(list(shape))
        exact = Exact(independent(source, data), Linear(), shape)
        x = exact.sample(1, points, draw)
        self.truth = data.components().log_prob(x.flatten(1))
        self.x, self.exact = x.to(dtype), exact
        process = StochasticInterpolant(exact, Linear())
        self.model = Generator(source, process, RungeKutta(STEPS)).to(dtype)

    def by_genflow(self, divergence: str) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return self.model.log_prob(self.x, divergence=divergence, steps=STEPS, generator=draw)

    def by_flow_matching(self, divergence: str) -> Tensor:
        torch.manual_seed(1)
        solver = ODESolver(lambda x, t: self.exact.velocity(t, x))
        _, found = solver.compute_likelihood(
            self.x, self.model.source.log_prob, step_size=1 / STEPS, method="rk4",
            exact_divergence=divergence == "exact",
        )  # fmt: skip
        return found.detach()


def verdict(run: Callable[[], Tensor], truth: Tensor, divergence: str) -> tuple[str, bool]:
    """The error of a run in words, and whether there was a run at all."""
    try:
        error = run().double() - truth
    except Exception as reason:  # what fails there is part of the comparison
        words = str(reason).strip().splitlines()[-1]
        return f"{type(reason).__name__}: {words[:80]}", False
    if divergence == "exact":
        return f"{float(error.abs().max()):.1e}", True
    spread = float(error.std() / len(error) ** 0.5)
    return f"{float(error.mean()):+.3f} +- {spread:.3f} (a point {float(error.std()):.2f})", True


def times(sides: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Median seconds of each, in turns."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for run, seconds in zip(sides, found):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in found]


def compare(shape: tuple[int, ...], dtype: torch.dtype, points: int, rounds: int) -> None:
    problem = Problem(shape, dtype, points)
    for divergence in DIVERGENCES:
        sides = [
            lambda run=run: run(divergence)  # noqa: B023
            for run in (problem.by_genflow, problem.by_flow_matching)
        ]
        (ours, _), (theirs, works) = (verdict(run, problem.truth, divergence) for run in sides)
        name = f"{shape} {str(dtype).removeprefix('torch.')} {divergence}"
        text = f"{name:<32}  {ours:<32}  {theirs}"
        if works:
            mine, other = times(sides, rounds)
            text += f"   time {other / mine:.2f}"
        print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("error of log p in nats: genflow, flow_matching; its time / ours where it works")
    for shape, points in (((2,), 500), ((1, 4, 4), 100)):
        for dtype in (torch.float32, torch.float64):
            compare(shape, dtype, points, rounds)


if __name__ == "__main__":
    main()
