"""Axes and shapes as users write them, made canonical; the names other libraries use are told from ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gradflow.arguments import integer, shown
from gradflow.errors import ArgumentError, DTypeError, IndexRangeError, explain

_OURS = {
    "dim": "axis",
    "keepdim": "keepdims",
    "dims": "axes",
    "ddof": "correction",
    "unbiased": "correction",
    "start_dim": "start_axis",
}


_ARRAYS = {
    "concat": "[x, y]",
    "stack": "[x, y]",
    "take": "x, indices",
    "take_along_axis": "x, indices",
}


def _call(function: str, name: str, value: object) -> str:
    """A corrected call, such as gf.sum(x, axis=0)."""
    return f"gf.{function}({_ARRAYS.get(function, 'x')}, {name}={value!r})"


def refuse(function: str, positional: Sequence[object], wrong: Mapping[str, object], setting: str = "axis") -> NoReturn:
    """Raise the error for arguments that a function does not have; for another library's keyword, name ours.

    Args:
        positional: what was given by position after the arrays.
        wrong: what was given by a keyword that the function does not have.
        setting: what a value given by position was most likely meant for.

    >>> gf.sum(gf.ones(3), dim=0)
    Traceback (most recent call last):
    gradflow.errors.DTypeError: sum() got an unexpected keyword argument 'dim': use axis=.
      why: gradflow names arguments as NumPy and the array API standard do.
      fix: gf.sum(x, axis=0)
    """
    if positional:
        given, arrays = positional[0], _ARRAYS.get(function, "x")
        meant = isinstance(given, int | tuple) or given is None
        fix = _call(function, setting, given) if meant else f"gf.{function}({arrays})"
        reason = f"it takes {arrays} by position, and settings by name."
        raise DTypeError(explain(f"{function}() got {shown(given)} by position.", reason, fix))
    name, value = next(iter(wrong.items()))
    ours = _OURS.get(name)
    mistake = f"{function}() got an unexpected keyword argument {name!r}" + (f": use {ours}=." if ours else ".")
    fix = _call(function, ours, value) if ours else f"help(gf.{function})"
    raise DTypeError(explain(mistake, "gradflow names arguments as NumPy and the array API standard do.", fix))


def canonical_axis(function: str, axis: Any, ndim: int, *, name: str = "axis", fix: str = "") -> int:
    """One axis, counted from the front.

    Args:
        name: what the function calls it.
        fix: a corrected call where it is not given by that name.

    Raises:
        IndexRangeError: the axis is outside [−ndim, ndim).
        DTypeError: the axis is not an integer.
    """
    i = integer(function, "axis", axis, why="an axis is an integer.", fix=fix or _call(function, name, 0))
    if not -ndim <= i < ndim:
        valid = f"it has axes {-ndim}…{ndim - 1}" if ndim else "it has none"
        near = _call(function, name, ndim - 1) if ndim else "gf.expand_dims(x, axis=0) has an axis"
        mistake = f"{function}() got axis={i} for a tensor of {ndim} axes."
        raise IndexRangeError(explain(mistake, f"{valid}.", fix or near))
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
                _call(function, "axis", tuple(dict.fromkeys(axes))),
            )
        )
    return axes


def kept_shape(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a reduction over `axis` that keeps the reduced axes with length 1."""
    return tuple(1 if i in axis else n for i, n in enumerate(shape))
