"""The elementary functions, for whichever of float32 and float64 a kernel is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import overload

from gradflow_numba import elementary
from gradflow_numba.jit import SCALAR, Number


def _by_dtype(function: Callable[..., Any], single: Callable[..., Any], double: Callable[..., Any]) -> None:
    """Have compiled code read a call of the function as one of its two instances."""

    def choose(x: Any) -> Any:
        if x == types.float32:
            return lambda x: single(x)  # noqa: PLW0108  (Numba asks for the argument's name)
        return (lambda x: double(x)) if x == types.float64 else None  # noqa: PLW0108

    options: Any = SCALAR
    overload(function, jit_options=options, strict=False)(choose)


def exp(x: Number) -> Number:
    """e^x."""
    raise NotImplementedError


def log(x: Number) -> Number:
    """The natural logarithm."""
    raise NotImplementedError


def log1p(x: Number) -> Number:
    """ln(1 + x)."""
    raise NotImplementedError


def tanh(x: Number) -> Number:
    """The hyperbolic tangent."""
    raise NotImplementedError


def sigmoid(x: Number) -> Number:
    """1 / (1 + e^−x)."""
    raise NotImplementedError


def erf(x: Number) -> Number:
    """The error function."""
    raise NotImplementedError


def ordered(x: Number) -> Number:
    """The number as an integer in the order of the numbers, NaN above all: a maximum of integers is vectorised."""
    raise NotImplementedError


def unordered(n: Number, like: Number) -> Number:
    """The number that `ordered` made n of, in the dtype of `like`."""
    raise NotImplementedError


@overload(ordered, strict=False)
def _ordered(x: Any) -> Any:
    if x == types.float32:
        return lambda x: elementary.ordered32(x)  # noqa: PLW0108
    return (lambda x: elementary.ordered64(x)) if x == types.float64 else None  # noqa: PLW0108


@overload(unordered, strict=False)
def _unordered(n: Any, like: Any) -> Any:
    if like == types.float32:
        return lambda n, like: elementary.unordered32(n)
    return (lambda n, like: elementary.unordered64(n)) if like == types.float64 else None


for _function in (exp, log, log1p, tanh, sigmoid, erf):
    _name = _function.__name__
    _by_dtype(_function, getattr(elementary, f"{_name}32"), getattr(elementary, f"{_name}64"))
