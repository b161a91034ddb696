"""Faster kernels and first-order derivatives of what layers are made of: gates, layer normalisation, dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradflow_numpy.fused import ones, sigmoid, vjp, with_residual
from gradflow_numpy.kernels import kernel
from gradflow_numpy.pool import room
from gradflow_numpy.special import erf

Array = np.ndarray

_FLAT = 1000.0  # beyond it a gate is 0 or 1; what multiplies it is cut off there, as ∞ · 0 would be NaN
_ROOT_2_BY_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


# ---------------------------------------------------------------- gates: x σ(x), x Φ(x)
def _cut(x: Array) -> Any:
    """x within ±1000, in new memory, as an array of at least one axis: a scalar could not be worked on in place."""
    x = np.atleast_1d(x)
    out = np.minimum(x, _FLAT, out=room(x.shape, x.dtype))
    return np.maximum(out, -_FLAT, out=out)


def _gated(x: Array, gate: Array) -> Any:
    return (np.maximum(x, -_FLAT) * gate).reshape(x.shape)


@with_residual("silu")
def silu(x: Array) -> tuple[Any, Array]:
    gate = np.atleast_1d(sigmoid(x))
    return _gated(x, gate), gate


@vjp("silu", "x")
def _(xp: Any, g: Array, x: Array, gate: Array) -> Any:
    """g σ (1 + x (1 − σ))."""
    d, rest = _cut(x), 1 - gate
    d *= rest
    d += 1
    d *= gate
    d *= g
    return d.reshape(x.shape)


@with_residual("gelu")
def gelu(x: Array, approximate: str) -> tuple[Any, Array]:
    """The gate is Φ(x); ½ (1 + tanh u) is σ(2u), which keeps its digits where it is near 0."""
    gate = _cut(x)
    if approximate == "tanh":
        cubic = gate * gate
        cubic *= _CUBIC
        cubic += 1
        gate *= cubic
        gate *= 2 * _ROOT_2_BY_PI
        gate = sigmoid(gate)
    else:
        gate *= math.sqrt(0.5)
        gate = erf(gate)
        gate *= 0.5
        gate += 0.5
    return _gated(x, gate), gate


@vjp("gelu", "x")
def _(xp: Any, g: Array, x: Array, approximate: str, gate: Array) -> Any:
    """g (Φ + x φ), with the normal density φ; for the approximation, whose Φ is σ(v), φ = Φ (1 − Φ) v′."""
    d = _cut(x)
    density = d * d
    if approximate == "tanh":
        density *= 3 * _CUBIC * 2 * _ROOT_2_BY_PI
        density += 2 * _ROOT_2_BY_PI
        density *= gate
        density *= 1 - gate
    else:
        density *= -0.5
        np.exp(density, out=density)
        density *= 0.5 * _ROOT_2_BY_PI
    d *= density
    d += gate
    d *= g
    return d.reshape(x.shape)


# ---------------------------------------------------------------- layer normalisation
def _row_means(x: Array) -> Any:
    """As a column. A product with ones takes a third of what add.reduce does over a short axis."""
    return (x.dot(ones(x.shape[1], x.dtype)) / max(x.shape[1], 1))[:, None]


def _rows(x: Array, normalized: int) -> Array:
    return x.reshape(x.size // max(normalized, 1) if normalized else 0, normalized)


@with_residual("layer_norm")
def layer_norm(x: Array, weight: Array, bias: Array, axis: tuple[int, ...], eps: float) -> tuple[Any, Any]:
    """Centred twice: at an offset of 10⁴ the first mean is a thousandth off in float32."""
    rows = _rows(x, weight.size)
    unit = np.subtract(rows, _row_means(rows), out=room(rows.shape, rows.dtype))
    unit -= _row_means(unit)
    inverse = 1 / np.sqrt(np.einsum("ij,ij->i", unit, unit)[:, None] / max(weight.size, 1) + eps)
    unit *= inverse
    out = np.multiply(unit, weight.reshape(-1), out=room(unit.shape, unit.dtype))
    out += bias.reshape(-1)
    return out.reshape(x.shape), (unit, inverse)


@vjp("layer_norm", "x")
def _(xp: Any, g: Array, x: Array, weight: Array, axis: tuple[int, ...], eps: float, residual: Any) -> Any:
    unit, inverse = residual
    d = np.multiply(_rows(g, weight.size), weight.reshape(-1), out=room(unit.shape, unit.dtype))
    along = np.einsum("ij,ij->i", d, unit)[:, None] / max(weight.size, 1)
    d -= _row_means(d)
    d -= unit * along
    d *= inverse
    return d.reshape(x.shape)


@vjp("layer_norm", "weight")
def _(xp: Any, g: Array, x: Array, axis: tuple[int, ...], eps: float, residual: Any) -> Any:
    unit, _ = residual
    d = g.reshape(unit.shape) * unit
    return ones(len(d), d.dtype).dot(d).reshape([x.shape[a] for a in axis])


# ---------------------------------------------------------------- dropout
@kernel
def dropout(x: Array, keep: Array, p: float) -> Any:
    if not x.shape:
        return x * (keep * x.dtype.type(1 / (1 - p)))
    out = np.multiply(x, keep, out=room(x.shape, x.dtype))
    out *= 1 / (1 - p)
    return out
