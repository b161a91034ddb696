"""Making tensors from data, and moving them between backends."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from gradflow.arguments import flag, integer, integers, number, shown
from gradflow.backend import Backend, resolve
from gradflow.config import get_default_dtype
from gradflow.errors import ArgumentError, DTypeError, GradflowError, GraphError, ShapeError, explain, sentence
from gradflow.mode import get_mode
from gradflow.primitive import namespace
from gradflow.tensor import OPS, Operand, Tensor, wrap

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64".split()
}


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype as gradflow's own object.

    Raises:
        DTypeError: a dtype outside bool, int8…int64, uint8…uint64, float32, float64.

    >>> from gradflow.ops.creation import check_dtype
    >>> check_dtype("float32") is gf.float32
    True
    """
    if type(dtype) is np.dtype and dtype.isnative and dtype.name in DTYPES:
        return DTYPES[dtype.name]
    try:
        found = DTYPES.get(np.dtype(dtype).name) if dtype is not None else None
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise DTypeError(
            explain(f"{shown(dtype)} is not a dtype of gradflow.", f"it has {', '.join(DTYPES)}.", "dtype=gf.float32")
        )
    return found


def _dtype_of(data: Any) -> np.dtype[Any] | None:
    """The dtype of array data, checked; None where Python numbers decide."""
    dtype = getattr(data, "dtype", None)
    if not isinstance(dtype, np.dtype):
        return None
    if dtype.name not in DTYPES:
        raise DTypeError(
            explain(
                f"data of dtype {dtype}.",
                f"gradflow has {', '.join(DTYPES)}.",
                "gf.tensor(data.astype(np.float32))",
            )
        )
    return DTYPES[dtype.name]


def _python_data(data: Any, wanted: np.dtype[Any] | None) -> np.ndarray:
    """Numbers and nested sequences, which may hold Tensors and arrays, as one array; Python floats are float32."""
    try:
        array = np.array(_plain(data))
    except ValueError as error:
        raise ArgumentError(
            explain(
                f"the data are ragged: {sentence(error)}",
                "every row must have the same length.",
                "gf.tensor([[1, 2], [3, 4]])",
            )
        ) from error
    if array.dtype.kind == "f" and wanted is None and not _holds_arrays(data):
        array = array.astype(get_default_dtype())
    if array.dtype.name not in DTYPES:
        raise DTypeError(
            explain(
                f"data of type {type(data).__name__} became an array of {array.dtype}.",
                "a tensor holds booleans, integers or floating-point numbers.",
                "gf.tensor([1.0, 2.0])",
            )
        )
    whole = wanted is not None and wanted.kind in "iu" and array.dtype.kind in "iu"
    if wanted is not None and whole and array.size:
        _check_range(int(array.min()), int(array.max()), wanted)
    return array


def _check_range(low: int, high: int, dtype: np.dtype[Any]) -> None:
    """Raise for integers that an integer dtype does not hold."""
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max:
        raise ArgumentError(
            explain(
                f"numbers from {low} to {high} for dtype {dtype}.",
                f"it holds {limits.min} to {limits.max}.",
                "dtype=gf.int64",
            )
        )


def _plain(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.numpy()
    return [_plain(item) for item in data] if isinstance(data, list | tuple) else data


def _holds_arrays(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return any(_holds_arrays(item) for item in data)
    return isinstance(data, Tensor | np.ndarray | np.floating)


def _is_buffer(data: Any) -> bool:
    try:
        memoryview(data)
    except TypeError:
        return False
    return True


def make_tensor(
    data: Any,
    *,
    dtype: Any = None,
    backend: str | Backend | None = None,
    copy: bool | None = True,
) -> Tensor:
    """A Tensor outside the graph from anything that holds numbers (the engine's entry; see `tensor`, `asarray`)."""
    wanted = None if dtype is None else check_dtype(dtype)
    if isinstance(data, Tensor):
        data._read("the data of a new tensor")
        if backend is None:
            backend = data.backend
        xp = namespace(backend)
        raw = data._data if xp is data._xp else data.backend.to_numpy(data._data)
        return wrap(xp.as_array(raw, wanted, copy), xp)
    xp = namespace(backend)
    if not hasattr(data, "dtype") and (hasattr(data, "__array__") or _is_buffer(data)):
        data = np.asarray(data)
    own = _dtype_of(data)
    if own is None and hasattr(data, "__array__"):  # another library's array, such as PyTorch's
        data = np.asarray(data)
        own = _dtype_of(data)
    if own is None:
        if copy is False:
            raise ArgumentError(
                explain(
                    f"copy=False for data of type {type(data).__name__}.",
                    "numbers in Python objects have no memory to share.",
                    "gf.asarray(numpy_array, copy=False)",
                )
            )
        data = _python_data(data, wanted)
    elif isinstance(data, np.ndarray) and data.dtype == own and data.dtype is not own:
        data = data.view(own)  # pickles and files bring dtype objects of their own; dtypes are compared by identity
    if own is not None and get_mode().interpreter is not None and copy is not False:
        shared = wrap(xp.as_array(data, own, None), xp)  # casts and copies are operations: made anew when replayed
        if wanted not in (None, own):
            return cast(Tensor, OPS.astype(shared, dtype=wanted))
        return cast(Tensor, OPS.copy(shared)) if copy else shared
    return wrap(xp.as_array(data, wanted if wanted is not None else own, copy), xp)


def tensor(
    data: Any, *, dtype: Any = None, backend: str | Backend | None = None, requires_grad: bool = False
) -> Tensor:
    """Make a leaf tensor from a copy of the data.

    Args:
        data: numbers, nested lists, NumPy arrays, tensors, or any object with `__array__`.
        dtype: by default that of array data; float32 for Python floats, int64 for integers, bool for booleans.
        backend: name or Backend; by default the chosen one (`use_backend`, `set_backend`, GRADFLOW_BACKEND).
        requires_grad: whether derivatives with respect to it will be wanted.

    Raises:
        DTypeError: data or dtype that gradflow does not have, or requires_grad for integers.
        ArgumentError: ragged lists.

    >>> gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    tensor([[1., 2.],
            [3., 4.]])
    """
    made = make_tensor(data, dtype=dtype, backend=backend)
    if get_mode().interpreter is not None and not isinstance(data, np.ndarray):
        made = OPS.copy(made)  # an operation, so that what is written into it is not there when a trace is replayed
    return made.requires_grad_() if flag("tensor", "requires_grad", requires_grad) else made


def _place(device: Any, backend: str | Backend | None) -> Backend | None:
    """The backend of a device of `backend`, by default of the chosen one; None where neither is given.

    Raises:
        DTypeError: a device that is no name.
        ArgumentError: the backend has no such device.
    """
    if device is None:
        return None if backend is None else resolve(backend)
    if not isinstance(device, str):
        raise DTypeError(explain(f"device={shown(device)}.", "a device is named by a text.", 'device="cpu"'))
    chosen = resolve(backend)
    return chosen if device == chosen.device else resolve(f"{chosen.name}:{device}")


def asarray(
    obj: Any,
    /,
    *,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
    copy: bool | None = None,
) -> Tensor:
    """Make a tensor that shares memory with `obj` where it can.

    With `copy=None` a NumPy array of the wanted dtype is shared: what is written into the array changes the tensor,
    and gradflow cannot see it. `copy=True` never shares, `copy=False` raises where sharing is impossible. A Tensor
    of the right dtype and backend is returned as it is. `device` names a device of the backend, as `t.device` does.

    Raises:
        ArgumentError: copy=False for data that must be copied, or a device that the backend does not have.
        DTypeError: data or dtype that gradflow does not have.

    >>> gf.asarray(np.arange(3))
    tensor([0, 1, 2])
    """
    if backend is None and device is not None and isinstance(obj, Tensor):
        backend = obj.backend
    where = _place(device, backend)
    copy = None if copy is None else flag("asarray", "copy", copy)
    if isinstance(obj, Tensor) and not copy and where in (None, obj.backend):
        if dtype is None or check_dtype(dtype) == obj.dtype:
            return obj
        if copy is None:
            return cast(Tensor, OPS.astype(obj, dtype=check_dtype(dtype)))
    try:
        return make_tensor(obj, dtype=dtype, backend=where, copy=copy)
    except ValueError as error:
        if copy is not False or isinstance(error, ArgumentError):
            raise
        raise ArgumentError(explain("copy=False, but the data must be copied.", str(error), "copy=None")) from error


def as_tensor(x: Operand, backend: Backend | None = None) -> Tensor:
    """The operand of a function as a Tensor: tensors as they are, NumPy arrays shared, numbers by the default dtype."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, list | tuple) or x is None:
        raise DTypeError(
            explain(
                f"an operand of type {type(x).__name__}.",
                "operands are tensors, NumPy arrays and numbers.",
                f"gf.tensor({x!r})" if x is not None else "gf.tensor(0.0)",
            )
        )
    return make_tensor(x, backend=backend, copy=None)


def as_pair(x: Operand, y: Operand) -> tuple[Tensor, Tensor]:
    """Two operands as Tensors; where one is a Tensor, the other comes to its backend."""
    if isinstance(x, Tensor):
        return (x, y) if isinstance(y, Tensor) else (x, as_tensor(y, x.backend))
    y = as_tensor(y)
    return as_tensor(x, y.backend), y


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """Share the memory of another library's array through the DLPack protocol.

    Source: Python array API standard 2024.12, `from_dlpack`.

    >>> gf.from_dlpack(np.arange(3.0))
    tensor([0., 1., 2.], dtype=float64)
    """
    if device is None and copy is None:
        options: dict[str, Any] = {}
    else:  # NumPy ≥ 2.1
        options = {"device": device, "copy": None if copy is None else flag("from_dlpack", "copy", copy)}
    if not hasattr(x, "__dlpack__") or isinstance(x, type):
        raise DTypeError(
            explain(f"from_dlpack of a {type(x).__name__}.", "it has no __dlpack__ method.", "gf.asarray(data)")
        )
    try:
        return asarray(np.from_dlpack(x, **options))
    except GradflowError:
        raise
    except (BufferError, ValueError) as error:
        mistake = f"from_dlpack of a {type(x).__name__}{f' with device={shown(device)}' if device is not None else ''}."
        raise ArgumentError(explain(mistake, sentence(error), "gf.asarray(numpy_array)")) from error


def _shape(shape: Any) -> tuple[int, ...]:
    mistake, fix = f"{shown(shape)} is not a shape.", "gf.zeros((2, 3))"
    wanted = integers(mistake, shape, why="a shape is an integer or a tuple of integers.", fix=fix)
    if min(wanted, default=0) < 0:
        raise ShapeError(explain(mistake, "no length is negative.", fix))
    if math.prod(wanted) >= _MOST or max(wanted, default=0) >= _MOST:
        raise ShapeError(explain(mistake, "no memory has room for so many elements.", fix))
    return wanted


_MOST = 2**60  # elements; of 8 bytes each they are more than a pointer can address


def full(
    shape: Any,
    fill_value: float,
    *,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor filled with one value; its dtype follows the value's kind.

    >>> gf.full((2,), 3.0)
    tensor([3., 3.])
    """
    value = number("full", "fill_value", fill_value)
    if dtype is None:
        dtype = get_default_dtype() if isinstance(value, float) else np.bool_ if isinstance(value, bool) else np.int64
    wanted = check_dtype(dtype)
    if wanted.kind in "iu" and isinstance(value, int):
        _check_range(value, value, wanted)
    return tensor(np.full(_shape(shape), value, wanted), backend=_place(device, backend), requires_grad=requires_grad)


def zeros(
    shape: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of zeros.

    >>> gf.zeros(3)
    tensor([0., 0., 0.])
    """
    return full(shape, 0.0, dtype=dtype, device=device, backend=backend, requires_grad=requires_grad)


def ones(
    shape: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ones.

    >>> gf.ones((1, 2))
    tensor([[1., 1.]])
    """
    return full(shape, 1.0, dtype=dtype, device=device, backend=backend, requires_grad=requires_grad)


def empty(
    shape: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor to be filled; its values are not to be relied on (they are zeros, so that runs can be repeated).

    >>> gf.empty((2, 3)).shape
    (2, 3)
    """
    return zeros(shape, dtype=dtype, device=device, backend=backend, requires_grad=requires_grad)


def full_like(x: Operand, /, fill_value: float, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of x's shape, dtype and backend filled with one value.

    >>> gf.full_like(gf.tensor([1.0, 2.0]), 7)
    tensor([7., 7.])
    """
    x = as_tensor(x)
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype, device=device, backend=x.backend)


def zeros_like(x: Operand, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros of x's shape, dtype and backend.

    >>> gf.zeros_like(gf.tensor([1, 2]))
    tensor([0, 0])
    """
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Operand, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones of x's shape, dtype and backend.

    >>> gf.ones_like(gf.tensor([1, 2]))
    tensor([1, 1])
    """
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Operand, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of x's shape, dtype and backend to be filled; its values are not to be relied on.

    >>> gf.empty_like(gf.tensor([1, 2])).shape
    (2,)
    """
    return zeros_like(x, dtype=dtype, device=device)


def arange(
    start: float,
    /,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Evenly spaced values in [start, stop); with one argument, in [0, start).

    Raises:
        ArgumentError: step 0.
        DTypeError: dtype=gf.bool.

    >>> gf.arange(3)
    tensor([0, 1, 2])
    """
    start, step = number("arange", "start", start), number("arange", "step", step)
    stop = None if stop is None else number("arange", "stop", stop)
    if step == 0:
        raise ArgumentError(explain("arange with step 0.", "it would never arrive.", "gf.arange(0, 10, 1)"))
    if dtype is not None and check_dtype(dtype).kind == "b":
        raise DTypeError(explain("arange of booleans.", "two truth values make no range.", "gf.arange(10) % 2 == 0"))
    first, last = (0, start) if stop is None else (start, stop)
    if dtype is None and any(isinstance(v, float) for v in (first, last, step)):
        dtype = get_default_dtype()
    wanted = None if dtype is None else check_dtype(dtype)
    try:
        values = np.arange(first, last, step, dtype=wanted)
    except (ValueError, OverflowError) as error:
        call = f"arange({first}, {last}, {step})"
        raise ArgumentError(explain(f"{call} has no length.", sentence(error), "gf.arange(0, 10, 1)")) from error
    return tensor(values, backend=_place(device, backend))


def linspace(
    start: float,
    stop: float,
    /,
    num: int,
    *,
    dtype: Any = None,
    device: Any = None,
    endpoint: bool = True,
    backend: str | Backend | None = None,
) -> Tensor:
    """`num` evenly spaced values from start to stop.

    >>> gf.linspace(0, 1, 3)
    tensor([0. , 0.5, 1. ])
    """
    first, last = float(number("linspace", "start", start)), float(number("linspace", "stop", stop))
    count = integer("linspace", "num", num, least=0, fix="gf.linspace(0, 1, 11)")
    (count,) = _shape(count)
    values = np.linspace(first, last, count, endpoint=flag("linspace", "endpoint", endpoint))
    return tensor(values, dtype=get_default_dtype() if dtype is None else dtype, backend=_place(device, backend))


def eye(
    n_rows: int,
    n_cols: int | None = None,
    /,
    *,
    k: int = 0,
    dtype: Any = None,
    device: Any = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere.

    >>> gf.eye(2)
    tensor([[1., 0.],
            [0., 1.]])
    """
    rows, columns = _shape((n_rows, n_rows if n_cols is None else n_cols))
    offset = integer("eye", "k", k)
    wanted = get_default_dtype() if dtype is None else check_dtype(dtype)
    return tensor(np.eye(rows, columns, offset, wanted), backend=_place(device, backend))


def to(t: Tensor, target: Any, /) -> Tensor:
    """The tensor on another backend, or in another dtype.

    Moving is not recorded: move data and parameters before computing with them.

    Raises:
        GraphError: a tensor that an operation made, or a parameter, was to be moved while recording.

    >>> gf.tensor([1, 2]).to(gf.float64).dtype
    dtype('float64')
    """
    if not isinstance(target, str | Backend) or target in DTYPES:
        from gradflow.ops.shaping import astype

        return astype(t, target, copy=False)
    backend = resolve(target)
    if backend is t.backend:
        return t
    if t.requires_grad:
        raise GraphError(
            explain(
                f"a tensor that requires grad was to be moved to {backend.name}.",
                "no derivative crosses backends.",
                f"t.detach().to({backend.name!r}).requires_grad_(), or model.to({backend.name!r})",
            )
        )
    return make_tensor(t, backend=backend, copy=None)


def to_device(t: Tensor, device: Any, /, *, stream: None = None) -> Tensor:
    """The tensor on another device of its backend; `t.to(backend)` moves it to another backend.

    Raises:
        ArgumentError: the backend has no such device, or a stream is given.
        GraphError: as for `to`.

    >>> gf.tensor([1, 2]).to_device("cpu")
    tensor([1, 2])
    """
    if stream is not None:
        raise ArgumentError(
            explain(f"to_device(stream={stream!r}).", "a backend orders its own work.", "t.to_device(device)")
        )
    return to(t, _place(device, t.backend))


OPS.make_tensor = make_tensor
__all__ = [
    "DTYPES", "arange", "asarray", "empty", "empty_like", "eye", "from_dlpack", "full", "full_like", "linspace", "ones",
    "ones_like", "tensor", "to", "to_device", "zeros", "zeros_like",
]  # fmt: skip
