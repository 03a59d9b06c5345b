r"""Pairs of laws whose entropic optimal transport plan is known.

A plan solves the problem between its own marginals if it is :math:`\propto p_0(x)\,\phi(y)
e^{-|x-y|^2/2\varepsilon}/E_\phi(x)`, so that one chooses :math:`p_0` and a potential
:math:`\phi = \frac1K\sum_k N(\mu_k, \Sigma_k)` and lets :math:`p_1` be what comes out (Gushchin,
Kolesov, Mokrov, Karpikova, Spiridonov, Burnaev & Korotin 2023). With
:math:`E_t(x) = \frac1K\sum_k N(x; \mu_k, \Sigma_k + \varepsilon(1-t))`, weights
:math:`w_k \propto` its terms at :math:`t = 0` and :math:`S_k = \Sigma_k(\Sigma_k + \varepsilon)^{-1}`,

.. math:: \pi(y|x) = \sum_k w_k(x)\, N(y; \mu_k + S_k(x - \mu_k), \varepsilon S_k),\quad
    g(t, x) = \varepsilon\nabla\log E_t(x)

are the plan and the drift of its Schrödinger bridge, of :math:`dX = g\,dt + \sqrt\varepsilon\,dW`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genflow.checks import count, positive
from genflow.oracle import entropic_score as score
from genflow.oracle.bumps import Bump, draw_bumps
from genflow.process import LightBridge
from genflow.seeds import stream
from genflow.source import Components, Gaussian, Source
from genflow.tensors import as_shape, draw_device, path_time, randn_like

ROWS = 2**16
"""Draws of ``x0`` behind the moments of ``p1``."""


@dataclass(frozen=True)
class EntropicPair:
    r"""A Gaussian, a law of several modes, and the entropic plan between them in closed form, for the
    cost :math:`|x-y|^2/2` at temperature ``epsilon`` (:math:`\sigma^2` of the bridge).

    >>> pair = EntropicPair(16, epsilon=0.1)  # doctest: +SKIP
    >>> bridge = LightBridge(16, 50, epsilon=0.1).fit(pair.x0, pair.x1)  # doctest: +SKIP
    >>> pair.kl(bridge), pair.conditional_bw(bridge)  # doctest: +SKIP

    The defaults are read off the published benchmark's samples: five round components at distance 5
    in random directions. The plan is one of ``LightBridge``, whose solvers are therefore favoured.
    Everything is computed in float64; points and fields come back in the dtype of ``x``.

    Args:
        dim: event shape, ``2`` or ``[1, 8, 8]``.
        epsilon: temperature of :math:`|x-y|^2/2`, positive.
        seed: of the directions (the same for every ``epsilon``), the test points and the draws that
            scores rest on.
        components: of the potential.
        radius: distance of its centres from zero.
        variance: of its components, their geometric mean over axes; ``None`` for 0.0625 up to
            ``epsilon = 1`` and 0.01 above.
        std: of ``x0``, per coordinate.
        anisotropy: largest over smallest variance of a component, along axes of its own; 1 is round.

    Raises:
        ValueError: for numbers outside these ranges.
    """

    dim: int | Sequence[int]
    epsilon: float
    seed: int = 0
    components: int = 5
    radius: float = 5.0
    variance: float | None = None
    std: float = 0.5
    anisotropy: float = 1.0

    def __post_init__(self) -> None:
        as_shape(self.dim)
        positive(self, epsilon=self.epsilon, radius=self.radius, std=self.std)
        positive(self, anisotropy=self.anisotropy)
        count(self, least=0, seed=self.seed)
        count(self, components=self.components)
        if self.variance is not None:
            positive(self, variance=self.variance)
        if self.anisotropy < 1:
            raise ValueError(f"EntropicPair(anisotropy={self.anisotropy}): anisotropy must be >= 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape."""
        return as_shape(self.dim)

    @property
    def size(self) -> int:
        """Numbers in an event, ``d``."""
        return math.prod(self.shape)

    @property
    def x0(self) -> Gaussian:
        """The source ``N(0, std^2)``, float32."""
        return Gaussian(self.dim, std=self.std)

    @property
    def x1(self) -> EntropicTarget:
        """The target as a source, float32."""
        return EntropicTarget(self)

    @property
    def potential(self) -> Components:
        r"""The potential :math:`\phi` as a mixture of Gaussians over the flattened event."""
        weights = torch.full((self.components,), 1 / self.components, dtype=torch.float64)
        centres = torch.stack([bump.centre for bump in self._parts])
        return Components(weights, centres, torch.stack([b.matrix(b.values) for b in self._parts]))

    def stream(self, *name: int | str) -> torch.Generator:
        """A random stream of this seed."""
        return stream("EntropicPair", self.seed, *name)

    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` rows ``x0, x1`` of the plan, each ``(n, *d)``."""
        x0 = self.x0.to(dtype).sample(n, generator)
        return x0, self.sample_plan(x0, generator)

    def test_points(self, n: int = 1000) -> Tensor:
        """The first ``n`` points ``x0`` at which conditional plans are compared, ``(n, *d)`` in
        float32."""
        count("EntropicPair.test_points", n=n)
        return self.x0.sample(n, self.stream("test"))

    @torch.no_grad()
    def sample_plan(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one ``x1`` for each row of ``x0 (B, *d)``."""
        rows = self._rows(x0)
        where = draw_device(generator, rows.device)
        share = self._terms(rows, self.epsilon).softmax(1).to(where)
        which = torch.multinomial(share, 1, generator=generator)[:, 0].to(rows.device)
        noise, found = randn_like(rows, generator), torch.empty_like(rows)
        for k, bump in enumerate(self._bumps(rows.device)):
            own, shrink = which == k, self._shrink(bump)
            spread = bump.apply((self.epsilon * shrink).sqrt(), noise[own])
            found[own] = bump.centre + bump.apply(shrink, rows[own] - bump.centre) + spread
        return found.reshape(x0.shape).to(x0)

    def plan_moments(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean ``(B, d)`` and covariance ``(B, d, d)`` of the flattened ``x1`` given
        ``x0 (B, *d)``."""
        rows = self._rows(x0)
        share = self._terms(rows, self.epsilon).softmax(1)
        bumps = self._bumps(rows.device)
        centres = torch.stack(
            [b.centre + b.apply(self._shrink(b), rows - b.centre) for b in bumps], dim=1
        )
        mean = (share.unsqueeze(2) * centres).sum(1)
        apart = share.sqrt().unsqueeze(2) * (centres - mean.unsqueeze(1))
        own = torch.stack([b.matrix(self.epsilon * self._shrink(b)) for b in bumps])
        within = (share @ own.flatten(1)).reshape(-1, self.size, self.size)
        return mean.to(x0), (within + apart.mT @ apart).to(x0)

    def log_plan(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Log-density ``(B,)`` of ``x1`` given ``x0``, row by row."""
        if len(x0) != len(x1):
            raise ValueError(f"log_plan: x0 has {len(x0)} rows but x1 has {len(x1)}; they are pairs")
        inner = (self._rows(x0) * self._rows(x1)).sum(1) / self.epsilon
        return (inner + self.log_potential(x1) - self.log_normaliser(x0)).to(x1)

    def log_potential(self, x1: Tensor) -> Tensor:
        r""":math:`\log v = \log\phi(x_1) - |x_1|^2/2\varepsilon`, ``(B,)`` in float64."""
        rows = self._rows(x1)
        return self._terms(rows, 0.0).logsumexp(1) - rows.square().sum(1) / (2 * self.epsilon)

    def log_normaliser(self, x0: Tensor) -> Tensor:
        r""":math:`\log c = \log\int e^{\langle x_0, y\rangle/\varepsilon} v(y)\,dy`, ``(B,)`` in
        float64."""
        rows = self._rows(x0)
        constant = self.size / 2 * math.log(2 * math.pi * self.epsilon)
        square = rows.square().sum(1) / (2 * self.epsilon)
        return self._terms(rows, self.epsilon).logsumexp(1) + square + constant

    def drift(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Drift ``(B, *d)`` of the bridge at ``t`` in [0, 1], ``(B,)`` or a number."""
        rows = self._rows(x)
        left = self.epsilon * (1 - path_time(t, rows)).unsqueeze(1)
        share = self._terms(rows, left).softmax(1)
        pulls = [
            w.unsqueeze(1) * b.apply(1 / (b.values + left), b.centre - rows)
            for w, b in zip(share.unbind(1), self._bumps(rows.device))
        ]
        return (self.epsilon * sum(pulls)).reshape(x.shape).to(x)

    def bridge(self) -> LightBridge:
        """The truth as a ``LightBridge`` in float64, of diagonal covariances where they are round and
        full ones elsewhere."""
        bumps = self._parts
        form = "diagonal" if self.anisotropy == 1 else "full"
        shrink = [self._shrink(b) for b in bumps]
        where = torch.stack([b.centre - b.apply(s, b.centre) for b, s in zip(bumps, shrink)])
        scale = torch.stack([s if form == "diagonal" else b.matrix(s) for b, s in zip(bumps, shrink)])
        # the product of a component with exp(-|y|^2 / 2 epsilon) is a Gaussian times this
        mass = self._terms(torch.zeros(1, self.size, dtype=torch.float64), self.epsilon)[0]
        mass = mass + self.size / 2 * math.log(2 * math.pi * self.epsilon)
        bridge = LightBridge(self.dim, self.components, self.epsilon, covariance=form).double()
        return bridge.assign(mass, where, scale)

    @cached_property
    def target_moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(d,)`` and covariance ``(d, d)`` of ``x1``, from exact moments at 65,536 draws of
        ``x0`` in pairs of opposite sign."""
        generator, step = self.stream("moments"), 4096
        total = torch.zeros(self.size, dtype=torch.float64)
        second = torch.zeros(self.size, self.size, dtype=torch.float64)
        for _ in range(ROWS // (2 * step)):
            half = self.std * torch.randn(step, self.size, generator=generator, dtype=torch.float64)
            rows = torch.cat([half, -half])
            share = self._terms(rows, self.epsilon).softmax(1)
            for w, b in zip(share.unbind(1), self._parts):
                shrink = self._shrink(b)
                centre = b.centre + b.apply(shrink, rows - b.centre)
                total += w @ centre
                second += (w.unsqueeze(1) * centre).mT @ centre
                second += w.sum() * b.matrix(self.epsilon * shrink)
        mean = total / ROWS
        return mean, second / ROWS - torch.outer(mean, mean)

    def kl(
        self, bridge: score.Potentials, n: int = 20_000, generator: torch.Generator | None = None
    ) -> score.Score:
        """:func:`~genflow.oracle.entropic_score.kl` of a learner's plan."""
        return score.kl(self, bridge, n, generator)

    def conditional_bw(self, learner: score.Moments, n: int = 1000) -> float:
        """:func:`~genflow.oracle.entropic_score.conditional_bw` from a learner's own moments."""
        return score.conditional_bw(self, learner, n)

    def conditional_bw_sampled(
        self, sampler: Callable[[Tensor], Tensor], n: int = 1000, m: int = 1000
    ) -> float:
        """:func:`~genflow.oracle.entropic_score.conditional_bw_sampled` of any sampler."""
        return score.conditional_bw_sampled(self, sampler, n, m)

    def floor(self, n: int = 1000, m: int = 1000, generator: torch.Generator | None = None) -> float:
        """What a perfect sampler gets from :meth:`conditional_bw_sampled`: its Monte-Carlo error."""
        own = self.stream("floor") if generator is None else generator
        return score.conditional_bw_sampled(self, lambda x0: self.sample_plan(x0, own), n, m)

    def bw(self, samples: Tensor) -> float:
        """:func:`~genflow.oracle.entropic_score.bw` of samples of ``x1``."""
        return score.bw(self, samples)

    @cached_property
    def _parts(self) -> list[Bump]:
        default = 0.0625 if self.epsilon <= 1 else 0.01
        variance = default if self.variance is None else self.variance
        shape, draw = (self.components, self.size), self.stream("potential", self.size)
        return draw_bumps(shape, self.radius, variance, self.anisotropy, draw)

    def _bumps(self, device: torch.device) -> list[Bump]:
        return [bump.to(device) for bump in self._parts]

    def _shrink(self, bump: Bump) -> Tensor:
        """Eigenvalues of ``S_k``."""
        return bump.values / (bump.values + self.epsilon)

    def _terms(self, rows: Tensor, added: Tensor | float) -> Tensor:
        """Logarithms ``(B, K)`` of the terms of the potential, smoothed by a variance ``added``."""
        found = []
        for bump in self._bumps(rows.device):
            offset, total = rows - bump.centre, bump.values + added
            square = (offset * bump.apply(1 / total, offset)).sum(1)
            found.append(-0.5 * (square + (2 * math.pi * total).log().sum(-1)))
        return torch.stack(found, 1) - math.log(self.components)

    def _rows(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            want = ", ".join(map(str, self.shape))
            raise ValueError(
                f"EntropicPair: points have shape {tuple(x.shape)} and dtype {x.dtype}, expected "
                f"(B, {want}) in floating point"
            )
        return x.flatten(1).double()


class EntropicTarget(Source):
    """The second marginal of an :class:`EntropicPair`, drawn through its plan; it has no density in
    closed form.

    Args:
        pair: whose.
    """

    def __init__(self, pair: EntropicPair) -> None:
        super().__init__()
        self.pair, self.shape = pair, pair.shape

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        x0 = self.pair.std * self._normal((n, *self.shape), generator)
        return self.pair.sample_plan(x0, generator)
