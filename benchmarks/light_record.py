"""What a training of a light bridge leaves: its states over CPU time, drawing of data left out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.light_rivals import (
    BATCH,
    MATCHING_BATCH,
    MATCHING_RATE,
    PublishedLightSB,
    PublishedLightSBM,
    train,
)
from genflow.process import LightBridge
from genflow.seeds import stream, stream_seed
from genflow.source import Source

State = tuple[Tensor, Tensor, Tensor]
"""``log alpha (K,)``, ``r (K, d)`` and the diagonals of ``S (K, d)``."""
OURS_GROWTH, PUBLISHED_GROWTH = 1.05, 1.25


class Watch:
    """CPU seconds of this process, all its threads, without those that are left out."""

    def __init__(self) -> None:
        self.out, self.start = 0.0, time.process_time()

    def seconds(self) -> float:
        return time.process_time() - self.start - self.out

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.process_time()
        try:
            yield
        finally:
            self.out += time.process_time() - begin


class Stream(Source):
    """A source whose draws stop the watch, and are timed and counted by themselves.

    Args:
        source: what is drawn from.
        watch: of the training.
    """

    def __init__(self, source: Source, watch: Watch) -> None:
        super().__init__()
        self.source, self.watch, self.shape = source, watch, source.shape
        self.seconds, self.points = 0.0, 0

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        begin = time.process_time()
        with self.watch.paused():
            x = self.source.sample(n, generator)
        self.seconds += time.process_time() - begin
        self.points += n
        return x


@dataclass
class Trace:
    """States at growing CPU seconds, the last at the end of the training.

    Attributes:
        growth: a state is kept where the seconds have grown by this factor since the last.
        seconds: when each was kept.
        states: parameters of the bridge at those times.
        drawing: CPU seconds that went into drawing data; they are in none of ``seconds``.
        points: how many points were drawn of each law, on average.
    """

    growth: float
    seconds: list[float] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    drawing: float = 0.0
    points: float = 0.0

    def note(self, watch: Watch, state: Callable[[], State], last: bool = False) -> None:
        """Keep the state where it is time to; no time passes meanwhile."""
        now = watch.seconds()
        if not last and self.seconds and now < self.growth * self.seconds[-1]:
            return
        with watch.paused():
            self.seconds.append(now)
            self.states.append(state())

    def close(self, watch: Watch, state: Callable[[], State], *sources: Source) -> Trace:
        self.note(watch, state, last=True)
        streams = [source for source in sources if isinstance(source, Stream)]
        self.drawing = sum(source.seconds for source in streams)
        self.points = sum(source.points for source in streams) / max(len(streams), 1)
        return self

    def save(self, path: Path) -> None:
        """Written under another name first: a run that is cut off leaves no half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(asdict(self), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    @staticmethod
    def load(path: Path) -> Trace:
        return Trace(**torch.load(path, weights_only=True))


def state_of(bridge: LightBridge) -> State:
    with torch.no_grad():
        scale = bridge.covariances().diagonal(dim1=-2, dim2=-1)
        return bridge.log_weight.detach().clone(), bridge.location.detach().clone(), scale.clone()


def bridge_of(state: State, epsilon: float) -> LightBridge:
    """The same plan as our own object in double precision, so that every solver is scored alike."""
    log_weight, location, scale = (part.double() for part in state)
    components, dim = location.shape
    return LightBridge(dim, components, epsilon).double().assign(log_weight, location, scale)


@cache
def warm_up() -> None:
    """Both solvers once on next to nothing: what they load at first use is no part of a training."""
    draw = stream("light", "warm")
    rows = [torch.randn(200, 2, generator=draw) for _ in range(2)]
    model = PublishedLightSB(2, 2, 1.0)
    train(model, lambda n: (rows[0][:n], rows[1][:n]), 1e-3, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LightBridge(2, 2, 1.0).fit(*rows, generator=draw)


def run_ours(
    x0: Source | Tensor, x1: Source | Tensor, dim: int, components: int, epsilon: float, seed: int
) -> Trace:
    """``LightBridge.fit`` as it is; sources are drawn from beside the watch."""
    warm_up()
    watch, trace = Watch(), Trace(OURS_GROWTH)
    ends = [Stream(x, watch) if isinstance(x, Source) else x for x in (x0, x1)]
    bridge = LightBridge(dim, components, epsilon)

    def state() -> State:
        return state_of(bridge)

    bridge.fit(
        *ends,
        generator=stream("light", "ours", seed),
        callback=lambda bridge, iteration: trace.note(watch, state),
    )
    return trace.close(watch, state, *ends)


def run_published(
    x0: Source,
    x1: Source,
    dim: int,
    components: int,
    epsilon: float,
    seed: int,
    steps: int,
    rate: float,
    scale: float = 1.0,
    matching: bool = False,
) -> Trace:
    """The published LightSB, or LightSB-M with ``matching``, centres at points of the target."""
    warm_up()
    torch.manual_seed(stream_seed("light", "published", seed) % 2**32)
    draw = stream("light", "data", seed)
    kind = PublishedLightSBM if matching else PublishedLightSB
    watch, trace = Watch(), Trace(PUBLISHED_GROWTH)
    x0, x1 = Stream(x0, watch), Stream(x1, watch)
    model = kind(dim, components, epsilon, scale).start_at(x1.sample(components, draw))
    train(
        model,
        lambda n: (x0.sample(n, draw), x1.sample(n, draw)),
        MATCHING_RATE if matching else rate,
        steps,
        MATCHING_BATCH if matching else BATCH,
        lambda step: trace.note(watch, model.state),
    )
    return trace.close(watch, model.state, x0, x1)
