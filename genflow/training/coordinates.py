"""How well single coordinates of positive samples fit, where the law of the data is known."""

from __future__ import annotations

from typing import Any

import torch

from genflow.data.base import WithLabels
from genflow.seeds import stream
from genflow.training.module import Training

COORDINATES = 10_000
"""Samples whose coordinates are compared with known laws one by one."""


def coordinates(training: Training, data: Any) -> dict[str, Any]:
    """Of a process on positive numbers the share of coordinates that are not, at the end or, as its
    solver tells, after some step; and of each coordinate the distance of Kolmogorov and Smirnov to the
    law of the data, where its distribution functions are known."""
    model = training.model
    process = getattr(model, "process", None)
    if process is None or process.chart() is None:
        return {}
    law = data.data.marginals("test")[-1] if hasattr(data, "data") else None
    labelled, law = isinstance(law, WithLabels), getattr(law, "source", law)
    if not hasattr(law, "cdf"):
        return {}
    draw, cond = stream(training.seed, "coordinates", device=training.device), None
    if labelled:  # in the shares of the law
        cond = law.sample_labelled(COORDINATES, stream(training.seed, "coordinates", "labels"))[1]
    solution = model.solve(COORDINATES, cond=cond, generator=draw)
    x = solution.x
    share = law.cdf(x.flatten(1)).sort(0).values
    above = torch.arange(1, len(x) + 1, device=x.device)[:, None] / len(x)
    ks = torch.maximum(above - share, share - above + 1 / len(x)).amax(0)
    inside = x if model.transform is None else model.transform(x)
    lost = (
        float((inside <= 0).double().mean()) if solution.nonpositive is None else solution.nonpositive
    )
    return {"ks": ks.tolist(), "nonpositive": lost}
