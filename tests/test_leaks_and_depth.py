"""What must hold after hours of training: nothing leaks, nothing is too deep, threads do not meet, modes come back.

The engine's own cases are in test_engine; here everything public is gone through by enumeration, and each watch is
shown to see what it watches for.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import errors, nn, optim, tape, training
from gradflow.compiler import trace
from gradflow.data import DataLoader, TensorDataset
from gradflow.mode import get_mode
from gradflow.tensor import Tensor
from tests.test_bad_input import CALLS, OPTIMIZERS, Thing
from tests.test_engine import collector_off, leaf, quick_switches

__all__ = ["quick_switches"]  # a fixture


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """Set aside what there is already: a collection then takes microseconds, not a third of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ---------------------------------------------------------------- freed by reference count, with the collector off
def left_behind(call: Callable[[], list[Any]]) -> list[Any]:
    """What still lives after a call has returned: of the things it names, and of gradflow's objects in cycles."""
    call()  # functions are specialised at their first call, and modules imported
    with collector_off():
        ends = list(map(weakref.ref, call()))
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            cycles = [o for o in gc.garbage if type(o).__module__.split(".")[0] == "gradflow"]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        return [end() for end in ends if end() is not None] + cycles


def parts(t: Any) -> list[Any]:
    """The tensor, its memory, and its leaf of the graph (a node dies with its tensor and knows no weak reference)."""
    return [t, t._data, *([t._node] if isinstance(t._node, tape.Leaf) else [])]


KEPT: list[Any] = []


def planted_in_a_list() -> list[Any]:
    x = leaf(1.0)
    KEPT.append((x * x).sum())
    return parts(x)


def planted_in_a_cycle() -> list[Any]:
    x = leaf(1.0)
    y = x * x
    y.register_hook(lambda g: g * y)  # y → its node → the hook → y
    return parts(y)


def planted_in_a_gradient() -> list[Any]:
    x = leaf(1.0)
    (x * x * x).sum().backward(create_graph=True)  # x → its leaf → its gradient → x
    return parts(x)


@pytest.mark.parametrize("leak", [planted_in_a_list, planted_in_a_cycle, planted_in_a_gradient])
def test_a_planted_leak_is_seen(leak: Callable[[], list[Any]]) -> None:
    try:
        assert left_behind(leak)
    finally:
        KEPT.clear()
        gc.collect()


QUIET = ("save", "load", "training.fit", "training.evaluate", "set_backend", "use_backend", "set_default_dtype")


@pytest.mark.parametrize("name", [name for name in CALLS if name not in (*QUIET, "set_grad_enabled")])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.usefixtures("visitors")
def test_every_function_lets_go_of_its_graph(name: str, create_graph: bool) -> None:
    function, right = CALLS[name]

    def call() -> list[Any]:
        args, settings = right()
        tensors = [t for t in args if isinstance(t, Tensor) and t.dtype.kind == "f" and t.is_leaf]
        for t in tensors:
            t.requires_grad_()
        out = function(*args, **settings)
        ends = [part for t in tensors for part in parts(t)]
        if isinstance(out, Tensor):
            ends += parts(out)
            if out.requires_grad and not out.is_leaf:
                out.sum().backward(create_graph=create_graph)
        for t in [*tensors, *(function.parameters() if isinstance(function, nn.Module) else ())]:
            t.grad = None  # with create_graph it leads back to its leaf
        return ends

    assert not left_behind(call)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in QUIET])
def test_every_error_lets_go_of_what_it_was_about(name: str) -> None:
    """A caught exception holds its frames only as long as it is held itself."""
    function, right = CALLS[name]

    def call() -> list[Any]:
        args, settings = right()
        ends = [part for t in args if isinstance(t, Tensor) for part in parts(t)]
        for place in range(len(args)):
            with suppress(Exception):
                function(*args[:place], Thing(), *args[place + 1 :], **settings)
        return ends

    assert not left_behind(call)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_lets_go_of_everything(name: str) -> None:
    def call() -> list[Any]:
        model = nn.MLP([3, 4, 2], nn.Tanh)
        optimizer = getattr(optim, name)(model.parameters())
        loader = DataLoader(TensorDataset(gf.ones((6, 3)), gf.tensor([0, 1] * 3)), 2, shuffle=True)
        history = training.fit(model, nn.CrossEntropyLoss(), optimizer, loader, epochs=2, progress=False)
        optimizer.load_state_dict(optimizer.state_dict())
        model.load_state_dict(model.state_dict())
        weights = [part for parameter in model.parameters() for part in parts(parameter)]
        return [model, optimizer, loader, history, *weights, *(p.grad for p in model.parameters())]

    assert not left_behind(call)


# ---------------------------------------------------------------- a thousand steps with flat memory
def growth(step: Callable[[], object], steps: int = 1000) -> float:
    """Bytes by which the memory that Python and NumPy hold grows with every step.

    A leak grows in each third of the steps; a dict that is rebuilt or a table of the interpreter's, in one of them.
    """
    for _ in range(20):
        step()
    tracemalloc.start()
    try:
        for _ in range(5):
            step()
        grown = []
        for _ in range(3):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(steps // 3):
                step()
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
        return min(grown) / (steps // 3)
    finally:
        tracemalloc.stop()


SMALLEST = 16  # bytes of the smallest object there is: less for a step is none kept


def a_step(name: str) -> Callable[[], Tensor]:
    model = nn.MLP([4, 8, 3], nn.Tanh)
    optimizer = getattr(optim, name)(model.parameters(), lr=0.01)
    x, t = gf.random.normal((16, 4)), gf.arange(16) % 3

    def step() -> Tensor:
        loss = gf.cross_entropy(model(x + gf.random.normal((16, 4))), t)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_thousand_steps_take_no_memory(name: str) -> None:
    assert growth(a_step(name)) < SMALLEST
    assert len(tape.writes.owners) < 1000


def test_a_thousand_steps_that_keep_their_losses_are_seen() -> None:
    """The test of the test: the commonest leak, `total += loss`, and one loss kept a step."""
    step, losses = a_step("SGD"), list[Tensor]()
    assert growth(lambda: losses.append(step().detach()), 150) > 100
    total = gf.zeros(())
    w = leaf(1.0)

    def sum_up() -> None:
        nonlocal total
        total = total + (w * w).sum()

    assert growth(sum_up, 150) > 100


def higher_order() -> Callable[[], object]:
    x = leaf(0.1)
    return lambda: (gf.grad(gf.grad(gf.tanh))(x[0]), gf.jvp(gf.exp, (x,), (x,)))


def written_in_place() -> Callable[[], object]:
    state, w = gf.zeros(4), leaf(1.0)

    def step() -> None:
        y = gf.zeros(4)
        for i in range(4):
            y[i] = w[0] * i
        y.sum().backward()
        state[...] = y.detach()
        w.grad = None

    return step


def refused() -> Callable[[], object]:
    x = leaf(1.0, 2.0)

    def step() -> None:
        for wrong in (lambda: x + gf.ones(3), lambda: x.sum(axis=2), (x * 2).backward, lambda: x + None):
            with suppress(errors.GradflowError):
                wrong()

    return step


def traced() -> Callable[[], object]:
    w = leaf(1.0, 2.0)
    _, recorded = trace(lambda t: gf.exp(t * w).sum(), gf.ones(2))
    return lambda: (recorded.replay(gf.ones(2)), trace(lambda t: t * w, gf.ones(2)))


@pytest.mark.parametrize("make", [higher_order, written_in_place, refused, traced])
def test_other_steps_take_no_memory(make: Callable[[], Callable[[], object]]) -> None:
    assert growth(make(), 500) < 2 * SMALLEST  # an array or Tensor kept would be 100 and more


# ---------------------------------------------------------------- chains of a hundred thousand operations
DEEP = 100_000


@pytest.fixture
def shallow_stack() -> Iterator[None]:
    """A limit far below the depth of the chains: recursion of any kind would show."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    yield
    assert sys.getrecursionlimit() == 400
    sys.setrecursionlimit(limit)


def chain(x: Tensor, depth: int = DEEP) -> Tensor:
    """x + depth, one at a time."""
    y = x
    for _ in range(depth):
        y = y + 1.0
    return y


def doubled(x: Tensor) -> Tensor:
    """x², at the end of a chain: its derivative goes all the way."""
    return (chain(x, DEEP // 2) - float(DEEP // 2)) ** 2


def test_recursion_would_be_seen(shallow_stack: None) -> None:
    """The test of the test: a recursive walk of such a graph fails."""

    def depth(node: Any) -> int:
        return 1 + max((depth(edge[0]) for edge in node.edges if edge), default=0)

    with pytest.raises(RecursionError):
        depth(chain(leaf(1.0), 1000)._node)


@pytest.mark.usefixtures("shallow_stack")
class TestDeep:
    """Forward, backward and away, without recursion and without the collector."""

    def test_backward_with_a_created_graph_twice(self) -> None:
        with collector_off():
            x = gf.tensor(3.0, dtype=gf.float64, requires_grad=True)
            y = doubled(x)
            y.backward(create_graph=True)
            g = x.grad
            x.grad = None
            assert g is not None
            ends = [weakref.ref(y), weakref.ref(g), weakref.ref(y._data), weakref.ref(g._data)]
            g.backward()
            assert (g.item(), x.grad.item()) == (6.0, 2.0)  # type: ignore[union-attr]
            del y, g
            assert [end() for end in ends] == [None] * 4

    def test_grad_and_the_derivative_of_grad(self) -> None:
        x = gf.tensor(3.0, dtype=gf.float64)
        assert gf.grad(doubled)(x).item() == 6.0
        assert gf.grad(gf.grad(doubled))(x).item() == 2.0

    def test_jvp_and_hvp(self) -> None:
        x, v = gf.tensor(3.0, dtype=gf.float64), gf.tensor(0.5, dtype=gf.float64)
        value, tangent = gf.jvp(doubled, (x,), (v,))
        assert (value.item(), tangent.item()) == (9.0, 3.0)
        assert gf.hvp(doubled, x, v).item() == 1.0

    def test_views_of_views(self) -> None:
        with collector_off():
            x = leaf(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
            y = x.reshape(2, 3)
            for _ in range(DEEP // 4):
                y = y.mT[::-1].reshape(2, 3)[...]
            last = weakref.ref(y._data)
            (y * gf.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).sum().backward()
            assert sorted(x.grad.tolist()) == [0.0] * 5 + [1.0]  # type: ignore[union-attr]
            at = x.grad.tolist().index(1.0)  # type: ignore[union-attr]
            assert y[0, 0].item() == x[at].item()
            del y
            assert last() is None

    def test_recorded_writes_into_one_tensor(self) -> None:
        with collector_off():
            x = leaf(1.0)
            y = gf.zeros(3)
            for i in range(DEEP // 10):
                y[i % 3] = x[0] * 2.0
                y += 0.0
            last = weakref.ref(y._data)
            y.sum().backward()
            assert x.grad.tolist() == [6.0]  # type: ignore[union-attr]
            del y
            assert last() is None

    def test_a_chain_is_traced_and_replayed(self) -> None:
        out, recorded = trace(lambda t: chain(t, DEEP // 10), gf.tensor(0.0))
        assert out.item() == DEEP // 10
        assert recorded.replay(gf.tensor(1.0))[0].item() == DEEP // 10 + 1
        del recorded

    def test_a_part_of_a_deep_graph_is_refused_after_it_was_freed(self) -> None:
        x = leaf(1.0)
        y = chain(x)
        y.sum().backward()
        with pytest.raises(errors.GraphError, match="freed"):
            (y * 2.0).sum().backward()

    def test_printing_and_copying_need_no_depth(self) -> None:
        y = chain(leaf(1.0), DEEP // 10)
        assert repr(y).startswith("tensor([10001.]")
        assert y.detach().copy().tolist() == [10001.0]


# ---------------------------------------------------------------- threads that train at once
def trained(name: str, seed: int) -> list[bytes]:
    """Weights, losses and numbers drawn, of a model that is trained on its own data, noise and order."""
    generator = gf.Generator(seed)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    for p in model.parameters():
        nn.init.uniform_(p, -0.3, 0.3, generator=generator)
    x, t = gf.random.normal((32, 5), generator=generator), gf.arange(32) % 3
    loader = DataLoader(TensorDataset(x, t), 8, shuffle=True, seed=seed)
    optimizer = getattr(optim, name)(model.parameters(), lr=0.02)
    seen = []
    for _ in range(6):
        for inputs, target in loader:
            loss = gf.cross_entropy(model(inputs + 0.1 * gf.random.normal(inputs.shape, generator=generator)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.numpy().tobytes())
            with gf.no_grad():
                assert not model(inputs).requires_grad
            assert gf.is_grad_enabled()
        with gf.use_backend("numpy"):
            seen.append(gf.random.uniform(3, generator=generator).numpy().tobytes())
    return [*seen, *(p.numpy().tobytes() for p in model.parameters())]


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_models_trained_at_once_end_as_alone(name: str) -> None:
    alone = [trained(name, seed) for seed in (1, 2)]
    assert alone[0] != alone[1]
    assert trained(name, 1) == alone[0]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(trained, [name] * 4, [1, 2, 1, 2]))
    assert together == alone * 2


def test_threads_that_share_a_generator_are_seen() -> None:
    """The test of the test: numbers drawn from one stream by two threads are not those drawn alone."""
    shared = gf.Generator(0)

    def draw(_: int) -> list[bytes]:
        return [gf.random.uniform(4, generator=shared).numpy().tobytes() for _ in range(50)]

    alone = draw(0)
    shared.manual_seed(0)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(draw, range(2))) != [alone, alone]


# ---------------------------------------------------------------- the mode of recording comes back after exceptions
class StoppedError(Exception):
    """What the functions below raise."""


def fail(*_: Any, **__: Any) -> Any:
    raise StoppedError


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def failing_rule(failure: Callable[..., Any], create_graph: bool) -> Callable[[], object]:
    def call() -> None:
        square = gf.custom_vjp(lambda t: t * t)
        square.defvjp(lambda t: (t * t, t), failure)
        square(leaf(1.0)).sum().backward(create_graph=create_graph)

    return call


def failing_forward(failure: Callable[..., Any]) -> Callable[[], object]:
    def call() -> None:
        square = gf.custom_vjp(failure)
        square.defvjp(failure, failure)
        square(leaf(1.0))

    return call


def hooked(failure: Callable[..., Any], use: Callable[[Tensor], object]) -> Callable[[], object]:
    def call() -> None:
        x = leaf(1.0, 2.0)
        x.register_hook(failure)
        use(x)

    return call


def failing_pullback(failure: Callable[..., Any]) -> Callable[[], object]:
    def call() -> None:
        square = gf.custom_vjp(lambda t: t * t)
        square.defvjp(lambda t: (t * t, t), failure)
        _, pullback = gf.vjp(square, leaf(1.0))
        pullback(gf.ones(1))

    return call


class Failing(nn.Module):
    """A module that raises when it is trained, or when it is evaluated, or both."""

    def __init__(self, failure: Callable[..., Any], training_only: bool) -> None:
        self.inner, self.failure, self.training_only = nn.Linear(3, 2), failure, training_only

    def forward(self, x: Tensor) -> Any:
        if self.training or not self.training_only:
            self.failure()
        return self.inner(x)


def batches(failure: Callable[..., Any] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    yield gf.ones((2, 3)), gf.ones((2, 2))
    if failure is not None:
        failure()


class Items:
    """A data set whose second item raises."""

    def __init__(self, failure: Callable[..., Any]) -> None:
        self.failure = failure

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.failure() if index else (np.ones(3), 0)


def fitting(**changes: Any) -> Callable[[], object]:
    def call() -> None:
        model = changes.pop("model", None) or nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        changes.setdefault("loss_fn", nn.MSELoss())
        train = [*batches()] if "train" not in changes else changes.pop("train")
        training.fit(model, changes.pop("loss_fn"), optimizer, train, epochs=1, progress=False, **changes)

    return call


def generator_thrown_into(failure: Callable[..., Any]) -> Callable[[], object]:
    @gf.no_grad()
    def numbers() -> Iterator[int]:
        yield 1
        failure()

    return lambda: list(numbers())


def in_a_block(manager: Callable[[], Any], failure: Callable[..., Any]) -> Callable[[], object]:
    def call() -> None:
        with gf.no_grad(), manager(), gf.enable_grad(), manager():
            failure()

    return call


def decorated(manager: Callable[[], Any], failure: Callable[..., Any]) -> Callable[[], object]:
    def call() -> None:
        manager()(failure)()

    return call


def entries(failure: Callable[..., Any]) -> dict[str, Callable[[], object]]:
    """Everything that sets the mode for a while, with a failure inside."""
    x = leaf(1.0, 2.0)
    one = gf.tensor(2.0)
    managers = {
        "no_grad": gf.no_grad,
        "enable_grad": gf.enable_grad,
        "set_grad_enabled(False)": lambda: gf.set_grad_enabled(False),
        "set_grad_enabled(True)": lambda: gf.set_grad_enabled(True),
    }
    both = {"a block under": in_a_block, "a function under": decorated}
    return {
        **{f"{kind} {name}": make(m, failure) for kind, make in both.items() for name, m in managers.items()},
        "a generator under no_grad": generator_thrown_into(failure),
        "grad": lambda: gf.grad(failure)(x),
        "value_and_grad": lambda: gf.value_and_grad(failure)(x),
        "grad of grad": lambda: gf.grad(gf.grad(failure))(one),
        "vjp": lambda: gf.vjp(failure, x),
        "the pullback of vjp": failing_pullback(failure),
        "jvp": lambda: gf.jvp(failure, (x,), (x,)),
        "hvp": lambda: gf.hvp(failure, x, x),
        "jacobian": lambda: gf.jacobian(failure)(x),
        "hessian": lambda: gf.hessian(failure)(x),
        "custom_vjp, forward": failing_forward(failure),
        "custom_vjp, backward": failing_rule(failure, False),
        "custom_vjp, backward with create_graph": failing_rule(failure, True),
        "a hook": hooked(failure, lambda t: (t * 2).sum().backward()),
        "a hook with create_graph": hooked(failure, lambda t: (t * 2).sum().backward(create_graph=True)),
        "trace": lambda: trace(failure, x),
        "trace, under no_grad inside": lambda: trace(gf.no_grad()(failure), x),
        "trace in a trace": lambda: trace(lambda t: trace(failure, t), x),
        "trace of a backward": lambda: trace(lambda t: hooked(failure, lambda s: (s * t).sum().backward())(), x),
        "the closure of an optimizer": lambda: optim.SGD([leaf(1.0)]).step(failure),
        "fit, in the model": fitting(model=Failing(failure, False)),
        "fit, in the loss": fitting(loss_fn=failure),
        "fit, in the batches": fitting(train=batches(failure)),
        "fit, in the validation": fitting(validation=batches(failure)),
        "fit, in a metric": fitting(validation=[*batches()], metrics={"m": failure}),
        "fit, in the callback": fitting(callback=failure),
        "evaluate, in the model": lambda: training.evaluate(Failing(failure, False), nn.MSELoss(), [*batches()]),
        "evaluate, in the loss": lambda: training.evaluate(nn.Linear(3, 2), failure, [*batches()]),
        "evaluate, in the batches": lambda: training.evaluate(nn.Linear(3, 2), nn.MSELoss(), batches(failure)),
        "a data loader": lambda: list(DataLoader(Items(failure), 2)),
        "functional_call": lambda: nn.functional_call(Failing(failure, False), {"inner.bias": gf.ones(2)}, x),
        "apply": lambda: nn.Linear(1, 1).apply(failure),
    }


OUTSIDE: dict[str, Callable[[], Any]] = {"recording": gf.enable_grad, "not recording": gf.no_grad}


@pytest.mark.parametrize("failure", [fail, interrupt])
@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("entry", entries(fail))
def test_the_mode_comes_back(entry: str, outside: str, failure: Callable[..., Any]) -> None:
    with OUTSIDE[outside]():
        before, backend = get_mode(), gf.get_backend()
        caught: BaseException | None = None
        try:
            entries(failure)[entry]()
        except (StoppedError, KeyboardInterrupt) as error:
            caught = error
        except errors.GraphError as error:  # nothing was recorded, so nothing is swept
            assert outside == "not recording"
            caught = error
        swallowed = failure is interrupt and entry.startswith("fit")  # fit ends quietly and keeps what there is
        assert caught is not None or swallowed
        assert get_mode() is before
        assert gf.get_backend() is backend
    assert gf.is_grad_enabled()


def test_the_entries_are_all_there() -> None:
    """A transform or a mode that is new needs an entry above."""
    known = " ".join(entries(fail))
    transforms = [n for n in gf.transforms.__all__ if n != "flatten" and callable(getattr(gf.transforms, n))]
    managers = [name for name in gf.__all__ if name in ("no_grad", "enable_grad", "set_grad_enabled")]
    assert all(name in known for name in [*transforms, *managers])
