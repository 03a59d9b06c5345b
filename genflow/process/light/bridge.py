"""Light Schrödinger bridges: a Gaussian mixture for a potential, and everything in closed form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genflow.checks import count, one_of, positive
from genflow.process.base import Process
from genflow.process.light.anchors import Anchored
from genflow.process.light.covariance import FAMILIES, Axes, Covariance
from genflow.process.light.fit import Fit, Settings
from genflow.process.light.kept import Kept
from genflow.process.light.law import Transition
from genflow.process.light.potential import Potential
from genflow.seeds import stream
from genflow.source import Source
from genflow.tensors import as_shape, path_time, randn_like


class LightBridge(Anchored, Process):
    r"""Schrödinger bridge whose potential is a mixture of Gaussians (Korotin, Gushchin & Burnaev 2024).

    The bridge of :math:`dX = \sqrt\varepsilon\,dW` between two laws, i.e. the entropic plan of cost
    :math:`|x_0-x_1|^2/2` at temperature :math:`\varepsilon`: ``epsilon`` :math:`= \sigma^2`. Drift, plan,
    transitions and densities are closed forms; forms are computed in float64, and answers have the
    dtype of the states that they are asked for.

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

    def __init__(
        self,
        dim: int | Sequence[int],
        components: int | str,
        epsilon: float,
        covariance: str = "diagonal",
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = as_shape(dim)
        positive(self, epsilon=epsilon)
        one_of(self, FAMILIES, covariance=covariance)
        if components != "auto":
            count(self, components=components)
        size = torch.Size(self.shape).numel()
        self._check_rank(covariance, rank, size)
        self.dim, self.components, self.epsilon = dim, components, float(epsilon)
        self.covariance, self.rank = covariance, rank
        self.history = None
        self._kept: Kept[Potential] = Kept()
        self._resize(1 if components == "auto" else components)

    @staticmethod
    def _check_rank(covariance: str, rank: int | None, size: int) -> None:
        if covariance != "low_rank":
            if rank is not None:
                raise ValueError(
                    f"LightBridge(covariance={covariance!r}, rank={rank!r}): rank belongs to 'low_rank' alone"
                )
            return
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < size:
            raise ValueError(
                f"LightBridge(covariance='low_rank', rank={rank!r}): rank must be a whole number from 1 to "
                f"{size - 1}, the dimension less one"
            )

    def _resize(self, components: int) -> None:
        """Fresh parameters for so many components."""
        size = torch.Size(self.shape).numel()
        like = getattr(self, "location", torch.zeros(()))
        self.log_weight = nn.Parameter(torch.zeros(components))
        self.location = nn.Parameter(torch.zeros(components, size))
        self.covariances_ = Covariance(size, components, self.covariance, self.rank)
        self.to(device=like.device, dtype=like.dtype)

    @property
    def sigma(self) -> float:
        """Diffusion coefficient of the bridge, the root of ``epsilon``."""
        return self.epsilon**0.5

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def potential(self) -> Potential:
        """The numbers in float64, with gradients where they are wanted."""
        if torch.is_grad_enabled() or self.covariance in ("diagonal", "isotropic"):
            return self._potential()
        return self._kept.get(self.parametrised(), self._potential)  # eigenvectors take their time

    def _potential(self) -> Potential:
        spectrum = self.covariances_.spectrum()
        return Potential(self.epsilon, self.log_weight.double(), self.location.double(), spectrum)

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
        if p.quick(t):
            return p.quick_drift(t, x.flatten(1)).reshape(x.shape)
        return p.drift(t, x.flatten(1).double()).reshape(x.shape).to(x.dtype)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return self.sigma * dw

    def log_potential(self, x1: Tensor) -> Tensor:
        r""":math:`\log v(x_1)`, ``(B,)``, float64."""
        return self.potential.log_potential(self._flat("x1", x1))

    def log_normaliser(self, x0: Tensor) -> Tensor:
        r""":math:`\log c(x_0)`, ``(B,)``, float64."""
        return self.potential.log_normaliser(self._flat("x0", x0))

    def objective(self, x0: Tensor, x1: Tensor) -> Tensor:
        r""":math:`\mathbb E\log c(x_0) - \mathbb E\log v(x_1)`, float64: the Kullback-Leibler divergence of
        the true bridge from this one, up to a constant that neither knows.

        Args:
            x0, x1: unpaired batches ``(B0, *d)`` and ``(B1, *d)``.
        """
        return self.objective_of(self._flat("x0", x0), self._flat("x1", x1))

    def transition_law(self, s: Tensor | float, t: Tensor | float, x: Tensor) -> Transition:
        """Law of ``x_t`` given states ``x (B, *d)`` at ``s < t``; times are numbers or ``(B,)``."""
        self._flat("x", x)
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
        """Exact draw of ``x_t`` given ``x (B, *d)`` at ``s``; ``t < s`` runs backwards, to starts among the
        anchors.

        Raises:
            ValueError: backwards without anchors, or for times outside [0, 1].
        """
        if bool((self._time(t, x) < self._time(s, x)).all()):
            return self._backward(s, t, x, generator)
        return self.transition_law(s, t, x).sample(generator=generator)

    def sample_at(
        self, x0: Tensor, t: Tensor | float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draw at ``t``, a number or ``(B,)``, of paths that start at ``x0 (B, *d)``."""
        if bool((self._time(t, x0) == 0).all()):
            return x0.clone()
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
        if grid.ndim != 1 or bool((grid.diff() <= 0).any()) or grid.min() < 0 or grid.max() > 1:
            raise ValueError("LightBridge.sample_path: times must rise strictly within [0, 1]")
        x1 = self.plan(x0).sample(generator=generator) if x1 is None else x1
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

        K-means of the data starts it; a fixed-point iteration without a learning rate follows, which goes
        only as far as the objective falls; Adam with cosine decay polishes, in units of the data's spread.

        Args:
            x0: rows ``(N0, *d)`` of the source, or a ``Source`` to draw from.
            x1: rows ``(N1, *d)`` of the data, or a ``Source``.
            iterations: most fixed-point iterations.
            polish: ``"adam"`` on minibatches, ``"lbfgs"`` on all rows, or ``None``.
            steps: of the polish.
            batch_size: rows of each side that a step of Adam sees.
            rate: first step of Adam, relative to the spread of the data.
            anneal: an ``epsilon`` above the bridge's own that the fixed point begins with, halved until it is
                there; ``"auto"`` does so, from a quarter of the data's variance, where the bridge's own is below
                a twentieth of it; ``None`` never.
            held_out: part of the rows that is kept out, to end the polish where their objective no longer
                falls, and to keep the best; 0 for none.
            tolerance: fall of the objective in nats below which the fixed point has converged.
            pilot: rows of a ``Source`` that k-means and the fixed point see.
            restart: begin anew; ``False`` goes on from the present numbers.
            generator: where all draws come from.
            progress: show a progress bar.
            callback: called with the bridge and the number of the look after each look.

        Returns:
            The bridge itself. Its ``history`` holds the trace, and what ``components="auto"`` tried.

        Raises:
            TypeError, ValueError: for rows that do not fit the bridge, are not finite or are constant in a
                coordinate, more components than rows, and numbers out of range.
            FloatingPointError: if the objective is not finite in the end.

        Warns:
            RuntimeWarning: if the fit had not converged, with the trace of the objective.
        """
        settings = Settings(
            iterations, polish, steps, batch_size, rate, anneal, held_out, tolerance, pilot, restart
        )
        with torch.no_grad():
            self.history = Fit(self, x0, x1, settings, generator, progress, callback).run()
        return self

    def prepare(self, *xs: Tensor) -> LightBridge:
        """The warm start of a training: k-means and a few fixed-point iterations, and the anchors."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what follows is the training
            settings = Settings(iterations=10, polish=None)
            draw = stream("light bridge", device=self.location.device)
            self.history = Fit(self, xs[0], xs[-1], settings, draw).run()
        return self

    def parametrised(self) -> list[nn.Parameter]:
        """Logarithms of the weights, locations, and what parametrises the covariances."""
        return [self.log_weight, self.location, *self.covariances_.parameters()]

    def objective_of(self, x0: Tensor, x1: Tensor) -> Tensor:
        """:meth:`objective` of flattened rows in float64."""
        p = self.potential
        return p.log_normaliser(x0).mean() - p.log_potential(x1).mean()

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`assign` takes, in float64."""
        s = self.potential.spectrum
        scale = s.values if isinstance(s, Axes) else s.matrix(s.values)
        return tuple(v.detach().double().clone() for v in (self.log_weight, self.location, scale))

    @torch.no_grad()
    def covariances(self) -> Tensor:
        """:math:`S_k` as matrices, ``(K, d, d)``, float64."""
        spectrum = self.potential.spectrum
        return spectrum.matrix(spectrum.values)

    @torch.no_grad()
    def assign(self, log_weight: Tensor, location: Tensor, scale: Tensor) -> LightBridge:
        r"""Take :math:`\log\alpha`, :math:`r` and :math:`S` in place.

        Args:
            log_weight: ``(K,)``.
            location: ``(K, d)``.
            scale: ``(K, d)`` for diagonal, ``(K,)`` for isotropic, ``(K, d, d)`` for other covariances.
        """
        if self.components == "auto":
            self.components = len(location)
        if self.location.shape != location.shape:
            raise ValueError(
                f"LightBridge.assign: location has shape {tuple(location.shape)}, expected "
                f"{tuple(self.location.shape)}"
            )
        self.log_weight.copy_(log_weight)
        self.location.copy_(location)
        self.covariances_.assign(scale.to(self.location.device))
        return self

    def _flat(self, name: str, x: Tensor) -> Tensor:
        self._check_shape(name, x)
        return x.flatten(1).double()

    def _check_shape(self, name: str, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim == 0 or tuple(x.shape[1:]) != self.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"LightBridge: {name} must be (B, {', '.join(map(str, self.shape))}), got {got}"
            )

    @staticmethod
    def _time(t: Tensor | float, x: Tensor) -> Tensor:
        """Times in float64: ``()`` where all rows have the same, which costs far less, or ``(B,)``."""
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        rows = path_time(t, x[..., :0].double())
        if t.ndim == 0:
            return t
        same = t.device.type == "cpu" and len(t) > 0 and t.stride() == (0,) or bool((t == t[0]).all())
        return rows[0] if same else rows

    @staticmethod
    def _unconditional(cond: Tensor | None) -> None:
        if cond is not None:
            raise ValueError(
                "LightBridge knows no conditions: fit one bridge for each, or leave cond out"
            )
