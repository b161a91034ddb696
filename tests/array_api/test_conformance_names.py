"""What the standard names: functions and their signatures, constants, dtypes, and what the namespace says of itself."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

import gradflow as gf
from gradflow.errors import ArgumentError, DTypeError
from tests.array_api.standard import (
    COMPLEX_ONLY,
    CONSTANTS,
    DTYPES,
    EXTENSIONS,
    FUNCTIONS,
    IMPLEMENTED,
    dtype_name,
    here,
    oracle,
    required,
    standards_version,  # noqa: F401
)

# Functions of the standard that gradflow does not have yet. Adding one takes its name off this list.
MISSING = set(
    """
    acos acosh asin asinh atan atan2 atanh bitwise_left_shift bitwise_right_shift ceil copysign cos cosh expm1 hypot
    log10 log2 logaddexp nextafter reciprocal round signbit sin sinh tan trunc

    argsort broadcast_arrays count_nonzero cumulative_prod cumulative_sum diff flip meshgrid nonzero prod repeat roll
    searchsorted sort tensordot tile tril triu unique_all unique_counts unique_inverse unique_values unstack vecdot

    linalg.cholesky linalg.cross linalg.det linalg.diagonal linalg.eigh linalg.eigvalsh linalg.inv linalg.matrix_norm
    linalg.matrix_power linalg.matrix_rank linalg.outer linalg.pinv linalg.qr linalg.slogdet linalg.solve linalg.svd
    linalg.svdvals linalg.trace linalg.vector_norm
    """.split()
)
NOT_PLANNED = {
    "complex dtypes": {"complex64", "complex128", "conj", "imag", "real"},
    "Fourier transforms": {name for name in EXTENSIONS if name.startswith("fft.")},
}


def test_what_is_missing_is_known() -> None:
    names = {*FUNCTIONS, *EXTENSIONS, "complex64", "complex128"}
    absent = {name for name in names if here(name) is None}
    assert absent == MISSING.union(*NOT_PLANNED.values())
    assert set(COMPLEX_ONLY) <= NOT_PLANNED["complex dtypes"]


# ---------------------------------------------------------------- signatures
DEVIATIONS = {
    ("expand_dims", "axis"): "has the default 0, which the standard had up to 2024.12 and which harms nobody",
}


def default(parameter: inspect.Parameter) -> Any:
    """A default to compare; the oracle's marker for "not given" stands for None."""
    return None if type(parameter.default).__name__ == "Undef" else parameter.default


def differences(ours: inspect.Signature, standard: inspect.Signature) -> dict[str, str]:
    """Parameter -> in what a signature departs from the standard's, beyond keyword-only parameters of its own."""
    found = {}
    catch_all = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD  # they explain mistakes
    wanted_too = {name for name, p in standard.parameters.items() if p.kind in catch_all}
    own = {name: p for name, p in ours.parameters.items() if p.kind not in catch_all or name in wanted_too}
    in_order = iter([p for p in own.values() if p.kind is not p.KEYWORD_ONLY])
    for name, wanted in standard.parameters.items():
        mine = own.get(name) if wanted.kind is wanted.KEYWORD_ONLY else next(in_order, None)
        if mine is None:
            found[name] = "is missing"
            continue
        del own[mine.name]
        if mine.kind is not wanted.kind:
            found[name] = f"is {mine.kind.description}, not {wanted.kind.description}"
        elif mine.name != name and wanted.kind is wanted.POSITIONAL_OR_KEYWORD:
            found[name] = f"is called {mine.name}"
        elif default(mine) != default(wanted):
            found[name] = f"has the default {mine.default}, not {wanted.default}"
    for name, extra in own.items():
        if extra.kind is not extra.KEYWORD_ONLY:
            found[name] = "is not the standard's, and positional"
        elif extra.kind is extra.KEYWORD_ONLY and extra.default is extra.empty:
            found[name] = "is not the standard's, and has no default"
    return found


@pytest.mark.parametrize("name", [name for name in {**FUNCTIONS, **EXTENSIONS} if here(name) is not None])
def test_signatures_are_the_standards(name: str) -> None:
    found = differences(inspect.signature(here(name)), inspect.signature({**FUNCTIONS, **EXTENSIONS}[name]))
    assert set(found) == {parameter for f, parameter in DEVIATIONS if f == name}, found


def test_a_departure_from_a_signature_is_noticed() -> None:
    """The comparison itself: each kind of departure is found."""

    def standard(x, /, shape, *, axis=None, keepdims=False): ...  # type: ignore[no-untyped-def]
    def renamed(x, /, size, *, axis=None, keepdims=False): ...  # type: ignore[no-untyped-def]
    def bare(x, /, shape, *, axis=0): ...  # type: ignore[no-untyped-def]
    def loose(x, /, shape, axis=None, *, keepdims=False): ...  # type: ignore[no-untyped-def]
    def named(x, shape, *, axis=None, keepdims=False): ...  # type: ignore[no-untyped-def]
    def more(x, /, shape, *, axis=None, keepdims=False, backend=None, **wrong): ...  # type: ignore[no-untyped-def]
    def demanding(x, /, shape, *, axis=None, keepdims=False, backend): ...  # type: ignore[no-untyped-def]

    expected = {
        renamed: {"shape": "is called size"},
        bare: {"axis": "has the default 0, not None", "keepdims": "is missing"},
        loose: {"axis": "is positional or keyword, not keyword-only"},
        named: {"x": "is positional or keyword, not positional-only"},
        more: {},
        demanding: {"backend": "is not the standard's, and has no default"},
    }
    for function, found in expected.items():
        assert differences(inspect.signature(function), inspect.signature(standard)) == found


def test_another_librarys_names_stay_errors() -> None:
    """The parameters that take any keyword are there to answer with the right name."""
    with pytest.raises(DTypeError, match="use axis="):
        gf.sum(gf.ones(3), dim=0)
    some = {"x": gf.ones((1, 2)), "indices": gf.zeros((1, 1), dtype=gf.int64), "axis": 0, "arrays": [gf.ones((1, 2))]}
    strict = [name for name in IMPLEMENTED if "**wrong" in str(inspect.signature(here(name)))]
    assert len(strict) > 10
    for name in strict:
        with pytest.raises(DTypeError, match="unexpected keyword argument 'nonsense'"):
            here(name)(*(some[parameter] for parameter in required(name)), nonsense=1)


# ---------------------------------------------------------------- constants, dtypes, versions
@pytest.mark.parametrize("name", [name for name in CONSTANTS if name != "__version__"])
def test_constants_are_the_standards(name: str) -> None:
    found, expected = getattr(gf, name), getattr(oracle, name)
    if name == "__array_api_version__":
        assert found == "2024.12" <= expected
    else:
        assert type(found) is type(expected)
        assert found == expected or math.isnan(found) and math.isnan(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_attributes(dtype: str) -> None:
    assert getattr(gf, dtype).name == dtype
    assert gf.zeros(2, dtype=getattr(gf, dtype)).dtype == getattr(gf, dtype)
    assert getattr(gf, dtype) != gf.float32 or dtype == "float32"


def test_the_namespace_of_a_tensor() -> None:
    x = gf.tensor([1.0])
    assert x.__array_namespace__() is gf
    for version in ("2021.12", "2022.12", "2023.12", "2024.12"):
        assert x.__array_namespace__(api_version=version) is gf
    for version in ("2025.12", "2020.01", "nonsense"):
        with pytest.raises(ArgumentError, match=r"__array_namespace__\(api_version='2024.12'\)"):
            x.__array_namespace__(api_version=version)


# ---------------------------------------------------------------- __array_namespace_info__
def members(info: Any) -> set[str]:
    return {name for name in dir(info) if not name.startswith("_")}


def test_the_namespace_answers_the_standards_questions() -> None:
    mine, expected = gf.__array_namespace_info__(), oracle.__array_namespace_info__()
    assert members(mine) == members(expected)
    for name in members(expected):
        assert not differences(inspect.signature(getattr(mine, name)), inspect.signature(getattr(expected, name)))
    assert mine.capabilities() == expected.capabilities()
    assert gf.zeros(1).device == mine.default_device() and mine.devices() == [mine.default_device()]


def test_the_namespace_tells_its_dtypes() -> None:
    mine, expected = gf.__array_namespace_info__(), oracle.__array_namespace_info__()
    kinds = ["bool", "signed integer", "unsigned integer", "integral", "real floating", "complex floating", "numeric"]
    for kind in [None, *kinds, ("bool", "real floating"), ()]:
        found = {name: dtype.name for name, dtype in mine.dtypes(kind=kind, device=mine.default_device()).items()}
        known = {name: dtype_name(dtype) for name, dtype in expected.dtypes(kind=kind).items()}
        assert found == {name: dtype for name, dtype in known.items() if "complex" not in name}
    defaults = {name: dtype_name(dtype) for name, dtype in expected.default_dtypes().items()}
    del defaults["complex floating"]  # there are none
    assert {name: d.name for name, d in mine.default_dtypes().items()} == defaults | {"real floating": "float32"}
    with pytest.raises(ArgumentError, match="not a kind of dtypes"):
        mine.dtypes(kind="floating")
    for ask in (mine.dtypes, mine.default_dtypes):
        with pytest.raises(ArgumentError, match="device 'moon' is none of the chosen backend's"):
            ask(device="moon")


def test_the_default_dtypes_follow_the_choice() -> None:
    gf.set_default_dtype(gf.float64)
    try:
        assert gf.__array_namespace_info__().default_dtypes()["real floating"] is gf.float64
    finally:
        gf.set_default_dtype(gf.float32)
