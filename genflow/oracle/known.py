"""The oracle of a training whose laws are known."""

from __future__ import annotations

import math
from typing import Any

from genflow.coupling import Gibbs, Sinkhorn
from genflow.interpolant import Affine, Mirror, OneSided
from genflow.model import Generator
from genflow.oracle.exact import Exact
from genflow.oracle.plans import entropic, independent, mirrored, tilted
from genflow.source import Source
from genflow.transform import Identity


def oracle_of(model: Generator, loss: Any, x0: Source, x1: Source) -> Exact | None:
    """The exact fields that a training aims at, or ``None`` where they are not known.

    Known are mixtures of Gaussians (``Source.components``) along affine interpolants, with independent
    pairs (on ``OneSided`` and ``Mirror`` paths ``x1`` alone counts); with uncorrected ``Gibbs`` weights
    of the squared distance; and with ``Sinkhorn`` pairs between single Gaussians, up to the bias of
    their batches.

    Args:
        model: what is trained.
        loss: with ``interpolant`` and ``coupling``, as ``Matching`` has them; its ``epsilon`` chosen.
        x0, x1: the laws in data units.
    """
    interpolant, coupling = getattr(loss, "interpolant", None), getattr(loss, "coupling", None)
    if not isinstance(interpolant, Affine) or coupling is None:
        return None
    try:
        if isinstance(interpolant, OneSided | Mirror):
            return Exact(mirrored(x1), interpolant, x1.shape)
        ends = x0.components(), x1.components()
    except (AttributeError, NotImplementedError):  # tables and laws that are no mixtures
        return None
    shape = x1.shape
    if getattr(coupling, "independent", False):
        return Exact(independent(*ends), interpolant, shape)
    plain = model.transform is None or isinstance(model.transform, Identity)
    epsilon = getattr(coupling, "epsilon", None)
    if not plain or epsilon is None or getattr(coupling, "cost", None) != "sqeuclidean":
        return None  # their temperature is that of the model's units
    ignore = getattr(coupling, "conditions", "ignore") == "ignore"
    if isinstance(coupling, Gibbs) and coupling.correction == "none" and ignore:
        return Exact(tilted(*ends, epsilon), interpolant, shape)
    single = all(len(end.weights) == 1 for end in ends)
    if isinstance(coupling, Sinkhorn) and ignore and single:
        return Exact(entropic(*ends, math.sqrt(epsilon / 2)), interpolant, shape)
    return None
