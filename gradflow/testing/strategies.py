"""Strategies for hypothesis: shapes, axes, dtypes, values, memory layouts, and keys for indexing.

Arrays come as NumPy's, so that one drawn example serves several libraries. What is drawn from a generator of random
numbers shrinks with its seed; everything else shrinks towards the fewest axes, the smallest lengths and the plainest
layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import DrawFn, SearchStrategy

from gradflow.errors import ArgumentError, explain

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Rng = np.random.Generator
Values = Literal["smooth", "positive", "nasty", "nonfinite"]

generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
"""Generators of random numbers, each of a seed of its own."""


# ---------------------------------------------------------------- shapes and axes
def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 3) -> SearchStrategy[Shape]:
    """Shapes small enough to enumerate by hand, empty ones among them.

    >>> from hypothesis import find
    >>> from gradflow.testing.strategies import shapes
    >>> find(shapes(), lambda shape: 0 in shape)
    (0,)
    """
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def broadcastable_shapes(
    count: int, *, max_dims: int = 3, min_side: int = 0, max_side: int = 3
) -> SearchStrategy[tuple[Shape, ...]]:
    """Several shapes that broadcast against each other.

    >>> from hypothesis import given
    >>> from gradflow.testing.strategies import broadcastable_shapes
    >>> @given(broadcastable_shapes(3))
    ... def test(shapes):
    ...     assert len(shapes) == 3 and np.broadcast_shapes(*shapes) is not None
    >>> test()
    """
    drawn = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=max_dims, min_side=min_side, max_side=max_side)
    return drawn.map(lambda found: found.input_shapes)


@st.composite
def stretchable_shapes(draw: DrawFn, shape: Shape) -> Shape:
    """A shape that broadcasts to a given one: leading axes dropped, some lengths 1.

    >>> from hypothesis import find
    >>> from gradflow.testing.strategies import stretchable_shapes
    >>> find(stretchable_shapes((2, 3)), lambda shape: len(shape) == 2 and 1 in shape)
    (2, 1)
    """
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(1 if draw(st.booleans()) else n for n in kept)


@st.composite
def axes(draw: DrawFn, ndim: int, *, min_size: int = 0, canonical: bool = False) -> int | tuple[int, ...] | None:
    """Axes of an array of `ndim` dimensions, as users write them: None (all), an integer, or a tuple; from either end.

    Args:
        min_size: the fewest axes, where the array has as many.
        canonical: as primitives get them instead: a sorted tuple, counted from the front.

    >>> from hypothesis import find
    >>> from gradflow.testing.strategies import axes
    >>> find(axes(3), lambda axis: isinstance(axis, tuple) and len(axis) == 2)
    (0, 1)
    """
    chosen = draw(st.sets(st.integers(0, ndim - 1), min_size=min(min_size, ndim))) if ndim else set()
    if canonical:
        return tuple(sorted(chosen))
    if len(chosen) == ndim and draw(st.booleans()):
        return None
    written = tuple(axis - ndim * draw(st.booleans()) for axis in draw(st.permutations(sorted(chosen))))
    return written[0] if len(written) == 1 and draw(st.booleans()) else written


def dtypes(kinds: str = "f") -> SearchStrategy[np.dtype[Any]]:
    """The dtypes of gradflow of some kinds: "b" booleans, "i" and "u" integers, "f" floating-point numbers.

    >>> from hypothesis import find
    >>> from gradflow.testing.strategies import dtypes
    >>> find(dtypes("iu"), lambda dtype: dtype.kind == "u")
    dtype('uint8')
    """
    from gradflow.ops.creation import DTYPES

    return st.sampled_from([dtype for dtype in DTYPES.values() if dtype.kind in kinds])


# ---------------------------------------------------------------- values
def spread(rng: Rng, *shapes: Shape, low: float = 0.3, high: float = 2.0, positive: bool = False) -> list[Array]:
    """Float64 arrays in ±[low, high] of which no two elements lie closer than a finite difference reaches.

    So nothing is near 0, and neither x, −x and y, nor the elements of one array, tie.

    >>> from gradflow.testing.strategies import spread
    >>> x, y = spread(np.random.default_rng(0), (2, 3), (4,))
    >>> x.shape, y.shape, bool(np.diff(np.sort(np.abs([*x.flat, *y.flat]))).min() > 0.05)
    ((2, 3), (4,), True)
    """
    sizes = [math.prod(shape) for shape in shapes]
    n = sum(sizes)
    values = low + (high - low) * (rng.permutation(n) + rng.uniform(0.25, 0.75, n)) / max(n, 1)
    if not positive:
        values *= rng.choice([-1.0, 1.0], n)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def direction(rng: Rng, shape: Shape) -> Array:
    """A random direction, or a random cotangent: float64 in [−1, 1]."""
    return np.asarray(rng.uniform(-1.0, 1.0, shape))


def nasty_values(dtype: np.dtype[Any] | type, *, nonfinite: bool = False) -> list[Any]:
    """The numbers of a dtype at which careless arithmetic goes wrong, with both signs where there are two.

    Args:
        nonfinite: the infinities and NaN, too.

    >>> from gradflow.testing.strategies import nasty_values
    >>> nasty_values(np.int8)
    [0, 1, 2, 127, -1, -2, -127, -128]
    >>> len(nasty_values(np.float32)), len(nasty_values(np.float32, nonfinite=True))
    (16, 19)
    """
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return [False, True]
    if kind.kind == "u":
        return [0, 1, 2, int(np.iinfo(kind).max)]
    if kind.kind == "i":
        top = int(np.iinfo(kind).max)
        return [0, 1, 2, top, -1, -2, -top, -top - 1]
    limits = np.finfo(kind)
    top = limits.max
    above_one = kind.type(1) + limits.eps
    positive = [0.0, 1.0, above_one, limits.smallest_subnormal, limits.tiny, limits.eps, np.sqrt(top), top]
    found = [kind.type(value) for value in positive] + [-kind.type(value) for value in positive]
    return found + [kind.type(text) for text in ("inf", "-inf", "nan") if nonfinite]


@st.composite
def arrays(
    draw: DrawFn,
    shape: Shape | SearchStrategy[Shape],
    dtype: Any = np.float64,
    values: Values = "smooth",
) -> Array:
    """Arrays of a shape and dtype (each given, or a strategy of them).

    Args:
        values: ``"smooth"``: well conditioned, where no two elements tie and none is near 0; ``"positive"``: those
            above 0; ``"nasty"``: ±0, subnormals, the tiniest and largest, ties; ``"nonfinite"``: these and ±∞ and NaN.
            Smooth integers are small, and booleans are either.

    Raises:
        ArgumentError: other values.

    >>> from hypothesis import given
    >>> from gradflow.testing.strategies import arrays, dtypes, shapes
    >>> @given(arrays(shapes(), dtypes("f")))
    ... def test(x):
    ...     assert np.all(np.abs(x) >= 0.25)
    >>> test()
    """
    lengths: Shape = draw(_strategy(shape))
    kind = np.dtype(draw(_strategy(dtype)))
    if values in ("nasty", "nonfinite"):
        elements = st.sampled_from(nasty_values(kind, nonfinite=values == "nonfinite"))
        return draw(hnp.arrays(kind, lengths, elements=elements))
    if values not in ("smooth", "positive"):
        raise ArgumentError(
            explain(
                f"arrays with values={values!r}.",
                "values are smooth, positive, nasty or nonfinite.",
                'arrays(shape, values="nasty")',
            )
        )
    rng = draw(generators)
    if kind.kind == "b":
        return np.asarray(rng.random(lengths) < 0.5)
    if kind.kind in "iu":
        low = 1 if values == "positive" else 0 if kind.kind == "u" else -9
        return np.asarray(rng.integers(low, 10, lengths).astype(kind))
    return spread(rng, lengths, positive=values == "positive")[0].astype(kind)


def _strategy(value: T | SearchStrategy[T]) -> SearchStrategy[T]:
    return value if isinstance(value, SearchStrategy) else st.just(value)


# ---------------------------------------------------------------- memory layouts
def _fortran(array: Array) -> Array:
    return np.asfortranarray(array)


def _strided(array: Array) -> Array:
    """Every other element of a larger array, along the last axis."""
    room = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    room[..., ::2] = array
    return room[..., ::2]


def _backwards(array: Array) -> Array:
    """Stored from the last element to the first."""
    turned = (slice(None, None, -1),) * array.ndim
    return array[turned].copy()[turned]


def _offset(array: Array) -> Array:
    """Not at the start of its memory."""
    room = np.zeros(array.size + 1, array.dtype)
    room[1:] = array.reshape(-1)
    return room[1:].reshape(array.shape)


def _expanded(array: Array) -> Array:
    """Stored once along each axis on which it does not change: stride 0."""
    for axis in _constant_axes(array):
        array = np.broadcast_to(np.take(array, [0], axis=axis), array.shape)
    return array


def _constant_axes(array: Array) -> list[int]:
    """The axes, longer than 1, on which an array is the same bit by bit (−0 and 0 differ, a NaN is itself)."""
    return [
        axis
        for axis, n in enumerate(array.shape)
        if n > 1 and np.repeat(np.take(array, [0], axis=axis), n, axis=axis).tobytes() == array.tobytes()
    ]


@st.composite
def layouts(draw: DrawFn, array: Array, *, writeable: bool | None = None) -> Array:
    """The same values in another memory layout.

    C order, Fortran order, every other element, backwards, not at the start of its memory; where the array is constant
    along an axis, also stored once along it (stride 0, and so read-only); and each of them writeable or read-only.

    Args:
        writeable: whether the array can be written to; None for either.

    >>> from hypothesis import find
    >>> from gradflow.testing.strategies import layouts
    >>> x = find(layouts(np.ones((2, 3))), lambda x: x.strides[-1] < 0)
    >>> x.shape, x.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    ((2, 3), True)
    """
    ways: list[Callable[[Array], Array]] = [np.ascontiguousarray, _offset]
    if array.ndim:
        ways = [np.ascontiguousarray, _fortran, _strided, _backwards, _offset]
    if not writeable and _constant_axes(array):
        ways.append(_expanded)
    laid = draw(st.sampled_from(ways))(array).view().reshape(array.shape)
    if writeable and (not laid.flags.writeable or np.shares_memory(laid, array)):
        laid = laid.copy(order="K")
    if laid.flags.writeable and (writeable is False or writeable is None and draw(st.booleans())):
        laid.flags.writeable = False
    return laid


# ---------------------------------------------------------------- keys
@st.composite
def index_keys(draw: DrawFn, shape: Shape, *, basic: bool = False, invalid: bool = False) -> Any:
    """A key for `x[key]` with x of a shape, as users write it and NumPy takes it.

    Integers, slices, None, ..., arrays of integers, and masks of one axis or several, mixed, from either end; a tuple,
    or its only part.

    Args:
        basic: no arrays.
        invalid: rarely, keys that NumPy refuses: an index out of bounds, arrays that do not broadcast.

    >>> from hypothesis import given
    >>> from gradflow.testing.strategies import index_keys
    >>> x = np.arange(6.0).reshape(2, 3)
    >>> @given(index_keys((2, 3)))
    ... def test(key):
    ...     assert gf.tensor(x)[key].tolist() == x[key].tolist()
    >>> test()
    """
    before = draw(st.integers(0, len(shape)))
    after = draw(st.integers(0, len(shape) - before))
    common = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=int(draw(st.integers(0, 5)) < 5), max_side=4))
    parts: list[Any] = []
    _add_parts(draw, parts, shape[:before], common, basic, invalid)
    if before + after < len(shape) and after or draw(st.booleans()):
        parts.append(...)
    _add_parts(draw, parts, shape[len(shape) - after :], common, basic, invalid)
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return tuple(parts)


def _add_parts(draw: DrawFn, parts: list[Any], lengths: Shape, common: Shape, basic: bool, invalid: bool) -> None:
    """Append the parts of a key that use up axes of some lengths; its arrays broadcast to the shape `common`."""
    while lengths:
        n = lengths[0]
        kind = draw(st.sampled_from(["slice", "slice", "int", "none"] + ["array", "mask"] * (not basic)))
        used = draw(st.integers(1, len(lengths))) if kind == "mask" else int(kind != "none")
        selectable = invalid or math.prod(lengths[:used]) > 0 or common[-1:] in ((0,), (1,))
        if kind == "none":
            parts.append(None)
        elif kind == "int" and (n or invalid):
            stray = invalid and draw(_rarely)
            parts.append(draw(st.integers(-n - stray, n - 1 + stray)) if n or stray else slice(None))
        elif kind == "array" and selectable:
            parts.append(draw(_index_arrays(n, common, invalid)))
        elif kind == "mask" and selectable:
            parts.append(draw(_masks(lengths[:used], common, invalid)))
        else:
            used = 1
            parts.append(draw(st.slices(n)))
        lengths = lengths[used:]


_rarely = st.integers(0, 60).map(lambda i: i == 60)


@st.composite
def _index_arrays(draw: DrawFn, n: int, common: Shape, invalid: bool) -> Array:
    """Integers for an axis of length n, of a shape that broadcasts to `common`."""
    dtype = draw(st.sampled_from([np.int64, np.int64, np.int32, np.uint8]))
    kept = common[draw(st.integers(0, len(common))) :]
    shape = tuple(1 if draw(st.integers(0, 3)) == 3 else m for m in kept)
    if not n:
        shape = (0,)
    low, high = 0 if dtype is np.uint8 else -n, n - 1 + (invalid and draw(_rarely))
    return draw(hnp.arrays(dtype, shape, elements=st.integers(low, max(high, low))))


@st.composite
def _masks(draw: DrawFn, lengths: Shape, common: Shape, invalid: bool) -> Array:
    """A mask of some axes; the indices of what it selects broadcast to `common`."""
    if invalid:
        return draw(hnp.arrays(np.bool_, lengths))
    size, wanted = math.prod(lengths), common[-1] if common else 1
    if size < wanted:
        wanted = min(size, 1)
    mask = np.zeros(lengths, np.bool_)
    mask.reshape(-1)[draw(st.permutations(range(size)))[:wanted]] = True
    return mask
