"""Data: what the marginals of a problem are; torch alone, ready batches."""

from genflow.data.arrays import Arrays
from genflow.data.base import Batch, Data, Table
from genflow.data.batches import Batches, Passes, draw_rows
from genflow.data.digits import Digits
from genflow.data.simulated import Simulated

__all__ = ["Arrays", "Batch", "Batches", "Data", "Digits", "Passes", "Simulated", "Table", "draw_rows"]
