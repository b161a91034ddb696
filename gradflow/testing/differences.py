"""Derivatives by finite differences: central differences, Richardson's extrapolation, and whether there is a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

# 1/32 … 2⁻²¹ by factors of 4: the first are right for smooth functions, the last lie inside most domains and kinks.
STEPS = tuple(2.0**-k for k in range(5, 22, 2))
RATIO = 4.0
_GOOD = 1e-10  # of the scale of the derivative: no further step is tried


class Slope(NamedTuple):
    """A derivative by finite differences, element by element.

    Attributes:
        value: φ′(0); NaN where no step stayed inside the domain of φ.
        error: an estimate of the error of `value`.
        jump: φ′(0⁺) − φ′(0⁻), which is 0 to rounding unless 0 is a kink.
    """

    value: Array
    error: Array
    jump: Array


def slope(phi: Callable[[float], Array], resolution: Array) -> Slope:
    """The derivative at 0 of a function of one number, by Ridders' method.

    Central differences (φ(h) − φ(−h)) / 2h for h falling by factors of 4 are extrapolated to h = 0; the entry of the
    tableau that differs least from its neighbours is taken, and that difference is its error. The one-sided
    differences disagree by (φ(h) − 2φ(0) + φ(−h)) / h, which falls like h where φ is smooth and tends to the jump of
    the derivative where it is not.

    Args:
        phi: takes a step, returns an array of any shape; NaN or infinite outside its domain.
        resolution: rounding error of the values of phi, element by element.

    Source: Ridders, Accurate computation of F′(x) and F′(x)F″(x), Advances in Engineering Software 4, 1982.

    >>> from gradflow.testing.differences import slope
    >>> value, error, jump = slope(lambda h: np.exp(np.array([1.0 + h])), np.array([1e-16]))
    >>> bool(abs(value - np.e) < 1e-10), bool(error < 1e-8)
    (True, True)
    >>> slope(lambda h: np.array([max(h, 0.0)]), np.array([1e-16])).jump
    array([1.])
    """
    with np.errstate(all="ignore"):  # outside the domain of φ the values are NaN or infinite, and not used
        return _tableau(phi, resolution)


def _tableau(phi: Callable[[float], Array], resolution: Array) -> Slope:
    at_zero = phi(0.0)
    value = np.full(at_zero.shape, np.nan)
    error = np.full(at_zero.shape, np.inf)
    jump = np.zeros(at_zero.shape)
    central: list[Array] = []
    bends: list[Array] = []
    for h in STEPS:
        above, below = phi(h) - at_zero, phi(-h) - at_zero
        before, central = central, _extrapolated((above - below) / (2 * h), central, first=2)
        bends = _extrapolated((above + below) / h, bends, first=1)
        for j in range(1, len(central)):
            apart = np.maximum(abs(central[j] - central[j - 1]), abs(central[j] - before[j - 1])) + resolution / h
            better = apart < error  # False for NaN
            value, error = np.where(better, central[j], value), np.where(better, apart, error)
            jump = np.where(better, bends[j], jump)
        if (error <= _GOOD * abs(value)).all():
            break
    return Slope(value, error, jump)


def _extrapolated(entry: Array, row_above: list[Array], first: int) -> list[Array]:
    """The next row of Richardson's tableau, for errors of the orders h^first, h^(first + 2), …"""
    row = [entry]
    for j, coarse in enumerate(row_above):
        row.append(row[-1] + (row[-1] - coarse) / (RATIO ** (first + 2 * j) - 1))
    return row
