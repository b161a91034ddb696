"""Lowering: from a trace's equations to nodes over rows and columns.

`Lowering` is one more `xp`: primitives that have an implementation in terms of others run it on symbols, arrays that
are not computed yet, so composite operations need nothing here. On the way views vanish into strides, numbers are
folded, common subexpressions are shared (each node is kept by what it computes), a broadcast sinks below the operations
on it, and matrix products with a tiny inner length become element-wise sums. What has no form as nodes becomes a `call`
of the primitive's own kernel.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import ARRAY
from gradflow.compiler.bound import Bound
from gradflow.compiler.graph import (
    COMPARISONS,
    ELEMENTWISE,
    LOGIC,
    TESTS,
    Graph,
    Node,
    Space,
    Store,
    Value,
    View,
    without_dead_code,
)
from gradflow.compiler.symbols import (
    Shape,
    Symbol,
    UnsupportedError,
    broadcast,
    contiguous,
    is_dense,
    is_packed,
    memory_order,
    merged,
    merged_or_none,
    reshaped,
    split,
    squeezed,
)
from gradflow.errors import GradflowError
from gradflow.ops import update
from gradflow.ops.axes import kept_shape
from gradflow.primitive import REGISTRY

# ---------------------------------------------------------------- what is computed element by element
_FLOAT_ONLY = {"divide", "exp", "log", "log1p", "sqrt", "tanh", "sigmoid", "erf", "floor", "power", "remainder"}
_BOOL = np.dtype(np.bool_)
_KINDS = ("f", "i", "u", "b")

_EVALUATE: dict[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "negative": np.negative,
    "square": np.square, "sqrt": np.sqrt, "maximum": np.maximum, "minimum": np.minimum, "equal": np.equal,
    "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal, "greater": np.greater,
    "greater_equal": np.greater_equal, "exp": np.exp, "log": np.log, "power": np.power,
}  # fmt: skip
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "equal": operator.eq, "not_equal": operator.ne, "less": operator.lt, "less_equal": operator.le,
    "greater": operator.gt, "greater_equal": operator.ge,
}  # fmt: skip


class Lowering:
    """`xp` on symbols: what a rule or an implementation asks of it becomes nodes.

    Args:
        namespace: the backend's namespace on raw arrays; it says what shape a `call` gives.
        thin: inner lengths up to it make no matrix product but sums of products.
        share: whether common subexpressions are computed once.
        open_updates: whether optimizers' rules become nodes; otherwise the backend's own kernel is called.
        items: operations beside loops that become nodes; the others become calls.
    """

    def __init__(
        self,
        namespace: Any,
        *,
        thin: int = 4,
        share: bool = True,
        open_updates: bool = True,
        items: frozenset[str] = frozenset({"gemm"}),
    ) -> None:
        self.namespace, self.thin, self.share = namespace, thin, share
        self.open_updates, self.items = open_updates, items
        self.graph = Graph()
        self.memo: dict[Any, Value] = {}
        self.memory = Bound(self)
        self.checks: list[Node] = []
        self.site = ""

    def __getattr__(self, name: str) -> Any:
        if name not in REGISTRY:
            raise AttributeError(name)
        return lambda *operands, **settings: self.apply(name, operands, settings)

    def apply(self, name: str, operands: Sequence[Any], settings: dict[str, Any]) -> Symbol:
        """Lower one operation."""
        symbols = [self.symbol(operand, operands) for operand in operands]
        if name in ELEMENTWISE and name != "copy":
            return self.elementwise(name, *symbols)
        special = getattr(self, f"lower_{name}", None)
        if special is not None:
            return special(*symbols, **settings)  # type: ignore[no-any-return]
        prim = REGISTRY[name]
        if prim.impl is not None:
            return self.symbol(prim.impl(self, *symbols, **settings), symbols)
        return self.call(name, symbols, settings)

    # ------------------------------------------------------------ symbols
    def symbol(self, operand: Any, among: Sequence[Any] = ()) -> Symbol:
        """An operand as a symbol; a Python number takes the dtype of the others."""
        if isinstance(operand, Symbol):
            return operand
        if isinstance(operand, np.ndarray) and operand.ndim:
            return self.constant(operand)
        if isinstance(operand, np.generic | np.ndarray):
            return self.number(operand.item(), operand.dtype)
        others = [s.dtype for s in among if isinstance(s, Symbol)]
        return self.number(operand, np.result_type(*others, operand) if others else np.result_type(operand))

    def number(self, number: Any, dtype: np.dtype[Any]) -> Symbol:
        """A number known now."""
        return Symbol(self, Value(dtype, (1, 1), "number", dtype.type(number).item()), 0, (), ())

    def constant(self, array: np.ndarray[Any, Any]) -> Symbol:
        """An array known now."""
        held = np.ascontiguousarray(array)
        value = Value(held.dtype, (1, held.size), "constant", held)
        return self.dense(value, array.shape)

    def dense(self, value: Value, shape: Shape) -> Symbol:
        """A value seen in a shape, row-major."""
        return Symbol(self, value, 0, contiguous(shape), shape)

    def new(self, op: str, operands: list[View], home: Space, space: Space, dtype: Any, settings: Any = None) -> Value:
        """The value of a node; one that is computed already is not computed again."""
        key = (op, dtype, home, space, *(view.key for view in operands)) if settings is None and self.share else None
        if key is not None and key in self.memo:
            return self.memo[key]
        value = Value(np.dtype(dtype), home, "node")
        node = Node(op, operands, value, space, len(self.graph.nodes), settings, self.site)
        value.source = node
        self.graph.nodes.append(node)
        self.graph.made.append(node)
        if key is not None:
            self.memo[key] = value
        return value

    # ------------------------------------------------------------ element by element
    def elementwise(self, op: str, *operands: Any, dtype: Any = None) -> Symbol:
        """One operation on each element, with broadcasting; the result has `dtype`, by default the common one."""
        certain = _certain(op, operands)
        if certain is not None:
            shape = np.broadcast_shapes(*(o.shape for o in operands if isinstance(o, Symbol)))
            return self.number(certain, _BOOL).at(0, (0,) * len(shape), shape)
        symbols = [self.symbol(operand, operands) for operand in operands]
        symbols, out = self._typed(op, symbols, dtype)
        shape = np.broadcast_shapes(*(s.shape for s in symbols))
        if not math.prod(shape):
            return self.constant(np.empty(shape, out))
        if all(s.is_number for s in symbols):
            folded = self._folded(op, symbols, out)
            if folded is not None:
                return folded.at(0, (0,) * len(shape), shape)
        op, symbols, same = self._simplified(op, symbols, out)
        if same is not None:
            return broadcast(same, shape)
        symbols = [broadcast(s, shape) for s in symbols]
        return self._over_rows_and_columns(op, symbols, shape, out)

    def _typed(self, op: str, symbols: list[Symbol], dtype: Any) -> tuple[list[Symbol], np.dtype[Any]]:
        """The operands in one dtype, and the dtype of the result."""
        if op == "cast":
            return symbols, np.dtype(dtype)
        if op == "where":
            condition, *rest = symbols
            if condition.dtype != _BOOL:
                condition = self.elementwise("not_equal", condition, 0)
            rest, out = self._common(rest)
            return [condition, *rest], out
        if op in LOGIC:
            return [s if s.dtype == _BOOL else self.elementwise("not_equal", s, 0) for s in symbols], _BOOL
        if op in TESTS:
            return symbols, _BOOL
        symbols, out = self._common(symbols)
        if out.kind not in _KINDS or op in _FLOAT_ONLY and out.kind != "f":
            raise UnsupportedError(f"{op} of {out}")
        return symbols, _BOOL if op in COMPARISONS else out

    def _common(self, symbols: list[Symbol]) -> tuple[list[Symbol], np.dtype[Any]]:
        strong = [s.dtype for s in symbols if not s.is_number] or [s.dtype for s in symbols]
        out = np.result_type(*strong)
        if out.kind != "f" and any(s.is_number and s.dtype.kind == "f" for s in symbols):
            out = np.result_type(out, *(s.dtype for s in symbols))
        return [self.cast(s, out) for s in symbols], out

    def cast(self, s: Symbol, dtype: np.dtype[Any]) -> Symbol:
        """A symbol in another dtype."""
        if s.dtype == dtype:
            return s
        if s.is_number:
            return self.number(s.value.source, dtype).at(0, s.strides, s.shape)
        return self.elementwise("cast", s, dtype=dtype)

    def _folded(self, op: str, symbols: list[Symbol], out: np.dtype[Any]) -> Symbol | None:
        if op not in _EVALUATE:
            return None
        with np.errstate(all="ignore"):
            return self.number(_EVALUATE[op](*(s.dtype.type(s.value.source) for s in symbols)), out)

    def _simplified(
        self, op: str, symbols: list[Symbol], out: np.dtype[Any]
    ) -> tuple[str, list[Symbol], Symbol | None]:
        """The operation in its simplest form; or the operand that it gives unchanged."""
        a, b = symbols[0], symbols[-1]
        first, last = (s.value.source if s.is_number else None for s in (a, b))
        if op == "cast" and a.dtype == out:
            return op, symbols, a
        if op == "multiply" and first == 1 or op == "add" and first == 0:
            return op, symbols, b
        if op in ("multiply", "divide") and last == 1 or op in ("add", "subtract") and last == 0:
            return op, symbols, a
        if op == "divide" and last is not None and math.frexp(abs(last) or 0.3)[0] == 0.5:
            return "multiply", [a, self.number(1 / last, out)], None  # by a power of two: exact
        if op == "square":
            return "multiply", [a, a], None
        if op == "power" and last == 2:
            return "multiply", [a, a], None
        if op == "power" and last == -1:
            return "divide", [self.number(1, out), a], None
        return op, symbols, None

    def _over_rows_and_columns(self, op: str, symbols: list[Symbol], shape: Shape, out: Any) -> Symbol:
        """Emit the node in the smallest space in which its operands differ, its axes in the order of their memory."""
        axes = [i for i, n in enumerate(shape) if n > 1 and any(s.strides[i] for s in symbols)]
        axes = memory_order(axes, symbols, shape)
        lengths = [shape[i] for i in axes]
        strides = [[s.strides[i] for i in axes] for s in symbols]
        cut, fits = split(lengths, strides)
        symbols = [s if fit else self._rearranged(s, axes, shape) for s, fit in zip(symbols, fits, strict=True)]
        strides = [[s.strides[i] for i in axes] for s in symbols]
        space = math.prod(lengths[:cut]), math.prod(lengths[cut:])
        views = [
            View(s.value, s.offset, merged(lengths[:cut], t[:cut]), merged(lengths[cut:], t[cut:]), space)
            for s, t in zip(symbols, strides, strict=True)
        ]
        value = self.new(op, views, space, space, out)
        found = dict(zip(axes, contiguous(lengths), strict=True))
        return Symbol(self, value, 0, tuple(found.get(i, 0) for i in range(len(shape))), shape)

    def _rearranged(self, s: Symbol, axes: list[int], shape: Shape) -> Symbol:
        """A symbol whose strides do not merge, copied into the order of the loop's axes, which then merge."""
        lengths = tuple(shape[i] for i in axes)
        copied = self.strided_copy(s.at(s.offset, [s.strides[i] for i in axes], lengths))
        found = dict(zip(axes, contiguous(lengths), strict=True))
        return copied.at(0, [found.get(i, 0) for i in range(len(shape))], shape)

    def materialised(self, s: Symbol) -> Symbol:
        """The symbol as a dense value of its own in the order of its axes."""
        if s.value.kind != "number" and is_dense(s):
            return s
        lengths, strides = squeezed(s.shape, s.strides)
        cut, (fits,) = split(lengths, [strides])
        if not fits:
            return self.strided_copy(s)
        space = math.prod(lengths[:cut]), math.prod(lengths[cut:])
        view = View(
            s.value, s.offset, merged(lengths[:cut], strides[:cut]), merged(lengths[cut:], strides[cut:]), space
        )
        return self.dense(self.new("copy", [view], space, space, s.dtype), s.shape)

    # ------------------------------------------------------------ views
    def lower_astype(self, x: Symbol, *, dtype: Any) -> Symbol:
        return self.cast(x, np.dtype(dtype))

    def lower_copy(self, x: Symbol) -> Symbol:
        return x  # values never change

    lower_alias = lower_positive = lower_copy

    def lower_reshape(self, x: Symbol, *, shape: Shape) -> Symbol:
        if shape == x.shape:
            return x
        strides = reshaped(x.shape, x.strides, shape)
        if strides is None:
            x = self.materialised(x)
            strides = contiguous(shape)
        return x.at(x.offset, strides, shape)

    def lower_broadcast_to(self, x: Symbol, *, shape: Shape) -> Symbol:
        return broadcast(x, shape)

    def lower_permute_dims(self, x: Symbol, *, axes: Shape) -> Symbol:
        return x.at(x.offset, [x.strides[a] for a in axes], [x.shape[a] for a in axes])

    def lower_matrix_transpose(self, x: Symbol) -> Symbol:
        n = x.ndim
        return self.lower_permute_dims(x, axes=(*range(n - 2), n - 1, n - 2))

    def lower_basic_index(self, x: Symbol, *, key: tuple[Any, ...]) -> Symbol:
        offset, strides, shape = x.offset, list[int](), list[int]()
        missing = x.ndim - sum(part is not None and part is not Ellipsis for part in key)
        axis = 0
        for part in key if Ellipsis in key else (*key, Ellipsis):
            if part is None:
                strides.append(0)
                shape.append(1)
            elif part is Ellipsis:
                strides += x.strides[axis : axis + missing]
                shape += x.shape[axis : axis + missing]
                axis += missing
            elif isinstance(part, slice):
                start, stop, step = part.indices(x.shape[axis])
                shape.append(len(range(start, stop, step)))
                strides.append(x.strides[axis] * step)
                offset += start * x.strides[axis] if shape[-1] else 0
                axis += 1
            else:
                offset += (part % x.shape[axis]) * x.strides[axis]
                axis += 1
        return x.at(offset, strides, shape)

    # ------------------------------------------------------------ reductions
    def lower_sum(self, x: Symbol, *, axis: Shape, keepdims: bool) -> Symbol:
        if x.dtype.kind in "bi" and x.dtype.itemsize < 8:
            x = self.cast(x, np.dtype(np.int64))
        if x.dtype.kind == "u" and x.dtype.itemsize < 8:
            x = self.cast(x, np.dtype(np.uint64))
        return self.reduce("sum", x, axis, keepdims)

    def lower_max(self, x: Symbol, *, axis: Shape, keepdims: bool) -> Symbol:
        return self.reduce("max", x, axis, keepdims)

    def lower_min(self, x: Symbol, *, axis: Shape, keepdims: bool) -> Symbol:
        return self.reduce("min", x, axis, keepdims)

    def reduce(self, what: str, x: Symbol, axis: Shape, keepdims: bool) -> Symbol:
        """A sum or an extreme over axes."""
        if x.size == 0 or x.dtype == _BOOL:
            return self.call(what, [x], {"axis": axis, "keepdims": keepdims})
        shape = kept_shape(x.shape, axis)
        repeated = math.prod(x.shape[a] for a in axis if x.strides[a] == 0)
        reduced = [a for a in axis if x.shape[a] > 1 and x.strides[a]]
        kept = [a for a in range(x.ndim) if a not in axis and x.shape[a] > 1 and x.strides[a]]
        x = x.at(x.offset, [0 if x.shape[a] == 1 else t for a, t in enumerate(x.strides)], x.shape)
        out = self._reduced(what, x, kept, reduced) if reduced else x
        strides = [0 if a in axis else t for a, t in enumerate(out.strides)]
        out = out.at(out.offset, strides, shape)
        if what == "sum" and repeated > 1:
            out = self.elementwise("multiply", out, self.number(repeated, x.dtype))
        if keepdims:
            return out
        left = [a for a in range(x.ndim) if a not in axis]
        return out.at(out.offset, [out.strides[a] for a in left], [out.shape[a] for a in left])

    def _reduced(self, what: str, x: Symbol, kept: list[int], reduced: list[int]) -> Symbol:
        """Reduce along rows or along columns, whichever the strides allow; all of a matrix, one after the other."""

        def by_stride(axes: list[int]) -> list[int]:
            return sorted(axes, key=lambda a: -abs(x.strides[a]))

        if not kept and len(reduced) > 1:
            *rows, last = by_stride(reduced)
            return self._reduced(what, self._reduced(what, x, rows, [last]), [], rows)
        kept, reduced = by_stride(kept), by_stride(reduced)
        lengths, strides = list(x.shape), list(x.strides)

        def merged(axes: list[int]) -> int | None:
            return merged_or_none([lengths[a] for a in axes], [strides[a] for a in axes])

        of_kept, of_reduced = merged(kept), merged(reduced)
        if of_kept is None or of_reduced is None:
            return self._reduced(what, self._rearranged(x, kept + reduced, x.shape), kept, reduced)
        n_kept, n_reduced = (math.prod(lengths[a] for a in axes) for axes in (kept, reduced))
        along_rows = of_reduced == 1 or of_kept != 1
        if along_rows:
            space = n_kept, n_reduced
            view = View(x.value, x.offset, of_kept, of_reduced, space)
            value = self.new(f"row_{what}", [view], (n_kept, 1), space, x.dtype)
        else:
            space = n_reduced, n_kept
            view = View(x.value, x.offset, of_reduced, of_kept, space)
            value = self.new(f"col_{what}", [view], (1, n_kept), space, x.dtype)
        found = dict(zip(kept, contiguous([lengths[a] for a in kept]), strict=True))
        shape = tuple(n if a in kept else 1 if a in reduced else n for a, n in enumerate(x.shape))
        return Symbol(self, value, 0, tuple(found.get(a, 0) for a in range(x.ndim)), shape)

    # ------------------------------------------------------------ matrices
    def lower_matmul(self, x: Symbol, y: Symbol) -> Symbol:
        x, y = self._common([x, y])[0]
        if x.dtype.kind != "f" or not x.size or not y.size:
            return self.call("matmul", [x, y], {})
        if x.ndim > 2 and y.ndim == 2:
            rows = self.lower_matmul(self.lower_reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1])), y)
            return self.lower_reshape(rows, shape=(*x.shape[:-1], y.shape[1]))
        if x.ndim != 2 or y.ndim != 2:
            return self._batch_gemm(x, y)
        (rows_, inner), columns = x.shape, y.shape[1]
        if inner <= self.thin:
            return self._sum_of_products(x, y)
        if self.thin and columns == 1 and x.strides[1] == 1:
            return self.reduce("sum", x * self.lower_matrix_transpose(y), (1,), True)
        if self.thin and columns == 1 and x.strides[0] == 1:
            return self.lower_matrix_transpose(self.reduce("sum", self.lower_matrix_transpose(x) * y, (0,), True))
        if rows_ <= self.thin and y.strides[1] == 1:
            return self._few_rows(x, y)
        if columns <= self.thin and x.strides[0] == 1:
            return self.lower_matrix_transpose(self._few_rows(*map(self.lower_matrix_transpose, (y, x))))
        return self._gemm(x, y)

    def _sum_of_products(self, x: Symbol, y: Symbol) -> Symbol:
        """Σₖ xₖ yₖ over columns of x and rows of y: a tiny inner length is faster as element-wise sums."""
        (rows, inner), columns = x.shape, y.shape[1]
        total: Symbol | None = None
        for k in range(inner):
            column = x.at(x.offset + k * x.strides[1], (x.strides[0], 0), (rows, columns))
            row = y.at(y.offset + k * y.strides[0], (0, y.strides[1]), (rows, columns))
            total = column * row if total is None else total + column * row
        assert total is not None
        return total

    def _few_rows(self, x: Symbol, y: Symbol) -> Symbol:
        """A few rows of a product, each the sum of y's rows weighted by a row of x: one pass over y for all of them."""
        (rows, inner), columns = x.shape, y.shape[1]
        parts = []
        for m in range(rows):
            weights = x.at(x.offset + m * x.strides[0], (x.strides[1], 0), (inner, columns))
            parts.append(self.materialised(self.reduce("sum", weights * y, (0,), True)))
        if rows == 1:
            return parts[0]
        views = [View(p.value, 0, 0, 1 if columns > 1 else 0, (1, columns)) for p in parts]
        if len({p.value for p in parts}) < rows or any(p.value.kind != "node" or p.value.part_of for p in parts):
            return self._gemm(x, y)
        packed = self.new("pack", views, (rows, columns), (rows, columns), x.dtype, settings=())
        for m, p in enumerate(parts):
            p.value.part_of = packed, m * columns
        return self.dense(packed, (rows, columns))

    def _gemm(self, x: Symbol, y: Symbol) -> Symbol:
        if "gemm" not in self.items:
            return self.call("matmul", [x, y], {})
        x, y = self._matrix(x), self._matrix(y)
        a = View(x.value, x.offset, x.strides[0], x.strides[1], (x.shape[0], x.shape[1]))
        b = View(y.value, y.offset, y.strides[0], y.strides[1], (y.shape[0], y.shape[1]))
        space = x.shape[0], y.shape[1]
        return self.dense(self.new("gemm", [a, b], space, space, x.dtype), space)

    def _batch_gemm(self, x: Symbol, y: Symbol) -> Symbol:
        """A product for each pair of matrices in two stacks."""
        if "batch_gemm" not in self.items:
            return self.call("matmul", [x, y], {})
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        stacks = [self._stack(broadcast(s, (*batch, *s.shape[-2:]))) for s in (x, y)]
        (rows, inner), columns = x.shape[-2:], y.shape[-1]
        count = math.prod(batch)
        views = [View(s.value, s.offset, 0, 0, (0, 0)) for s in stacks]
        steps = [(merged(*squeezed(batch, s.strides[:-2])), *s.strides[-2:]) for s in stacks]
        settings = count, rows, inner, columns, *steps
        space = count, rows * columns
        value = self.new("batch_gemm", views, space, space, x.dtype, settings)
        return self.dense(value, (*batch, rows, columns))

    def _stack(self, s: Symbol) -> Symbol:
        """A stack of matrices that BLAS can read, one at a constant distance from the other."""
        (rows, columns), (row, column) = s.shape[-2:], s.strides[-2:]
        readable = column == 1 and row >= columns or row == 1 and column >= rows
        if not s.is_number and readable and merged_or_none(*squeezed(s.shape[:-2], s.strides[:-2])) is not None:
            return s
        return self.strided_copy(s) if s.is_number or not is_dense(s) or not readable else s

    def _matrix(self, s: Symbol) -> Symbol:
        """A matrix that BLAS can read: one stride is 1, the other at least the length of that axis."""
        (rows, columns), (row, column) = s.shape, s.strides
        if not s.is_number and (column == 1 and row >= columns or row == 1 and column >= rows):
            return s
        return self.materialised(s)

    # ------------------------------------------------------------ choosing by index
    def lower_one_hot(self, labels: Symbol, *, classes: int, dtype: Any) -> Symbol:
        """Compare with 0…classes−1; that every label is one of them is checked before anything is stored."""
        number = self.cast(labels, np.dtype(np.int64))
        self.check((number < 0) | (number >= classes))
        columns = number.at(number.offset, (*number.strides, 0), (*number.shape, 1))
        return self.cast(columns == self.constant(np.arange(classes)), np.dtype(dtype))

    def check(self, wrong: Symbol) -> None:
        """Have the program stop, before it stores anything, where an element is true."""
        if wrong.size == 0:
            return
        axes = tuple(range(wrong.ndim))
        any_ = self.materialised(self.reduce("max", self.cast(wrong, np.dtype(np.int64)), axes, False))
        if any_.is_number and not any_.value.source:
            return
        view = View(any_.value, any_.offset, 0, 0, (1, 1))
        value = self.new("check", [view], (1, 1), (1, 1), np.dtype(np.int64))
        node = value.node
        if node is not None and node not in self.checks:
            self.checks.append(node)

    def lower_row_index(self, indices: Symbol, *, rows: int) -> Symbol:
        index = self.cast(indices, np.dtype(np.int64))
        self.check((index < 0) | (index >= rows))
        return index

    def lower_gather(self, x: Symbol, *indices: Symbol, key: tuple[Any, ...]) -> Symbol:
        if key != (ARRAY,) or "gather" not in self.items or not x.size or not indices[0].size:
            return self.call("gather", [x, *indices], {"key": key})
        index, column = self._rows_chosen(indices[0], x.shape[0])
        width = math.prod(x.shape[1:])
        table = self.materialised(self.lower_reshape(x, shape=(x.shape[0], width)))
        view = View(table.value, table.offset, width, 1, (x.shape[0], width))
        space = index.size, width
        value = self.new("gather", [view, column], space, space, x.dtype, settings=x.shape[0])
        return self.dense(value, (*index.shape, *x.shape[1:]))

    def lower_scatter_add(self, x: Symbol, *indices: Symbol, shape: Shape, key: tuple[Any, ...]) -> Symbol:
        if key != (ARRAY,) or "scatter" not in self.items or not x.size or not indices[0].size:
            return self.call("scatter_add", [x, *indices], {"shape": shape, "key": key})
        index, column = self._rows_chosen(indices[0], shape[0])
        width = math.prod(shape[1:])
        rows = self.materialised(self.lower_reshape(x, shape=(index.size, width)))
        view = View(rows.value, rows.offset, width, 1, (index.size, width))
        space = shape[0], width
        return self.dense(self.new("scatter", [view, column], space, space, x.dtype, settings=index.size), shape)

    def _rows_chosen(self, indices: Symbol, rows: int) -> tuple[Symbol, View]:
        """Indices counted from the front, checked, as a symbol and as a column."""
        index = self.cast(indices, np.dtype(np.int64))
        self.check((index < -rows) | (index >= rows))
        index = self.materialised(self.elementwise("where", index < 0, index + rows, index))
        return index, View(index.value, index.offset, 1, 0, (index.size, 1))

    def lower_random_uniform(self, state: Symbol, *, shape: Shape, dtype: Any) -> Symbol:
        if "uniform" not in self.items or not math.prod(shape) or state.strides != (1,):
            return self.call("random_uniform", [state], {"shape": shape, "dtype": dtype})
        columns = shape[-1] if shape and shape[-1] % 4 == 0 else math.prod(shape)  # a block is four numbers of a row
        space = math.prod(shape) // columns, columns
        view = View(state.value, state.offset, 0, 1, (1, 2))
        return self.dense(self.new("uniform", [view], space, space, np.dtype(dtype), settings="draw"), shape)

    def strided_copy(self, s: Symbol) -> Symbol:
        """The elements of a view of many axes, one after the other."""
        if "strided_copy" not in self.items or s.is_number:
            return self.call("copy", [s], {})
        lengths, strides = squeezed(s.shape, s.strides)
        view = View(s.value, s.offset, 0, 0, (0, 0))
        space = 1, s.size
        if not lengths:
            lengths, strides = [1], [1]  # one element: the kernel's inner loop needs an axis
        return self.dense(self.new("strided_copy", [view], space, space, s.dtype, (lengths, strides)), s.shape)

    # ------------------------------------------------------------ anything else
    def call(self, name: str, symbols: Sequence[Symbol], settings: dict[str, Any]) -> Symbol:
        """A primitive's own kernel, on arrays; its shape is found by running it on zeros."""
        if REGISTRY[name].writes:
            raise UnsupportedError(name)
        arguments = [np.zeros(s.shape, s.dtype) for s in symbols]
        if name == "nonzero_index":
            raise UnsupportedError(name)
        try:
            with np.errstate(all="ignore"):
                out = np.asarray(getattr(self.namespace, name)(*arguments, **settings))
        except (ValueError, IndexError, GradflowError) as error:
            raise UnsupportedError(f"{name}: {error}") from error
        reads = [View(s.value, s.offset, 0, 0, (0, 0)) for s in symbols]
        geometry = [(s.strides, s.shape) for s in symbols]
        value = self.new("call", reads, (1, out.size), (1, out.size), out.dtype, (name, settings, geometry, out.shape))
        return self.dense(value, out.shape)

    # ------------------------------------------------------------ what is written
    def write(self, name: str, symbols: Sequence[Symbol], settings: dict[str, Any]) -> None:
        """Lower an update: compute what its first operands will hold."""
        prim = REGISTRY[name]
        if name in update.RULES and self.open_updates:
            self._flat_update(name, symbols, settings)
        elif name in update.RULES:
            self._called_update(name, symbols, settings)
        elif name == "assign":
            self._store(symbols[0], symbols[1])
        elif name == "assign_index":
            self._assign_index(symbols[0], symbols[1], symbols[2:], settings["key"])
        elif name == "advance":
            counter = self.lower_basic_index(symbols[0], key=(1,))
            self._store(counter, self.memory.load(counter) + self.number(settings["blocks"], counter.dtype))
        elif prim.impl is not None:
            current = [self.memory.load(s) for s in symbols]
            for old, value in zip(symbols, prim.impl(self, *current, **settings), strict=False):
                self._store(old, value)
        else:
            raise UnsupportedError(name)

    def _called_update(self, name: str, symbols: Sequence[Symbol], settings: dict[str, Any]) -> None:
        """An optimizer's rule by the backend's kernel, which writes where its operands lie."""
        writes = REGISTRY[name].writes
        operands = [*symbols[:writes], *(self.memory.load(s) for s in symbols[writes:])]
        reads = [View(s.value, s.offset, 0, 0, (0, 0)) for s in operands]
        geometry = [(s.strides, s.shape) for s in operands]
        for written in symbols[:writes]:
            self.memory.close(written)
        done = self.new("call", reads, (1, 1), (1, 1), _BOOL, (name, settings, geometry, None))
        assert done.node is not None
        self.graph.updates.append(done.node)

    def rewritten(self, name: str, old: Symbol, operands: Sequence[Symbol], settings: dict[str, Any]) -> Symbol:
        """What a computed value is after a write into it: another value."""
        new = self.cast(operands[0], old.dtype) if operands else old
        if name == "assign":
            return broadcast(new, old.shape)
        if name == "assign_index":
            return self.call("index_update", [old, new, *operands[1:]], {"key": settings["key"]})
        raise UnsupportedError(f"{name} of a computed value")

    def _store(self, target: Symbol, value: Symbol) -> None:
        self.memory.store(target, broadcast(self.cast(value, target.dtype), target.shape))

    def _assign_index(self, x: Symbol, value: Symbol, indices: Sequence[Symbol], key: tuple[Any, ...]) -> None:
        if not indices and ARRAY not in key:
            target = self.lower_basic_index(x, key=key)
            if is_packed(target):
                self._store(target, value)
                return
        current = self.memory.load(x)
        self._store(x, self.call("index_update", [current, self.cast(value, x.dtype), *indices], {"key": key}))

    def _flat_update(self, name: str, symbols: Sequence[Symbol], settings: dict[str, Any]) -> None:
        """An optimizer's rule, for each parameter by itself: the pieces of the flat buffers in the gradient's order."""
        prim = REGISTRY[name]
        slots = len(prim.operands) - 3  # param and moments; then step, hyper, gradients
        buffers, (step, hyper), grads = symbols[:slots], symbols[slots : slots + 2], symbols[slots + 2 :]
        own = {key: value for key, value in settings.items() if key != "turned"}
        numbers = [self.memory.load(self.lower_basic_index(hyper, key=(i,))) for i in range(hyper.shape[0])]
        made = self.memory.load(self.lower_basic_index(step, key=(0,)))
        start = 0
        for g, turn in zip(grads, settings["turned"], strict=True):
            g = self.lower_matrix_transpose(g) if turn else g
            pieces = [b.at(b.offset + start, contiguous(g.shape), g.shape) for b in buffers]
            new = update.RULES[name](self, *(self.memory.load(p) for p in pieces), made, numbers, g, **own)
            for old, value in zip(pieces, new, strict=True):
                self._store(old, value)
            start += g.size
        self._store(step, update.COUNTS[name](self, self.memory.load(step), numbers))


# ---------------------------------------------------------------- the whole trace
def _certain(op: str, operands: Sequence[Any]) -> bool | None:
    """What comparing integers with a Python number beyond their dtype gives for every element; None if there is none.

    Labels of uint8 are compared with an `ignore_index` of −100, for instance.
    """
    dtypes = [operand.dtype for operand in operands if isinstance(operand, Symbol)]
    numbers = [operand for operand in operands if type(operand) is int]
    if op not in _COMPARE or not dtypes or not numbers or dtypes[0].kind not in "iu":
        return None
    limits = np.iinfo(dtypes[0])
    if limits.min <= numbers[0] <= limits.max:
        return None
    x, y = (operand if type(operand) is int else 0 for operand in operands)
    return _COMPARE[op](x, y)


def lower(trace: Any, namespace: Any, **settings: Any) -> Graph:
    """Lower a trace; the settings are those of `Lowering`.

    Raises:
        UnsupportedError: it does something that has no lowered form.
    """
    made = Lowering(namespace, **settings)
    try:
        return _lowered(made, trace, namespace)
    except UnsupportedError:
        made.graph.dissolve()
        raise
    finally:
        del made.memory  # which refers to its lowering


def _lowered(made: Lowering, trace: Any, namespace: Any) -> Graph:
    created = set(getattr(trace, "created", ()))
    bound = {variable: array for variable, array in trace.bound.items() if variable not in created}
    symbols = made.memory.bind(bound, namespace.backend.extent)
    for i, variable in enumerate(trace.arguments):
        shape, dtype = trace.facts[variable]
        symbols[variable] = made.dense(Value(np.dtype(dtype), (1, max(math.prod(shape), 1)), "argument", i), shape)
    sites = getattr(trace, "sites", None) or [""] * len(trace.equations)
    written = {e.operands[i] for e in trace.equations for i in range(e.primitive.writes)}
    for variable in created:
        array = trace.bound[variable]
        if array.size == 1 and variable not in written:
            symbols[variable] = made.number(array.item(), array.dtype).at(0, (0,) * array.ndim, array.shape)
        else:
            symbols[variable] = made.constant(array.copy())

    views = set(symbols)  # variables that are views of memory, and show what is written there

    def read(variable: int) -> Symbol:
        return made.memory.load(symbols[variable]) if variable in views else symbols[variable]

    storage = _Storage(trace)
    for position, (equation, site) in enumerate(zip(trace.equations, sites, strict=True)):
        made.site = site
        if equation.output is None and storage.is_computed(equation.operands[0]):
            target, *others = equation.operands
            storage.refuse_unless_alone(target, position)
            symbols[target] = made.rewritten(
                equation.primitive.name, symbols[target], [read(v) for v in others], equation.settings
            )
        elif equation.output is None:
            writes = equation.primitive.writes
            operands = [symbols[v] if i < writes else read(v) for i, v in enumerate(equation.operands)]
            made.write(equation.primitive.name, operands, equation.settings)
        else:
            out = _view_of_memory(made, equation, symbols, views)
            if out is not None:
                views.add(equation.output)
            else:
                out = made.apply(equation.primitive.name, [read(v) for v in equation.operands], equation.settings)
            shape, dtype = trace.facts[equation.output]
            if out.shape != shape or out.dtype != dtype:
                out = made.cast(broadcast(out, shape), np.dtype(dtype))
            symbols[equation.output] = out
    graph = made.graph
    graph.results = [_result(made, read(v), trace.facts[v]) for v in trace.results]
    for memory, places in made.memory.stores.items():
        if memory.kind == "constant":
            continue  # made anew in every call, it ends with it
        graph.stores += [Store(memory, start, s.value) for (start, _), s in places.items()]
    graph.checks, graph.arguments = made.checks, len(trace.arguments)
    return without_dead_code(graph)


_VIEWS = {"reshape", "broadcast_to", "permute_dims", "matrix_transpose", "alias", "basic_index"}


class _Storage:
    """Which computed variables of a trace share memory: a write into one would show in the others."""

    def __init__(self, trace: Any) -> None:
        self.owner: dict[int, int] = {}
        self.last: dict[int, int] = dict.fromkeys(trace.results, len(trace.equations))
        for position, equation in enumerate(trace.equations):
            for variable in equation.operands:
                self.last[variable] = max(position, self.last.get(variable, 0))
            if equation.output is not None:
                first = equation.operands[0] if equation.primitive.name in _VIEWS else equation.output
                self.owner[equation.output] = self.owner.get(first, first)
        self.sharing: dict[int, list[int]] = {}
        for variable, owner in self.owner.items():
            self.sharing.setdefault(owner, []).append(variable)

    def is_computed(self, variable: int) -> bool:
        """Whether an equation has made the memory behind a variable."""
        return self.owner.get(variable) in self.owner

    def refuse_unless_alone(self, variable: int, position: int) -> None:
        """Raise where a write, at a position, into one variable would show in another that is read later."""
        others = self.sharing[self.owner[variable]]
        if any(other != variable and self.last.get(other, 0) > position for other in others):
            raise UnsupportedError("a write into a computed value of which there is a view")


def _view_of_memory(made: Lowering, equation: Any, symbols: dict[int, Symbol], views: set[int]) -> Symbol | None:
    """A view of memory that may be written between its making and its reading: it stays a view of that memory."""
    if equation.primitive.name not in _VIEWS:
        return None
    (operand,) = equation.operands
    x = symbols[operand]
    if operand not in views or x.value not in made.memory.bases:
        return None
    nodes = len(made.graph.nodes)
    out = made.apply(equation.primitive.name, [x], equation.settings)
    return out if len(made.graph.nodes) == nodes else None


def _result(made: Lowering, s: Symbol, facts: tuple[Shape, Any]) -> tuple[Value, Shape]:
    """A result as a value of its own, which nothing else is stored in."""
    return made.memory.own(s).value, facts[0]
