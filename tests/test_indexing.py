"""Indexing and assignment against NumPy: values, gradients, history, versions and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradflow as gf
from gradflow.errors import ArgumentError, BackendMismatchError, DTypeError, GraphError, IndexRangeError, ShapeError
from gradflow.testing.backends import without_kernels
from gradflow.testing.strategies import Shape, direction, generators, index_keys, layouts, shapes

RULES = without_kernels("numpy")


# ---------------------------------------------------------------- keys as users write them
def part_as_user(data: st.DataObject, part: Any) -> Any:
    """The same part as a NumPy array, a list, a NumPy integer or a Tensor."""
    if isinstance(part, np.ndarray):
        forms = ["array", "tensor"] + ["list"] * (part.ndim > 0 and part.size > 0)
        form = data.draw(st.sampled_from(forms))
        return part if form == "array" else gf.tensor(part) if form == "tensor" else part.tolist()
    if isinstance(part, int):
        return data.draw(st.sampled_from([part, np.int64(part), gf.tensor(part)]))
    return part


def as_user(data: st.DataObject, key: Any) -> Any:
    return tuple(part_as_user(data, part) for part in key) if isinstance(key, tuple) else part_as_user(data, key)


def numbered(shape: Shape) -> np.ndarray:
    return np.arange(1.0, 1 + np.prod(shape)).reshape(shape)


# ---------------------------------------------------------------- reading
@given(data=st.data(), rng=generators)
def test_getitem_is_numpys(data: st.DataObject, rng: np.random.Generator) -> None:
    shape = data.draw(shapes())
    key = data.draw(index_keys(shape, invalid=True))
    array = data.draw(layouts(numbered(shape)))
    x = gf.asarray(array).detach().requires_grad_()
    try:
        expected = array[key]
    except IndexError:
        with pytest.raises(IndexError):
            x[as_user(data, key)]
        return
    y = x[as_user(data, key)]
    np.testing.assert_array_equal(y.numpy(), expected)
    assert y.shape == expected.shape and y.dtype is gf.float64

    cotangent = direction(rng, y.shape)
    gradient = np.zeros(shape)
    np.add.at(gradient, key, cotangent)
    for create_graph in (False, True):
        x.grad = None
        x[as_user(data, key)].backward(gf.tensor(cotangent), create_graph=create_graph)
        np.testing.assert_allclose(x.grad.numpy(), gradient, atol=1e-12)


@given(data=st.data())
def test_integer_tensors_are_indexed_too(data: st.DataObject) -> None:
    shape = data.draw(shapes(min_dims=1))
    key = data.draw(index_keys(shape, invalid=True))
    dtype = data.draw(st.sampled_from([np.int64, np.uint8, np.bool_, np.float32]))
    array = numbered(shape).astype(dtype)
    try:
        expected = array[key]
    except IndexError:
        return
    y = gf.tensor(array)[as_user(data, key)]
    np.testing.assert_array_equal(y.numpy(), expected)
    assert y.dtype == dtype


def test_a_number_is_written_over_and_differentiated() -> None:
    x, value = (gf.tensor(v, dtype=gf.float64, requires_grad=True) for v in (3.0, 5.0))
    for key in ((), ...):
        y = x.copy()
        y[key] = value
        x.grad = value.grad = None
        (y * y).backward()
        assert x.grad is not None and value.grad is not None
        assert (y.item(), x.grad.item(), value.grad.item()) == (5.0, 0.0, 10.0)


def test_a_basic_key_gives_a_view_and_arrays_a_copy() -> None:
    x = gf.zeros((3, 4))
    assert np.shares_memory(x[1:, ::-1].data, x.data)
    assert np.shares_memory(x[0].data, x.data)
    assert not np.shares_memory(x[[0]].data, x.data)
    assert not np.shares_memory(x[x == 0].data, x.data)


def test_iteration_length_and_membership() -> None:
    x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert [row.tolist() for row in x] == [[1.0, 2.0], [3.0, 4.0]]
    assert len(x) == 2
    assert 3.0 in x and 5.0 not in x
    first, _ = x
    first.sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    with pytest.raises(TypeError, match="0-d"):
        len(gf.tensor(1.0))
    with pytest.raises(TypeError, match="0-d"):
        iter(gf.tensor(1.0))


def test_repeated_indices_add_their_gradients() -> None:
    x = gf.tensor([1.0, 2.0, 3.0], requires_grad=True)
    x[gf.tensor([0, 2, 2, -1])].sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 3.0]
    rows = gf.zeros((3, 2), requires_grad=True)
    (rows[[0, 2, 2]] * gf.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert rows.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [110.0, 110.0]]


# ---------------------------------------------------------------- writing
@given(data=st.data(), rng=generators)
def test_setitem_is_numpys(data: st.DataObject, rng: np.random.Generator) -> None:
    """In place without history, recorded with it; values, gradients of both, and of repeated indices the last."""
    shape = data.draw(shapes())
    key = data.draw(index_keys(shape, invalid=True))
    array = numbered(shape)
    try:
        chosen = array[key].shape
    except IndexError:
        with pytest.raises(IndexError):
            gf.tensor(array)[as_user(data, key)] = 0.0
        return
    kept = chosen[data.draw(st.integers(0, len(chosen))) :]
    lead = (1,) * data.draw(st.integers(0, 2))
    value = direction(rng, (*lead, *(1 if data.draw(st.booleans()) else n for n in kept)))
    expected = array.copy()
    expected[key] = value.reshape(value.shape[len(lead) :])  # NumPy takes leading ones for some keys only

    plain = gf.tensor(array)
    memory = plain.data
    plain[as_user(data, key)] = data.draw(layouts(value))
    np.testing.assert_array_equal(plain.numpy(), expected)
    assert plain.data is memory and (plain.version > 0 or not plain.size)

    # who wrote each element last, by NumPy's own assignment
    writer = np.full(shape, -1)
    writer[key] = np.arange(np.prod(chosen, dtype=int)).reshape(chosen)
    cotangent = direction(rng, shape)
    of_chosen = np.zeros(np.prod(chosen, dtype=int))
    np.add.at(of_chosen, writer[writer >= 0], cotangent[writer >= 0])
    for create_graph in (False, True):
        x, v = gf.tensor(array, requires_grad=True), gf.tensor(value, requires_grad=True)
        y = x * 1.0
        y[as_user(data, key)] = v
        np.testing.assert_array_equal(y.numpy(), expected)
        np.testing.assert_array_equal(x.numpy(), array)
        y.backward(gf.tensor(cotangent), create_graph=create_graph)
        np.testing.assert_allclose(x.grad.numpy(), np.where(writer >= 0, 0.0, cotangent), atol=1e-12)
        summed = unbroadcast(of_chosen.reshape(chosen), value.shape)
        np.testing.assert_allclose(v.grad.numpy(), summed, atol=1e-12)


def unbroadcast(g: np.ndarray, shape: Shape) -> np.ndarray:
    """The sum of g over the axes along which an array of `shape` was stretched."""
    tail = shape[len(shape) - min(len(shape), g.ndim) :]
    g = g.sum(axis=tuple(range(g.ndim - len(tail))))
    g = g.sum(axis=tuple(i for i, n in enumerate(tail) if n == 1), keepdims=True)
    return g.reshape(shape)


@given(data=st.data())
@example(data=None)
def test_of_repeated_indices_the_last_wins(data: st.DataObject | None) -> None:
    """In the order of a loop over the index arrays, whatever the memory order of indices and values."""
    rng = np.random.default_rng(0)
    index = rng.integers(0, 3, (2, 3))
    columns = rng.integers(0, 2, (3,))
    values = rng.random((2, 3))
    expected = np.zeros((3, 2))
    for i, j in np.ndindex(2, 3):
        expected[index[i, j], columns[j]] = values[i, j]
    if data is not None:
        index, columns, values = (data.draw(layouts(a)) for a in (index, columns, values))
    x, base = gf.zeros((3, 2), dtype=gf.float64), gf.zeros((3, 2), dtype=gf.float64, requires_grad=True)
    x[index, columns] = values
    np.testing.assert_array_equal(x.numpy(), expected)
    y, v = base * 1.0, gf.asarray(values).detach().requires_grad_()
    y[index, columns] = v
    (y * gf.tensor(np.arange(1.0, 7.0).reshape(3, 2))).sum().backward()
    last = {(index[i, j], columns[j]): (i, j) for i, j in np.ndindex(2, 3)}
    gradient = np.zeros((2, 3))
    for (row, column), at in last.items():
        gradient[at] = 1 + 2 * row + column
    np.testing.assert_array_equal(v.grad.numpy(), gradient)


def test_a_number_keeps_the_precision_of_the_tensor() -> None:
    x = gf.zeros(4, dtype=gf.float64)
    x[0] = 0.1
    x[1:3] = [0.1, 0.2]
    x[3] = np.float64(0.3)
    assert x.tolist() == [0.1, 0.1, 0.2, 0.3]
    y = gf.zeros(2)
    y[0] = np.float64(0.1)
    y[1] = True
    assert y.dtype is gf.float32 and y.tolist() == [np.float32(0.1), 1.0]
    n = gf.zeros(3, dtype=gf.uint8)
    n[0], n[1:] = 200, [1, 2]
    assert n.dtype is gf.uint8 and n.tolist() == [200, 1, 2]
    mask = gf.zeros(2, dtype=gf.bool)
    mask[0] = True
    assert mask.tolist() == [True, False]


def test_a_value_of_another_dtype_is_cast_and_its_gradient_back() -> None:
    x = gf.zeros(3)
    v = gf.tensor([1.0, 2.0], dtype=gf.float64, requires_grad=True)
    x[1:] = v
    assert x.dtype is gf.float32 and x.requires_grad
    (x * gf.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert v.grad.dtype is gf.float64 and v.grad.tolist() == [2.0, 3.0]


def test_overlapping_memory() -> None:
    x = gf.arange(5)
    x[1:] = x[:-1]
    assert x.tolist() == [0, 0, 1, 2, 3]
    x[...] = x[::-1]
    assert x.tolist() == [3, 2, 1, 0, 0]


def test_a_view_writes_through_where_nothing_is_recorded() -> None:
    x = gf.zeros((2, 2))
    row = x[0]
    row[1] = 5.0
    row += 1.0
    assert x.tolist() == [[1.0, 6.0], [0.0, 0.0]]


def test_assignment_in_a_loop_is_differentiable() -> None:
    """A recurrence written by assignment: y₀ = x, yₖ = yₖ₋₁²."""
    x = gf.tensor(1.1, dtype=gf.float64, requires_grad=True)
    y = gf.zeros(4, dtype=gf.float64)
    y[0] = x
    for k in range(1, 4):
        y[k] = y[k - 1] ** 2
    y[3].backward()
    assert x.grad.item() == pytest.approx(8 * 1.1**7)


def test_every_assignment_with_history_takes_new_memory() -> None:
    x = gf.tensor([1.0, 2.0, 3.0], requires_grad=True)
    h = x * 2.0
    saved = h * h  # saves h
    h[0] = 100.0
    assert h.tolist() == [100.0, 4.0, 6.0]
    (saved.sum() + h.sum()).backward()
    assert x.grad.tolist() == [8.0, 16.0 + 2.0, 24.0 + 2.0]


# ---------------------------------------------------------------- in-place operators, versions, leaves
@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("+=", [6, 9, 13]),
        ("-=", [2, 5, 9]),
        ("*=", [8, 14, 22]),
        ("//=", [2, 3, 5]),
        ("%=", [0, 1, 1]),
        ("**=", [16, 49, 121]),
    ],
)
def test_in_place_operators(symbol: str, expected: list[int]) -> None:
    for dtype in (gf.int64, gf.float32):
        x = gf.tensor([4, 7, 11], dtype=dtype)
        scope = {"x": x}
        exec(f"x {symbol} 2", scope)
        assert scope["x"] is x
        assert x.dtype is dtype and x.tolist() == expected
        assert x.version > 0


def test_in_place_operators_of_bits_quotients_and_matrices() -> None:
    n = gf.tensor([6, 5])
    n &= 3
    n |= gf.tensor([8, 8])
    n ^= 1
    assert n.tolist() == [11, 8]
    q = gf.tensor([6.0, 5.0])
    q /= 2
    assert q.tolist() == [3.0, 2.5]
    m = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    m @= gf.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert m.tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_in_place_with_history_is_recorded() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3.0
    y += x
    y *= y
    y.sum().backward()
    assert x.grad.tolist() == [32.0, 64.0]
    t = gf.zeros(2)
    t += x  # takes up history
    assert t.requires_grad and not t.is_leaf


def test_in_place_keeps_the_dtype() -> None:
    x = gf.ones(2)
    x += gf.tensor([0.5, 0.25], dtype=gf.float64)
    x += np.float64(1.0)
    assert x.dtype is gf.float32 and x.tolist() == [2.5, 2.25]
    with pytest.raises(DTypeError, match=r"a float32 value for a tensor of int64"):
        gf.tensor([1, 2]).__iadd__(0.5)
    with pytest.raises(DTypeError, match=r"integers and booleans cannot hold it"):
        gf.tensor([1, 2]).__itruediv__(2)


def test_a_changed_value_that_was_saved_is_an_error() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    for change in (
        lambda w: w.__iadd__(1.0),
        lambda w: w.__setitem__(0, 5.0),
        lambda w: w.__setitem__(..., gf.zeros(2)),
        lambda w: w[1:].__setitem__(0, 5.0),
        lambda w: w.detach().__imul__(2.0),
        lambda w: w.__setitem__(w > 0, 0.0),
    ):
        for create_graph in (False, True):
            w = gf.tensor([3.0, 4.0])
            y = (x * w).sum()
            change(w)
            with pytest.raises(GraphError, match=r"multiply saved `y` .*changed in place"):
                y.backward(create_graph=create_graph)
    w = gf.tensor([[3.0, 4.0], [5.0, 6.0]])
    y = (x * w[0]).sum()
    other = w[1]
    other += 1.0  # other bytes
    y.backward()
    assert x.grad.tolist() == [3.0, 4.0]


def test_a_change_before_the_value_was_saved_is_none() -> None:
    x, w = gf.tensor([1.0, 2.0], requires_grad=True), gf.ones(2)
    w += 1.0
    (x * w).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    y = (x + w).sum()  # saves nothing
    w += 1.0
    y.backward()


def test_a_leaf_that_requires_grad_is_written_only_without_recording() -> None:
    p = gf.Parameter([1.0, 2.0])
    for what, write in (("t[...] = value", lambda: p.__setitem__(0, 1.0)), ("t += value", lambda: p.__iadd__(1.0))):
        with pytest.raises(GraphError) as error:
            write()
        assert str(error.value) == (
            f"{what} on a leaf that requires grad.\n"
            "  why: its gradient would be taken at values that are no longer there.\n"
            f"  fix: with gf.no_grad(): {what}"
        )
    loss = (p * p).sum()
    with gf.no_grad():
        p += 1.0
        p[0] = 7.0
    assert p.tolist() == [7.0, 3.0] and p.is_leaf and p.requires_grad
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("key", "kind", "text"),
    [
        (3, IndexRangeError, "index 3 is out of bounds for axis 0 with size 3"),
        ((0, -5), IndexRangeError, "index -5 is out of bounds for axis 1 with size 4"),
        ([0, 3], IndexRangeError, "index 3 is out of bounds"),
        ((0, 0, 0), IndexRangeError, "3 indices for a tensor of shape (3, 4)"),
        ((..., ...), IndexRangeError, "single ellipsis"),
        (([0, 1], [0, 1, 2]), IndexRangeError, "could not be broadcast"),
        (np.zeros(4, bool), IndexRangeError, "a boolean index of shape (4,) for a tensor of shape (3, 4)"),
        ((..., np.zeros(3, bool)), IndexRangeError, "a boolean index of shape (3,) for a tensor of shape (3, 4)"),
        ((0, np.zeros((4, 1), bool)), IndexRangeError, "3 indices for a tensor of shape (3, 4)"),
        (1.0, DTypeError, "an index of type float"),
        ("a", DTypeError, "an index of type str"),
        (gf.tensor([0.0, 1.0]), DTypeError, "an index of dtype float32"),
        (slice(0.5, 2), DTypeError, "a slice with 0.5"),
    ],
)
def test_keys_that_do_not_fit(key: Any, kind: type[Exception], text: str) -> None:
    for run in (lambda t: t[key], lambda t: t.__setitem__(key, 0.0)):
        for t in (gf.zeros((3, 4)), gf.zeros((3, 4), requires_grad=True) * 1.0):
            with pytest.raises(kind) as error:
                run(t)
            assert text in str(error.value)
            assert "why:" in str(error.value) and "fix:" in str(error.value)


def test_values_that_do_not_fit() -> None:
    for t in (gf.zeros((3, 4)), gf.zeros((3, 4), requires_grad=True) * 1.0):
        for key in (0, [0, 1], t > -1):
            with pytest.raises(ShapeError, match=r"fix:"):
                t[key] = gf.ones((2, 5))
        with pytest.raises(DTypeError):
            t[0] = None
        with pytest.raises(DTypeError):
            t[0] = "a"
    n = gf.zeros(3, dtype=gf.int64)
    for value in (0.5, np.float32(1.0), gf.ones(3), [0.5, 1.0, 2.0]):
        with pytest.raises(DTypeError, match=r"value for a tensor of int64"):
            n[...] = value
    with pytest.raises(ArgumentError, match=r"numbers from 300 to 300 for dtype uint8"):
        gf.zeros(3, dtype=gf.uint8)[0] = 300
    with pytest.raises(BackendMismatchError, match=r"rules-only:cpu"):
        gf.zeros(3)[0] = gf.tensor(1.0, backend=RULES)
    with pytest.raises(BackendMismatchError, match=r"rules-only:cpu"):
        gf.zeros(3)[gf.tensor([0], backend=RULES)]


def test_growing_in_place_and_read_only_memory() -> None:
    x = gf.ones(3)
    for symbol in ("+", "-", "*", "/", "//", "%", "**"):
        with pytest.raises(ShapeError, match=r"a tensor cannot grow in place") as error:
            exec(f"x {symbol}= gf.ones((2, 3))", {"x": x, "gf": gf})
        assert str(error.value).endswith(f"fix: t = t {symbol} value")
    shared = np.ones(3)
    shared.flags.writeable = False
    for t in (gf.broadcast_to(gf.ones(1), (3,)), gf.asarray(shared)):
        for write in (lambda: t.__iadd__(1.0), lambda: t.__setitem__(0, 5.0), lambda: t.__setitem__(..., gf.ones(3))):  # noqa: B023
            with pytest.raises(ArgumentError, match=r"read-only memory"):
                write()


# ---------------------------------------------------------------- take, take_along_axis
@given(data=st.data(), rng=generators)
def test_take(data: st.DataObject, rng: np.random.Generator) -> None:
    shape = data.draw(shapes(min_dims=1, min_side=1))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[axis]
    index = data.draw(hnp.arrays(np.int64, st.integers(0, 4), elements=st.integers(-n, n - 1)))
    x = gf.tensor(numbered(shape), requires_grad=True)
    y = gf.take(x, index, axis=axis)
    np.testing.assert_array_equal(y.numpy(), np.take(numbered(shape), index, axis=axis))
    cotangent = direction(rng, y.shape)
    y.backward(cotangent)
    gradient = np.zeros(shape)
    np.add.at(gradient, (slice(None),) * (axis % len(shape)) + (index,), cotangent)
    np.testing.assert_allclose(x.grad.numpy(), gradient, atol=1e-12)


@given(data=st.data(), rng=generators)
def test_take_along_axis(data: st.DataObject, rng: np.random.Generator) -> None:
    shape = data.draw(shapes(min_dims=1, min_side=1))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    at = axis % len(shape)
    length = data.draw(st.integers(0, 4))
    index = rng.integers(-shape[at], shape[at], (*shape[:at], length, *shape[at + 1 :]))
    x = gf.tensor(numbered(shape), requires_grad=True)
    y = gf.take_along_axis(x, index, axis=axis)
    np.testing.assert_array_equal(y.numpy(), np.take_along_axis(numbered(shape), index, axis=axis))
    y.backward(gf.ones_like(y))
    counts = (index[..., None] % shape[at] == np.arange(shape[at])) if at == len(shape) - 1 else None
    if counts is not None:
        np.testing.assert_array_equal(x.grad.numpy(), counts.sum(axis=-2))
    assert x.grad.numpy().sum() == y.size


def test_take_refuses() -> None:
    x = gf.ones((2, 3))
    with pytest.raises(ArgumentError, match="without an axis"):
        gf.take(x, gf.tensor([0]))
    assert gf.take(gf.ones(3), gf.tensor([0, 2])).shape == (2,)
    for index in (gf.tensor([True, False]), gf.tensor([0.0])):
        with pytest.raises(DTypeError, match="indices are integers"):
            gf.take(x, index, axis=0)
        with pytest.raises(DTypeError, match="indices are integers"):
            gf.take_along_axis(x, index, axis=0)
    with pytest.raises(DTypeError, match="use axis="):
        gf.take(x, gf.tensor([0]), dim=0)
    with pytest.raises(DTypeError, match="use axis="):
        gf.take_along_axis(x, gf.tensor([[0]]), dim=0)
    with pytest.raises(IndexRangeError, match="out of bounds"):
        gf.take(x, gf.tensor([2]), axis=0)
    with pytest.raises(IndexRangeError, match="axis=2"):
        gf.take(x, gf.tensor([0]), axis=2)
    with pytest.raises(ShapeError, match="as many axes"):
        gf.take_along_axis(x, gf.tensor([0]), axis=0)


# ---------------------------------------------------------------- writes through views
def in_rows(m: Any, x: Any) -> Any:
    y = m.zeros((2, 2), dtype=m.float64)
    for i in range(2):
        y[i][...] = x * (i + 1)
    return (y * y).sum()


def in_a_named_view(m: Any, x: Any) -> Any:
    y = m.zeros(4, dtype=m.float64)
    v = y[:2]
    v += x
    return (y * y * 3).sum()


def in_a_view_twice(m: Any, x: Any) -> Any:
    y = x * 1
    v = y[:1]
    v += 5
    v *= 2
    return (y * y).sum()


def by_augmented_assignment(m: Any, x: Any) -> Any:
    y = x * 2
    y[0] += x[1] * 3
    y[1] *= x[0]
    return (y * y).sum()


def in_a_view_of_a_view(m: Any, x: Any) -> Any:
    y = m.zeros((2, 2, 2), dtype=m.float64)
    y[0][1] += x
    y[1][0][0] = x[1]
    return (y * y * y).sum()


VIEW_WRITES = [in_rows, in_a_named_view, in_a_view_twice, by_augmented_assignment, in_a_view_of_a_view]


@pytest.mark.parametrize("function", VIEW_WRITES)
def test_a_write_into_a_view_reaches_the_whole(function: Any) -> None:
    torch = pytest.importorskip("torch")
    x, t = gf.tensor(np.array([1.0, 2.0]), requires_grad=True), torch.tensor([1.0, 2.0], dtype=torch.float64)
    t.requires_grad_()
    ours, theirs = function(gf, x), function(torch, t)
    ours.backward()
    theirs.backward()
    assert ours.item() == theirs.item()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-13)
    with gf.no_grad():
        assert function(gf, x.detach()).item() == ours.item()


def test_rows_of_an_iteration_write_into_the_whole() -> None:
    x, y = gf.tensor([1.0, 2.0], requires_grad=True), gf.zeros((2, 2))
    for row in y:
        row += x
    (y * y).sum().backward()
    assert y.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert x.grad is not None
    assert x.grad.tolist() == [4.0, 8.0]


def test_a_recorded_write_that_would_be_lost_is_refused() -> None:
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(GraphError, match="shares the memory of another"):
        gf.zeros(4).reshape(2, 2)[0] = w
    view = w[:1]
    with pytest.raises(GraphError, match="on a leaf that requires grad"):
        view += 1.0
    y = gf.zeros(3)
    first, second = y[:2], y[:2]
    first += w
    with pytest.raises(GraphError, match="has taken other memory since"):
        second += w
    assert y.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64"])
def test_small_index_dtypes_reach_long_axes(dtype: str) -> None:
    table = gf.Parameter(gf.ones((1000, 2)))
    table[gf.tensor([3, 3, 7], dtype=dtype)].sum().backward()
    assert table.grad is not None
    assert table.grad[3].tolist() == [2.0, 2.0]
    assert table.grad.sum().item() == 6.0


def test_an_unrecorded_write_after_a_recorded_one_still_reaches_the_whole() -> None:
    x, y = gf.tensor([1.0, 2.0], requires_grad=True), gf.zeros(3)
    v = y[:2]
    v += x
    with gf.no_grad():
        v += 10.0
    assert v.tolist() == [11.0, 12.0]
    assert y.tolist() == [11.0, 12.0, 0.0]
    (y * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0]
