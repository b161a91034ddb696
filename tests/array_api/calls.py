"""How a call of each function of the standard is drawn: of those that gradflow lacks, too.

Elementwise functions and reductions are drawn from their signatures; every other function has an entry in `CALLS`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradflow.testing.strategies import broadcastable_shapes, shapes
from tests.array_api.standard import DTYPES, FLOATS, FUNCTIONS, DType, accepted, category, required, standard_dtype

Shape = tuple[int, ...]


def broadcastable(count: int) -> st.SearchStrategy[tuple[Shape, ...]]:
    """Shapes that broadcast against each other, and what they broadcast to, last."""
    return broadcastable_shapes(count).map(lambda drawn: (*drawn, np.broadcast_shapes(*drawn)))


Draw = Callable[..., Any]
INTEGERS = [d for d in DTYPES if "int" in d]
NUMBERS = INTEGERS + FLOATS


class Call(NamedTuple):
    """Arguments in which arrays are NumPy's and dtypes are `DType`s."""

    args: tuple[Any, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012


Maker = Callable[[Draw], Call]
CALLS: dict[str, Maker] = {}


def call_of(*names: str) -> Callable[[Maker], Maker]:
    """Enter a function that draws the calls of some functions."""

    def enter(function: Maker) -> Maker:
        CALLS.update(dict.fromkeys(names, function))
        return function

    return enter


@st.composite
def calls(draw: Draw, name: str) -> Call:
    """A call that the standard allows."""
    if name in CALLS:
        return CALLS[name](draw)
    if category(name) == "elementwise":
        return _elementwise(draw, name)
    return _of_axes(draw, name)


# ---------------------------------------------------------------- arrays
def _fill(draw: Draw, shape: Shape, dtype: str, low: float = -4, high: float = 4) -> np.ndarray:
    """Small numbers, halves among the floats, so that ties occur and nothing overflows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if dtype == "bool":
        return np.asarray(rng.integers(0, 2, shape), bool)
    if dtype.startswith("uint"):
        low = max(low, 0)
    if dtype in FLOATS:
        halves = rng.integers(math.ceil(2 * low), math.floor(2 * high) + 1, shape) / 2
        return np.asarray(np.where(rng.integers(0, 2, shape), halves, rng.uniform(low, high, shape)), dtype)
    return np.asarray(rng.integers(math.ceil(low), math.floor(high) + 1, shape), dtype)


def _array(draw: Draw, dtypes: list[str] = DTYPES, **limits: int) -> np.ndarray:
    return _fill(draw, draw(shapes(**limits)), draw(st.sampled_from(dtypes)))


def _axis(draw: Draw, ndim: int) -> int:
    return draw(st.integers(-ndim, ndim - 1))


def _axes(draw: Draw, ndim: int) -> Shape:
    """Several axes, some counted from the back."""
    chosen = draw(st.lists(st.integers(0, ndim - 1), unique=True, max_size=ndim)) if ndim else []
    return tuple(a - ndim if draw(st.booleans()) else a for a in chosen)


def _maybe(draw: Draw, **settings: Callable[[], Any]) -> dict[str, Any]:
    """Some of the settings."""
    return {name: value() for name, value in settings.items() if draw(st.booleans())}


# ---------------------------------------------------------------- the two large families
_LOW = {"pow": 0, "bitwise_left_shift": 0, "bitwise_right_shift": 0, "floor_divide": 1, "remainder": 1}  # of an integer


@functools.cache
def _allowed(name: str) -> list[tuple[str, ...]]:
    choices = itertools.product(accepted(name), repeat=len(required(name)))
    return [dtypes for dtypes in choices if standard_dtype(name, *dtypes)]


def _elementwise(draw: Draw, name: str) -> Call:
    """Operands that broadcast, of one dtype or of two that the standard promotes."""
    dtypes = draw(st.sampled_from(_allowed(name)))
    *wanted, _ = draw(broadcastable(len(dtypes)))
    arrays = [_fill(draw, shape, dtype) for shape, dtype in zip(wanted, dtypes, strict=True)]
    if name in _LOW and dtypes[-1] not in FLOATS:
        arrays[-1] = _fill(draw, wanted[-1], dtypes[-1], low=_LOW[name])
    return Call(tuple(arrays))


_NOT_OF_NOTHING = {"argmax", "argmin", "max", "min"}


def _of_axes(draw: Draw, name: str) -> Call:
    """A function of one array, an axis or axes, and what else its signature has."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    smallest = {"min_side": 1} if name in _NOT_OF_NOTHING else {}
    x = _array(draw, list(accepted(name)), min_dims=int(name.startswith("cumulative")), **smallest)
    settings: dict[str, Callable[[], Any]] = {}
    if "axis" in parameters and x.ndim:
        several = "tuple" in str(parameters["axis"].annotation)
        settings["axis"] = lambda: _axes(draw, x.ndim) if several and draw(st.booleans()) else _axis(draw, x.ndim)
    if "dtype" in parameters:
        kind = (
            FLOATS if x.dtype.kind == "f" else INTEGERS if x.dtype.kind == "i" else [d for d in INTEGERS if d[0] == "u"]
        )
        settings["dtype"] = lambda: DType(draw(st.sampled_from(kind)))
    if "correction" in parameters:
        settings["correction"] = lambda: draw(st.sampled_from([0, 1, 0.5, 0.0]))
    for flag in sorted({"keepdims", "include_initial"} & set(parameters)):
        settings[flag] = lambda: draw(st.booleans())
    chosen = _maybe(draw, **settings)
    if name.startswith("cumulative") and x.ndim > 1:  # a vector's axis alone may be left out
        chosen["axis"] = _axis(draw, x.ndim)
    return Call((x,), chosen)


# ---------------------------------------------------------------- elementwise functions of other signatures
@call_of("clip")
def _clip(draw: Draw) -> Call:
    dtype, other = _of_one_kind(draw, booleans=False)
    *wanted, _ = draw(broadcastable(3))
    x = _fill(draw, wanted[0], dtype)
    bounds: list[Any] = [_fill(draw, wanted[1], other, high=0), _fill(draw, wanted[2], other, low=0)]
    if draw(st.booleans()):
        bounds = [0, 2] if dtype in INTEGERS else [-0.5, 1.5]
    keep = draw(st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))
    low, high = (b if k else None for b, k in zip(bounds, keep, strict=True))
    return Call((x,), {"min": low, "max": high}) if draw(st.booleans()) else Call((x, low, high))


@call_of("where")
def _where(draw: Draw) -> Call:
    *wanted, _ = draw(broadcastable(3))
    dtype = draw(st.sampled_from(DTYPES))
    return Call((_fill(draw, wanted[0], "bool"), _fill(draw, wanted[1], dtype), _fill(draw, wanted[2], dtype)))


# ---------------------------------------------------------------- creation
def _optional_dtype(draw: Draw, dtypes: list[str] = DTYPES) -> dict[str, Any]:
    return _maybe(draw, dtype=lambda: DType(draw(st.sampled_from(dtypes))))


def _shape_argument(draw: Draw) -> Any:
    return draw(st.one_of(shapes(), st.integers(0, 3)))


@call_of("empty", "ones", "zeros")
def _filled(draw: Draw) -> Call:
    return Call((_shape_argument(draw),), _optional_dtype(draw))


@call_of("empty_like", "ones_like", "zeros_like")
def _filled_like(draw: Draw) -> Call:
    return Call((_array(draw),), _optional_dtype(draw))


@call_of("full")
def _full(draw: Draw) -> Call:
    value = draw(st.sampled_from([True, 3, -2.5, math.inf, math.nan]))
    own = {bool: ["bool"], int: INTEGERS, float: FLOATS}[type(value)]
    return Call((_shape_argument(draw), value), _optional_dtype(draw, own))


@call_of("full_like")
def _full_like(draw: Draw) -> Call:
    x = _array(draw)
    return Call((x, {"b": True, "i": -3, "u": 3, "f": 2.5}[x.dtype.kind]))


@call_of("asarray")
def _asarray(draw: Draw) -> Call:
    x = _array(draw)
    data = draw(st.sampled_from([x, x.tolist()])) if x.size else x
    return Call(
        (data,), _maybe(draw, dtype=lambda: DType(x.dtype.name), copy=lambda: draw(st.sampled_from([True, None])))
    )


@call_of("from_dlpack")
def _from_dlpack(draw: Draw) -> Call:
    return Call((_array(draw, NUMBERS),))


@call_of("arange")
def _arange(draw: Draw) -> Call:
    number = st.one_of(st.integers(-5, 5), st.integers(-10, 10).map(lambda n: n / 2))
    args = [draw(number), draw(number), draw(number.filter(bool))][: draw(st.integers(1, 3))]
    whole = all(isinstance(a, int) for a in args)
    return Call(tuple(args), _optional_dtype(draw, ["int32", "int64", *FLOATS] if whole else FLOATS))


@call_of("linspace")
def _linspace(draw: Draw) -> Call:
    ends = draw(st.integers(-5, 5)), draw(st.floats(-3, 3, width=16))
    settings = _maybe(draw, endpoint=lambda: draw(st.booleans()))
    return Call((*ends, draw(st.integers(0, 6))), settings | _optional_dtype(draw, FLOATS))


@call_of("eye")
def _eye(draw: Draw) -> Call:
    columns = [draw(st.one_of(st.none(), st.integers(0, 4)))] if draw(st.booleans()) else []
    settings = _maybe(draw, k=lambda: draw(st.integers(-3, 3)))
    return Call((draw(st.integers(0, 4)), *columns), settings | _optional_dtype(draw, NUMBERS))


@call_of("tril", "triu")
def _triangle(draw: Draw) -> Call:
    return Call((_array(draw, min_dims=2),), _maybe(draw, k=lambda: draw(st.integers(-3, 3))))


@call_of("meshgrid")
def _meshgrid(draw: Draw) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    vectors = [_fill(draw, (n,), dtype) for n in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))]
    return Call(tuple(vectors), _maybe(draw, indexing=lambda: draw(st.sampled_from(["xy", "ij"]))))


# ---------------------------------------------------------------- dtypes
@call_of("astype")
def _astype(draw: Draw) -> Call:
    x = _array(draw)
    x = (
        np.asarray(np.abs(x)) if x.dtype.kind in "if" else x
    )  # what an unsigned dtype makes of a negative number is left open
    return Call((x, DType(draw(st.sampled_from(DTYPES)))), _maybe(draw, copy=lambda: draw(st.booleans())))


@call_of("broadcast_to")
def _broadcast_to(draw: Draw) -> Call:
    shape, _, result = draw(broadcastable(2))
    return Call((_fill(draw, shape, draw(st.sampled_from(DTYPES))), result))


@call_of("broadcast_arrays")
def _broadcast_arrays(draw: Draw) -> Call:
    *wanted, _ = draw(broadcastable(3))
    return Call(tuple(_fill(draw, shape, draw(st.sampled_from(DTYPES))) for shape in wanted))


def _of_one_kind(draw: Draw, booleans: bool = True) -> tuple[str, str]:
    """Two dtypes that the standard promotes."""
    kinds = [FLOATS, [d for d in INTEGERS if d != "uint64"], [d for d in INTEGERS if d[0] == "u"], ["bool"]]
    kind = draw(st.sampled_from(kinds if booleans else kinds[:-1]))
    return draw(st.sampled_from(kind)), draw(st.sampled_from(kind))


@call_of("can_cast")
def _can_cast(draw: Draw) -> Call:
    a, b = _of_one_kind(draw)
    return Call((draw(st.sampled_from([DType(a), np.ones(2, a)])), DType(b)))


@call_of("result_type")
def _result_type(draw: Draw) -> Call:
    a, b = _of_one_kind(draw)
    number = {"b": True, "i": 1, "u": 1, "f": draw(st.sampled_from([1, 1.5]))}[np.dtype(a).kind]
    return Call((DType(a), np.ones(2, b), *([number] if draw(st.booleans()) else [])))


@call_of("finfo")
def _finfo(draw: Draw) -> Call:
    dtype = draw(st.sampled_from(FLOATS))
    return Call((draw(st.sampled_from([DType(dtype), np.ones(2, dtype)])),))


@call_of("iinfo")
def _iinfo(draw: Draw) -> Call:
    dtype = draw(st.sampled_from(INTEGERS))
    return Call((draw(st.sampled_from([DType(dtype), np.ones(2, dtype)])),))


_KINDS = ["bool", "signed integer", "unsigned integer", "integral", "real floating", "complex floating", "numeric"]


@call_of("isdtype")
def _isdtype(draw: Draw) -> Call:
    kind = st.sampled_from([*_KINDS, *map(DType, DTYPES)])
    return Call((DType(draw(st.sampled_from(DTYPES))), draw(st.one_of(kind, st.tuples(kind, kind)))))


@call_of("__array_namespace_info__")
def _info(draw: Draw) -> Call:
    return Call()


# ---------------------------------------------------------------- manipulation
@call_of("concat")
def _concat(draw: Draw) -> Call:
    a, b = _of_one_kind(draw)
    shape = draw(shapes(min_dims=1))
    axis = _axis(draw, len(shape))
    other = tuple(draw(st.integers(0, 3)) if i == axis % len(shape) else n for i, n in enumerate(shape))
    arrays: Any = [_fill(draw, shape, a), _fill(draw, other, b), _fill(draw, shape, a)]
    arrays = tuple(arrays) if draw(st.booleans()) else arrays
    return Call((arrays,), {"axis": draw(st.sampled_from([axis, None]))})


@call_of("stack")
def _stack(draw: Draw) -> Call:
    a, b = _of_one_kind(draw)
    shape = draw(shapes())
    settings = _maybe(draw, axis=lambda: _axis(draw, len(shape) + 1))
    return Call(([_fill(draw, shape, a), _fill(draw, shape, b)],), settings)


@call_of("expand_dims")
def _expand_dims(draw: Draw) -> Call:
    x = _array(draw)
    axis = _axis(draw, x.ndim + 1)
    return Call((x,), {"axis": axis}) if draw(st.booleans()) else Call((x, axis))


@call_of("squeeze")
def _squeeze(draw: Draw) -> Call:
    shape = draw(shapes(min_dims=1))
    axes = _axes(draw, len(shape))
    at = {a % len(shape) for a in axes}
    x = _fill(draw, tuple(1 if i in at else n for i, n in enumerate(shape)), draw(st.sampled_from(DTYPES)))
    axis = axes[0] if len(axes) == 1 and draw(st.booleans()) else axes
    return Call((x,), {"axis": axis}) if draw(st.booleans()) else Call((x, axis))


@call_of("flip")
def _flip(draw: Draw) -> Call:
    x = _array(draw)
    return Call((x,), _maybe(draw, axis=lambda: draw(st.sampled_from([None, _axes(draw, x.ndim)]))))


@call_of("moveaxis")
def _moveaxis(draw: Draw) -> Call:
    x = _array(draw, min_dims=1)
    if draw(st.booleans()):
        return Call((x, _axis(draw, x.ndim), _axis(draw, x.ndim)))
    source = _axes(draw, x.ndim)
    places = draw(st.permutations(range(x.ndim)))[: len(source)]
    return Call((x, source, tuple(places)))


@call_of("permute_dims")
def _permute_dims(draw: Draw) -> Call:
    x = _array(draw)
    order = draw(st.permutations(range(x.ndim)))
    return Call((x, tuple(a - x.ndim if draw(st.booleans()) else a for a in order)))


@call_of("reshape")
def _reshape(draw: Draw) -> Call:
    x = _array(draw)
    shape = list(draw(st.permutations(x.shape)))
    if shape and x.size and draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = -1
    elif draw(st.booleans()):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    settings = _maybe(draw, copy=lambda: draw(st.sampled_from([True, None, *[False] * bool(x.size)])))
    return Call((x, tuple(shape)), settings)


@call_of("roll")
def _roll(draw: Draw) -> Call:
    x = _array(draw, min_dims=1)
    axes = _axes(draw, x.ndim)
    if axes and draw(st.booleans()):
        return Call((x, tuple(draw(st.integers(-4, 4)) for _ in axes)), {"axis": axes})
    return Call((x, draw(st.integers(-4, 4))), _maybe(draw, axis=lambda: _axis(draw, x.ndim)))


@call_of("repeat")
def _repeat(draw: Draw) -> Call:
    x = _array(draw, min_dims=1)
    return Call((x, draw(st.integers(0, 3))), _maybe(draw, axis=lambda: _axis(draw, x.ndim)))


@call_of("tile")
def _tile(draw: Draw) -> Call:
    return Call((_array(draw), tuple(draw(st.lists(st.integers(0, 2), max_size=3)))))


@call_of("unstack")
def _unstack(draw: Draw) -> Call:
    x = _array(draw, min_dims=1)
    return Call((x,), _maybe(draw, axis=lambda: _axis(draw, x.ndim)))


# ---------------------------------------------------------------- indexing, searching, sorting, sets
@call_of("take")
def _take(draw: Draw) -> Call:
    x = _array(draw, min_dims=1, min_side=1)
    axis = _axis(draw, x.ndim)
    n = x.shape[axis]
    indices = np.array(draw(st.lists(st.integers(0, n - 1), max_size=4)), draw(st.sampled_from(["int32", "int64"])))
    return Call((x, indices), {} if x.ndim == 1 and draw(st.booleans()) else {"axis": axis})


@call_of("take_along_axis")
def _take_along_axis(draw: Draw) -> Call:
    x = _array(draw, min_dims=1, min_side=1)
    axis = _axis(draw, x.ndim)
    shape = tuple(draw(st.integers(0, 3)) if i == axis % x.ndim else n for i, n in enumerate(x.shape))
    indices = draw(hnp.arrays("int64", shape, elements=st.integers(0, x.shape[axis] - 1)))
    return Call((x, indices), {"axis": axis})


@call_of("nonzero")
def _nonzero(draw: Draw) -> Call:
    return Call((_array(draw, min_dims=1),))


@call_of("searchsorted")
def _searchsorted(draw: Draw) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    x = np.sort(_fill(draw, (draw(st.integers(0, 5)),), dtype))
    return Call(
        (x, _fill(draw, draw(shapes()), dtype)), _maybe(draw, side=lambda: draw(st.sampled_from(["left", "right"])))
    )


@call_of("sort", "argsort")
def _sort(draw: Draw) -> Call:
    x = _array(draw, NUMBERS, min_dims=1)
    return Call((x,), _maybe(draw, axis=lambda: _axis(draw, x.ndim), descending=lambda: draw(st.booleans())))


@call_of("unique_all", "unique_counts", "unique_inverse", "unique_values")
def _unique(draw: Draw) -> Call:
    return Call((_array(draw),))


@call_of("diff")
def _diff(draw: Draw) -> Call:
    x = _array(draw, NUMBERS, min_dims=1)
    return Call((x,), _maybe(draw, axis=lambda: _axis(draw, x.ndim), n=lambda: draw(st.integers(0, 2))))


# ---------------------------------------------------------------- matrices
@call_of("matmul")
def _matmul(draw: Draw) -> Call:
    a, b, _ = draw(broadcastable(2))
    n, k, m = draw(st.tuples(*[st.integers(0, 3)] * 3))
    dtype = draw(st.sampled_from(NUMBERS))
    left = (k,) if draw(st.integers(0, 3)) == 0 else (*a, n, k)
    right = (k,) if draw(st.integers(0, 3)) == 0 else (*b, k, m)
    return Call((_fill(draw, left, dtype), _fill(draw, right, dtype)))


@call_of("matrix_transpose")
def _matrix_transpose(draw: Draw) -> Call:
    return Call((_array(draw, min_dims=2),))


@call_of("tensordot")
def _tensordot(draw: Draw) -> Call:
    common, before, after = draw(shapes(max_dims=2)), draw(shapes(max_dims=1)), draw(shapes(max_dims=1))
    dtype = draw(st.sampled_from(NUMBERS))
    x, y = _fill(draw, before + common, dtype), _fill(draw, common + after, dtype)
    listed = tuple(range(len(before), x.ndim)), tuple(range(len(common)))
    return Call((x, y), {"axes": draw(st.sampled_from([len(common), listed]))})


@call_of("vecdot")
def _vecdot(draw: Draw) -> Call:
    shape, dtype = draw(shapes(min_dims=1)), draw(st.sampled_from(NUMBERS))
    settings = _maybe(draw, axis=lambda: -1 - draw(st.integers(0, len(shape) - 1)))
    return Call((_fill(draw, shape, dtype), _fill(draw, shape, dtype)), settings)
