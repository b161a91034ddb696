"""What one thread of this machine can do at most: measured once, to hold programs against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter

import numpy as np

from gradflow.errors import BackendUnavailableError
from gradflow_numpy.blas import blas_threads, set_blas_threads

_EDGE = 768  # of the matrices that are multiplied: their product takes 5 to 10 ms
_LENGTH = 1 << 23  # elements that are copied: 64 MiB go through memory, more than any cache holds


def _best(function: Callable[[], object], rounds: int = 5) -> float:
    function()
    times = []
    for _ in range(rounds):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return min(times)


@functools.cache
def ceilings() -> tuple[float, float]:
    """Floating-point operations a second of a large product in float32, and bytes a second of a large copy."""
    a, out = np.ones((_EDGE, _EDGE), np.float32), np.empty((_EDGE, _EDGE), np.float32)
    source, target = np.ones(_LENGTH, np.float32), np.empty(_LENGTH, np.float32)
    before = blas_threads()
    try:
        set_blas_threads(1)
    except BackendUnavailableError:
        before = None
    try:
        product = _best(functools.partial(np.dot, a, a, out))
    finally:
        if before is not None:
            set_blas_threads(before)
    return 2 * _EDGE**3 / product, 2 * source.nbytes / _best(functools.partial(np.copyto, target, source))
