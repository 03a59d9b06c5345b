"""Points that are moved themselves: a gradient flow as a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from genflow.checks import count
from genflow.model.base import Model
from genflow.model.rows import align, refuse_options
from genflow.tensors import as_shape


class Particles(Model):
    """A cloud of points, which are the parameters: training moves them from ``x0`` to the data.

    Trained by :class:`~genflow.loss.SampleDistance` with plain gradient descent it is the gradient flow
    of the distance. As in :func:`genflow.flow.gradient_flow` the gradient of each point is divided by
    its mass (multiplied by ``n``) on its way to the parameters, so that the learning rate is a step
    per point, whatever their number.

    The map from the starts to the points extends to other points: ``sample(x0=...)`` moves each by the
    mean displacement of its ``neighbours`` nearest starts, which recolours a whole photograph after
    some of its pixels were moved.

    Args:
        n: how many points.
        dim: event shape.
        neighbours: starts that a further point follows; more are smoother.
    """

    def __init__(self, n: int, dim: int | Sequence[int], neighbours: int = 8) -> None:
        super().__init__()
        count(self, n=n, neighbours=neighbours)
        self.n, self.dim, self.neighbours = n, dim, neighbours
        self.points = nn.Parameter(torch.full((n, *as_shape(dim)), math.nan))
        self.register_buffer("start", torch.full((n, *as_shape(dim)), math.nan))

    @property
    def most(self) -> int:
        return self.n

    @property
    def learner(self) -> nn.Module:
        return self

    def forward(self, t: Any = None, x: Any = None, cond: Any = None) -> Tensor:
        """The points ``(n, *d)``, whatever the arguments of a learner are."""
        points = self.points.view_as(self.points)  # a hook on the parameter itself would stay
        if points.requires_grad:
            points.register_hook(lambda gradient: gradient * self.n)
        return points

    def encode(self, *xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.to(self.dtype) for x in xs)

    @torch.no_grad()
    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Particles:
        """Start from the first ``n`` rows of ``x0``; a cloud that has started stays where it is.

        Raises:
            ValueError: if ``x0`` has fewer rows, or other events.
        """
        if bool(self.start.isnan().any()):
            x0 = xs[0][: self.n]
            if x0.shape != self.start.shape:
                raise ValueError(
                    f"Particles(n={self.n}, dim={self.dim}): x0 has {len(xs[0])} rows of shape "
                    f"{tuple(xs[0].shape[1:])}; give at least {self.n} of {as_shape(self.dim)} "
                    "(a run hands over up to 20,000), or other sizes"
                )
            self.start.copy_(x0)
            self.points.copy_(x0)
        return self

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        x0: Tensor | None = None,
        cond: Tensor | None = None,
        steps: int | None = None,
        times: Tensor | Sequence[float] | None = None,
        epsilon: Any = None,
        solver: Any = None,
        generator: torch.Generator | None = None,
        trajectory: bool = False,
        reverse: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """The points, in data units; nothing is drawn.

        Args:
            n: how many; all of them, in order, if absent, else the first ``n`` of a fixed permutation.
            x0: further points ``(n, *d)``, moved along with their nearest starts (:meth:`move`).
            trajectory: return ``(2, n, *d)``, the starts and where they are now.
            generator, batch_size, progress: have no effect.
            cond, steps, times, epsilon, solver, reverse: have no meaning here and are refused.

        Raises:
            ValueError: for more points than there are, an option that does not apply, or a cloud that
                has not started.
        """
        refuse_options(
            self, "keeps points that are there already", cond=cond, steps=steps, times=times,
            epsilon=epsilon, solver=solver, reverse=reverse,
        )  # fmt: skip
        self._check_started()
        if x0 is not None:
            align("sample", None, self.device, n=n, x0=x0)
            pair = torch.stack([x0.to(self.points), self.move(x0)])
        else:
            pair = torch.stack([self.start, self.points.detach()])[:, self._rows(n)]
        return pair if trajectory else pair[1]

    def _rows(self, n: int | None) -> Tensor:
        if n is None:
            return torch.arange(self.n, device=self.device)
        count("sample", n=n)
        if n > self.n:
            raise ValueError(f"sample(n={n}): there are {self.n} Particles; ask for at most as many")
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(0))
        return order[:n].to(self.device)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """Which starts are nearest to ``x (m, *d)``: rows ``(m, neighbours)``, the nearest first."""
        self._check_started()
        if not isinstance(x, Tensor) or x.shape[1:] != self.start.shape[1:] or len(x) == 0:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"Particles: points must have shape (m, {', '.join(map(str, self.start.shape[1:]))}) "
                f"with m >= 1, got {got}"
            )
        from sklearn.neighbors import NearestNeighbors  # a tree: 68,000 colours in 0.2 s, not in 10

        x, start = (v.detach().flatten(1).cpu().numpy() for v in (x, self.start))
        tree = NearestNeighbors(n_neighbors=min(self.neighbours, self.n)).fit(start)
        return torch.from_numpy(tree.kneighbors(x, return_distance=False)).to(self.device)

    @torch.no_grad()
    def move(self, x: Tensor, points: Tensor | None = None, nearest: Tensor | None = None) -> Tensor:
        """Further points ``x (m, *d)``, each moved by the mean displacement of its nearest starts.

        Args:
            x: where they are now.
            points: where the starts have gone ``(n, *d)``; the points of the model if absent.
            nearest: what :meth:`nearest` says of ``x``, if known.
        """
        rows = self.nearest(x) if nearest is None else nearest
        shift = (self.points if points is None else points.to(self.start)) - self.start
        return x.to(self.start) + shift[rows].mean(1)

    def log_prob(self, x: Tensor, cond: Tensor | None = None, **options: Any) -> NoReturn:
        """Not known.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("log_prob: Particles are points, which have no density")

    def _check_started(self) -> None:
        if bool(self.start.isnan().any()):
            raise ValueError("Particles have no points yet: call model.prepare(x0, x1), or train")
