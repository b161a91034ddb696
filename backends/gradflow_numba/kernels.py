"""The kernels of the Numba backend: NumPy's, and above them those that are faster compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from gradflow_numpy.fused import MANY
from gradflow_numpy.namespace import NumpyBackend
from gradflow_numpy.pool import room

F = TypeVar("F", bound=Callable[..., Any])
Array = np.ndarray

KERNELS: dict[str, Callable[..., Any]] = dict(NumpyBackend.kernels)
RESIDUAL_KERNELS: dict[str, Callable[..., Any]] = dict(NumpyBackend.residual_kernels)
VJPS: dict[tuple[str, str], Callable[..., Any]] = dict(NumpyBackend.vjps)

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def kernel(name: str) -> Callable[[F], F]:
    """Enter a function as the kernel of a primitive."""

    def enter(function: F) -> F:
        KERNELS[name] = function
        return function

    return enter


def with_residual(name: str) -> Callable[[F], F]:
    """Enter a function that returns (out, residual)."""

    def enter(function: F) -> F:
        RESIDUAL_KERNELS[name] = function
        return function

    return enter


def vjp(name: str, operand: str) -> Callable[[F], F]:
    """Enter a function as the derivative of a primitive."""

    def enter(function: F) -> F:
        VJPS[name, operand] = function
        return function

    return enter


def fits(x: Array) -> bool:
    """Whether compiled code takes the array: float32 or float64, in C order, aligned, writable.

    All else (views with steps, transposed and read-only memory, integers) is left to NumPy's kernels, or each
    combination of layouts would be compiled anew, at 0.2 s a piece.
    """
    dtype = x.dtype
    return (dtype is FLOAT32 or dtype is FLOAT64) and x.flags.carray


def fitting(x: Array) -> Array:
    """The array, or a copy that compiled code takes."""
    return x if x.flags.carray else np.array(x, order="C")


def new(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> Array:
    """Memory for a result, recycled where it is large."""
    if size < MANY:
        return np.empty(shape, dtype)
    found = room(shape, dtype)
    return np.empty(shape, dtype) if found is None else found
