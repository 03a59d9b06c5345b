"""What the training loop costs: a Lightning step of genflow against a hand-written loop.

Both sides run the same batches, network, loss and optimizer in the same process, in turns; the
bar is refreshed every 20 steps and metrics are logged every 50, on both sides. Times are lower
quartiles over blocks of 100 steps (of 5 for the large network). Run it with

    python -m benchmarks.loop

and read the ratio: at most 1.6 for a 64 x 3 MLP at batch 256, at most 1.05 where a step takes 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from genflow.coupling import Gibbs
from genflow.data import Batches, Simulated
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Heun
from genflow.source import EightGaussians, Moons
from genflow.training import EMA, DataModule, Progress, Training
from genflow.training.cli import _quiet


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


class Clock(L.Callback):
    """Notes the time at the end of every block of steps."""

    def __init__(self, block: int) -> None:
        self.block, self.marks = block, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.block == 0:
            self.marks.append(time.perf_counter())


def durations(marks: list[float], block: int) -> list[float]:
    """Seconds a step of each block but the first, which warms up."""
    return [(b - a) / block for a, b in zip(marks[1:-1], marks[2:])]


def parts(width: int, depth: int) -> tuple[MLP, Matching, Simulated]:
    torch.manual_seed(0)
    return MLP(2, width, depth), Matching(coupling=Gibbs(16.0)), Simulated(EightGaussians(), Moons())


def by_lightning(width: int, depth: int, batch: int, steps: int, block: int, ema: bool) -> list[float]:
    net, loss, data = parts(width, depth)
    clock = Clock(block)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            accelerator="cpu", max_steps=steps, log_every_n_steps=50, num_sanity_val_steps=0,
            val_check_interval=10**9, check_val_every_n_epoch=None, enable_checkpointing=False,
            enable_model_summary=False, logger=CSVLogger(folder), default_root_dir=folder,
            callbacks=[Progress(20), clock, *([EMA(0.999)] if ema else [])],
        )  # fmt: skip
        model = Generator(EightGaussians(), SDE(net), Heun())
        trainer.fit(Training(model, loss, adam), datamodule=DataModule(data, batch))
    return durations(clock.marks, block)


def by_hand(width: int, depth: int, batch: int, steps: int, block: int, ema: bool) -> list[float]:
    net, loss, data = parts(width, depth)
    optimizer, stream = adam(net.parameters()), iter(Batches(data.marginals("train"), batch))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999)) if ema else None
    generator, log, marks = torch.Generator().manual_seed(0), [], []
    bar = tqdm(total=steps, file=io.StringIO())
    for step in range(1, steps + 1):
        xs, _ = next(stream)
        value = loss(net, *xs, generator=generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(net)
        if step % 20 == 0:
            bar.update(20)
        if step % 50 == 0:
            log.append(value.item())
        if step % block == 0:
            marks.append(time.perf_counter())
    return durations(marks, block)


def compare(width: int, depth: int, batch: int, steps: int, block: int, rounds: int, ema: bool) -> None:
    sides: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds + 1):  # in turns, so that a slow spell of the machine meets both
        for side, run in zip(sides, (by_hand, by_lightning)):
            found = run(width, depth, batch, steps, block, ema)
            side.extend(found if k > 0 else [])  # the first round warms the process up
    # the lower quartile: on a shared machine noise only ever adds time
    hand, ours = (statistics.quantiles(side, n=4)[0] for side in sides)
    name = f"{width} x {depth} MLP, batch {batch}{', EMA' if ema else ''}"
    times = f"hand {hand * 1e3:7.3f} ms   genflow {ours * 1e3:7.3f} ms"
    print(f"{name:<34} {times}   ratio {ours / hand:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    _quiet()
    compare(64, 3, 256, 600, 100, rounds, ema=False)
    compare(64, 3, 256, 600, 100, rounds, ema=True)
    compare(512, 4, 1024, 40, 5, rounds, ema=False)


if __name__ == "__main__":
    main()
