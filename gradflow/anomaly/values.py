"""Which values are bad, and which element of a bad result to blame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from gradflow.primitive import Namespace
from gradflow.tensor import Tensor

FINE, INFINITE, NAN = range(3)  # how bad a value is
_SMALL = 10_000  # elements: from here on a sum takes longer than `isfinite`
_AXES = [tuple(range(n)) for n in range(65)]
Index = tuple[int, ...]


def is_finite(array: Any, xp: Namespace) -> bool:
    """Whether an array holds neither NaN nor infinity, asked of its own backend.

    A bad element makes the sum bad. That is quick to ask of a small array (1 µs); for a large one, and where finite
    numbers overflow in the sum, the elements are looked at one by one.
    """
    if array.dtype.kind != "f":
        return True
    shape = array.shape
    if not shape:
        return math.isfinite(array)
    axes = _AXES[len(shape)]
    if array.size < _SMALL and math.isfinite(xp.sum(array, axis=axes, keepdims=False)):
        return True
    return bool(xp.all(xp.isfinite(array), axis=axes, keepdims=False))


def badness_of(host: np.ndarray) -> np.ndarray:
    """FINE, INFINITE or NAN, element by element."""
    if host.dtype.kind != "f":
        return np.zeros(host.shape, np.int8)
    return cast(np.ndarray, np.isinf(host) * np.int8(INFINITE) + np.isnan(host) * np.int8(NAN))


def worst_of(hosts: Sequence[np.ndarray]) -> int:
    """How bad the worst element of several arrays is."""
    return max((int(badness_of(host).max()) for host in hosts if not is_all_finite(host)), default=FINE)


def is_all_finite(host: np.ndarray) -> bool:
    """Whether a host array holds neither NaN nor infinity."""
    return host.dtype.kind != "f" or bool(np.isfinite(host).all())


def first_of_worst(badness: np.ndarray, fresh: np.ndarray) -> Index:
    """The first of the worst elements that are fresh or, if none is, of all."""
    blamed = badness * fresh if fresh.any() else badness
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(blamed)), blamed.shape))


def handed_on(result: np.ndarray, operands: Sequence[np.ndarray]) -> Any:
    """The first infinity of a result, if an operand holds one wherever the result does; else None.

    This is what a mask does. It takes a few microseconds to see, where `locate` takes dozens. A NaN is always located.
    """
    bad = ~np.isfinite(result)
    for operand in operands:
        if operand.dtype.kind != "f" or (operand.size != 1 and operand.shape != result.shape):
            continue
        if not (bad & np.isfinite(operand)).any() and not np.isnan(result).any():
            return result.reshape(-1)[int(bad.argmax())]
    return None


# ---------------------------------------------------------------- which element
class Place(NamedTuple):
    """The element of a result that an event is about.

    Attributes:
        at: its index.
        produced: whether the operation made it worse than what it was given.
        badness: of the worst element.
        values: the operands at that element; None if the operation is not element by element.
    """

    at: Index
    produced: bool
    badness: int
    values: list[Any] | None


def locate(
    again: Callable[..., Any], xp: Namespace, out: np.ndarray, operands: list[np.ndarray], judged: int | None = None
) -> Place:
    """Find the element to blame in a bad result.

    Whether an operation works element by element is found by experiment: run on the operands' elements at one place
    alone, such an operation gives the bad value again. This holds for any primitive, the user's own among them.

    Args:
        again: the operation, of raw arrays.
        xp: its namespace.
        out: the result.
        operands: what it read.
        judged: how many of the operands it is judged by (None: all); a derivative is judged by its cotangent alone.
    """
    badness, shape = badness_of(out), out.shape
    worst = int(badness.max())
    if stretches_to(operands, shape):
        given = np.zeros(shape, np.int8)
        for operand in operands[:judged]:
            if not is_all_finite(operand):
                given = np.maximum(given, badness_of(operand))
        fresh = badness > given
        at = first_of_worst(badness, fresh)
        values = [element(operand, shape, at) for operand in operands]
        if _repeats(again, xp, values, int(badness[at])):
            return Place(at, bool(fresh.any()), worst, values)
    fresh = badness > worst_of(operands[:judged])
    return Place(first_of_worst(badness, fresh), bool(fresh.any()), worst, None)


def stretches_to(operands: Sequence[np.ndarray], shape: tuple[int, ...]) -> bool:
    """Whether arrays broadcast to a shape."""
    if all(operand.shape in (shape, ()) for operand in operands):
        return True  # the usual case, at a tenth of the price
    try:
        return np.broadcast_shapes(shape, *(operand.shape for operand in operands)) == shape
    except ValueError:
        return False


def element(operand: np.ndarray, shape: Index, at: Index) -> Any:
    """What stands at an index of an array that is broadcast to a shape."""
    return operand[at] if operand.shape == shape else np.broadcast_to(operand, shape)[at]


def _repeats(again: Callable[..., Any], xp: Namespace, values: list[Any], badness: int) -> bool:
    try:
        alone = again(*(xp.as_array(value, value.dtype) for value in values))
        return bool(alone.shape == () and worst_of([xp.backend.to_numpy(xp.as_array(alone))]) == badness)
    except Exception:  # what is not element by element may fail on single elements in any way
        return False


# ---------------------------------------------------------------- cotangents, raw or Tensors
def raw(value: Any) -> Any:
    """The array of a Tensor; anything else as it is."""
    return value._data if isinstance(value, Tensor) else value


def arrays_of(cotangent: Any) -> list[Any]:
    """The raw arrays of a cotangent: one, or those for the arguments of a custom_vjp."""
    if isinstance(cotangent, tuple):
        return [raw(t) for t in cotangent if t is not None]
    return [raw(cotangent)]
