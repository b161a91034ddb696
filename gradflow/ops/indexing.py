"""Indexing as in NumPy: basic keys give views, integer and boolean arrays gather; assignment in place or recorded.

A key is split into a static part, written into the graph, and its index arrays, which are operands like any other:
a traced step may compute them. `ARRAY` stands in the static part where an index array belongs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradflow import structure
from gradflow.backend import ARRAY
from gradflow.errors import ArgumentError, DTypeError, GraphError, IndexRangeError, ShapeError, explain, sentence
from gradflow.mode import get_mode
from gradflow.ops.axes import canonical_axis, refuse
from gradflow.ops.creation import as_tensor, make_tensor
from gradflow.primitive import defvjp, primitive
from gradflow.tape import Leaf
from gradflow.tensor import OPS, Operand, Tensor

Key = tuple[Any, ...]


# ---------------------------------------------------------------- primitives
@primitive("any")
def basic_index(x: Tensor, /, *, key: Key) -> Tensor:
    """x[key] for a key of integers, slices, None and Ellipsis."""
    ...


@primitive("any")
def unindex(x: Tensor, /, *, shape: tuple[int, ...], key: Key) -> Tensor:
    """Zeros of a shape with x at a basic key."""
    ...


@primitive("any")
def gather(x: Tensor, /, *indices: Tensor, key: Key) -> Tensor:
    """x[key] for a key with index arrays."""
    ...


@primitive("any")
def scatter_add(x: Tensor, /, *indices: Tensor, shape: tuple[int, ...], key: Key) -> Tensor:
    """Zeros of a shape with x added at a key with index arrays, repeated indices adding up."""
    ...


@primitive("any")
def index_update(x: Tensor, value: Tensor, /, *indices: Tensor, key: Key) -> Tensor:
    """A copy of x with value at key; of repeated indices the last wins."""
    ...


@primitive("any", nondifferentiable=True)
def nonzero_index(x: Tensor, /, *, axis: int) -> Tensor:
    """The indices along one axis of the elements of x that are true, in row-major order (its shape depends on x)."""
    ...


@primitive("any", nondifferentiable=True)
def lasting(*indices: Tensor, shape: tuple[int, ...], key: Key) -> Tensor:
    """For every position that a key selects, whether it is the last one to write its element."""
    ...


@primitive("any", writes=1)
def assign(x: Tensor, value: Tensor, /) -> None:
    """Write value over all of x, in place."""


@primitive("any", writes=1)
def assign_index(x: Tensor, value: Tensor, /, *indices: Tensor, key: Key) -> None:
    """Write value into x[key], in place."""


def _vjp_update_value(xp: Any, g: Any, indices: tuple[Any, ...], x_shape: tuple[int, ...], key: Key) -> Any:
    if not indices:
        return xp.basic_index(g, key=key)
    return xp.gather(g, *indices, key=key) * xp.lasting(*indices, shape=x_shape, key=key)


defvjp(basic_index, x=lambda xp, g, x_shape, key: xp.unindex(g, shape=x_shape, key=key))
defvjp(unindex, x=lambda xp, g, key: xp.basic_index(g, key=key))
defvjp(gather, x=lambda xp, g, indices, x_shape, key: xp.scatter_add(g, *indices, shape=x_shape, key=key))
defvjp(scatter_add, x=lambda xp, g, indices, key: xp.gather(g, *indices, key=key))
defvjp(
    index_update,
    x=lambda xp, g, indices, key: xp.index_update(g, 0.0, *indices, key=key),
    value=_vjp_update_value,
)


# ---------------------------------------------------------------- keys
def split(x: Tensor, key: Any) -> tuple[Key, tuple[Tensor, ...]]:
    """A key as users write it, as its static part and its index arrays.

    Raises:
        DTypeError: a part that is no integer, slice, None, Ellipsis, or array of integers or booleans.
        IndexRangeError: too many indices, or a boolean array whose shape does not match.
    """
    static: list[Any] = []
    arrays: list[Tensor] = []
    masks: list[tuple[Tensor, int]] = []
    used = 0
    for part in key if isinstance(key, tuple) else (key,):
        if part is None or part is Ellipsis:
            static.append(part)
        elif isinstance(part, slice):
            static.append(slice(*(None if v is None else _integer(v) for v in (part.start, part.stop, part.step))))
            used += 1
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            static.append(int(part))
            used += 1
        else:
            index = _index_array(part, x)
            if index.dtype.kind == "b":
                masks.append((index, -1 - used if Ellipsis in static else used))
                arrays += [nonzero_index(index, axis=axis) for axis in range(index.ndim)]
                static += [ARRAY] * index.ndim
                used += index.ndim
            else:
                arrays.append(index)
                static.append(ARRAY)
                used += 1
    if used > x.ndim:
        raise IndexRangeError(
            explain(f"{used} indices for a tensor of shape {x.shape}.", f"it has {x.ndim} axes.", "x[0], or x[..., 0]")
        )
    for mask, at in masks:
        start = at if at >= 0 else x.ndim - used - 1 - at  # after an Ellipsis axes count from the end
        if mask.ndim == 0 or x.shape[start : start + mask.ndim] != mask.shape:
            raise IndexRangeError(
                explain(
                    f"a boolean index of shape {mask.shape} for a tensor of shape {x.shape}.",
                    "a mask has the lengths of the axes it selects from.",
                    "x[mask] with mask = x > 0",
                )
            )
    return tuple(static), tuple(arrays)


def _integer(value: Any) -> int:
    try:
        return int(value.__index__())
    except AttributeError as error:
        raise DTypeError(
            explain(f"a slice with {value!r}.", "bounds and step of a slice are integers.", "x[0:10]")
        ) from error


def _index_array(part: Any, x: Tensor) -> Tensor:
    if isinstance(part, list) and not part:
        part = np.empty(0, np.int64)
    if not isinstance(part, Tensor | np.ndarray | list | bool | np.bool_):
        raise DTypeError(
            explain(
                f"an index of type {type(part).__name__}.",
                "an index is an integer, a slice, None, ..., or an array of integers or booleans.",
                "x[0], x[1:3], x[[0, 2]], x[x > 0]",
            )
        )
    index = part if isinstance(part, Tensor) else make_tensor(part, backend=x.backend, copy=None)
    if index.dtype.kind not in "biu":
        raise DTypeError(
            explain(
                f"an index of dtype {index.dtype}.", "an index array holds integers or booleans.", "i.astype(gf.int64)"
            )
        )
    return index


# ---------------------------------------------------------------- public behaviour: t[key], t[key] = value, t += value
def getitem(x: Tensor, key: Any) -> Tensor:
    """t[key]: a view for a basic key, gathered elements for index arrays.

    >>> t = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> t[:, 0], t[[1, 1]].shape, t[t > 1.5]
    (tensor([1., 3.]), (2, 2), tensor([2., 3., 4.]))
    """
    if _is_truth_value(key):
        return getitem(getitem(x, (None, ...)), OPS.reshape(as_tensor(key, x.backend), shape=(1,)))
    static, arrays = split(x, key)
    if arrays:
        return gather(x, *arrays, key=static)
    view = basic_index(x, key=static)
    view._base = x, static, x._data
    return view


def _is_truth_value(key: Any) -> bool:
    """Whether a key is a mask without axes: it adds one in front, of length 1 if it is true and 0 if it is false."""
    return isinstance(key, Tensor | np.ndarray) and key.ndim == 0 and key.dtype.kind == "b"


def setitem(x: Tensor, key: Any, value: Operand) -> None:
    """t[key] = value: in place, and recorded where a derivative is wanted.

    A tensor with history, or that is given a value with history, takes new memory, so that what the graph saved
    stays whole, and so does the tensor that it is a view t[key] of; any other is written where it lies and counts a new
    version.

    Raises:
        GraphError: a leaf that requires grad, outside no_grad; a view that cannot pass the change on.
        DTypeError: a floating-point value for a tensor of integers.
        ShapeError: a value that does not broadcast to the selection.
    """
    if _is_truth_value(key):
        setitem(getitem(x, (None, ...)), OPS.reshape(as_tensor(key, x.backend), shape=(1,)), value)
        return
    new = _fit_value(x, value)
    refuse_write_to_leaf(x, "t[...] = value")
    static, arrays = split(x, key)
    if isinstance(value, Tensor) and value._node is not None and not arrays and _is_that_view(value, x, static):
        return  # the end of `t[key] += value`, which has written already
    if new.shape[:1] == (1,):  # it broadcasts without leading ones, which NumPy takes for some keys only
        lead = next((i for i, n in enumerate(new.shape) if n != 1), new.ndim)
        new = OPS.reshape(new, shape=new.shape[lead:])
    if get_mode().recording and (x._node is not None or new._node is not None):
        _refuse_lost_write(x)
        _rebind(x, index_update(x, new, *arrays, key=static))
    elif static == (Ellipsis,) and new.shape == x.shape:
        _write("t[...] = value", assign, x, new)
    else:
        _write("t[...] = value", assign_index, x, new, *arrays, key=static)


def _fit_value(x: Tensor, value: Operand) -> Tensor:
    if not isinstance(value, Tensor):
        weak = x.dtype.kind == "f" or type(value) is int
        value = make_tensor(value, dtype=x.dtype if weak else None, backend=x.backend, copy=None)
    if value.dtype.kind == "f" and x.dtype.kind != "f":
        raise DTypeError(
            explain(
                f"a {value.dtype} value for a tensor of {x.dtype}.",
                "integers and booleans cannot hold it.",
                "t = t.astype(gf.float32), or value.astype(t.dtype)",
            )
        )
    return value if value.dtype == x.dtype else OPS.astype(value, dtype=x.dtype)


def refuse_write_to_leaf(x: Tensor, what: str) -> None:
    """Raise for an in-place write to a leaf that requires grad while recording."""
    if type(x._node) is Leaf and get_mode().recording:
        raise GraphError(
            explain(
                f"{what} on a leaf that requires grad.",
                "its gradient would be taken at values that are no longer there.",
                f"with gf.no_grad(): {what}",
            )
        )


def _rebind(x: Tensor, new: Tensor) -> None:
    """Give a tensor new memory and history, and the tensor that it is a view of the same change."""
    base = getattr(x, "_base", None)
    if base is None:
        x._data, x._node = new._data, new._node
        structure.changed()
        return
    whole, key, array = base
    refuse_write_to_leaf(whole, "a write into a view")
    if whole._data is not array:
        raise GraphError(
            explain(
                "a write into a view of a tensor that has taken other memory since.",
                "a recorded write gives the tensor new memory, and a view taken before shows the old.",
                "take the view anew: y[key] += value",
            )
        )
    _rebind(whole, index_update(whole, new, key=key))
    view = getitem(whole, key)  # of the new memory: what is written into x later reaches the whole again
    x._data, x._node, x._base = view._data, view._node, view._base
    structure.changed()


def _is_that_view(value: Tensor, x: Tensor, key: Key) -> bool:
    base = getattr(value, "_base", None)
    return base is not None and base[0] is x and base[2] is x._data and base[1] == key


_VIEWS = ("reshape", "broadcast_to", "permute_dims", "matrix_transpose", "alias")


def _refuse_lost_write(x: Tensor) -> None:
    """Raise for a recorded write into what shares memory with another tensor, which would not see it."""
    if hasattr(x, "_base") or getattr(x._data, "base", None) is None:
        return
    if x._node is None or getattr(getattr(x._node, "primitive", None), "name", "") in _VIEWS:
        raise GraphError(
            explain(
                "a recorded write into a tensor that shares the memory of another.",
                "what is recorded takes new memory, so the other would not see the change.",
                "write into the tensor itself, y[key] = value, or into a copy, y.copy()",
            )
        )


def _write(what: str, write: Any, x: Tensor, value: Tensor, *indices: Tensor, **key: Key) -> None:
    try:
        write(x, value, *indices, **key)
    except IndexError as error:
        raise IndexRangeError(
            explain(f"{what} in a tensor of shape {x.shape}.", sentence(error), "indices run from -n to n - 1")
        ) from error
    except ValueError as error:
        if "read-only" in str(error):
            raise ArgumentError(
                explain(
                    f"{what} in a tensor of read-only memory.",
                    "it repeats its elements (broadcast_to), or shares a read-only NumPy array.",
                    "t = t.copy() first",
                )
            ) from error
        raise ShapeError(
            explain(
                f"{what}: a value of shape {value.shape} into a tensor of shape {x.shape}.",
                sentence(error),
                "t[...] = 0.0",
            )
        ) from error


def inplace(x: Tensor, what: str, new: Tensor) -> Tensor:
    """The end of `t += value` and its like: write the new values, recorded where a derivative is wanted."""
    refuse_write_to_leaf(x, what)
    if new.shape != x.shape:
        raise ShapeError(
            explain(
                f"{what}: the result has shape {new.shape}, the tensor {x.shape}.",
                "a tensor cannot grow in place.",
                f"t = t {what.split()[1][:-1]} value",
            )
        )
    new = _fit_value(x, new)
    if get_mode().recording and new._node is not None:
        _rebind(x, new)
    else:
        _write(what, assign, x, new)
    return x


# ---------------------------------------------------------------- selecting by integers, as the array API names it
def _integers(function: str, indices: Operand, x: Tensor) -> Tensor:
    index = as_tensor(indices, x.backend)
    if index.dtype.kind not in "iu":
        raise DTypeError(
            explain(
                f"{function} with indices of dtype {index.dtype}.",
                "indices are integers.",
                "x[mask] selects by booleans",
            )
        )
    return index


def take(x: Operand, indices: Operand, /, *positional: object, axis: int | None = None, **wrong: object) -> Tensor:
    """Elements along an axis, x[…, indices, …]; the axis may be left out where there is one.

    Raises:
        IndexRangeError: an index outside [−n, n).
        DTypeError: indices that are not integers.
        ArgumentError: no axis for a tensor of several.

    >>> gf.take(gf.tensor([[1.0, 2.0], [3.0, 4.0]]), gf.tensor([1]), axis=1)
    tensor([[2.],
            [4.]])
    """
    if positional or wrong:
        refuse("take", positional, wrong)
    x = as_tensor(x)
    if axis is None and x.ndim > 1:
        raise ArgumentError(
            explain(f"take of shape {x.shape} without an axis.", "it has several.", "gf.take(x, i, axis=0)")
        )
    at = canonical_axis("take", 0 if axis is None else axis, x.ndim)
    return getitem(x, (*(slice(None),) * at, _integers("take", indices, x)))


def take_along_axis(x: Operand, indices: Operand, /, *positional: object, axis: int = -1, **wrong: object) -> Tensor:
    """For each position, the element of x whose index along the axis `indices` gives.

    >>> gf.take_along_axis(gf.tensor([[1.0, 2.0], [3.0, 4.0]]), gf.tensor([[1], [0]]), axis=1)
    tensor([[2.],
            [3.]])
    """
    if positional or wrong:
        refuse("take_along_axis", positional, wrong)
    x = as_tensor(x)
    index = _integers("take_along_axis", indices, x)
    at = canonical_axis("take_along_axis", axis, x.ndim)
    if index.ndim != x.ndim:
        raise ShapeError(
            explain(
                f"take_along_axis of shapes {x.shape} and {index.shape}.",
                "indices have as many axes as x.",
                f"gf.expand_dims(indices, axis={axis})",
            )
        )
    key: list[Any] = []
    for i, n in enumerate(x.shape):
        along = np.arange(n).reshape([n if j == i else 1 for j in range(x.ndim)])
        key.append(index if i == at else make_tensor(along, backend=x.backend))
    return getitem(x, tuple(key))


__all__ = ["getitem", "setitem", "take", "take_along_axis"]
