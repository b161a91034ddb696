"""Derivatives at kinks and poles, one table: the convention, PyTorch, JAX, and what docs/subgradients.md says.

Each row is evaluated eagerly, by the rules on Tensors, and in a trace that was recorded elsewhere; on the NumPy backend
and on one without kernels; in both dtypes; alone, among smooth neighbours, and broadcast.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.compiler import trace
from gradflow.primitive import REGISTRY
from gradflow.testing import without_kernels

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = jax.numpy
F = torch.nn.functional

INF, NAN = np.inf, np.nan
PAGE = Path(__file__).parent.parent / "docs" / "subgradients.md"
Call = Callable[..., Any]


class Row(NamedTuple):
    """A function, a point, and the derivative of the function's sum there, for each operand.

    Attributes:
        theirs: PyTorch's function, or None where it has none.
        differs: PyTorch's derivative where it is not ours.
        jax: JAX's function, or None; `jax_differs` where its derivative is another.
        place: "each" for a function element by element, "whole" for a reduction or an index.
        convex: whether the derivative is the shortest of the limits' convex hull.
        second: whether PyTorch's second derivative, where finite, is ours too.
        page: the row of the page, by function and place.
    """

    name: str
    ours: Call
    at: list[Any]
    expected: list[Any]
    theirs: Call | None
    page: tuple[str, str] | None
    differs: list[Any] | None = None
    jax: Call | None = None
    jax_differs: bool = False
    place: str = "each"
    convex: bool = False
    second: bool = True

    def __str__(self) -> str:
        return self.name


def summed(function: Call, **settings: Any) -> Call:
    return lambda *operands: function(*operands, **settings)


# the rows of the page, by its first two columns
ABS, RELU = ("`abs(x)`", "x = 0"), ("`relu(x)`", "x = 0")
TIES = ("`maximum(x, y)`, `minimum(x, y)`", "x = y")
EXTREMES = ("`max(x)`, `min(x)`", "k equal extremes")
BOUND, OUTSIDE = ("`clip(x, low, high)`", "x at a bound"), ("`clip(x, low, high)`", "x outside")
STD = ("`std(x)`", "all values equal")
POWER = "`power(x, y)`"
ORIGIN, ABOVE = (POWER, "x = 0, y = 0"), (POWER, "x = 0, y > 0")
BELOW, NEGATIVE = (POWER, "x = 0, y < 0"), (POWER, "x < 0")
SQRT, LOGS = ("`sqrt(x)`", "x = 0"), ("`log(x)`, `log1p(x)`", "x = 0, x = −1")
WHERE = ("`where(condition, x, y)`", "")
SOFTMAX, LOG_SOFTMAX = ("`softmax(x)`", "entries of −∞"), ("`log_softmax(x)`", "entries of −∞")
SOFTMAXES = ("`softmax(x)`, `log_softmax(x)`", "all entries −∞")
LOGSUMEXP = ("`logsumexp(x)`", "entries of −∞, also all of them")
BCE = ("`nn.BCELoss`, the cross-entropy of a probability p for a target t", "p = 0 or 1")
REMAINDER = ("`remainder(x, y)`", "everywhere, jumps included")
TAKE, WRITE = ("`take`, `x[indices]`", "an index that is repeated"), ("`x[indices] = v`", "an index that is repeated")
TABLE_ROWS = ("`embedding(indices, weight)`", "an index that is repeated")
PADDING = ("`embedding(indices, weight)`", "the row `padding_idx`")
GATES = ("`gelu(x)`, `silu(x)`", "x = −∞, x = ∞")

TARGETS = np.array([1.0, 0.0, 0.0, 1.0, 0.3])
REPEATED = np.array([2, 0, 2])


def bce(lib: Any) -> Call:
    """The sum of the cross-entropies of p for the targets, in p's dtype (and, of gradflow, on its backend)."""

    def ours(p: Any) -> Any:
        target = gf.tensor(TARGETS.astype(p.dtype), backend=p.backend)
        return gf.binary_cross_entropy(p, target, reduction="sum")

    def theirs(p: Any) -> Any:
        return F.binary_cross_entropy(p, torch.tensor(TARGETS).to(p.dtype), reduction="sum")

    return ours if lib is gf else theirs


def written(x: Any, v: Any) -> Any:
    """A copy of x in which v is written at repeated indices: the last write wins. Weighted, so that entries differ."""
    y = x * 1.0
    y[REPEATED] = v
    return y * y


TABLE = [
    Row("relu", gf.relu, [0.0], [0.0], torch.relu, RELU, jax=jax.nn.relu, convex=True),
    Row("relu of −0", gf.relu, [-0.0], [0.0], torch.relu, RELU, jax=jax.nn.relu, convex=True),
    Row("nn.ReLU", nn.ReLU(), [0.0], [0.0], torch.relu, RELU, jax=jax.nn.relu, convex=True),
    Row("abs", gf.abs, [0.0], [0.0], torch.abs, ABS, jax=jnp.abs, jax_differs=True, convex=True),
    Row("abs of −0", gf.abs, [-0.0], [0.0], torch.abs, ABS, jax=jnp.abs, jax_differs=True, convex=True),
    Row("maximum", gf.maximum, [1.0, 1.0], [0.5, 0.5], torch.maximum, TIES, jax=jnp.maximum, convex=True),
    Row("minimum", gf.minimum, [1.0, 1.0], [0.5, 0.5], torch.minimum, TIES, jax=jnp.minimum, convex=True),
    Row("maximum of −0 and 0", gf.maximum, [-0.0, 0.0], [0.5, 0.5], torch.maximum, TIES, jax=jnp.maximum),
    Row("maximum of infinities", gf.maximum, [INF, INF], [0.5, 0.5], torch.maximum, TIES, jax=jnp.maximum,
        place="whole"),
    Row("max", gf.max, [[1.0, 3.0, 3.0, 3.0]], [[0.0, 1 / 3, 1 / 3, 1 / 3]], torch.amax, EXTREMES,
        jax=jnp.max, place="whole", convex=True),
    Row("min", gf.min, [[1.0, 3.0, 1.0]], [[0.5, 0.0, 0.5]], torch.amin, EXTREMES, jax=jnp.min, place="whole",
        convex=True),
    Row("max along an axis", lambda x: gf.max(x, axis=1), [[[2.0, 2.0], [1.0, 3.0]]], [[[0.5, 0.5], [0.0, 1.0]]],
        lambda x: torch.amax(x, 1), EXTREMES, jax=lambda x: jnp.max(x, 1), place="whole", convex=True),
    Row("min over two axes", lambda x: gf.min(x, axis=(0, 2)), [[[[1.0, 2.0], [4.0, 4.0]], [[1.0, 1.0], [4.0, 5.0]]]],
        [[[[1 / 3, 0.0], [1 / 3, 1 / 3]], [[1 / 3, 1 / 3], [1 / 3, 0.0]]]],
        lambda x: torch.amin(x, (0, 2)), EXTREMES, jax=lambda x: jnp.min(x, (0, 2)), place="whole", convex=True),
    Row("clip at the upper bound", lambda x: gf.clip(x, -1.0, 1.0), [1.0], [1.0], lambda x: torch.clip(x, -1.0, 1.0),
        BOUND, jax=lambda x: jnp.clip(x, -1.0, 1.0), jax_differs=True),
    Row("clip at the lower bound", lambda x: gf.clip(x, -1.0, 1.0), [-1.0], [1.0], lambda x: torch.clip(x, -1.0, 1.0),
        BOUND, jax=lambda x: jnp.clip(x, -1.0, 1.0), jax_differs=True),
    Row("clip and its bound", gf.clip, [1.0, -1.0, 1.0], [1.0, 0.0, 0.0], torch.clip, BOUND, jax=jnp.clip,
        jax_differs=True),
    Row("clip above", gf.clip, [2.0, -1.0, 1.0], [0.0, 0.0, 1.0], torch.clip, OUTSIDE, jax=jnp.clip),
    Row("clip below", gf.clip, [-2.0, -1.0, 1.0], [0.0, 1.0, 0.0], torch.clip, OUTSIDE, jax=jnp.clip),
    Row("clip of crossed bounds", gf.clip, [0.0, 1.0, -1.0], [0.0, 0.0, 1.0], torch.clip, OUTSIDE, jax=jnp.clip),
    Row("std", gf.std, [[2.0, 2.0, 2.0]], [[0.0, 0.0, 0.0]], lambda x: torch.std(x, correction=0), STD, jax=jnp.std,
        jax_differs=True, place="whole", convex=True),
    Row("std with a correction", lambda x: gf.std(x, axis=0, correction=1), [[[2.0, 1.0], [2.0, 3.0]]],
        [[[0.0, -(0.5**0.5)], [0.0, 0.5**0.5]]], lambda x: torch.std(x, 0, correction=1), STD,
        jax=lambda x: jnp.std(x, 0, ddof=1), jax_differs=True, place="whole", convex=True),
    Row("0⁰", gf.power, [0.0, 0.0], [0.0, 0.0], torch.pow, ORIGIN, jax=jnp.power, jax_differs=True),
    Row("0¹", gf.power, [0.0, 1.0], [1.0, 0.0], torch.pow, ABOVE, jax=jnp.power),
    Row("0²", gf.power, [0.0, 2.0], [0.0, 0.0], torch.pow, ABOVE, jax=jnp.power),
    Row("0³", gf.power, [0.0, 3.0], [0.0, 0.0], torch.pow, ABOVE, jax=jnp.power),
    Row("0^½", gf.power, [0.0, 0.5], [INF, 0.0], torch.pow, ABOVE, jax=jnp.power),
    Row("0⁻¹", gf.power, [0.0, -1.0], [-INF, -INF], torch.pow, BELOW, jax=jnp.power, jax_differs=True),
    Row("(−2)³", gf.power, [-2.0, 3.0], [12.0, NAN], torch.pow, NEGATIVE, jax=jnp.power, place="whole"),
    Row("0⁰ by a number", lambda x: x**0, [0.0], [0.0], lambda x: x**0, ORIGIN, jax=lambda x: x**0),
    Row("0^1.5 by a number", lambda x: x**1.5, [0.0], [0.0], lambda x: x**1.5, ABOVE, jax=lambda x: x**1.5),
    Row("0 to the y", lambda y: 0.0**y, [0.0], [0.0], lambda y: 0.0**y, ORIGIN, jax=lambda y: 0.0**y),
    Row("sqrt", gf.sqrt, [0.0], [INF], torch.sqrt, SQRT, jax=jnp.sqrt),
    Row("log", gf.log, [0.0], [INF], torch.log, LOGS, jax=jnp.log),
    Row("log1p", gf.log1p, [-1.0], [INF], torch.log1p, LOGS, jax=jnp.log1p),
    Row("where", lambda x, y: gf.where(x > 0, x, y), [0.0, 2.0], [0.0, 1.0], lambda x, y: torch.where(x > 0, x, y),
        WHERE, jax=lambda x, y: jnp.where(x > 0, x, y)),
    Row("where at a pole", lambda x: gf.where(x > 0, gf.sqrt(x), 0.0), [0.0], [NAN],
        lambda x: torch.where(x > 0, torch.sqrt(x), 0.0), None, jax=lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0)),
    Row("softmax with −∞", lambda x: gf.softmax(x) ** 2, [[-INF, 0.0, 0.0]], [[0.0, 0.0, 0.0]],
        lambda x: torch.softmax(x, 0) ** 2, SOFTMAX, jax=lambda x: jax.nn.softmax(x) ** 2, place="whole"),
    Row("log_softmax with −∞", gf.log_softmax, [[-INF, 0.0, 0.0]], [[1.0, -0.5, -0.5]],
        lambda x: torch.log_softmax(x, 0), LOG_SOFTMAX, jax=jax.nn.log_softmax, place="whole"),
    Row("softmax of nothing likely", gf.softmax, [[-INF, -INF]], [[NAN, NAN]], lambda x: torch.softmax(x, 0),
        SOFTMAXES, jax=jax.nn.softmax, place="whole"),
    Row("log_softmax of nothing likely", gf.log_softmax, [[-INF, -INF]], [[NAN, NAN]],
        lambda x: torch.log_softmax(x, 0), SOFTMAXES, jax=jax.nn.log_softmax, place="whole"),
    Row("logsumexp with −∞", gf.logsumexp, [[-INF, 0.0]], [[0.0, 1.0]], lambda x: torch.logsumexp(x, 0), LOGSUMEXP,
        jax=jax.nn.logsumexp, place="whole"),
    Row("logsumexp of nothing likely", gf.logsumexp, [[-INF, -INF]], [[0.0, 0.0]], lambda x: torch.logsumexp(x, 0),
        LOGSUMEXP, differs=[[NAN, NAN]], jax=jax.nn.logsumexp, jax_differs=True, place="whole"),
    Row("BCELoss", bce(gf), [[0.0, 1.0, 0.0, 1.0, 1.0]], [[-1e12, 1e12, 0.0, 0.0, 0.7e12]], bce(torch), BCE,
        place="whole", second=False),
    Row("remainder at a jump", gf.remainder, [4.0, 2.0], [1.0, -2.0], torch.remainder, REMAINDER, jax=jnp.remainder),
    Row("take", lambda x: gf.take(x, gf.tensor(REPEATED, backend=x.backend), axis=0), [[1.0, 2.0, 3.0]],
        [[1.0, 0.0, 2.0]], lambda x: x[torch.tensor(REPEATED)], TAKE, jax=lambda x: x[REPEATED], place="whole"),
    Row("x[indices]", lambda x: x[REPEATED], [[1.0, 2.0, 3.0]], [[1.0, 0.0, 2.0]], lambda x: x[torch.tensor(REPEATED)],
        TAKE, jax=lambda x: x[REPEATED], place="whole"),
    Row("embedding", lambda w: gf.embedding(gf.tensor(REPEATED, backend=w.backend), w), [[[1.0], [2.0], [3.0]]],
        [[[1.0], [0.0], [2.0]]], lambda w: F.embedding(torch.tensor(REPEATED), w), TABLE_ROWS,
        jax=lambda w: w[REPEATED], place="whole"),
    Row("embedding with padding", lambda w: gf.embedding(gf.tensor(REPEATED, backend=w.backend), w, padding_idx=2),
        [[[1.0], [2.0], [3.0]]], [[[1.0], [0.0], [0.0]]],
        lambda w: F.embedding(torch.tensor(REPEATED), w, padding_idx=2), PADDING, place="whole"),
    *(Row(f"{name} at −∞ and ∞", ours, [[-INF, INF]], [[0.0, 1.0]], theirs, GATES, differs=[differs], jax=other,
          jax_differs=True, place="whole") for name, ours, theirs, other, differs in (
        ("gelu", gf.gelu, F.gelu, lambda x: jax.nn.gelu(x, approximate=False), [NAN, NAN]),
        ("gelu by tanh", lambda x: gf.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh"),
         jax.nn.gelu, [NAN, NAN]),
        ("silu", gf.silu, F.silu, jax.nn.silu, [NAN, NAN]),
    )),
    Row("x[indices] = v", written, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[0.0, 4.0, 0.0], [0.0, 10.0, 12.0]], None,
        WRITE, place="whole"),
]  # fmt: skip


# ---------------------------------------------------------------- decided, for functions that are not there yet
class Later(NamedTuple):
    """A decided row for a function that gradflow lacks: under one of these names it becomes a row of the table."""

    names: tuple[str, ...]
    at: list[Any]
    expected: list[Any]
    theirs: Call
    differs: list[Any] | None = None
    place: str = "each"


LATER = [
    Later(("hardtanh", "Hardtanh"), [1.0], [0.0], F.hardtanh),
    Later(("hardtanh", "Hardtanh"), [-1.0], [0.0], F.hardtanh),
    Later(("relu6", "ReLU6"), [0.0], [0.0], F.relu6),
    Later(("relu6", "ReLU6"), [6.0], [0.0], F.relu6),
    Later(("vector_norm", "norm", "linalg"), [[0.0, 0.0]], [[0.0, 0.0]], torch.linalg.vector_norm, place="whole"),
    Later(("prod",), [[0.0, 2.0, 3.0]], [[6.0, 0.0, 0.0]], torch.prod, place="whole"),
    Later(("prod",), [[0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]], torch.prod, place="whole"),
    Later(("xlogy",), [0.0, 0.0], [0.0, 0.0], torch.xlogy, differs=[0.0, NAN]),
    Later(("sinc",), [0.0], [0.0], torch.sinc),
    Later(("atan2", "arctan2"), [0.0, 0.0], [0.0, 0.0], torch.atan2),
]


def there(names: tuple[str, ...]) -> Call | None:
    """The function of that name, wherever gradflow has it; a layer is made and called."""
    for lib, name in itertools.product((gf, nn, gf.Tensor), names):
        if hasattr(lib, name):
            found = getattr(lib, name)
            return found() if isinstance(found, type) else found
    known = [name for name in names if name in REGISTRY]
    return REGISTRY[known[0]].function if known else None


ROWS = TABLE + [
    Row(f"{later.names[0]} at {later.at}", found, later.at, later.expected, later.theirs, None, later.differs,
        place=later.place)
    for later in LATER
    if (found := there(later.names)) is not None
]  # fmt: skip


# ---------------------------------------------------------------- evaluating a row
def eager(function: Call, xs: list[gf.Tensor]) -> list[np.ndarray]:
    for x in xs:
        x.requires_grad_()
    function(*xs).sum().backward()
    return [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in xs]


def on_tensors(function: Call, xs: list[gf.Tensor]) -> list[np.ndarray]:
    """By the generic rules, which record what they do."""
    for x in xs:
        x.requires_grad_()
    function(*xs).sum().backward(create_graph=True)
    found = [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in xs]
    for x in xs:
        x.grad = None  # the gradient's graph leads back to x
    return found


def replayed(function: Call, xs: list[gf.Tensor]) -> list[np.ndarray]:
    """A trace of the derivative, recorded at a point aside and replayed here."""
    derivative = gf.grad(lambda *operands: function(*operands).sum(), argnums=tuple(range(len(xs))))
    arrays = [np.where(np.isfinite(x.numpy()), x.numpy() + 2.0 + i, i + 1.0) for i, x in enumerate(xs)]
    aside = [gf.tensor(array, dtype=x.dtype, backend=x.backend) for array, x in zip(arrays, xs, strict=True)]
    _, recorded = trace(derivative, *aside)
    return [g.numpy() for g in recorded.replay(*xs)]


def placed(row: Row, how: str) -> tuple[Call, list[np.ndarray], list[np.ndarray]]:
    """The function, its operands and the derivatives expected; None where only finite differences know."""
    at = [np.array(v, np.float64) for v in row.at]
    expected = [np.array(v, np.float64) for v in row.expected]
    if how == "alone" or row.place == "whole":
        return row.ours, at, expected
    if how == "broadcast":
        shapes = [(2, 1), (3,), (1, 3)][: len(at)]
        grown = [np.full(shape, v) for shape, v in zip(shapes, at, strict=True)]
        number = 6 if len(at) > 1 else 2
        return row.ours, grown, [np.full(x.shape, e * (number // x.size)) for x, e in zip(grown, expected, strict=True)]
    offsets = [np.array([0.25, 0.0, 0.5]), np.array([0.375, 0.0, 0.6875]), np.array([0.4375, 0.0, 0.8125])]
    inside = [v + o for v, o in zip(at, offsets, strict=False)]
    smooth = differences(row.ours, inside)
    for e, s in zip(expected, smooth, strict=True):
        s[1] = e
    return row.ours, inside, smooth


def differences(function: Call, at: list[np.ndarray], h: float = 1e-6) -> list[np.ndarray]:
    """Central differences of the sum, element by element, in double precision."""
    found = []
    for i, x in enumerate(at):
        slopes = np.zeros(x.shape)
        for j in np.ndindex(x.shape):
            values = []
            for sign in (1.0, -1.0):
                moved = [v.copy() for v in at]
                moved[i][j] += sign * h
                values.append(function(*map(gf.tensor, moved)).numpy()[j])
            slopes[j] = (values[0] - values[1]) / (2 * h)
        found.append(slopes)
    return found


PLACES = ["alone", "among neighbours", "broadcast"]


@pytest.mark.parametrize("how", [eager, on_tensors, replayed], ids=lambda how: how.__name__)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_derivative_is_the_tables(row: Row, how: Call) -> None:
    with np.errstate(all="ignore"):
        for place in PLACES if row.place == "each" else PLACES[:1]:
            function, at, expected = placed(row, place)
            for backend, dtype in itertools.product((None, without_kernels("numpy")), ("float32", "float64")):
                xs = [gf.tensor(x.astype(dtype), backend=backend) for x in at]
                found = how(function, xs)
                for x, g, e in zip(xs, found, expected, strict=True):
                    assert g.shape == x.shape
                    np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5, err_msg=f"{place}, {backend}, {dtype}")


@pytest.mark.parametrize("how", [eager, on_tensors, replayed], ids=lambda how: how.__name__)
def test_another_choice_is_found(how: Call) -> None:
    """max(x, 0) by `maximum` takes ½ where relu takes 0."""
    row = TABLE[0]._replace(ours=lambda x: gf.maximum(x, 0.0))
    with pytest.raises(AssertionError):
        test_the_derivative_is_the_tables(row, how)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.theirs is not None], ids=str)
def test_pytorch_gives_the_same_where_the_table_says_so(row: Row, dtype: str) -> None:
    xs = [torch.tensor(v, dtype=getattr(torch, dtype), requires_grad=True) for v in row.at]
    found = torch.autograd.grad(row.theirs(*xs).sum(), xs, allow_unused=True, materialize_grads=True)
    for g, e in zip(found, row.differs or row.expected, strict=True):
        np.testing.assert_allclose(g.numpy(), np.array(e), rtol=1e-5)
    if row.differs is not None:
        assert not np.array_equal(np.array(row.differs), np.array(row.expected), equal_nan=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.jax is not None], ids=str)
def test_jax_gives_the_same_where_the_table_says_so(row: Row) -> None:
    xs = [jnp.asarray(v, jnp.float32) for v in row.at]
    found = jax.grad(lambda *operands: row.jax(*operands).sum(), argnums=tuple(range(len(xs))))(*xs)
    same = all(np.allclose(g, e, equal_nan=True) for g, e in zip(found, row.expected, strict=True))
    assert same != row.jax_differs, found


@pytest.mark.parametrize("row", [row for row in ROWS if row.convex], ids=str)
def test_a_choice_is_the_shortest_of_the_limits_hull(row: Row) -> None:
    """v is the shortest vector of a convex hull if it lies in it and ⟨v, s⟩ ≥ ⟨v, v⟩ for each s of its corners.

    The corners are PyTorch's derivatives at many points nearby, where the function is smooth.
    """
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    sizes = [np.size(v) for v in row.at]
    limits = []
    for _ in range(300):
        xs = [torch.tensor(np.array(v) + 1e-9 * rng.standard_normal(np.shape(v)), requires_grad=True) for v in row.at]
        found = torch.autograd.grad(row.theirs(*xs).sum(), xs)
        limits.append(np.concatenate([g.numpy().reshape(-1) for g in found]))
    corners = np.array(limits)
    v = np.concatenate([np.reshape(e, size) for e, size in zip(row.expected, sizes, strict=True)]).astype(float)
    assert (corners @ v >= v @ v - 1e-6).all()
    _, distance = nnls(np.vstack([corners.T, np.ones(len(corners))]), np.append(v, 1.0), maxiter=10_000)
    assert distance < 0.02


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_second_derivative_is_finite_where_the_first_is(row: Row) -> None:
    """It is PyTorch's, where that is finite; of powers of 0 PyTorch's is NaN."""
    if not all(np.isfinite(e).all() for e in row.expected):
        return  # a pole
    weights = [np.arange(1.0, np.size(v) + 1).reshape(np.shape(v)) for v in row.at]
    for backend in (None, without_kernels("numpy")):
        with np.errstate(all="ignore"):
            seconds = second(row.ours, row.at, weights, backend)
        for s in seconds:
            if row.name != "0^1.5 by a number":  # x^−½ at 0
                assert np.isfinite(s).all()
        if row.theirs is None or row.differs is not None or not row.second:
            continue
        xs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in row.at]
        firsts = torch.autograd.grad(row.theirs(*xs).sum(), xs, create_graph=True, materialize_grads=True)
        total = sum((g * torch.tensor(w)).sum() for g, w in zip(firsts, weights, strict=True))
        if total.requires_grad:
            theirs = torch.autograd.grad(total, xs, allow_unused=True, materialize_grads=True)
            if all(t.isfinite().all() for t in theirs):
                for s, t in zip(seconds, theirs, strict=True):
                    np.testing.assert_allclose(s, t.numpy(force=True), rtol=1e-9, atol=1e-12)


def second(function: Call, at: list[Any], weights: list[np.ndarray], backend: Any) -> list[np.ndarray]:
    """The derivative of ⟨w, ∂f/∂x⟩."""
    xs = [gf.tensor(np.array(v, np.float64), requires_grad=True, backend=backend) for v in at]
    function(*xs).sum().backward(create_graph=True)
    total = gf.tensor(0.0, dtype=gf.float64, backend=backend)
    for x, w in zip(xs, weights, strict=True):
        if x.grad is not None:
            total = total + (x.grad * gf.tensor(w, backend=backend)).sum()
            x.grad = None
    if total.requires_grad:
        total.backward()
    return [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in xs]


# ---------------------------------------------------------------- what is not there yet
@pytest.mark.parametrize("later", LATER, ids=lambda later: f"{later.names[0]} at {later.at}")
def test_a_function_without_a_row_is_one_that_gradflow_lacks(later: Later) -> None:
    found = there(later.names)
    if found is None:
        assert not {*dir(gf), *dir(nn), *dir(gf.Tensor), *REGISTRY} & set(later.names)
    else:
        assert any(row.ours is found or row.at == later.at for row in ROWS)
        assert later.names[0] in PAGE.read_text(), "the page needs a row for it"


# ---------------------------------------------------------------- the page
def page_rows() -> list[tuple[str, str, str]]:
    """(function, where, derivative) of each row; a function that is left out is the one above."""
    rows = []
    function = ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and set(cells[0]) != {"-"} and cells[0] != "function":
            function = cells[0] or function
            rows.append((function, cells[1], cells[2]))
    return rows


def at_minus_infinity(value: float) -> Call:
    """A value for the entries of −∞; of the others nothing is said."""
    return lambda x: [np.where(np.isneginf(x), value, NAN)]


def equal_shares(x: np.ndarray) -> list[np.ndarray]:
    """1/k for each of the k extremes; the rows over axes have (2, 2) arrays, or (2, 2, 2)."""
    axis, extreme = {1: (0, np.max), 2: (1, np.max), 3: ((0, 2), np.min)}[x.ndim]
    extreme = np.min if x.ndim == 1 and x[-1] == 1.0 else extreme
    ties = x == extreme(x, axis=axis, keepdims=True)
    return [ties / ties.sum(axis=axis, keepdims=True)]


def last_written(x: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
    """Of Σ y², where y is x with v written at (2, 0, 2)."""
    return [np.array([0.0, 2 * x[1], 0.0]), np.array([0.0, 2 * v[1], 2 * v[2]])]


# row of the page -> what it says in its last column, and the same as a formula in the operands; NaN: nothing is said
CLAIMS: dict[tuple[str, str], tuple[str, Call]] = {
    ABS: ("0", lambda x: [0.0]),
    RELU: ("0", lambda x: [0.0]),
    TIES: ("½ for each", lambda x, y: [0.5, 0.5]),
    EXTREMES: ("1/k for each", equal_shares),
    BOUND: ("1 for x, 0 for the bound", lambda x, *bounds: [1.0, *(0.0 for _ in bounds)]),
    OUTSIDE: (
        "0 for x, 1 for the bound that holds",
        lambda x, low, high: [0.0, float(x < low <= high), float(x > high or low > high)],
    ),
    STD: ("0", lambda x: [np.where((x == x[:1]).all(axis=0), 0.0, NAN)]),
    ORIGIN: ("0 for x, 0 for y", lambda *xy: [0.0 for _ in xy]),
    ABOVE: ("y·xʸ⁻¹ for x (∞ for y < 1), 0 for y", lambda x, *y: [y[0] * x ** (y[0] - 1), 0.0] if y else [0.0]),
    BELOW: ("−∞ for both", lambda x, y: [-INF, -INF]),
    NEGATIVE: ("y·xʸ⁻¹ for x, NaN for y", lambda x, y: [y * x ** (y - 1), NAN]),
    SQRT: ("∞", lambda x: [INF]),
    LOGS: ("∞", lambda x: [INF]),
    WHERE: ("1 for what was chosen, 0 for the other", lambda x, y: [float(x > 0), float(x <= 0)]),
    SOFTMAX: ("0 for those entries", at_minus_infinity(0.0)),
    LOG_SOFTMAX: ("1 of their own output, 0 of the others", at_minus_infinity(1.0)),
    SOFTMAXES: ("NaN, as the values are", lambda x: [NAN]),
    LOGSUMEXP: ("0 for those entries", at_minus_infinity(0.0)),
    BCE: ("(p − t) · 10¹²", lambda p: [np.where((p == 0) | (p == 1), (p - TARGETS) * 1e12, NAN)]),
    REMAINDER: ("1 for x, −⌊x/y⌋ for y", lambda x, y: [1.0, -np.floor(x / y)]),
    TABLE_ROWS: ("the contributions add up", lambda w: [np.bincount(REPEATED, minlength=3)[:, None]]),
    PADDING: ("0", lambda w: [np.array([[NAN], [NAN], [0.0]])]),
    GATES: ("0, 1", lambda x: [np.where(x > 0, 1.0, 0.0)]),
    TAKE: ("the contributions add up", lambda x: [np.bincount(REPEATED, minlength=3)]),
    WRITE: ("to the one that was written last", last_written),
}
NONE_AT_ALL = (
    "`floor`, `sign`, `floor_divide`, comparisons, `argmax`, `argmin`, `astype` to integers",
    "everywhere",
    "none: the result does not require grad",
)


def test_the_page_lists_the_table_and_nothing_else() -> None:
    rows = page_rows()
    assert len(set(rows)) == len(rows)
    assert NONE_AT_ALL in rows
    said = {(function, where): derivative for function, where, derivative in rows}
    del said[NONE_AT_ALL[:2]]
    assert said == {row: words for row, (words, _) in CLAIMS.items()}
    assert {row.page for row in TABLE} - {None} == CLAIMS.keys()


@pytest.mark.parametrize("row", [row for row in TABLE if row.page is not None], ids=str)
def test_what_the_page_says_is_what_the_table_expects(row: Row) -> None:
    _, formula = CLAIMS[row.page]
    with np.errstate(divide="ignore"):
        claimed = formula(*(np.array(v, np.float64) for v in row.at))
    for claim, expected in zip(claimed, row.expected, strict=True):
        claim = np.broadcast_to(claim, np.shape(expected))
        spoken = ~np.isnan(claim)
        assert spoken.any() or np.isnan(expected).all()
        np.testing.assert_allclose(np.where(spoken, expected, NAN), claim, rtol=1e-12)


def test_what_the_page_calls_without_derivative_requires_none() -> None:
    x = gf.tensor([1.5, 2.5], requires_grad=True)
    comparisons = [gf.equal, gf.not_equal, gf.less, gf.less_equal, gf.greater, gf.greater_equal]
    results = [gf.floor(x), gf.sign(x), gf.floor_divide(x, 2.0), gf.argmax(x), gf.argmin(x), x.astype(gf.int64)]
    for result in [*results, *(compare(x, 2.0) for compare in comparisons)]:
        assert not result.requires_grad


# ---------------------------------------------------------------- nothing new escapes
POINTS = [-1.0, 0.0, 1.0]
STEP = 1e-5


def elementwise() -> list[str]:
    """Primitives of one or two operands and no settings that have derivatives element by element."""
    return [
        name
        for name, primitive in sorted(REGISTRY.items())
        if len(primitive.operands) <= 3 and not primitive.settings and not primitive.variadic and not primitive.writes
        and not primitive.nondifferentiable and primitive.dtypes in ("float", "numeric")
        and name not in ("linear", "matmul", "mean_squared_error", "matrix_transpose")
    ]  # fmt: skip


def kinked(name: str) -> bool:
    """Whether the slopes on either side of a point of the grid differ, in the direction of an operand."""
    function, n = REGISTRY[name].function, len(REGISTRY[name].operands)
    with np.errstate(all="ignore"):
        for at in itertools.product(POINTS, repeat=n):
            for i in range(n):
                moved = [[v + s * STEP if j == i else v for j, v in enumerate(at)] for s in (-1, 0, 1)]
                low, here, high = (function(*(gf.tensor(v, dtype=gf.float64) for v in p)).item() for p in moved)
                left, right = (here - low) / STEP, (high - here) / STEP
                if np.isfinite([left, right]).all() and abs(left - right) > 1e-3 * max(1.0, abs(left), abs(right)):
                    return True
    return False


def test_every_operation_with_a_kink_is_on_the_page() -> None:
    page = " ".join(function for function, _, _ in page_rows())
    listed = {"binary_cross_entropy_of_probabilities": "BCELoss"}
    found = [name for name in elementwise() if kinked(name)]
    assert {"abs", "relu", "maximum", "minimum", "clip", "remainder"} <= set(found)
    assert [name for name in found if not re.search(rf"\b{listed.get(name, name)}\b", page)] == []


def test_smooth_operations_have_no_kinks() -> None:
    assert not any(kinked(name) for name in ("tanh", "exp", "multiply", "square", "softplus"))
