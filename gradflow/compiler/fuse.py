"""Fusion: nodes that run over the same rows share one loop, a group.

Two groups merge where the values that pass between them are read where they are computed, element by element or row by
row, and where no way from one to the other leads outside, which would make a circle. A reduction along rows may lie
inside a group, in one loop of several over each row; one along columns ends it. Then cheap values are computed again
where they are needed instead of being stored. Ancestors are bit sets, so that all of it stays linear in practice.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradflow.compiler.graph import (
    COLUMN_REDUCTIONS,
    REDUCTIONS,
    ROW_REDUCTIONS,
    WHOLE,
    Graph,
    Node,
    Space,
    Value,
    View,
    is_same,
)

HEAVY = {"exp", "log", "log1p", "tanh", "sigmoid", "erf", "sqrt", "divide", "power", "remainder", "floor_divide"}
"""Computed once and stored rather than computed again."""
MOST_ARRAYS = 18  # in one kernel: its row of the table has room for their addresses and strides


class Group:
    """Nodes in one loop over rows, or one node that is an item of its own."""

    def __init__(self, node: Node, bit: int) -> None:
        self.nodes = [node]
        self.space: Space = node.space
        self.bit = bit
        self.before = 0
        self.after = 0
        self.stages: dict[Node, int] | None = None
        node.group = self

    @property
    def is_loop(self) -> bool:
        """Whether it is a loop over rows, not a product or a call."""
        return self.nodes[0].op not in WHOLE

    @property
    def rows(self) -> int:
        """How many rows its work is split over."""
        return self.space[0]

    def reads(self) -> list[tuple[View, Node]]:
        """What it reads from outside, numbers apart, and for which node."""
        return [
            (v, n)
            for n in self.nodes
            for v in n.operands
            if v.value.kind != "number" and (v.value.node is None or v.value.node.group is not self)
        ]

    def __repr__(self) -> str:
        return f"<{'+'.join(n.op for n in self.nodes)} over {self.space}>"


def fused(graph: Graph, enabled: bool = True) -> list[Group]:
    """The groups of a graph, each before those that read it."""
    groups = [Group(node, 1 << i) for i, node in enumerate(graph.nodes)]
    _find_ancestors(groups)
    if enabled:
        merger = _Merger(groups)
        for node in reversed(graph.nodes):
            users = {id(u.group): u.group for u in node.out.users}
            if len(users) == 1:
                merger.try_(node, node.out.users[0])
        for node in graph.nodes:
            for user in node.out.users:
                merger.try_(node, user)
        for node in graph.nodes:
            for sibling in _siblings(node):
                merger.try_(node, sibling)
        _recompute(graph)
        _drop_unread(graph)
    found = list(dict.fromkeys(node.group for node in graph.nodes))
    for group in found:
        group.nodes = _in_order(group.nodes)
    found = _sorted(found)
    graph.nodes = [node for group in found for node in group.nodes]
    return found


def _find_ancestors(groups: list[Group]) -> None:
    for group in groups:
        for view in group.nodes[0].operands:
            if view.value.node is not None:
                other: Group = view.value.node.group
                group.before |= other.before | other.bit
        for part in _parts(group.nodes[0]):
            group.before |= part.group.before | part.group.bit
    for group in reversed(groups):
        before = group.before
        while before:
            low = before & -before
            groups[low.bit_length() - 1].after |= group.bit
            before ^= low


def _parts(node: Node) -> list[Node]:
    return [v.value.node for v in node.operands if v.value.node is not None] if node.op == "pack" else []


def _siblings(node: Node) -> Iterable[Node]:
    """Nodes that read all of the same value over the same space."""
    for view in node.operands:
        if (
            view.value.kind != "number"
            and bool(view.row) == (node.space[0] > 1)
            and bool(view.column) == (node.space[1] > 1)
        ):
            for user in view.value.users:
                if user is not node and user.space == node.space:
                    yield user


def _one_loop(a: Space, b: Space) -> bool:
    """Whether two spaces can share a loop: they are equal, or one has a single element for each row of the other."""
    if (a == (1, 1)) != (b == (1, 1)):
        return False
    return a == b or a[0] == b[0] > 1 and 1 in (a[1], b[1])


class _Merger:
    def __init__(self, groups: list[Group]) -> None:
        self.of_bit = {group.bit: group for group in groups}

    def try_(self, producer: Node, consumer: Node) -> None:
        """Merge the groups of two nodes if they may share a loop."""
        a, b = producer.group, consumer.group
        if a is b or not (a.is_loop and b.is_loop and _one_loop(a.space, b.space)):
            return
        if a.after & b.before or b.after & a.before:
            return  # a way from one to the other leads through a third
        if not (self._fit(a, b) and self._fit(b, a)) or self._arrays(a, b) > MOST_ARRAYS:
            return
        self._merge(a, b)

    def _fit(self, a: Group, b: Group) -> bool:
        """Whether b reads what a computes where it is computed."""
        for node in b.nodes:
            for view in node.operands:
                producer = view.value.node
                if producer is None or producer.group is not a:
                    continue
                if producer.op in COLUMN_REDUCTIONS or not is_same(view, node.space):
                    return False
        return True

    def _arrays(self, a: Group, b: Group) -> int:
        both = {*a.nodes, *b.nodes}
        reads = {
            (v.value, v.offset, v.row, v.column)
            for n in both
            for v in n.operands
            if v.value.kind != "number" and v.value.node not in both
        }
        writes = sum(n.op in COLUMN_REDUCTIONS or any(u not in both for u in n.out.users) for n in both)
        kept = sum(not n.out.users for n in both)
        return len(reads) + writes + kept

    def _merge(self, a: Group, b: Group) -> None:
        if len(a.nodes) > len(b.nodes):
            a, b = b, a
        b.space = max(a.space, b.space)
        b.nodes += a.nodes
        for node in a.nodes:
            node.group = b
        both = a.bit | b.bit
        b.before, b.after = (a.before | b.before) & ~both, (a.after | b.after) & ~both
        del self.of_bit[a.bit]
        for other in self._groups(b.before):
            other.after = (other.after & ~a.bit) | b.after | b.bit
        for other in self._groups(b.after):
            other.before = (other.before & ~a.bit) | b.before | b.bit

    def _groups(self, bits: int) -> Iterable[Group]:
        while bits:
            low = bits & -bits
            bits ^= low
            if low in self.of_bit:
                yield self.of_bit[low]


def _recompute(graph: Graph) -> None:
    """Give every group that reads a cheap value a copy of the node that computes it."""
    kept = graph.kept()
    for node in graph.nodes:
        group = node.group
        if not group.is_loop or node.op in HEAVY or node.op in REDUCTIONS or node.space == (1, 1):
            continue
        if node.out in kept or node.op == "copy" or node.out.part_of is not None:
            continue
        reads = [v for v in node.operands if v.value.kind != "number"]
        if sum(bool(v.row and v.column) for v in reads) > 1 or not all(_is_stored(v.value, kept) for v in reads):
            continue
        others = {id(u.group): u.group for u in node.out.users if u.group is not group}
        for other in others.values():
            inside = any(v.value.node is not None and v.value.node.group is other for v in reads)
            if other.is_loop and not inside and _one_loop(other.space, node.space) and other.space >= node.space:
                copy = _copy_into(node, other)
                graph.made += [copy] if copy is not None else []


def _is_stored(value: Value, kept: set[Value]) -> bool:
    """Whether it lies in memory anyway."""
    node = value.node
    if node is None or value in kept:
        return True
    if node.op == "pack" or value.part_of is not None:
        return False
    return not node.group.is_loop or any(u.group is not node.group for u in value.users)


def _copy_into(node: Node, group: Group) -> Node | None:
    """Compute a value once more in a group that reads it; None if it is read in another way there."""
    readers = [u for u in node.out.users if u.group is group]
    if any(v.value is node.out and not is_same(v, u.space) for u in readers for v in u.operands):
        return None
    value = Value(node.out.dtype, node.out.home, "node")
    copy = Node(node.op, list(node.operands), value, node.space, node.index, node.settings, node.site, group)
    value.source = copy
    group.nodes.append(copy)
    for view in copy.operands:
        view.value.users.append(copy)
    node.out.users = [u for u in node.out.users if u.group is not group]
    value.users = readers
    for user in readers:
        user.operands = [v._replace(value=value) if v.value is node.out else v for v in user.operands]
    return copy


def _drop_unread(graph: Graph) -> None:
    """Take out the nodes that are computed again everywhere they are read."""
    kept = graph.kept()
    for node in reversed(graph.nodes):
        if not node.out.users and node.out not in kept and node.op != "check":
            node.group.nodes.remove(node)
            for view in node.operands:
                view.value.users = [u for u in view.value.users if u is not node]
    graph.nodes = [n for n in graph.nodes if n in n.group.nodes]


def _in_order(nodes: list[Node]) -> list[Node]:
    """Each node after those that it reads."""
    inside, done, out = set(nodes), set(), list[Node]()
    for start in sorted(nodes, key=lambda n: n.index):
        waiting = [start]
        while waiting:
            node = waiting[-1]
            missing = [v.value.node for v in node.operands if v.value.node in inside and v.value.node not in done]
            if missing:
                waiting += [m for m in missing if m is not None]
                continue
            waiting.pop()
            if node not in done:
                done.add(node)
                out.append(node)
    return out


def _sorted(groups: list[Group]) -> list[Group]:
    """Groups in an order in which each comes after those that it reads."""
    place = {id(g): min(n.index for n in g.nodes) for g in groups}
    needs = {id(g): {id(v.value.node.group) for v, _ in g.reads() if v.value.node is not None} for g in groups}
    by_id = {id(g): g for g in groups}
    done: set[int] = set()
    out: list[Group] = []
    for start in sorted(groups, key=lambda g: place[id(g)]):
        waiting = [id(start)]
        while waiting:
            g = waiting[-1]
            missing = [n for n in needs[g] if n not in done]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if g not in done:
                done.add(g)
                out.append(by_id[g])
    return out


# ---------------------------------------------------------------- the loops inside a group
def stages(group: Group) -> dict[Node, int]:
    """The number of the loop over a row's columns in which each node runs; asked of finished groups.

    What needs a finished reduction along the row waits for the next loop. What only later loops read is computed there,
    if what it reads passes to that loop anyway.
    """
    if group.stages is None:
        group.stages = _earliest(group)
        _sink(group, group.stages)
    return group.stages


def _earliest(group: Group) -> dict[Node, int]:
    found: dict[Node, int] = {}
    for node in group.nodes:
        found[node] = max(
            (
                found[v.value.node] + (v.value.node.op in ROW_REDUCTIONS)
                for v in node.operands
                if v.value.node in found and v.value.node is not None
            ),
            default=0,
        )
    return found


def _sink(group: Group, stage: dict[Node, int]) -> None:
    readers: dict[Node, list[Node]] = {node: [] for node in group.nodes}
    for node in group.nodes:
        for view in node.operands:
            if view.value.node in readers and view.value.node is not None:
                readers[view.value.node].append(node)
    for node in reversed(group.nodes):
        if node.op in REDUCTIONS or not readers[node] or len(node.out.users) > len(readers[node]):
            continue
        later = min(stage[reader] for reader in readers[node])
        passed = all(
            stage[producer] == later or any(stage[r] >= later for r in readers[producer] if r is not node)
            for producer in (v.value.node for v in node.operands)
            if producer in stage and producer is not None
        )
        if later > stage[node] and passed:
            stage[node] = later
