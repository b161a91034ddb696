"""The layer that joins axes."""

from __future__ import annotations

import math

from gradflow.arguments import integer
from gradflow.errors import ShapeError, explain
from gradflow.nn.module import Module, label
from gradflow.ops.creation import as_tensor
from gradflow.ops.shaping import reshape
from gradflow.tensor import Tensor


class Flatten(Module):
    """Several axes as one: (N, C, H, W) → (N, C·H·W).

    Args:
        start_axis: the first of them; by default the batch's axis stays.
        end_axis: the last of them.

    Raises:
        ShapeError: (when called) the input has no such axes.

    >>> gf.nn.Flatten()(gf.zeros((32, 28, 28))).shape
    (32, 784)
    """

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = integer("Flatten", "start_axis", start_axis, fix="nn.Flatten(start_axis=1)")
        self.end_axis = integer("Flatten", "end_axis", end_axis, fix="nn.Flatten(end_axis=-1)")

    def forward(self, x: Tensor) -> Tensor:
        """Reshape x."""
        x = as_tensor(x)
        start, end = (axis + x.ndim if axis < 0 else axis for axis in (self.start_axis, self.end_axis))
        if not 0 <= start <= end < x.ndim:
            raise ShapeError(
                explain(
                    f"{label(self)} got input of shape {x.shape}: it has no axes {self.start_axis} to {self.end_axis}.",
                    "it joins the axes from start_axis to end_axis.",
                    "an input with a batch axis and at least one more",
                )
            )
        return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))
