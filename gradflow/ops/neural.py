"""Fused operations of neural networks: linear maps, softmax, and the losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradflow.arguments import choice, flag, integer, number
from gradflow.errors import ArgumentError, DTypeError, ShapeError, explain
from gradflow.ops import reduction
from gradflow.ops.axes import canonical_axes, canonical_axis, kept_shape, refuse
from gradflow.ops.creation import as_pair, as_tensor
from gradflow.ops.elementwise import isfinite, positive, where
from gradflow.ops.linalg import matmul, matrix_transpose
from gradflow.ops.reduction import Axes
from gradflow.ops.shaping import astype, expand_dims, moveaxis
from gradflow.primitive import defimpl, defvjp, primitive
from gradflow.tensor import OPS, Operand, Tensor


# ---------------------------------------------------------------- linear
def _check_linear(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    if len(weight) != 2:
        raise ShapeError(
            explain(
                f"linear with a weight of shape {weight}.", "a weight has shape (out, in).", "weight.reshape(out, in)"
            )
        )
    if not x or x[-1] != weight[1]:
        raise ShapeError(
            explain(
                f"linear got input of shape {x}: its last axis must be {weight[1]}.",
                f"a weight of shape {weight} maps {weight[1]} features to {weight[0]}.",
                f"x.reshape(-1, {weight[1]}), or a weight of shape ({weight[0]}, {x[-1] if x else 1})",
            )
        )
    if bias != weight[:1]:
        raise ShapeError(
            explain(
                f"linear with a bias of shape {bias}.",
                f"a weight of shape {weight} needs a bias of shape {weight[:1]}.",
                f"bias.reshape({weight[0]})",
            )
        )


@primitive("numeric", name="linear", check=_check_linear)
def _linear(x: Operand, weight: Operand, bias: Operand, /) -> Tensor: ...


def _rows(xp: Any, x: Any) -> Any:
    """All axes but the last as one."""
    return x if len(x.shape) == 2 else xp.reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))


def _map_rows(xp: Any, x: Any, matrix: Any) -> Any:
    """The last axis of x times a matrix."""
    y = xp.matmul(_rows(xp, x), matrix)
    return y if len(x.shape) == 2 else xp.reshape(y, shape=(*x.shape[:-1], matrix.shape[1]))


def _impl_linear(xp: Any, x: Any, weight: Any, bias: Any) -> Any:
    _check_linear(x.shape, weight.shape, bias.shape)
    return _map_rows(xp, x, xp.matrix_transpose(weight)) + bias


defimpl(_linear, _impl_linear)
defvjp(
    _linear,
    x=lambda xp, g, weight: _map_rows(xp, g, weight),  # noqa: PLW0108  (a rule names what it saves)
    weight=lambda xp, g, x: xp.matmul(xp.matrix_transpose(_rows(xp, g)), _rows(xp, x)),
    bias=lambda xp, g: g,
)


def linear(x: Operand, weight: Operand, bias: Operand | None = None, /) -> Tensor:
    """Affine map of the last axis, y = x Wᵀ + b.

    Args:
        x: shape (…, in).
        weight: shape (out, in).
        bias: shape (out,), or None.

    Raises:
        ShapeError: the last axis of x is not `in`, or the bias is not (out,).

    >>> gf.linear(gf.tensor([[1.0, 2.0]]), gf.tensor([[3.0, 4.0]]), gf.tensor([0.5]))
    tensor([[11.5]])
    """
    if bias is not None:
        return _linear(x, weight, bias)
    x, weight = as_pair(x, weight)
    _check_linear(x.shape, weight.shape, weight.shape[:1])
    return matmul(x, matrix_transpose(weight))


# ---------------------------------------------------------------- softmax
@primitive("float", name="softmax")
def _softmax(x: Tensor, /, *, axis: int) -> Tensor: ...


@primitive("float", name="log_softmax")
def _log_softmax(x: Tensor, /, *, axis: int) -> Tensor: ...


@primitive("float", name="logsumexp")
def _logsumexp(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


def _peak(xp: Any, x: Any, axis: tuple[int, ...]) -> Any:
    """The largest value, or the largest finite number where that is infinite: ∞ − ∞ would be NaN."""
    limit = float(np.finfo(x.dtype).max)
    return xp.clip(xp.max(x, axis=axis, keepdims=True), -limit, limit)


def _impl_softmax(xp: Any, x: Any, *, axis: int) -> Any:
    e = xp.exp(x - _peak(xp, x, (axis,)))
    return e / xp.sum(e, axis=(axis,), keepdims=True)


def _impl_logsumexp(xp: Any, x: Any, *, axis: tuple[int, ...], keepdims: bool) -> Any:
    """The sum is at least 1, unless every x is −∞; so the logarithm of 0 is never taken."""
    total = xp.sum(xp.exp(x - _peak(xp, x, axis)), axis=axis, keepdims=True)
    out = xp.log(xp.maximum(total, 1.0)) + xp.max(x, axis=axis, keepdims=True)
    return out if keepdims else xp.reshape(out, shape=tuple(n for i, n in enumerate(x.shape) if i not in axis))


def _impl_log_softmax(xp: Any, x: Any, *, axis: int) -> Any:
    """Less the peak first: x less its logsumexp would lose the digits that a large x has before the point."""
    below = x - _peak(xp, x, (axis,))
    return below - xp.log(xp.sum(xp.exp(below), axis=(axis,), keepdims=True))


def _vjp_logsumexp(xp: Any, g: Any, x: Any, axis: tuple[int, ...]) -> Any:
    """The softmax, which is 0 where every x is −∞."""
    e = xp.exp(x - _peak(xp, x, axis))
    return xp.reshape(g, shape=kept_shape(x.shape, axis)) * (e / xp.maximum(xp.sum(e, axis=axis, keepdims=True), 1.0))


defimpl(_softmax, _impl_softmax)
defimpl(_log_softmax, _impl_log_softmax)
defimpl(_logsumexp, _impl_logsumexp)
defvjp(_softmax, x=lambda xp, g, out, axis: out * (g - xp.sum(g * out, axis=(axis,), keepdims=True)))
defvjp(_log_softmax, x=lambda xp, g, out, axis: g - xp.exp(out) * xp.sum(g, axis=(axis,), keepdims=True))
defvjp(_logsumexp, x=_vjp_logsumexp)


def softmax(x: Operand, /, *positional: object, axis: int = -1, **wrong: object) -> Tensor:
    """Softmax pₖ = exp(xₖ) / Σⱼ exp(xⱼ) along an axis, exact to rounding for any x.

    >>> gf.softmax(gf.tensor([0.0, 0.0]))
    tensor([0.5, 0.5])
    """
    if positional or wrong:
        refuse("softmax", positional, wrong)
    x = as_tensor(x)
    at = canonical_axis("softmax", axis, x.ndim)
    return _softmax(x, axis=at) if x.size else positive(x)


def log_softmax(x: Operand, /, *positional: object, axis: int = -1, **wrong: object) -> Tensor:
    """Logarithm of the softmax, xₖ − ln Σⱼ exp(xⱼ), along an axis, exact to rounding for any x.

    >>> gf.log_softmax(gf.tensor([0.0, 1e4]))
    tensor([-10000.,      0.])
    """
    if positional or wrong:
        refuse("log_softmax", positional, wrong)
    x = as_tensor(x)
    at = canonical_axis("log_softmax", axis, x.ndim)
    return _log_softmax(x, axis=at) if x.size else positive(x)


def logsumexp(x: Operand, /, *positional: object, axis: Axes = None, keepdims: bool = False, **wrong: object) -> Tensor:
    """ln Σ exp(xᵢ) over axes, exact to rounding for any x; −∞ where every x is −∞.

    >>> gf.logsumexp(gf.tensor([1e4, 1e4]))
    tensor(10000.693)
    """
    if positional or wrong:
        refuse("logsumexp", positional, wrong)
    x = as_tensor(x)
    return _logsumexp(
        x, axis=canonical_axes("logsumexp", axis, x.ndim), keepdims=flag("logsumexp", "keepdims", keepdims)
    )


# ---------------------------------------------------------------- losses
@primitive("float", promote=("logits",), residual=True)
def softmax_cross_entropy(logits: Tensor, labels: Tensor, /, *, ignore_index: int) -> Tensor:
    """Mean of −ln softmax(logits)[label] over the rows of logits (n, classes) whose integer label (n,) counts."""
    ...


@primitive("any", nondifferentiable=True)
def one_hot(labels: Operand, /, *, classes: int, dtype: Any) -> Tensor:
    """1 at each label, 0 elsewhere, along a new last axis of length `classes`; a label outside 0…classes−1 raises."""
    ...


@primitive("float")
def binary_cross_entropy_terms(logits: Tensor, target: Tensor, /) -> Tensor:
    """−t ln σ(x) − (1 − t) ln(1 − σ(x)), element by element, exact to rounding for any x."""
    ...


@primitive("float")
def binary_cross_entropy_of_probabilities(x: Tensor, target: Tensor, /) -> Tensor:
    """−t ln x − (1 − t) ln(1 − x), element by element, with each logarithm at least −100."""
    ...


@primitive("float", residual=True)
def mean_squared_error(x: Tensor, target: Tensor, /) -> Tensor:
    """Mean of (x − target)² over all elements; the shapes are equal."""
    ...


def _impl_bce(xp: Any, x: Any, t: Any) -> Any:
    """Every term is ≥ 0, so nothing cancels; a factor of exactly 0 silences an infinite term."""
    tail = xp.softplus(-xp.abs(x))
    missed = t * xp.maximum(xp.where(t == 0, 0.0, -x), 0.0)
    return tail + missed + (1 - t) * xp.maximum(xp.where(t == 1, 0.0, x), 0.0)


def _clamped_log(xp: Any, x: Any) -> Any:
    return xp.maximum(xp.where(x == 0, -100.0, xp.log(xp.where(x == 0, 1.0, x))), -100.0)


def _vjp_bce_of_probabilities(xp: Any, g: Any, x: Any, target: Any) -> Any:
    return g * (x - target) / xp.maximum(x * (1 - x), 1e-12)


def _counted(xp: Any, labels: Any, ignore_index: int, dtype: Any) -> tuple[Any, Any, Any]:
    """The labels with ignored ones as 0, a column of 1 where a row counts, and the number of rows that count."""
    counts = labels != ignore_index
    share = xp.reshape(xp.astype(counts, dtype=dtype), shape=(labels.shape[0], 1))
    return xp.where(counts, labels, 0), share, xp.sum(share, axis=(0, 1), keepdims=False)


def _impl_cross_entropy(xp: Any, logits: Any, labels: Any, *, ignore_index: int) -> Any:
    safe, share, number = _counted(xp, labels, ignore_index, logits.dtype)
    picked = xp.one_hot(safe, classes=logits.shape[1], dtype=logits.dtype) * share != 0
    total = xp.sum(xp.where(picked, xp.log_softmax(logits, axis=1), 0.0), axis=(0, 1), keepdims=False)
    return xp.where(number == 0, float("nan"), -total / xp.maximum(number, 1.0))


def _vjp_cross_entropy(xp: Any, g: Any, logits: Any, labels: Any, ignore_index: int) -> Any:
    safe, share, number = _counted(xp, labels, ignore_index, logits.dtype)
    missed = xp.softmax(logits, axis=1) - xp.one_hot(safe, classes=logits.shape[1], dtype=logits.dtype)
    return missed * (share * (g / xp.maximum(number, 1.0)))


defimpl(softmax_cross_entropy, _impl_cross_entropy)
defimpl(binary_cross_entropy_terms, _impl_bce)
defimpl(
    binary_cross_entropy_of_probabilities,
    lambda xp, x, target: -(target * _clamped_log(xp, x) + (1 - target) * _clamped_log(xp, 1 - x)),
)
defimpl(
    mean_squared_error,
    lambda xp, x, target: xp.mean(xp.square(x - target), axis=tuple(range(len(x.shape))), keepdims=False),
)
defvjp(softmax_cross_entropy, logits=_vjp_cross_entropy)
defvjp(
    binary_cross_entropy_terms,
    logits=lambda xp, g, logits, target: g * (xp.sigmoid(logits) - target),
    target=lambda xp, g, logits: -g * logits,
)
defvjp(
    binary_cross_entropy_of_probabilities,
    x=_vjp_bce_of_probabilities,
    target=lambda xp, g, x: g * (_clamped_log(xp, 1 - x) - _clamped_log(xp, x)),
)
defvjp(
    mean_squared_error,
    x=lambda xp, g, x, target: (x - target) * (g * (2 / max(x.size, 1))),
    target=lambda xp, g, x, target: (target - x) * (g * (2 / max(x.size, 1))),
)

_REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(function: str, reduction_: str) -> None:
    choice(function, "reduction", reduction_, _REDUCTIONS)


def _reduced(loss: Tensor, how: str) -> Tensor:
    if how == "none":
        return loss
    return reduction.mean(loss) if how == "mean" else reduction.sum(loss)


def _same_shape(function: str, x: Tensor, target: Tensor) -> None:
    if x._data.shape == target._data.shape:
        return
    fix = f"target.reshape({x.shape})" if x.size == target.size else "compare model(x).shape with target.shape"
    raise ShapeError(
        explain(
            f"{function} got input of shape {x.shape} and target of shape {target.shape}.",
            "they would broadcast against each other and give a wrong loss in silence.",
            fix,
        )
    )


def _check_weight(function: str, name: str, weight: Operand, shape: tuple[int, ...]) -> None:
    given = weight.shape if isinstance(weight, Tensor) else as_tensor(weight).shape
    if len(given) > len(shape) or any(n not in (1, m) for n, m in zip(given[::-1], shape[::-1], strict=False)):
        raise ShapeError(
            explain(
                f"{function} with {name} of shape {given} for input of shape {shape}.",
                "aligned at the right, each length must be equal or 1, and no axis may be new.",
                f"gf.broadcast_to({name}, {shape}) shows whether it fits",
            )
        )


def _binary_operands(
    function: str, input: Operand, target: Operand, weight: Operand | None, reduction_: str
) -> tuple[Tensor, Tensor]:
    """The operands of a binary cross-entropy, and its options, checked."""
    _check_reduction(function, reduction_)
    x, t = as_pair(input, target)
    _same_shape(function, x, t)
    if weight is not None:
        _check_weight(function, "weight", weight, x.shape)
    return x, t


def mse_loss(input: Operand, target: Operand, /, *, reduction: str = "mean") -> Tensor:
    """Squared error (x − t)², its mean, its sum, or element by element.

    Args:
        input: predictions of any shape.
        target: the same shape.
        reduction: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.

    >>> gf.mse_loss(gf.tensor([1.0, 2.0]), gf.tensor([0.0, 0.0]))
    tensor(2.5)
    """
    x, t = as_pair(input, target)
    _same_shape("mse_loss", x, t)
    _check_reduction("mse_loss", reduction)
    if reduction == "mean":
        return mean_squared_error(x, t)
    return _reduced(OPS.square(x - t), reduction)


def binary_cross_entropy_with_logits(
    input: Operand,
    target: Operand,
    /,
    *,
    weight: Operand | None = None,
    pos_weight: Operand | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy −w [p t ln σ(x) + (1 − t) ln(1 − σ(x))] of logits x, exact to rounding for any x.

    Args:
        input: logits of any shape.
        target: probabilities in [0, 1], the same shape; integers and booleans are taken as 0 and 1.
        weight: factor w of each element; broadcasts.
        pos_weight: factor p of the positive part; broadcasts.
        reduction: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes of input and target differ, or a weight would stretch the loss.

    >>> gf.binary_cross_entropy_with_logits(gf.tensor([0.0, 1e4]), gf.tensor([1.0, 1.0]))
    tensor(0.34657359)
    """
    x, t = _binary_operands("binary_cross_entropy_with_logits", input, target, weight, reduction)
    if pos_weight is None:
        loss = binary_cross_entropy_terms(x, t)
    else:
        _check_weight("binary_cross_entropy_with_logits", "pos_weight", pos_weight, x.shape)
        t = astype(t, x.dtype, copy=False) if t.dtype.kind != "f" else t
        loss = t * pos_weight * OPS.softplus(-x) + (1 - t) * OPS.softplus(x)
    return _reduced(loss if weight is None else loss * weight, reduction)


def binary_cross_entropy(
    input: Operand, target: Operand, /, *, weight: Operand | None = None, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy −w [t ln x + (1 − t) ln(1 − x)] of probabilities x, each logarithm at least −100.

    With logits at hand, `binary_cross_entropy_with_logits` is exact where σ rounds to 0 or 1.

    Args:
        input: probabilities in [0, 1], any shape.
        target: probabilities in [0, 1], the same shape.
        weight: factor w of each element; broadcasts.
        reduction: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes of input and target differ, or the weight would stretch the loss.

    >>> gf.binary_cross_entropy(gf.tensor([0.5, 1.0]), gf.tensor([1.0, 1.0]))
    tensor(0.34657359)
    """
    x, t = _binary_operands("binary_cross_entropy", input, target, weight, reduction)
    loss = binary_cross_entropy_of_probabilities(x, t)
    return _reduced(loss if weight is None else loss * weight, reduction)


def cross_entropy(
    input: Operand,
    target: Operand,
    /,
    *,
    weight: Operand | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy −Σₖ tₖ ln softmax(x)ₖ of logits x, with class labels or class probabilities.

    Args:
        input: logits, shape (classes,), (n, classes) or (n, classes, …), the classes on axis 1 as in PyTorch.
        target: labels of any integer dtype, shaped as input without the class axis; or probabilities shaped as input.
        weight: factor of each class, shape (classes,); "mean" then divides by the weights of the labels.
        ignore_index: label that counts for nothing.
        label_smoothing: share ε of the probability that is spread evenly over the classes.
        reduction: "mean", "sum" or "none".

    Raises:
        ShapeError: shapes that do not fit.
        ArgumentError: a label outside 0…classes−1 that is not ignore_index, or label_smoothing outside [0, 1].

    >>> gf.cross_entropy(gf.tensor([[0.0, 0.0]]), gf.tensor([1]))
    tensor(0.6931472)
    """
    x, t = as_pair(input, target)
    if type(ignore_index) is not int:
        ignore_index = integer("cross_entropy", "ignore_index", ignore_index, fix="ignore_index=-100")
    label_smoothing = number("cross_entropy", "label_smoothing", label_smoothing, fix="label_smoothing=0.1")
    plain = weight is None and label_smoothing == 0.0 and reduction == "mean"
    if plain and t._data.dtype.kind in "iu" and x.ndim == 2 and t._data.shape == x._data.shape[:1]:
        return softmax_cross_entropy(x, t, ignore_index=ignore_index)
    _check_reduction("cross_entropy", reduction)
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(
            explain(
                f"cross_entropy with label_smoothing={label_smoothing}.",
                "it is a share in [0, 1].",
                "label_smoothing=0.1",
            )
        )
    if x.ndim == 0:
        raise ShapeError(
            explain("cross_entropy of a 0-d input.", "it needs a class axis.", "logits of shape (n, classes)")
        )
    at = 0 if x.ndim == 1 else 1
    logp = moveaxis(log_softmax(x, axis=at), at, -1)
    probabilities = t.dtype.kind == "f"
    expected = x.shape if probabilities else x.shape[:at] + x.shape[at + 1 :]
    if t.dtype.kind == "b":
        raise DTypeError(
            explain("cross_entropy with boolean labels.", "labels are class numbers.", "target.astype(gf.int64)")
        )
    if t.shape != expected:
        raise ShapeError(
            explain(
                f"cross_entropy got input of shape {x.shape} and target of shape {t.shape}.",
                f"{'class probabilities' if probabilities else 'class labels'} for that input have shape {expected}.",
                "target.astype(gf.int64) for class labels"
                if probabilities and t.shape == x.shape[:at] + x.shape[at + 1 :]
                else "target.reshape(-1)"
                if t.size == x.size // max(x.shape[at], 1)
                else "logits of shape (n, classes), labels (n,)",
            )
        )
    return _general_cross_entropy(
        logp, moveaxis(t, at, -1) if probabilities else t, weight, ignore_index, label_smoothing, reduction
    )


def _general_cross_entropy(
    logp: Tensor, t: Tensor, weight: Operand | None, ignore_index: int, smoothing: float, how: str
) -> Tensor:
    """Every option at once, on log-probabilities with the classes last."""
    classes = logp.shape[-1]
    counted = None
    if t.dtype.kind != "f":
        counted = t != ignore_index
        t = one_hot(where(counted, t, 0), classes=classes, dtype=logp.dtype)
    else:
        t = astype(t, logp.dtype, copy=False)
    share = astype(expand_dims(counted, axis=-1), logp.dtype) if counted is not None else None
    norm = t if share is None else t * share  # what "mean" divides by: the weights of the true classes
    if smoothing:
        t = t * (1 - smoothing) + smoothing / classes
    terms = -(t * where((t == 0) & ~isfinite(logp), 0.0, logp))  # 0 · ∞ = 0
    if weight is not None:
        weight = as_tensor(weight, logp.backend)
        if weight.shape != (classes,):
            raise ShapeError(
                explain(
                    f"cross_entropy with weight of shape {weight.shape} for {classes} classes.",
                    "there is one factor for each class.",
                    f"gf.ones({classes})",
                )
            )
        terms, norm = terms * weight, norm * weight
    loss = reduction.sum(terms, axis=-1)
    if counted is not None:
        loss = where(counted, loss, 0.0)
    if how != "mean":
        return _reduced(loss, how)
    if counted is None:
        return reduction.sum(loss) / (loss.size or float("nan"))
    return reduction.sum(loss) / reduction.sum(norm)


__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "linear", "log_softmax", "logsumexp",
    "mse_loss", "one_hot", "softmax",
]  # fmt: skip
