"""Time and memory of sliced-Wasserstein estimators beside their rivals, in one thread."""

from __future__ import annotations

import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.sliced_rivals import isotropic, naive, pot, published

PROJECTIONS = 100
SIZES, DIMS = (1_000, 10_000, 100_000), (3, 64, 784)
ROUNDS = {1_000: 15, 10_000: 5, 100_000: 1}
RIVALS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "POT": pot,
    "plain torch": naive,
    "published SW": lambda x, y, directions: published(x, y, directions, None),
    "published LCV": lambda x, y, directions: published(x, y, directions, "lower"),
    "published UCV": lambda x, y, directions: published(x, y, directions, "upper"),
}
FLOOR = "floor: product, NumPy sort"
PLAIN, LOWER, DEFAULT = "genflow, plain", "genflow, lower 1.0", "genflow, default"
FACTORS = {False: (20, 4.5), True: (7, 2)}  # over POT and plain torch, up to 64 dimensions and beyond
FLOORS = 2.5
USUAL = 12  # torch's time for a sort over NumPy's, where the limits were found


def sort_speeds(n: int = 10_000) -> str:
    """Whether NumPy sorts float32 with vector instructions here, and what that is worth."""
    rows = torch.randn(20, n, generator=torch.Generator().manual_seed(0))
    calls = {"NumPy": lambda: rows.clone().numpy().sort(axis=1), "torch": lambda: rows.sort(dim=1)}
    found = {name: 1e9 * pair[0] / rows.numel() for name, pair in interleaved(calls, 5).items()}
    speeds = ", ".join(f"{name} {ns:.3g}" for name, ns in found.items())
    line = f"{_vectorised()}; sorting a float32 among {n} takes ns: {speeds}"
    gain = found["torch"] / found["NumPy"]
    if gain < USUAL:
        line += (
            f"\nthe limits suppose that NumPy sorts at least {USUAL} times as fast as torch; here it "
            f"is {gain:.3g}, expect smaller ratios, and judge them by what POT takes over the floor"
        )
    return line


def _vectorised() -> str:
    from numpy._core._multiarray_umath import __cpu_features__ as features

    new = int(np.__version__.split(".")[0]) >= 2
    if features.get("AVX512_SKX"):
        return "NumPy's sort is vectorised (AVX-512)"
    if new and (features.get("AVX2") or features.get("ASIMD")):
        return f"NumPy's sort is vectorised ({'AVX2' if features.get('AVX2') else 'ASIMD'})"
    return "NumPy's sort is NOT vectorised here: expect smaller ratios"


def genflow_estimators(projections: int, chunk: int | None = None) -> dict[str, Callable]:
    """The three that the limits are about."""
    from genflow.directions import Isotropic
    from genflow.distance import SlicedWasserstein
    from genflow.variate import Lower

    common = {"projections": projections, "chunk": chunk}
    return {
        PLAIN: SlicedWasserstein(directions=Isotropic(), variate=None, **common),
        LOWER: SlicedWasserstein(directions=Isotropic(), variate=Lower(), **common),
        DEFAULT: SlicedWasserstein(**common),
    }


def points(n: int, dim: int, grad: bool = False) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(n + dim)
    x, y = (torch.randn(n, dim, generator=draw) for _ in range(2))
    y.mul_(1.3).add_(0.2)
    return x.requires_grad_(grad), y


def floor(x: Tensor, y: Tensor, directions: Tensor) -> None:
    for z in (x, y):
        (directions @ z.T).numpy().sort(axis=1)


def steps(x: Tensor, y: Tensor, projections: int, backward: bool) -> dict[str, Callable[[], object]]:
    """One step of each estimator, its directions drawn anew, as a closure."""
    draw = torch.Generator().manual_seed(0)

    def finish(value: Tensor) -> None:
        if backward:
            x.grad = None
            value.backward()

    def rival(form: Callable) -> Callable[[], None]:
        return lambda: finish(form(x, y, isotropic(projections, x.shape[1], draw, x)))

    def ours(distance: Callable) -> Callable[[], None]:
        return lambda: finish(distance(x, y, generator=draw))

    calls = {name: rival(form) for name, form in RIVALS.items()}
    calls |= {name: ours(form) for name, form in genflow_estimators(projections).items()}
    if not backward:
        calls[FLOOR] = lambda: floor(x, y, isotropic(projections, x.shape[1], draw, x))
    return calls


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least CPU and median wall seconds of each, timed in turns in a new random order every round."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    for k in range(rounds + (rounds > 1)):
        order.shuffle(names)
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            if k or rounds == 1:  # the first of several rounds warms up
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (min(c for c, _ in pairs), statistics.median(w for _, w in pairs))
        for name, pairs in spent.items()
    }


def markdown(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.flush()


def verdict(text: str, value: float, limit: float, least: bool) -> str:
    met = value >= limit if least else value <= limit
    bound = "at least" if least else "at most"
    return f"{text} {value:.3g} ({bound} {limit:g}: {'met' if met else 'NOT MET'})"


def time_all(sizes: list[int], dims: list[int], rounds: int | None) -> None:
    print(f"{sort_speeds()}\nL = {PROJECTIONS}, float32, one thread, milliseconds")
    cells = [(n, d) for n in sizes for d in dims]
    found: dict[tuple, dict[str, tuple[float, float]]] = {}
    for n, d in cells:
        for backward in (False, True):
            calls = steps(*points(n, d, backward), PROJECTIONS, backward)
            found[n, d, backward] = interleaved(calls, rounds or ROUNDS.get(n, 3))
    heads = [f"{n // 1000}k/{d}" if n >= 1000 else f"{n}/{d}" for n, d in cells]
    for backward in (False, True):
        word = "forward and backward wrt x" if backward else "forward"
        for k, clock in enumerate(("least CPU time", "median wall time")):
            rows: dict[str, list[str]] = {}
            for n, d in cells:
                for name, seconds in found[n, d, backward].items():
                    rows.setdefault(name, []).append(f"{1e3 * seconds[k]:.3g}")
            markdown(f"{word}, {clock}", heads, rows)
    judge(cells, {key: {k: v[0] for k, v in value.items()} for key, value in found.items()})


def judge(cells: list[tuple[int, int]], cpu: dict[tuple, dict[str, float]]) -> None:
    """Ratios of CPU time beside their limits."""
    print("\nratios of CPU time, forward and backward unless said otherwise\n")
    for n, d in cells:
        one, both = cpu[n, d, False], cpu[n, d, True]
        for name in (PLAIN, LOWER):
            over_pot, over_torch = FACTORS[d > 64]
            parts = [
                verdict("POT /", both["POT"] / both[name], over_pot, True),
                verdict("plain torch /", both["plain torch"] / both[name], over_torch, True),
            ]
            if n >= 10_000:
                parts.append(verdict("forward / floor", one[name] / one[FLOOR], FLOORS, False))
            print(f"- n={n} d={d} {name}: {'; '.join(parts)}")
        for name, base in ((DEFAULT, both[DEFAULT]), (f"{FLOOR}, forward only", one[FLOOR])):
            ratios = (both["POT"] / base, both["plain torch"] / base)
            print(f"- n={n} d={d} {name}: POT / {ratios[0]:.3g}, plain torch / {ratios[1]:.3g}")


def _status(field: str) -> float:
    """Megabytes of ``VmRSS`` or ``VmHWM``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field}")


def _baseline() -> tuple[float, Callable[[], float]]:
    """Megabytes held now, and a function that reads the peak since."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held
        return _status("VmRSS"), lambda: _status("VmHWM")
    except OSError:  # not Linux: the peak of the whole life, less itself before the step
        unit = 2**20 if sys.platform == "darwin" else 2**10

        def peak() -> float:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

        return peak(), peak


def peak_megabytes(name: str, n: int, dim: int, backward: bool, chunk: int | None) -> float:
    """Peak extra memory of one step in this very process, after a small step has loaded everything."""
    torch.set_num_threads(1)
    steps(*points(100, 3, backward), 10, backward)[name]()
    x, y = points(n, dim, backward)
    call = steps(x, y, PROJECTIONS, backward)[name]
    if chunk is not None:
        distance = genflow_estimators(PROJECTIONS, chunk)[name]

        def call() -> None:
            value = distance(x, y, generator=torch.Generator().manual_seed(0))
            if backward:
                value.backward()

    before, peak = _baseline()
    call()
    return peak() - before


def in_fresh_process(*arguments: object) -> float:
    """Forked where that is safe, so that libraries load once."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(1) as pool:
        return pool.apply(peak_megabytes, arguments)


def memory_all(sizes: list[int], dims: list[int], chunk: int) -> None:
    """Peak extra megabytes, forward / forward and backward, each in a process of its own."""
    import ot  # noqa: F401  loaded before the processes fork

    genflow_estimators(PROJECTIONS)
    names: list[tuple[str, int | None]] = [(name, None) for name in RIVALS]
    names += [(name, c) for name in (PLAIN, LOWER, DEFAULT) for c in (None, chunk)]
    cells = [(n, d) for n in sizes for d in dims]
    found: dict[tuple, tuple[float, float]] = {}
    rows: dict[str, list[str]] = {}
    for name, c in names:
        label = name if c is None else f"{name}, chunk={c}"
        for n, d in cells:
            both = tuple(in_fresh_process(name, n, d, back, c) for back in (False, True))
            found[label, n, d] = both
            rows.setdefault(label, []).append(f"{both[0]:.1f} / {both[1]:.1f}")
    markdown(
        "peak extra megabytes, forward / forward and backward", [f"{n}/{d}" for n, d in cells], rows
    )
    print()
    for n, d in cells:
        for name in (PLAIN, LOWER, DEFAULT):
            for k, word in enumerate(("forward", "forward and backward")):
                share = found[name, n, d][k] / max(found["POT", n, d][k], 1e-9)
                held = verdict("of POT", share, 0.5, False)  # the default has no limit of its own
                print(f"- n={n} d={d} {name}, {word}: {held if name != DEFAULT else f'{share:.3g}'}")
