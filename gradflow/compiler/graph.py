"""The intermediate representation: values, strided views of them, nodes that compute, groups of nodes, and the plan.

A **value** is a piece of memory: an argument, memory bound by identity, a constant, a number, or what a node computes.
A **view** is how a node reads a value: offset and strides in elements. So transposes, broadcasts, reshapes and slices
are no operations. A **node** runs over a two-dimensional space of rows and columns:

============  ======================================  ==========================================
op            reads                                   computes
============  ======================================  ==========================================
element-wise  views over (rows, columns)              a value of (rows, columns)
row_sum …     a view over (rows, columns)             one element for each row
col_sum …     a view over (rows, columns)             one element for each column
gemm          matrices (rows, k) and (k, columns)     their product
transpose     a matrix                                the same matrix, dense
batch_gemm    two stacks of matrices                  their products, one a row
gather        a table, indices                        a row of the table for each index
scatter       rows, indices                           a table: zeros, and each row added where its index says
uniform       a generator's state                     random numbers in [0, 1)
strided_copy  a view of any number of axes            its elements, dense
pack          parts that lie in it, one a row         a value that its parts have filled
check         an element                              whether it is not 0; then the program stops
call          whole values                            what a primitive's own kernel computes
============  ======================================  ==========================================

Everything here is data: code generators read it, and passes are functions from it to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = Any
Space = tuple[int, int]

COMPARISONS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
TESTS = {"isnan", "isfinite", "isinf"}
LOGIC = {"logical_and", "logical_or", "logical_xor", "logical_not"}
ELEMENTWISE = (
    {"add", "subtract", "multiply", "divide", "negative", "square", "abs", "sign", "floor", "exp", "log", "log1p"}
    | {"sqrt", "tanh", "sigmoid", "erf", "maximum", "minimum", "where", "power", "remainder", "floor_divide", "cast"}
    | {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert", "copy"}
    | COMPARISONS | TESTS | LOGIC
)  # fmt: skip

ROW_REDUCTIONS = {"row_sum", "row_max", "row_min"}
COLUMN_REDUCTIONS = {"col_sum", "col_max", "col_min"}
REDUCTIONS = ROW_REDUCTIONS | COLUMN_REDUCTIONS
WHOLE = {
    "gemm", "batch_gemm", "transpose", "pack", "call", "check", "gather", "scatter", "uniform", "strided_copy",
}  # fmt: skip
"""Operations that are an item of their own: they share no loop with others."""


@dataclass(eq=False, slots=True, repr=False)
class Value:
    """A piece of memory, dense and row-major.

    Attributes:
        dtype: of its elements.
        home: its rows and columns; memory that is bound has one row.
        kind: "argument", "memory" (bound by identity), "constant", "number", or "node".
        source: the argument's position, the array, the number, or the node that computes it.
        users: the nodes that read it.
        part_of: the value in whose memory it lies, and where; a part of a `pack`.
    """

    dtype: np.dtype[Any]
    home: Space
    kind: str
    source: Any = None
    users: list[Node] = field(default_factory=list)
    part_of: tuple[Value, int] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.dtype}{list(self.home)}>"

    @property
    def size(self) -> int:
        """How many elements it has."""
        return self.home[0] * self.home[1]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.size * self.dtype.itemsize

    @property
    def node(self) -> Node | None:
        """The node that computes it."""
        return self.source if self.kind == "node" else None


class View(NamedTuple):
    """How a value is read over a space: element (i, j) lies at offset + i · row + j · column."""

    value: Value
    offset: int
    row: int
    column: int
    space: Space

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for views that read the same."""
        v = self.value
        what = (v.kind, repr(v.source), v.dtype) if v.kind == "number" else id(v)
        return what, self.offset, self.row, self.column, self.space

    @property
    def transposed(self) -> View:
        """Rows and columns exchanged."""
        return View(self.value, self.offset, self.column, self.row, self.space[::-1])

    @property
    def is_dense(self) -> bool:
        """Whether it reads, row by row, elements that lie one after the other."""
        rows, columns = self.space
        return (columns == 1 or self.column == 1) and (rows == 1 or self.row == columns)

    @property
    def is_whole(self) -> bool:
        """Whether it reads all of its value in the order in which it lies."""
        return self.offset == 0 and self.is_dense and self.space[0] * self.space[1] == self.value.size


def whole(value: Value) -> View:
    """A value as it lies."""
    rows, columns = value.home
    return View(value, 0, columns if rows > 1 else 0, 1 if columns > 1 else 0, value.home)


def is_same(view: View, space: Space) -> bool:
    """Whether element (i, j) of a loop over `space` reads element (i, j), or (i, 0), of the value."""
    rows, columns = view.value.home
    row = columns if rows > 1 else 0
    return (
        view.offset == 0 and rows == space[0] and view.row == row and view.column == (1 if columns > 1 else 0)
        and (columns in (1, space[1]))
    )  # fmt: skip


@dataclass(eq=False, slots=True, repr=False)
class Node:
    """One computation over a space of rows and columns.

    Attributes:
        op: what it computes.
        operands: how it reads its values.
        out: what it makes.
        space: the rows and columns it runs over.
        index: its place in the order of the program.
        group: the group whose loop it runs in.
        settings: what it needs besides; for a `call` the primitive, its settings, the shapes of its operands.
        site: the user's line.
    """

    op: str
    operands: list[View]
    out: Value
    space: Space
    index: int
    settings: Any = None
    site: str = ""
    group: Any = None

    def __repr__(self) -> str:
        return f"<{self.op} over {self.space}>"


def is_number(view: View, number: float | None = None) -> bool:
    """Whether a view is a number known at compile time, or this one."""
    return view.value.kind == "number" and (number is None or view.value.source == number)


@dataclass(eq=False, slots=True)
class Store:
    """What bound memory holds after the program: `value` lies, from `start` on, in `memory`."""

    memory: Value
    start: int
    value: Value


@dataclass(eq=False)
class Graph:
    """A lowered program: nodes in order, what becomes of bound memory, the results, and where it was checked.

    Attributes:
        nodes: in an order in which every value is computed before it is read.
        stores: what bound memory holds afterwards.
        results: for each result the view that holds it, and its shape.
        checks: nodes that only say whether something is wrong; they run before anything is stored.
        updates: calls of kernels that write bound memory themselves.
        arguments: how many there are.
        made: every node that there ever was, for `dissolve`.
    """

    nodes: list[Node] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    results: list[tuple[Value, tuple[int, ...]]] = field(default_factory=list)
    checks: list[Node] = field(default_factory=list)
    updates: list[Node] = field(default_factory=list)
    arguments: int = 0
    made: list[Node] = field(default_factory=list)

    def dissolve(self) -> None:
        """Take nodes and values apart, which refer to each other, so that they go without the garbage collector."""
        for node in self.made:
            for view in node.operands:
                view.value.users = []
            node.out.users, node.out.source, node.out.part_of = [], None, None
            node.operands, node.group = [], None

    def roots(self) -> list[Value]:
        """Every value that no node computes, numbers apart."""
        found: dict[Value, None] = {}
        for node in self.nodes:
            for view in node.operands:
                if view.value.kind not in ("node", "number"):
                    found[view.value] = None
        for store in self.stores:
            found[store.memory] = None
        return list(found)

    def kept(self) -> set[Value]:
        """Values that are needed after the last node: stored ones and results."""
        return {store.value for store in self.stores} | {value for value, _ in self.results}


def without_dead_code(graph: Graph) -> Graph:
    """The same graph with the nodes alone that something kept depends on, and with every value's users."""
    needed: set[Value] = graph.kept() | {node.out for node in (*graph.checks, *graph.updates)}
    live: list[Node] = []
    for node in reversed(graph.nodes):
        if node.out in needed:
            live.append(node)
            needed.update(view.value for view in node.operands)
            if node.out.part_of is not None:
                needed.add(node.out.part_of[0])
    live.reverse()
    for node in live:
        node.out.users = []
        for view in node.operands:
            view.value.users = []
    for i, node in enumerate(live):
        node.index = i
        for view in node.operands:
            view.value.users.append(node)
    return Graph(live, graph.stores, graph.results, graph.checks, graph.updates, graph.arguments, graph.made)
