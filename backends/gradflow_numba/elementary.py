"""exp, log and their kin as scalar functions without branches, which LLVM vectorises inside a loop.

Each is within 2 ULP of the correctly rounded value over the whole range of its dtype, subnormal numbers included, and
has the exact special values. The polynomials are minimax fits (Remez' algorithm at 60 digits, in the stated interval,
of the relative error) made for this file; the reductions are the classical ones of Cody and Waite, Software Manual for
the Elementary Functions, 1980, and for log of P. T. P. Tang, ACM TOMS 16(4), 1990.
"""

from __future__ import annotations

import numpy as np

from gradflow_numba.jit import Number, bits32, bits64, float32_of, float64_of, scalar

f, d, i, q = np.float32, np.float64, np.int32, np.int64
INF32, NAN32 = f(np.inf), f(np.nan)
INF64, NAN64 = d(np.inf), d(np.nan)


def _singles(*coefficients: float) -> tuple[np.float32, ...]:
    return tuple(f(c) for c in coefficients)


# ln 2 in two parts, the first so short that its product with an exponent is exact
LOG2E32, LN2_HIGH32, LN2_LOW32 = f(1.4426950408889634), f(0.693359375), f(-2.12194440054690583e-4)
LOG2E64, LN2_HIGH64, LN2_LOW64 = d(1.4426950408889634), d(0.6931471803691238), d(1.9082149292705877e-10)
# adding it leaves the nearest integer in the low bits of the sum
ROUND32, ROUND64 = f(1.5 * 2**23), d(1.5 * 2**52)
ROUND32_BITS, ROUND64_BITS = i(0x4B400000), q(0x4338000000000000)

# (eʳ − 1 − r) / r² for |r| ≤ ln 2 / 2; relative error of eʳ − 1: 2^-26, 2^-55
EXP32 = _singles(0.5, 0.16666542, 0.04166628, 0.00836671, 0.0013946661)
EXP64 = (
    0.5000000000000006,
    0.16666666666666685,
    0.0416666666665722,
    0.008333333333314322,
    0.0013888888932876938,
    0.00019841269903693624,
    2.4801503814454093e-05,
    2.7557227300502466e-06,
    2.762658907806915e-07,
    2.511469652532292e-08,
)


# ---------------------------------------------------------------- order
@scalar
def ordered32(x: Number) -> Number:
    """An integer in the order of the numbers; a NaN is the largest. Negative numbers count their bits backwards."""
    bits = bits32(x)
    return bits ^ ((bits >> i(31)) & i(0x7FFFFFFF)) if x == x else i(0x7FFFFFFF)


@scalar
def ordered64(x: Number) -> Number:
    """As `ordered32`."""
    bits = bits64(x)
    return bits ^ ((bits >> q(63)) & q(0x7FFFFFFFFFFFFFFF)) if x == x else q(0x7FFFFFFFFFFFFFFF)


@scalar
def unordered32(n: Number) -> Number:
    """The number that `ordered32` made n of."""
    return float32_of(n ^ ((n >> i(31)) & i(0x7FFFFFFF)))


@scalar
def unordered64(n: Number) -> Number:
    """The number that `ordered64` made n of."""
    return float64_of(n ^ ((n >> q(63)) & q(0x7FFFFFFFFFFFFFFF)))


# ---------------------------------------------------------------- exp
@scalar
def exp32(x: Number) -> Number:
    """e^x: x = n ln 2 + r with |r| ≤ ln 2 / 2, e^r by a polynomial, 2^n in two factors for subnormal results."""
    x = max(x, f(-104))  # e^-104 rounds to 0
    x = min(x, f(89))  # e^89 is beyond the largest number
    shifted = x * LOG2E32 + ROUND32
    k = shifted - ROUND32
    r = (x - k * LN2_HIGH32) - k * LN2_LOW32
    p = (((EXP32[4] * r + EXP32[3]) * r + EXP32[2]) * r + EXP32[1]) * r + EXP32[0]
    p = (p * (r * r) + r) + f(1)
    n = bits32(shifted) - ROUND32_BITS
    half = n >> i(1)
    return p * float32_of((half + i(127)) << i(23)) * float32_of((n - half + i(127)) << i(23))


@scalar
def exp64(x: Number) -> Number:
    """e^x, as in `exp32`."""
    x = max(x, d(-746))
    x = min(x, d(710))
    shifted = x * LOG2E64 + ROUND64
    k = shifted - ROUND64
    r = (x - k * LN2_HIGH64) - k * LN2_LOW64
    p = _exp_tail64(r)
    p = (p * (r * r) + r) + d(1)
    n = bits64(shifted) - ROUND64_BITS
    half = n >> q(1)
    return p * float64_of((half + q(1023)) << q(52)) * float64_of((n - half + q(1023)) << q(52))


@scalar
def _exp_tail64(r: Number) -> Number:
    """(e^r − 1 − r) / r²."""
    p = (((EXP64[9] * r + EXP64[8]) * r + EXP64[7]) * r + EXP64[6]) * r + EXP64[5]
    return ((((p * r + EXP64[4]) * r + EXP64[3]) * r + EXP64[2]) * r + EXP64[1]) * r + EXP64[0]


@scalar
def _expm1_down32(x: Number) -> Number:
    """e^x − 1 for x ≤ 0."""
    x = max(x, f(-40))  # −1 from about −17
    shifted = x * LOG2E32 + ROUND32
    k = shifted - ROUND32
    r = (x - k * LN2_HIGH32) - k * LN2_LOW32
    p = (((EXP32[4] * r + EXP32[3]) * r + EXP32[2]) * r + EXP32[1]) * r + EXP32[0]
    p = p * (r * r) + r
    s = float32_of((bits32(shifted) - ROUND32_BITS + i(127)) << i(23))
    return s * p + (s - f(1))


@scalar
def _expm1_down64(x: Number) -> Number:
    x = max(x, d(-80))
    shifted = x * LOG2E64 + ROUND64
    k = shifted - ROUND64
    r = (x - k * LN2_HIGH64) - k * LN2_LOW64
    p = _exp_tail64(r) * (r * r) + r
    s = float64_of((bits64(shifted) - ROUND64_BITS + q(1023)) << q(52))
    return s * p + (s - d(1))


# ---------------------------------------------------------------- tanh, sigmoid
@scalar
def tanh32(x: Number) -> Number:
    """−m / (2 + m) with m = e^(−2|x|) − 1, and the sign of x."""
    m = _expm1_down32(f(-2) * abs(x))
    t = -m / (f(2) + m)
    return float32_of((bits32(t) & i(0x7FFFFFFF)) | (bits32(x) & i(-0x80000000)))


@scalar
def tanh64(x: Number) -> Number:
    """As `tanh32`."""
    m = _expm1_down64(d(-2) * abs(x))
    t = -m / (d(2) + m)
    return float64_of((bits64(t) & q(0x7FFFFFFFFFFFFFFF)) | (bits64(x) & q(-0x8000000000000000)))


@scalar
def sigmoid32(x: Number) -> Number:
    """1 / (1 + e^−|x|), or e^−|x| / (1 + e^−|x|) for negative x: small values keep their digits."""
    e = exp32(-abs(x))
    return (e if x < f(0) else f(1)) / (f(1) + e)


@scalar
def sigmoid64(x: Number) -> Number:
    """As `sigmoid32`."""
    e = exp64(-abs(x))
    return (e if x < d(0) else d(1)) / (d(1) + e)


# ---------------------------------------------------------------- log
# (ln(1 + t) − t + t²/2) / t³ for √½ − 1 ≤ t ≤ √2 − 1; relative error of ln(1 + t): 2^-30
LOG32 = _singles(
    0.33333313,
    -0.2500001,
    0.2000212,
    -0.16667996,
    0.1421952,
    -0.12405546,
    0.11888375,
    -0.11676034,
    0.06746623,
)
# (2 artanh s − 2 s) / s³ in s² for the same t = 2 s / (1 − s); relative error: 2^-58
LOG64 = (
    0.6666666666666734,
    0.39999999999413965,
    0.28571428742561855,
    0.2222219855379485,
    0.18183565407293023,
    0.15314021116589088,
    0.14796261108530015,
)
ROOT_HALF32, ROOT_HALF64 = i(0x3F3504F3), q(0x3FE6A09E667F3BCD)  # the bits of √½


@scalar
def _log1p_reduced32(t: Number, k: Number, c: Number) -> Number:
    """ln(1 + t) + k ln 2 + c."""
    p = ((((LOG32[8] * t + LOG32[7]) * t + LOG32[6]) * t + LOG32[5]) * t + LOG32[4]) * t + LOG32[3]
    p = ((p * t + LOG32[2]) * t + LOG32[1]) * t + LOG32[0]
    z = t * t
    return k * LN2_HIGH32 + (t + ((p * t * z + (k * LN2_LOW32 + c)) - f(0.5) * z))


@scalar
def _log1p_reduced64(t: Number, k: Number, c: Number) -> Number:
    s = t / (d(2) + t)
    z = s * s
    p = (((LOG64[6] * z + LOG64[5]) * z + LOG64[4]) * z + LOG64[3]) * z
    p = (((p + LOG64[2]) * z + LOG64[1]) * z + LOG64[0]) * z
    h = d(0.5) * t * t
    return k * LN2_HIGH64 + (t - (h - (s * (h + p) + (k * LN2_LOW64 + c))))


@scalar
def log32(x: Number) -> Number:
    """ln x: x = 2^n m with √½ ≤ m < √2, then ln m by a polynomial in m − 1."""
    tiny = x < f(2.0**-126)
    y = x * f(2.0**23) if tiny else x  # a subnormal number has its exponent in the significand
    above = bits32(y) - ROOT_HALF32
    n = above >> i(23)
    m = float32_of(bits32(y) - (n << i(23)))
    out = _log1p_reduced32(m - f(1), f(n) - (f(23) if tiny else f(0)), f(0))
    out = x if x == INF32 else out
    out = -INF32 if x == f(0) else out
    return NAN32 if not x >= f(0) else out


@scalar
def log64(x: Number) -> Number:
    """As `log32`."""
    tiny = x < d(2.0**-1022)
    y = x * d(2.0**52) if tiny else x
    above = bits64(y) - ROOT_HALF64
    n = above >> q(52)
    m = float64_of(bits64(y) - (n << q(52)))
    out = _log1p_reduced64(m - d(1), d(n) - (d(52) if tiny else d(0)), d(0))
    out = x if x == INF64 else out
    out = -INF64 if x == d(0) else out
    return NAN64 if not x >= d(0) else out


@scalar
def log1p32(x: Number) -> Number:
    """ln(1 + x): what rounding 1 + x lost, over 1 + x, is added to the logarithm."""
    u = f(1) + x
    n = (bits32(u) - ROOT_HALF32) >> i(23)
    m = float32_of(bits32(u) - (n << i(23)))
    lost = (f(1) - (u - x)) if x >= f(1) else (x - (u - f(1)))
    near = n == i(0)
    out = _log1p_reduced32(x if near else m - f(1), f(n), f(0) if near else lost / u)
    out = x if (x == INF32) | (x == f(0)) else out
    out = -INF32 if x == f(-1) else out
    return NAN32 if not x >= f(-1) else out


@scalar
def log1p64(x: Number) -> Number:
    """As `log1p32`."""
    u = d(1) + x
    n = (bits64(u) - ROOT_HALF64) >> q(52)
    m = float64_of(bits64(u) - (n << q(52)))
    lost = (d(1) - (u - x)) if x >= d(1) else (x - (u - d(1)))
    near = n == q(0)
    out = _log1p_reduced64(x if near else m - d(1), d(n), d(0) if near else lost / u)
    out = x if (x == INF64) | (x == d(0)) else out
    out = -INF64 if x == d(-1) else out
    return NAN64 if not x >= d(-1) else out


# ---------------------------------------------------------------- erf
# erf(x) / x − 1 in x² for x ≤ 1; error 2^-30 and 2^-63
ERF32 = _singles(0.12837917, -0.37612626, 0.112836, -0.026854444, 0.005189535, -0.0008020843, 7.8891266e-05)
ERF64 = (
    0.12837916709551256,
    -0.3761263890318375,
    0.11283791670954885,
    -0.02686617064507787,
    0.005223977624828387,
    -0.000854832698142354,
    0.00012055331132897844,
    -1.492559577110092e-05,
    1.6461008464856812e-06,
    -1.6350396126307112e-07,
    1.4660328314226223e-08,
    -1.1374954979963856e-09,
    5.96068529343028e-11,
)
# ln erfc(x) for 0.9 ≤ x ≤ 4; error of erfc: 2^-34
ERFC32 = _singles(
    0.00017055149,
    -1.1294951,
    -0.6333867,
    -0.10823661,
    0.02509149,
    -0.0041605243,
    0.0004323024,
    -2.09095e-05,
)
# erfc(x) e^(x²) in s = (x − 3) / (x + 3) for 0.9 ≤ x ≤ 6; error of erfc: 2^-64
ERFC64 = (
    0.17900115118138973,
    -0.3262335600430337,
    0.2456038017128413,
    -0.15011593649038155,
    0.07166583726000088,
    -0.024392499859819616,
    0.004269124146023143,
    0.0007076442323240528,
    -0.0005975787919533323,
    4.3508173810094786e-05,
    5.998066804014036e-05,
    -1.9410596557410183e-05,
    -1.4984282168664223e-05,
    -2.412011276265802e-06,
)


@scalar
def erf32(x: Number) -> Number:
    """x + x P(x²) up to 1, and 1 − e^Q(|x|) beyond, with the sign of x."""
    a = abs(x)
    a = min(a, f(4))  # 1 from 3.92
    z = a * a
    p = ((((ERF32[6] * z + ERF32[5]) * z + ERF32[4]) * z + ERF32[3]) * z + ERF32[2]) * z + ERF32[1]
    near = a + a * (p * z + ERF32[0])
    e = ((((ERFC32[7] * a + ERFC32[6]) * a + ERFC32[5]) * a + ERFC32[4]) * a + ERFC32[3]) * a
    far = f(1) - exp32(((e + ERFC32[2]) * a + ERFC32[1]) * a + ERFC32[0])
    out = far if a > f(1) else near
    return float32_of((bits32(out) & i(0x7FFFFFFF)) | (bits32(x) & i(-0x80000000)))


@scalar
def erf64(x: Number) -> Number:
    """x + x P(x²) up to 1, and 1 − e^(−x²) Q(s) beyond, with the sign of x."""
    a = abs(x)
    a = min(a, d(6))  # 1 from 5.93
    z = a * a
    p = (((((ERF64[12] * z + ERF64[11]) * z + ERF64[10]) * z + ERF64[9]) * z + ERF64[8]) * z + ERF64[7]) * z + ERF64[6]
    p = (((((p * z + ERF64[5]) * z + ERF64[4]) * z + ERF64[3]) * z + ERF64[2]) * z + ERF64[1]) * z + ERF64[0]
    s = (a - d(3)) / (a + d(3))
    e = (((((ERFC64[13] * s + ERFC64[12]) * s + ERFC64[11]) * s + ERFC64[10]) * s + ERFC64[9]) * s + ERFC64[8]) * s
    e = (((((e + ERFC64[7]) * s + ERFC64[6]) * s + ERFC64[5]) * s + ERFC64[4]) * s + ERFC64[3]) * s + ERFC64[2]
    e = (e * s + ERFC64[1]) * s + ERFC64[0]
    out = (d(1) - exp64(-z) * e) if a > d(1) else a + a * p
    return float64_of((bits64(out) & q(0x7FFFFFFFFFFFFFFF)) | (bits64(x) & q(-0x8000000000000000)))
