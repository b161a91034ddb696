"""Reductions: sums, means, extremes and variances over axes."""

from __future__ import annotations

import builtins
from typing import Any

from gradflow.arguments import flag, number
from gradflow.config import get_default_dtype
from gradflow.ops.axes import canonical_axes, canonical_axis, kept_shape, refuse
from gradflow.ops.creation import as_tensor, check_dtype
from gradflow.primitive import defimpl, defvjp, primitive
from gradflow.tensor import OPS, Operand, Tensor

Axes = int | tuple[int, ...] | None


@primitive("any", name="sum")
def _sum(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


@primitive("any", name="mean")
def _mean(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


@primitive("any", name="max")
def _max(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


@primitive("any", name="min")
def _min(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


@primitive("any", name="var")
def _var(x: Tensor, /, *, axis: tuple[int, ...], correction: float, keepdims: bool) -> Tensor: ...


@primitive("any", name="std")
def _std(x: Tensor, /, *, axis: tuple[int, ...], correction: float, keepdims: bool) -> Tensor: ...


@primitive("any", name="all", nondifferentiable=True)
def _all(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


@primitive("any", name="any", nondifferentiable=True)
def _any(x: Tensor, /, *, axis: tuple[int, ...], keepdims: bool) -> Tensor: ...


@primitive("any", name="argmax", nondifferentiable=True)
def _argmax(x: Tensor, /, *, axis: int | None, keepdims: bool) -> Tensor: ...


@primitive("any", name="argmin", nondifferentiable=True)
def _argmin(x: Tensor, /, *, axis: int | None, keepdims: bool) -> Tensor: ...


# ---------------------------------------------------------------- rules
def _spread(xp: Any, g: Any, x_shape: tuple[int, ...], axis: tuple[int, ...], keepdims: bool) -> Any:
    """A cotangent of a reduction, broadcast back over the axes that were reduced."""
    return xp.broadcast_to(g if keepdims else xp.reshape(g, shape=kept_shape(x_shape, axis)), shape=x_shape)


def _count(shape: tuple[int, ...], axis: tuple[int, ...]) -> int:
    n = 1
    for a in axis:
        n *= shape[a]
    return n


def _share(shape: tuple[int, ...], axis: tuple[int, ...]) -> float:
    """What each element counts for in a mean; the mean of nothing is NaN."""
    return 1 / (_count(shape, axis) or float("nan"))


def _vjp_extreme(xp: Any, g: Any, x: Any, out: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Ties share the gradient equally: the minimum-norm subgradient."""
    kept = kept_shape(x.shape, axis)
    ties = xp.astype(x == xp.reshape(out, shape=kept), dtype=g.dtype)
    return ties * (xp.reshape(g, shape=kept) / xp.sum(ties, axis=axis, keepdims=True))


def _vjp_var(xp: Any, g: Any, x: Any, axis: tuple[int, ...], correction: float, keepdims: bool) -> Any:
    centred = x - xp.mean(x, axis=axis, keepdims=True)
    return _spread(xp, g, x.shape, axis, keepdims) * centred * (2 / _degrees(x.shape, axis, correction))


def _vjp_std(xp: Any, g: Any, x: Any, out: Any, axis: tuple[int, ...], correction: float, keepdims: bool) -> Any:
    """The derivative where all values are equal is 0, the minimum-norm subgradient."""
    centred = x - xp.mean(x, axis=axis, keepdims=True)
    inverse = xp.where(out == 0, 0.0, 1 / xp.where(out == 0, 1.0, out))
    return _spread(xp, g * inverse, x.shape, axis, keepdims) * centred * (1 / _degrees(x.shape, axis, correction))


def _degrees(shape: tuple[int, ...], axis: tuple[int, ...], correction: float) -> float:
    return builtins.max(_count(shape, axis) - correction, 0.0) or float("nan")


defvjp(_sum, x=_spread)
defvjp(
    _mean,
    x=lambda xp, g, x_shape, axis, keepdims: _spread(xp, g * _share(x_shape, axis), x_shape, axis, keepdims),
)
defvjp(_max, x=_vjp_extreme)
defvjp(_min, x=_vjp_extreme)
defvjp(_var, x=_vjp_var)
defvjp(_std, x=_vjp_std)


def _impl_var(xp: Any, x: Any, *, axis: tuple[int, ...], correction: float, keepdims: bool) -> Any:
    centred = x - xp.mean(x, axis=axis, keepdims=True)
    return xp.sum(centred * centred, axis=axis, keepdims=keepdims) * (1 / _degrees(x.shape, axis, correction))


defimpl(_mean, lambda xp, x, *, axis, keepdims: xp.sum(x, axis=axis, keepdims=keepdims) * _share(x.shape, axis))
defimpl(_var, _impl_var)
defimpl(_std, lambda xp, x, **settings: xp.sqrt(xp.var(x, **settings)))


# ---------------------------------------------------------------- public functions
def _floating(x: Operand) -> Tensor:
    x = as_tensor(x)
    return x if x._data.dtype.kind == "f" else OPS.astype(x, dtype=get_default_dtype())


def sum(
    x: Operand, /, *positional: object, axis: Axes = None, dtype: Any = None, keepdims: bool = False, **wrong: object
) -> Tensor:
    """Sum Σ xᵢ over axes; small integers are added in 64 bits.

    Args:
        axis: an axis, several, or None for all.
        dtype: the dtype to add in.
        keepdims: keep the reduced axes with length 1.

    Raises:
        IndexRangeError: an axis that x does not have.

    >>> gf.sum(gf.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    tensor([4., 6.])
    """
    if positional or wrong:
        refuse("sum", positional, wrong)
    x = as_tensor(x)
    if dtype is not None:
        from gradflow.ops.shaping import astype

        x = astype(x, check_dtype(dtype), copy=False)
        out = _sum(x, axis=canonical_axes("sum", axis, x.ndim), keepdims=flag("sum", "keepdims", keepdims))
        return astype(out, check_dtype(dtype), copy=False)
    return _sum(x, axis=canonical_axes("sum", axis, x.ndim), keepdims=flag("sum", "keepdims", keepdims))


def mean(x: Operand, /, *positional: object, axis: Axes = None, keepdims: bool = False, **wrong: object) -> Tensor:
    """Arithmetic mean (1/n) Σ xᵢ over axes.

    >>> gf.mean(gf.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=1)
    tensor([1.5, 3.5])
    """
    if positional or wrong:
        refuse("mean", positional, wrong)
    x = _floating(x)
    return _mean(x, axis=canonical_axes("mean", axis, x.ndim), keepdims=flag("mean", "keepdims", keepdims))


def max(x: Operand, /, *positional: object, axis: Axes = None, keepdims: bool = False, **wrong: object) -> Tensor:
    """Largest value over axes; ties share the gradient equally.

    >>> gf.max(gf.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1)
    tensor([2., 4.])
    """
    if positional or wrong:
        refuse("max", positional, wrong)
    x = as_tensor(x)
    return _max(x, axis=canonical_axes("max", axis, x.ndim), keepdims=flag("max", "keepdims", keepdims))


def min(x: Operand, /, *positional: object, axis: Axes = None, keepdims: bool = False, **wrong: object) -> Tensor:
    """Smallest value over axes; ties share the gradient equally.

    >>> gf.min(gf.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1)
    tensor([1., 3.])
    """
    if positional or wrong:
        refuse("min", positional, wrong)
    x = as_tensor(x)
    return _min(x, axis=canonical_axes("min", axis, x.ndim), keepdims=flag("min", "keepdims", keepdims))


def var(
    x: Operand,
    /,
    *positional: object,
    axis: Axes = None,
    correction: float = 0.0,
    keepdims: bool = False,
    **wrong: object,
) -> Tensor:
    """Variance Σ (xᵢ − x̄)² / (n − correction) over axes.

    >>> gf.var(gf.tensor([1.0, 2.0, 3.0]), correction=1)
    tensor(1.)
    """
    if positional or wrong:
        refuse("var", positional, wrong)
    x = _floating(x)
    return _var(
        x,
        axis=canonical_axes("var", axis, x.ndim),
        correction=number("var", "correction", correction),
        keepdims=flag("var", "keepdims", keepdims),
    )


def std(
    x: Operand,
    /,
    *positional: object,
    axis: Axes = None,
    correction: float = 0.0,
    keepdims: bool = False,
    **wrong: object,
) -> Tensor:
    """Standard deviation, the root of `var`; its derivative where all values are equal is 0.

    >>> gf.std(gf.tensor([1.0, 2.0, 3.0]), correction=1)
    tensor(1.)
    """
    if positional or wrong:
        refuse("std", positional, wrong)
    x = _floating(x)
    return _std(
        x,
        axis=canonical_axes("std", axis, x.ndim),
        correction=number("std", "correction", correction),
        keepdims=flag("std", "keepdims", keepdims),
    )


def all(x: Operand, /, *positional: object, axis: Axes = None, keepdims: bool = False, **wrong: object) -> Tensor:
    """Whether every element over axes is true (not zero).

    >>> gf.all(gf.tensor([True, False]))
    tensor(False)
    """
    if positional or wrong:
        refuse("all", positional, wrong)
    x = as_tensor(x)
    return _all(x, axis=canonical_axes("all", axis, x.ndim), keepdims=flag("all", "keepdims", keepdims))


def any(x: Operand, /, *positional: object, axis: Axes = None, keepdims: bool = False, **wrong: object) -> Tensor:
    """Whether some element over axes is true (not zero).

    >>> gf.any(gf.tensor([True, False]))
    tensor(True)
    """
    if positional or wrong:
        refuse("any", positional, wrong)
    x = as_tensor(x)
    return _any(x, axis=canonical_axes("any", axis, x.ndim), keepdims=flag("any", "keepdims", keepdims))


def argmax(
    x: Operand, /, *positional: object, axis: int | None = None, keepdims: bool = False, **wrong: object
) -> Tensor:
    """Index (int64) of the largest value along an axis, the first of equals; of the flattened tensor for None.

    >>> gf.argmax(gf.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1)
    tensor([1, 0])
    """
    if positional or wrong:
        refuse("argmax", positional, wrong)
    x = as_tensor(x)
    return _argmax(
        x,
        axis=None if axis is None else canonical_axis("argmax", axis, x.ndim),
        keepdims=flag("argmax", "keepdims", keepdims),
    )


def argmin(
    x: Operand, /, *positional: object, axis: int | None = None, keepdims: bool = False, **wrong: object
) -> Tensor:
    """Index (int64) of the smallest value along an axis, the first of equals; of the flattened tensor for None.

    >>> gf.argmin(gf.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1)
    tensor([0, 1])
    """
    if positional or wrong:
        refuse("argmin", positional, wrong)
    x = as_tensor(x)
    return _argmin(
        x,
        axis=None if axis is None else canonical_axis("argmin", axis, x.ndim),
        keepdims=flag("argmin", "keepdims", keepdims),
    )


__all__ = ["all", "any", "argmax", "argmin", "max", "mean", "min", "std", "sum", "var"]
