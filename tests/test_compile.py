"""`gf.compile`: what a program computes, writes and leaves behind is what eager Python would, call after call."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.compiler import Compiled
from gradflow.tensor import Tensor
from gradflow.testing.program import Program, programs

rng = np.random.default_rng(0)
BATCHES = [(rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 3, 8)) for _ in range(6)]


class Setup:
    """A model, an optimizer and a loss, each made with the same seed."""

    def __init__(self, optimizer: Callable[..., Any] = optim.Adam, **settings: Any) -> None:
        gf.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 0.05, **settings})
        self.loss_fn = nn.CrossEntropyLoss()


def step_of(s: Setup) -> Callable[..., Tensor]:
    def step(x: Tensor, t: Tensor) -> Tensor:
        loss = s.loss_fn(s.model(x), t)
        s.optimizer.zero_grad()
        loss.backward()
        s.optimizer.step()
        return loss

    return step


def state_of(s: Setup) -> list[np.ndarray]:
    """Everything a step leaves: parameters, gradients, moments, step counts."""
    params = list(s.model.parameters())
    found = [p.numpy().copy() for p in params]
    found += [np.full(1, np.nan) if p.grad is None else p.grad.numpy().copy() for p in params]
    for entry in s.optimizer.state_dict()["state"].values():
        found += [np.array(value) for value in entry.values()]
    return found


def same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=tolerance, atol=tolerance)


def same_states(a: Setup, b: Setup, tolerance: float = 1e-5) -> None:
    for x, y in zip(state_of(a), state_of(b), strict=True):
        assert x.shape == y.shape
        same(x, y, tolerance)


def text(caught: Any) -> str:
    return str(caught.value)


def count(compiled: Any) -> int:
    return len(compiled._specialisations)


def compare(
    make_step: Callable[[Setup], Callable[..., Any]] = step_of,
    between: Callable[[Setup, int], Any] = lambda s, i: None,
    *,
    calls: int = 6,
    specialisations: int | None = 1,
    batches: Any = BATCHES,
    **kwargs: Any,
) -> Any:
    """Run a step eagerly and compiled, with something done before every call; results and all states must agree."""
    eager, compiled = Setup(**kwargs), Setup(**kwargs)
    plain, fast = make_step(eager), gf.compile(make_step(compiled))
    for i in range(calls):
        for s in (eager, compiled):
            gf.manual_seed(i)
            between(s, i)
        x, t = batches[i % len(batches)]
        gf.manual_seed(i)
        expected = plain(gf.tensor(x), gf.tensor(t))
        gf.manual_seed(i)
        got = fast(gf.tensor(x), gf.tensor(t))
        if isinstance(expected, Tensor):
            assert (got.shape, got.dtype, got.requires_grad) == (expected.shape, expected.dtype, expected.requires_grad)
            same(got, expected)
        same_states(eager, compiled)
    if specialisations is not None:
        assert count(fast) == specialisations, fast.explain()
    return fast


# ------------------------------------------------------------------------------------------------------- the usual step
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": optim.SGD},
    "momentum": {"optimizer": optim.SGD, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": optim.Adam},
    "adamw": {"optimizer": optim.AdamW},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_usual_step_compiles_once_and_is_eager(name: str) -> None:
    compare(**OPTIMIZERS[name])


def test_a_step_against_pytorch() -> None:
    torch = pytest.importorskip("torch")
    s = Setup()
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    theirs.load_state_dict({name: torch.tensor(np.array(p)) for name, p in s.model.state_dict().items()})
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05)
    step = gf.compile(step_of(s))
    for x, t in BATCHES * 2:
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        same(step(gf.tensor(x), gf.tensor(t)), loss.detach().numpy(), 1e-4)
        for p, q in zip(s.model.parameters(), theirs.parameters(), strict=True):
            same(p, q.detach().numpy(), 1e-4)
            same(p.grad, q.grad.numpy(), 1e-4)
    assert count(step) == 1


def test_another_shape_is_another_specialisation() -> None:
    short = [(x[:5], t[:5]) for x, t in BATCHES]
    compare(batches=[BATCHES[0], BATCHES[1], short[2]], calls=9, specialisations=2)


def test_numpy_arrays_are_arguments_like_tensors() -> None:
    eager, compiled = Setup(), Setup()
    plain, fast = step_of(eager), gf.compile(step_of(compiled))
    for x, t in BATCHES:
        same(fast(x, t), plain(gf.tensor(x), gf.tensor(t)))
    same_states(eager, compiled)
    assert count(fast) == 1


def test_an_argument_need_not_be_contiguous() -> None:
    turned = [(np.asfortranarray(x), t[::-1]) for x, t in BATCHES]
    compare(batches=[BATCHES[0], turned[1], BATCHES[2], turned[3]])


def test_results_are_fresh_at_every_call() -> None:
    w = gf.Parameter([1.0, 2.0])

    @gf.compile
    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x * w
        return y, y, x[:1], w * 1

    kept = [f(gf.tensor([float(i), 1.0])) for i in range(4)]
    for i, (y, again, view, copied) in enumerate(kept):
        assert y.tolist() == [i, 2.0]
        assert again.tolist() == y.tolist()
        assert view.tolist() == [i]
        assert copied.tolist() == [1.0, 2.0]
    arrays = [t._data for out in kept for t in out]
    assert all(not np.shares_memory(a, b) for k, a in enumerate(arrays) for b in arrays[:k] if a is not b)
    with gf.no_grad():
        kept[-1][3][...] = 100.0
    assert w.tolist() == [1.0, 2.0]


# ------------------------------------------------------------------------------------------------ arguments and results
class Batch(NamedTuple):
    x: Any
    scale: float


@dataclasses.dataclass
class Record:
    x: Any
    name: str = "record"


def nested(a: Any, *, more: Any) -> Any:
    total = a[0] * 2 + a[1]["k"] * more.x + more.scale
    return {"sum": total, "pair": [total.sum(), ("text", 3, None)], "named": Batch(total, 1.5)}


def test_nested_containers_in_and_out() -> None:
    compiled = gf.compile(nested)
    for i in range(4):
        x = gf.tensor([float(i), 1.0])
        arguments = ((x, {"k": np.full(2, i, np.float32)}),)
        got = compiled(*arguments, more=Batch(x + 1, 0.5))
        expected = nested(((x, {"k": gf.tensor(arguments[0][1]["k"])}))[:], more=Batch(x + 1, 0.5))
        assert type(got["named"]) is Batch
        assert got["pair"][1] == ("text", 3, None)
        same(got["sum"], expected["sum"])
        same(got["pair"][0], expected["pair"][0])
        assert got["named"].scale == 1.5
        same(got["named"].x, expected["sum"])
    assert count(compiled) == 1
    compiled((x, {"k": x}), more=Batch(x, 0.25))
    assert count(compiled) == 2  # another static value
    same(compiled((x, {"k": x}), more=Batch(x, 0.25))["sum"], x.numpy() * 2 + x.numpy() ** 2 + 0.25)


def test_dataclasses_in_and_out() -> None:
    @gf.compile
    def f(record: Record) -> Record:
        return Record(record.x * 2, record.name + "!")

    for i in range(3):
        got = f(Record(gf.tensor([float(i)])))
        assert (got.x.tolist(), got.name) == ([2.0 * i], "record!")
    assert count(f) == 1
    assert f(Record(gf.tensor([1.0]), "b")).name == "b!"


def test_static_values_are_told_apart_by_type_and_value() -> None:
    @gf.compile
    def f(x: Tensor, n: Any) -> Any:
        return x * n, n

    x = gf.tensor([1, 2])
    for n in (2, 2.0, True, 3, 2, 0.0, -0.0, float("nan")):
        got, static = f(x, n)
        expected = x * n
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(np.array(got), np.array(expected))
        assert repr(static) == repr(n)
        assert np.signbit(np.array(got)).tolist() == np.signbit(np.array(expected)).tolist()
    assert count(f) == 7


def test_positional_and_named_arguments() -> None:
    @gf.compile
    def f(x: Tensor, y: Tensor | None = None, *rest: Tensor, k: float = 1.0) -> Tensor:
        return (x if y is None else x + y) * k + sum(rest, gf.tensor(0.0))

    a, b = gf.tensor([1.0]), gf.tensor([10.0])
    for _ in range(2):
        assert f(a).tolist() == [1.0]
        assert f(a, b).tolist() == [11.0]
        assert f(a, y=b).tolist() == [11.0]
        assert f(x=b, y=a, k=2.0).tolist() == [22.0]
        assert f(y=a, x=b, k=2.0).tolist() == [22.0]
        assert f(a, b, a, b).tolist() == [22.0]
    with pytest.raises(TypeError):
        f()


def test_a_result_that_is_an_argument_or_a_parameter_is_that_object() -> None:
    w = gf.Parameter([1.0])

    @gf.compile
    def f(x: Tensor) -> Any:
        return x, w, (x * 2, None)

    for _ in range(3):
        x = gf.tensor([3.0])
        same_x, same_w, (y, none) = f(x)
        assert same_x is x
        assert same_w is w
        assert y.tolist() == [6.0]
        assert none is None


# ----------------------------------------------------------------------------------------------- gradients that persist
def without_zero(s: Setup) -> Callable[..., Tensor]:
    def step(x: Tensor, t: Tensor) -> Tensor:
        loss = s.loss_fn(s.model(x), t)
        loss.backward()
        return loss

    return step


def test_gradients_accumulate_over_calls() -> None:
    compare(without_zero, specialisations=2)  # without a gradient at the beginning, and with one


def test_gradients_are_cleared_outside() -> None:
    compare(without_zero, lambda s, i: s.optimizer.zero_grad())


def test_gradients_are_cleared_outside_every_third_call() -> None:
    def between(s: Setup, i: int) -> None:
        if i % 3 == 0:
            s.optimizer.step()
            s.optimizer.zero_grad()

    compare(without_zero, between, calls=9, specialisations=2)


def test_a_gradient_of_the_users_own_is_added_to_and_stays_as_it_is() -> None:
    w = gf.Parameter([1.0, 2.0])

    @gf.compile
    def step(x: Tensor) -> Tensor:
        loss = (w * x).sum()
        loss.backward()
        return loss

    mine = gf.tensor([100.0, 200.0])
    for _ in range(3):
        w.grad = mine
        step(gf.tensor([1.0, 1.0]))
        assert w.grad is not None
        assert w.grad.tolist() == [101.0, 201.0]
        assert mine.tolist() == [100.0, 200.0]


def test_accumulation_inside_a_call() -> None:
    def accumulating(s: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            s.optimizer.zero_grad()
            for half in (slice(0, 4), slice(4, 8)):
                loss = s.loss_fn(s.model(x[half]), t[half]) / 2
                loss.backward()
            s.optimizer.step()
            return loss

        return step

    compare(accumulating)


def test_zero_grad_at_the_end_leaves_none() -> None:
    def last(s: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            loss = s.loss_fn(s.model(x), t)
            loss.backward()
            s.optimizer.step()
            s.optimizer.zero_grad()
            return loss

        return step

    fast = compare(last)
    assert "assign" not in {e.primitive.name for e in fast._specialisations[0].recording.equations}


def test_zeros_in_place_of_none() -> None:
    def zeros(s: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            loss = s.loss_fn(s.model(x), t)
            s.optimizer.zero_grad(set_to_none=False)
            loss.backward()
            s.optimizer.step()
            return loss

        return step

    compare(zeros, specialisations=2)


@pytest.mark.parametrize("how", ["norm", "value", "by hand"])
def test_gradient_clipping_inside(how: str) -> None:
    def clipping(s: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            loss = s.loss_fn(s.model(x), t)
            s.optimizer.zero_grad()
            loss.backward()
            if how == "norm":
                loss = loss.detach() + nn.utils.clip_grad_norm_(s.model.parameters(), 0.1)
            elif how == "value":
                nn.utils.clip_grad_value_(s.model.parameters(), 0.01)
            else:
                for p in s.model.parameters():
                    p.grad = p.grad * 0.5
            s.optimizer.step()
            return loss

        return step

    compare(clipping)


def test_a_gradient_that_a_call_leaves_is_overwritten_by_the_next() -> None:
    w = gf.Parameter([1.0])

    @gf.compile
    def step(x: Tensor) -> None:
        w.grad = None
        (w * x).sum().backward()

    step(gf.tensor([1.0]))
    kept, copied = w.grad, w.grad.copy()
    step(gf.tensor([5.0]))
    assert w.grad is kept
    assert (kept.tolist(), copied.tolist()) == ([5.0], [1.0])


def test_gradients_that_change_places() -> None:
    a, b = gf.Parameter([1.0]), gf.Parameter([1.0])

    @gf.compile
    def step(x: Tensor) -> Tensor:
        if a.grad is None:
            (a * x + b * x * 10).sum().backward()
        else:
            a.grad, b.grad = b.grad, a.grad
        return a.grad + 0

    step(gf.tensor([1.0]))
    for i in range(4):
        step(gf.tensor([1.0]))
        assert (a.grad.item(), b.grad.item()) == ((10.0, 1.0) if i % 2 == 0 else (1.0, 10.0))


def test_the_gradient_of_a_turned_weight_is_turned() -> None:
    s = Setup()
    step = gf.compile(step_of(s))
    for x, t in BATCHES[:2]:
        step(x, t)
    weight = s.model[0].weight
    assert weight._data.flags.f_contiguous
    assert weight.grad._data.flags.f_contiguous


def test_a_returned_gradient_is_fresh() -> None:
    w = gf.Parameter([2.0])

    @gf.compile
    def step(x: Tensor) -> tuple[Any, Any]:
        old = w.grad
        w.grad = None
        (w * x).sum().backward()
        return old, w.grad

    assert step(gf.tensor([1.0]))[0] is None
    olds, news = zip(*(step(gf.tensor([float(i)])) for i in range(2, 5)), strict=True)
    assert [t.item() for t in olds] == [1.0, 2.0, 3.0]
    assert [t.item() for t in news] == [2.0, 3.0, 4.0]


def test_an_argument_that_requires_grad_gets_its_gradient() -> None:
    def attack(x: Tensor) -> Tensor:
        loss = (x * x).sum()
        loss.backward()
        return loss

    fast = gf.compile(attack)
    for i in range(4):
        x, y = (gf.tensor([float(i), 2.0], requires_grad=True) for _ in range(2))
        for _ in range(2):
            same(fast(x), attack(y))
            same(x.grad, y.grad)
    assert count(fast) == 2
    plain = gf.tensor([1.0, 2.0])
    with pytest.raises(errors.GraphError, match="does not require grad"):
        fast(plain)


def test_backward_on_a_result_names_the_compiled_function() -> None:
    w = gf.Parameter([1.0, 2.0])
    predict = gf.compile(lambda x: (w * x).sum())
    for _ in range(3):
        loss = predict(gf.tensor([1.0, 1.0]))
        assert loss.requires_grad
        assert loss.item() == 3.0
        with pytest.raises(errors.GraphError, match="backward\\(\\) through the edge of a compiled function"):
            (loss * 2).backward()
        with pytest.raises(errors.GraphError, match="inside the compiled function"):
            gf.grad(lambda v: predict(v) + v.sum())(gf.tensor([1.0, 1.0]))
    with gf.no_grad():
        assert not predict(gf.tensor([1.0, 1.0])).requires_grad
    outside = gf.tensor([1.0, 1.0], requires_grad=True) * 2

    @gf.compile
    def inside(x: Tensor) -> None:
        (x * x).sum().backward()

    with pytest.raises(errors.GraphError, match="edge of a compiled function"):
        inside(outside)


def test_a_gradient_through_a_compiled_function_is_an_error_and_not_zero() -> None:
    f = gf.compile(lambda x: (x * x).sum())
    for _ in range(2):
        with pytest.raises(errors.GraphError, match="edge of a compiled function"):
            gf.grad(f)(gf.tensor([1.0, 2.0]))


# ----------------------------------------------------------------------------------------------------- more than a step
def test_value_and_grad_hvp_and_penalty_inside() -> None:
    def functions(w: Tensor) -> Callable[[Tensor], Any]:
        def f(x: Tensor) -> Any:
            value, g = gf.value_and_grad(lambda y: (gf.tanh(y) * y).sum())(x)
            second = gf.hvp(lambda y: (y**3).sum(), x, g)
            slope = gf.grad(lambda y: (gf.tanh(y * w) ** 2).sum())(x.detach().requires_grad_())
            loss = value + (slope**2).sum()
            w.grad = None
            loss.backward()
            with gf.no_grad():
                w.__isub__(0.1 * w.grad)
            return value, g, second, gf.jacobian(lambda y: y * y)(x)

        return f

    a, b = (gf.Parameter(np.array([0.5, -0.3])) for _ in range(2))
    plain, fast = functions(a), gf.compile(functions(b))
    for _ in range(5):
        x = rng.normal(size=2)
        for got, expected in zip(fast(gf.tensor(x)), plain(gf.tensor(x)), strict=True):
            same(got, expected, 1e-12)
        same(a, b, 1e-12)
        same(a.grad, b.grad, 1e-12)
    assert count(fast) == 1


def test_create_graph_inside() -> None:
    def penalised(s: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            loss = s.loss_fn(s.model(x), t)
            (g,) = gf.vjp(lambda y: s.loss_fn(s.model(y), t), x)[1](gf.tensor(1.0))
            s.optimizer.zero_grad()
            (loss + (g * g).sum()).backward()
            s.optimizer.step()
            return loss

        return step

    compare(penalised)


def test_a_closure_for_the_optimizer() -> None:
    def closing(s: Setup) -> Callable[..., Any]:
        def step(x: Tensor, t: Tensor) -> Any:
            def closure() -> Tensor:
                loss = s.loss_fn(s.model(x), t)
                s.optimizer.zero_grad()
                loss.backward()
                return loss

            return s.optimizer.step(closure)

        return step

    compare(closing)


def test_random_numbers_are_those_of_eager() -> None:
    def noisy(s: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            keep = (gf.random.uniform(x.shape) < 0.7).astype(gf.float32)
            loss = s.loss_fn(s.model(x * keep + gf.random.normal(x.shape) * 0.1), t)
            s.optimizer.zero_grad()
            loss.backward()
            s.optimizer.step()
            return loss

        return step

    compare(noisy)
    f = gf.compile(lambda: gf.random.normal(3))
    gf.manual_seed(3)
    drawn = [f().tolist() for _ in range(3)] + [gf.random.normal(3).tolist()]
    gf.manual_seed(3)
    assert drawn == [gf.random.normal(3).tolist() for _ in range(4)]
    own = gf.Generator(5)
    g = gf.compile(lambda: gf.random.uniform(2, generator=own))
    drawn = [g().tolist() for _ in range(3)]
    own.manual_seed(5)
    assert drawn == [gf.random.uniform(2, generator=own).tolist() for _ in range(3)]
    own.set_state(own.get_state())
    own.manual_seed(5)
    assert g().tolist() == drawn[0]
    assert count(g) == 1


def test_a_running_mean() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            self.mean = nn.Buffer(gf.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                with gf.no_grad():
                    self.mean.__imul__(0.9)
                    self.mean += 0.1 * x.mean(axis=0)
            return x - self.mean

    eager, compiled = Norm(), Norm()
    fast = gf.compile(compiled)
    for i in range(9):
        for m in (eager, compiled):
            m.train(i % 3 != 2)
        same(fast(gf.tensor(BATCHES[i % 6][0])), eager(gf.tensor(BATCHES[i % 6][0])))
        same(compiled.mean, eager.mean)
    assert count(fast) == 2


def test_two_models_one_step_and_two_steps_one_model() -> None:
    def gan(s: Setup, other: Setup) -> Callable[..., tuple[Tensor, Tensor]]:
        def step(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            first = s.loss_fn(s.model(x) + other.model(x).detach(), t)
            s.optimizer.zero_grad()
            first.backward()
            s.optimizer.step()
            second = s.loss_fn(other.model(x), t)
            other.optimizer.zero_grad()
            second.backward()
            other.optimizer.step()
            return first, second

        return step

    a, b = (Setup(), Setup(optim.SGD)), (Setup(), Setup(optim.SGD))
    plain, fast = gan(*a), gf.compile(gan(*b))
    simple = gf.compile(step_of(b[0]))
    for x, t in BATCHES:
        for got, expected in zip(fast(x, t), plain(gf.tensor(x), gf.tensor(t)), strict=True):
            same(got, expected)
        same(simple(x, t), step_of(a[0])(gf.tensor(x), gf.tensor(t)))
        for one, two in zip(a, b, strict=True):
            same_states(one, two)
    assert (count(fast), count(simple)) == (1, 1)


def test_methods_modules_partials_and_names() -> None:
    from functools import partial

    class Trainer:
        def __init__(self) -> None:
            self.s = Setup()
            self.calls = 0

        @gf.compile
        def step(self, x: Tensor, t: Tensor) -> Tensor:
            """Train."""
            return step_of(self.s)(x, t)

    one, two = Trainer(), Trainer()
    assert Trainer.step.__doc__ == "Train."
    assert isinstance(Trainer.step, Compiled)
    plain = step_of(s := Setup())
    for x, t in BATCHES:
        expected = plain(gf.tensor(x), gf.tensor(t))
        for trainer in (one, two):
            same(trainer.step(x, t), expected)
            same_states(trainer.s, s)
            trainer.calls += 1
    assert count(Trainer.step) == 2
    model = nn.Linear(2, 2)
    fast = gf.compile(model)
    for _ in range(3):
        same(fast(gf.ones((1, 2))), model(gf.ones((1, 2))))
    assert count(fast) == 1
    assert fast.weight is model.weight  # the module is still at hand
    scaled = gf.compile(partial(gf.multiply, gf.tensor([2.0])))
    assert [scaled(gf.tensor([float(i)])).item() for i in range(3)] == [0.0, 2.0, 4.0]


def test_compiled_inside_compiled_inside_traced() -> None:
    s = Setup()
    inner = gf.compile(lambda x, t: s.loss_fn(s.model(x), t))

    def make(_: Setup) -> Callable[..., Tensor]:
        def step(x: Tensor, t: Tensor) -> Tensor:
            loss = inner(x, t)
            s.optimizer.zero_grad()
            loss.backward()
            s.optimizer.step()
            return loss

        return step

    reference, fast = Setup(), gf.compile(make(s))
    for x, t in BATCHES:
        same(fast(x, t), step_of(reference)(gf.tensor(x), gf.tensor(t)))
        same_states(s, reference)
    assert count(fast) == 1
    assert gf.compile(fast) is fast

    @gf.compile
    def factorial(x: Tensor, n: int) -> Tensor:
        return x if n == 0 else n * factorial(x, n - 1)

    assert [factorial(gf.tensor([2.0]), 4).item() for _ in range(3)] == [48.0] * 3


def test_copies_and_pickles() -> None:
    model = nn.Linear(2, 1)
    model.forward = gf.compile(model.forward)
    x = gf.ones((1, 2))
    before = model(x).item()
    twin = copy.deepcopy(model)
    with gf.no_grad():
        model.weight[...] = 0.0
        model.bias[...] = 0.0
    assert model(x).item() == 0.0
    assert [twin(x).item() for _ in range(2)] == [before] * 2
    again = pickle.loads(pickle.dumps(gf.compile(nested)))
    assert isinstance(again, Compiled)


def test_threads_share_a_compiled_function() -> None:
    from concurrent.futures import ThreadPoolExecutor

    w = gf.Parameter(np.eye(20, dtype=np.float32))
    counter = nn.Buffer(0)

    @gf.compile
    def f(x: Tensor) -> Tensor:
        nonlocal counter
        with gf.no_grad():
            counter += 1
        return gf.tanh(x @ w)

    xs = [gf.tensor(rng.normal(size=(n, 20)).astype(np.float32)) for n in (3, 4, 3, 5) * 10]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(f, xs))
    for x, y in zip(xs, got, strict=True):
        same(y, np.tanh(x.numpy()))
    assert counter.item() == 40
    assert count(f) == 3


def test_threads_train_one_model() -> None:
    s = Setup(optim.SGD)
    step = gf.compile(step_of(s))
    x, t = BATCHES[0]
    step(x, t)
    threads = [threading.Thread(target=lambda: [step(x, t) for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reference = Setup(optim.SGD)
    for _ in range(61):
        step_of(reference)(gf.tensor(x), gf.tensor(t))
    same_states(s, reference)


def test_a_graph_from_before_a_call_notices_what_it_wrote() -> None:
    s = Setup()
    step = gf.compile(step_of(s))
    for x, t in BATCHES[:3]:
        loss = s.loss_fn(s.model(gf.tensor(x)), gf.tensor(t))
        step(x, t)
        with pytest.raises(errors.GraphError, match="changed in place"):
            loss.backward()


# ------------------------------------------------------------------------------------------------------ looking into it
def test_explain_source_and_clear() -> None:
    s = Setup()
    step = gf.compile(step_of(s))
    for x, t in (*BATCHES[:2], (BATCHES[0][0][:3], BATCHES[0][1][:3])):
        step(x, t)
    told = step.explain()
    assert "2 specialisations" in told
    assert "the first call" in told
    assert "other arguments: (array float32[3, 4], array int64[3])" in told
    assert "equations" in told
    assert step.source().count("\n") > 3
    step.clear()
    assert count(step) == 0
    step(*BATCHES[0])
    assert count(step) == 1


def test_a_profile_of_a_step_that_divides_by_zero_warns_of_nothing() -> None:
    with gf.use_backend("numpy"), np.errstate(divide="ignore"):
        compiled = gf.compile(lambda x: (1 / (x - x), gf.log(x - x)))
        for _ in range(2):
            compiled(np.ones(3, np.float32))
    with gf.use_backend("numpy"):
        assert "divide" in str(compiled.profile(0.001))


def test_a_switch_runs_everything_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for value, times in (("0", 3), ("off", 3), ("1", 1), ("", 3)):
        monkeypatch.setenv("GRADFLOW_COMPILE", value)
        f = gf.compile(lambda x: (seen.append("call"), x * 2)[1]) if times == 3 else gf.compile(lambda x: x * 2)
        seen.clear()
        for _ in range(3):
            assert f(np.ones(2, np.float32)).tolist() == [2.0, 2.0]
        assert len(seen) == (times if times == 3 else 0)
    monkeypatch.setenv("GRADFLOW_COMPILE", "maybe")
    with pytest.raises(errors.ArgumentError, match="GRADFLOW_COMPILE='maybe' is not a boolean"):
        gf.compile(lambda x: x)


def test_what_cannot_be_compiled_at_all() -> None:
    with pytest.raises(errors.DTypeError, match="compile"):
        gf.compile(3)

    async def later() -> None: ...

    with pytest.raises(errors.DTypeError, match=r"^@gf\.compile on later, a coroutine function") as caught:
        gf.compile(later)
    assert "fix: compile the function that it calls" in text(caught)


# ------------------------------------------------------------------------------------------------------ odd operands
def as_eager(f: Callable[..., Any], *calls: tuple[np.ndarray, ...], backend: str = "numpy") -> None:
    """Call a compiled function and the function itself; what comes back must agree."""
    with gf.use_backend(backend):
        compiled = gf.compile(f)
        for arrays in calls:
            got, expected = compiled(*arrays), f(*map(gf.asarray, arrays))
            for a, b in zip(got, expected, strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                same(a, b)


def product_and_gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x @ y, *gf.value_and_grad(lambda x, y: ((x @ y) ** 2).sum(), (0, 1))(x, y)[1]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_arguments(shape: tuple[int, int]) -> None:
    as_eager(product_and_gradients, *[(np.zeros(shape), np.ones((shape[1], 4)))] * 3)


@pytest.mark.parametrize("shapes", [((1, 1, 1), (1, 1, 1)), ((1, 2, 4, 3), (1, 2, 3, 4)), ((1, 2, 1, 4), (1, 2, 4, 1))])
def test_products_of_stacks_with_axes_of_length_1(shapes: tuple[tuple[int, ...], ...]) -> None:
    pytest.importorskip("numba")

    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return *product_and_gradients(x, y), x.mT @ x, gf.permute_dims(x, (1, 0, *range(2, x.ndim))) @ x.mT

    as_eager(f, *[tuple(rng.normal(size=s) for s in shapes) for _ in range(3)], backend="numba")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int8])
def test_labels_of_every_integer_dtype(dtype: Any) -> None:
    def f(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return gf.value_and_grad(lambda x: gf.cross_entropy(x, t))(x)

    as_eager(f, *[(rng.normal(size=(6, 3)), rng.integers(0, 3, 6).astype(dtype)) for _ in range(3)])


def test_integers_against_numbers_that_their_dtype_cannot_hold() -> None:
    def f(i: Tensor) -> tuple[Tensor, ...]:
        return i == -1, i != -1, i > -1, i <= -1, i == 300, i < 300, i >= 300

    as_eager(f, *[(rng.integers(0, 256, 6).astype(np.uint8),) for _ in range(3)])


# ------------------------------------------------------------------------------------------------------- drawn programs
@settings(max_examples=60)
@given(programs(scalar=True))
def test_drawn_programs_and_their_gradients(program: Program) -> None:
    def value_and_gradients(*xs: Tensor) -> Any:
        return gf.value_and_grad(lambda *ys: program(gf, *ys), tuple(range(len(xs))))(*xs)

    compiled = gf.compile(value_and_gradients)
    for scale in (1.0, 1.0, 1 + 1e-7):
        xs = [gf.tensor(x * scale) for x in program.inputs]
        value, gradients = compiled(*xs)
        expected, wanted = value_and_gradients(*xs)
        np.testing.assert_allclose(np.array(value), np.array(expected), rtol=1e-12, atol=1e-12)
        for g, w in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(np.array(g), np.array(w), rtol=1e-9, atol=1e-9)
    assert count(compiled) == 1


# ----------------------------------------------------------------------------------------------------------- debugging
class Wrong:
    """A program that computes one thing too much."""

    contiguous = False

    def __init__(self, program: Any, spoil: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        self.program, self.spoil = program, spoil

    def __call__(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.spoil(self.program(arrays))

    def describe(self) -> str:
        return "wrong"

    def source(self) -> str:
        return "wrong"


def test_debugging_finds_nothing_where_all_is_right() -> None:
    for make in (step_of, without_zero):
        eager, compiled = Setup(), Setup()
        plain, fast = make(eager), gf.compile(make(compiled), debug=True)
        for i, (x, t) in enumerate(BATCHES):
            gf.manual_seed(i)
            expected = plain(gf.tensor(x), gf.tensor(t))
            gf.manual_seed(i)
            same(fast(x, t), expected)
            same_states(eager, compiled)
        assert "checked against the function" in fast.explain()

    @gf.compile(debug=True)
    def draws(x: Tensor) -> Any:
        loss = (x * gf.random.normal(x.shape)).sum()
        loss.backward()
        return {"loss": loss, "x": x}

    gf.manual_seed(0)
    drawn = [draws(gf.ones(2, requires_grad=True))["loss"].item() for _ in range(5)]
    gf.manual_seed(0)
    np.testing.assert_allclose(drawn, [gf.random.normal(2).numpy().sum() for _ in range(5)], rtol=1e-6)


@pytest.mark.parametrize("what", ["result", "state", "gradient"])
def test_debugging_names_what_differs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradflow.compiler import compiled as module

    s = Setup()
    real = module.make_program

    def spoil(results: tuple[Any, ...]) -> tuple[Any, ...]:
        if what == "result":
            return (results[0] + 1,)
        with gf.no_grad():
            (s.model[0].weight if what == "state" else s.model[0].weight.grad)[1, 2] = 100.0
        return results

    monkeypatch.setattr(module, "make_program", lambda trace, xp: Wrong(real(trace, xp), spoil))
    step = gf.compile(step_of(s), debug=True)
    step(*BATCHES[0])
    with pytest.raises(errors.CompilationError) as caught:
        step(*BATCHES[1])
    assert {"result": "result 0", "state": "s.model.0.weight", "gradient": "the gradient of s.model.0.weight"}[
        what
    ] in (text(caught))
    if what != "result":
        assert "at (1, 2) it is 100.0" in text(caught)
