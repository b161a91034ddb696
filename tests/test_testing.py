"""The tester is tested: derivatives that are wrong in the usual ways must each be found, and right ones must pass."""

from __future__ import annotations

import math
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import nn, testing
from gradflow.errors import (
    ArgumentError,
    DTypeError,
    GradcheckError,
    MutatedInputError,
    NondeterministicError,
    PropertyError,
    WrongDerivativeError,
)
from gradflow.primitive import REGISTRY, defimpl, defvjp, primitive
from gradflow.tensor import OPS, Tensor
from gradflow.testing.differences import slope

RNG = np.random.default_rng(0)
X = RNG.uniform(0.5, 1.5, (3, 3))
Y = RNG.uniform(0.5, 1.5, (3, 3))


@contextmanager
def registered(stub: Callable[..., Any], impl: Callable[..., Any], **rules: Any) -> Iterator[Callable[..., Tensor]]:
    """A primitive that is in the registry for the length of a block."""
    function = primitive("float")(stub)
    defimpl(function, impl)
    defvjp(function, **rules)
    try:
        yield function
    finally:
        del REGISTRY[stub.__name__]
        delattr(OPS, stub.__name__)


def product(x: Any, y: Any, /) -> Any: ...


def cube(x: Any, /) -> Any: ...


def row_sums(x: Any, /) -> Any: ...


def given_by_hand(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose derivative is given by hand; its residuals are its arguments."""
    f = gf.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f


# ---------------------------------------------------------------- what is wrong is found
# What is wrong -> (stub, implementation, rules, arguments). The sweep un-broadcasts by itself, so the rule that does so
# wrongly is one that adds up the other axis of a square matrix.
WRONG_RULES: dict[str, Any] = {
    "sign": (cube, lambda xp, x: x * x * x, {"x": lambda xp, g, x: -3 * x * x * g}, [X]),
    "factor off by 1e-4": (cube, lambda xp, x: x * x * x, {"x": lambda xp, g, x: 3.0003 * x * x * g}, [X]),
    "swapped arguments": (
        product,
        lambda xp, x, y: x * y,
        {"x": lambda xp, g, x: g * x, "y": lambda xp, g, y: g * y},
        [X, Y],
    ),
    "wrong axis": (
        row_sums,
        lambda xp, x: xp.sum(x, axis=(1,), keepdims=False),
        {"x": lambda xp, g, x_shape: xp.broadcast_to(xp.reshape(g, shape=(1, x_shape[1])), shape=x_shape)},
        [X],
    ),
    "un-broadcast over the wrong axis": (
        product,
        lambda xp, x, y: x * y,
        {
            "x": lambda xp, g, y: g * y,
            "y": lambda xp, g, x: xp.matrix_transpose(xp.sum(g * x, axis=(1,), keepdims=True)),
        },
        [X, Y[:1]],
    ),
    "missing factor of the output": (cube, lambda xp, x: x * x * x, {"x": lambda xp, g: g}, [X]),
    "one element of many": (
        cube,
        lambda xp, x: x * x * x,
        {"x": lambda xp, g, x: 3 * x * x * g * xp.where(x == xp.max(x, axis=(0, 1), keepdims=True), 1.01, 1.0)},
        [X],
    ),
    "NaN": (cube, lambda xp, x: x * x * x, {"x": lambda xp, g, x: g * (x - x) / (x - x)}, [X]),
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("what", WRONG_RULES)
def test_a_wrong_rule_is_found_and_named(what: str, mode: Any, full: bool) -> None:
    stub, impl, rules, arguments = WRONG_RULES[what]
    with registered(stub, impl, **rules) as f, pytest.raises(WrongDerivativeError) as raised:
        testing.gradcheck(lambda *xs: gf.exp(f(*xs)), *arguments, mode=mode, full=full)
    error = raised.value
    assert error.primitive == stub.__name__
    assert f"the rule of {stub.__name__} for " in str(error)
    assert error.argument is not None and error.index is not None
    assert not abs(error.analytic - error.numeric) <= error.tolerance
    assert isinstance(error, AssertionError)


@pytest.mark.parametrize("what", ["swapped arguments", "sign"])
def test_the_same_rule_put_right_passes(what: str) -> None:
    stub, impl, _, arguments = WRONG_RULES[what]
    right = {
        "swapped arguments": {"x": lambda xp, g, y: g * y, "y": lambda xp, g, x: g * x},
        "sign": {"x": lambda xp, g, x: 3 * x * x * g},
    }[what]
    with registered(stub, impl, **right) as f:
        for full in (False, True):
            assert not testing.gradcheck(lambda *xs: gf.exp(f(*xs)), *arguments, full=full).rejected
        assert testing.check_grads(f, arguments, order=3).comparisons == 12


def test_the_element_and_both_values_are_named() -> None:
    def backward(residuals: Any, g: Any) -> Any:
        (x, y) = residuals
        return g * y * gf.where(x == X[1, 2], 2.0, 1.0), g * x

    f = given_by_hand(lambda x, y: x * y, backward)
    with pytest.raises(WrongDerivativeError) as raised:
        testing.gradcheck(f, X, Y)
    error = raised.value
    assert (error.argument, error.index, error.primitive) == ("argument 0", 5, None)
    assert error.analytic == pytest.approx(2 * error.numeric)
    text = str(error)
    for part in (
        "the first derivative (reverse) of",
        "with respect to argument 0 is wrong at flat index 5, index (1, 2)",
        f"gradflow           {error.analytic!r}",
        f"finite differences {error.numeric!r}",
        "look at derivatives given by hand",
    ):
        assert part in text


def test_the_line_in_the_message_fails_again() -> None:
    f = given_by_hand(gf.tanh, lambda residuals, g: (g * (1 - gf.tanh(residuals[0]) ** 2) * 1.001,))
    for arguments, options in (([X], {}), ([X[:0], X[0, 0] * np.ones(())], {"wrt": 1, "seed": 3})):
        call = f if len(arguments) == 1 else lambda _, x: f(x)
        with pytest.raises(WrongDerivativeError) as raised:
            testing.gradcheck(call, *arguments, **options)
        scope = {"testing": testing, "np": np, "tanh": call, "f": call}
        with pytest.raises(WrongDerivativeError) as again:
            eval(raised.value.reproduce, scope)
        assert again.value.analytic == raised.value.analytic


def test_large_inputs_are_not_printed() -> None:
    f = given_by_hand(gf.tanh, lambda residuals, g: (g,))
    with pytest.raises(WrongDerivativeError) as raised:
        testing.gradcheck(f, np.ones((40, 40)))
    assert raised.value.reproduce == "testing.gradcheck(tanh, *inputs)"


def test_one_wrong_element_among_a_million_is_found() -> None:
    x = RNG.uniform(0.5, 1.5, 10**6)
    f = given_by_hand(gf.square, lambda residuals, g: (g * residuals[0] * gf.where(residuals[0] == x[123456], 2.5, 2),))
    with pytest.raises(WrongDerivativeError) as raised:
        testing.gradcheck(f, x)
    assert raised.value.index == 123456


def test_a_stale_save_is_found() -> None:
    """A derivative that keeps what it saw at its first call."""
    kept: list[Any] = []

    def backward(residuals: Any, g: Any) -> Any:
        kept.append(residuals[0])
        return (g * 2 * kept[0],)

    with pytest.raises(GradcheckError):
        testing.gradcheck(given_by_hand(gf.square, backward), X)


def test_a_missing_un_broadcast_is_found() -> None:
    """In a derivative given by hand nobody else sums over the axes that were stretched."""
    f = given_by_hand(lambda x, y: x * y, lambda residuals, g: (g * residuals[1], g * residuals[0]))
    with pytest.raises(gf.errors.ShapeError, match=r"a cotangent of shape \(3, 3\) for a tensor of shape \(3,\)"):
        testing.gradcheck(f, X, Y[0])


def test_right_at_first_order_and_wrong_at_second() -> None:
    """A rule that hides from the second derivative how it depends on x."""

    def constant(x: Any) -> Any:
        return x.detach() if isinstance(x, Tensor) else x

    with registered(cube, lambda xp, x: x * x * x, x=lambda xp, g, x: g * 3 * constant(x) * x) as f:
        assert testing.gradcheck(f, X).comparisons == 2
        for check in (testing.gradgradcheck, lambda f, x: testing.check_grads(f, [x], order=2)):
            with pytest.raises(WrongDerivativeError, match="the second derivative") as raised:
                check(f, X)
            assert raised.value.primitive == "cube"
            assert raised.value.order == 2
    with registered(cube, lambda xp, x: x * x * x, x=lambda xp, g, x: g * 3 * x * x) as f:
        assert testing.gradgradcheck(f, X).comparisons == 2


def test_wrong_with_respect_to_the_cotangent() -> None:
    """A derivative that is not linear in its cotangent is right for none but one."""
    f = given_by_hand(gf.square, lambda residuals, g: (g * gf.abs(g) * 2 * residuals[0],))
    with pytest.raises(WrongDerivativeError):
        testing.gradcheck(f, X)
    with pytest.raises(PropertyError, match="not linear"):
        testing.check_linearity(f, X)


def test_an_infinite_derivative_is_wrong() -> None:
    for value in (np.inf, -np.inf, np.nan):
        f = given_by_hand(gf.square, lambda r, g, v=value: (g * 2 * r[0] + gf.tensor([0.0, 0.0, v]),))
        with pytest.raises(WrongDerivativeError) as raised:
            testing.gradcheck(f, X[0])
        assert raised.value.index == 2


@pytest.mark.parametrize("tiny", [1e-300, 1e-16, 1e-10, 1e-9, 0.0])
def test_wrong_near_zero(tiny: float) -> None:
    f = given_by_hand(gf.exp, lambda r, g: (g * gf.exp(r[0]) * gf.where(gf.abs(r[0]) < 1e-3, -1.0, 1.0),))
    with pytest.raises(WrongDerivativeError) as raised:
        testing.gradcheck(f, np.array([1.0, tiny, 2.0]))
    assert raised.value.index == 1


def test_an_argument_that_does_not_count_has_no_derivative() -> None:
    """Rounding in a large result blurs the differences, but not by as much as the mistake."""
    f = given_by_hand(lambda x, y: x * 1e6, lambda residuals, g: (g * 1e6, g))
    with pytest.raises(WrongDerivativeError, match="argument 1"):
        testing.gradcheck(f, X[0], Y[0])


@pytest.mark.parametrize("seed", range(20))
def test_no_false_alarm_from_rounding(seed: int) -> None:
    x, single = np.random.default_rng(seed).standard_normal(6), gf.float32
    testing.gradcheck(lambda x: (gf.tanh(x.astype(single)) * gf.tensor(np.ones(6))).sum(), x, seed=seed)
    testing.gradcheck(lambda x: gf.exp(x.astype(single)).astype(gf.float64), x, seed=seed)
    testing.gradcheck(lambda x: (gf.exp(x) + 1e8).sum() - 6e8, x, seed=seed)
    testing.gradcheck(lambda x: gf.exp(-((x * 1e8) ** 2)), np.array([1e-8, 2e-8]), seed=seed)


def test_many_directions_and_many_kinks() -> None:
    assert testing.gradcheck(gf.exp, X, directions=500).comparisons == 500
    x = np.concatenate([np.zeros(200), np.ones(5)])
    done = testing.gradcheck(gf.relu, x)
    assert len(done.rejected) == 200 and done.comparisons


# ---------------------------------------------------------------- kinks
@pytest.mark.parametrize(
    ("f", "x", "rejected"),
    [
        (gf.relu, [-1.0, 0.0, 1.0], [1]),
        (lambda x: gf.abs(x - 1) + gf.relu(x - 1), [1.0, 2.0, 1.0], [0, 2]),
        (lambda x: gf.maximum(x, 1.0), [1.0, 2.0, 1.0], []),  # ½, the mean of both slopes
        (lambda x: gf.clip(x, -1, 1), [-1.0, 0.3, 1.0, 2.0], [0, 2]),
        (gf.sqrt, [0.0, 1.0], [0]),
        (gf.floor, [1.0, 1.5], [0]),
        (lambda x: gf.relu(x - 1e-8), [0.0, 1.0], [0]),
    ],
)
def test_a_kink_is_left_out_and_the_rest_is_checked(f: Any, x: list[float], rejected: list[int]) -> None:
    for full in (False, True):
        done = testing.gradcheck(f, np.array(x), full=full)
        assert sorted({r.element for r in done.rejected}) == rejected
        assert done.comparisons


def test_the_rest_is_really_checked() -> None:
    f = given_by_hand(gf.relu, lambda residuals, g: (g * gf.where(residuals[0] > 2, 1.001, residuals[0] > 0),))
    with pytest.raises(WrongDerivativeError) as raised:
        testing.gradcheck(f, np.array([0.0, 1.0, 0.0, 3.0, 0.0, -1.0]))
    assert raised.value.index == 3


def test_no_false_alarm_where_a_kink_is_near() -> None:
    x = RNG.standard_normal(2000) * 1e-2
    x[::50] = 0
    done = testing.gradcheck(lambda x: gf.relu(x) * gf.sum(x * x), x)
    assert done.comparisons


def test_nothing_to_check_is_said() -> None:
    with pytest.warns(testing.KinkWarning, match="nothing was checked of relu at this point: a kink"):
        done = testing.gradcheck(gf.relu, np.zeros(1))
    assert done.comparisons == 0


@given(st.integers(-2, 2))
def test_hypothesis_draws_another_example_at_a_kink(x: int) -> None:
    assert testing.gradcheck(gf.relu, np.array(float(x))).comparisons == 2
    assert x != 0


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("f", [gf.log, gf.sqrt, gf.exp, gf.tanh, lambda x: 1 / x, lambda x: x**3])
def test_no_false_alarm_at_any_scale(f: Any, scale: float) -> None:
    x = RNG.uniform(1.0, 2.0, 5) * (scale if f is not gf.exp else min(scale, 100.0))
    assert testing.gradcheck(f, x).comparisons


def test_a_wide_range_of_magnitudes() -> None:
    assert testing.gradcheck(lambda x: gf.log(x).sum(), np.logspace(-6, 6, 13)).comparisons


# ---------------------------------------------------------------- finite differences against calculus
@pytest.mark.parametrize(
    ("f", "df", "at"),
    [
        (math.exp, math.exp, 1.0),
        (math.sin, math.cos, 0.3),
        (math.log, lambda x: 1 / x, 0.01),
        (lambda x: x**9, lambda x: 9 * x**8, 2.0),
        (math.atan, lambda x: 1 / (1 + x * x), 100.0),
    ],
)
def test_slopes(f: Callable[[float], float], df: Callable[[float], float], at: float) -> None:
    def phi(h: float) -> Any:
        try:
            return np.array([f(at + h)])
        except ValueError:
            return np.array([np.nan])

    found = slope(phi, np.array([abs(f(at)) * 2e-16]))
    true_error = abs(found.value[0] - df(at))
    assert true_error <= 1e-8 * max(1.0, abs(df(at)))
    assert true_error <= 10 * found.error[0] + 1e-12
    assert abs(found.jump[0]) < 1e-3 * max(1.0, abs(df(at)))


def test_slopes_at_a_kink_and_outside_a_domain() -> None:
    found = slope(lambda h: np.array([abs(h), max(h, 0.0), h]), np.full(3, 1e-16))
    np.testing.assert_allclose(found.jump, [2, 1, 0], atol=1e-9)
    nowhere = slope(lambda h: np.array([np.nan if h else 1.0]), np.array([1e-16]))
    assert np.isnan(nowhere.value[0]) and np.isinf(nowhere.error[0])


# ---------------------------------------------------------------- functions that are none
def test_random_numbers_are_found() -> None:
    def noisy(x: Any) -> Any:
        return x * gf.random.uniform(x.shape, dtype=gf.float64)

    with pytest.raises(NondeterministicError, match="two calls of noisy on the same inputs differ in its values"):
        testing.gradcheck(noisy, X)
    fixed = testing.gradcheck(lambda x: x * gf.random.uniform(x.shape, dtype=x.dtype, generator=gf.Generator(0)), X)
    assert fixed.comparisons


def test_a_random_derivative_is_found() -> None:
    f = given_by_hand(
        gf.square, lambda residuals, g: (g * 2 * residuals[0] * (1 + gf.random.uniform((), dtype=gf.float64) * 1e-12),)
    )
    with pytest.raises(NondeterministicError, match="differ in its derivative"):
        testing.gradcheck(f, X)


def test_a_value_that_depends_on_recording_is_found() -> None:
    f = gf.custom_vjp(gf.square)
    f.defvjp(lambda x: (gf.square(x) + 1e-6, x), lambda x, g: (g * 2 * x,))
    with pytest.raises(NondeterministicError, match="with and without recording"):
        testing.gradcheck(f, X)


def test_writes_into_inputs_are_found() -> None:
    def forgetful(x: Any) -> Any:
        out = x * 2
        with gf.no_grad():
            x[0, 1] = 7.0
        return out

    with pytest.raises(MutatedInputError, match=r"forgetful wrote into argument 0: element 1 was .* and is .*7\.0"):
        testing.gradcheck(forgetful, X)

    def counts(x: Any, seen: Any) -> Any:
        seen[0] = 7
        return x * 2

    with pytest.raises(MutatedInputError, match=r"counts wrote into argument 1: element 0"):
        testing.gradcheck(counts, X, np.arange(3))

    def backward(residuals: Any, g: Any) -> Any:
        out = g * 2 * residuals[0]
        with gf.no_grad():
            residuals[0].data[0, 0] = -1.0
        return (out,)

    with pytest.raises(MutatedInputError, match="the derivative of square wrote into argument 0: element 0"):
        testing.gradcheck(given_by_hand(gf.square, backward), X)


# ---------------------------------------------------------------- what can be checked
def test_modules_with_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    done = testing.check_grads(model, [X], order=2)
    assert done.comparisons == 8 and not done.rejected
    for k, v in model.state_dict().items():
        np.testing.assert_array_equal(v.numpy(), before[k])
        assert v.dtype == gf.float32
    assert all(p.grad is None for p in model.parameters())


def test_a_wrong_layer_names_its_parameter() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter([2.0, 3.0, 4.0])
            self.multiply = given_by_hand(lambda x, w: x * w, lambda r, g: (g * r[1], (g * r[0]).sum(axis=0) * 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.multiply(x, self.weight)

    with pytest.raises(
        WrongDerivativeError, match=r"of Scale with respect to argument 1\['weight'\] is wrong"
    ) as raised:
        testing.gradcheck(Scale(), X)
    assert raised.value.reproduce.startswith("testing.gradcheck(model, np.array(")


def test_nested_inputs_and_outputs_integers_and_settings() -> None:
    def f(tree: Any, labels: Any, scale: float) -> Any:
        return {"loss": gf.cross_entropy(tree["a"] * scale, labels), "rest": [tree["b"][0] * 2, labels]}

    tree = {"a": X, "b": (Y, 3)}
    done = testing.check_grads(f, [tree, np.array([0, 2, 1]), 1.5], order=2)
    assert done.comparisons == 8
    assert testing.gradcheck(f, tree, np.array([0, 2, 1]), 1.5, full=True).comparisons == 180


def test_wrt_chooses_inputs() -> None:
    f = given_by_hand(lambda x, y: x * y, lambda residuals, g: (g * residuals[1], g * residuals[0] * 3))
    assert testing.gradcheck(f, X, Y, wrt=0).comparisons == 2
    assert testing.gradcheck(f, X, Y, wrt=(0,)).comparisons == 2
    for wrt in (1, -1, None, (0, 1)):
        with pytest.raises(WrongDerivativeError, match="argument 1"):
            testing.gradcheck(f, X, Y, wrt=wrt)


def test_float32_is_checked_in_float64() -> None:
    seen = []

    def f(x: Any) -> Any:
        seen.append(x.dtype)
        return gf.exp(x)

    given = gf.tensor([0.5, 1.0])
    assert testing.gradcheck(f, given).comparisons == 2
    assert set(seen) == {gf.float64}
    assert given.dtype == gf.float32 and not given.requires_grad


def test_what_computes_in_float32_inside_is_checked_as_far_as_rounding_lets() -> None:
    assert testing.gradcheck(lambda x: gf.exp(x.astype(gf.float32)), X).comparisons >= 2
    f = given_by_hand(gf.exp, lambda residuals, g: (g * gf.exp(residuals[0]) * 1.001,))
    with pytest.raises(WrongDerivativeError):
        testing.gradcheck(lambda x: f(x.astype(gf.float32)), X)


def test_what_is_rougher_than_the_steps_is_said() -> None:
    with pytest.warns(testing.KinkWarning, match="too rough"):
        done = testing.gradcheck(lambda x: gf.remainder(x * 1e7, 1.0), X)
    assert not done.comparisons


def test_empty_and_0_d_inputs() -> None:
    assert testing.gradcheck(gf.exp, np.ones(())).comparisons == 2
    assert testing.gradcheck(gf.exp, np.ones((0, 3))).comparisons == 0
    assert testing.gradcheck(lambda x: x[:0], X).comparisons == 2


def test_a_number_of_elements_that_depends_on_the_values() -> None:
    assert testing.gradcheck(lambda x: x[x > 1] * 2, X).comparisons >= 2
    with pytest.warns(testing.KinkWarning):
        testing.gradcheck(lambda x: x[x >= 1] * 2, np.ones(1))


def test_on_another_backend() -> None:
    used = set()

    def f(x: Any) -> Any:
        used.add(x.backend.name)
        return gf.softmax(x)

    assert testing.check_grads(f, [X], backend=testing.without_kernels("numpy")).comparisons == 4
    assert used == {"rules-only"}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: testing.gradcheck(gf.exp), ArgumentError, "nothing to differentiate"),
        (lambda: testing.gradcheck(gf.exp, np.arange(3)), ArgumentError, "nothing to differentiate"),
        (lambda: testing.gradcheck(gf.exp, X, wrt=1), ArgumentError, "wrt=1 for 1 inputs"),
        (lambda: testing.gradcheck(gf.exp, X, mode="both"), ArgumentError, "mode='both'"),
        (lambda: testing.gradcheck(gf.exp, X, directions=0), ArgumentError, "directions=0"),
        (lambda: testing.gradcheck(gf.exp, X, directions="2"), DTypeError, "directions='2'"),
        (lambda: testing.gradcheck(gf.exp, X, wrt="0"), DTypeError, "wrt='0'"),
        (lambda: testing.gradcheck(gf.exp, X, rtol=-1), ArgumentError, "rtol=-1"),
        (lambda: testing.gradcheck(lambda x: None, X), ArgumentError, "no tensor of floating-point numbers"),
        (lambda: testing.gradcheck(lambda x: float(x.sum().item()), X), ArgumentError, "no tensor of floating-point"),
        (lambda: testing.gradgradcheck(gf.argmax, X), ArgumentError, "no tensor of floating-point numbers"),
        (lambda: testing.check_grads(gf.exp, X), DTypeError, "args of type ndarray"),
        (lambda: testing.check_grads(gf.exp, [X], order="2"), DTypeError, "order='2'"),
        (lambda: testing.check_linearity(gf.argmax, X), ArgumentError, "no tensor of floating-point numbers"),
        (lambda: testing.check_adjoint(gf.exp, np.arange(3)), ArgumentError, "nothing to differentiate"),
        (lambda: testing.backend_parity(lambda x: None, X), ArgumentError, "returned no tensor"),
        (lambda: testing.check_grads(gf.exp, [X], order=0), ArgumentError, "order=0"),
        (lambda: testing.check_grads(gf.exp, [X], modes=()), ArgumentError, "modes="),
        (lambda: testing.check_grads(gf.exp, [X], tol=1), DTypeError, "check_grads with tol"),
        (lambda: testing.check_batching(gf.exp, X, Y[:2]), ArgumentError, "their first axes"),
        (lambda: testing.backend_parity(gf.exp, X, backends=["numpy"]), ArgumentError, "it takes two"),
    ],
)
def test_misuse_is_refused(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        call()
    assert "why:" in str(raised.value) and "fix:" in str(raised.value)


# ---------------------------------------------------------------- the properties find what breaks them
def test_properties_hold_for_what_is_right() -> None:
    testing.check_linearity(lambda x, y: (x @ y, x * 2), X, Y)
    testing.check_adjoint(lambda x, y: {"a": gf.tanh(x @ y)}, X, Y)
    testing.check_chain_rule(lambda x: (gf.tanh(x), x), lambda a, b: a * b, X)
    testing.check_hessian_symmetry(lambda x: gf.exp(x @ x), X)
    testing.check_broadcasting(lambda x, y, i: x / y + i, X, Y[:, :1], np.arange(3))
    testing.check_batching(lambda x, y: (x @ gf.tensor(Y), gf.sum(x * y, axis=1)), X, Y)
    testing.check_replay(lambda x, y: (gf.exp(x) * y, x.sum()), X, Y)
    testing.backend_parity(lambda x, i: (gf.log_softmax(x), x[i]), X, np.array([0, 2]))


def asymmetric(residuals: Any, g: Any) -> Any:
    (x,) = residuals
    return (g * 2 * gf.stack([x[0], x[1] + x[0]]),)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: testing.check_linearity(given_by_hand(gf.exp, lambda r, g: (g * g,)), X), "not linear"),
        (
            lambda: testing.check_hessian_symmetry(given_by_hand(lambda x: (x * x).sum(), asymmetric), X[0, :2]),
            "the Hessian is not symmetric",
        ),
        (
            lambda: testing.check_broadcasting(lambda x, y: x * y if x.shape == y.shape else x * y * 2, X, Y[:1]),
            "values with implicit and explicit broadcasting differ",
        ),
        (
            lambda: testing.check_broadcasting(
                lambda x, y: x * y if x.shape == y.shape else x * gf.tensor(y.numpy()), X, Y[:1]
            ),
            "gradients with implicit and explicit broadcasting differ",
        ),
        (lambda: testing.check_batching(lambda x: x - x.mean(axis=0), X), "a batch differs from its samples"),
        (
            lambda: testing.check_batching(
                given_by_hand(gf.exp, lambda r, g: (g * gf.exp(r[0]) + g.mean(axis=0, keepdims=True) * 0.1,)), X
            ),
            "gradients of a batch differ",
        ),
        (
            lambda: testing.check_replay(lambda x, seen=[]: x * (seen.append(0) or len(seen)), X),
            "a replay differs from the function",
        ),
    ],
)
def test_properties_find_what_breaks_them(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(PropertyError, match=text) as raised:
        call()
    assert "why:" in str(raised.value) and "fix:" in str(raised.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_property(bad: float) -> None:
    f = given_by_hand(gf.exp, lambda residuals, g: (g * bad,))
    for check in (testing.check_linearity, testing.check_adjoint):
        with np.errstate(invalid="ignore"), pytest.raises(PropertyError, match="holds a NaN or an infinity"):
            check(f, X)


def test_forward_and_reverse_that_are_not_adjoint() -> None:
    """The forward derivative differentiates the reverse one by its cotangent, so one that is not linear betrays it."""
    f = given_by_hand(gf.exp, lambda residuals, g: (g * gf.exp(residuals[0]) + g * g,))
    with pytest.raises(PropertyError, match="not adjoint"):
        testing.check_adjoint(f, X)


def test_the_chain_rule_of_what_is_given_by_hand() -> None:
    """A function that looks at whether more follows."""

    def backward(residuals: Any, g: Any) -> Any:
        return (g * gf.exp(residuals[0]) * (1 + 0.1 * (g == 1)),)

    kept = given_by_hand(gf.exp, backward)
    seeds = []

    def f(x: Any) -> Any:
        seeds.append(len(seeds))
        return kept(x) if len(seeds) == 1 else gf.exp(x) * 1.01

    with pytest.raises(PropertyError, match="the chain rule with tanh fails"):
        testing.check_chain_rule(f, gf.tanh, X)


# ---------------------------------------------------------------- parity of backends
class Odd(type(testing.without_kernels("numpy"))):  # type: ignore[misc]
    """A backend that is wrong in one place."""

    def __init__(self, **kernels: Any) -> None:
        super().__init__(gf.get_backend())
        self.name = "odd"
        self.kernels = {**self.kernels, **kernels}


def fails(*_: Any, **__: Any) -> Any:
    raise KeyError("no such table")


@pytest.mark.parametrize(
    ("odd", "f", "text"),
    [
        (
            lambda: Odd(tanh=lambda x: np.tanh(x) + 1e-3),
            gf.tanh,
            "numpy and odd differ: .* at flat index 0 of result 0",
        ),
        (lambda: Odd(exp=fails), gf.exp, "returns and raises KeyError"),
        (lambda: Odd(floor=lambda x: np.floor(x)[:1]), gf.floor, r"\(3, 3\) and float64 \(1, 3\)"),
    ],
)
def test_a_backend_that_differs_is_found(odd: Any, f: Any, text: str) -> None:
    with pytest.raises(PropertyError, match=text):
        testing.backend_parity(f, X, backends=["numpy", odd()])


def test_a_wrong_gradient_on_one_backend_is_found() -> None:
    odd = Odd()
    odd.vjps = {("tanh", "x"): lambda xp, g, out: g}
    with pytest.raises(PropertyError, match=r"numpy and odd differ: .* of result 1"):
        testing.backend_parity(gf.tanh, X, backends=["numpy", odd])


def test_what_is_broken_everywhere_is_not_parity() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sine'"):
        testing.backend_parity(lambda x: x.sine(), X)


def test_another_exception_on_one_backend_is_found() -> None:
    def f(x: Any) -> Any:
        raise (ValueError if x.backend.name == "numpy" else TypeError)("no")

    with pytest.raises(
        PropertyError, match=r"raises (ValueError and raises TypeError|TypeError and raises ValueError)"
    ):
        testing.backend_parity(f, X)
    testing.backend_parity(lambda x: gf.matmul(x, gf.ones((2, 2), backend=x.backend)), X)


# ---------------------------------------------------------------- weight, and the plug-in
def test_importing_the_kit_imports_no_hypothesis() -> None:
    code = "import sys, gradflow.testing; assert 'hypothesis' not in sys.modules and 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checks_leave_no_warning_and_no_setting_behind() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        testing.gradcheck(gf.log, np.array([1e-3, 2.0]))
    before = np.geterr()
    testing.gradcheck(gf.exp, X)
    assert np.geterr() == before and gf.is_grad_enabled()


def test_every_name_is_there_and_says_what_it_is() -> None:
    assert set(testing.__all__) <= set(dir(testing))
    for name in testing.__all__:
        found = getattr(testing, name)
        assert not isinstance(found, types.ModuleType), f"testing.{name} is a module"
        assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'gradchek'"):
        _ = testing.gradchek


def test_without_hypothesis_the_strategies_say_so() -> None:
    code = """
import sys
import types
sys.modules["hypothesis"] = None
import numpy as np, gradflow as gf
from gradflow import testing
testing.gradcheck(gf.exp, np.ones(2))
try:
    testing.programs
except gf.errors.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "testing.programs needs hypothesis.\n  why: it draws the examples.\n  fix: pip install hypothesis\n"
    )
