"""The loops of this backend that run on several threads: blocks of a long array, one for each thread.

They stand in a module of their own, imported where threads may pay: Numba starts the threads when it compiles one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import prange

from gradflow_numba import threads
from gradflow_numba.jit import KERNEL
from gradflow_numba.update import Array, adam_loop, sgd_loop


@numba.njit(parallel=True, **KERNEL)
def _adam(p: Array, m: Array, v: Array, g: Array, numbers: Array, inside: bool, n: int, blocks: int) -> None:
    for b in prange(blocks):
        adam_loop(p, m, v, g, numbers, inside, n * b // blocks, n * (b + 1) // blocks)


@numba.njit(parallel=True, **KERNEL)
def _sgd(p: Array, velocity: Array, g: Array, numbers: Array, how: int, n: int, blocks: int) -> None:
    for b in prange(blocks):
        sgd_loop(p, velocity, g, numbers, how, n * b // blocks, n * (b + 1) // blocks)


def _blocks(compiled: Callable[..., Any]) -> Callable[..., None]:
    """The loop over all elements as one call, with the arguments of the serial one, whose last are 0 and n."""
    return lambda *args: compiled(*args[:-2], args[-1], threads.available())


IN_BLOCKS = {adam_loop: _blocks(_adam), sgd_loop: _blocks(_sgd)}
