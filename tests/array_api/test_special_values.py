"""NaN, infinities, signed zeros and the ends of the range: the standard's tables of special cases.

The whole grid is compared with the oracle, and a table written from the standard's text is held against both.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import Backend
from tests.array_api.standard import (
    ELEMENTWISE,
    FUNCTIONS,
    REDUCTIONS,
    ZERO_SIGN_IS_FREE,
    accepted,
    both,
    category,
    floats,
    here,
    oracle,
    ours,
    required,
    same,
    standards_version,  # noqa: F401
    theirs,
)

INF, NAN, PI = math.inf, math.nan, math.pi


@functools.cache
def specials(dtype: str) -> np.ndarray:
    """Where a floating-point function is likely to go wrong, and a few ordinary numbers."""
    limits = np.finfo(dtype)
    positive = [
        0.0, limits.smallest_subnormal, limits.smallest_normal, limits.eps, 0.5, 1.0, 1.0 + limits.eps, 1.5, 2.0, 2.5,
        3.0, 1e4, float(2 ** (limits.nmant + 1) - 1), limits.max, INF,
    ]  # fmt: skip
    return np.array([NAN, *positive, *(-float(p) for p in positive)], dtype)


def grid(dtype: str, count: int) -> list[np.ndarray]:
    """Arrays that together hold every combination of special values."""
    return [np.ascontiguousarray(a.reshape(-1)) for a in np.meshgrid(*[specials(dtype)] * count, indexing="ij")]


OF_FLOATS = [name for name in ELEMENTWISE if "float32" in accepted(name)]
PLAIN = [name for name in OF_FLOATS if name not in ("clip", "where")]


@both
@floats
@pytest.mark.parametrize("name", PLAIN)
def test_special_values_elementwise(name: str, dtype: str, backend: str | Backend) -> None:
    operands = grid(dtype, len(required(name)))
    expected = theirs(FUNCTIONS[name], *operands)
    same(ours(here(name), *operands, backend=backend), expected, signs=name not in ZERO_SIGN_IS_FREE)


@both
@floats
@pytest.mark.parametrize("name", [name for name in PLAIN if len(required(name)) == 2])
def test_special_values_as_python_numbers(name: str, dtype: str, backend: str | Backend) -> None:
    """A Python float is the same as an array of it; small powers take a shorter way."""
    x = specials(dtype)
    for number in map(float, x):
        signs = name not in ZERO_SIGN_IS_FREE
        whole = [int(number)] if number in (0, 1, 2, 3, -1) else []
        for scalar in [number, *whole]:
            y = np.full_like(x, scalar)
            same(ours(here(name), x, scalar, backend=backend), theirs(FUNCTIONS[name], x, y), signs=signs)
            same(ours(here(name), scalar, x, backend=backend), theirs(FUNCTIONS[name], y, x), signs=signs)


@floats
def test_a_power_does_not_depend_on_how_the_exponent_lies(dtype: str) -> None:
    """NumPy takes x to the power ½ as √x where the exponent is one number, which differs at −∞ and −0."""
    x = specials(dtype)
    expected = theirs(oracle.pow, x, np.full_like(x, 0.5))
    rows = np.stack([x, x], axis=1)
    half = np.array(0.5, dtype)
    for exponent in (
        0.5,
        np.float64(0.5),
        gf.tensor(half),
        gf.tensor(half[None]),
        gf.tensor(np.broadcast_to(half, x.shape)),
    ):
        same(ours(gf.pow, x, exponent), expected)
    for base in (rows, np.asfortranarray(rows)):
        for exponent in (
            np.array([0.5, 2], dtype),
            np.full((len(x), 1), 0.5, dtype),
            np.full(rows.T.shape, 0.5, dtype).T,
        ):
            found = ours(gf.pow, base, exponent)
            same(found[:, 0], expected)
    for value, right in ((-INF, INF), (-0.0, 0.0)):
        same(ours(gf.pow, np.array(value, dtype), 0.5), theirs(oracle.asarray, np.array(right, dtype)))


@both
@floats
def test_special_values_clipped(dtype: str, backend: str | Backend) -> None:
    x, low, high = (a for a in grid(dtype, 3))
    ordered = ~(low > high)  # the standard leaves open what happens else
    operands = [a[ordered] for a in (x, low, high)]
    same(ours(gf.clip, *operands, backend=backend), theirs(oracle.clip, *operands), signs=False)
    for one in ({"min": low}, {"max": high}):
        same(ours(gf.clip, x, backend=backend, **one), theirs(oracle.clip, x, **one), signs=False)


@both
@floats
def test_special_values_chosen(dtype: str, backend: str | Backend) -> None:
    x, y = grid(dtype, 2)
    for condition in (x > y, np.isnan(x)):
        same(ours(gf.where, condition, x, y, backend=backend), theirs(oracle.where, condition, x, y))


REDUCED = [name for name in REDUCTIONS if "float32" in accepted(name)]


@both
@floats
@pytest.mark.parametrize("name", REDUCED)
def test_special_values_reduced(name: str, dtype: str, backend: str | Backend) -> None:
    """Over each of three special values: NaNs and infinities in every place, signed zeros among themselves."""
    values = np.array([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, np.finfo(dtype).smallest_subnormal], dtype)
    rows = np.array(list(itertools.product(values, repeat=3)), dtype)
    for settings in ({"axis": 1}, {"axis": 0}, {}, {"axis": -1, "keepdims": True}):
        expected = theirs(FUNCTIONS[name], rows, **settings)
        found = ours(here(name), rows, backend=backend, **settings)
        same(found, expected, signs=name not in ZERO_SIGN_IS_FREE, slack=64)


EMPTY = {"sum": 0.0, "prod": 1.0, "mean": NAN, "std": NAN, "var": NAN, "all": True, "any": False, "count_nonzero": 0}


@both
@pytest.mark.parametrize("name", REDUCED)
def test_reductions_of_nothing(name: str, backend: str | Backend) -> None:
    """Their neutral element, without a warning; the extremes of nothing do not exist."""
    for x in (gf.zeros(0, backend=backend), gf.zeros((2, 0), backend=backend)):
        if name in EMPTY:
            found = here(name)(x, axis=-1)
            np.testing.assert_array_equal(found.numpy(), np.full(x.shape[:-1], EMPTY[name]))
        else:
            with pytest.raises(ValueError, match=name):
                here(name)(x, axis=-1)


# ---------------------------------------------------------------- the standard's text
# function -> operands and result, as the sections "Special cases" state them
TABLE: dict[str, list[tuple[Any, ...]]] = {
    "abs": [(NAN, NAN), (-0.0, 0.0), (-INF, INF)],
    "acos": [(NAN, NAN), (1.5, NAN), (-1.5, NAN), (1.0, 0.0)],
    "acosh": [(NAN, NAN), (0.5, NAN), (1.0, 0.0), (INF, INF)],
    "asin": [(NAN, NAN), (1.5, NAN), (0.0, 0.0), (-0.0, -0.0)],
    "asinh": [(NAN, NAN), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "atan": [(NAN, NAN), (-0.0, -0.0), (INF, PI / 2), (-INF, -PI / 2)],
    "atanh": [(NAN, NAN), (1.5, NAN), (-1.0, -INF), (1.0, INF), (-0.0, -0.0)],
    "atan2": [
        (NAN, 1.0, NAN), (1.0, NAN, NAN), (1.0, 0.0, PI / 2), (1.0, -0.0, PI / 2), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0),
        (0.0, -0.0, PI), (0.0, -1.0, PI), (-0.0, 1.0, -0.0), (-0.0, 0.0, -0.0), (-0.0, -0.0, -PI), (-0.0, -1.0, -PI),
        (-1.0, 0.0, -PI / 2), (1.0, INF, 0.0), (1.0, -INF, PI), (-1.0, INF, -0.0), (-1.0, -INF, -PI),
        (INF, 1.0, PI / 2), (-INF, 1.0, -PI / 2), (INF, INF, PI / 4), (INF, -INF, 3 * PI / 4), (-INF, INF, -PI / 4),
        (-INF, -INF, -3 * PI / 4),
    ],
    "add": [
        (NAN, 1.0, NAN), (INF, -INF, NAN), (-INF, INF, NAN), (INF, INF, INF), (-INF, -INF, -INF), (INF, 1.0, INF),
        (1.0, -INF, -INF), (-0.0, -0.0, -0.0), (-0.0, 0.0, 0.0), (0.0, -0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 2.0, 2.0),
        (2.0, -2.0, 0.0),
    ],
    "ceil": [(NAN, NAN), (INF, INF), (-0.0, -0.0), (-0.5, -0.0)],
    "copysign": [(NAN, 1.0, NAN), (1.0, -0.0, -1.0), (-1.0, 0.0, 1.0), (0.0, -1.0, -0.0)],
    "cos": [(NAN, NAN), (0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "cosh": [(NAN, NAN), (0.0, 1.0), (INF, INF), (-INF, INF)],
    "divide": [
        (NAN, 1.0, NAN), (INF, INF, NAN), (INF, -INF, NAN), (0.0, -0.0, NAN), (0.0, 1.0, 0.0), (-0.0, 1.0, -0.0),
        (0.0, -1.0, -0.0), (-0.0, -1.0, 0.0), (1.0, 0.0, INF), (1.0, -0.0, -INF), (-1.0, 0.0, -INF), (-1.0, -0.0, INF),
        (INF, 2.0, INF), (INF, -2.0, -INF), (-INF, 2.0, -INF), (2.0, INF, 0.0), (2.0, -INF, -0.0), (-2.0, INF, -0.0),
        (-2.0, -INF, 0.0),
    ],
    "equal": [(NAN, NAN, False), (INF, INF, True), (0.0, -0.0, True), (INF, -INF, False)],
    "exp": [(NAN, NAN), (0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0)],
    "expm1": [(NAN, NAN), (0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0)],
    "floor": [(NAN, NAN), (INF, INF), (-INF, -INF), (0.0, 0.0), (-0.0, -0.0)],
    "floor_divide": [
        (NAN, 1.0, NAN), (1.0, NAN, NAN), (INF, INF, NAN), (0.0, 0.0, NAN), (0.0, 1.0, 0.0), (-0.0, 1.0, -0.0),
        (0.0, -1.0, -0.0), (-0.0, -1.0, 0.0), (1.0, 0.0, INF), (1.0, -0.0, -INF), (-1.0, 0.0, -INF), (-1.0, -0.0, INF),
        (1.0, INF, 0.0), (-1.0, -INF, 0.0), (7.0, 2.0, 3.0), (-7.0, 2.0, -4.0),
    ],
    "greater": [(NAN, 1.0, False), (1.0, NAN, False), (INF, 1.0, True), (0.0, -0.0, False)],
    "hypot": [(INF, NAN, INF), (NAN, -INF, INF), (1.0, NAN, NAN), (NAN, 1.0, NAN)],
    "isfinite": [(NAN, False), (INF, False), (-INF, False), (1.0, True)],
    "isinf": [(NAN, False), (INF, True), (-INF, True), (1.0, False)],
    "isnan": [(NAN, True), (INF, False)],
    "log": [(NAN, NAN), (-1.0, NAN), (0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF)],
    "log10": [(NAN, NAN), (-1.0, NAN), (-0.0, -INF), (1.0, 0.0), (INF, INF)],
    "log1p": [(NAN, NAN), (-2.0, NAN), (-1.0, -INF), (-0.0, -0.0), (0.0, 0.0), (INF, INF)],
    "log2": [(NAN, NAN), (-1.0, NAN), (-0.0, -INF), (1.0, 0.0), (INF, INF)],
    "logaddexp": [(NAN, 1.0, NAN), (INF, 1.0, INF), (1.0, INF, INF)],
    "maximum": [(NAN, 1.0, NAN), (1.0, NAN, NAN), (INF, 1.0, INF), (-INF, 1.0, 1.0)],
    "minimum": [(NAN, 1.0, NAN), (1.0, NAN, NAN), (INF, 1.0, 1.0), (-INF, 1.0, -INF)],
    "multiply": [
        (NAN, 1.0, NAN), (INF, 0.0, NAN), (-0.0, INF, NAN), (2.0, -0.0, -0.0), (-2.0, -0.0, 0.0), (INF, -INF, -INF),
        (-INF, -2.0, INF),
    ],
    "nextafter": [(NAN, 1.0, NAN), (1.0, NAN, NAN), (-0.0, 0.0, 0.0)],
    "pow": [
        (2.0, NAN, NAN), (1.0, NAN, 1.0), (NAN, 0.0, 1.0), (NAN, -0.0, 1.0), (INF, 0.0, 1.0), (NAN, 2.0, NAN),
        (2.0, INF, INF), (2.0, -INF, 0.0), (-2.0, INF, INF), (1.0, INF, 1.0), (-1.0, INF, 1.0), (-1.0, -INF, 1.0),
        (0.5, INF, 0.0), (0.5, -INF, INF), (INF, 2.0, INF), (INF, -2.0, 0.0), (-INF, 3.0, -INF), (-INF, 2.0, INF),
        (-INF, 2.5, INF), (-INF, -3.0, -0.0), (-INF, -2.0, 0.0), (0.0, 2.0, 0.0), (0.0, -2.0, INF), (-0.0, 3.0, -0.0),
        (-0.0, 2.0, 0.0), (-0.0, -3.0, -INF), (-0.0, -2.0, INF), (-8.0, 0.5, NAN), (-8.0, 1 / 3, NAN),
        (-INF, 0.5, INF), (-0.0, 0.5, 0.0), (-0.0, -0.5, INF), (-INF, -0.5, 0.0),
    ],
    "reciprocal": [(NAN, NAN), (INF, 0.0), (-INF, -0.0), (0.0, INF), (-0.0, -INF)],
    "remainder": [
        (NAN, 1.0, NAN), (1.0, NAN, NAN), (INF, 1.0, NAN), (INF, INF, NAN), (1.0, 0.0, NAN), (0.0, 0.0, NAN),
        (0.0, 1.0, 0.0), (-0.0, 1.0, 0.0), (0.0, -1.0, -0.0), (-0.0, -1.0, -0.0), (1.0, INF, 1.0), (1.0, -INF, -INF),
        (-1.0, INF, INF), (-1.0, -INF, -1.0), (7.0, -4.0, -1.0), (-7.0, 4.0, 1.0),
    ],
    "round": [(NAN, NAN), (-0.0, -0.0), (INF, INF), (0.5, 0.0), (1.5, 2.0), (-0.5, -0.0)],
    "sign": [(NAN, NAN), (0.0, 0.0), (-0.0, 0.0), (-INF, -1.0), (INF, 1.0)],
    "signbit": [(0.0, False), (-0.0, True), (INF, False), (-INF, True)],
    "sin": [(NAN, NAN), (-0.0, -0.0), (INF, NAN)],
    "sinh": [(NAN, NAN), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "sqrt": [(NAN, NAN), (-1.0, NAN), (0.0, 0.0), (-0.0, -0.0), (INF, INF)],
    "square": [(NAN, NAN), (-INF, INF), (-0.0, 0.0)],
    "subtract": [(INF, INF, NAN), (INF, -INF, INF), (-0.0, 0.0, -0.0), (0.0, 0.0, 0.0)],
    "tan": [(NAN, NAN), (-0.0, -0.0), (INF, NAN)],
    "tanh": [(NAN, NAN), (0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0)],
    "trunc": [(NAN, NAN), (-0.0, -0.0), (-0.5, -0.0), (INF, INF)],
}  # fmt: skip
VECTORS: dict[str, list[tuple[list[float], Any]]] = {
    "sum": [([], 0.0), ([1.0, NAN], NAN), ([INF, -INF], NAN), ([INF, 1.0], INF)],
    "prod": [([], 1.0), ([1.0, NAN], NAN), ([INF, 0.0], NAN)],
    "mean": [([], NAN), ([1.0, NAN], NAN), ([INF, -INF], NAN)],
    "max": [([1.0, NAN, 2.0], NAN), ([-INF, 1.0], 1.0), ([-INF, -INF], -INF)],
    "min": [([1.0, NAN, 2.0], NAN), ([INF, 1.0], 1.0), ([INF, INF], INF)],
    "std": [([1.0, NAN], NAN), ([], NAN)],
    "var": [([1.0, NAN], NAN), ([], NAN)],
    "all": [([], True), ([NAN, INF, -INF, 1.0], True), ([NAN, -0.0], False)],
    "any": [([], False), ([0.0, -0.0], False), ([0.0, NAN], True), ([0.0, -INF], True)],
    "argmax": [([1.0, NAN, NAN], 1), ([INF, INF], 0)],
    "argmin": [([1.0, NAN, 0.0], 1), ([-0.0, 0.0], 0)],
    "cumulative_sum": [([1.0, NAN, 1.0], [1.0, NAN, NAN])],
    "cumulative_prod": [([1.0, NAN, 1.0], [1.0, NAN, NAN])],
    "count_nonzero": [([], 0), ([NAN, -0.0, INF], 2)],
}
ROWS = [(name, [np.array([v, v]) for v in row[:-1]], row[-1]) for name, rows in TABLE.items() for row in rows]
ROWS += [(name, [np.array(row)], result) for name, rows in VECTORS.items() for row, result in rows]


def agrees(found: np.ndarray, expected: Any, dtype: str) -> bool:
    wanted = np.asarray(expected)
    if wanted.dtype.kind != "f":
        return bool((found == wanted).all())
    close = np.allclose(found, wanted, rtol=4 * np.finfo(dtype).eps, atol=0, equal_nan=True)
    return bool(close and (np.isnan(wanted) | (np.signbit(found) == np.signbit(wanted))).all())


@floats
def test_the_oracle_follows_the_table(dtype: str) -> None:
    """So the table is read from the standard as the oracle's authors read it; functions to come are in it, too."""
    for name, operands, result in ROWS:
        found = theirs(FUNCTIONS[name], *(np.asarray(o, dtype) for o in operands))
        assert agrees(found._array, result, dtype), (name, operands, result, found)


@both
@floats
def test_gradflow_follows_the_table(dtype: str, backend: str | Backend) -> None:
    for name, operands, result in ROWS:
        if here(name) is not None:
            found = ours(here(name), *(np.asarray(o, dtype) for o in operands), backend=backend)
            assert agrees(found.numpy(), result, dtype), (name, operands, result, found)


def test_every_function_of_numbers_stands_in_the_table() -> None:
    comparisons = {"greater_equal", "less", "less_equal", "not_equal"}  # follow from the others'
    plain = {"clip", "negative", "positive", "where"}
    real = {name for name in FUNCTIONS if category(name) == "elementwise" and "float32" in accepted(name)}
    complex_parts = {"conj", "real"}
    assert real - comparisons - plain - complex_parts == set(TABLE)


# ---------------------------------------------------------------- warnings: NumPy's own, and no more


def complaints(f: Callable[..., Any], *operands: Any) -> set[str]:
    """What NumPy reports while f runs: a division by zero, an invalid operation, an overflow."""
    heard: set[str] = set()
    with np.errstate(divide="call", invalid="call", over="call", under="ignore", call=lambda kind, _: heard.add(kind)):
        f(*operands)
    return heard


@floats
@pytest.mark.parametrize("name", PLAIN)
def test_poles_are_reported_as_numpy_does(name: str, dtype: str) -> None:
    """log(0) and 1/0 give their values with NumPy's report, which is a warning by default; nothing else reports."""
    reference = getattr(np, name)
    for values in itertools.product(specials(dtype), repeat=len(required(name))):
        arrays = [np.array([v, v]) for v in values]
        tensors = [gf.tensor(a) for a in arrays]
        assert complaints(here(name), *tensors) == complaints(reference, *arrays), values


# ---------------------------------------------------------------- gradflow's own functions, without a warning
def logits(dtype: str) -> np.ndarray:
    """Rows of three logits: ordinary, far, infinite, NaN."""
    values = np.array([0.0, -1.5, 1e4, -1e4, INF, -INF, NAN], dtype)
    return np.array(list(itertools.product(values, repeat=3)), dtype)


def undefined(rows: np.ndarray) -> np.ndarray:
    """Rows without a softmax: ∞/∞, or 0/0 where every logit is −∞."""
    return (rows == INF).any(axis=1) | (rows == -INF).all(axis=1)


def quiet(f: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """An oracle's result without its warnings; gradflow's functions run with warnings as errors."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return f(*args, **settings)


@both
@floats
@pytest.mark.parametrize("name", ["sigmoid", "softplus", "relu"])
def test_special_values_of_activations(name: str, dtype: str, backend: str | Backend) -> None:
    torch = pytest.importorskip("torch")
    x = specials(dtype)
    expected = {
        "sigmoid": torch.sigmoid,
        "softplus": lambda t: torch.logaddexp(t, torch.zeros_like(t)),
        "relu": torch.relu,
    }[name](torch.from_numpy(x)).numpy()
    found = getattr(gf, name)(gf.tensor(x, backend=backend))
    limits = np.finfo(dtype)
    np.testing.assert_allclose(found.numpy(), expected, rtol=8 * limits.eps, atol=4 * float(limits.smallest_subnormal))


@both
@floats
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_special_values_of_softmax(name: str, dtype: str, backend: str | Backend) -> None:
    """−∞ is a probability of 0, a NaN spoils its row: as in SciPy, and without a warning."""
    special = pytest.importorskip("scipy.special")
    rows = logits(dtype)
    if name != "logsumexp":
        rows = rows[~undefined(rows)]
    expected = quiet(getattr(special, name), rows, axis=1)
    found = getattr(gf, name)(gf.tensor(rows, backend=backend), axis=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(dtype).eps, atol=0)


@both
@floats
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_where_it_is_undefined_has_nan(name: str, dtype: str, backend: str | Backend) -> None:
    """∞/∞ and 0/0; NumPy may report them, as it does those of plain division."""
    rows = logits(dtype)
    found = ours(getattr(gf, name), rows[undefined(rows)], axis=1, backend=backend)
    assert np.isnan(found.numpy()).any(axis=1).all()


@both
@floats
def test_special_values_of_losses(dtype: str, backend: str | Backend) -> None:
    """As in PyTorch, and without a warning where they are defined."""
    torch = pytest.importorskip("torch")
    rows = logits(dtype)
    rows = rows[~undefined(rows)]
    labels = np.arange(len(rows)) % 3
    eps = np.finfo(dtype).eps
    x, t = gf.tensor(rows, backend=backend), gf.tensor(labels, backend=backend)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(rows), torch.from_numpy(labels), reduction="none")
    found = gf.cross_entropy(x, t, reduction="none").numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=8 * eps, atol=8 * eps)
    for row, label, loss in zip(rows, labels, found, strict=True):  # the mean has a kernel of its own
        one = gf.cross_entropy(gf.tensor(row[None], backend=backend), gf.tensor(label[None], backend=backend))
        np.testing.assert_allclose(one.numpy(), loss, rtol=8 * eps, atol=8 * eps)

    a, b = grid(dtype, 2)
    sane = np.isfinite(a) & (np.isnan(b) | (b >= 0) & (b <= 1))  # NaN as a target: NaN comes out
    a, b = a[sane], b[sane]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(*map(torch.from_numpy, (a, b)), reduction="none")
    found = gf.binary_cross_entropy_with_logits(
        gf.tensor(a, backend=backend), gf.tensor(b, backend=backend), reduction="none"
    )
    rounding = 16 * eps * np.maximum(np.abs(a), 1)  # of PyTorch, which subtracts large terms
    np.testing.assert_array_equal(np.isnan(found.numpy()), np.isnan(expected.numpy()))
    assert (np.abs(found.numpy() - expected.numpy()) <= rounding)[~np.isnan(b)].all()

    a, b = grid(dtype, 2)
    expected = torch.nn.functional.mse_loss(*map(torch.from_numpy, (a, b)), reduction="none")
    found = ours(gf.mse_loss, a, b, reduction="none", backend=backend)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=4 * eps, atol=0)
