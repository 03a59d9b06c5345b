r"""The other half of a light bridge: backwards in time, and marginal densities.

The forward half needs no law of the start; the other one does, since :math:`p_t =
\varphi_t\hat\varphi_t` with :math:`\hat\varphi_t = \int p_0(a)/\varphi_0(a)\,\mathcal N(x|a,
\varepsilon tI)\,da`.
The law is that of kept rows of the source, the *anchors*, for which all of it is a sum.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genflow.process.light.kept import Kept
from genflow.process.light.potential import CHUNK, blocks, pick
from genflow.tensors import rand_rows, randn_like

MOST = 4096
"""Rows of the source that are kept."""
EARLY = 1e-3
"""A law of points has no density at 0: scores and backward drifts of earlier times are this one's."""


class Anchored:
    """What a bridge can say once it has anchors ``(n, d)``, a buffer that is saved with it."""

    anchors: Tensor | None
    _reached: Kept[Tensor]

    @property
    def reversible(self) -> bool:
        return True  # without anchors it says itself what is missing

    def anchor(self, x0: Tensor) -> Any:
        """Keep rows ``x0 (n, *d)`` of the source (4,096 of them, evenly) to run backwards to."""
        flat = self._flat("x0", x0)
        if len(flat) == 0:
            raise ValueError("LightBridge.anchor: x0 must hold at least one row")
        evenly = torch.linspace(0, len(flat) - 1, min(MOST, len(flat)), dtype=torch.float64)
        self.anchor_flat(flat[evenly.round().long().to(flat.device)])  # a table may be sorted
        return self

    def anchor_flat(self, x0: Tensor) -> None:
        """:meth:`anchor` of flattened rows."""
        self.anchors = x0[:MOST].detach().to(self.location).clone()

    def score(self, t: Tensor | float, x: Tensor, x0: Tensor | None = None) -> Tensor:
        r"""Score :math:`\nabla\log p_t(x)`, ``(B, *d)``, of paths from the anchors; or from ``x0``, one
        start a row. Times below 0.001 count as 0.001."""
        t = self._time(t, x).clamp_min(EARLY)
        drift = self.drift(t, x)
        if x0 is None:
            return (drift - self.backward_drift(t, x)) / self.epsilon
        late = t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return (drift - (x - x0) / late) / self.epsilon

    def backward_drift(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        self._unconditional(cond)
        t = self._time(t, x).clamp_min(EARLY)
        flat = self._flat("x", x)
        anchors = self._rows().double()
        means = [self._origins(a, b).softmax(-1) @ anchors for a, b in self._parts(t, flat)]
        found = (flat - torch.cat(means)) / t.reshape(-1, 1)
        return found.reshape(x.shape).to(x.dtype)

    def log_density(self, t: Tensor | float, x: Tensor) -> Tensor:
        r""":math:`\log p_t(x)` of paths from the anchors, ``(B,)``, for ``t > 0``."""
        t, flat = self._time(t, x), self._flat("x", x)
        if bool((t <= 0).any()):
            raise ValueError("LightBridge.log_density: a law of points has no density at t = 0")
        back = [self._origins(a, b).logsumexp(-1) for a, b in self._parts(t, flat)]
        norm = math.log(len(self.anchors)) + flat.shape[1] / 2 * (2 * math.pi * self.epsilon * t).log()
        square = flat.square().sum(-1) / (2 * self.epsilon * t)
        return (self.potential.log_value(t, flat) + torch.cat(back) - norm - square).to(x.dtype)

    @torch.no_grad()
    def _backward(self, s: Tensor, t: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw the anchor that each row came from, then the Brownian bridge between."""
        flat, found = self._flat("x", x), []
        for a, b in self._parts(s, flat):
            found.append(pick(self._origins(a, b).softmax(-1), rand_rows(b, generator)[:, None])[:, 0])
        start = self.anchors.double()[torch.cat(found)]
        share = (t / s).reshape(-1, 1)
        width = (self.epsilon * t * (s - t) / s).clamp_min(0).sqrt().reshape(-1, 1)
        moved = start + share * (flat - start) + width * randn_like(x.flatten(1), generator)
        return moved.reshape(x.shape).to(x.dtype)

    def _rows(self) -> Tensor:
        if self.anchors is None:
            raise ValueError(
                "LightBridge runs forward from any start, but scores and ways back need the law of the "
                "start: call bridge.anchor(x0) with rows of the source (fit does)"
            )
        return self.anchors

    def _origins(self, t: Tensor, x: Tensor) -> Tensor:
        """Log-odds of the anchors as origins, ``(B, n)``, up to what only ``x`` decides."""
        a, scale = self._rows().double(), (self.epsilon * t).reshape(-1, 1)
        return (x @ a.mT - a.square().sum(-1) / 2) / scale - self._reach()

    def _reach(self) -> Tensor:
        """:math:`\\log\\varphi_0` at the anchors, ``(n,)``, kept until a number changes."""

        def make() -> Tensor:
            a = self._rows().double()
            return self.potential.log_value(a.new_zeros(()), a)

        if self.potential.tracked():
            return make()
        return self._reached.get([*self.parametrised(), self._rows()], make)

    def _parts(self, t: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        return blocks(t, x, CHUNK // len(self._rows()))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        kept = state.get(prefix + "anchors")
        if kept is None or self.anchors is None or self.anchors.shape != kept.shape:
            self.anchors = None if kept is None else self.location.detach().new_empty(kept.shape)
        if self.components == "auto" and prefix + "location" in state:
            self.resize(len(state[prefix + "location"]))
        super()._load_from_state_dict(state, prefix, *rest)
