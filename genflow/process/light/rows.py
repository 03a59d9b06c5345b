"""The rows that a fit sees: tables or laws of both sides, checked and centred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.source import Source
from genflow.tensors import draw_device, randperm

LOOKED_AT = 4096
"""Fresh rows of a law by which a fit is judged."""


@dataclass
class Rows:
    """One side of a fit, in float64 and around its mean: numbers far from 0 would cancel.

    Attributes:
        pilot: the rows ``(N, D)`` that k-means and full-batch steps see.
        centre: what was subtracted, ``(D,)``.
        table: all rows of a table, or ``None`` for a law.
        law: where fresh rows come from, or ``None`` for a table.
        held_out: rows that are only looked at: of a table those kept out, of a law fresh ones; ``None``
            for a table of which none are kept out.
    """

    pilot: Tensor
    centre: Tensor
    table: Tensor | None = None
    law: Source | None = None
    held_out: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """Rows whose objective is that of the training: the table's; fresh ones of a law, since the
        fixed point fits a pilot too well."""
        return self.pilot if self.law is None else self.held_out

    @property
    def judged(self) -> Tensor:
        """Rows by which states are compared: held-out or fresh ones where there are some."""
        return self.pilot if self.held_out is None else self.held_out

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``n`` rows: fresh ones of a law; of a table at random, or all where it is no longer."""
        if self.law is not None:
            fresh = self.law.sample(n, generator).to(self.pilot.device)
            return fresh.flatten(1).double() - self.centre
        if len(self.table) <= n:
            return self.table
        where = draw_device(generator, self.table.device)
        picked = torch.randint(len(self.table), (n,), generator=generator, device=where)
        return self.table[picked.to(self.table.device)]


def gather(
    name: str,
    x: Tensor | Source,
    shape: tuple[int, ...],
    device: torch.device,
    pilot: int,
    share: float,
    generator: torch.Generator | None,
) -> Rows:
    """Rows of one side, checked, in random order.

    Args:
        name: of the side in messages.
        x: a table ``(N, *d)``, or a source.
        shape: event shape that it must have.
        device: where the fit runs.
        pilot: the most rows that full-batch steps see.
        share: which part of a table is held out.
        generator: for the draws of a law, and the order of a table.

    Raises:
        TypeError, ValueError: one sentence that says what is allowed.
    """
    law = x if isinstance(x, Source) else None
    if law is not None:
        x = law.sample(pilot + LOOKED_AT, generator)
    rows = check_rows(name, x, shape).to(device).flatten(1).double()
    if law is None:  # a table may be sorted, and parts of it stand for all
        rows = rows[randperm(len(rows), rows.device, generator)]
    held = 0 if share == 0 else max(1, round(share * len(rows)))
    held = LOOKED_AT if law is not None else held
    if len(rows) - held < 2:
        raise ValueError(
            f"LightBridge.fit: held_out={share:g} leaves {len(rows) - held} of {len(rows)} rows of "
            f"{name} to fit to; at least 2 are needed"
        )
    kept, out = rows[held:], rows[:held] if held else None
    centre = kept[:pilot].mean(0)
    out = None if out is None else out - centre
    if law is not None:
        return Rows(kept - centre, centre, None, law, out)
    kept = kept - centre
    return Rows(kept[:pilot], centre, kept, None, out)


def check_rows(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Refuse what no bridge can be fitted to.

    Raises:
        TypeError: for other than floating-point tensors.
        ValueError: for other shapes, fewer than two rows, or numbers that are not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"LightBridge.fit: {name} must be a floating-point tensor (N, *dims) or a Source, got "
            f"{kind}"
        )
    if tuple(x.shape[1:]) != shape or len(x) < 2:
        dims = ", ".join(map(str, shape))
        raise ValueError(
            f"LightBridge.fit: {name} has shape {tuple(x.shape)}, expected (N, {dims}) with N >= 2"
        )
    finite = x.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise ValueError(
            f"LightBridge.fit: {name} holds a value that is not finite (NaN or infinite), first in row "
            f"{bad}; remove or fill such rows"
        )
    return x


def check_spread(x1: Rows, covariance: str) -> None:
    """Refuse data without any width in a direction that the covariances follow.

    Raises:
        ValueError: naming the coordinates.
    """
    size = (x1.pilot + x1.centre).abs().amax(0)
    still = x1.pilot.std(0) <= 1e-12 * size.clamp_min(1e-300)
    alone = covariance in ("diagonal", "full")
    if bool(still.all()) or (alone and bool(still.any())):
        names = ", ".join(map(str, still.nonzero()[:5, 0].tolist()))
        raise ValueError(
            f"LightBridge.fit: coordinate {names} of x1 is constant, which no component of positive "
            "width can follow: leave it out, add a little noise, or take covariance='isotropic'"
        )
