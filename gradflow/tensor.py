"""Tensor and Parameter: an array, the namespace it computes in, and the node its cotangent goes to.

Arithmetic is not here: every operation lives in `gradflow.ops` and is attached to Tensor there. The engine above
fills `OPS` with the primitives as functions of Tensors; the sweep below runs on it when derivatives are to be
differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from threading import RLock, get_ident
from types import GeneratorType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Union, cast

import numpy as np

from gradflow import structure, tape
from gradflow.arguments import flag, not_async, wrong_kind
from gradflow.errors import ArgumentError, BackendMismatchError, DTypeError, GraphError, ShapeError, explain
from gradflow.mode import Interpreter, Mode, get_mode, grad_mode, resumed, set_mode, using
from gradflow.tape import Edge, Leaf, Node

if TYPE_CHECKING:
    from gradflow.backend import Backend

P = ParamSpec("P")
R = TypeVar("R")
Shape = tuple[int, ...]
Operand = Union["Tensor", np.ndarray, np.generic, bool, int, float]

API_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")  # of the array API standard; the last one is followed
_accumulating = RLock()
OPS: Any = SimpleNamespace()  # primitive name -> function of Tensors; filled as primitives are registered


class Tensor:
    """An array that remembers how it was computed.

    Tensors are made by `gf.tensor` (copies its data), `gf.asarray` (shares when it can) and by every operation.

    >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([2., 4.])
    """

    __slots__ = ("__weakref__", "_base", "_data", "_node", "_xp")
    __array_ufunc__ = None  # `ndarray * tensor` is handed to Tensor
    __hash__ = object.__hash__  # == compares element by element, so identity hashes

    _data: Any
    _xp: Any
    _node: Node | Leaf | None
    _base: tuple[
        Tensor, tuple[Any, ...], Any
    ]  # of what t[key] is a view: the tensor, the key, its array then; else unset

    # ------------------------------------------------------------ what it is
    @property
    def data(self) -> Any:
        """The backend's own array (shared, not copied)."""
        self._read("its raw array .data")
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if value is self._data:  # the end of `t.data += value`, which has written already
            tape.writes.mark(value, self.backend.extent)
        raise GraphError(
            explain(
                "an assignment to .data.",
                "a write behind the graph's back would make derivatives wrong in silence.",
                "with gf.no_grad(): t[...] = value, or t += value",
            )
        )

    @property
    def backend(self) -> Backend:
        """The backend the array lives on."""
        return cast("Backend", self._xp.backend)

    @property
    def device(self) -> str:
        """Name of the device the array lives on."""
        return self.backend.device

    @property
    def shape(self) -> Shape:
        """Length of every axis."""
        return cast(Shape, self._data.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._data.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the elements."""
        return cast("np.dtype[Any]", self._data.dtype)

    @property
    def version(self) -> int:
        """Time on gradflow's clock of the last in-place write to this memory; 0 if there was none."""
        return tape.writes.at(self.backend.extent(self._data))

    # ------------------------------------------------------------ its place in the graph
    @property
    def requires_grad(self) -> bool:
        """Whether a derivative with respect to this tensor will be wanted."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        self.requires_grad_(requires_grad)

    @property
    def is_leaf(self) -> bool:
        """Whether the user made it (True) or an operation that was recorded did (False)."""
        return type(self._node) is not Node

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward() has accumulated: of a leaf, or of a tensor that retains it."""
        node = self._node
        if (interpreter := get_mode().interpreter) is not None and type(node) is Leaf:
            interpreter.gradient(node)
        return getattr(node, "grad", None)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self._node is None:
            if value is None:
                return
            raise GraphError(
                explain(
                    "a tensor that does not require grad was given one.",
                    "a gradient belongs to a leaf of the graph.",
                    "t.requires_grad_() first",
                )
            )
        if value is not None:
            check_gradient(value, self)
        if (interpreter := get_mode().interpreter) is not None and type(self._node) is Leaf:
            interpreter.gradient(self._node, replaced=True)
        self._node.grad = value
        structure.changed()

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for a gradient, or no longer; in place, on a leaf, which then forgets its gradient and its hooks.

        >>> gf.tensor([1.0]).requires_grad_().requires_grad
        True
        """
        if not self.is_leaf:
            raise GraphError(
                explain(
                    "requires_grad_() of a tensor that an operation made.",
                    "only a leaf can start or stop to require a gradient.",
                    "y = y.detach().requires_grad_()",
                )
            )
        if not flag("requires_grad_", "requires_grad", requires_grad):
            self._node = None
        elif self._node is None:
            self._node = _leaf(self._data)
        structure.changed()
        return self

    def detach(self) -> Tensor:
        """The same memory as a tensor outside the graph.

        >>> (gf.tensor([1.0], requires_grad=True) * 2).detach().requires_grad
        False
        """
        return wrap(self._data, self._xp)

    def retain_grad(self) -> None:
        """Keep the gradient of this intermediate tensor in `.grad` when backward() passes.

        >>> x = gf.tensor(3.0, requires_grad=True)
        >>> y = x * x
        >>> y.retain_grad()
        >>> (2 * y).backward()
        >>> y.grad
        tensor(2.)
        """
        if type(self._node) is Node and not hasattr(self._node, "grad"):
            self._node.grad = None
            tape.hooks_in_use = True

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
        """Call `hook(gradient)` whenever this tensor's whole gradient is known; what it returns replaces it.

        Returns:
            A function without arguments that takes the hook off again.

        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> remove = x.register_hook(lambda g: 10 * g)
        >>> x.sum().backward()
        >>> x.grad
        tensor([10., 10.])
        """
        if self._node is None:
            raise GraphError(
                explain(
                    "register_hook() on a tensor that does not require grad.",
                    "no gradient will ever arrive here.",
                    "t.requires_grad_() before the hook",
                )
            )
        if not callable(hook):
            reason = "it is called with the gradient, and returns another or None."
            raise wrong_kind("register_hook", "hook", hook, reason, "t.register_hook(lambda g: 2 * g)")
        return tape.add_hook(self._node, hook)

    def backward(
        self, gradient: Operand | None = None, *, retain_graph: bool | None = None, create_graph: bool = False
    ) -> None:
        """Add ∂self/∂leaf to `.grad` of every leaf that this tensor was computed from.

        Args:
            gradient: the cotangent to start from, of this tensor's shape; 1 for a scalar.
            retain_graph: keep what the graph saved, for a second backward(); by default only with create_graph.
            create_graph: record the sweep too, so that the gradients can be differentiated. A leaf then holds a
                gradient whose graph leads back to it, a cycle that only `leaf.grad = None` or the garbage collector
                ends; `gf.grad` has none.

        Raises:
            GraphError: nothing was recorded, the graph was freed, or a saved value was changed in place.
            ShapeError: no `gradient` for a tensor that is not a scalar, or one of another shape.

        >>> x = gf.tensor(3.0, requires_grad=True)
        >>> (x**2).backward()
        >>> x.grad
        tensor(6.)
        """
        node = self._node
        if node is None:
            raise GraphError(
                explain(
                    "backward() of a tensor that does not require grad.",
                    "nothing it was computed from requires grad, or it was computed under no_grad.",
                    "gf.tensor(data, requires_grad=True) before computing the loss",
                )
            )
        if create_graph is not False:
            create_graph = flag("backward", "create_graph", create_graph)
        retain = create_graph if retain_graph is None else flag("backward", "retain_graph", retain_graph)
        seed = _seed(self, gradient)
        interpreter = get_mode().interpreter
        if create_graph or seed._node is not None or interpreter is not None and interpreter.on_tensors:
            with using(grad_mode(create_graph)):
                found = own_tensors(sweep_tensors(self, seed, retain), seed)
                with _accumulating:
                    for leaf, g in found.items():
                        if interpreter is not None:
                            interpreter.gradient(leaf)
                        leaf.grad = g if leaf.grad is None else leaf.grad + g
            structure.changed()
            return
        xp = self._xp
        found = own(sweep_arrays(self, seed._data, retain), seed._data, xp)
        with _accumulating:  # threads may share leaves: 0.1 µs
            for leaf, g in found.items():
                leaf.grad = g if leaf.grad is None else wrap(xp.as_array(xp.add(leaf.grad._data, g._data)), xp)
        structure.changed()

    # ------------------------------------------------------------ leaving the graph
    def _read(self, how: str) -> None:
        interpreter = get_mode().interpreter
        if interpreter is not None:
            interpreter.read(self, how)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: a read-only view where they lie on the host, else a copy.

        Read-only, because a change behind the graph's back would make derivatives wrong in silence;
        `t.numpy().copy()` may be changed.

        >>> gf.tensor([1.0, 2.0]).numpy()
        array([1., 2.], dtype=float32)
        """
        self._read(".numpy()")
        array = self.backend.to_numpy(self._data).view()
        array.flags.writeable = False
        return array

    def item(self) -> Any:
        """The only element as a Python number.

        >>> gf.tensor(2.5).item()
        2.5
        """
        self._read(".item()")
        if self._data.size != 1:
            raise ShapeError(
                explain(
                    f"item() of a tensor of shape {self.shape}.",
                    "only a single element is one Python number.",
                    "t.tolist(), or t[0].item()",
                )
            )
        return self.backend.to_numpy(self._data).item()

    def tolist(self) -> Any:
        """The values as nested Python lists.

        >>> gf.tensor([[1, 2], [3, 4]]).tolist()
        [[1, 2], [3, 4]]
        """
        self._read(".tolist()")
        return self.backend.to_numpy(self._data).tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._read("np.asarray(t)")
        host = self.backend.to_numpy(self._data)
        if copy or (dtype is not None and np.dtype(dtype) != host.dtype):
            if copy is False:
                raise ValueError(f"a {host.dtype} tensor cannot become a {np.dtype(dtype)} array without a copy")
            return np.array(host, dtype=dtype)
        return self.numpy()

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        self._read("DLPack export")
        options = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        given = {name: value for name, value in options.items() if value is not None}  # NumPy 2.0 takes the first alone
        return self._data.__dlpack__(**given)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        import sys

        if api_version is not None and api_version not in API_VERSIONS:
            raise ArgumentError(
                explain(
                    f"version {api_version!r} of the array API standard was asked for.",
                    f"gradflow follows {API_VERSIONS[-1]}, and the versions before it.",
                    f"t.__array_namespace__(api_version={API_VERSIONS[-1]!r})",
                )
            )
        return sys.modules["gradflow"]  # above this module: not to be imported from here

    def __bool__(self) -> bool:
        self._read("bool(t)")
        if self._data.size != 1:
            raise ShapeError(
                explain(
                    f"the truth value of a tensor of shape {self.shape} is ambiguous.",
                    "each element has its own.",
                    "t.any() or t.all()",
                )
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        value = self.item()
        if not isinstance(value, int) or isinstance(value, bool):
            raise DTypeError(
                explain(f"a {self.dtype} tensor was used as an index.", "an index is an integer.", "t.astype(gf.int64)")
            )
        return value

    def __len__(self) -> int:
        if not self._data.shape:
            raise TypeError("len() of a 0-d tensor")
        return int(self._data.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Operand) -> bool:
        return bool((self == value).any())

    def __repr__(self) -> str:
        name = type(self).__name__.lower()
        if (interpreter := get_mode().interpreter) is not None and getattr(interpreter, "traces", lambda _: False)(
            self
        ):
            return f"{name}(<traced>, shape={self.shape}, dtype={self.dtype})"
        body = np.array2string(self.backend.to_numpy(self._data), separator=", ", prefix=f"{name}(")
        notes = [] if self.dtype.name in ("float32", "int64", "bool") and self.size else [f"dtype={self.dtype.name}"]
        notes += [f"backend={self.backend.name!r}"] if self.backend.name != "numpy" else []
        notes += ["requires_grad=True"] if self.requires_grad and type(self) is Tensor else []
        return f"{name}({', '.join([body, *notes])})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __copy__(self) -> Tensor:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        self._read("a copy by copy.copy or copy.deepcopy")
        if not self.is_leaf:
            raise GraphError(
                explain(
                    "a copy was asked of a tensor that an operation made.",
                    "the graph behind it cannot be copied.",
                    "copy.deepcopy(t.detach())",
                )
            )
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied._data, copied._xp = self.backend.asarray(self._data, copy=True), self._xp
        copied._node = None if self._node is None else _leaf(copied._data)
        if self.grad is not None:
            copied._node.grad = self.grad.detach().__deepcopy__({})  # type: ignore[union-attr]
        return copied

    def __reduce__(self) -> Any:
        if not self.is_leaf:
            raise GraphError(
                explain(
                    "pickle of a tensor that an operation made.",
                    "the graph behind it cannot be pickled.",
                    "pickle.dumps(t.detach())",
                )
            )
        return _unpickle, (type(self), np.array(self), self.requires_grad)

    if TYPE_CHECKING:  # attached by gradflow.ops, each defined in one place there

        def __add__(self, other: Operand) -> Tensor: ...
        def __radd__(self, other: Operand) -> Tensor: ...
        def __sub__(self, other: Operand) -> Tensor: ...
        def __rsub__(self, other: Operand) -> Tensor: ...
        def __mul__(self, other: Operand) -> Tensor: ...
        def __rmul__(self, other: Operand) -> Tensor: ...
        def __truediv__(self, other: Operand) -> Tensor: ...
        def __rtruediv__(self, other: Operand) -> Tensor: ...
        def __floordiv__(self, other: Operand) -> Tensor: ...
        def __rfloordiv__(self, other: Operand) -> Tensor: ...
        def __mod__(self, other: Operand) -> Tensor: ...
        def __rmod__(self, other: Operand) -> Tensor: ...
        def __pow__(self, other: Operand) -> Tensor: ...
        def __rpow__(self, other: Operand) -> Tensor: ...
        def __matmul__(self, other: Operand) -> Tensor: ...
        def __rmatmul__(self, other: Operand) -> Tensor: ...
        def __and__(self, other: Operand) -> Tensor: ...
        def __rand__(self, other: Operand) -> Tensor: ...
        def __or__(self, other: Operand) -> Tensor: ...
        def __ror__(self, other: Operand) -> Tensor: ...
        def __xor__(self, other: Operand) -> Tensor: ...
        def __rxor__(self, other: Operand) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __eq__(self, other: Operand) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Operand) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Operand) -> Tensor: ...
        def __le__(self, other: Operand) -> Tensor: ...
        def __gt__(self, other: Operand) -> Tensor: ...
        def __ge__(self, other: Operand) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...
        def __setitem__(self, key: Any, value: Operand) -> None: ...

        @property
        def T(self) -> Tensor: ...
        @property
        def mT(self) -> Tensor: ...

        def abs(self) -> Tensor: ...
        def all(self, *, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def any(self, *, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def argmax(self, *, axis: int | None = None, keepdims: bool = False) -> Tensor: ...
        def argmin(self, *, axis: int | None = None, keepdims: bool = False) -> Tensor: ...
        def astype(self, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor: ...
        def clip(self, min: Operand | None = None, max: Operand | None = None) -> Tensor: ...
        def copy(self) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def flatten(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def matmul(self, other: Operand, /) -> Tensor: ...
        def max(self, *, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def mean(self, *, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def min(self, *, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def permute_dims(self, axes: tuple[int, ...]) -> Tensor: ...
        def relu(self) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def sigmoid(self) -> Tensor: ...
        def softmax(self, *, axis: int = -1) -> Tensor: ...
        def log_softmax(self, *, axis: int = -1) -> Tensor: ...
        def sqrt(self) -> Tensor: ...
        def squeeze(self, axis: Any) -> Tensor: ...
        def std(self, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Tensor: ...
        def sum(self, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def to(self, target: Any, /) -> Tensor: ...
        def to_device(self, device: Any, /, *, stream: None = None) -> Tensor: ...
        def var(self, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Tensor: ...


class Parameter(Tensor):
    """A leaf that a Module trains: it requires grad and optimizers update it in place.

    Args:
        data: a Tensor (its memory is shared) or anything `gf.tensor` takes (copied).
        requires_grad: False for a frozen parameter.

    Raises:
        DTypeError: data that is not floating-point.

    >>> gf.Parameter([1.0, 2.0])
    parameter([1., 2.])
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        source = data if isinstance(data, Tensor) else OPS.make_tensor(data)
        self._data, self._xp = source._data, source._xp
        leaf = _leaf(source._data)  # an integer parameter is refused even when it is frozen
        self._node = leaf if flag("Parameter", "requires_grad", requires_grad) else None


# ---------------------------------------------------------------- making tensors from arrays
def wrap(data: Any, xp: Any, node: Node | Leaf | None = None) -> Tensor:
    """A Tensor around a raw array, nothing checked."""
    t = Tensor()
    t._data, t._xp, t._node = data, xp, node
    return t


def _leaf(data: Any) -> Leaf:
    if data.dtype.kind != "f":
        raise DTypeError(
            explain(
                f"a {data.dtype} tensor cannot require grad.",
                "derivatives are taken with respect to floating-point numbers.",
                "t.astype(gf.float32).requires_grad_()",
            )
        )
    return Leaf(data.shape, data.dtype)


def _unpickle(cls: type[Tensor], array: np.ndarray, requires_grad: bool) -> Tensor:
    t = object.__new__(cls)
    source = OPS.make_tensor(array)
    t._data, t._xp = source._data, source._xp
    t._node = _leaf(t._data) if requires_grad else None
    return t


# ---------------------------------------------------------------- backward: raw arrays, or Tensors for higher orders
def mismatch(what: str, here: Backend, there: Backend) -> BackendMismatchError:
    """The error for tensors on two backends where one is needed."""
    return BackendMismatchError(
        explain(
            f"{what} on {here.name}:{here.device} and {there.name}:{there.device}.",
            "an operation runs on one backend; nothing is moved in silence.",
            f"move one of them: t.to({here.name!r})",
        )
    )


def check_gradient(gradient: Tensor, of: Tensor, what: str = "a gradient") -> None:
    """Raise unless a gradient (or tangent) is a Tensor of the shape, dtype and backend of the one it belongs to."""
    if not isinstance(gradient, Tensor):
        kind = type(gradient).__name__
        raise DTypeError(explain(f"{what} of type {kind}.", "derivatives are Tensors.", "gf.tensor(values)"))
    if gradient.shape != of.shape:
        raise ShapeError(
            explain(
                f"{what} of shape {gradient.shape} for a tensor of shape {of.shape}.",
                "it has exactly the shape of what it belongs to.",
                f"gf.broadcast_to(gradient, {of.shape})",
            )
        )
    if gradient.dtype != of.dtype:
        raise DTypeError(
            explain(
                f"{what} of {gradient.dtype} for a tensor of {of.dtype}.",
                "it has exactly the dtype of what it belongs to.",
                f"gradient.astype(gf.{of.dtype})",
            )
        )
    if gradient._xp is not of._xp:
        raise mismatch(f"a tensor and {what}", of.backend, gradient.backend)


def _seed(of: Tensor, gradient: Operand | None) -> Tensor:
    if gradient is None:
        shape = of._data.shape
        if shape == ():
            return wrap(of._xp.one(of._data.dtype), of._xp)
        if of._data.size != 1:
            raise ShapeError(
                explain(
                    f"backward() of a tensor of shape {of.shape} without a gradient to start from.",
                    "only a scalar has an obvious one: 1.",
                    "loss.mean().backward(), or y.backward(gf.ones_like(y))",
                )
            )
        return wrap(of._xp.one(of._data.dtype).reshape(shape), of._xp)
    if isinstance(gradient, bool):
        raise DTypeError(
            explain(
                f"backward() got {gradient} by position.",
                "what is given by position is the gradient to start from; settings are given by name.",
                f"loss.backward(retain_graph={gradient})",
            )
        )
    seed = gradient if isinstance(gradient, Tensor) else OPS.make_tensor(gradient, dtype=of.dtype, backend=of.backend)
    seed = seed if seed.dtype == of.dtype else cast(Tensor, OPS.astype(seed, dtype=of.dtype))
    check_gradient(seed, of)
    return seed


def sweep_tensors(root: Tensor, seed: Tensor, retain: bool, targets: Iterable[Any] | None = None) -> dict[Any, Tensor]:
    """Sweep with the generic rules on Tensors: the derivative is recorded if the present mode records."""
    xp, node = root._xp, cast(Node, root._node)
    hooks = _run_hooks if tape.hooks_in_use else None
    sweep = tape.sweep if get_mode().interpreter is None else _interpreted(root)
    return sweep(node, seed, OPS, xp.backend.extent, retain, lambda n: lift(n, xp), hooks, targets)


def sweep_arrays(root: Tensor, seed: Any, retain: bool, targets: Iterable[Any] | None = None) -> dict[Any, Any]:
    """Sweep on raw arrays, with the backend's faster derivatives where it has any."""
    xp, node = root._xp, cast(Node, root._node)
    hooks = (lambda n, g: _run_hooks(n, wrap(g, xp))._data) if tape.hooks_in_use else None
    sweep = tape.sweep if get_mode().interpreter is None else _interpreted(root)
    return sweep(node, seed, xp, xp.backend.extent, retain, None, hooks, targets)


def _interpreted(root: Tensor) -> Callable[..., dict[Any, Any]]:
    """The tape's sweep, as the present interpreter runs it."""

    def sweep(node: Any, seed: Any, xp: Any, extent: Any, retain: bool, lift: Any, hooks: Any, targets: Any) -> Any:
        def run(lift: Any, hooks: Any, retain: bool) -> dict[Any, Any]:
            return tape.sweep(node, seed, xp, extent, retain, lift, hooks, targets)

        return cast(Interpreter, get_mode().interpreter).sweep(root, run, lift, hooks, retain)

    return sweep


def sweeps_tensors() -> bool:
    """Whether the present interpreter, if there is one, wants sweeps on Tensors."""
    interpreter = get_mode().interpreter
    return interpreter is not None and interpreter.on_tensors


def lift(node: Node, xp: Any) -> list[Edge | None]:
    """The edges of a node with its generic rules, and what they saved as Tensors joined to where it came from."""
    primitive, edges = node.primitive, node.edges
    lifted: list[Edge | None] = []
    for i, edge in enumerate(edges):
        if edge is None:
            lifted.append(None)
            continue
        saved = []
        for name, value in zip(primitive.names_at(i), edge[2], strict=False):  # stops before a backend's residual
            if name == "out":
                value = wrap(value, xp, node)
            elif name in primitive.position:
                at = primitive.position[name]
                if isinstance(value, tuple):  # the arrays of a variadic operand
                    value = tuple(_rejoin(v, xp, edges, at + j) for j, v in enumerate(value))
                else:
                    value = _rejoin(value, xp, edges, at)
            saved.append(value)
        lifted.append((edge[0], primitive.rule_at(i), tuple(saved)))
    return lifted


def _rejoin(array: Any, xp: Any, edges: tuple[Edge | None, ...], i: int) -> Tensor:
    edge = edges[i] if i < len(edges) else None
    return wrap(array, xp, None if edge is None else edge[0])


def _run_hooks(node: Any, g: Tensor) -> Tensor:
    if hooks := getattr(node, "hooks", None):
        g = OPS.copy(g)  # a hook may keep or write into what it is shown, and others are given the same array
        for hook in list(hooks.values()):
            changed = hook(g)
            if changed is not None:
                check_gradient(changed, g)
                g = changed
    if type(node) is Node and hasattr(node, "grad"):
        kept = OPS.copy(g)
        node.grad = kept if node.grad is None else node.grad + kept
    return g


def own(gradients: dict[Any, Any], seed: Any, xp: Any) -> dict[Any, Tensor]:
    """Raw gradients as Tensors, copied where an array is a view, read-only, or serves somebody else already."""
    taken = {id(seed if seed.base is None else seed.base)}
    owned = {}
    for node, g in gradients.items():
        if g is None:
            continue
        base = g.base
        whole = g if base is None else base
        if id(whole) in taken or not g.shape or base is not None and (base.size != g.size or not g.flags.writeable):
            g = whole = xp.as_array(g, copy=True)
        taken.add(id(whole))
        t = owned[node] = Tensor()
        t._data, t._xp, t._node = g, xp, None
    return owned


def own_tensors(gradients: dict[Any, Tensor], seed: Tensor) -> dict[Any, Tensor]:
    """Gradients that are Tensors, those without history copied where `own` would copy."""
    array = seed._data
    taken = {id(array if array.base is None else array.base)}
    owned = {}
    for node, g in gradients.items():
        if g is None:
            continue
        array = g._data
        whole = array if array.base is None else array.base
        shared = id(whole) in taken or g._node is None and (whole.size != array.size or not array.flags.writeable)
        owned[node] = OPS.copy(g) if shared else g
        taken.add(id(whole))
    return owned


# ---------------------------------------------------------------- grad mode
class _GradMode:
    """Sets whether operations are recorded: for a block, a function it decorates, or (called alone) from now on."""

    __slots__ = ("_outside", "_recording")

    def __init__(self, recording: bool) -> None:
        self._recording = recording
        self._outside: dict[int, list[Mode]] = {}  # thread -> the modes outside its open blocks

    def __enter__(self) -> None:
        self._outside.setdefault(get_ident(), []).append(get_mode())
        set_mode(grad_mode(self._recording))

    def __exit__(self, *_: object) -> None:
        set_mode(self._outside[get_ident()].pop())

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        not_async(self._as_written(), function)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with using(grad_mode(self._recording)):
                result = function(*args, **kwargs)
            if isinstance(result, GeneratorType):
                return cast(R, resumed(result, lambda: using(grad_mode(self._recording))))
            return result

        return wrapped

    def _as_written(self) -> str:
        """What a user writes to get this."""
        return f"{type(self).__name__}()"


class no_grad(_GradMode):  # noqa: N801
    """Record nothing in a block or a decorated function.

    >>> x = gf.tensor(1.0, requires_grad=True)
    >>> with gf.no_grad():
    ...     (x * 2).requires_grad
    False
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_GradMode):  # noqa: N801
    """Record again inside a `no_grad` block.

    >>> x = gf.tensor(1.0, requires_grad=True)
    >>> with gf.no_grad(), gf.enable_grad():
    ...     (x * 2).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_GradMode):  # noqa: N801
    """Record or not, by a boolean: from the call on, or for a block.

    >>> with gf.set_grad_enabled(False):
    ...     gf.is_grad_enabled()
    False
    >>> gf.is_grad_enabled()
    True
    """

    __slots__ = ("_before",)

    def __init__(self, mode: bool) -> None:
        super().__init__(flag("set_grad_enabled", "mode", mode))
        self._before = get_mode()
        set_mode(grad_mode(self._recording))

    def __enter__(self) -> None:
        set_mode(self._before)
        super().__enter__()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        set_mode(self._before)  # as a decorator it concerns the function alone
        return super().__call__(function)

    def _as_written(self) -> str:
        return f"set_grad_enabled({self._recording})"


def is_grad_enabled() -> bool:
    """Whether operations are being recorded now.

    >>> gf.is_grad_enabled()
    True
    """
    return get_mode().recording


__all__ = [
    "API_VERSIONS", "OPS", "Operand", "Parameter", "Shape", "Tensor", "check_gradient", "enable_grad",
    "is_grad_enabled", "lift", "mismatch", "no_grad", "own", "own_tensors", "set_grad_enabled", "sweep_arrays",
    "sweep_tensors", "sweeps_tensors", "wrap",
]  # fmt: skip
