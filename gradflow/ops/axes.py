"""Axes and shapes as users write them, made canonical; the names other libraries use are told from ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from gradflow.errors import ArgumentError, DTypeError, IndexRangeError, explain

_OURS = {"dim": "axis", "keepdim": "keepdims", "dims": "axes", "ddof": "correction", "unbiased": "correction"}


def refuse(function: str, wrong: Mapping[str, object]) -> NoReturn:
    """Raise the error for a keyword argument that a function does not have; for another library's, name ours.

    >>> gf.sum(gf.ones(3), dim=0)
    Traceback (most recent call last):
    gradflow.errors.DTypeError: sum() got an unexpected keyword argument 'dim': use axis=.
      why: gradflow names arguments as NumPy and the array API standard do.
      fix: gf.sum(x, axis=0)
    """
    name, value = next(iter(wrong.items()))
    ours = _OURS.get(name)
    mistake = f"{function}() got an unexpected keyword argument {name!r}" + (f": use {ours}=." if ours else ".")
    fix = f"gf.{function}(x, {ours}={value!r})" if ours else f"help(gf.{function})"
    raise DTypeError(explain(mistake, "gradflow names arguments as NumPy and the array API standard do.", fix))


def canonical_axis(function: str, axis: Any, ndim: int) -> int:
    """One axis, counted from the front.

    Raises:
        IndexRangeError: the axis is outside [−ndim, ndim).
        DTypeError: the axis is not an integer.
    """
    if not hasattr(axis, "__index__") or isinstance(axis, bool):
        raise DTypeError(
            explain(f"{function}() got axis={axis!r}.", "an axis is an integer.", f"gf.{function}(x, axis=0)")
        )
    i = int(axis.__index__())
    if not -ndim <= i < ndim:
        valid = f"it has axes {-ndim}…{ndim - 1}" if ndim else "it has none"
        fix = f"gf.{function}(x, axis={ndim - 1})" if ndim else "gf.expand_dims(x, axis=0) has an axis"
        raise IndexRangeError(explain(f"{function}() got axis={i} for a tensor of {ndim} axes.", f"{valid}.", fix))
    return i % ndim


def canonical_axes(function: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """Any of None (all), an integer, or a tuple as a sorted tuple of axes counted from the front.

    Raises:
        IndexRangeError: an axis outside [−ndim, ndim).
        ArgumentError: an axis named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    if not isinstance(axis, tuple | list):
        return (canonical_axis(function, axis, ndim),)
    axes = tuple(sorted(canonical_axis(function, a, ndim) for a in axis))
    if len(set(axes)) != len(axes):
        raise ArgumentError(
            explain(
                f"{function}() got axis={axis!r}, which names one axis twice.",
                "each axis can be given once.",
                f"gf.{function}(x, axis={tuple(dict.fromkeys(axes))})",
            )
        )
    return axes


def kept_shape(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a reduction over `axis` that keeps the reduced axes with length 1."""
    return tuple(1 if i in axis else n for i, n in enumerate(shape))
