"""detect_anomaly: every operation that can make a NaN or an infinity is named, and what is meant raises nothing."""

from __future__ import annotations

import asyncio
import functools
import gc
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from benchmarks.workloads import WORKLOADS, gradflow_training
from gradflow.compiler import trace
from gradflow.errors import AnomalyError, DTypeError, GraphError, TracedValueError
from gradflow.mode import NO_GRAD, RECORD, get_mode
from gradflow.primitive import REGISTRY, Primitive, defimpl, defvjp, primitive
from gradflow.tensor import OPS, Tensor
from gradflow.testing.operands import Call, calls, differentiable
from gradflow.testing.strategies import direction, generators

HUGE = float(np.finfo(np.float32).max)
SOURCE = Path(__file__).read_text().splitlines()


def line(marker: str) -> str:
    """`file:number: text` of the line of this file that ends in `# marker`."""
    (number,) = [i for i, text in enumerate(SOURCE, 1) if text.endswith(f"# {marker}")]
    return f"{__file__}:{number}: {SOURCE[number - 1].strip()}"


def f32(values: Any, requires_grad: bool = False) -> Tensor:
    return gf.tensor(np.asarray(values, np.float32), requires_grad=requires_grad)


def report(run: Callable[[], Any], **options: Any) -> str:
    """What a hunt says of a function; its result is kept until the end of the block."""
    mode = get_mode()
    with pytest.raises(AnomalyError) as caught, gf.detect_anomaly(**options):
        kept = run()  # noqa: F841
    assert get_mode() is mode
    return str(caught.value)


def quiet(run: Callable[[], Any], **options: Any) -> Any:
    """What a function returns under a hunt that finds nothing."""
    with gf.detect_anomaly(**options):
        return run()


# ------------------------------------------------------------------------------- every primitive, found by enumeration
a = np.float32
PRODUCERS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "add": ([[1, HUGE], [1, HUGE]], {}),
    "subtract": ([[1, HUGE], [1, -HUGE]], {}),
    "multiply": ([[1, 1e30], [1, 1e30]], {}),
    "divide": ([[1, 1], [1, 0]], {}),
    "floor_divide": ([[1, 1], [1, 0]], {}),
    "remainder": ([[1, 1], [1, 0]], {}),
    "power": ([[1, 0], [1, -1]], {}),
    "square": ([[1, 1e30]], {}),
    "exp": ([[1, 100]], {}),
    "log": ([[1, 0]], {}),
    "log1p": ([[1, -1]], {}),
    "sqrt": ([[1, -1]], {}),
    "astype": ([np.array([1.0, 1e300])], {"dtype": gf.float32}),
    "binary_cross_entropy_terms": ([[1, HUGE], [1, -9]], {}),
    "binary_cross_entropy_of_probabilities": ([[0.5, 0], [1, HUGE]], {}),
    "sum": ([[1, HUGE, HUGE]], {"axis": (0,), "keepdims": False}),
    "mean": ([np.zeros((2, 0))], {"axis": (1,), "keepdims": False}),
    "var": ([[[1, 2], [HUGE, -HUGE]]], {"axis": (1,), "correction": 0, "keepdims": False}),
    "std": ([[[1, 2], [HUGE, -HUGE]]], {"axis": (1,), "correction": 0, "keepdims": False}),
    "matmul": ([[[1, 1], [HUGE, HUGE]], [[1, 0], [1, 1]]], {}),
    "linear": ([[[1, 1], [HUGE, HUGE]], [[1, 1], [0, 1]], [0, 0]], {}),
    "log_softmax": ([[HUGE, -HUGE]], {"axis": 0}),
    "softmax_cross_entropy": ([[[1, 2]], np.array([3])], {"ignore_index": 3}),
    "mean_squared_error": ([[1, 1e30], [1, 1]], {}),
    "scatter_add": ([[HUGE, HUGE], np.array([1, 1])], {"shape": (2,), "key": ("array",)}),
    "sgd": (
        [[1, 1], [0, 0], np.zeros(1), np.array([10, 0, 0, 0.0]), [1, HUGE]],
        {"turned": (False,), "nesterov": False, "maximize": False},
    ),
    "adam": (
        [[1, 1], [0, 0], [0, 0], np.zeros(1), np.array([0.1, 0.9, 0.99, 1e-8, 0]), [1, HUGE]],
        {"turned": (False,), "decoupled": False, "eps_inside": False, "maximize": False},
    ),
}
"""Primitive -> finite operands of which it makes something infinite or NaN."""


def made(operands: list[Any]) -> list[Tensor]:
    return [gf.tensor(o if isinstance(o, np.ndarray) else np.asarray(o, a)) for o in operands]


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_producer_is_named(name: str) -> None:
    operands, settings = PRODUCERS[name]
    prim, tensors = REGISTRY[name], made(operands)
    assert all(np.isfinite(t.numpy()).all() for t in tensors)
    with np.errstate(all="ignore"):
        out = prim.function(*made(operands), **settings)
    text = report(lambda: prim.function(*tensors, **settings))  # the call
    head = re.match(
        r"(\w+) (?:produced|wrote) (\S+) (?:at flat index (\d+).*|as its result, a scalar\.)$", text, re.MULTILINE
    )
    assert head is not None and head[1] == name
    if out is not None:
        host = out.numpy().reshape(-1)
        at = int(np.flatnonzero(~np.isfinite(host))[0])
        assert (head[2], int(head[3] or 0)) == (str(host[at]), at)
    assert f"  at {line('the call')}\n" in text
    assert re.search(r"^  why: .+\n  fix: .+", text, re.MULTILINE)
    assert all(f"{operand} = " in text or f"operand {operand}" in text for operand in prim.operands[prim.writes :][:1])


@pytest.mark.parametrize("name", sorted(REGISTRY.keys() - PRODUCERS.keys()))
@given(data=st.data())
def test_the_other_primitives_produce_nothing(name: str, data: st.DataObject) -> None:
    """The table above is complete: of the largest numbers there are, no other primitive makes an infinity."""
    prim = REGISTRY[name]
    case = data.draw(calls(prim))
    factors = [data.draw(st.sampled_from([1e308 / 4, -1e308 / 4, 0.0, 1e-310, 1.0])) for _ in case.operands]
    operands = [o * k if o.dtype.kind == "f" else o for o, k in zip(case.operands, factors, strict=True)]
    assert all(np.isfinite(o).all() for o in operands)
    out = quiet(lambda: prim.function(*map(gf.tensor, operands), **case.settings))
    assert out is None or out.dtype.kind != "f" or np.isfinite(out.numpy()).all()


def nasty(data: st.DataObject, case: Call) -> Call:
    """A case some elements of which are 0, tiny or huge."""
    operands = []
    for o in case.operands:
        o = o.copy()
        if o.dtype.kind == "f" and o.size and data.draw(st.booleans()):
            o.reshape(-1)[data.draw(st.integers(0, o.size - 1))] = data.draw(
                st.sampled_from([0.0, 1e-300, 1e200, -1e200])
            )
        operands.append(o)
    return Call(tuple(operands), case.settings)


def backward(prim: Primitive, case: Call, wrt: list[int], seed: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    operands = [gf.tensor(o, requires_grad=i in wrt) for i, o in enumerate(case.operands)]
    out = prim.function(*operands, **case.settings)
    out.backward(gf.tensor(seed))
    return np.array(out._data), [np.array(operands[i].grad._data) for i in wrt]


@pytest.mark.parametrize("name", sorted(n for n, p in REGISTRY.items() if any(p.rules)))
@given(data=st.data(), rng=generators)
def test_a_hunt_finds_something_exactly_if_there_is_something(
    name: str, data: st.DataObject, rng: np.random.Generator
) -> None:
    """For every primitive that has a derivative; and what is finite is the same to the last bit."""
    prim = REGISTRY[name]
    case = nasty(data, data.draw(calls(prim)))
    wrt = differentiable(prim, case.operands)
    with np.errstate(all="ignore"), gf.no_grad():
        shape = prim.function(*map(gf.tensor, case.operands), **case.settings).shape
    seed = direction(rng, shape) * data.draw(st.sampled_from([0.0, 1.0, 1e200]))
    with np.errstate(all="ignore"):
        out, gradients = backward(prim, case, wrt, seed)
    if not np.isfinite(out).all():
        text = report(lambda: backward(prim, case, wrt, seed))
        assert text.startswith(f"{name} produced ") and "used by a backward sweep" in text
    elif not all(np.isfinite(g).all() for g in gradients):
        text = report(lambda: backward(prim, case, wrt, seed))
        assert text.startswith((f"the derivative of {name} produced ", "adding up", "the sum of cotangents produced "))
        assert "in the gradient that came out" in text
    else:
        same, others = quiet(lambda: backward(prim, case, wrt, seed))
        for one, other in zip([out, *gradients], [same, *others], strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)


def test_a_primitive_of_the_users_own() -> None:
    @primitive("float")
    def reciprocal_of_cube(x: Any, /) -> Any: ...

    try:
        defimpl(reciprocal_of_cube, lambda xp, x: 1 / (x * x * x))
        defvjp(reciprocal_of_cube, x=lambda xp, g, x, out: -3 * g * out / x)
        text = report(lambda: reciprocal_of_cube(f32([1, 2, 1e-20])))
        assert text.startswith("reciprocal_of_cube produced inf at flat index 2 of its result of shape (3,).\n")
        assert "  operands there: x = 1e-20\n" in text
        x = f32([1, 1e-10], requires_grad=True)
        text = report(lambda: reciprocal_of_cube(x).sum().backward())
        assert text.startswith("the derivative of reciprocal_of_cube produced -inf at flat index 1")
        assert "  cotangent that came in there: 1.0\n  operands there: x = 1e-10, out = 1e+30\n" in text
    finally:
        del REGISTRY["reciprocal_of_cube"]
        delattr(OPS, "reciprocal_of_cube")


# ------------------------------------------------------------------------------------------------------ what it says
class Log(gf.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gf.log(x)  # logarithm


def test_a_report_going_forward() -> None:
    model = gf.nn.Sequential(gf.nn.ReLU(), gf.nn.Sequential(gf.nn.ReLU(), Log()))
    x = f32([[1.0, 2.0], [-1.0, 3.0]], requires_grad=True)

    def loss() -> None:
        y = model(x) * 2  # product
        y.mean().backward()  # mean

    assert report(loss) == (
        "log produced -inf at flat index 2, index (1, 0), of its result of shape (2, 2).\n"
        "  operands there: x = 0.0\n"
        f"  at {line('logarithm')}\n"
        "  in model.1.1 (Log)\n"
        "  then passed on by:\n"
        f"    multiply (-inf) at {line('product')}\n"
        f"    mean (-inf) at {line('mean')}\n"
        "  used by a backward sweep\n"
        "  why: the logarithm of 0 is -inf, that of a negative number nan.\n"
        "  fix: gf.log(gf.clip(x, 1e-12)), or gf.log_softmax(logits) for the logarithm of a softmax"
    )
    assert x.grad is None


def test_a_report_going_backward() -> None:
    x = f32([4.0, 0.0], requires_grad=True)

    def loss() -> None:
        y = x * 3  # thrice
        gf.sqrt(y).sum().backward()  # root

    assert report(loss) == (
        "the derivative of sqrt produced inf at flat index 1 of the cotangent of x of shape (2,).\n"
        "  cotangent that came in there: 1.0\n"
        "  operands there: x = 0.0, out = 0.0\n"
        f"  at {line('root')}\n"
        "  then passed on by:\n"
        f"    the derivative of multiply (inf) at {line('thrice')}\n"
        "  in the gradient that came out\n"
        "  why: the derivative of the square root, 1 / (2√x), is infinite at 0.\n"
        "  fix: gf.sqrt(y + 1e-12)"
    )
    assert x.grad is None  # judged before anything is added to it


def test_the_module_of_a_derivative() -> None:
    class Root(gf.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return gf.sqrt(x)

    model = gf.nn.Sequential(gf.nn.ReLU(), Root())
    text = report(lambda: model(f32([-1.0], requires_grad=True)).sum().backward())
    assert "  in model.1 (Root)\n" in text


def test_the_first_producer_is_reported_and_later_ones_are_listed() -> None:
    def run() -> Any:
        e = gf.exp(f32([1, 100]))
        return (e - e).sum().item()

    text = report(run)
    assert text.startswith("exp produced inf at flat index 1")
    assert re.search(r"subtract \(nan, produced\) at .*\n    sum \(nan\) at .*\n  used by \.item\(\)\n", text)


def test_nan_of_infinities_is_produced() -> None:
    x = f32([1.0, np.inf])
    text = report(lambda: x - x)
    assert text.startswith("subtract produced nan at flat index 1") and "x = inf, y = inf" in text
    assert "the infinity came in with the operands" in text


@pytest.mark.parametrize(
    ("source", "fix"),
    [
        ("gf.log(zero)", "gf.log(gf.clip(zero, 1e-12))"),
        ("zero.log()", "gf.log(gf.clip(zero, 1e-12))"),
        ("gf.log(zero * 2)", "gf.log(gf.clip((zero * 2), 1e-12))"),
        ("one / zero", "one / gf.where(zero == 0, 1.0, zero)"),
        ("gf.divide(one, zero[:])", "one / gf.where(zero[:] == 0, 1.0, zero[:])"),
        ("zero ** -one", "gf.clip(zero, 1e-12) ** (-one)"),
        ("loss(zero)", "gf.log(gf.clip(x, 1e-12))"),
    ],
)
def test_advice_names_the_users_variables(source: str, fix: str) -> None:
    names = {"zero": f32([0.0]), "one": f32([1.0]), "loss": gf.nn.Sequential(Logarithm())}
    assert f"\n  fix: {fix}" in report(lambda: evaluated(source, **names))


class Logarithm(gf.nn.Module):
    forward = staticmethod(gf.log)


def test_a_long_way_is_cut_in_the_middle() -> None:
    def run() -> Tensor:
        y = gf.log(f32(0.0))
        for _ in range(40):
            y = y + 1.0
        return y * 2.0

    text = report(run)
    steps = text.split("then passed on by:\n")[1].split("\n  left over")[0].splitlines()
    assert len(steps) == 7 and steps[5].strip() == "…" and steps[-1].strip().startswith("multiply (-inf)")


def test_values_of_what_is_not_element_by_element_are_summed_up() -> None:
    text = report(lambda: gf.matmul(f32([[HUGE, 1.0]]), f32([[1.0, 2.0], [3.0, 4.0]])))
    assert text.startswith("matmul produced inf at flat index 1, index (0, 1), of its result of shape (1, 2).\n")
    assert "  operand x: shape (1, 2), from 1.0 to 3.40282e+38\n" in text
    assert "  operand y: shape (2, 2), from 1.0 to 4.0\n" in text


def test_a_bad_element_beside_one_that_was_given() -> None:
    """Element by element: the -inf of a mask does not hide what overflows next to it."""
    x = f32([-np.inf, 1.0, 100.0])
    text = report(lambda: gf.exp(x))
    assert text.startswith("exp produced inf at flat index 2") and "operands there: x = 100.0" in text


def masked_attention(kind: str) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    query, key, value = (gf.nn.Linear(8, 8) for _ in range(3))
    optimizer = gf.optim.SGD([p for layer in (query, key, value) for p in layer.parameters()], lr=0.01)
    x, lower = f32(rng.normal(size=(8, 8))), np.tril(np.ones((8, 8), np.bool_))
    kept, added = gf.tensor(lower), f32(np.where(lower, 0.0, -np.inf))

    def step() -> float:
        scores = query(x) @ key(x).mT
        scores = scores + added if kind == "added" else gf.where(kept, scores, -np.inf) / 8**0.5
        if kind == "by hand":
            e = gf.exp(scores - gf.max(scores, axis=1, keepdims=True))
            weights = e / gf.sum(e, axis=1, keepdims=True)
        else:
            weights = gf.softmax(scores)
        loss = ((weights @ value(x)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


@pytest.mark.parametrize("kind", ["chosen", "added", "by hand"])
def test_a_mask_is_not_looked_at_element_by_element(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That took longer than all the rest of a step."""

    def never(*_: Any) -> Any:
        raise AssertionError("a mask was located")

    monkeypatch.setattr("gradflow.anomaly.hunt.locate", never)
    step = masked_attention(kind)
    assert np.isfinite([quiet(step) for _ in range(2)]).all()


def test_what_is_masked_in_time_is_not_put_into_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("words for nobody")

    p = f32([0.0, 1.0], requires_grad=True)
    for words in ("position", "number", "Site.line"):
        monkeypatch.setattr(f"gradflow.anomaly.report.{words}", never)
    quiet(lambda: gf.softmax(gf.log(p.detach()) * 2.0 + p).sum().backward())


def test_a_mask_on_the_way_is_listed_and_never_the_first() -> None:
    kept, w, data = gf.tensor([True, False]), f32([2.0, 3.0], requires_grad=True), f32([np.nan, 1.0])
    text = report(lambda: (gf.where(kept, w, -np.inf) + data).sum().backward())
    assert text.startswith("add passed on nan at flat index 0 of its result of shape (2,).")
    text = report(lambda: (gf.where(kept, w, -np.inf) * gf.tensor([1.0, 0.0])).sum().backward())
    assert text.startswith("multiply produced nan at flat index 1") and "operands there: x = -inf, y = 0.0" in text
    text = report(lambda: gf.where(kept, gf.log(w * 0.0), 1.0).sum().backward())
    assert text.startswith("log produced -inf at flat index 0") and "where (-inf) at " in text


def test_a_scalar() -> None:
    assert report(lambda: gf.log(f32(0.0))).startswith("log produced -inf as its result, a scalar.\n")
    x = f32(0.0, requires_grad=True)
    text = report(lambda: gf.sqrt(x).backward())
    assert text.startswith("the derivative of sqrt produced inf as the cotangent of x, a scalar.\n")


def test_where_a_bad_operand_came_from() -> None:
    x, p = f32([1.0], requires_grad=True), f32([0.0], requires_grad=True)

    def run() -> None:
        y = gf.log(p.detach())  # origin
        gf.where(f32([1.0]) > 2.0, x * y, 0.0).sum().backward()

    text = report(run)
    assert text.startswith("the derivative of multiply produced nan")
    assert f"  y holds what log gave at {line('origin')}\n" in text


# ----------------------------------------------------------------------------------------------- the where-NaN trap
TRAPS: dict[str, tuple[str, list[float]]] = {
    "sqrt": ("gf.where(x > 0, gf.sqrt(x), 0.0)", [0.0, 4.0]),
    "log": ("gf.where(x > 0, gf.log(x) * x, 0.0)", [0.0, 2.0]),
    "divide": ("gf.where(x == 0, 1.0, gf.tanh(x) / x)", [0.0, 2.0]),
    "reciprocal": ("gf.where(x != 0, 1 / x, 0.0)", [0.0, 2.0]),
    "power": ("gf.where(x > 0, x ** 0.5, 0.0)", [0.0, 4.0]),
    "log1p": ("gf.where(x > -1, gf.log1p(x), 0.0)", [-1.0, 4.0]),
    "negative root": ("gf.where(x >= 1, gf.sqrt(x - 1), 0.0)", [0.0, 4.0]),
    "exp": ("gf.where(x < 700, gf.exp(x), 0.0)", [1000.0, 1.0]),
    "root of reciprocal": ("gf.where(x > 0, 1 / gf.sqrt(x), 0.0)", [0.0, 4.0]),
    "method": ("gf.where(x > 0, x.sqrt() * 2 + 1, 0.0)", [0.0, 4.0]),
    "other side": ("gf.where(x <= 0, 0.0, x.log())", [0.0, 4.0]),
    "own name": ("where(x > 0, gf.sqrt(x), 0.0)", [0.0, 4.0]),
    "expression in a root": ("gf.where(x > 0, gf.sqrt(x * 2), 0.0)", [0.0, 4.0]),
    "named mask, root": ("gf.where(m, gf.sqrt(x * 2), 0.0)", [0.0, 4.0]),
    "named mask, reciprocal": ("gf.where(m, 1 / (x * 2), 0.0)", [0.0, 4.0]),
    "named mask, power": ("gf.where(m, (x * 2) ** 0.5, 0.0)", [0.0, 4.0]),
    "named mask, sum below": ("gf.where(m, z / (x + 0.0), 0.0)", [0.0, 4.0]),
    "named mask, two operations": ("gf.where(m, gf.log(x * 2) / gf.sqrt(x), 0.0)", [0.0, 4.0]),
    "named mask, in each other": ("gf.where(m, gf.sqrt(z / (x * 1)), 0.0)", [0.0, 4.0]),
    "logarithm below": ("gf.where(m, z / gf.log(x), 0.0)", [0.0, 4.0]),
    "logarithm below, thrice": ("gf.where(m, z * (1 / gf.log(x)) ** 0.5, 0.0)", [0.0, 4.0]),
    "huge exponent": ("gf.where(x < 9, 2.0 ** x, 0.0)", [1e200, 1.0]),
    "difference of two": ("gf.where(x > z, gf.sqrt(x - z), 0.0)", [1.0, 4.0]),
    "squares of two": ("gf.where(x > 0, gf.sqrt(x * x + (z - 1) ** 2), 0.0)", [0.0, 4.0]),
    "two conditions": ("gf.where((x > 0) & (z > 0), gf.log(x) * z, 0.0)", [0.0, 4.0]),
    "two conditions, other order": ("gf.where((z > 0) & (x > 0), z * gf.log(x * 3), 0.0)", [0.0, 4.0]),
    "own variable named safe": ("gf.where(m, gf.sqrt(safe * x), 0.0)", [0.0, 4.0]),
    "over lines": ("gf.where(\n    x > 0,\n    gf.sqrt(x),\n    0.0,\n)", [0.0, 4.0]),
}


def evaluated(source: str, **names: Any) -> Any:
    """The value of an expression whose source can be looked up, as that of a file can."""
    import linecache

    filename = f"<user {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return eval(compile(source, filename, "eval"), {"gf": gf, "where": gf.where, **names})


@pytest.mark.parametrize("name", TRAPS)
def test_the_code_that_is_shown_mends_the_trap(name: str) -> None:
    """It is run: all it gives is what the user's code gave, gradients where that chose are too, and 0 elsewhere."""
    source, values = TRAPS[name]
    m = np.asarray([False, True])

    def variables(at: slice) -> dict[str, Tensor]:
        data = {"x": np.asarray(values), "z": np.asarray([1.0, 3.0]), "safe": np.asarray([5.0, 6.0])}
        return {k: gf.tensor(v[at], dtype=gf.float64, requires_grad=True) for k, v in data.items()}

    used, chosen = variables(slice(None)), variables(slice(1, None))
    text = report(lambda: evaluated(source, m=gf.tensor(m), **used).sum().backward())
    assert " does not choose this element" in text and "0 · inf is nan" in text
    *before, last = text.split("fix: choose before the operation, too:\n")[1].splitlines()
    names: dict[str, Any] = {"gf": gf, "where": gf.where, "m": gf.tensor(m), **used}
    for statement in before:
        exec(statement.strip(), names)
    value = quiet(lambda: eval(last.strip(), names))
    with np.errstate(all="ignore"):
        assert np.array_equal(value.numpy(), evaluated(source, m=gf.tensor(m), **used).numpy())
    quiet(lambda: value.sum().backward())
    evaluated(source, m=gf.tensor(m[1:]), **chosen).sum().backward()
    for k, t in used.items():
        expected = chosen[k].grad
        assert (t.grad is None) is (expected is None)
        if t.grad is not None and expected is not None:
            np.testing.assert_allclose(t.grad.numpy(), [0.0, expected.item()], rtol=1e-12)


EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "z"]),
    lambda inner: st.one_of(
        st.builds("gf.{}({})".format, st.sampled_from(["sqrt", "log", "exp", "log1p", "abs"]), inner),
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["/", "**", "*", "+", "-"]), inner),
        st.builds("2.0 {} ({})".format, st.sampled_from(["/", "**", "-"]), inner),
        st.builds("({}) {} 2.0".format, inner, st.sampled_from(["/", "**", "*"])),
    ),
    max_leaves=4,
)
TROUBLE = st.sampled_from([0.0, -1.0, 1.0, 1e200])


@given(inner=EXPRESSIONS, branch=st.sampled_from([1, 2]), x=TROUBLE, z=TROUBLE)
def test_the_code_that_is_shown_mends_any_expression(inner: str, branch: int, x: float, z: float) -> None:
    source = f"gf.where(m, {inner}, 0.0)" if branch == 1 else f"gf.where(m, 0.0, {inner})"
    m = gf.tensor([branch == 2, branch == 1])
    used = {k: gf.tensor([v, 1.5], dtype=gf.float64, requires_grad=True) for k, v in {"x": x, "z": z}.items()}
    with np.errstate(all="ignore"):
        out = evaluated(source, m=m, **used)
        if not out.requires_grad or not np.isfinite(out.numpy()).all():
            return
        out.sum().backward()
    plain = [None if t.grad is None else t.grad.numpy() for t in used.values()]
    for t in used.values():
        t.grad = None
    if not all(g is None or np.isfinite(g[1]) for g in plain):
        return  # the element that was chosen has trouble of its own
    try:
        with gf.detect_anomaly():
            evaluated(source, m=m, **used).sum().backward()
        return
    except AnomalyError as error:
        text = str(error)
    if "choose before the operation, too:\n" not in text:
        assert "choose before the operation" in text or "does not choose" not in text
        return
    *before, last = text.split("too:\n")[1].splitlines()
    names: dict[str, Any] = {"gf": gf, "m": m, **used}
    for statement in before:
        exec(statement.strip(), names)
    with np.errstate(all="ignore"):
        mended = eval(last.strip(), names)
        assert np.array_equal(mended.numpy(), out.numpy())
        mended.sum().backward()
    rounding = 1e-9 * (1 + float(np.abs(out.numpy()).max()))  # terms that cancel are added in another order
    for t, g in zip(used.values(), plain, strict=True):
        assert (t.grad is None) is (g is None)
        if t.grad is not None and g is not None:
            assert t.grad[0].item() == 0.0
            np.testing.assert_allclose(t.grad.numpy(), [0.0, g[1]], rtol=1e-9, atol=rounding)


@pytest.mark.parametrize(
    "source",
    [
        "gf.where(x.reshape(2, 1) > 0, gf.log(x).reshape(2, 1), 0.0)",  # the condition has another shape
        "gf.where(x > 0, gf.softmax(gf.log(x)), 0.0)",  # what is replaced would change the others
        "gf.where(x > 0, root(x), 0.0)",
        "gf.where(x > 0, gf.clip(root(x), 0.0) + 1, 0.0)",
    ],
)
def test_where_no_code_is_known_the_pattern_is_shown(source: str) -> None:
    x = f32([0.0, 4.0], requires_grad=True)
    text = report(lambda: evaluated(source, x=x, root=gf.sqrt).sum().backward())
    assert " does not choose this element" in text
    assert re.search(
        r"by a condition of its shape:\n {7}safe = gf.where\(condition, x, 1.0\)\n"
        r" {7}gf.where\(condition, gf.\w+\(safe\), 0.0\)$",
        text.split("  fix: ")[1],
    )


def test_a_softmax_of_nothing_but_masked_scores() -> None:
    s, m = f32([[1.0, 2.0], [3.0, 4.0]], requires_grad=True), f32([[0.0, 0.0], [-np.inf, -np.inf]])

    def run() -> None:
        p = gf.softmax(s + m)
        gf.where(m == 0, p, 0.0).sum().backward()

    assert "in place of" not in report(run)


def test_a_report_of_the_trap() -> None:
    x = f32([4.0, 0.0], requires_grad=True)

    def run() -> None:
        y = gf.where(x > 0, gf.sqrt(x), 0.0)  # choice
        y.sum().backward()

    assert report(run) == (
        "the derivative of sqrt produced nan at flat index 1 of the cotangent of x of shape (2,).\n"
        "  cotangent that came in there: 0.0\n"
        "  operands there: x = 0.0, out = 0.0\n"
        f"  at {line('choice')}\n"
        "  in the gradient that came out\n"
        f"  why: the where at {line('choice')} does not choose this element, but derivatives go into both branches: "
        "into this one goes a cotangent of 0.0, and the derivative of sqrt there is not finite; 0 · inf is nan.\n"
        "  fix: choose before the operation, too:\n"
        "       safe = gf.where(x > 0, x, 1.0)\n"
        "       gf.where(x > 0, gf.sqrt(safe), 0.0)"
    )


def test_the_trap_through_earlier_lines_and_modules() -> None:
    x = f32([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)

    def norms() -> None:
        squares = gf.sum(x * x, axis=1, keepdims=True)
        roots = gf.sqrt(squares)  # norm
        scaled = roots.reshape(2) * 3.0
        gf.where(squares.reshape(2) > 0, scaled, 0.0).sum().backward()  # norms chosen

    text = report(norms)
    assert text.startswith("the derivative of sqrt produced nan at flat index 1, index (1, 0),")
    assert f"why: the where at {line('norms chosen')} does not choose" in text
    assert "squares.reshape" not in text.split("  fix: ")[1]  # (2,) and (2, 1) broadcast to something else
    assert "safe = gf.where(condition, x, 1.0)\n       gf.where(condition, gf.sqrt(safe), 0.0)" in text


def test_the_trap_through_an_earlier_line() -> None:
    x = f32([3.0, 0.0], requires_grad=True)

    def run() -> None:
        roots = gf.sqrt(x * 2)
        scaled = roots * 3.0
        gf.where(x > 0, scaled, 0.0).sum().backward()

    text = report(run)
    assert "safe = gf.where(x > 0, x * 2, 1.0)\n       gf.sqrt(safe)   # in place of gf.sqrt(x * 2)" in text


def test_the_trap_of_a_divided_vector() -> None:
    x = f32([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)

    def normalise() -> None:
        n = gf.sum(gf.abs(x), axis=1, keepdims=True)
        gf.where(n > 0, x / n, 0.0).sum().backward()

    text = report(normalise)
    assert text.startswith("the derivative of divide produced nan")
    assert "safe = gf.where(n > 0, n, 1.0)\n       gf.where(n > 0, x / safe, 0.0)" in text


def test_source_that_cannot_be_read_gives_an_example() -> None:
    x = f32([0.0], requires_grad=True)
    code = compile("gf.where(x > 0, gf.sqrt(x), 0.0)", "<nowhere>", "eval")
    text = report(lambda: eval(code, {"gf": gf, "x": x}).sum().backward())
    assert "  at <nowhere>:1\n" in text
    assert "safe = gf.where(condition, x, 1.0)\n       gf.where(condition, gf.sqrt(safe), 0.0)" in text


@pytest.mark.parametrize(
    "source", ["gf.where(x >= 0, gf.sqrt(x), 0.0)", "gf.sqrt(gf.where(x >= 0, x, 1.0))", "gf.sqrt(x)"]
)
def test_a_where_that_is_not_to_blame_is_not_blamed(source: str) -> None:
    x = f32([4.0, 0.0], requires_grad=True)
    text = report(lambda: evaluated(source, x=x).sum().backward())
    assert text.startswith("the derivative of sqrt produced inf at flat index 1")
    assert "does not choose" not in text and re.search(r"fix: gf.sqrt\(.* \+ 1e-12\)$", text)


@pytest.mark.parametrize(
    "source", ["gf.sqrt(x)", "gf.where(x >= 0, gf.sqrt(x), 1.0)", "gf.where(x < 0, 1.0, x.sqrt())"]
)
def test_a_zero_cotangent_that_no_where_made(source: str) -> None:
    x = f32([0.0], requires_grad=True)
    text = report(lambda: (evaluated(source, x=x) * 0.0).sum().backward())
    assert "why: the derivative of the square root, 1 / (2√x), is infinite at 0. The cotangent there is 0" in text
    assert "does not choose" not in text


# ------------------------------------------------------------------------------------- when it raises, and when not
def test_an_infinity_that_is_meant_raises_nothing() -> None:
    p, scores = f32([0.0, 0.5, 0.5], requires_grad=True), f32([1.0, 2.0, 3.0], requires_grad=True)

    def masked() -> float:
        safe = gf.where(p > 0, p, 1.0)
        entropy = -gf.where(p > 0, p * gf.log(safe), 0.0).sum()
        unused = gf.where(p > 0, gf.log(p.detach()), 0.0)
        attention = gf.softmax(gf.where(f32([1, 1, 0]) > 0, scores, -np.inf))
        loss = entropy + attention[0] + unused.sum()
        loss.backward()
        return float(loss)

    assert np.isfinite(quiet(masked))
    with pytest.raises(AnomalyError, match=r"^log produced -inf at flat index 0"):
        quiet(masked, at_once=True)
    assert np.isfinite(quiet(masked, at_once=True, inf=False))


@pytest.mark.parametrize(
    "use",
    [Tensor.item, Tensor.numpy, Tensor.tolist, float, np.asarray, gf.tensor, bool, "{:.2f}".format],
)
def test_a_value_that_is_read_is_judged(use: Callable[[Tensor], Any]) -> None:
    text = report(lambda: use(gf.log(f32(0.0)) * 2))
    assert text.startswith("log produced -inf") and "multiply (-inf)" in text and "used by " in text


def test_printing_is_no_use() -> None:
    def run() -> None:
        assert repr(gf.log(f32(0.0))) == "tensor(-inf)"

    quiet(run)


def test_a_value_that_is_dropped_is_not_judged() -> None:
    def run() -> Tensor:
        gf.log(f32(0.0))
        return f32(1.0)

    assert quiet(run).item() == 1.0


def test_at_the_end_of_the_block() -> None:
    with gf.detect_anomaly():
        y = gf.log(f32(0.0))
        z = gf.maximum(y, 0.0)
    assert z.item() == 0.0
    assert "left over at the end of the block" in report(lambda: gf.log(f32(0.0)) + 1)
    with pytest.raises(KeyError), gf.detect_anomaly():  # the error that is under way is the one to see
        {"kept": gf.log(f32(0.0))}["other"]


def test_data_is_nobodys_product() -> None:
    x = f32([1.0, np.nan, -np.inf])
    kept = quiet(lambda: [gf.exp(x), x.numpy(), x.sum().item(), gf.tensor([np.inf]) + 1, gf.full((2,), -np.inf)])
    assert np.isnan(kept[2])


def test_nan_in_the_data_is_told_when_a_sweep_starts() -> None:
    w = f32([2.0], requires_grad=True)
    text = report(lambda: (f32([1.0, np.nan]) * w).sum().backward())
    assert text.startswith("multiply passed on nan at flat index 1 of its result of shape (2,).\n")
    assert "why: no operation made it: it was in the operands of multiply already." in text
    assert "gf.isfinite(batch).all()" in text
    quiet(lambda: (f32([1.0, np.inf]) + w).sum().backward())


def test_a_loss_from_outside_of_the_block() -> None:
    x = f32([0.0], requires_grad=True)
    with np.errstate(all="ignore"):
        bad, root = (gf.log(x) * 0).sum(), gf.sqrt(x).sum()
    assert report(bad.backward) == (
        "a backward sweep was started from nan as the tensor, a scalar.\n"
        "  why: it was computed outside of the block, where nobody looked.\n"
        "  fix: compute the loss in the block, too"
    )
    text = report(root.backward)
    assert text.startswith("the derivative of sqrt produced inf") and "  at a line outside of the block\n" in text


def test_inf_false_counts_nan_only() -> None:
    x = f32([0.0], requires_grad=True)
    quiet(lambda: gf.sqrt(x).sum().backward(), inf=False)
    assert x.grad is not None and x.grad.item() == np.inf
    assert quiet(lambda: gf.log(f32(0.0)).item(), inf=False) == -np.inf
    assert report(lambda: gf.log(f32(-1.0)), inf=False).startswith("log produced nan")
    assert report(lambda: gf.log(f32([0.0, -1.0])), inf=False).startswith("log produced nan at flat index 1")
    text = report(lambda: gf.exp(f32(100.0)) * 0, inf=False)
    assert text.startswith("exp produced inf") and "multiply (nan, produced)" in text


def test_at_once_stops_in_the_operation() -> None:
    model = gf.nn.Sequential(gf.nn.ReLU(), Log())
    with pytest.raises(AnomalyError) as caught, gf.detect_anomaly(at_once=True):
        model(f32([0.0]))
    assert caught.traceback[-1].frame.code.raw.co_filename.endswith("hunt.py")
    assert any(entry.frame.code.raw is Log.forward.__code__ for entry in caught.traceback)
    assert str(caught.value).count("model.1") == 0 and caught.value.__notes__ == ["in model.1 (Log)"]
    x = f32([0.0], requires_grad=True)
    text = report(lambda: (gf.where(x > 0, gf.sqrt(x), 0.0) * x).sum().backward(), at_once=True)
    assert "does not choose" in text and "passed on" not in text


def test_a_where_is_not_blamed_for_another_way_to_the_loss() -> None:
    x = f32([4.0, 0.0], requires_grad=True)

    def run() -> None:
        y = gf.sqrt(x)
        (gf.where(x > 0, y, 0.0) + y).sum().backward()

    text = report(run)
    assert "cotangent that came in there: 1.0" in text and "does not choose" not in text


def test_it_is_a_floating_point_error() -> None:
    with pytest.raises(FloatingPointError), gf.detect_anomaly():
        gf.log(f32(0.0)).item()


# -------------------------------------------------------------------------------------------------- dtypes and shapes
def test_integers_booleans_and_empty_tensors() -> None:
    quiet(lambda: [gf.tensor([1, 2]) * 2**40, gf.tensor([True]) & True, gf.ones((0, 3)) / 0, gf.ones((0,)).sum()])


@pytest.mark.parametrize("dtype", [gf.float32, gf.float64])
def test_both_precisions(dtype: Any) -> None:
    limit = np.finfo(dtype).max
    x = gf.tensor([1.0, limit], dtype=dtype, requires_grad=True)
    text = report(lambda: (x * 2).sum().backward())
    assert text.startswith("multiply produced inf at flat index 1")
    assert f"beyond the largest number of {np.dtype(dtype)}, {limit:.3g}." in text


def test_finite_numbers_whose_sum_overflows() -> None:
    x = f32(np.full((20, 20), HUGE))
    assert quiet(lambda: gf.maximum(x, 0.0)).shape == (20, 20)
    assert quiet(lambda: gf.maximum(f32([HUGE, -HUGE, HUGE, HUGE]), -HUGE)).shape == (4,)


@pytest.mark.parametrize("shape", [(3,), (200, 300), (2, 3, 4, 5)])
def test_one_bad_element_is_found_wherever_it_is(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for at in (0, int(rng.integers(np.prod(shape))), int(np.prod(shape)) - 1):
        values = rng.uniform(1, 2, shape).astype(a)
        values.reshape(-1)[at] = 0
        assert re.match(rf"log produced -inf at flat index {at}\b", report(lambda: gf.log(gf.tensor(values))))  # noqa: B023
        view = gf.permute_dims(gf.tensor(values), tuple(range(len(shape)))[::-1])
        there = int(np.flatnonzero(values.T.reshape(-1) == 0)[0])
        assert re.match(rf"log produced -inf at flat index {there}\b", report(lambda: gf.log(view)))  # noqa: B023


# ----------------------------------------------------------------------------------------------- all else works as ever
def training(name: str, hunt: bool) -> list[Any]:
    parts = gradflow_training(WORKLOADS[name])
    losses = []
    for _ in range(5):

        def step() -> float:
            loss = parts.loss_fn(parts.model(parts.x), parts.t)
            parts.optimizer.zero_grad()
            loss.backward()
            parts.optimizer.step()
            return float(loss.item())

        losses.append(quiet(step) if hunt else step())
    return [losses, *(p.numpy().tolist() for p in parts.model.parameters())]


@pytest.mark.parametrize("name", ["tiny", "mnist"])
def test_training_is_the_same_to_the_last_bit(name: str) -> None:
    assert training(name, hunt=True) == training(name, hunt=False)


def test_transforms_and_higher_orders() -> None:
    def f(x: Tensor) -> Tensor:
        return (x * gf.tanh(x) + gf.exp(x)).sum()

    x, v = gf.tensor([0.3, -1.0], dtype=gf.float64), gf.tensor([1.0, 2.0], dtype=gf.float64)
    runs: list[Callable[[], Any]] = [
        lambda: gf.grad(f)(x),
        lambda: gf.grad(lambda y: (gf.grad(f)(y) ** 2).sum())(x),
        lambda: gf.jvp(f, (x,), (v,))[1],
        lambda: gf.vjp(gf.exp, x)[1](v)[0],
        lambda: gf.hvp(f, x, v),
        lambda: gf.hessian(f)(x),
        lambda: gf.jacobian(gf.exp)(x),
    ]
    for run in runs:
        np.testing.assert_array_equal(np.array(quiet(run)), np.array(run()))
    for transform in (gf.grad, gf.jacobian, gf.hessian):
        text = report(lambda: transform(lambda y: gf.sqrt(y).sum())(gf.tensor([1.0, 0.0])))  # noqa: B023
        assert text.startswith("the derivative of sqrt produced inf at flat index 1")


def test_a_derivative_of_a_derivative() -> None:
    """x^1.5 at 0: the first derivative is 0, the second infinite."""
    x = gf.tensor([4.0, 0.0], dtype=gf.float64, requires_grad=True)

    def run() -> None:
        (first,) = gf.vjp(lambda y: y**1.5, x)[1](gf.ones((2,), dtype=gf.float64))  # power
        first.sum().backward()

    text = report(run)
    assert text.startswith("the derivative of power produced inf at flat index 1")
    assert f"  at {line('power')}\n" in text


def test_a_recorded_sweep_is_looked_at_rule_by_rule() -> None:
    """What a rule computes with is no event of its own: the derivative is, whose rule it is."""
    for at_once in (False, True):
        x = f32([4.0, 0.0], requires_grad=True)
        text = report(lambda: gf.sqrt(x).sum().backward(create_graph=True), at_once=at_once)  # noqa: B023
        assert text.startswith("the derivative of sqrt produced inf at flat index 1")


def test_graphs_are_freed_and_retained_as_without() -> None:
    x = f32([1.0], requires_grad=True)
    with gf.detect_anomaly():
        loss = (x * x).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(GraphError, match="freed"):
            loss.backward()
    assert x.grad is not None and x.grad.item() == 4.0
    y, z = f32([2.0], requires_grad=True), f32([3.0], requires_grad=True)
    with gf.detect_anomaly():
        shared = y * z
        beside = shared * gf.grad(lambda t: (t * shared).sum())(f32([1.0], requires_grad=True))
        beside.sum().backward()
    assert y.grad is not None and y.grad.item() == 2 * 2 * 9


def test_hooks_run_once_and_are_looked_at() -> None:
    x, seen = f32([1.0, 2.0], requires_grad=True), []

    def hook(g: Tensor) -> Tensor:
        seen.append(g.tolist())
        return g * 2.0

    def run() -> None:
        y = x * 3.0
        y.register_hook(hook)
        y.sum().backward()

    quiet(run)
    assert seen == [[1.0, 1.0]] and x.grad is not None and x.grad.tolist() == [6.0, 6.0]

    def bad() -> None:
        y = x * 3.0
        y.register_hook(lambda g: f32([1.0, np.nan]))
        y.sum().backward()

    text = report(bad)
    assert text.startswith(
        "the sum of cotangents produced nan at flat index 1 of the cotangent of the result of multiply"
    )


def test_cotangents_that_overflow_when_they_are_added_up() -> None:
    x = f32([1e-30], requires_grad=True)
    text = report(lambda: (gf.broadcast_to(x, (4,)) * f32([HUGE / 2] * 4)).sum().backward())
    assert text.startswith("the sum of cotangents produced inf")
    x = f32([1e-30], requires_grad=True)
    text = report(lambda: (x * 1.0 * HUGE + x * 1.0 * HUGE).sum().backward())
    assert text.startswith(
        "the sum of cotangents produced inf at flat index 0 of the cotangent of a leaf of shape (1,)."
    )


def test_a_backward_function_given_by_hand() -> None:
    @gf.custom_vjp
    def root(x: Tensor) -> Tensor:
        return gf.sqrt(x)

    root.defvjp(lambda x: (gf.sqrt(x), x), lambda x, g: (g * 0.5 / gf.sqrt(x),))  # by hand
    good, bad = f32([4.0], requires_grad=True), f32([4.0, 0.0], requires_grad=True)
    quiet(lambda: root(good).sum().backward())
    assert good.grad is not None and good.grad.item() == 0.25
    text = report(lambda: root(bad).sum().backward())
    assert text.startswith("divide produced inf at flat index 1") and f"  at {line('by hand')}\n" in text
    assert "the derivative given for root (inf)" in text
    constant = np.float32(np.inf)
    root.defvjp(lambda x: (gf.sqrt(x), x), lambda x, g: (gf.full((2,), constant),))
    assert report(lambda: root(bad).sum().backward()).startswith("the derivative given for root produced inf")


def test_writes_in_place() -> None:
    def run() -> Tensor:
        t = gf.zeros((3,))
        t[0] = np.nan  # data
        t += 1.0
        t[0] = 1.0
        return t

    assert quiet(run).tolist() == [1.0, 1.0, 1.0]

    def pass_on() -> float:
        t = gf.zeros((2,))
        t[1] = gf.log(f32(0.0))
        return float(t.sum().item())

    text = report(pass_on)
    assert text.startswith("log produced -inf") and "assign_index (-inf)" in text and "sum (-inf)" in text
    buffer = gf.full((2,), -np.inf)
    quiet(lambda: buffer.__setitem__(0, 1.0))
    assert buffer.tolist() == [1.0, -np.inf]


def test_what_was_overwritten_is_forgotten() -> None:
    def run() -> list[float]:
        whole, part = gf.log(f32([0.0, 1.0])), gf.log(f32([0.0, 1.0]))
        whole[...] = 1.0
        part[0] = 2.0
        return [*whole.tolist(), *part.tolist()]

    assert quiet(run) == [1.0, 1.0, 2.0, 0.0]


def test_what_was_overwritten_through_another_view_is_forgotten() -> None:
    def run() -> list[Tensor]:
        whole, part = gf.log(f32([0.0, 1.0])), gf.log(f32([0.0, 1.0]))
        view = part[0:1]
        whole[0:1][...] = 0.0
        view[...] = 0.0
        assert whole.numpy().tolist() == [0.0, 0.0] and part.sum().item() == 0.0
        return [whole, part, view]

    quiet(run)
    p = f32([0.0, 1.0])

    def still_bad() -> None:
        y = gf.log(p * 0.0)  # two of them
        first = y[0:1]
        first[...] = 0.0
        y.numpy()

    assert f"at {line('two of them')}" in report(still_bad)

    def another() -> None:
        y = gf.log(p)
        y[0:1][...] = 0.0
        (y + gf.log(p)).sum().item()  # the second logarithm

    assert f"at {line('the second logarithm')}" in report(another).split("then passed")[0]


def test_an_update_that_overflows_is_told_at_once() -> None:
    w = gf.Parameter(np.asarray([1.0, 1.0], a))
    optimizer = gf.optim.SGD([w], lr=10.0)
    w.grad = f32([1.0, HUGE])
    text = report(optimizer.step)
    assert text.startswith("sgd wrote -inf at flat index 1 of param of shape (2,).")
    assert "operand grads[0]: shape (2,), from 1.0 to 3.40282e+38" in text


def test_no_grad_and_grad_inside() -> None:
    x = f32([0.0], requires_grad=True)
    with gf.detect_anomaly(), gf.no_grad():
        y = x * 2
        assert not y.requires_grad
        with gf.enable_grad():
            assert (x * 2).requires_grad
        with pytest.raises(AnomalyError):
            gf.log(x).item()
    with gf.no_grad(), gf.detect_anomaly():
        assert not (x * 2).requires_grad
    assert get_mode() is RECORD


def test_random_numbers_are_the_same() -> None:
    gf.manual_seed(3)
    expected = gf.random.normal((4,)).numpy()
    gf.manual_seed(3)
    assert np.array_equal(quiet(lambda: gf.random.normal((4,))).numpy(), expected)


# ------------------------------------------------------------------------------------------- blocks, functions, threads
def test_nested_blocks() -> None:
    with gf.detect_anomaly(inf=False):
        y = gf.log(f32([0.0]))
        with pytest.raises(AnomalyError, match="log produced -inf"), gf.detect_anomaly():
            (y * 2).sum().item()  # made outside, judged inside
        assert y.item() == -np.inf
        with gf.detect_anomaly():
            pass
        assert y.item() == -np.inf
    assert get_mode() is RECORD


def test_one_object_in_several_blocks() -> None:
    hunt = gf.detect_anomaly()
    for _ in range(2):
        with hunt, hunt:
            assert get_mode().interpreter is not None
        assert get_mode() is RECORD


def test_a_decorated_function() -> None:
    @gf.detect_anomaly()
    def logarithm(x: Tensor) -> Tensor:
        """Its docstring."""
        return gf.log(x)

    assert logarithm(f32(1.0)).item() == 0.0 and logarithm.__doc__ == "Its docstring."
    for _ in range(2):
        with pytest.raises(AnomalyError, match="log produced"):
            logarithm(f32(0.0))
    assert get_mode() is RECORD


def test_a_decorated_generator() -> None:
    @gf.detect_anomaly()
    def logarithms(values: list[float]) -> Iterator[Tensor]:
        for value in values:
            assert get_mode().interpreter is not None
            yield gf.log(f32(value))

    running = logarithms([1.0, 2.0, 0.0, 3.0])
    assert [next(running).item(), next(running).item()] == pytest.approx([0.0, np.log(2)])
    assert get_mode() is RECORD
    with pytest.raises(AnomalyError, match="log produced -inf"):
        next(running)
    assert get_mode() is RECORD


class Awaited:
    async def __call__(self) -> None: ...


async def coroutine() -> None: ...


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [coroutine, async_generator, functools.partial(coroutine), Awaited()])
@pytest.mark.parametrize(
    ("block", "written"),
    [
        (gf.detect_anomaly, "detect_anomaly()"),
        (gf.no_grad, "no_grad()"),
        (gf.enable_grad, "enable_grad()"),
        (lambda: gf.set_grad_enabled(False), "set_grad_enabled(False)"),
    ],
)
def test_what_is_awaited_is_not_decorated(function: Any, block: Callable[[], Any], written: str) -> None:
    """A call of it only makes an object: the block would have been left before the body runs."""
    with pytest.raises(DTypeError) as caught:
        block()(function)
    mistake, why, fix = str(caught.value).splitlines()
    assert mistake.startswith(f"@gf.{written} on ") and "when it is awaited" in why and f"`with gf.{written}:`" in fix
    assert get_mode() is RECORD


def test_a_block_inside_of_a_coroutine() -> None:
    async def logarithm(value: float) -> float:
        with gf.detect_anomaly():
            x = gf.log(f32(value))
            await asyncio.sleep(0)
            return float(x.item())

    async def both() -> list[Any]:
        return list(await asyncio.gather(logarithm(1.0), logarithm(0.0), logarithm(1.0), return_exceptions=True))

    first, error, last = asyncio.run(both())
    assert first == last == 0.0 and isinstance(error, AnomalyError)


def test_a_generator_with_a_block_that_is_left_early() -> None:
    def numbers() -> Iterator[int]:
        with gf.detect_anomaly():
            yield 1
            yield 2

    generator = numbers()
    next(generator)
    generator.close()
    assert get_mode() is RECORD


def test_another_thread_is_not_hunted() -> None:
    found: list[Any] = []
    with gf.detect_anomaly():
        thread = threading.Thread(target=lambda: found.append(get_mode()))
        thread.start()
        thread.join()
    assert found == [RECORD]


def test_threads_hunt_by_themselves() -> None:
    hunt, texts = gf.detect_anomaly(), {}

    def run(value: float) -> None:
        try:
            with hunt:
                for _ in range(50):
                    x = f32([1.0, value], requires_grad=True)
                    gf.log(x).sum().backward()
                texts[value] = "fine"
        except AnomalyError as error:
            texts[value] = str(error).split(" at ")[0]

    threads = [threading.Thread(target=run, args=(value,)) for value in (1.0, 0.0, 2.0, -1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {1.0: "fine", 2.0: "fine", 0.0: "log produced -inf", -1.0: "log produced nan"}


def test_a_trace_in_a_hunt() -> None:
    def step(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        gf.sqrt(y).sum().backward()
        assert y.grad is not None
        return y.grad

    with gf.detect_anomaly():
        out, recorded = trace(step, f32([4.0]))
    assert out.item() == 0.25 and recorded.replay(f32([16.0]))[0].item() == 0.125
    text = report(lambda: trace(step, f32([4.0, 0.0])))
    assert text.startswith("the derivative of sqrt produced inf at flat index 1")


def test_a_hunt_in_a_trace() -> None:
    def step(x: Tensor) -> Tensor:
        with gf.detect_anomaly():
            y = x.detach().requires_grad_()
            gf.sqrt(y).sum().backward()
            assert y.grad is not None
            assert repr(x).startswith("tensor(<traced>")
            return y.grad * 2

    out, recorded = trace(step, f32([4.0]))
    assert out.item() == 0.5 and recorded.replay(f32([16.0]))[0].item() == 0.25
    assert {e.primitive.name for e in recorded.equations} >= {"sqrt", "divide", "multiply"}
    with pytest.raises(AnomalyError, match="the derivative of sqrt produced inf"):
        trace(step, f32([0.0]))
    with pytest.raises(TracedValueError), gf.detect_anomaly():
        trace(lambda x: x.item(), f32(1.0))


def test_hunting_keeps_nothing_alive() -> None:
    gc.collect()
    gc.disable()
    try:
        w = gf.Parameter(np.ones((3, 3), a))
        with gf.detect_anomaly():
            arrays = []
            for _ in range(3):
                h = gf.tanh(f32(np.ones((2, 3))) @ w)
                masked = gf.where(h > 2, gf.log(h.detach() * 0.0), h)  # an event in each turn
                masked.sum().backward()
                arrays.append(weakref.ref(h._data))
                del h, masked
            assert [ref() for ref in arrays] == [None] * 3
            interpreter: Any = get_mode().interpreter
            assert not interpreter.log.events
    finally:
        gc.enable()


def test_a_state_that_stays_infinite_costs_no_memory() -> None:
    with gf.detect_anomaly(inf=False):
        state = gf.log(f32([0.0]))
        for _ in range(100):
            state = state + 1.0
        interpreter: Any = get_mode().interpreter
        assert len(interpreter.log.events) == 1
        assert len(interpreter.log.of(state._data).line) <= 16


def test_modes_are_plain_outside() -> None:
    with gf.detect_anomaly():
        pass
    assert get_mode() is RECORD
    with gf.no_grad():
        with gf.detect_anomaly():
            pass
        assert get_mode() is NO_GRAD
