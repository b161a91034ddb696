"""Kernels that are no loops of a group: products, transposes, the ends of sums over tasks, copies, checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gradflow_numba import blas
from gradflow_numba.jit import c_function
from gradflow_numba.native import AT, SIGNATURE, load, offset, set_word, store, word, words

at_float32, at_float64, at_int64 = AT["at_float32"], AT["at_float64"], AT["at_int64"]
at_int8, at_int32 = AT["at_int8"], AT["at_int32"]
sgemm: Any
dgemm: Any
set_threads: Any
somatcopy: Any
domatcopy: Any
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


# the bodies of kernels that are the same but for the dtype
_BODIES = {
    # words: products, rows, columns, inner, a, step from matrix to matrix, step of a, a is transposed, b …, out
    "batch_gemm": """
    M, N, K = word(row, 2), word(row, 3), word(row, 4)
    a, b, out = at_{kind}(word(row, 5)), at_{kind}(word(row, 9)), at_{kind}(word(row, 13))
    for i in range(word(row, 1) * t // T, word(row, 1) * (t + 1) // T):
        {gemm}(
            ORDER, PLAIN + FLIP * word(row, 8), PLAIN + FLIP * word(row, 12), M, N, K, np.{kind}(1),
            offset(a, i * word(row, 6)), word(row, 7), offset(b, i * word(row, 10)), word(row, 11),
            np.{kind}(0), offset(out, i * M * N), N,
        )
""",
    # words: rows, columns, the table, its rows, indices, out; what is out of range is noted elsewhere
    "gather": """
    R, C, last = word(row, 1), word(row, 2), word(row, 4) - 1
    table, index, out = at_{kind}(word(row, 3)), at_int64(word(row, 5)), at_{kind}(word(row, 6))
    for r in range(R * t // T, R * (t + 1) // T):
        i = min(max(load(index, r, 1), 0), last)
        for j in range(C):
            store(out, r * C + j, load(table, i * C + j, 0), 2)
""",
    # words: rows and columns of the table, the rows that are added, how many, indices, out
    "scatter": """
    R, C, n = word(row, 1), word(row, 2), word(row, 4)
    x, index, out = at_{kind}(word(row, 3)), at_int64(word(row, 5)), at_{kind}(word(row, 6))
    r0 = R * t // T
    r1 = R * (t + 1) // T
    for i in range(r0 * C, r1 * C):
        store(out, i, np.{kind}(0), 2)
    for r in range(n):
        i = load(index, r, 1)
        if (i >= r0) & (i < r1):
            for j in range(C):
                store(out, i * C + j, load(out, i * C + j, 2) + load(x, r * C + j, 0), 2)
""",
    # words: rows, columns, the generator's state, out
    "uniform": """
    R, C = word(row, 1), word(row, 2)
    state, out = at_uint64(word(row, 3)), at_{kind}(word(row, 4))
    key, counter = load(state, 0, 0), load(state, 1, 0)
    for r in range(R * t // T, R * (t + 1) // T):
        for b in range((C + 3) // 4):
            words = block(key, counter + np.uint64(r * C // 4 + b + 1))
            for j in range(min(4, C - 4 * b)):
                unit = np.int64(words[j] >> np.uint64({shift})) * np.{kind}({scale})
                store(out, r * C + 4 * b + j, np.{kind}(unit), 1)
""",
    # words: elements, from, to, axes, then length and stride of each axis
    "strided_copy": """
    n, x, out, axes = word(row, 1), at_{kind}(word(row, 2)), at_{kind}(word(row, 3)), word(row, 4)
    inner, step = word(row, 3 + 2 * axes), word(row, 4 + 2 * axes)
    outer = n // inner
    for r in range(outer * t // T, outer * (t + 1) // T):
        at, left = 0, r
        for a in range(axes - 2, -1, -1):
            at += left % word(row, 5 + 2 * a) * word(row, 6 + 2 * a)
            left //= word(row, 5 + 2 * a)
        for j in range(inner):
            store(out, r * inner + j, load(x, at + j * step, 0), 1)
""",
}


def body(name: str, dtype: np.dtype[Any]) -> str:
    """The body of a kernel for a dtype."""
    kind = "uint8" if dtype.kind == "b" else dtype.name
    bits = 53 if dtype == np.float64 else 24
    gemm = "dgemm" if dtype == np.float64 else "sgemm"
    return _BODIES[name].strip("\n").format(kind=kind, gemm=gemm, shift=64 - bits, scale=2.0**-bits)


@functools.cache
def fixed(name: str) -> Any:
    """The C function of a kernel by its name."""
    return c_function(_FIXED[name], SIGNATURE)


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
            s = {_accumulated(how, "s", "x", dtype)}
        store(out, j, s, 1)
""".strip("\n")
