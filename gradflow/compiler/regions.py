"""Regions: which groups run side by side without waiting for each other, and what is written where it lies.

The work of every group is split over its rows, in the same way for all that have as many rows. A group needs no barrier
after another if its row r reads only row r of what the other computes. Filling regions greedily yields by itself the
two of a training step: the rows of the batch (forward, loss, gradients of activations), then the rows of the weights
(gradients of weights, and the optimizer on what is still in the cache).

What depends on a finished sum and is one element only (a norm, a bias correction, a check) runs alone before a region.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gradflow.compiler.fuse import Group, stages
from gradflow.compiler.graph import COLUMN_REDUCTIONS, Graph, Node, Store, Value, View, is_same


@dataclass(eq=False)
class Region:
    """Groups between two barriers.

    Attributes:
        first: groups of one element, run one after the other before the others start.
        groups: run in order by every task on its own rows.
        is_call: the region is one call of a kernel outside the program.
    """

    first: list[Group] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    is_call: bool = False

    def all(self) -> list[Group]:
        """All its groups in order."""
        return [*self.first, *self.groups]


@dataclass(eq=False)
class Schedule:
    """Regions in order, and the stores whose value is computed right where it shall lie."""

    regions: list[Region]
    in_place: dict[Value, Store]
    copied: list[Store]


def aligned(view: View, group: Group, node: Node) -> bool:
    """Whether row r of the group reads only row r of the view's value, with rows split in the same way."""
    producer = view.value.node
    if producer is None:
        return False
    of = producer.group
    if of.rows != group.rows or view.value.home[0] != of.rows or producer.op in ("pack", "call"):
        return False
    if producer.op in COLUMN_REDUCTIONS:
        return bool(of.rows == 1 and is_same(view, node.space))
    if group.is_loop:
        return is_same(view, node.space)
    if node.op == "gather":
        return view is node.operands[1] and is_same(view, view.space)
    return node.op == "gemm" and view is node.operands[0] and is_same(view, view.space)


def reads_same_element(view: View, store: Store, node: Node) -> bool:
    """Whether a view of bound memory reads at (i, j) what the store writes at (i, j)."""
    rows, columns = store.value.home
    return (
        view.offset == store.start
        and node.space == (rows, columns)
        and (rows == 1 or view.row == columns)
        and (columns == 1 or view.column == 1)
    )


def overlaps(view: View, store: Store) -> bool:
    """Whether a view touches what a store writes."""
    if view.value is not store.memory:
        return False
    if view.space == (0, 0):
        return True  # it may read all of it
    reach = [(n - 1) * t for n, t in zip(view.space, (view.row, view.column), strict=True)]
    low = view.offset + sum(min(r, 0) for r in reach)
    high = view.offset + sum(max(r, 0) for r in reach) + 1
    return low < store.start + store.value.size and store.start < high


def scheduled(graph: Graph, groups: list[Group], tasks: int) -> Schedule:
    """Put groups into regions; a single task waits for nobody."""
    needs: dict[Group, set[Group]] = {
        g: {v.value.node.group for v, _ in g.reads() if v.value.node is not None} for g in groups
    }
    in_place, readers = _stored_in_place(graph, groups, needs)
    writers = {store.value.node.group for store in graph.stores if store.value.node is not None}
    updates = {node.group for node in graph.updates}
    may_fail = {node.group for node in graph.checks}
    may_fail |= {g for g in groups if g.nodes[0].op == "call" and g not in updates}
    for writer in writers | updates:
        for check in may_fail - {writer}:
            if not _reachable(needs, {check}, writer):
                needs[writer].add(check)
            else:  # what may fail needs what the writer's loop computes beside: the store waits until the end
                in_place = {value: store for value, store in in_place.items() if _group_of(value) is not writer}
    regions: list[Region] = []
    done: dict[Group, int] = {}
    todo = list(groups)
    while todo:
        region = _fill(todo, needs, done, in_place, readers, tasks > 1)
        for group in region.all():
            done[group] = len(regions)
        taken = set(region.all())
        todo = [g for g in todo if g not in taken]
        regions.append(region)
    return Schedule(regions, in_place, [s for s in graph.stores if s.value not in in_place])


def _group_of(value: Value) -> Group | None:
    return value.node.group if value.node is not None else None


def _reachable(needs: dict[Group, set[Group]], starts: set[Group], target: Group) -> bool:
    """Whether one of the starts depends on the target."""
    seen: set[Group] = set()
    waiting = list(starts)
    while waiting:
        group = waiting.pop()
        if group is target:
            return True
        if group not in seen:
            seen.add(group)
            waiting += needs[group]
    return False


def _fill(
    todo: list[Group],
    needs: dict[Group, set[Group]],
    done: dict[Group, int],
    in_place: dict[Value, Store],
    readers: dict[Value, list[Group]],
    several: bool,
) -> Region:
    """The next region: everything that can run now without waiting for another task."""
    region = Region()
    calls = [g for g in todo if g.nodes[0].op == "call" and needs[g] <= done.keys()]
    inside: set[Group] = set()
    grown = True
    while grown:
        grown = False
        for group in todo:
            if group in inside or group.space != (1, 1) or group.nodes[0].op == "call":
                continue
            if all(n in done or n in inside and n.nodes[0].op != "check" for n in needs[group]):
                region.first.append(group)
                inside.add(group)
                grown = True
    start = 0
    waiting = [g for g in todo if g not in inside and g.nodes[0].op not in ("call", "check")]
    while start < len(waiting):
        group = waiting[start]
        ready = all(n in done or n in inside for n in needs[group])
        if ready and not (several and _waits(group, inside, set(region.first), in_place, readers)):
            region.groups.append(group)
            inside.add(group)
            waiting.pop(start)
        else:
            start += 1
    if not inside:
        region.groups, region.is_call = calls[:1], True
    return region


def _waits(
    group: Group,
    inside: set[Group],
    first: set[Group],
    in_place: dict[Value, Store],
    readers: dict[Value, list[Group]],
) -> bool:
    """Whether a task could not go on to this group before all others are done with what is in the region."""
    for view, node in group.reads():
        producer = view.value.node
        waits = producer is not None and producer.group in inside and producer.group not in first
        if waits and not aligned(view, group, node):
            return True
    written = [n.out for n in group.nodes if n.out in in_place]
    return any(r is not group and r in inside and r not in first for out in written for r in readers[out])


def _stored_in_place(
    graph: Graph, groups: list[Group], needs: dict[Group, set[Group]]
) -> tuple[dict[Value, Store], dict[Value, list[Group]]]:
    """The stores that may be written where they lie, with the groups that read what was there before.

    Those become needs of the group that writes; where one of them depends on it, the value gets memory of its own and
    is copied at the end.
    """
    by_memory: dict[Value, list[tuple[View, Node, Group]]] = {}
    for reader in groups:
        for view, reads in reader.reads():
            if view.value.kind == "memory":
                by_memory.setdefault(view.value, []).append((view, reads, reader))
    in_place: dict[Value, Store] = {}
    readers: dict[Value, list[Group]] = {}
    for store in graph.stores:
        node = store.value.node
        if node is None or store.value in in_place:
            continue
        group: Group = node.group
        found = [entry for entry in by_memory.get(store.memory, ()) if overlaps(entry[0], store)]
        if not group.is_loop or node.op in COLUMN_REDUCTIONS:
            if not found:  # it is not written row by row: nobody may look at what was there
                in_place[store.value], readers[store.value] = store, []
            continue
        others = {g for _, _, g in found if g is not group}
        stage = stages(group)
        own = all(reads_same_element(v, store, n) and stage[n] <= stage[node] for v, n, g in found if g is group)
        if own and not _reachable(needs, others, group):
            in_place[store.value] = store
            readers[store.value] = list(others)
            needs[group] |= others
    return in_place, readers
