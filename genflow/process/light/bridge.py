"""Light Schrödinger bridges: a Gaussian mixture for a potential, and everything in closed form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genflow.process.light.anchors import Anchored
from genflow.process.light.choice import fit
from genflow.process.light.fit import Settings
from genflow.process.light.history import History
from genflow.process.light.law import Transition
from genflow.process.light.parameters import Parametrised
from genflow.seeds import stream
from genflow.source import Source
from genflow.tensors import randn_like


class LightBridge(Anchored, Parametrised):
    r"""Schrödinger bridge whose potential is a mixture of Gaussians (Korotin, Gushchin & Burnaev 2024).

    The bridge of :math:`dX = \sqrt\varepsilon\,dW` between two laws, i.e. the entropic plan of cost
    :math:`|x_0-x_1|^2/2` at temperature :math:`\varepsilon`: ``epsilon`` :math:`= \sigma^2`. Drift,
    plan, transitions and densities are closed forms; forms are computed in float64, and answers have
    the dtype of the states that they are asked for. A device without float64 (MPS) cannot run it.

    >>> bridge = LightBridge(2, 20, epsilon=0.1).fit(x0, x1)  # doctest: +SKIP
    >>> bridge.plan(x0).mean, bridge.drift(0.5, x0), bridge.sample_at(x0, 0.5)  # doctest: +SKIP

    Args:
        dim: event shape, ``2`` or ``[1, 8, 8]``.
        components: how many Gaussians; ``"auto"`` lets :meth:`fit` choose by held-out objective.
        epsilon: entropic coefficient :math:`\sigma^2` of the cost :math:`|x_0-x_1|^2/2`, positive.
        covariance: of the Gaussians, ``"diagonal"``, ``"full"``, ``"isotropic"`` or ``"low_rank"`` (a
            multiple of the identity, and ``rank`` directions).
        rank: of ``"low_rank"`` covariances, from 1 to the dimension less one.

    Raises:
        ValueError: for numbers out of range, or a ``rank`` where none belongs.
    """

    history: History | None = None
    """The trace of the last :meth:`fit`."""

    def forward(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.drift(t, x, cond)

    def drift(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Drift at times ``t``, a number or ``(B,)`` in [0, 1], and states ``x (B, *d)``.

        Raises:
            ValueError: for other times, other event shapes, or a condition.
        """
        self._unconditional(cond)
        self._check_shape("x", x)
        t, p = self._time(t, x), self.potential
        if p.quick(t, x):
            return p.quick_drift(t, x.flatten(1)).reshape(x.shape)
        return p.drift(t, x.flatten(1).double()).reshape(x.shape).to(x.dtype)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return self.sigma * dw

    def transition_law(self, s: Tensor | float, t: Tensor | float, x: Tensor) -> Transition:
        """Law of ``x_t`` given states ``x (B, *d)`` at ``s < t``; times are numbers or ``(B,)``."""
        self._check_shape("x", x)
        s, t = self._time(s, x), self._time(t, x)
        if bool((s >= t).any()):
            raise ValueError(
                "LightBridge: a transition law needs s < t; transition(s, t, x) also runs back"
            )
        return Transition(self.potential, s, t, x)

    def plan(self, x0: Tensor) -> Transition:
        r"""The plan :math:`\pi(x_1|x_0)` as a distribution of batch shape ``(B,)``."""
        return self.transition_law(0.0, 1.0, x0)

    def conditional_moments(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(B, d)`` and covariance ``(B, d, d)`` of the plan, of flattened events."""
        plan = self.plan(x0)
        return plan.mean.flatten(1), plan.covariance_matrix

    def transition(
        self,
        s: Tensor | float,
        t: Tensor | float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Exact draw of ``x_t`` given ``x (B, *d)`` at ``s``; ``t < s`` runs backwards, to starts among
        the anchors.

        Raises:
            ValueError: backwards without anchors, or for times outside [0, 1].
        """
        self._check_shape("x", x)
        begin, end = self._time(s, x), self._time(t, x)
        if not bool((end < begin).any()):
            return Transition(self.potential, begin, end, x).sample(generator=generator)
        if bool((end > begin).any()):
            raise ValueError("LightBridge.transition: all rows must run forward, or all backward")
        return self._backward(begin, end, x, generator)

    def sample_at(
        self, x0: Tensor, t: Tensor | float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draw at ``t``, a number or ``(B,)``, of paths that start at ``x0 (B, *d)``."""
        return self.transition(0.0, t, x0, generator)

    def log_prob_at(self, t: Tensor | float, x: Tensor, x0: Tensor) -> Tensor:
        r""":math:`\log p_t(x|x_0)`, ``(B,)``, for ``t > 0``."""
        return self.transition_law(0.0, t, x0).log_prob(x)

    @torch.no_grad()
    def sample_path(
        self,
        x0: Tensor,
        times: Tensor | Sequence[float],
        generator: torch.Generator | None = None,
        x1: Tensor | None = None,
    ) -> Tensor:
        """Exact paths on a grid: ends of the plan, and Brownian bridges between.

        Args:
            x0: where they start, ``(B, *d)``, at time 0.
            times: rising, in [0, 1], ``(S+1,)``.
            generator: where the draws come from.
            x1: where they end, drawn from the plan if absent.

        Returns:
            ``(S+1, B, *d)``.
        """
        grid = torch.as_tensor(times, dtype=torch.float64).cpu()
        inside = grid.ndim == 1 and len(grid) > 0 and bool(((grid >= 0) & (grid <= 1)).all())
        if not inside or bool((grid.diff() <= 0).any()):
            raise ValueError("LightBridge.sample_path: times must rise strictly within [0, 1]")
        x1 = self.plan(x0).sample(generator=generator) if x1 is None else x1
        if x1.shape != x0.shape:
            raise ValueError(
                f"LightBridge.sample_path: x1 has shape {tuple(x1.shape)} but x0 {tuple(x0.shape)}; "
                "they must be equal"
            )
        states, s, x = [], 0.0, x0
        for t in grid.tolist():
            if t > s:
                share = (t - s) / (1 - s)
                width = (self.epsilon * (t - s) * (1 - t) / (1 - s)) ** 0.5
                x = torch.lerp(x, x1, share)
                x = x + width * randn_like(x, generator) if width > 0 else x
            states.append(x)
            s = t
        return torch.stack(states)

    def fit(
        self,
        x0: Tensor | Source,
        x1: Tensor | Source,
        *,
        iterations: int = 20,
        polish: str | None = "adam",
        steps: int = 1000,
        batch_size: int = 512,
        rate: float = 0.02,
        anneal: float | str | None = "auto",
        held_out: float = 0.0,
        tolerance: float = 1e-2,
        pilot: int = 10_000,
        restart: bool = True,
        generator: torch.Generator | None = None,
        progress: bool = False,
        callback: Callable[[LightBridge, int], None] | None = None,
    ) -> LightBridge:
        """Fit to unpaired rows, or to laws that yield fresh ones, in place; no Lightning is needed.

        K-means of the data starts it; a fixed-point iteration without a learning rate follows, which
        goes only as far as the objective falls; Adam with cosine decay polishes, in units of the data's
        spread.

        Args:
            x0: rows ``(N0, *d)`` of the source, or a ``Source`` to draw from.
            x1: rows ``(N1, *d)`` of the data, or a ``Source``.
            iterations: most fixed-point iterations.
            polish: ``"adam"`` on minibatches, ``"lbfgs"`` on the pilot rows, or ``None``.
            steps: of the polish.
            batch_size: rows of each side that a step of Adam sees.
            rate: first step of Adam, relative to the spread of the data.
            anneal: an ``epsilon`` above the bridge's own that the fixed point begins with, halved until
                it is there; ``"auto"`` does so, from a quarter of the data's variance, where the
                bridge's own is below a twentieth of it; ``None`` never.
            held_out: part of the rows that is kept out, to end the polish where their objective no
                longer falls, and to keep the best; 0 for none.
            tolerance: fall of the objective in nats below which the fixed point has converged.
            pilot: the most rows of each side that k-means, the fixed point and L-BFGS see, and by which
                the objective is told; Adam draws from all.
            restart: begin anew; ``False`` goes on from the present numbers.
            generator: where all draws come from.
            progress: show a progress bar.
            callback: called with the bridge and the number of the look after each look.

        Returns:
            The bridge itself, frozen (``bridge.requires_grad_()`` lets it be trained further). Its
            ``history`` holds the trace, and what ``components="auto"`` tried.

        Raises:
            TypeError, ValueError: for rows that do not fit the bridge, are not finite or are constant
                in a coordinate, more components than rows, and numbers out of range.
            FloatingPointError: if the objective is not finite in the end.

        Warns:
            RuntimeWarning: if the fit had not converged, with the trace of the objective.
        """
        settings = Settings(
            iterations, polish, steps, batch_size, rate, anneal, held_out, tolerance, pilot, restart
        )
        with torch.no_grad():
            self.history = fit(self, x0, x1, settings, generator, progress, callback)
        return self.requires_grad_(False)

    def prepare(self, *xs: Tensor) -> LightBridge:
        """The warm start of a training: k-means and a few fixed-point iterations, and the anchors."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what follows is the training
            settings = Settings(iterations=10, polish=None)
            draw = stream("light bridge", device=self.location.device)
            self.history = fit(self, xs[0], xs[-1], settings, draw)
        return self.requires_grad_(True)
