"""Operations behind layers: normalisation, dropout, and tables of vectors."""

from __future__ import annotations

import math
from typing import Any

from gradflow.arguments import flag, integer, number
from gradflow.backend import ARRAY
from gradflow.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError, explain
from gradflow.ops.axes import canonical_axes
from gradflow.ops.creation import as_tensor, ones, zeros
from gradflow.ops.elementwise import greater_equal, where
from gradflow.ops.random import Generator, uniform
from gradflow.ops.reduction import Axes
from gradflow.ops.shaping import expand_dims
from gradflow.primitive import defimpl, defvjp, primitive
from gradflow.tensor import OPS, Operand, Tensor

EPS = 1e-5


# ---------------------------------------------------------------- layer normalisation
@primitive("float", name="layer_norm", residual=True)
def _layer_norm(x: Operand, weight: Operand, bias: Operand, /, *, axis: tuple[int, ...], eps: float) -> Tensor: ...


def _centred(xp: Any, x: Any, axis: tuple[int, ...]) -> Any:
    """x less its mean, twice: at an offset of 10⁴ the first mean is a thousandth off in float32."""
    x = x - xp.mean(x, axis=axis, keepdims=True)
    return x - xp.mean(x, axis=axis, keepdims=True)


def _standardized(xp: Any, x: Any, axis: tuple[int, ...], eps: float) -> tuple[Any, Any]:
    """(x − μ)/σ and 1/σ, with ε in the root."""
    centred = _centred(xp, x, axis)
    inverse = 1 / xp.sqrt(xp.mean(centred * centred, axis=axis, keepdims=True) + eps)
    return centred * inverse, inverse


def _impl_layer_norm(xp: Any, x: Any, weight: Any, bias: Any, *, axis: tuple[int, ...], eps: float) -> Any:
    return _standardized(xp, x, axis, eps)[0] * weight + bias


def _vjp_layer_norm(xp: Any, g: Any, x: Any, weight: Any, axis: tuple[int, ...], eps: float) -> Any:
    """What is left of w g without its mean and its part along the standardized x, over σ."""
    unit, inverse = _standardized(xp, x, axis, eps)
    g = g * weight
    along = xp.mean(g * unit, axis=axis, keepdims=True)
    return (g - xp.mean(g, axis=axis, keepdims=True) - unit * along) * inverse


defimpl(_layer_norm, _impl_layer_norm)
defvjp(
    _layer_norm,
    x=_vjp_layer_norm,
    weight=lambda xp, g, x, axis, eps: g * _standardized(xp, x, axis, eps)[0],
    bias=lambda xp, g: g,
)


def layer_norm(
    x: Operand,
    weight: Operand | None = None,
    bias: Operand | None = None,
    /,
    *,
    axis: Axes = -1,
    eps: float = EPS,
) -> Tensor:
    """Layer normalisation y = w (x − μ)/√(σ² + ε) + b over the last axes, exact to rounding far from 0, too.

    Args:
        x: shape (…, *normalized).
        weight: w, shape (*normalized), or None for 1.
        bias: b, shape (*normalized), or None for 0.
        axis: the axes over which the mean μ and the variance σ² are taken: the last one, or several that are the last.
        eps: ε ≥ 0.

    Raises:
        ShapeError: a weight or bias of another shape.
        ArgumentError: axes that are not the last ones, or a negative ε.

    Source: Ba, Kiros, Hinton: Layer normalization, 2016.

    >>> gf.layer_norm(gf.tensor([[1.0, 3.0], [10001.0, 10003.0]]))
    tensor([[-0.99999...,  0.99999...],
            [-0.99999...,  0.99999...]])
    """
    x = as_tensor(x)
    axes = canonical_axes("layer_norm", axis, x.ndim)
    first = x.ndim - len(axes)
    if axes != tuple(range(first, x.ndim)) or not axes:
        raise ArgumentError(
            explain(
                f"layer_norm over axis={axis} of a tensor of {x.ndim} axes.",
                "it is taken over the last axis, or several that are the last.",
                "gf.layer_norm(x, axis=-1), or gf.moveaxis(x, 0, -1) first",
            )
        )
    eps = number("layer_norm", "eps", eps)
    if not 0 <= eps < math.inf:
        raise ArgumentError(explain(f"layer_norm with eps={eps}.", "it is added to a variance.", f"eps={EPS}"))
    shape = x.shape[first:]
    weight = _affine(x, "weight", weight, shape)
    bias = _affine(x, "bias", bias, shape)
    return _layer_norm(x, weight, bias, axis=axes, eps=float(eps))


def _affine(x: Tensor, name: str, value: Operand | None, shape: tuple[int, ...]) -> Tensor:
    """A factor or summand of each normalized element; 1 or 0 where there is none."""
    if value is None:
        make = ones if name == "weight" else zeros
        return make(shape, dtype=x.dtype if x.dtype.kind == "f" else None, backend=x.backend)
    value = as_tensor(value, x.backend)
    if value.shape != shape:
        raise ShapeError(
            explain(
                f"layer_norm of shape {x.shape} with {name} of shape {value.shape}.",
                f"the {name} has the shape of the normalized axes, {shape}.",
                f"gf.ones({shape})" if name == "weight" else f"gf.zeros({shape})",
            )
        )
    return value


# ---------------------------------------------------------------- dropout
@primitive("float", name="dropout", promote=("x",))
def _dropout(x: Operand, keep: Operand, /, *, p: float) -> Tensor: ...


defimpl(_dropout, lambda xp, x, keep, *, p: x * (xp.astype(keep, dtype=x.dtype) * (1 / (1 - p))))
defvjp(_dropout, x=lambda xp, g, keep, p: xp.dropout(g, keep, p=p))


def dropout(x: Operand, p: float = 0.5, *, training: bool = True, generator: Generator | None = None) -> Tensor:
    """Each element 0 with probability p, else x/(1 − p), so that the mean stays; in evaluation x itself.

    Args:
        x: any shape.
        p: the share that is dropped, in [0, 1].
        training: False gives x back.
        generator: where the random numbers come from; the one that `gf.manual_seed` seeds if None.

    Raises:
        ArgumentError: p outside [0, 1].

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout, 2014.

    >>> gf.dropout(gf.ones(6), 0.5, generator=gf.Generator(0))
    tensor([0., 0., 0., 2., 2., 0.])
    >>> gf.dropout(gf.ones(3), training=False)
    tensor([1., 1., 1.])
    """
    x = as_tensor(x)
    p = probability("dropout", p)
    if not flag("dropout", "training", training) or p == 0:
        return x
    if p == 1:
        return x * 0.0
    drawn = uniform(x.shape, dtype="float32", generator=generator, backend=x.backend)  # one mask for every dtype
    return _dropout(x, greater_equal(drawn, p), p=p)


def probability(function: str, p: Any) -> float:
    """A share of elements.

    Raises:
        ArgumentError: one outside [0, 1].
    """
    found = float(number(function, "p", p))
    if not 0 <= found <= 1:
        raise ArgumentError(
            explain(f"{function} with p={found}.", "it is the share that is dropped, in [0, 1].", "p=0.5")
        )
    return found


# ---------------------------------------------------------------- tables of vectors
@primitive("any", nondifferentiable=True)
def row_index(indices: Tensor, /, *, rows: int) -> Tensor:
    """Indices as int64, each of them in 0…rows−1; another raises, with its position."""
    ...


@primitive("any", name="embedding", promote=("weight",))
def _embedding(weight: Tensor, indices: Tensor, /) -> Tensor: ...


def _impl_embedding(xp: Any, weight: Any, indices: Any) -> Any:
    return xp.gather(weight, xp.row_index(indices, rows=weight.shape[0]), key=(ARRAY,))


defimpl(_embedding, _impl_embedding)
defvjp(
    _embedding,
    weight=lambda xp, g, weight_shape, indices: xp.scatter_add(g, indices, shape=weight_shape, key=(ARRAY,)),
)


def embedding(indices: Operand, weight: Operand, /, *, padding_idx: int | None = None) -> Tensor:
    """Rows of a table, y = W[indices].

    Args:
        indices: row numbers of any integer dtype, any shape (…).
        weight: W, shape (rows, width).
        padding_idx: a row that gets no gradient; from the end if negative.

    Returns:
        A tensor of shape (…, width).

    Raises:
        IndexRangeError: an index outside 0…rows−1.
        DTypeError: indices that are not integers.
        ShapeError: a weight that is no matrix.

    >>> gf.embedding(gf.tensor([2, 0]), gf.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    tensor([[5., 6.],
            [1., 2.]])
    """
    weight = as_tensor(weight)
    indices = as_tensor(indices, weight.backend)
    if indices.dtype.kind not in "iu":
        raise DTypeError(
            explain(f"embedding of indices of {indices.dtype}.", "they are row numbers.", "indices.astype(gf.int64)")
        )
    if weight.ndim != 2:
        raise ShapeError(
            explain(
                f"embedding with a weight of shape {weight.shape}.", "it has shape (rows, width).", "gf.ones((10, 3))"
            )
        )
    out = _embedding(weight, indices)
    if padding_idx is None:
        return out
    row = padding_row("embedding", padding_idx, weight.shape[0])
    return where(expand_dims(OPS.equal(indices, row), axis=-1), out.detach(), out)


def padding_row(function: str, padding_idx: Any, rows: int) -> int:
    """The number of the row that stands for padding, counted from the front.

    Raises:
        IndexRangeError: one outside [−rows, rows).
    """
    row = integer(function, "padding_idx", padding_idx, fix="padding_idx=0")
    if not -rows <= row < rows:
        raise IndexRangeError(
            explain(f"{function} with padding_idx={row} for {rows} rows.", "it is one of them.", "padding_idx=0")
        )
    return row % rows


__all__ = ["dropout", "embedding", "layer_norm"]
