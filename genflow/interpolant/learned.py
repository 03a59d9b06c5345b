r"""An interpolant whose schedule is learned, for instance towards the Schrödinger bridge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genflow.checks import count, positive
from genflow.interpolant.base import Affine, Coefficients


class LearnedAffine(nn.Module, Affine):
    r"""An affine interpolant with free smooth coefficients that keep their values at both ends:

    .. math:: \alpha = 1 - t + t(1-t)\,p(t),\quad \beta = t + t(1-t)\,q(t),\quad
              \gamma^2 = a\,t(1-t)\,e^{r(t)},

    with :math:`p, q, r` polynomials in Chebyshev's basis, their numbers the parameters; rates are
    closed forms. It starts as ``Linear(gamma=Brownian(a))``. Whatever it becomes, its processes carry
    the law of ``x0`` to that of ``x1``. Train it as a part of ``genflow.process.LearnedBridge``, since
    a loss owns no parameters.

    Args:
        order: number of terms of each polynomial.
        a: variance per unit time to start from; :math:`\sigma^2` is that of the reference
            :math:`dX = \sigma dW`.
    """

    stochastic = True

    def __init__(self, order: int = 3, a: float = 1.0) -> None:
        super().__init__()
        count(self, order=order)
        positive(self, a=a)
        self.order, self.a = order, a
        self.terms = nn.Parameter(torch.zeros(3, order))

    def coefficients(self, t: Tensor) -> Coefficients:
        basis, dbasis = _chebyshev(t, self.order)
        terms = self.terms.to(t)
        (p, q, r), (dp, dq, dr) = terms @ basis, terms @ dbasis
        bump, dbump = t * (1 - t), 1 - 2 * t
        spread = self.a * r.exp()
        product = spread * (dbump + bump * dr) / 2
        # the root is taken of what has no parameters: its derivative is infinite at both ends
        root, least = bump.clamp_min(0).sqrt(), bump.clamp_min(torch.finfo(t.dtype).eps).sqrt()
        return Coefficients(
            1 - t + bump * p, t + bump * q, spread.sqrt() * root,
            dbump * p + bump * dp - 1, dbump * q + bump * dq + 1, product / (spread.sqrt() * least),
            product,
        )  # fmt: skip


def _chebyshev(t: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """``T_k(2t - 1)`` and its derivative in ``t`` for ``k < order``, each ``(order, B)``."""
    s = 2 * t - 1
    values, rates = [torch.ones_like(s), s], [torch.zeros_like(s), torch.full_like(s, 2.0)]
    while len(values) < order:
        rates.append(4 * values[-1] + 2 * s * rates[-1] - rates[-2])
        values.append(2 * s * values[-1] - values[-2])
    return torch.stack(values[:order]), torch.stack(rates[:order])
