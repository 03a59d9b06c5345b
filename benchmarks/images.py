"""Images of trained models, judged side by side at equal numbers of evaluations.

Train them first, then give their folders:

    python train.py -m experiment=geometric_fashion,cfm_fashion,wcfm_fashion
    python -m benchmarks.images runs/geometric_fashion/... runs/cfm_fashion/... runs/wcfm_fashion/...

Every model draws the same number of images of every class, each with the solvers that its process can
take, all with the same number of evaluations of one network. Distances are those in the features of a
classifier that is trained here (once; later runs read it from the cache), beside what training images
get in place of samples; ``guidance`` above 1 doubles the cost of an evaluation. Prints a table in
Markdown and draws the first images of every row of it into one figure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import genflow
from genflow import plot
from genflow.data import Data
from genflow.diagnostics import cached_classifier, image_quality
from genflow.diagnostics.classifier import labelled
from genflow.model import Generator
from genflow.network import guidance
from genflow.process import ReversedGeometric
from genflow.solver import DaleLangevin, Euler, Heun

COLUMNS = (
    "frechet_classifier", "kernel_classifier", "precision", "recall", "density", "coverage",
    "class_accuracy", "nearest",
)  # fmt: skip


def solvers(model: Generator, evaluations: int) -> dict[str, dict[str, Any]]:
    """What to sample with: name to options of ``sample``."""
    if isinstance(model.process, ReversedGeometric):
        ancestral = DaleLangevin(evaluations, "ancestral")
        return {
            "ancestral": {"solver": ancestral},
            "Dale-Langevin": {"solver": DaleLangevin(evaluations)},
            "deterministic": {"solver": ancestral, "epsilon": 0},
        }
    return {"Euler": {"solver": Euler(evaluations)}, "Heun": {"solver": Heun(evaluations // 2)}}


def judged(
    model: Generator, data: Data, cond: torch.Tensor, options: dict[str, Any], scale: float, batch: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Samples of the classes asked for, and their numbers."""
    draw, start = torch.Generator().manual_seed(0), time.process_time()
    with guidance(model, scale), torch.autocast("cpu", torch.bfloat16):
        x = model.sample(cond=cond, generator=draw, batch_size=batch, progress=True, **options)
    seconds = time.process_time() - start
    test, labels = labelled(data, "test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    train, known = labelled(data, "train")
    judge = cached_classifier(data)
    found = image_quality(judge, x, test[order], train, cond, labels[order], known)
    return x, found.numbers | {"seconds": seconds}


def cell(numbers: dict[str, Any], name: str) -> str:
    value = numbers[name]
    return f"{100 * value:.1f} %" if name == "class_accuracy" else f"{value:.3g}"


def real(numbers: dict[str, Any], name: str) -> str:
    """What real images get in the same place."""
    for end in ("_floor", "_real", "_test"):
        if name + end in numbers:
            return cell({name: numbers[name + end]}, name)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0])
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--figure", type=Path, default=Path("images.png"))
    args = parser.parse_args()
    cond = torch.arange(args.n) % 10
    rows, pictures = [], {}
    for folder in args.folders:
        config = OmegaConf.load(folder / "config.yaml")
        data, model = instantiate(config.data, _convert_="all"), genflow.load(folder / "model.ckpt")
        spent = json.loads((folder / "metrics.json").read_text())["cpu_seconds"] / 60
        for scale in args.guidance:
            for name, options in solvers(model, args.evaluations).items():
                x, numbers = judged(model, data, cond, options, scale, args.batch_size)
                title = f"{config.name}, {name}" + f", guidance {scale:g}" * (scale != 1)
                rows.append((title, spent, numbers))
                pictures[title] = x
                print(title, {k: numbers[k] for k in (*COLUMNS, "seconds")}, flush=True)
    report(rows)
    draw(pictures).savefig(args.figure, dpi=110)
    print(f"\nfigure: {args.figure}")


def report(rows: list[tuple[str, float, dict[str, Any]]]) -> None:
    print("\n| model, sampler | CPU min | " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for title, spent, numbers in rows:
        print(f"| {title} | {spent:.0f} | " + " | ".join(cell(numbers, c) for c in COLUMNS) + " |")
    last = rows[-1][2]
    print("| *real images* | | " + " | ".join(real(last, c) for c in COLUMNS) + " |")


def draw(pictures: dict[str, torch.Tensor]) -> Any:
    """Ten images of each class in a column of their own, one panel a row of the table."""
    import matplotlib.pyplot as plt

    across = min(3, len(pictures))
    down = -(-len(pictures) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.2 * across, 4.5 * down), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, x) in zip(axes.flat, pictures.items()):
        axis.imshow(plot.mosaic(x[:100].clamp(-1, 1), -1, 1), cmap="gray")
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
