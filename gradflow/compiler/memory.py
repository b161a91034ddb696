"""The memory plan: where every value lies in one arena, with memory used again as soon as nobody reads it any more.

With several tasks a value lives for whole regions, as tasks are not at the same place. A group may write over a value
that it is the last to read, element by element; not, however, where another task may still read it whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gradflow.compiler.fuse import Group, stages
from gradflow.compiler.graph import COLUMN_REDUCTIONS, REDUCTIONS, Graph, Node, Store, Value, View, is_same
from gradflow.compiler.regions import Region, Schedule, aligned

ALIGNMENT = 64  # bytes: a cache line, and a vector of AVX-512


class Place(NamedTuple):
    """Where a value begins: in the arena, or in a memory, constant, argument or result; offset in bytes."""

    kind: str
    source: Any
    offset: int


class Strip(NamedTuple):
    """Memory of which each task has its own part: its offset in the arena, and the bytes from one to the next."""

    offset: int
    step: int


@dataclass(eq=False)
class Plan:
    """All that a code generator needs: regions in order and the place of every value.

    Attributes:
        tasks: into how many parts the rows of each group are split, whether they run side by side or not.
        regions: groups between barriers.
        copied: stores whose value is computed elsewhere and copied at the end.
        places: value -> where it lies; a value that exists only inside a loop has none.
        partial: column reductions that each task begins by itself -> where; they are combined before they are read.
        spilled: values that pass between two loops over a row -> one row for each task.
        arena: bytes of the arena.
        unshared: bytes that the arena would have if no memory were used twice.
    """

    graph: Graph
    tasks: int
    regions: list[Region]
    copied: list[Store]
    places: dict[Value, Place] = field(default_factory=dict)
    partial: dict[Value, Strip] = field(default_factory=dict)
    spilled: dict[Node, Strip] = field(default_factory=dict)
    arena: int = 0
    unshared: int = 0

    def place(self, view: View) -> Place:
        """Where the first element of a view lies."""
        p = self.places[view.value]
        return p._replace(offset=p.offset + view.offset * view.value.dtype.itemsize)


class _Live(NamedTuple):
    offset: int
    size: int
    last: int
    value: Value


def padded(nbytes: int) -> int:
    """A size in whole cache lines, one of them between neighbours."""
    return (nbytes + 2 * ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def planned(graph: Graph, schedule: Schedule, tasks: int, reuse: bool = True) -> Plan:
    """Give every value a place."""
    plan = Plan(graph, tasks, schedule.regions, schedule.copied)
    for value in graph.roots():
        plan.places[value] = Place(value.kind, value.source, 0)
    for i, (value, _) in enumerate(graph.results):
        plan.places[value] = Place("result", i, 0)
    for value, store in schedule.in_place.items():
        item = value.dtype.itemsize
        plan.places[value] = Place("memory", store.memory.source, store.start * item)
    _Planner(plan, reuse).run()
    return plan


class _Planner:
    def __init__(self, plan: Plan, reuse: bool) -> None:
        self.plan, self.reuse = plan, reuse
        self.live: list[_Live] = []
        self.home: dict[Group, Region] = {g: r for r in plan.regions for g in r.all()}
        self.span = self._spans()
        self.kept = plan.graph.kept()
        self.first, self.last = self._lives()

    def _spans(self) -> dict[Group, tuple[int, int]]:
        """When each group runs; with several tasks, at any time of its region."""
        spans: dict[Group, tuple[int, int]] = {}
        clock = 0
        for region in self.plan.regions:
            groups = region.all()
            for i, group in enumerate(groups):
                alone = self.plan.tasks == 1
                spans[group] = (clock + i, clock + i) if alone else (clock, clock + len(groups) - 1)
            clock += len(groups)
        return spans

    def _lives(self) -> tuple[dict[Value, int], dict[Value, int]]:
        first: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for group, (start, end) in self.span.items():
            for node in group.nodes:
                if self._needs_place(node, group):
                    root = _root(node.out)
                    first[root] = min(first.get(root, start), start)
                    last[root] = max(last.get(root, end), end)
            for view, _ in group.reads():
                if view.value.kind == "node":
                    root = _root(view.value)
                    last[root] = max(last.get(root, end), end)
        forever = 1 << 60
        for store in self.plan.copied:
            last[_root(store.value)] = forever
        for node in self.plan.graph.checks:
            last[_root(node.out)] = forever
        return first, last

    def _needs_place(self, node: Node, group: Group) -> bool:
        """Whether what the node computes outlives its loop."""
        if not group.is_loop or node.op in COLUMN_REDUCTIONS or node.out in self.kept:
            return True
        return any(user.group is not group for user in node.out.users)

    def run(self) -> None:
        plan = self.plan
        for value in sorted(self.first, key=lambda v: self.first[v]):
            if value not in plan.places:
                plan.unshared += padded(value.nbytes)
                over = self._dying_operand(value) if self.reuse else None
                plan.places[value] = Place("arena", None, self._over(over, value) if over else self._free(value))
        for group in self.span:
            for node in group.nodes:
                part = node.out.part_of
                if part is not None:
                    place = plan.places[part[0]]
                    offset = place.offset + part[1] * node.out.dtype.itemsize
                    plan.places[node.out] = place._replace(offset=offset)
        self._strips()

    def _free(self, value: Value) -> int:
        """The first gap that is large enough."""
        size = padded(value.nbytes)
        if self.reuse:
            self.live = [x for x in self.live if x.last >= self.first[value]]
        offset = 0
        for other in sorted(self.live):
            if offset + size <= other.offset:
                break
            offset = max(offset, other.offset + other.size)
        self.live.append(_Live(offset, size, self.last[value], value))
        self.plan.arena = max(self.plan.arena, offset + size)
        return offset

    def _over(self, dying: _Live, value: Value) -> int:
        self.live.remove(dying)
        self.live.append(_Live(dying.offset, dying.size, self.last[value], value))
        return dying.offset

    def _dying_operand(self, value: Value) -> _Live | None:
        """A value that the group reads for the last time, where it writes this one."""
        node = value.node
        assert node is not None
        group: Group = node.group
        if not group.is_loop or node.op in REDUCTIONS or value.part_of is not None:
            return None
        stage = stages(group)
        for view, _ in group.reads():
            old = view.value
            if old.kind != "node" or old.home != value.home or old.dtype.itemsize != value.dtype.itemsize:
                continue
            if old.part_of is not None or old in self.kept or self.last[old] != self.span[group][1]:
                continue
            held = next((x for x in self.live if x.value is old), None)
            if held is None or held.size < padded(value.nbytes) or not self._is_last_reader(old, group):
                continue
            own = [(v, n) for v, n in group.reads() if v.value is old]
            if all(is_same(v, n.space) and stage[n] <= stage[node] for v, n in own):
                return held
        return None

    def _is_last_reader(self, old: Value, group: Group) -> bool:
        """Whether no other group, in any task, can read the value at or after the group's turn."""
        order = list(self.span)
        here = order.index(group)
        readers = {id(u.group): u.group for u in old.users}
        for other in readers.values():
            if other is group:
                continue
            if order.index(other) > here:
                return False
            meets = self.plan.tasks > 1 and self.home[other] is self.home[group]
            if meets and not all(aligned(v, other, n) for v, n in other.reads() if v.value is old):
                return False
        producer = old.node
        assert producer is not None
        return producer.op not in COLUMN_REDUCTIONS

    def _strips(self) -> None:
        """Memory of each task: its part of a column reduction, and rows that pass between loops."""
        plan = self.plan
        for group in self.span:
            if not group.is_loop:
                continue
            stage = stages(group)
            for node in group.nodes:
                if node.op in COLUMN_REDUCTIONS and plan.tasks > 1 and group.rows > 1:
                    plan.partial[node.out] = self._strip(node.out.nbytes)
                later = any(
                    v.value is node.out and stage[n] > stage[node] and n.space[1] > 1
                    for n in group.nodes
                    for v in n.operands
                )
                if later and node.space[1] > 1 and node.op not in REDUCTIONS and node.out not in plan.places:
                    plan.spilled[node] = self._strip(node.space[1] * node.out.dtype.itemsize)

    def _strip(self, nbytes: int) -> Strip:
        step = padded(nbytes)
        strip = Strip(self.plan.arena, step)
        self.plan.arena += step * self.plan.tasks
        self.plan.unshared += step * self.plan.tasks
        return strip


def _root(value: Value) -> Value:
    return value.part_of[0] if value.part_of is not None else value
