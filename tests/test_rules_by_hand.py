"""Operations and their derivatives case by case, where drawn operands seldom or never go, against NumPy and PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow.compiler.trace import trace
from gradflow.errors import GradflowError, ShapeError
from gradflow.primitive import REGISTRY
from gradflow.tape import reachable
from gradflow.testing import without_kernels
from gradflow.testing.operands import calls

Shape = tuple[int, ...]

both = pytest.mark.parametrize("backend", ["numpy", without_kernels("numpy")], ids=["kernels", "compositions"])


def counting(shape: Shape) -> np.ndarray:
    return np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape)


# ---------------------------------------------------------------- products
LEFT: list[Shape] = [(3,), (1,), (2, 3), (1, 3), (4, 2, 3), (1, 2, 3), (2, 1, 2, 3), (3, 1)]
RIGHT: list[Shape] = [(3,), (1,), (3, 2), (3, 1), (4, 3, 2), (1, 3, 2), (2, 4, 3, 1), (1, 3)]


@pytest.mark.parametrize(("left", "right"), list(itertools.product(LEFT, RIGHT)))
def test_matmul_takes_the_shapes_that_numpys_takes(left: Shape, right: Shape) -> None:
    x, y = counting(left), counting(right)
    try:
        expected = np.matmul(x, y)
    except ValueError:
        with pytest.raises(ShapeError) as error:
            gf.matmul(gf.tensor(x), gf.tensor(y))
        inner = right[0] if len(right) == 1 else right[-2]
        if left[-1] != inner:
            assert f"the inner lengths {left[-1]} and {inner} must be equal." in str(error.value)
            assert ("x @ y.mT" in str(error.value)) == (len(right) > 1 and right[-1] == left[-1])
    else:
        found = gf.matmul(gf.tensor(x), gf.tensor(y))
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.numpy(), expected)


# ---------------------------------------------------------------- reductions
@both
def test_the_mean_of_nothing_is_nan(backend: Any) -> None:
    """As NumPy has it, by the kernel and by the composition, and along one empty axis, too."""
    x = gf.zeros((0, 3), backend=backend)
    for f in (gf.mean, gf.var, gf.std):
        assert math.isnan(f(x).item())
        assert np.isnan(f(x, axis=0).numpy()).all() and f(x, axis=0).shape == (3,)
        assert f(x, axis=1).shape == (0,)
    x.requires_grad_()
    target = gf.zeros((0, 3), backend=backend, requires_grad=True)
    loss = gf.mse_loss(x, target)
    assert math.isnan(loss.item())
    loss.backward()
    assert x.grad.shape == target.grad.shape == (0, 3)


@both
@pytest.mark.parametrize("correction", [2, 2.5, 3])
def test_a_variance_without_degrees_of_freedom_is_nan(correction: float, backend: Any) -> None:
    x = gf.tensor([1.0, 2.0], backend=backend)
    assert math.isnan(gf.var(x, correction=correction).item())
    assert math.isnan(gf.std(x, correction=correction).item())


@both
def test_the_second_derivative_of_std_is_zero_where_all_values_are_equal(backend: Any) -> None:
    hessian = gf.hessian(gf.std)
    torch = pytest.importorskip("torch")
    for values in ([2.0, 2.0, 2.0], [1.0, 2.0, 4.0]):
        expected = torch.autograd.functional.hessian(
            lambda x: torch.std(x, correction=0), torch.tensor(values, dtype=torch.float64)
        )
        found = hessian(gf.tensor(values, dtype=gf.float64, backend=backend))
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-10, atol=1e-12)


def test_a_sum_in_the_dtype_of_its_tensor_casts_nothing() -> None:
    x = gf.ones(3, requires_grad=True)
    assert gf.sum(x, dtype=gf.float32)._node.edges[0][0] is x._node
    wider = gf.sum(x, dtype=gf.float64)
    assert wider.dtype is gf.float64 and wider._node.edges[0][0].edges[0][0] is x._node


# ---------------------------------------------------------------- powers
@both
@pytest.mark.parametrize("y", [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_derivatives_of_power_are_pytorchs_at_special_values(y: float, backend: Any) -> None:
    torch = pytest.importorskip("torch")
    xs, ys = np.array([0.0, 1.0, 2.0, -2.0, math.inf]), np.full(5, y)
    theirs = [torch.tensor(a, requires_grad=True) for a in (xs, ys)]
    torch.pow(*theirs).sum().backward()
    ours = [gf.tensor(a, backend=backend, requires_grad=True) for a in (xs, ys)]
    gf.power(*ours).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-12)


def test_squares_and_first_powers_are_not_computed_as_powers() -> None:
    x = gf.tensor([3.0], requires_grad=True)
    made = [(x**y)._node.primitive.name for y in (2, 2.0, 1, 1.0, 3, 0, -1, 0.5)]
    assert made == ["square", "square", "positive", "positive", *["power"] * 4]
    whole = gf.tensor([-3])
    for y, expected, dtype in ((2, 9, gf.int64), (1, -3, gf.int64), (2.0, 9.0, gf.float32), (1.0, -3.0, gf.float32)):
        assert (whole**y).tolist() == [expected] and (whole**y).dtype is dtype
    assert (gf.tensor([True, False]) ** 2.0).tolist() == [1.0, 0.0]


# ---------------------------------------------------------------- clip
NARROW = [np.bool_, np.uint8, np.int8, np.int64, np.float32, np.float64]


@both
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("bound", [True, 1, 2.5, np.int16(-300), np.int16(300), np.float64(2.5)], ids=repr)
def test_one_bound_clips_as_numpys(dtype: type[np.generic], bound: Any, backend: Any) -> None:
    """The bound that is not given limits nothing, also where the other one is of another dtype."""
    array = np.array([0, 1, 3, 100], dtype)
    given = gf.tensor(np.array(bound), backend=backend) if isinstance(bound, np.generic) else bound
    for name, expected in (("min", np.maximum(array, bound)), ("max", np.minimum(array, bound))):
        found = gf.clip(gf.tensor(array, backend=backend), **{name: given})
        if {expected.dtype.kind, array.dtype.kind} in ({"f"}, {"b"}, {"i"}, {"u"}, {"i", "u"}):  # the standard: x's own
            limits = (
                np.iinfo(dtype) if array.dtype.kind in "iu" else np.finfo(dtype) if array.dtype.kind == "f" else None
            )
            expected = expected if limits is None else np.clip(expected, limits.min, limits.max).astype(dtype)
            assert found.dtype == array.dtype
        np.testing.assert_array_equal(found.numpy(), expected)
        assert found.dtype.kind == expected.dtype.kind


# ---------------------------------------------------------------- kinks, under any cotangent
KINKS: dict[str, Any] = {
    "maximum": lambda lib, x, y: lib.maximum(x, y),
    "minimum": lambda lib, x, y: lib.minimum(x, y),
    "max": lambda lib, x, y: (lib.amax if lib is not gf else gf.max)(x * y, **{"dim" if lib is not gf else "axis": 1}),
    "min": lambda lib, x, y: (lib.amin if lib is not gf else gf.min)(x * y, **{"dim" if lib is not gf else "axis": 1}),
    "abs": lambda lib, x, y: lib.abs(x) * y,
    "relu": lambda lib, x, y: lib.relu(x) * y,
    "where": lambda lib, x, y: lib.where(x > y, x, y * y),
}


@both
@pytest.mark.parametrize("name", KINKS)
def test_derivatives_at_kinks_are_pytorchs_under_any_cotangent(name: str, backend: Any) -> None:
    torch = pytest.importorskip("torch")
    x = np.array([[0.0, 1.0, 2.0, 1.0], [-1.0, -1.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    y = np.array([[0.0, 1.0, 1.0, 2.0], [-1.0, 1.0, 0.0, 3.0], [3.0, 3.0, 3.0, 3.0]])
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, y)]
    out = KINKS[name](torch, *theirs)
    cotangent = np.linspace(-3.0, 4.0, out.numel()).reshape(out.shape)
    out.backward(torch.tensor(cotangent))
    ours = [gf.tensor(a, backend=backend, requires_grad=True) for a in (x, y)]
    KINKS[name](gf, *ours).backward(gf.tensor(cotangent, backend=backend))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-12)


# ---------------------------------------------------------------- neural networks
@both
@pytest.mark.parametrize("lead", [(), (1,), (4,), (4, 2), (0,)])
def test_linear_takes_any_number_of_leading_axes(lead: Shape, backend: Any) -> None:
    torch = pytest.importorskip("torch")
    arrays = counting((*lead, 3)), counting((2, 3)), counting((2,))
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = torch.nn.functional.linear(*theirs)
    out.backward(torch.tensor(counting(out.shape)))
    ours = [gf.tensor(a, backend=backend, requires_grad=True) for a in arrays]
    found = gf.linear(*ours)
    assert found.shape == out.shape
    np.testing.assert_array_equal(found.numpy(), out.detach().numpy())
    found.backward(gf.tensor(counting(out.shape), backend=backend))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.grad.numpy(), other.grad.numpy())


@both
def test_softmax_goes_along_the_last_axis_by_default(backend: Any) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    for f, other in ((gf.softmax, torch.softmax), (gf.log_softmax, torch.log_softmax)):
        expected = other(torch.tensor(x), dim=-1).numpy()
        np.testing.assert_allclose(f(gf.tensor(x, backend=backend)).numpy(), expected, rtol=1e-12)


@both
def test_the_logarithms_of_binary_cross_entropy_end_at_minus_100(backend: Any) -> None:
    torch = pytest.importorskip("torch")
    x, t = np.array([0.0, 1e-50, 1e-300, 0.5, 1.0]), np.array([1.0, 1.0, 0.25, 0.5, 0.0])
    expected = torch.nn.functional.binary_cross_entropy(torch.tensor(x), torch.tensor(t), reduction="none")
    found = gf.binary_cross_entropy(gf.tensor(x, backend=backend), gf.tensor(t, backend=backend), reduction="none")
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)


WEIGHTS: list[Shape] = [
    (), (1,), (4,), (3,), (2,), (3, 4), (3, 1), (1, 4), (1, 1), (4, 3), (2, 4), (2, 3, 4), (2, 1, 1), (2, 1, 4),
    (1, 3, 1), (3, 3, 4), (2, 2, 4), (1, 2, 3, 4), (1, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", WEIGHTS)
def test_a_weight_broadcasts_to_the_loss_and_never_stretches_it(shape: Shape) -> None:
    x, target, weight = counting((2, 3, 4)) / 100, counting((2, 3, 4)) % 2, counting(shape)
    fits = len(shape) <= 3 and all(n in (1, m) for n, m in zip(shape, (2, 3, 4)[3 - len(shape) :], strict=True))
    for name, f in (
        ("weight", gf.binary_cross_entropy),
        ("weight", gf.binary_cross_entropy_with_logits),
        ("pos_weight", gf.binary_cross_entropy_with_logits),
    ):
        options = {name: gf.tensor(weight), "reduction": "none"}
        if not fits:
            with pytest.raises(ShapeError, match=rf"with {name} of shape"):
                f(gf.tensor(x), gf.tensor(target), **options)
        elif name == "weight":
            plain = f(gf.tensor(x), gf.tensor(target), reduction="none").numpy()
            weighted = f(gf.tensor(x), gf.tensor(target), **options).numpy()
            np.testing.assert_allclose(weighted, plain * weight, rtol=1e-12)
        else:
            assert f(gf.tensor(x), gf.tensor(target), **options).shape == (2, 3, 4)


@both
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64])
@pytest.mark.parametrize("pos_weight", [None, 300, 300.0])
def test_targets_of_integers_are_taken_as_probabilities(dtype: type[np.generic], pos_weight: Any, backend: Any) -> None:
    x, target = gf.tensor([-1.0, 0.5, 2.0], backend=backend), np.array([0, 1, 1])
    whole = gf.tensor(target.astype(dtype), backend=backend)
    expected = gf.binary_cross_entropy_with_logits(
        x, gf.tensor(target, dtype=gf.float32, backend=backend), pos_weight=pos_weight, reduction="none"
    )
    found = gf.binary_cross_entropy_with_logits(x, whole, pos_weight=pos_weight, reduction="none")
    assert found.dtype is gf.float32
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


@both
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_class_that_is_impossible_costs_nothing_unless_it_is_the_label(
    reduction: str, weighted: bool, backend: Any
) -> None:
    """Logits of −∞, as a mask puts them in; the loss and its gradient are PyTorch's, with labels as with one-hots."""
    torch = pytest.importorskip("torch")
    logits = np.array([[0.5, -np.inf, 1.0], [-np.inf, -np.inf, 2.0], [0.0, 1.0, -1.0]])
    labels, weight = np.array([2, 2, 0]), np.array([0.5, 1.0, 2.0]) if weighted else np.ones(3)
    x = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        x, torch.tensor(labels), weight=torch.tensor(weight), reduction=reduction
    )
    expected.sum().backward()
    mine = gf.tensor(logits, backend=backend, requires_grad=True)
    options = {"weight": gf.tensor(weight, backend=backend)} if weighted else {}
    found = gf.cross_entropy(mine, gf.tensor(labels, backend=backend), reduction=reduction, **options)
    found.sum().backward()
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(mine.grad.numpy(), x.grad.numpy(), rtol=1e-12, atol=1e-15)
    certain = gf.tensor(np.eye(3)[labels], backend=backend)
    same = gf.cross_entropy(mine.detach(), certain, reduction="none", **options).numpy()
    each = torch.nn.functional.cross_entropy(x, torch.tensor(labels), weight=torch.tensor(weight), reduction="none")
    np.testing.assert_allclose(same, each.detach().numpy(), rtol=1e-12, atol=1e-15)


@both
def test_an_ignored_label_needs_no_class(backend: Any) -> None:
    torch = pytest.importorskip("torch")
    x, labels = np.array([[0.5], [1.5]]), np.array([-100, 0])
    for reduction in ("mean", "sum", "none"):
        expected = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(labels), reduction=reduction)
        found = gf.cross_entropy(gf.tensor(x, backend=backend), gf.tensor(labels, backend=backend), reduction=reduction)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


# ---------------------------------------------------------------- shapes and dtypes
@both
def test_a_copy_shares_nothing(backend: Any) -> None:
    x = gf.ones((2, 3), backend=backend)
    for other in (gf.copy(x), x.copy(), gf.astype(x, gf.float32), gf.positive(x), gf.reshape(x, (3, 2), copy=True)):
        assert other is not x and not np.shares_memory(other.data, x.data)
    assert gf.astype(x, gf.float32, copy=False) is x


def test_a_new_axis_comes_first_by_default() -> None:
    assert gf.expand_dims(gf.ones((2, 3))).shape == np.expand_dims(np.ones((2, 3)), 0).shape
    assert gf.stack([gf.ones((2, 3))] * 4).shape == np.stack([np.ones((2, 3))] * 4).shape
    assert gf.concat([gf.ones((2, 3))] * 4).shape == np.concatenate([np.ones((2, 3))] * 4).shape


# ---------------------------------------------------------------- keys
PARTS: list[Any] = [
    0, -1, 3, slice(1, None), None, Ellipsis, [1, 0], np.array([[0, 1]]),
    np.array([True, False]), np.array([True, False, True]), np.array([False, True, True, False]),
    np.array([[True, False, True], [False, True, True]]), np.ones((3, 4), bool), np.zeros((2, 3, 4), bool),
]  # fmt: skip


@pytest.mark.parametrize("first", PARTS, ids=lambda part: repr(part).replace("\n", ""))
def test_keys_select_what_they_select_in_numpy(first: Any) -> None:
    """Every key of up to three parts; one that NumPy refuses is refused."""
    array = counting((2, 3, 4))
    x = gf.tensor(array)
    for rest in [(), *((p,) for p in PARTS), *itertools.product(PARTS, PARTS)]:
        key = (first, *rest)
        try:
            expected = array[key]
        except IndexError:
            with pytest.raises(GradflowError):
                x[key]
        else:
            found = x[key]
            assert found.shape == expected.shape, key
            np.testing.assert_array_equal(found.numpy(), expected, err_msg=str(key))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1), (3,), (1, 3), (1, 1, 3), (2, 3), (1, 2, 3)])
def test_a_value_with_leading_ones_is_written_as_one_without(shape: Shape, recorded: bool) -> None:
    """NumPy refuses them for a single element and takes them for a slice; here they never matter."""
    keys = [(0, 0), 0, slice(None), Ellipsis, [1, 0], ([0, 1], 2), (slice(None), np.array([True, True, True]))]
    value = counting(shape)
    lead = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    for key in keys:
        expected = np.zeros((2, 3))
        x = gf.zeros((2, 3), dtype=gf.float64)
        given = gf.tensor(value, requires_grad=recorded)
        try:
            expected[key] = value.reshape(shape[lead:])
        except ValueError:
            with pytest.raises(ShapeError):
                x[key] = given
            continue
        x[key] = given
        assert x.tolist() == expected.tolist(), key
        if recorded:
            x.sum().backward()
            assert given.grad.shape == shape
            assert given.grad.numpy().sum() == np.zeros((2, 3))[key].size


def test_a_write_through_a_key_of_the_whole_shape_goes_where_the_key_says() -> None:
    for key in (slice(None, None, -1), [1, 0], (slice(None), [2, 0, 1]), Ellipsis, slice(None)):
        expected, x = np.zeros((2, 3)), gf.zeros((2, 3), dtype=gf.float64)
        expected[key] = counting((2, 3))
        x[key] = gf.tensor(counting((2, 3)))
        assert x.tolist() == expected.tolist()


def test_a_view_is_written_unless_it_stands_there_already() -> None:
    """`y[0] += v` ends with `y[0] = <that view>`, which writes nothing more; any other view is written."""
    torch = pytest.importorskip("torch")
    start, other = counting((2, 3)), counting((2, 3)) * 10

    def shuffle(lib: Any, x: Any, z: Any) -> Any:
        y = x * 1.0
        y[0] = y[1] if lib is gf else y[1].clone()
        y[1] = (z * 1.0)[1]
        before = y[0] if lib is gf else y[0].clone()
        y[0] = z[0] * 2.0
        y[0] = before
        y[1] += z[0]
        return y * y

    theirs = [torch.tensor(a, requires_grad=True) for a in (start, other)]
    expected = shuffle(torch, *theirs)
    expected.sum().backward()
    ours = [gf.tensor(a, requires_grad=True) for a in (start, other)]
    found = shuffle(gf, *ours)
    found.sum().backward()
    np.testing.assert_array_equal(found.numpy(), expected.detach().numpy())
    for mine, his in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.grad.numpy(), his.grad.numpy())

    y = ours[0] * 1.0
    y[0] += ours[1][0]
    names = [node.primitive.name for node in reachable(y._node)[0]]
    assert names.count("index_update") == 1, "the sum was written once"


def test_take_along_axis_goes_along_the_last_axis_by_default() -> None:
    x = counting((2, 3, 4))
    index = np.argsort(np.random.default_rng(0).random((2, 3, 4)), axis=-1)
    expected = np.take_along_axis(x, index, axis=-1)
    np.testing.assert_array_equal(gf.take_along_axis(gf.tensor(x), gf.tensor(index)).numpy(), expected)


# ---------------------------------------------------------------- random numbers
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (-1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (2.0, 3.5), (-2.0, -1.0)])
def test_uniform_numbers_are_stretched_and_moved(low: float, high: float) -> None:
    plain = gf.random.uniform(1000, dtype=gf.float64, generator=gf.Generator(3)).numpy()
    found = gf.random.uniform(1000, low=low, high=high, dtype=gf.float64, generator=gf.Generator(3)).numpy()
    np.testing.assert_allclose(found, plain * (high - low) + low, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (0.0, 0.0), (3.0, 0.5)])
def test_normal_numbers_are_stretched_and_moved(mean: float, std: float) -> None:
    plain = gf.random.normal(1000, dtype=gf.float64, generator=gf.Generator(3)).numpy()
    found = gf.random.normal(1000, mean=mean, std=std, dtype=gf.float64, generator=gf.Generator(3)).numpy()
    np.testing.assert_allclose(found, plain * std + mean, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("draw", [gf.random.uniform, gf.random.normal])
def test_a_draw_uses_whole_blocks_of_four_words(draw: Any) -> None:
    for n in range(11):
        generator = gf.Generator(7)
        draw(n, generator=generator)
        assert generator.get_state() == (7, math.ceil(n / 4))
    halves, whole = gf.Generator(7), gf.Generator(7)
    parts = [draw(8, generator=halves).tolist() for _ in range(3)]
    assert sum(parts, []) == draw(24, generator=whole).tolist()  # noqa: RUF017  (three short lists)


def test_a_seed_that_is_not_given_is_eight_bytes_of_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda n: bytes(range(1, 1 + n)))
    assert gf.Generator().get_state() == (int.from_bytes(bytes(range(1, 9)), "little"), 0)


# ---------------------------------------------------------------- primitives that write
@pytest.mark.parametrize("name", sorted(n for n, p in REGISTRY.items() if p.writes))
def test_each_operand_that_is_declared_as_written_is_written(name: str) -> None:
    prim = REGISTRY[name]
    assert prim.writes <= len(prim.operands)
    written: set[int] = set()

    @given(data=st.data())
    @settings(max_examples=30, derandomize=True, database=None)
    def watch(data: st.DataObject) -> None:
        case = data.draw(calls(prim))
        operands = [gf.tensor(a) for a in case.operands]
        prim.function(*operands, **case.settings)
        written.update(i for i, (t, a) in enumerate(zip(operands, case.operands, strict=True)) if (t.data != a).any())

    watch()
    assert written == set(range(prim.writes))


# ---------------------------------------------------------------- making tensors
@pytest.mark.parametrize(
    ("data", "dtype"),
    [([2**24 + 1], gf.float32), ([0, 2], gf.bool), ([1.5, -1.5], gf.int64), ([0.5, 0.0], gf.bool), ([True], gf.int8)],
    ids=repr,
)
def test_a_dtype_that_is_asked_for_casts_as_numpy_does(data: list[Any], dtype: Any) -> None:
    """Only integers outside an integer dtype's range are refused: they would wrap around in silence."""
    made = gf.tensor(data, dtype=dtype)
    assert made.dtype is dtype
    assert made.tolist() == np.array(data).astype(dtype).tolist()


def test_empty_arrays_in_a_list_keep_their_dtype() -> None:
    assert gf.tensor([np.zeros(0), np.zeros(0)]).dtype is gf.float64
    assert gf.tensor([[], []]).dtype is gf.float32


@pytest.mark.parametrize("code", ["f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8"])
def test_the_byte_order_of_data_does_not_matter(code: str) -> None:
    values = [1, 2, 300, 5]
    for order in "<>=":
        array = np.array(values, order + code)
        made = gf.tensor(array)
        assert made.tolist() == values and made.dtype is gf.tensor(array.astype("=" + code)).dtype
        assert gf.asarray(array).tolist() == values


def test_asarray_of_a_tensor_is_the_tensor_where_the_dtype_is_the_one() -> None:
    for dtype, other in ((gf.float32, gf.float64), (gf.float64, gf.float32), (gf.int8, gf.int64), (gf.int64, gf.int8)):
        x = gf.ones(2, dtype=dtype)
        assert gf.asarray(x) is gf.asarray(x, dtype=dtype) is x
        assert gf.asarray(x, dtype=other).dtype is other
        assert gf.asarray(x, copy=True) is not x


def test_what_a_traced_step_makes_is_made_anew_by_every_replay() -> None:
    def step(x: gf.Tensor) -> gf.Tensor:
        total = gf.zeros(2)
        total += x
        return total * 1.0

    first, recorded = trace(step, gf.tensor([1.0, 2.0]))
    assert first.tolist() == [1.0, 2.0]
    for _ in range(2):
        (again,) = recorded.replay(gf.tensor([3.0, 4.0]))
        assert again.tolist() == [3.0, 4.0]


@both
def test_the_partial_derivatives_of_clip_sum_to_one_everywhere(backend: Any) -> None:
    """clip(x + c, low + c, high + c) = clip(x, low, high) + c, also where bounds meet or change places."""
    points = np.array(list(itertools.product([0.0, 1.0, 2.0], repeat=3)))
    operands = [gf.tensor(column, backend=backend, requires_grad=True) for column in points.T]
    gf.clip(*operands).backward(gf.tensor(np.arange(1.0, 28.0), backend=backend))
    np.testing.assert_array_equal(sum(t.grad.numpy() for t in operands), np.arange(1.0, 28.0))


# ---------------------------------------------------------------- update rules
@both
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
        ("Adam", {"lr": 0.1, "weight_decay": 0.01}),
        ("Adam", {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3, "maximize": True}),
    ],
    ids=str,
)
def test_one_parameter_alone_is_updated_as_by_pytorch(name: str, options: dict[str, Any], backend: Any) -> None:
    """By the kernel and by the composition; several parameters share one buffer, a single one fills it."""
    torch = pytest.importorskip("torch")
    start = counting((2, 3)) / 7
    theirs = torch.nn.Parameter(torch.tensor(start))
    mine = gf.Parameter(gf.tensor(start, backend=backend))
    other, ours = getattr(torch.optim, name)([theirs], **options), getattr(gf.optim, name)([mine], **options)
    for _ in range(4):
        other.zero_grad()
        (theirs**3).sum().backward()
        other.step()
        ours.zero_grad()
        (mine**3).sum().backward()
        ours.step()
    np.testing.assert_allclose(mine.numpy(), theirs.detach().numpy(), rtol=1e-10)
