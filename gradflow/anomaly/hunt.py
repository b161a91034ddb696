"""The hunt: an interpreter that looks at every result, and notes which operation made a bad value of good ones.

It runs each operation as it would have run without a hunt, and looks closer only when a result holds a NaN or an
infinity. Then an event is noted, by two rules:

- Ranked number < infinity < NaN, an operation that makes something worse than what it was given has *produced* it; any
  other *passes on* what it got. So inf - inf is produced, though its operands were infinite already, and what the user
  put in as data is nobody's product.
- In a backward sweep a derivative rule is one operation, from a cotangent to a cotangent. The sweep runs the kernels
  that run without a hunt: gradients are the same to the last bit, and the NaN that is found is the one that was there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from threading import get_ident
from types import GeneratorType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from gradflow import tape
from gradflow.anomaly import report
from gradflow.anomaly.events import (
    Event,
    Log,
    Text,
    here,
    makers,
    operand_names,
    origins,
    site_of,
    summaries,
    values_line,
)
from gradflow.anomaly.report import Reason
from gradflow.anomaly.sweep import Sweep, rule_of
from gradflow.anomaly.values import (
    FINE,
    INFINITE,
    NAN,
    badness_of,
    first_of_worst,
    handed_on,
    is_finite,
    locate,
    worst_of,
)
from gradflow.arguments import flag, not_async
from gradflow.mode import NO_GRAD, RECORD, Interpreter, Mode, get_mode, resumed, set_mode, using
from gradflow.primitive import Primitive
from gradflow.tape import Node
from gradflow.tensor import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Operands = tuple[Tensor, ...]
Settings = dict[str, Any]


class Hunt:
    """The interpreter of a `detect_anomaly` block.

    Args:
        log: the events so far.
        outer: the interpreter outside of the block: a trace.
        inf: whether infinities count.
        at_once: whether to raise where something is produced.
    """

    def __init__(self, log: Log, outer: Interpreter | None, inf: bool, at_once: bool) -> None:
        self.log, self.outer, self.inf, self.at_once = log, outer, inf, at_once
        self.modes = (NO_GRAD, RECORD) if outer is None else (Mode(False, outer), Mode(True, outer))
        self.on_tensors = outer is not None and outer.on_tensors

    # ------------------------------------------------------------ going forward
    def apply(self, primitive: Primitive, operands: Operands, settings: Settings, recording: bool) -> Any:
        """Run an operation, and look at what came out."""
        mode = get_mode()
        with np.errstate(all="ignore"):  # the report says all that a warning would
            before = self._before_write(operands[0]) if primitive.writes == 1 else FINE
            set_mode(self.modes[recording])  # not `using`, which takes 0.3 µs more
            try:
                out = primitive.function(*operands, **settings)
            finally:
                set_mode(mode)
            if primitive.writes:
                self._look_at_write(primitive, operands, before)
            else:
                self._look(primitive, operands, settings, out)
        return out

    def _look(self, primitive: Primitive, operands: Operands, settings: Settings, out: Tensor) -> None:
        data, node, within = out._data, out._node, rule_of.get()
        kept = None
        if type(node) is Node:
            kept = node.site = here(operands) if within is None else getattr(within, "site", None)
        if self.log.events and data.dtype.kind == "f":
            for t in operands:
                if (event := self.log.of(t._data)) is not None:
                    event.spent = True
        if within is None and not is_finite(data, out._xp):
            self._record(primitive, operands, settings, out, kept or here(operands))

    def _record(
        self, primitive: Primitive, operands: Operands, settings: Settings, out: Tensor, kept: tuple[Any, ...]
    ) -> None:
        xp, arrays = out._xp, [t._data for t in operands]
        hosts, result = [xp.backend.to_numpy(a) for a in arrays], xp.backend.to_numpy(out._data)
        if (mask := handed_on(result, hosts)) is not None:
            self._put_mask(primitive, operands, out, kept, float(mask))
            return
        place = locate(lambda *a: getattr(xp, primitive.name)(*a, **settings), xp, result, hosts)
        value = float(result[place.at])
        names = operand_names(primitive, len(operands))
        if place.values is None:
            values, seen = {}, summaries(names, hosts)  # in words now: arrays may be written before a report is made
        else:
            values, seen = dict(zip(names, (v.item() for v in place.values), strict=True)), []
        found = makers(self.log, names, arrays)

        def text() -> Text:
            where = report.position(place.at, result_shape, "its result")
            mistake = f"{primitive.name} produced {report.number(value)} {where}."
            return mistake, [*seen, *values_line(values), *origins(found)]

        result_shape = result.shape
        from_infinities = math.isnan(value) and worst_of(hosts) > FINE
        event = self.log.new(
            place.badness,
            kept,
            self._parents(operands),
            name=primitive.name,
            value=value,
            produced=place.produced,
            text=text,
            reason=partial(
                report.why_forward, primitive.name, values, result.dtype, value, from_infinities, site_of(kept)
            ),
        )
        self.log.put(out._data, event, out._xp)
        if self.at_once and event.produced and self._counts(event):
            raise self._error(event, event, inside=True)

    def _put_mask(
        self, primitive: Primitive, operands: Operands, out: Tensor, kept: tuple[Any, ...], value: float
    ) -> None:
        """Note infinities that an operation was given: a report lists it among others, and never begins with it."""
        event = self.log.new(
            INFINITE,
            kept,
            self._parents(operands),
            name=primitive.name,
            value=value,
            produced=False,
            text=_never_told,
            reason=_never_told,
        )
        self.log.put(out._data, event, out._xp)

    def _parents(self, operands: Operands) -> list[Event]:
        return [event for t in operands if (event := self.log.of(t._data)) is not None]

    # ------------------------------------------------------------ writes in place
    def _before_write(self, target: Tensor) -> int:
        """How bad what an assignment overwrites in part is. An optimizer's state is taken to be fine: it is its own."""
        return FINE if is_finite(target._data, target._xp) else worst_of([target.backend.to_numpy(target._data)])

    def _look_at_write(self, primitive: Primitive, operands: Operands, before: int) -> None:
        """Look at what was written. What an update produces is in the parameters by now: that is told at once."""
        xp, written, read = operands[0]._xp, operands[: primitive.writes], operands[primitive.writes :]
        bad = [i for i, t in enumerate(written) if not is_finite(t._data, xp)]
        parents = self._parents(operands) if self.log.events else []
        for t in written:
            self.log.drop(t._data, xp)
        if not bad:
            return
        hosts = [xp.backend.to_numpy(t._data) for t in read]
        before = max([before, worst_of(hosts), *(event.badness for event in parents)])
        names = operand_names(primitive, len(operands))
        for i in bad:
            host = xp.backend.to_numpy(written[i]._data)
            fresh = badness_of(host) > before
            at = first_of_worst(badness_of(host), fresh)
            value = float(host[at])
            where = report.position(at, host.shape, names[i])
            told = (
                f"{primitive.name} wrote {report.number(value)} {where}.",
                summaries(names[primitive.writes :], hosts),
            )
            event = self.log.new(
                worst_of([host]),
                here(operands),
                parents,
                name=primitive.name,
                value=value,
                produced=bool(fresh.any()),
                text=partial(_as_it_is, told),
                reason=partial(report.why_forward, primitive.name, {}, host.dtype, value, before > FINE, None),
            )
            self.log.put(written[i]._data, event, xp)
            if event.produced and self._counts(event):
                raise self._error(event, event, inside=True)

    # ------------------------------------------------------------ leaving the graph
    def read(self, tensor: Tensor, how: str) -> None:
        """Refuse to hand out what an operation made bad."""
        event = self.log.of(tensor._data)
        if event is not None:
            self.judge(event, f"used by {how}")
        if self.outer is not None:
            self.outer.read(tensor, how)

    def gradient(self, leaf: Any, *, replaced: bool = False) -> None:
        """Pass on to a trace outside that a gradient is looked at, or replaced."""
        if self.outer is not None:
            self.outer.gradient(leaf, replaced=replaced)

    def depends(self, probe: Callable[[], Any], /) -> None:
        """Pass on to a trace outside what decides which operations run."""
        if self.outer is not None:
            self.outer.depends(probe)

    def refuse(self, what: str) -> None:
        """Pass on to a trace outside what no trace can hold."""
        if self.outer is not None:
            self.outer.refuse(what)

    def traces(self, tensor: Tensor) -> bool:
        """Whether a trace outside knows a tensor."""
        return bool(self.outer is not None and getattr(self.outer, "traces", lambda _: False)(tensor))

    # ------------------------------------------------------------ going backward
    def sweep(self, root: Tensor, run: Callable[..., Any], lift: Any, hooks: Any, retain: bool) -> Any:
        """Run a backward sweep, and find where what comes out of it went bad.

        A sweep on raw arrays runs once for the gradients and, only if one of them is bad, once more with an eye on
        every cotangent. What has effects beside its result (hooks, recorded derivatives) runs once, watched.
        """
        self._judge_root(root)
        with np.errstate(all="ignore"):
            if self.at_once or lift is not None or hooks is not None:
                found, watch = self._watched(root, run, lift, hooks, retain)
            else:
                visited: list[Node] = []
                found = run(lambda node: visited.append(node) or node.edges, None, True)  # type: ignore[func-returns-value]
                if all(g is None or is_finite(g, root._xp) for g in found.values()):
                    tape.free(() if retain else visited)
                    return found
                _, watch = self._watched(root, run, None, None, retain)
        for event in watch.ends():
            self.judge(event, "in the gradient that came out")
        return found

    def _watched(self, root: Tensor, run: Any, lift: Any, hooks: Any, retain: bool) -> tuple[dict[Any, Any], Sweep]:
        watch = Sweep(self.log, self._tell, root._xp, lift, hooks)
        run = run if self.outer is None else partial(self.outer.sweep, root, run)
        found = run(watch.lift, watch.arrive, retain)
        watch.gradients = [g for g in found.values() if g is not None]
        return found, watch

    def _tell(self, event: Event) -> None:
        if self.at_once and event.produced and self._counts(event):
            raise self._error(event, event)

    def _judge_root(self, root: Tensor) -> None:
        event = self.log.of(root._data)
        if event is not None:
            self.judge(event, "used by a backward sweep", data=True)
        elif not is_finite(root._data, root._xp):
            host = root.backend.to_numpy(root._data)
            if worst_of([host]) == NAN:
                at = first_of_worst(badness_of(host), np.isnan(host))
                where = report.position(at, host.shape, "the tensor")
                why = "it was computed outside of the block, where nobody looked."
                reason = why, "compute the loss in the block, too"
                raise report.anomaly(f"a backward sweep was started from nan {where}.", [], [], reason)

    # ------------------------------------------------------------ judging
    def judge(self, event: Event, used: str, data: bool = False) -> None:
        """Raise if what is about to be used is bad, and an operation made it so; with `data`, if it is NaN anyway."""
        producer = event.producer()
        if producer is not None and self._counts(event):
            raise self._error(producer, event, used)
        if producer is None and data and event.badness == NAN:
            first = next((e for e in event.line if e.badness == NAN and e.name != "copy"), event)  # gf.tensor copies
            why = f"no operation made it: it was in the operands of {first.name} already."
            reason = why, "look at the data before training: gf.isfinite(batch).all()"
            raise self._error(first, event, used, reason=reason)

    def judge_ends(self) -> None:
        """Raise if something bad was made that the block leaves behind."""
        for event in self.log.ends():
            self.judge(event, "left over at the end of the block")

    def _counts(self, event: Event) -> bool:
        return self.inf or event.badness == NAN

    def _error(
        self, first: Event, last: Event, used: str = "", *, reason: Reason | None = None, inside: bool = False
    ) -> Exception:
        """The report of `first`, from which `last` came; `inside` its module, which writes its path into it itself."""
        mistake, told = first.text()
        if not first.produced:
            mistake = mistake.replace(" produced ", " passed on ", 1)
        where = report.where_it_ran(first.site)
        details = [*told, *(where[:1] if inside else where)]
        steps = [event for event in (*last.line, last) if event.number > first.number]
        passed_on = [
            f"{e.name} ({report.number(e.value)}{', produced' if e.produced else ''}) {report.where_it_ran(e.site)[0]}"
            for e in steps
        ]
        return report.anomaly(mistake, details, passed_on, reason or first.reason(), used)


def _as_it_is(text: Text) -> Text:
    return text


def _never_told() -> Any:
    raise AssertionError("a report began with infinities that an operation was given")


# ---------------------------------------------------------------- for users
class detect_anomaly:  # noqa: N801  (reads as a statement: `with gf.detect_anomaly():`)
    """Find the operation that produced the first NaN or infinity, forward or backward, in a block or a function.

    The error names the operation, the line of your code that called it, the module, the element, the operands' values
    there, what passed the value on, the reason, and code that mends it.

    An infinity may be meant: a mask of -inf before a softmax, log(0) that a `where` replaces. So a value is judged when
    it is about to be *used*, not when it is made: by `backward()` (and `gf.grad` and its like) before the sweep starts,
    by `.item()` and whatever else reads numbers, and by the end of the block for results that nothing was made of.
    What was masked on the way raises nothing, and the report can list what the value went through. Gradients are judged
    at the end of a sweep, before they are added to `.grad`; what an optimizer's update produces, at once. Infinities
    and NaN that came in as data were produced by nobody; a NaN among them is reported when a sweep starts from it.

    Args:
        inf: whether infinities count; with False only NaN do.
        at_once: raise in the operation that produces the first bad value, meant or not, so that a debugger stops there.

    Raises:
        AnomalyError: in the block, or at its end.
        DTypeError: a setting that is neither True nor False.

    >>> with gf.detect_anomaly():
    ...     x = gf.tensor([1.0, 0.0], requires_grad=True)
    ...     gf.log(x).sum().backward()
    Traceback (most recent call last):
        ...
    gradflow.errors.AnomalyError: log produced -inf at flat index 1 of its result of shape (2,).
      operands there: x = 0.0
      at ...: gf.log(x).sum().backward()
      then passed on by:
        sum (-inf) at ...: gf.log(x).sum().backward()
      used by a backward sweep
      why: the logarithm of 0 is -inf, that of a negative number nan.
      fix: gf.log(gf.clip(x, 1e-12)), or gf.log_softmax(logits) for the logarithm of a softmax
    """

    def __init__(self, *, inf: bool = True, at_once: bool = False) -> None:
        self.inf, self.at_once = flag("detect_anomaly", "inf", inf), flag("detect_anomaly", "at_once", at_once)
        self._open: dict[int, list[tuple[Mode, Hunt]]] = {}  # thread -> the modes outside its open blocks, the hunts

    def __enter__(self) -> None:
        outside, hunt = get_mode(), self._hunt(Log())
        self._open.setdefault(get_ident(), []).append((outside, hunt))
        set_mode(Mode(outside.recording, hunt))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        outside, hunt = self._open[get_ident()].pop()
        set_mode(outside)
        if error is None:
            hunt.judge_ends()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Hunt in every call of a function, or while a generator runs; coroutine functions are refused."""
        not_async("detect_anomaly()", function)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            log = Log()
            with self._block(log):
                result = function(*args, **kwargs)
            if isinstance(result, GeneratorType):
                return cast(R, resumed(result, lambda: self._block(log)))
            return result

        return wrapped

    @contextmanager
    def _block(self, log: Log) -> Iterator[None]:
        hunt = self._hunt(log)
        with using(Mode(get_mode().recording, hunt)):
            yield
        hunt.judge_ends()

    def _hunt(self, log: Log) -> Hunt:
        """A hunt in the present mode; in a hunt it takes that one's place, and goes on with its log."""
        outer = get_mode().interpreter
        if isinstance(outer, Hunt):
            log, outer = outer.log, outer.outer
        if outer is not None:
            outer.refuse("gf.detect_anomaly()")
        return Hunt(log, outer, self.inf, self.at_once)
