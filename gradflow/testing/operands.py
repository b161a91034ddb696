"""Calls of primitives: operands and settings on which each is smooth, found by the primitive's name.

A primitive of one or two operands and no settings gets operands element by element by default. Every other one has an
entry, made with `operands_of`; whoever adds a primitive enters it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import DrawFn

from gradflow.backend import ARRAY, filled
from gradflow.errors import ArgumentError, explain
from gradflow.ops.creation import DTYPES
from gradflow.primitive import REGISTRY, Primitive
from gradflow.testing.strategies import (
    Array,
    Rng,
    Shape,
    axes,
    broadcastable_shapes,
    direction,
    generators,
    shapes,
    spread,
    stretchable_shapes,
)


class Call(NamedTuple):
    """A call of a primitive: arrays (float64, integers or booleans), and settings."""

    operands: tuple[Array, ...]
    settings: dict[str, Any]


Maker = Callable[[DrawFn, Rng], Call]
OPERANDS: dict[str, Maker] = {}
"""Primitive name -> how a call is drawn, for those that the default does not fit."""


def operands_of(*names: str) -> Callable[[Maker], Maker]:
    """Enter a function of (draw, generator) as the way to draw calls of these primitives.

    >>> from gradflow.testing.operands import OPERANDS, Call, operands_of
    >>> from gradflow.testing.strategies import spread
    >>> @operands_of("arccosh")
    ... def above_one(draw, rng):
    ...     return Call(tuple(spread(rng, (3,), low=1.2, positive=True)), {})
    >>> OPERANDS.pop("arccosh") is above_one
    True
    """

    def enter(function: Maker) -> Maker:
        OPERANDS.update(dict.fromkeys(names, function))
        return function

    return enter


def has_calls(primitive: Primitive | str) -> bool:
    """Whether it is known how to call a primitive: by an entry, or by the default.

    >>> from gradflow.testing.operands import has_calls
    >>> has_calls("tanh"), has_calls("matmul")
    (True, True)
    """
    prim = _primitive(primitive)
    usual = len(prim.operands) <= 2 and not prim.settings and not prim.variadic and not prim.writes
    return prim.name in OPERANDS or usual


def _primitive(primitive: Primitive | str) -> Primitive:
    return REGISTRY[primitive] if isinstance(primitive, str) else primitive


@st.composite
def calls(draw: DrawFn, primitive: Primitive | str) -> Call:
    """Calls of a primitive on which it is smooth: operands keep clear of kinks, ties and poles.

    Raises:
        ArgumentError: nobody has entered how to call it.

    >>> from hypothesis import given
    >>> from gradflow.testing.operands import calls
    >>> @given(calls("log"))
    ... def test(call):
    ...     (x,) = call.operands
    ...     assert np.all(x > 0)
    >>> test()
    """
    prim = _primitive(primitive)
    if not has_calls(prim):
        raise ArgumentError(
            explain(
                f"calls of the primitive {prim.name}, for which there is no entry.",
                "it has settings, or many operands, and what fits them cannot be guessed.",
                f'@gradflow.testing.operands_of("{prim.name}") above a function of (draw, rng) that returns a Call',
            )
        )
    rng = draw(generators)
    if prim.name in OPERANDS:
        return OPERANDS[prim.name](draw, rng)
    lengths = draw(broadcastable_shapes(len(prim.operands)))
    if prim.dtypes == "bits":
        dtype = draw(st.sampled_from([np.bool_, np.int64, np.uint8]))
        top = 2 if dtype is np.bool_ else 100
        return Call(tuple(np.asarray(rng.integers(0, top, shape)).astype(dtype) for shape in lengths), {})
    return Call(tuple(spread(rng, *lengths)), {})


def differentiable(primitive: Primitive | str, operands: Sequence[Any]) -> list[int]:
    """Positions of the array arguments with respect to which a primitive has a derivative.

    >>> from gradflow.testing.operands import differentiable
    >>> differentiable("where", (np.array(True), np.array(1.0), np.array(2.0)))
    [1, 2]
    """
    prim = _primitive(primitive)
    return [i for i in range(len(operands)) if prim.has_rule(i)]


# ---------------------------------------------------------------- element by element
@operands_of("log", "log1p", "sqrt")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call(tuple(spread(rng, draw(shapes()), positive=True)), {})


@operands_of("power")
def _(draw: DrawFn, rng: Rng) -> Call:
    base, exponent = draw(broadcastable_shapes(2))
    return Call((*spread(rng, base, positive=True), *spread(rng, exponent)), {})


@operands_of("remainder", "floor_divide")
def _(draw: DrawFn, rng: Rng) -> Call:
    """x / y stays clear of the integers, whichever of them broadcasts."""
    shape = draw(shapes())
    (small,) = spread(rng, draw(stretchable_shapes(shape)), low=0.7, high=1.3)
    ratio = rng.integers(-3, 3, shape) + rng.uniform(0.2, 0.8, shape)
    if draw(st.booleans()):
        return Call((np.asarray(small * ratio), small), {})
    return Call((small, np.asarray(small / ratio)), {})


@operands_of("where")
def _(draw: DrawFn, rng: Rng) -> Call:
    condition, x, y = draw(broadcastable_shapes(3))
    return Call((np.asarray(rng.random(condition) < 0.5), *spread(rng, x, y)), {})


@operands_of("clip")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call(tuple(spread(rng, *draw(broadcastable_shapes(3)))), {})


# ---------------------------------------------------------------- keys as primitives get them
def selected_shape(shape: Shape, key: tuple[Any, ...], arrays: tuple[Array, ...] = ()) -> Shape:
    """The shape of what a key, with its index arrays apart, selects from an array of a shape."""
    return np.shape(np.zeros(shape)[filled(key, arrays)])


@st.composite
def basic_keys(draw: DrawFn, shape: Shape) -> tuple[Any, ...]:
    """A key of integers, slices, None and Ellipsis, as primitives get it: a tuple."""
    key: Any = draw(hnp.basic_indices(shape, allow_newaxis=True, max_dims=6))
    return key if isinstance(key, tuple) else (key,)


@st.composite
def advanced_keys(draw: DrawFn, shape: Shape) -> tuple[tuple[Any, ...], tuple[Array, ...]]:
    """A key with index arrays as primitives get it: its static part, and the arrays that stand at `ARRAY`."""
    places = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    index_shapes: Iterator[Shape] = iter(draw(broadcastable_shapes(len(places))))
    static: list[Any] = []
    arrays: list[Array] = []
    for axis in range(max(places) + 1 if draw(st.booleans()) else len(shape)):
        if draw(st.integers(0, 9)) == 0:
            static.append(None)
        n = shape[axis]
        if axis in places:
            at = next(index_shapes) if n else (0,)
            dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
            low = 0 if dtype is np.uint8 else -n
            arrays.append(draw(hnp.arrays(dtype, at, elements=st.integers(low, max(n - 1, low)))))
            static.append(ARRAY)
        elif n and draw(st.booleans()):
            static.append(draw(st.integers(-n, n - 1)))
        else:
            static.append(draw(st.slices(n)))
    if any(a.size == 0 for a in arrays):  # an axis of length 0: all index arrays are empty
        arrays = [a.reshape(-1)[:0] for a in arrays]
    return tuple(static), tuple(arrays)


@operands_of("basic_index")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    return Call(tuple(spread(rng, shape)), {"key": draw(basic_keys(shape))})


@operands_of("unindex")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    key = draw(basic_keys(shape))
    return Call(tuple(spread(rng, selected_shape(shape, key))), {"shape": shape, "key": key})


@operands_of("gather")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(advanced_keys(shape))
    return Call((*spread(rng, shape), *arrays), {"key": key})


@operands_of("scatter_add")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(advanced_keys(shape))
    return Call((*spread(rng, selected_shape(shape, key, arrays)), *arrays), {"shape": shape, "key": key})


@operands_of("index_update", "assign_index")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    without_arrays = basic_keys(shape).map(lambda key: (key, ()))
    key, arrays = draw(st.one_of(advanced_keys(shape), without_arrays))
    value = draw(stretchable_shapes(selected_shape(shape, key, arrays)))
    return Call((*spread(rng, shape, value), *arrays), {"key": key})


@operands_of("nonzero_index")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    return Call((np.asarray(rng.random(shape) < 0.5),), {"axis": draw(st.integers(0, len(shape) - 1))})


@operands_of("lasting")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(advanced_keys(shape))
    return Call(arrays, {"shape": shape, "key": key})


# ---------------------------------------------------------------- shapes and dtypes
@operands_of("reshape")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    wanted = list(draw(st.permutations(shape)))
    if len(wanted) > 1 and draw(st.booleans()):
        wanted = [wanted[0] * wanted[1], *wanted[2:]]
    wanted.insert(draw(st.integers(0, len(wanted))), 1)
    return Call(tuple(spread(rng, shape)), {"shape": tuple(wanted)})


@operands_of("broadcast_to")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    return Call(tuple(spread(rng, draw(stretchable_shapes(shape)))), {"shape": shape})


@operands_of("permute_dims")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    return Call(tuple(spread(rng, shape)), {"axes": tuple(draw(st.permutations(range(len(shape)))))})


@operands_of("astype")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call(tuple(spread(rng, draw(shapes()))), {"dtype": DTYPES["float64"]})


@operands_of("concat")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    axis = draw(st.integers(0, len(shape) - 1))
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    return Call(tuple(spread(rng, *((*shape[:axis], n, *shape[axis + 1 :]) for n in lengths))), {"axis": axis})


@operands_of("matrix_transpose")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call(tuple(spread(rng, draw(shapes(min_dims=2)))), {})


# ---------------------------------------------------------------- reductions and matrix products
@operands_of("sum", "all", "any")
def _(draw: DrawFn, rng: Rng) -> Call:
    return _reduction(draw, rng, draw(shapes()))


@operands_of("mean", "max", "min", "logsumexp")
def _(draw: DrawFn, rng: Rng) -> Call:
    """A mean, or an extreme, of nothing is not defined; other axes may be empty."""
    call = _reduction(draw, rng, draw(shapes()))
    (x,) = call.operands
    return Call(tuple(spread(rng, _never_empty(x.shape, call.settings["axis"]))), call.settings)


def _never_empty(shape: Shape, axis: Shape, least: int = 1) -> Shape:
    """The shape, with a length of at least `least` along some axes."""
    return tuple(max(n, least) if i in axis else n for i, n in enumerate(shape))


def _reduction(draw: DrawFn, rng: Rng, shape: Shape) -> Call:
    axis = draw(axes(len(shape), canonical=True))
    return Call(tuple(spread(rng, shape)), {"axis": axis, "keepdims": draw(st.booleans())})


@operands_of("var", "std")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    axis: Any = draw(axes(len(shape), min_size=1, canonical=True))
    shape = _never_empty(shape, axis, least=2)
    correction = draw(st.sampled_from([0, 0.0, 1, 0.5]))
    return Call(tuple(spread(rng, shape)), {"axis": axis, "correction": correction, "keepdims": draw(st.booleans())})


@operands_of("argmax", "argmin")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    axis = draw(st.one_of(st.none(), st.integers(0, len(shape) - 1))) if shape else None
    shape = _never_empty(shape, tuple(range(len(shape))) if axis is None else (axis,))
    return Call(tuple(spread(rng, shape)), {"axis": axis, "keepdims": draw(st.booleans())})


@operands_of("matmul")
def _(draw: DrawFn, rng: Rng) -> Call:
    n, k, m = (draw(st.integers(0, 3)) for _ in range(3))
    first, second = draw(broadcastable_shapes(2))
    return Call(tuple(spread(rng, (*first[-1:], n, k), (*second[-1:], k, m))), {})


# ---------------------------------------------------------------- neural networks
@operands_of("linear")
def _(draw: DrawFn, rng: Rng) -> Call:
    lead = draw(shapes(min_dims=1, max_dims=2))
    inputs, outputs = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return Call(tuple(spread(rng, (*lead, inputs), (outputs, inputs), (outputs,))), {})


@operands_of("gelu")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call(tuple(spread(rng, draw(shapes()))), {"approximate": draw(st.sampled_from(["none", "tanh"]))})


@operands_of("layer_norm")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    first = draw(st.integers(0, len(shape) - 1))
    settings = {"axis": tuple(range(first, len(shape))), "eps": draw(st.sampled_from([1e-2, 0.5]))}
    return Call(tuple(spread(rng, shape, shape[first:], shape[first:])), settings)


@operands_of("dropout")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape, p = draw(shapes()), draw(st.sampled_from([0.1, 0.5, 0.9]))
    return Call((*spread(rng, shape), np.asarray(rng.random(shape) >= p)), {"p": p})


def _row_numbers(draw: DrawFn, rng: Rng, rows: int) -> Array:
    """Numbers of rows, of any integer dtype; none where there are no rows."""
    dtype = draw(st.sampled_from([np.int64, np.int8, np.uint64]))
    return np.asarray(rng.integers(0, max(rows, 1), draw(shapes(max_dims=2)) if rows else (0,))).astype(dtype)


@operands_of("row_index")
def _(draw: DrawFn, rng: Rng) -> Call:
    rows = draw(st.integers(0, 4))
    return Call((_row_numbers(draw, rng, rows),), {"rows": rows})


@operands_of("embedding")
def _(draw: DrawFn, rng: Rng) -> Call:
    rows, width = draw(st.integers(0, 4)), draw(st.integers(0, 3))
    return Call((*spread(rng, (rows, width)), _row_numbers(draw, rng, rows)), {})


@operands_of("softmax", "log_softmax")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_dims=1))
    axis: int = draw(st.integers(0, len(shape) - 1))
    return Call(tuple(spread(rng, _never_empty(shape, (axis,)))), {"axis": axis})


@operands_of("softmax_cross_entropy")
def _(draw: DrawFn, rng: Rng) -> Call:
    n, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    labels = rng.integers(0, classes, n).astype(draw(st.sampled_from([np.int64, np.int8, np.uint8, np.uint64])))
    ignore_index = draw(st.sampled_from([-100, *range(classes)]))
    if (labels == ignore_index).all():
        ignore_index = -100  # the mean over nothing is NaN
    elif ignore_index == -100 and labels.dtype.kind == "i" and n > 1 and draw(st.booleans()):
        labels[0] = ignore_index
    return Call((*spread(rng, (n, classes)), labels), {"ignore_index": ignore_index})


@operands_of("one_hot")
def _(draw: DrawFn, rng: Rng) -> Call:
    classes = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([np.int64, np.int8, np.uint64]))
    labels = np.asarray(rng.integers(0, classes, draw(shapes()))).astype(dtype)
    wanted = draw(st.sampled_from(["float32", "float64", "int64"]))
    return Call((labels,), {"classes": classes, "dtype": DTYPES[wanted]})


@operands_of("binary_cross_entropy_of_probabilities")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call(tuple(spread(rng, *draw(broadcastable_shapes(2)), low=0.05, high=0.95, positive=True)), {})


@operands_of("assign")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes())
    return Call(tuple(spread(rng, shape, shape)), {})


@operands_of("mean_squared_error")
def _(draw: DrawFn, rng: Rng) -> Call:
    shape = draw(shapes(min_side=1))  # the mean of nothing is NaN
    return Call(tuple(spread(rng, shape, shape)), {})


# ---------------------------------------------------------------- random numbers and optimizers
@operands_of("random_uniform", "random_normal")
def _(draw: DrawFn, rng: Rng) -> Call:
    state = rng.integers(0, 2**63, 2).astype(np.uint64)
    dtype = DTYPES[draw(st.sampled_from(["float32", "float64"]))]
    return Call((state,), {"shape": draw(shapes()), "dtype": dtype})


@operands_of("advance")
def _(draw: DrawFn, rng: Rng) -> Call:
    return Call((rng.integers(0, 2**62, 2).astype(np.uint64),), {"blocks": draw(st.integers(0, 1000))})


class _Buffers(NamedTuple):
    """What an update rule works on: flat buffers, hyper-parameters, and gradients, some of them turned."""

    param: Array
    step: Array
    hyper: Array
    grads: list[Array]
    turned: tuple[bool, ...]


def _buffers(draw: DrawFn, rng: Rng, hyper: list[float]) -> _Buffers:
    lengths = draw(st.lists(shapes(max_dims=2), min_size=1, max_size=3))
    grads = [direction(rng, shape) for shape in lengths]
    turned = tuple(len(shape) == 2 and draw(st.booleans()) for shape in lengths)
    step = np.full(len(grads), draw(st.integers(0, 3)), np.float64)
    return _Buffers(direction(rng, (sum(g.size for g in grads),)), step, np.array(hyper), grads, turned)


@operands_of("sgd")
def _(draw: DrawFn, rng: Rng) -> Call:
    momentum, dampening, weight_decay = (draw(st.sampled_from([0.0, value])) for value in (0.9, 0.3, 0.01))
    on = _buffers(draw, rng, [0.1, momentum, dampening, weight_decay])
    settings = {"turned": on.turned, "nesterov": draw(st.booleans()), "maximize": draw(st.booleans())}
    return Call((on.param, direction(rng, on.param.shape), on.step, on.hyper, *on.grads), settings)


@operands_of("adam")
def _(draw: DrawFn, rng: Rng) -> Call:
    beta2, weight_decay = draw(st.sampled_from([0.99, 0.999])), draw(st.sampled_from([0.0, 0.01]))
    on = _buffers(draw, rng, [0.1, 0.9, beta2, 1e-8, weight_decay])
    settings = {name: draw(st.booleans()) for name in ("decoupled", "eps_inside", "maximize")}
    moments = direction(rng, on.param.shape), np.abs(direction(rng, on.param.shape)) + 0.1
    return Call((on.param, *moments, on.step, on.hyper, *on.grads), {"turned": on.turned, **settings})
