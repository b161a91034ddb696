"""Derivatives held against finite differences, along random directions or element by element.

A check costs a few dozen evaluations of the function however large its arguments are: the derivative of Σ u·f(x + h·v)
with respect to h, for random u and v, is compared with ⟨u, J v⟩. Where the two differ, the direction is halved until
the element that is to blame stands alone; if it lies at a kink, where no derivative is the right one, it is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gradflow.arguments import integer, number
from gradflow.backend import Backend
from gradflow.errors import (
    ArgumentError,
    DTypeError,
    GradflowError,
    WrongDerivativeError,
    explain,
)
from gradflow.mode import NO_GRAD, RECORD, Interpreter, Mode, get_mode, using
from gradflow.primitive import Primitive
from gradflow.tensor import Tensor
from gradflow.testing.comparison import Comparison, How, Rejection, Wrong, direction
from gradflow.testing.subject import Array, Function, Subject, derivative_of, to_host
from gradflow.transforms import flatten

_PRINTED = 64  # elements: a reproducing line shows arrays up to this size


class KinkWarning(UserWarning):
    """Nothing could be checked at a point: every direction meets a kink, a jump or the end of the domain."""


class Checked(NamedTuple):
    """What a check has compared, and what it had to leave out."""

    comparisons: int
    rejected: tuple[Rejection, ...] = ()

    def __add__(self, other: Checked) -> Checked:  # type: ignore[override]
        return Checked(self.comparisons + other.comparisons, self.rejected + other.rejected)


# ---------------------------------------------------------------- public functions
def gradcheck(
    f: Function,
    *inputs: Any,
    wrt: int | Sequence[int] | None = None,
    mode: How = "vjp",
    directions: int = 2,
    full: bool = False,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    seed: int = 0,
    backend: str | Backend | None = None,
) -> Checked:
    """Hold the first derivative of a function against finite differences in float64.

    The two must satisfy |⟨u, J v⟩ − d/dh ⟨u, f(x + h·v)⟩| ≤ atol + rtol·size + the error of the difference, where size
    is the larger of the two and of √Σ (gᵢvᵢ)².

    Args:
        f: takes the inputs; returns tensors in any nesting. A module is checked with respect to its parameters too.
        inputs: tensors, NumPy arrays or NumPy scalars, nested in tuples, lists and dicts as f takes them. Those of
            floating-point numbers are differentiated, as float64 copies; everything else is handed on as it is.
        wrt: positions of the inputs to differentiate; by default all.
        mode: "vjp" checks the reverse sweep vᵀJ, "jvp" the forward derivative J v.
        directions: how many random directions to try.
        full: compare the whole Jacobian, element by element, instead.
        rtol, atol: relative and absolute tolerance.
        seed: of the random directions.
        backend: where to compute; by default the chosen backend.

    Returns:
        The number of comparisons made, and the elements that were left out because they lie at a kink (unless their
        derivative is the mean of both slopes, as the least-norm one often is). Where nothing could be compared, a
        Hypothesis test is told to draw another example, and any other caller gets a `KinkWarning`.

    Raises:
        WrongDerivativeError: derivative and finite differences disagree.
        NondeterministicError: two calls on the same inputs differ.
        MutatedInputError: f or its derivative wrote into an input.
        ArgumentError: nothing to differentiate.

    >>> from gradflow import testing
    >>> testing.gradcheck(lambda x, y: (gf.tanh(x) * y).sum(), np.ones((3, 2)), np.arange(2.0))
    Checked(comparisons=2, rejected=())
    >>> testing.gradcheck(gf.relu, np.array([-1.0, 0.0, 1.0])).rejected
    (Rejection(argument='argument 0', element=1, reason='a kink: ...'),)
    """
    return _check(f, inputs, 1, mode, _Options(wrt, directions, full, rtol, atol, seed, backend))


def gradgradcheck(f: Function, *inputs: Any, **options: Any) -> Checked:
    """Hold the second derivative of a function against finite differences of the first; arguments as in `gradcheck`.

    What is differentiated is (x, u) ↦ uᵀJ(x), with respect to x and the cotangent u.

    >>> from gradflow import testing
    >>> testing.gradgradcheck(lambda x: gf.exp(x).sum(), np.ones(3)).comparisons
    2
    """
    return check_grads(f, inputs, order=2, modes=("vjp",), lowest=2, **options)


def check_grads(
    f: Function,
    args: Sequence[Any],
    order: int = 1,
    modes: Sequence[How] = ("vjp", "jvp"),
    *,
    lowest: int = 1,
    **options: Any,
) -> Checked:
    """Hold all derivatives up to an order against finite differences, by reverse and forward sweeps.

    Args:
        f: the function.
        args: its arguments, as in `gradcheck`.
        order: the highest order of derivative.
        modes: "vjp", "jvp" or both.
        lowest: the lowest order to check.
        options: those of `gradcheck`.

    Raises:
        WrongDerivativeError: with the order and the mode that are wrong.

    >>> from gradflow import testing
    >>> testing.check_grads(lambda x: gf.sigmoid(x).sum(), [np.ones(3)], order=3).comparisons
    12
    """
    order, lowest = integer("check_grads", "order", order), integer("check_grads", "lowest", lowest)
    if order < 1 or not 1 <= lowest <= order or not modes or not set(modes) <= {"vjp", "jvp"}:
        raise ArgumentError(
            explain(
                f"check_grads with order={order!r}, lowest={lowest!r}, modes={modes!r}.",
                'orders count from 1; the modes are "vjp" and "jvp".',
                'check_grads(f, args, order=2, modes=("vjp", "jvp"))',
            )
        )
    if not isinstance(args, list | tuple):
        raise DTypeError(
            explain(
                f"check_grads with args of type {type(args).__name__}.",
                "they are a list or tuple, with an item for each argument of f.",
                "check_grads(f, [x])",
            )
        )
    if unknown := options.keys() - set(_Options._fields):
        mistake = f"check_grads with {', '.join(sorted(unknown))}."
        raise DTypeError(explain(mistake, f"its options are {', '.join(_Options._fields)}.", "seed=1"))
    done = Checked(0)
    for k in range(lowest, order + 1):
        for mode in modes:
            done += _check(f, tuple(args), k, mode, _Options(**options))
    return done


# ---------------------------------------------------------------- the check
class _Options(NamedTuple):
    """How to check; see `gradcheck`."""

    wrt: int | Sequence[int] | None = None
    directions: int = 2
    full: bool = False
    rtol: float = 1e-6
    atol: float = 1e-9
    seed: int = 0
    backend: str | Backend | None = None


def _check(f: Function, inputs: tuple[Any, ...], order: int, mode: How, options: _Options) -> Checked:
    if mode not in ("vjp", "jvp"):
        raise ArgumentError(explain(f"mode={mode!r}.", 'a mode is "vjp" or "jvp".', 'mode="vjp"'))
    integer("gradcheck", "directions", options.directions, least=1, why="nothing would be compared.")
    integer("gradcheck", "seed", options.seed, least=0)
    for name in ("rtol", "atol"):
        if not number("gradcheck", name, getattr(options, name)) >= 0:
            wrong = f"gradcheck() got {name}={getattr(options, name)!r}."
            raise ArgumentError(explain(wrong, "a tolerance is not negative.", f"{name}=1e-6"))
    with np.errstate(all="ignore"):  # steps go beyond the domain on purpose
        return _compared(Subject(f, inputs, options.wrt, options.backend), order, mode, options)


def _compared(original: Subject, order: int, mode: How, options: _Options) -> Checked:
    subject = original
    if order > 1:
        function, arguments = derivative_of(original, order)
        subject = Subject(function, arguments, None, original.backend)
        subject.name, labels = original.name, original.labels
        subject.labels = [*labels, *(f"cotangent {i}" for i in range(len(arguments) - len(labels)))]
    rng = np.random.default_rng(options.seed)
    check = Comparison(subject, mode, options.rtol, options.atol)
    check.steady(rng)
    wrong = check.every_element() if options.full else None
    for _ in range(0 if options.full else options.directions):
        check.weights = [direction(rng, v.shape) for v in check.at_x]
        wrong = wrong or check.along(direction(rng, subject.x.shape))
    if wrong is not None:
        _report(original, subject, wrong, order, mode, options)
    if subject.x.size and not check.done:
        _nothing_checked(subject, check.rejected)
    return Checked(check.done, tuple(dict.fromkeys(check.rejected)))


def _nothing_checked(subject: Subject, rejected: list[Rejection]) -> None:
    import sys

    hypothesis = sys.modules.get("hypothesis")
    reasons = "; ".join(dict.fromkeys(r.reason for r in rejected))
    if hypothesis is not None and hypothesis.currently_in_test_context():
        hypothesis.reject()
    warnings.warn(f"nothing was checked of {subject.name} at this point: {reasons}", KinkWarning, stacklevel=5)


# ---------------------------------------------------------------- what a failure says
def _report(original: Subject, subject: Subject, wrong: Wrong, order: int, mode: How, options: _Options) -> NoReturn:
    ordinal = {1: "first", 2: "second", 3: "third"}.get(order, f"{order}th")
    place: tuple[str | None, int | None] = None, None
    where = "along a random direction (no single element is to blame)"
    if wrong.element is not None:
        label, at, index = subject.place(wrong.element)
        where, place = f"with respect to {label} is wrong at flat index {at}, index {index}", (label, at)
    guilty = _guilty(original, order, mode)
    blame = (
        f"the rule of {guilty[0]} for {guilty[1]!r} disagrees by itself."
        if guilty
        else "each primitive that it calls agrees by itself, so look at derivatives given by hand."
    )
    name = {"vjp": "reverse", "jvp": "forward"}[mode]
    line = _reproduce(original, order, mode, options)
    message = explain(
        f"the {ordinal} derivative ({name}) of {original.name} {where}:\n"
        f"  gradflow           {wrong.analytic!r}\n"
        f"  finite differences {wrong.numeric!r}   (apart by {abs(wrong.analytic - wrong.numeric):.3g}, "
        f"tolerance {wrong.tolerance:.3g})",
        blame,
        f"correct the rule; this line shows it again:\n{line}",
    )
    error = WrongDerivativeError(message)
    error.argument, error.index = place
    error.analytic, error.numeric, error.tolerance = wrong.analytic, wrong.numeric, wrong.tolerance
    error.primitive = guilty[0] if guilty else None
    error.order, error.mode, error.reproduce = order, mode, line
    raise error


def _reproduce(subject: Subject, order: int, mode: How, options: _Options) -> str:
    """A line that runs the failing check again; of large arrays it has only the name."""
    given, name = list(subject.given), "model" if subject.is_module else subject.name
    small = all(_size(leaf) <= _PRINTED for leaf in flatten(given)[0])
    args = ", ".join(_literal(a) for a in given) if small else "*inputs"
    usual = _Options()._asdict()
    told = {key: value for key, value in options._asdict().items() if value != usual[key]}
    if isinstance(options.backend, Backend):
        told["backend"] = options.backend.name
    settings = "".join(f", {key}={value!r}" for key, value in told.items())
    if order == 1:
        settings += f", mode={mode!r}" if mode != "vjp" else ""
        return f"testing.gradcheck({', '.join(filter(None, (name, args)))}{settings})"
    return f"testing.check_grads({name}, [{args}], order={order}, modes=({mode!r},), lowest={order}{settings})"


def _size(leaf: Any) -> int:
    return int(getattr(leaf, "size", 1))


def _literal(tree: Any) -> str:
    """Source text of an input."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {_literal(child)}" for key, child in tree.items()) + "}"
    if isinstance(tree, list | tuple):
        inside = ", ".join(map(_literal, tree))
        return f"[{inside}]" if isinstance(tree, list) else f"({inside}{',' * (len(tree) == 1)})"
    host = to_host(tree)
    if not isinstance(host, np.ndarray):
        return repr(tree)
    text = np.array2string(host, separator=", ", floatmode="unique", threshold=host.size + 1).replace("\n", "")
    text = " ".join(text.split()).replace("nan", "np.nan").replace("inf", "np.inf")
    shaped = "" if host.size else f".reshape({host.shape})"
    return f"np.array({text}, dtype={host.dtype.name!r}){shaped}"


class _Calls(Interpreter):
    """An interpreter that runs every operation as usual and keeps what it was called with."""

    on_tensors = False

    def __init__(self) -> None:
        self.made: list[tuple[Primitive, list[Array], dict[str, Any]]] = []

    def apply(
        self, primitive: Primitive, operands: tuple[Tensor, ...], settings: dict[str, Any], recording: bool
    ) -> Any:
        if any(primitive.rules):
            self.made.append((primitive, [np.array(t.backend.to_numpy(t._data)) for t in operands], settings))
        with using(RECORD if recording else NO_GRAD):
            return primitive.function(*operands, **settings)

    def read(self, tensor: Tensor, how: str) -> None:
        """Values may be read: nothing is replayed."""

    def sweep(self, root: Tensor, run: Callable[..., Any], lift: Any, hooks: Any, retain: bool) -> Any:
        """A sweep inside the function runs as usual."""
        return run(lift, hooks, retain)


def _guilty(subject: Subject, order: int, mode: How) -> tuple[str, str] | None:
    """The first primitive called by f, and its operand, whose derivative is wrong by itself."""
    calls = _Calls()
    with using(Mode(get_mode().recording, calls)):
        subject.call(*subject.tensors(subject.x))
    for primitive, operands, settings in calls.made:
        for i in range(len(operands)):
            if not primitive.has_rule(i) or operands[i].dtype.kind != "f":
                continue
            alone = Subject(_fixed(primitive, settings), operands, i, subject.backend)
            function, arguments = derivative_of(alone, order)
            check = Comparison(Subject(function, arguments, None, subject.backend), mode, 1e-6, 1e-9)
            try:
                check.steady(np.random.default_rng(0))
                check.weights = [np.linspace(0.5, 1.0, y.size).reshape(y.shape) for y in check.at_x]
                found = check.along(np.linspace(0.5, 1.0, check.subject.x.size))
            except GradflowError:
                continue  # the primitive cannot be called alone in this way
            if found is not None:
                return primitive.name, primitive.operands[min(i, len(primitive.operands) - 1)]
    return None


def _fixed(primitive: Primitive, settings: dict[str, Any]) -> Function:
    return lambda *operands: primitive.function(*operands, **settings)


__all__ = ["Checked", "KinkWarning", "Rejection", "check_grads", "gradcheck", "gradgradcheck"]
