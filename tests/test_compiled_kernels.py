"""Generated kernels: every primitive in both precisions against the backend's own kernels, and special values."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow.compiler.build import plan_of
from gradflow.compiler.graph import ELEMENTWISE
from gradflow.compiler.symbols import UnsupportedError
from gradflow.compiler.trace import trace
from gradflow.primitive import REGISTRY, namespace
from gradflow.testing import programs
from gradflow.testing.operands import calls
from tests.test_compiler_passes import expected, planned, recorded, same

pytest.importorskip("numba")

PURE = sorted(name for name, primitive in REGISTRY.items() if not primitive.writes)
WITHOUT_A_SHAPE = {"nonzero_index"}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-40, -1e-40, 3e38, -3e38, 1e-30, np.inf, -np.inf, np.nan, 88.0, -104.0]


@pytest.fixture
def xp() -> Any:
    return namespace("numba")


def built(found: Any, xp: Any, tasks: int = 1) -> Any:
    generator = xp.backend.code_generator()
    return generator.generate(plan_of(found, xp, generator, tasks), xp)


def run(name: str, arrays: list[np.ndarray], options: dict[str, Any], xp: Any, tasks: int) -> tuple[Any, Any]:
    """What the compiled primitive and the backend's own kernel give."""
    tensors = [gf.asarray(a, backend="numba") for a in arrays]
    out, found = trace(lambda *xs: REGISTRY[name].function(*xs, **options), *tensors)
    (got,) = built(found, xp, tasks).run([t._data for t in tensors])
    return got, np.asarray(out._data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PURE)
def test_every_primitive_compiles_to_what_its_kernel_computes(name: str, dtype: Any, xp: Any) -> None:
    if name in WITHOUT_A_SHAPE:
        pytest.skip("what it gives has no shape that is known")

    @settings(max_examples=2, derandomize=True)
    @given(call=calls(name), tasks=st.integers(1, 3))
    def check(call: Any, tasks: int) -> None:
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in map(np.asarray, call.operands)]
        options = {
            k: np.dtype(dtype) if k == "dtype" and np.dtype(v).kind == "f" else v for k, v in call.settings.items()
        }
        got, want = run(name, arrays, options, xp, tasks)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        tolerance = 64 * np.finfo(dtype).eps
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)

    check()


ONE_OPERAND = ["negative", "abs", "sign", "floor", "exp", "log", "log1p", "sqrt", "tanh", "sigmoid", "erf"]
ONE_OPERAND += ["isnan", "isfinite", "isinf", "logical_not", "relu", "softplus", "square"]
TWO_OPERANDS = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "equal",
    "not_equal",
    "less",
    "less_equal",
]
TWO_OPERANDS += ["greater", "greater_equal", "logical_and", "logical_or", "logical_xor", "power", "remainder"]


def test_the_special_values_meet_every_elementwise_operation() -> None:
    elsewhere = {"cast", "copy", "where", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert", "floor_divide"}
    assert not ELEMENTWISE - elsewhere - {*ONE_OPERAND, *TWO_OPERANDS}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ONE_OPERAND)
def test_special_values_of_one_operand(name: str, dtype: Any, xp: Any) -> None:
    x = np.array(SPECIAL * 3, np.float64).astype(dtype)  # long enough for vectors, and a rest
    with np.errstate(all="ignore"):
        got, want = run(name, [x], {}, xp, 1)
        np.testing.assert_allclose(got, want, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TWO_OPERANDS)
def test_special_values_of_two_operands(name: str, dtype: Any, xp: Any) -> None:
    values = np.array(SPECIAL, np.float64).astype(dtype)
    x, y = (np.ascontiguousarray(a) for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        got, want = run(name, [x, y], {}, xp, 1)
        np.testing.assert_allclose(got, want, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "chain",
    [
        lambda xp, x, y: (x + y) - y,
        lambda xp, x, y: (x * 1e30) * 1e-30,
        lambda xp, x, y: x * y * 3,
        lambda xp, x, y: x / y / y,
        lambda xp, x, y: (x / y) * 2,
        lambda xp, x, y: x / xp.sqrt(y),
        lambda xp, x, y: 1 / (x * 0),
    ],
)
def test_arithmetic_is_done_in_the_order_in_which_it_is_written(chain: Any, dtype: Any, xp: Any) -> None:
    values = np.array([*SPECIAL, 1e16, np.finfo(dtype).max], np.float64).astype(dtype)
    x, y = (gf.tensor(np.ascontiguousarray(a), backend="numba") for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        out, found = trace(lambda x, y: chain(gf, x, y), x, y)
        (got,) = built(found, xp).run([x.numpy(), y.numpy()])
    np.testing.assert_array_equal(got, out.numpy())


@pytest.mark.parametrize("how", ["sum", "max", "min", "mean"])
@pytest.mark.parametrize("axis", [(0,), (1,), (0, 1)])
def test_reductions_keep_what_is_not_a_number(how: str, axis: tuple[int, ...], xp: Any) -> None:
    x = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)
    x[3, 5], x[1, 7], x[2, 9] = np.nan, np.inf, -np.inf
    for tasks in (1, 2, 3):
        with np.errstate(all="ignore"):
            got, want = run(how, [x], {"axis": axis, "keepdims": False}, xp, tasks)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("how", ["max", "min"])
def test_extremes_of_rows_are_taken_of_integers_and_exact(how: str, dtype: Any, xp: Any) -> None:
    rows = [[-np.inf] * 19, [np.inf] * 19, [np.nan] * 19, [1e-40] * 19, [-1e-40, *[0.0] * 18], list(range(-9, 10))]
    x = gf.tensor(np.array(rows, dtype), backend="numba")
    _, found = trace(lambda x: getattr(gf, how)(x, axis=1), x)
    program = built(found, xp)
    np.testing.assert_array_equal(program.run([x.numpy()])[0], getattr(np, how)(x.numpy(), axis=1))
    assert "ordered" in program.source()  # comparisons of numbers are 30 times slower: they are not vectorised


@settings(max_examples=15, derandomize=True)
@given(program=programs(max_steps=8), tasks=st.integers(1, 3))
def test_random_programs(program: Any, tasks: int) -> None:
    found, arrays = recorded(program)
    xp = namespace("numba")
    generator = xp.backend.code_generator()
    plan = planned(found, generator, tasks)
    same(generator.generate(plan, xp).run(arrays), expected(found, arrays), 1e-10)


@pytest.mark.parametrize("name", ["gather", "row_index", "one_hot"])
def test_an_index_out_of_range_stops_the_program_before_it_stores(name: str) -> None:
    table = gf.Parameter(gf.tensor(np.arange(16.0).reshape(4, 4), backend="numba"))
    optimizer = gf.optim.SGD([table], lr=1.0, momentum=0.9)

    @gf.compile
    def step(i: gf.Tensor) -> gf.Tensor:
        picked = {
            "gather": lambda: table[i],
            "row_index": lambda: gf.ops.embedding(i, table),
            "one_hot": lambda: gf.cross_entropy(table, i),
        }[name]()
        loss = gf.sum(picked * picked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    good, bad = (gf.tensor(np.array(v), backend="numba") for v in ([0, 1, 3, 1], [0, 4, 1, 2]))
    for _ in range(3):
        step(good)
    before = table.numpy().copy(), optimizer.state_dict()["state"][0]["step"].item()
    with pytest.raises((gf.errors.IndexRangeError, gf.errors.ArgumentError), match="4"):
        step(bad)
    assert (table.numpy() == before[0]).all()
    assert optimizer.state_dict()["state"][0]["step"].item() == before[1]
    step(good)
    assert (table.numpy() != before[0]).any()


def test_what_cannot_be_lowered_says_why() -> None:
    x = gf.tensor(np.arange(4.0), backend="numba")
    mask = gf.tensor(np.array([True, False, True, True]), backend="numba")
    _, found = trace(lambda x: x[mask], x)
    with pytest.raises(UnsupportedError, match="nonzero_index"):
        plan_of(found, x._xp, x.backend.code_generator())


def test_a_profile_writes_into_memory_that_is_there(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the table hold the addresses of the arrays of one run."""
    x = gf.tensor(np.ones(1000, np.float32), backend="numba")
    _, found = trace(lambda x: gf.tanh(x) * 2, x)
    program = built(found, xp)
    run, timed = program.run, program._timed
    results: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def watched_run(arrays: Any) -> Any:
        out = run(arrays)
        results.extend(weakref.ref(array) for array in out)
        return out

    def watched_timing(*of: Any) -> Any:
        alive.append(all(reference() is not None for reference in results))
        return timed(*of)

    monkeypatch.setattr(program, "run", watched_run)
    monkeypatch.setattr(program, "_timed", watched_timing)
    assert all(item.seconds > 0 for item in program.profile([x._data], 0.01))
    assert results
    assert alive
    assert all(alive)


def test_a_call_reads_sums_that_all_tasks_have_brought_together(xp: Any) -> None:
    row, order = np.zeros(3, np.int64), np.array([2, 0, 1])

    def f(x: Any) -> Any:
        return gf.tanh(x).sum(axis=0, keepdims=True)[row, order]  # two index arrays: NumPy's kernel is called

    rng = np.random.default_rng(0)
    _, found = trace(f, gf.asarray(rng.normal(size=(50, 3)), backend="numba"))
    for tasks in (1, 2, 3):
        program = built(found, xp, tasks)
        for _ in range(2):
            x = rng.normal(size=(50, 3))
            (got,) = program.run([x])
            np.testing.assert_allclose(got, np.tanh(x).sum(axis=0)[order], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_reciprocal_is_estimated(dtype: Any, xp: Any) -> None:
    x = np.tile(np.array([0.0, 4.0, np.inf, 1.0], dtype), 16)
    with np.errstate(divide="ignore"):
        _, found = trace(lambda x: (1 / gf.sqrt(x), 1 / x), gf.asarray(x, backend="numba"))
        root, reciprocal = built(found, xp).run([x])
        np.testing.assert_array_equal(root, 1 / np.sqrt(x))
        np.testing.assert_array_equal(reciprocal, 1 / x)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("how", ["norm", "largest", "value"])
def test_gradient_clipping_is_a_part_of_the_program(how: str, backend: str) -> None:
    def clip(parameters: list[gf.Tensor]) -> None:
        if how == "value":
            gf.nn.utils.clip_grad_value_(parameters, 0.01)
        else:
            gf.nn.utils.clip_grad_norm_(parameters, 0.1, norm_type=2.0 if how == "norm" else np.inf)

    with gf.use_backend(backend):
        x, t = gf.random.normal((9, 4)), gf.tensor(np.arange(9) % 3)
        models = []
        for compiled in (False, True):
            gf.manual_seed(0)
            model = gf.nn.MLP([4, 5, 3], gf.nn.Tanh)
            optimizer = gf.optim.Adam(model.parameters(), lr=0.1)

            def step(model: Any = model, optimizer: Any = optimizer) -> gf.Tensor:
                loss = gf.cross_entropy(model(x), t)
                optimizer.zero_grad()
                loss.backward()
                clip(list(model.parameters()))
                optimizer.step()
                return loss

            run = gf.compile(step) if compiled else step
            for _ in range(4):
                run()
            models.append(model)
    assert "one by one:" not in run.explain().replace("called one by one:", "")
    for eager, fast in zip(*(m.parameters() for m in models), strict=True):
        np.testing.assert_allclose(fast.numpy(), eager.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fast.grad.numpy(), eager.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_write_into_a_computed_value_that_a_view_shows(backend: str) -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        with gf.no_grad():
            y = x * 2
            view = y.mT
            y[0] = 7.0
            return view + 1

    fast = gf.compile(f)
    x = gf.tensor(np.arange(6.0).reshape(2, 3), backend=backend)
    for _ in range(3):
        np.testing.assert_array_equal(fast(x).numpy(), f(x).numpy())


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_write_into_a_computed_value(backend: str) -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        with gf.no_grad():
            y = x * 2
            y[0] = 7.0
            y += x
            return y

    fast = gf.compile(f)
    x = gf.tensor(np.arange(6.0).reshape(2, 3), backend=backend)
    for _ in range(3):
        np.testing.assert_array_equal(fast(x).numpy(), f(x).numpy())
    assert "run one by one:" not in fast.explain()
