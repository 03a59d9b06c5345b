r"""Conversions between the fields of an affine interpolant, all by one table.

Given :math:`x_t = x`, every field is a combination of three conditional means with coefficients
that the interpolant knows (Albergo, Boffi & Vanden-Eijnden 2023):

========== ================ ================ ==================
field      :math:`E[x_0|x]` :math:`E[x_1|x]` :math:`E[z|x]`
========== ================ ================ ==================
x          alpha            beta             gamma
velocity   dalpha           dbeta            dgamma
rate       dalpha           dbeta            0
noise      0                0                1
score      0                0                -1 / gamma
denoised   0                1                0
start      1                0                0
========== ================ ================ ==================

so that one follows from others wherever its row is a combination of theirs. On ``OneSided(path)``
the start *is* the noise, and on ``Mirror(gamma)`` the start is the data.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor, nn

from genflow.interpolant import Affine, Coefficients, Mirror, OneSided
from genflow.interpolant.base import width_floor
from genflow.tensors import batch_time, expand

FIELDS = ("velocity", "rate", "noise", "score", "denoised", "start")
"""What :func:`convert` knows, each ``(B, *d)`` and a mean given ``x_t``."""

SOLVABLE = 1e-7
"""A row that the others miss by more than this, relative to its size, is not their combination."""

EARLY = (0.031, 0.113, 0.347, 0.459)
"""Generic times of the first half; a path such as ``EncoderDecoder`` has other rows in either."""


def convert(to: str, t: Tensor | float, x: Tensor, interpolant: Affine, **fields: Tensor) -> Tensor:
    r"""One field of an affine interpolant from others at the same times and places.

    >>> score = convert("score", t, x, BrownianBridge(), noise=noise)  # doctest: +SKIP
    >>> score = convert("score", t, x, OneSided(Linear()), velocity=velocity)  # doctest: +SKIP

    Only identities are used that hold for every coupling. Without width the velocity therefore does
    not give the score: :math:`s = -E[x_0|x]/\alpha` asks for a Gaussian ``x0`` independent of the
    data, which is what ``OneSided(path)`` stands for; with optimal-transport, entropic or weighted
    pairs the formula is wrong. Where several combinations serve, that of the smallest coefficients
    is taken.

    The result is always finite. It is the limit at both ends as well, except where the given fields
    lose it: a score from the noise where ``gamma`` is zero, a noise or score from velocity and rate
    where ``gamma dgamma`` is (in the middle of symmetric widths; at the ends of smooth ones), and
    either end of the path from ``x`` and the noise where its own coefficient is zero.

    Args:
        to: ``"velocity"``, ``"rate"``, ``"noise"``, ``"score"``, ``"denoised"`` (:math:`E[x_1|x]`)
            or ``"start"`` (:math:`E[x_0|x]`).
        t: times ``(B,)`` in [0, 1], or one number.
        x: places ``(B, *d)``.
        interpolant: the path on which the fields were learned.
        fields: what is known, by the same names, each ``(B, *d)``.

    Returns:
        ``(B, *d)`` in the dtype of ``x``; gradients reach ``x`` and the fields.

    Raises:
        ValueError: if the fields do not determine it, with those that would; or for an unknown
            name, a shape other than that of ``x``, or a time outside [0, 1].
    """
    _check(to, x, interpolant, fields)
    if to in fields:
        return fields[to]
    times = batch_time(t, x)
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError("convert: t must lie in [0, 1]")
    given = {"x": x, **{name: fields[name] for name in FIELDS if name in fields}}
    chosen = _choose(to, tuple(given), interpolant, times)
    if bool((times == times[0]).all()):  # one system instead of one a row, as in a sampling loop
        times = times[:1]
    factors = _solve(to, [chosen], _table(interpolant, times.double()))[0][0]
    limit = torch.finfo(x.dtype).max ** 0.5  # a width that rounds to 1e-32 at an end
    factors = factors.clamp(-limit, limit).to(x.dtype)
    return sum(expand(factor, x) * given[name] for name, factor in zip(chosen, factors.unbind(-1)))


def _check(to: str, x: Tensor, interpolant: Affine, fields: dict[str, Tensor]) -> None:
    for name in (to, *fields):
        if name not in FIELDS:
            raise ValueError(f"convert: unknown field {name!r}; it must be one of {', '.join(FIELDS)}")
    if not isinstance(interpolant, Affine):
        raise ValueError(
            f"convert: {interpolant!r} is no affine interpolant, so its fields determine no others"
        )
    for name, value in fields.items():
        if value.shape != x.shape:
            raise ValueError(
                f"convert: {name} has shape {tuple(value.shape)}, expected {tuple(x.shape)} like x"
            )


def _table(interpolant: Affine, t: Tensor) -> dict[str, Tensor]:
    """The rows ``(B, 3)`` of all fields at times ``t``, float64.

    The last column is for E[z|x], or for E[z|x] / gamma at the ends of a width with a diverging
    rate, where ``gamma dgamma`` keeps the limit and ``dgamma`` does not.
    """
    c = Coefficients(*(torch.as_tensor(v, dtype=t.dtype) for v in interpolant.coefficients(t)))
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    product = c.gamma * c.dgamma
    lost = (product - c.gamma_dgamma).abs() > 1e-6 * (product.abs() + c.gamma_dgamma.abs())
    last = {
        "x": torch.where(lost, c.gamma**2, c.gamma),
        "velocity": torch.where(lost, c.gamma_dgamma, c.dgamma),
        "noise": torch.where(lost, c.gamma, one),
        "score": torch.where(lost, -one, -1 / width_floor(c.gamma)),
    }
    rows = {
        "x": (c.alpha, c.beta, last["x"]),
        "velocity": (c.dalpha, c.dbeta, last["velocity"]),
        "rate": (c.dalpha, c.dbeta, zero),
        "noise": (zero, zero, last["noise"]),
        "score": (zero, zero, last["score"]),
        "denoised": (zero, one, zero),
        "start": (one, zero, zero),
    }
    if isinstance(interpolant, OneSided):
        rows["start"] = rows["noise"]
    if isinstance(interpolant, Mirror):
        rows["start"] = rows["denoised"]
    return {name: torch.stack(row, -1) for name, row in rows.items()}


def _solve(to: str, names: list[tuple[str, ...]], table: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """For each set of ``k`` names the factors ``(sets, B, k)`` that make the row of ``to`` from theirs,
    and what they miss of it ``(sets, B)``."""
    rows = torch.stack([torch.stack([table[name] for name in one], -2) for one in names])
    target = table[to][:, None].expand(len(names), -1, -1, -1)
    # unit columns and rows: a diverging dgamma or 1 / gamma must not hide the rest
    columns = _size(torch.cat([rows, target], -2), -2)
    rows, target = rows / columns, target / columns
    sizes = _size(rows, -1)
    rows = rows / sizes
    factors = target @ torch.linalg.pinv(rows, rtol=1e-13)
    missed = (factors @ rows - target).abs().amax((-2, -1)) / _size(target, -1)[..., 0, 0]
    return (factors / sizes.mT).squeeze(-2), missed


def _size(value: Tensor, dim: int) -> Tensor:
    size = value.abs().amax(dim, keepdim=True)
    return size.masked_fill(size == 0, 1)


def _choose(to: str, given: tuple[str, ...], interpolant: Affine, times: Tensor) -> tuple[str, ...]:
    """The smallest combination of what is given that makes ``to`` at generic times."""
    halves = bool((times < 0.5).any()), bool((times >= 0.5).any())
    args = (to, given, interpolant, halves, times.device)
    # remembered for sampling loops; not for modules, which a memory would keep alive
    if isinstance(interpolant, nn.Module) or not _hashable(interpolant):
        return _chosen.__wrapped__(*args)
    return _chosen(*args)


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:  # a dataclass that is not frozen, or holds a list
        return False
    return True


@lru_cache(maxsize=256)
def _chosen(
    to: str,
    given: tuple[str, ...],
    interpolant: Affine,
    halves: tuple[bool, bool],
    device: torch.device,
) -> tuple[str, ...]:
    early = torch.tensor(EARLY, dtype=torch.float64, device=device)
    with torch.no_grad():
        table = _table(interpolant, torch.cat([early] * halves[0] + [1 - early] * halves[1]))
        found = _smallest(to, given, table)
        if found is None:
            raise ValueError(_refusal(to, given, interpolant, table))
    return found


def _smallest(to: str, given: tuple[str, ...], table: dict[str, Tensor]) -> tuple[str, ...] | None:
    # nothing is made of a noise that is not there
    if to in ("noise", "score") and not bool(table["x"][:, 2].any()):
        return None
    best, least = None, float("inf")
    for k in range(1, min(3, len(given)) + 1):
        sets = list(combinations(given, k))
        factors, missed = _solve(to, sets, table)
        largest = factors.abs().amax((-2, -1))
        largest = largest.masked_fill((missed >= SOLVABLE).any(-1), float("inf"))
        # of sets that do equally well, the smallest
        if float(largest.min()) < least * (1 - 1e-6):
            best, least = sets[int(largest.argmin())], float(largest.min())
    return best


def _refusal(to: str, given: tuple[str, ...], interpolant: Affine, table: dict[str, Tensor]) -> str:
    words = f"convert: {' and '.join(given)} do not determine the {to} on {interpolant}"
    if len(given) == 1:
        words = f"convert: x alone does not determine the {to} on {interpolant}"
    hint = (
        "; the velocity gives the score only where x0 is Gaussian and independent of the data, "
        "which OneSided(path) stands for (with optimal-transport, entropic or weighted pairs it "
        "would be wrong)"
    )
    hint = hint if to in ("noise", "score") else ""
    if hint and not bool(table["x"][:, 2].any()):
        return f"{words}, a path of zero width{hint}"
    others = [name for name in FIELDS if name != to and name not in given]
    for k in (1, 2):
        able = [n for n in combinations(others, k) if _smallest(to, (*given, *n), table)]
        if able:
            return f"{words}: give {', or '.join(' and '.join(n) for n in able)} as well{hint}"
    return f"{words}, and no other field does: the path does not depend on it there"
