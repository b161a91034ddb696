"""Initial values, written into a Tensor in place; each function returns the Tensor it was given.

The random ones draw from the generator that `gf.manual_seed` seeds, or from one's own:

>>> weight = gf.Parameter(gf.zeros((2, 3)))
>>> gf.nn.init.xavier_uniform_(weight, generator=gf.Generator(0)).shape
(2, 3)
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from gradflow.arguments import number, shown, wrong_kind
from gradflow.errors import ArgumentError, ShapeError, explain
from gradflow.ops.random import Generator, normal, uniform
from gradflow.tensor import Tensor, no_grad

T = TypeVar("T", bound=Tensor)

_GAINS = {"linear": 1.0, "identity": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


def uniform_(tensor: T, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> T:
    """Fill with draws from U(low, high)."""
    shape, dtype, backend = _like("uniform_", tensor)
    return _fill(tensor, uniform(shape, low=low, high=high, dtype=dtype, generator=generator, backend=backend))


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> T:
    """Fill with draws from N(mean, std²)."""
    shape, dtype, backend = _like("normal_", tensor)
    return _fill(tensor, normal(shape, mean=mean, std=std, dtype=dtype, generator=generator, backend=backend))


def constant_(tensor: T, value: float) -> T:
    """Fill with one number.

    >>> gf.nn.init.constant_(gf.Parameter(gf.zeros(2)), 0.5)
    parameter([0.5, 0.5])
    """
    _like("constant_", tensor)
    return _fill(tensor, number("constant_", "value", value))


def zeros_(tensor: T) -> T:
    """Fill with 0."""
    _like("zeros_", tensor)
    return _fill(tensor, 0.0)


def ones_(tensor: T) -> T:
    """Fill with 1."""
    _like("ones_", tensor)
    return _fill(tensor, 1.0)


def xavier_uniform_(tensor: T, gain: float = 1.0, *, generator: Generator | None = None) -> T:
    """Fill with draws from U(−a, a), a = gain · √(6 / (fan_in + fan_out)).

    Reference: Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, 2010.
    """
    bound = number("xavier_uniform_", "gain", gain) * math.sqrt(6 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound, generator=generator)


def xavier_normal_(tensor: T, gain: float = 1.0, *, generator: Generator | None = None) -> T:
    """Fill with draws from N(0, σ²), σ = gain · √(2 / (fan_in + fan_out)).

    Reference: Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, 2010.
    """
    std = number("xavier_normal_", "gain", gain) * math.sqrt(2 / sum(_fans("xavier_normal_", tensor)))
    return normal_(tensor, 0.0, std, generator=generator)


def kaiming_uniform_(
    tensor: T,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> T:
    """Fill with draws from U(−b, b), b = gain · √(3 / fan).

    Args:
        tensor: a weight of shape (out, in, ...).
        a: negative slope of a leaky ReLU.
        mode: ``"fan_in"`` keeps the variance of what goes forward, ``"fan_out"`` that of what comes back.
        nonlinearity: what follows, for `calculate_gain`.
        generator: draws the numbers.

    Reference: He, Zhang, Ren and Sun, *Delving Deep into Rectifiers*, ICCV 2015.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator=generator)


def kaiming_normal_(
    tensor: T,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> T:
    """Fill with draws from N(0, σ²), σ = gain / √fan; the arguments are those of `kaiming_uniform_`.

    Reference: He, Zhang, Ren and Sun, *Delving Deep into Rectifiers*, ICCV 2015.
    """
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator=generator)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor by which weights must grow to make up for what a nonlinearity takes from the variance.

    Args:
        nonlinearity: linear, identity, sigmoid, tanh, relu, leaky_relu or selu.
        param: negative slope of a leaky ReLU, 0.01 if None.

    Raises:
        ArgumentError: another name.

    >>> gf.nn.init.calculate_gain("tanh")
    1.6666666666666667
    """
    if not isinstance(nonlinearity, str):
        reason = "it is the name of a nonlinearity."
        raise wrong_kind("calculate_gain", "nonlinearity", nonlinearity, reason, "calculate_gain('relu')")
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else number("calculate_gain", "param", param)
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        raise ArgumentError(
            explain(
                f"calculate_gain does not know {nonlinearity!r}.",
                f"it knows {', '.join([*_GAINS, 'leaky_relu'])}.",
                "calculate_gain('relu')",
            )
        )
    return _GAINS[nonlinearity]


def _fill(tensor: T, values: Tensor | float) -> T:
    with no_grad():
        tensor[...] = values
    return tensor


def _like(function: str, tensor: Tensor) -> tuple[Any, Any, Any]:
    """The shape, dtype and backend of a tensor that is about to be filled."""
    if not isinstance(tensor, Tensor):
        fix = f"nn.init.{function}(layer.weight)"
        raise wrong_kind(function, "tensor", tensor, "initial values are written into a Tensor, in place.", fix)
    return tensor.shape, tensor.dtype, tensor.backend


def _fans(function: str, tensor: Tensor) -> tuple[int, int]:
    _like(function, tensor)
    if tensor.ndim < 2:
        raise ShapeError(
            explain(
                f"a tensor of shape {tensor.shape} has no fan_in and fan_out.",
                "they are the numbers of inputs and outputs of a weight of shape (out, in, ...).",
                "nn.init.zeros_(bias), or nn.init.uniform_(bias, -0.1, 0.1)",
            )
        )
    n_out, n_in, *kernel = tensor.shape
    return n_in * math.prod(kernel), n_out * math.prod(kernel)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if not isinstance(mode, str) or mode not in ("fan_in", "fan_out"):
        raise ArgumentError(
            explain(
                f"kaiming got mode={shown(mode)}.", "it is 'fan_in' or 'fan_out'.", "kaiming_normal_(w, mode='fan_in')"
            )
        )
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans("kaiming_", tensor)[mode == "fan_out"])
