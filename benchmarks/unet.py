"""What our U-Net costs beside diffusers' ``UNet2DModel``: forward, and forward with backward.

Of both the same channels at every level, residual blocks of two convolutions, attention with heads of
16 channels at the lowest level, class labels, and as many parameters within 3 %: theirs has two blocks
of a level on the way down and three on the way up, ours three on either. One thread and one process;
every round times each side once, in a new random order, and the least over rounds is compared. Needs
the extra ``genflow[images]``. Run it with

    python -m benchmarks.unet

and read the ratios, ours over theirs: at most 1.0. It takes some four minutes.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from genflow.network import Adapter, UNet

WITHIN, LIMIT, CLASSES, HEAD = 0.03, 1.0, 10, 16


def theirs(size: int, width: int, multipliers: list[int]) -> nn.Module:
    levels = len(multipliers)
    network = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=[width * k for k in multipliers],
        layers_per_block=2,
        down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
        norm_num_groups=8,
        attention_head_dim=HEAD,
        num_class_embeds=CLASSES,
    )
    return Adapter(network, times=(0, 1000), condition="class_labels", output="sample")


def ours(size: int, width: int, multipliers: list[int]) -> nn.Module:
    attention = [False] * (len(multipliers) - 1) + [True]
    heads = width * multipliers[-1] // HEAD
    return UNet([1, size, size], width, multipliers, 3, attention, heads, classes=CLASSES)


def awake(network: nn.Module) -> nn.Module:
    """The network with small weights where it starts with zeros, as after some training."""
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02)
    return network


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def calls(network: nn.Module, x: Tensor, low: bool) -> dict[str, Callable[[], None]]:
    t, y = torch.rand(len(x)), torch.arange(len(x)) % CLASSES

    def field() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return network(t, x, y)

    def forward() -> None:
        with torch.no_grad():
            field()

    def both() -> None:
        network.zero_grad()
        (field() - x).square().mean().backward()

    return {"forward": forward, "forward and backward": both}


def least(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Least seconds of each, timed in turns."""
    found, names, order = dict.fromkeys(sides, float("inf")), list(sides), random.Random(0)
    for k in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            sides[name]()
            if k:  # the first round warms up
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 32])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    worst = 0.0
    for size in options.sizes:
        sizes = size, options.width, options.multipliers
        rival, network = awake(theirs(*sizes)), awake(ours(*sizes))
        counts = parameters(rival), parameters(network)
        if abs(counts[1] / counts[0] - 1) > WITHIN:
            parser.error(f"{counts[0]:,} and {counts[1]:,} parameters are too far apart to compare")
        print(f"{size} x {size}, batch {options.batch}, parameters {counts[0]:,}, ours {counts[1]:,}")
        x = torch.randn(options.batch, 1, size, size)
        for low in (False, True):
            both = calls(rival, x, low), calls(network, x, low)
            for name in both[0]:
                t = least({"theirs": both[0][name], "ours": both[1][name]}, options.rounds)
                ratio = t["ours"] / t["theirs"]
                worst = max(worst, ratio)
                print(
                    f"  {'bfloat16' if low else 'float32 '} {name:<21} {t['theirs'] * 1e3:6.0f} ms  "
                    f"ours {t['ours'] * 1e3:6.0f} ms  ratio {ratio:.2f}",
                    flush=True,
                )
    print(f"largest ratio {worst:.2f}, {'within' if worst <= LIMIT else 'ABOVE'} {LIMIT}")


if __name__ == "__main__":
    main()
