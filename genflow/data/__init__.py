"""Data: what the marginals of a problem are; torch alone, ready batches."""

from genflow.data.arrays import Arrays
from genflow.data.base import Batch, Data, Table
from genflow.data.batches import Batches, Passes, all_rows, draw_rows
from genflow.data.corrupted import Corrupted
from genflow.data.corruption import Corruption, Downsample, Mask, Noisy
from genflow.data.digits import Digits
from genflow.data.idx_images import IdxImages
from genflow.data.photographs import Photographs
from genflow.data.series import Series
from genflow.data.shapes import Shapes, shape
from genflow.data.simulated import Simulated
from genflow.data.simulated_snapshots import SimulatedSnapshots
from genflow.data.snapshots import Snapshots

__all__ = [
    "Arrays", "Batch", "Batches", "Corrupted", "Corruption", "Data", "Digits", "Downsample",
    "IdxImages", "Mask", "Noisy", "Passes", "Photographs", "Series", "Shapes", "Simulated",
    "SimulatedSnapshots", "Snapshots", "Table", "all_rows", "draw_rows", "shape",
]  # fmt: skip
