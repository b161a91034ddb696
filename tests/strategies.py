"""Hypothesis strategies that the tests share: shapes, values away from kinks, memory layouts, keys, calls.

A primitive of one or two operands and no settings gets operands element by element by default; every other primitive
has an entry in `OPERANDS`, and the registry suite fails for one that has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradflow as gf
from gradflow.backend import ARRAY
from gradflow.primitive import REGISTRY, Primitive
from gradflow_numpy.namespace import NumpyBackend

Shape = tuple[int, ...]
Rng = np.random.Generator
Draw = Callable[..., Any]


# ---------------------------------------------------------------- a second backend
class RulesOnly(NumpyBackend):
    """NumPy without kernels for what can be composed of other primitives, and without derivatives of its own."""

    name = "rules-only"
    kernels = {k: v for k, v in NumpyBackend.kernels.items() if k not in REGISTRY or REGISTRY[k].impl is None}  # noqa: RUF012
    residual_kernels = {}  # noqa: RUF012
    vjps = {}  # noqa: RUF012


RULES = RulesOnly()


# ---------------------------------------------------------------- shapes and axes
def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 3) -> st.SearchStrategy[Shape]:
    """Shapes small enough to enumerate by hand, empty ones among them."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def broadcastable(count: int) -> st.SearchStrategy[tuple[Shape, ...]]:
    """Several shapes that broadcast against each other, and what they broadcast to, last."""
    drawn = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=0, max_side=3)
    return drawn.map(lambda s: (*s.input_shapes, s.result_shape))


@st.composite
def axes_of(draw: Draw, ndim: int, min_size: int = 0) -> Shape:
    """Axes as a reduction's primitive gets them: a sorted tuple, counted from the front."""
    if not ndim:
        return ()
    return tuple(sorted(draw(st.sets(st.integers(0, ndim - 1), min_size=min(min_size, ndim)))))


# ---------------------------------------------------------------- values
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def spread(rng: Rng, *shapes: Shape, low: float = 0.3, high: float = 2.0, positive: bool = False) -> list[np.ndarray]:
    """Float64 arrays in ±[low, high] of which no two elements lie closer than a finite difference reaches.

    So nothing is near 0, and neither x, −x and y, nor the elements of one array, tie.
    """
    sizes = [math.prod(shape) for shape in shapes]
    n = sum(sizes)
    values = low + (high - low) * (rng.permutation(n) + rng.uniform(0.25, 0.75, n)) / max(n, 1)
    if not positive:
        values *= rng.choice([-1.0, 1.0], n)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def direction(rng: Rng, shape: Shape) -> np.ndarray:
    """A random direction, and a random cotangent."""
    return rng.uniform(-1.0, 1.0, shape)


@st.composite
def laid_out(draw: Draw, array: np.ndarray) -> np.ndarray:
    """An equal array in another memory layout: Fortran order, every other element, backwards, a view, read-only."""
    if array.ndim:
        layout = draw(st.sampled_from(["C", "F", "strided", "backwards", "offset", "expanded"]))
    else:
        layout = draw(st.sampled_from(["C", "offset"]))
    if layout == "F":
        array = np.asfortranarray(array)
    elif layout == "strided":
        room = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        room[..., ::2] = array
        array = room[..., ::2]
    elif layout == "backwards":
        array = array[(slice(None, None, -1),) * array.ndim].copy()[(slice(None, None, -1),) * array.ndim]
    elif layout == "offset":
        room = np.zeros((array.size + 1,), array.dtype)
        room[1:] = array.reshape(-1)
        array = room[1:].reshape(array.shape)
    elif layout == "expanded" and array.size and all((array == array[:1]).reshape(-1)):
        array = np.broadcast_to(array[:1], array.shape)  # stride 0
    if draw(st.booleans()):
        array = array.view()
        array.flags.writeable = False
    return array


# ---------------------------------------------------------------- keys
@st.composite
def advanced_keys(draw: Draw, shape: Shape) -> tuple[tuple[Any, ...], tuple[np.ndarray, ...]]:
    """A key with index arrays as the primitives get it: its static part, and the arrays that stand at `ARRAY`."""
    places = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    *index_shapes, _ = draw(broadcastable(len(places)))
    index_shapes = iter(index_shapes)
    static: list[Any] = []
    arrays: list[np.ndarray] = []
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


@st.composite
def basic_keys(draw: Draw, shape: Shape) -> tuple[Any, ...]:
    """A basic key as the primitives get it."""
    key = draw(hnp.basic_indices(shape, allow_newaxis=True, max_dims=6))
    return key if isinstance(key, tuple) else (key,)


def selected(shape: Shape, key: tuple[Any, ...], arrays: tuple[np.ndarray, ...]) -> Shape:
    """The shape of what a key selects."""
    found = iter(arrays)
    return np.zeros(shape)[tuple(next(found) if isinstance(part, str) else part for part in key)].shape


# ---------------------------------------------------------------- operands of primitives
class Case(NamedTuple):
    """A call of a primitive: float64 (or integer, or boolean) arrays, and settings."""

    operands: tuple[np.ndarray, ...]
    settings: dict[str, Any]


Maker = Callable[[Draw, Rng], Case]
OPERANDS: dict[str, Maker] = {}
"""Primitive name -> how a case is drawn, for those that the default does not fit."""


def operands_of(
    *names: str,
) -> Callable[[Maker], Maker]:
    """Enter a function as the way to draw cases of these primitives."""

    def enter(function: Maker) -> Maker:
        OPERANDS.update(dict.fromkeys(names, function))
        return function

    return enter


def has_cases(prim: Primitive) -> bool:
    """Whether the suite knows how to call a primitive."""
    return prim.name in OPERANDS or (
        len(prim.operands) <= 2 and not prim.settings and not prim.variadic and not prim.writes
    )


@st.composite
def cases(draw: Draw, prim: Primitive) -> Case:
    """A call of a primitive on which it is smooth: operands keep clear of kinks, ties and poles."""
    rng = draw(generators)
    if prim.name in OPERANDS:
        return OPERANDS[prim.name](draw, rng)
    *shapes_, _ = draw(broadcastable(len(prim.operands)))
    if prim.dtypes == "bits":
        dtype = draw(st.sampled_from([np.bool_, np.int64, np.uint8]))
        return Case(tuple(rng.integers(0, 2 if dtype is np.bool_ else 100, s).astype(dtype) for s in shapes_), {})
    return Case(tuple(spread(rng, *shapes_)), {})


@operands_of("log", "log1p", "sqrt")
def _(draw: Draw, rng: Rng) -> Case:
    return Case(tuple(spread(rng, draw(shapes()), positive=True)), {})


@operands_of("power")
def _(draw: Draw, rng: Rng) -> Case:
    first, second, _ = draw(broadcastable(2))
    return Case((*spread(rng, first, positive=True), *spread(rng, second)), {})


@operands_of("remainder", "floor_divide")
def _(draw: Draw, rng: Rng) -> Case:
    """x / y stays clear of the integers."""
    second, shape = draw(broadcastable(1))
    (y,) = spread(rng, second, low=0.7, high=1.3)
    return Case((np.asarray(y * (rng.integers(-3, 3, shape) + rng.uniform(0.2, 0.8, shape))), y), {})


@operands_of("where")
def _(draw: Draw, rng: Rng) -> Case:
    condition, x, y, _ = draw(broadcastable(3))
    return Case((np.asarray(rng.random(condition) < 0.5), *spread(rng, x, y)), {})


@operands_of("clip")
def _(draw: Draw, rng: Rng) -> Case:
    *three, _ = draw(broadcastable(3))
    return Case(tuple(spread(rng, *three)), {})


@operands_of("basic_index")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    return Case(tuple(spread(rng, shape)), {"key": draw(basic_keys(shape))})


@operands_of("unindex")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    key = draw(basic_keys(shape))
    return Case(tuple(spread(rng, selected(shape, key, ()))), {"shape": shape, "key": key})


@operands_of("gather")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(advanced_keys(shape))
    return Case((*spread(rng, shape), *arrays), {"key": key})


@operands_of("scatter_add")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(advanced_keys(shape))
    return Case((*spread(rng, selected(shape, key, arrays)), *arrays), {"shape": shape, "key": key})


@operands_of("index_update", "assign_index")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(st.one_of(advanced_keys(shape), basic_keys(shape).map(lambda key: (key, ()))))
    value = draw(_stretched(selected(shape, key, arrays)))
    return Case((*spread(rng, shape, value), *arrays), {"key": key})


@st.composite
def _stretched(draw: Draw, shape: Shape) -> Shape:
    """A shape that broadcasts to a given one: leading axes dropped, some lengths 1."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(1 if draw(st.booleans()) else n for n in kept)


@operands_of("nonzero_index")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1))
    return Case((rng.random(shape) < 0.5,), {"axis": draw(st.integers(0, len(shape) - 1))})


@operands_of("lasting")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1))
    key, arrays = draw(advanced_keys(shape))
    return Case(arrays, {"shape": shape, "key": key})


@operands_of("assign", "mean_squared_error")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    if not math.prod(shape):
        shape = ()  # the mean of nothing is NaN
    return Case(tuple(spread(rng, shape, shape)), {})


@operands_of("reshape")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    wanted = list(draw(st.permutations(shape)))
    if len(wanted) > 1 and draw(st.booleans()):
        wanted = [wanted[0] * wanted[1], *wanted[2:]]
    wanted.insert(draw(st.integers(0, len(wanted))), 1)
    return Case(tuple(spread(rng, shape)), {"shape": tuple(wanted)})


@operands_of("broadcast_to")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    return Case(tuple(spread(rng, draw(_stretched(shape)))), {"shape": shape})


@operands_of("permute_dims")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    return Case(tuple(spread(rng, shape)), {"axes": tuple(draw(st.permutations(range(len(shape)))))})


@operands_of("astype")
def _(draw: Draw, rng: Rng) -> Case:
    return Case(tuple(spread(rng, draw(shapes()))), {"dtype": gf.float64})


@operands_of("concat")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1))
    axis = draw(st.integers(0, len(shape) - 1))
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    return Case(tuple(spread(rng, *((*shape[:axis], n, *shape[axis + 1 :]) for n in lengths))), {"axis": axis})


@operands_of("matmul")
def _(draw: Draw, rng: Rng) -> Case:
    n, k, m = (draw(st.integers(0, 3)) for _ in range(3))
    first, second, _ = draw(broadcastable(2))
    return Case(tuple(spread(rng, (*first[-1:], n, k), (*second[-1:], k, m))), {})


@operands_of("matrix_transpose")
def _(draw: Draw, rng: Rng) -> Case:
    return Case(tuple(spread(rng, draw(shapes(min_dims=2)))), {})


@operands_of("sum", "all", "any")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes())
    return Case(tuple(spread(rng, shape)), {"axis": draw(axes_of(len(shape))), "keepdims": draw(st.booleans())})


@operands_of("mean", "max", "min", "logsumexp")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_side=1))
    return Case(tuple(spread(rng, shape)), {"axis": draw(axes_of(len(shape))), "keepdims": draw(st.booleans())})


@operands_of("var", "std")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_side=2, min_dims=1))
    axis = draw(axes_of(len(shape), min_size=1))
    correction = draw(st.sampled_from([0, 0.0, 1, 0.5]))
    return Case(tuple(spread(rng, shape)), {"axis": axis, "correction": correction, "keepdims": draw(st.booleans())})


@operands_of("argmax", "argmin")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_side=1))
    axis = draw(st.one_of(st.none(), st.integers(0, len(shape) - 1))) if shape else None
    return Case(tuple(spread(rng, shape)), {"axis": axis, "keepdims": draw(st.booleans())})


@operands_of("linear")
def _(draw: Draw, rng: Rng) -> Case:
    lead = draw(shapes(min_dims=1, max_dims=2))
    inputs, outputs = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return Case(tuple(spread(rng, (*lead, inputs), (outputs, inputs), (outputs,))), {})


@operands_of("softmax", "log_softmax")
def _(draw: Draw, rng: Rng) -> Case:
    shape = draw(shapes(min_dims=1, min_side=1))
    return Case(tuple(spread(rng, shape)), {"axis": draw(st.integers(0, len(shape) - 1))})


@operands_of("softmax_cross_entropy")
def _(draw: Draw, rng: Rng) -> Case:
    n, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    labels = rng.integers(0, classes, n).astype(draw(st.sampled_from([np.int64, np.int8, np.uint8, np.uint64])))
    ignore_index = draw(st.sampled_from([-100, *range(classes)]))
    if (labels == ignore_index).all():
        ignore_index = -100  # the mean over nothing is NaN
    elif ignore_index == -100 and labels.dtype.kind == "i" and n > 1 and draw(st.booleans()):
        labels[0] = ignore_index
    return Case((*spread(rng, (n, classes)), labels), {"ignore_index": ignore_index})


@operands_of("one_hot")
def _(draw: Draw, rng: Rng) -> Case:
    classes = draw(st.integers(1, 4))
    labels = rng.integers(0, classes, draw(shapes())).astype(draw(st.sampled_from([np.int64, np.int8, np.uint64])))
    return Case((labels,), {"classes": classes, "dtype": draw(st.sampled_from([gf.float32, gf.float64, gf.int64]))})


@operands_of("binary_cross_entropy_of_probabilities")
def _(draw: Draw, rng: Rng) -> Case:
    first, second, _ = draw(broadcastable(2))
    return Case(tuple(spread(rng, first, second, low=0.05, high=0.95, positive=True)), {})


@operands_of("random_uniform", "random_normal")
def _(draw: Draw, rng: Rng) -> Case:
    state = rng.integers(0, 2**63, 2).astype(np.uint64)
    return Case((state,), {"shape": draw(shapes()), "dtype": draw(st.sampled_from([gf.float32, gf.float64]))})


@operands_of("advance")
def _(draw: Draw, rng: Rng) -> Case:
    return Case((rng.integers(0, 2**62, 2).astype(np.uint64),), {"blocks": draw(st.integers(0, 1000))})


def _optimizer(draw: Draw, rng: Rng, hyper: list[float]) -> tuple[list[np.ndarray], list[np.ndarray], tuple[bool, ...]]:
    """A flat parameter with its gradients in the buffer's order, some of them turned; and the hyper-parameters."""
    grad_shapes = draw(st.lists(shapes(max_dims=2), min_size=1, max_size=3))
    grads = [direction(rng, shape) for shape in grad_shapes]
    turned = tuple(len(shape) == 2 and draw(st.booleans()) for shape in grad_shapes)
    step = np.full(len(grads), draw(st.integers(0, 3)), np.float64)
    return [direction(rng, (sum(g.size for g in grads),)), step, np.array(hyper)], grads, turned


@operands_of("sgd")
def _(draw: Draw, rng: Rng) -> Case:
    hyper = [
        0.1,
        draw(st.sampled_from([0.0, 0.9])),
        draw(st.sampled_from([0.0, 0.3])),
        draw(st.sampled_from([0.0, 0.01])),
    ]
    (param, step, h), grads, turned = _optimizer(draw, rng, hyper)
    settings = {"turned": turned, "nesterov": draw(st.booleans()), "maximize": draw(st.booleans())}
    return Case((param, direction(rng, param.shape), step, h, *grads), settings)


@operands_of("adam")
def _(draw: Draw, rng: Rng) -> Case:
    hyper = [0.1, 0.9, draw(st.sampled_from([0.99, 0.999])), 1e-8, draw(st.sampled_from([0.0, 0.01]))]
    (param, step, h), grads, turned = _optimizer(draw, rng, hyper)
    settings = {name: draw(st.booleans()) for name in ("decoupled", "eps_inside", "maximize")}
    moments = direction(rng, param.shape), rng.uniform(0.1, 1.0, param.shape)
    return Case((param, *moments, step, h, *grads), {"turned": turned, **settings})


def differentiable(prim: Primitive, operands: tuple[Any, ...]) -> list[int]:
    """Positions of the array arguments with respect to which a primitive has a derivative."""
    rules = [prim.rules[min(i, len(prim.rules) - 1)] for i in range(len(operands))]
    return [i for i, rule in enumerate(rules) if rule is not None]


def registered() -> list[str]:
    """The names of all primitives."""
    return sorted(REGISTRY)
