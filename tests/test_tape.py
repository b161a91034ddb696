"""The tape by itself: when bytes were written, what counts as saved, and the order of the sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import resolve
from gradflow.errors import GraphError
from gradflow.primitive import defimpl, defvjp, primitive
from gradflow.tape import _Writes

Extent = tuple[Any, int, int]


# ---------------------------------------------------------------- in-place writes
def extent(array: np.ndarray) -> Extent:
    return resolve("numpy").extent(array)


def test_the_extent_of_an_array_is_asked_for_once_while_it_lives() -> None:
    asked: list[int] = []

    def counting(array: np.ndarray) -> Extent:
        asked.append(id(array))
        return extent(array)

    writes, first, second = _Writes(), np.zeros(3), np.zeros(3)
    for array in (first, second, first, second, first):
        writes.mark(array, counting)
    assert asked == [id(first), id(second)]


def test_what_is_written_is_dated_and_what_is_not_is_zero() -> None:
    writes, array, other = _Writes(), np.zeros(6), np.zeros(6)
    assert writes.at(extent(array)) == 0
    writes.mark(array[1:3], extent)
    first = writes.at(extent(array))
    writes.mark(array[4:], extent)
    assert 0 < first < writes.at(extent(array)) == writes.last
    assert writes.at(extent(array[:4])) == writes.at(extent(array[2:3])) == first
    assert writes.at(extent(array[3:4])) == writes.at(extent(array[:1])) == writes.at(extent(other)) == 0, (
        "it is beside"
    )


def test_nothing_is_remembered_of_an_array_that_is_gone() -> None:
    writes, array = _Writes(), np.zeros(3)
    writes.mark(array, extent)
    assert len(writes.owners) == len(writes.written) == 1
    del array
    assert not writes.owners and not writes.written


# ---------------------------------------------------------------- what a rule saves
@pytest.fixture
def stretch(visitors: None) -> Any:
    """A primitive whose rule reads settings beside an array."""

    @primitive("float")
    def stretch(x: Any, /, *, dtype: Any, factor: float) -> Any: ...

    defvjp(stretch, x=lambda xp, g, x, dtype, factor: g * x * 2 * factor)
    defimpl(stretch, lambda xp, x, *, dtype, factor: x * x * factor)
    return stretch


@pytest.mark.parametrize("written", [False, True])
def test_a_dtype_that_a_rule_reads_is_no_array_that_could_be_written(stretch: Any, written: bool) -> None:
    leaf = gf.tensor([1.0, 2.0], requires_grad=True)
    x = leaf * 1.0
    y = stretch(x, dtype=gf.float32, factor=3.0)
    other = gf.zeros(2)
    other += 1.0  # something was written, so what nodes saved is looked at
    if written:
        with gf.no_grad():
            x += 1.0
        with pytest.raises(GraphError, match=r"stretch saved `x` for its derivative"):
            y.sum().backward()
    else:
        y.sum().backward()
        assert leaf.grad.tolist() == [6.0, 12.0]
