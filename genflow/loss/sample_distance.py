"""A distance between generated samples and data, minimised directly."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from genflow.coupling.sides import Conditions, side_conditions
from genflow.distance import Distance
from genflow.distance.base import measure
from genflow.loss.base import Learner, Loss
from genflow.process import Process


@dataclass(frozen=True)
class SampleDistance(Loss):
    r""":math:`D(f_\# x_0,\, x_1)`: how far a learner's samples are from data.

    The learner is asked once, at time 0; it is the map of a
    :class:`~genflow.model.PushForward`, or any ``f(t, x, cond)``. With integer labels the laws are
    compared class by class, and the distances are averaged by the share of each class.

    >>> loss = SampleDistance(EnergyDistance())(net, x0, x1)  # doctest: +SKIP

    Args:
        distance: between samples ``(n, d)`` and ``(m, d)``; events are flattened for it.
        gather: where ``torch.distributed`` runs on several ranks, compare the samples of all of them
            with the data of all of them, along the draws of rank 0. The value is then that of one
            process on the whole batch, and the mean of the ranks' gradients (which
            ``DistributedDataParallel`` takes) is its gradient. ``False``: each rank compares its own.

    Raises:
        TypeError: if ``distance`` is none.
    """

    distance: Distance
    gather: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.distance, Distance):
            raise TypeError(
                f"SampleDistance(distance={self.distance!r}): distance must be a Distance, such as "
                "EnergyDistance()"
            )

    def check(self, learner: Learner) -> None:
        if isinstance(learner, Process):
            raise ValueError(
                f"SampleDistance takes the learner's output for samples, but {type(learner).__name__} "
                "learns a field to follow; use model=push_forward, or loss=matching"
            )

    def __call__(
        self,
        learner: Learner,
        *xs: Tensor,
        cond: Conditions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The distance, a scalar.

        Args:
            learner: any ``f(t, x)``, or ``f(t, x, cond)`` where there are conditions.
            xs: ``x0 (B0, *d0)`` and ``x1 (B1, *d)``; their sizes may differ where there is no
                condition, and ``d0`` may be another shape than ``d`` where the learner allows it.
            cond: integer labels ``(B1,)`` of ``x1``.
            generator: where the distance draws from, if it does.

        Raises:
            TypeError, ValueError: for samples unlike ``x1``, conditions that are no labels, or batch
                sizes that differ between ranks.
        """
        if len(xs) != 2:
            raise ValueError(f"SampleDistance compares two marginals (x0, x1), got {len(xs)}")
        x0, x1 = xs
        labels = side_conditions("SampleDistance", xs, cond)[-1]
        if labels is not None:
            _check_labels(labels, x0)
        inputs = (x0.new_zeros(len(x0)), x0)
        samples = learner(*inputs) if labels is None else learner(*inputs, labels)
        samples = _checked(samples, x1)
        if self.gather and _world() > 1:
            samples, x1, labels, generator = self._gathered(samples, x1, labels, generator)
        kind = x1.device.type  # a distance needs its full precision
        lowered = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if lowered else nullcontext():
            if labels is None:
                return measure(self.distance, samples, x1, generator)
            return self._by_class(samples, x1, labels, generator)

    def _by_class(
        self, samples: Tensor, x1: Tensor, labels: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        terms = []
        for label in labels.unique():
            rows = labels == label
            value = measure(self.distance, samples[rows], x1[rows], generator)
            terms.append(value * rows.to(value.dtype).mean())
        return torch.stack(terms).sum()

    def _gathered(
        self,
        samples: Tensor,
        x1: Tensor,
        labels: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, torch.Generator | None]:
        sizes = _all(torch.tensor([len(samples), len(x1)], device=x1.device)).tolist()
        if any(size != sizes[0] for size in sizes):
            raise ValueError(
                f"SampleDistance(gather=True) needs equal batches on all ranks, got (x0, x1) of sizes "
                f"{[tuple(size) for size in sizes]}; drop the last batch, or use gather=False"
            )
        if labels is not None:
            labels = _all(labels).flatten(0, 1)
        draws = _first(generator, x1.device) if self.distance.random else generator
        return _joined(samples), _all(x1).flatten(0, 1), labels, draws


def _check_labels(labels: Tensor, x0: Tensor) -> None:
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            "SampleDistance compares class by class: cond must be integer labels (B,), got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) != len(x0):
        raise ValueError(
            f"SampleDistance: the labels of x1 also say what to make of x0, so both need as many rows, "
            f"got {len(x0)} of x0 and {len(labels)} of x1"
        )


def _checked(samples: Tensor, x1: Tensor) -> Tensor:
    """Samples in the dtype of the data, in which they are compared."""
    if not isinstance(samples, Tensor) or samples.shape[1:] != x1.shape[1:]:
        tensor = isinstance(samples, Tensor)
        got = f"events of shape {tuple(samples.shape[1:])}" if tensor else f"a {type(samples).__name__}"
        raise ValueError(
            f"SampleDistance: the learner returned {got}, expected events of shape "
            f"{tuple(x1.shape[1:])} like x1"
        )
    return samples.to(x1.dtype)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all(x: Tensor) -> Tensor:
    """The tensors of all ranks, stacked, without gradient."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(_world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


def _joined(x: Tensor) -> Tensor:
    """The rows of all ranks, with the gradient of this rank's own.

    Each rank differentiates the same value by its own rows alone; times the number of ranks, the mean
    over ranks is the whole gradient, and the way back needs no messages.
    """
    parts, world = list(_all(x)), _world()
    if x.requires_grad:
        x = x.view_as(x)  # the hook must not stay on what the learner keeps
        x.register_hook(lambda gradient: gradient * world)
        parts[dist.get_rank()] = x
    return torch.cat(parts)


def _first(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """A generator that draws what rank 0's would; rank 0 advances its own, the others keep theirs."""
    if generator is None:
        seed = int(torch.randint(2**62, ()))
        generator = torch.Generator().manual_seed(seed)
    state = generator.get_state().to(device)
    dist.broadcast(state, 0)
    if dist.get_rank() == 0:
        return generator
    same = torch.Generator(generator.device)
    same.set_state(state.cpu())
    return same
