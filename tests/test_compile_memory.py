"""The memory of a compiled step: no more at its peak than the same step takes eagerly."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow_numpy.pool import trim

pytest.importorskip("numba")


def step_of(sizes: list[int], loss_fn: Callable[..., gf.Tensor], backend: str) -> Callable[..., gf.Tensor]:
    with gf.use_backend(backend):
        model = nn.MLP(sizes, nn.ReLU)
        optimizer = gf.optim.Adam(model.parameters())

    def step(x: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
        loss = loss_fn(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.fixture(autouse=True)
def loaded() -> None:
    """What is imported or compiled once is there."""
    for backend in ("numpy", "numba"):
        x, t = gf.tensor(np.ones((8, 6), np.float32), backend=backend), gf.tensor(np.arange(8) % 3, backend=backend)
        step = gf.compile(step_of([6, 5, 3], gf.cross_entropy, backend))
        for _ in range(3):
            step(x, t)


def peak(make: Callable[[], Callable[[], Any]]) -> int:
    """The most that making a step and running it holds, what is kept for later calls included."""
    trim()
    gc.collect()
    tracemalloc.start(1)
    try:
        run = make()
        for _ in range(4):
            run()
        gc.collect()
        tracemalloc.reset_peak()
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("sizes", [[784, 120, 120, 10], [64, *[64] * 20, 10], [100, 512, 512, 10]])
def test_a_compiled_step_takes_no_more_than_an_eager_one(sizes: list[int], backend: str) -> None:
    x = gf.tensor(np.ones((128, sizes[0]), np.float32), backend=backend)
    t = gf.tensor(np.arange(128) % 10, backend=backend)

    def eager() -> Callable[[], Any]:
        step = step_of(sizes, gf.cross_entropy, backend)
        return lambda: step(x, t)

    def compiled() -> Callable[[], Any]:
        step = gf.compile(step_of(sizes, gf.cross_entropy, backend))
        return lambda: step(x, t)

    assert peak(compiled) <= peak(eager) * 1.05 + 300_000  # Python objects of the program: its table, its plan


def test_explain_reports_the_arena() -> None:
    x, t = gf.tensor(np.ones((8, 6), np.float32), backend="numba"), gf.tensor(np.arange(8) % 3, backend="numba")
    step = gf.compile(step_of([6, 5, 3], gf.cross_entropy, "numba"))
    for _ in range(2):
        step(x, t)
    assert "arena of" in step.explain()
