"""Whether conditional samples are of the class that was asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ClassAccuracy(NamedTuple):
    """Attributes:
    samples: fraction of samples that the classifier puts into the class asked for.
    real: the same for held-out data, the ceiling.
    """

    samples: float
    real: float


def class_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], samples: tuple[Tensor, Tensor]
) -> ClassAccuracy:
    """Judge conditional samples by a support vector machine trained on real data.

    Args:
        train: data ``(N, *d)`` and integer labels ``(N,)`` that the classifier learns from.
        test: held-out data and labels.
        samples: samples and the labels that they were asked for.

    Raises:
        ValueError: if the training data hold fewer than two classes.
    """
    from sklearn.svm import SVC

    def numpy(x: Tensor, labels: Tensor) -> tuple:
        return x.detach().flatten(1).double().cpu().numpy(), labels.cpu().numpy()

    if len(train[1].unique()) < 2:
        raise ValueError("class_accuracy needs training data of at least two classes")
    judge = SVC(C=10.0).fit(*numpy(*train))
    kept = torch.isfinite(samples[0].flatten(1)).all(1)
    fraction = float(kept.double().mean())  # a sample that is not finite is of no class
    good = judge.score(*numpy(samples[0][kept], samples[1][kept])) if fraction else 0.0
    return ClassAccuracy(float(good) * fraction, float(judge.score(*numpy(*test))))
