"""What random programs are made of: steps, and for each kind of step how one is added to a program in the making.

A program in the making knows the values of its steps on its inputs. An instruction looks among them for operands in its
domain, so that a program stays finite and of moderate size, and clear of kinks, ties and poles, without any program
being thrown away. Whoever adds an operation enters an instruction here, with `instruction`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from gradflow.ops.creation import as_tensor
from gradflow.tensor import OPS, Tensor, no_grad
from gradflow.testing.strategies import Array, Rng, Shape, index_keys, spread, stretchable_shapes

T = TypeVar("T")
MARGIN = 0.05
"""How far values keep from kinks, ties and poles."""
LARGEST = 100.0
"""The largest absolute value."""
MOST_ELEMENTS = 60
MOST_AXES = 4
CONSTANTS = (0.5, 2.0, -1.0, 1.25, -0.75)


# ---------------------------------------------------------------- a step, as data
class Step(NamedTuple):
    """A call of a public function, under the name that the array API or gradflow gives it.

    Attributes:
        function: its name; ``getitem`` and ``setitem`` stand for `x[key]` and a copy of x with a value at a key.
        operands: an integer is the number of an earlier value, a float a constant, a tuple an array of integers
            or booleans, a string a dtype, and a list a sequence of operands.
        settings: keyword arguments; in a key, a list is an array of integers or booleans.

    >>> from gradflow.testing.instructions import Step
    >>> Step("multiply", (0, 2.5)).run(np, [np.array([1.0, 2.0])])
    array([2.5, 5. ])
    >>> Step("sum", (0,), {"axis": 0})
    Step("sum", (0,), {'axis': 0})
    """

    function: str
    operands: tuple[Any, ...]
    settings: dict[str, Any] = {}  # noqa: RUF012  (never written to)

    def run(self, xp: Any, values: Any) -> Any:
        """Call the function of a namespace on earlier values."""
        function: Any = getattr(xp, self.function, None)
        if function is None:
            function = partial(_OF_THE_LANGUAGE[self.function], xp)
        settings = dict(self.settings)
        if "key" in settings:
            settings["key"] = tuple(np.array(part) if isinstance(part, list) else part for part in settings["key"])
        return function(*(_operand(xp, values, operand) for operand in self.operands), **settings)

    def __repr__(self) -> str:
        settings = f", {self.settings!r}" if self.settings else ""
        return f'Step("{self.function}", {self.operands!r}{settings})'


def _operand(xp: Any, values: Any, operand: Any) -> Any:
    if isinstance(operand, list):
        return [_operand(xp, values, part) for part in operand]
    if isinstance(operand, tuple):
        return np.array(operand)
    if isinstance(operand, str):
        return getattr(xp, operand)
    return operand if isinstance(operand, float) else values[operand]


def _getitem(xp: Any, x: Any, *, key: tuple[Any, ...]) -> Any:
    return x[key]


def _setitem(xp: Any, x: Any, value: Any, *, key: tuple[Any, ...]) -> Any:
    y = xp.copy(x)
    y[key] = value
    return y


def _dropout_of(xp: Any, x: Any, keep: Array, *, p: float) -> Any:
    """What dropout does with a mask, which it draws: in a program it is data."""
    if isinstance(x, Tensor):
        return OPS.dropout(x, as_tensor(keep, x.backend), p=p)
    return x * keep / (1 - p)


_OF_THE_LANGUAGE: dict[str, Callable[..., Any]] = {
    "getitem": _getitem,
    "setitem": _setitem,
    "dropout_of": _dropout_of,
}
"""What Python writes without a function's name, or gradflow has no public name for; a namespace may bring its own."""


# ---------------------------------------------------------------- a program in the making
class UnfitError(Exception):
    """No value fits an instruction, or its result would be too large; the program goes on without it."""


class Builder:
    """A program in the making: its inputs, its steps, and what each of them is worth.

    A value is known by a number: ~0, ~1, … (negative) are the inputs, as more of them may come, and 0, 1, … the steps.
    """

    def __init__(self, draw: DrawFn, rng: Rng) -> None:
        self.draw = draw
        self.rng = rng
        self.inputs: list[Array] = []
        self.steps: list[Step] = []
        self.values: dict[int, Array] = {}

    def attempt(self, instruction: Callable[[Builder], object]) -> bool:
        """Add what an instruction adds, all of it or nothing; whether it fits."""
        inputs, steps = len(self.inputs), len(self.steps)
        try:
            instruction(self)
        except UnfitError:
            del self.inputs[inputs:], self.steps[steps:]
            self.values = {at: value for at, value in self.values.items() if ~inputs < at < steps}
            return False
        return True

    # ------------------------------------------------------------ what an instruction uses
    def choose(self, options: Sequence[T]) -> T:
        """Draw one of some options, the first being the simplest.

        Raises:
            UnfitError: there is none.
        """
        if not options:
            raise UnfitError
        return self.draw(st.sampled_from(options))

    def toss(self) -> bool:
        """Draw heads or tails."""
        return self.draw(st.booleans())

    def pick(self, fits: Callable[[Array], object] = lambda x: True) -> int:
        """Draw the number of a value that fits, the latest being the simplest.

        Raises:
            UnfitError: none fits.
        """
        numbers = sorted(self.values, reverse=True)
        return self.choose([at for at in numbers if self.values[at].dtype == np.float64 and fits(self.values[at])])

    def input(self, shape: Shape, *, positive: bool = False) -> int:
        """A new input."""
        return self._input(spread(self.rng, shape, positive=positive)[0])

    def parameter(self, shape: Shape) -> int:
        """A value of a shape: one that there is, or a new input."""
        there = any(value.shape == shape and value.dtype == np.float64 for value in self.values.values())
        return self.pick(lambda value: value.shape == shape) if there and self.toss() else self.input(shape)

    def emit(self, function: str, *operands: Any, **settings: Any) -> int:
        """Add a step and return the number of its value.

        Raises:
            UnfitError: the value is empty, large, or not finite.
        """
        step = Step(function, operands, settings)
        tensors = {at: as_tensor(value) for at, value in self.values.items()}
        xp = tensors[~0].__array_namespace__()
        with no_grad(), np.errstate(all="ignore"):
            value: Array = step.run(xp, tensors).numpy()
        sound = np.all(np.isfinite(value)) and np.all(np.abs(value.astype(np.float64)) <= LARGEST)
        if not (sound and 0 < value.size <= MOST_ELEMENTS and value.ndim <= MOST_AXES):
            raise UnfitError
        self.steps.append(step)
        self.values[len(self.steps) - 1] = value
        return len(self.steps) - 1

    def shape(self, at: int) -> Shape:
        """The shape of a value."""
        return tuple(self.values[at].shape)

    # ------------------------------------------------------------ the end
    def unused(self) -> list[int]:
        """The values that no step reads, but for the last."""
        read = {at for step in self.steps for operand in step.operands for at in _numbers(operand)}
        return [at for at in sorted(self.values) if at not in read and at != len(self.steps) - 1]

    def numbered(self) -> tuple[Step, ...]:
        """The steps, with inputs and steps numbered in one row."""
        return tuple(
            Step(step.function, tuple(self._renumbered(operand) for operand in step.operands), step.settings)
            for step in self.steps
        )

    def _input(self, value: Array) -> int:
        self.inputs.append(value)
        at = ~(len(self.inputs) - 1)
        self.values[at] = value
        return at

    def _renumbered(self, operand: Any) -> Any:
        if isinstance(operand, list):
            return [self._renumbered(part) for part in operand]
        if isinstance(operand, int):
            return ~operand if operand < 0 else len(self.inputs) + operand
        return operand


def _numbers(operand: Any) -> list[int]:
    if isinstance(operand, list):
        return [at for part in operand for at in _numbers(part)]
    return [operand] if isinstance(operand, int) else []


Instruction = Callable[[Builder], object]
INSTRUCTIONS: dict[str, Instruction] = {}
"""Name -> how it is added to a program in the making."""


def instruction(name: str) -> Callable[[Instruction], Instruction]:
    """Enter a function of a `Builder` as an instruction.

    >>> from gradflow.testing.instructions import INSTRUCTIONS, instruction
    >>> @instruction("hypot")
    ... def hypot(b):
    ...     b.emit("sqrt", b.emit("add", b.emit("square", b.pick()), 1.0))
    >>> INSTRUCTIONS.pop("hypot") is hypot
    True
    """

    def enter(function: Instruction) -> Instruction:
        INSTRUCTIONS[name] = function
        return function

    return enter


# ---------------------------------------------------------------- domains
def _anything(x: Array) -> bool:
    return True


def _clear_of_zero(x: Array) -> bool:
    return bool(np.abs(x).min() > MARGIN)


def _above_zero(x: Array) -> bool:
    return bool(x.min() > MARGIN)


def _any_pair(x: Array, y: Array) -> bool:
    return True


def _apart(x: Array, y: Array) -> bool:
    return _clear_of_zero(x - y)


def _clear_of_integers(x: Array, y: Array) -> bool:
    """Whether x / y is, and y is no pole."""
    ratio = x / np.where(np.abs(y) < MARGIN, np.nan, y)
    return bool(np.all(np.abs(ratio - np.round(ratio)) > MARGIN))


def _powers(x: Array, y: Array) -> bool:
    return _above_zero(x) and bool(np.abs(y).max() < 4)


def _broadcast(x: Shape, y: Shape) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(reversed(x), reversed(y), strict=False))


# ---------------------------------------------------------------- element by element
UNARY: dict[str, Callable[[Array], bool]] = {
    "abs": _clear_of_zero,
    "copy": _anything,
    "erf": _anything,
    "exp": lambda x: bool(x.max() < 4),
    "log": _above_zero,
    "log1p": lambda x: bool(x.min() > MARGIN - 1),
    "negative": _anything,
    "positive": _anything,
    "relu": _clear_of_zero,
    "sigmoid": _anything,
    "silu": _anything,
    "softplus": _anything,
    "sqrt": _above_zero,
    "square": _anything,
    "tanh": _anything,
    "matrix_transpose": lambda x: x.ndim >= 2,
}
"""Functions of one array -> whether a value is in the domain where they are smooth."""

BINARY: dict[str, Callable[[Array, Array], bool]] = {
    "add": _any_pair,
    "divide": lambda x, y: _clear_of_zero(y),
    "maximum": _apart,
    "minimum": _apart,
    "multiply": _any_pair,
    "power": _powers,
    "remainder": _clear_of_integers,
    "subtract": _any_pair,
}
"""Functions of two arrays that broadcast -> whether they are smooth there."""


def _unary(name: str, domain: Callable[[Array], bool]) -> Instruction:
    return lambda b: b.emit(name, b.pick(domain))


def _binary(name: str, domain: Callable[[Array, Array], bool]) -> Instruction:
    return lambda b: b.emit(name, *_pair(b, domain))


for _name, _domain in UNARY.items():
    INSTRUCTIONS[_name] = _unary(_name, _domain)
for _name, _pair_domain in BINARY.items():
    INSTRUCTIONS[_name] = _binary(_name, _pair_domain)


def _pair(b: Builder, domain: Callable[[Array, Array], bool]) -> tuple[int | float, int | float]:
    """Two values that broadcast and are in a domain, one of them perhaps a constant."""
    first = b.pick()
    x = b.values[first]
    if b.toss():
        constants = [c for c in CONSTANTS if domain(x, np.array(c))]
        swapped = [c for c in CONSTANTS if domain(np.array(c), x)]
        if swapped and b.toss():
            return b.choose(swapped), first
        return first, b.choose(constants)
    return first, b.pick(lambda y: _broadcast(x.shape, y.shape) and domain(x, y))


@instruction("where")
def _(b: Builder) -> None:
    condition = b.emit("greater", *_pair(b, _apart))
    first = b.pick(lambda x: _broadcast(x.shape, b.shape(condition)))
    shape = np.broadcast_shapes(b.shape(condition), b.shape(first))
    second = b.pick(lambda y: _broadcast(y.shape, shape))
    b.emit("where", condition, *b.choose([(first, second), (first, 0.5), (-1.0, first)]))


@instruction("clip")
def _(b: Builder) -> None:
    """Between constants, or between a value and another."""
    at = b.pick()
    x = b.values[at]
    low = b.choose([-1.0, -0.5, 0.25, None]) or b.pick(lambda y: _broadcast(y.shape, x.shape))
    lower = np.asarray(b.values[low] if isinstance(low, int) else low)
    high = b.choose([0.5, 1.5, None]) or b.pick(
        lambda y: _broadcast(y.shape, np.broadcast_shapes(x.shape, lower.shape)) and bool((y - lower).min() > MARGIN)
    )
    upper = np.asarray(b.values[high] if isinstance(high, int) else high)
    if not (_apart(x, lower) and _apart(x, upper) and _apart(lower, upper)):
        raise UnfitError
    b.emit("clip", at, low, high)


@instruction("astype")
def _(b: Builder) -> None:
    b.emit("astype", b.pick(), "float64")


# ---------------------------------------------------------------- reductions
def _axes_of(shape: Shape) -> list[int | tuple[int, ...] | None]:
    """All axes that a reduction over at least one of them can name; from the end, too."""
    ndim = len(shape)
    if not ndim:
        return [None]
    return [None, *range(ndim), *range(-ndim, 0), *itertools.combinations(range(-1, ndim - 1), 2)]


def _rows(x: Array, axis: int | tuple[int, ...] | None) -> Array:
    """The elements that a reduction over some axes takes together, as the last axis."""
    over = tuple(range(x.ndim)) if axis is None else tuple(a % x.ndim for a in np.atleast_1d(axis))
    kept = [a for a in range(x.ndim) if a not in over]
    return x.transpose(*kept, *over).reshape(*(x.shape[a] for a in kept), -1)


def _has_one_largest(x: Array, axis: int | tuple[int, ...] | None) -> bool:
    ordered = np.sort(_rows(x, axis), axis=-1)
    return ordered.shape[-1] < 2 or _apart(ordered[..., -1], ordered[..., -2])


def _varies(x: Array, axis: int | tuple[int, ...] | None) -> bool:
    rows = _rows(x, axis)
    return rows.shape[-1] > 1 and bool(rows.var(axis=-1).min() > MARGIN)


REDUCTIONS: dict[str, Callable[[Array, int | tuple[int, ...] | None], bool]] = {
    "logsumexp": lambda x, axis: True,
    "max": _has_one_largest,
    "mean": lambda x, axis: True,
    "min": lambda x, axis: _has_one_largest(-x, axis),
    "std": _varies,
    "sum": lambda x, axis: True,
    "var": lambda x, axis: _rows(x, axis).shape[-1] > 1,
}
"""Reductions -> whether they are smooth there, over some axes."""


def _reduction(name: str, domain: Callable[[Array, int | tuple[int, ...] | None], bool]) -> Instruction:
    def add(b: Builder) -> None:
        at = b.pick()
        x = b.values[at]
        settings: dict[str, Any] = {"axis": b.choose([axis for axis in _axes_of(x.shape) if domain(x, axis)])}
        if name in ("var", "std"):
            settings["correction"] = b.choose([0, 1])
        if b.toss():
            settings["keepdims"] = True
        b.emit(name, at, **settings)

    return add


for _name, _reduction_domain in REDUCTIONS.items():
    INSTRUCTIONS[_name] = _reduction(_name, _reduction_domain)


# ---------------------------------------------------------------- matrix products
@instruction("matmul")
def _(b: Builder) -> None:
    """With a matrix that fits, or its own transpose, or a new input; vectors and stacks among them."""
    first = b.pick(lambda x: x.ndim >= 1)
    x = b.shape(first)
    kind = b.choose(["value", "new"] + ["transpose"] * (len(x) >= 2))
    if kind == "value":
        second = b.pick(lambda y: _multiply(x, y.shape))
    elif kind == "new":
        second = b.input((x[-1], *b.choose([(), (2,), (1,)])))
    else:
        second = b.emit("matrix_transpose", first)
    b.emit("matmul", first, second)


def _multiply(x: Shape, y: Shape) -> bool:
    return bool(y) and x[-1] == y[-2 if len(y) > 1 else 0] and _broadcast(x[:-2], y[:-2])


@instruction("linear")
def _(b: Builder) -> None:
    x = b.pick(lambda x: x.ndim >= 1)
    outputs = b.choose([2, 1, 3])
    b.emit("linear", x, b.parameter((outputs, b.shape(x)[-1])), b.parameter((outputs,)))


# ---------------------------------------------------------------- shapes
@instruction("reshape")
def _(b: Builder) -> None:
    x = b.pick()
    shape = b.shape(x)
    wanted = [(-1,), shape[::-1], (*shape, 1), (1, *shape), (*shape[:-2], math.prod(shape[-2:])), (b.values[x].size, 1)]
    b.emit("reshape", x, shape=b.choose(wanted))


@instruction("permute_dims")
def _(b: Builder) -> None:
    x = b.pick(lambda x: x.ndim >= 1)
    b.emit("permute_dims", x, axes=tuple(b.draw(st.permutations(range(len(b.shape(x)))))))


@instruction("broadcast_to")
def _(b: Builder) -> None:
    x = b.pick()
    stretched = tuple(2 if n == 1 else n for n in b.shape(x))
    b.emit("broadcast_to", x, shape=b.choose([stretched, (2, *b.shape(x)), (1, 3, *stretched)]))


@instruction("expand_dims")
def _(b: Builder) -> None:
    x = b.pick()
    ndim = len(b.shape(x))
    b.emit("expand_dims", x, axis=b.draw(st.integers(-ndim - 1, ndim)))


@instruction("squeeze")
def _(b: Builder) -> None:
    x = b.pick(lambda x: 1 in x.shape)
    b.emit("squeeze", x, axis=b.choose([axis for axis, n in enumerate(b.shape(x)) if n == 1]))


@instruction("concat")
def _(b: Builder) -> None:
    first = b.pick(lambda x: x.ndim >= 1)
    shape = b.shape(first)
    axis = b.draw(st.integers(-len(shape), len(shape) - 1))

    def without(shape: Shape) -> Shape:
        return tuple(n for i, n in enumerate(shape) if i != axis % len(shape))

    def fits(y: Array) -> bool:
        return y.ndim == len(shape) and without(y.shape) == without(shape)

    b.emit("concat", [first, *(b.pick(fits) for _ in range(b.draw(st.integers(1, 2))))], axis=axis)


@instruction("stack")
def _(b: Builder) -> None:
    first = b.pick()
    shape = b.shape(first)
    others = [b.pick(lambda y: y.shape == shape) for _ in range(b.draw(st.integers(1, 2)))]
    b.emit("stack", [first, *others], axis=b.draw(st.integers(-len(shape) - 1, len(shape))))


# ---------------------------------------------------------------- indexing
def _key(b: Builder, shape: Shape) -> tuple[Any, ...]:
    """A key as data: index arrays and masks as lists.

    Raises:
        UnfitError: an empty array, which as a list would forget its dtype.
    """
    if shape and b.toss():
        return _selection(b, shape)
    key = b.draw(index_keys(shape))
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, np.ndarray) and not part.size for part in parts):
        raise UnfitError
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in parts)


def _selection(b: Builder, shape: Shape) -> tuple[Any, ...]:
    """A key that selects some places of one axis, in any order, by their numbers or by a mask."""
    axis = b.draw(st.integers(0, len(shape) - 1))
    places = b.rng.permutation(shape[axis])[: b.draw(st.integers(1, shape[axis]))].tolist()
    before = (slice(None, None, b.choose([None, -1])),) * axis
    return (*before, b.choose([places, [place in places for place in range(shape[axis])]]))


@instruction("getitem")
def _(b: Builder) -> None:
    x = b.pick()
    b.emit("getitem", x, key=_key(b, b.shape(x)))


@instruction("setitem")
def _(b: Builder) -> None:
    """A value at a key that names no element twice, as libraries differ in which of two writes is the last."""
    x = b.pick()
    key = _key(b, b.shape(x))
    places = Step("getitem", (0,), {"key": key}).run(np, [np.arange(b.values[x].size).reshape(b.shape(x))])
    if len(np.unique(places)) < places.size or not places.size:
        raise UnfitError
    value = b.parameter(b.draw(stretchable_shapes(places.shape)))
    b.emit("setitem", x, value, key=key)


def _nested(array: Array) -> Any:
    """An array of integers or booleans as tuples."""
    return tuple(_nested(row) for row in array) if array.ndim else array.item()


@instruction("take")
def _(b: Builder) -> None:
    x = b.pick(lambda x: x.ndim >= 1)
    axis = b.draw(st.integers(-len(b.shape(x)), len(b.shape(x)) - 1))
    indices = b.rng.integers(0, b.shape(x)[axis], b.draw(st.integers(1, 4)))
    b.emit("take", x, _nested(indices), axis=axis)


@instruction("take_along_axis")
def _(b: Builder) -> None:
    x = b.pick(lambda x: x.ndim >= 1)
    shape = b.shape(x)
    axis = b.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = tuple(2 if i == axis % len(shape) else n for i, n in enumerate(shape))
    b.emit("take_along_axis", x, _nested(b.rng.integers(0, shape[axis], lengths)), axis=axis)


# ---------------------------------------------------------------- neural networks
def _along_an_axis(name: str) -> Instruction:
    def add(b: Builder) -> None:
        x = b.pick(lambda x: x.ndim >= 1)
        b.emit(name, x, axis=b.draw(st.integers(-len(b.shape(x)), len(b.shape(x)) - 1)))

    return add


for _name in ("softmax", "log_softmax"):
    INSTRUCTIONS[_name] = _along_an_axis(_name)


@instruction("gelu")
def _(b: Builder) -> None:
    b.emit("gelu", b.pick(), approximate=b.choose(["none", "tanh"]))


@instruction("layer_norm")
def _(b: Builder) -> None:
    """Over the last axis or the last two, of values that vary there; one weight and bias, or one of them, or none."""
    at = b.pick(lambda x: x.ndim >= 1)
    x = b.values[at]
    axis = b.choose([axis for axis in (-1, (-2, -1)) if x.ndim >= np.size(axis) and _varies(x, axis)])
    shape = x.shape[x.ndim - np.size(axis) :]
    affine = [b.parameter(shape) for _ in range(b.choose([0, 1, 2]))]
    b.emit("layer_norm", at, *affine, axis=axis, eps=b.choose([1e-2, 0.1]))


@instruction("dropout_of")
def _(b: Builder) -> None:
    at, p = b.pick(lambda x: x.ndim >= 1), b.choose([0.5, 0.25])
    b.emit("dropout_of", at, _nested(b.rng.random(b.shape(at)) >= p), p=p)


@instruction("embedding")
def _(b: Builder) -> None:
    table = b.pick(lambda x: x.ndim == 2)
    indices = b.rng.integers(0, b.shape(table)[0], b.choose([(2,), (2, 2), (4,)]))
    b.emit("embedding", _nested(indices), table)


_REDUCTIONS = ("mean", "sum", "none")


@instruction("mse_loss")
def _(b: Builder) -> None:
    x = b.pick()
    b.emit("mse_loss", x, b.parameter(b.shape(x)), reduction=b.choose(_REDUCTIONS))


@instruction("cross_entropy")
def _(b: Builder) -> None:
    x = b.pick(lambda x: x.ndim == 2) if b.toss() else b.input((2, 3))
    n, classes = b.shape(x)
    b.emit("cross_entropy", x, _nested(b.rng.integers(0, classes, n)), reduction=b.choose(_REDUCTIONS))


@instruction("binary_cross_entropy_with_logits")
def _(b: Builder) -> None:
    x = b.pick()
    target = b.emit("sigmoid", b.parameter(b.shape(x)))
    b.emit("binary_cross_entropy_with_logits", x, target, reduction=b.choose(_REDUCTIONS))


@instruction("binary_cross_entropy")
def _(b: Builder) -> None:
    x = b.pick(lambda x: bool(np.abs(x).max() < 4))
    target = b.emit("sigmoid", b.parameter(b.shape(x)))
    b.emit("binary_cross_entropy", b.emit("sigmoid", x), target, reduction=b.choose(_REDUCTIONS))
