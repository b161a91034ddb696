"""The array API standard as `array_api_strict` states it, found by looking into it, and how results are compared.

Nothing here lists functions of gradflow: a function of the standard is tested from the day gradflow has its name.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings

import gradflow as gf
from gradflow.backend import Backend
from gradflow.errors import DTypeError
from gradflow.testing import without_kernels

oracle: Any = pytest.importorskip("array_api_strict")

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64".split()
FLOATS = ["float32", "float64"]
BACKENDS: list[str | Backend] = ["numpy", without_kernels("numpy")]  # with kernels of its own, and by composition alone
both = pytest.mark.parametrize("backend", BACKENDS, ids=["kernels", "compositions"])
floats = pytest.mark.parametrize("dtype", FLOATS)

Array = type(oracle.asarray(0))
some = settings(max_examples=min(40, settings.default.max_examples))  # of each of a hundred functions, in CI too


@pytest.fixture(autouse=True, scope="module")
def standards_version() -> Iterator[None]:
    """The oracle speaks the version that gradflow follows, in the modules that import this fixture alone."""
    with oracle.ArrayAPIStrictFlags(api_version=gf.__array_api_version__):
        yield


# ---------------------------------------------------------------- what the standard has
def _of_this_version(function: Any) -> bool:
    """Whether the version of the standard that gradflow follows has the function: a later one's raises at any call."""
    with oracle.ArrayAPIStrictFlags(api_version=gf.__array_api_version__):
        try:
            function()
        except RuntimeError as error:
            return "requires API version" not in str(error)
        except (TypeError, ValueError):
            return True
    return True


def _names(namespace: Any) -> list[str]:
    return [name for name in namespace.__all__ if "strict" not in name.lower() and name != "Device"]


def _functions(namespace: Any, prefix: str = "") -> dict[str, Callable[..., Any]]:
    found = {prefix + name: getattr(namespace, name) for name in _names(namespace)}
    return {name: f for name, f in found.items() if inspect.isfunction(f) and _of_this_version(f)}


FUNCTIONS = _functions(oracle)
CONSTANTS = [name for name in _names(oracle) if isinstance(getattr(oracle, name), float | str | None)]
EXTENSIONS = {
    f"{module}.{name}": f
    for module in ("linalg", "fft")
    for name, f in _functions(getattr(oracle, module)).items()
    if name not in FUNCTIONS  # linalg repeats matmul and its like
}
MEMBERS = sorted(
    name
    for name in vars(Array)
    if name not in {"__annotations__", "__doc__", "__hash__", "__init__", "__module__", "__new__", "__slots__"}
    and name
    not in {"__array__", "__buffer__", "__reduce__", "__repr__", "__str__", "__weakref__"}  # not the standard's
    and (name.startswith("__") or not name.startswith("_"))
)


def category(name: str) -> str:
    """The chapter of the standard, such as "elementwise", by the module of the oracle."""
    module = inspect.unwrap(FUNCTIONS[name]).__module__
    return module.rpartition(".")[2].removeprefix("_").removesuffix("_functions")


def here(name: str) -> Any:
    """What gradflow has under that name, None where it has nothing yet."""
    found: Any = gf
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def required(name: str) -> list[str]:
    """The names of the parameters without a default."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]


IMPLEMENTED = [name for name in FUNCTIONS if here(name) is not None]
ELEMENTWISE = [name for name in IMPLEMENTED if category(name) == "elementwise"]
UNARY = [name for name in IMPLEMENTED if required(name) == ["x"]]
BINARY = [name for name in IMPLEMENTED if required(name) == ["x1", "x2"]]
REDUCTIONS = [name for name in UNARY if {"axis", "keepdims"} <= set(inspect.signature(FUNCTIONS[name]).parameters)]


# ---------------------------------------------------------------- the same call on both sides
class DType(NamedTuple):
    """A dtype in a call that is made of both libraries."""

    name: str


def translated(value: Any, array: Callable[[np.ndarray], Any], namespace: Any) -> Any:
    """An argument with NumPy arrays and `DType`s in it, as one library's own."""
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, DType):
        return getattr(namespace, value.name)
    if isinstance(value, list | tuple):
        return type(value)([translated(item, array, namespace) for item in value])
    return value


def theirs(f: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """The oracle's result, without NumPy's warnings."""
    args, given = (translated(v, oracle.asarray, oracle) for v in (args, list(settings.values())))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **dict(zip(settings, given, strict=True)))


def ours(f: Callable[..., Any], *args: Any, backend: str | Backend = "numpy", **settings: Any) -> Any:
    """gradflow's result, without NumPy's warnings."""
    args, given = (translated(v, lambda a: gf.asarray(a, backend=backend), gf) for v in (args, list(settings.values())))
    with np.errstate(all="ignore"), gf.use_backend(backend):
        return f(*args, **dict(zip(settings, given, strict=True)))


# ---------------------------------------------------------------- dtypes
def dtype_name(value: Any) -> Any:
    """The dtype of an array of either library, by name; of several arrays, a list."""
    if isinstance(value, tuple | list):
        return [dtype_name(v) for v in value]
    dtype = getattr(value, "dtype", value)
    return getattr(dtype, "_np_dtype", dtype).name


def sample(dtype: str) -> np.ndarray:
    """A square of ones, which every operation takes, matrix products and shifts among them."""
    return np.ones((2, 2), dtype)


def operands(name: str, dtypes: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    chosen = tuple(sample(d) for d in dtypes)
    if name == "where":
        return sample("bool"), *chosen
    return tuple(x.reshape(-1) for x in chosen) if name.startswith("cumulative") else chosen


@functools.cache
def standard_dtype(name: str, *dtypes: str) -> Any:
    """The dtype that the standard gives to the result of a function of arrays; None where it gives none."""
    with oracle.ArrayAPIStrictFlags(api_version=gf.__array_api_version__):
        try:
            oracle.result_type(*(getattr(oracle, d) for d in dtypes))
            return dtype_name(theirs(FUNCTIONS[name], *operands(name, dtypes)))
        except TypeError:
            return None


@functools.cache
def accepted(name: str) -> tuple[str, ...]:
    """The dtypes that the standard lets a function take."""
    count = len(required(name)) - (name == "where")
    return tuple(d for d in DTYPES if standard_dtype(name, *(d,) * count) is not None)


def promoted(*dtypes: str) -> str | None:
    """The dtype in which operands meet: by the standard, else by gradflow's rule; None where there is none."""
    with oracle.ArrayAPIStrictFlags(api_version=gf.__array_api_version__):
        try:
            return str(dtype_name(oracle.result_type(*(getattr(oracle, d) for d in dtypes))))
        except TypeError:
            return met(*dtypes)


COMPLEX_ONLY = [name for name in FUNCTIONS if category(name) == "elementwise" and not accepted(name)]


def met(*dtypes: str) -> str | None:
    """The dtype in which operands meet by gradflow's rule; None where they have no common one."""
    wide = [d for d in dtypes if d in FLOATS]
    if wide:
        return max(wide)
    common = np.result_type(*dtypes)
    return None if common.kind == "f" else common.name


# ---------------------------------------------------------------- values
ZERO_SIGN_IS_FREE = {
    *("max", "min", "maximum", "minimum", "clip"),  # which of 0 and -0 they take the standard leaves open
    *("matmul", "tensordot", "vecdot"),  # -0 is the sum of one product -0, unless the sum starts from 0
}


def same(found: Any, expected: Any, *, signs: bool = True, slack: float = 4) -> None:
    """Two results agree: structure, dtype, shape, NaNs, infinities and zeros exactly, the rest to `slack` roundings.

    With slack above 4, for sums, an absolute error of so many roundings of the largest element is allowed too.
    """
    if isinstance(expected, tuple | list):
        assert isinstance(found, tuple | list)
        assert getattr(found, "_fields", None) == getattr(expected, "_fields", None)
        for f, e in zip(found, expected, strict=True):
            same(f, e, signs=signs, slack=slack)
        return
    if isinstance(expected, bool | int | float | None):
        assert type(found) is type(expected) and found == expected
        return
    assert isinstance(found, gf.Tensor)
    assert dtype_name(found) == dtype_name(expected)
    a, b = found.numpy(), expected._array
    assert a.shape == b.shape
    if b.dtype.kind != "f":
        np.testing.assert_array_equal(a, b)
        return
    limits = np.finfo(b.dtype)
    finite = np.abs(b[np.isfinite(b)])
    largest = float(finite.max()) if slack > 4 and finite.size else 0.0
    tolerance = slack * float(limits.smallest_subnormal) + slack * float(limits.eps) * largest
    np.testing.assert_allclose(a, b, rtol=slack * limits.eps, atol=tolerance)
    if signs:
        zero = (b == 0) & (a == 0)
        np.testing.assert_array_equal(np.signbit(a[zero]), np.signbit(b[zero]))


def refuses(f: Callable[[], Any]) -> bool:
    """Whether a call raises for its dtypes."""
    try:
        f()
    except DTypeError:
        return True
    return False
