"""Every primitive in the registry, found by enumeration: its derivatives, dtypes, layouts, kernels and update rules.

A new primitive is tested from the moment it is registered. One that the default operands do not fit, and that has no
entry in `testing.calls.OPERANDS`, fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow.backend import Backend, resolve
from gradflow.errors import GraphError
from gradflow.primitive import REGISTRY, Primitive, defvjp, namespace, primitive
from gradflow.tensor import OPS, Tensor
from gradflow.testing.backends import without_kernels
from gradflow.testing.calls import Call, calls, differentiable, has_calls
from gradflow.testing.strategies import direction, generators, layouts

RULES = without_kernels("numpy")
STEP = 1e-3  # of a central difference; with one Richardson step the error is of the order of STEP⁴


BACKENDS: list[Any] = [info.name for info in gf.backends() if info.available]

names = pytest.mark.parametrize("name", sorted(REGISTRY))
with_rules = pytest.mark.parametrize("name", sorted(n for n, p in REGISTRY.items() if any(p.rules)))
with_out = pytest.mark.parametrize("name", sorted(n for n, p in REGISTRY.items() if not p.writes))
with_writes = pytest.mark.parametrize("name", sorted(n for n, p in REGISTRY.items() if p.writes))
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


def slope(f: Callable[[float], float]) -> float:
    """f′(0) by central differences and one step of Richardson's extrapolation."""
    coarse = (f(STEP) - f(-STEP)) / (2 * STEP)
    fine = (f(STEP / 2) - f(-STEP / 2)) / STEP
    return (4 * fine - coarse) / 3


def moved(case: Call, steps: dict[int, np.ndarray], by: float) -> Call:
    return Call(tuple(a + by * steps[i] if i in steps else a for i, a in enumerate(case.operands)), case.settings)


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
    assert has_calls(prim), f"no operands for {name}: enter them in gradflow/testing/calls.py"
    assert prim.doc or not hasattr(gf, name) or getattr(gf, name).__doc__
    for rule in prim.rules:
        assert rule is None or rule.__name__ != "<lambda>", "a traceback says which rule it was"


@backends
def test_a_backend_overrides_only_what_there_is(backend: str) -> None:
    chosen = resolve(backend)
    assert all(REGISTRY[name].rule_at(REGISTRY[name].position[operand]) for name, operand in chosen.vjps)
    assert all(REGISTRY[name].residual for name in chosen.residual_kernels)


# ---------------------------------------------------------------- derivatives
def check_derivatives(prim: Primitive, case: Call, rng: np.random.Generator, backend: str | Backend = "numpy") -> None:
    """First and second order against finite differences, along random directions."""
    wrt = differentiable(prim, case.operands)
    steps = {i: direction(rng, case.operands[i].shape) for i in wrt}
    cotangent = direction(rng, value(prim, case, backend).shape)
    before = [a.copy() for a in case.operands]

    together = gradients(prim, case, wrt, cotangent, backend)
    for i, g in zip(wrt, together, strict=True):
        (alone,) = gradients(prim, case, [i], cotangent, backend)
        close(alone, g, 1e-12)
        along = slope(lambda h: float(np.sum(value(prim, moved(case, {i: steps[i]}, h), backend) * cotangent)))  # noqa: B023
        close(np.sum(g * steps[i]), along, 1e-7)
    for a, b in zip(case.operands, before, strict=True):
        np.testing.assert_array_equal(a, b)

    # second order: the derivative of Σᵢ ⟨uᵢ, gᵢ⟩ along vᵢ, and along a change of the cotangent
    weights = {i: direction(rng, case.operands[i].shape) for i in wrt}
    turn = direction(rng, cotangent.shape)
    operands = tensors(case, backend, wrt)
    seed = gf.tensor(cotangent, backend=backend, requires_grad=True)
    run(prim, operands, case).backward(seed, create_graph=True)
    firsts = {i: operands[i].grad for i in wrt}
    for i, first in firsts.items():
        close(first.numpy(), together[wrt.index(i)], 1e-10)
        operands[i].grad = None
    sum(
        (gf.sum(first * weights[i]) for i, first in firsts.items()), gf.asarray(0.0, dtype=gf.float64, backend=backend)
    ).backward()
    second = np.sum(gradient_of(seed) * turn)
    for i in wrt:
        if operands[i].grad is not None:
            second += np.sum(gradient_of(operands[i]) * steps[i])

    def first_order(h: float) -> float:
        found = gradients(prim, moved(case, steps, h), wrt, cotangent + h * turn, backend)
        return float(sum(np.sum(g * weights[i]) for i, g in zip(wrt, found, strict=True)))

    close(second, slope(first_order), 1e-6)


@backends
@with_rules
@given(data=st.data(), rng=generators)
def test_derivatives(name: str, backend: str, data: st.DataObject, rng: np.random.Generator) -> None:
    check_derivatives(REGISTRY[name], data.draw(calls(REGISTRY[name])), rng, backend)


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
        for backend in BACKENDS:
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
    if prim.name in ("argmax", "argmin", "nonzero_index"):
        return np.dtype(np.int64)
    kept = [case.operands[i].dtype for i in prim.promoted if i < len(case.operands)] or [case.operands[0].dtype]
    return kept[0]


@backends
@with_out
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
@backends
@with_out
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
    for backend in BACKENDS:
        close(value(prim, case, backend), value(prim, case, RULES), 1e-10)


# ---------------------------------------------------------------- primitives that write
@backends
@with_writes
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
    for name, slots, hyper, settings in (
        ("sgd", 1, [0.1, 0.9, 0.0, 0.01], {"nesterov": True, "maximize": False}),
        ("adam", 2, [0.1, 0.9, 0.999, 1e-8, 0.01], {"decoupled": True, "eps_inside": False, "maximize": False}),
    ):
        start = [np.abs(rng.standard_normal(size)).astype(np.float32) for _ in range(1 + slots)]
        operands = (*start, np.ones(len(grads)), np.array(hyper), *grads)
        case = Call(operands, {"turned": turned, **settings})
        results = []
        for b in (*BACKENDS, RULES):
            made = [gf.tensor(a, backend=b) for a in case.operands]
            REGISTRY[name].function(*made, **case.settings)
            results.append([t.numpy() for t in made[: 1 + slots]])
        for fast in results[:-1]:
            for f, s in zip(fast, results[-1], strict=True):
                close(f, s, 1e-5)


# ---------------------------------------------------------------- the tester itself
def test_a_wrong_rule_is_found() -> None:
    @primitive("float")
    def off_by_a_sign(x: Any, /) -> Any: ...

    @primitive("float")
    def wrong_at_second_order(x: Any, /) -> Any: ...

    try:
        off_by_a_sign.primitive.impl = lambda xp, x: xp.exp(x)
        wrong_at_second_order.primitive.impl = lambda xp, x: xp.exp(x)
        defvjp(off_by_a_sign, x=lambda xp, g, out: -g * out)
        # right once, but with a dependence on x that a second derivative does not see
        defvjp(wrong_at_second_order, x=lambda xp, g, out: g * (out.detach() if isinstance(out, Tensor) else out))
        rng = np.random.default_rng(0)
        case = Call((rng.uniform(size=(2, 3)),), {})
        for prim in (REGISTRY["off_by_a_sign"], REGISTRY["wrong_at_second_order"]):
            with pytest.raises((AssertionError, GraphError)):
                check_derivatives(prim, case, rng)
    finally:
        for name in ("off_by_a_sign", "wrong_at_second_order"):
            del REGISTRY[name]
            delattr(OPS, name)


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


@backends
@pytest.mark.parametrize("name", sorted(_large()))
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
