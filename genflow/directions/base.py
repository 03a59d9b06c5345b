"""What directions are."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from genflow.tensors import draw_device


class Directions(ABC):
    """Unit vectors on the sphere of :math:`R^d`.

    A direction and its opposite project to mirror images, whose distance is the same: antithetic pairs
    would be wasted.
    """

    independent = False
    """Whether directions are drawn one by one, each independent of the others."""

    random = True
    """Whether they are drawn anew at every call, so that averages over them are unbiased."""

    def sample(
        self,
        projections: int,
        dim: int,
        generator: torch.Generator | None = None,
        like: Tensor | None = None,
    ) -> Tensor:
        """Draw ``projections`` directions, ``(L, d)`` with rows of length one.

        Args:
            projections: how many, ``L``.
            dim: the dimension ``d``.
            generator: where draws come from.
            like: gives dtype and device; float32 on the CPU if absent.

        Raises:
            ValueError: for a dimension that these directions do not know.
        """
        return self._draw(projections, dim, generator, torch.empty(0) if like is None else like)

    @abstractmethod
    def _draw(
        self, projections: int, dim: int, generator: torch.Generator | None, like: Tensor
    ) -> Tensor:
        """:meth:`sample` with all its arguments."""

    def balanced(self, projections: int, dim: int) -> bool:
        """Whether quadratic forms have their exact means over so many directions, whatever the draw."""
        return False


def normalised(vectors: Tensor) -> Tensor:
    """Rows of length one."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers of the dtype and device of ``like``."""
    where = draw_device(generator, like.device)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=where).to(like.device)


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed for a library that takes no generator."""
    where = "cpu" if generator is None else generator.device
    return int(torch.randint(2**31, (), generator=generator, device=where))
