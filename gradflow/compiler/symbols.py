"""Symbols: arrays that are not computed yet, and the arithmetic of their strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.compiler.graph import Value

if TYPE_CHECKING:
    from gradflow.compiler.lower import Lowering

Shape = tuple[int, ...]


class UnsupportedError(Exception):
    """A trace that has no lowered form; it runs equation by equation."""


class Symbol:
    """An array that is not computed yet: a strided view of a value, of any number of axes."""

    __slots__ = ("lowering", "offset", "shape", "strides", "value")
    __array_ufunc__ = None
    __hash__ = object.__hash__

    def __init__(self, lowering: Lowering, value: Value, offset: int, strides: Shape, shape: Shape) -> None:
        self.lowering, self.value, self.offset, self.strides, self.shape = lowering, value, offset, strides, shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the elements."""
        return self.value.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def at(self, offset: int, strides: Sequence[int], shape: Sequence[int]) -> Symbol:
        """The same value seen otherwise."""
        return Symbol(self.lowering, self.value, offset, tuple(strides), tuple(shape))

    @property
    def is_number(self) -> bool:
        """Whether it is a number known now, repeated."""
        return self.value.kind == "number"

    def __add__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("subtract", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("subtract", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("multiply", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("multiply", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("divide", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("divide", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("power", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("power", other, self)

    def __neg__(self) -> Symbol:
        return self.lowering.elementwise("negative", self)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return self.lowering.elementwise("equal", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return self.lowering.elementwise("not_equal", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("less", self, other)

    def __le__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("less_equal", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("greater", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("greater_equal", self, other)

    def __and__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("bitwise_and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return self.lowering.elementwise("bitwise_or", self, other)

    def __invert__(self) -> Symbol:
        return self.lowering.elementwise("bitwise_invert", self)


# ---------------------------------------------------------------- strides
def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense row-major array.

    >>> from gradflow.compiler.lower import contiguous
    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return tuple(strides)


def broadcast(s: Symbol, shape: Shape) -> Symbol:
    """The symbol stretched to a shape."""
    if s.shape == shape:
        return s
    lead = len(shape) - s.ndim
    strides = [0 if n == 1 else t for n, t in zip(s.shape, s.strides, strict=True)]
    return s.at(s.offset, (*(0,) * lead, *strides), shape)


def extent(s: Symbol) -> tuple[int, int]:
    """The first element it may touch, and one after the last."""
    if s.size == 0:
        return s.offset, s.offset
    reach = [(n - 1) * t for n, t in zip(s.shape, s.strides, strict=True)]
    return s.offset + sum(min(r, 0) for r in reach), s.offset + sum(max(r, 0) for r in reach) + 1


def squeezed(shape: Shape, strides: Shape) -> tuple[list[int], list[int]]:
    """Lengths and strides without the axes of length 1."""
    pairs = [(n, t) for n, t in zip(shape, strides, strict=True) if n != 1]
    return [n for n, _ in pairs], [t for _, t in pairs]


def is_dense(s: Symbol) -> bool:
    """Whether its elements lie one after the other, row-major."""
    lengths, strides = squeezed(s.shape, s.strides)
    return tuple(strides) == contiguous(lengths)


def is_packed(s: Symbol) -> bool:
    """Whether it touches every element of its extent once, in any order of axes."""
    lengths, strides = squeezed(s.shape, s.strides)
    order = sorted(range(len(lengths)), key=lambda a: -strides[a])
    return [strides[a] for a in order] == list(contiguous([lengths[a] for a in order]))


def merged_or_none(lengths: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of neighbouring axes as one; None where they do not merge."""
    for i in range(len(lengths) - 1):
        if strides[i] != strides[i + 1] * lengths[i + 1]:
            return None
    return strides[-1] if lengths else 0


def merged(lengths: Sequence[int], strides: Sequence[int]) -> int:
    """The stride of neighbouring axes that merge, as one."""
    found = merged_or_none(lengths, strides)
    assert found is not None
    return found


def split(lengths: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, list[bool]]:
    """How many of the axes are rows, and for each operand whether its strides merge so.

    The last axis is the columns, unless another split lets more operands merge. A vector is one row.
    """
    n = len(lengths)
    preferred = max(n - 1, 0)

    def fits(k: int) -> list[bool]:
        return [
            merged_or_none(lengths[:k], t[:k]) is not None and merged_or_none(lengths[k:], t[k:]) is not None
            for t in strides
        ]

    best = max([preferred, *range(n)], key=lambda k: (sum(fits(k)), k == preferred)) if n > 2 else preferred
    return best, fits(best)


def memory_order(axes: list[int], symbols: Sequence[Symbol], shape: Shape) -> list[int]:
    """The axes in the order in which most of the operands that span them all have them in memory."""
    votes: dict[Shape, int] = {tuple(axes): 0}
    for s in symbols:
        if len(axes) > 1 and all(s.strides[a] for a in axes):
            order = tuple(sorted(axes, key=lambda a: -abs(s.strides[a])))
            votes[order] = votes.get(order, 0) + 1
    most = max(votes.values())
    return list(next(order for order, count in votes.items() if count == most))


def reshaped(shape: Shape, strides: Shape, new: Shape) -> tuple[int, ...] | None:
    """The strides of the same elements in another shape; None where they have to be copied.

    Both shapes are cut where products of lengths agree; within a cut the old axes must merge.
    """
    old = [(n, t) for n, t in zip(shape, strides, strict=True) if n != 1]
    out: list[int] = []
    i = 0
    j = 0
    while j < len(new):
        if new[j] == 1:
            out.append(0)
            j += 1
            continue
        if i >= len(old):
            return None
        first_old, first_new = i, j
        have, want = old[i][0], new[j]
        while have != want:
            if have < want:
                i += 1
                if i >= len(old):
                    return None
                have *= old[i][0]
            else:
                j += 1
                if j >= len(new):
                    return None
                want *= new[j]
        while j + 1 < len(new) and new[j + 1] == 1:
            j += 1
        piece = old[first_old : i + 1]
        stride = merged_or_none([n for n, _ in piece], [t for _, t in piece])
        if stride is None:
            return None
        inner = contiguous(new[first_new : j + 1])
        out += [t * stride for t in inner]
        i, j = i + 1, j + 1
    return tuple(out)
