"""From a plan to straight-line calls of NumPy that write into one arena: no allocation, no dispatch, no Numba."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, final

import numpy as np

from gradflow.compiler.generator import CodeGenerator, Executable, Timed
from gradflow.compiler.graph import Graph, Node, View
from gradflow.compiler.memory import Place, Plan
from gradflow_numpy.fused import ones
from gradflow_numpy.pool import trim

Array = Any
Step = Callable[[], object]

_UFUNCS: dict[str, Any] = {
    name: getattr(np, name)
    for name in (
        "add", "subtract", "multiply", "divide", "negative", "abs", "sign", "exp", "log", "log1p", "sqrt", "tanh",
        "maximum", "minimum", "power", "remainder", "floor_divide", "equal", "not_equal", "less", "less_equal",
        "greater", "greater_equal", "isnan", "isfinite", "isinf", "logical_and", "logical_or", "logical_xor",
        "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor", "floor",
    )
} | {"bitwise_invert": np.invert}  # fmt: skip
_REDUCE: dict[str, Any] = {"sum": np.add.reduce, "max": np.maximum.reduce, "min": np.minimum.reduce}


@final
class StraightLine(Executable):
    """One call after the other, each on arrays that were made once."""

    def __init__(self, plan: Plan, namespace: Any) -> None:
        self.plan, self.namespace = plan, namespace
        self._arena = np.zeros(plan.arena, np.uint8)
        self._inputs: list[tuple[int, Array]] = []
        self._made: dict[Any, Array] = {}
        self._outs = [np.empty(shape, value.dtype) for value, shape in plan.graph.results]
        for value in plan.places:
            if value.kind == "argument":
                self._inputs.append((value.source, self._flat(plan.places[value], value.dtype, value.size)))
        self._steps: list[Step] = []
        self._lines: list[str] = []
        self._written: list[Array] = []
        for region in plan.regions:
            for group in region.all():
                for node in group.nodes:
                    self._add(node)
        for store in plan.graph.stores:
            value = store.value
            target = Place("memory", store.memory.source, store.start * value.dtype.itemsize)
            self._written.append(self._flat(target, value.dtype, value.size))
            if store in plan.copied:
                self._copy(self._written[-1], self._flat(plan.places[value], value.dtype, value.size))
        self._made.clear()
        del self.plan  # what is left is what runs

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...] | None:
        """Run the calls; None where a check has failed."""
        with np.errstate(all="ignore"):
            for i, slot in self._inputs:
                if arrays[i].size:  # the slot of an empty argument has one element
                    np.copyto(slot, arrays[i].reshape(-1))
            for step in self._steps:
                if step() is False:
                    return None
            return tuple([out.copy() for out in self._outs])

    def source(self) -> str:
        """The calls, with the dtypes and shapes they work on."""
        return "\n".join(self._lines)

    def ceilings(self) -> tuple[float, float]:
        """Those of NumPy's BLAS, and of a copy."""
        from gradflow_numpy.ceilings import ceilings

        return ceilings()

    def profile(self, arrays: Sequence[Array], seconds: float) -> list[Timed]:
        """Time every call by itself."""
        saved = [(array, array.copy()) for array in self._written]
        try:
            if self.run(arrays) is None:
                return []
            share = seconds / max(1, len(self._steps))
            with np.errstate(all="ignore"):
                return [self._timed(text, step, share) for text, step in zip(self._lines, self._steps, strict=True)]
        finally:
            for array, before in saved:
                np.copyto(array, before)

    def _timed(self, text: str, step: Step, seconds: float) -> Timed:
        calls = 1
        while True:
            start = perf_counter()
            for _ in range(calls):
                step()
            took = perf_counter() - start
            if took > seconds / 4:
                return Timed(text, took / calls, 0, 0)
            calls *= 4

    # ------------------------------------------------------------ arrays
    def _flat(self, place: Place, dtype: Any, size: int) -> Array:
        """The elements from a place on."""
        key = (
            place.kind,
            place.source if isinstance(place.source, int) else id(place.source),
            place.offset,
            dtype,
            size,
        )
        if key not in self._made:
            self._made[key] = self._elements(place, dtype, size)
        return self._made[key]

    def _elements(self, place: Place, dtype: Any, size: int) -> Array:
        first = place.offset // dtype.itemsize
        if place.kind == "arena":
            return self._arena[place.offset : place.offset + size * dtype.itemsize].view(dtype)
        if place.kind == "constant":
            return place.source.reshape(-1)[first : first + size]
        if place.kind == "result":
            return self._outs[place.source].reshape(-1)[first : first + size]
        if place.kind == "argument":
            whole = self._made.setdefault(
                ("argument", place.source, dtype), np.empty(self._length(place.source), dtype)
            )
            return whole[first : first + size]
        return _memory(place, dtype, size)

    def _length(self, argument: int) -> int:
        return next(v.size for v in self.plan.places if v.kind == "argument" and v.source == argument)

    def _operand(self, view: View) -> Array:
        """What a node reads, with an axis of length 1 where it repeats itself."""
        value = view.value
        if value.kind == "number":
            return value.dtype.type(value.source)
        lengths = [n if t else 1 for n, t in zip(view.space, (view.row, view.column), strict=True)]
        return self._strided(view, (view.row, view.column), lengths)

    def _strided(self, view: View, strides: Sequence[int], shape: Sequence[int]) -> Array:
        reach = [(n - 1) * t for n, t in zip(shape, strides, strict=True)]
        low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + 1
        place = self.plan.place(view._replace(offset=view.offset + low))
        flat = self._flat(place, view.value.dtype, high - low if all(shape) else 0)
        steps = [t * view.value.dtype.itemsize for t in strides]
        return np.lib.stride_tricks.as_strided(flat[-low:], shape, steps)

    def _target(self, node: Node) -> Array:
        return self._flat(self.plan.places[node.out], node.out.dtype, node.out.size).reshape(node.out.home)

    # ------------------------------------------------------------ steps
    def _step(self, text: str, step: Step) -> None:
        self._steps.append(step)
        self._lines.append(text)

    def _copy(self, out: Array, x: Array) -> None:
        self._step(f"copyto {_shown(out)} {_shown(x)}", partial(np.copyto, out, x, casting="unsafe"))

    def _add(self, node: Node) -> None:
        if node.op == "pack" or 0 in node.space:
            return
        if node.op == "call":
            self._call(node)
            return
        operands = [self._operand(v) for v in node.operands]
        out = self._target(node)
        what, _, how = node.op.partition("_")
        text = f"{node.op} {' '.join(map(_shown, operands))} -> {_shown(out)}"
        if node.op in _UFUNCS:
            ufunc = _UFUNCS[node.op]
            self._step(text, partial(ufunc, *operands, out=out))
        elif node.op in ("copy", "cast", "transpose"):
            self._copy(out, operands[0])
        elif node.op == "where":
            self._step(text, lambda: np.copyto(out, np.where(*operands)))
        elif node.op == "gemm":
            self._step(text, partial(np.dot, *operands, out))
        elif node.op == "check":
            (wrong,) = operands
            self._step(text, lambda: not wrong.any())
        elif what in ("row", "col") and how in _REDUCE:
            self._reduce(node, operands[0], out, what, how, text)
        else:
            kernel = getattr(self.namespace, node.op)
            self._step(text, lambda: np.copyto(out, kernel(*operands)))

    def _reduce(self, node: Node, x: Array, out: Array, what: str, how: str, text: str) -> None:
        x = np.broadcast_to(x, node.space)
        axis = 1 if what == "row" else 0
        flat = out.reshape(-1)
        if how == "sum" and what == "col" and node.out.dtype.kind == "f" and x.flags.c_contiguous:
            row = ones(node.space[0], node.out.dtype)  # as a product: 0.8 µs where add.reduce takes 2.9
            self._step(text, partial(row.dot, x, flat))
            return
        reduce = _REDUCE[how]
        self._step(text, partial(reduce, x, axis=axis, out=flat))

    def _call(self, node: Node) -> None:
        name, settings, geometry, shape = node.settings
        kernel = getattr(self.namespace, name)
        operands = [
            np.full(g[1], v.value.source, v.value.dtype) if v.value.kind == "number" else self._strided(v, *g)
            for v, g in zip(node.operands, geometry, strict=True)
        ]
        text = f"{name} {' '.join(map(_shown, operands))}"
        if shape is None:
            self._written += operands
            self._step(text, partial(kernel, *operands, **settings))
            return
        out = self._target(node).reshape(shape)
        self._step(text, lambda: np.copyto(out, kernel(*operands, **settings)))


def _shown(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _memory(place: Place, dtype: Any, size: int) -> Array:
    """An array over bound memory, which it keeps alive."""
    import ctypes

    low, owner = place.source
    raw = (ctypes.c_char * (size * dtype.itemsize)).from_address(low + place.offset)
    raw._owner = owner
    return np.frombuffer(raw, dtype)


@final
class Generator(CodeGenerator):
    """Programs of NumPy calls."""

    fuses = False
    opens_updates = False
    items = frozenset({"gemm"})

    def tasks(self, graph: Graph) -> int:
        """One."""
        return 1

    def generate(self, plan: Plan, namespace: Any) -> Executable:
        """Make the calls; what the recorded run has left in the pool goes."""
        trim()
        return StraightLine(plan, namespace)
