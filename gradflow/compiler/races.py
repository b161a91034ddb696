"""The static race check: no task of a region may touch what another one writes.

It looks at the finished plan, at places in memory alone, and knows nothing of how the plan was made: so it finds what
the passes that made it have overlooked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gradflow.compiler.fuse import Group
from gradflow.compiler.graph import COLUMN_REDUCTIONS, Node, Value, View
from gradflow.compiler.memory import Place, Plan


class Access(NamedTuple):
    """A read or write of bytes by a group: `rows` is how many rows of `stride` bytes each task has its own share of."""

    group: Group
    memory: tuple[str, int]
    low: int
    high: int
    stride: int
    rows: int
    writes: bool
    what: Value

    @property
    def is_split(self) -> bool:
        """Whether a task touches only the rows that are its own."""
        return self.rows > 1


class RaceError(AssertionError):
    """A plan in which two tasks meet in memory."""


def check(plan: Plan) -> None:
    """Look through every region.

    Raises:
        RaceError: a task may read or write what another one writes in the same region.
    """
    if plan.tasks == 1:
        return  # one after the other
    for number, region in enumerate(plan.regions):
        accesses = [a for group in region.groups for a in _accesses(plan, group)]
        for write in accesses:
            if not write.writes:
                continue
            for other in accesses:
                if other is write or other.memory != write.memory:
                    continue
                if other.low < write.high and write.low < other.high and not _same_rows(write, other):
                    raise RaceError(
                        f"region {number}: {write.group} writes bytes {write.low} to {write.high} that "
                        f"{other.group} {'writes' if other.writes else 'reads'} from {other.low} to {other.high}"
                    )


def _same_rows(a: Access, b: Access) -> bool:
    """Whether both are split into rows in the same way, so that each task meets only itself."""
    if a.rows != b.rows or a.rows == 1 != b.rows:
        return False
    return a.rows == 1 or a.low == b.low and a.stride == b.stride and a.is_split and b.is_split


def _accesses(plan: Plan, group: Group) -> Iterator[Access]:
    if group.nodes[0].op in ("pack", "check"):
        return
    for node in group.nodes:
        for view in node.operands:
            value = view.value
            if value.kind == "number" or value not in plan.places or _inside(value, group):
                continue
            yield _read(plan, group, node, view)
        if node.out in plan.places and node.out not in plan.partial:
            yield _write(plan, group, node)


def _inside(value: Value, group: Group) -> bool:
    return value.node is not None and value.node.group is group


def _memory(place: Place) -> tuple[str, int]:
    if place.kind == "memory":
        return "memory", place.source[0]
    return place.kind, place.source if isinstance(place.source, int) else id(place.source)


def _write(plan: Plan, group: Group, node: Node) -> Access:
    place = plan.places[node.out]
    item = node.out.dtype.itemsize
    rows, columns = node.out.home
    split = rows if rows == group.rows and node.op not in COLUMN_REDUCTIONS else 1
    return Access(
        group, _memory(place), place.offset, place.offset + rows * columns * item, columns * item, split, True, node.out
    )


def _read(plan: Plan, group: Group, node: Node, view: View) -> Access:
    place = plan.place(view)
    item = view.value.dtype.itemsize
    if view.space == (0, 0):
        whole = plan.places[view.value].offset
        return Access(group, _memory(place), whole, whole + view.value.nbytes, 0, 1, False, view.value)
    reach = [(n - 1) * t * item for n, t in zip(view.space, (view.row, view.column), strict=True)]
    low = place.offset + sum(min(r, 0) for r in reach)
    high = place.offset + sum(max(r, 0) for r in reach) + item
    by_rows = group.is_loop and node.space[0] == group.rows
    by_rows = by_rows or (node.op, view is node.operands[0]) in (("gemm", True), ("gather", False))
    width = (view.space[1] - 1) * abs(view.column) * item + item
    own_rows = by_rows and view.row * item >= width and view.space[0] == group.rows
    return Access(group, _memory(place), low, high, view.row * item, group.rows if own_rows else 1, False, view.value)
