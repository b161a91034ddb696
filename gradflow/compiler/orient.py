"""Orientation: which way vectors and matrices lie, so that neighbours in memory are neighbours in a loop.

A vector can be one row or one column. Those that belong to the rows of a batch become columns, so that they share the
loop over the batch. A matrix that is read with rows and columns exchanged is computed that way in the first place. A
product with a small transposed second factor, the slowest kind of BLAS, gets that factor transposed beforehand.
"""

from __future__ import annotations

from gradflow.compiler.generator import SMALL_FACTOR
from gradflow.compiler.graph import ELEMENTWISE, ROW_REDUCTIONS, Graph, Node, Value, View, whole, without_dead_code

ENOUGH_ROWS = 32

_APART = {"call", "pack", "transpose", "check", *ROW_REDUCTIONS}
"""What does not compute where its value shall lie."""
_AS_COLUMN = {"row_sum": "col_sum", "row_max": "col_max", "row_min": "col_min"}


def oriented(graph: Graph, turns: int = SMALL_FACTOR) -> Graph:
    """The same program with vectors and matrices laid out as they are read; `turns` is the code generator's."""
    _vectors_as_columns(graph)
    _matrices_as_read(graph)
    _without_copies(graph)
    return _transposed_factors(graph, turns)


# ---------------------------------------------------------------- vectors
def _vectors_as_columns(graph: Graph) -> None:
    flexible = [n for n in graph.nodes if n.space[0] == 1 < n.space[1] and (n.op in ELEMENTWISE or n.op in _AS_COLUMN)]
    chosen = set(flexible)
    columns = {v.value for n in graph.nodes for v in n.operands if _reads_as_column(v, n)}
    waiting = [n for n in flexible if n.out in columns or any(_is_column(v, columns) for v in n.operands)]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        near = [v.value.node for v in node.operands] + (node.out.users if node.op in ELEMENTWISE else [])
        for other in near:
            if other in chosen and other not in seen and other is not None and other.space == node.space:
                seen.add(other)
                waiting.append(other)
    for node in seen:
        node.operands = [v.transposed for v in node.operands]
        node.space = node.space[::-1]
        if node.op in ELEMENTWISE:
            node.out.home = node.out.home[::-1]
        else:
            node.op = _AS_COLUMN[node.op]


def _reads_as_column(view: View, node: Node) -> bool:
    return node.space[0] > 1 and view.row == 1 and view.column == 0 and view.value.size == node.space[0]


def _is_column(view: View, columns: set[Value]) -> bool:
    value = view.value
    if value.kind == "node":
        return value.home[0] > 1 == value.home[1]
    return value in columns or view.column > 1


# ---------------------------------------------------------------- matrices
def _matrices_as_read(graph: Graph) -> None:
    kept = graph.kept()
    for node in reversed(graph.nodes):
        out = node.out
        if out in kept or out.part_of is not None or min(out.home) == 1 or out.home != node.space:
            continue
        if node.op not in ELEMENTWISE and node.op != "gemm":
            continue
        views = [v for user in dict.fromkeys(out.users) for v in user.operands if v.value is out]
        exchanged = sum(map(_is_exchanged, views))
        if exchanged * 2 > len(views) and all(_is_exchanged(v) or v.is_whole for v in views):
            _exchange(node)


def _is_exchanged(view: View) -> bool:
    rows, columns = view.value.home
    return view.offset == 0 and view.row == 1 and view.column == columns and view.space == (columns, rows)


def _exchange(node: Node) -> None:
    """Compute the transposed matrix, and have everyone read it the other way round."""
    out = node.out
    rows, columns = out.home
    for user in dict.fromkeys(out.users):
        user.operands = [
            v if v.value is not out
            else View(out, 0, rows, 1, v.space) if _is_exchanged(v)
            else View(out, 0, 1, rows, v.space)
            for v in user.operands
        ]  # fmt: skip
    node.operands = [v.transposed for v in node.operands]
    if node.op == "gemm":
        node.operands.reverse()
    out.home = node.space = columns, rows


def _without_copies(graph: Graph) -> None:
    """Store and hand out a value itself, in place of a copy that turned out to be the same."""
    kept = graph.kept()

    def itself(value: Value) -> Value:
        node = value.node
        if node is None or node.op != "copy":
            return value
        (view,) = node.operands
        original = view.value
        if original.node is None or original in kept or original.part_of is not None or original.node.op in _APART:
            return value
        if not view.is_whole or original.dtype != value.dtype:
            return value
        kept.add(original)
        return original

    for store in graph.stores:
        store.value = itself(store.value)
    graph.results = [(itself(value), shape) for value, shape in graph.results]


# ---------------------------------------------------------------- factors
def _transposed_factors(graph: Graph, turns: int) -> Graph:
    made: dict[tuple[object, ...], Value] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "gemm":
            b = node.operands[1]
            inner, columns = b.space
            if b.column != 1 and node.space[0] >= ENOUGH_ROWS and inner * columns <= turns:
                value = made.get(b.key)
                if value is None:
                    value = made[b.key] = Value(b.value.dtype, b.space, "node")
                    value.source = Node("transpose", [b], value, b.space, 0, None, node.site)
                    nodes.append(value.source)
                    graph.made.append(value.source)
                node.operands[1] = whole(value)
        nodes.append(node)
    graph.nodes = nodes
    return without_dead_code(graph)


__all__ = ["oriented"]
