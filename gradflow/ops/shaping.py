"""Shapes, axes and dtypes: the same elements arranged otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.arguments import flag, integers, shown
from gradflow.errors import ArgumentError, DTypeError, ShapeError, explain
from gradflow.ops.axes import canonical_axes, canonical_axis, refuse
from gradflow.ops.creation import _shape, as_tensor, check_dtype, to_device
from gradflow.primitive import coerce, defimpl, defvjp, of, primitive
from gradflow.tensor import Operand, Tensor


@primitive("any", name="reshape")
def _reshape(x: Tensor, /, *, shape: tuple[int, ...]) -> Tensor: ...


@primitive("any", name="broadcast_to")
def _broadcast_to(x: Tensor, /, *, shape: tuple[int, ...]) -> Tensor: ...


@primitive("any", name="permute_dims")
def _permute_dims(x: Tensor, /, *, axes: tuple[int, ...]) -> Tensor: ...


@primitive("any", name="astype")
def _astype(x: Tensor, /, *, dtype: Any) -> Tensor: ...


@primitive("numeric", name="concat")
def _concat(*arrays: Tensor, axis: int) -> Tensor: ...


@primitive("any", name="copy")
def copy(x: Operand, /) -> Tensor:
    """The same values in new memory.

    >>> gf.tensor([1.0]).copy()
    tensor([1.])
    """
    ...


@primitive("any")
def alias(x: Tensor, /) -> Tensor:
    """The same memory as another node of the graph."""
    ...


def _vjp_concat(xp: Any, g: Any, position: int, arrays_shapes: tuple[tuple[int, ...], ...], axis: int) -> Any:
    start = sum(shape[axis] for shape in arrays_shapes[:position])
    piece = slice(start, start + arrays_shapes[position][axis])
    return xp.basic_index(g, key=(*(slice(None),) * axis, piece))


defvjp(_reshape, x=lambda xp, g, x_shape: xp.reshape(g, shape=x_shape))
defvjp(_broadcast_to, x=lambda xp, g: g)  # the sweep sums it back
defvjp(
    _permute_dims, x=lambda xp, g, axes: xp.permute_dims(g, axes=tuple(sorted(range(len(axes)), key=axes.__getitem__)))
)
defvjp(_astype, x=lambda xp, g: g)  # the sweep casts it back
defvjp(_concat, arrays=_vjp_concat)
defvjp(copy, x=lambda xp, g: g)
defvjp(alias, x=lambda xp, g: g)
defimpl(copy, lambda xp, x: xp.backend.asarray(x, copy=True))


def reshape(x: Operand, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The same elements, in row-major order, in another shape; one length may be −1.

    Raises:
        ShapeError: the shape has another number of elements.
        ArgumentError: copy=False where the memory has to be rearranged.

    >>> gf.reshape(gf.arange(6), (2, -1))
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    x = as_tensor(x)
    if copy is not None and flag("reshape", "copy", copy):
        x = _copied(x)
    mistake, fix = f"reshape to {shown(shape)}.", "gf.reshape(x, (2, -1)) or x.reshape(2, -1)"
    wanted = integers(mistake, shape, why="lengths are integers.", fix=fix)
    out = _reshape(x, shape=_resolve_shape(x, wanted))
    if copy is False and x.size and not _share_memory(x, out):
        raise ArgumentError(
            explain(
                f"reshape of shape {x.shape} to {out.shape} with copy=False.",
                "in that shape the elements lie in another order in memory.",
                "copy=None copies where it must",
            )
        )
    return out


def _share_memory(x: Tensor, y: Tensor) -> bool:
    extent = x.backend.extent
    return extent(x._data)[0] is extent(y._data)[0]


def _copied(x: Tensor) -> Tensor:
    return copy(x)


def _resolve_shape(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    wanted = shape
    if wanted.count(-1) == 1:
        known = math.prod(n for n in wanted if n != -1)
        if known > 0 and x.size % known == 0:
            wanted = tuple(x.size // known if n == -1 else n for n in wanted)
    if min(wanted, default=0) < 0 or math.prod(wanted) != x.size:
        raise ShapeError(
            explain(
                f"reshape of shape {x.shape} to {shape}.",
                f"the {x.size} elements do not fill that shape"
                + (", and only one length may be -1." if wanted.count(-1) > 1 else "."),
                "gf.reshape(x, (x.shape[0], -1))",
            )
        )
    return wanted


def flatten(x: Operand, /, *positional: object, start_axis: int = 0, **wrong: object) -> Tensor:
    """All axes from `start_axis` on as one.

    >>> gf.flatten(gf.ones((2, 3, 4)), start_axis=1).shape
    (2, 12)
    """
    if positional or wrong:
        refuse("flatten", positional, wrong, setting="start_axis")
    x = as_tensor(x)
    start = canonical_axis("flatten", start_axis, x.ndim, name="start_axis") if x.ndim else 0
    return _reshape(x, shape=(*x.shape[:start], math.prod(x.shape[start:])))


def permute_dims(x: Operand, /, axes: Sequence[int]) -> Tensor:
    """The axes in another order: axis i of the result is axis axes[i] of x.

    Raises:
        ShapeError: `axes` does not name every axis once.

    >>> gf.permute_dims(gf.ones((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    x = as_tensor(x)
    fix = f"gf.permute_dims(x, {tuple(reversed(range(x.ndim)))})"
    given = integers(f"permute_dims by {shown(axes)}.", axes, why="axes are integers.", fix=fix)
    order = tuple(canonical_axis("permute_dims", axis, x.ndim, fix=fix) for axis in given)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(
            explain(
                f"permute_dims of shape {x.shape} by {given}.",
                "every axis must be named once.",
                fix,
            )
        )
    return _permute_dims(x, axes=order)


def moveaxis(x: Operand, source: int | tuple[int, ...], destination: int | tuple[int, ...], /) -> Tensor:
    """One axis, or several, moved to other places; the rest keep their order.

    Raises:
        ArgumentError: an axis is named twice, or there are not as many places as axes.

    >>> gf.moveaxis(gf.ones((2, 3, 4)), 0, -1).shape
    (3, 4, 2)
    >>> gf.moveaxis(gf.ones((2, 3, 4)), (0, 1), (2, 0)).shape
    (3, 4, 2)
    """
    x = as_tensor(x)
    axes, places = _axes_in_order("moveaxis", source, x.ndim), _axes_in_order("moveaxis", destination, x.ndim)
    if len(axes) != len(places):
        raise ArgumentError(
            explain(
                f"moveaxis of axes {source} to {destination}.",
                "every axis that moves has one place to go.",
                "gf.moveaxis(x, (0, 1), (-2, -1))",
            )
        )
    order = [i for i in range(x.ndim) if i not in axes]
    for place, axis in sorted(zip(places, axes, strict=True)):
        order.insert(place, axis)
    return _permute_dims(x, axes=tuple(order))


def _axes_in_order(function: str, axis: int | tuple[int, ...], ndim: int) -> list[int]:
    """One axis or several, counted from the front."""
    fix = f"gf.{function}(x, 0, -1)"
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    found = [canonical_axis(function, a, ndim, fix=fix) for a in axes]
    canonical_axes(function, axes, ndim)  # raises for one that is named twice
    return found


def broadcast_to(x: Operand, /, shape: Sequence[int]) -> Tensor:
    """x stretched along axes of length 1, and along new axes in front, to a shape.

    Raises:
        ShapeError: x does not broadcast to that shape.

    >>> gf.broadcast_to(gf.tensor([1.0, 2.0]), (2, 2))
    tensor([[1., 2.],
            [1., 2.]])
    """
    x = as_tensor(x)
    wanted = _shape(shape)
    tail = wanted[len(wanted) - x.ndim :] if x.ndim <= len(wanted) else None
    if tail is None or any(n not in (1, m) for n, m in zip(x.shape, tail, strict=True)):
        raise ShapeError(
            explain(
                f"broadcast_to of shape {x.shape} to {wanted}.",
                "aligned at the right, each length must be equal or 1.",
                "gf.expand_dims(x, axis=-1) adds an axis of length 1",
            )
        )
    return _broadcast_to(x, shape=wanted)


def expand_dims(x: Operand, /, axis: int = 0, **wrong: object) -> Tensor:
    """A new axis of length 1 at position `axis` of the result.

    >>> gf.expand_dims(gf.tensor([1.0, 2.0]), axis=1).shape
    (2, 1)
    """
    if wrong:
        refuse("expand_dims", (), wrong)
    x = as_tensor(x)
    at = canonical_axis("expand_dims", axis, x.ndim + 1)
    return _reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Operand, /, axis: int | tuple[int, ...], **wrong: object) -> Tensor:
    """Axes of length 1 taken away.

    Raises:
        ShapeError: an axis of another length.

    >>> gf.squeeze(gf.ones((2, 1, 3)), axis=1).shape
    (2, 3)
    """
    if wrong:
        refuse("squeeze", (), wrong)
    x = as_tensor(x)
    axes = canonical_axes("squeeze", axis, x.ndim)
    if any(x.shape[a] != 1 for a in axes):
        raise ShapeError(
            explain(
                f"squeeze of axis {axis} of shape {x.shape}.",
                "only an axis of length 1 can be taken away.",
                "x[:, 0] selects one element of an axis",
            )
        )
    return _reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in axes))


def astype(x: Operand, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor:
    """x in another dtype; a derivative passes between floating-point dtypes alone.

    Args:
        copy: False returns x itself where it has the dtype already.
        device: where the result lies, by default where x does.

    >>> gf.astype(gf.tensor([1.7, -1.7]), gf.int64)
    tensor([ 1, -1])
    """
    x, wanted = as_tensor(x), check_dtype(dtype)
    if device is not None:
        x = to_device(x, device)
    if not flag("astype", "copy", copy) and x.dtype == wanted:
        return x
    return _astype(x if wanted.kind == "f" else x.detach(), dtype=wanted)


def concat(arrays: Sequence[Operand], /, *positional: object, axis: int | None = 0, **wrong: object) -> Tensor:
    """Tensors joined along an axis that exists; with axis=None all are flattened first.

    Raises:
        ShapeError: lengths differ along another axis.
        ArgumentError: no arrays.

    >>> gf.concat([gf.tensor([1.0]), gf.tensor([2.0, 3.0])])
    tensor([1., 2., 3.])
    """
    if positional or wrong:
        refuse("concat", positional, wrong)
    tensors = _together("concat", arrays)
    if axis is None:
        return _concat(*(flatten(t) for t in tensors), axis=0)
    at = canonical_axis("concat", axis, tensors[0].ndim)
    expected = tensors[0].shape
    for i, t in enumerate(tensors):
        if t.ndim != len(expected) or any(
            n != m for j, (n, m) in enumerate(zip(t.shape, expected, strict=True)) if j != at
        ):
            raise ShapeError(
                explain(
                    f"concat along axis {axis}: array 0 has shape {expected}, array {i} has {t.shape}.",
                    "all lengths but the one along the axis must be equal.",
                    "gf.stack(arrays) joins along a new axis",
                )
            )
    return _concat(*tensors, axis=at)


def stack(arrays: Sequence[Operand], /, *positional: object, axis: int = 0, **wrong: object) -> Tensor:
    """Tensors of one shape joined along a new axis.

    Raises:
        ShapeError: shapes differ.
        ArgumentError: no arrays.

    >>> gf.stack([gf.tensor([1.0, 2.0]), gf.tensor([3.0, 4.0])], axis=1)
    tensor([[1., 3.],
            [2., 4.]])
    """
    if positional or wrong:
        refuse("stack", positional, wrong)
    tensors = _together("stack", arrays)
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ShapeError(
                explain(
                    f"stack: array 0 has shape {tensors[0].shape}, array {i} has {t.shape}.",
                    "all shapes must be equal.",
                    "gf.concat(arrays, axis=0) joins along an axis that exists",
                )
            )
    at = canonical_axis("stack", axis, tensors[0].ndim + 1)
    return _concat(*(expand_dims(t, axis=at) for t in tensors), axis=at)


def _together(name: str, arrays: Sequence[Operand]) -> tuple[Tensor, ...]:
    """Several arrays as tensors of one backend and dtype."""
    if (
        isinstance(arrays, Tensor | np.ndarray)
        and arrays.ndim == 0
        or not isinstance(arrays, Sequence | Tensor | np.ndarray)
        or isinstance(arrays, str | bytes)
    ):
        raise DTypeError(
            explain(f"{name} of a {type(arrays).__name__}.", "it takes a sequence of tensors.", f"gf.{name}([x, y])")
        )
    if len(arrays) == 0:
        raise ArgumentError(explain(f"{name} of no arrays.", "the result would have no shape.", f"gf.{name}([x, y])"))
    return coerce(of(_concat), tuple(arrays))


__all__ = [
    "astype", "broadcast_to", "concat", "copy", "expand_dims", "flatten", "moveaxis", "permute_dims", "reshape",
    "squeeze", "stack",
]  # fmt: skip
