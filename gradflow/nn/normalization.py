"""The layer that standardizes its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradflow.arguments import flag, integers, number, shown
from gradflow.errors import ArgumentError, ShapeError, explain
from gradflow.nn.module import Module, label
from gradflow.ops.creation import as_tensor, ones, zeros
from gradflow.ops.layers import EPS, layer_norm
from gradflow.tensor import Parameter, Tensor

if TYPE_CHECKING:
    from gradflow.backend import Backend


class LayerNorm(Module):
    """Layer normalisation of the last axes: y = w (x − μ)/√(σ² + ε) + b.

    The mean μ and the variance σ² (of n elements, over n) are those of each sample over the normalized axes.

    Args:
        normalized_shape: the lengths of the last axes, or of the last one; x has shape (..., *normalized_shape).
        eps: ε ≥ 0.
        elementwise_affine: whether there are w and b.
        bias: whether there is a b.
        dtype: of w and b; the default dtype if None.
        backend: of w and b; the current one if None.

    Attributes:
        weight: w, ones of shape normalized_shape at first, or None.
        bias: b, zeros of that shape at first, or None.

    Raises:
        ArgumentError: lengths that are not positive integers, or a negative ε.
        ShapeError: (when called) an input whose last axes are others.

    >>> layer = gf.nn.LayerNorm(2)
    >>> layer(gf.tensor([[1.0, 3.0], [-5.0, 5.0]])).detach()
    tensor([[-0.99999...,  0.99999...],
            [-0.99999...,  0.99999...]])

    Reference: Ba, Kiros and Hinton, *Layer Normalization*, 2016.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = EPS,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = None,
        backend: str | Backend | None = None,
    ) -> None:
        mistake = f"LayerNorm got normalized_shape={shown(normalized_shape)}."
        why, fix = "it is the positive length of the last axis, or several of the last axes.", "nn.LayerNorm(10)"
        shape = integers(mistake, normalized_shape, why=why, fix=fix)
        if not shape or min(shape) < 1:
            raise ArgumentError(explain(mistake, why, fix))
        self.normalized_shape = shape
        self.eps = float(number("LayerNorm", "eps", eps, fix=f"eps={EPS}"))
        if not 0 <= self.eps < math.inf:
            raise ArgumentError(explain(f"LayerNorm got eps={eps}.", "it is added to a variance.", f"eps={EPS}"))
        self.elementwise_affine = flag("LayerNorm", "elementwise_affine", elementwise_affine)
        has_bias = flag("LayerNorm", "bias", bias) and self.elementwise_affine
        self.weight = Parameter(ones(shape, dtype=dtype, backend=backend)) if self.elementwise_affine else None
        self.bias = Parameter(zeros(shape, dtype=dtype, backend=backend)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Standardize the last axes of x."""
        x = as_tensor(x)
        shape = self.normalized_shape
        if x.shape[-len(shape) :] != shape:
            axes = "axis must be" if len(shape) == 1 else "axes must be"
            raise ShapeError(
                explain(
                    f"{label(self)} got input of shape {x.shape}: its last {axes} {str(shape).strip('(),')}.",
                    "it standardizes each sample over these axes.",
                    f"nn.LayerNorm({x.shape[-1]})" if x.shape else f"an input of shape (..., {shape[-1]})",
                )
            )
        return layer_norm(x, self.weight, self.bias, axis=tuple(range(-len(shape), 0)), eps=self.eps)
