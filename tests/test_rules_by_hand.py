"""Operations and their derivatives case by case, where drawn operands seldom or never go, against NumPy and PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gradflow as gf
from gradflow.errors import ShapeError

Shape = tuple[int, ...]


def counting(shape: Shape) -> np.ndarray:
    return np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape)


# ---------------------------------------------------------------- products
LEFT: list[Shape] = [(3,), (1,), (2, 3), (1, 3), (4, 2, 3), (1, 2, 3), (2, 1, 2, 3), (3, 1)]
RIGHT: list[Shape] = [(3,), (1,), (3, 2), (3, 1), (4, 3, 2), (1, 3, 2), (2, 4, 3, 1), (1, 3)]


@pytest.mark.parametrize(("left", "right"), list(itertools.product(LEFT, RIGHT)))
def test_matmul_takes_the_shapes_that_numpys_takes(left: Shape, right: Shape) -> None:
    x, y = counting(left), counting(right)
    try:
        expected = np.matmul(x, y)
    except ValueError:
        with pytest.raises(ShapeError) as error:
            gf.matmul(gf.tensor(x), gf.tensor(y))
        inner = right[0] if len(right) == 1 else right[-2]
        if left[-1] != inner:
            assert f"the inner lengths {left[-1]} and {inner} must be equal." in str(error.value)
            assert ("x @ y.mT" in str(error.value)) == (len(right) > 1 and right[-1] == left[-1])
    else:
        found = gf.matmul(gf.tensor(x), gf.tensor(y))
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.numpy(), expected)
