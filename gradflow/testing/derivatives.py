"""Derivatives held against finite differences, along random directions or element by element.

A check costs a few dozen evaluations of the function however large its arguments are: the derivative of Σ u·f(x + h·v)
with respect to h, for random u and v, is compared with ⟨u, J v⟩. Where the two differ, the direction is halved until
the element that is to blame stands alone; if it lies at a kink, where no derivative is the right one, it is left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from gradflow.backend import Backend, resolve
from gradflow.errors import (
    ArgumentError,
    DTypeError,
    GradflowError,
    MutatedInputError,
    NondeterministicError,
    WrongDerivativeError,
    explain,
)
from gradflow.mode import NO_GRAD, RECORD, Mode, get_mode, using
from gradflow.nn.module import Module
from gradflow.nn.utils import functional_call
from gradflow.ops.creation import make_tensor
from gradflow.primitive import Primitive
from gradflow.tensor import Tensor, no_grad
from gradflow.testing.differences import Array, slope
from gradflow.transforms import flatten, jvp, vjp

Function = Callable[..., Any]
How = Literal["vjp", "jvp"]
_MOST_COMPARISONS = 400  # of one check: halving finds a kink among n elements in 2 log₂ n of them
_OTHER_STEPS = 0.618
_PRINTED = 64  # elements: a reproducing line shows arrays up to this size


class KinkWarning(UserWarning):
    """Nothing could be checked at a point: every direction meets a kink, a jump or the end of the domain."""


class Rejection(NamedTuple):
    """An element along which finite differences have nothing to say."""

    argument: str
    element: int | None
    """Flat index in the argument; None where no single element is to blame."""
    reason: str


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
    if order < 1 or not 1 <= lowest <= order or not modes or not set(modes) <= {"vjp", "jvp"}:
        raise ArgumentError(
            explain(
                f"check_grads with order={order!r}, lowest={lowest!r}, modes={modes!r}.",
                'orders count from 1; the modes are "vjp" and "jvp".',
                'check_grads(f, args, order=2, modes=("vjp", "jvp"))',
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


# ---------------------------------------------------------------- a function of a flat vector
class _Subject:
    """f as a function of one float64 vector: its differentiable inputs, one after the other."""

    def __init__(
        self, f: Function, inputs: Sequence[Any], wrt: int | Sequence[int] | None, backend: str | Backend | None
    ) -> None:
        self.name, self.given = name_of(f), inputs
        self.backend = resolve(backend)
        if isinstance(f, Module):
            module = f
            f, inputs = _with_parameters(module), (*inputs, dict(Module.named_parameters(module)))
            wrt = None if wrt is None else (*_positions(wrt, len(inputs) - 1), len(inputs) - 1)
        self.f, self.inputs = f, inputs
        chosen = set(range(len(inputs))) if wrt is None else set(_positions(wrt, len(inputs)))
        leaves, self.rebuild = flatten(list(inputs))
        labels = list(_labels(inputs))
        self.leaves = [to_host(leaf) for leaf in leaves]
        self.places = [i for i, leaf in enumerate(self.leaves) if _floating(leaf) and labels[i][0] in chosen]
        self.labels = [labels[i][1] for i in self.places]
        if not self.places:
            raise ArgumentError(
                explain(
                    f"a check of {self.name} with nothing to differentiate.",
                    "derivatives are taken with respect to floating-point tensors and arrays.",
                    "testing.gradcheck(f, np.ones(3))",
                )
            )
        arrays = [np.asarray(self.leaves[i], np.float64) for i in self.places]
        self.shapes = [a.shape for a in arrays]
        self.ends = np.cumsum([a.size for a in arrays])
        self.x = np.concatenate([a.reshape(-1) for a in arrays])

    def split(self, flat: Array) -> list[Array]:
        """A flat vector as one array for every differentiable input."""
        parts = np.split(flat, self.ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def place(self, i: int) -> tuple[str, int, tuple[int, ...]]:
        """Which input element i of the flat vector belongs to, its flat index there, and its index."""
        which = int(np.searchsorted(self.ends, i, side="right"))
        at = int(i - (self.ends[which - 1] if which else 0))
        return self.labels[which], at, tuple(int(k) for k in np.unravel_index(at, self.shapes[which]))

    def tensors(self, x: Array) -> list[Tensor]:
        """New tensors at a point."""
        return [make_tensor(part, backend=self.backend) for part in self.split(x)]

    def call(self, *variables: Tensor) -> list[Tensor]:
        """The floating-point results of f, with tensors in place of the differentiable inputs."""
        given = list(self.leaves)
        for place, variable in zip(self.places, variables, strict=True):
            given[place] = variable
        given = [make_tensor(v, backend=self.backend) if isinstance(v, np.ndarray) else v for v in given]
        outs, _ = flatten(self.f(*self.rebuild(given)))
        return [t for t in outs if isinstance(t, Tensor) and t.dtype.kind == "f"]

    def values(self, x: Array) -> list[Array]:
        """The results at a point, on the host."""
        with no_grad():
            return [np.array(t.numpy(), np.float64) for t in self.call(*self.tensors(x))]


def name_of(f: Function) -> str:
    """How a message calls a function."""
    if isinstance(f, Module):
        return type(f).__name__
    name = getattr(f, "__name__", type(f).__name__)
    return "f" if name == "<lambda>" else str(name)


def _with_parameters(module: Module) -> Function:
    return lambda *args: functional_call(module, args[-1], *args[:-1])


def _positions(wrt: int | Sequence[int], given: int) -> tuple[int, ...]:
    found = tuple(wrt) if isinstance(wrt, Sequence) else (wrt,)
    for i in found:
        if not -given <= i < given:
            raise ArgumentError(
                explain(f"wrt={wrt!r} for {given} inputs.", "inputs are counted from 0.", "wrt=0, or wrt=(0, 1)")
            )
    return tuple(i % given for i in found)


def to_host(leaf: Any) -> Any:
    """A tensor or array as a NumPy copy in C order; anything else as it is."""
    if isinstance(leaf, Tensor):
        return np.array(leaf.detach().numpy(), order="C")
    return np.array(leaf, order="C") if isinstance(leaf, np.ndarray | np.floating) else leaf


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"


def _labels(inputs: Sequence[Any]) -> Iterator[tuple[int, str]]:
    for i, value in enumerate(inputs):
        yield from ((i, f"argument {i}{path}") for path in _paths(value))


def _paths(tree: Any, path: str = "") -> Iterator[str]:
    if isinstance(tree, dict | list | tuple):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _paths(child, f"{path}[{key!r}]")
    else:
        yield path


def _derivative_of(subject: _Subject, order: int) -> tuple[Function, list[Array]]:
    """(x, u) ↦ uᵀJ(x), as a function to check at its own first order, and arguments for it; repeated for each order."""
    function: Function = subject.call
    arguments = subject.split(subject.x)
    rng = np.random.default_rng(0)
    for _ in range(order - 1):
        with no_grad():
            outs = function(*(make_tensor(a, backend=subject.backend) for a in arguments))
        cotangents = [rng.uniform(-1.0, 1.0, t.shape) for t in outs]
        function, arguments = _pulled(function, len(arguments)), [*arguments, *cotangents]
    return function, arguments


def _pulled(function: Function, n: int) -> Function:
    def pull(*args: Tensor) -> list[Tensor]:
        _, pullback = vjp(lambda *xs: tuple(function(*xs)), *args[:n])
        return list(pullback(tuple(args[n:])))

    return pull


# ---------------------------------------------------------------- the check
class _Wrong(NamedTuple):
    """A comparison that failed: element of the flat vector, or None for the whole direction."""

    element: int | None
    analytic: float
    numeric: float
    tolerance: float


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
    if options.directions < 1:
        raise ArgumentError(
            explain(f"directions={options.directions!r}.", "nothing would be compared.", "directions=2")
        )
    with np.errstate(all="ignore"):  # steps go beyond the domain on purpose
        return _compared(_Subject(f, inputs, options.wrt, options.backend), order, mode, options)


def _compared(original: _Subject, order: int, mode: How, options: _Options) -> Checked:
    subject = original
    if order > 1:
        function, arguments = _derivative_of(original, order)
        subject = _Subject(function, arguments, None, original.backend)
        subject.name, labels = original.name, original.labels
        subject.labels = [*labels, *(f"cotangent {i}" for i in range(len(arguments) - len(labels)))]
    rng = np.random.default_rng(options.seed)
    check = _Comparison(subject, mode, options.rtol, options.atol)
    check.steady(rng)
    wrong = check.every_element() if options.full else None
    for _ in range(0 if options.full else options.directions):
        check.weights = [_direction(rng, v.shape) for v in check.at_x]
        wrong = wrong or check.along(_direction(rng, subject.x.shape))
    if wrong is not None:
        _report(original, subject, wrong, order, mode, options)
    if subject.x.size and check.at_x and not check.done:
        _nothing_checked(subject, check.rejected)
    return Checked(check.done, tuple(dict.fromkeys(check.rejected)))


def _direction(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers in ±[½, 1]: no element counts so little that an error in it would be lost."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape)


class _Comparison:
    """Analytic and numeric derivatives of one subject at its point, and what came of comparing them."""

    def __init__(self, subject: _Subject, mode: How, rtol: float, atol: float) -> None:
        self.subject, self.mode, self.rtol, self.atol = subject, mode, rtol, atol
        self.done = self.made = 0
        self.rejected: list[Rejection] = []
        self.smooth = np.ones(subject.x.size, np.bool_)  # elements not known to lie at a kink
        self.at_x: list[Array] = []
        self.eps: list[float] = []  # of the dtype of each result
        self.weights: list[Array] = []
        self._gradient: tuple[list[Array], Array] | None = None

    # ------------------------------------------------------------ the same call twice; nothing written
    def steady(self, rng: np.random.Generator) -> None:
        """Raise unless f and its derivative are functions: no randomness, no memory, no writes into their inputs."""
        subject, x = self.subject, self.subject.x
        aside = x + rng.uniform(-1e-3, 1e-3, x.shape)
        self._values_and_pullback(aside, None)  # what f keeps of another call must not matter at x
        with no_grad():
            self.eps = [float(np.finfo(t.dtype).eps) for t in subject.call(*subject.tensors(x))]
        self.at_x = subject.values(x)
        weights = [np.asarray(rng.uniform(0.5, 1.0, v.shape)) for v in self.at_x]
        first, second = (self._values_and_pullback(x, weights) for _ in range(2))
        for what, a, b, rtol in (
            ("its values", self.at_x, subject.values(x), 0.0),
            ("its values with and without recording", self.at_x, first[0], 1e-9),  # by other kernels
            ("its derivative", first[1], second[1], 0.0),
        ):
            if len(a) != len(b) or not all(_same(p, q, rtol) for p, q in zip(a, b, strict=True)):
                raise NondeterministicError(
                    explain(
                        f"two calls of {subject.name} on the same inputs differ in {what}.",
                        "finite differences of a function that changes from call to call say nothing.",
                        "model.eval() without dropout; a new gf.Generator(0) inside the function for random numbers",
                    )
                )

    def _values_and_pullback(self, x: Array, weights: list[Array] | None) -> tuple[list[Array], list[Array]]:
        """The values at a point, recorded, and the cotangents of the inputs; both watched for writes into inputs."""
        subject = self.subject
        variables = subject.tensors(x)
        given = [np.array(v.numpy()) for v in variables]
        outs, pullback = vjp(lambda *xs: tuple(subject.call(*xs)), *variables)
        values = [np.array(t.numpy(), np.float64) for t in outs]
        self._unwritten(variables, given, "")
        if weights is None:
            weights = [np.ones(v.shape) for v in values]
        seeds = [make_tensor(w.astype(t.dtype), backend=subject.backend) for w, t in zip(weights, outs, strict=True)]
        pulled = [np.array(t.numpy(), np.float64) for t in pullback(tuple(seeds))] if outs else []
        self._unwritten(variables, given, "the derivative of ")
        return values, pulled

    def _unwritten(self, variables: list[Tensor], given: list[Array], who: str) -> None:
        subject = self.subject
        for label, variable, before in zip(subject.labels, variables, given, strict=True):
            after = variable.numpy()
            if not _same(after, before):
                at = int(np.flatnonzero(~((after == before) | (np.isnan(after) & np.isnan(before))))[0])
                raise MutatedInputError(
                    explain(
                        f"{who}{subject.name} wrote into {label}: element {at} was {before.flat[at]!r} and is "
                        f"{after.flat[at]!r}.",
                        "a function that changes its inputs has another value at its second call.",
                        "x = x.copy() before the write",
                    )
                )

    # ------------------------------------------------------------ both derivatives along a direction
    def _gradient_at_x(self) -> Array:
        if self._gradient is None or self._gradient[0] is not self.weights:
            _, pulled = self._values_and_pullback(self.subject.x, self.weights)
            flat = np.concatenate([g.reshape(-1) for g in pulled]) if pulled else np.zeros(self.subject.x.size)
            self._gradient = self.weights, flat
        return self._gradient[1]

    def _analytic(self, v: Array, support: Array) -> tuple[float, float]:
        """⟨u, J v⟩, and √Σ (gᵢvᵢ)² where the terms are known."""
        if self.mode == "vjp":
            terms = self._gradient_at_x()[support] * v[support]
            return float(terms.sum()), float(np.sqrt((terms * terms).sum()))
        pushed = self._pushed(v)
        return float(sum((w * t).sum() for w, t in zip(self.weights, pushed, strict=True))), 0.0

    def _pushed(self, v: Array) -> list[Array]:
        subject = self.subject
        _, tangents = jvp(lambda *xs: tuple(subject.call(*xs)), subject.tensors(subject.x), subject.tensors(v))
        return [np.array(t.numpy(), np.float64) for t in tangents]

    def _numeric(self, v: Array) -> tuple[float, float, float]:
        subject = self.subject
        resolution = 4 * math.sqrt(sum(float(((w * y * eps) ** 2).sum()) for w, y, eps in self._weighted()))

        def along(h: float) -> Array:
            moved = subject.values(subject.x + h * v)
            if [y.shape for y in moved] != [y.shape for y in self.at_x]:
                return np.array([np.nan])  # as where a mask selects another number of elements
            differences = zip(self.weights, moved, self.at_x, strict=True)
            return np.array([sum(float((w * (y - y0)).sum()) for w, y, y0 in differences)])

        found = slope(along, np.array([resolution]))
        return float(found.value[0]), float(found.error[0]), float(found.jump[0])

    def _weighted(self) -> Iterator[tuple[Array, Array, float]]:
        return zip(self.weights, self.at_x, self.eps, strict=True)

    def _compare(self, v: Array, support: Array) -> _Wrong | str | None:
        """None where the derivatives agree, the reason why they need not, or how they differ."""
        self.made += 1
        analytic, size = self._analytic(v, support)
        verdict = self._judge(analytic, size, *self._numeric(v))
        if verdict is not None and len(support) == 1 and 0 < (width := abs(float(self.subject.x[support[0]]))) < 1e-2:
            # the domain or the scale of f may be narrower than the steps: take steps relative to x
            verdict = self._judge(analytic, size, *(s / width for s in self._numeric(v * width)))
        if not isinstance(verdict, _Wrong):
            return verdict
        again = self._numeric(v * _OTHER_STEPS)[0] / _OTHER_STEPS  # chance may let differences of noise agree, once
        if not abs(again - verdict.numeric) <= self.atol + 1e-3 * abs(verdict.numeric):
            return f"too rough: other steps give {again:.6g} in place of {verdict.numeric:.6g}"
        return verdict._replace(element=int(support[0])) if len(support) == 1 else verdict

    def _judge(self, analytic: float, size: float, numeric: float, error: float, jump: float) -> _Wrong | str | None:
        tolerance = self.atol + self.rtol * max(abs(analytic), abs(numeric), size) + 4 * error
        apart = abs(analytic - numeric)
        rough = error > self.atol + 1e-3 * max(abs(numeric), size if apart <= tolerance else 0.0)
        if apart <= tolerance and not rough:
            return None
        if not math.isfinite(numeric):
            return "outside the domain: no step to either side gives finite values"
        if abs(jump) > max(0.2 * apart, 10 * error):
            return f"a kink: the slopes left and right differ by {abs(jump):.2g}"
        if rough:
            return f"too rough: the differences are uncertain by {error:.2g}"
        return _Wrong(None, analytic, numeric, tolerance)

    def along(self, v: Array) -> _Wrong | None:
        """Compare along a direction; halve it where it does not pass, to find which element is to blame."""
        waiting = [np.flatnonzero(self.smooth)]
        worst: _Wrong | None = None
        known = len(self.rejected)
        while waiting and self.made < _MOST_COMPARISONS:
            support = waiting.pop()
            if not support.size:
                continue
            part = np.zeros_like(v)
            part[support] = v[support]
            found = self._compare(part, support)
            if found is None:
                self.done += 1
            elif len(support) > 1:
                worst = found if isinstance(found, _Wrong) else worst
                waiting += [support[len(support) // 2 :], support[: len(support) // 2]]
            elif isinstance(found, _Wrong):
                return found
            else:
                self._reject(int(support[0]), found)
        for support in waiting:
            self._reject(None, f"{support.size} elements among too many kinks to be told apart")
        return worst if len(self.rejected) == known else None  # kinks whose jumps cancel look like a wrong derivative

    def _reject(self, i: int | None, reason: str) -> None:
        argument, at = ("several arguments", None) if i is None else self.subject.place(i)[:2]
        if i is not None:
            self.smooth[i] = False
        self.rejected.append(Rejection(argument, at, reason))

    # ------------------------------------------------------------ the whole Jacobian
    def every_element(self) -> _Wrong | None:
        """Compare every entry of the Jacobian: a row for each element of the results, a column for each of x."""
        n = self.subject.x.size
        worst: _Wrong | None = None
        for k, y in enumerate(self.at_x):
            for j in range(y.size):
                self.weights = [np.zeros(other.shape) for other in self.at_x]
                self.weights[k].flat[j] = 1.0
                for i in range(n):
                    unit = np.zeros(n)
                    unit[i] = 1.0
                    found = self._compare(unit, np.array([i]))
                    if isinstance(found, _Wrong):
                        worst = worst or found
                    elif found is None:
                        self.done += 1
                    else:
                        self._reject(i, found)
        return worst


def _same(a: Array, b: Array, rtol: float = 0.0) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=rtol, atol=rtol, equal_nan=True))


def _nothing_checked(subject: _Subject, rejected: list[Rejection]) -> None:
    import sys

    hypothesis = sys.modules.get("hypothesis")
    reasons = "; ".join(dict.fromkeys(r.reason for r in rejected))
    if hypothesis is not None and hypothesis.currently_in_test_context():
        hypothesis.reject()
    warnings.warn(f"nothing was checked of {subject.name} at this point: {reasons}", KinkWarning, stacklevel=5)


# ---------------------------------------------------------------- what a failure says
def _report(original: _Subject, subject: _Subject, wrong: _Wrong, order: int, mode: How, options: _Options) -> NoReturn:
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
        else ("each primitive that it calls agrees by itself, so look at derivatives given by hand.")
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


def _reproduce(subject: _Subject, order: int, mode: How, options: _Options) -> str:
    """A line that runs the failing check again; of large arrays it has only the name."""
    given = list(subject.given)
    small = all(_size(leaf) <= _PRINTED for leaf in flatten(given)[0])
    args = ", ".join(_literal(a) for a in given) if small else "*inputs"
    usual = _Options()._asdict()
    told = {key: value for key, value in options._asdict().items() if value != usual[key]}
    if isinstance(options.backend, Backend):
        told["backend"] = options.backend.name
    settings = "".join(f", {key}={value!r}" for key, value in told.items())
    if order == 1:
        settings += f", mode={mode!r}" if mode != "vjp" else ""
        return f"testing.gradcheck({subject.name}, {args}{settings})"
    return f"testing.check_grads({subject.name}, [{args}], order={order}, modes=({mode!r},), lowest={order}{settings})"


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


class _Calls:
    """An interpreter that runs every operation as usual and keeps what it was called with."""

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


def _guilty(subject: _Subject, order: int, mode: How) -> tuple[str, str] | None:
    """The first primitive called by f, and its operand, whose derivative is wrong by itself."""
    calls = _Calls()
    with using(Mode(get_mode().recording, calls)):
        subject.call(*subject.tensors(subject.x))
    for primitive, operands, settings in calls.made:
        for i in range(len(operands)):
            if not primitive.has_rule(i) or operands[i].dtype.kind != "f":
                continue
            alone = _Subject(_fixed(primitive, settings), operands, i, subject.backend)
            function, arguments = _derivative_of(alone, order)
            check = _Comparison(_Subject(function, arguments, None, subject.backend), mode, 1e-6, 1e-9)
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
