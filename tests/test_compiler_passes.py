"""The compiler's passes: with each of them and without, for one task and for several, a plan means what was traced."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, reject
from hypothesis import strategies as st

import gradflow as gf
from gradflow.compiler.build import Switches, plan_of
from gradflow.compiler.lower import UnsupportedError
from gradflow.compiler.trace import trace
from gradflow.primitive import namespace
from gradflow.testing import programs
from gradflow.transforms import vjp
from gradflow_numpy.compiled import Generator, StraightLine
from tests.plan_interpreter import Interpreter


class Fusing(Generator.__mro__[1]):
    """Plans as a compiler of loops wants them."""

    fuses = opens_updates = True
    items = frozenset({"gemm", "batch_gemm", "gather", "scatter", "uniform", "strided_copy"})

    def tasks(self, graph: Any) -> int:
        return 1

    def generate(self, plan: Any, namespace: Any) -> Any:
        raise NotImplementedError


SWITCHES = [
    Switches(),
    Switches(share=False),
    Switches(thin=0),
    Switches(orient=False),
    Switches(fuse=False),
    Switches(reuse=False),
]


def with_gradient(program: Any) -> Any:
    """The program and its gradient, as one function of tensors."""

    def both(*xs: gf.Tensor) -> tuple[gf.Tensor, ...]:
        (out,), pullback = vjp(lambda *a: (program(gf, *a),), *xs)
        return (out, *pullback((out * 0.5 + 1.0,)))

    return both


def recorded(program: Any, dtype: Any = np.float64) -> tuple[Any, list[np.ndarray]]:
    arrays = [np.asarray(x, dtype) for x in program.inputs]
    _, found = trace(with_gradient(program), *[gf.tensor(x * 0.875) for x in arrays])
    return found, arrays


def expected(found: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.array(t) for t in found.replay(*map(gf.tensor, arrays))]


def planned(found: Any, *how: Any) -> Any:
    """The plan of a trace; what a mask selects has no shape that is known, and has no plan."""
    try:
        return plan_of(found, namespace(), *how)
    except UnsupportedError as error:
        assert "nonzero_index" in str(error)  # noqa: PT017
        reject()


def same(got: Any, want: Any, rtol: float) -> None:
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        scale = max(1.0, float(np.max(np.abs(w[np.isfinite(w)]), initial=0)))
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * scale)


@given(program=programs(max_steps=10))
def test_straight_line_numpy_computes_what_was_traced(program: Any) -> None:
    found, arrays = recorded(program)
    plan = planned(found, Generator())
    got = StraightLine(plan, namespace()).run(arrays)
    same(got, expected(found, arrays), 1e-11)


@given(
    program=programs(max_steps=10), tasks=st.integers(1, 3), switches=st.sampled_from(SWITCHES), seed=st.integers(0, 9)
)
def test_a_plan_means_what_was_traced(program: Any, tasks: int, switches: Switches, seed: int) -> None:
    found, arrays = recorded(program)
    plan = planned(found, Fusing(), tasks, switches)
    got = Interpreter(plan, namespace(), np.random.default_rng(seed)).run(arrays)
    same(got, expected(found, arrays), 1e-11)
