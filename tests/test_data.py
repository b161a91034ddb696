"""TensorDataset and DataLoader: every item once an epoch, in reproducible order, in Tensors of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import errors
from gradflow.data import DataLoader, TensorDataset


class Squares:
    """A map-style data set: item i is an image, a label, and numbers."""

    def __init__(self, count: int = 7, *, wrap: Any = np.asarray) -> None:
        self.count, self.wrap = count, wrap

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return self.wrap(np.full((2, 3), index, np.float32)), index, index**2 / 2, index > 2


class Items(list[Any]):
    """A list of whatever items a test needs."""


def pairs(count: int = 10) -> TensorDataset:
    return TensorDataset(np.arange(2.0 * count).reshape(count, 2), np.arange(count))


def order(loader: DataLoader) -> list[int]:
    """The indices in which one epoch takes the items, as the last part of `pairs` and `Squares` tells them."""
    return [i for batch in loader for i in batch[1].tolist()]


# -------------------------------------------------------------------------------------------------------- TensorDataset
def test_indexing() -> None:
    data = pairs()
    assert len(data) == 10
    x, y = data[3]
    assert (x.tolist(), y.item()) == ([6.0, 7.0], 3)
    assert data[-1][1].item() == 9
    assert data[2:8:3][1].tolist() == [2, 5]
    for index in (np.array([4, 4, 0]), [4, 4, 0], gf.asarray(np.array([4, 4, 0]))):
        x, y = data[index]
        assert x.tolist() == [[8.0, 9.0], [8.0, 9.0], [0.0, 1.0]]
        assert y.tolist() == [4, 4, 0]
    with pytest.raises(IndexError):
        data[10]


def test_iterating_ends() -> None:
    assert [y.item() for _, y in pairs(3)] == [0, 1, 2]


def test_tensors_are_kept_and_arrays_become_tensors_once() -> None:
    tensor = gf.ones((3, 2), dtype=gf.float64)
    data = TensorDataset(tensor, np.arange(3, dtype=np.int32))
    assert np.shares_memory(data.tensors[0].numpy(), tensor.numpy())
    assert [t.dtype for t in data.tensors] == [gf.float64, gf.int32]
    assert data.tensors[1] is data.tensors[1]


def test_the_graph_is_left_behind() -> None:
    x = gf.ones((3, 2), requires_grad=True)
    data = TensorDataset(x, x * 2)
    assert not any(t.requires_grad for t in (*data[0], *data[:2], *next(iter(DataLoader(data)))))
    assert x.requires_grad


def test_lengths_are_compared() -> None:
    with pytest.raises(errors.ShapeError, match=r"shapes \(10, 2\), \(9,\)"):
        TensorDataset(np.ones((10, 2)), np.ones(9))
    with pytest.raises(errors.ShapeError, match=r"shapes \(3,\), \(\)"):
        TensorDataset(np.ones(3), np.array(1.0))
    with pytest.raises(errors.ShapeError, match=r"shapes \(\)"):
        TensorDataset(np.array(1.0))


def test_kinds_are_checked() -> None:
    with pytest.raises(errors.ArgumentError, match="no arrays"):
        TensorDataset()
    with pytest.raises(errors.DTypeError, match="a list as array 1"):
        TensorDataset(np.ones(2), [1, 2])  # type: ignore[arg-type]
    with pytest.raises(errors.DTypeError, match="a tuple as array 0"):
        TensorDataset((np.ones(2), np.ones(2)))  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(pairs(3)) == "TensorDataset(float64(3, 2), int64(3,))"


# -------------------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 10])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("data", [pairs(), Squares(10)], ids=["arrays", "items"])
def test_every_item_once(data: Any, batch_size: int, shuffle: bool, drop_last: bool) -> None:
    loader = DataLoader(data, batch_size, shuffle, drop_last, seed=3)
    batches = list(loader)
    sizes = [len(batch[1]) for batch in batches]
    whole, rest = divmod(10, batch_size)
    assert sizes == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)
    assert len(loader) == len(batches)
    seen = [i for batch in batches for i in batch[1].tolist()]
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert shuffle or seen == sorted(seen)
    for batch in batches:  # the parts of an item stay together
        assert type(batch) is tuple
        assert all(type(t) is gf.Tensor and not t.requires_grad for t in batch)
        np.testing.assert_array_equal(batch[0].numpy(), np.stack([np.asarray(data[i][0]) for i in batch[1].tolist()]))


def test_a_batch_larger_than_the_data() -> None:
    assert [len(y) for _, y in DataLoader(pairs(3), 100)] == [3]


def test_shapes_and_dtypes_are_kept() -> None:
    arrays = (np.ones((5, 2, 3), np.float32), np.ones((5, 0), np.float64), np.ones(5, np.uint8), np.ones((5, 1), bool))
    for shuffle in (False, True):
        batch = next(iter(DataLoader(TensorDataset(*arrays), 4, shuffle)))
        assert [(t.shape, t.dtype) for t in batch] == [((4, *a.shape[1:]), a.dtype) for a in arrays]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_share_no_memory_with_the_data(shuffle: bool) -> None:
    data = pairs()
    for x, y in DataLoader(data, 10, shuffle):
        x[:] = -1
        y += 100
    assert data.tensors[0].numpy().min() == 0
    assert data.tensors[1].tolist() == list(range(10))


def test_memory_layout_of_the_data_is_no_matter() -> None:
    array = np.asfortranarray(np.arange(20.0).reshape(10, 2))
    (x,) = next(iter(DataLoader(TensorDataset(array), 4)))
    assert x.tolist() == array[:4].tolist()


def test_batches_can_be_trained_on() -> None:
    w = gf.ones((2,), dtype=gf.float64, requires_grad=True)
    for x, _ in DataLoader(pairs(), 5):
        (x * w).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [90.0, 100.0]


# ------------------------------------------------------------------------------------------------------------ shuffling
def test_a_new_order_every_epoch_the_same_for_the_same_seed() -> None:
    one, two, other = (DataLoader(pairs(50), 8, shuffle=True, seed=seed) for seed in (0, 0, 1))
    first, second = order(one), order(one)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert [order(two), order(two)] == [first, second]
    assert order(other) != first


def test_the_order_is_that_of_the_library_generator() -> None:
    generator = gf.Generator(7)
    expected = [gf.random.permutation(20, generator=generator).tolist() for _ in range(2)]
    for settings in ({"seed": 7}, {"generator": gf.Generator(7)}):
        loader = DataLoader(pairs(20), 6, True, **settings)  # type: ignore[arg-type]
        assert [order(loader), order(loader)] == expected


def test_batch_size_does_not_change_the_order() -> None:
    assert order(DataLoader(pairs(20), 3, True, seed=1)) == order(DataLoader(pairs(20), 7, True, seed=1))


def test_without_a_seed_manual_seed_decides() -> None:
    loader = DataLoader(pairs(50), 10, shuffle=True)
    orders = []
    for seed in (5, 5, 6):
        gf.manual_seed(seed)
        orders.append(order(loader))
    assert orders[0] == orders[1] != orders[2]


def test_an_own_seed_leaves_the_global_stream_alone() -> None:
    gf.manual_seed(0)
    expected = gf.random.uniform((4,)).tolist()
    gf.manual_seed(0)
    list(DataLoader(pairs(), 2, True, seed=9))
    list(DataLoader(pairs(), 2, False))
    assert gf.random.uniform((4,)).tolist() == expected


def test_iterators_at_once_are_independent() -> None:
    loader = DataLoader(pairs(20), 3, shuffle=True, seed=2)
    twin = DataLoader(pairs(20), 3, shuffle=True, seed=2)
    first, second = iter(loader), iter(loader)  # the orders are drawn here, whichever is consumed first
    later = [i for _, y in second for i in y.tolist()]
    earlier = [i for _, y in first for i in y.tolist()]
    assert [earlier, later] == [order(twin), order(twin)]


def test_an_epoch_left_early_costs_no_more_than_its_order() -> None:
    loader, twin = (DataLoader(pairs(20), 3, shuffle=True, seed=2) for _ in range(2))
    next(iter(loader))
    order(twin)
    assert order(loader) == order(twin)


# ------------------------------------------------------------------------------------------------ data sets of any kind
def test_items_are_stacked_part_by_part() -> None:
    images, labels, halves, flags = next(iter(DataLoader(Squares(), 4)))
    assert (images.shape, images.dtype) == ((4, 2, 3), gf.float32)
    assert (labels.tolist(), labels.dtype) == ([0, 1, 2, 3], gf.int64)
    assert (halves.tolist(), halves.dtype) == (
        [0.0, 0.5, 2.0, 4.5],
        gf.float32,
    )  # numbers are what gf.tensor makes them
    assert (flags.tolist(), flags.dtype) == ([False, False, False, True], gf.bool)


def test_tensors_are_stacked_without_their_graph() -> None:
    for wrap in (gf.asarray, lambda a: gf.tensor(a, requires_grad=True) * 1):
        images = next(iter(DataLoader(Squares(wrap=wrap), 2)))[0]
        assert images.shape == (2, 2, 3)
        assert not images.requires_grad


def test_grad_mode_is_left_alone() -> None:
    for _ in DataLoader(Squares(), 2):
        assert (gf.ones((1,), requires_grad=True) * 2).requires_grad


def test_single_parts_and_lists() -> None:
    assert [[t.tolist() for t in batch] for batch in DataLoader(Items([1, 2, 3]), 2)] == [[[1, 2]], [[3]]]
    assert [t.tolist() for t in next(iter(DataLoader(Items([[1, 2.0], [3, 4.0]]), 2)))] == [[1, 3], [2.0, 4.0]]
    (batch,) = next(iter(DataLoader(Items([np.float64(0.1), np.float64(0.2)]), 2)))
    assert (batch.tolist(), batch.dtype) == ([0.1, 0.2], gf.float64)


def test_a_subclassed_behaviour_is_asked_item_by_item() -> None:
    class Flipped(TensorDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return x[::-1], y

    x, _ = next(iter(DataLoader(Flipped(np.arange(6.0).reshape(3, 2), np.arange(3)), 3)))
    assert x.tolist() == [[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]]


def test_a_data_set_may_grow() -> None:
    data = Items([1, 2])
    loader = DataLoader(data, 2)
    data += [3]
    assert len(loader) == 2
    assert [t.tolist() for (t,) in loader] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([np.ones(2), np.ones(3)], errors.ShapeError, r"part 0 of item 1 .* shape \(3,\), that of item 0 has \(2,\)"),
        ([(1, 2), (1, 2, 3)], errors.ShapeError, "item 1 of the data set has 3 parts, item 0 has 2"),
        ([(1, "a"), (2, "b")], errors.DTypeError, "part 1 of item 0 of the data set is a str"),
        ([{"x": 1}], errors.DTypeError, "part 0 of item 0 of the data set is a dict"),
        ([1, None], errors.DTypeError, "part 0 of item 1 of the data set is a NoneType"),
    ],
)
def test_items_that_cannot_be_stacked(items: list[Any], error: type[Exception], message: str) -> None:
    loader = DataLoader(Items(items), 4)
    with pytest.raises(error, match=message):
        next(iter(loader))


# ------------------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_is_positive(batch_size: int) -> None:
    with pytest.raises(errors.ArgumentError, match=f"batch_size={batch_size}"):
        DataLoader(pairs(), batch_size)


@pytest.mark.parametrize("batch_size", [2.0, "2", None, True])
def test_batch_size_is_an_integer(batch_size: Any) -> None:
    with pytest.raises(errors.DTypeError, match="batch_size="):
        DataLoader(pairs(), batch_size)


def test_numpy_integers_will_do() -> None:
    assert len(DataLoader(pairs(), np.int64(4))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [TensorDataset(np.ones((0, 2))), Items(), Squares(0)])
def test_empty_data(data: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="no batch to give: 0 items"):
        DataLoader(data)


def test_no_batch_left() -> None:
    with pytest.raises(errors.ArgumentError, match=r"3 items, batch_size=4, drop_last=True"):
        DataLoader(pairs(3), 4, drop_last=True)


@pytest.mark.parametrize(
    "data", [np.ones((4, 2)), gf.ones((4, 2)), (np.ones(4), np.ones(4)), {"x": np.ones(4)}, iter([1, 2]), 5, None]
)
def test_what_is_no_data_set(data: Any) -> None:
    with pytest.raises(errors.DTypeError, match=rf"got a {type(data).__name__} as data set"):
        DataLoader(data)


def test_generators_have_no_length() -> None:
    def items() -> Iterator[int]:
        yield 1

    with pytest.raises(errors.DTypeError, match="got a generator as data set"):
        DataLoader(items())  # type: ignore[arg-type]


def test_one_source_of_randomness() -> None:
    with pytest.raises(errors.ArgumentError, match="both seed and generator"):
        DataLoader(pairs(), seed=1, generator=gf.Generator(1))
