"""`gf.compile`: a call is recorded once, runs as one program, and is recorded again when what matters differs."""

from __future__ import annotations

import random
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

import numpy as np

from gradflow import config, structure
from gradflow.arguments import flag, not_async, number, wrong_kind
from gradflow.compiler.debug import Checked
from gradflow.compiler.profile import Profile
from gradflow.compiler.program import Generated, Program, make_program, own
from gradflow.compiler.recording import Recording
from gradflow.compiler.signature import Results, Signature, as_recorded
from gradflow.compiler.specialisation import NO, Specialisation
from gradflow.compiler.surroundings import Change, Surroundings
from gradflow.errors import ArgumentError, TracedValueError, explain
from gradflow.mode import Mode, get_mode, using
from gradflow.primitive import namespace
from gradflow.tape import Leaf

P = ParamSpec("P")
R = TypeVar("R")

_MANY = 8  # specialisations, after which a warning tells what makes them
_MOST = 64  # specialisations that are kept; the one unused for longest goes
_TRIES = 3  # recordings in a row that are no use for the next call, after which a function runs eagerly


class CompileWarning(UserWarning):
    """A compiled function that cannot be as fast as it should."""


class _Ran(NamedTuple):
    """A call that was recorded: what went in, what was written down, what came out, and what else it did."""

    signature: Signature
    recording: Recording
    results: Results
    after: Surroundings
    known: Callable[[Any], bool]
    mode: Mode
    changes: list[Change]
    refusal: TracedValueError | None


class Compiled(Generic[P, R]):
    """A function that runs as a program; made by `compile`.

    A `modest` one never refuses: where `compile` would raise or warn, it runs eagerly from then on and logs a line.
    """

    _tells_changes = True  # another compiled function that calls this one need not look at it, only at the function

    def __init__(self, function: Callable[P, R], debug: bool, enabled: bool, modest: bool = False) -> None:
        self._function, self._debug, self._modest = function, debug, modest
        self._eager_because = "" if enabled else "GRADFLOW_COMPILE=0"
        self._specialisations: list[Specialisation] = []
        self._latest: Specialisation | None = None
        self._lock = threading.RLock()
        self._first: set[str] = set()  # places that a recorded call filled for the first time
        self._useless = self._recorded = 0
        self._arguments: tuple[Any, Any] = ((), {})
        this = weakref.ref(self)
        self._forgets_dead: Callable[[Any], None] = lambda _: forget_dead(this())
        update_wrapper(self, function, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the program for these arguments; record one first if there is none."""
        latest = self._latest
        if latest is not None and (out := latest.call(args, kwargs)) is not NO:
            return out
        if get_mode().interpreter is not None or self._eager_because:  # in a trace it becomes a part of that
            return self.eager(args, kwargs)
        with self._lock:
            return self._find_or_record(args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_function" not in vars(self):
            raise AttributeError(name)
        return getattr(self._function, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled[P, R]:
        from copy import deepcopy

        return Compiled(deepcopy(self._function, memo), self._debug, not self._eager_because, self._modest)

    def __reduce__(self) -> Any:
        return _restored, (self._function, self._debug)

    def __repr__(self) -> str:
        name = getattr(self._function, "__qualname__", type(self._function).__name__)
        count = len(self._specialisations)
        return f"<compiled {name}, {count} specialisation{'s' * (count != 1)}>"

    # ------------------------------------------------------------ for users
    def eager(self, args: Any, kwargs: Any) -> R:
        """Run the function itself; it gets NumPy arrays as Tensors, as when it is recorded."""
        if self._modest:
            return self._function(*args, **kwargs)
        return self._function(*as_recorded(args), **as_recorded(kwargs))

    def explain(self) -> str:
        """What has been compiled, for which arguments, how, and why so often."""
        lines = [repr(self)]
        if self._eager_because:
            lines.append(f"runs eagerly: {self._eager_because}")
        for i, found in enumerate(self._specialisations):
            lines += [
                f"{i}: ({found.signature.text}){'' if found.mode.recording else ' under no_grad'}",
                f"   made because of {found.why}",
                f"   {len(found.recording.equations)} equations",
                *(f"   {line}" for line in (found.program.describe() if found.program else "").splitlines()),
            ]
        return "\n".join(lines)

    def source(self) -> str:
        """The programs, one after the other."""
        return "\n\n".join(
            f"# {i}: ({found.signature.text})\n{found.program.source()}"
            for i, found in enumerate(self._specialisations)
            if found.program is not None
        )

    def profile(self, seconds: float = 1.0) -> Profile:
        """How long each item of the latest program takes, against what this machine can do; state is left as it was.

        Args:
            seconds: about how long to measure.

        Raises:
            ArgumentError: nothing is compiled yet, or it runs equation by equation.
        """
        program = None if self._latest is None else self._latest.program
        if not isinstance(program, Generated):
            raise ArgumentError(
                explain(
                    f"a profile of {self!r}.",
                    f"it shows the items of generated code; {self._no_items()}.",
                    "step(x, t); step(x, t); print(step.profile())",
                )
            )
        with self._lock:
            return program.profile(number("profile", "seconds", seconds))

    def _no_items(self) -> str:
        program = None if self._latest is None else self._latest.program
        return "there is no program yet" if program is None else f"there are {program.describe()}"

    def clear(self) -> None:
        """Forget all programs; the next call records again."""
        with self._lock:
            self._specialisations, self._latest = [], None
            self._useless = self._recorded = 0
            self._first.clear()
            if self._eager_because != "GRADFLOW_COMPILE=0":
                self._eager_because = ""

    # ------------------------------------------------------------ choosing and recording
    def _find_or_record(self, args: Any, kwargs: Any) -> Any:
        if self._debug:
            self._arguments = args, kwargs
        for found in self._specialisations:
            found.reason = ""
            if (out := found.call(args, kwargs)) is not NO:
                self._specialisations.remove(found)
                self._specialisations.insert(0, found)
                self._latest = None if self._debug else found
                return out
        if any(found.reason.startswith("arguments share memory") for found in self._specialisations):
            return self.eager(args, kwargs)
        try:
            return self._record(args, kwargs)
        except TracedValueError as error:
            if not self._modest:
                raise
            self._give_up(str(error).partition("\n")[0])
            done = vars(error).pop("_result", NO)
            return self.eager(args, kwargs) if done is NO else done

    def _record(self, args: Any, kwargs: Any) -> Any:
        """Run the function and write it down; keep the program if it can be right for another call."""
        ran = self._run(args, kwargs)
        recording, xp = ran.recording, ran.recording._xp or namespace()
        state = [*recording.bound.values(), *(t._data for t in ran.signature.tensors)]
        computed = [t._data for t in recording.finish(ran.results.take_tensors())]
        first = own(computed, [*state, *recording.bound.values()], xp)
        del computed, state
        useless = ran.refusal is not None or ran.changes or recording.moved() or recording.meets(ran.signature.tensors)
        program: Program | None = None
        if not useless:
            recording.find_created()
            program = make_program(recording, xp)
            if self._debug:
                program = self._checked(program, ran)
        found = Specialisation(ran.signature, ran.results, recording, ran.after, program, ran.mode, self._lock)
        result = found.call(args, kwargs, first)
        if not self._debug:
            found.release()
        structure.changed()
        if ran.refusal is not None:
            vars(ran.refusal)["_result"] = result
            raise ran.refusal
        self._first.update(change.path for change in ran.changes)
        if useless:
            self._count_useless(recording.moved())
        else:
            self._keep(found)
        return result

    def _run(self, args: Any, kwargs: Any) -> _Ran:
        """Run the function under a recording; on a refusal, its values and gradients are those from before."""
        roots = {"self" if isinstance(self._function, types.MethodType) else "function": self._function}
        before = Surroundings(roots, _is_module)
        signature = Signature(args, kwargs, before.tensors, self._forgets_dead)
        if signature.objects:
            roots |= {path: value for value, path in signature.objects}
            before = Surroundings(roots, _is_module)
        arrays = {t._node: t._data for t, _ in before.tensors.values() if type(t._node) is Leaf}
        recording = Recording(arrays)
        recording.begin(signature.tensors, signature.gradients, [leaf for leaf, _ in signature.leaves])
        mode, dtype, noise = get_mode(), config.get_default_dtype(), _noise(before)
        given = {id(value) for value, _ in signature.objects}
        try:
            with using(Mode(mode.recording, recording)):
                out = self._function(*signature.args, **signature.kwargs)
                switched = get_mode().recording is not mode.recording
            recording.check_reads()
            after = Surroundings(roots, _is_module)

            def known(value: Any) -> bool:
                return after.reaches(value) or id(value) in given

            results = Results(out, signature, recording, known)
        except TracedValueError:
            recording.undo()
            raise
        changes = [*before.changes(), *before.consumed()]
        refusal = self._refusal(before, changes, switched, dtype, noise)
        if refusal is None and (kind := signature.changed_container()):
            refusal = _side_effect(f"the function changed a {kind} among its arguments", "return a new one instead")
        return _Ran(signature, recording, results, after, known, mode, changes, refusal)

    def _checked(self, program: Program, ran: _Ran) -> Program:
        """The program with a check against the function in its first calls."""
        seen = ran.after
        names = {id(t._data): path for t, path in seen.tensors.values()}
        names |= {id(t._node): path for t, path in seen.tensors.values() if t._node is not None}

        def again() -> Signature:
            return Signature(*self._arguments, seen.tensors, self._forgets_dead)

        def name_of(what: Any) -> str:
            return names.get(id(what), f"a state of shape {what.shape}")

        return Checked(program, ran.recording, again, self._function, ran.known, name_of)

    def _refusal(
        self, before: Surroundings, changes: list[Change], switched: bool, dtype: Any, noise: Any
    ) -> TracedValueError | None:
        """The error for what the recorded call did beside computing."""
        again = [change for change in changes if not change.is_first or change.path in self._first]
        if again:
            change = again[0]
            lines = before.lines_about(change.name)
            at = f" at {', '.join(lines)}" if lines else ""
            return _side_effect(f"{change}: the function changed it{at}", "return it instead, and change it outside")
        if switched:
            return _side_effect("the function switched recording on or off", "with gf.no_grad(): inside it")
        if config.get_default_dtype() != dtype:
            return _side_effect("the function set the default dtype", "set it outside")
        if _noise(before) != noise:
            return _side_effect(
                "the function drew random numbers from NumPy or Python", "gf.random.normal(...), gf.random.uniform(...)"
            )
        return None

    def _count_useless(self, moved: str) -> None:
        """Note that a recorded call gave its own state other memory, so that its program fits no other."""
        self._useless += bool(moved)
        if self._useless >= _TRIES:
            self._give_up(f"no recorded call was of use for the next: {moved}")

    def _keep(self, found: Specialisation) -> None:
        """Keep a specialisation for the next calls."""
        found.why = self._why(found)
        self._useless = 0
        self._recorded += 1
        self._specialisations = [found, *(s for s in self._specialisations if not s.recording.moved())][:_MOST]
        self._latest = None if self._debug else found
        if self._recorded == _MANY and self._modest:
            self._give_up(f"{_MANY} recorded calls were not enough, the last time because of {found.why}")
        elif self._recorded == _MANY:
            self._warn(f"it has been compiled {_MANY} times, the last time because of {found.why}")

    def _why(self, found: Specialisation) -> str:
        reasons = [s.reason for s in self._specialisations if s.reason]
        if reasons:
            return reasons[0]
        if not self._specialisations:
            return "the first call"
        other = self._specialisations[0]
        if other.mode is not found.mode:
            return "another grad mode"
        return f"other arguments: ({found.signature.text}) and not ({other.signature.text})"

    def _give_up(self, why: str) -> None:
        """Run eagerly from now on, and say so."""
        self._eager_because, self._latest = why, None
        if not self._modest:
            self._warn(f"{why}; it runs eagerly from now on")
            return
        import logging

        logging.getLogger("gradflow").info("%s runs eagerly: %s", self._function.__name__, why)

    def _warn(self, what: str) -> None:
        name = getattr(self._function, "__qualname__", type(self._function).__name__)
        warnings.warn(f"compiled {name}: {what}. See its explain().", CompileWarning, stacklevel=2)


def forget_dead(compiled: Compiled[Any, Any] | None) -> None:
    """Drop the specialisations for objects that are gone: their parameters go with them."""
    if compiled is None:
        return
    with compiled._lock:
        kept = [s for s in compiled._specialisations if all(r() is not None for r in s.signature.references)]
        compiled._specialisations = kept
        if compiled._latest not in kept:
            compiled._latest = None


def _restored(function: Callable[P, R], debug: bool) -> Compiled[P, R]:
    return Compiled(function, debug, config.env_flag("GRADFLOW_COMPILE", default=True))


def _side_effect(what: str, fix: str) -> TracedValueError:
    return TracedValueError(explain(f"{what}.", "Python runs in the first call only, and would not do it again.", fix))


def _is_module(value: Any) -> bool:
    """Whether the library goes through the attributes of an object: a Module, told by what it can do."""
    kind = type(value)
    return hasattr(kind, "named_parameters") and hasattr(kind, "forward")


def _noise(surroundings: Surroundings) -> tuple[Any, ...]:
    """The states of the generators that are not the library's own."""
    states: list[Any] = [np.random.get_state(legacy=False)]  # noqa: NPY002
    states += [generator.bit_generator.state for generator in surroundings.generators]
    return random.getstate(), repr(states)


def compiled_where_safe(function: Callable[P, R]) -> Compiled[P, R]:
    """A function that is compiled if it can be, and runs eagerly otherwise, with a line in the log."""
    return Compiled(function, False, config.env_flag("GRADFLOW_COMPILE", default=True), modest=True)


@overload
def compile(function: Callable[P, R], *, debug: bool = False) -> Compiled[P, R]: ...
@overload
def compile(*, debug: bool = False) -> Callable[[Callable[P, R]], Compiled[P, R]]: ...
def compile(function: Any = None, *, debug: bool = False) -> Any:
    """Make a function run as one program: recorded at its first call, run without Python from then on.

    The first call runs eagerly and is written down: forward pass, backward sweep, optimizer, and all. Later calls run
    what was written, on new arguments. Parameters, buffers, optimizer state, hyper-parameters and random state are read
    and written where they lie, so a new learning rate or a loaded state dict is seen. Whatever else could make a
    difference (shapes, dtypes, static values, train or eval, frozen layers, attributes, closures, globals) is looked at
    in every call, in about a microsecond, and records a further program where it differs. Installed packages are taken
    not to change.

    Python runs in recorded calls alone. What needs it at every call raises: reading a computed value (`.item()`,
    `bool(t)`, a mask as an index), and effects beside the result (an attribute set, a list appended to). NumPy's own
    arithmetic on arrays, and printing, happen once.

    Arguments and results may be nested tuples, lists, dicts, named tuples and dataclasses. NumPy arrays come in as
    Tensors. Results are new memory at every call and have no history: call `backward()` inside. `.grad` afterwards is
    what eager leaves, in memory that the next call overwrites: keep a copy of it.

    Args:
        function: a function, a method, a Module, or anything that is called.
        debug: hold the first calls of each program against the function, with results, states and gradients.

    Returns:
        A function of the same arguments, with `explain()`, `source()`, `profile()` and `clear()`. With
        ``GRADFLOW_COMPILE=0`` in the environment it runs eagerly; so it does under `gf.detect_anomaly()`.

    Raises:
        DTypeError: something that cannot be called, or a coroutine function.
        TracedValueError: (when called) the function does what no program can; the line and a way out are named.
        CompilationError: (when called, with `debug`) a program differs from the function.

    >>> model = gf.nn.Linear(2, 1)
    >>> optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    >>> @gf.compile
    ... def step(x, t):
    ...     loss = gf.mse_loss(model(x), t)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> losses = [step(gf.ones((4, 2)), gf.zeros((4, 1))).item() for _ in range(20)]
    >>> losses[-1] < losses[0] / 10
    True
    >>> step
    <compiled step, 1 specialisation>
    """
    debug = flag("compile", "debug", debug)
    if function is None:
        return lambda f: compile(f, debug=debug)
    if not callable(function):
        raise wrong_kind("compile", "function", function, "it is called.", "gf.compile(step)")
    not_async("compile", function, "compile the function that it calls to compute")
    if isinstance(function, Compiled):
        return function
    return Compiled(function, debug, config.env_flag("GRADFLOW_COMPILE", default=True))
