"""Our own matrix products against NumPy: every edge of the tiles, both layouts of a factor, both precisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.compiler.build import Switches, plan_of
from gradflow.compiler.trace import trace
from gradflow.primitive import namespace

pytest.importorskip("numba")
product = pytest.importorskip("gradflow_numba.product")

ROWS = [1, 2, 7, 13, 14, 15, 22, 27, 28, 43]
COLUMNS = [1, 3, 8, 9, 15, 16, 17, 31, 32, 33, 47, 70]


def compiled_product(x: np.ndarray, y: np.ndarray, tasks: int, turned: bool) -> np.ndarray:
    """x y by a program; with `turned`, x lies transposed in memory."""
    xp = namespace("numba")
    generator = xp.backend.code_generator()
    first = np.ascontiguousarray(x.T) if turned else x

    def f(a: gf.Tensor, b: gf.Tensor) -> gf.Tensor:
        return (a.mT if turned else a) @ b

    tensors = [gf.tensor(v, backend="numba") for v in (first, y)]
    _, found = trace(f, *tensors)
    plan = plan_of(found, xp, generator, tasks, Switches(thin=0))
    assert any(node.op == "gemm" for node in plan.graph.nodes)
    (out,) = generator.generate(plan, xp).run([first, y])
    return out  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_every_edge_of_the_tiles(rows: int, turned: bool, dtype: Any) -> None:
    rng = np.random.default_rng(rows)
    for i, columns in enumerate(COLUMNS):
        inner = (1, 2, 5, 16, 33)[i % 5]
        x, y = rng.normal(size=(rows, inner)).astype(dtype), rng.normal(size=(inner, columns)).astype(dtype)
        got = compiled_product(x, y, 1 + i % 3, turned)
        want = x.astype(np.float64) @ y.astype(np.float64)
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(dtype).eps * inner)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_that_compete_for_cache_get_lower_tiles(turned: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(37, 1024)).astype(np.float32), rng.normal(size=(1024, 40)).astype(np.float32)
    got = compiled_product(x, y, 2, turned)
    np.testing.assert_allclose(got, x.astype(np.float64) @ y, rtol=0, atol=1e-3)


def test_columns_that_compete_for_cache_are_copied_together() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 300)).astype(np.float32), rng.normal(size=(300, 1024)).astype(np.float32)
    for tasks in (1, 2):
        np.testing.assert_allclose(compiled_product(x, y, tasks, False), x.astype(np.float64) @ y, rtol=0, atol=1e-3)


def test_what_is_not_a_number_passes_through() -> None:
    x, y = np.ones((20, 8), np.float32), np.ones((8, 20), np.float32)
    x[3, 2], y[5, 7], y[6, 19] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(compiled_product(x, y, 1, False), x @ y)


def test_the_tiles_suit_the_cpu() -> None:
    tiles = product.shape()
    if tiles is None:
        pytest.skip("this CPU leaves products to BLAS")
    registers = 32 if tiles.vector == 64 else 16
    assert max(tiles.heights) * 2 + 2 < registers
    assert tiles.heights[-1] == tiles.crowded[-1] == 1  # any number of rows is covered
