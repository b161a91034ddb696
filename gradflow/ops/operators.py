"""Python's operators and Tensor's methods, attached once. Most are the public functions themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradflow.errors import DTypeError, explain
from gradflow.ops import creation, elementwise, indexing, linalg, neural, reduction, shaping
from gradflow.tensor import Operand, Tensor

_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": elementwise.add,
    "sub": elementwise.subtract,
    "mul": elementwise.multiply,
    "truediv": elementwise.divide,
    "floordiv": elementwise.floor_divide,
    "mod": elementwise.remainder,
    "pow": elementwise.power,
    "matmul": linalg.matmul,
    "and": elementwise.bitwise_and,
    "or": elementwise.bitwise_or,
    "xor": elementwise.bitwise_xor,
}
_SYMBOLS = dict(zip(_BINARY, "+ - * / // % ** @ & | ^".split(), strict=True))
_PLAIN: dict[str, Callable[..., Any]] = {
    "__eq__": elementwise.equal,
    "__ne__": elementwise.not_equal,
    "__lt__": elementwise.less,
    "__le__": elementwise.less_equal,
    "__gt__": elementwise.greater,
    "__ge__": elementwise.greater_equal,
    "__neg__": elementwise.negative,
    "__pos__": elementwise.positive,
    "__abs__": elementwise.abs,
    "__invert__": elementwise.bitwise_invert,
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
    "to": creation.to,
    "to_device": creation.to_device,
}
_METHODS = [
    *(getattr(elementwise, name) for name in "abs exp log sqrt square tanh sigmoid softplus relu clip sign".split()),
    *(getattr(reduction, name) for name in reduction.__all__),
    *(getattr(shaping, name) for name in "astype broadcast_to copy expand_dims flatten permute_dims squeeze".split()),
    *(getattr(neural, name) for name in "softmax log_softmax logsumexp".split()),
    linalg.matmul,
]


def _reflected(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _in_place(function: Callable[..., Tensor], symbol: str) -> Callable[..., Tensor]:
    what = f"t {symbol}= value"
    return lambda self, other: indexing.inplace(self, what, function(self, other))


def _reshape_method(self: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape: `t.reshape(2, -1)` or `t.reshape((2, -1))`."""
    return shaping.reshape(self, shape[0] if len(shape) == 1 else shape)


def _refuse_pow(self: Tensor, other: Operand, modulus: None = None) -> Tensor:
    if modulus is not None:
        raise DTypeError(explain("pow() of a tensor with a modulus.", "there is no such operation.", "(x ** y) % m"))
    return elementwise.power(self, other)


def attach() -> None:
    """Give Tensor its operators and methods."""
    for name, function in _BINARY.items():
        setattr(Tensor, f"__{name}__", function)
        setattr(Tensor, f"__r{name}__", _reflected(function))
        setattr(Tensor, f"__i{name}__", _in_place(function, _SYMBOLS[name]))
    for name, function in _PLAIN.items():
        setattr(Tensor, name, function)
    for function in _METHODS:
        setattr(Tensor, function.__name__, function)
    Tensor.__pow__ = _refuse_pow  # type: ignore[method-assign]
    Tensor.reshape = _reshape_method  # type: ignore[method-assign]
    Tensor.T = property(linalg.transposed)  # type: ignore[method-assign, assignment]
    Tensor.mT = property(linalg.matrix_transpose)  # type: ignore[method-assign, assignment]


attach()
