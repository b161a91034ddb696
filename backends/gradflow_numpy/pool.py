"""Recycled memory for large results.

From 128 KiB on, malloc maps fresh pages for every array, and each page faults when it is first touched: 30 to 40 % of
a NumPy training step. A recycled array has its pages already.
"""

from __future__ import annotations

import sys
from sys import getrefcount
from typing import Any

import numpy as np

LARGE = 1 << 17  # bytes
Shelves = dict[tuple[tuple[int, ...], np.dtype[Any]], list[np.ndarray]]


class Pool:
    """Large arrays by shape and dtype; one is free again when nothing but its shelf refers to it (a view does).

    Args:
        limit: bytes to keep at most; what is free is dropped beyond that.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.shelves: Shelves = {}
        self.held = 0
        self.limit = limit
        self._free = _references_of_a_free_array()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array with arbitrary contents that nobody else uses."""
        free = self._free
        for array in self.shelves.get((shape, dtype), ()):
            if getrefcount(array) == free:
                return array
        array = np.empty(shape, dtype)
        if self.held + array.nbytes > self.limit:
            self.trim()
        self.held += array.nbytes
        self.shelves.setdefault((shape, dtype), []).append(array)  # trim() may have dropped an empty shelf
        return array

    def trim(self) -> None:
        """Drop every array that is free."""
        free = self._free
        for key, shelf in list(self.shelves.items()):
            kept = [array for array in shelf if getrefcount(array) > free]
            if kept:
                self.shelves[key] = kept
            else:
                del self.shelves[key]
        self.held = sum(array.nbytes for shelf in self.shelves.values() for array in shelf)


def _references_of_a_free_array() -> int:
    """What getrefcount says of an array that only its shelf and the loop in `Pool.take` refer to."""
    shelf = [np.empty(1)]
    for array in shelf:
        return getrefcount(array)
    raise AssertionError


_pool = Pool()
_counts_references = getattr(sys, "_is_gil_enabled", lambda: True)()  # without the GIL a count may be stale


def trim() -> None:
    """Drop the memory that is kept for later results and not in use."""
    _pool.trim()


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray | None:
    """An `out=` argument: recycled memory where the result is large, else None (NumPy allocates)."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    return _pool.take(shape, dtype) if size >= LARGE and _counts_references else None
