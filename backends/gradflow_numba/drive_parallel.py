"""The driver that runs the tasks of a region side by side."""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from gradflow_numba.drive_serial import ENTRY, REGION, ROW, place_arrays
from gradflow_numba.jit import KERNEL
from gradflow_numba.native import run, set_word, word, words


@njit(ENTRY, parallel=True, **KERNEL)
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
        first, last = word(region, 2), word(region, 3)
        for i in range(word(region, 0), word(region, 1)):
            item = words(table + i * ROW)
            run(word(item, 0), item, 0, 1)
        if word(failed, 0) != 0:
            return 1
        if word(region, 4) != 0:
            for t in prange(tasks):
                for i in range(first, last):
                    item = words(table + i * ROW)
                    run(word(item, 0), item, t, tasks)
        else:
            for t in range(tasks):
                for i in range(first, last):
                    item = words(table + i * ROW)
                    run(word(item, 0), item, t, tasks)
    return 0
