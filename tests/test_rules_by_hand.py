"""Operations and their derivatives case by case, where drawn operands seldom or never go, against NumPy and PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from tests.strategies import RULES

import gradflow as gf
from gradflow.errors import ShapeError

Shape = tuple[int, ...]

both = pytest.mark.parametrize("backend", ["numpy", RULES], ids=["kernels", "compositions"])


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


# ---------------------------------------------------------------- reductions
@both
def test_the_mean_of_nothing_is_nan(backend: Any) -> None:
    """As NumPy has it, by the kernel and by the composition, and along one empty axis, too."""
    x = gf.zeros((0, 3), backend=backend)
    for f in (gf.mean, gf.var, gf.std):
        assert math.isnan(f(x).item())
        assert np.isnan(f(x, axis=0).numpy()).all() and f(x, axis=0).shape == (3,)
        assert f(x, axis=1).shape == (0,)
    assert math.isnan(gf.mse_loss(x, x).item())


@both
@pytest.mark.parametrize("correction", [2, 2.5, 3])
def test_a_variance_without_degrees_of_freedom_is_nan(correction: float, backend: Any) -> None:
    x = gf.tensor([1.0, 2.0], backend=backend)
    assert math.isnan(gf.var(x, correction=correction).item())
    assert math.isnan(gf.std(x, correction=correction).item())


@both
def test_the_second_derivative_of_std_is_zero_where_all_values_are_equal(backend: Any) -> None:
    hessian = gf.hessian(gf.std)
    torch = pytest.importorskip("torch")
    for values in ([2.0, 2.0, 2.0], [1.0, 2.0, 4.0]):
        expected = torch.autograd.functional.hessian(
            lambda x: torch.std(x, correction=0), torch.tensor(values, dtype=torch.float64)
        )
        found = hessian(gf.tensor(values, dtype=gf.float64, backend=backend))
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-10, atol=1e-12)


def test_a_sum_in_the_dtype_of_its_tensor_casts_nothing() -> None:
    x = gf.ones(3, requires_grad=True)
    assert gf.sum(x, dtype=gf.float32)._node.edges[0][0] is x._node
    wider = gf.sum(x, dtype=gf.float64)
    assert wider.dtype is gf.float64 and wider._node.edges[0][0].edges[0][0] is x._node
