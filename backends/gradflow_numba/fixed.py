"""Kernels that are no loops of a group: products, transposes, the ends of sums over tasks, copies, checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc

from gradflow_numba import blas
from gradflow_numba.kernels_on_disk import OPTIONS
from gradflow_numba.native import AT, SIGNATURE, load, offset, set_word, store, word, words

at_float32, at_float64, at_int64 = AT["at_float32"], AT["at_float64"], AT["at_int64"]
at_int8, at_int32 = AT["at_int8"], AT["at_int32"]
sgemm, dgemm, set_threads = blas.sgemm, blas.dgemm, blas.set_threads
somatcopy, domatcopy = blas.somatcopy, blas.domatcopy
ORDER, PLAIN, FLIP = blas.ROW_MAJOR, blas.PLAIN, blas.TRANSPOSED_FROM_PLAIN
TRANSPOSED = blas.TRANSPOSED


# words of a product: rows, columns, inner, a, step of a, a is transposed, b, step of b, b is transposed, out
def _sgemm(row, t, T):  # type: ignore[no-untyped-def]
    M, N, K = word(row, 1), word(row, 2), word(row, 3)
    lda, ta, ldb, tb = word(row, 5), word(row, 6), word(row, 8), word(row, 9)
    r0 = M * t // T
    m = M * (t + 1) // T - r0
    if m > 0:
        a = offset(at_float32(word(row, 4)), r0 * (1 if ta else lda))
        out = offset(at_float32(word(row, 10)), r0 * N)
        sgemm(
            ORDER, PLAIN + FLIP * ta, PLAIN + FLIP * tb, m, N, K,
            np.float32(1), a, lda, at_float32(word(row, 7)), ldb, np.float32(0), out, N,
        )  # fmt: skip


def _dgemm(row, t, T):  # type: ignore[no-untyped-def]
    M, N, K = word(row, 1), word(row, 2), word(row, 3)
    lda, ta, ldb, tb = word(row, 5), word(row, 6), word(row, 8), word(row, 9)
    r0 = M * t // T
    m = M * (t + 1) // T - r0
    if m > 0:
        a = offset(at_float64(word(row, 4)), r0 * (1 if ta else lda))
        out = offset(at_float64(word(row, 10)), r0 * N)
        dgemm(
            ORDER, PLAIN + FLIP * ta, PLAIN + FLIP * tb, m, N, K,
            np.float64(1), a, lda, at_float64(word(row, 7)), ldb, np.float64(0), out, N,
        )  # fmt: skip


# words of a transpose: rows and columns of the result, the matrix, its step, out
def _stranspose(row, t, T):  # type: ignore[no-untyped-def]
    K, N, step = word(row, 1), word(row, 2), word(row, 4)
    r0 = K * t // T
    k = K * (t + 1) // T - r0
    if k > 0:
        out = offset(at_float32(word(row, 5)), r0 * N)
        somatcopy(ORDER, TRANSPOSED, N, k, np.float32(1), offset(at_float32(word(row, 3)), r0), step, out, N)


def _dtranspose(row, t, T):  # type: ignore[no-untyped-def]
    K, N, step = word(row, 1), word(row, 2), word(row, 4)
    r0 = K * t // T
    k = K * (t + 1) // T - r0
    if k > 0:
        out = offset(at_float64(word(row, 5)), r0 * N)
        domatcopy(ORDER, TRANSPOSED, N, k, np.float64(1), offset(at_float64(word(row, 3)), r0), step, out, N)


# words of a copy: bytes, from, to
def _copy(row, t, T):  # type: ignore[no-untyped-def]
    n, source, target = word(row, 1), at_int8(word(row, 2)), at_int8(word(row, 3))
    for i in range(n * t // T, n * (t + 1) // T):
        store(target, i, load(source, i, 0), 1)


# words of a check: what it looks at, where it says that it failed
def _check(row, t, T):  # type: ignore[no-untyped-def]
    if load(at_int64(word(row, 1)), 0, 0) != 0:
        set_word(words(word(row, 2)), 0, 1)


# word: where the number of threads stands
def _blas_threads(row, t, T):  # type: ignore[no-untyped-def]
    set_threads(np.int32(load(at_int64(word(row, 1)), 0, 0)))


_FIXED: dict[str, Callable[..., Any]] = {
    "gemm float32": _sgemm, "gemm float64": _dgemm, "transpose float32": _stranspose,
    "transpose float64": _dtranspose, "copy": _copy, "check": _check,
    "blas threads": _blas_threads,
}  # fmt: skip


@functools.cache
def fixed(name: str) -> Any:
    """The C function of a kernel by its name."""
    return cfunc(SIGNATURE, **OPTIONS)(_FIXED[name])


def combine_text(kind: str, how: str, dtype: np.dtype[Any]) -> str:
    """The body of the kernel that brings the tasks' parts of a reduction together.

    Its words: length, parts, where the parts begin, elements from one part to the next, out.
    """
    from gradflow_numba.emit import _accumulated, _identity_of

    return f"""
    n = word(row, 1)
    parts = word(row, 2)
    source = at_{kind}(word(row, 3))
    step = word(row, 4)
    out = at_{kind}(word(row, 5))
    for j in range(n):
        s = {_identity_of(how, dtype)}
        for p in range(parts):
            x = load(source, p * step + j, 0)
            s = {_accumulated(how, "s", "x")}
        store(out, j, s, 1)
""".strip("\n")
