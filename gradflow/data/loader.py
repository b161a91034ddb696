"""The loader: batches of a data set, shuffled or not."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradflow.arguments import flag, shown, wrong_kind
from gradflow.data.dataset import Dataset, TensorDataset
from gradflow.errors import ArgumentError, DTypeError, ShapeError, explain
from gradflow.ops.creation import asarray, tensor
from gradflow.ops.random import Generator, permutation
from gradflow.ops.shaping import stack
from gradflow.tensor import Tensor, no_grad


class DataLoader:
    """Iterate over a data set in batches.

    Each iteration is one epoch; any number of them may run at once, independently. A batch is a tuple of Tensors that
    do not require grad and share no memory with the data set, one for each part of an item, with the batch as their
    first axis. From a `TensorDataset` each is one gather. From any other data set the items are fetched one by one and
    stacked; parts that are Python numbers become what ``gf.tensor`` makes of them.

    Args:
        dataset: a `TensorDataset`, or any object with ``__len__`` and ``__getitem__``.
        batch_size: items in a batch; the last batch has what remains.
        shuffle: whether to take the items in a new random order every epoch.
        drop_last: whether to leave out the last batch if it is smaller.
        seed: gives this loader a random stream of its own: the same seed, the same orders, on every backend.
        generator: draws the orders, in place of ``seed``. With neither, the one that ``gf.manual_seed`` seeds does.

    Raises:
        ArgumentError: a ``batch_size`` below 1, an empty data set, no batch at all because of ``drop_last``, or both
            ``seed`` and ``generator``.
        DTypeError: a data set without length or items, a bare array, or a ``batch_size`` that is no integer.
        ShapeError: (when iterating) items that cannot be stacked.

    >>> pairs = gf.data.TensorDataset(np.arange(5.0), np.arange(5) % 2)
    >>> for x, y in gf.data.DataLoader(pairs, batch_size=2):
    ...     print(x.tolist(), y.tolist())
    [0.0, 1.0] [0, 1]
    [2.0, 3.0] [0, 1]
    [4.0] [0]
    >>> loader = gf.data.DataLoader(pairs, batch_size=2, shuffle=True, drop_last=True, seed=0)
    >>> len(loader)
    2
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        *,
        seed: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.dataset = _checked_dataset(dataset)
        self.batch_size = _checked_batch_size(batch_size)
        self.shuffle = flag("DataLoader", "shuffle", shuffle)
        self.drop_last = flag("DataLoader", "drop_last", drop_last)
        if seed is not None and generator is not None:
            raise ArgumentError(
                explain(
                    "DataLoader got both seed and generator.",
                    "either of them alone determines the orders.",
                    f"DataLoader(..., generator=gf.Generator({seed}))",
                )
            )
        if not isinstance(generator, Generator | None):
            reason = "the orders are drawn from a Generator of gradflow, on every backend the same."
            raise wrong_kind("DataLoader", "generator", generator, reason, "generator=gf.Generator(0)")
        self.generator = generator if seed is None else Generator(seed)
        if len(self) == 0:
            raise ArgumentError(
                explain(
                    f"DataLoader has no batch to give: {len(dataset)} items, batch_size={batch_size}, "
                    f"drop_last={drop_last}.",
                    "a loop over it would silently do nothing.",
                    "DataLoader(dataset, batch_size, drop_last=False)" if len(dataset) else "check what was loaded",
                )
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Return the batches of one epoch, whose order is drawn now."""
        count = len(self.dataset)
        order = permutation(count, generator=self.generator) if self.shuffle else np.arange(count)
        return (self._batch(order[i * self.batch_size :][: self.batch_size]) for i in range(len(self)))

    def _batch(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Tensor, ...]:
        if type(self.dataset) is TensorDataset:
            return self.dataset[indices]
        return _collate([self.dataset[index] for index in indices.tolist()], indices.tolist())


def _checked_dataset(dataset: Dataset) -> Dataset:
    # A tuple, too: (images, labels) would be a data set of two items.
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not sized or isinstance(dataset, Tensor | np.ndarray | tuple | dict | str | bytes | type):
        raise DTypeError(
            explain(
                f"DataLoader got a {type(dataset).__name__} as data set.",
                "it takes a TensorDataset, or an object of yours whose len(dataset) and dataset[i] give the items.",
                "DataLoader(TensorDataset(images, labels), batch_size=32)",
            )
        )
    return dataset


def _checked_batch_size(batch_size: int) -> int:
    try:
        size = operator.index(batch_size)
    except TypeError:
        size = None
    if size is None or isinstance(batch_size, bool):
        raise DTypeError(
            explain(
                f"DataLoader got batch_size={shown(batch_size)}.", "it is a number of items, an int.", "batch_size=32"
            )
        )
    if size < 1:
        raise ArgumentError(
            explain(f"DataLoader got batch_size={size}.", "a batch has at least one item.", "batch_size=32")
        )
    return size


def _collate(items: Sequence[Any], indices: Sequence[int]) -> tuple[Tensor, ...]:
    """Stack the items part by part; an item that is no tuple or list is its only part."""
    rows = [item if isinstance(item, tuple | list) else (item,) for item in items]
    for index, row in zip(indices, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ShapeError(
                explain(
                    f"item {index} of the data set has {len(row)} parts, item {indices[0]} has {len(rows[0])}.",
                    "a batch has one Tensor for each part, so all items must have the same parts.",
                    "return the same tuple, such as (image, label), for every index",
                )
            )
    with no_grad():
        return tuple(_stack(column, indices, part) for part, column in enumerate(zip(*rows, strict=True)))


def _stack(column: Sequence[Any], indices: Sequence[int], part: int) -> Tensor:
    shape = np.shape(column[0])
    for index, value in zip(indices, column, strict=True):
        if not isinstance(value, Tensor | np.ndarray | np.generic | bool | int | float):
            raise DTypeError(
                explain(
                    f"part {part} of item {index} of the data set is a {type(value).__name__}.",
                    "DataLoader stacks Tensors, NumPy arrays and numbers.",
                    "return (image, label) from __getitem__, as arrays and numbers",
                )
            )
        if np.shape(value) != shape:
            raise ShapeError(
                explain(
                    f"part {part} of item {index} of the data set has shape {np.shape(value)}, "
                    f"that of item {indices[0]} has {shape}.",
                    "a batch stacks them along a new first axis, so their shapes must be equal.",
                    "pad or crop the items in __getitem__, or use batch_size=1",
                )
            )
    if all(isinstance(value, Tensor) for value in column):
        return stack(column).detach()
    if all(isinstance(value, bool | int | float) for value in column):
        return tensor(list(column))
    return asarray(np.stack(column))
