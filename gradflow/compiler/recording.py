"""Recording a call for a program: a trace that also knows what outside of the operations decided its course.

Beside the equations it notes the leaves whose gradients the call looked at or replaced, the values of untraced tensors
that Python read, and facts of the library's own state (how an optimizer groups its parameters). Guards hold the next
call against them. Gradients that outlive the call become writes into one lasting Tensor for each leaf.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gradflow import structure, tape
from gradflow.compiler.trace import Equation, Trace, user_line
from gradflow.errors import TracedValueError, explain
from gradflow.mode import Interpreter, get_mode
from gradflow.primitive import REGISTRY, Primitive
from gradflow.tape import Leaf
from gradflow.tensor import Tensor, wrap

_LASTING: weakref.WeakKeyDictionary[Leaf, Tensor] = weakref.WeakKeyDictionary()  # the gradients that programs write
_READABLE = 1024  # elements of a tensor that Python may read while a call is recorded: they are compared at every call


def lasting_gradient(leaf: Leaf, now: Tensor, like: Any = None) -> Tensor:
    """The Tensor into which programs write the gradient of a leaf, in the memory order of `like`; made if need be."""
    found = _LASTING.get(leaf)
    if found is None or found._xp is not now._xp:
        found = _LASTING[leaf] = wrap(now._xp.as_array(now._data if like is None else like, copy=True), now._xp)
    return found


class Recording(Trace):
    """The trace of a call, with what it depends on.

    Attributes:
        leaves: leaf -> whether it had a gradient when the call began; None where that makes no difference.
        left: leaf -> the lasting Tensor that the call leaves as its gradient, or None.
        probes: what decided which operations ran, and how to ask again.
        values: untraced tensors that Python read, copies of what they held, and where it was.
        met: the tensors whose memory is bound, with their memory and node.
        created: bound variables whose values never change.
        writes_arguments: whether an argument was written in place.
        argument_leaves: the leaves that stand for arguments; their gradients are handed in and out.
    """

    def __init__(self, arrays_of_leaves: dict[Leaf, Any]) -> None:
        super().__init__(keep_sites=True)
        self.leaves: dict[Leaf, bool | None] = {}
        self.left: dict[Leaf, Tensor | None] = {}
        self.probes: list[tuple[Callable[[], Any], Any]] = []
        self.values: list[tuple[Tensor, np.ndarray, str]] = []
        self.met: list[tuple[Tensor, Any, Any]] = []
        self.created: set[int] = set()
        self.writes_arguments = False
        self.argument_leaves: set[Leaf] = set()
        self._arrays_of_leaves = arrays_of_leaves
        self._met: dict[int, tuple[weakref.ref[Tensor], Any, Any]] = {}
        self._tainted: set[int] = set()  # computed from the arguments, or from what the call writes
        self._sources: dict[int, frozenset[int]] = {}  # of what else is computed: the bound variables it comes from
        self._written: list[tuple[Any, int, int]] = []  # extents
        self._before: dict[int, tuple[Any, Any]] = {}  # written variable -> its array, a copy from before
        self._gradients_before: dict[Leaf, Tensor | None] = {}
        self._began = tape.tick()

    # ------------------------------------------------------------ the interpreter
    def begin(self, arguments: list[Tensor], gradients: list[Tensor], leaves: list[Leaf]) -> None:
        """Take the arguments, and the gradients that leaves among them have; later leaves are the call's own."""
        self.arguments = [self._new(t) for t in (*arguments, *gradients)]
        self.argument_leaves = set(leaves)
        self._began = tape.tick()
        self._outer: Interpreter | None = get_mode().interpreter

    def apply(
        self, primitive: Primitive, operands: tuple[Tensor, ...], settings: dict[str, Any], recording: bool
    ) -> Any:
        """Run one operation and write it down; keep what it is about to overwrite."""
        for t in operands[: primitive.writes]:
            self._about_to_write(t)
        out = super().apply(primitive, operands, settings, recording)
        equation = self.equations[-1]
        if equation.output is not None:
            if any(self.traces(t) for t in operands):
                self._tainted.add(equation.output)
            else:
                sources = (self._sources.get(v, frozenset([v])) for v in equation.operands)
                self._sources[equation.output] = frozenset().union(*sources)
        return out

    def _about_to_write(self, t: Tensor) -> None:
        variable = self._variable(t)
        if variable in self.arguments:
            self.writes_arguments = True
        if variable not in self._computed and variable not in self._before:
            self._before[variable] = t._data, t._xp.as_array(t._data, copy=True)
        self._written.append(t.backend.extent(t._data))

    def read(self, tensor: Tensor, how: str) -> None:
        """Refuse to hand out what the program computes; what it only reads is compared at every call.

        Raises:
            TracedValueError: a traced value, or more values than can be compared at every call.
        """
        if how.startswith("the number of elements") and self.traces(tensor):
            raise self.refusal(
                "a mask that the function computes, as an index",
                "how many elements it selects, and so the shape of the result, would be that of the first call.",
                "gf.where(mask, x, y), x * mask, or indices that are computed outside",
            )
        super().read(tensor, how)
        sources = [wrap(self.bound[v], self._xp) for v in self._sources.get(self._variable(tensor), ())] or [tensor]
        for source in sources:
            if source.size > _READABLE:
                raise self.refusal(
                    f"{how} of a tensor of {source.size} elements, or of what was computed from it",
                    "Python read it while the call was recorded, and it may hold other values at the next.",
                    "compute with the tensor itself, or read it outside of the function",
                )
            self.values.append((source, np.array(source.backend.to_numpy(source._data)), user_line(" at ")))

    def traces(self, tensor: Tensor) -> bool:
        """Whether a tensor's value depends on the arguments, or on what the call writes."""
        variable = self._known(tensor._data)
        if variable is not None and (variable in self._tainted or variable in self.arguments):
            return True
        if not self._written:
            return False
        owner, low, high = tensor.backend.extent(tensor._data)
        return any(owner is other and low < b and a < high for other, a, b in self._written)

    def check_reads(self) -> None:
        """Refuse a call that changes what Python read in it.

        Raises:
            TracedValueError: there is such a tensor.
        """
        for source, _, line in self.values:
            if self.traces(source):
                raise TracedValueError(
                    explain(
                        f"Python read a tensor of shape {source.shape}{line}, and the same call writes into it.",
                        "what it read would be used for ever, and the next call finds another value.",
                        "compute with the tensor itself: gf.where(condition, x, y) chooses by value",
                    )
                )

    def gradient(self, leaf: Any, *, replaced: bool = False) -> None:
        """Note the first look at a leaf's gradient, or that it is replaced without one."""
        if leaf.seq > self._began or leaf in self.leaves:
            return
        now = leaf.grad
        self._gradients_before[leaf] = now
        self.leaves[leaf] = None if replaced else now is not None
        if not replaced and now is not None and leaf not in self.argument_leaves:
            leaf.grad = self.adopt(leaf, now)

    def adopt(self, leaf: Leaf, now: Tensor) -> Tensor:
        """The leaf's lasting gradient with the values of the present one."""
        if now._node is not None:
            raise self.refusal(
                "a gradient with a history from before the call",
                "the program holds values, and cannot go back through what ran outside of it.",
                "p.grad = p.grad.detach() before the call, or gf.grad inside the function",
            )
        kept = lasting_gradient(leaf, now, self._arrays_of_leaves.get(leaf))
        if kept is not now:
            kept._xp.assign(kept._data, now._data)
        return kept

    def depends(self, probe: Callable[[], Any], /) -> None:
        """Note what decides which operations run."""
        self.probes.append((probe, probe()))

    def refuse(self, what: str) -> None:
        """Refuse what only Python can do.

        Raises:
            TracedValueError: always.
        """
        raise self.refusal(
            f"{what} inside a compiled function",
            "it looks at every operation as Python runs it, and a program runs without Python.",
            f"{what} around the call of the compiled function, which then runs eagerly",
        )

    def refusal(self, what: str, why: str, fix: str) -> TracedValueError:
        """The error for what cannot be recorded, with the user's line."""
        return TracedValueError(explain(f"{what}{user_line(' at ')}.", why, fix))

    def _variable(self, t: Tensor) -> int:
        variable = super()._variable(t)
        if variable in self.bound:
            found = self._met.get(id(t))
            if found is None or found[0]() is not t:
                self._met[id(t)] = weakref.ref(t), t._data, t._node
        if type(t._node) is Leaf:
            self._arrays_of_leaves.setdefault(t._node, t._data)
        return variable

    def _new(self, t: Tensor) -> int:
        if self._xp is not None and t._xp is not self._xp:
            raise self.refusal(
                f"tensors of two backends, {self._xp.backend.name} and {t._xp.backend.name},",
                "a program runs on one.",
                "model.to(backend), or compile the parts apart",
            )
        return super()._new(t)

    # ------------------------------------------------------------ after the call
    def met_so_far(self) -> list[tuple[Tensor, Any, Any]]:
        """The tensors whose memory is bound, with the memory and node they had when they were met."""
        return [(t, array, node) for reference, array, node in self._met.values() if (t := reference()) is not None]

    def written_owners(self) -> set[int]:
        """Ids of what owns the memory that the program writes."""
        return {id(owner) for owner, _, _ in self._written}

    def finish(self, results: list[Tensor]) -> list[Tensor]:
        """Write down which gradients the call leaves, and let go of all that was only computed on the way.

        Returns:
            The results, those in the memory of a gradient that is left as copies.
        """
        lasting = {id(g.backend.extent(g._data)[0]) for leaf in self.leaves if (g := _LASTING.get(leaf)) is not None}
        results = [self._apart(t, lasting) for t in results]
        self.results = [self._variable(t) for t in results]
        self._leave_gradients(lasting)
        self.met = self.met_so_far()
        self._variables.clear()
        self._before.clear()
        return results

    def moved(self) -> str:
        """What has taken other memory, or another place in the graph, since it was met: no other call is like this."""
        for t, data, node in self.met:
            if t._data is not data or t._node is not node:
                return f"a {type(t).__name__} of shape {t.shape} took other memory, or another place in the graph"
        return ""

    def meets(self, arguments: list[Tensor]) -> bool:
        """Whether an argument shares memory with something that is written: the trace does not hold for others."""
        owners = [id(t.backend.extent(t._data)[0]) for t in arguments]
        if self.writes_arguments:
            bound = {id(self._xp.backend.extent(array)[0]) for array in self.bound.values()}
            return len(set(owners)) < len(owners) or not bound.isdisjoint(owners)
        return not self.written_owners().isdisjoint(owners)

    def find_created(self) -> None:
        """Tell the constants that the call made: nobody else holds them, so nobody can write into them."""
        written = {v for equation in self.equations for v in equation.operands[: equation.primitive.writes]}
        kept = {id(t._data) for t, _, _ in self.met}
        (alone,) = _holders({0: self._xp.as_array(0.0) if self._xp is not None else None})
        self.created = {
            variable
            for (variable, array), holders in zip(self.bound.items(), _holders(self.bound), strict=True)
            if holders <= alone and variable not in written and id(array) not in kept and array.base is None
        }

    def _leave_gradients(self, lasting: set[int]) -> None:
        new: list[tuple[Leaf, Tensor, int]] = []
        for leaf in [leaf for leaf in self.leaves if leaf not in self.argument_leaves]:
            final = self.left[leaf] = leaf.grad
            if final is None or final is _LASTING.get(leaf):
                continue
            final = self._apart(final, lasting)  # two gradients may change places
            new.append((leaf, final, self._variable(final)))
        for leaf, final, variable in new:
            kept = self.left[leaf] = lasting_gradient(leaf, final, self._arrays_of_leaves.get(leaf))
            kept._xp.assign(kept._data, final._data)
            leaf.grad = kept
            self._written.append(kept.backend.extent(kept._data))
            self._write_down(Equation(REGISTRY["assign"], (self._variable(kept), variable), {}, None))

    def _apart(self, t: Tensor, lasting: set[int]) -> Tensor:
        """A tensor that lies in a lasting gradient, which is about to be written, as a copy."""
        if id(t.backend.extent(t._data)[0]) not in lasting:
            return t
        return self.apply(REGISTRY["copy"], (t,), {}, False)  # type: ignore[no-any-return]

    def undo(self) -> None:
        """Bring back the values and gradients from before the call."""
        for array, before in self._before.values():
            self._xp.assign(array, before)
            tape.writes.mark(array, self._xp.backend.extent)
        for leaf, gradient in self._gradients_before.items():
            leaf.grad = gradient
        structure.changed()


def _holders(arrays: dict[int, Any]) -> list[int]:
    """How many references there are to each array; the same for all that only the dict holds."""
    return [sys.getrefcount(array) for array in arrays.values()]
