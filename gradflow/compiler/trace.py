"""Tracing: run a function once, eagerly, and write down every operation as an equation.

The tracer is one more interpreter, entered through the mode; the engine knows nothing of it. Values flow along, so no
shape rules are needed. A value is known by its array as long as that lives: arrays that are neither arguments nor
results (parameters, optimizer state, hyper-parameters, constants) are bound by identity, never copied, so a replay
sees what they hold then. Backward sweeps run on Tensors while tracing, so derivatives become equations too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from gradflow import tape
from gradflow.errors import GraphError, ShapeError, TracedValueError, explain, users_frame
from gradflow.mode import NO_GRAD, RECORD, Interpreter, Mode, get_mode, using
from gradflow.primitive import Primitive
from gradflow.tensor import Tensor, wrap


class Equation(NamedTuple):
    """One operation: output = primitive(*operands, **settings), or a write into its first operands."""

    primitive: Primitive
    operands: tuple[int, ...]
    settings: dict[str, Any]
    output: int | None

    def __str__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self.settings.items())
        call = f"{self.primitive.name}({', '.join(f'v{v}' for v in self.operands)}{settings})"
        if self.output is not None:
            return f"v{self.output} = {call}"
        return f"{', '.join(f'v{v}' for v in self.operands[: self.primitive.writes])} := {call}"


class Trace:
    """The equations of one run.

    Attributes:
        equations: in order of execution.
        sites: for each equation the user's "file:line" that it came from; empty unless they are kept.
        arguments: the variables that a replay replaces.
        results: the variables that a replay returns.
        bound: variable -> array, for everything met that is neither argument nor result of an equation.
        facts: variable -> (shape, dtype).
    """

    on_tensors = True

    def __init__(self, *, keep_sites: bool = False) -> None:
        self.equations: list[Equation] = []
        self.sites: list[str] = []
        self.arguments: list[int] = []
        self.results: list[int] = []
        self.bound: dict[int, Any] = {}
        self.facts: dict[int, tuple[tuple[int, ...], Any]] = {}
        self._keep_sites = keep_sites
        self._variables: dict[int, tuple[int, weakref.ref[Any]]] = {}  # id of an array -> its variable, the array
        self._tensors: dict[int, weakref.ref[Tensor]] = {}
        self._computed: set[int] = set()
        self._xp: Any = None
        self._outer: Interpreter | None = None  # a trace in a trace, or in a hunt for NaNs: both see every operation

    # ------------------------------------------------------------ the interpreter
    def apply(
        self, primitive: Primitive, operands: tuple[Tensor, ...], settings: dict[str, Any], recording: bool
    ) -> Any:
        """Run one operation eagerly and write it down."""
        if primitive.name == "nonzero_index":
            self.read(operands[0], "the number of elements that a mask selects")
        inputs = tuple(self._variable(t) for t in operands)
        with using(Mode(recording, self._outer) if self._outer is not None else RECORD if recording else NO_GRAD):
            out = primitive.function(*operands, **settings)
        output = None if primitive.writes else self._new(out)
        if output is not None:
            self._computed.add(output)
        self._write_down(Equation(primitive, inputs, settings, output))
        return out

    def read(self, tensor: Tensor, how: str) -> None:
        """Refuse to hand out a value that the next call will compute anew.

        Raises:
            TracedValueError: always, for a traced value.
        """
        if self.traces(tensor):
            raise TracedValueError(
                explain(
                    f"{how} of a traced value{user_line(' at ')}.",
                    "the step is recorded once and replayed: what Python read now would be used for ever.",
                    "return the tensor from the step and read it outside; gf.where(condition, x, y) chooses by value",
                )
            )
        if self._outer is not None:
            self._outer.read(tensor, how)

    def sweep(self, root: Tensor, run: Callable[..., Any], lift: Any, hooks: Any, retain: bool) -> Any:
        """Run a backward sweep, whose operations come here one by one."""
        return (run if self._outer is None else partial(self._outer.sweep, root, run))(lift, hooks, retain)

    def gradient(self, leaf: Any, *, replaced: bool = False) -> None:
        """Hear that a gradient is looked at: a plain trace leaves gradients where the traced run put them."""
        if self._outer is not None:
            self._outer.gradient(leaf, replaced=replaced)

    def depends(self, probe: Callable[[], Any], /) -> None:
        """Hear what decides which operations run: a plain trace does not ask again."""
        if self._outer is not None:
            self._outer.depends(probe)

    def refuse(self, what: str) -> None:
        """Hear of what only Python can do: a plain trace goes without."""
        if self._outer is not None:
            self._outer.refuse(what)

    def traces(self, tensor: Tensor) -> bool:
        """Whether a tensor's value depends on the arguments or is computed by an equation."""
        variable = self._known(tensor._data)
        return variable is not None and (variable in self._computed or variable in self.arguments)

    def _write_down(self, equation: Equation) -> None:
        self.equations.append(equation)
        if self._keep_sites:
            self.sites.append(user_line())

    def _known(self, array: Any) -> int | None:
        found = self._variables.get(id(array))
        return found[0] if found is not None and found[1]() is array else None

    def _variable(self, t: Tensor) -> int:
        known = self._known(t._data)
        if known is None:
            known = self._new(t)
            self.bound[known], self._tensors[known] = t._data, weakref.ref(t)
        return known

    def _new(self, t: Tensor) -> int:
        self._xp, array = t._xp, t._data
        variable = len(self.facts)
        self.facts[variable] = array.shape, array.dtype
        self._variables[id(array)] = variable, weakref.ref(array)
        return variable

    # ------------------------------------------------------------ from a function, and back to a run
    def run(self, function: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Any:
        """Run a function of tensors under this trace."""
        first = {id(t._data): i for i, t in reversed(list(enumerate(arguments)))}
        arguments = tuple(  # one tensor given twice stands for two that the next call may tell apart
            t if first[id(t._data)] == i else wrap(t._xp.alias(t._data), t._xp, t._node)
            for i, t in enumerate(arguments)
        )
        self._outer = get_mode().interpreter
        self.arguments = [self._new(t) for t in arguments]
        with using(Mode(get_mode().recording, self)):
            out = function(*arguments)
        outputs = out if isinstance(out, tuple | list) else (out,)
        self.results = [self._variable(t) for t in outputs if isinstance(t, Tensor)]
        self._variables.clear()  # what was computed on the way goes; what is bound stays
        return out

    def replay(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Run the equations one by one on new arguments; states are read, and written, where they lie.

        Raises:
            ShapeError: arguments of other shapes or dtypes than the traced ones.
            GraphError: a tensor that is bound has other memory by now.
        """
        shapes = [self.facts[v] for v in self.arguments]
        if [(t.shape, t.dtype) for t in arguments] != shapes:
            raise ShapeError(
                explain(
                    f"a replay on {[(t.shape, t.dtype.name) for t in arguments]}.",
                    f"the trace holds for {[(shape, dtype.name) for shape, dtype in shapes]}.",
                    "trace the function again for other shapes",
                )
            )
        for variable, reference in self._tensors.items():
            if (t := reference()) is not None and t._data is not self.bound[variable]:
                raise GraphError(
                    explain(
                        f"a {type(t).__name__} of shape {t.shape} that this trace uses has other memory since.",
                        "model.to(), a second optimizer, or a recorded `t += value` gave it new memory.",
                        "trace the function again",
                    )
                )
        values = dict(self.bound)
        values.update(zip(self.arguments, (t._data for t in arguments), strict=True))
        for primitive, operands, settings, output in self.equations:
            arrays = [values[v] for v in operands]
            out = getattr(self._xp, primitive.name)(*arrays, **settings)
            if output is None:
                tape.writes.mark(arrays[0], self._xp.backend.extent)
            else:
                values[output] = out if out.shape else self._xp.as_array(out)
        return tuple(wrap(values[v], self._xp) for v in self.results)

    def __str__(self) -> str:
        return "\n".join(str(equation) for equation in self.equations)


def trace(function: Callable[..., Any], *arguments: Tensor) -> tuple[Any, Trace]:
    """Run a function of tensors and record it: its result, and the trace that replays it.

    >>> from gradflow.compiler import trace
    >>> out, recorded = trace(lambda x: gf.sqrt(x) * 2, gf.tensor([1.0]))
    >>> print(recorded)
    v1 = sqrt(v0)
    v3 = multiply(v1, v2)
    >>> recorded.replay(gf.tensor([9.0]))
    (tensor([6.]),)
    """
    recorded = Trace()
    return recorded.run(function, arguments), recorded


def user_line(before: str = "") -> str:
    """Where in the user's code the present call came from, as "file:line" behind `before`; empty if there is none."""
    frame = users_frame()
    return "" if frame is None else f"{before}{frame.f_code.co_filename}:{frame.f_lineno}"
