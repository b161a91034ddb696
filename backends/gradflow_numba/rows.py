"""Functions of the rows of a matrix: biases, softmax and its loss, layer normalisation, maxima."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradflow_numba.generic import exp, log, ordered, unordered
from gradflow_numba.jit import loop
from gradflow_numba.kernels import KERNELS, RESIDUAL_KERNELS, VJPS, Array, fits, kernel, new, vjp, with_residual
from gradflow_numpy.fused import product

MOST = np.iinfo(np.int64).max
BLOCK = 8192  # elements: rows are worked on in blocks that stay in the first cache


def _matrix(x: Array) -> Array:
    """All axes but the last as one."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# ---------------------------------------------------------------- linear
@loop
def _add_to_rows(x: Array, bias: Array) -> None:
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[r, j] += bias[j]


_numpy_linear = KERNELS["linear"]


@kernel("linear")
def linear(x: Array, weight: Array, bias: Array) -> Any:
    """The bias added in a compiled loop takes 0.4 µs for (64, 10), where NumPy's broadcasting takes 1.2."""
    if x.ndim != 2 or bias.ndim != 1 or len(bias) != len(weight) or not fits(bias) or x.dtype is not bias.dtype:
        return _numpy_linear(x, weight, bias)
    out = product(x, weight.T)
    _add_to_rows(out, bias)
    return out


# ---------------------------------------------------------------- softmax
@loop
def _exp_of_rows(x: Array, out: Array, start: int, stop: int, shifted: bool) -> None:
    """e^(x − max) of some rows, or x − max, which gives no NaN where every entry is −∞."""
    limit = np.finfo(x.dtype).max
    for r in range(start, stop):
        highest = ordered(-limit)
        for j in range(x.shape[1]):
            highest = max(highest, ordered(x[r, j]))
        top = min(unordered(highest, limit), limit)
        for j in range(x.shape[1]):
            out[r, j] = x[r, j] - top
    if not shifted:
        flat = out[start:stop].reshape(-1)  # short rows by themselves would not fill a vector
        for i in range(flat.size):
            flat[i] = exp(flat[i])


@loop
def _softmax(x: Array, out: Array) -> None:
    rows, classes = x.shape
    step = max(1, BLOCK // max(classes, 1))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        _exp_of_rows(x, out, start, stop, False)
        for r in range(start, stop):
            total = x.dtype.type(0)
            for j in range(classes):
                total += out[r, j]
            for j in range(classes):
                out[r, j] = out[r, j] / total


@loop
def _softmax_x(g: Array, y: Array, out: Array) -> None:
    for r in range(g.shape[0]):
        along = g.dtype.type(0)
        for j in range(g.shape[1]):
            along += g[r, j] * y[r, j]
        for j in range(g.shape[1]):
            out[r, j] = y[r, j] * (g[r, j] - along)


@loop
def _log_softmax(x: Array, out: Array, scratch: Array) -> None:
    rows, classes = x.shape
    for start in range(0, rows, scratch.shape[0]):
        stop = min(start + scratch.shape[0], rows)
        _exp_of_rows(x, out, start, stop, True)
        shifted, e = out[start:stop].reshape(-1), scratch[: stop - start].reshape(-1)
        for i in range(e.size):
            e[i] = exp(shifted[i])
        for r in range(start, stop):
            total = x.dtype.type(0)
            for j in range(classes):
                total += scratch[r - start, j]
            below = log(total)
            for j in range(classes):
                out[r, j] -= below


_numpy_softmax, _numpy_log_softmax = KERNELS["softmax"], KERNELS["log_softmax"]


def _along_last(x: Array, axis: int) -> bool:
    return x.ndim > 0 and axis == x.ndim - 1 and x.size > 0 and fits(x)


@kernel("softmax")
def softmax(x: Array, axis: int) -> Any:
    if not _along_last(x, axis):
        return _numpy_softmax(x, axis)
    out = new(x.shape, x.dtype, x.size)
    _softmax(_matrix(x), _matrix(out))
    return out


@kernel("log_softmax")
def log_softmax(x: Array, axis: int) -> Any:
    if not _along_last(x, axis):
        return _numpy_log_softmax(x, axis)
    out = new(x.shape, x.dtype, x.size)
    rows = _matrix(x)
    scratch = np.empty((min(len(rows), max(1, BLOCK // rows.shape[1])), rows.shape[1]), x.dtype)
    _log_softmax(rows, _matrix(out), scratch)
    return out


@vjp("softmax", "x")
def _(xp: Any, g: Array, out: Array, axis: int) -> Any:
    if not (_along_last(g, axis) and out.shape == g.shape and out.dtype is g.dtype and out.flags.carray):
        return out * (g - xp.sum(g * out, axis=(axis,), keepdims=True))
    ct = new(g.shape, g.dtype, g.size)
    _softmax_x(_matrix(g), _matrix(out), _matrix(ct))
    return ct


# ---------------------------------------------------------------- softmax cross-entropy
@loop
def _cross_entropy(logits: Array, labels: Array, ignore_index: int, missed: Array) -> tuple[float, int, bool]:
    """(sum of losses, rows that count, whether all labels are classes); softmax less the one-hot labels in `missed`."""
    rows, classes = logits.shape
    one, zero = logits.dtype.type(1), logits.dtype.type(0)
    for r in range(rows):
        if (labels[r] < 0 or labels[r] >= classes) and labels[r] != ignore_index:
            return 0.0, 0, False
    step = max(1, BLOCK // classes)
    loss, number = 0.0, 0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        _exp_of_rows(logits, missed, start, stop, True)
        for r in range(start, stop):
            if labels[r] != ignore_index:
                loss -= missed[r, labels[r]]
                number += 1
        flat = missed[start:stop].reshape(-1)
        for i in range(flat.size):
            flat[i] = exp(flat[i])
        for r in range(start, stop):
            total = zero
            for j in range(classes):
                total += missed[r, j]
            if labels[r] == ignore_index:
                for j in range(classes):
                    missed[r, j] = zero
                continue
            loss += log(total)
            for j in range(classes):
                missed[r, j] = missed[r, j] / total
            missed[r, labels[r]] -= one
    return loss, number, True


_numpy_cross_entropy = RESIDUAL_KERNELS["softmax_cross_entropy"]
_numpy_cross_entropy_logits = VJPS["softmax_cross_entropy", "logits"]


@with_residual("softmax_cross_entropy")
def softmax_cross_entropy(logits: Array, labels: Array, ignore_index: int) -> Any:
    if not (logits.size and fits(logits)) or labels.dtype == np.uint64 or abs(ignore_index) > MOST:
        return _numpy_cross_entropy(logits, labels, ignore_index)  # as int64 a label of 2⁶⁴ − 100 would be −100
    classes = labels.astype(np.int64) if labels.dtype != np.int64 or not labels.flags.carray else labels
    missed = new(logits.shape, logits.dtype, logits.size)
    loss, number, right = _cross_entropy(logits, classes, ignore_index, missed)
    if not right:
        return _numpy_cross_entropy(logits, labels, ignore_index)  # which says what is wrong
    return logits.dtype.type(loss / number if number else math.nan), (missed, number)


@vjp("softmax_cross_entropy", "logits")
def _(xp: Any, g: Any, logits: Array, labels: Array, ignore_index: int, residual: Any) -> Any:
    if len(residual) != 2:
        return _numpy_cross_entropy_logits(xp, g, logits, labels, ignore_index, residual)
    missed, number = residual
    out = new(missed.shape, missed.dtype, missed.size)
    return np.multiply(missed, missed.dtype.type(g / number if number else 0.0), out=out)


KERNELS["softmax_cross_entropy"] = lambda *operands, **settings: softmax_cross_entropy(*operands, **settings)[0]


# ---------------------------------------------------------------- layer normalisation
@loop
def _normalize(x: Array, weight: Array, bias: Array, eps: Any, unit: Array, inverse: Array, out: Array) -> None:
    """Centred twice: at an offset of 10⁴ the first mean is a thousandth off in float32."""
    rows, width = x.shape
    share, zero = x.dtype.type(1 / width), x.dtype.type(0)
    for r in range(rows):
        total = zero
        for j in range(width):
            total += x[r, j]
        mean = total * share
        rest = zero
        for j in range(width):
            unit[r, j] = x[r, j] - mean
            rest += unit[r, j]
        rest *= share
        square = zero
        for j in range(width):
            unit[r, j] -= rest
            square += unit[r, j] * unit[r, j]
        factor = x.dtype.type(1) / np.sqrt(square * share + eps)
        inverse[r] = factor
        for j in range(width):
            unit[r, j] *= factor
            out[r, j] = unit[r, j] * weight[j] + bias[j]


@loop
def _normalize_x(g: Array, weight: Array, unit: Array, inverse: Array, out: Array) -> None:
    rows, width = g.shape
    share, zero = g.dtype.type(1 / width), g.dtype.type(0)
    for r in range(rows):
        total = zero
        along = zero
        for j in range(width):
            d = g[r, j] * weight[j]
            total += d
            along += d * unit[r, j]
        total *= share
        along *= share
        for j in range(width):
            out[r, j] = (g[r, j] * weight[j] - total - unit[r, j] * along) * inverse[r]


@loop
def _normalize_weight(g: Array, unit: Array, out: Array) -> None:
    for r in range(g.shape[0]):
        for j in range(g.shape[1]):
            out[j] += g[r, j] * unit[r, j]


_numpy_layer_norm = RESIDUAL_KERNELS["layer_norm"]
_numpy_layer_norm_x, _numpy_layer_norm_weight = VJPS["layer_norm", "x"], VJPS["layer_norm", "weight"]


@with_residual("layer_norm")
def layer_norm(x: Array, weight: Array, bias: Array, axis: tuple[int, ...], eps: float) -> Any:
    if not (x.size and fits(x) and fits(weight) and fits(bias) and x.dtype is weight.dtype is bias.dtype):
        return _numpy_layer_norm(x, weight, bias, axis, eps)
    rows = x.reshape(-1, weight.size)
    unit, out = new(rows.shape, x.dtype, x.size), new(x.shape, x.dtype, x.size)
    inverse = np.empty((len(rows), 1), x.dtype)
    w, b = weight.reshape(-1), bias.reshape(-1)
    _normalize(rows, w, b, x.dtype.type(eps), unit, inverse.reshape(-1), out.reshape(rows.shape))
    return out, (unit, inverse)


@vjp("layer_norm", "x")
def _(xp: Any, g: Array, x: Array, weight: Array, axis: tuple[int, ...], eps: float, residual: Any) -> Any:
    unit, inverse = residual
    if not (g.size and fits(g) and fits(weight) and g.dtype is unit.dtype is weight.dtype):
        return _numpy_layer_norm_x(xp, g, x, weight, axis, eps, residual)
    out = new(g.shape, g.dtype, g.size)
    shape = unit.shape
    _normalize_x(g.reshape(shape), weight.reshape(-1), unit, inverse.reshape(-1), out.reshape(shape))
    return out


@vjp("layer_norm", "weight")
def _(xp: Any, g: Array, x: Array, axis: tuple[int, ...], eps: float, residual: Any) -> Any:
    unit, _ = residual
    if not (g.size and fits(g) and g.dtype is unit.dtype):
        return _numpy_layer_norm_weight(xp, g, x, axis, eps, residual)
    out = np.zeros(unit.shape[1], g.dtype)
    _normalize_weight(g.reshape(unit.shape), unit, out)
    return out.reshape([x.shape[a] for a in axis])


KERNELS["layer_norm"] = lambda *operands, **settings: layer_norm(*operands, **settings)[0]


# ---------------------------------------------------------------- maxima; NumPy's sums are as fast as compiled ones
@loop
def _max_of_rows(x: Array, out: Array) -> None:
    for r in range(x.shape[0]):
        highest = ordered(x[r, 0])
        for j in range(x.shape[1]):
            highest = max(highest, ordered(x[r, j]))
        out[r] = unordered(highest, x[r, 0])


@loop
def _min_of_rows(x: Array, out: Array) -> None:
    for r in range(x.shape[0]):
        highest = ordered(-x[r, 0])
        for j in range(x.shape[1]):
            highest = max(highest, ordered(-x[r, j]))
        out[r] = -unordered(highest, x[r, 0])


def _reduction(name: str, of_rows: Any) -> None:
    """Enter a loop over rows as the kernel where the last axes are reduced; NumPy is as fast over the first ones."""
    otherwise = KERNELS[name]

    def reduced(x: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
        n = len(axis)
        kept = x.ndim - n
        if not (n > 0 and kept and x.size and fits(x) and axis == tuple(range(kept, x.ndim))):
            return otherwise(x, axis, keepdims)
        shape = x.shape[:kept]
        rows = math.prod(shape)
        out = np.empty(rows, x.dtype)
        of_rows(x.reshape(rows, -1), out)
        return out.reshape(shape + (1,) * n if keepdims else shape)

    KERNELS[name] = reduced


_reduction("max", _max_of_rows)
_reduction("min", _min_of_rows)
