"""The affine layer, and the one that changes nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.arguments import flag, shown
from gradflow.errors import ArgumentError, ShapeError, explain
from gradflow.nn import init
from gradflow.nn.module import Module, label
from gradflow.ops.creation import zeros
from gradflow.ops.neural import linear
from gradflow.tensor import Parameter, Tensor

if TYPE_CHECKING:
    from gradflow.backend import Backend


class Linear(Module):
    """An affine map of the last axis: y = x Wᵀ + b.

    W and b begin uniform in ±1/√in_features.

    Args:
        in_features: n, the length of the input's last axis; x has shape (..., n).
        out_features: m, the length of the output's; y has shape (..., m).
        bias: whether there is a b.
        dtype: of W and b; the default dtype if None.
        backend: of W and b; the current one if None.

    Attributes:
        weight: W, of shape (m, n).
        bias: b, of shape (m,), or None.

    Raises:
        ArgumentError: sizes that are not positive integers.
        ShapeError: (when called) an input whose last axis is not n long.

    >>> layer = gf.nn.Linear(3, 2)
    >>> layer(gf.zeros((5, 3))).shape
    (5, 2)
    >>> layer.weight.shape, layer.bias.shape
    ((2, 3), (2,))

    Reference: the initial values are those of PyTorch, after He, Zhang, Ren and Sun, *Delving Deep into Rectifiers*,
    ICCV 2015, with a = √5.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = None,
        backend: str | Backend | None = None,
    ) -> None:
        sizes: dict[str, Any] = {"in_features": in_features, "out_features": out_features}
        for name, size in sizes.items():
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
                raise ArgumentError(
                    explain(f"Linear got {name}={shown(size)}.", "a size is a positive integer.", "nn.Linear(784, 10)")
                )
        self.in_features = in_features = int(in_features)
        self.out_features = out_features = int(out_features)
        bias = flag("Linear", "bias", bias)
        # (in, out) in memory, seen as (out, in): x Wᵀ is then a product of two row-major matrices, the fastest on CPUs
        self.weight = Parameter(zeros((in_features, out_features), dtype=dtype, backend=backend).mT)
        self.bias = Parameter(zeros((out_features,), dtype=dtype, backend=backend)) if bias else None
        bound = 1 / math.sqrt(in_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis of x, of length in_features, to one of length out_features."""
        try:
            return linear(x, self.weight, self.bias)
        except ValueError:
            shape = np.shape(x)
            if shape[-1:] == (self.in_features,):
                raise
        n, m = self.in_features, self.out_features
        fix = f"nn.Linear({shape[-1]}, {m})" if shape else f"an input of shape (..., {n})"
        if math.prod(shape[1:]) == n:
            fix = f"x.reshape({shape[0]}, {n}), or nn.Flatten() before this layer"
        raise ShapeError(
            explain(
                f"{label(self)} got input of shape {shape}: its last axis must be {n}.",
                f"it multiplies the last axis by a weight of shape {(m, n)}.",
                fix,
            )
        )


class Identity(Module):
    """Its input, unchanged: y = x. A place holder.

    >>> gf.nn.Identity()(gf.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x
