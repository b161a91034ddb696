"""Faster forward kernels and first-order derivatives of the primitives that training spends its time in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradflow_numpy.kernels import KERNELS, check_labels, kernel
from gradflow_numpy.pool import LARGE, room

Array = np.ndarray
Vjp = Callable[..., Any]

MANY = LARGE // 4  # elements: smaller results are not worth the 0.3 µs that asking the pool takes
_BOOL = np.dtype(np.bool_)

RESIDUAL_KERNELS: dict[str, Callable[..., Any]] = {}
VJPS: dict[tuple[str, str], Vjp] = {}
_add, _subtract, _multiply, _maximum, _minimum = np.add, np.subtract, np.multiply, np.maximum, np.minimum
_exp, _log, _tanh, _greater, _absolute, _negative = np.exp, np.log, np.tanh, np.greater, np.abs, np.negative


def vjp(primitive: str, operand: str) -> Callable[[Vjp], Vjp]:
    """Enter a function as the derivative of a primitive."""

    def enter(function: Vjp) -> Vjp:
        VJPS[primitive, operand] = function
        return function

    return enter


def with_residual(name: str) -> Callable[[Vjp], Vjp]:
    """Enter a function that returns (out, residual), and without the residual as the kernel."""

    def enter(function: Vjp) -> Vjp:
        RESIDUAL_KERNELS[name] = function
        KERNELS[name] = lambda *arrays, **settings: function(*arrays, **settings)[0]
        return function

    return enter


_ones: dict[int, Array] = {}


def ones(n: int, dtype: np.dtype[Any]) -> Array:
    """A kept vector of ones: a sum over rows as a product with it takes 0.8 µs where add.reduce takes 2.9."""
    kept = _ones.get(n)
    if kept is None or kept.dtype is not dtype:
        if len(_ones) > 64:
            _ones.clear()
        kept = _ones[n] = np.ones(n, dtype)
    return kept


@functools.cache
def _zero(dtype: np.dtype[Any]) -> Array:
    return np.zeros((), dtype)


def product(x: Array, y: Array) -> Any:
    """Matrix product x y, in recycled memory where it is large."""
    if len(x) * y.shape[1] < MANY:
        return x.dot(y)
    return x.dot(y, room((len(x), y.shape[1]), x.dtype))


# ---------------------------------------------------------------- activations
@vjp("tanh", "x")
def _(xp: Any, g: Array, out: Array) -> Any:
    """g − g out²: no constant takes part, which a ufunc would have to convert (0.3 µs)."""
    if not out.shape:
        return g - g * out * out
    d = _multiply(out, out) if out.size < MANY else _multiply(out, out, room(out.shape, out.dtype))
    _multiply(d, g, d)
    return _subtract(g, d, d)


@kernel
def relu(x: Array) -> Any:
    return _maximum(x, _zero(x.dtype)) if x.size < MANY else _maximum(x, 0, out=room(x.shape, x.dtype))


@vjp("relu", "x")
def _(xp: Any, g: Array, out: Array) -> Any:
    if out.size < MANY:
        return _multiply(g, _greater(out, _zero(out.dtype)))
    mask = _greater(out, 0, room(out.shape, _BOOL))
    return _multiply(g, mask, room(out.shape, g.dtype))


@kernel
def sigmoid(x: Array) -> Any:
    """exp(min(x, 0)) / (1 + exp(−|x|)): neither factor overflows, for any x."""
    if not x.shape:
        return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    top = _minimum(x, 0)
    _exp(top, top)
    e = _absolute(x)
    _negative(e, e)
    _exp(e, e)
    _add(e, 1, e)
    return np.divide(top, e, top)


@vjp("sigmoid", "x")
def _(xp: Any, g: Array, out: Array) -> Any:
    return g * (out - out * out)


@kernel
def softplus(x: Array) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# ---------------------------------------------------------------- softmax
def _finite(top: Array) -> Any:
    """The largest entries, infinite ones as the largest finite number: ∞ − ∞ would be NaN. A NaN stays."""
    limit = np.finfo(top.dtype).max
    return np.clip(top, -limit, limit)


def _shifted(x: Array, axis: int) -> Any:
    """x − max x, which gives no NaN where every entry is −∞."""
    top = _maximum.reduce(x, axis=axis, keepdims=True)
    if not np.isfinite(top).all():
        top = _finite(top)
    return _subtract(x, top, room(x.shape, x.dtype))


@kernel
def softmax(x: Array, axis: int) -> Any:
    e = _shifted(x, axis)
    _exp(e, e)
    return np.divide(e, _add.reduce(e, axis=axis, keepdims=True), e)


@kernel
def log_softmax(x: Array, axis: int) -> Any:
    d = _shifted(x, axis)
    return _subtract(d, _log(_add.reduce(_exp(d), axis=axis, keepdims=True)), d)


# ---------------------------------------------------------------- linear
def _matrix(x: Array) -> Array:
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@kernel
def linear(x: Array, weight: Array, bias: Array) -> Any:
    if x.ndim != 2:
        return linear(_matrix(x), weight, bias).reshape(*x.shape[:-1], weight.shape[0])
    if bias.ndim != 1 or len(bias) != len(weight):
        raise ValueError("the shape of the bias")  # it would broadcast
    out = product(x, weight.T)
    return _add(out, bias, out)


@vjp("linear", "x")
def _(xp: Any, g: Array, weight: Array) -> Any:
    if g.ndim != 2:
        return product(_matrix(g), weight).reshape(*g.shape[:-1], weight.shape[1])
    return product(g, weight)


@vjp("linear", "weight")
def _(xp: Any, g: Array, x: Array) -> Any:
    if g.ndim != 2:
        g, x = _matrix(g), _matrix(x)
    return product(x.T, g).T  # in the memory order in which nn.Linear keeps it


@vjp("linear", "bias")
def _(xp: Any, g: Array) -> Any:
    if g.ndim != 2:
        g = _matrix(g)
    return ones(len(g), g.dtype).dot(g)


# ---------------------------------------------------------------- losses
@with_residual("mean_squared_error")
def mean_squared_error(x: Array, target: Array) -> tuple[Any, Array]:
    d = _subtract(x, target)
    flat = d.reshape(-1)
    n = len(flat)
    return (flat.dot(flat) / n if n else d.dtype.type(np.nan)), d


@vjp("mean_squared_error", "x")
def _(xp: Any, g: Any, x: Array, target: Array, d: Array) -> Any:
    return _multiply(d, g.item() * 2 / d.size) if d.size else d


@vjp("mean_squared_error", "target")
def _(xp: Any, g: Any, x: Array, target: Array, d: Array) -> Any:
    return _multiply(d, g.item() * -2 / d.size) if d.size else d


_first_in_row: dict[tuple[int, int], Array] = {}


def _row_starts(n: int, classes: int) -> Array:
    starts = _first_in_row.get((n, classes))
    if starts is None:
        if len(_first_in_row) > 64:
            _first_in_row.clear()
        starts = _first_in_row[n, classes] = np.arange(n) * classes
    return starts


_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}  # seen so, a negative label is a large one


@with_residual("softmax_cross_entropy")
def softmax_cross_entropy(logits: Array, labels: Array, ignore_index: int) -> tuple[Any, Any]:
    n, classes = logits.shape
    counts = None
    if not logits.size or ignore_index >= 0 or _maximum.reduce(labels.view(_UNSIGNED[labels.itemsize])) >= classes:
        counts = labels != ignore_index
        labels = np.where(counts, labels, 0)
        check_labels(labels, classes)
    at = _add(_row_starts(n, classes), labels, dtype=np.int64, casting="unsafe")  # NumPy adds uint64 to it as floats
    if classes <= 64:  # a maximum over a short last axis takes 6.8 µs for (128, 10), over the first axis of a copy 2.1
        top = _maximum.reduce(logits.T.copy(), axis=0, initial=-np.inf)
    else:
        top = _maximum.reduce(logits, axis=1)
    if not math.isfinite(ones(n, top.dtype).dot(top)):
        top = _finite(top)
    p = _subtract(
        logits, top[:, None], room(logits.shape, logits.dtype), order="C"
    )  # its derivative reshapes without a copy
    picked = p.reshape(-1)[at]
    _exp(p, p)
    total = p.dot(ones(classes, p.dtype))
    loss = _log(total) - picked
    np.divide(p, total[:, None], p)
    if counts is None:
        return loss.dot(ones(n, p.dtype)) / n, (p, at, None, n)
    number = int(np.count_nonzero(counts))
    mean = loss[counts].sum() / number if number else p.dtype.type(np.nan)
    return mean, (p, at, counts, number)


@vjp("softmax_cross_entropy", "logits")
def _(xp: Any, g: Any, logits: Array, labels: Array, ignore_index: int, residual: Any) -> Any:
    p, at, counts, number = residual
    scale = g / number if number else g * np.nan
    ct = p * scale
    ct.reshape(-1)[at] -= scale
    if counts is not None:
        ct[~counts] = 0
    return ct


@kernel
def binary_cross_entropy_terms(x: Array, target: Array) -> Any:
    """ln(1 + e^−|x|) + t max(−x, 0) + (1 − t) max(x, 0): all terms ≥ 0; a factor of exactly 0 silences an ∞."""
    zero = np.zeros(np.broadcast_shapes(x.shape, target.shape), x.dtype)
    missed = np.multiply(target, np.maximum(-x, 0), where=target != 0, out=zero)
    missed = missed + np.multiply(1 - target, np.maximum(x, 0), where=target != 1, out=np.zeros_like(zero))
    return missed + np.log1p(np.exp(-np.abs(x)))
