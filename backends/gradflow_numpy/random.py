"""Philox4x64-10 draws, by NumPy's own bit generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradflow_numpy.kernels import kernel

Array = np.ndarray


def _words(state: Array, n: int) -> Array:
    key, counter = state.tolist()
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def _unit(words: Array, dtype: np.dtype[Any]) -> Array:
    """The upper bits of each word, as many as the dtype's significand holds, as a number in [0, 1)."""
    bits = 53 if dtype == np.float64 else 24
    return ((words >> np.uint64(64 - bits)).astype(np.float64) * 2.0**-bits).astype(dtype, copy=False)


@kernel
def random_uniform(state: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    return _unit(_words(state, math.prod(shape)), dtype).reshape(shape)


@kernel
def random_normal(state: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    n = math.prod(shape)
    u = _unit(_words(state, n + n % 2), np.dtype(np.float64)).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, 0])), 2 * np.pi * u[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:n].astype(dtype, copy=False).reshape(shape)


@kernel
def advance(state: Array, blocks: int) -> None:
    state[1] += np.uint64(blocks)
