"""The array object of the standard: attributes, conversions, operators' values, indexing, DLPack, devices."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow.backend import Backend
from gradflow.errors import ArgumentError, DTypeError, ShapeError
from gradflow.testing.strategies import shapes
from tests.array_api.calls import calls
from tests.array_api.standard import (
    DTYPES,
    ELEMENTWISE,
    FLOATS,
    MEMBERS,
    Array,
    both,
    dtype_name,
    oracle,
    ours,
    refuses,
    required,
    same,
    some,
    standards_version,  # noqa: F401
    theirs,
)
from tests.array_api.test_conformance_dtypes import FUNCTION_OF, OPERATORS

# Members of the standard's array that a Tensor does not have yet. Adding one takes its name off this list.
MISSING = {f"__{side}{shift}__" for side in ("", "r", "i") for shift in ("lshift", "rshift")}


def test_what_a_tensor_lacks_of_the_standards_array_is_known() -> None:
    assert len(MEMBERS) > 60  # the oracle was read rightly
    assert {name for name in MEMBERS if not hasattr(gf.Tensor, name)} == MISSING


@pytest.mark.parametrize("name", ["__dlpack__", "__array_namespace__", "to_device"])
def test_methods_have_the_standards_signature(name: str) -> None:
    own = dict(inspect.signature(getattr(gf.Tensor, name)).parameters)
    for parameter, wanted in list(inspect.signature(getattr(Array, name)).parameters.items())[1:]:
        keyword = parameter == "stream"  # keyword-only by the standard's text, which the oracle takes by position, too
        assert own[parameter].kind is (wanted.KEYWORD_ONLY if keyword else wanted.kind)
        assert type(wanted.default).__name__ == "Undef" or own[parameter].default == wanted.default


@given(data=st.data())
def test_attributes(data: st.DataObject) -> None:
    dtype, shape = data.draw(st.sampled_from(DTYPES)), data.draw(shapes())
    array = np.ones(shape, dtype)
    x, y = gf.asarray(array), oracle.asarray(array)
    assert (x.shape, x.ndim, x.size) == (y.shape, y.ndim, y.size)
    assert (type(x.shape), type(x.ndim), type(x.size)) == (tuple, int, int)
    assert dtype_name(x) == dtype_name(y) and x.device == gf.__array_namespace_info__().default_device()
    if x.ndim >= 2:
        same(x.mT, y.mT)
    else:
        with pytest.raises(ValueError, match="matrix_transpose of shape"):
            _ = x.mT
    if x.ndim == 2:
        same(x.T, y.T)
    else:
        with pytest.raises(ValueError, match="for matrices"):
            _ = x.T


# ---------------------------------------------------------------- Python's numbers
CONVERSIONS: list[Callable[[Any], Any]] = [bool, int, float, complex, operator.index]


@pytest.mark.parametrize("convert", CONVERSIONS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_element_becomes_a_python_number(convert: Callable[[Any], Any], dtype: str) -> None:
    values = [0, 1] + ([float("nan"), float("inf"), -0.0, 2.5] if dtype in FLOATS else [])
    for value in values:
        array = np.array(value, dtype)
        try:
            expected = convert(oracle.asarray(array))
        except (TypeError, ValueError, OverflowError) as error:
            with pytest.raises(type(error)):
                convert(gf.asarray(array))
        else:
            found = convert(gf.asarray(array))
            assert type(found) is type(expected) and repr(found) == repr(expected)
    with pytest.raises(ValueError, match="shape"):
        convert(gf.ones((2, 2), dtype=dtype))


def test_iteration_and_length() -> None:
    x, y = gf.asarray(np.arange(6).reshape(2, 3)), oracle.reshape(oracle.arange(6), (2, 3))
    for found, expected in itertools.zip_longest(x[0], y[0, :]):
        same(found, expected)
    with pytest.raises(TypeError):
        iter(gf.tensor(1.0)).__next__()


# ---------------------------------------------------------------- operators
@both
@pytest.mark.parametrize("name", [*OPERATORS, "__matmul__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"])
@given(data=st.data())
@some
def test_operators_give_what_the_standard_says(name: str, backend: str | Backend, data: st.DataObject) -> None:
    call = data.draw(calls(FUNCTION_OF[name.strip("_")]))
    apply = getattr(operator, name)
    same(ours(apply, *call.args, backend=backend), theirs(apply, *call.args), signs=name != "__matmul__", slack=64)


@pytest.mark.parametrize("name", [*OPERATORS, "__matmul__"])
@given(data=st.data())
@some
def test_operators_in_place_give_what_the_standard_says(name: str, data: st.DataObject) -> None:
    x, y = data.draw(calls(FUNCTION_OF[name.strip("_")])).args
    expected = theirs(getattr(operator, name), x, y)
    written = gf.asarray(x, copy=True)

    def write() -> gf.Tensor:
        with np.errstate(all="ignore"):
            return getattr(operator, f"__i{name[2:]}")(written, gf.asarray(y))  # type: ignore[no-any-return]

    if expected.shape != x.shape:
        with pytest.raises(ShapeError, match="a tensor cannot grow in place"):
            write()
    elif dtype_name(expected) == x.dtype.name:  # tests/array_api/test_conformance_dtypes.py has the others
        assert write() is written
        same(written, expected, signs=name != "__matmul__", slack=64)


NOT_OF_ONES = {"pow", "bitwise_left_shift", "bitwise_right_shift"}  # a number to a power of ones says nothing


@pytest.mark.parametrize("name", [name for name in OPERATORS if FUNCTION_OF[name.strip("_")] not in NOT_OF_ONES])
def test_a_number_on_the_left_is_the_first_operand(name: str) -> None:
    apply = getattr(operator, name)
    for dtype in DTYPES:
        x = np.array([1, 1], dtype)
        for number in (True, 3, 2.5):
            try:
                expected = theirs(apply, number, x)
            except TypeError:
                continue  # tests/array_api/test_conformance_dtypes.py has gradflow's rule
            same(ours(apply, number, x), expected)


def test_elementwise_methods_are_the_functions() -> None:
    for name in ELEMENTWISE:
        method = getattr(gf.Tensor, name, None)
        if method is not None and required(name) == ["x"]:
            np.testing.assert_array_equal(method(gf.tensor([1.0, 4.0])), getattr(gf, name)(gf.tensor([1.0, 4.0])))


def test_what_is_no_array_is_refused() -> None:
    x = gf.tensor([1.0])
    for name in OPERATORS:
        for other in (None, "1", object(), [1.0], 1j):
            assert refuses(lambda name=name, other=other: getattr(operator, name)(x, other)), (name, other)


# ---------------------------------------------------------------- indexing
@st.composite
def keys(draw: Any, shape: tuple[int, ...], write: bool = False) -> Any:
    """A key that the standard allows: integers, slices within bounds, an Ellipsis, new axes; a mask; index arrays."""
    kind = draw(st.sampled_from(["basic", "basic", "mask", "integers"]))
    if kind == "mask" or not shape:
        mask = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        return np.array(mask, bool).reshape(shape)
    if kind == "integers" and not write and 0 not in shape:
        length = draw(st.integers(0, 3))
        return tuple(
            np.array(draw(st.lists(st.integers(-n, n - 1), min_size=length, max_size=length)), np.int64) for n in shape
        )
    parts: list[Any] = [draw(_part(n)) for n in shape]
    if draw(st.booleans()):
        start = draw(st.integers(0, len(parts)))
        parts[start : draw(st.integers(start, len(parts)))] = [Ellipsis]
    if not write and draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return tuple(parts) if len(parts) != 1 or draw(st.booleans()) else parts[0]


def _part(n: int) -> st.SearchStrategy[Any]:
    """An integer or a slice for an axis of length n, within the bounds that the standard sets."""
    first = st.none() | st.integers(-n, max(0, n - 1))
    forward = st.builds(slice, first, st.none() | st.integers(-n, n), st.sampled_from([None, 1, 2]))
    last = st.integers(-n, n - 1) if n else st.just(0)
    backward = st.builds(slice, first, st.none() | last, st.sampled_from([-1, -2]))
    return forward | backward | st.integers(-n, n - 1) if n else forward | backward


def mine(key: Any, array: Callable[[np.ndarray], Any]) -> Any:
    """A key with one library's arrays."""
    if isinstance(key, tuple):
        return tuple(mine(part, array) for part in key)
    return array(key) if isinstance(key, np.ndarray) else key


@both
@given(data=st.data())
def test_reading_at_a_key(backend: str | Backend, data: st.DataObject) -> None:
    shape, dtype = data.draw(shapes()), data.draw(st.sampled_from(DTYPES))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    key = data.draw(keys(shape))
    expected = oracle.asarray(array)[mine(key, oracle.asarray)]
    same(gf.asarray(array, backend=backend)[mine(key, lambda k: gf.asarray(k, backend=backend))], expected)


@both
@given(data=st.data())
def test_writing_at_a_key(backend: str | Backend, data: st.DataObject) -> None:
    shape, dtype = data.draw(shapes()), data.draw(st.sampled_from(DTYPES))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    key = data.draw(keys(shape, write=True))
    x, y = gf.tensor(array, backend=backend), oracle.asarray(array, copy=True)
    number = {"b": True, "f": 2.5}.get(np.dtype(dtype).kind, 3)
    value = data.draw(st.sampled_from(["number", "array"]))
    there = mine(key, oracle.asarray)
    if value == "array":
        picked = np.full(y[there].shape, number, dtype)
        x[mine(key, lambda k: gf.asarray(k, backend=backend))] = gf.asarray(picked, backend=backend)
        y[there] = oracle.asarray(picked)
    else:
        x[mine(key, lambda k: gf.asarray(k, backend=backend))] = number
        y[there] = number
    same(x, y)


def test_a_truth_value_as_a_mask_is_differentiated_and_recorded() -> None:
    """It adds an axis: reading keeps the history, writing reaches the tensor."""
    for mask, gradient in ((True, [2.0, 2.0]), (False, [0.0, 0.0])):
        x = gf.tensor([1.0, 3.0], requires_grad=True)
        (2 * x[gf.tensor(mask)]).sum().backward()
        assert x.grad.tolist() == gradient
        y, v = x * 1, gf.tensor(5.0, requires_grad=True)
        y[gf.tensor(mask)] = v
        assert y.tolist() == ([5.0, 5.0] if mask else [1.0, 3.0])
        y.sum().backward()
        assert v.grad.item() == (2.0 if mask else 0.0)
    with pytest.raises(gf.errors.GraphError, match=r"with gf\.no_grad"):
        x[gf.tensor(True)] = 1.0


def test_indices_beyond_the_end_raise() -> None:
    x = gf.zeros((2, 3))
    for key in (2, -3, (0, 3), (0, 0, 0), gf.tensor([2])):
        with pytest.raises(IndexError):
            x[key]
        with pytest.raises(IndexError):
            x[key] = 1.0
    for key in (1.5, "a", gf.tensor([0.5]), object()):
        with pytest.raises(DTypeError):
            x[key]


# ---------------------------------------------------------------- devices and other libraries
def test_to_device() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    assert x.to_device(x.device) is x
    assert gf.astype(x, gf.float64, device=x.device).dtype == gf.float64
    with pytest.raises(ArgumentError, match="backend numpy has no device 'moon'"):
        x.to_device("moon")
    with pytest.raises(ArgumentError, match=r"to_device\(stream=1\)"):
        x.to_device(x.device, stream=1)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bool"])
def test_dlpack_both_ways(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    x, y = gf.tensor(array), oracle.asarray(array)
    assert tuple(x.__dlpack_device__()) == tuple(y.__dlpack_device__())
    same(gf.from_dlpack(y), y)
    same(gf.from_dlpack(x), y)
    np.testing.assert_array_equal(oracle.from_dlpack(x)._array, array)
    shared = np.from_dlpack(x)
    assert np.shares_memory(shared, x.data)
    copied = gf.from_dlpack(x, copy=True)
    assert not np.shares_memory(copied.data, x.data)
    same(copied, y)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        x.__dlpack__(nonsense=1)
