"""The driver: runs a table of kernels, region by region, in one thread."""

from __future__ import annotations

from typing import Any

from numba import njit, types

from gradflow_numba.emit import WIDTH
from gradflow_numba.jit import KERNEL, loop
from gradflow_numba.native import run, set_word, word, words

ROW = WIDTH * 8  # bytes
REGION = 6  # words: first and last item that run alone, first and last item that are split, whether it pays, unused

ENTRY = types.int64(types.int64)


@loop
def place_arrays(header: Any) -> None:
    """Write the addresses of the call's arrays into the table."""
    patches, count, arrays, field = word(header, 3), word(header, 4), words(word(header, 5)), word(header, 6)
    for i in range(count):
        patch = words(patches + i * 24)
        address = word(arrays, word(patch, 1))
        if field >= 0:  # arrays are given as objects, which hold the address of their data
            address = word(words(address + field), 0)
        set_word(words(word(patch, 0)), 0, address + word(patch, 2))


@njit(ENTRY, **KERNEL)
def drive(address: Any) -> Any:
    """Run a program; 1 says that a check failed."""
    header = words(address)
    table, regions, count, flag, tasks = (
        word(header, 0),
        word(header, 1),
        word(header, 2),
        word(header, 7),
        word(header, 8),
    )
    place_arrays(header)
    failed = words(flag)
    set_word(failed, 0, 0)
    for g in range(count):
        region = words(regions + g * REGION * 8)
        for i in range(word(region, 0), word(region, 1)):
            item = words(table + i * ROW)
            run(word(item, 0), item, 0, 1)
        if word(failed, 0) != 0:
            return 1
        for t in range(tasks):
            for i in range(word(region, 2), word(region, 3)):
                item = words(table + i * ROW)
                run(word(item, 0), item, t, tasks)
    return 0


@njit(types.void(types.int64, types.int64, types.int64), **KERNEL)
def repeat(address: Any, tasks: Any, times: Any) -> None:
    """Run one item of a program again and again."""
    item = words(address)
    for _ in range(times):
        for t in range(tasks):
            run(word(item, 0), item, t, tasks)
