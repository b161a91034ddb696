"""One specialisation of a compiled function: a program, and the check that decides in under a microsecond if it fits.

The check is generated source. It looks at the mode and the arguments, compares what the function can see with how it
stood (whole containers at once, single places by identity), and one number, the structure version, in place of all
parameters. Where that number or anything in sight has moved, `recheck` looks closely, and most often goes on.
"""

from __future__ import annotations

import types
import weakref
from typing import Any

import numpy as np

from gradflow import backend, config, structure
from gradflow.compiler.program import Program
from gradflow.compiler.recording import Recording, lasting_gradient
from gradflow.compiler.signature import Results, Signature
from gradflow.compiler.surroundings import SIMPLE, Surroundings, _Cell, _Code, _Slots
from gradflow.mode import Mode, get_mode
from gradflow.tensor import Tensor

NO: Any = type("No", (), {"__repr__": lambda self: "no fit"})()
"""What a specialisation answers to a call that it is not for."""


class Specialisation:
    """A program for calls like the recorded one.

    Attributes:
        call: (args, kwargs) -> the result, or NO.
        why: why it was made.
        reason: what `recheck` found when it last refused, else empty.
    """

    def __init__(
        self,
        signature: Signature,
        results: Results,
        recording: Recording,
        surroundings: Surroundings,
        program: Program | None,
        mode: Mode,
        lock: Any,
    ) -> None:
        self.signature, self.recording, self.surroundings, self.program = signature, recording, surroundings, program
        self.mode, self.why, self.reason = mode, "", ""
        self._dtype, self._rules = config.get_default_dtype(), structure.rules
        self._seen_tensors = [(t, t._node is None, t.shape, t.dtype) for t, _ in surroundings.tensors.values()]
        self._bound = {id(array) for array in recording.bound.values()}
        met = {id(t) for t, _, _ in recording.met}
        self._met = [
            *recording.met,
            *((t, t._data, t._node) for t, *_ in self._seen_tensors if id(t._data) in self._bound and id(t) not in met),
        ]
        self._hooks = [(node, _hooks(node)) for node in {id(n): n for _, _, n in self._met if n is not None}.values()]
        self._scope: dict[str, Any] = {}
        self.guard_source = self._source(results, lock)
        self._fill_places()
        exec(compile(self.guard_source, "<gradflow compiled call>", "exec"), self._scope)
        self.call = self._scope.pop("call")

    def release(self) -> None:
        """Let go of the recorded call's arguments, and of what was met on the way."""
        self.signature.release()
        self.surroundings.release()

    # ------------------------------------------------------------ the generated check
    def _source(self, results: Results, lock: Any) -> str:
        signature, recording, scope = self.signature, self.recording, self._scope
        scope |= signature.scope | results.scope
        scope |= {
            "NO": NO, "get_mode": get_mode, "structure": structure, "mode": self.mode, "seen": None,
            "override": backend._override.get, "backend": backend._override.get(), "program": self.program,
            "acquire": lock.acquire, "release": lock.release, "this": weakref.ref(self),  # a cycle would keep the model
        }  # fmt: skip
        arrays = [*signature.arrays, *signature.source_of_gradients()]
        guards = [] if not recording.values else ["if not this().values_hold(): return NO"]
        if recording.writes_arguments:
            guards.append(f"if not this().are_apart(({', '.join(arrays)},)): return NO")
        elif written := recording.written_owners():
            scope["written"] = written
            kinds = {recording.facts[v][1] for v in recording.bound}
            guards += [
                f"if id({a} if (base := {a}.base) is None else base) in written: return NO"
                for a, variable in zip(signature.arrays, recording.arguments, strict=False)
                if recording.facts[variable][1] in kinds
            ]
        if self.program is not None and self.program.contiguous and not recording.writes_arguments:
            scope["contiguous"] = np.ascontiguousarray
            guards += [f"if not {a}.flags.c_contiguous: {a} = contiguous({a})" for a in signature.arrays]
        lines = [
            "def call(args, kwargs, r=None):",
            "if get_mode() is not mode or override() is not backend: return NO",
            *signature.lines,
            "if r is None:",
            "  try:",
            f"    fresh = structure.version == seen{self._conditions()}",
            "  except Exception:",
            "    fresh = False",
            "  if not fresh and not this().recheck(): return NO",
            *(f"  {line}" for line in guards),
            "  acquire()",
            "  try:",
            f"    r = program(({''.join(f'{a}, ' for a in arrays)}))",
            "    if not fresh: this().leave()",
            "  finally: release()",
            *results.gradients,
            *results.shared,
            f"return {results.expression}",
        ]
        return "\n".join([lines[0], *(f"    {line}" for line in lines[1:])])

    def _conditions(self) -> str:
        """What is compared at every call; the values stand in the scope, where `_fill_places` puts them."""
        found = self.surroundings
        self._places: list[tuple[Any, Any]] = []
        conditions = ["live == copies"] if found.containers else []
        for i, (_, attributes, _) in enumerate(found.sizes):
            self._scope[f"sized{i}"] = attributes
            conditions.append(f"len(sized{i}) == size{i}")
        self._ordered = list(found.ordered())
        for i, live in enumerate(self._ordered):
            self._scope[f"ordered{i}"] = live
            conditions.append(f"[*ordered{i}] == order{i}")
        places = {(id(e.holder), e.key): (e.holder, e.key) for e in found.entries}
        for _, live, _ in found.containers:
            if isinstance(live, set):
                continue
            pairs = live.items() if isinstance(live, dict) else enumerate(live)
            numbers = id(live) not in found.librarys  # 2 or 2.0 is the same to a layer
            places |= {(id(live), key): (live, key) for key, value in pairs if _equal_by_value(value, numbers)}
        for i, (holder, key) in enumerate(places.values()):
            self._places.append((holder, key))
            conditions.append(f"{self._read(i, holder, key)} is p{i}")
        return "".join(f" and {condition}" for condition in conditions)

    def _read(self, i: int, holder: Any, key: Any) -> str:
        """The expression that reads a place."""
        if isinstance(holder, _Cell):
            self._scope[f"h{i}"] = holder.cell
            return f"h{i}.cell_contents"
        if isinstance(holder, _Code | _Slots):
            self._scope[f"h{i}"] = holder.function if isinstance(holder, _Code) else holder.value
            return f"h{i}.{key}"
        self._scope[f"h{i}"], self._scope[f"key{i}"] = holder, key
        return f"h{i}[{key!r}]" if type(key) in (str, int) else f"h{i}[key{i}]"

    def _fill_places(self) -> None:
        """Put what is seen now into the scope of the check."""
        found, scope = self.surroundings, self._scope
        scope["live"] = tuple(live for _, live, _ in found.containers)
        scope["copies"] = tuple(copy for _, _, copy in found.containers)
        for i, (_, _, count) in enumerate(found.sizes):
            scope[f"size{i}"] = count
        for i, ordered in enumerate(self._ordered):
            scope[f"order{i}"] = list(ordered)
        for i, (holder, key) in enumerate(self._places):
            scope[f"p{i}"] = holder[key]

    # ------------------------------------------------------------ the close look
    def recheck(self) -> bool:
        """Whether the program is right although something has moved; then what is seen now is the new measure."""
        version = structure.version
        self.reason = self._difference()
        if self.reason:
            return False
        for leaf, present in self.recording.leaves.items():
            if present and leaf not in self.recording.argument_leaves:
                now, kept = leaf.grad, lasting_gradient(leaf, leaf.grad)
                if now is not kept:
                    kept._xp.assign(kept._data, now._data)
                    leaf.grad = kept
                    structure.changed()
        self.surroundings.refresh()
        self._fill_places()
        self._scope["seen"] = version
        return True

    def _difference(self) -> str:
        """What differs from the recorded call, in words; empty if nothing does."""
        if config.get_default_dtype() != self._dtype:
            return "another default dtype"
        if structure.rules != self._rules:
            return "a derivative rule or an implementation was registered"
        for change in self.surroundings.changes():
            return str(change)
        for t, data, node in self._met:
            if t._data is not data:
                return f"a {type(t).__name__} of shape {t.shape} has other memory"
            if t._node is not node:
                return f"a {type(t).__name__} of shape {t.shape} began or ceased to require grad"
        for t, frozen, shape, dtype in self._seen_tensors:
            if (t._node is None, t.shape, t.dtype) != (frozen, shape, dtype):
                return f"a {type(t).__name__} of shape {t.shape} began or ceased to require grad, or is another"
        for node, hooks in self._hooks:
            if _hooks(node) != hooks:
                return "hooks were added or removed"
        for leaf, present in self.recording.leaves.items():
            if (
                present is not None
                and leaf not in self.recording.argument_leaves
                and (leaf.grad is not None) != present
            ):
                return f"a leaf of shape {leaf.shape} had {'a' if present else 'no'} gradient when the call began"
        for probe, value in self.recording.probes:
            if not _same_fact(probe(), value):
                return "an optimizer groups its parameters in another way, or a generator has moved"
        return ""

    def values_hold(self) -> bool:
        """Whether the tensors that Python read while recording hold what they held then."""
        for t, before, _ in self.recording.values:
            if not np.array_equal(t.backend.to_numpy(t._data), before, equal_nan=before.dtype.kind == "f"):
                self.reason = f"a tensor of shape {t.shape} that Python reads holds other values"
                return False
        return True

    def are_apart(self, arrays: tuple[Any, ...]) -> bool:
        """Whether no two arguments, and no argument and the function's state, share memory."""
        extent = self.recording._xp.backend.extent
        owners = {id(extent(array)[0]) for array in arrays}
        apart = len(owners) == len(arrays) and owners.isdisjoint(
            {id(extent(array)[0]) for array in self.recording.bound.values()}
        )
        if not apart:
            self.reason = "arguments share memory, and the function writes into one"
        return apart

    def leave(self) -> None:
        """Give every leaf the gradient that the function leaves; the program has written its values."""
        moved = False
        for leaf, final in self.recording.left.items():
            if leaf.grad is not final:
                leaf.grad = final
                moved = True
        if moved:
            structure.changed()


def _hooks(node: Any) -> list[Any]:
    return list(getattr(node, "hooks", {}).values())


def _same_fact(a: Any, b: Any) -> bool:
    return a is b or type(a) is tuple and type(b) is tuple and a == b


def _equal_by_value(value: Any, numbers: bool) -> bool:
    """Whether another object could be equal to a value, and yet make a difference; `numbers` if 2 and 2.0 do."""
    kind = type(value)
    if kind in SIMPLE:
        return numbers and kind in (int, float, complex)
    if isinstance(value, types.FunctionType | list | dict | tuple | set | frozenset):
        return False
    if isinstance(value, Tensor | np.ndarray):
        return value.size == 1  # more have no truth value: the comparison raises, and something has changed
    return "__eq__" in {name for c in kind.__mro__[:-1] for name in vars(c)}
