"""Philox4x64-10 draws, bit for bit those of NumPy's generator.

Source: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gradflow_numba.generic import log
from gradflow_numba.jit import Number, loop, scalar
from gradflow_numba.kernels import Array, kernel, new

ROUNDS = 10
MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)  # what is added to the key after a round
CHUNK = 1024  # words: drawn into the first cache, then turned into numbers

# sin 2πt / t and cos 2πt in t² for |t| ≤ 1/8; minimax, relative error 2^-66 and 2^-64
SINE = (
    6.283185307179586,
    -41.34170224039976,
    81.60524927607493,
    -76.70585975299815,
    42.05869392899334,
    -15.094640404319405,
    3.8197881400872977,
    -0.7116361735462059,
)
COSINE = (
    1.0,
    -19.739208802178716,
    64.93939402266795,
    -85.45681720652279,
    60.24464132888106,
    -26.426250909914966,
    7.903091747954617,
    -1.6968505715709565,
)


def _high(context: Any, x: Any, y: Any) -> Any:
    """The upper 64 bits of a product of two."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(a, wide) for a in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


high: Any = intrinsic(_high)


@scalar
def block(key: Number, counter: Number) -> tuple[Number, Number, Number, Number]:
    """The four words of a block of Philox."""
    x0, x1, x2, x3 = counter, np.uint64(0), np.uint64(0), np.uint64(0)
    k0, k1 = key, np.uint64(0)
    for _ in range(ROUNDS):
        upper0, lower0 = high(MULTIPLIERS[0], x0), MULTIPLIERS[0] * x0
        upper2, lower2 = high(MULTIPLIERS[1], x2), MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = upper2 ^ x1 ^ k0, lower2, upper0 ^ x3 ^ k1, lower0
        k0 += WEYL[0]
        k1 += WEYL[1]
    return x0, x1, x2, x3


@loop
def _words(key: Number, counter: Number, out: Array) -> None:
    """Fill out, a multiple of four words long, from the block after the counter on."""
    for b in range(out.size // 4):
        out[4 * b], out[4 * b + 1], out[4 * b + 2], out[4 * b + 3] = block(key, counter + np.uint64(b + 1))


@loop
def _uniform(key: Number, counter: Number, words: Array, shift: Number, scale: Number, out: Array) -> None:
    n = out.size
    for start in range(0, n, words.size):
        _words(key, counter + np.uint64(start // 4), words)
        for i in range(min(words.size, n - start)):
            out[start + i] = np.int64(words[i] >> shift) * scale


@loop
def _normal(key: Number, counter: Number, words: Array, pairs: Array, out: Array) -> None:
    n = out.size
    scale, one = 2.0**-53, 1.0
    for start in range(0, n, words.size):
        _words(key, counter + np.uint64(start // 4), words)
        for i in range(words.size // 2):
            u = np.int64(words[2 * i] >> np.uint64(11)) * scale
            turn = np.int64(words[2 * i + 1] >> np.uint64(11)) * scale
            radius = np.sqrt(-2.0 * log(one - u))
            quarter = np.floor(4.0 * turn + 0.5)
            t = turn - 0.25 * quarter
            z = t * t
            s = ((SINE[7] * z + SINE[6]) * z + SINE[5]) * z + SINE[4]
            s = ((((s * z + SINE[3]) * z + SINE[2]) * z + SINE[1]) * z + SINE[0]) * t
            c = ((COSINE[7] * z + COSINE[6]) * z + COSINE[5]) * z + COSINE[4]
            c = (((c * z + COSINE[3]) * z + COSINE[2]) * z + COSINE[1]) * z + COSINE[0]
            odd = (quarter == 1.0) | (quarter == 3.0)
            cosine, sine = (s if odd else c), (c if odd else s)
            pairs[2 * i] = radius * (-cosine if (quarter == 1.0) | (quarter == 2.0) else cosine)
            pairs[2 * i + 1] = radius * (-sine if (quarter == 2.0) | (quarter == 3.0) else sine)
        for i in range(min(words.size, n - start)):
            out[start + i] = pairs[i]


def _room(n: int) -> Array:
    return np.empty(min(CHUNK, n + -n % 4), np.uint64)


@kernel("random_uniform")
def random_uniform(state: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    n = math.prod(shape)
    out = new(shape, dtype, n)
    bits = 53 if dtype == np.float64 else 24
    if n:
        _uniform(state[0], state[1], _room(n), np.uint64(64 - bits), dtype.type(2.0**-bits), out.reshape(-1))
    return out


@kernel("random_normal")
def random_normal(state: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    n = math.prod(shape)
    out = new(shape, dtype, n)
    if n:
        words = _room(n)
        _normal(state[0], state[1], words, np.empty(words.size), out.reshape(-1))
    return out
