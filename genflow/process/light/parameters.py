"""The numbers of a light bridge: a mixture of Gaussians for a potential."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genflow.checks import count, one_of, positive
from genflow.process.base import Process
from genflow.process.light.covariance import FAMILIES, Axes, Covariance
from genflow.process.light.kept import Kept
from genflow.process.light.potential import Potential
from genflow.tensors import as_shape, path_time


class Parametrised(Process):
    """What a light bridge is made of, and what its objective is; arguments as :class:`LightBridge` has
    them."""

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
        self.register_buffer("anchors", None)
        self._kept, self._reached = Kept(), Kept()
        self._renew(1 if components == "auto" else components)
        # equal components would stay equal
        nn.init.normal_(self.location)

    @staticmethod
    def _check_rank(covariance: str, rank: int | None, size: int) -> None:
        if covariance != "low_rank":
            if rank is not None:
                raise ValueError(
                    f"LightBridge(covariance={covariance!r}, rank={rank!r}): rank belongs to "
                    "'low_rank' alone"
                )
            return
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < size:
            raise ValueError(
                f"LightBridge(covariance='low_rank', rank={rank!r}): rank must be a whole number from "
                f"1 to {size - 1}, the dimension less one"
            )

    def _renew(self, components: int) -> None:
        """Parameters for so many components, all of them the same."""
        size = torch.Size(self.shape).numel()
        like = getattr(self, "location", torch.zeros(()))
        self.log_weight = nn.Parameter(torch.full((components,), -math.log(components)))
        self.location = nn.Parameter(torch.zeros(components, size))
        self.scales = Covariance(size, components, self.covariance, self.rank)
        self.to(device=like.device, dtype=like.dtype)

    def resize(self, components: int) -> None:
        """Take another number of components, to be filled by :meth:`assign`."""
        self.components = components
        self._renew(components)

    @property
    def sigma(self) -> float:
        """Diffusion coefficient of the bridge, the root of ``epsilon``."""
        return self.epsilon**0.5

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def potential(self) -> Potential:
        """The numbers in float64, with gradients where parameters ask for them."""
        parts = self.parametrised()
        tracked = torch.is_grad_enabled() and any(p.requires_grad for p in parts)
        if tracked or self.covariance in ("diagonal", "isotropic"):
            return self._potential()
        return self._kept.get(parts, self._potential)  # eigenvectors take their time

    def _potential(self) -> Potential:
        spectrum = self.scales.spectrum()
        return Potential(self.epsilon, self.log_weight.double(), self.location.double(), spectrum)

    def log_potential(self, x1: Tensor) -> Tensor:
        r""":math:`\log v(x_1)`, ``(B,)``, float64."""
        return self.potential.log_potential(self._flat("x1", x1))

    def log_normaliser(self, x0: Tensor) -> Tensor:
        r""":math:`\log c(x_0)`, ``(B,)``, float64."""
        return self.potential.log_normaliser(self._flat("x0", x0))

    def objective(self, x0: Tensor, x1: Tensor) -> Tensor:
        r""":math:`\mathbb E\log c(x_0) - \mathbb E\log v(x_1)`, float64: the Kullback-Leibler
        divergence of the true bridge from this one, up to a constant that neither knows.

        Args:
            x0, x1: unpaired batches ``(B0, *d)`` and ``(B1, *d)``.
        """
        return self.objective_of(self._flat("x0", x0), self._flat("x1", x1))

    def parametrised(self) -> list[nn.Parameter]:
        """Logarithms of the weights, locations, and what parametrises the covariances."""
        return [self.log_weight, self.location, *self.scales.parameters()]

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
    def assign(self, log_weight: Tensor, location: Tensor, scale: Tensor) -> Parametrised:
        r"""Take :math:`\log\alpha`, :math:`r` and :math:`S` in place.

        Args:
            log_weight: ``(K,)``.
            location: ``(K, d)``.
            scale: ``(K, d)`` for diagonal, ``(K,)`` for isotropic, ``(K, d, d)`` for other covariances,
                positive definite.

        Raises:
            ValueError: for other shapes, and scales that are not positive.
        """
        if self.components == "auto":
            self.resize(len(location))
        k, d = self.location.shape
        scales = {"diagonal": [(k, d)], "isotropic": [(k,), (k, 1)]}.get(self.covariance, [(k, d, d)])
        wanted = {"log_weight": [(k,)], "location": [(k, d)], "scale": scales}
        for (name, shapes), value in zip(wanted.items(), (log_weight, location, scale)):
            if tuple(value.shape) not in shapes:
                raise ValueError(
                    f"LightBridge.assign: {name} has shape {tuple(value.shape)}, expected {shapes[0]}"
                )
        least = torch.linalg.eigvalsh(scale) if scale.ndim == 3 else scale
        if bool((least <= 0).any()):
            raise ValueError(
                f"LightBridge.assign: the least eigenvalue of scale is {float(least.min()):g}; all "
                "must be positive"
            )
        self.log_weight.copy_(log_weight)
        self.location.copy_(location)
        self.scales.assign(scale.to(self.location.device))
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
        if not x.is_floating_point():
            raise TypeError(f"LightBridge: {name} must be a floating-point tensor, got {x.dtype}")

    @staticmethod
    def _time(t: Tensor | float, x: Tensor) -> Tensor:
        """Times in float64: ``()`` where all rows are known to have the same, which costs far less, or
        ``(B,)``."""
        t = torch.as_tensor(t, dtype=torch.float64)  # checked where it is: a number costs no wait
        path_time(t, x.new_empty((len(x), 0), dtype=torch.float64, device=t.device))
        t = t.to(x.device)
        return t[0] if t.ndim and _alike(t) else t

    @staticmethod
    def _unconditional(cond: Tensor | None) -> None:
        if cond is not None:
            raise ValueError(
                "LightBridge knows no conditions: fit one bridge for each, or leave cond out"
            )


def _alike(t: Tensor) -> bool:
    """Whether all times ``(B,)`` are known to be one, which has no gradient of its own in each row."""
    if t.requires_grad or len(t) == 0 or torch.compiler.is_compiling():
        return False
    if t.stride() == (0,):
        return True
    try:
        return t.device.type == "cpu" and bool((t == t[0]).all())
    except RuntimeError:  # under vmap no number can be read
        return False
