"""What a data set is, and the one made of arrays."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, final

import numpy as np

from gradflow.errors import ArgumentError, DTypeError, ShapeError, explain
from gradflow.ops.creation import asarray
from gradflow.tensor import Tensor

Indices: TypeAlias = "int | slice | list[int] | np.ndarray[Any, Any] | Tensor"


class Dataset(Protocol):
    """A map-style data set: any object with a length and an item for each index from 0 up to it."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return item ``index``: an array or number, or a tuple of them."""
        ...


@final
class TensorDataset:
    """A data set of arrays that belong together row by row, such as images and labels.

    Item i is ``(arrays[0][i], arrays[1][i], ...)``. A slice or an array of integers as index gives the rows of all
    of them together, in one gather for each array, which is how `DataLoader` cuts batches.

    Args:
        *arrays: Tensors, kept as they are (without their graph), or NumPy arrays, made Tensors of the current backend
            once, here, and without a copy where the backend can. Shapes (n, ...), with the same n.

    Raises:
        ArgumentError: no arrays.
        DTypeError: something that is neither a Tensor nor a NumPy array.
        ShapeError: different lengths, or an array without axes.

    >>> pairs = gf.data.TensorDataset(np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 0]))
    >>> len(pairs)
    4
    >>> image, label = pairs[2]
    >>> image.tolist(), label.item()
    ([4.0, 5.0], 1)
    >>> images, labels = pairs[np.array([3, 0])]
    >>> images.shape, labels.tolist()
    ((2, 2), [0, 0])
    """

    def __init__(self, *arrays: Tensor | np.ndarray[Any, Any]) -> None:
        if not arrays:
            raise ArgumentError(
                explain("TensorDataset() has no arrays.", "its items are their rows.", "TensorDataset(images, labels)")
            )
        for position, array in enumerate(arrays):
            if not isinstance(array, Tensor | np.ndarray):
                raise DTypeError(
                    explain(
                        f"TensorDataset got a {type(array).__name__} as array {position}.",
                        "it takes Tensors and NumPy arrays, each with one row for every item.",
                        "TensorDataset(np.asarray(images), np.asarray(labels))",
                    )
                )
        lengths = {array.shape[0] if array.ndim else None for array in arrays}
        if len(lengths) > 1 or None in lengths:
            raise ShapeError(
                explain(
                    f"TensorDataset got arrays of shapes {', '.join(str(tuple(array.shape)) for array in arrays)}.",
                    "row i of each array belongs to item i, so their first axes must be equally long.",
                    "TensorDataset(images, labels) with len(images) == len(labels)",
                )
            )
        self.tensors = tuple(array.detach() if isinstance(array, Tensor) else asarray(array) for array in arrays)

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def __getitem__(self, index: Indices, /) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{tensor.dtype}{tuple(tensor.shape)}" for tensor in self.tensors)
        return f"TensorDataset({arrays})"
