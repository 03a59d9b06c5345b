"""Sorting rows, the one costly part of a sliced distance: NumPy's sorts on the CPU, torch's elsewhere.

On one thread ``torch.sort`` takes 3 to 40 times as long as NumPy's vectorised sort of values, and 5
times as long as two radix passes, which also tell the permutation. Results are the same.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

FEW = 800
"""Columns from which on two radix passes beat one sort of wider numbers."""
BLOCK = 2**16
"""Elements sorted together: what a core's second-level cache holds with its indices."""


def sort_rows(rows: Tensor) -> Tensor:
    """Rows ``(R, n)`` in ascending order, sorted in place where the device allows."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    columns = rows.shape[1]
    radix = rows.dtype == torch.float32 and columns >= FEW
    radix = radix and _radix_is_faster(columns.bit_length())
    _threaded(_radix_sort if radix else lambda block: block.sort(axis=1), rows.numpy())
    return rows


def order_rows(rows: Tensor) -> Tensor:
    """Indices ``(R, n)`` that sort each row."""
    if rows.device.type != "cpu":
        return rows.argsort(dim=1)
    order = np.empty(rows.shape, dtype=np.int64)
    _threaded(_order, rows.numpy(), order)
    return torch.from_numpy(order)


def merge_rows(rows: Tensor) -> Tensor:
    """Indices that sort rows ``(R, n)`` made of few ascending runs; equal elements keep their order."""
    if rows.device.type != "cpu":
        return rows.argsort(dim=1, stable=True)
    return torch.from_numpy(rows.numpy().argsort(axis=1, kind="stable"))  # merges the runs


def _threaded(work: Callable[..., None], *arrays: np.ndarray) -> None:
    """``work`` on matching blocks of rows, by as many threads as torch may use: NumPy lets go of the
    interpreter while it sorts."""
    rows, columns = arrays[0].shape
    step = max(1, BLOCK // max(columns, 1))
    blocks = [tuple(a[k : k + step] for a in arrays) for k in range(0, rows, step)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads < 2:
        for block in blocks:
            work(*block)
        return
    list(_pool(threads).map(lambda block: work(*block), blocks))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="genflow-sort")


if hasattr(os, "register_at_fork"):  # threads stay behind in the parent
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _order(rows: np.ndarray, out: np.ndarray) -> None:
    if rows.dtype != np.float32:
        out[...] = rows.argsort(axis=1)
    elif rows.shape[1] < FEW:
        _packed_order(rows, out)
    else:
        _radix_order(rows, out)


def _keys(rows: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of single-precision ones."""
    bits = rows.view(np.int32)
    key = bits >> 31  # all ones for negative numbers, whose order the bits reverse
    key |= np.int32(-(2**31))
    key ^= bits
    return key.view(np.uint32)


def _packed_order(rows: np.ndarray, out: np.ndarray) -> None:
    """One sort of values, each with its place in the lower half of a number twice as wide."""
    key = _keys(rows).astype(np.uint64)
    key <<= np.uint64(32)
    key |= np.arange(rows.shape[1], dtype=np.uint64)
    key.sort(axis=1)
    np.bitwise_and(key, np.uint64(2**32 - 1), out=out.view(np.uint64))


def _radix_order(rows: np.ndarray, out: np.ndarray) -> None:
    """Two passes of NumPy's stable radix sort of 16-bit numbers, the low halves first."""
    key = _keys(rows)
    low, high = key.astype(np.uint16), (key >> 16).astype(np.uint16)
    for k in range(len(rows)):  # rows one by one stay in the cache
        first = low[k].argsort(kind="stable")
        second = high[k].take(first, mode="clip").argsort(kind="stable")
        first.take(second, out=out[k], mode="clip")


def _radix_sort(rows: np.ndarray) -> None:
    order = np.empty(rows.shape, dtype=np.int64)
    _radix_order(rows, order)
    for row, index in zip(rows, order):
        row[...] = row.take(index, mode="clip")


@functools.cache
def _radix_is_faster(bits: int) -> bool:
    """Whether rows of about ``2**bits`` numbers are sorted faster by radix than by NumPy's ``sort``,
    whose instructions run at very different speeds on processors that all have them. Measured once."""
    rows = np.random.default_rng(0).standard_normal((1, 2 ** min(bits, 17)), dtype=np.float32)
    times = {}
    for work in (_radix_sort, lambda block: block.sort(axis=1)):
        samples = []
        for _ in range(5):
            block = rows.copy()
            start = time.perf_counter()
            work(block)
            samples.append(time.perf_counter() - start)
        times[work is _radix_sort] = min(samples)
    return times[True] < times[False]
