"""The loops of this backend that run on several threads: blocks of a long array, one for each thread.

They stand in a module of their own, imported where threads may pay: Numba starts the threads when it compiles one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import prange

from gradflow_numba import threads
from gradflow_numba.jit import parallel_loop
from gradflow_numba.kernels import Array
from gradflow_numba.update import adam_loop, sgd_loop


@parallel_loop
def _adam(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    t: float,
    hyper: Array,
    decoupled: bool,
    inside: bool,
    sign: float,
    n: int,
    blocks: int,
) -> None:
    for b in prange(blocks):
        adam_loop(p, m, v, g, t, hyper, decoupled, inside, sign, n * b // blocks, n * (b + 1) // blocks)


@parallel_loop
def _sgd(
    p: Array, velocity: Array, g: Array, made: float, hyper: Array, nesterov: bool, sign: float, n: int, blocks: int
) -> None:
    for b in prange(blocks):
        sgd_loop(p, velocity, g, made, hyper, nesterov, sign, n * b // blocks, n * (b + 1) // blocks)


def _blocks(compiled: Callable[..., Any]) -> Callable[..., None]:
    """The loop over all elements as one call, with the arguments of the serial one, whose last are 0 and n."""
    return lambda *args: compiled(*args[:-2], args[-1], threads.available())


IN_BLOCKS = {adam_loop: _blocks(_adam), sgd_loop: _blocks(_sgd)}
