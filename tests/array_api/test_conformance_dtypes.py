"""Dtypes of results, for every function and operator and every combination of dtypes and Python numbers.

Where the standard gives a result, gradflow gives the same. Where it leaves one open, these rules of gradflow decide:

- integers and booleans that meet floating-point numbers give way to them (int64 and float32 make float32);
- functions of real numbers take integers and booleans, as the default dtype float32;
- booleans that meet numbers become numbers; alone, they are taken by the functions of `TAKE_BOOLEANS`;
- the logical functions take numbers, as true where they are not 0;
- Python numbers change the kind of a tensor, never its width.

Everything else that the standard does not allow is refused with a `DTypeError`.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.errors import DTypeError
from tests.array_api.standard import (
    BINARY,
    DTYPES,
    FLOATS,
    FUNCTIONS,
    IMPLEMENTED,
    UNARY,
    Array,
    accepted,
    category,
    dtype_name,
    here,
    met,
    operands,
    oracle,
    ours,
    promoted,
    refuses,
    required,
    sample,
    standard_dtype,
    standards_version,  # noqa: F401
    theirs,
)

TAKE_BOOLEANS = {  # which the standard keeps to numbers
    "abs", "add", "argmax", "argmin", "floor", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less",
    "less_equal", "matmul", "max", "maximum", "min", "minimum", "multiply", "sum",
}  # fmt: skip
LOGICAL = {"logical_and", "logical_not", "logical_or", "logical_xor"}
PAIRS = list(itertools.product(DTYPES, DTYPES))
UNARY_HERE = [name for name in UNARY if name not in ("from_dlpack", "finfo", "iinfo")]


def decided(name: str, *dtypes: str) -> Any:
    """The dtype of a result, None where the dtypes are to be refused."""
    if (standard := standard_dtype(name, *dtypes)) is not None:
        return standard
    if name in LOGICAL:
        return "bool"
    common = met(*dtypes)
    if common is None:
        return None
    if common in accepted(name):
        return standard_dtype(name, *[common] * len(dtypes))
    if set(accepted(name)) <= set(FLOATS):
        return standard_dtype(name, *["float32"] * len(dtypes))
    if common == "bool" and name in TAKE_BOOLEANS:
        of_bytes = standard_dtype(name, *["int8"] * len(dtypes))
        return "bool" if of_bytes == "int8" else of_bytes
    return None


def check(
    name: str, dtypes: tuple[str, ...], found: Callable[[], Any], fits: Callable[[Any], Any] = dtype_name
) -> None:
    expected = decided(name, *dtypes)
    if expected is None:
        assert refuses(found), f"{name} of {dtypes} should be refused"
    else:
        assert fits(found()) == expected, dtypes


@pytest.mark.parametrize("name", UNARY_HERE)
def test_functions_of_one_array(name: str) -> None:
    for dtype in DTYPES:
        check(name, (dtype,), lambda dtype=dtype: ours(here(name), *operands(name, (dtype,))))


TWO = [*BINARY, "where"]


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_arrays(name: str) -> None:
    for pair in PAIRS:
        check(name, pair, lambda pair=pair: ours(here(name), *operands(name, pair)))


@pytest.mark.parametrize("name", ["concat", "stack"])
def test_functions_of_several_arrays(name: str) -> None:
    for a, b in PAIRS:
        expected = promoted(a, b)
        if expected is None:
            assert refuses(lambda a=a, b=b: ours(here(name), [sample(a), sample(b)]))
        else:
            assert ours(here(name), [sample(a), sample(b)]).dtype == getattr(gf, expected)


def test_every_listed_departure_is_one() -> None:
    for name in TAKE_BOOLEANS:
        count = len(required(name))
        assert standard_dtype(name, *["bool"] * count) is None, f"{name} takes booleans by the standard"
    for name in LOGICAL:
        assert accepted(name) == ("bool",)


# ---------------------------------------------------------------- Python numbers
SCALARS: list[Any] = [True, 2, 2.5]


def weak(dtype: str, scalar: Any) -> str:
    """The dtype in which a tensor and a Python number meet."""
    if isinstance(scalar, float) and dtype not in FLOATS:
        return "float32"
    return "int64" if dtype == "bool" and not isinstance(scalar, bool) else dtype


@pytest.mark.parametrize("name", [name for name in TWO if name not in ("matmul", "tensordot", "vecdot", "take")])
@pytest.mark.parametrize("scalar", SCALARS, ids=str)
def test_python_numbers_are_weak_in_functions(name: str, scalar: Any) -> None:
    for dtype in DTYPES:
        *condition, x, _ = operands(name, (dtype, dtype))
        pair = (weak(dtype, scalar),) * 2
        check(name, pair, lambda c=condition, x=x: ours(here(name), *c, x, scalar))
        check(name, pair, lambda c=condition, x=x: ours(here(name), *c, scalar, x))


# ---------------------------------------------------------------- operators
OPERATORS = [
    name
    for name in vars(Array)
    if f"__r{name[2:]}" in vars(Array) and hasattr(gf.Tensor, name) and name != "__matmul__"
]
FUNCTION_OF = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip


def python_operator(name: str) -> Callable[[Any, Any], Any]:
    """`operator.add` for "__add__"."""
    return getattr(operator, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*OPERATORS, "__matmul__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"])
def test_operators_are_the_functions(name: str) -> None:
    apply, function = python_operator(name), FUNCTION_OF[name.strip("_")]
    for pair in PAIRS:
        check(function, pair, lambda pair=pair: ours(apply, *operands(function, pair)))
    if name == "__matmul__":
        return
    for dtype, scalar in itertools.product(DTYPES, SCALARS):
        x, pair = sample(dtype), (weak(dtype, scalar),) * 2
        check(function, pair, lambda x=x, s=scalar: ours(apply, x, s))
        check(function, pair, lambda x=x, s=scalar: ours(apply, s, x))


@pytest.mark.parametrize(
    ("name", "function"), [("abs", "abs"), ("neg", "negative"), ("pos", "positive"), ("invert", "bitwise_invert")]
)
def test_operators_of_one_array_are_the_functions(name: str, function: str) -> None:
    for dtype in DTYPES:
        check(function, (dtype,), lambda dtype=dtype: ours(python_operator(name), sample(dtype)))


@pytest.mark.parametrize("name", [*OPERATORS, "__matmul__"])
def test_operators_in_place_keep_the_dtype(name: str) -> None:
    """As the standard says; beyond it, an integer result is cast to the tensor's width, as NumPy does."""
    function, apply = FUNCTION_OF[name.strip("_")], python_operator(f"__i{name[2:]}")
    for a, b in PAIRS:
        result = decided(function, a, b)

        def write(a: str = a, b: str = b) -> gf.Tensor:
            x = gf.asarray(sample(a), copy=True)
            y = apply(x, gf.asarray(sample(b)))
            assert y is x
            return y

        if result is None or result in FLOATS and a not in FLOATS:
            assert refuses(write), f"{a} {name} {b} should be refused"
        else:
            assert write().dtype == getattr(gf, a)


# ---------------------------------------------------------------- creation
MAKERS: dict[str, tuple[Any, ...]] = {
    "arange": (3,), "asarray": ([0, 1],), "empty": (2,), "eye": (2,), "full": (2, 1), "linspace": (0, 1, 2),
    "ones": (2,), "zeros": (2,), "empty_like": (sample("int8"),), "full_like": (sample("int8"), 1),
    "ones_like": (sample("int8"),), "zeros_like": (sample("int8"),),
}  # fmt: skip


def test_every_function_that_takes_a_dtype_is_tested() -> None:
    creation = [name for name in IMPLEMENTED if category(name) == "creation"]
    assert set(MAKERS) == {name for name in creation if "dtype" in inspect.signature(FUNCTIONS[name]).parameters}


@pytest.mark.parametrize("name", MAKERS)
def test_creation_takes_a_dtype_and_a_device(name: str) -> None:
    for dtype in DTYPES:
        if (name, dtype) == ("arange", "bool"):
            with pytest.raises(DTypeError, match="arange of booleans"):
                gf.arange(2, dtype=gf.bool)
            continue
        made = ours(here(name), *MAKERS[name], dtype=getattr(gf, dtype), device=gf.zeros(0).device)
        assert made.dtype == getattr(gf, dtype) and made.device == gf.zeros(0).device
        assert dtype_name(made) == dtype_name(theirs(FUNCTIONS[name], *MAKERS[name], dtype=getattr(oracle, dtype)))
    with pytest.raises(gf.errors.ArgumentError, match="backend numpy has no device 'moon'"):
        ours(here(name), *MAKERS[name], device="moon")
    with pytest.raises(DTypeError, match="is not a dtype of gradflow"):
        ours(here(name), *MAKERS[name], dtype="complex64")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("zeros", (2,)), ("ones", (2,)), ("empty", (2,)), ("eye", (2,)), ("linspace", (0, 1, 3)), ("arange", (3.0,)),
        ("arange", (3,)), ("arange", (0, 3, 0.5)), ("full", (2, 1.0)), ("full", (2, 1)), ("full", (2, True)),
        ("asarray", (1.0,)), ("asarray", (1,)), ("asarray", (True,)), ("asarray", ([1, 2.5],)), ("asarray", ([True],)),
    ],
)  # fmt: skip
def test_default_dtypes(name: str, args: tuple[Any, ...]) -> None:
    """The standard's, with float32 for its float64."""
    expected = dtype_name(theirs(FUNCTIONS[name], *args)).replace("float64", "float32")
    assert dtype_name(ours(here(name), *args)) == expected


# ---------------------------------------------------------------- result_type, can_cast
def test_result_type_is_the_dtype_in_which_operands_meet() -> None:
    for a, b in PAIRS:
        expected = promoted(a, b)
        x, y = getattr(gf, a), gf.asarray(sample(b))
        if expected is None:
            assert refuses(lambda x=x, y=y: gf.result_type(x, y)) and not gf.can_cast(x, y.dtype)
        else:
            assert gf.result_type(x, y) == getattr(gf, expected) == (gf.asarray(sample(a)) + y).dtype
            assert gf.can_cast(x, y.dtype) == (expected == b) and gf.can_cast(y, x) == (expected == a)
    for dtype, scalar in itertools.product(DTYPES, SCALARS):
        assert gf.result_type(scalar, getattr(gf, dtype)).name == weak(dtype, scalar)
    assert gf.result_type(gf.int8, gf.int16, gf.uint8, 1) == gf.int16
    assert gf.result_type(np.ones(2, "int8"), np.int16) == gf.int16


def test_wrong_questions_about_dtypes() -> None:
    for ask in (gf.result_type, lambda: gf.result_type(1, 2.5)):
        with pytest.raises(gf.errors.ArgumentError, match="take on the dtype of what they meet"):
            ask()
    with pytest.raises(gf.errors.ArgumentError, match="'floating' is not a kind of dtypes"):
        gf.isdtype(gf.float32, "floating")
    for ask in (
        lambda: gf.isdtype("complex64", "bool"),
        lambda: gf.isdtype(gf.float32, 3.5),
        lambda: gf.can_cast("complex64", gf.float32),
        lambda: gf.can_cast(gf.float32, None),
        lambda: gf.result_type(gf.float32, "nothing"),
        lambda: gf.finfo("nothing"),
    ):
        with pytest.raises(DTypeError, match="is not a dtype of gradflow"):
            ask()
    for ask in (lambda: gf.finfo(gf.int8), lambda: gf.finfo(gf.tensor([1])), lambda: gf.iinfo(gf.float32)):
        with pytest.raises(DTypeError, match="finfo tells of floating-point dtypes, iinfo of integer ones"):
            ask()
    for ask in (lambda: gf.finfo(gf.bool), lambda: gf.iinfo(gf.bool)):
        with pytest.raises(DTypeError, match="of a tensor of numbers"):
            ask()
