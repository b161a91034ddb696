"""Questions about dtypes, as the array API standard asks them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradflow.errors import ArgumentError, DTypeError, explain
from gradflow.ops.creation import DTYPES, check_dtype
from gradflow.primitive import common_dtype
from gradflow.tensor import Tensor

KINDS: dict[str, str] = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "",  # gradflow has none
    "numeric": "iuf",
}
"""The standard's kinds of dtypes, and NumPy's letters for them."""


class FloatInfo(NamedTuple):
    """The limits of a floating-point dtype, see `finfo`."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: np.dtype[Any]


class IntegerInfo(NamedTuple):
    """The limits of an integer dtype, see `iinfo`."""

    bits: int
    max: int
    min: int
    dtype: np.dtype[Any]


def _dtype_of(function: str, x: Any, kinds: str) -> np.dtype[Any]:
    """The dtype that x is or has, which must be of one of the kinds."""
    dtype = x.dtype if isinstance(x, Tensor | np.ndarray) else check_dtype(x)
    if dtype.kind not in kinds:
        other = "iinfo" if function == "finfo" else "finfo"
        raise DTypeError(
            explain(
                f"{function} of {dtype}.",
                "finfo tells of floating-point dtypes, iinfo of integer ones.",
                f"gf.{other}(gf.{dtype})" if dtype.kind != "b" else f"gf.{function}(x.dtype) of a tensor of numbers",
            )
        )
    return check_dtype(dtype)


def finfo(type: Any, /) -> FloatInfo:
    """The limits of a floating-point dtype, or of the dtype of a tensor.

    Raises:
        DTypeError: a dtype of integers or booleans.

    >>> gf.finfo(gf.float32).bits, gf.finfo(gf.float64).eps == 2.0**-52
    (32, True)
    """
    dtype = _dtype_of("finfo", type, "f")
    limits = np.finfo(dtype)
    return FloatInfo(
        bits=int(limits.bits),
        eps=float(limits.eps),
        max=float(limits.max),
        min=float(limits.min),
        smallest_normal=float(limits.smallest_normal),
        dtype=dtype,
    )


def iinfo(type: Any, /) -> IntegerInfo:
    """The limits of an integer dtype, or of the dtype of a tensor.

    Raises:
        DTypeError: a dtype of floating-point numbers or booleans.

    >>> gf.iinfo(gf.int8).min, gf.iinfo(gf.uint16).max
    (-128, 65535)
    """
    dtype = _dtype_of("iinfo", type, "iu")
    limits = np.iinfo(dtype)
    return IntegerInfo(bits=int(limits.bits), max=int(limits.max), min=int(limits.min), dtype=dtype)


def dtypes_of(kind: str) -> dict[str, np.dtype[Any]]:
    """The dtypes of one of the standard's kinds, by name.

    Raises:
        ArgumentError: no such kind.

    >>> from gradflow.ops.dtypes import dtypes_of
    >>> list(dtypes_of("real floating"))
    ['float32', 'float64']
    """
    if kind not in KINDS:
        raise ArgumentError(
            explain(f"{kind!r} is not a kind of dtypes.", f"the kinds are {', '.join(KINDS)}.", "'real floating'")
        )
    return {name: dtype for name, dtype in DTYPES.items() if dtype.kind in KINDS[kind]}


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether a dtype is another one, is of a kind, or is one of several.

    Args:
        dtype: the dtype in question.
        kind: a dtype; "bool", "signed integer", "unsigned integer", "integral", "real floating", "complex floating",
            "numeric"; or a tuple of these.

    Raises:
        ArgumentError: no such kind.
        DTypeError: a dtype that gradflow does not have.

    >>> gf.isdtype(gf.int8, "integral"), gf.isdtype(gf.int8, ("bool", gf.float32))
    (True, False)
    """
    dtype = check_dtype(dtype)
    for one in kind if isinstance(kind, tuple) else (kind,):
        if dtype in dtypes_of(one).values() if isinstance(one, str) else dtype == check_dtype(one):
            return True
    return False


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    """The dtype that tensors, dtypes and Python numbers meet in when an operation gets them together.

    Raises:
        DTypeError: dtypes without a common one, such as int64 and uint64.
        ArgumentError: neither a tensor nor a dtype among them, or an integer that the common dtype does not hold.

    >>> gf.result_type(gf.int64, gf.float32), gf.result_type(gf.tensor([1], dtype=gf.int8), 2)
    (dtype('float32'), dtype('int8'))
    """
    weak = [a for a in arrays_and_dtypes if isinstance(a, bool | int | float)]
    strong = [
        check_dtype(a.dtype if isinstance(a, Tensor | np.ndarray) else a)
        for a in arrays_and_dtypes
        if not isinstance(a, bool | int | float)
    ]
    if not strong:
        raise ArgumentError(
            explain(
                f"result_type of {', '.join(map(repr, weak)) or 'nothing'}.",
                "Python numbers take on the dtype of what they meet.",
                "gf.result_type(x, 1.0)",
            )
        )
    return common_dtype("result_type", "numeric", strong, weak)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether an operation on both dtypes would bring the first to the second: `result_type(from_, to)` is `to`.

    >>> gf.can_cast(gf.int8, gf.int16), gf.can_cast(gf.float64, gf.float32)
    (True, False)
    """
    target = check_dtype(to)
    try:
        return result_type(from_, target) == target
    except DTypeError:
        check_dtype(from_.dtype if isinstance(from_, Tensor | np.ndarray) else from_)
        return False


__all__ = ["FloatInfo", "IntegerInfo", "can_cast", "dtypes_of", "finfo", "iinfo", "isdtype", "result_type"]
