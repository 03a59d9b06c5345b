"""How good and how varied images are, judged in the features of our own classifier.

Published figures use the features of an Inception network whose weights no package ships. Distances
here are taken in the features of a :class:`~genflow.diagnostics.Classifier` that was trained on the
data at hand: a "Fréchet distance in our classifier's features" is comparable with another one by the
same classifier and the same number of images, and with nothing else. So its floor, the same between
two sets of real images, stands beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genflow.checks import count
from genflow.diagnostics.classifier import Classifier

QUANTILES = (0.05, 0.5, 0.95)
"""Of the distances to the nearest training images."""
MOST_KERNEL = 5000
"""Images whose kernel matrices are kept at a time."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of the Gaussians with the moments of two sets of features, squared as usual
    (Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter 2017, "GANs trained by a two time-scale update
    rule converge to a local Nash equilibrium"), by torchmetrics.

    Args:
        x, y: ``(n, d)`` and ``(m, d)``, two rows or more each. It is biased upwards by about
            ``1 / n``: compare at equal numbers only.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_measured(FrechetInceptionDistance(feature=_identity(x)), x, y))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features, with the kernel ``(x.y / d + 1)^3`` and
    without bias, so that it may be negative (Bińkowski, Sutherland, Arbel & Gretton 2018, "Demystifying
    MMD GANs"), by torchmetrics.

    Args:
        x, y: ``(n, d)`` and ``(m, d)``; as many of each as both have are used, 5000 at most.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(x), len(y), MOST_KERNEL)  # one subset of all: averages over smaller ones vary more
    with warnings.catch_warnings():  # it warns that it keeps all features
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(feature=_identity(x), subsets=1, subset_size=size)
    with torch.random.fork_rng(devices=[]):  # it shuffles, with torch's own generator
        torch.manual_seed(0)
        return float(_measured(metric, x, y)[0])


def _identity(x: Tensor) -> nn.Module:
    """What torchmetrics takes for a network: features are computed once, for all numbers."""
    network = nn.Identity()
    network.num_features = x.shape[1]
    return network


def _measured(metric: Any, x: Tensor, y: Tensor) -> Any:
    metric.update(x.double().cpu(), real=True)
    metric.update(y.double().cpu(), real=False)
    return metric.compute()


class Manifolds(NamedTuple):
    """Attributes:
    precision: share of samples that lie among the real images.
    recall: share of real images that lie among the samples.
    density: how many real images each sample lies near, relative to the expected number; may be > 1.
    coverage: share of real images that have a sample near.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(
    real: Tensor, samples: Tensor, k: int = 3, k_density: int = 5, chunk: int = 1000
) -> Manifolds:
    """Fidelity and variety, told apart by balls that reach to the k-th neighbour within a set.

    Args:
        real, samples: features ``(n, d)`` and ``(m, d)``; the numbers change with ``n`` and ``m``.
        k: neighbours for precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen & Aila 2019,
            "Improved precision and recall metric for assessing generative models").
        k_density: neighbours for density and coverage (Naeem, Oh, Uh, Choi & Yoo 2020, "Reliable
            fidelity and diversity metrics for generative models").
        chunk: rows whose distances are kept at a time.

    Raises:
        ValueError: if a set has no more rows than neighbours.
    """
    count("manifolds", k=k, k_density=k_density, chunk=chunk)
    least = min(len(real), len(samples))
    if least <= max(k, k_density):
        raise ValueError(
            f"manifolds: {max(k, k_density)} neighbours need more rows than that in each set, got "
            f"{least}"
        )
    real, samples = real.double(), samples.double()
    near, wide = _radii(real, (k, k_density), chunk)
    reach = _radii(samples, (k,), chunk)[0]
    inside = hits = 0
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    for part, radius in zip(samples.split(chunk), reach.split(chunk)):
        d = _distances(part, real)
        inside += int((d <= near).any(1).sum())
        hits += int((d <= wide).sum())
        recalled |= (d <= radius[:, None]).any(0)
        covered |= (d <= wide).any(0)
    m = len(samples)
    return Manifolds(
        inside / m, float(recalled.double().mean()), hits / (k_density * m),
        float(covered.double().mean()),
    )  # fmt: skip


def _radii(x: Tensor, ks: tuple[int, ...], chunk: int) -> list[Tensor]:
    """Distances of each row to its k-th neighbours, itself not counted: ``(n,)`` for each k."""
    found = [_distances(part, x).topk(max(ks) + 1, largest=False).values for part in x.split(chunk)]
    return [torch.cat(found)[:, k] for k in ks]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # by differences: through products, near rows lose their digits
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


class Neighbours(NamedTuple):
    """Attributes:
    distance: Euclidean, ``(n, k)``, the nearest first.
    index: rows of the training images, ``(n, k)``.
    """

    distance: Tensor
    index: Tensor


def nearest(x: Tensor, train: Tensor, k: int = 1, chunk: int = 250) -> Neighbours:
    """The training images ``(N, *d)`` nearest in pixels to each image ``(n, *d)``: distances far below
    those of held-out images tell that a model has memorised.

    Args:
        x, train: images.
        k: neighbours of each.
        chunk: images that are compared at a time.

    Raises:
        ValueError: if there are fewer than ``k`` training images.
    """
    count("nearest", k=k, chunk=chunk)
    if len(train) < k:
        raise ValueError(f"nearest: there are {len(train)} training images, fewer than k={k}")
    known, found = train.flatten(1), []
    squares = known.square().sum(1)
    for part in x.flatten(1).to(known).split(chunk):
        index = (squares - 2 * part @ known.T).topk(k, largest=False).indices
        # the distance itself by differences: a copy must be at 0
        distance = (part[:, None].double() - known[index].double()).norm(dim=2)
        distance, order = distance.sort()
        found.append((distance, index.gather(1, order)))
    return Neighbours(*map(torch.cat, zip(*found)))


@dataclass(frozen=True)
class QualityReport:
    """Attributes:
    numbers: by name, as in :func:`image_quality`.
    neighbours: the nearest training images of the samples.
    """

    numbers: dict[str, Any]
    neighbours: Neighbours


def image_quality(
    classifier: Classifier,
    samples: Tensor,
    test: Tensor,
    train: Tensor,
    asked: Tensor | None = None,
    labels: Tensor | None = None,
    known: Tensor | None = None,
    k: int = 1,
    seed: int = 0,
) -> QualityReport:
    """Numbers of generated images, each with what real images get.

    As many samples as test images are used, and as many random training images for the floors, of the
    classes that samples were asked for: shares of classes weigh more than anything else between sets
    of real images. Of test images the first so many are used, but all for the Fréchet distance and for
    the classifier's own accuracy, which vary less then.

    - ``frechet_classifier``, ``kernel_classifier``: Fréchet and kernel distances between samples and
      test images in our classifier's features; ``..._floor``: with training images in place of samples;
    - ``precision``, ``recall``, ``density``, ``coverage`` of samples against test images in the same
      features; ``..._real``: of training images in place of samples;
    - ``class_accuracy``: share of samples that the classifier puts into the class asked for, and
      ``class_accuracy_real`` of test images;
    - ``nearest``, ``nearest_quantiles`` (5, 50 and 95 %): distances in pixels from samples to their
      nearest training images, and ``nearest_test``, ``nearest_test_quantiles`` from test images to
      theirs; a model that memorises has smaller ones than these;
    - ``finite``: share of samples without NaN or infinity; the others count as blank images.

    Samples are clamped to the range of the training images, as a screen does.

    Args:
        classifier: whose features and classes are used.
        samples: images ``(n, c, h, w)``.
        test, train: all test images, in random order, and all training images.
        asked: the classes that samples were asked for, ``(n,)``, if any.
        labels, known: of the test and of the training images, if there are any.
        k: neighbours to keep of each sample.
        seed: of the random choice of training images.

    Raises:
        ValueError: if there are too few images, or none of a class that was asked for.
    """
    samples, test, train = (v.detach().float().cpu() for v in (samples, test, train))
    n = min(len(samples), len(test), len(train))
    finite = samples.flatten(1).isfinite().all(1)[:n]
    low, high = map(float, train.aminmax())
    blank = torch.full_like(samples[:n], low)
    samples = torch.where(finite[:, None, None, None], samples[:n], blank).clamp(low, high)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=draw)
    order = order[:n] if asked is None or known is None else _of_classes(asked[:n], known, order)
    (x, guessed), (y, read), (z, _) = map(classifier.judge, (samples, test, train[order]))
    numbers: dict[str, Any] = {}
    for name, seen in (("classifier", x), ("classifier_floor", z)):
        numbers[f"frechet_{name}"] = frechet_distance(y, seen)
        numbers[f"kernel_{name}"] = kernel_distance(y[:n], seen)
    y = y[:n]
    numbers |= manifolds(y, x)._asdict()
    numbers |= {f"{name}_real": v for name, v in manifolds(y, z)._asdict().items()}
    for name, guess, truth in (("", guessed, asked), ("_real", read, labels)):
        if truth is not None:
            right = guess == truth[: len(guess)].cpu()
            right = right if name else right & finite
            numbers[f"class_accuracy{name}"] = float(right.double().mean())
    found = nearest(samples, train, k)
    for name, near in (("nearest", found), ("nearest_test", nearest(test[:n], train))):
        least = near.distance[:, 0]
        numbers[name] = float(least.mean())
        levels = torch.tensor(QUANTILES, dtype=least.dtype)
        numbers[f"{name}_quantiles"] = [round(v, 4) for v in least.quantile(levels).tolist()]
    return QualityReport(numbers | {"finite": float(finite.double().mean())}, found)


def _of_classes(asked: Tensor, labels: Tensor, order: Tensor) -> Tensor:
    """The first rows in ``order`` whose labels are those asked for, each as often; from the beginning
    again where there are too few."""
    asked, labels = asked.cpu(), labels.cpu()[order]
    rows = torch.empty_like(asked)
    for kind in asked.unique():
        here, found = asked == kind, order[labels == kind]
        if len(found) == 0:
            raise ValueError(f"image_quality: class {int(kind)} was asked for, but is not in the data")
        rows[here] = found[torch.arange(int(here.sum())) % len(found)]
    return rows
