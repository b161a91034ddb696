"""The tape: nodes, leaves, the reverse sweep, the projection of cotangents, and the clock of in-place writes.

The tape knows no Tensor. It moves cotangents, raw arrays or Tensors alike, through rules written over a namespace
`xp`; who calls `sweep` hands it that namespace and, for Tensors, how to lift what a node saved.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from gradflow import structure
from gradflow.errors import GraphError, explain

Extent = Callable[[Any], tuple[Any, int, int]]  # array -> (owner of its memory, first byte, byte after the last)
Edge = tuple[Any, Callable[..., Any], tuple[Any, ...]]

tick = itertools.count(1).__next__  # one clock orders nodes and in-place writes; atomic under the GIL


# ---------------------------------------------------------------- the graph: where a cotangent goes
class Leaf:
    """The end of a graph: holds the gradient of one Tensor that the user made."""

    __slots__ = ("__weakref__", "dtype", "grad", "hooks", "seq", "shape")
    edges = ()

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.seq, self.shape, self.dtype = tick(), shape, dtype
        self.grad: Any = None

    hooks: dict[object, Callable[[Any], Any]]


class Node:
    """One recorded operation; edges[i] is None or (parent, rule, saved): the way back to operand i.

    There is no __init__: `Node()` and five stores cost 105 ns, the same through __init__ 137. The slots `hooks`,
    `grad`, `site` stay unset until somebody registers a hook, asks to retain the gradient, or wants to know where the
    operation ran.
    """

    __slots__ = ("dtype", "edges", "grad", "hooks", "primitive", "seq", "shape", "site")
    seq: int
    shape: tuple[int, ...]
    dtype: Any
    primitive: Any
    edges: tuple[Edge | None, ...]
    grad: Any
    hooks: dict[object, Callable[[Any], Any]]
    site: Any


hooks_in_use = False  # set for good by the first hook: without one the sweep does not look for any


def add_hook(target: Node | Leaf, hook: Callable[[Any], Any]) -> Callable[[], None]:
    """Run `hook` on the whole cotangent of `target` in every sweep; the function returned takes it off again."""
    global hooks_in_use
    hooks_in_use = True
    if not hasattr(target, "hooks"):
        target.hooks = {}
    hooks, key = target.hooks, object()
    hooks[key] = hook
    structure.changed()

    def remove() -> None:
        hooks.pop(key, None)
        structure.changed()

    return remove


# ---------------------------------------------------------------- in-place writes: nothing is paid going forward
class Pen:
    """When a program last wrote the memory that it writes."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        self.time = 0

    def mark(self) -> None:
        """Note that it has written now."""
        self.time = writes.last = tick()


class _Writes:
    """When which bytes were last written in place. All parameters may share one owner, so byte ranges matter."""

    def __init__(self) -> None:
        self.owners: dict[int, tuple[weakref.ref[Any], dict[tuple[int, int], int]]] = {}
        self.written: dict[int, tuple[weakref.ref[Any], dict[tuple[int, int], int], tuple[int, int]]] = {}
        self.pens: dict[int, tuple[weakref.ref[Any], list[tuple[int, int, Pen]]]] = {}
        self.last = 0

    def pen(self, arrays: Iterable[Any], extent: Extent) -> Pen:
        """A pen for a program that writes all of these arrays whenever it runs: one store marks them all."""
        made = Pen()
        for array in arrays:
            owner, low, high = extent(array)
            key = id(owner)
            reference = weakref.ref(owner, lambda _, key=key: self.pens.pop(key, None))  # type: ignore[misc]
            self.pens.setdefault(key, (reference, []))[1].append((low, high, made))
        return made

    def mark(self, array: Any, extent: Extent) -> None:
        """Note that an array was written now; its extent is asked for once (1.4 µs) as long as the array lives."""
        known = self.written.get(id(array))
        if known is None or known[0]() is not array:
            known = self._enter(array, extent)
        self.last = known[1][known[2]] = tick()

    def _enter(self, array: Any, extent: Extent) -> tuple[Any, dict[tuple[int, int], int], tuple[int, int]]:
        owner, low, high = extent(array)
        key, number = id(owner), id(array)
        reference = weakref.ref(owner, lambda _: self.owners.pop(key, None))
        _, ranges = self.owners.setdefault(key, (reference, {}))  # another thread may have been first
        gone = weakref.ref(array, lambda _: self.written.pop(number, None))
        self.written[number] = gone, ranges, (low, high)
        return self.written[number]

    def at(self, extent: tuple[Any, int, int]) -> int:
        """When bytes of this extent were last written; 0 if never."""
        owner, low, high = extent
        found = self.owners.get(id(owner))
        ranges = {} if found is None else found[1].copy()  # another thread may write meanwhile
        times = [time for (a, b), time in ranges.items() if a < high and low < b]
        if id(owner) in self.pens:
            times += [pen.time for a, b, pen in self.pens[id(owner)][1] if a < high and low < b]
        return max(times, default=0)


writes = _Writes()


def _saved_arrays(node: Node) -> Iterable[tuple[str, Any]]:
    for i, edge in enumerate(node.edges):
        for name, value in zip(node.primitive.names_at(i), edge[2] if edge else (), strict=False):
            for array in value if isinstance(value, tuple) else (value,):
                if hasattr(array, "dtype") and hasattr(array, "shape"):
                    yield name, array


def _check_saved(node: Node, extent: Extent) -> None:
    for name, array in _saved_arrays(node):
        if writes.at(extent(array)) > node.seq:
            raise GraphError(
                explain(
                    f"{node.primitive.name} saved `{name}` for its derivative, and it was changed in place since.",
                    "the derivative would be computed from the new values.",
                    "change a copy (`y = x.copy(); y += 1`), or call backward() before the change.",
                )
            )


# ---------------------------------------------------------------- the sweep
def _freed(*_: Any) -> Any:
    raise GraphError(
        explain(
            "this graph was freed by an earlier backward().",
            "a backward sweep drops the values it no longer needs.",
            "call the earlier one with retain_graph=True: loss.backward(retain_graph=True)",
        )
    )


def _compiled(*_: Any) -> Any:
    raise GraphError(
        explain(
            "backward() through the edge of a compiled function.",
            "its result has values and no history: the program computes no more than what was recorded.",
            "call loss.backward(), or gf.grad, inside the compiled function; forward-only calls go under gf.no_grad()",
        )
    )


_GRAVE = Leaf((), None)  # where all freed nodes lead
_EDGE = Leaf((), None)  # where what a compiled function returns leads, and what came into one with a history
_FREED: tuple[Edge, ...] = ((_GRAVE, _freed, ()),)


def _refuse_dead_ends(seen: dict[Any, Any]) -> None:
    if _GRAVE in seen:
        _freed()
    if _EDGE in seen:
        _compiled()


class _Outside:
    """Stands as the primitive of a node at the edge of a compiled function."""

    name = "compiled"
    position: dict[str, int] = {}  # noqa: RUF012

    def names_at(self, i: int) -> tuple[str, ...]:
        return ()

    def rule_at(self, i: int) -> Callable[..., Any]:
        return _compiled


def edge_node(shape: tuple[int, ...], dtype: Any, hidden: Iterable[Any] = ()) -> Node:
    """A node that says "this requires grad" and refuses to go back further: the edge of a compiled function.

    Args:
        shape, dtype: of the value.
        hidden: what it may have been computed from; a gradient with respect to these is refused and not 0.
    """
    node = Node()
    node.seq, node.primitive, node.shape, node.dtype = tick(), _Outside(), shape, dtype
    node.edges = ((_EDGE, _compiled, ()), *((other, _compiled, ()) for other in hidden))
    return node


_BY_AGE = attrgetter("seq")


def free(nodes: Iterable[Node]) -> None:
    """Drop what nodes saved; whoever comes to them later is told so."""
    for node in nodes:
        node.edges = _FREED


def project(xp: Any, ct: Any, like: Node | Leaf) -> Any:
    """Bring a cotangent to its primal's space: undo broadcasting, then take the primal's dtype."""
    if ct.shape != like.shape:
        lead = len(ct.shape) - len(like.shape)
        stretched = (i + lead for i, n in enumerate(like.shape) if n == 1 and ct.shape[i + lead] != 1)
        axes = (*range(lead), *stretched)
        ct = xp.sum(ct, axis=axes, keepdims=True)
        if ct.shape != like.shape:
            ct = xp.reshape(ct, shape=like.shape)
    return ct if ct.dtype == like.dtype else xp.astype(ct, dtype=like.dtype)


def reachable(root: Node | Leaf) -> tuple[list[Node], dict[Any, Any]]:
    """What `root` was computed from: its nodes, newest first, and every node and leaf as a key with None.

    A node is older than its users, so its age orders it; and no recursion, so a graph may be of any depth.
    """
    seen: dict[Any, Any] = {root: None}
    nodes: list[Any] = [root] if root.edges else []
    for node in nodes:  # grows while it is read: breadth first
        for edge in node.edges:
            if edge is not None and (parent := edge[0]) not in seen:
                seen[parent] = None
                if parent.edges:
                    nodes.append(parent)
    nodes.sort(key=_BY_AGE, reverse=True)
    return nodes, seen


def _towards(targets: set[Any], nodes: list[Node], seen: dict[Any, Any]) -> tuple[list[Node], dict[Any, Any]]:
    """What `reachable` found, less all that leads to no target."""
    if not targets.issubset(seen):  # the way to a target may have led through what was freed
        _refuse_dead_ends(seen)
    wanted = targets.intersection(seen)
    for node in reversed(nodes):
        if any(edge is not None and edge[0] in wanted for edge in node.edges):
            wanted.add(node)
    return [node for node in nodes if node in wanted], dict.fromkeys(wanted)


def sweep(
    root: Node | Leaf,
    seed: Any,
    xp: Any,
    extent: Extent,
    retain: bool,
    lift: Callable[[Node], Iterable[Edge | None]] | None = None,
    run_hooks: Callable[[Any, Any], Any] | None = None,
    targets: Iterable[Any] | None = None,
) -> dict[Any, Any]:
    """Send `seed` from `root` towards the leaves; return the cotangent of each leaf (or of each of `targets`).

    Nodes are visited newest first. A cotangent is projected when it arrives and added to what arrived before; what a
    node saved is dropped behind the sweep unless `retain`. A graph that was freed or overwritten is refused as a whole.
    """
    nodes, arrived = reachable(root)
    kept: dict[Any, Any] = {}
    if targets is not None:
        kept = dict.fromkeys(targets)
        nodes, arrived = _towards(set(kept), nodes, arrived)
    else:
        _refuse_dead_ends(arrived)
    if nodes and nodes[-1].seq < writes.last:  # something was written since the oldest: look before anything is freed
        for node in nodes:
            _check_saved(node, extent)
    if root in arrived:
        arrived[root] = seed
    add = xp.add
    for node in nodes:
        g = arrived.pop(node)  # never None: the root has its seed, and a user is newer than what it uses
        if run_hooks is not None:
            g = run_hooks(node, g)
        if kept and node in kept:
            kept[node] = g
        for edge in node.edges if lift is None else lift(node):
            if edge is None:
                continue
            parent, rule, saved = edge
            if kept and parent not in arrived:
                continue
            ct = rule(xp, g, *saved)
            if ct.shape != parent.shape or ct.dtype is not parent.dtype:
                ct = project(xp, ct, parent)
            other = arrived[parent]
            arrived[parent] = ct if other is None else add(other, ct)
        if not retain:
            node.edges = _FREED
    if run_hooks is not None:
        arrived = {leaf: g if g is None else run_hooks(leaf, g) for leaf, g in arrived.items()}
    if kept:
        arrived = {node: arrived.get(node, g) for node, g in kept.items()}
    return arrived  # what is left are leaves; None where nothing arrived
