"""Oracles: exact fields, densities and draws of interpolants, to check and to measure against."""

from genflow.oracle.entropic_pair import EntropicPair, EntropicTarget
from genflow.oracle.entropic_score import Score
from genflow.oracle.error import FieldError, KLBound, kl_bound
from genflow.oracle.exact import Exact
from genflow.oracle.geometric import GeometricField
from genflow.oracle.joint import Joint
from genflow.oracle.known import oracle_of
from genflow.oracle.plans import entropic, gaussian, independent, mirrored, tilted

__all__ = [
    "EntropicPair", "EntropicTarget", "Exact", "FieldError", "GeometricField", "Joint", "KLBound",
    "Score", "entropic", "gaussian", "independent", "kl_bound", "mirrored", "oracle_of", "tilted",
]  # fmt: skip
