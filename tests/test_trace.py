"""The tracing interpreter: what is recorded replays as eager Python would run it, and what cannot be is refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.compiler import Trace, trace
from gradflow.mode import get_mode
from gradflow.tensor import Tensor

rng = np.random.default_rng(0)


def t64(values: Any, requires_grad: bool = False) -> Tensor:
    return gf.tensor(np.asarray(values, np.float64), requires_grad=requires_grad)


def same(a: Any, b: Any) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-13, atol=1e-13)


def text(caught: Any) -> str:
    return str(caught.value)


# --------------------------------------------------------------------------------------- a replay does what eager does
def gradient(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def by_backward(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        f(y).sum().backward()
        assert y.grad is not None
        return y.grad

    return by_backward


def accumulated(x: Tensor) -> Tensor:
    total = gf.zeros(x.shape, dtype=x.dtype)
    for _ in range(3):
        total += x * x
    total[0] = 7.0
    return total


def one_hot_by_assignment(x: Tensor) -> Tensor:
    hot = gf.zeros((3, 3), dtype=gf.float64)
    hot[gf.arange(3), gf.argmax(x, axis=1)] = 1.0
    return hot * x


def through_a_view(x: Tensor) -> Tensor:
    y = x * 1.0
    row = y[1]
    row += 10.0
    return y


def rebound(x: Tensor) -> Tensor:
    y = x * 1.0
    y += x
    y[0] = x[1] * 2
    return y * y


def under_modes(x: Tensor) -> Tensor:
    with gf.no_grad():
        a = x * 2
    with gf.enable_grad():
        return a + x


def by_hand(x: Tensor) -> Tensor:
    @gf.custom_vjp
    def f(y: Tensor) -> Tensor:
        return y * y

    f.defvjp(lambda y: (y * y, y), lambda y, g: (g * y,))
    return f(x) + f(x * 2)


def with_hooks(x: Tensor) -> Tensor:
    y = x * x
    if y.requires_grad:
        y.register_hook(lambda g: g * 3 + y.detach())
        y.retain_grad()
    return y * x


def many_kinds(x: Tensor) -> Tensor:
    labels = gf.argmax(x, axis=1)
    picked = gf.take_along_axis(x, labels.reshape(3, 1), axis=1)
    return gf.where(x > picked / 2, gf.softmax(x, axis=-1), gf.concat([x[1:], x[:1]])).astype(gf.float64)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "polynomial": lambda x: x * 2.5 + x**3 - 1 / (x * x + 1),
    "operand twice": lambda x: x - x * x / (x + x),
    "numpy operand": lambda x: np.ones(3) * x + np.arange(3),
    "identity": lambda x: x,
    "constant": lambda x: gf.ones(2),
    "scalar": lambda x: x.sum() * 2,
    "tuple": lambda x: (x * 2, x, x.sum(), x * 2),
    "list with others": lambda x: [x + 1, "text", 3],
    "random access": lambda x: x[1, ::-1] * x[[0, 0, 2]],
    "detach": lambda x: x.detach() * x,
    "copies": lambda x: x.copy().T.mT.reshape(-1),
    "mask as numbers": lambda x: (x > 0).astype(gf.float64) * x,
    "accumulated": accumulated,
    "one hot": one_hot_by_assignment,
    "view": through_a_view,
    "rebound": rebound,
    "modes": under_modes,
    "custom_vjp": by_hand,
    "hooks": with_hooks,
    "kinds": many_kinds,
    "gradient": gradient(lambda x: gf.tanh(x) * x),
    "gradient of rebound": gradient(rebound),
    "gradient of view": gradient(lambda x: through_a_view(x * 1.0) ** 2),
    "gradient with hooks": gradient(with_hooks),
    "gradient by hand": gradient(by_hand),
    "gradient of kinds": gradient(many_kinds),
    "gradient of a gradient": gradient(lambda x: gf.grad(lambda y: (y**3 * x).sum())(x)),
    "seeded": lambda x: gf.vjp(gf.exp, x)[1](x)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_is_the_function(name: str) -> None:
    f = FUNCTIONS[name]

    def tensors(out: Any) -> list[Tensor]:
        return [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]

    first = t64(rng.normal(size=(3, 3)))
    expected = tensors(f(first))
    out, recorded = trace(f, first)
    assert type(out) is type(f(first))
    for a, b in zip(tensors(out), expected, strict=True):
        same(a, b)
    for _ in range(3):
        x = t64(rng.normal(size=(3, 3)))
        before = x.numpy().copy()
        for a, b in zip(recorded.replay(x), tensors(f(x)), strict=True):
            same(a, b)
        assert np.array_equal(x.numpy(), before)
    for a, b in zip(recorded.replay(first), expected, strict=True):
        same(a, b)


STEPS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a + b,
    lambda a, b: a * b * 0.3,
    lambda a, b: gf.tanh(a),
    lambda a, b: a - b.sum(),
    lambda a, b: a[::-1],
]


@given(
    ops=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
    backward=st.booleans(),
)
def test_drawn_programs_replay(ops: list[tuple[int, int, int]], backward: bool) -> None:
    """Programs over a growing list of values, writes in place among them."""

    def program(x: Tensor, y: Tensor) -> Tensor:
        if backward:
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        values = [gf.zeros(3, dtype=gf.float64), x, y]
        for kind, i, j in ops:
            a, b = values[i % len(values)], values[j % len(values)]
            if kind in (0, 1) and a.is_leaf and a.requires_grad:
                continue
            if kind in (0, 1) and backward and (not a.requires_grad or hasattr(a, "_base")):
                # A product may have saved it, or it is a view of a leaf: that write would be refused.
                a = values[i % len(values)] = a.copy()
            if kind == 0:
                a += b * 0.5
            elif kind == 1:
                a[1:] = b[:2]
            else:
                values.append(STEPS[kind - 2](a, b))
        total = sum((v.sum() * (k + 1) for k, v in enumerate(values)), gf.zeros((), dtype=gf.float64))
        if not backward:
            return total
        total.backward()
        return total + sum((leaf.grad.sum() for leaf in (x, y) if leaf.grad is not None), gf.zeros(()))

    draw = np.random.default_rng(len(ops))
    batches = [tuple(draw.normal(size=3) * 0.5 for _ in range(2)) for _ in range(3)]
    expected = [program(*(t64(v) for v in batch)) for batch in batches]
    out, recorded = trace(program, *(t64(v) for v in batches[0]))
    np.testing.assert_allclose(out.item(), expected[0].item(), rtol=1e-10)
    for batch, value in zip(batches, expected, strict=True):
        np.testing.assert_allclose(recorded.replay(*(t64(v) for v in batch))[0].item(), value.item(), rtol=1e-10)


def test_equations_read_well() -> None:
    w = t64([1.0, 2.0])

    def step(x: Tensor) -> Tensor:
        total = (x @ x.mT).sum(axis=0)
        w.__iadd__(total)
        return w * total

    _, recorded = trace(step, t64(np.ones((2, 2))))
    assert str(recorded).splitlines() == [
        "v1 = matrix_transpose(v0)",
        "v2 = matmul(v0, v1)",
        "v3 = sum(v2, axis=(0,), keepdims=False)",
        "v5 = add(v4, v3)",
        "v4 := assign(v4, v5)",
        "v6 = multiply(v4, v3)",
    ]
    assert w.tolist() == [5.0, 6.0]
    assert recorded.replay(t64(np.ones((2, 2))))[0].tolist() == [36.0, 40.0]


# --------------------------------------------------------------------------------------------------- state and identity
def test_state_is_bound_by_identity() -> None:
    """A running mean: read and written by each replay where it lies."""
    eager, traced = (nn.Buffer(gf.zeros(3, dtype=gf.float64)) for _ in range(2))

    def step(mean: Tensor) -> Callable[[Tensor], Tensor]:
        def update(x: Tensor) -> Tensor:
            with gf.no_grad():
                mean.__imul__(0.9)
                mean[...] = mean + 0.1 * x.mean(axis=0)
            return x - mean

        return update

    batches = [t64(rng.normal(size=(4, 3))) for _ in range(5)]
    _, recorded = trace(step(traced), batches[0])
    step(eager)(batches[0])
    for x in batches[1:]:
        same(recorded.replay(x)[0], step(eager)(x))
        same(traced, eager)
    with gf.no_grad():
        traced[...] = 5.0
        eager[...] = 5.0
    same(recorded.replay(batches[0])[0], step(eager)(batches[0]))


def test_a_write_to_an_argument_is_a_write_to_the_next_one() -> None:
    def f(x: Tensor) -> Tensor:
        x += 1.0
        return x * 2

    first, second = t64([1.0]), t64([10.0])
    out, recorded = trace(f, first)
    assert (out.item(), first.item()) == (4.0, 2.0)
    assert recorded.replay(second)[0].item() == 22.0
    assert (first.item(), second.item()) == (2.0, 11.0)


def test_one_tensor_given_twice() -> None:
    x, a, b = t64([3.0]), t64([5.0]), t64([2.0])
    out, recorded = trace(lambda p, q: p - q * 2, x, x)
    assert out.item() == -3.0
    assert recorded.replay(a, b)[0].item() == 1.0
    assert recorded.replay(b, a)[0].item() == -8.0


def test_an_argument_that_requires_grad() -> None:
    x = t64([1.0, 2.0], requires_grad=True)
    out, recorded = trace(gf.grad(lambda z: (z**3).sum()), x)
    assert out.tolist() == [3.0, 12.0]
    assert recorded.replay(t64([3.0, 4.0]))[0].tolist() == [27.0, 48.0]


def test_a_graph_from_before_a_replay_notices_its_writes() -> None:
    w, x = gf.Parameter([1.0, 2.0]), gf.tensor([3.0, 4.0])

    def step(t: Tensor) -> Tensor:
        with gf.no_grad():
            w.__iadd__(t)
        return t

    _, recorded = trace(step, x)
    loss = (w * w).sum()
    before = w.version
    recorded.replay(x)
    assert w.version > before
    assert w.tolist() == [7.0, 10.0]
    with pytest.raises(errors.GraphError, match="changed in place"):
        loss.backward()


def test_memory_that_was_exchanged_is_noticed() -> None:
    """A replay would read and write what nobody looks at any more."""
    w = gf.Parameter([1.0, 2.0])
    first = optim.SGD([w], lr=0.1)

    def step(x: Tensor) -> Tensor:
        loss = (w * x).sum()
        first.zero_grad()
        loss.backward()
        first.step()
        return loss

    x = gf.tensor([1.0, 1.0])
    _, recorded = trace(step, x)
    optim.SGD([w], lr=0.1)  # moves w into its own buffer
    with pytest.raises(errors.GraphError, match="has other memory since") as caught:
        recorded.replay(x)
    assert "trace the function again" in text(caught)
    np.testing.assert_allclose(w.numpy(), [0.9, 1.9], rtol=1e-6)

    h = t64([1.0])

    def rebinding(x: Tensor) -> Tensor:
        h.__imul__(x)  # recorded: h becomes another array with history
        return h

    _, recorded = trace(rebinding, t64([2.0], requires_grad=True))
    with pytest.raises(errors.GraphError, match="has other memory since"):
        recorded.replay(t64([2.0]))


def test_an_optimizer_that_moves_its_parameters_while_traced() -> None:
    """The forward pass was traced on the memory before; a second trace is right, and nothing is wrong in silence."""
    results = []
    for traced in (False, True):
        w = gf.Parameter([1.0, 2.0])
        first = optim.Adam([w], lr=0.1)
        optim.SGD([w], lr=0.1)  # w lies in its buffer now

        def step(x: Tensor, w: Any = w, first: Any = first) -> Tensor:
            loss = (w * w * x).sum()
            first.zero_grad()
            loss.backward()
            first.step()
            return loss

        x = gf.tensor([1.0, 3.0])
        if traced:
            _, recorded = trace(step, x)
            assert "assign" not in [e.primitive.name for e in recorded.equations]
            with pytest.raises(errors.GraphError, match="has other memory since"):
                recorded.replay(x)
            _, recorded = trace(step, x)
            for _ in range(3):
                recorded.replay(x)
        else:
            for _ in range(5):
                step(x)
        results.append(w.numpy().copy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ what is refused
READS: dict[str, Callable[[Tensor], Any]] = {
    ".item()": lambda t: t.sum().item(),
    "bool(t)": lambda t: bool(t.sum() > 0),
    "if t": lambda t: 1 if t.sum() > 0 else 2,
    "float(t)": lambda t: float(t.sum()),
    "int(t)": lambda t: int(t.sum()),
    "range(t)": lambda t: range(gf.argmax(t)),
    ".numpy()": lambda t: t.numpy(),
    ".tolist()": lambda t: t.tolist(),
    "np.asarray(t)": np.asarray,
    "in": lambda t: 3.0 in t,
    ".data": lambda t: t.data,
    "from_dlpack": np.from_dlpack,
    "gf.tensor(t)": gf.tensor,
    "gf.tensor([t])": lambda t: gf.tensor([t.sum(), 1.0]),
    "f-string": lambda t: f"{t.sum():.2f}",
    "a mask": lambda t: t[t > 0],
}


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("read", READS)
def test_a_value_that_is_read_is_refused(read: str, computed: bool) -> None:
    before = get_mode()
    line = 0

    def step(x: Tensor) -> Tensor:
        nonlocal line
        y = x * 2 if computed else x
        line = sys._getframe().f_lineno + 1
        use = READS[read](y)
        return y if use is None else y * 2

    with pytest.raises(errors.TracedValueError) as caught:
        trace(step, t64([1.0, 2.0]))
    assert "of a traced value" in text(caught)
    assert f"{__file__}:" in text(caught)
    assert "gf.where(" in text(caught)
    assert get_mode() is before


def test_the_error_names_the_users_line_and_the_fix() -> None:
    def step(x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(errors.TracedValueError) as caught:
        trace(step, t64([1.0]))
    assert text(caught) == (
        f".item() of a traced value at {__file__}:{step.__code__.co_firstlineno + 1}.\n"
        "  why: the step is recorded once and replayed: what Python read now would be used for ever.\n"
        "  fix: return the tensor from the step and read it outside; gf.where(condition, x, y) chooses by value"
    )


def test_shapes_dtypes_and_other_tensors_can_be_read() -> None:
    other = t64([2.0, 3.0])
    model = nn.Linear(2, 2)
    optimizer = optim.Adam(model.parameters(), lr=0.5)
    seen: list[Any] = []

    def step(x: Tensor) -> Tensor:
        seen[:] = [
            x.shape,
            x.ndim,
            x.size,
            len(x),
            x.dtype,
            x.requires_grad,
            x.is_leaf,
            x.backend.name,
            repr(x),
            str(x * 2),
        ]
        seen.append((optimizer.lr, optimizer.param_groups[0]["beta1"], other.tolist(), model.weight.numpy().shape))
        return sum((row * i for i, row in enumerate(x)), other)

    x = t64(np.ones((3, 2)))
    _, recorded = trace(step, x)
    assert seen[:8] == [(3, 2), 2, 6, 3, np.float64, False, True, "numpy"]
    assert seen[8] == "tensor(<traced>, shape=(3, 2), dtype=float64)"
    assert seen[9] == "tensor(<traced>, shape=(3, 2), dtype=float64)"
    assert seen[10] == (0.5, 0.9, [2.0, 3.0], (2, 2))
    assert recorded.replay(x)[0].tolist() == [5.0, 6.0]


def test_a_replay_wants_the_traced_shapes_and_dtypes() -> None:
    _, recorded = trace(lambda x, y: x + y, gf.ones(2), gf.ones(2))
    for wrong in ((gf.ones(3), gf.ones(3)), (gf.ones(2), t64([1.0, 2.0])), (gf.ones(2),), ()):
        with pytest.raises(errors.ShapeError, match="the trace holds for") as caught:
            recorded.replay(*wrong)
        assert "trace the function again for other shapes" in text(caught)


def test_an_exception_in_the_function_leaves_no_trace() -> None:
    w = t64([1.0])

    def broken(x: Tensor) -> Tensor:
        (x @ w).sum()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trace(broken, w)
    with pytest.raises(errors.ShapeError, match="inner lengths"):
        trace(lambda x: gf.ones((2, 3)) @ gf.ones((2, 3)), w)
    assert (w * 2).item() == 2.0


# ---------------------------------------------------------------------------------------------------- modes and threads
def test_the_mode_of_recording_is_kept() -> None:
    seen = []

    def step(x: Tensor) -> Tensor:
        seen.append(gf.is_grad_enabled())
        with gf.no_grad():
            seen.append(gf.is_grad_enabled())
            seen.append((x.detach().requires_grad_() * 2).requires_grad)
        seen.append((x.detach().requires_grad_() * 2).requires_grad)
        return x

    trace(step, t64([1.0]))
    assert seen == [True, False, False, True]
    seen.clear()
    with gf.no_grad():
        trace(step, t64([1.0]))
    assert seen == [False, False, False, False]


def test_only_this_threads_operations_are_recorded() -> None:
    def step(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: [gf.exp(gf.ones(2)).numpy() for _ in range(5)])
        thread.start()
        thread.join()
        return x * 2

    _, recorded = trace(step, t64([1.0]))
    assert [e.primitive.name for e in recorded.equations] == ["multiply"]


def test_replays_in_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    _, recorded = trace(lambda x: gf.tanh(x @ x) * 2, t64(np.eye(40)))
    batches = [t64(rng.normal(size=(40, 40))) for _ in range(8)]
    alone = [recorded.replay(x)[0].numpy() for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(lambda x: recorded.replay(x)[0].numpy(), batches), alone, strict=True):
            assert np.array_equal(a, b)


def test_a_trace_inside_a_trace() -> None:
    inner: list[Trace] = []

    def step(x: Tensor) -> Tensor:
        out, recorded = trace(lambda y: y * y, x + 1)
        inner.append(recorded)
        return out * 2

    out, recorded = trace(step, t64([2.0]))
    assert out.item() == 18.0
    assert inner[0].replay(t64([4.0]))[0].item() == 16.0
    assert recorded.replay(t64([4.0]))[0].item() == 50.0


def test_a_long_trace_needs_no_recursion() -> None:
    def step(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        z = y
        for _ in range(5000):
            z = z * 1.0001
        z.sum().backward()
        assert y.grad is not None
        return y.grad

    out, recorded = trace(step, t64([1.0]))
    assert recorded.replay(t64([2.0]))[0].item() == pytest.approx(out.item())


def test_a_copy_of_a_traced_value_is_refused() -> None:
    import copy

    for make in (copy.copy, copy.deepcopy):
        with pytest.raises(errors.TracedValueError, match=r"a copy .* of a traced value at .*test_trace\.py"):
            trace(lambda x, make=make: make(x) * 2, t64([1.0, 2.0]))


def test_a_trace_keeps_what_is_bound_and_lets_go_of_what_was_computed() -> None:
    import weakref

    w, seen = t64([1.0, 2.0]), []

    def step(x: Tensor) -> Tensor:
        y = x * w
        seen.append(weakref.ref(y._data))
        return y.sum()

    _, recorded = trace(step, t64([3.0, 4.0]))
    assert seen[0]() is None
    assert next(iter(recorded.bound.values())) is w._data
    assert recorded.facts[recorded.equations[0].output] == ((2,), gf.float64)
    assert recorded.sites == []
    assert recorded.replay(t64([10.0, 20.0]))[0].item() == 50.0
