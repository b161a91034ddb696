"""Events: bad results, what each came from, and where in the user's code it was made."""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from gradflow.anomaly import report
from gradflow.anomaly.report import Reason, Site
from gradflow.anomaly.values import is_finite
from gradflow.errors import is_ours
from gradflow.primitive import Namespace, Primitive
from gradflow.tensor import Tensor

REMEMBERED = 16  # ancestors of an event; the first ones are kept, which the producer is among


Text = tuple[str, list[str]]  # mistake, details


@dataclass(eq=False, repr=False)  # events hold events: the text of one would be endless
class Event:
    """A bad result of one operation.

    Attributes:
        number: the order of events.
        name: of the primitive, or of the function given to custom_vjp.
        badness: of the worst element.
        value: of the element that is reported.
        produced: whether it was made here, of better.
        text, reason: what a report of it says (the mistake and the details; why and how to mend it). Both are put into
            words only if they are asked for: most infinities are masked in time, and no report is made.
        site: where in the user's code; None if that is not known.
        line: the events that it came from, oldest first; bounded, so that a state that stays infinite costs no memory.
        spent: whether an operation has made another value of it.
    """

    number: int
    name: str
    badness: int
    value: float
    produced: bool
    text: Callable[[], Text]
    reason: Callable[[], Reason]
    site: Site | None
    line: tuple[Event, ...]
    spent: bool = False

    def producer(self) -> Event | None:
        """The first event that this one comes from and that produced something."""
        return next((event for event in (*self.line, self) if event.produced), None)


class Log:
    """The event of each bad array that is alive."""

    def __init__(self) -> None:
        self.events: dict[int, tuple[weakref.ref[Any], Event, Namespace]] = {}
        self.latest: Event | None = None
        self._count = itertools.count(1)

    def new(self, badness: int, here: Any, parents: Sequence[Event], **rest: Any) -> Event:
        """The next event; `here` is what `here()` gave where the operation was called."""
        before = {event.number: event for parent in parents for event in (*parent.line, parent)}
        line = tuple(before[number] for number in sorted(before)[:REMEMBERED])
        return Event(next(self._count), badness=badness, site=site_of(here), line=line, **rest)

    def of(self, array: Any) -> Event | None:
        """The event of an array, if it is bad."""
        found = self.events.get(id(array))
        return found[1] if found is not None and found[0]() is array else None

    def put(self, array: Any, event: Event, xp: Namespace) -> None:
        """Note the event of an array, as long as the array lives."""
        key, events = id(array), self.events
        events[key] = weakref.ref(array, lambda _: events.pop(key, None)), event, xp
        self.latest = event

    def drop(self, written: Any, xp: Namespace) -> None:
        """Forget the event of an array that was written, and of all that share its memory and are fine by now."""
        self.events.pop(id(written), None)
        if not self.events:
            return
        owner, low, high = xp.backend.extent(written)
        for key, (reference, _, of) in list(self.events.items()):
            array = reference()
            if array is None or of.backend is not xp.backend:
                continue
            other, start, end = xp.backend.extent(array)
            if other is owner and start < high and low < end and is_finite(array, xp):
                self.events.pop(key, None)

    def ends(self) -> list[Event]:
        """What is alive, and nothing was made of."""
        return [event for _, event, _ in list(self.events.values()) if not event.spent]


# ---------------------------------------------------------------- where an operation was called
def here(operands: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What a node is given to keep: code and instruction of the user's frame, the modules, the operands.

    Operands are held weakly, as a graph that saves none of them would let them go; single numbers are held.
    """
    callers = report.CALLERS
    user: FrameType | None = None
    modules: tuple[Any, ...] = ()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if (local := callers.get(id(code))) is not None:
            modules += (frame.f_locals[local],)
        elif user is None and not is_ours(code.co_filename):
            user = frame
        frame = frame.f_back
    kept = tuple([t._data if t._data.size == 1 else weakref.ref(t._data) for t in operands])
    return (None if user is None else user.f_code), (0 if user is None else user.f_lasti), modules, kept


def site_of(kept: tuple[Any, ...] | None) -> Site | None:
    """The site in what `here` gave."""
    return None if kept is None or kept[0] is None else Site(*kept[:3])


def operands_of(kept: tuple[Any, ...] | None) -> list[Any]:
    """The operands in what `here` gave, None where one is gone."""
    return [] if kept is None else [k() if isinstance(k, weakref.ref) else k for k in kept[3]]


# ---------------------------------------------------------------- operands in words
def operand_names(primitive: Primitive, count: int) -> list[str]:
    """The names of all operands; those of a variadic one are numbered."""
    if not primitive.variadic:
        return list(primitive.operands)
    *fixed, last = primitive.operands
    return [*fixed, *(f"{last}[{i}]" for i in range(count - len(fixed)))]


def makers(log: Log, names: Sequence[str], arrays: Sequence[Any]) -> list[tuple[str, Event]]:
    """Names of bad operands, and the events that they came from."""
    events = ((name, log.of(array)) for name, array in zip(names, arrays, strict=True))
    return [(name, event.producer() or event) for name, event in events if event is not None]


def origins(found: Sequence[tuple[str, Event]]) -> list[str]:
    """Lines that say where bad operands came from."""
    return [f"{name} holds what {e.name} gave at {e.site.line()}" for name, e in found if e.site is not None]


def values_line(values: dict[str, Any]) -> list[str]:
    """The line that shows operands at one element."""
    if not values:
        return []
    return [f"operands there: {', '.join(f'{name} = {report.number(value)}' for name, value in values.items())}"]


def summaries(names: Sequence[str], hosts: Sequence[np.ndarray]) -> list[str]:
    """Lines that say what can be said of whole operands."""
    return [f"operand {name}: {report.summary(host)}" for name, host in zip(names, hosts, strict=True)]
