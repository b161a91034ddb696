"""Every primitive in the registry, found by enumeration: its derivatives, dtypes, layouts, kernels and update rules.

A new primitive is tested from the moment it is registered. One that the default operands do not fit, and that has no
entry in `testing.operands.OPERANDS`, fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

import gradflow as gf
from gradflow import testing
from gradflow.backend import Backend, resolve
from gradflow.compiler import trace
from gradflow.primitive import REGISTRY, Primitive, namespace
from gradflow.tensor import Tensor
from gradflow.testing.backends import without_kernels
from gradflow.testing.operands import Call, calls, differentiable, has_calls
from gradflow.testing.strategies import direction, generators, layouts

RULES = without_kernels("numpy")
BACKENDS: list[Any] = [info.name for info in gf.backends() if info.available]

WITH_RULES = sorted(n for n, p in REGISTRY.items() if any(p.rules))
WITH_OUT = sorted(n for n, p in REGISTRY.items() if not p.writes)
WITH_WRITES = sorted(n for n, p in REGISTRY.items() if p.writes)


def backends_of(name: str) -> list[str]:
    """NumPy, and the backends with functions of their own for the primitive: the same function is tested once."""

    def functions(backend: Backend) -> tuple[Any, ...]:
        derivatives = [backend.vjps.get((name, operand)) for operand in REGISTRY[name].operands]
        return backend.kernels.get(name), backend.residual_kernels.get(name), *derivatives

    return [b for b in BACKENDS if b == "numpy" or functions(resolve(b)) != functions(resolve("numpy"))]


def on_backends(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "backend"), [(n, b) for n in names for b in backends_of(n)])


names = pytest.mark.parametrize("name", sorted(REGISTRY))
with_rules = pytest.mark.parametrize("name", WITH_RULES)
with_out = pytest.mark.parametrize("name", WITH_OUT)
backends = pytest.mark.parametrize("backend", BACKENDS)


# ---------------------------------------------------------------- helpers
def tensors(case: Call, backend: str | Backend, wrt: list[int] = []) -> list[Tensor]:  # noqa: B006
    made = [gf.asarray(a, backend=backend) for a in case.operands]
    return [t.detach().requires_grad_() if i in wrt else t for i, t in enumerate(made)]


def run(prim: Primitive, operands: list[Tensor], case: Call) -> Tensor:
    out = prim.function(*operands, **case.settings)
    assert isinstance(out, Tensor)
    return out


def value(prim: Primitive, case: Call, backend: str | Backend = "numpy") -> np.ndarray:
    with gf.no_grad():
        return run(prim, tensors(case, backend), case).numpy()


def gradients(
    prim: Primitive,
    case: Call,
    wrt: list[int],
    cotangent: np.ndarray,
    backend: str | Backend = "numpy",
    *,
    rules: bool = False,
) -> list[np.ndarray]:
    """The cotangents of the operands `wrt`; with `rules` by the generic rules, on Tensors."""
    operands = tensors(case, backend, wrt)
    out = run(prim, operands, case)
    out.backward(gf.asarray(cotangent.astype(out.dtype, copy=False), backend=backend), create_graph=rules)
    return [gradient_of(operands[i]) for i in wrt]


def gradient_of(t: Tensor) -> np.ndarray:
    assert t.grad is not None
    assert t.grad.shape == t.shape
    assert t.grad.dtype is t.dtype
    return t.grad.numpy()


def single(case: Call) -> Call:
    return Call(tuple(a.astype(np.float32) if a.dtype == np.float64 else a for a in case.operands), case.settings)


def close(actual: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- nothing escapes
@names
def test_is_complete(name: str) -> None:
    """A primitive has rules, or is marked, or writes; has a kernel or a composition; and the suite can call it."""
    prim = REGISTRY[name]
    assert [any(prim.rules), prim.nondifferentiable, bool(prim.writes)].count(True) == 1
    assert prim.impl is not None or all(name in resolve(b).kernels for b in BACKENDS)
    assert has_calls(prim), f"no operands for {name}: enter them in gradflow/testing/operands.py"
    assert prim.doc or not hasattr(gf, name) or getattr(gf, name).__doc__
    for rule in prim.rules:
        assert rule is None or rule.__name__ != "<lambda>", "a traceback says which rule it was"


@backends
def test_a_backend_overrides_only_what_there_is(backend: str) -> None:
    chosen = resolve(backend)
    assert all(REGISTRY[name].rule_at(REGISTRY[name].position[operand]) for name, operand in chosen.vjps)
    assert all(REGISTRY[name].residual for name in chosen.residual_kernels)


# ---------------------------------------------------------------- derivatives
def check_derivatives(prim: Primitive, case: Call, backend: str | Backend = "numpy", seed: int = 0) -> None:
    """First and second order against finite differences, and each operand's derivative alone as among the others."""
    wrt = differentiable(prim, case.operands)
    function = of_operands(prim, case)
    try:
        done = testing.check_grads(
            function, case.operands, order=2, modes=("vjp",), wrt=wrt, directions=1, seed=seed, backend=backend
        )
    except UnsatisfiedAssumption as error:
        raise AssertionError(f"{prim.name} is not smooth where testing.calls drew one") from error
    assert not done.rejected

    cotangent = direction(np.random.default_rng(seed), value(prim, case, backend).shape)
    for i, g in zip(wrt, gradients(prim, case, wrt, cotangent, backend), strict=True):
        (alone,) = gradients(prim, case, [i], cotangent, backend)
        close(alone, g, 1e-12)


def of_operands(prim: Primitive, case: Call) -> Callable[..., Tensor]:
    return lambda *operands: prim.function(*operands, **case.settings)


@on_backends(WITH_RULES)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_derivatives(name: str, backend: str, data: st.DataObject, seed: int) -> None:
    check_derivatives(REGISTRY[name], data.draw(calls(REGISTRY[name])), backend, seed)


@on_backends(WITH_RULES)
@settings(max_examples=10)
@given(data=st.data())
def test_the_whole_jacobian_and_the_forward_derivative(name: str, backend: str, data: st.DataObject) -> None:
    """Entry by entry where there are few; and J v of two reverse sweeps."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    wrt = differentiable(prim, case.operands)
    few = sum(case.operands[i].size for i in wrt) * value(prim, case).size <= 60
    testing.gradcheck(of_operands(prim, case), *case.operands, wrt=wrt, full=few, directions=1, backend=backend)
    testing.gradcheck(of_operands(prim, case), *case.operands, wrt=wrt, mode="jvp", directions=1, backend=backend)


@with_rules
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_properties_of_derivatives(name: str, data: st.DataObject, seed: int) -> None:
    """Linear in the cotangent; forward and reverse adjoint; a chain with another function; a symmetric Hessian."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    wrt = differentiable(prim, case.operands)

    def function(*variables: Tensor) -> Tensor:
        given = [gf.asarray(a) for a in case.operands]
        for i, variable in zip(wrt, variables, strict=True):
            given[i] = variable
        return prim.function(*given, **case.settings)

    inputs = [case.operands[i] for i in wrt]
    testing.check_linearity(function, *inputs, seed=seed)
    testing.check_adjoint(function, *inputs, seed=seed)
    testing.check_chain_rule(function, gf.tanh, *inputs, seed=seed)
    sizes = np.cumsum([a.size for a in inputs])[:-1]

    def of_one_vector(x: Tensor) -> Tensor:
        parts = [x[a:b] for a, b in zip([0, *sizes], [*sizes, x.size], strict=True)]
        return function(*(part.reshape(a.shape) for part, a in zip(parts, inputs, strict=True)))

    testing.check_hessian_symmetry(of_one_vector, np.concatenate([a.reshape(-1) for a in inputs]), seed=seed)


# ---------------------------------------------------------------- one rule on raw arrays, on Tensors, on a tracer
@on_backends(WITH_RULES)
@given(data=st.data(), rng=generators)
def test_raw_tensor_and_traced_agree(name: str, backend: str, data: st.DataObject, rng: np.random.Generator) -> None:
    """Value and gradients of the raw sweep, of the sweep on Tensors, and of a trace replayed on other operands."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    wrt = differentiable(prim, case.operands)
    cotangent = direction(rng, value(prim, case, backend).shape)
    raw = [value(prim, case, backend), *gradients(prim, case, wrt, cotangent, backend)]
    for by_rules, exact in zip(gradients(prim, case, wrt, cotangent, backend, rules=True), raw[1:], strict=True):
        close(by_rules, exact, 1e-12)

    def step(*variables: Tensor) -> tuple[Tensor, ...]:
        operands = tensors(case, backend)
        for i, variable in zip(wrt, variables, strict=True):
            operands[i] = variable
        out, pullback = gf.vjp(lambda *xs: prim.function(*put(operands, wrt, xs), **case.settings), *variables)
        return (out, *pullback(gf.asarray(cotangent, backend=backend)))

    def variables_of(a: np.ndarray) -> Tensor:
        return gf.tensor(a, backend=backend)

    _, recorded = trace(step, *(variables_of(case.operands[i] * (1 + 2**-20)) for i in wrt))
    replayed = recorded.replay(*(variables_of(case.operands[i]) for i in wrt))
    for again, exact in zip(replayed, raw, strict=True):
        assert again.dtype == exact.dtype and again.shape == exact.shape
        close(again.numpy(), exact, 1e-12)


def put(operands: list[Tensor], at: list[int], others: tuple[Tensor, ...]) -> list[Tensor]:
    """The operands with others in some places."""
    new = list(operands)
    for i, other in zip(at, others, strict=True):
        new[i] = other
    return new


# Primitives of which no call has an empty operand, or a 0-d one, and why.
NEVER_EMPTY = {
    "advance": "the state of a generator has two words",
    "random_normal": "the state of a generator has two words",
    "random_uniform": "the state of a generator has two words",
    "mean_squared_error": "the mean of nothing is NaN",
    "softmax_cross_entropy": "the mean of nothing is NaN",
}
NEVER_0_D = {
    **dict.fromkeys(["advance", "random_normal", "random_uniform"], "the state of a generator has two words"),
    **dict.fromkeys(["concat", "gather", "nonzero_index", "softmax", "log_softmax"], "it works along an axis"),
    "layer_norm": "it works along an axis",
    "embedding": "a table has two axes",
    **dict.fromkeys(["linear", "matmul", "matrix_transpose", "softmax_cross_entropy"], "it takes matrices"),
    **dict.fromkeys(["std", "var"], "the variance of one value is 0 and has a kink"),
}


@names
def test_empty_and_0_d_operands_are_among_the_calls(name: str) -> None:
    """What the other tests draw covers them."""
    prim = REGISTRY[name]

    def some(case: Call, edge: Callable[[np.ndarray], bool]) -> bool:
        at = differentiable(prim, case.operands) or range(len(case.operands))
        return any(edge(case.operands[i]) for i in at)

    usual = settings(max_examples=1000, database=None, derandomize=True)
    for never, edge in ((NEVER_EMPTY, lambda a: a.size == 0), (NEVER_0_D, lambda a: a.ndim == 0)):
        if name not in never:
            find(calls(prim), lambda case: some(case, edge), settings=usual)  # noqa: B023


@with_rules
@given(data=st.data(), rng=generators)
def test_compositions_and_rules_agree_with_kernels(name: str, data: st.DataObject, rng: np.random.Generator) -> None:
    """Values and gradients by the backend's kernels, and by nothing but compositions and generic rules."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    wrt = differentiable(prim, case.operands)
    for at, tolerance in ((case, 1e-10), (single(case), 2e-5)):
        expected = value(prim, at, RULES)
        cotangent = direction(rng, expected.shape)
        slow = gradients(prim, at, wrt, cotangent, RULES)
        for backend in backends_of(name):
            close(value(prim, at, backend), expected, tolerance)
            for rules in (False, True):
                for i, fast in enumerate(gradients(prim, at, wrt, cotangent, backend, rules=rules)):
                    close(fast, slow[i], tolerance)


@with_rules
@given(data=st.data(), rng=generators)
def test_gradients_share_no_memory(name: str, data: st.DataObject, rng: np.random.Generator) -> None:
    """A gradient may be written to, and neither an operand, nor the seed, nor another gradient changes with it."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    wrt = differentiable(prim, case.operands)
    for rules in (False, True):
        operands = tensors(case, "numpy", wrt)
        out = run(prim, operands, case)
        seed = gf.tensor(direction(rng, out.shape))
        out.backward(seed, create_graph=rules)
        grads = [operands[i].grad for i in wrt]
        arrays = [*case.operands, seed.data, out.data]
        for g in grads:
            assert g is not None and g.data.flags.writeable
            assert not any(np.shares_memory(g.data, a) for a in arrays)
            arrays.append(g.data)


# ---------------------------------------------------------------- dtypes
def dtype_of_result(prim: Primitive, case: Call) -> np.dtype[Any]:
    if "dtype" in case.settings:
        return np.dtype(case.settings["dtype"])
    if prim.dtypes == "compare" or prim.name in ("all", "any", "lasting"):
        return np.dtype(np.bool_)
    if prim.name in ("argmax", "argmin", "nonzero_index", "row_index"):
        return np.dtype(np.int64)
    kept = [case.operands[i].dtype for i in prim.promoted if i < len(case.operands)] or [case.operands[0].dtype]
    return kept[0]


@on_backends(WITH_OUT)
@given(data=st.data(), rng=generators)
def test_single_precision_stays_single(name: str, backend: str, data: st.DataObject, rng: np.random.Generator) -> None:
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    small = single(case)
    for at in (case, small):
        out = run(prim, tensors(at, backend), at)
        assert out.dtype is dtype_of_result(prim, at)
        assert out.backend.name == backend
        assert not out.requires_grad
    if out.dtype.kind != "f" or name.startswith("random"):
        return
    close(out.numpy(), value(prim, case, backend), 1e-4)
    wrt = differentiable(prim, small.operands)
    if wrt:
        cotangent = direction(rng, out.shape)
        for g, expected in zip(
            gradients(prim, small, wrt, cotangent, backend), gradients(prim, case, wrt, cotangent, backend), strict=True
        ):
            close(g, expected, 1e-3)


# ---------------------------------------------------------------- memory layouts, raw arrays
@on_backends(WITH_OUT)
@given(data=st.data(), rng=generators)
def test_layouts_and_raw_arrays(name: str, backend: str, data: st.DataObject, rng: np.random.Generator) -> None:
    """Strides, order, offsets and read-only memory change nothing; nor does calling the namespace on raw arrays."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    other = Call(tuple(data.draw(layouts(a)) for a in case.operands), case.settings)
    before = [a.copy() for a in other.operands]
    expected = value(prim, case, backend)
    close(value(prim, other, backend), expected, 1e-12)

    xp = namespace(backend)
    raw = getattr(xp, name)(*(xp.as_array(a) for a in other.operands), **case.settings)
    close(xp.backend.to_numpy(raw), expected, 1e-12)
    assert raw.dtype == expected.dtype and raw.shape == expected.shape

    wrt = differentiable(prim, case.operands)
    if wrt:
        cotangent = direction(rng, expected.shape)
        moved_about = gradients(prim, other, wrt, data.draw(layouts(cotangent)), backend)
        for g, straight in zip(moved_about, gradients(prim, case, wrt, cotangent, backend), strict=True):
            close(g, straight, 1e-12)
    for a, b in zip(other.operands, before, strict=True):
        np.testing.assert_array_equal(a, b)


@with_out
@given(data=st.data())
def test_results_of_rules_only(name: str, data: st.DataObject) -> None:
    """Primitives without a derivative too are the same with and without a backend's kernel."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    for backend in backends_of(name):
        close(value(prim, case, backend), value(prim, case, RULES), 1e-10)


# ---------------------------------------------------------------- primitives that write
@on_backends(WITH_WRITES)
@given(data=st.data())
def test_writes(name: str, backend: str, data: st.DataObject) -> None:
    """What is declared to be written is written where it lies and counted; nothing else changes; kernel equals rule."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    for at, tolerance in ((case, 1e-10), (single(case), 1e-5)):
        results = []
        for b in (backend, RULES):
            operands = [gf.tensor(a, backend=b) for a in at.operands]
            memory = [t.data for t in operands]
            assert prim.function(*operands, **at.settings) is None
            assert all(t.data is m for t, m in zip(operands, memory, strict=True))
            assert operands[0].version > 0 or not operands[0].size  # a graph can have saved the first alone
            for t, a in list(zip(operands, at.operands, strict=True))[prim.writes :]:
                np.testing.assert_array_equal(t.numpy(), a)
            results.append([t.numpy() for t in operands[: prim.writes]])
        for fast, slow in zip(*results, strict=True):
            close(fast, slow, tolerance)


def test_an_optimizer_of_many_chunks_equals_its_rule() -> None:
    """Buffers longer than a kernel's chunk, of small and large gradients, turned and not."""
    rng = np.random.default_rng(0)
    shapes = [(3,), (300, 400), (7, 5), (200, 1000), (1,), (65536,), (11,)]
    turned = (False, True, True, False, False, False, False)
    grads = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    size = sum(g.size for g in grads)
    for name, slots, hyper, options in (
        ("sgd", 1, [0.1, 0.9, 0.0, 0.01], {"nesterov": True, "maximize": False}),
        ("adam", 2, [0.1, 0.9, 0.999, 1e-8, 0.01], {"decoupled": True, "eps_inside": False, "maximize": False}),
    ):
        start = [np.abs(rng.standard_normal(size)).astype(np.float32) for _ in range(1 + slots)]
        operands = (*start, np.ones(len(grads)), np.array(hyper), *grads)
        case = Call(operands, {"turned": turned, **options})
        results = []
        for b in (*BACKENDS, RULES):
            made = [gf.tensor(a, backend=b) for a in case.operands]
            REGISTRY[name].function(*made, **case.settings)
            results.append([t.numpy() for t in made[: 1 + slots]])
        for fast in results[:-1]:
            for f, s in zip(fast, results[-1], strict=True):
                close(f, s, 1e-5)


# ---------------------------------------------------------------- large arrays: recycled memory, a kernel's other paths
def _large() -> dict[str, Call]:
    rng = np.random.default_rng(0)
    m = [rng.standard_normal((300, 200)) for _ in range(4)]
    labels = rng.integers(0, 200, 300)
    settings: dict[str, dict[str, Any]] = {
        "softmax": {"axis": 1},
        "log_softmax": {"axis": 0},
        "logsumexp": {"axis": (1,), "keepdims": False},
        "softmax_cross_entropy": {"ignore_index": int(labels[0])},
        "sum": {"axis": (0,), "keepdims": False},
        "mean": {"axis": (0, 1), "keepdims": True},
    }
    operands: dict[str, tuple[np.ndarray, ...]] = {
        "matmul": (m[0], m[1].T),
        "linear": (m[0], m[1], m[2][:, 0]),
        "softmax_cross_entropy": (m[0], labels),
        "binary_cross_entropy_terms": (m[0], rng.random((300, 200))),
        **dict.fromkeys(["mean_squared_error", "add", "multiply"], (m[0], m[1])),
        **dict.fromkeys(
            ["relu", "tanh", "sigmoid", "softplus", "exp", *settings.keys() - {"softmax_cross_entropy"}], (m[0],)
        ),
    }
    return {name: Call(arrays, settings.get(name, {})) for name, arrays in operands.items()}


@on_backends(sorted(_large()))
def test_large_arrays(name: str, backend: str) -> None:
    """Results kept from earlier calls stay what they were while later ones recycle memory."""
    prim, case = REGISTRY[name], _large()[name]
    wrt = differentiable(prim, case.operands)
    for at, tolerance in ((case, 1e-9), (single(case), 2e-4)):
        cotangent = direction(np.random.default_rng(1), value(prim, at).shape)
        expected = [value(prim, at, RULES), *gradients(prim, at, wrt, cotangent, RULES)]
        kept = [[value(prim, at, backend), *gradients(prim, at, wrt, cotangent, backend)] for _ in range(3)]
        for found in kept:
            for actual, right in zip(found, expected, strict=True):
                close(actual, right, tolerance)
