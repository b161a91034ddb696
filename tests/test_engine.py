"""The engine: backward, hooks, modes, writes in place, memory, threads; beside PyTorch where it has them."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, mode, nn, optim, tape
from gradflow.compiler import trace
from gradflow.primitive import _NAMESPACES, REGISTRY
from gradflow.tensor import OPS, Tensor
from tests.test_walk import StandIn

rng = np.random.default_rng(0)


def leaf(*values: float, dtype: Any = None) -> Tensor:
    return gf.tensor(list(values), dtype=dtype, requires_grad=True)


def grad_of(t: Tensor) -> Any:
    assert t.grad is not None
    return t.grad.tolist()


@contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------- backward() and hooks, as PyTorch's
class Ours:
    """gradflow under the few names that the scripts below use."""

    exp, tanh = staticmethod(gf.exp), staticmethod(gf.tanh)

    @staticmethod
    def leaf(values: Any, requires_grad: bool = True) -> Any:
        return gf.tensor(np.array(values, np.float64), requires_grad=requires_grad)

    @staticmethod
    def hook(t: Any, function: Any) -> Any:
        return t.register_hook(function)

    @staticmethod
    def no_grad() -> Any:
        return gf.no_grad()


class Theirs:
    """PyTorch under the same names."""

    def __init__(self, torch: Any) -> None:
        self.torch, self.exp, self.tanh, self.no_grad = torch, torch.exp, torch.tanh, torch.no_grad

    def leaf(self, values: Any, requires_grad: bool = True) -> Any:
        return self.torch.tensor(values, dtype=self.torch.float64, requires_grad=requires_grad)

    def hook(self, t: Any, function: Any) -> Any:
        return t.register_hook(function).remove


def seed_of_ones(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0, 3.0])
    (x * x).backward(lib.leaf([1.0, 10.0, 100.0], False))
    return [x.grad]


def accumulation(lib: Any) -> list[Any]:
    x, y = lib.leaf([1.0, 2.0]), lib.leaf([3.0, 4.0])
    (x * y).sum().backward()
    first = x.grad * 1
    (x * x).sum().backward()
    y.grad = None
    (x * y * y).sum().backward()
    return [first, x.grad, y.grad]


def retained_graph(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    loss = lib.exp(x * x).sum()
    loss.backward(retain_graph=True)
    first = x.grad * 1
    loss.backward(retain_graph=True)
    loss.backward()
    return [first, x.grad]


def one_graph_two_roots(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    h = lib.tanh(x)
    a, b = (h * h).sum(), lib.exp(h).sum()
    a.backward(retain_graph=True)
    b.backward()
    return [x.grad]


def created_graph(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    (x * x * x).sum().backward(create_graph=True)
    g = x.grad
    x.grad = None
    (g * g).sum().backward()
    return [g, g.requires_grad, x.grad, x.grad.requires_grad]


def third_order(lib: Any) -> list[Any]:
    x = lib.leaf([0.5, 1.5])
    y = lib.tanh(x * x).sum()
    found = []
    for _ in range(3):
        y.backward(create_graph=True)
        g = x.grad
        x.grad = None
        found.append(g)
        y = (g * lib.exp(x)).sum()
    return found


def seed_that_requires_grad(lib: Any) -> list[Any]:
    x, v = lib.leaf([1.0, 2.0]), lib.leaf([3.0, 4.0])
    (x * x).backward(v, create_graph=True)
    g = x.grad
    x.grad = None
    (g * g).sum().backward()
    return [g, x.grad, v.grad]


def retained_intermediate(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x * 3
    z = y * y
    y.retain_grad()
    y.retain_grad()
    z.sum().backward(retain_graph=True)
    first = y.grad * 1
    z.sum().backward()
    return [first, y.grad, z.is_leaf, y.is_leaf, x.grad]


def retained_with_graph(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x * x
    y.retain_grad()
    (y * y * y).sum().backward(create_graph=True)
    g = y.grad
    x.grad = None
    g.sum().backward()
    return [g, x.grad]


def hooks_in_order(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    lib.hook(x, lambda g: g * 2)
    lib.hook(x, lambda g: g + 1)
    lib.hook(x, lambda g: None)
    (x * x).sum().backward()
    return [x.grad]


def hook_on_intermediate(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x * x
    y.retain_grad()
    lib.hook(y, lambda g: g * 10)
    (y.exp() + y).sum().backward()
    return [x.grad, y.grad]


def hook_removed(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    remove = lib.hook(x, lambda g: g * 2)
    lib.hook(x, lambda g: g + 1)
    (x * 1).sum().backward()
    remove()
    remove()
    (x * 1).sum().backward()
    return [x.grad]


def hook_with_graph(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x * x
    lib.hook(y, lambda g: g * g)
    lib.hook(x, lambda g: g * x)
    (y * y).sum().backward(create_graph=True)
    g = x.grad
    x.grad = None
    g.sum().backward()
    return [g, x.grad]


def hook_during_accumulation(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    seen = []
    lib.hook(x, lambda g: seen.append(g * 1))
    for _ in range(2):
        (x * x * x).sum().backward()
    return [*seen, x.grad]


def hook_that_reads_grad(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    found: list[Any] = []
    lib.hook(x, lambda g: found.append(None if x.grad is None else x.grad * 1))
    (x * x).sum().backward()
    (x * x).sum().backward()
    return [found[0] is None, found[1]]


def detached(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x * x
    d = y.detach()
    (x * d).sum().backward()
    return [x.grad, d.requires_grad, d.is_leaf, y.requires_grad]


def frozen(lib: Any) -> list[Any]:
    x, y = lib.leaf([1.0, 2.0]), lib.leaf([3.0, 4.0])
    y.requires_grad_(False)
    z = x * y
    y.requires_grad_()
    (z + y).sum().backward()
    return [x.grad, y.grad]


def through_no_grad(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    with lib.no_grad():
        c = x * x
    (c * x).sum().backward()
    return [c.requires_grad, x.grad]


def diamond(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    a = x * 2
    for _ in range(5):
        a = a * 0.5 + a * a
    a.sum().backward()
    return [x.grad]


def in_place_on_intermediate(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x * x
    y += x
    y *= 2
    y[0] = x[1] * 3
    y.sum().backward()
    return [y.detach(), x.grad]


def part_of_a_leaf(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0, 3.0])
    (x[1:] * x[:2]).sum().backward()
    return [x.grad]


def same_operand_twice(lib: Any) -> list[Any]:
    x = lib.leaf([1.0, 2.0])
    y = x - x * x / x
    (y + y * y).sum().backward()
    return [x.grad]


def leaf_itself(lib: Any) -> list[Any]:
    x = lib.leaf(3.0)
    x.backward()
    x.backward()
    return [x.grad]


SCRIPTS = [
    seed_of_ones, accumulation, retained_graph, one_graph_two_roots, created_graph, third_order,
    seed_that_requires_grad, retained_intermediate, retained_with_graph, hooks_in_order, hook_on_intermediate,
    hook_removed, hook_with_graph, hook_during_accumulation, hook_that_reads_grad, detached, frozen, through_no_grad,
    diamond, in_place_on_intermediate, part_of_a_leaf, same_operand_twice, leaf_itself,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_backward_is_pytorchs(script: Callable[[Any], list[Any]]) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = script(Ours), script(Theirs(torch))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, bool):
            assert a is b
        else:
            assert (a.shape, a.dtype.name) == (tuple(b.shape), str(b.dtype).removeprefix("torch."))
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-13, atol=1e-13)


STEPS: list[Callable[[Any, Any, Any], Any]] = [
    lambda lib, a, b: a + b,
    lambda lib, a, b: a * b,
    lambda lib, a, b: lib.tanh(a) - b,
    lambda lib, a, b: lib.exp(a * 0.1) * b.sum(),
    lambda lib, a, b: a @ b,
    lambda lib, a, b: a / (b * b + 1),
    lambda lib, a, b: a[[1, 0, 1]] * b[:1],
    lambda lib, a, b: a.reshape(9).reshape(3, 3) + b.mT,
    lambda lib, a, b: a.mean() * b,
    lambda lib, a, b: a[1] + b[:, 2:],
]


@given(
    ops=st.lists(st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 9)), max_size=10),
    kept=st.integers(0, 9),
    hooked=st.integers(0, 9),
    again=st.booleans(),
)
def test_drawn_graphs_are_pytorchs(ops: list[tuple[int, int, int]], kept: int, hooked: int, again: bool) -> None:
    """Graphs that share and forget values, with a hook and a retained gradient somewhere, swept once or twice."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(len(ops))
    start = draw.normal(size=(2, 3, 3)).tolist()

    def run(lib: Any) -> list[Any]:
        leaves = [lib.leaf(v) for v in start]
        values = [*leaves, lib.leaf(start[0], False)]
        for kind, i, j in ops:
            values.append(STEPS[kind](lib, values[i % len(values)], values[j % len(values)]) * 0.5)
        hook, keep = values[hooked % len(values)], values[kept % len(values)]
        if hook.requires_grad:
            lib.hook(hook, lambda g: g * 2 + 1)
        if keep.requires_grad:
            keep.retain_grad()
        loss = sum((v * (k + 1)).mean() for k, v in enumerate(values[-3:] + leaves[:1]))
        loss.backward(retain_graph=again)
        if again:
            loss.backward()
        return [t.grad for t in (*leaves, keep) if t.requires_grad]

    for a, b in zip(run(Ours), run(Theirs(torch)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------------------------------------- what backward() refuses
def text(caught: Any) -> str:
    return str(caught.value)


def test_a_second_backward_names_retain_graph() -> None:
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(errors.GraphError) as caught:
        loss.backward()
    assert text(caught) == (
        "this graph was freed by an earlier backward().\n"
        "  why: a backward sweep drops the values it no longer needs.\n"
        "  fix: call the earlier one with retain_graph=True: loss.backward(retain_graph=True)"
    )
    assert grad_of(x) == [2.0, 4.0]  # not doubled


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_freed_part_names_retain_graph(create_graph: bool) -> None:
    x = leaf(1.0, 2.0)
    shared = x * x
    shared.sum().backward()
    with pytest.raises(errors.GraphError, match="retain_graph=True"):
        (shared * 2).sum().backward(create_graph=create_graph)
    assert grad_of(x) == [2.0, 4.0]
    assert gf.grad(lambda y: (shared * y).sum())(x).tolist() == [1.0, 4.0]  # y does not lead there

    def freed_inside(y: Tensor) -> Tensor:
        loss = (y * y).sum()
        loss.backward()
        return loss * 2

    with pytest.raises(errors.GraphError, match="retain_graph=True"):
        gf.grad(freed_inside)(x)


def test_a_non_scalar_needs_a_gradient_to_start_from() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(errors.ShapeError) as caught:
        (x * x).backward()
    assert text(caught) == (
        "backward() of a tensor of shape (2,) without a gradient to start from.\n"
        "  why: only a scalar has an obvious one: 1.\n"
        "  fix: loss.mean().backward(), or y.backward(gf.ones_like(y))"
    )
    with pytest.raises(errors.ShapeError, match=r"a gradient of shape \(1, 2\) for a tensor of shape \(2,\)"):
        (x * x).backward(gf.ones((1, 2)))
    with pytest.raises(errors.ShapeError):
        (x * x).backward(1.0)


def test_backward_of_what_requires_no_grad() -> None:
    for t in (gf.tensor(1.0), gf.tensor(1.0) * 2):
        with pytest.raises(errors.GraphError, match="does not require grad") as caught:
            t.backward()
        assert "requires_grad=True" in text(caught)


def test_hooks_and_requires_grad_where_they_make_no_sense() -> None:
    with pytest.raises(errors.GraphError, match="register_hook"):
        gf.tensor(1.0).register_hook(lambda g: g)
    with pytest.raises(errors.GraphError, match="detach"):
        (leaf(1.0) * 2).requires_grad_(False)
    with pytest.raises(errors.DTypeError, match="int64 tensor cannot require grad"):
        gf.tensor([1, 2]).requires_grad_()
    with pytest.raises(errors.DTypeError, match="bool tensor cannot require grad"):
        gf.tensor([True], requires_grad=True)
    with pytest.raises(errors.GraphError, match="does not require grad was given one"):
        gf.tensor(1.0).grad = gf.tensor(1.0)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("on_leaf", [False, True])
def test_a_gradient_keeps_its_leafs_shape_and_dtype(on_leaf: bool, create_graph: bool) -> None:
    x = leaf(1.0, 2.0)
    wrong: list[tuple[Any, type[Exception]]] = [
        (lambda g: g.sum(), errors.ShapeError),
        (lambda g: g.astype(gf.float64), errors.DTypeError),
        (lambda g: g.numpy(), errors.DTypeError),
    ]
    for hook, error in wrong:
        y = x * 1.5
        remove = (x if on_leaf else y).register_hook(hook)
        with pytest.raises(error, match="a gradient of"):
            y.sum().backward(create_graph=create_graph)
        remove()
        assert x.grad is None
        with pytest.raises(error, match="a gradient of"):
            x.grad = hook(gf.ones(2))
    (x * 2.0).sum().backward(create_graph=create_graph)
    assert grad_of(x) == [2.0, 2.0]


@given(
    kinds=st.tuples(*[st.sampled_from(["float32", "float64"])] * 3), shape=st.sampled_from([(), (1,), (2, 3), (0, 2)])
)
def test_mixed_dtypes_leave_each_leaf_its_own(kinds: tuple[str, ...], shape: tuple[int, ...]) -> None:
    x, y, v = (gf.ones(shape, dtype=kind, requires_grad=i < 2) for i, kind in enumerate(kinds))
    z = gf.tanh(x * y) + x
    z.backward(v)
    assert z.dtype == np.result_type(kinds[0], kinds[1])
    for t, kind in ((x, kinds[0]), (y, kinds[1])):
        assert t.grad is not None
        assert (t.grad.dtype, t.grad.shape) == (np.dtype(kind), shape)
    z = gf.tanh(x * y) + x
    z.backward(v, create_graph=True)
    assert x.grad is not None and x.grad.dtype == np.dtype(kinds[0])


# --------------------------------------------------------------------------------------------------------- grad mode
def test_modes_nest() -> None:
    x = leaf(1.0)
    states = []

    def look() -> None:
        states.append((gf.is_grad_enabled(), (x * 2).requires_grad))

    look()
    with gf.no_grad():
        look()
        with gf.enable_grad():
            look()
            with gf.set_grad_enabled(False):
                look()
            look()
        look()
    look()
    assert states == [(on, on) for on in (True, False, True, False, True, False, True)]


def test_modes_as_decorators() -> None:
    @gf.no_grad()
    def quiet(n: int) -> list[bool]:
        """Look."""
        return [gf.is_grad_enabled(), *(quiet(n - 1) if n else [])]

    @gf.enable_grad()
    def loud() -> bool:
        return gf.is_grad_enabled()

    @gf.set_grad_enabled(False)
    def silent() -> bool:
        return gf.is_grad_enabled()

    assert gf.is_grad_enabled()
    assert quiet(3) == [False] * 4
    assert (quiet.__name__, quiet.__doc__) == ("quiet", "Look.")
    with gf.no_grad():
        assert loud()
        assert not gf.is_grad_enabled()
    assert not silent()
    assert gf.is_grad_enabled()


def test_set_grad_enabled_as_a_function() -> None:
    try:
        gf.set_grad_enabled(False)
        assert not gf.is_grad_enabled()
        with gf.set_grad_enabled(True):
            assert gf.is_grad_enabled()
        assert not gf.is_grad_enabled()
    finally:
        gf.set_grad_enabled(True)
    assert gf.is_grad_enabled()


def test_one_context_manager_used_again_and_inside_itself() -> None:
    block = gf.no_grad()
    for _ in range(2):
        with block:
            with gf.enable_grad(), block:
                assert not gf.is_grad_enabled()
            assert not gf.is_grad_enabled()
        assert gf.is_grad_enabled()


@pytest.mark.parametrize("manager", [gf.no_grad, gf.enable_grad, lambda: gf.set_grad_enabled(False)])
def test_the_mode_comes_back_after_an_exception(manager: Callable[[], Any]) -> None:
    with pytest.raises(ZeroDivisionError), manager():
        raise ZeroDivisionError
    assert gf.is_grad_enabled()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        manager()(fail)()
    assert gf.is_grad_enabled()


def test_the_mode_comes_back_after_failing_engine_calls() -> None:
    x = leaf(1.0, 2.0)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    before = mode.get_mode()
    for call in (
        lambda: gf.grad(fail)(x),
        lambda: gf.jvp(fail, (x,), (x,)),
        lambda: trace(fail, x),
        lambda: optim.SGD([x], lr=0.1).step(fail),
        lambda: gf.hessian(lambda t: fail() if t.requires_grad else t)(x),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
        assert mode.get_mode() is before
    y = x * x
    y.register_hook(fail)
    for create_graph in (False, True):
        with pytest.raises(ZeroDivisionError):
            y.sum().backward(create_graph=create_graph, retain_graph=True)
        assert mode.get_mode() is before


def test_a_decorated_generator_runs_in_the_mode() -> None:
    @gf.no_grad()
    def numbers() -> Iterator[bool]:
        yield gf.is_grad_enabled()
        yield gf.is_grad_enabled()

    assert [(quiet, gf.is_grad_enabled()) for quiet in numbers()] == [(False, True)] * 2

    @gf.no_grad()
    def echo() -> Generator[Any, Any, str]:
        got = yield gf.is_grad_enabled()
        yield got, gf.is_grad_enabled()
        return "end"

    generator = echo()
    assert next(generator) is False
    assert generator.send("sent") == ("sent", False)
    with pytest.raises(StopIteration) as caught:
        next(generator)
    assert caught.value.value == "end"
    assert gf.is_grad_enabled()


def test_the_mode_belongs_to_the_thread() -> None:
    seen = []
    with gf.no_grad():
        thread = threading.Thread(target=lambda: seen.append(gf.is_grad_enabled()))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
        assert not copied.run(gf.is_grad_enabled)
    assert seen == [True]


def test_one_context_manager_shared_by_threads() -> None:
    block, barrier = gf.no_grad(), threading.Barrier(2)

    def work(_: int) -> tuple[bool, bool]:
        barrier.wait()
        with block:
            barrier.wait()
            inside = gf.is_grad_enabled()
        barrier.wait()
        return inside, gf.is_grad_enabled()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [(False, True)] * 2


def test_the_mode_belongs_to_the_task() -> None:
    async def quiet() -> list[bool]:
        found = [gf.is_grad_enabled()]
        with gf.no_grad():
            await asyncio.sleep(0)
            found.append(gf.is_grad_enabled())
            await asyncio.sleep(0)
        return [*found, gf.is_grad_enabled()]

    async def loud() -> list[bool]:
        found = []
        for _ in range(4):
            found.append(gf.is_grad_enabled())
            await asyncio.sleep(0)
        return found

    async def main() -> list[list[bool]]:
        return list(await asyncio.gather(quiet(), loud(), quiet()))

    assert asyncio.run(main()) == [[True, False, True], [True] * 4, [True, False, True]]


# -------------------------------------------------------------------------------------------- depth without recursion
CHAIN = 100_000


def test_a_deep_chain_goes_forward_backward_and_away() -> None:
    limit = sys.getrecursionlimit()
    x = leaf(1.0)
    y = x
    for _ in range(CHAIN // 2):
        y = y * 1.00001
        y = -y
    y.sum().backward()
    assert grad_of(x) == pytest.approx([1.00001 ** (CHAIN // 2)], rel=1e-2)
    assert sys.getrecursionlimit() == limit
    del y


def test_a_deep_chain_that_was_never_swept_goes_away() -> None:
    with collector_off():
        x = leaf(1.0)
        y = x
        for _ in range(CHAIN):
            y = y + 1.0
        last = weakref.ref(y._data)
        del y
        assert last() is None


def test_a_deep_chain_with_a_created_graph() -> None:
    x = gf.tensor(1.0, dtype=gf.float64, requires_grad=True)
    y = x
    n = 10_000
    for _ in range(n):
        y = y * x
    y.backward(create_graph=True)
    g = x.grad
    assert g is not None
    x.grad = None
    g.backward()
    assert (g.item(), x.grad.item()) == (n + 1, n * (n + 1))  # type: ignore[union-attr]
    del y, g


def test_a_deep_chain_of_custom_derivatives_hooks_and_kept_gradients() -> None:
    with collector_off():
        x = leaf(0.5, 0.5)
        w = leaf(1.0, 1.0)
        y = x
        for _ in range(20_000):
            y = cubed(y, w) ** (1 / 3)
            y.retain_grad()
        y.register_hook(lambda g: g)
        last = weakref.ref(y._data)
        y.sum().backward()
        assert y.grad is not None
        assert x.grad is not None
        del y
        assert last() is None


def test_a_wide_sum_of_one_leaf() -> None:
    x = leaf(1.0)
    gf.concat([x * 1.0 for _ in range(5000)]).sum().backward()
    assert grad_of(x) == [5000.0]


# --------------------------------------------------------------------------------------------- freed by reference count
def forward_only(x: Tensor) -> Any:
    return gf.exp(x * x).sum()


def backward_once(x: Tensor) -> Any:
    loss = gf.exp(x * x).sum()
    loss.backward()
    return loss


def with_hooks(x: Tensor) -> Any:
    y = x * x
    y.register_hook(lambda g: g * 2)
    y.retain_grad()
    x.register_hook(lambda g: g * 2)
    loss = gf.exp(y).sum()
    loss.backward(retain_graph=True)
    return loss


def with_created_graph(x: Tensor) -> Any:
    loss = gf.softmax(x * gf.tanh(x), axis=0).max()
    loss.backward(create_graph=True)
    return loss, x.grad


def with_transforms(x: Tensor) -> Any:
    return gf.hessian(lambda t: gf.exp(t * t).sum())(x), gf.vjp(gf.tanh, x), gf.jvp(gf.tanh, (x,), (x,))


@gf.custom_vjp
def cubed(x: Tensor, w: Tensor) -> Tensor:
    return x * x * x * w


def cubed_backward(saved: tuple[Tensor, Tensor], g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = saved
    return g * 3 * x**2 * w, g * x**3


cubed.defvjp(lambda x, w: (x * x * x * w, (x, w)), cubed_backward)


def with_custom_vjp(x: Tensor) -> Any:
    w = leaf(2.0, 3.0)
    loss = cubed(x, w).sum()
    loss.backward(create_graph=True)
    return loss


def with_custom_vjp_of_one_argument(x: Tensor) -> Any:
    w = leaf(2.0, 3.0)
    return gf.grad(lambda t: gf.grad(lambda s: cubed(s, w).sum())(t).sum())(x)  # w is no target of these sweeps


def with_in_place(x: Tensor) -> Any:
    y = x * 1.0
    y[0] = y[1] * 2
    y += y
    return y.sum()


def with_an_error(x: Tensor) -> Any:
    loss = (x * x).sum()
    loss.backward()
    with suppress(errors.GraphError):
        loss.backward()
    return loss


def with_a_trace(x: Tensor) -> Any:
    def step(t: Tensor) -> Tensor:
        loss = gf.exp(t * x).sum()
        x.grad = None
        loss.backward()
        return loss

    _, recorded = trace(step, gf.ones(2))
    return recorded.replay(gf.ones(2))


GRAPHS = [
    forward_only, backward_once, with_hooks, with_created_graph, with_transforms, with_custom_vjp,
    with_custom_vjp_of_one_argument, with_in_place, with_an_error, with_a_trace,
]  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_graphs_die_by_reference_count(graph: Callable[[Tensor], Any]) -> None:
    graph(leaf(0.1, 0.2))  # functions are specialised at their first call
    with collector_off():
        x = leaf(0.1, 0.2)
        ends = [weakref.ref(x), weakref.ref(x._data), weakref.ref(x._node)]
        kept = graph(x)
        if isinstance(kept, Tensor):
            ends.append(weakref.ref(kept._data))
        x.grad = None  # a gradient that can be differentiated leads back to its leaf, as in PyTorch
        del x, kept
        assert [end() for end in ends] == [None] * len(ends)
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            ours = [o for o in gc.garbage if type(o).__module__.startswith("gradflow")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert not ours


def test_a_training_step_makes_no_garbage() -> None:
    model = nn.MLP([4, 8, 3])
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    x, t = gf.tensor(rng.normal(size=(16, 4)).astype(np.float32)), gf.tensor(rng.integers(0, 3, 16))

    def step() -> weakref.ref[Any]:
        loss = gf.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return weakref.ref(loss)

    step()
    with collector_off():
        for _ in range(3):
            assert step()() is None
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            assert gc.collect() == 0
        finally:
            gc.set_debug(0)
            gc.garbage.clear()


def test_memory_stays_flat_over_a_thousand_steps() -> None:
    model = nn.MLP([20, 32, 5])
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    x, t = gf.tensor(rng.normal(size=(64, 20)).astype(np.float32)), gf.tensor(rng.integers(0, 5, 64))

    def step() -> None:
        loss = gf.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(50):
        step()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(10):
            step()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            step()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 2000  # bytes; one array header a step would be 100 kB
    assert len(tape.writes.owners) < 1000


def test_recycled_memory_stays_flat() -> None:
    pool = pytest.importorskip("gradflow_numpy.pool")._pool
    w = gf.Parameter(gf.zeros((300, 300)))
    optimizer = optim.SGD([w], lr=0.1)
    x = gf.ones((300, 300))

    def step() -> None:
        loss = gf.relu(x @ w).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    held = pool.held
    for _ in range(50):
        step()
    assert pool.held == held


def test_recycled_memory_is_never_somebody_elses() -> None:
    """Results large enough to be recycled are all distinct while anybody can see them, a view of them included."""
    x = gf.tensor(rng.normal(size=(256, 256)).astype(np.float32), requires_grad=True)
    kept: list[tuple[Any, np.ndarray]] = []
    for i in range(12):
        y = gf.relu(x * float(i + 1)) @ x
        y.sum().backward()
        seen_now = (y.detach(), y[3:5].detach(), y.numpy(), np.asarray(x.grad)[::2], y.mT.detach())
        kept += [(seen, np.array(seen)) for seen in seen_now]
        x.grad = None
    for seen, values in kept:
        assert np.array_equal(np.asarray(seen), values)


# ------------------------------------------------------------------------------------------------- writes after a save
def write_at_once(t: Tensor) -> None:
    t += 1.0


def write_by_index(t: Tensor) -> None:
    t[0] = 5.0


def write_all(t: Tensor) -> None:
    t[...] = 5.0


def write_through_a_view(t: Tensor) -> None:
    view = t.reshape(-1)[:1]
    view += 1.0


def write_through_detach(t: Tensor) -> None:
    t.detach()[...] = 0.0


def write_by_mask(t: Tensor) -> None:
    t[t > 0] = 0.0


WRITES = [write_at_once, write_by_index, write_all, write_through_a_view, write_through_detach, write_by_mask]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_after_a_save_is_an_error(write: Callable[[Tensor], None], create_graph: bool) -> None:
    x, t = leaf(1.0, 2.0), gf.tensor([3.0, 4.0])
    y = x * t
    write(t)
    with pytest.raises(errors.GraphError) as caught:
        y.sum().backward(create_graph=create_graph)
    assert text(caught) == (
        "multiply saved `y` for its derivative, and it was changed in place since.\n"
        "  why: the derivative would be computed from the new values.\n"
        "  fix: change a copy (`y = x.copy(); y += 1`), or call backward() before the change."
    )
    assert x.grad is None


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_to_a_saved_output_is_an_error(write: Callable[[Tensor], None]) -> None:
    x = leaf(1.0, 2.0)
    y = gf.exp(x)
    with gf.no_grad():
        write(y)
    with pytest.raises(errors.GraphError, match="exp saved `out`"):
        y.sum().backward()


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_to_a_leaf_after_a_save_is_an_error(write: Callable[[Tensor], None]) -> None:
    x = leaf(1.0, 2.0)
    y = x * x
    with gf.no_grad():
        write(x)
    with pytest.raises(errors.GraphError, match="multiply saved `y`"):
        y.sum().backward()


def test_an_optimizer_step_before_backward_is_an_error() -> None:
    model = nn.MLP([3, 4, 1])
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = gf.ones((2, 3))
    first, second = model(x).sum(), model(x).sum()
    first.backward()
    optimizer.step()
    with pytest.raises(errors.GraphError, match="linear saved `weight`"):
        second.backward()


def test_a_write_to_a_residual_of_custom_vjp_is_an_error() -> None:
    x, w = leaf(1.0, 2.0), gf.tensor([3.0, 4.0])
    y = cubed(x, w)
    w += 1.0
    with pytest.raises(errors.GraphError, match="cubed saved `residuals`"):
        y.sum().backward()


def test_a_write_that_nobody_saved_is_none() -> None:
    x, t = leaf(1.0, 2.0), gf.tensor([3.0, 4.0])
    y = x + t  # needs neither
    t += 1.0
    z = x * t  # saved after the write
    (y + z).sum().backward()
    assert grad_of(x) == [5.0, 6.0]
    y = x * t
    y.sum().backward()
    t += 1.0  # after backward
    assert grad_of(x) == [9.0, 11.0]


def test_writes_to_neighbours_in_one_buffer_are_no_error() -> None:
    a, b, c = gf.Parameter([1.0, 2.0]), gf.Parameter([3.0, 4.0]), gf.Parameter([5.0])
    for optimizer in (optim.SGD([a], lr=0.5), optim.SGD([b], lr=0.5), optim.SGD([a, b, c], lr=0.5)):
        optimizer.zero_grad()
        y = (b * b).sum() + (c * c).sum()
        before = b.version, c.version
        with gf.no_grad():
            a += 1.0
            a[0] = 3.0
        a.grad = gf.ones(2)
        assert (b.version, c.version) == before
        y.backward()
        assert grad_of(b) == (2 * b.numpy()).tolist()
    assert np.shares_memory(a.numpy().base, b.numpy().base)


def test_only_frozen_neighbours_are_written() -> None:
    """A step writes the parameters that have a gradient; what others saved stays good."""
    a, b = gf.Parameter([1.0, 2.0]), gf.Parameter([3.0, 4.0])
    optimizer = optim.Adam([a, b], lr=0.5)
    y = (b * b).sum()
    a.grad = gf.ones(2)
    optimizer.step()
    y.backward()
    assert grad_of(b) == [6.0, 8.0]


def test_version_moves_with_the_memory() -> None:
    t = gf.zeros((4, 3))
    first, second = t[:2], t[2:]
    assert t.version == first.version == second.version == 0
    first += 1.0
    assert t.version == first.version > 0
    assert second.version == 0
    before = t.version
    t[3, 0] = 2.0
    assert t.version > before
    assert t.detach().version == t.version
    assert t.copy().version == 0
    (t * 2).sum()
    assert t.version == t.detach().version


def test_an_exchanged_memory_does_not_raise() -> None:
    """An optimizer that moves parameters into its buffer between forward and backward changes no value."""
    w = gf.Parameter([1.0, 2.0])
    y = (w * w).sum()
    optim.Adam([w], lr=0.1)
    y.backward()
    assert grad_of(w) == [2.0, 4.0]


# ----------------------------------------------------------------------------------------------------------- in place
@pytest.mark.parametrize(
    ("write", "what"),
    [
        (write_at_once, "t += value"),
        (write_by_index, "t[...] = value"),
        (write_all, "t[...] = value"),
        (write_by_mask, "t[...] = value"),
    ],
)
def test_a_leaf_that_requires_grad_is_not_written(write: Callable[[Tensor], None], what: str) -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(errors.GraphError) as caught:
        write(x)
    assert text(caught) == (
        f"{what} on a leaf that requires grad.\n"
        "  why: its gradient would be taken at values that are no longer there.\n"
        f"  fix: with gf.no_grad(): {what}"
    )
    assert (x.tolist(), x.version) == ([1.0, 2.0], 0)
    with gf.no_grad():
        write(x)
    assert x.version > 0
    assert x.requires_grad and x.is_leaf
    (x * x).sum().backward()
    assert grad_of(x) == (2 * x.numpy()).tolist()


def test_in_place_under_no_grad_keeps_history_and_memory() -> None:
    x = leaf(1.0, 2.0)
    y = x * 1.0
    array = y._data
    with gf.no_grad():
        y += 1.0
    assert y._data is array
    y.sum().backward()
    assert grad_of(x) == [1.0, 1.0]


def test_recorded_in_place_leaves_what_was_saved() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2.0
    z = y * y  # saves y
    y += 1.0  # new memory
    (z + y).sum().backward()
    assert grad_of(x) == [8.0 + 2.0, 16.0 + 2.0]


def test_in_place_of_data_by_a_value_with_history() -> None:
    x, t = leaf(1.0, 2.0), gf.zeros(3)
    t[1:] = x * 2
    t *= 3.0
    assert t.requires_grad and not t.is_leaf
    t.sum().backward()
    assert grad_of(x) == [6.0, 6.0]


# ----------------------------------------------------------------------------------- gradients share memory with nobody
def shares(*tensors: Any) -> bool:
    arrays = [t._data for t in tensors]
    return any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


IDENTITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "reshape": lambda x, y: (x.reshape(2, 2) + y.reshape(2, 2)).reshape(4),
    "positive": lambda x, y: (+x) + (+y),
    "concat": lambda x, y: gf.concat([x, y])[:4] * 1.0 + gf.concat([y, x])[:4],
    "stack": lambda x, y: gf.stack([x, y]).sum(axis=0),
    "transpose": lambda x, y: (x.reshape(2, 2).mT.mT + y.reshape(2, 2)).reshape(4),
    "slice": lambda x, y: x[:] + y[...],
    "astype": lambda x, y: x.astype(gf.float64).astype(gf.float32) + y,
    "expand": lambda x, y: gf.squeeze(gf.expand_dims(x, axis=0), axis=0) + y,
    "broadcast": lambda x, y: gf.broadcast_to(x, (4,)) + gf.broadcast_to(y, (4,)),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("case", IDENTITIES)
def test_gradients_share_no_memory(case: str, create_graph: bool) -> None:
    x, y = leaf(1.0, 2.0, 3.0, 4.0), leaf(5.0, 6.0, 7.0, 8.0)
    big = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    for seed in (gf.tensor([1.0, 2.0, 3.0, 4.0]), big.reshape(4), gf.broadcast_to(gf.tensor(1.0), (4,))):
        for t in (x, y):
            t.grad = None
        out = IDENTITIES[case](x, y)
        out.retain_grad()
        out.backward(seed, create_graph=create_graph)
        assert not shares(x.grad, y.grad, out.grad, seed, x, y)
        before = [np.array(t) for t in (y.grad, seed, y, out.grad)]
        with gf.no_grad():
            x.grad *= 2.0  # type: ignore[operator]
            x.grad[...] = 7.0  # type: ignore[index]
        assert grad_of(x) == [7.0] * 4
        for t, values in zip((y.grad, seed, y, out.grad), before, strict=True):
            assert np.array_equal(np.array(t), values)


def test_a_gradient_is_writable_and_contiguous_enough() -> None:
    x = leaf(1.0, 2.0)
    y = x * 1.0
    y.retain_grad()
    y.sum().backward()
    for t in (x, y):
        assert t.grad is not None
        t.grad[...] = 3.0
        t.grad += 1.0
        assert grad_of(t) == [4.0, 4.0]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_implicit_seed_is_nobodys(shape: tuple[int, ...]) -> None:
    for make in (lambda x: x, lambda x: x.reshape(1), lambda x: x.sum(), lambda x: +x):
        x = gf.ones(shape, requires_grad=True)
        make(x).backward()
        make(x).backward()
        with gf.no_grad():
            x.grad *= 10.0  # type: ignore[operator]
            x.grad[...] = 5.0  # type: ignore[index]
        z = gf.ones(shape, requires_grad=True)
        make(z).backward()
        assert np.array_equal(z.grad, np.ones(shape))  # type: ignore[arg-type]


def test_a_hook_that_writes_into_its_gradient_harms_nobody() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def scribble(g: Tensor) -> None:
        g *= 0.0

    z = x + y
    x.register_hook(scribble)
    z.sum().backward()
    assert grad_of(y) == [1.0, 1.0]
    w = leaf(1.0)
    (w * 1.0).sum().backward()
    assert grad_of(w) == [1.0]


def test_gradients_accumulate_into_new_memory() -> None:
    """Whoever kept the gradient of the first backward keeps its values."""
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    (x * x).sum().backward()
    assert first is not None
    assert first.tolist() == [2.0, 4.0]
    assert grad_of(x) == [4.0, 8.0]


@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (0,)])
def test_an_accumulated_gradient_is_an_array_like_any_other(shape: tuple[int, ...]) -> None:
    x = gf.ones(shape, requires_grad=True)
    for _ in range(2):
        (x * 2.0 + x).sum().backward()
        assert isinstance(x.grad, Tensor)
        assert type(x.grad._data) is np.ndarray
    x.grad += 1.0
    x.grad[...] = x.grad * 2
    assert np.array_equal(x.grad.numpy(), np.full(shape, 14.0))


def test_copies_and_pickles_of_leaves() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    for made in (copy.deepcopy(x), copy.copy(x)):
        assert made.is_leaf and made.requires_grad
        assert grad_of(made) == [2.0, 4.0]
        assert not shares(made, x, made.grad, x.grad)
    back = pickle.loads(pickle.dumps(x))
    assert back.requires_grad and back.tolist() == [1.0, 2.0]
    with pytest.raises(errors.GraphError, match="graph behind it cannot be"):
        copy.deepcopy(x * 2)
    with pytest.raises(errors.GraphError, match="graph behind it cannot be"):
        pickle.dumps(x * 2)


# ------------------------------------------------------------------------------------------------------- two backends
def test_mixed_backends_name_both_and_the_fix() -> None:
    backend = StandIn()
    try:
        here = leaf(1.0, 2.0)
        there = gf.tensor([1.0, 2.0], backend=backend, requires_grad=True)
        calls: list[Callable[[], Any]] = [
            lambda: here * there,
            lambda: there * here,
            lambda: gf.concat([here, there]),
            lambda: gf.where(here > 0, here, there),
            lambda: (here * 2).backward(there.detach()),
            lambda: (here * 2).backward(there.detach(), create_graph=True),
            lambda: setattr(here, "grad", there.detach()),
            lambda: gf.vjp(gf.tanh, here)[1](there.detach()),
        ]
        for call in calls:
            with pytest.raises(errors.BackendMismatchError) as caught:
                call()
            assert "numpy" in text(caught)
            assert "stand-in" in text(caught)
            assert ".to(" in text(caught)
        assert here.grad is None
    finally:
        _NAMESPACES.pop(backend, None)


# ------------------------------------------------------------------------------------------ a primitive from elsewhere
@pytest.fixture
def softsign() -> Iterator[Callable[..., Tensor]]:
    """x / (1 + |x|), declared the way a third party does; taken off again so that the registry is as it was."""

    @gf.primitive("float")
    def thirdparty_softsign(x: Tensor, /, *, scale: float = 1.0) -> Tensor:
        """Softsign s x / (1 + |x|)."""

    gf.defimpl(thirdparty_softsign, lambda xp, x, scale: x * scale / (1 + xp.abs(x)))
    gf.defvjp(thirdparty_softsign, x=lambda xp, g, x, scale: g * scale / xp.square(1 + xp.abs(x)))
    yield thirdparty_softsign
    withdraw("thirdparty_softsign")


def withdraw(name: str) -> None:
    del REGISTRY[name]
    delattr(OPS, name)
    for xp in _NAMESPACES.values():
        for found in [found for found in vars(xp) if found.startswith(name)]:
            delattr(xp, found)


def test_a_third_partys_primitive_goes_everywhere(softsign: Callable[..., Tensor]) -> None:
    def reference(x: Tensor, scale: float = 1.0) -> Tensor:
        return x * scale / (1 + abs(x))

    values = np.array([-2.0, 0.5, 3.0])
    x = gf.tensor(values, requires_grad=True)
    for scale in (1.0, 2.5):
        np.testing.assert_allclose(softsign(x, scale=scale).numpy(), reference(x, scale).numpy(), rtol=1e-15)
    assert softsign(gf.tensor([1, 3])).tolist() == [0.5, 0.75]
    assert softsign(1.0).item() == 0.5
    ours, theirs = softsign, reference
    for _ in range(3):
        ours, theirs = (lambda t, f=f, scale=0.0: gf.grad(lambda u: f(u, scale=2.0).sum())(t) for f in (ours, theirs))
        np.testing.assert_allclose(ours(x).numpy(), theirs(x).numpy(), rtol=1e-12)

    def step(t: Tensor) -> Tensor:
        x.grad = None
        softsign(x * t).sum().backward()
        assert x.grad is not None
        return x.grad

    _, recorded = trace(step, gf.tensor([1.0, 1.0, 1.0]))
    assert "thirdparty_softsign" in str(recorded)
    again = recorded.replay(gf.tensor([2.0, 3.0, 4.0]))[0].numpy()
    np.testing.assert_allclose(again, step(gf.tensor([2.0, 3.0, 4.0])).numpy(), rtol=1e-7)


def test_a_rule_may_be_given_again(softsign: Callable[..., Tensor]) -> None:
    x = gf.tensor(1.0)
    assert gf.grad(softsign)(x).item() == 0.25
    gf.defvjp(softsign, x=lambda xp, g, x: g * 7)
    assert gf.grad(softsign)(x).item() == 7.0
    gf.defimpl(softsign, lambda xp, x, scale: x * 0 + 3)
    assert softsign(x).item() == 3.0


def test_a_third_partys_update_writes_in_place() -> None:
    @gf.primitive("any", writes=2)
    def thirdparty_decay(param: Tensor, count: Tensor, rate: Tensor, /, *, twice: bool) -> None:
        """Write param times rate into param, and count the calls."""

    gf.defimpl(thirdparty_decay, lambda xp, p, n, rate, twice: (p * rate * rate if twice else p * rate, n + 1))
    try:
        w, count, rate = gf.Parameter([2.0, 4.0]), gf.zeros(()), gf.tensor(0.5)
        memory, saved = w._data, (w * w).sum()
        thirdparty_decay(w, count, rate, twice=True)
        assert w._data is memory
        assert (w.tolist(), count.item()) == ([0.5, 1.0], 1.0)
        assert w.version > 0
        with pytest.raises(errors.GraphError, match="changed in place"):
            saved.backward()

        def step(t: Tensor) -> Tensor:
            thirdparty_decay(w, count, t, twice=False)
            return w * 1.0

        _, recorded = trace(step, gf.tensor(2.0))
        before = w.version
        assert recorded.replay(gf.tensor(3.0))[0].tolist() == [3.0, 6.0]
        assert (w.tolist(), count.item()) == ([3.0, 6.0], 3.0)
        assert w.version > before
    finally:
        withdraw("thirdparty_decay")


def test_what_a_declaration_refuses(softsign: Callable[..., Tensor]) -> None:
    with pytest.raises(errors.ArgumentError, match="registered already"):
        gf.primitive("float", name="tanh")(lambda x, /: ...)
    with pytest.raises(errors.ArgumentError, match="a rule may read"):
        gf.defvjp(softsign, x=lambda xp, g, y: g)
    with pytest.raises(errors.ArgumentError, match="operands are"):
        gf.defvjp(softsign, z=lambda xp, g: g)


# ------------------------------------------------------------------------------------------------------------- threads
@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def train(seed: int, steps: int, wide: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    model = nn.MLP([6, wide, 3], nn.Tanh)
    for p in model.parameters():
        p.requires_grad_(False)
        p[...] = draw.normal(size=p.shape).astype(np.float32) * 0.3
        p.requires_grad_()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    x, t = gf.tensor(draw.normal(size=(64, 6)).astype(np.float32)), gf.tensor(draw.integers(0, 3, 64))
    for _ in range(steps):
        loss = gf.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with gf.no_grad():
            assert not model(x).requires_grad
    return [p.numpy().copy() for p in model.parameters()]


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize(("steps", "wide"), [(150, 32), (25, 2000)])
def test_threads_train_as_if_alone(steps: int, wide: int) -> None:
    alone = [train(seed, steps, wide) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(train, range(3), [steps] * 3, [wide] * 3))
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a, b)


def test_threads_share_a_model_for_prediction() -> None:
    model = nn.MLP([6, 300, 3], nn.Sigmoid)
    x = [gf.tensor(rng.normal(size=(200, 6)).astype(np.float32)) for _ in range(4)]
    with gf.no_grad():
        alone = [model(batch).numpy().copy() for batch in x]

    def predict(batch: Tensor) -> np.ndarray:
        with gf.no_grad():
            for _ in range(20):
                out = model(batch)
        return out.numpy().copy()

    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(predict, x), alone, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("create_graph", [False, True])
def test_threads_add_to_one_gradient(create_graph: bool) -> None:
    w = leaf(0.0, 0.0, 0.0)

    def work(_: int) -> None:
        for _ in range(150):
            (w * 1.0).sum().backward(create_graph=create_graph)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert grad_of(w) == [600.0] * 3


@pytest.mark.usefixtures("quick_switches")
def test_threads_write_beside_what_others_saved() -> None:
    memory, x = gf.zeros((3000, 4)), gf.ones(4, requires_grad=True)

    def write(stop: int) -> None:
        for i in range(1, stop):
            row = memory[i]
            row += 1.0

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, 3000)
        while not writing.done():
            y = (x * memory[0]).sum()
            other = gf.zeros(1)
            other += 1.0  # something was written since y was computed, so the sweep must look
            y.backward()
        writing.result()
    assert memory.numpy()[1:].min() == 1.0


def test_first_calls_in_many_threads() -> None:
    """A function is generated at its first call; several threads may make that call at once."""
    barrier = threading.Barrier(4)

    def work(_: int) -> float:
        barrier.wait()
        x = gf.tensor([0.5, 1.0], requires_grad=True)
        gf.where(x > 0, gf.tanh(x) + gf.exp(x), 0.0).sum().backward()
        return x.grad.sum().item()  # type: ignore[union-attr]

    for _ in range(20):
        for name in ("exp", "add", "sum", "where", "tanh"):
            gf.defvjp(REGISTRY[name].function)  # puts the first-call body back
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(work, range(4)))) == 1


def test_a_refused_backward_leaves_the_graph_whole() -> None:
    w, z = gf.tensor([1.0, 2.0], requires_grad=True), gf.tensor([3.0, 4.0])
    loss = (gf.exp(w * z) * 1.0).sum()
    before = loss._node.edges
    with gf.no_grad():
        z += 1.0
    with pytest.raises(errors.GraphError, match="multiply saved `y`"):
        loss.backward()
    assert loss._node.edges is before
    assert w.grad is None


def test_a_graph_that_leads_into_a_freed_one_is_refused_before_anything_happens() -> None:
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    y = gf.exp(w)
    other = (y * w).sum()
    before = other._node.edges
    y.sum().backward()
    assert w.grad is not None
    first = w.grad.numpy().copy()
    with pytest.raises(errors.GraphError, match="freed"):
        other.backward()
    assert other._node.edges is before
    np.testing.assert_array_equal(w.grad.numpy(), first)


def test_an_operand_without_a_rule_is_refused_where_it_requires_grad() -> None:
    from gradflow.primitive import defimpl, defvjp, primitive

    def hypotenuse_of_legs(x: Any, y: Any, /) -> Any: ...

    try:
        hypotenuse = primitive("float")(hypotenuse_of_legs)
        defimpl(hypotenuse, lambda xp, x, y: xp.sqrt(x * x + y * y))
        x, y = gf.tensor(3.0, requires_grad=True), gf.tensor(4.0, requires_grad=True)
        with pytest.raises(errors.GraphError, match="no derivative rule for `x`"):
            hypotenuse(x, y)
        defvjp(hypotenuse, x=lambda xp, g, x, out: g * x / out)
        with pytest.raises(errors.GraphError, match="no derivative rule for `y`"):
            hypotenuse(x, y)
        hypotenuse(x, y.detach()).backward()
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.item(), 0.6, rtol=1e-6)
        with gf.no_grad():
            assert hypotenuse(x, y).item() == 5.0
    finally:
        REGISTRY.pop("hypotenuse_of_legs", None)
        vars(OPS).pop("hypotenuse_of_legs", None)


@pytest.mark.parametrize(("dtypes", "options"), [("flaot", {}), ("float", {"residul": True})])
def test_misspelt_declarations_of_primitives_are_refused(dtypes: Any, options: dict[str, Any]) -> None:
    from gradflow.primitive import primitive

    def stub(x: Any, /) -> Any: ...

    with pytest.raises(errors.ArgumentError, match="primitive stub with"):
        primitive(dtypes, **options)(stub)
    assert "stub" not in REGISTRY


def test_a_decorated_generator_hears_what_is_thrown_and_is_closed_in_its_mode() -> None:
    heard: list[Any] = []

    @gf.no_grad()
    def numbers() -> Generator[Any, Any, str]:
        try:
            for i in range(10):
                try:
                    heard.append((yield i))
                except KeyError as error:
                    heard.append((type(error), gf.is_grad_enabled()))
            return "end"
        finally:
            heard.append(("closed", gf.is_grad_enabled()))

    generator = numbers()
    assert next(generator) == 0
    assert generator.send("a") == 1
    assert generator.throw(KeyError()) == 2
    assert gf.is_grad_enabled()
    generator.close()
    assert heard == ["a", (KeyError, False), ("closed", False)]
    failing = numbers()
    next(failing)
    with pytest.raises(ValueError, match="not heard"):
        failing.throw(ValueError("not heard"))
