"""Data into the positive numbers."""

from __future__ import annotations

import math

from torch import Tensor

from genflow.checks import between, one_of
from genflow.tensors import check_positive
from genflow.transform.base import Transform

FORMS = ("one_plus", "floor", "identity")


class Positive(Transform):
    """Data of a known range into the positive numbers, where multiplicative noise lives.

    With ``u = (x - low) / (high - low)``:

    - ``"one_plus"``: ``1 + u``, so that ``[low, high]`` becomes [1, 2]: logarithms span 0.69 and the
      noise is nearly additive; the choice for images;
    - ``"floor"``: ``floor + (1 - floor) u``, [floor, 1]: logarithms span ``log(1 / floor)``, and dark
      pixels (small concentrations) dominate;
    - ``"identity"``: ``x`` as it is, for data that are positive.

    Args:
        form: one of these.
        floor: above 0 and below 1; of ``"floor"``.
        low, high: range of the data; values outside are allowed as long as the result is positive.

    Raises:
        ValueError: for a range or a floor that does not reach the positive numbers; from ``prepare``
            for data that do not.
    """

    def __init__(
        self, form: str = "one_plus", floor: float = 0.05, low: float = 0.0, high: float = 1.0
    ) -> None:
        super().__init__()
        one_of(self, FORMS, form=form)
        between(self, 0, 1, floor=floor)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"Positive(low={low!r}, high={high!r}): low must lie below high, both finite"
            )
        self.form, self.floor, self.low, self.high = form, floor, low, high
        start = 1.0 if form == "one_plus" else floor
        self._scale = (1.0 if form == "one_plus" else 1.0 - floor) / (high - low)
        self._shift = start - self._scale * low
        if form == "identity":
            self._scale, self._shift = 1.0, 0.0

    def prepare(self, x: Tensor) -> Positive:
        if self.form == "identity":
            check_positive("Positive(form='identity'): data", x, wait=True)
        elif not bool(x.isfinite().all()):
            raise ValueError(f"Positive(form={self.form!r}): data hold NaN or infinity")
        elif float(x.min()) * self._scale + self._shift <= 0:
            raise ValueError(
                f"Positive(form={self.form!r}, low={self.low:g}, high={self.high:g}) takes data above "
                f"{-self._shift / self._scale:.4g} into the positive numbers, but they begin at "
                f"{float(x.min()):.4g}: set transform.low={float(x.min()):.4g} "
                f"transform.high={float(x.max()):.4g}"
            )
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * self._scale + self._shift

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self._shift) / self._scale

    def log_abs_det(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), x[:1].numel() * math.log(self._scale))
