"""Programs: what a trace becomes. Generated code where there is a code generator, else equation by equation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from gradflow import tape
from gradflow.compiler.build import build, plan_of
from gradflow.compiler.describe import describe
from gradflow.compiler.generator import Executable
from gradflow.compiler.profile import Profile
from gradflow.compiler.symbols import UnsupportedError
from gradflow.compiler.trace import Equation, Trace
from gradflow.mode import NO_GRAD, using
from gradflow.tensor import wrap

Arrays = tuple[Any, ...]


class Program(Protocol):
    """Runs a trace on new arguments, and reads and writes what the trace has bound where it lies.

    Attributes:
        contiguous: whether the arguments must be C-contiguous.
    """

    contiguous: bool

    def __call__(self, arrays: Arrays) -> Arrays:
        """The results for these arguments, in memory that nobody else has; marks what it writes on the tape's clock."""

    def describe(self) -> str:
        """What it does, and how, for `explain()`."""

    def source(self) -> str:
        """The text of the program, for `source()`."""


def make_program(trace: Trace, xp: Any) -> Program:
    """A program that does what a trace says, on the arrays of the backend behind `xp`."""
    generator = xp.backend.code_generator()
    if generator is None:
        return Interpreted(trace, xp, f"the {xp.backend.name} backend generates no code")
    try:
        return Generated(trace, xp, build(trace, xp, generator))
    except UnsupportedError as error:
        return Interpreted(trace, xp, str(error))


class Generated:
    """Runs generated code."""

    contiguous = True

    def __init__(self, trace: Trace, xp: Any, executable: Executable) -> None:
        self.executable = executable
        self._trace, self._xp, self._run = trace, xp, executable.run
        written = {e.operands[i] for e in trace.equations for i in range(e.primitive.writes)}
        bound = [trace.bound[v] for v in sorted(written) if v in trace.bound]
        self._mark = tape.writes.pen(bound, xp.backend.extent).mark if bound else None

    def __call__(self, arrays: Arrays) -> Arrays:
        """Run it."""
        try:
            out = self._run(arrays)
        except (ValueError, TypeError, IndexError):  # of a kernel outside the generated code
            self._raise(arrays)
            raise
        if out is None:
            self._raise(arrays)
            raise AssertionError("a check of the program failed that no operation fails")
        if self._mark is not None:
            self._mark()
        return out

    def _raise(self, arrays: Arrays) -> None:
        """Run equation by equation, writing into copies, for the error of the operation that was given wrong values."""
        trace, xp = self._trace, self._xp
        written = {e.operands[i] for e in trace.equations for i in range(e.primitive.writes)}
        values = {v: xp.as_array(a, copy=True) if v in written else a for v, a in trace.bound.items()}
        Interpreted(trace, xp, "").run(arrays, values)

    def describe(self) -> str:
        """Groups, regions and memory: planned once more, as a program keeps no plan."""
        plan = plan_of(self._trace, self._xp, self._xp.backend.code_generator())
        try:
            return describe(plan)
        finally:
            plan.graph.dissolve()

    def profile(self, seconds: float) -> Profile:
        """Time the items on made-up arguments: normal numbers, zeros for integers."""
        rng = np.random.default_rng(0)
        facts = [self._trace.facts[v] for v in self._trace.arguments]
        arrays = tuple(rng.normal(size=n).astype(d) if d.kind == "f" else np.zeros(n, d) for n, d in facts)
        made = [self._xp.as_array(array) for array in arrays]
        return Profile(self.executable.profile(made, seconds), self.executable.ceilings())

    def source(self) -> str:
        """The generated code."""
        return self.executable.source()


class Interpreted:
    """Runs the equations one after the other with the backend's kernels; a value goes after its last use."""

    contiguous = False

    def __init__(self, trace: Trace, xp: Any, because: str) -> None:
        self._trace, self._xp, self._because = trace, xp, because
        self._steps: list[tuple[Callable[..., Any], Equation, list[int]]] = []
        kept = {*trace.bound, *trace.arguments, *trace.results}
        for equation in reversed(trace.equations):
            primitive, operands, _, output = equation
            last = [v for v in {*operands, *(() if output is None else (output,))} if v not in kept]
            kept.update(last)
            self._steps.append((getattr(xp, primitive.name), equation, last))
        self._steps.reverse()

    def __call__(self, arrays: Arrays) -> Arrays:
        """Run it."""
        trace = self._trace
        results = self.run(arrays, dict(trace.bound))
        return own(results, [*trace.bound.values(), *arrays], self._xp)

    def run(self, arrays: Arrays, values: dict[int, Any]) -> list[Any]:
        """Run the equations on arguments, and on values of what is bound."""
        xp = self._xp
        mark, extent = tape.writes.mark, xp.backend.extent
        values.update(zip(self._trace.arguments, arrays, strict=True))
        for function, equation, last in self._steps:
            operands = [values[v] for v in equation.operands]
            try:
                out = function(*operands, **equation.settings)
            except Exception:
                with using(NO_GRAD):  # for the error that users of the operation get
                    equation.primitive.function(*(wrap(a, xp) for a in operands), **equation.settings)
                raise
            if equation.output is None:
                mark(operands[0], extent)
            else:
                values[equation.output] = out if out.shape else xp.as_array(out)
            for v in last:
                del values[v]
        return [values[v] for v in self._trace.results]

    def describe(self) -> str:
        """How many equations there are."""
        return f"{len(self._steps)} equations, run one by one: {self._because}"

    def source(self) -> str:
        """The equations."""
        return str(self._trace)


def own(results: Iterable[Any], others: Iterable[Any], xp: Any) -> Arrays:
    """The results, copied where one is a view, or shares memory with another result or with anything else."""
    extent = xp.backend.extent
    taken = {id(extent(array)[0]) for array in others}
    fresh = []
    for array in results:
        owner = extent(array)[0]
        if owner is not array or id(owner) in taken:
            array = owner = xp.as_array(array, copy=True)
        taken.add(id(owner))
        fresh.append(array)
    return tuple(fresh)
