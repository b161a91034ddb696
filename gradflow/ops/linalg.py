"""Matrix products."""

from __future__ import annotations

from gradflow.errors import ShapeError, explain
from gradflow.ops.creation import as_pair, as_tensor
from gradflow.ops.shaping import expand_dims, squeeze
from gradflow.primitive import defvjp, primitive
from gradflow.tensor import Operand, Tensor


@primitive("numeric", name="matmul")
def _matmul(x: Tensor, y: Tensor, /) -> Tensor: ...


@primitive("any", name="matrix_transpose")
def _matrix_transpose(x: Tensor, /) -> Tensor: ...


defvjp(
    _matmul,
    x=lambda xp, g, y: xp.matmul(g, xp.matrix_transpose(y)),
    y=lambda xp, g, x: xp.matmul(xp.matrix_transpose(x), g),
)
defvjp(_matrix_transpose, x=lambda xp, g: xp.matrix_transpose(g))


def matmul(x: Operand, y: Operand, /) -> Tensor:
    """Matrix product, zᵢⱼ = Σₖ xᵢₖ yₖⱼ, over the last two axes; the axes before them broadcast.

    Args:
        x: shape (…, n, k), or (k,) for a row that disappears from the result.
        y: shape (…, k, m), or (k,) for a column that disappears from the result.

    Raises:
        ShapeError: inner lengths differ, or an operand is 0-d.

    >>> gf.matmul(gf.tensor([[1.0, 2.0]]), gf.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    x, y = as_pair(x, y)
    rows, columns = x.shape, y.shape
    if not rows or not columns or rows[-1] != columns[-2:][0]:
        _misfit(rows, columns)
    z = _matmul(expand_dims(x, axis=0) if len(rows) == 1 else x, expand_dims(y, axis=1) if len(columns) == 1 else y)
    if len(rows) == 1:
        z = squeeze(z, axis=-2)
    return squeeze(z, axis=-1) if len(columns) == 1 else z


def _misfit(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    if not x or not y:
        raise ShapeError(explain(f"matmul of shapes {x} and {y}.", "a number is no matrix.", "x * y"))
    fix = "x @ y.mT" if y[-1] == x[-1] else "x @ y with x of shape (…, n, k) and y of shape (…, k, m)"
    inner = y[-2:][0]
    raise ShapeError(
        explain(f"matmul of shapes {x} and {y}.", f"the inner lengths {x[-1]} and {inner} must be equal.", fix)
    )


def matrix_transpose(x: Operand, /) -> Tensor:
    """The last two axes exchanged; also `t.mT`, and `t.T` for a matrix.

    Raises:
        ShapeError: fewer than two axes.

    >>> gf.matrix_transpose(gf.tensor([[1.0, 2.0]]))
    tensor([[1.],
            [2.]])
    """
    x = as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(
            explain(f"matrix_transpose of shape {x.shape}.", "a matrix has two axes.", "gf.expand_dims(x, axis=0)")
        )
    return _matrix_transpose(x)


def transposed(x: Tensor) -> Tensor:
    """`t.T`, for matrices alone as in the array API standard."""
    if x.ndim != 2:
        raise ShapeError(explain(f".T of shape {x.shape}.", ".T is for matrices.", "t.mT, or gf.permute_dims(t, axes)"))
    return _matrix_transpose(x)


__all__ = ["matmul", "matrix_transpose"]
