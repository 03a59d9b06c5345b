"""A source pushed forward by one evaluation of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from genflow.model.base import Sourced, evaluating
from genflow.model.rows import align, batches, refuse_options
from genflow.source import Source
from genflow.transform import Transform


class PushForward(Sourced):
    """Draws the source and maps it by the network, in one evaluation: ``x = f(0, x0, cond)``.

    The network is trained by a distance between samples
    (:class:`~genflow.loss.SampleDistance`), not by a regression on a field. Users speak data units;
    the transform is applied inside. A latent source (``Gaussian``) is never transformed; any other
    source is data.

    Args:
        source: law of the start.
        network: the map ``f(t, x, cond)``, always asked at time 0.
        transform: data units to model space; ``None`` leaves data as they are.
    """

    nfe = 1

    def __init__(self, source: Source, network: nn.Module, transform: Transform | None = None) -> None:
        super().__init__()
        self.source, self.network, self.transform = source, network, transform

    @property
    def learner(self) -> nn.Module:
        return self.network

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
        """Draw samples ``(n, *d)`` in data units.

        Args:
            n: how many; defaults to the length of ``x0`` or ``cond``.
            x0: where to start ``(n, *d)``, instead of drawing the source.
            cond: conditions, one a row, or a single label for all rows.
            steps, times, epsilon, solver, trajectory, reverse: of models that follow a process; here
                they have no meaning and are refused.
            generator: where the starts are drawn from.
            batch_size: how many samples are mapped at a time; all at once if absent.
            progress: show a progress bar over the batches.

        Raises:
            ValueError: if sizes do not fit, or an option does not apply.
        """
        refuse_options(
            self, "maps the source in one evaluation of its network", steps=steps, times=times,
            epsilon=epsilon, solver=solver, trajectory=trajectory, reverse=reverse,
        )  # fmt: skip
        n, cond = align("sample", cond, self.device, n=n, x0=x0)
        z = self._drawn(n, generator) if x0 is None else self._given(x0)
        t = z.new_zeros(n)
        with evaluating(self):
            parts = []
            for rows in batches(n, batch_size, progress):
                inputs = (t[rows], z[rows]) if cond is None else (t[rows], z[rows], cond[rows])
                parts.append(self.network(*inputs))
        x = torch.cat(parts)
        return x if self.transform is None else self.transform.inverse(x)

    def log_prob(self, x: Tensor, cond: Tensor | None = None, **options: Any) -> NoReturn:
        """Not known.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "log_prob: a PushForward has no known density, because its network need not be "
            "invertible; train a Generator for likelihoods"
        )
