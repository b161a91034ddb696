"""Bound memory while a trace is lowered: where its arrays lie, and what it holds after each write."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradflow.compiler.graph import COLUMN_REDUCTIONS, ELEMENTWISE, Value, View
from gradflow.compiler.symbols import (
    Symbol,
    UnsupportedError,
    extent,
    is_dense,
    is_packed,
    merged,
    split,
    squeezed,
)

if TYPE_CHECKING:
    from gradflow.compiler.lower import Lowering

_GIVEN_A_PLACE = ELEMENTWISE | COLUMN_REDUCTIONS | {"gemm"}
"""What can compute right where its value shall lie."""


class Bound:
    """What bound memory holds at each point of the program: the value of the last store, where there was one."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self.roots: dict[tuple[int, Any], Value] = {}
        self.stores: dict[Value, dict[tuple[int, int], Symbol]] = {}
        self.bases: dict[Value, int] = {}
        self.closed: list[Symbol] = []
        self.owned: set[Value] = set()  # what is stored somewhere, or handed out

    def bind(self, arrays: dict[int, Any], span_of: Callable[[Any], tuple[Any, int, int]]) -> dict[int, Symbol]:
        """A symbol for each array; arrays in the memory of one owner are views of one value."""
        spans: dict[tuple[int, Any], list[Any]] = {}
        extents = {variable: span_of(array) for variable, array in arrays.items()}
        for variable, array in arrays.items():
            owner, low, high = extents[variable]
            span = spans.setdefault((id(owner), array.dtype), [low, high, owner])
            span[0], span[1] = min(span[0], low), max(span[1], high)
        for key, (low, high, owner) in spans.items():
            size = (high - low) // key[1].itemsize
            value = Value(key[1], (1, max(size, 1)), "memory", (low, owner))
            self.roots[key], self.bases[value] = value, low
        return {variable: self._symbol(array, *extents[variable][:2]) for variable, array in arrays.items()}

    def _symbol(self, array: Any, owner: Any, low: int) -> Symbol:
        value = self.roots[id(owner), array.dtype]
        item = array.dtype.itemsize
        address = array.__array_interface__["data"][0]
        if (address - self.bases[value]) % item or any(t % item for t in array.strides):
            raise UnsupportedError("memory that is not aligned")
        strides = tuple(0 if n == 1 else t // item for n, t in zip(array.shape, array.strides, strict=True))
        return Symbol(self.lowering, value, (address - self.bases[value]) // item, strides, array.shape)

    def close(self, s: Symbol) -> None:
        """Say that a kernel writes here: what it holds afterwards is not known as a value."""
        if s.value in self.stores:
            raise UnsupportedError("a kernel that writes what was written before")
        self.closed.append(s)

    def load(self, s: Symbol) -> Symbol:
        """What bound memory holds now, where the symbol says."""
        low, high = extent(s)
        for other in self.closed:
            start, stop = extent(other)
            if other.value is s.value and low < stop and start < high:
                raise UnsupportedError("a read of what a kernel has written")
        for (start, stop), value in self.stores.get(s.value, {}).items():
            if start <= low and high <= stop:
                return value.at(value.offset + s.offset - start, s.strides, s.shape)
            if low < stop and start < high:
                raise UnsupportedError("a read that overlaps what was written before")
        return s

    def store(self, target: Symbol, value: Symbol) -> None:
        """Have bound memory hold a value from here on."""
        if target.value.kind not in ("memory", "constant"):
            raise UnsupportedError("a write into an argument or a computed value")
        if not is_packed(target):
            raise UnsupportedError("a write into memory that does not lie together")
        self.load(target) if self.closed else None
        low, high = extent(target)
        if low == high:
            return
        order = sorted(range(target.ndim), key=lambda a: -target.strides[a])
        value = self.lowering.lower_permute_dims(value, axes=tuple(order))
        flat = self.own(value)
        stores = self.stores.setdefault(target.value, {})
        for start, stop in list(stores):
            if low <= start and stop <= high:
                del stores[start, stop]
            elif low < stop and start < high:
                raise UnsupportedError("a write that overlaps another")
        stores[low, high] = flat.at(0, (1,), (high - low,))

    def own(self, value: Symbol) -> Symbol:
        """The value as what a node computes, dense and whole, and stored nowhere else."""
        node = value.value.node
        fresh = node is not None and node.op in _GIVEN_A_PLACE and value.value.part_of is None
        is_all = value.offset == 0 and is_dense(value) and value.size == value.value.size
        if fresh and is_all and value.value not in self.owned:
            self.owned.add(value.value)
            return value
        lengths, strides = squeezed(value.shape, value.strides)
        cut, (fits,) = split(lengths, [strides])
        if not fits:
            value = self.lowering.strided_copy(value)
            lengths, strides = [value.size], [1]
            cut = 0
        space = math.prod(lengths[:cut]), math.prod(lengths[cut:])
        row, column = merged(lengths[:cut], strides[:cut]), merged(lengths[cut:], strides[cut:])
        view = View(value.value, value.offset, row, column, space)
        copied = self.lowering.new("copy", [view], space, space, value.dtype, settings="store")
        self.owned.add(copied)
        return self.lowering.dense(copied, (value.size,))
