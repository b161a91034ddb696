"""Operations element by element, with broadcasting: arithmetic, comparison, logic, elementary functions."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from gradflow.arguments import choice
from gradflow.ops.creation import as_tensor
from gradflow.primitive import coerce, defimpl, defvjp, of, primitive
from gradflow.tensor import OPS, Operand, Tensor

_BROADCAST = "shapes broadcast where, aligned at the right, lengths are equal or one of them is 1: x.reshape(...)"
_TWO_BY_ROOT_PI = 2 / math.sqrt(math.pi)
_ROOT_2_BY_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # of GELU's approximation
_FLAT = 1000.0  # beyond it a gate is 0 or 1; what multiplies it is cut off there, as ∞ · 0 would be NaN


# ---------------------------------------------------------------- arithmetic
@primitive("numeric", hint=_BROADCAST)
def add(x: Operand, y: Operand, /) -> Tensor:
    """Sum x + y.

    >>> gf.add(gf.tensor([1.0, 2.0]), 3)
    tensor([4., 5.])
    """
    ...


@primitive("numeric", hint=_BROADCAST)
def subtract(x: Operand, y: Operand, /) -> Tensor:
    """Difference x − y.

    >>> gf.subtract(gf.tensor([1.0, 2.0]), 3)
    tensor([-2., -1.])
    """
    ...


@primitive("numeric", hint=_BROADCAST)
def multiply(x: Operand, y: Operand, /) -> Tensor:
    """Product x · y.

    >>> gf.multiply(gf.tensor([1.0, 2.0]), 3)
    tensor([3., 6.])
    """
    ...


@primitive("float", hint=_BROADCAST)
def divide(x: Operand, y: Operand, /) -> Tensor:
    """Quotient x / y; integers are divided as floating-point numbers.

    >>> gf.divide(gf.tensor([1, 2]), 4)
    tensor([0.25, 0.5 ])
    """
    ...


@primitive("numeric", hint=_BROADCAST, nondifferentiable=True)
def floor_divide(x: Operand, y: Operand, /) -> Tensor:
    """Quotient rounded towards −∞, ⌊x / y⌋; its derivative is 0 wherever it has one.

    >>> gf.floor_divide(gf.tensor([7, -7]), 2)
    tensor([ 3, -4])
    """
    ...


@primitive("numeric", hint=_BROADCAST)
def remainder(x: Operand, y: Operand, /) -> Tensor:
    """Remainder x − y⌊x / y⌋, with the sign of y.

    >>> gf.remainder(gf.tensor([7, -7]), 3)
    tensor([1, 2])
    """
    ...


@primitive("numeric", name="power", hint=_BROADCAST)
def _power(x: Operand, y: Operand, /) -> Tensor: ...


def power(x: Operand, y: Operand, /) -> Tensor:
    """Power xʸ, with 0⁰ = 1.

    >>> gf.power(gf.tensor([2.0, 3.0]), 2)
    tensor([4., 9.])
    """
    if (type(y) is int or type(y) is float) and (y == 2 or y == 1):
        kind = x.dtype.kind if isinstance(x, Tensor) else ""
        if kind == "f" or type(y) is int and kind in ("i", "u"):
            return square(x) if y == 2 else positive(x)
    return _power(x, y)


@primitive("numeric")
def square(x: Operand, /) -> Tensor:
    """Square x².

    >>> gf.square(gf.tensor([1.0, -3.0]))
    tensor([1., 9.])
    """
    ...


@primitive("numeric")
def negative(x: Operand, /) -> Tensor:
    """Opposite −x.

    >>> gf.negative(gf.tensor([1.0, -3.0]))
    tensor([-1.,  3.])
    """
    ...


@primitive("numeric")
def positive(x: Operand, /) -> Tensor:
    """The same values, +x, in new memory.

    >>> gf.positive(gf.tensor([1.0, -3.0]))
    tensor([ 1., -3.])
    """
    ...


@primitive("numeric", name="abs")
def abs(x: Operand, /) -> Tensor:
    """Absolute value |x|, with derivative 0 at 0.

    >>> gf.abs(gf.tensor([1.0, -3.0]))
    tensor([1., 3.])
    """
    ...


@primitive("numeric", nondifferentiable=True)
def sign(x: Operand, /) -> Tensor:
    """Sign: −1, 0 or 1.

    >>> gf.sign(gf.tensor([2.0, 0.0, -3.0]))
    tensor([ 1.,  0., -1.])
    """
    ...


@primitive("numeric", nondifferentiable=True)
def floor(x: Operand, /) -> Tensor:
    """Greatest integer ≤ x; its derivative is 0 wherever it has one.

    >>> gf.floor(gf.tensor([1.5, -1.5]))
    tensor([ 1., -2.])
    """
    ...


defvjp(add, x=lambda xp, g: g, y=lambda xp, g: g)
defvjp(subtract, x=lambda xp, g: g, y=lambda xp, g: -g)
defvjp(multiply, x=lambda xp, g, y: g * y, y=lambda xp, g, x: g * x)
defvjp(divide, x=lambda xp, g, y: g / y, y=lambda xp, g, y, out: -g * out / y)
defvjp(remainder, x=lambda xp, g: g, y=lambda xp, g, x, y: -g * xp.floor_divide(x, y))
defvjp(
    _power,
    x=lambda xp, g, x, y: g * (y * xp.power(x, xp.where(y == 0, 0.0, y - 1))),
    y=lambda xp, g, x, y, out: g * (out * xp.log(xp.where((x == 0) & (y >= 0), 1.0, x))),
)
defvjp(square, x=lambda xp, g, x: g * (x * 2))
defvjp(negative, x=lambda xp, g: -g)
defvjp(positive, x=lambda xp, g: g)
defvjp(abs, x=lambda xp, g, x: g * xp.sign(x))


# ---------------------------------------------------------------- elementary functions
@primitive("float")
def exp(x: Operand, /) -> Tensor:
    """Exponential eˣ.

    >>> gf.exp(gf.tensor([0.0, 1.0]))
    tensor([1. , 2.71828...])
    """
    ...


@primitive("float")
def log(x: Operand, /) -> Tensor:
    """Natural logarithm ln x.

    >>> gf.log(gf.tensor([1.0, 10.0]))
    tensor([0. , 2.3025...])
    """
    ...


@primitive("float")
def log1p(x: Operand, /) -> Tensor:
    """ln(1 + x), exact to rounding for small x too.

    >>> gf.log1p(gf.tensor([0.0, 1e-10]))
    tensor([0.e+00, 1.e-10])
    """
    ...


@primitive("float")
def sqrt(x: Operand, /) -> Tensor:
    """Square root √x; its derivative at 0 is ∞.

    >>> gf.sqrt(gf.tensor([4.0, 9.0]))
    tensor([2., 3.])
    """
    ...


@primitive("float")
def tanh(x: Operand, /) -> Tensor:
    """Hyperbolic tangent (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ).

    >>> gf.tanh(gf.tensor([0.0, 1.0]))
    tensor([0. , 0.76159...])
    """
    ...


@primitive("float")
def sigmoid(x: Operand, /) -> Tensor:
    """Logistic function σ(x) = 1 / (1 + e⁻ˣ), exact to rounding for any x.

    >>> gf.sigmoid(gf.tensor([0.0, -1e4]))
    tensor([0.5, 0. ])
    """
    ...


@primitive("float")
def softplus(x: Operand, /) -> Tensor:
    """Smooth rectifier ln(1 + eˣ), exact to rounding for any x.

    >>> gf.softplus(gf.tensor([0.0, 1e4]))
    tensor([6.9314...e-01, 1.0000...e+04])
    """
    ...


@primitive("float")
def erf(x: Operand, /) -> Tensor:
    """Error function (2/√π) ∫₀ˣ exp(−t²) dt.

    >>> gf.erf(gf.tensor([0.0, 1.0]))
    tensor([0. , 0.84270...])
    """
    ...


@primitive("numeric")
def relu(x: Operand, /) -> Tensor:
    """Rectifier max(0, x), with derivative 0 at 0.

    >>> gf.relu(gf.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    ...


@primitive("float", residual=True)
def silu(x: Operand, /) -> Tensor:
    """Sigmoid-weighted linear unit x σ(x), also called swish; 0 at −∞.

    Source: Elfwing, Uchibe, Doya: Sigmoid-weighted linear units for neural network function approximation, 2018.

    >>> gf.silu(gf.tensor([0.0, 1.0]))
    tensor([0. , 0.73105...])
    """
    ...


@primitive("float", name="gelu", residual=True)
def _gelu(x: Operand, /, *, approximate: str) -> Tensor: ...


def gelu(x: Operand, /, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit x Φ(x), with Φ(x) = ½ (1 + erf(x/√2)) the normal distribution; 0 at −∞.

    Args:
        x: any shape.
        approximate: "none", or "tanh" for ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), which differs by 5·10⁻⁴ at most.

    Raises:
        ArgumentError: another `approximate`.

    Source: Hendrycks, Gimpel: Gaussian error linear units, 2016.

    >>> gf.gelu(gf.tensor([0.0, 1.0]))
    tensor([0. , 0.84134...])
    >>> gf.gelu(gf.tensor([1.0]), approximate="tanh")
    tensor([0.84119...])
    """
    return _gelu(x, approximate=choice("gelu", "approximate", approximate, ("none", "tanh")))


defvjp(exp, x=lambda xp, g, out: g * out)
defvjp(log, x=lambda xp, g, x: g / x)
defvjp(log1p, x=lambda xp, g, x: g / (1 + x))
defvjp(sqrt, x=lambda xp, g, out: g / (out * 2))
defvjp(tanh, x=lambda xp, g, out: g * (1 - out * out))
defvjp(sigmoid, x=lambda xp, g, out: g * (out * (1 - out)))
defvjp(softplus, x=lambda xp, g, x: g * xp.sigmoid(x))
defvjp(erf, x=lambda xp, g, x: g * (xp.exp(-x * x) * _TWO_BY_ROOT_PI))
defvjp(relu, x=lambda xp, g, out: g * (out > 0))

defimpl(sigmoid, lambda xp, x: xp.exp(xp.minimum(x, 0.0)) / (1 + xp.exp(-xp.abs(x))))
defimpl(softplus, lambda xp, x: xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x))))
defimpl(relu, lambda xp, x: xp.maximum(x, 0))


def _impl_gelu(xp: Any, x: Any, *, approximate: str) -> Any:
    """½ (1 + tanh u) is σ(2u), which keeps its digits where it is near 0."""
    cut = xp.clip(x, -_FLAT, _FLAT)
    if approximate == "tanh":
        gate = xp.sigmoid(cut * (1 + cut * cut * _CUBIC) * (2 * _ROOT_2_BY_PI))
    else:
        gate = 0.5 + xp.erf(cut * math.sqrt(0.5)) * 0.5
    return xp.maximum(x, -_FLAT) * gate


def _vjp_gelu(xp: Any, g: Any, x: Any, approximate: str) -> Any:
    """Φ + x φ, with the normal density φ; for the approximation, whose Φ is σ(v), φ = Φ (1 − Φ) v′."""
    x = xp.clip(x, -_FLAT, _FLAT)
    if approximate == "tanh":
        gate = xp.sigmoid(x * (1 + x * x * _CUBIC) * (2 * _ROOT_2_BY_PI))
        density = gate * (1 - gate) * ((1 + x * x * (3 * _CUBIC)) * (2 * _ROOT_2_BY_PI))
    else:
        gate = 0.5 + xp.erf(x * math.sqrt(0.5)) * 0.5
        density = xp.exp(x * x * -0.5) * (0.5 * _ROOT_2_BY_PI)
    return g * (gate + x * density)


def _vjp_silu(xp: Any, g: Any, x: Any) -> Any:
    x = xp.clip(x, -_FLAT, _FLAT)
    gate = xp.sigmoid(x)
    return g * (gate * (1 + x * (1 - gate)))


defimpl(silu, lambda xp, x: xp.maximum(x, -_FLAT) * xp.sigmoid(x))
defimpl(_gelu, _impl_gelu)
defvjp(silu, x=_vjp_silu)
defvjp(_gelu, x=_vjp_gelu)


# ---------------------------------------------------------------- choosing
@primitive("numeric", hint=_BROADCAST)
def maximum(x: Operand, y: Operand, /) -> Tensor:
    """The larger of x and y; where they are equal, each gets half of the gradient.

    >>> gf.maximum(gf.tensor([1.0, 5.0]), 3)
    tensor([3., 5.])
    """
    ...


@primitive("numeric", hint=_BROADCAST)
def minimum(x: Operand, y: Operand, /) -> Tensor:
    """The smaller of x and y; where they are equal, each gets half of the gradient.

    >>> gf.minimum(gf.tensor([1.0, 5.0]), 3)
    tensor([1., 3.])
    """
    ...


@primitive("numeric", promote=("x", "y"), hint=_BROADCAST)
def where(condition: Operand, x: Operand, y: Operand, /) -> Tensor:
    """x where the condition holds, else y.

    >>> gf.where(gf.tensor([True, False]), 1.0, gf.tensor([5.0, 6.0]))
    tensor([1., 6.])
    """
    ...


@primitive("numeric", name="clip", hint=_BROADCAST)
def _clip(x: Operand, low: Operand, high: Operand, /) -> Tensor: ...


def clip(x: Operand, /, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """Limit x to [min, max]; the derivative is 1 inside and at a bound that x meets, 0 outside.

    The result has x's dtype where the bounds are numbers of the same kind; a bound that it cannot hold is as near as it
    gets. Bounds of another kind (floating-point ones for integers) give the common dtype.

    >>> gf.clip(gf.tensor([-2.0, 0.5, 2.0]), -1, 1)
    tensor([-1. ,  0.5,  1. ])
    """
    x = as_tensor(x)
    if min is None and max is None:
        return positive(x)
    own = x.dtype
    if max is None and own.kind != "f":
        x = coerce(of(_clip), (x, min))[0]  # min may need a wider dtype, with a higher limit
    low, high = _bounds(x.dtype)
    out = _clip(x, low if min is None else min, high if max is None else max)
    same_kind = out.dtype.kind == own.kind or {out.dtype.kind, own.kind} == {"i", "u"}
    if out.dtype == own or not same_kind:
        return out
    return cast(Tensor, OPS.astype(out if own.kind == "f" else _clip(out, *_bounds(own)), dtype=own))


def _bounds(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind == "f":
        return -math.inf, math.inf
    if dtype.kind == "b":
        return False, True
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


defvjp(
    maximum,
    x=lambda xp, g, x, y: xp.where(x == y, g * 0.5, xp.where(x > y, g, 0.0)),
    y=lambda xp, g, x, y: xp.where(x == y, g * 0.5, xp.where(x < y, g, 0.0)),
)
defvjp(
    minimum,
    x=lambda xp, g, x, y: xp.where(x == y, g * 0.5, xp.where(x < y, g, 0.0)),
    y=lambda xp, g, x, y: xp.where(x == y, g * 0.5, xp.where(x > y, g, 0.0)),
)
defvjp(
    where,
    x=lambda xp, g, condition: xp.where(condition, g, 0.0),
    y=lambda xp, g, condition: xp.where(condition, 0.0, g),
)
defvjp(
    _clip,
    x=lambda xp, g, x, low, high: xp.where((x >= low) & (x <= high), g, 0.0),
    low=lambda xp, g, x, low, high: xp.where((x < low) & (low <= high), g, 0.0),
    high=lambda xp, g, x, low, high: xp.where((x > high) | (low > high), g, 0.0),
)
defimpl(_clip, lambda xp, x, low, high: xp.minimum(xp.maximum(x, low), high))


# ---------------------------------------------------------------- comparison
@primitive("compare", nondifferentiable=True, hint=_BROADCAST)
def equal(x: Operand, y: Operand, /) -> Tensor:
    """Whether x = y.

    >>> gf.equal(gf.tensor([1, 2]), 2)
    tensor([False,  True])
    """
    ...


@primitive("compare", nondifferentiable=True, hint=_BROADCAST)
def not_equal(x: Operand, y: Operand, /) -> Tensor:
    """Whether x ≠ y.

    >>> gf.not_equal(gf.tensor([1, 2]), 2)
    tensor([ True, False])
    """
    ...


@primitive("compare", nondifferentiable=True, hint=_BROADCAST)
def less(x: Operand, y: Operand, /) -> Tensor:
    """Whether x < y.

    >>> gf.less(gf.tensor([1, 2]), 2)
    tensor([ True, False])
    """
    ...


@primitive("compare", nondifferentiable=True, hint=_BROADCAST)
def less_equal(x: Operand, y: Operand, /) -> Tensor:
    """Whether x ≤ y.

    >>> gf.less_equal(gf.tensor([1, 3]), 2)
    tensor([ True, False])
    """
    ...


@primitive("compare", nondifferentiable=True, hint=_BROADCAST)
def greater(x: Operand, y: Operand, /) -> Tensor:
    """Whether x > y.

    >>> gf.greater(gf.tensor([1, 3]), 2)
    tensor([False,  True])
    """
    ...


@primitive("compare", nondifferentiable=True, hint=_BROADCAST)
def greater_equal(x: Operand, y: Operand, /) -> Tensor:
    """Whether x ≥ y.

    >>> gf.greater_equal(gf.tensor([1, 2]), 2)
    tensor([False,  True])
    """
    ...


@primitive("compare", nondifferentiable=True)
def isnan(x: Operand, /) -> Tensor:
    """Whether x is not a number.

    >>> gf.isnan(gf.tensor([1.0, float("nan")]))
    tensor([False,  True])
    """
    ...


@primitive("compare", nondifferentiable=True)
def isfinite(x: Operand, /) -> Tensor:
    """Whether x is neither infinite nor not a number.

    >>> gf.isfinite(gf.tensor([1.0, float("inf")]))
    tensor([ True, False])
    """
    ...


@primitive("compare", nondifferentiable=True)
def isinf(x: Operand, /) -> Tensor:
    """Whether x is ∞ or −∞.

    >>> gf.isinf(gf.tensor([1.0, float("-inf")]))
    tensor([False,  True])
    """
    ...


# ---------------------------------------------------------------- logic; a number is true where it is not 0
@primitive("compare", promote=(), nondifferentiable=True, hint=_BROADCAST)
def logical_and(x: Operand, y: Operand, /) -> Tensor:
    """Whether x and y are both true.

    >>> gf.logical_and(gf.tensor([True, True]), gf.tensor([True, False]))
    tensor([ True, False])
    """
    ...


@primitive("compare", promote=(), nondifferentiable=True, hint=_BROADCAST)
def logical_or(x: Operand, y: Operand, /) -> Tensor:
    """Whether x or y is true, or both.

    >>> gf.logical_or(gf.tensor([True, False]), gf.tensor([False, False]))
    tensor([ True, False])
    """
    ...


@primitive("compare", promote=(), nondifferentiable=True, hint=_BROADCAST)
def logical_xor(x: Operand, y: Operand, /) -> Tensor:
    """Whether x or y is true, but not both.

    >>> gf.logical_xor(gf.tensor([True, True]), gf.tensor([True, False]))
    tensor([False,  True])
    """
    ...


@primitive("compare", promote=(), nondifferentiable=True)
def logical_not(x: Operand, /) -> Tensor:
    """Whether x is not true.

    >>> gf.logical_not(gf.tensor([True, False]))
    tensor([False,  True])
    """
    ...


# ---------------------------------------------------------------- bits of integers; on booleans, logic
@primitive("bits", nondifferentiable=True, hint=_BROADCAST)
def bitwise_and(x: Operand, y: Operand, /) -> Tensor:
    """Bitwise x & y; on booleans the logical and.

    >>> gf.tensor([True, True]) & gf.tensor([True, False])
    tensor([ True, False])
    """
    ...


@primitive("bits", nondifferentiable=True, hint=_BROADCAST)
def bitwise_or(x: Operand, y: Operand, /) -> Tensor:
    """Bitwise x | y; on booleans the logical or.

    >>> gf.tensor([True, False]) | gf.tensor([False, False])
    tensor([ True, False])
    """
    ...


@primitive("bits", nondifferentiable=True, hint=_BROADCAST)
def bitwise_xor(x: Operand, y: Operand, /) -> Tensor:
    """Bitwise x ^ y; on booleans the exclusive or.

    >>> gf.tensor([6]) ^ 3
    tensor([5])
    """
    ...


@primitive("bits", nondifferentiable=True)
def bitwise_invert(x: Operand, /) -> Tensor:
    """Bitwise ~x; on booleans the logical not.

    >>> ~gf.tensor([True, False])
    tensor([False,  True])
    """
    ...
