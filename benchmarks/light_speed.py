"""Drift, plan sampling and a training step of a light bridge, beside the published forms, in turns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.light_rivals import BATCH, PublishedFullLightSB, PublishedLightSB
from benchmarks.sliced_speed import interleaved, markdown, verdict
from genflow.process import LightBridge
from genflow.seeds import stream

SIZES = ((2, 50), (2, 500), (16, 50), (64, 50), (128, 50))
FULL = ((16, 50), (64, 10))
EPSILON, FEW, TIME = 0.1, 128, 0.5
"""Few: points that are drawn one by one, as the published default does."""
DRIFT, SAMPLING = 10, 3
Call = Callable[[], object]


def models(dim: int, components: int) -> tuple[PublishedLightSB, LightBridge]:
    """The same potential in both forms, far from its start."""
    torch.manual_seed(dim + components)
    published = PublishedLightSB(dim, components, EPSILON)
    with torch.no_grad():
        published.r.normal_(0, 2)
        published.log_s.normal_(-0.5, 0.3)
    return published, LightBridge(dim, components, EPSILON).assign(*published.state())


@torch.no_grad()
def agree(found: Tensor, want: Tensor) -> None:
    """Both forms must be the same function before their times mean anything."""
    if not torch.allclose(found, want, rtol=1e-3, atol=1e-3 * float(want.abs().max())):
        raise AssertionError(f"the forms differ by {float((found - want).abs().max()):.2g}")


def evaluations(dim: int, components: int, points: int) -> dict[str, tuple[Call, int]]:
    """Every call, and how many points it is for."""
    published, bridge = models(dim, components)
    bridge.requires_grad_(False)
    x = torch.randn(points, dim, generator=stream("light", "speed", dim))
    few, t, draws = x[:FEW], torch.full((points,), TIME), stream("light", "draws")
    agree(bridge.drift(TIME, x), published.drift(t, x))

    def by_blocks(size: int, rows: Tensor) -> Call:
        def call() -> Tensor:
            published.sampling_batch_size = size
            return published.sample(rows)

        return call

    return {
        "drift, published": (lambda: published.drift(t, x), points),
        "drift": (lambda: bridge.drift(TIME, x), points),
        "plan, published, blocks of 1": (by_blocks(1, few), FEW),
        "plan, published, blocks of 128": (by_blocks(128, x), points),
        "plan": (lambda: bridge.plan(x).sample(generator=draws), points),
    }


def steps(dim: int, components: int, full: bool) -> dict[str, tuple[Call, int]]:
    """Loss, gradient and Adam on one batch."""
    published, bridge = models(dim, components)
    if full:
        published = PublishedFullLightSB(dim, components, EPSILON)
        bridge = LightBridge(dim, components, EPSILON, covariance="full")
        bridge.assign(*published.state()[:2], published.covariances().detach())
    x0, x1 = (torch.randn(BATCH, dim, generator=stream("light", "step", k)) for k in range(2))
    agree(bridge.objective(x0, x1).float(), published.loss(x0, x1))

    def step(parameters: list[Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
        optimizer = torch.optim.Adam(parameters, lr=1e-4)

        def call() -> None:
            optimizer.zero_grad()
            loss(x0, x1).backward()
            optimizer.step()

        return call

    return {
        "published": (step(list(published.parameters()), published.loss), 1),
        "ours": (step(list(bridge.parameters()), bridge.objective), 1),
    }


def measure(calls: dict[str, tuple[Call, int]], rounds: int) -> dict[str, float]:
    """Least CPU microseconds a point, or a step."""
    spent = interleaved({name: call for name, (call, _) in calls.items()}, rounds)
    return {name: 1e6 * spent[name][0] / points for name, (_, points) in calls.items()}


def speed_all(
    rounds: int, sizes: list[tuple[int, int]], full: list[tuple[int, int]], points: list[int]
) -> None:
    print(
        f"epsilon = {EPSILON}, the same t = {TIME} for all points, one thread; least CPU time of "
        f"{rounds} rounds in turns"
    )
    verdicts: list[str] = []
    for many in points:
        rows: dict[str, list[str]] = {}
        for dim, components in sizes:
            found = measure(evaluations(dim, components, many), rounds)
            rows[f"{dim}, {components}"] = [f"{value:.3g}" for value in found.values()]
            verdicts.append(f"- {many} points, D={dim}, K={components}: {_judge(found)}")
        markdown(f"CPU microseconds a point, {many} at once (D, K)", list(found), rows)
    rows = {}
    for (dim, components), whole in [*((s, False) for s in sizes), *((s, True) for s in full)]:
        theirs, ours = (t / 1000 for t in measure(steps(dim, components, whole), rounds).values())
        name = f"{dim}, {components}, {'full' if whole else 'diagonal'}"
        rows[name] = [f"{theirs:.3g}", f"{ours:.3g}", f"{theirs / ours:.3g}"]
    title = f"CPU milliseconds of loss, gradient and Adam, {BATCH} points (D, K, covariances)"
    markdown(title, ["published", "ours", "ratio"], rows)
    print("\ntimes of the published forms over ours\n\n" + "\n".join(verdicts))


def _judge(found: dict[str, float]) -> str:
    drift = found["drift, published"] / found["drift"]
    blocks, single = (found[f"plan, published, blocks of {size}"] / found["plan"] for size in (128, 1))
    return (
        f"{verdict('drift', drift, DRIFT, True)}; "
        f"{verdict('plan in blocks of 128', blocks, SAMPLING, True)}, in blocks of 1 {single:.3g}"
    )
