"""The Numba backend's exp, log, log1p, tanh, sigmoid and erf against mpmath and float64, over the whole range."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

numba = pytest.importorskip("numba")
mpmath = pytest.importorskip("mpmath")

from gradflow_numba import elementary  # noqa: E402
from gradflow_numba.jit import loop  # noqa: E402

NAMES = ["exp", "log", "log1p", "tanh", "sigmoid", "erf"]
BITS = [32, 64]
ULP = 2
mpmath.mp.prec = 200


def exact(name, x):
    """The function's value in 200 bits."""
    if name in ("exp", "sigmoid") and abs(x) > 2000:  # far beyond the dtypes' range, but not beyond mpmath's
        x = 2000 * mpmath.sign(x)
    if name == "sigmoid":
        return 1 / (1 + mpmath.exp(-x))
    return getattr(mpmath, name)(x)


def looped(name, bits):
    """The function in the loop that a kernel would make around it, with the kernels' freer flags."""
    function = getattr(elementary, f"{name}{bits}")

    def run(x, out):
        for k in range(len(x)):
            out[k] = function(x[k])

    run.__qualname__ = f"{name}{bits}"
    return numba.njit(error_model="numpy", fastmath={"contract", "nsz", "reassoc"})(run)


LOOPS = {(name, bits): looped(name, bits) for name in NAMES for bits in BITS}


def applied(name, x):
    out = np.empty_like(x)
    LOOPS[name, x.dtype.itemsize * 8](x, out)
    return out


def number(x):
    """Floats as integers in their order, so that neighbours differ by 1 and both zeros are 0."""
    bits = x.view(f"i{x.dtype.itemsize}").astype(object)
    sign = 1 << (8 * x.dtype.itemsize - 1)
    return np.array([b if b >= 0 else -sign - b for b in bits])


def rounded(value, dtype):
    """The number nearest to one of 200 bits, also among the subnormal ones."""
    info = np.finfo(dtype)
    if mpmath.isnan(value) or mpmath.isinf(value) or value == 0:
        return dtype.type(float(value))
    spacing = mpmath.mpf(2) ** (max(mpmath.floor(mpmath.log(abs(value), 2)), info.minexp) - info.nmant)
    nearest = mpmath.nint(value / spacing) * spacing  # to even, as the arithmetic does
    if abs(nearest) > mpmath.mpf(float(info.max)):
        return dtype.type(math.copysign(math.inf, nearest))
    return dtype.type(float(nearest))


def domain(name, x):
    return x[x > 0] if name == "log" else x[x > -1] if name == "log1p" else x


def arguments(name, dtype):
    """Both signs of every binary exponent, dense where the function bends, its limits and their neighbours."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    if dtype == np.float64:
        exponents = np.concatenate([exponents[::9], np.arange(-60, 12)])
    magnitudes = np.ldexp(rng.uniform(1, 2, len(exponents) * 2), np.repeat(exponents, 2))
    edges = {
        "exp": [math.log(float(info.max)), math.log(float(info.tiny)), math.log(float(info.smallest_subnormal)) - 0.7],
        "log": [1.0, math.sqrt(0.5), math.sqrt(2), float(info.tiny), float(info.max)],
        "log1p": [1.0, math.sqrt(2) - 1, math.sqrt(0.5) - 1, -1.0, float(info.max)],
        "tanh": [0.5 * math.log(2) * k for k in (0.5, 1, 1.5, 3)] + [9.0, 19.0],
        "sigmoid": [88.0, 103.97, 709.0, 745.1, 17.0, 37.0],
        "erf": [1.0, 3.92, 4.0, 5.92, 6.0],
    }[name]
    near = [dtype.type(edge) for edge in edges]
    with np.errstate(over="ignore"):
        near += [np.nextafter(e, dtype.type(s)) for e in near for s in (-np.inf, np.inf)]
    spans = [rng.uniform(-1, 1, 400) * span for span in (1, 4, 20, 110, 750)]
    with np.errstate(over="ignore", under="ignore"):
        found = np.concatenate([magnitudes, -magnitudes, *spans, 1 + spans[0] / 8, near, np.negative(near)])
        found = found.astype(dtype)
    return domain(name, found[np.isfinite(found)])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_within_two_ulp_of_the_correctly_rounded_value(name, bits):
    x = arguments(name, np.dtype(f"f{bits // 8}"))
    expected = np.array([rounded(exact(name, mpmath.mpf(float(v))), x.dtype) for v in x])
    distance = abs(number(applied(name, x)) - number(expected))
    worst = int(np.argmax(distance))
    assert len(x) > 1500
    assert distance[worst] <= ULP, f"{name}({x[worst]!r}): {distance[worst]} ULP from {expected[worst]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_over_all_float32_numbers_is_within_two_ulp_of_float64(name):
    every = np.arange(0, 2**32, 3307, dtype=np.uint32).view(np.float32)  # 1.3 million of them
    x = domain(name, every[np.isfinite(every)])
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        if name == "sigmoid":
            expected = np.exp(np.minimum(wide, 0)) / (1 + np.exp(-abs(wide)))
        elif name == "erf":
            expected = np.array([math.erf(v) for v in wide])
        else:
            expected = getattr(np, name)(wide)
        expected = expected.astype(np.float32)
    distance = abs(ordered32(applied(name, x)) - ordered32(expected))
    worst = int(np.argmax(distance))
    assert distance[worst] <= ULP, f"{name}({x[worst]!r}): {distance[worst]} ULP from {expected[worst]!r}"


def ordered32(x):
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(2**31) - bits)


INF, NAN = math.inf, math.nan
SPECIAL = {  # pairs, as 0.0 and -0.0 would be one key
    "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (-0.0, 1.0), (1e30, INF), (-1e30, 0.0)],
    "log": [(INF, INF), (-INF, NAN), (0.0, -INF), (-0.0, -INF), (1.0, 0.0), (-1.0, NAN), (-1e-40, NAN)],
    "log1p": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e30, 1.0), (-1e30, -1.0)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (-0.0, 0.5), (1e30, 1.0), (-1e30, 0.0)],
    "erf": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e30, 1.0), (-1e30, -1.0)],
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_special_values_are_exact(name, bits):
    dtype = np.dtype(f"f{bits // 8}")
    x, expected = (np.array(column, dtype) for column in zip(*SPECIAL[name], (NAN, NAN), strict=True))
    for tiled in (x, np.tile(x, 40)):  # alone, and long enough for the vector code
        got = applied(name, tiled)
        want = np.tile(expected, len(tiled) // len(x))
        np.testing.assert_array_equal(got, want)
        signed = ~np.isnan(want)
        assert (np.signbit(got) == np.signbit(want))[signed].all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["tanh", "erf", "log1p"])
def test_a_subnormal_number_is_its_own_value(name, bits):
    smallest = np.finfo(f"f{bits // 8}").smallest_subnormal
    x = smallest * np.array([1, -1, 3, -3, 1000], f"f{bits // 8}")
    expected = x if name != "erf" else np.array([rounded(exact(name, mpmath.mpf(float(v))), x.dtype) for v in x])
    assert applied(name, x).tolist() == expected.tolist()


def test_exp_passes_through_the_subnormal_numbers_to_zero():
    x = np.linspace(-104.5, -87, 5001, dtype=np.float32)
    got = applied("exp", x)
    assert (np.diff(got) >= 0).all() and got[0] == 0 < got[got > 0].min() == np.finfo(np.float32).smallest_subnormal


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_around_it_uses_vectors_and_calls_nothing(name):
    function = getattr(elementary, f"{name}32")

    @loop
    def over(x, out):
        for k in range(len(x)):
            out[k] = function(x[k])

    over.compile("(float32[::1], float32[::1])")
    (text,) = over.inspect_llvm().values()
    (body,) = re.findall(r"^define [^\n]*@_ZN[^\n]*over.*?^}", text, re.DOTALL | re.MULTILINE)[:1]
    assert re.search(r"f(?:mul|add|sub) [a-z ]*<\d+ x float>", body), "no vector arithmetic"
    called = set(re.findall(r"call [^@\n]*@([\w.]+)", body))
    assert all(name.startswith(("llvm.", "NRT_")) for name in called), called
