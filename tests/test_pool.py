"""The NumPy backend's recycling of large arrays."""

from __future__ import annotations

import numpy as np
import pytest

from gradflow_numpy.pool import LARGE, Pool, room

F32 = np.dtype(np.float32)
BIG = (LARGE // 4,)


def test_an_array_is_recycled_when_nobody_else_refers_to_it() -> None:
    pool = Pool()
    first = pool.take(BIG, F32)
    assert pool.take(BIG, F32) is not first
    address = first.ctypes.data
    view = first[10:20]
    del first
    assert pool.take(BIG, F32).ctypes.data != address, "a view holds it"
    del view
    assert pool.take(BIG, F32).ctypes.data == address


def test_shapes_and_dtypes_have_shelves_of_their_own() -> None:
    pool = Pool()
    for shape, dtype in (((4, 8), F32), ((8, 4), F32), ((4, 8), np.dtype(np.float64))):
        array = pool.take(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
    assert len(pool.shelves) == 3


def test_what_is_free_is_dropped_beyond_the_limit() -> None:
    pool = Pool(limit=3 * LARGE)
    held = pool.take(BIG, F32)
    for n in range(1, 9):
        pool.take((LARGE // 4 + n,), F32)
        assert pool.held == sum(array.nbytes for shelf in pool.shelves.values() for array in shelf)
    assert pool.held < 5 * LARGE
    assert any(array is held for shelf in pool.shelves.values() for array in shelf)


@pytest.mark.parametrize(("shape", "recycled"), [((LARGE // 4,), True), ((LARGE // 4 - 1,), False), ((), False)])
def test_room_is_made_for_large_results_alone(shape: tuple[int, ...], recycled: bool) -> None:
    assert (room(shape, F32) is not None) == recycled
