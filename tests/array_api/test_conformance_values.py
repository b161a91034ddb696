"""Ordinary values: each function of the standard gives on drawn calls what the oracle gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow.backend import Backend
from tests.array_api.calls import calls
from tests.array_api.standard import (
    COMPLEX_ONLY,
    FUNCTIONS,
    IMPLEMENTED,
    ZERO_SIGN_IS_FREE,
    DType,
    both,
    category,
    dtype_name,
    here,
    oracle,
    ours,
    same,
    some,
    standards_version,  # noqa: F401
    theirs,
)

SUMS = 64  # roundings: sums may be added in any order


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in COMPLEX_ONLY])
@given(data=st.data())
@settings(max_examples=10)
def test_calls_are_drawn_that_the_standard_allows(name: str, data: st.DataObject) -> None:
    call = data.draw(calls(name))
    theirs(FUNCTIONS[name], *call.args, **call.settings)


def default_float(found: Any, expected: Any) -> Any:
    """gradflow's default dtype is float32, the oracle's float64."""
    if dtype_name(found) == "float32" and dtype_name(expected) == "float64":
        return oracle.astype(expected, oracle.float32)
    return expected


def without_dtype(name: str, args: tuple[Any, ...], settings: dict[str, Any]) -> bool:
    """Whether the default float dtype decides: Python numbers become an array."""
    arrays = any(isinstance(a, np.ndarray | DType) for a in args)
    return category(name) == "creation" and not arrays and "dtype" not in settings


@both
@pytest.mark.parametrize("name", IMPLEMENTED)
@given(data=st.data())
@some
def test_a_function_gives_what_the_standard_says(name: str, backend: str | Backend, data: st.DataObject) -> None:
    call = data.draw(calls(name))
    expected = theirs(FUNCTIONS[name], *call.args, **call.settings)
    found = ours(here(name), *call.args, backend=backend, **call.settings)
    if category(name) == "data_type" and not isinstance(expected, type(oracle.asarray(0))):
        return same_answer(found, expected)
    if category(name) == "info":
        return None  # tests/array_api/test_conformance_names.py asks it
    if without_dtype(name, call.args, call.settings):
        expected = default_float(found, expected)
    if name.startswith("empty"):
        assert (found.shape, dtype_name(found)) == (expected.shape, dtype_name(expected))
        return None
    assert isinstance(found, tuple | list) or found.backend is gf.zeros(0, backend=backend).backend
    return same(
        found, expected, signs=name not in ZERO_SIGN_IS_FREE, slack=4 if category(name) == "elementwise" else SUMS
    )


def same_answer(found: Any, expected: Any) -> None:
    """The answers about dtypes: a boolean, a dtype, or an object with the same facts."""
    if isinstance(expected, bool):
        assert found is expected
    elif hasattr(expected, "bits"):
        facts = [name for name in vars(expected) if name != "dtype"]
        assert [getattr(found, name) for name in facts] == [getattr(expected, name) for name in facts]
        assert [type(getattr(found, name)) for name in facts] == [type(getattr(expected, name)) for name in facts]
        assert found.dtype.name == dtype_name(expected.dtype)
    else:
        assert found.name == dtype_name(expected)


def test_a_wrong_result_is_noticed() -> None:
    """The comparison itself: dtype, shape, structure, NaN, signs of zeros and infinities, roundings."""
    right = oracle.asarray([1.0, 0.0, float("nan"), float("inf")])
    same(gf.tensor(right._array), right)
    values = right._array
    for wrong in (
        values.astype("float32"),
        values[:3],
        values[None],
        [1.0, -0.0, np.nan, np.inf],
        [1.0, 0.0, 0.0, np.inf],
        [1.0, 0.0, np.nan, -np.inf],
        [1.0 + 1e-14, 0.0, np.nan, np.inf],
        [1.0, 1e-300, np.nan, np.inf],
    ):
        with pytest.raises(AssertionError):
            same(gf.tensor(np.asarray(wrong) if isinstance(wrong, list) else wrong), right)
    with pytest.raises(AssertionError):
        same(values, right)
    with pytest.raises((AssertionError, ValueError)):
        same((gf.tensor(values),), (right, right))
    with pytest.raises(AssertionError):
        same(1, True)
