"""One backward sweep under a hunt: every rule is an operation, from a cotangent to a cotangent."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from gradflow.anomaly import report
from gradflow.anomaly.events import (
    Event,
    Log,
    makers,
    operand_names,
    operands_of,
    origins,
    site_of,
    summaries,
    values_line,
)
from gradflow.anomaly.report import Reason, Trap
from gradflow.anomaly.values import (
    FINE,
    Index,
    arrays_of,
    badness_of,
    first_of_worst,
    is_finite,
    locate,
    raw,
    stretches_to,
    worst_of,
)
from gradflow.primitive import Namespace, Primitive
from gradflow.tape import Node

rule_of: ContextVar[Node | None] = ContextVar("gradflow_anomaly_rule", default=None)
"""The node whose rule runs on Tensors now: its operations are no events of their own."""


class Sweep:
    """Looks at the cotangents of one sweep; `arrive` and `lift` are given to the tape.

    Args:
        log: where events get their numbers.
        tell: called with each event.
        xp: the namespace of the raw arrays.
        edges: the edges of a node, lifted to Tensors; None in a sweep on raw arrays.
        hooks: what the tape would have called with a node and its cotangent.
    """

    def __init__(self, log: Log, tell: Callable[[Event], None], xp: Namespace, edges: Any, hooks: Any) -> None:
        self.log, self.tell, self.xp, self.edges, self.hooks = log, tell, xp, edges, hooks
        self.events: dict[int, tuple[Any, Event]] = {}  # bad cotangents; held, since NumPy's scalars know no weakrefs
        self.sent: dict[Any, Any] = {}  # node -> what a rule has sent there last
        self.bad: dict[Any, list[Event]] = {}  # node -> what was bad of what was sent there
        self.users: dict[Any, list[tuple[Node, int, Any]]] = {}  # node -> who has sent it; the condition of a where
        self.gradients: list[Any] = []  # what came out

    def ends(self) -> list[Event]:
        """The events of what came out."""
        return [event for g in self.gradients if (event := self.of(g)) is not None]

    def of(self, cotangent: Any) -> Event | None:
        """The event of a cotangent, if it is bad."""
        found = self.events.get(id(raw(cotangent)))
        return None if found is None else found[1]

    # ------------------------------------------------------------ what the tape calls
    def arrive(self, node: Any, g: Any) -> Any:
        """Look at the whole cotangent of a node, unless it is one that was looked at when it was sent."""
        if self.hooks is not None:
            g = self.hooks(node, g)
        sent = self.sent.pop(node, None)
        if sent is not None and sent is not g and not self._is_finite(g):
            self._record_sum(node, g)
        return g

    def lift(self, node: Node) -> list[Any]:
        """The edges of a node, their rules watched."""
        edges = node.edges if self.edges is None else self.edges(node)
        return [
            None if edge is None else (edge[0], partial(self._run, node, i, edge[0], edge[1]), edge[2])
            for i, edge in enumerate(edges)
        ]

    def _run(self, node: Node, i: int, parent: Any, rule: Callable[..., Any], xp: Any, g: Any, *saved: Any) -> Any:
        primitive, latest = node.primitive, self.log.latest
        if self.edges is None or not isinstance(primitive, Primitive):
            ct = rule(xp, g, *saved)
        else:
            token = rule_of.set(node)
            try:
                ct = rule(xp, g, *saved)
            finally:
                rule_of.reset(token)
        self.sent[parent] = ct
        user = node, i, raw(saved[0]) if primitive.name == "where" else None
        if parent in self.users:
            self.users[parent].append(user)
        else:
            self.users[parent] = [user]
        if not self._is_finite(ct):
            if isinstance(primitive, Primitive):
                event = self._record(node, i, rule, g, saved, ct)
            else:
                event = self._record_given(node, g, ct, None if self.log.latest is latest else self.log.latest)
            self.bad.setdefault(parent, []).append(event)
        return ct

    def _is_finite(self, cotangent: Any) -> bool:
        if isinstance(cotangent, tuple):
            return all(is_finite(array, self.xp) for array in arrays_of(cotangent))
        return is_finite(raw(cotangent), self.xp)

    # ------------------------------------------------------------ a cotangent is bad
    def _record(self, node: Node, i: int, rule: Any, g: Any, saved: tuple[Any, ...], ct: Any) -> Event:
        """The rule of a primitive gave it."""
        primitive, host = node.primitive, self.xp.backend.to_numpy
        here = getattr(node, "site", None)
        read = dict(zip(primitive.names_at(i), map(raw, saved), strict=False))  # stops before a backend's residual
        arrays = {name: a for name, a in read.items() if hasattr(a, "dtype") and hasattr(a, "shape")}
        hosts = [host(a) for a in arrays.values()]
        out, given = host(raw(ct)), host(raw(g))

        rest = tuple(saved[len(read) :])
        plain = rule if self.edges is None else primitive.rule_at(i)

        def again(g: Any, *values: Any) -> Any:
            replaced = {**read, **dict(zip(arrays, values, strict=True))}
            return plain(self.xp, g, *replaced.values(), *(rest if self.edges is None else ()))

        place = locate(again, self.xp, out, [given, *hosts], judged=1)
        value = float(out[place.at])
        if place.values is None:
            cotangent, details = None, summaries(list(arrays), hosts)
        else:
            cotangent, *there = (v.item() for v in place.values)
            values = {**self._kept_values(node, place.at, out.shape), **dict(zip(arrays, there, strict=True))}
            details = [f"cotangent that came in there: {report.number(cotangent)}", *values_line(values)]
        trap = self._trap(node, given, None if cotangent is None else place.at)
        reason: Callable[[], Reason]
        if trap is not None:
            reason = partial(report.why_trapped, primitive.name, trap, site_of(here), cotangent)
        else:
            read_bad = worst_of(hosts) > FINE
            reason = partial(report.why_backward, primitive.name, cotangent, value, out.dtype, read_bad, site_of(here))
        operand = operand_names(primitive, len(node.edges))[i]
        return self._put(
            ct,
            out,
            place.at,
            here,
            [e for e in (self.of(g),) if e is not None],
            name=f"the derivative of {primitive.name}",
            what=f"the cotangent of {operand}",
            produced=place.produced,
            details=[*details, *origins(makers(self.log, list(arrays), list(arrays.values())))],
            reason=reason,
        )

    def _kept_values(self, node: Node, at: Index, shape: tuple[int, ...]) -> dict[str, Any]:
        """The operands at the bad element, of those that are still there."""
        found = {}
        kept = operands_of(getattr(node, "site", None))
        for name, array in zip(operand_names(node.primitive, len(node.edges)), kept, strict=False):
            if array is not None and stretches_to([host := self.xp.backend.to_numpy(array)], shape):
                found[name] = np.broadcast_to(host, shape)[at].item()
        return found

    def _record_given(self, node: Node, g: Any, ct: Any, inner: Event | None) -> Event:
        """The backward function of a custom_vjp gave it; `inner` is the last event of the operations it ran."""
        if (known := self.of(ct)) is not None:
            return known  # one of several cotangents, handed on
        host = self.xp.backend.to_numpy
        out = host(next(a for a in arrays_of(ct) if not is_finite(a, self.xp)))
        made = inner if inner is not None and inner.producer() is not None else None
        before = max(worst_of([host(a) for a in arrays_of(g)]), made.badness if made is not None else FINE)
        at = first_of_worst(badness_of(out), badness_of(out) > before)
        return self._put(
            ct,
            out,
            at,
            getattr(node, "site", None),
            [e for e in (self.of(g), made) if e is not None],
            name=f"the derivative given for {node.primitive.name}",
            what="a cotangent",
            produced=worst_of([out]) > before,
            details=[],
            reason=partial(report.why_backward, "", None, float(out[at]), out.dtype),
        )

    def _record_sum(self, node: Any, g: Any) -> None:
        """What was sent was looked at, but the sum of it (or the projection, or what a hook gave) is new."""
        parents = self.bad.get(node, [])
        out = self.xp.backend.to_numpy(arrays_of(g)[0])
        known = max(parents, key=lambda event: event.badness, default=None)
        if known is not None and known.badness >= worst_of([out]):
            self.events[id(raw(g))] = raw(g), known
            return
        name = getattr(getattr(node, "primitive", None), "name", "")
        at = first_of_worst(badness_of(out), badness_of(out) > FINE)
        count = len(self.users[node])
        self._put(
            g,
            out,
            at,
            getattr(node, "site", None),
            parents,
            name="the sum of cotangents",
            what=f"the cotangent of {f'the result of {name}' if name else 'a leaf'}",
            produced=True,
            details=[f"{count} arrived there; they are added up, over broadcast axes too, and shown to hooks"],
            reason=partial(report.why_backward, "", None, float(out[at]), out.dtype),
        )

    def _put(
        self,
        ct: Any,
        out: np.ndarray,
        at: Index,
        here: Any,
        parents: list[Event],
        name: str,
        what: str,
        details: list[str],
        **rest: Any,
    ) -> Event:
        value = float(out[at])
        mistake = f"{name} produced {report.number(value)} {report.position(at, out.shape, what)}."
        event = self.log.new(
            worst_of([out]), here, parents, name=name, value=value, text=lambda: (mistake, details), **rest
        )
        for array in (raw(ct), *arrays_of(ct)):
            self.events[id(array)] = array, event
        self.tell(event)
        return event

    # ------------------------------------------------------------ the where-NaN trap
    def _trap(self, node: Node, g: np.ndarray, at: Index | None) -> Trap | None:
        """The where on the way from the root that did not choose the bad element; None if there is none to blame.

        A cotangent of 0 is followed back to its sender. With `at` None the bad element is not known, and the whole
        cotangent has to be 0.
        """
        marked = np.ones(g.shape, np.bool_)
        if at is not None:
            marked[...] = False
            marked[at] = True
        if not g.size or (g[marked] != 0).any():
            return None
        between: tuple[str, ...] = ()
        visited, way = {node}, [(node, marked, between)]
        for receiver, marked, between in way:  # grows while it is read: breadth first
            for sender, i, condition in self.users.get(receiver, ()):
                reached = _carried(marked, sender)
                if reached is None or sender in visited:
                    continue
                if condition is not None:
                    held = self.xp.backend.to_numpy(condition).astype(np.bool_)
                    chosen = np.broadcast_to(held if i == 1 else ~held, sender.shape)
                    if not (chosen & reached).any():
                        return Trap(site_of(getattr(sender, "site", None)), i, between)
                visited.add(sender)
                way.append((sender, reached, (*between, sender.primitive.name)))
        return None


_RESHAPES = ("reshape", "basic_index", "alias", "copy")


def _carried(marked: np.ndarray, user: Node) -> np.ndarray | None:
    """Which elements of a result belong to the marked ones of an operand; None where that is not known."""
    if stretches_to([marked], user.shape):
        return np.broadcast_to(marked, user.shape)
    if user.primitive.name in _RESHAPES and marked.size == math.prod(user.shape):
        return marked.reshape(user.shape)
    return None
